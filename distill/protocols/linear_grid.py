"""Linear classifiers at several learning rates, trained together on the same batches.

Their weights are one tensor, so that all of them cost one matrix product a step. Each is what SGD
with momentum and a cosine schedule would make of it alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

MOMENTUM = 0.9
DEVIATION = 0.01
"""Of the initial weights."""

_ROWS = 4096
"""Rows that are scored at a time."""


@dataclass(frozen=True)
class Training:
    """SGD without weight decay: `steps` of `batch` rows, each rate down to zero by a cosine."""

    rates: tuple[float, ...]
    steps: int
    batch: int

    def factor(self, step: int) -> float:
        """Share of each rate at a step, counted from 0."""
        return 0.5 * (1 + math.cos(math.pi * step / self.steps))


@dataclass(frozen=True)
class Classifiers:
    """Of L rates for D features and K classes: `weight` (D, L, K), `bias` (L, K)."""

    weight: Tensor
    bias: Tensor

    def logits(self, rows: Tensor) -> Tensor:
        """(B, L, K) of rows (B, D)."""
        flat = torch.addmm(self.bias.flatten(), rows, self.weight.flatten(1))
        return flat.unflatten(1, self.bias.shape)


def train(
    features: Tensor,
    labels: Tensor,
    rows: Tensor,
    classes: int,
    training: Training,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Classifiers:
    """Classifiers of features (N, D) float32 with labels (N,) int64 by softmax cross-entropy.

    They learn from `rows` (n,) int64 of these. All begin with the same weights. Batches run
    through shuffled epochs. A rate that is too high ends in weights that are not finite, and harms
    no other.
    """
    start = torch.randn(features.shape[1], classes, generator=generator) * DEVIATION
    rates = torch.tensor(training.rates, device=device)[:, None]
    weight = start.to(device)[:, None].repeat(1, len(rates), 1)
    bias = torch.zeros(len(rates), classes, device=device)
    found = Classifiers(weight, bias)
    speeds = torch.zeros_like(weight), torch.zeros_like(bias)
    batches = _batches(len(rows), training, generator)
    for step in range(training.steps):
        index = rows[next(batches)]
        shown, truth = features[index].to(device), labels[index].to(device)
        # The gradient of the mean cross-entropy, for each rate by itself.
        error = found.logits(shown).softmax(-1)
        error[torch.arange(len(index), device=device), :, truth] -= 1
        error /= len(index)
        gradients = (shown.T @ error.flatten(1)).view_as(weight), error.sum(0)
        for value, speed, gradient in zip((weight, bias), speeds, gradients, strict=True):
            speed.mul_(MOMENTUM).add_(gradient)
            value.sub_(speed * (rates * training.factor(step)))
        progress(step + 1, training.steps)
    return found


def predictions(found: Classifiers, features: Tensor, device: torch.device | str = "cpu") -> Tensor:
    """(L, N) int64 class of each row (N, D) by each rate; -1 where its logits are not finite."""
    parts = []
    for rows in features.split(_ROWS):
        logits = found.logits(rows.to(device))
        chosen = logits.argmax(-1).masked_fill(~logits.isfinite().all(-1), -1)
        parts.append(chosen.T.cpu())
    return torch.cat(parts, 1)


def _batches(count: int, training: Training, generator: torch.Generator) -> Iterator[Tensor]:
    """Rows (batch,) of each step; what an epoch leaves over begins the next."""
    left = torch.empty(0, dtype=torch.int64)
    while True:
        while len(left) < training.batch:
            left = torch.cat([left, torch.randperm(count, generator=generator)])
        yield left[: training.batch]
        left = left[training.batch :]
