import numpy as np
import pytest
import torch
from torch.nn import functional as F

from distill.scenes import dataset
from distill.scenes.captions import VOCABULARY, caption, partial_captions
from distill.scenes.dataset import Scenes
from distill.scenes.generate import COLOURS, FAR, KINDS, MAX_SHAPES, NEAR, TEXTURES, draw_scenes
from distill.scenes.render import keypoints, render


def test_a_scene_depends_on_seed_and_index_alone():
    alone = render(draw_scenes(3, np.array([17])), 32).image[0]
    among = render(draw_scenes(3, np.arange(10, 20)), 32).image[7]
    assert torch.equal(alone, among)
    assert not torch.equal(alone, render(draw_scenes(4, np.array([17])), 32).image[0])


def test_another_size_shows_the_same_scene():
    parameters = draw_scenes(0, np.arange(8))
    small, large = render(parameters, 32), render(parameters, 128)
    shrunk = F.avg_pool2d(large.image.float(), 4)
    assert (shrunk - small.image.float()).abs().mean() < 6
    same = large.segmentation[:, 2::4, 2::4] == small.segmentation
    assert same.float().mean() > 0.97


def test_annotations_agree_with_each_other():
    parameters = draw_scenes(0, np.arange(64))
    drawn = render(parameters, 48)
    assert drawn.image.dtype == torch.uint8
    assert drawn.depth.min() >= NEAR
    assert drawn.depth.max() <= FAR
    assert torch.equal(drawn.instances > 0, drawn.segmentation > 0)
    for row in range(len(parameters)):
        for slot in range(MAX_SHAPES):
            own = drawn.instances[row] == slot + 1
            if not own.any():
                continue
            assert slot < parameters.count[row]
            assert set(drawn.segmentation[row][own].tolist()) == {parameters.kind[row, slot] + 1}
            assert drawn.depth[row][own].unique().tolist() == pytest.approx(
                [parameters.depth[row, slot]]
            )
        # A shape that hides another is nearer, and all are nearer than the ground behind them.
        present = parameters.depth[row, : parameters.count[row]]
        assert (np.diff(present) <= 0).all()
        behind = drawn.depth[row][drawn.instances[row] == 0]
        assert present.max() < behind.min()


def test_shapes_are_where_the_parameters_say():
    parameters = draw_scenes(1, np.arange(200))
    alone = np.flatnonzero(parameters.count == 1)[:20]
    picked = parameters.rows(alone)
    drawn = render(picked, 64)
    at = (torch.arange(64) + 0.5) / 64
    for row in range(len(picked)):
        own = drawn.instances[row] == 1
        columns, rows = own.any(0), own.any(1)
        x, y, r = picked.x[row, 0], picked.y[row, 0], picked.radius[row, 0]
        assert at[columns].min() >= x - 1.25 * r - 0.02
        assert at[columns].max() <= x + 1.25 * r + 0.02
        assert at[rows].min() >= y - 1.25 * r - 0.02
        assert at[rows].max() <= y + 1.25 * r + 0.02
        assert 0.2 < own.float().mean() / (np.pi * r * r) < 1.1


def test_the_ring_has_a_hole_and_the_disc_has_none():
    parameters = draw_scenes(2, np.arange(400))
    for kind, filled in (("ring", False), ("circle", True)):
        rows = np.flatnonzero(
            (parameters.count == 1) & (parameters.kind[:, 0] == KINDS.index(kind))
        )
        picked = parameters.rows(rows)
        drawn = render(picked, 64)
        centre_x = torch.from_numpy((picked.x[:, 0] * 64).astype(int))
        centre_y = torch.from_numpy((picked.y[:, 0] * 64).astype(int))
        inside = drawn.instances[torch.arange(len(rows)), centre_y, centre_x] > 0
        assert len(rows) > 3
        assert bool(inside.all()) if filled else not bool(inside.any())


def test_keypoints_lie_on_the_outline_of_their_shape():
    parameters = draw_scenes(5, np.arange(300))
    rows = np.flatnonzero((parameters.count == 1) & (parameters.kind[:, 0] != KINDS.index("ring")))
    picked = parameters.rows(rows)
    drawn, points = render(picked, 96), keypoints(picked, 96)
    assert np.isnan(points[:, 1:]).all()
    for row in range(len(picked)):
        own = drawn.instances[row] == 1
        cx, cy = points[row, 0, 0]
        assert own[int(cy), int(cx)]
        for x, y in points[row, 0, 1:]:
            inner = 0.8 * np.array([x, y]) + 0.2 * np.array([cx, cy])
            outer = 1.2 * np.array([x, y]) - 0.2 * np.array([cx, cy])
            assert own[int(inner[1]), int(inner[0])]
            if (outer > 0).all() and (outer < 96).all():
                assert not own[int(outer[1]), int(outer[0])]


def test_captions_name_everything_from_left_to_right():
    parameters = draw_scenes(0, np.arange(50))
    for row in range(50):
        sentence = caption(parameters, row)
        assert set(sentence.split()) <= set(VOCABULARY)
        order = np.argsort(parameters.x[row, : parameters.count[row]])
        words = [
            f"{COLOURS[parameters.colour[row, s]]} {KINDS[parameters.kind[row, s]]}" for s in order
        ]
        assert [
            " ".join(part.split()[-2:]) for part in sentence.split(" on ")[0].split(" and ")
        ] == words
        assert TEXTURES[parameters.texture[row]] in sentence
        assert len(partial_captions(parameters, row)) == parameters.count[row]


def test_labels_and_attributes_are_read_from_the_same_shapes():
    scenes = Scenes(30, 16, seed=0)
    for row, (label, shown) in enumerate(zip(scenes.labels, scenes.attributes, strict=True)):
        assert shown[label]
        p = scenes.parameters
        pairs = {(p.kind[row, s], p.colour[row, s]) for s in range(p.count[row])}
        assert {divmod(int(i), len(COLOURS)) for i in np.flatnonzero(shown)} == pairs


def test_pictures_are_drawn_once_and_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path))
    first = np.array(Scenes(5, 16, seed=2).images)
    monkeypatch.setattr(dataset, "render", None)
    assert np.array_equal(first, Scenes(5, 16, seed=2).images)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_broken_drawing_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path))

    def fails(*_):
        raise MemoryError

    monkeypatch.setattr(dataset, "render", fails)
    with pytest.raises(MemoryError):
        Scenes(5, 16, seed=2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", [{"count": 0}, {"size": 4}, {"seed": -1}, {"start": -1}])
def test_impossible_scenes_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Scenes(**{"count": 4, "size": 16, **wrong})
