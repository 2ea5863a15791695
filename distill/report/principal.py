"""Dense features of several models as colours that mean the same in all of them.

The pictures are the same for all models, the widths are not, so a basis is shared by way of the
places in the pictures. At the coarsest of the models' grids, each model's tokens X (N, D) are
reduced to their r leading principal components Z (N, r) and scaled to unit total variance; a PCA
of all models' Z side by side gives three joint scores S (N, 3) a place, each model counting alike
(the concatenation of multiple factor analysis, Escofier and Pages 1994). Each model is then shown
by its own least-squares map to these scores, pinv(Z) S, without a ridge: what it has of a joint
component is drawn at full strength, what it lacks is left grey. A model and any rotation of it look
the same.

r is at most N / 16: from as many directions as there are places, least squares would find any
scores in any features, noise among them, and all models would look alike.

Tokens of high norm, artefacts of vision transformers that hold no local information (Darcet et
al., arXiv 2309.16588), would take a component for themselves. Those beyond the median norm plus 10
times the median absolute deviation, over all tokens of the model, are left out of all that is
fitted. The deviation counts as at least a tenth of the median: norms after a layer normalisation
hardly differ, and every object on a plain background would be an outlier of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from students.features import resize_grid

_DEVIATIONS = 10.0
_LEAST_DEVIATION = 0.1
_PLACES_PER_DIRECTION = 16
_MOST_DIRECTIONS = 64
_SHOWN = (0.02, 0.98)
_ROUNDING = 1e-14


@dataclass(frozen=True)
class OutlierTokens:
    """Tokens left out of a fit: how many of `tokens`, their median norm (None where there are
    none), and the median norm of all tokens. `where` (B, h, w) bool tells which."""

    where: Tensor
    number: int
    tokens: int
    norm: float | None
    median: float

    @property
    def sentence(self) -> str:
        """For a note below the pictures."""
        if self.norm is None:
            return f"no outlier tokens, median norm {_norm(self.median)}"
        share = 100 * self.number / self.tokens
        return (
            f"outlier tokens: {share:.1f} % ({self.number} of {self.tokens}), norm "
            f"{_norm(self.norm)} against a median of {_norm(self.median)}"
        )


@dataclass(frozen=True)
class SharedColours:
    """Of each model, in the order given: RGB pictures (B, size, size, 3) uint8, and the tokens
    that were left out of the fit."""

    pictures: list[NDArray[np.uint8]]
    outliers: list[OutlierTokens]


def _norm(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def outlier_tokens(dense: Tensor) -> OutlierTokens:
    """The tokens (B, h, w, D) of high norm, over all pictures; those that are not finite count."""
    norms = torch.linalg.vector_norm(dense.detach().double(), dim=-1)
    finite = norms.isfinite()
    known = norms[finite]
    median = float(known.median()) if len(known) else 0.0
    deviation = float((known - median).abs().median()) if len(known) else 0.0
    limit = median + _DEVIATIONS * max(deviation, _LEAST_DEVIATION * median)
    where = ~finite if median == 0 else ~finite | (norms > limit)
    number = int(where.sum())
    norm = float(norms[where].median()) if number else None
    return OutlierTokens(where, number, where.numel(), norm, median)


def shared_colours(dense: Sequence[Tensor], size: int) -> SharedColours:
    """Dense features of the same B pictures by several models, as comparable colours.

    Args:
        dense: of each model (B, h, w, D), of any grid and width.
        size: side of the pictures in pixels; grids are resized bicubically.

    The 2nd and 98th percentiles of a component, the median over models, are 0 and 1 in all of
    them. The sign of a component is that in which the joint scores' third moment is positive.
    Tokens that are not finite are black.

    Raises:
        ValueError: if there are no models, or they were shown different numbers of pictures.
    """
    if not dense or len({len(each) for each in dense}) != 1:
        raise ValueError("colours are shared by one or more models of the same pictures")
    outliers = [outlier_tokens(each) for each in dense]
    features = [each.detach().double().nan_to_num(0.0, 0.0, 0.0).cpu() for each in dense]
    kept = [~each.where.cpu() for each in outliers]
    grid = min((tuple(each.shape[1:3]) for each in features), key=lambda g: g[0] * g[1])
    fitted = [m for m, mask in enumerate(kept) if mask.any()]
    coarse = {m: _at_grid(features[m], kept[m], (grid[0], grid[1])) for m in fitted}
    usable = torch.ones(len(features[0]), *grid, dtype=torch.bool)
    for _, known in coarse.values():
        usable &= known
    scores: list[Tensor] = [each.new_zeros(*each.shape[:3], 3) for each in features]
    if usable.any():
        maps = _maps([coarse[m][0][usable] for m in fitted])
        for m, (mean, weights) in zip(fitted, maps, strict=True):
            scores[m] = (features[m] - mean) @ weights
    for each, given in zip(scores, dense, strict=True):
        each[~given.detach().cpu().isfinite().all(-1)] = -torch.inf  # black
    low, high = _range([scores[m][kept[m]] for m in fitted])
    return SharedColours([_painted(each, low, high, size) for each in scores], outliers)


def _at_grid(dense: Tensor, kept: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Means (B, *grid, D) over the kept tokens by the area they share with each cell, and where
    there are any (B, *grid)."""
    rows, columns = (_overlap(n, m) for n, m in zip(dense.shape[1:3], grid, strict=True))
    weights = kept.double()
    area = torch.einsum("yh,xw,bhw->byx", rows, columns, weights)
    total = torch.einsum("yh,xw,bhwd->byxd", rows, columns, dense * weights[..., None])
    # Rounding may leave a crumb of area in a cell without a token.
    known = area > 1e-9
    return total / area.clamp_min(1e-9)[..., None], known


def _overlap(cells: int, wanted: int) -> Tensor:
    """(wanted, cells): the length that each of the wanted cells of a unit line shares with each of
    those there are."""
    there = torch.arange(cells + 1, dtype=torch.float64) / cells
    new = torch.arange(wanted + 1, dtype=torch.float64) / wanted
    ends = torch.minimum(there[None, 1:], new[1:, None])
    return (ends - torch.maximum(there[None, :-1], new[:-1, None])).clamp_min(0)


def _maps(tokens: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Of each model's tokens (N, D) of the same N places: their mean (D,) and the weights (D, 3)
    that lead from there to the joint scores."""
    places = len(tokens[0])
    most = min(_MOST_DIRECTIONS, max(3, places // _PLACES_PER_DIRECTION))
    means = [each.mean(0) for each in tokens]
    # What rounding leaves of tokens that are all the same is no direction.
    floors = [_ROUNDING * float(each.square().sum()) for each in tokens]
    centred = [each - mean for each, mean in zip(tokens, means, strict=True)]
    bases = [_leading(x, most, floor) for x, floor in zip(centred, floors, strict=True)]
    reduced = [x @ v for x, v in zip(centred, bases, strict=True)]
    blocks = [z / z.square().sum().sqrt().clamp_min(1e-30) * places**0.5 for z in reduced]
    joint = torch.cat(blocks, dim=1)
    scores = joint @ _leading(joint, 3, _ROUNDING * places)
    scores = scores * torch.where(scores.pow(3).sum(0) < 0, -1.0, 1.0)
    scores = torch.nn.functional.pad(scores, (0, 3 - scores.shape[1]))
    weights = [v @ (torch.linalg.pinv(z) @ scores) for v, z in zip(bases, reduced, strict=True)]
    return list(zip(means, weights, strict=True))


def _leading(centred: Tensor, most: int, floor: float) -> Tensor:
    """At most so many principal directions (D, r) of rows (N, D), the one with the most variance
    first; those whose sum of squares is not above `floor` are left out."""
    values, vectors = torch.linalg.eigh(centred.T @ centred)
    kept = int((values > floor).sum())
    return vectors.flip(1)[:, : min(most, kept)]


def _range(scores: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Ends (3,) of each component: percentiles of each model's kept tokens (n, 3), then the median
    over models."""
    if not scores:
        return torch.zeros(3).double(), torch.ones(3).double()
    ends = np.stack([np.quantile(each.numpy(), _SHOWN, axis=0) for each in scores])
    low, high = torch.from_numpy(np.median(ends, axis=0))
    return low, high


def _painted(scores: Tensor, low: Tensor, high: Tensor, size: int) -> NDArray[np.uint8]:
    """Scores (B, h, w, 3) to RGB (B, size, size, 3)."""
    scaled = ((scores - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
    picture = resize_grid(scaled.float(), (size, size)).clamp(0, 1)
    return (picture * 255).round().to(torch.uint8).numpy()
