import numpy as np
import pytest
import torch

from distill.recipe.schema import NORMALISERS
from students import INVERTIBLE
from students.moments import Moments
from students.normalisers import STD_FLOOR, build_normaliser


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def fitted(kind, rows):
    moments = Moments(rows.shape[-1], covariance=True)
    moments.update(rows)
    normaliser = build_normaliser(kind, rows.shape[-1])
    normaliser.fit(moments)
    return normaliser


def features(count=400, width=6, seed=0):
    """Correlated tokens of unlike spread and mean."""
    mixed = normal(count, width, seed=seed) @ normal(width, width, seed=seed + 1)
    return mixed * torch.logspace(-1, 1, width) + torch.linspace(-3, 30, width)


def test_there_is_a_normaliser_for_every_kind_of_a_recipe():
    assert set(INVERTIBLE) == set(NORMALISERS)
    for kind, invertible in INVERTIBLE.items():
        normaliser = build_normaliser(kind, 3)
        assert (normaliser.kind, normaliser.width) == (kind, 3)
        assert invertible == (normaliser.inverse_affine() is not None)
    with pytest.raises(ValueError, match="'l3': expected one of standardise"):
        build_normaliser("l3", 3)


def test_standardised_targets_and_back():
    rows = normal(500, 4) * torch.tensor([1.0, 10, 0.1, 0.0]) + 3
    normaliser = fitted("standardise", rows)
    targets = normaliser(rows)
    torch.testing.assert_close(targets[:, :3].std(0, correction=0), torch.ones(3))
    assert targets[:, 3].abs().max() < 1e-2  # a dead channel is not blown up to noise
    torch.testing.assert_close(normaliser.inverse(targets), rows, atol=1e-5, rtol=1e-5)


def test_l2_keeps_directions_alone():
    normaliser = fitted("l2", 9 * normal(10, 3))
    x = 7 * normal(2, 5, 3)
    targets = normaliser(x)
    torch.testing.assert_close(targets, x / (x * x).sum(-1, keepdim=True).sqrt())
    assert torch.equal(normaliser.inverse(targets), targets)


def test_none_leaves_features_alone():
    normaliser = fitted("none", 9 * normal(10, 2))
    x = normal(3, 2)
    assert torch.equal(normaliser(x), x)
    assert torch.equal(normaliser.inverse(x), x)


@pytest.mark.parametrize("kind", sorted(INVERTIBLE))
def test_targets_are_float32_and_come_back(kind):
    rows = features()
    normaliser = fitted(kind, rows)
    for given in (rows, rows.bfloat16(), rows.reshape(20, 4, 5, 6)):
        targets = normaliser(given)
        assert (targets.dtype, targets.shape) == (torch.float32, given.shape)
        back = normaliser.inverse(targets)
        if INVERTIBLE[kind]:
            torch.testing.assert_close(back, given.float(), atol=2e-5, rtol=1e-5)
            weight, bias = normaliser.inverse_affine()
            by_hand = targets @ weight.T if weight.ndim == 2 else targets * weight
            torch.testing.assert_close(by_hand + bias, back)


@pytest.mark.parametrize("kind", sorted(INVERTIBLE))
def test_autocast_around_it_changes_nothing(kind):
    rows = features()
    normaliser = fitted(kind, rows)
    targets = normaliser(rows)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(normaliser(rows), targets)
        inside = normaliser.inverse(targets)
    assert torch.equal(inside, normaliser.inverse(targets))


@pytest.mark.parametrize("kind", sorted(INVERTIBLE))
def test_the_statistics_of_the_features_themselves(kind):
    rows = features()
    normaliser = fitted(kind, rows)
    mean, std = normaliser.channels()
    if kind in ("none", "l2"):
        assert torch.equal(mean, torch.zeros(6))
        assert torch.equal(std, torch.ones(6))
    else:
        torch.testing.assert_close(mean, rows.mean(0), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(std, rows.std(0, correction=0), atol=1e-5, rtol=1e-5)
    # They are a cache's to keep, whatever a running normaliser does afterwards.
    mean.zero_()
    std.zero_()
    assert normaliser.std.min() > 0


@pytest.mark.parametrize("kind", ["standardise", "ema", "phi_s"])
def test_a_dead_channel_and_a_dead_teacher_have_a_std(kind):
    rows = features()
    rows[:, 2] = 5
    assert float(fitted(kind, rows).channels()[1].min()) > 0
    assert fitted(kind, torch.full((10, 6), 5.0)).channels()[1].tolist() == [1.0] * 6


@pytest.mark.parametrize("kind", sorted(INVERTIBLE))
def test_all_that_it_knows_is_in_its_state(kind):
    normaliser, rows = fitted(kind, features()), features(seed=7)
    if normaliser.running:
        follow(normaliser, rows, 0.1)
    held, again = normaliser.state_dict(), build_normaliser(kind, 6)
    again.load_state_dict({name: tensor.clone() for name, tensor in held.items()})
    if kind in ("none", "l2", "standardise"):
        assert set(held) == {"mean", "std"}
    for step in range(3):
        targets = normaliser(rows)
        assert torch.equal(again(rows), targets)
        assert torch.equal(again.inverse(targets), normaliser.inverse(targets))
        if normaliser.running:
            more = features(seed=20 + step)
            follow(normaliser, more, 0.1)
            follow(again, more, 0.1)
    assert set(held) == {name for name, _ in normaliser.named_buffers()}
    assert not list(normaliser.parameters())


def follow(normaliser, rows, momentum):
    """What a step does after its batch: tell the sums of its targets."""
    targets = normaliser(rows)
    count = torch.tensor(float(len(rows)))
    normaliser.update(count, targets.sum(0), targets.square().sum(0), momentum)


def test_running_statistics_are_those_of_the_features_batch_by_batch():
    """Against float64 moving averages of each batch's own mean and variance."""
    random = np.random.default_rng(0)
    spread, centre = np.array([0.05, 1.0, 20.0, 3.0]), np.array([30.0, -2.0, 0.0, 100.0])
    first = random.standard_normal((300, 4)) * spread + centre
    normaliser = fitted("ema", torch.from_numpy(first).float())
    first = first.astype(np.float32).astype(np.float64)
    mean, variance = first.mean(0), first.var(0)
    for step in range(40):
        # The features drift by two of their std, and their spread doubles.
        shift = step / 20 * spread
        batch = random.standard_normal((50, 4)) * spread * (1 + step / 40) + centre + shift
        batch = batch.astype(np.float32)
        targets = normaliser(torch.from_numpy(batch)).double().numpy()
        np.testing.assert_allclose(
            targets, (batch.astype(np.float64) - mean) / variance**0.5, atol=1e-3, rtol=1e-4
        )
        follow(normaliser, torch.from_numpy(batch), 0.1)
        exact = batch.astype(np.float64)
        mean = 0.9 * mean + 0.1 * exact.mean(0)
        variance = 0.9 * variance + 0.1 * exact.var(0)
    np.testing.assert_allclose(normaliser.mean.double().numpy(), mean, atol=1e-3 * spread.min())
    np.testing.assert_allclose(normaliser.std.double().numpy(), variance**0.5, rtol=1e-4)
    assert (np.abs(mean - first.mean(0)) > spread).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_a_batch_that_is_not_finite_changes_nothing(value):
    normaliser = fitted("ema", features())
    before = {name: tensor.clone() for name, tensor in normaliser.state_dict().items()}
    batch = features(seed=3)
    batch[7, 2] = value  # the square of 1e30 is beyond float32
    follow(normaliser, batch, 0.5)
    for name, tensor in normaliser.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    follow(normaliser, features(seed=3), 0.5)
    assert not torch.equal(normaliser.mean, before["mean"])
    assert not torch.equal(normaliser.std, before["std"])


@pytest.mark.parametrize(("count", "total"), [(0, 0.0), (0, 3.0), (5, float("inf"))])
def test_sums_that_tell_nothing_change_nothing(count, total):
    normaliser = fitted("ema", features())
    before = {name: tensor.clone() for name, tensor in normaliser.state_dict().items()}
    normaliser.update(torch.tensor(float(count)), torch.full((6,), total), torch.zeros(6), 0.5)
    for name, tensor in normaliser.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("dead", ["channel", "teacher"])
def test_a_running_std_stays_above_the_floor_of_its_start(dead):
    rows = features() if dead == "channel" else torch.full((400, 6), 5.0)
    rows[:, 2] = 5
    normaliser = fitted("ema", rows)
    middle = float(rows.std(0, correction=0).sort().values[2])  # torch's median, of six the third
    floor = STD_FLOOR * middle if dead == "channel" else 1.0
    for _ in range(200):
        follow(normaliser, rows, 0.5)
    assert float(normaliser.std[2]) == pytest.approx(floor, rel=1e-4)
    assert normaliser(rows)[:, 2].abs().max() < 1e-3
