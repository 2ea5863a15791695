import numpy as np
import torch

from distill.report.colours import rgb
from distill.report.correspondences import RIGHT, WRONG
from distill.report.retrieval_rows import Answer, framed, retrieval_group


def plain(value, height=40, width=60):
    return torch.full((3, height, width), value, dtype=torch.uint8)


def test_frame_is_outside_of_the_picture():
    picture = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    colours = set()
    for right in (True, False, None):
        out = framed(picture, right)
        assert out.shape == (44, 64, 3)
        assert (out[2:-2, 2:-2] == picture).all()
        edge = np.concatenate([out[:2].reshape(-1, 3), out[:, -2:].reshape(-1, 3)])
        assert len(np.unique(edge, axis=0)) == 1
        colours.add(tuple(edge[0].tolist()))
    assert len(colours) == 3
    assert {rgb(RIGHT), rgb(WRONG)} < colours


def test_rows_hold_query_and_answers_of_each_model():
    answers = {
        "a": [[Answer(plain(k), k == 1) for k in range(7)], [Answer(plain(9), None)]],
        "b": [[Answer(plain(20 + k), False) for k in range(5)], [Answer(plain(8), True)]],
    }
    group = retrieval_group("Landmarks", [plain(200), plain(100)], answers)
    assert group.columns == ["model", "query", "1", "2", "3", "4", "5"]
    assert [row[0].text for row in group.rows] == ["a", "b", "a", "b"]
    assert [int(row[1].picture[0, 0, 0]) for row in group.rows] == [200, 200, 100, 100]
    assert all(len(row) == 7 for row in group.rows)
    first = group.rows[0][2:]
    assert [int(cell.picture[20, 30, 0]) for cell in first] == [0, 1, 2, 3, 4]
    assert [cell.text for cell in first] == ["wrong", "right", "wrong", "wrong", "wrong"]
    corners = [tuple(cell.picture[0, 0].tolist()) for cell in first]
    assert corners == [rgb(WRONG), rgb(RIGHT), *[rgb(WRONG)] * 3]
    assert group.rows[2][2].text == "not counted"
    assert all(cell.picture is None and not cell.text for cell in group.rows[2][3:])
    assert [name for name, _ in group.legend] == ["right", "wrong", "not counted"]


def test_captions_are_texts():
    group = retrieval_group(
        "Captions",
        ["a dog", plain(3)],
        {"a": [[Answer(plain(5), True)], [Answer("a <cat>", False), Answer("a dog", True)]]},
    )
    assert group.rows[0][1].text == "a dog"
    assert group.rows[0][1].picture is None
    assert group.rows[0][2].picture is not None
    assert [cell.text for cell in group.rows[1][2:4]] == ["wrong: a <cat>", "right: a dog"]
    assert [name for name, _ in group.legend] == ["right", "wrong"]
