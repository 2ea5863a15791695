"""The optimiser of one student: AdamW with decay on matrices only, warm-up and cosine."""

from __future__ import annotations

import math

import torch
from torch import nn

from distill.recipe.schema import TrainConfig


def build_optimiser(module: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over a student and its adapters; norms, biases, tokens and scales do not decay."""
    trained = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
    # A class, register or position token is stored with leading ones: (1, n, D) is no matrix.
    decays = [p for _, p in trained if sum(n > 1 for n in p.shape) > 1 and p.shape[0] > 1]
    kept = {id(p) for p in decays}
    others = [p for _, p in trained if id(p) not in kept]
    return torch.optim.AdamW(
        [
            {"params": decays, "weight_decay": config.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=config.lr,
        betas=(config.betas[0], config.betas[1]),
        fused=True,
    )


def learning_rate(step: int, config: TrainConfig) -> float:
    """Learning rate of a step (0-based): linear warm-up, then half a cosine down to min_lr."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    span = max(1, config.steps - config.warmup)
    share = min(1.0, (step - config.warmup) / span)
    return config.min_lr + (config.lr - config.min_lr) * 0.5 * (1 + math.cos(math.pi * share))
