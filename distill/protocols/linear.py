"""Linear classification of frozen features, by DINOv2's linear evaluation without augmentation.

DINOv2 (arXiv 2304.07193, and its published evaluation code): a linear layer per learning rate, all
trained on the same batches by SGD of momentum 0.9 without weight decay, rates scaled by
batch / 256 and brought to zero by a cosine, weights drawn at standard deviation 0.01, 10 epochs;
the best rate on held-out images is the one that is reported. Unlike there:

- features are those on disk, of the centre crop (`views.centre_crop`): no random crops and flips;
- the summary, and the average of the dense tokens, are judged by themselves, not side by side;
- the grid is the ten highest of its thirteen rates;
- a small set is seen more often than 10 times, for FEWEST_STEPS steps;
- the rate is chosen on a tenth of each class of the training split, which nothing is trained on, so
  that the test split chooses nothing.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from distill.datasets.parts import Classification
from distill.probes.models import CannotProbe, NothingToScore
from distill.probes.tasks import Outcome
from distill.protocols.linear_grid import Classifiers, Training, predictions, train
from distill.protocols.spaces import kept
from distill.protocols.task import FieldTask, Rows, Setting
from distill.protocols.views import centre_crop
from students.keys import key

RATES = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1)
"""For a batch of 256."""
BATCH = 1024
"""At most a tenth of the images that are trained on."""
EPOCHS = 10
FEWEST_STEPS = 1000
HELD_OUT = 0.1

_READ = 1024
"""Rows of dense tokens in memory at a time."""


def run(setting: Setting) -> Outcome:
    """`summary_top1` and `average_top1` (of the mean dense token) in percent; what the model does
    not give is left out.

    One vector an image is held in memory, of one kind at a time.

    Raises:
        CannotProbe: if the model gives no features, or no rate ends in finite weights.
        NothingToScore: if no class has two training images, of which one could be held out.
    """
    part = setting.data.parts["classification"]
    assert isinstance(part, Classification)
    truth, asked = part.train.labels, part.test.labels
    learnt, held = held_out(truth, setting.seed)
    if not len(held):
        raise NothingToScore("no class has two training images, of which one could be held out")
    view = centre_crop(setting.size)
    stored = [setting.features(split.pictures, view) for split in (part.train, part.test)]
    values: dict[str, float] = {}
    for metric, kind in (("summary_top1", "summary"), ("average_top1", "dense")):
        if getattr(stored[0], kind) is None:
            continue
        seen, shown = (averages(kept(setting, one, kind)) for one in stored)
        schedule = training(len(learnt))
        found = train(
            seen,
            truth,
            learnt,
            len(part.classes),
            schedule,
            torch.Generator().manual_seed(key("linear", kind, setting.seed)),
            setting.device,
            setting.progress,
        )
        correct = partial(_correct, found, device=setting.device)
        best = int(correct(seen[held], truth[held]).argmax())
        if not bool(found.weight[:, best].isfinite().all()):
            raise CannotProbe(f"{setting.model.name}: no learning rate ends in finite weights")
        values[metric] = 100 * float(correct(shown, asked)[best])
    if not values:
        raise CannotProbe(f"{setting.model.name} has neither summary nor dense features")
    return Outcome(values, len(asked))


def held_out(labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Rows of labels (N,) to train on and to choose by, both in order: of every class of at least
    two images a tenth is held out, at least one, drawn by `seed`."""
    generator = torch.Generator().manual_seed(key("held out", seed))
    order = torch.randperm(len(labels), generator=generator)
    held = []
    for label in labels.unique():
        rows = order[labels[order] == label]
        if len(rows) > 1:
            held.append(rows[: max(1, round(HELD_OUT * len(rows)))])
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    if held:
        chosen[torch.cat(held)] = True
    return (~chosen).nonzero()[:, 0], chosen.nonzero()[:, 0]


def training(count: int) -> Training:
    """The schedule for `count` images, with rates for its batch."""
    batch = max(1, min(BATCH, count // 10))
    steps = max(FEWEST_STEPS, math.ceil(EPOCHS * count / batch))
    return Training(tuple(rate * batch / 256 for rate in RATES), steps, batch)


def averages(rows: Rows) -> Tensor:
    """(N, D) in memory: of rows (N, ..., D), the mean over what is between."""
    parts = (rows[start : start + _READ] for start in range(0, len(rows), _READ))
    return torch.cat([part.flatten(1, -2).mean(1) if part.ndim > 2 else part for part in parts])


def _correct(
    found: Classifiers, features: Tensor, labels: Tensor, device: torch.device | str
) -> Tensor:
    """(L,) share of rows (N, D) whose class each rate knows."""
    return (predictions(found, features, device) == labels).float().mean(1)


TASK = FieldTask(
    name="linear",
    part="classification",
    kind="summary",
    metrics=("summary_top1", "average_top1"),
    protocol="linear layer on stored features of short side 256/224 and centre crop, no "
    f"augmentation, SGD momentum 0.9, batch {BATCH} or a tenth, {EPOCHS} epochs or "
    f"{FEWEST_STEPS} steps, best of {len(RATES)} learning rates on a held-out tenth, top-1",
    run=run,
)
