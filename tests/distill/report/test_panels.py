import colorsys

import numpy as np
import pytest
import torch

from distill.datasets.parts import IGNORE
from distill.report.colours import class_colours, rgb
from distill.report.panels import (
    depth_group,
    depth_range,
    feature_group,
    mask_group,
    segmentation_group,
)
from distill.report.principal import shared_colours

CLASSES = ("wall", "tree", "sky", "<b>")


def pictures(count, height=4, width=6):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
        for _ in range(count)
    ]


def shown(group, row, title):
    return group.rows[row][list(group.columns).index(title)].picture


def test_segmentation_shows_picture_truth_and_each_model():
    images = pictures(2)
    truths = [torch.full((4, 6), 2), torch.full((4, 6), 1)]
    truths[0][0, :] = IGNORE
    truths[0][3, 5] = 3
    predictions = {"a": [torch.zeros(4, 6).long(), truths[1]], "b": [truths[0], truths[1] * 0]}
    group = segmentation_group(images, truths, predictions, CLASSES)
    assert group.columns == ["picture", "truth", "a", "b"]
    assert len(group.rows) == 2
    for row, image in enumerate(images):
        for y in range(4):
            for x in range(6):
                assert tuple(shown(group, row, "picture")[y, x]) == tuple(image[:, y, x].tolist())
    colours = [rgb(colour) for colour in class_colours(4)]
    truth = shown(group, 0, "truth")
    assert (truth[0] == 0).all()
    assert tuple(truth[1, 1]) == colours[2]
    assert tuple(truth[3, 5]) == colours[3]
    assert (shown(group, 0, "b") == truth).all()
    assert (shown(group, 0, "a") == colours[0]).all()
    assert (shown(group, 1, "a") == colours[1]).all()
    assert (shown(group, 1, "b") == colours[0]).all()


def test_legend_names_what_is_seen_the_most_first():
    truth = np.full((4, 6), 2)
    truth[0, :3] = IGNORE
    predicted = np.full((4, 6), 2)
    predicted[0] = 3
    group = segmentation_group(pictures(1), [truth], {"a": [predicted]}, CLASSES)
    colours = class_colours(4)
    assert group.legend == [("sky", colours[2]), ("<b>", colours[3]), ("not counted", "#000000")]
    assert not group.notes
    many = np.arange(30).reshape(5, 6)
    names = [str(number) for number in range(150)]
    group = segmentation_group(pictures(1, 5), [many], {}, names)
    assert len(group.legend) == 24
    assert dict(group.legend)["17"] == class_colours(150)[17]
    assert group.notes == ["6 classes of few pixels are not named."]


def test_depth_is_on_one_scale_and_black_where_not_known():
    truth = np.linspace(2, 6, 24).reshape(4, 6).astype(np.float32)
    truth[0, 0] = 0
    nearer = truth / 2
    group = depth_group(pictures(1), [truth], {"a": [truth], "b": [nearer]}, 0.001, 10.0)
    drawn = shown(group, 0, "truth")
    assert (drawn[0, 0] == 0).all()
    assert (shown(group, 0, "a") == drawn).all()
    lightness = [shown(group, 0, title).astype(float)[1:].mean() for title in ("truth", "b")]
    assert lightness[1] > lightness[0] + 20, "what is nearer is brighter"
    low, high = np.percentile(truth[truth > 0], [2, 98])
    (near, yellow), (far, blue), unknown = group.legend
    assert (near, far) == (f"{low:.3g} m", f"{high:.3g} m")
    assert colorsys.rgb_to_hls(*rgb(yellow))[1] > colorsys.rgb_to_hls(*rgb(blue))[1]
    assert unknown == ("not known", "#000000")


def test_depth_scale_leaves_out_what_is_not_known_or_out_of_range():
    truth = np.concatenate([np.zeros(50), np.linspace(1, 9, 101), np.full(20, 50.0)])
    assert depth_range([truth[:30], truth[30:]], 0.5, 10.0) == pytest.approx(
        (1 + 8 * 0.02, 9 - 8 * 0.02)
    )
    assert depth_range([np.zeros(4)], 0.5, 10.0) == (0.5, 10.0)
    assert depth_range([np.full(4, 3.0)], 0.5, 10.0) == (0.5, 10.0)


def test_masks_tint_the_inside_and_mark_the_point():
    image = torch.full((3, 20, 30), 100, dtype=torch.uint8)
    truth, other = torch.zeros(20, 30, dtype=torch.bool), torch.zeros(20, 30, dtype=torch.bool)
    truth[5:10, 5:10] = True
    other[12:18, 5:10] = True
    group = mask_group([image], [truth], {"a": [other]}, [(7, 6)])
    assert group.columns == ["truth", "a"]
    one, two = (shown(group, 0, title).astype(int) for title in group.columns)
    assert tuple(one[6, 7]) == tuple(two[6, 7]) == (255, 255, 255)
    assert tuple(one[0, 0]) == tuple(two[0, 0]) == (35, 35, 35)
    inside = (one != 35).any(-1) & (one != 255).any(-1)
    assert inside[8, 8]
    assert not inside[14, 8]
    assert (two[14, 8] != 35).any()


def test_features_are_in_shared_colours_with_notes_on_outliers():
    generator = torch.Generator().manual_seed(0)
    dense = {name: torch.randn(2, 6, 6, d, generator=generator) for name, d in (("a", 8), ("b", 5))}
    dense["b"][1, 2, 2] = 100.0
    group = feature_group(pictures(2, 16, 16), dense, 16)
    want = shared_colours(list(dense.values()), 16)
    assert group.columns == ["picture", "a", "b"]
    for row in range(2):
        for place, name in enumerate(dense):
            assert (shown(group, row, name) == want.pictures[place][row]).all()
    about, one, two = group.notes
    assert "same colour" in about
    assert one.startswith("a: no outlier tokens")
    assert two.startswith("b: outlier tokens: 1.4 % (1 of 72), norm 224 against")
