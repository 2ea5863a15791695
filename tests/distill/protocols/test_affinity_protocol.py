"""Instance affinity on pictures of any size, in chunks, against a loop over pairs of patches."""

import numpy as np
import pytest
import torch
from in_memory import blank, given, setting
from sklearn.metrics import roc_auc_score

from distill.datasets.parts import Annotated, Instances
from distill.probes.masks import squashed_instances
from distill.probes.models import CannotProbe, NothingToScore
from distill.protocols import affinity
from distill.protocols.affinity import TASK

SIZES = [(40, 64), (31, 57), (80, 48), (48, 48), (64, 40)]
SIZE, SIDE = 48, 6


def objects(number):
    """Objects of large numbers, with gaps between these, on a picture of its own size."""
    height, width = SIZES[number]
    truth = torch.zeros(height, width, dtype=torch.int64)
    truth[: height // 2, : width // 2] = 70_000
    truth[height // 2 + 2 :, width // 3 :] = 12
    if number == 3:
        truth[truth == 12] = 0  # one object alone
    return truth


def nearest(truth, size):
    height, width = truth.shape
    shown = np.zeros((size, size), dtype=int)
    for i, j in np.ndindex(size, size):
        shown[i, j] = truth[int((i + 0.5) * height / size), int((j + 0.5) * width / size)]
    return shown


def dense_maps():
    dense = torch.randn(5, SIDE, SIDE, 7, generator=torch.Generator().manual_seed(0)) + 5
    dense[:, :3, :3, 0] += 1.5
    return dense


def run(dense, truth=objects, size=SIZE):
    pictures = blank(SIZES)
    part = Instances(Annotated(pictures, truth))
    return TASK.run(setting("instances", part, given({pictures: (None, dense)}, "squash"), size))


@pytest.mark.parametrize("number", range(5))
def test_objects_are_squashed_by_nearest_pixels(number):
    truth = objects(number)
    for size in (48, 17, 130):
        expected = nearest(truth, size)
        found = squashed_instances(truth, size).numpy()
        names = {0: 0} | {n: i for i, n in enumerate(np.unique(expected[expected > 0]), 1)}
        np.testing.assert_array_equal(found, np.vectorize(names.get)(expected))
    full = truth + 3  # no background at all
    assert set(squashed_instances(full, 9).unique().tolist()) == set(
        range(1, len(full.unique()) + 1)
    )


@pytest.mark.parametrize("chunk", [2, 16])
def test_against_a_loop_over_pairs(chunk, monkeypatch):
    monkeypatch.setattr(affinity, "_CHUNK", chunk)
    dense = dense_maps()
    centred = dense.numpy().astype(float) - dense.numpy().astype(float).mean((0, 1, 2))
    areas = []
    for number in range(5):
        shown, patches = nearest(objects(number), SIZE), []
        for i, j in np.ndindex(SIDE, SIDE):
            block = shown[8 * i : 8 * i + 8, 8 * j : 8 * j + 8]
            for name in (12, 70_000):
                if (block == name).mean() >= 0.6:
                    patches.append((name, centred[number, i, j]))
        same, score = [], []
        for a in range(len(patches)):
            for b in range(a):
                x, y = patches[a][1], patches[b][1]
                score.append(x @ y / np.linalg.norm(x) / np.linalg.norm(y))
                same.append(patches[a][0] == patches[b][0])
        if len(set(same)) == 2:
            areas.append(roc_auc_score(same, score))
    outcome = run(dense)
    assert outcome.samples == len(areas) == 4
    assert outcome.values["auc"] == pytest.approx(100 * np.mean(areas), abs=1e-3)
    assert 55 < outcome.values["auc"] < 95


def test_at_most_so_many_patches_a_side(monkeypatch):
    asked = []
    original = affinity.patch_owners

    def owners(instances, grid):
        asked.append((tuple(instances.shape[1:]), grid))
        return original(instances, grid)

    monkeypatch.setattr(affinity, "patch_owners", owners)
    run(dense_maps(), size=400)
    run(dense_maps(), size=64)
    assert asked == [((400, 400), (32, 32)), ((64, 64), (8, 8))]


def test_what_cannot_be_scored():
    with pytest.raises(CannotProbe, match="no dense"):
        run(None)
    with pytest.raises(NothingToScore, match="no image"):
        run(dense_maps(), lambda number: torch.zeros(SIZES[number], dtype=torch.int64))
