import pytest
import torch
from torch.nn import functional as F

from students import Features, match_grids, resize, resize_grid
from students.features import concatenated


def test_resized_grid_is_the_bicubic_of_each_channel():
    dense = torch.randn(2, 4, 6, 5)
    resized = resize_grid(dense, (8, 3))
    for channel in range(5):
        expected = F.interpolate(dense[:, None, ..., channel], (8, 3), mode="bicubic")[:, 0]
        torch.testing.assert_close(resized[..., channel], expected)


@pytest.mark.parametrize(
    ("to", "grid"), [("larger", (8, 8)), ("teacher", (4, 4)), ("student", (8, 8))]
)
def test_grids_are_matched(to, grid):
    ours, theirs = match_grids(torch.randn(1, 8, 8, 3), torch.randn(1, 4, 4, 5), to)
    assert tuple(ours.shape[1:3]) == tuple(theirs.shape[1:3]) == grid


def test_larger_is_the_one_with_more_tokens_whoever_it_is():
    ours, theirs = match_grids(torch.randn(1, 4, 4, 3), torch.randn(1, 2, 9, 3), "larger")
    assert tuple(ours.shape[1:3]) == tuple(theirs.shape[1:3]) == (2, 9)


def test_unknown_match_is_refused():
    with pytest.raises(ValueError, match="not 'smaller'"):
        match_grids(torch.randn(1, 2, 2, 1), torch.randn(1, 2, 2, 1), "smaller")


def test_features_know_their_kinds():
    features = Features(torch.ones(2, 3), torch.ones(2, 1, 1, 4))
    assert features.only(["dense"]).summary is None
    assert features.map(lambda kind, t: t * (2 if kind == "dense" else 3)).get("dense").max() == 2
    with pytest.raises(ValueError, match="'class'"):
        features.get("class")


def test_levels_go_along():
    generator = torch.Generator().manual_seed(0)

    def one(batch):
        summary = torch.randn(batch, 3, generator=generator)
        return Features(summary, torch.randn(batch, 2, 2, 4, generator=generator))

    def with_two(batch):
        last = one(batch)
        return Features(last.summary, last.dense, (one(batch), one(batch)))

    given, other = with_two(4), with_two(2)
    doubled = given.map(lambda kind, tokens: tokens * (2 if kind == "dense" else 3))
    some, dense = given.map(lambda _, tokens: tokens[[3, 1]]), given.only(("dense",))
    both = concatenated([given, other])
    for seen in (lambda f: f, lambda f: f.levels[0], lambda f: f.levels[1]):
        assert torch.equal(seen(doubled).summary, 3 * seen(given).summary)
        assert torch.equal(seen(doubled).dense, 2 * seen(given).dense)
        assert torch.equal(seen(some).summary[0], seen(given).summary[3])
        assert torch.equal(seen(some).dense[1], seen(given).dense[1])
        assert seen(dense).summary is None
        assert torch.equal(seen(dense).dense, seen(given).dense)
        assert torch.equal(seen(both).dense[:4], seen(given).dense)
        assert torch.equal(seen(both).summary[4:], seen(other).summary)
    assert given.without_levels().levels == ()
    assert given.without_levels().dense is given.dense
    assert one(1).levels == ()


def test_resized_pixels_stay_in_range_and_do_not_alias():
    stripes = torch.zeros(1, 3, 64, 64)
    stripes[..., ::2] = 1.0
    small = resize(stripes, 16)
    assert small.min() >= 0
    assert small.max() <= 1
    assert (small[..., 2:-2] - 0.5).abs().max() < 0.05  # without antialiasing: stripes again
