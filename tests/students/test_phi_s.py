"""PHI-S against what defines it: equal variances, a rotation times one scale, an exact inverse."""

import numpy as np
import pytest
import torch
from scipy import linalg

from students.hadamard import hadamard
from students.moments import Moments
from students.normalisers import build_normaliser
from students.phi_s import equalising_rotation, givens_rotation, phi_s

WIDTHS = [12, 20, 64, 100, 192, 384, 768, 998, 1152, 1280]


def spectrum(width, seed=0):
    """(eigenvalues, eigenvectors) of a covariance such as a teacher's: falling over six decades,
    the last of them zero."""
    random = np.random.default_rng(seed)
    vectors, _ = np.linalg.qr(random.standard_normal((width, width)))
    values = 50 * np.logspace(0, -6, width)
    values[-width // 8 :] = 0
    return values, vectors


def covariance(width, seed=0):
    values, vectors = spectrum(width, seed)
    return (vectors * values) @ vectors.T


@pytest.mark.parametrize("width", WIDTHS)
def test_every_channel_has_the_same_variance_after_one_rotation_and_scale(width):
    exact = covariance(width)
    weight, inverse = phi_s(torch.zeros(width), torch.from_numpy(exact))
    assert weight.dtype == inverse.dtype == torch.float64
    w, back = weight.numpy(), inverse.numpy()
    np.testing.assert_allclose(((w @ exact) * w).sum(1), np.ones(width), rtol=1e-9)
    scale = width / np.trace(exact)
    np.testing.assert_allclose(w @ w.T, scale * np.eye(width), atol=1e-12 * scale)
    np.testing.assert_allclose(w @ back, np.eye(width), atol=1e-12)


@pytest.mark.parametrize("width", WIDTHS)
def test_as_it_is_stored(width):
    """In float32, on features of mean 30 whose std is 0.05 on average."""
    values, vectors = spectrum(width, seed=1)
    values *= 0.05**2 / values.mean()
    random = np.random.default_rng(2)
    mean = 30 + random.standard_normal(width)
    x = (random.standard_normal((40, width)) * np.sqrt(values)) @ vectors.T + mean
    x = torch.from_numpy(x).float()
    moments, normaliser = Moments(width, covariance=True), build_normaliser("phi_s", width)
    moments.merge(
        torch.tensor(1e4),
        torch.from_numpy(mean),
        torch.ones(width),
        torch.from_numpy(1e4 * (vectors * values) @ vectors.T),
    )
    normaliser.fit(moments)

    weight, _ = phi_s(torch.from_numpy(mean), moments.covariance)
    held = normaliser.mean.double()
    y = normaliser(x)
    assert y.dtype == torch.float32
    expected = (x.double() - held) @ weight.T
    assert float((y - expected).abs().max()) < 3e-6 * float(expected.abs().max())
    # Neighbouring float32 numbers are 2e-6 apart at 30; the mean is rounded as well.
    assert float((normaliser.inverse(y) - x).abs().max()) < 4e-6
    product = normaliser.weight.double() @ normaliser.inverse_weight.double()
    np.testing.assert_allclose(product.numpy(), np.eye(width), atol=1e-6)


def test_the_variances_of_real_rows_are_equal():
    random = np.random.default_rng(3)
    x = random.standard_normal((3000, 100)) @ random.standard_normal((100, 100)) + 4
    moments, normaliser = Moments(100, covariance=True), build_normaliser("phi_s", 100)
    for part in torch.from_numpy(x).split(700):
        moments.update(part)
    normaliser.fit(moments)
    y = normaliser(torch.from_numpy(x).reshape(30, 10, 10, 100)).reshape(-1, 100).double().numpy()
    np.testing.assert_allclose(y.mean(0), np.zeros(100), atol=1e-5)
    np.testing.assert_allclose(y.var(0), np.ones(100), rtol=1e-5)
    # Distances between tokens are those of the features, all times one number.
    ratio = np.linalg.norm(y[:50] - y[50:100], axis=1) / np.linalg.norm(x[:50] - x[50:100], axis=1)
    np.testing.assert_allclose(ratio, np.full(50, x.var(0).mean() ** -0.5), rtol=1e-5)


@pytest.mark.parametrize("width", [8, 64])
def test_it_is_the_formula_with_sylvesters_matrix(width):
    """H^T W sqrt(mean l) = U^T: its rows take the covariance apart into its eigenvalues."""
    values, vectors = spectrum(width, seed=4)
    exact = (vectors * values) @ vectors.T
    weight, _ = phi_s(torch.zeros(width), torch.from_numpy(exact))
    axes = linalg.hadamard(width).T / width**0.5 @ weight.numpy() * values.mean() ** 0.5
    np.testing.assert_allclose(axes @ exact @ axes.T, np.diag(np.sort(values)), atol=1e-12)


def test_negative_eigenvalues_count_as_zero():
    weight, inverse = phi_s(torch.zeros(4), torch.diag(torch.tensor([1.0, 0.0, -1.0, 0.0])))
    torch.testing.assert_close(weight @ weight.T, 4 * torch.eye(4, dtype=torch.float64))
    torch.testing.assert_close(inverse @ inverse.T, 0.25 * torch.eye(4, dtype=torch.float64))


@pytest.mark.parametrize("width", [10, 12])
@pytest.mark.parametrize("noise", [0.0, 1e-6])
def test_a_teacher_that_says_the_same_of_everything(width, noise):
    """Its targets are 0; the variance that its rounding leaves, 2e-6 at 30, is not blown up."""
    moments, normaliser = Moments(width, covariance=True), build_normaliser("phi_s", width)
    rows = 30 + noise * torch.randn(50, width, generator=torch.Generator().manual_seed(0))
    assert (rows.std() > 0) == (noise > 0)
    moments.update(rows)
    normaliser.fit(moments)
    assert all(buffer.isfinite().all() for buffer in normaliser.buffers())
    targets = normaliser(rows)
    assert targets.abs().max() < 2e-5
    torch.testing.assert_close(normaliser.inverse(targets), rows)


@pytest.mark.parametrize(
    "values",
    [
        [3.0],
        [1.0, 5.0],
        [2.0] * 7,
        [0.0] * 6,
        [1e6] + [0.0] * 97,
        # Rounding leaves the last of these on one side of their mean.
        (1 + 1e-15 * np.random.default_rng(39).integers(-9, 10, 11)).tolist(),
        np.logspace(4, -12, 150).tolist(),
        np.logspace(-12, 4, 150).tolist(),
        np.random.default_rng(0).exponential(size=92).tolist(),
    ],
    ids=lambda values: f"{len(values)} from {values[0]:.1g}",
)
def test_givens_rotations_equalise_any_diagonal(values):
    found = givens_rotation(values).numpy()
    np.testing.assert_allclose(found @ found.T, np.eye(len(values)), atol=1e-13)
    diagonal = np.diag(found @ np.diag(values) @ found.T)
    mean = np.mean(values)
    np.testing.assert_allclose(diagonal, np.full(len(values), mean), rtol=1e-11, atol=1e-300)


def test_a_hadamard_matrix_is_taken_where_there_is_one():
    assert torch.equal(equalising_rotation(torch.rand(20)), hadamard(20))
    rotation = equalising_rotation(torch.arange(22.0))
    assert rotation.shape == (22, 22)
