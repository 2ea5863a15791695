"""`spair:`: the pairs as their files have them."""

import json

import pytest
import torch
from layouts import write_spair
from reading import names, refused

from distill.datasets import open_evaluation


def test_pairs(tmp_path):
    written = write_spair(tmp_path)
    data = open_evaluation(f"spair:{tmp_path}")
    part = data.parts["correspondence"]
    assert len(part.pairs) == len(written.pairs) == 3
    for pair, record in zip(part.pairs, written.pairs, strict=True):
        inside = f"JPEGImages/{record['category']}/"
        assert part.pictures.name(pair.source) == inside + record["src_imname"]
        assert part.pictures.name(pair.target) == inside + record["trg_imname"]
        assert part.pictures.read(pair.target).shape[1:] == tuple(record["trg_imsize"][1::-1])
        assert pair.source_points.dtype == torch.float32
        assert pair.source_points.tolist() == record["src_kps"]
        assert pair.target_points.tolist() == record["trg_kps"]
        assert pair.category == record["category"]
    # The target's boxes are 23, 33 and 43 wide and 36 high.
    assert [pair.reach for pair in part.pairs] == [36.0, 36.0, 43.0]
    assert len(set(names(part.pictures))) == 4
    assert data.pictures is part.pictures


def test_a_pair_without_common_keypoints_is_left_out(tmp_path):
    write_spair(tmp_path)
    change(tmp_path, "000002*", src_kps=[], trg_kps=[])
    part = open_evaluation(f"spair:{tmp_path}").parts["correspondence"]
    assert [pair.category for pair in part.pairs] == ["aeroplane", "cat"]


def change(folder, pattern, **fields):
    (file,) = (folder / "PairAnnotation/test").glob(pattern)
    record = json.loads(file.read_text()) | fields
    file.write_text(json.dumps({key: value for key, value in record.items() if value != "gone"}))
    return file


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"src_kps": [[1, 2]]}, "1 points in src_kps and 2 in trg_kps"),
        ({"src_kps": [[1, None], [2, 3]]}, "'src_kps' is not of 2 numbers each"),
        ({"trg_kps": [[1, 2, 3], [4, 5, 6]]}, "'trg_kps' is not of 2 numbers each"),
        ({"trg_kps": "gone"}, "there is no 'trg_kps', only filename, src_imname, trg_imname and"),
        ({"trg_bndbox": [5, 5, 5, 5]}, "trg_bndbox [5, 5, 5, 5] is empty"),
        ({"trg_bndbox": "gone"}, "'trg_bndbox' is not of 4 numbers each"),
        ({"category": 3}, "'category' is '3', of the wrong kind"),
    ],
)
def test_fields_that_are_wrong(tmp_path, fields, said):
    write_spair(tmp_path)
    file = change(tmp_path, "000001*", **fields)
    message = refused(f"spair:{tmp_path}")
    assert message.startswith(f"{file}: ")
    assert said in message


def test_files_that_are_broken_or_missing(tmp_path):
    write_spair(tmp_path)
    (tmp_path / "JPEGImages/cat/2009_3.jpg").unlink()
    assert refused(f"spair:{tmp_path}").endswith(
        f"1 image of 4 not in '{tmp_path}': JPEGImages/cat/2009_3.jpg"
    )
    file = change(tmp_path, "000003*")
    file.write_text('{"category": "cat",\n "src_kps": [[1, 2],}')
    assert f"{file}, line 2: broken JSON: " in refused(f"spair:{tmp_path}")
    for old in (tmp_path / "PairAnnotation/test").iterdir():
        old.unlink()
    assert "no pair with keypoints in" in refused(f"spair:{tmp_path}")
