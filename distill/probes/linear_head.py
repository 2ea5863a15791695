"""The head that both linear dense probes share: BatchNorm and a 1x1 convolution, and its training.

DINOv2's and DINOv3's `linear` segmentation and depth heads: SyncBatchNorm over the patch tokens
of the last layer, then a 1x1 convolution with weights drawn at standard deviation 0.01. Dropout2d
is in front, for segmentation only. Logits are read off four times finer than the grid, bilinearly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FINER = 4
"""Training labels per side of a patch."""


@dataclass(frozen=True)
class Schedule:
    """AdamW with a linear warm-up over `warmup` steps and a cosine down to zero."""

    steps: int
    batch: int
    lr: float
    weight_decay: float
    warmup: int
    clip: float | None = None

    def factor(self, step: int) -> float:
        """Share of `lr` at a step, counted from 0."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        return 0.5 * (1 + math.cos(math.pi * (step - self.warmup) / (self.steps - self.warmup)))


class LinearHead(nn.Module):
    """Dense features (B, h, w, D) to logits (B, K, h, w); every draw is from `generator`."""

    def __init__(self, width: int, outputs: int, generator: torch.Generator, dropout: float = 0.0):
        super().__init__()
        self.norm = nn.BatchNorm1d(width)
        self.linear = nn.utils.skip_init(nn.Linear, width, outputs)
        self.dropout, self.generator = dropout, generator
        with torch.no_grad():
            self.linear.weight.copy_(torch.randn(outputs, width, generator=generator).mul_(0.01))
            self.linear.bias.zero_()

    def forward(self, dense: Tensor) -> Tensor:
        """Logits (B, K, h, w), without upsampling."""
        if self.training and self.dropout:
            # Dropout2d, but drawn from the probe's own generator: whole channels of an image.
            kept = torch.rand(len(dense), 1, 1, dense.shape[-1], generator=self.generator)
            kept = (kept >= self.dropout).float().div_(1 - self.dropout)
            dense = dense * kept.to(dense.device)
        tokens = self.norm(dense.flatten(0, 2)).unflatten(0, dense.shape[:3])
        # A view with channels last in memory: upsampling that is about three times faster here.
        return self.linear(tokens).permute(0, 3, 1, 2)


def train(
    head: LinearHead,
    batches: Iterable[tuple[Tensor, Tensor]],
    loss_of: Callable[[Tensor, Tensor, int], Tensor],
    schedule: Schedule,
    device: torch.device | str = "cpu",
) -> LinearHead:
    """Train `head`, a step a batch, and return it in eval mode on `device`.

    `batches` gives `schedule.steps` pairs of dense features (B, h, w, D) and what `loss_of(logits
    (B, K, h, w), what, step)` compares them with.
    """
    head.to(device).train()
    optimiser = torch.optim.AdamW(
        head.parameters(), lr=schedule.lr, weight_decay=schedule.weight_decay
    )
    rate = torch.optim.lr_scheduler.LambdaLR(optimiser, schedule.factor)
    with torch.enable_grad():
        for step, (dense, what) in enumerate(batches):
            loss = loss_of(head(dense.to(device)), what, step)
            optimiser.zero_grad()
            loss.backward()
            if schedule.clip is not None:
                nn.utils.clip_grad_norm_(head.parameters(), schedule.clip)
            optimiser.step()
            rate.step()
    return head.eval()


def fit(
    head: LinearHead,
    dense: Tensor,
    loss_of: Callable[[Tensor, Tensor, int], Tensor],
    schedule: Schedule,
    device: torch.device | str = "cpu",
) -> LinearHead:
    """Train `head` on stored dense features (N, h, w, D) and return it in eval mode on `device`.

    `loss_of(logits (B, K, h, w), rows (B,), step)` is the loss of the images `rows` of a step.
    Batches run through shuffled epochs, shuffled by the head's own generator.
    """
    batch = min(schedule.batch, len(dense))
    epochs = math.ceil(schedule.steps * batch / len(dense))
    order = torch.cat([torch.randperm(len(dense), generator=head.generator) for _ in range(epochs)])

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for rows in order[: schedule.steps * batch].split(batch):
            yield dense[rows], rows

    return train(head, batches(), loss_of, schedule, device)


def upsampled(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (B, K, h, w) at another size, bilinear, corners not aligned."""
    return F.interpolate(logits, size, mode="bilinear", align_corners=False)


def finer_labels(labels: Tensor, grid: tuple[int, int]) -> Tensor:
    """Labels (N, H, W) at FINER times `grid`, by the nearest pixel; never finer than they are."""
    size = min(FINER * grid[0], labels.shape[1]), min(FINER * grid[1], labels.shape[2])
    return F.interpolate(labels[:, None].float(), size, mode="nearest-exact")[:, 0]
