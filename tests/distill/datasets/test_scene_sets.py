"""`scenes:`: every part against the scenes' own parameters, by plain loops."""

import numpy as np
import pytest
import torch
from reading import names

from distill.datasets import open_evaluation
from distill.probes.world import TEST_START, WORLD_SEED
from distill.scenes.dataset import Scenes
from distill.scenes.generate import COLOURS, KINDS

SIZE = 48


@pytest.fixture(scope="module")
def data():
    return open_evaluation(f"scenes:size={SIZE},train=40,test=64,seed=3")


@pytest.fixture(scope="module")
def train():
    return Scenes(40, SIZE, seed=WORLD_SEED + 3)


@pytest.fixture(scope="module")
def test():
    return Scenes(64, SIZE, seed=WORLD_SEED + 3, start=TEST_START)


def test_pictures_and_names(data, test):
    assert names(data.pictures)[:2] == ["scene 10003:1000000", "scene 10003:1000001"]
    for i in (0, 63):
        assert np.array_equal(data.pictures.read(i).numpy(), test.images[i])


def test_classes(data, train, test):
    part = data.parts["classification"]
    for labelled, scenes in ((part.train, train), (part.test, test)):
        p = scenes.parameters
        for i, label in enumerate(labelled.labels.tolist()):
            slots = range(p.count[i])
            main = max(slots, key=lambda s: p.radius[i, s])
            assert part.classes[label] == f"{COLOURS[p.colour[i, main]]} {KINDS[p.kind[i, main]]}"


def test_maps(data, train, test):
    parts = data.parts
    for split, scenes in (("train", train), ("test", test)):
        for i in (0, 5, 39):
            classes = getattr(parts["segmentation"], split).truth(i)
            assert classes.dtype == torch.int64
            assert np.array_equal(classes.numpy(), scenes.segmentation[i])
            depth = getattr(parts["depth"], split).truth(i)
            assert depth.dtype == torch.float32
            assert np.array_equal(depth.numpy(), scenes.depth[i].astype(np.float32))
    assert parts["segmentation"].classes == ("background", *KINDS)
    assert (parts["depth"].near, parts["depth"].far, parts["depth"].crop) == (1.0, 10.0, None)
    objects = parts["instances"].test.truth(7)
    assert objects.dtype == torch.int64
    assert np.array_equal(objects.numpy(), test.instances[7])


def test_captions(data, test):
    part = data.parts["captions"]
    assert list(part.captions) == test.captions
    assert part.owner.tolist() == list(range(64))


def test_keypoints_lie_on_the_shape_in_both(data, test):
    part = data.parts["correspondence"]
    assert len(part.pairs) > 40
    p = test.parameters
    for pair in part.pairs:
        kind = KINDS.index(pair.category)
        assert pair.source < pair.target
        assert len(pair.source_points) == len(pair.target_points) > 0
        seen = []
        for row, points in ((pair.source, pair.source_points), (pair.target, pair.target_points)):
            (slot,) = [s for s in range(p.count[row]) if p.kind[row, s] == kind]
            # Parameters count from the edge of the first pixel, keypoints from its middle.
            points = points.double().numpy() + 0.5
            for x, y in points.tolist():
                assert test.instances[row, int(y), int(x)] == slot + 1
            # In the shape's own frame, upright and of radius 1, both have the same points.
            turn = -p.rotation[row, slot]
            centre = np.array([p.x[row, slot], p.y[row, slot]]) * SIZE
            away = (points - centre) / (p.radius[row, slot] * SIZE)
            cos, sin = np.cos(turn), np.sin(turn)
            seen.append(away @ np.array([[cos, sin], [-sin, cos]]))
            mask = test.instances[row] == slot + 1
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            longer = max(rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1)
        assert np.allclose(seen[0], seen[1], atol=1e-4)
        assert pair.reach == longer  # the target came last
    categories = {pair.category for pair in part.pairs}
    assert categories == set(KINDS)
    # A ring's centre shows what is behind it.
    assert max(len(q.source_points) for q in part.pairs if q.category == "ring") == 4
    assert max(len(q.source_points) for q in part.pairs if q.category == "bar") == 5


def test_landmarks(data, test):
    part = data.parts["landmarks"]
    row = {f"scene 10003:{TEST_START + i}": i for i in range(64)}
    queries, gallery = ([row[name] for name in names(s)] for s in (part.queries, part.gallery))
    assert sorted(queries + gallery) == list(range(64))
    assert len(queries) == 8
    p = test.parameters

    def things(i):
        return {(p.kind[i, s], p.colour[i, s]) for s in range(p.count[i])}

    some = 0
    for number, query in enumerate(queries):
        same = [g for g, i in enumerate(gallery) if p.label[i] == p.label[query]]
        shares = [g for g, i in enumerate(gallery) if things(i) & things(query) and g not in same]
        assert part.easy[number].tolist() == same
        assert part.hard[number].tolist() == shares
        assert part.junk[number].tolist() == []
        some += len(same)
        assert np.array_equal(part.queries.read(number).numpy(), test.images[query])
    assert some > 0


def test_the_same_again_and_another(data):
    assert open_evaluation(f"scenes:seed=3,test=64,train=40,size={SIZE}").identity == data.identity
    others = [
        open_evaluation(f"scenes:size={SIZE},train=40,test=64,seed=4"),
        open_evaluation(f"scenes:size={SIZE},train=40,test=65,seed=3"),
        open_evaluation("scenes:size=40,train=40,test=64,seed=3"),
    ]
    assert len({data.identity, *(other.identity for other in others)}) == 4


def test_a_single_scene_has_neither_pairs_nor_a_gallery():
    parts = open_evaluation("scenes:size=16,train=1,test=1").parts
    assert "landmarks" not in parts
    assert "correspondence" not in parts
