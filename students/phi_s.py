"""PHI-S: the rotation and the one scale that give every channel of a teacher the same variance."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from students.hadamard import hadamard

RESOLUTION = torch.finfo(torch.float32).eps
"""A spread below this share of the features' own size is their rounding, and is not scaled up."""


def phi_s(mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """The W of y = W (x - mean), and its inverse.

    With covariance C = U diag(l) U^T, negative l counted as 0, W = R U^T / sqrt(mean l), where the
    rotation R gives R diag(l) R^T a constant diagonal (`equalising_rotation`). Every channel of y
    then has variance 1, and the map is a rotation times one scale: no direction of the teacher's
    features is enlarged against another, and an error of y is one of x times a constant.

    The scale of a teacher that says the same of everything is 1.

    Source: Ranzinger et al., "PHI-S: Distribution balancing for label-free multi-teacher
    distillation", 2024.

    Args:
        mean: (D,) of the features.
        covariance: (D, D), finite.

    Returns:
        W and its inverse, (D, D) float64 on the covariance's device.
    """
    values, vectors = torch.linalg.eigh(covariance.double())
    values = values.clamp_min(0)
    scale = float(values.mean().sqrt())
    if scale <= RESOLUTION * float(mean.double().square().mean().sqrt()):
        scale = 1.0
    rotation = equalising_rotation(values) @ vectors.T
    return rotation / scale, rotation.T * scale


def equalising_rotation(values: Tensor) -> Tensor:
    """An orthogonal R (n, n) with all diagonal entries of R diag(values) R^T equal to their mean.

    A Hadamard matrix for any values; where none is found, rotations of pairs of channels that make
    it exact for these values (n, float64).
    """
    found = hadamard(len(values))
    return (givens_rotation(values.tolist()) if found is None else found).to(values.device)


def givens_rotation(values: list[float]) -> Tensor:
    """`equalising_rotation` as a product of n - 1 Givens rotations.

    Each takes two channels whose variances lie on either side of the mean, x <= m <= y, and turns
    them by the angle that gives one of them cos^2 x + sin^2 y = m; the other one keeps x + y - m
    and is turned again with a channel that has not been. Such two are always uncorrelated.

    Source: Bendel, Mickey, "Population correlation matrices for sampling experiments", 1978, for
    the diagonals that Schur's and Horn's theorem allows.

    Args:
        values: n variances, at least 0.

    Returns:
        (n, n) float64 on the CPU.
    """
    mean = math.fsum(values) / len(values)
    rotation = torch.eye(len(values), dtype=torch.float64)
    below = [i for i, value in enumerate(values) if value < mean]
    above = [i for i, value in enumerate(values) if value >= mean]
    open_channel = above.pop()
    x = values[open_channel]
    while below or above:
        other = ((above or below) if x < mean else (below or above)).pop()
        y = values[other]
        # Rounding may leave the last few on the same side of the mean, all but equal to it.
        share = min(1.0, max(0.0, (mean - x) / (y - x))) if x != y else 0.0
        sine, cosine = math.sqrt(share), math.sqrt(1 - share)
        first, second = rotation[open_channel].clone(), rotation[other].clone()
        rotation[open_channel] = cosine * first + sine * second
        rotation[other] = cosine * second - sine * first
        open_channel, x = other, x + y - mean
    return rotation
