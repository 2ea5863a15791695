"""Linear segmentation: the class of every pixel from one linear map of the dense features.

Protocol (DINOv2's and DINOv3's linear ADE20K head, shortened for scenes): Dropout2d 0.1, BatchNorm,
1x1 convolution (std 0.01), cross-entropy, AdamW with weight decay 1e-3, warm-up and cosine. The
published 40k steps of 16 at 1e-3 become STEPS steps of BATCH at LEARNING_RATE. Trained on labels
four times finer than the grid (nearest pixel), scored at the images' full resolution; mean over
classes of intersection over union, classes without a union left out.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.datasets.parts import IGNORE
from distill.probes.linear_head import LinearHead, Schedule, finer_labels, fit, upsampled

STEPS, BATCH, LEARNING_RATE, WEIGHT_DECAY, WARMUP = 100, 32, 1.0e-2, 1.0e-3, 10
DROPOUT = 0.1

_CHUNK = 64


def train_segmentation(
    dense: Tensor,
    labels: Tensor,
    classes: int,
    *,
    seed: int = 0,
    schedule: Schedule | None = None,
    device: torch.device | str = "cpu",
) -> LinearHead:
    """A linear segmentation head for dense (N, h, w, D) and labels (N, H, W) in [0, classes).

    Every draw comes from `seed`; the global random state is neither read nor changed.
    """
    head = LinearHead(
        dense.shape[-1], classes, torch.Generator().manual_seed(seed), dropout=DROPOUT
    )
    truth = finer_labels(labels, (dense.shape[1], dense.shape[2])).to(torch.uint8)

    def loss_of(logits: Tensor, rows: Tensor, step: int) -> Tensor:
        target = truth[rows].long().to(logits.device)
        return F.cross_entropy(upsampled(logits, (target.shape[1], target.shape[2])), target)

    schedule = schedule or Schedule(STEPS, BATCH, LEARNING_RATE, WEIGHT_DECAY, WARMUP)
    return fit(head, dense, loss_of, schedule, device)


@torch.no_grad()
def predict_segmentation(
    head: LinearHead, dense: Tensor, size: tuple[int, int], device: torch.device | str = "cpu"
) -> Tensor:
    """Classes (N, H, W) uint8 at `size` = (H, W) for dense (N, h, w, D)."""
    return torch.cat(
        [
            upsampled(head(part.to(device)), size).argmax(1).to(torch.uint8).cpu()
            for part in dense.split(_CHUNK)
        ]
    )


def confusion(predicted: Tensor, truth: Tensor, classes: int) -> Tensor:
    """(classes, classes) int64 counts of pixels, rows the truth and columns the prediction.

    Pixels whose truth is IGNORE count nowhere.
    """
    seen = truth != IGNORE
    pairs = truth[seen].long() * classes + predicted[seen].long()
    return torch.bincount(pairs, minlength=classes**2).view(classes, classes)


def mean_iou(counts: Tensor) -> float:
    """Mean intersection over union in percent, of a confusion matrix (K, K).

    A class that is neither in the truth nor in the prediction has no union and is left out; a
    class that is predicted and never there counts as 0.
    """
    both = counts.diagonal().double()
    union = counts.sum(0) + counts.sum(1) - counts.diagonal()
    return 100 * float((both / union).nanmean())


def segmentation_miou(
    train: Tensor,
    train_labels: Tensor,
    test: Tensor,
    test_labels: Tensor,
    classes: int,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> float:
    """Mean IoU in percent on test (M, h, w, D), (M, H, W) of a head trained on train."""
    head = train_segmentation(train, train_labels, classes, seed=seed, device=device)
    size = test_labels.shape[1], test_labels.shape[2]
    return mean_iou(confusion(predict_segmentation(head, test, size, device), test_labels, classes))
