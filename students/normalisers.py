"""Target normalisers: the map between a teacher's features and what students regress."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from students.moments import Moments
from students.phi_s import phi_s

STD_FLOOR = 1e-3
"""A channel's std is at least this share of the median channel's: a dead channel stays small."""


class Normaliser(nn.Module):
    """The map from a teacher's tokens (..., D) to targets, and back where there is a way back.

    `kind` is its name in a recipe. `invertible`: whether there is a way back; without one, what
    comes back is a direction. `needs_covariance`: whether `fit` asks for moments with a covariance.
    `running`: whether its statistics follow the batches of a stage; the others are frozen after
    `fit`. All that it knows is in its buffers.
    """

    kind: ClassVar[str]
    invertible: ClassVar[bool] = True
    needs_covariance: ClassVar[bool] = False
    running: ClassVar[bool] = False
    mean: Tensor
    std: Tensor

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))

    @property
    def width(self) -> int:
        """D, the channels of a token."""
        return len(self.mean)

    def fit(self, moments: Moments) -> None:
        """Take the statistics of a teacher's tokens."""

    def forward(self, tokens: Tensor) -> Tensor:
        """A teacher's tokens (..., D) to targets, in float32."""
        return (tokens.float() - self.mean) / self.std

    def inverse(self, targets: Tensor) -> Tensor:
        """Targets (..., D) back to the teacher's own features; for `l2`, to their direction."""
        return targets.float() * self.std + self.mean

    def inverse_affine(self) -> tuple[Tensor, Tensor] | None:
        """The inverse as a weight (D,) or (D, D) and a bias (D,): y * weight + bias, or
        y @ weight.T + bias; None where there is none."""
        return self.std, self.mean

    def channels(self) -> tuple[Tensor, Tensor]:
        """Mean and std (D,) of the teacher's own features per channel, std above 0, as copies;
        0 and 1 where they are not measured."""
        return self.mean.clone(), self.std.clone()


class Unnormalised(Normaliser):
    """Targets are the teacher's features themselves (AM-RADIO)."""

    kind = "none"

    def forward(self, tokens: Tensor) -> Tensor:
        """A teacher's tokens (..., D) in float32."""
        return tokens.float()


class UnitLength(Normaliser):
    """y = x / |x| per token, which has no inverse (LightlyTrain's normaliser)."""

    kind = "l2"
    invertible = False

    def forward(self, tokens: Tensor) -> Tensor:
        """The directions of a teacher's tokens (..., D), in float32."""
        return F.normalize(tokens.float(), dim=-1)

    def inverse_affine(self) -> None:
        """None: a direction has no length."""


class Standardise(Normaliser):
    """y = (x - mean) / std per channel, measured before a stage trains (EUPE, Theia)."""

    kind = "standardise"

    def fit(self, moments: Moments) -> None:
        """Take the statistics of `moments`, with a floor under std."""
        self.mean.copy_(moments.mean)
        self.std.copy_(moments.std.clamp_min(_floor(moments)))


class RunningStandardise(Standardise):
    """`standardise` whose mean and variance are exponential moving averages (UNIC, DUNE).

    It starts from those measured before a stage; a step uses what the steps before it left.
    `floor`, below which std never falls, is that of the start.
    """

    kind = "ema"
    running = True
    floor: Tensor

    def __init__(self, width: int):
        super().__init__(width)
        self.register_buffer("floor", torch.tensor(STD_FLOOR))

    def fit(self, moments: Moments) -> None:
        """Start from the statistics of `moments`."""
        super().fit(moments)
        self.floor.copy_(_floor(moments))

    @torch.no_grad()
    def update(self, count: Tensor, sums: Tensor, squares: Tensor, momentum: float) -> None:
        """Move by `momentum` towards the mean and variance of a batch.

        They are told as those of its targets, which are near 0 and 1 whatever the features are, so
        that float32 sums do: the features' mean is mean + std * E y and their variance
        std^2 (E y^2 - (E y)^2). A batch that is not finite, or of no token, changes nothing, and
        nothing here waits for the device.

        Args:
            count: (), the tokens of the batch over all ranks.
            sums, squares: (D,), sums of their targets y and of y^2.
            momentum: the share of the batch, in (0, 1].
        """
        share = 1 / count.clamp_min(1)
        shift = sums * share
        variance = (squares * share - shift.square()).clamp_min(0)
        mean = self.mean + momentum * self.std * shift
        std = self.std * (1 + momentum * (variance - 1)).sqrt()
        std = torch.maximum(std, self.floor)
        good = (count > 0) & mean.isfinite().all() & std.isfinite().all()
        self.mean.copy_(torch.where(good, mean, self.mean))
        self.std.copy_(torch.where(good, std, self.std))


class PhiS(Normaliser):
    """y = W (x - mean): a rotation and one scale, after which all channels have variance 1
    (RADIOv2.5, see students.phi_s).

    `weight` is W and `inverse_weight` its inverse, (D, D). `std` is that of the features.
    """

    kind = "phi_s"
    needs_covariance = True
    weight: Tensor
    inverse_weight: Tensor

    def __init__(self, width: int):
        super().__init__(width)
        self.register_buffer("weight", torch.eye(width))
        self.register_buffer("inverse_weight", torch.eye(width))

    def fit(self, moments: Moments) -> None:
        """Take the statistics of `moments`, which hold a covariance."""
        weight, inverse = phi_s(moments.mean, moments.covariance)
        self.weight.copy_(weight)
        self.inverse_weight.copy_(inverse)
        self.mean.copy_(moments.mean)
        self.std.copy_(moments.std.clamp_min(_floor(moments)))

    def forward(self, tokens: Tensor) -> Tensor:
        """A teacher's tokens (..., D) to targets, in float32 whatever autocast is around it."""
        # The mean goes first, and in `inverse` comes last: a product's sums that hold a large mean
        # have no digits left for what is around it.
        with torch.autocast(tokens.device.type, enabled=False):
            return F.linear(tokens.float() - self.mean, self.weight)

    def inverse(self, targets: Tensor) -> Tensor:
        """Targets (..., D) back to the teacher's own features, in float32."""
        with torch.autocast(targets.device.type, enabled=False):
            return F.linear(targets.float(), self.inverse_weight) + self.mean

    def inverse_affine(self) -> tuple[Tensor, Tensor]:
        """The inverse of W, (D, D), and the mean (D,)."""
        return self.inverse_weight, self.mean


def _floor(moments: Moments) -> Tensor:
    """The least std () of a channel; 1 where the median channel says the same of everything."""
    floor = STD_FLOOR * moments.std.median()
    return torch.where(floor > 0, floor, 1.0)


_KINDS = (Standardise, Unnormalised, UnitLength, RunningStandardise, PhiS)

INVERTIBLE = {normaliser.kind: normaliser.invertible for normaliser in _KINDS}
"""Whether a normaliser has an inverse; without one, a chain gives directions only."""


def build_normaliser(kind: str, width: int) -> Normaliser:
    """A normaliser of `kind` for tokens of this width, not fitted yet: it changes nothing but what
    `l2` does.

    Raises:
        ValueError: if there is no such kind.
    """
    for normaliser in _KINDS:
        if normaliser.kind == kind:
            return normaliser(width)
    raise ValueError(f"normaliser {kind!r}: expected one of {', '.join(INVERTIBLE)}")
