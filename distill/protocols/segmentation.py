"""Linear segmentation: the class of every pixel by a linear head on a frozen backbone.

Protocol (linear ADE20K of DINOv2, arXiv 2304.07193 section 7.4, and of DINOv3, arXiv 2508.10104):
dense features of the last layer after its norm, Dropout2d 0.1, BatchNorm, 1x1 convolution (weights
drawn at 0.01); cross-entropy at the crop's full resolution; AdamW at 1e-3, weight decay 1e-3, 40k
steps of 16, 1500 of them warm-up, then a cosine. Crops of the setting's size (published: 512) at
scales 0.5 to 2, mirrored half the time. A data set that 40k steps would show more than EPOCHS_MOST
times gets as many steps as those epochs have, with the same share of warm-up.

Scored: short side resized to the size, windows of the size by strides of two thirds of it (341 of
512), logits averaged where windows overlap, resized to the picture's own size; mean over classes
of intersection over union, of one confusion matrix of all pixels that are not IGNORE. A class that
is neither there nor predicted is left out, one that is predicted and never there counts 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.datasets.parts import IGNORE, Segmentation
from distill.probes.linear_head import LinearHead, Schedule, upsampled
from distill.probes.models import NothingToScore
from distill.probes.segmentation import confusion, mean_iou
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

STEPS, WARMUP = 40_000, 1500
SCALE = (0.5, 2.0)

_CLASSES_AT_ONCE = 16


@dataclass(frozen=True)
class SegmentationProtocol:
    """The protocol's figures. `steps` None: STEPS, or what EPOCHS_MOST epochs have if fewer."""

    steps: int | None = None
    batch: int = 16
    learning_rate: float = 1.0e-3
    weight_decay: float = 1.0e-3
    dropout: float = 0.1

    def schedule(self, pictures: int) -> Schedule:
        """Of the training on so many pictures."""
        steps = self.steps or steps_for(pictures, STEPS, self.batch)
        warmup = round(WARMUP * steps / STEPS)
        return Schedule(steps, self.batch, self.learning_rate, self.weight_decay, warmup)

    def task(self) -> FieldTask:
        """This protocol as a task."""
        steps = f"{self.steps}" if self.steps else f"{STEPS} (at most {EPOCHS_MOST} epochs)"
        return FieldTask(
            "segmentation",
            "segmentation",
            "dense",
            ("miou",),
            f"dense, dropout {self.dropout:g}, BatchNorm, 1x1 conv, AdamW {self.learning_rate:g}, "
            f"{steps} steps of {self.batch}, crops at scale {SCALE[0]:g} to {SCALE[1]:g}, flip; "
            "short side resized to the size, windows by 2/3 of it, logits averaged, scored at the "
            "pictures' own size, mean over classes of one confusion matrix",
            lambda setting: run(setting, self),
        )


def train_head(
    setting: Setting,
    protocol: SegmentationProtocol | None = None,
    progress: Callable[[int], None] = lambda step: None,
) -> LinearHead:
    """The head of the setting's model, (B, h, w, D) to logits (B, classes, h, w), in eval mode.

    Raises:
        CannotProbe: the model has no dense features, or they are not finite numbers.
        UserError: a picture cannot be read, or its map does not fit it.
    """
    protocol, part = protocol or SegmentationProtocol(), _part(setting)
    crops = Crops("segmentation", part.train, SCALE, IGNORE, _check(len(part.classes)))
    schedule = protocol.schedule(len(part.train.pictures))
    return train_on_crops(
        setting, crops, len(part.classes), protocol.dropout, schedule, pixel_loss, progress
    )


def pixel_loss(logits: Tensor, truth: Tensor, step: int = 0) -> Tensor:
    """Cross-entropy of logits (B, K, h, w), upsampled, and truth (B, H, W): mean over its pixels.

    Pixels of IGNORE are left out; where there are no others, the loss is 0.
    """
    fine = upsampled(logits, (truth.shape[1], truth.shape[2]))
    loss = F.cross_entropy(fine, truth, ignore_index=IGNORE, reduction="sum")
    return loss / (truth != IGNORE).sum().clamp_min(1)


@torch.no_grad()
def predict(setting: Setting, head: LinearHead, picture: Tensor) -> Tensor:
    """Classes (H, W) int64 on the CPU of a picture (3, H, W) uint8, at its own size."""
    size = setting.size

    def logits_of(windows: Tensor) -> Tensor:
        return upsampled(head(dense_of(setting, windows)), (size, size))

    logits = over_windows(shown(picture.to(setting.device), size), size, logits_of)
    return _winners(logits, (picture.shape[1], picture.shape[2])).cpu()


def run(setting: Setting, protocol: SegmentationProtocol | None = None) -> Outcome:
    """Train on the train split, score the test split; `samples` are pictures with a scored pixel.

    Raises:
        CannotProbe, UserError: as `train_head`.
        NothingToScore: every pixel of the test split is IGNORE.
    """
    protocol, part = protocol or SegmentationProtocol(), _part(setting)
    classes, steps = len(part.classes), protocol.schedule(len(part.train.pictures)).steps
    total = steps + len(part.test.pictures)
    head = train_head(setting, protocol, lambda step: setting.progress(step, total))
    counts, scored = torch.zeros(classes, classes, dtype=torch.int64), 0
    tests = own_pictures(setting, part.test, _check(classes))
    for number, (picture, truth) in enumerate(tests, 1):
        predicted = predict(setting, head, picture)
        counts += confusion(predicted, truth, classes)
        if (place := setting.rank + (number - 1) * setting.ranks) < SHOWN:
            setting.show(place, predicted)
        scored += int((truth != IGNORE).any())
        setting.progress(min(steps + number * setting.ranks, total), total)
    counts, samples = summed(setting, counts), int(summed(setting, torch.tensor(scored)))
    if not samples:
        raise NothingToScore("no pixel of the test split has a class")
    return Outcome({"miou": mean_iou(counts)}, samples)


def _part(setting: Setting) -> Segmentation:
    part = setting.data.parts["segmentation"]
    assert isinstance(part, Segmentation)
    return part


def _check(classes: int) -> Callable[[Tensor], str | None]:
    def wrong(truth: Tensor) -> str | None:
        bad = (truth != IGNORE) & ((truth < 0) | (truth >= classes))
        if not bool(bad.any()):
            return None
        return f"a pixel is of class {int(truth[bad][0])}, and there are {classes} from 0"

    return wrong


def _winners(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """The class (H, W) of the largest of logits (K, h, w) resized to `size`; the first of equals.

    Some classes at a time: all of a large picture's would not fit.
    """
    best = winner = torch.empty(0)
    for first in range(0, len(logits), _CLASSES_AT_ONCE):
        some = upsampled(logits[None, first : first + _CLASSES_AT_ONCE], size)[0]
        value, place = some.max(0)
        if not first:
            best, winner = value, place
            continue
        better = value > best
        best = torch.where(better, value, best)
        winner = torch.where(better, place + first, winner)
    return winner


TASK = SegmentationProtocol().task()
