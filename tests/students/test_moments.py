import numpy as np
import pytest
import torch

from students.moments import Moments


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_moments_survive_a_large_mean_and_uneven_batches():
    rows = 30 + 0.05 * normal(5000, 7)
    moments = Moments(7)
    for part in rows.split([1, 10, 2000, 2989]):
        moments.update(part.reshape(1, -1, 7))
    exact = rows.double().numpy()
    np.testing.assert_allclose(moments.mean.numpy(), exact.mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.std.numpy(), exact.std(0), rtol=1e-9)
    # The trap that this avoids: one pass of float32 sums is percents off.
    naive = (rows.square().sum(0) / 5000 - (rows.sum(0) / 5000).square()).clamp_min(0).sqrt()
    assert (naive.numpy() / exact.std(0) - 1).__abs__().max() > 0.01


def test_merged_moments_are_those_of_all_rows():
    a, b = normal(40, 3), 5 + normal(60, 3, seed=1)
    left, right, both = Moments(3), Moments(3), Moments(3)
    left.update(a)
    right.update(b)
    both.update(torch.cat([a, b]))
    left.merge(right.count, right.mean, right.squares)
    torch.testing.assert_close(left.std, both.std)
    torch.testing.assert_close(left.mean, both.mean)


@pytest.mark.parametrize("parts", [[500], [1, 9, 200, 290]], ids=str)
def test_the_covariance_is_that_of_all_rows(parts):
    """Correlated channels of std 0.05 around 30, whose mean drifts from batch to batch."""
    rows = 0.05 * normal(500, 6) @ normal(6, 6, seed=1) + torch.linspace(29.9, 30.1, 500)[:, None]
    moments = Moments(6, covariance=True)
    for part in rows.split(parts):
        moments.update(part)
    moments.update(rows[:0])
    exact = np.cov(rows.double().numpy(), rowvar=False, bias=True)
    np.testing.assert_allclose(moments.covariance.numpy(), exact, atol=1e-12)
    np.testing.assert_allclose(moments.std.square().numpy(), exact.diagonal(), rtol=1e-9)


def test_merged_covariances_are_those_of_all_rows():
    a, b = normal(40, 4), 5 + 2 * normal(60, 4, seed=1)
    left, right = Moments(4, covariance=True), Moments(4, covariance=True)
    left.update(a)
    right.update(b)
    left.merge(right.count, right.mean, right.squares, right.co)
    exact = np.cov(torch.cat([a, b]).double().numpy(), rowvar=False, bias=True)
    np.testing.assert_allclose(left.covariance.numpy(), exact, atol=1e-12)
    with pytest.raises(ValueError, match="cannot take in"):
        left.merge(right.count, right.mean, right.squares)


def test_a_covariance_that_was_not_asked_for():
    with pytest.raises(ValueError, match="covariance=True"):
        _ = Moments(4).covariance
