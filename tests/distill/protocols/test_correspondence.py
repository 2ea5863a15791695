"""Keypoint correspondence against loops over points and patches."""

import math

import numpy as np
import pytest
import torch
from in_memory import blank, given, setting

from distill.datasets.parts import Correspondence, KeypointPair
from distill.probes.models import CannotProbe, NothingToScore
from distill.protocols.correspondence import TASK, matched_points

SIZES = [(30, 50), (44, 28), (20, 20), (33, 61)]
ROWS, COLUMNS = 5, 7


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def maps(count, rows=ROWS, columns=COLUMNS, width=9, seed=0):
    return torch.randn(count, rows, columns, width, generator=torch.Generator().manual_seed(seed))


def points(size, count, seed):
    """Anywhere in a picture, its border of half a pixel too."""
    draw = torch.rand(count, 2, generator=torch.Generator().manual_seed(seed))
    return draw * torch.tensor([size[1], size[0]]) - 0.5


def slow_match(source, target, point, source_size, target_size):
    """One point: four neighbours by hand, then every patch of the target in turn."""
    source, target = unit(source.numpy().astype(float)), unit(target.numpy().astype(float))
    rows, columns = source.shape[:2]
    x = (float(point[0]) + 0.5) / (source_size[1] / columns) - 0.5
    y = (float(point[1]) + 0.5) / (source_size[0] / rows) - 0.5
    x, y = min(max(x, 0), columns - 1), min(max(y, 0), rows - 1)
    left, top = int(x), int(y)
    right, below = min(left + 1, columns - 1), min(top + 1, rows - 1)
    asked = (
        (1 - (y - top)) * ((1 - (x - left)) * source[top, left] + (x - left) * source[top, right])
        + (y - top) * ((1 - (x - left)) * source[below, left] + (x - left) * source[below, right])
    )  # fmt: skip
    best, place = -2.0, None
    for i in range(rows):
        for j in range(columns):
            cosine = asked @ target[i, j] / np.linalg.norm(asked)
            if cosine > best:
                best, place = cosine, (j, i)
    return (
        (place[0] + 0.5) * target_size[1] / columns - 0.5,
        (place[1] + 0.5) * target_size[0] / rows - 0.5,
    )


def run(pairs, dense, sizes=SIZES):
    pictures = blank(sizes)
    part = Correspondence(pictures, tuple(pairs))
    return TASK.run(setting("correspondence", part, given({pictures: (None, dense)}, "squash")))


def test_against_a_loop_over_points():
    dense = maps(4)
    # Pictures 1 and 3 show what picture 0 shows, in part.
    dense[1], dense[3] = 0.6 * dense[0] + 0.5 * dense[1], dense[0].flip(0)
    pairs = []
    for number, (source, target) in enumerate([(0, 1), (1, 0), (0, 3), (2, 1), (3, 3)]):
        found = points(SIZES[source], 3 + 4 * number, number)
        height, width = (t / s for t, s in zip(SIZES[target], SIZES[source], strict=True))
        truth = (found + 0.5) * torch.tensor([width, height]) - 0.5
        reach = 25.0 + 40 * number
        pairs.append(KeypointPair(source, target, found, truth, reach))
    shares, right, total = [], 0, 0
    for pair in pairs:
        correct = 0
        for point, truth in zip(pair.source_points, pair.target_points, strict=True):
            x, y = slow_match(
                dense[pair.source],
                dense[pair.target],
                point,
                SIZES[pair.source],
                SIZES[pair.target],
            )
            correct += math.hypot(x - float(truth[0]), y - float(truth[1])) <= 0.1 * pair.reach
        shares.append(correct / len(pair.source_points))
        right, total = right + correct, total + len(pair.source_points)
    outcome = run(pairs, dense)
    assert outcome.samples == 5
    assert set(outcome.values) == set(TASK.metrics)
    assert outcome.values["pck_per_image"] == pytest.approx(100 * np.mean(shares))
    assert outcome.values["pck_per_point"] == pytest.approx(100 * right / total)
    assert 5 < outcome.values["pck_per_point"] < 95
    assert abs(outcome.values["pck_per_point"] - outcome.values["pck_per_image"]) > 0.5


def test_points_are_matched_one_by_one_as_the_loop_does():
    dense = maps(2, seed=3)
    asked = points(SIZES[0], 40, 5)
    found = matched_points(dense[0], dense[1], asked, SIZES[0], SIZES[1])
    for point, answer in zip(asked, found, strict=True):
        expected = slow_match(dense[0], dense[1], point, SIZES[0], SIZES[1])
        assert answer.tolist() == pytest.approx(expected, abs=1e-4)


def test_a_picture_finds_itself_up_to_the_grid():
    # Every patch looks like no other, so that between two of them the nearer one is found.
    dense, size = torch.eye(ROWS * COLUMNS).view(1, ROWS, COLUMNS, -1), (40, 140)
    same, half = points(size, 200, 1), math.hypot(4, 10)  # patches of 8 by 20 pixels
    enough = KeypointPair(0, 0, same, same, 10 * half + 0.01)
    assert run([enough], dense, [size]).values["pck_per_image"] == 100
    less = KeypointPair(0, 0, same, same, 10 * half - 10)
    assert 80 < run([less], dense, [size]).values["pck_per_image"] < 100

    rows, columns = torch.meshgrid(torch.arange(ROWS), torch.arange(COLUMNS), indexing="ij")
    centres = torch.stack([columns * 20 + 9.5, rows * 8 + 3.5], -1).flatten(0, 1)
    exact = matched_points(dense[0], dense[0], centres, size, size)
    torch.testing.assert_close(exact, centres)
    assert run([KeypointPair(0, 0, centres, centres, 0.01)], dense, [size]).values == {
        "pck_per_image": 100.0,
        "pck_per_point": 100.0,
    }
    # x taken for y is seen.
    swapped = KeypointPair(0, 0, centres, centres.flip(1), 10 * half)
    assert run([swapped], dense, [size]).values["pck_per_image"] < 40
    # So is an offset of half a patch, which `align_corners` or a patch's corner would bring.
    moved = KeypointPair(0, 0, centres, centres + torch.tensor([10.0, 4.0]), 10 * half - 0.1)
    assert run([moved], dense, [size]).values["pck_per_image"] == 0


def test_what_cannot_be_scored():
    none = torch.zeros(0, 2)
    with pytest.raises(NothingToScore, match="no pair"):
        run([KeypointPair(0, 1, none, none, 10.0)], maps(4))
    pair = KeypointPair(0, 1, torch.ones(1, 2), torch.ones(1, 2), 10.0)
    with pytest.raises(CannotProbe, match="vit has no dense"):
        run([pair], None)
    outcome = run([pair, KeypointPair(0, 1, none, none, 10.0)], maps(4))
    assert outcome.samples == 1
