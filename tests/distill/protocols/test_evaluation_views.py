"""Views against Pillow's bicubic."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from distill.protocols.views import centre_crop, squashed

SHAPES = [(300, 200), (201, 333), (64, 64), (40, 500), (30, 41)]  # (width, height)


def photo(width, height):
    return Image.fromarray(data.astronaut()).resize((width, height), Image.Resampling.LANCZOS)


def pixels(picture):
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def bicubic(picture, width, height):
    """Across, then down: in one go the order is up to Pillow's version."""
    across = picture.resize((width, picture.height), Image.Resampling.BICUBIC)
    return across.resize((width, height), Image.Resampling.BICUBIC)


def near(shown, expected):
    assert shown.dtype == torch.uint8
    difference = (shown.int() - pixels(expected).int()).abs()
    assert difference.max() <= 2
    assert difference.float().mean() < 0.1


@pytest.mark.parametrize("size", [224, 96, 35])
@pytest.mark.parametrize("shape", SHAPES)
def test_squashed_is_pillows_bicubic(shape, size):
    view = squashed(size)
    near(view.show(pixels(photo(*shape))), bicubic(photo(*shape), size, size))
    assert view.size == size


@pytest.mark.parametrize(("size", "short"), [(224, 256), (96, 110), (35, 40)])
@pytest.mark.parametrize("shape", SHAPES)
def test_centre_crop_is_that_of_the_field(shape, size, short):
    width, height = shape
    picture = photo(width, height)
    scale = short / min(shape)
    long = round(max(shape) * scale)
    target = (short, long) if width <= height else (long, short)
    resized = bicubic(picture, *target)
    left, top = ((side - size) // 2 for side in target)
    expected = resized.crop((left, top, left + size, top + size))
    near(centre_crop(size).show(pixels(picture)), expected)


def test_views_differ_in_name_and_travel_to_other_processes():
    picture = pixels(photo(50, 70))
    names = set()
    for view in (centre_crop(32), squashed(32)):
        names.add(view.name)
        sent = pickle.loads(pickle.dumps(view))
        assert torch.equal(sent.show(picture), view.show(picture))
    assert len(names) == 2
    assert not torch.equal(centre_crop(32).show(picture), squashed(32).show(picture))


@pytest.mark.parametrize("view", [centre_crop, squashed])
def test_a_size_is_at_least_one(view):
    with pytest.raises(ValueError, match="0 pixels"):
        view(0)
