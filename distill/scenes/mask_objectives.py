"""What the masks teacher is trained on: prompts, and the losses of masks and of patches."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from distill.scenes.generate import MAX_SHAPES


def draw_prompts(
    instances: Tensor, prompts: int, random: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """A visible object a prompt, a point in it, and its box loosened by up to 10 %.

    Of instances (B, S, S), 0 the background: objects (B, P), points (B, P, 1, 2), boxes (B, P, 4),
    x before y, in pixels.
    """
    b, size = len(instances), instances.shape[-1]
    seen = torch.stack([(instances == k + 1).flatten(1).sum(1) for k in range(MAX_SHAPES)], 1)
    weights = (seen > 6).float() + 1e-6
    chosen = torch.multinomial(weights, prompts, replacement=True) + 1
    mask = (instances[:, None] == chosen[:, :, None, None]).flatten(2).float()
    at = torch.multinomial((mask + 1e-9).flatten(0, 1), 1).view(b, prompts)
    points = torch.stack([at % size, at // size], -1).float()[:, :, None]
    inside = mask.view(b, prompts, size, size)
    line = torch.arange(size).float()
    edges = []
    for axis in (-2, -1):  # x over columns, then y over rows
        hit = inside.amax(axis) > 0
        edges.append((torch.where(hit, line, size).amin(-1), torch.where(hit, line, -1.0).amax(-1)))
    (x0, x1), (y0, y1) = edges
    box = torch.stack([x0, y0, x1 + 1, y1 + 1], -1)
    loose = torch.from_numpy(random.uniform(-0.1, 0.1, (b, prompts, 4))).float()
    wide = torch.stack([x1 - x0, y1 - y0, x1 - x0, y1 - y0], -1).clamp_min(1)
    return chosen, points, (box + loose * wide).clamp(0, size)


def focal(logits: Tensor, truth: Tensor) -> Tensor:
    """Focal loss of masks (..., H, W), gamma 2 (Lin et al., 2017): (...)."""
    cross = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    right = torch.exp(-cross)
    return ((1 - right) ** 2 * cross).mean((-1, -2))


def dice(share: Tensor, truth: Tensor) -> Tensor:
    """One minus the Dice coefficient of shares (..., H, W) in [0, 1], smoothed by 1: (...)."""
    both = (share * truth).sum((-1, -2))
    return 1 - (2 * both + 1) / (share.sum((-1, -2)) + truth.sum((-1, -2)) + 1)


def affinity(embedding: Tensor, instances: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Cross-entropy of "same object" from the cosine of two patches, less the batch's mean patch.

    Pairs of two objects' patches count as much as all pairs with the background together: they are
    few, and telling two objects apart is the harder half.
    """
    side = embedding.shape[-1]
    votes = F.one_hot(instances, MAX_SHAPES + 1).permute(0, 3, 1, 2).float()
    share, owner = F.adaptive_avg_pool2d(votes, side).flatten(2).max(1)
    f = embedding.float().flatten(2)
    f = F.normalize(f - f.mean((0, 2), keepdim=True), dim=1)
    cosine = f.transpose(1, 2) @ f
    same = (owner[:, :, None] == owner[:, None, :]).float()
    sure = (share > 0.6).float()
    both = sure[:, :, None] * sure[:, None, :]
    objects = both * ((owner > 0)[:, :, None] & (owner > 0)[:, None, :])
    ground = both * ((owner > 0)[:, :, None] ^ (owner > 0)[:, None, :])
    loss = F.binary_cross_entropy_with_logits(
        cosine * scale.exp().clamp(max=30) + shift, same, reduction="none"
    )
    pairs = [(loss * part).sum() / part.sum().clamp_min(1) for part in (objects, ground)]
    return pairs[0] + 0.5 * pairs[1]
