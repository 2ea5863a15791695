"""Hadamard matrices: rotations all of whose entries are of the same size."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def hadamard(n: int) -> Tensor | None:
    """An orthonormal Hadamard matrix H: entries +-1 / sqrt(n), H H^T = I.

    One exists for n = 1, 2 and, as far as is known, for every multiple of 4. This finds those of
    Sylvester's doubling (a power of two gives Sylvester's own matrix), of Paley's two
    constructions over any field, and of Kronecker products of these: all multiples of 4 up to 128
    but 92 and 116.

    Source: Paley, "On orthogonal matrices", 1933.

    Returns:
        (n, n) float64 on the CPU; None where these constructions give none.
    """
    signs = _signs(n)
    return None if signs is None else signs / math.sqrt(n)


def _signs(n: int) -> Tensor | None:
    """H sqrt(n): a matrix (n, n) of +-1 whose rows are orthogonal."""
    if n == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    if n == 2:
        return torch.tensor([[1, 1], [1, -1]], dtype=torch.float64)
    if n < 4 or n % 4:
        return None
    if (half := _signs(n // 2)) is not None:
        return torch.kron(torch.tensor([[1, 1], [1, -1]], dtype=torch.float64), half)
    if (field := _prime_power(n - 1)) is not None:
        return _paley_one(_characters(*field))
    if n // 2 % 4 == 2 and (field := _prime_power(n // 2 - 1)) is not None:
        return _paley_two(_characters(*field))
    for factor in range(4, math.isqrt(n) + 1, 4):
        if n % factor == 0:
            left, right = _signs(factor), _signs(n // factor)
            if left is not None and right is not None:
                return torch.kron(left, right)
    return None


def _paley_one(characters: Tensor) -> Tensor:
    """I + [[0, 1], [-1, Q]] of order q + 1, for q of the form 4 k + 3, where Q is skew."""
    found = torch.eye(len(characters) + 1, dtype=torch.float64)
    found[0, 1:] += 1
    found[1:, 0] -= 1
    found[1:, 1:] += characters
    return found


def _paley_two(characters: Tensor) -> Tensor:
    """C x [[1, 1], [1, -1]] + I x [[1, -1], [-1, -1]] of order 2 (q + 1), for q of the form
    4 k + 1, where Q and so C = [[0, 1], [1, Q]] is symmetric."""
    one = torch.eye(len(characters) + 1, dtype=torch.float64)
    conference = 1 - one
    conference[1:, 1:] = characters
    off = torch.tensor([[1, 1], [1, -1]], dtype=torch.float64)
    on = torch.tensor([[1, -1], [-1, -1]], dtype=torch.float64)
    return torch.kron(conference, off) + torch.kron(one, on)


def _prime_power(q: int) -> tuple[int, int] | None:
    """(p, k) with q = p^k for an odd q >= 3 and a prime p; None if there are none."""
    prime = next((d for d in range(3, math.isqrt(q) + 1, 2) if q % d == 0), q)
    power = round(math.log(q, prime))
    return (prime, power) if prime**power == q else None


def _characters(prime: int, power: int) -> Tensor:
    """Q (q, q) over the field of q = p^k elements: 1 where the difference a - b of two elements is
    a square, -1 where it is none, 0 on the diagonal.

    An element is a polynomial of degree below k with coefficients modulo p, its number the
    polynomial's value at p.
    """
    place = prime ** torch.arange(power)
    elements = torch.arange(prime**power)[:, None] // place % prime
    # Modulo x^k + rest, there is a field if and only if each square but 0 has two roots, no more.
    squares = next(
        found
        for found in (_squares(elements, rest, prime).unique() for rest in elements)
        if len(found) == (len(elements) + 1) // 2
    )
    of_number = torch.full((len(elements),), -1, dtype=torch.float64)
    of_number[squares] = 1
    of_number[0] = 0
    difference = sum(
        (digit[:, None] - digit[None, :]) % prime * value
        for digit, value in zip(elements.unbind(1), place.tolist(), strict=True)
    )
    return of_number[difference]


def _squares(elements: Tensor, rest: Tensor, prime: int) -> Tensor:
    """The numbers (q,) of the squares of all elements, polynomials (q, k) with coefficients from
    the lowest, modulo x^k + rest."""
    power = elements.shape[1]
    product = torch.zeros(len(elements), 2 * power - 1, dtype=elements.dtype)
    for degree in range(power):
        product[:, degree : degree + power] += elements[:, degree, None] * elements
    for degree in range(2 * power - 2, power - 1, -1):
        product[:, degree - power : degree] -= product[:, degree, None] % prime * rest
    return (product[:, :power] % prime * prime ** torch.arange(power)).sum(1)
