"""Target normalisers: the frozen map between a teacher's features and what students regress."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STD_FLOOR = 1e-3
"""A channel's std is at least this share of the median channel's: a dead channel stays small."""


class Moments:
    """Running mean and variance per channel, by Chan's update in float64.

    Sums in float32 are 5 % off in variance at mean 30 and std 0.05.

    Source: Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing
    sample variances", 1979.
    """

    def __init__(self, width: int, device: torch.device | str = "cpu"):
        # Apple's GPUs have no float64; there the statistics are kept on the CPU.
        self.device = torch.device("cpu" if torch.device(device).type == "mps" else device)
        self.count = torch.zeros((), dtype=torch.float64, device=self.device)
        self.mean = torch.zeros(width, dtype=torch.float64, device=self.device)
        self.squares = torch.zeros(width, dtype=torch.float64, device=self.device)

    def update(self, tokens: Tensor) -> None:
        """Take in tokens (..., width)."""
        rows = tokens.reshape(-1, tokens.shape[-1]).to(self.device, torch.float64)
        mean = rows.mean(0)
        self.merge(
            torch.tensor(float(len(rows)), dtype=torch.float64, device=self.device),
            mean,
            (rows - mean).square().sum(0),
        )

    def merge(self, count: Tensor, mean: Tensor, squares: Tensor) -> None:
        """Take in the moments of other tokens: their count, mean and summed squared deviations."""
        total = self.count + count
        delta = mean - self.mean
        self.squares = self.squares + squares + delta.square() * self.count * count / total
        self.mean = self.mean + delta * count / total
        self.count = total

    @property
    def std(self) -> Tensor:
        """(width,) population standard deviation."""
        return (self.squares / self.count).sqrt()


class Normaliser(nn.Module):
    """The map from a teacher's tokens to targets, and back where there is a way back.

    `standardise` is y = (x - mean) / std per channel, with mean and std of `Moments` (EUPE);
    `none` leaves mean 0 and std 1; `l2` is y = x / |x| per token, which has no inverse: what
    comes back is a direction (LightlyTrain's normaliser).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, kind: str, width: int):
        super().__init__()
        self.kind = kind
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))

    def fit(self, moments: Moments) -> None:
        """Take the statistics of `moments`, with a floor under std."""
        if self.kind != "standardise":
            return
        std = moments.std
        floor = STD_FLOOR * std.median()
        self.mean.copy_(moments.mean)
        self.std.copy_(std.clamp_min(floor if floor > 0 else 1.0))

    def forward(self, tokens: Tensor) -> Tensor:
        """A teacher's tokens (..., D) to targets, in float32."""
        if self.kind == "l2":
            return F.normalize(tokens.float(), dim=-1)
        return (tokens.float() - self.mean) / self.std

    def inverse(self, targets: Tensor) -> Tensor:
        """Targets (..., D) back to the teacher's own features; for `l2`, to their direction."""
        return targets.float() * self.std + self.mean


INVERTIBLE = {"standardise": True, "none": True, "l2": False}
"""Whether a normaliser has an inverse; without one, a chain gives directions only."""
