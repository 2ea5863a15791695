"""Sliding windows: where they are, and that overlaps are averaged, against a loop over pixels."""

import pytest
import torch

from distill.protocols import windows
from distill.protocols.windows import over_windows, shown, starts, stride_of


def position_dependent(maps):
    """An answer that is another for the same pixel in another window."""
    ramp = torch.arange(maps.shape[-1], dtype=maps.dtype)
    first = maps.sum(1) * (ramp[:, None] + 1) + maps.mean((1, 2, 3))[:, None, None]
    return torch.stack([first, maps[:, 0] - 3 * ramp], 1)


@pytest.mark.parametrize("shape", [(6, 6), (6, 13), (17, 6), (11, 20)])
def test_overlaps_are_averaged_as_by_a_loop_over_pixels(shape, monkeypatch):
    monkeypatch.setattr(windows, "AT_ONCE", 3)
    pixels = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0)).double()
    found = over_windows(pixels, 6, position_dependent, stride=4)

    places = [
        (y, x)
        for y in {min(y, shape[0] - 6) for y in range(0, shape[0], 4)}
        for x in {min(x, shape[1] - 6) for x in range(0, shape[1], 4)}
    ]
    answers = {
        (y, x): position_dependent(pixels[None, :, y : y + 6, x : x + 6])[0] for y, x in places
    }
    for i in range(shape[0]):
        for j in range(shape[1]):
            here = [
                answer[:, i - y, j - x]
                for (y, x), answer in answers.items()
                if 0 <= i - y < 6 and 0 <= j - x < 6
            ]
            torch.testing.assert_close(found[:, i, j], sum(here) / len(here))


def test_windows_begin_where_the_published_code_has_them():
    assert stride_of(512) == 341
    assert starts(512, 512, 341) == [0]
    assert starts(683, 512, 341) == [0, 171]
    assert starts(1365, 512, 341) == [0, 341, 682, 853]
    for length in range(9, 40):
        found = starts(length, 9, 6)
        grids = max(length - 9 + 6 - 1, 0) // 6 + 1
        assert found == [max(min(i * 6 + 9, length) - 9, 0) for i in range(grids)]
        assert set().union(*(range(s, s + 9) for s in found)) == set(range(length))


def test_what_is_shown_has_its_short_side_at_the_size():
    picture = torch.randint(0, 256, (3, 24, 36), generator=torch.Generator().manual_seed(1)).byte()
    assert torch.equal(shown(picture, 24), picture.float() / 255)
    assert shown(picture, 10).shape == (3, 10, 15)
    assert shown(picture.transpose(1, 2), 10).shape == (3, 15, 10)


def test_sizes_that_nothing_divides():
    pixels = torch.rand(1, 13, 29)
    torch.testing.assert_close(over_windows(pixels, 13, lambda w: w), pixels)
    torch.testing.assert_close(over_windows(pixels[:, :7], 7, lambda w: w), pixels[:, :7])
