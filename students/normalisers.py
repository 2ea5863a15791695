"""Target normalisers: the frozen map between a teacher's features and what students regress."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from students.moments import Moments

STD_FLOOR = 1e-3
"""A channel's std is at least this share of the median channel's: a dead channel stays small."""


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
