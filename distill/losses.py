"""Losses between adapted student tokens and normalised targets, as pure functions."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

TINY = 1e-12
"""Below this the product of two squared lengths counts as zero."""


CHUNK = 1 << 22
"""Elements that the loss looks at together: what is float32 in it is never larger."""


def token_loss(
    prediction: Tensor, target: Tensor, terms: Mapping[str, float], beta: float = 1.0
) -> tuple[Tensor, Tensor]:
    """For each image the mean over its tokens of the weighted terms, and the sums that explained
    variance needs.

    Per token, over its channels: `cosine` is 1 - cos(prediction, target); `smooth_l1` and `mse`
    are means over channels. EUPE (arXiv 2603.22387): cosine for the summary, 0.9 cosine +
    0.1 smooth-L1 for dense tokens, as AM-RADIO (CVPR 2024).

    Computed in float32 whatever the inputs are, some tokens at a time, and with the gradient at
    once: no float32 copy of predictions or targets outlives its chunk.

    Args:
        prediction, target: (B, ..., D), same shape.
        terms: weight of each term; those of other names, as of pairs of tokens, are none of it.
        beta: where smooth-L1 turns from quadratic to linear.

    Returns:
        The losses (B,), of which the mean is that of the batch, and a detached (3,) tensor of the
        sums over all elements of prediction * target, prediction^2 and target^2.
    """
    tokens, width = math.prod(prediction.shape[1:-1]), prediction.shape[-1]
    rows = prediction.reshape(-1, width), target.detach().reshape(-1, width)
    return _TokenLoss.apply(*rows, tokens, dict(terms), beta)


class _TokenLoss(torch.autograd.Function):
    """The terms of `token_loss` over rows (N, D), `tokens` of them an image, fused: they share
    reads, sums and gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        prediction: Tensor,
        target: Tensor,
        tokens: int,
        terms: dict[str, float],
        beta: float,
    ) -> tuple[Tensor, Tensor]:
        """Losses and sums; the gradient of each image's loss is kept in the prediction's dtype for
        the way back."""
        count, width = prediction.shape
        dtype = torch.promote_types(prediction.dtype, torch.float32)
        gradient = torch.empty_like(prediction) if ctx.needs_input_grad[0] else None
        losses = torch.zeros(count, dtype=dtype, device=prediction.device)
        sums = torch.zeros(3, dtype=dtype, device=prediction.device)
        share = 1 / (tokens * width)
        for rows in _chunks(count, width):
            p, t = prediction[rows].to(dtype), target[rows].to(dtype)
            products, ours, theirs = (p * t).sum(-1), p.square().sum(-1), t.square().sum(-1)
            sums += torch.stack([products.sum(), ours.sum(), theirs.sum()])
            part = None if gradient is None else p.new_zeros(())  # each term adds its own
            if weight := terms.get("cosine"):
                # Under the root, where the gradient at a zero vector would otherwise be undefined.
                scale = torch.rsqrt((ours * theirs).clamp_min(TINY))
                losses[rows] += weight * (1 - products * scale)
                if part is not None:
                    towards = (weight / tokens * scale)[:, None]
                    back = (products / ours.clamp_min(TINY)) * (ours * theirs > TINY)
                    part = (p * (towards * back[:, None])).addcmul_(t, towards, value=-1)
            if weight := terms.get("smooth_l1"):
                each = F.smooth_l1_loss(p, t, beta=beta, reduction="none")
                losses[rows] += weight / width * each.sum(-1)
                if part is not None:
                    slope = (p - t).clamp_(-beta, beta)
                    part = slope.mul_(weight * share / beta).add_(part)
            if weight := terms.get("mse"):
                losses[rows] += weight / width * F.mse_loss(p, t, reduction="none").sum(-1)
                if part is not None:
                    part = (p - t).mul_(2 * weight * share).add_(part)
            if gradient is not None and part is not None:
                gradient[rows] = part
        ctx.tokens = tokens
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(sums)
        return losses.view(-1, tokens).mean(1), sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_losses: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        """The kept gradient, the rows of each image times that of its loss."""
        (gradient,) = ctx.saved_tensors
        factors = of_losses[:, None].expand(-1, ctx.tokens).reshape(-1, 1)
        if gradient.dtype == factors.dtype:
            return gradient * factors, None, None, None, None
        scaled = torch.empty_like(gradient)
        for rows in _chunks(*gradient.shape):
            scaled[rows] = gradient[rows].to(factors.dtype).mul_(factors[rows])
        return scaled, None, None, None, None


def _chunks(count: int, width: int) -> Iterator[slice]:
    """Slices of `count` rows of so many channels, each of at most CHUNK elements."""
    at_once = max(1, CHUNK // width)
    for first in range(0, count, at_once):
        yield slice(first, first + at_once)


def explained_variance(sums: Tensor) -> Tensor:
    """Share of the targets' variance that predictions explain at their best single scale.

    1 - min_s sum (s p - t)^2 / sum t^2 = (sum p t)^2 / (sum p^2 sum t^2), for targets of mean
    zero; negative correlation counts as zero. The scale is free because cosine leaves it open.

    Args:
        sums: (..., 3) as `token_loss` gives them, added up over batches and ranks.

    Returns:
        (...) in [0, 1].
    """
    products, ours, theirs = sums.double().unbind(-1)
    return (products.clamp_min(0).square() / (ours * theirs).clamp_min(1e-30)).float()


def best_scale(sums: Tensor) -> Tensor:
    """The s that minimises sum (s p - t)^2: sum p t / sum p^2, from `token_loss`'s sums."""
    return sums[..., 0] / sums[..., 1].clamp_min(1e-30)
