"""How the losses of several teachers are weighed against each other, as pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import torch
from torch import Tensor

from students.keys import key


def drop_mask(losses: Tensor, seen: Tensor, drop: float, draws: Tensor) -> Tensor:
    """Which teacher's loss counts for which image, by teacher dropping (UNIC, ECCV 2024).

    For each image, of the teachers that see it, the one with the largest loss counts, and each
    other one if its draw is at least `drop`. Nothing waits for the device. NaN counts as the
    largest; of several largest the first.

    Args:
        losses: (B, T), of each image and teacher; of a teacher that does not see it, anything.
        seen: (B, T) bool.
        drop: the probability to be left out, in [0, 1].
        draws: (B, T), uniform in [0, 1) (`dropping_draws`).

    Returns:
        (B, T) bool, False where not seen.
    """
    largest = losses.masked_fill(~seen, -torch.inf).argmax(1, keepdim=True)
    teachers = torch.arange(losses.shape[1], device=losses.device)
    return seen & ((draws >= drop) | (teachers == largest))


def dropping_draws(
    seed: int, stage: str, step: int, positions: Tensor, batch_size: int, teachers: int
) -> Tensor:
    """Draws for `drop_mask`, a function of these keys and of each position of the stream alone: any
    split of a batch into ranks and parts has the same.

    Args:
        seed, stage, step: what the draw of the whole batch is keyed by.
        positions: (b,) int64 in the stream, on the CPU; of the `batch_size` of this step any.
        batch_size: over all ranks.
        teachers: T.

    Returns:
        (b, T) float32, uniform in [0, 1), on the CPU.
    """
    generator = torch.Generator().manual_seed(key("dropping", seed, stage, step))
    return torch.rand(batch_size, teachers, generator=generator)[positions % batch_size]


def magnitude_weights(means: Tensor) -> Tensor:
    """Weights that give the losses of all teachers the same size: 1 / mean, averaging 1.

    A teacher whose mean is no number above 0, as before its first step, weighs 1, and the others
    average 1 without it.

    Args:
        means: (T,), running means of the losses.

    Returns:
        (T,), finite and at least 0.
    """
    known = means.isfinite() & (means > 0)
    # Relative to the smallest, so that 1 / mean cannot overflow.
    smallest = means.where(known, torch.inf).amin()
    inverse = torch.where(known, smallest / means, 0)
    return torch.where(known, inverse * (known.sum() / inverse.sum()), 1)


def running_mean(held: Tensor, now: Tensor, momentum: float, first: Tensor) -> Tensor:
    """A mean that moves by `momentum` of the way to what a step found, and stays where that is not
    finite.

    Args:
        held, now: (T,), the mean so far and the step's.
        momentum: in (0, 1].
        first: () or (T,) bool, where nothing is held yet: there it is what the step found.

    Returns:
        (T,).
    """
    moved = torch.where(first, now, held + momentum * (now - held))
    return torch.where(now.isfinite(), moved, held)


def conflicts(gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Cosines between the gradients that teachers send into the same weights.

    Args:
        gradients: (G,) by teacher, the mean over ranks and parts of the batch.

    Returns:
        () in [-1, 1] for each pair of teachers in their order, named "a|b"; NaN where one of the
        gradients is zero.
    """
    directions = {}
    for name, gradient in gradients.items():
        long = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
        directions[name] = long / torch.linalg.vector_norm(long)
    return {
        f"{one}|{other}": (directions[one] * directions[other]).sum().clamp(-1, 1)
        for one, other in combinations(directions, 2)
    }
