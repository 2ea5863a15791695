"""Linear depth: the distance of every pixel by a linear head on a frozen backbone.

Protocol (linear NYU of DINOv2, arXiv 2304.07193 section 7.4, in the layout and with the crop of
BTS, arXiv 1907.10326; loss and metrics of Eigen et al., arXiv 1406.2283): dense features of the
last layer after its norm, BatchNorm, 1x1 convolution to 256 bins over near to far; the depth is the
mean of the bins' centres weighted by relu(z) + 0.1. Loss sqrt(var(g) + 0.15 mean(g)^2) of
g = log(prediction + 1e-3) - log(truth + 1e-3) over a batch's known pixels, the variance left out
for the first 100 steps; AdamW at 3e-4, weight decay 1e-3, gradient norm at most 35, 38.4k steps of
16, a third of them warm-up as the published configurations have it, then a cosine. A data set that
38.4k steps would show more than EPOCHS_MOST times gets as many steps as those epochs have.

One thing differs: DINOv2 trains on 416 x 544 of the 480 x 640 pixels and tests on whole pictures.
Here the short side is resized to the setting's size, training crops are squares of that size,
mirrored half the time, and tests are averages over windows of it: every model takes squares, and
distance is read off the apparent size of things, which must be the same in training and tests.
Neither rotation nor colour changes.

Scored: mean of the prediction for the picture and for its mirror image, at the picture's own size,
clamped to near and far; within the data set's crop, where near < truth < far; each metric is taken
for each picture and averaged over pictures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from distill.datasets.parts import Depth
from distill.probes.depth import (
    depth_errors,
    depth_maps,
    known_depth,
    scale_invariant_loss,
    variance_free_steps,
)
from distill.probes.linear_head import LinearHead, Schedule, upsampled
from distill.probes.models import NothingToScore
from distill.probes.tasks import Outcome
from distill.protocols.dense_training import (
    EPOCHS_MOST,
    Crops,
    dense_of,
    own_pictures,
    steps_for,
    summed,
    train_on_crops,
)
from distill.protocols.task import SHOWN, FieldTask, Setting
from distill.protocols.windows import over_windows, shown

STEPS, WARMUP = 38_400, 12_800
CLIP = 35.0
METRICS = ("rmse", "abs_rel", "a1")


@dataclass(frozen=True)
class DepthProtocol:
    """The protocol's figures. `steps` None: STEPS, or what EPOCHS_MOST epochs have if fewer."""

    steps: int | None = None
    batch: int = 16
    learning_rate: float = 3.0e-4
    weight_decay: float = 1.0e-3
    bins: int = 256

    def schedule(self, pictures: int) -> Schedule:
        """Of the training on so many pictures."""
        steps = self.steps or steps_for(pictures, STEPS, self.batch)
        warmup = round(WARMUP * steps / STEPS)
        return Schedule(steps, self.batch, self.learning_rate, self.weight_decay, warmup, CLIP)

    def task(self) -> FieldTask:
        """This protocol as a task."""
        steps = f"{self.steps}" if self.steps else f"{STEPS} (at most {EPOCHS_MOST} epochs)"
        return FieldTask(
            "depth",
            "depth",
            "dense",
            METRICS,
            f"dense, BatchNorm, 1x1 conv to {self.bins} bins, AdamW {self.learning_rate:g}, "
            f"{steps} steps of {self.batch}, crops, flip; short side resized to the size, windows "
            "by 2/3 of it, mean with the mirror image, scored at the pictures' own size within the "
            "set's crop, per-picture means: rmse in the set's unit, abs_rel and a1 (ratio under "
            "1.25) as fractions",
            lambda setting: run(setting, self),
            frozenset({"rmse", "abs_rel"}),
        )


def train_head(
    setting: Setting,
    protocol: DepthProtocol | None = None,
    progress: Callable[[int], None] = lambda step: None,
) -> LinearHead:
    """The head of the setting's model, (B, h, w, D) to logits (B, bins, h, w), in eval mode.

    Raises:
        CannotProbe: the model has no dense features, or they are not finite numbers.
        UserError: a picture cannot be read, or its map does not fit it.
    """
    protocol, part = protocol or DepthProtocol(), _part(setting)
    schedule = protocol.schedule(len(part.train.pictures))
    without = variance_free_steps(schedule.steps)

    def loss_of(logits: Tensor, truth: Tensor, step: int) -> Tensor:
        prediction = depth_maps(logits, (truth.shape[1], truth.shape[2]), part.near, part.far)
        return known_loss(prediction, truth, part.near, part.far, variance=step >= without)

    crops = Crops("depth", part.train, (1.0, 1.0), 0.0, _check)
    return train_on_crops(setting, crops, protocol.bins, 0.0, schedule, loss_of, progress)


def known_loss(
    prediction: Tensor, truth: Tensor, near: float, far: float, variance: bool = True
) -> Tensor:
    """The scale-invariant loss of the known pixels of (B, H, W); 0 if there are fewer than two."""
    valid = known_depth(truth, near, far)
    if int(valid.sum()) < 2:
        return prediction.sum() * 0
    return scale_invariant_loss(prediction[valid], truth[valid], variance)


@torch.no_grad()
def predict(setting: Setting, head: LinearHead, picture: Tensor) -> Tensor:
    """Depth (H, W) float32 on the CPU of a picture (3, H, W) uint8, at its own size, in the set's
    unit and between its near and far."""
    part, size = _part(setting), setting.size

    def depth_of_windows(windows: Tensor) -> Tensor:
        logits = head(dense_of(setting, windows))
        return depth_maps(logits, (size, size), part.near, part.far)[:, None]

    pixels = shown(picture.to(setting.device), size)
    straight = over_windows(pixels, size, depth_of_windows)
    mirrored = over_windows(pixels.flip(-1), size, depth_of_windows).flip(-1)
    depth = upsampled((straight + mirrored)[None] / 2, (picture.shape[1], picture.shape[2]))
    return depth[0, 0].clamp(part.near, part.far).cpu()


def run(setting: Setting, protocol: DepthProtocol | None = None) -> Outcome:
    """Train on the train split, score the test split; `samples` are pictures with a known depth.

    Raises:
        CannotProbe, UserError: as `train_head`.
        NothingToScore: no depth of the test split is known.
    """
    protocol, part = protocol or DepthProtocol(), _part(setting)
    steps = protocol.schedule(len(part.train.pictures)).steps
    total = steps + len(part.test.pictures)
    head = train_head(setting, protocol, lambda step: setting.progress(step, total))
    sums = torch.zeros(len(METRICS) + 1, dtype=torch.float64)
    tests = own_pictures(setting, part.test, _check)
    for number, (picture, truth) in enumerate(tests, 1):
        predicted = predict(setting, head, picture)
        if (place := setting.rank + (number - 1) * setting.ranks) < SHOWN:
            setting.show(place, predicted)
        found = depth_errors(predicted, truth, part.near, part.far, part.crop)
        if found is not None:
            sums += torch.tensor([*found, 1.0], dtype=torch.float64)
        setting.progress(min(steps + number * setting.ranks, total), total)
    *values, samples = summed(setting, sums).tolist()
    if not samples:
        raise NothingToScore("no pixel of the test split has a depth between near and far")
    return Outcome({m: v / samples for m, v in zip(METRICS, values, strict=True)}, int(samples))


def _part(setting: Setting) -> Depth:
    part = setting.data.parts["depth"]
    assert isinstance(part, Depth)
    return part


def _check(truth: Tensor) -> str | None:
    return None if bool(truth.isfinite().all()) else "a depth is not a finite number: 0 is unknown"


TASK = DepthProtocol().task()
