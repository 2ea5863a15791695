"""How teachers are weighed against each other: against loops over images and teachers."""

import math

import numpy as np
import pytest
import torch

from distill.balance import conflicts, drop_mask, dropping_draws, magnitude_weights, running_mean


def slow_mask(losses, seen, drop, draws):
    """One image after the other, and its teachers one after the other."""
    mask = []
    for image in range(len(losses)):
        of = [teacher for teacher in range(len(losses[image])) if seen[image][teacher]]
        kept = [False] * len(losses[image])
        if of:
            hardest = max(of, key=lambda teacher: losses[image][teacher])
            for teacher in of:
                kept[teacher] = teacher == hardest or draws[image][teacher] >= drop
        mask.append(kept)
    return mask


@pytest.mark.parametrize("drop", [0.0, 0.3, 0.5, 1.0])
def test_mask_is_that_of_a_loop_over_images(drop):
    generator = torch.Generator().manual_seed(0)
    losses = torch.rand(400, 4, generator=generator) - 0.2
    draws = torch.rand(400, 4, generator=generator)
    seen = torch.rand(400, 4, generator=generator) < 0.6
    losses[~seen] += 10  # what is not seen would be the largest
    losses[::7] = 0.5  # of equal ones the first
    draws[::5] = drop if drop < 1 else 0  # a draw at the limit is kept
    mask = drop_mask(losses, seen, drop, draws)
    assert mask.dtype == torch.bool
    assert mask.tolist() == slow_mask(losses.tolist(), seen.tolist(), drop, draws.tolist())
    assert not seen.any(1).all()  # of some images no teacher
    if drop == 0:
        assert mask.equal(seen)
    if drop == 1:
        assert mask.sum(1).equal(seen.any(1).long())


def test_a_teacher_is_dropped_as_often_as_asked():
    losses = torch.tensor([[0.1, 0.9, 0.4]]).expand(4000, 3)
    draws = torch.rand(4000, 3, generator=torch.Generator().manual_seed(0))
    kept = drop_mask(losses, torch.ones(4000, 3, dtype=torch.bool), 0.3, draws).double().mean(0)
    assert kept.tolist() == pytest.approx([0.7, 1, 0.7], abs=0.03)


def test_losses_that_are_no_numbers_leave_a_mask():
    nan, inf = math.nan, math.inf
    losses = torch.tensor([[nan, 1.0, 2.0], [nan, nan, nan], [inf, 1.0, inf], [nan, 3.0, 2.0]])
    seen = torch.tensor([[True] * 3, [True] * 3, [True] * 3, [False, True, True]])
    mask = drop_mask(losses, seen, 1.0, torch.zeros(4, 3))
    expected = [[True, False, False], [True, False, False], [True, False, False]]
    assert mask.tolist() == [*expected, [False, True, False]]


@pytest.mark.parametrize("start", [0, 24])
def test_draws_are_the_same_for_any_split(start):
    positions = torch.arange(start, start + 12)
    whole = dropping_draws(3, "proxy", 5, positions, 12, 4)
    assert whole.shape == (12, 4)
    assert ((whole >= 0) & (whole < 1)).all()
    torch.manual_seed(9)  # of which nothing is read
    for rows in (range(6), range(6, 12), range(5, 8), range(11, 12), [1, 10, 4], range(0)):
        rows = torch.tensor(rows, dtype=torch.int64)
        part = dropping_draws(3, "proxy", 5, positions[rows], 12, 4)
        assert part.equal(whole[rows])


def test_draws_are_their_own_for_each_key_and_uniform():
    positions = torch.arange(2000)
    state = torch.get_rng_state()
    keys = [(0, "proxy", 0), (1, "proxy", 0), (0, "fixed", 0), (0, "proxy", 1)]
    draws = torch.stack([dropping_draws(*keys, positions, 2000, 3) for keys in keys])
    assert state.equal(torch.get_rng_state())
    each = draws.permute(1, 0, 2).flatten(1)
    assert np.abs(np.corrcoef(each.T.numpy()) - np.eye(12)).max() < 0.1
    assert each.mean(0).tolist() == pytest.approx([0.5] * 12, abs=0.03)
    assert each.var(0).tolist() == pytest.approx([1 / 12] * 12, abs=0.01)


@pytest.mark.parametrize(
    ("means", "expected"),
    [
        ([1.0, 1.0, 1.0], [1, 1, 1]),
        ([0.5, 2.0], [1.6, 0.4]),
        ([3.0], [1]),
        # The others as if it were not there.
        ([0.5, 0.0, 2.0], [1.6, 1, 0.4]),
        ([math.nan, 0.5, 2.0, math.inf, -1.0], [1, 1.6, 0.4, 1, 1]),
        ([0.0, 0.0], [1, 1]),
        ([math.nan], [1]),
        ([1e-40, 1.0], [2, 0]),
        ([1e38, 2e38], [4 / 3, 2 / 3]),
    ],
    ids=str,
)
def test_weights_are_inverse_to_means_and_average_one(means, expected):
    weights = magnitude_weights(torch.tensor(means))
    assert weights.tolist() == pytest.approx(expected, abs=1e-6)
    assert float(weights.mean()) == pytest.approx(1)


def test_running_mean_follows_a_loop():
    steps = np.random.default_rng(0).normal(size=(20, 3)) + 3
    steps[4, 1], steps[0, 2] = np.nan, np.inf
    held, expected, begun = torch.zeros(3, dtype=torch.float64), [0.0] * 3, [False] * 3
    for step in steps:
        held = running_mean(held, torch.from_numpy(step), 0.1, first=held == 0)
        for teacher, now in enumerate(step):
            if not math.isfinite(now):
                continue
            share = 0.1 if begun[teacher] else 1.0
            expected[teacher] = (1 - share) * expected[teacher] + share * now
            begun[teacher] = True
        assert held.tolist() == pytest.approx(expected, rel=1e-12)


def test_one_flag_may_stand_for_all():
    held, now = torch.tensor([1.0, 2.0]), torch.tensor([5.0, 6.0])
    assert running_mean(held, now, 0.5, torch.tensor(True)).tolist() == [5, 6]
    assert running_mean(held, now, 0.5, torch.tensor(False)).tolist() == [3, 4]


def test_conflicts_are_cosines_of_each_pair_in_order():
    random = np.random.default_rng(0)
    gradients = {name: 1e-6 * random.normal(size=50) for name in ("sam", "proxy/a", "clip")}
    gradients["back"] = -3 * gradients["sam"]
    found = conflicts({name: torch.from_numpy(g).float() for name, g in gradients.items()})
    names = list(gradients)
    assert list(found) == [f"{a}|{b}" for i, a in enumerate(names) for b in names[i + 1 :]]
    for pair, cosine in found.items():
        a, b = (gradients[name] for name in pair.split("|"))
        expected = np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b)
        assert float(cosine) == pytest.approx(expected, abs=1e-5)
    assert float(found["sam|back"]) == pytest.approx(-1)


def test_short_floats_are_multiplied_in_long_ones():
    a, b = torch.randn(2, 5000, generator=torch.Generator().manual_seed(0)).bfloat16()
    found = float(conflicts({"a": a, "b": b + a})["a|b"])
    expected = np.corrcoef(a.double(), (b + a).double())[0, 1]  # of means that are all but zero
    assert found == pytest.approx(expected, abs=2e-4)


def test_a_zero_gradient_has_no_angle():
    found = conflicts({"a": torch.zeros(3), "b": torch.ones(3).bfloat16(), "c": torch.ones(3)})
    assert math.isnan(found["a|b"])
    assert math.isnan(found["a|c"])
    assert float(found["b|c"]) == pytest.approx(1)
    assert conflicts({"a": torch.ones(3)}) == {}


def test_nothing_looks_at_values():
    """Tensors without any take the same way: nothing waits for a device."""
    losses, seen = torch.rand(5, 3, device="meta"), torch.ones(5, 3, device="meta") > 0
    assert drop_mask(losses, seen, 0.5, losses).shape == (5, 3)
    means = losses.mean(0)
    assert magnitude_weights(running_mean(means, means, 0.1, means == 0)).shape == (3,)
    assert conflicts({"a": means, "b": means})["a|b"].shape == ()
