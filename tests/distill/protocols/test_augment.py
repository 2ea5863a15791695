"""Random crops: the picture and its map stay together, and every draw is its key's."""

import math

import pytest
import torch
from painted import PAINT
from scipy.stats import kstest
from torch.nn import functional as F

from distill.protocols.augment import PADDING, Crop, cut_map, cut_picture, draw_crop, resized_to


def painted_blocks(height=90, width=124):
    """A map of blocks of 30 pixels, and a picture in its colours."""
    coarse = torch.randint(0, 4, (9, 9), generator=torch.Generator().manual_seed(0))
    truth = coarse.repeat_interleave(30, 0).repeat_interleave(30, 1)[:height, :width]
    return PAINT[truth].permute(2, 0, 1), truth


@pytest.mark.parametrize("number", range(12))
def test_a_picture_that_shows_its_classes_still_shows_them_in_every_crop(number):
    picture, truth = painted_blocks()
    crop = draw_crop((90, 124), 80, (0.5, 2.0), "test", number)
    pixels, labels = cut_picture(picture, crop), cut_map(truth, crop, -100)
    assert pixels.shape == (3, 80, 80)
    assert labels.shape == (80, 80)
    outside = labels == -100
    assert bool((pixels[:, outside] == PADDING).all())
    assert int((~outside).sum()) == min(80, crop.height) * min(80, crop.width)
    # Colours are mixed near the edges of blocks (and of the crop) alone: the filter reaches two
    # pixels of the coarser grid.
    reach = math.ceil(2 * max(1.0, crop.height / 90)) + 1
    around = F.pad(labels[None, None].double(), (reach,) * 4, value=-1)
    width = 2 * reach + 1
    even = F.max_pool2d(around, width, 1) == -F.max_pool2d(-around, width, 1)
    inside = even[0, 0] & ~outside
    assert int(inside.sum()) > 50
    expected = PAINT[labels.clamp_min(0)].permute(2, 0, 1).float() / 255
    assert float((pixels - expected)[:, inside].abs().max()) < 0.03


@pytest.mark.parametrize("flip", [False, True])
def test_map_is_that_of_the_nearest_pixel_of_the_whole_resized(flip):
    truth = torch.arange(23 * 31).view(23, 31)
    for height, width, top, left in ((46, 62, 5, 20), (12, 14, 0, 0), (29, 39, 13, 22)):
        crop = Crop(height, width, top, left, 16, flip)
        whole = F.interpolate(truth[None, None].double(), (height, width), mode="nearest-exact")
        expected = torch.full((16, 16), -1.0, dtype=torch.float64)
        cut = whole[0, 0, top : top + 16, left : left + 16]
        expected[: cut.shape[0], : cut.shape[1]] = cut
        expected = torch.stack([row.flip(0) for row in expected]) if flip else expected
        assert torch.equal(cut_map(truth, crop, -1).double(), expected)


def test_a_crop_at_the_pictures_own_size_is_the_picture():
    picture = torch.randint(0, 256, (3, 20, 30), generator=torch.Generator().manual_seed(1)).byte()
    pixels = cut_picture(picture, Crop(20, 30, 4, 7, 16, flip=False))
    assert torch.equal(pixels, picture[:, 4:20, 7:23] / 255)
    mirrored = cut_picture(picture, Crop(20, 30, 4, 7, 16, flip=True))
    assert torch.equal(mirrored[:, :, 0], pixels[:, :, 15])


def test_scale_place_and_mirroring_are_uniform():
    drawn = [draw_crop((500, 800), 100, (0.5, 2.0), "seed", number) for number in range(1500)]
    factors = [crop.height / 100 for crop in drawn]
    assert kstest(factors, "uniform", (0.5, 1.5)).pvalue > 0.01
    assert all(crop.width == round(800 * crop.height / 500) for crop in drawn)
    roomy = [crop for crop in drawn if crop.height > 150]
    tops = [(crop.top + 0.5) / (crop.height - 100 + 1) for crop in roomy]
    lefts = [(crop.left + 0.5) / (crop.width - 100 + 1) for crop in roomy]
    assert kstest(tops, "uniform").pvalue > 0.01
    assert kstest(lefts, "uniform").pvalue > 0.01
    for crop in drawn:
        assert 0 <= crop.top <= max(crop.height - 100, 0)
        assert 0 <= crop.left <= max(crop.width - 100, 0)
    assert sum(crop.flip for crop in drawn) / 1500 == pytest.approx(0.5, abs=0.05)


def test_every_place_that_fits_is_drawn_and_no_other():
    across = [draw_crop((100, 102), 100, (1.0, 1.0), number) for number in range(60)]
    assert {(crop.height, crop.width, crop.top) for crop in across} == {(100, 102, 0)}
    assert {crop.left for crop in across} == {0, 1, 2}
    down = [draw_crop((102, 100), 100, (1.0, 1.0), number) for number in range(60)]
    assert {(crop.height, crop.width, crop.left) for crop in down} == {(102, 100, 0)}
    assert {crop.top for crop in down} == {0, 1, 2}


def test_draws_are_the_keys_and_leave_the_global_state_alone():
    state = torch.get_rng_state()
    one, again, other = (draw_crop((50, 60), 16, (0.5, 2.0), 0, step) for step in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert one == again != other


def test_the_short_side_is_the_one_that_is_given():
    assert resized_to((480, 640), 512) == (512, 683)
    assert resized_to((640, 480), 256) == (341, 256)
    assert resized_to((1, 400), 8) == (8, 3200)
