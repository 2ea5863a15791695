"""Losses between adapted student tokens and normalised targets, as pure functions."""

from __future__ import annotations

from collections.abc import Mapping
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
    """Mean over tokens of the weighted terms, and the sums that explained variance needs.

    Per token, over its channels: `cosine` is 1 - cos(prediction, target); `smooth_l1` and `mse`
    are means over channels. EUPE (arXiv 2603.22387): cosine for the summary, 0.9 cosine +
    0.1 smooth-L1 for dense tokens, as AM-RADIO (CVPR 2024).

    Computed in float32 whatever the inputs are, some tokens at a time, and with the gradient at
    once: no float32 copy of predictions or targets outlives its chunk.

    Args:
        prediction, target: (..., D), same shape.
        terms: weight of each term.
        beta: where smooth-L1 turns from quadratic to linear.

    Returns:
        The loss, a scalar, and a detached (3,) tensor of the sums over all elements of
        prediction * target, prediction^2 and target^2.
    """
    width = prediction.shape[-1]
    rows = prediction.reshape(-1, width), target.detach().reshape(-1, width)
    return _TokenLoss.apply(*rows, dict(terms), beta)


class _TokenLoss(torch.autograd.Function):
    """The terms of `token_loss` over rows (N, D), fused: they share reads, sums and gradient."""

    @staticmethod
    def forward(
        ctx: Any, prediction: Tensor, target: Tensor, terms: dict[str, float], beta: float
    ) -> tuple[Tensor, Tensor]:
        """Loss and sums; the gradient is kept in the prediction's dtype for the way back."""
        count, width = prediction.shape
        dtype = torch.promote_types(prediction.dtype, torch.float32)
        gradient = torch.empty_like(prediction) if ctx.needs_input_grad[0] else None
        loss = torch.zeros((), dtype=dtype, device=prediction.device)
        sums = torch.zeros(3, dtype=dtype, device=prediction.device)
        at_once = max(1, CHUNK // width)
        for first in range(0, count, at_once):
            rows = slice(first, first + at_once)
            p, t = prediction[rows].to(dtype), target[rows].to(dtype)
            products, ours, theirs = (p * t).sum(-1), p.square().sum(-1), t.square().sum(-1)
            sums += torch.stack([products.sum(), ours.sum(), theirs.sum()])
            part = torch.zeros_like(p) if gradient is not None else None
            if weight := terms.get("cosine"):
                # Under the root, where the gradient at a zero vector would otherwise be undefined.
                scale = torch.rsqrt((ours * theirs).clamp_min(TINY))
                loss += weight / count * (1 - products * scale).sum()
                if part is not None:
                    back = (products / ours.clamp_min(TINY)) * (ours * theirs > TINY)
                    along = torch.addcmul(-t, p, back[:, None])
                    part.addcmul_(along, (weight / count * scale)[:, None])
            share = 1 / (count * width)
            if weight := terms.get("smooth_l1"):
                loss += weight * share * F.smooth_l1_loss(p, t, beta=beta, reduction="sum")
                if part is not None:
                    part.add_((p - t).div_(beta).clamp_(-1, 1), alpha=weight * share)
            if weight := terms.get("mse"):
                loss += weight * share * F.mse_loss(p, t, reduction="sum")
                if part is not None:
                    part.add_(p - t, alpha=2 * weight * share)
            if gradient is not None and part is not None:
                gradient[rows] = part
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(sums)
        return loss, sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_loss: Tensor, _: Tensor) -> tuple[Tensor, None, None, None]:
        """The kept gradient times that of the loss."""
        (gradient,) = ctx.saved_tensors
        return gradient * of_loss, None, None, None


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
