"""Linear depth: the distance of every pixel from one linear map of the dense features.

Protocol (DINOv2's linear NYU head over BTS, arXiv 2304.07193 section 7.4; the loss is Eigen et
al.'s, arXiv 1406.2283): BatchNorm and a 1x1 convolution to bins over the depth range; the depth is
the mean of the bins' centres weighted by relu(z) + 0.1; read off logits at four times the grid,
then bilinearly at the image. Loss sqrt(var(g) + 0.15 mean(g)^2) of g = log(prediction + 1e-3) -
log(truth + 1e-3), the variance left out for the first 100 steps or a tenth of the steps, whichever
is less; AdamW with weight decay 1e-3, gradient norm at most 35. The published 256 bins and 38.4k
steps of 16 at 3e-4 become BINS bins and STEPS steps of BATCH at LEARNING_RATE; no flip at test
time. RMSE in scene units, computed for each image and averaged over images.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distill.probes.linear_head import FINER, LinearHead, Schedule, finer_labels, fit, upsampled
from distill.scenes.generate import FAR, NEAR

BINS = 32
STEPS, BATCH, LEARNING_RATE, WEIGHT_DECAY, WARMUP = 200, 16, 1.0e-2, 1.0e-3, 20
CLIP = 35.0
EPS = 1e-3
VARIANCE_FREE_STEPS = 100
A1 = 1.25
"""Up to which ratio a1 takes a depth for right."""

_CHUNK = 64


def depth_of(logits: Tensor, near: float = NEAR, far: float = FAR) -> Tensor:
    """Depth (B, H, W) in scene units of logits (B, bins, H, W).

    Bin centres are spaced evenly over [near, far], both ends included.
    """
    share = logits.relu() + 0.1
    centres = torch.linspace(near, far, logits.shape[1], device=logits.device)
    return torch.einsum("bkhw,k->bhw", share, centres) / share.sum(1)


def scale_invariant_loss(prediction: Tensor, truth: Tensor, variance: bool = True) -> Tensor:
    """sqrt(var(g) + 0.15 mean(g)^2), g the difference of logarithms; both of one shape, positive.

    `variance` False leaves the first term out. The variance is the unbiased one, over all pixels.
    """
    g = torch.log(prediction + EPS) - torch.log(truth + EPS)
    squared = 0.15 * g.mean().square()
    if variance:
        squared = squared + g.var()
    # The root has no slope at 0, where there is nothing left to learn either.
    return squared.clamp_min(1e-12).sqrt()


def variance_free_steps(steps: int) -> int:
    """How many of `steps` leave the variance out of the loss."""
    return min(VARIANCE_FREE_STEPS, steps // 10)


def train_depth(
    dense: Tensor,
    depth: Tensor,
    *,
    seed: int = 0,
    schedule: Schedule | None = None,
    device: torch.device | str = "cpu",
) -> LinearHead:
    """A linear depth head for dense (N, h, w, D) and depth (N, H, W) in [NEAR, FAR].

    Every draw comes from `seed`; the global random state is neither read nor changed.
    """
    head = LinearHead(dense.shape[-1], BINS, torch.Generator().manual_seed(seed))
    truth = finer_labels(depth, (dense.shape[1], dense.shape[2]))
    schedule = schedule or Schedule(STEPS, BATCH, LEARNING_RATE, WEIGHT_DECAY, WARMUP, CLIP)
    without = variance_free_steps(schedule.steps)

    def loss_of(logits: Tensor, rows: Tensor, step: int) -> Tensor:
        target = truth[rows].to(logits.device)
        prediction = depth_of(upsampled(logits, (target.shape[1], target.shape[2])))
        return scale_invariant_loss(prediction, target, variance=step >= without)

    return fit(head, dense, loss_of, schedule, device)


def depth_maps(
    logits: Tensor, size: tuple[int, int], near: float = NEAR, far: float = FAR
) -> Tensor:
    """Depth (B, H, W) at `size` = (H, W) of logits (B, bins, h, w), by FINER times the grid."""
    fine = FINER * logits.shape[2], FINER * logits.shape[3]
    return upsampled(depth_of(upsampled(logits, fine), near, far)[:, None], size)[:, 0]


@torch.no_grad()
def predict_depth(
    head: LinearHead, dense: Tensor, size: tuple[int, int], device: torch.device | str = "cpu"
) -> Tensor:
    """Depth (N, H, W) in scene units at `size` = (H, W) for dense (N, h, w, D)."""
    return torch.cat(
        [depth_maps(head(part.to(device)), size).cpu() for part in dense.split(_CHUNK)]
    )


def rmse(prediction: Tensor, truth: Tensor) -> float:
    """Root mean squared error of (N, H, W), taken for each image and averaged over images."""
    error = (prediction.double() - truth.double()).square().flatten(1)
    return float(error.mean(1).sqrt().mean())


def known_depth(truth: Tensor, near: float, far: float) -> Tensor:
    """Which pixels are learnt and scored: near < truth < far."""
    return (truth > near) & (truth < far)


def depth_errors(
    prediction: Tensor,
    truth: Tensor,
    near: float,
    far: float,
    crop: tuple[int, int, int, int] | None = None,
) -> tuple[float, float, float] | None:
    """RMSE, abs-rel and a1 of one picture (H, W); None where no depth within the crop is known.

    abs-rel is the mean of |prediction - truth| / truth, a1 the share of pixels whose ratio, the
    larger over the smaller, is under 1.25. `crop` is (top, bottom, left, right), ends exclusive.
    """
    if crop is not None:
        top, bottom, left, right = crop
        prediction, truth = (m[top:bottom, left:right] for m in (prediction, truth))
    valid = known_depth(truth, near, far)
    if not bool(valid.any()):
        return None
    given, true = prediction[valid].double(), truth[valid].double()
    ratio = torch.maximum(given / true, true / given)
    relative = ((given - true).abs() / true).mean()
    return rmse(given[None], true[None]), float(relative), float((ratio < A1).double().mean())


def depth_rmse(
    train: Tensor,
    train_depth_maps: Tensor,
    test: Tensor,
    test_depth: Tensor,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> float:
    """RMSE in scene units on test (M, h, w, D), (M, H, W) of a head trained on train."""
    head = train_depth(train, train_depth_maps, seed=seed, device=device)
    size = test_depth.shape[1], test_depth.shape[2]
    return rmse(predict_depth(head, test, size, device), test_depth)
