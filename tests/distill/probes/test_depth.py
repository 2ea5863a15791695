"""Linear depth: formulas against numpy, and that it learns."""

import numpy as np
import pytest
import torch

from distill.probes.depth import (
    depth_of,
    depth_rmse,
    predict_depth,
    rmse,
    scale_invariant_loss,
    train_depth,
    variance_free_steps,
)
from distill.probes.linear_head import Schedule


def test_depth_is_the_weighted_mean_of_bin_centres():
    logits = torch.randn(2, 5, 3, 4)
    z = logits.numpy().astype(np.float64)
    expected = np.zeros((2, 3, 4))
    for b, i, j in np.ndindex(2, 3, 4):
        weights = [max(v, 0) + 0.1 for v in z[b, :, i, j]]
        centres = [2 + k * (6 - 2) / 4 for k in range(5)]
        expected[b, i, j] = np.average(centres, weights=weights)
    np.testing.assert_allclose(depth_of(logits, 2.0, 6.0).numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("variance", [True, False])
def test_loss_against_numpy(variance):
    random = np.random.default_rng(0)
    prediction, truth = random.uniform(1, 10, (2, 3, 8, 8))
    g = np.log(prediction + 1e-3) - np.log(truth + 1e-3)
    expected = np.sqrt(variance * np.var(g, ddof=1) + 0.15 * np.mean(g) ** 2)
    value = scale_invariant_loss(torch.from_numpy(prediction), torch.from_numpy(truth), variance)
    assert value.item() == pytest.approx(expected, rel=1e-9)


def test_loss_of_a_perfect_prediction_has_a_finite_gradient():
    truth = torch.rand(2, 4, 4) + 1
    prediction = truth.clone().requires_grad_()
    scale_invariant_loss(prediction, truth).backward()
    assert prediction.grad.isfinite().all()


def test_rmse_is_a_mean_over_images_not_over_pixels():
    random = np.random.default_rng(1)
    prediction, truth = random.uniform(1, 10, (2, 4, 5, 6))
    truth[0] += 50  # one bad image
    by_image = [np.sqrt(np.mean((p - t) ** 2)) for p, t in zip(prediction, truth, strict=True)]
    value = rmse(torch.from_numpy(prediction), torch.from_numpy(truth))
    assert value == pytest.approx(np.mean(by_image))
    assert value != pytest.approx(np.sqrt(np.mean((prediction - truth) ** 2)), rel=0.1)


def planes(n, seed):
    generator = torch.Generator().manual_seed(seed)
    coarse = 2 + 6 * torch.rand(n, 4, 4, generator=generator)
    noise = 0.2 * torch.randn(n, 4, 4, 6, generator=generator)
    mixing = torch.randn(6, generator=torch.Generator().manual_seed(8))
    return coarse[..., None] * mixing + noise, torch.nn.functional.interpolate(
        coarse[:, None], (32, 32), mode="bilinear"
    )[:, 0]


def test_it_learns_without_the_global_generator():
    train, test = planes(24, 1), planes(8, 2)
    short = Schedule(steps=60, batch=8, lr=2e-2, weight_decay=1e-3, warmup=8, clip=35.0)
    state = torch.get_rng_state()
    head = train_depth(*train, schedule=short)
    assert torch.equal(torch.get_rng_state(), state)
    predicted = predict_depth(head, test[0], (32, 32))
    assert predicted.shape == (8, 32, 32)
    constant = rmse(train[1].mean().expand_as(test[1]), test[1])
    assert rmse(predicted, test[1]) < 0.4 * constant


def test_every_draw_is_the_seeds():
    two_steps = Schedule(steps=2, batch=4, lr=1e-2, weight_decay=1e-3, warmup=1)
    one, again, other = (
        train_depth(*planes(8, 1), seed=seed, schedule=two_steps).linear.weight
        for seed in (3, 3, 4)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_first_steps_leave_the_variance_out(monkeypatch):
    asked = []

    def spy(prediction, truth, variance=True):
        asked.append(variance)
        return (prediction - truth).square().mean()

    monkeypatch.setattr("distill.probes.depth.scale_invariant_loss", spy)
    train_depth(*planes(4, 1), schedule=Schedule(20, 2, 1e-3, 0.0, 1))
    assert asked == [False] * 2 + [True] * 18
    assert variance_free_steps(38_400) == 100


def test_from_features_to_score(monkeypatch):
    monkeypatch.setattr("distill.probes.depth.STEPS", 50)
    train, test = planes(16, 1), planes(8, 2)
    constant = rmse(train[1].mean().expand_as(test[1]), test[1])
    assert depth_rmse(*train, *test) < 0.4 * constant
