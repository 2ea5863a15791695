import math

import numpy as np
import torch

from distill.datasets.parts import KeypointPair
from distill.report.colours import rgb
from distill.report.correspondences import (
    RIGHT,
    WRONG,
    correspondence_group,
    draw_matches,
    right_matches,
)


def near(picture, colour, tolerance=40):
    """Where a picture has a colour, as (y, x)."""
    off = np.abs(picture.astype(int) - np.array(rgb(colour))).max(-1)
    return np.argwhere(off <= tolerance)


def blank(height, width):
    return torch.full((3, height, width), 128, dtype=torch.uint8)


def pair(points, truth, reach=40.0):
    return KeypointPair(0, 1, torch.tensor(points), torch.tensor(truth), reach, "cat")


def test_right_is_within_a_tenth_of_the_box():
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(50, 2, generator=generator) * 100
    predicted = truth + 4 * torch.randn(50, 2, generator=generator)
    got = right_matches(pair(truth.tolist(), truth.tolist(), 55.0), predicted)
    want = [
        math.hypot(px - tx, py - ty) <= 5.5
        for (px, py), (tx, ty) in zip(predicted.tolist(), truth.tolist(), strict=True)
    ]
    assert got.tolist() == want
    assert 10 < sum(want) < 40
    exact = pair([[0.0, 0.0]], [[10.0, 10.0]], 50.0)
    assert right_matches(exact, torch.tensor([[13.0, 14.0]])).tolist() == [True]
    assert right_matches(exact, torch.tensor([[13.0, 14.1]])).tolist() == [False]


def test_lines_lead_from_the_point_to_the_prediction():
    # 120 x 60 and 240 x 480: shown at 480 x 240 and 120 x 240, 8 pixels apart.
    source, target = blank(60, 120), blank(480, 240)
    points = torch.tensor([[30.0, 15.0], [90.0, 45.0]])
    predicted = torch.tensor([[60.0, 120.0], [120.0, 360.0]])
    right = torch.tensor([True, False])
    picture = draw_matches(source, target, points, predicted, right)
    assert picture.shape == (240, 480 + 8 + 120, 3)
    for colour, start, end in (
        (RIGHT, (30 * 4 + 1.5, 15 * 4 + 1.5), (488 + 30, 60)),
        (WRONG, (90 * 4 + 1.5, 45 * 4 + 1.5), (488 + 60, 180)),
    ):
        there = near(picture, colour)
        assert len(there) > 100
        across, down = there[:, 1], there[:, 0]
        assert abs(across.min() - start[0]) <= 6
        assert abs(across.max() - end[0]) <= 8
        # Each pixel of the colour is on the line, or at one of its ends.
        (x0, y0), (x1, y1) = start, end
        off = np.abs((y1 - y0) * (across - x0) - (x1 - x0) * (down - y0)) / math.hypot(
            x1 - x0, y1 - y0
        )
        assert off.max() <= 8
        for share in (0.25, 0.5, 0.75):
            x, y = round(x0 + share * (x1 - x0)), round(y0 + share * (y1 - y0))
            assert (np.abs(there - [y, x]).max(1) <= 1).any(), "the line has no gap there"
    assert (picture[5, 5] == 128).all()
    assert (picture[120, 484] > 200).all(), "white between the pictures"


def test_a_prediction_outside_of_the_picture_is_drawn_to_the_edge():
    picture = draw_matches(
        blank(50, 50),
        blank(50, 50),
        torch.tensor([[25.0, 25.0]]),
        torch.tensor([[80.0, 25.0]]),
        torch.tensor([False]),
    )
    assert near(picture, WRONG)[:, 1].max() >= picture.shape[1] - 2


def test_group_has_a_row_a_pair_and_counts_what_is_right():
    read = {0: blank(50, 50), 1: blank(40, 80)}.__getitem__
    truth = [[10.0, 10.0], [20.0, 20.0], [30.0, 30.0]]
    pairs = [pair(truth, truth), pair(truth[:1], truth[:1])]
    good = [torch.tensor(truth), torch.tensor(truth[:1])]
    bad = [torch.tensor(truth) + torch.tensor([[0.0], [4.1], [90.0]]), torch.tensor([[70.0, 0.0]])]
    group = correspondence_group(read, pairs, {"a": good, "b": bad})
    assert group.columns == ["category", "a", "b"]
    assert [row[0].text for row in group.rows] == ["cat", "cat"]
    assert [[cell.text for cell in row[1:]] for row in group.rows] == [
        ["3 of 3 right", "1 of 3 right"],
        ["1 of 1 right", "0 of 1 right"],
    ]
    assert not len(near(group.rows[1][1].picture, WRONG))
    assert not len(near(group.rows[1][2].picture, RIGHT))
    assert group.legend == [("right", RIGHT), ("wrong", WRONG)]
