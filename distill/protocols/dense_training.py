"""A linear head trained on random crops through a frozen backbone, by one or several processes.

Crops differ in every step, so the backbone sees each anew and nothing is stored. Of a step's batch
each process reads and encodes its share; features and truths are then gathered, and every process
trains the same head on the whole batch. So the numbers of several processes are those of one, but
for the rounding of an encoder that is given smaller batches. Which picture is the n-th, and its
crop, are drawn by keys of (seed, task, step, place in the batch): all models see the same crops.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

import torch
from torch import Tensor, distributed

from distill.data.source import BadSample
from distill.datasets.parts import Annotated
from distill.probes.extract import frozen
from distill.probes.linear_head import LinearHead, Schedule, train
from distill.probes.models import CannotProbe
from distill.protocols.augment import cut_map, cut_picture, draw_crop
from distill.protocols.task import Setting
from students.errors import UserError
from students.keys import key

EPOCHS_MOST = 32
"""How often a picture is seen at most. ADE20K (20 210 pictures) and NYU (24 231) are seen 32 and 25
times by the published steps, so theirs are unchanged; smaller data sets get fewer steps."""

READERS = 8
"""Threads that read ahead, at most."""


def steps_for(pictures: int, published: int, batch: int) -> int:
    """Training steps for so many pictures: the published ones, or EPOCHS_MOST epochs if fewer."""
    return max(1, min(published, EPOCHS_MOST * pictures // batch))


@dataclass(frozen=True)
class Crops:
    """How the pictures of a training split become batches.

    `task` is part of every draw's key. `scale` bounds the factor by which the short side differs
    from the crop. `padding` is the truth outside a picture. `check(truth)` says what is wrong with
    a picture's map, or None.
    """

    task: str
    split: Annotated
    scale: tuple[float, float]
    padding: float
    check: Callable[[Tensor], str | None]


def dense_of(setting: Setting, pixels: Tensor) -> Tensor:
    """Dense features (B, h, w, D) float32 of pixels (B, 3, H, W) in [0, 1], at the setting's size.

    The encoder is in eval mode and without gradients, whatever it was before and is after.

    Raises:
        CannotProbe: the model has no dense features.
    """
    with frozen(setting.model.encoder):
        dense = setting.model.encoder(pixels, setting.size).dense
    if dense is None:
        raise CannotProbe(f"{setting.model.name} has no dense features")
    return dense.detach().float()


def read_annotated(
    split: Annotated, index: int, check: Callable[[Tensor], str | None]
) -> tuple[Tensor, Tensor]:
    """Picture (3, H, W) uint8 and truth (H, W) of a split.

    Raises:
        UserError: the picture cannot be read, or its map is of another size or not as it should be.
    """
    try:
        picture = split.pictures.read(index)
    except BadSample as bad:
        raise UserError(f"{bad}: an evaluation needs every picture: mend or remove it") from None
    truth = split.truth(index)
    wrong = check(truth)
    if picture.shape[1:] != truth.shape:
        sizes = [" x ".join(map(str, shape)) for shape in (truth.shape, picture.shape[1:])]
        wrong = f"the map is {sizes[0]} pixels, the picture {sizes[1]}"
    if wrong is not None:
        raise UserError(f"{split.pictures.name(index)}: {wrong}")
    return picture, truth


def own_pictures(
    setting: Setting, split: Annotated, check: Callable[[Tensor], str | None]
) -> Iterator[tuple[Tensor, Tensor]]:
    """This process's pictures and truths of a split, each of it in exactly one process."""
    mine = range(setting.rank, len(split.pictures), setting.ranks)
    with _readers() as readers:
        ahead: list[Future[tuple[Tensor, Tensor]]] = []
        for index in mine:
            ahead.append(readers.submit(read_annotated, split, index, check))
            if len(ahead) > READERS:
                yield ahead.pop(0).result()
        for one in ahead:
            yield one.result()


def summed(setting: Setting, numbers: Tensor) -> Tensor:
    """The sum of a tensor over all processes, on the CPU."""
    if setting.ranks > 1:
        numbers = numbers.to(setting.device)
        distributed.all_reduce(numbers)
    return numbers.cpu()


def train_on_crops(
    setting: Setting,
    crops: Crops,
    outputs: int,
    dropout: float,
    schedule: Schedule,
    loss_of: Callable[[Tensor, Tensor, int], Tensor],
    progress: Callable[[int], None],
) -> LinearHead:
    """A linear head to `outputs` logits, in eval mode on the setting's device, one for all ranks.

    `loss_of(logits (B, K, h, w), truth (B, size, size), step)`; `progress` is told each step.

    Raises:
        CannotProbe: the model has no dense features, or they are not finite numbers.
        UserError: as `read_annotated`.
    """
    stream = _batches(setting, crops, schedule, progress)
    dense, truth = next(stream)
    if not bool(dense.isfinite().all()):
        raise CannotProbe(f"{setting.model.name}'s dense features are not finite numbers")
    generator = torch.Generator().manual_seed(setting.seed)
    head = LinearHead(dense.shape[-1], outputs, generator, dropout=dropout)
    train(head, chain([(dense, truth)], stream), loss_of, schedule, setting.device)
    if setting.ranks > 1:
        # Equal but for what a device adds up in no fixed order; scores are to be of one head.
        for tensor in head.state_dict().values():
            distributed.broadcast(tensor, 0)
    return head


def _batches(
    setting: Setting, crops: Crops, schedule: Schedule, progress: Callable[[int], None]
) -> Iterator[tuple[Tensor, Tensor]]:
    """For each step dense features (batch, h, w, D) and truths (batch, size, size)."""
    split, batch, rank, ranks = crops.split, schedule.batch, setting.rank, setting.ranks
    count = len(split.pictures)
    # As many for each rank; the last place is computed again where that is more than there are.
    places = [min(place, batch - 1) for place in range(rank, -(-batch // ranks) * ranks, ranks)]

    @lru_cache(2)
    def order(epoch: int) -> Tensor:
        generator = torch.Generator().manual_seed(key(crops.task, setting.seed, "epoch", epoch))
        return torch.randperm(count, generator=generator)

    def reading(step: int) -> list[Future[tuple[Tensor, Tensor]]]:
        drawn = [divmod(step * batch + place, count) for place in places]
        rows = [int(order(epoch)[at]) for epoch, at in drawn]
        return [readers.submit(read_annotated, split, row, crops.check) for row in rows]

    def crop(step: int, place: int, picture: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        height, width = truth.shape
        keys = (crops.task, setting.seed, "crop", step, place)
        drawn = draw_crop((height, width), setting.size, crops.scale, *keys)
        # Resized where the model is: on an accelerator that costs next to nothing.
        return (
            cut_picture(picture.to(setting.device), drawn),
            cut_map(truth, drawn, crops.padding).to(setting.device),
        )

    with _readers() as readers:
        ahead = reading(0)
        for step in range(schedule.steps):
            read = [one.result() for one in ahead]
            ahead = reading(step + 1) if step + 1 < schedule.steps else []
            cut = [crop(step, place, *one) for place, one in zip(places, read, strict=True)]
            dense = dense_of(setting, torch.stack([pixels for pixels, _ in cut]))
            truth = torch.stack([one for _, one in cut])
            yield _gathered(dense, setting, batch), _gathered(truth, setting, batch)
            progress(step + 1)


def _gathered(mine: Tensor, setting: Setting, batch: int) -> Tensor:
    """The whole batch in its order, of which rank r holds places r, r + ranks and so on."""
    if setting.ranks == 1:
        return mine
    parts = [torch.empty_like(mine) for _ in range(setting.ranks)]
    distributed.all_gather(parts, mine.contiguous())
    return torch.stack(parts, 1).flatten(0, 1)[:batch]


def _readers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(READERS, os.cpu_count() or 1), thread_name_prefix="read")
