import numpy as np
import pytest
import torch
from scipy import linalg

from students.hadamard import hadamard

NONE = (92, 116)
"""Multiples of 4 up to 128 that are neither 2^k, q + 1, 2 (q + 1) nor a product of such."""


@pytest.mark.parametrize("n", [1, 2, *(n for n in range(4, 129, 4) if n not in NONE)])
def test_rows_are_orthonormal_and_entries_of_one_size(n):
    found = hadamard(n)
    assert found.dtype == torch.float64
    found = found.numpy()
    np.testing.assert_allclose(found @ found.T, np.eye(n), atol=1e-14)
    np.testing.assert_allclose(np.abs(found), np.full((n, n), n**-0.5), rtol=1e-15)


@pytest.mark.parametrize("n", [244, 344, 784, 1152, 1904])
def test_larger_fields_and_products(n):
    """2 (11^2 + 1), 7^3 + 1, 4 * 2 (97 + 1), 1151 + 1, and 28 * 68, of which no half is found."""
    signs = (hadamard(n) * n**0.5).round().numpy()
    assert set(np.unique(signs)) == {-1, 1}
    assert np.array_equal(signs @ signs.T, n * np.eye(n))


@pytest.mark.parametrize("n", [2**k for k in range(10)])
def test_a_power_of_two_is_sylvesters(n):
    np.testing.assert_allclose(hadamard(n).numpy() * n**0.5, linalg.hadamard(n), rtol=1e-15)


@pytest.mark.parametrize("n", [*NONE, 156, 172, 188, 428, 0, 3, 5, 6, 10, 99, 998])
def test_where_there_is_none(n):
    assert hadamard(n) is None
