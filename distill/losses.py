"""Losses between adapted student tokens and normalised targets, as pure functions."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F


def token_loss(
    prediction: Tensor, target: Tensor, terms: Mapping[str, float], beta: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Mean over tokens of the weighted terms, and the sums that explained variance needs.

    Per token, over its channels: `cosine` is 1 - cos(prediction, target); `smooth_l1` and `mse`
    are means over channels. EUPE (arXiv 2603.22387): cosine for the summary, 0.9 cosine +
    0.1 smooth-L1 for dense tokens, as AM-RADIO (CVPR 2024). Computed in float32.

    Args:
        prediction, target: (..., D), same shape.
        terms: weight of each term.
        beta: where smooth-L1 turns from quadratic to linear.

    Returns:
        The loss, a scalar, and a detached (3,) tensor of the sums over all elements of
        prediction * target, prediction^2 and target^2.
    """
    p, t = prediction.float(), target.float()
    products, ours, theirs = (p * t).sum(-1), p.square().sum(-1), t.square().sum(-1)
    loss = p.new_zeros(())
    if weight := terms.get("cosine"):
        # Under the root, where the gradient at a zero vector would otherwise be undefined.
        cosine = products * torch.rsqrt((ours * theirs).clamp_min(1e-12))
        loss = loss + weight * (1 - cosine).mean()
    if weight := terms.get("smooth_l1"):
        loss = loss + weight * F.smooth_l1_loss(p, t, beta=beta)
    if weight := terms.get("mse"):
        loss = loss + weight * F.mse_loss(p, t)
    return loss, torch.stack([products.sum(), ours.sum(), theirs.sum()]).detach()


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
