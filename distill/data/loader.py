"""The loader: batches of uint8 pixels, the same whatever the workers and the ranks.

A step's batch is a function of the step alone, so a run that goes on from step 700 asks for step
700 and nothing has to be replayed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from distill.data.order import Mixture, mix, shuffled
from distill.data.source import BadSample, Source
from distill.data.views import DRAWS, check_views, cut, draw_view
from students.errors import UserError

ATTEMPTS = 10
"""Replacements that are tried for a bad sample."""


@dataclass
class Batch:
    """One rank's part of one step.

    `pixels` (b, 3, S, S) uint8 RGB; `draws` (b, 6) float32, columns distill.data.views.DRAWS;
    `positions` (b,) int64 in the stream; `names` of the samples shown, `SOURCE/name`; `bad`, the
    names of samples that could not be decoded and were replaced.
    """

    pixels: Tensor
    draws: Tensor
    positions: Tensor
    names: list[str]
    bad: list[str]

    def pin_memory(self) -> Batch:
        """The same with pixels in pinned memory; draws are read on the host and stay."""
        self.pixels = self.pixels.pin_memory()
        return self


def batches(
    sources: Mapping[str, tuple[Source, float]],
    *,
    policy: str,
    scale: Sequence[float],
    view_seed: int,
    canvas: int,
    batch_size: int,
    first_step: int,
    steps: int,
    rank: int = 0,
    world: int = 1,
    workers: int = 1,
) -> Iterator[Batch]:
    """Batches of steps first_step to first_step + steps - 1, in order.

    The batch of step t is positions t * batch_size to (t + 1) * batch_size - 1 of the stream (see
    distill.data.order.Mixture), of which a rank takes its contiguous part.

    Args:
        sources: (source, share) by name.
        policy: a name of distill.data.views.POLICIES.
        scale: (lo, hi), the crop's share of the image's area.
        view_seed: of the order and of the views, at least 0.
        canvas: side of the cut views in pixels.
        batch_size: over all ranks.
        first_step: the step to begin with, from 0.
        steps: how many batches.
        rank: of this process, 0 <= rank < world.
        world: number of ranks.
        workers: loading processes of this rank; 0 loads in this one.

    Raises:
        UserError: at once, if there is no source, a share rounds to nothing, the policy or scale
            is wrong, or the ranks cannot share a batch evenly; later, if a sample and all of its
            replacements are bad.
    """
    if not sources:
        raise UserError("no source of training images: name at least one under data.train")
    check_views(policy, scale)
    if batch_size % world:
        below = batch_size // world * world
        raise UserError(
            f"batch_size {batch_size} cannot be shared evenly by {world} processes: take "
            + (f"{below} or {below + world}" if below else f"{world}")
        )
    made = _Steps(sources, policy, scale, view_seed, canvas, batch_size, rank, world)
    return _iterate(made, range(first_step, first_step + steps), workers)


class _Steps(Dataset):
    """The step's batch at the step's number: a whole batch is one item, so nothing is collated."""

    def __init__(
        self,
        sources: Mapping[str, tuple[Source, float]],
        policy: str,
        scale: Sequence[float],
        view_seed: int,
        canvas: int,
        batch_size: int,
        rank: int,
        world: int,
    ):
        self.names = list(sources)
        self.sources = [source for source, _ in sources.values()]
        lengths = [len(source) for source in self.sources]
        self.mixture = Mixture(lengths, [share for _, share in sources.values()], view_seed)
        self.policy, self.scale, self.view_seed, self.canvas = policy, scale, view_seed, canvas
        self.batch_size, self.rank, self.world = batch_size, rank, world

    def __getitem__(self, step: int) -> Batch | UserError:
        """The batch; an error is handed over, since one raised in a worker loses its one line."""
        rows = self.batch_size // self.world
        first = step * self.batch_size + self.rank * rows
        positions = np.arange(first, first + rows)
        batch = Batch(
            pixels=torch.empty((rows, 3, self.canvas, self.canvas), dtype=torch.uint8),
            draws=torch.empty((rows, len(DRAWS)), dtype=torch.float32),
            positions=torch.from_numpy(positions),
            names=[],
            bad=[],
        )
        try:
            for row, where in enumerate(zip(*self.mixture.at(positions), strict=True)):
                source, epoch, index = map(int, where)
                self._fill(batch, row, source, epoch, index)
        except UserError as error:
            return error
        return batch

    def _fill(self, batch: Batch, row: int, source: int, epoch: int, index: int) -> None:
        origin, prefix = self.sources[source], self.names[source]
        reason = ""
        for candidate in self._candidates(len(origin), epoch, index):
            try:
                image = origin.read(candidate)
            except BadSample as bad:
                batch.bad.append(f"{prefix}/{bad.name}")
                reason = reason or str(bad)
                continue
            size = (image.shape[1], image.shape[2])
            view = draw_view(self.policy, self.scale, self.view_seed, epoch, candidate, size)
            batch.pixels[row] = cut(image, view, self.canvas)
            batch.draws[row] = torch.from_numpy(view.draws)
            batch.names.append(f"{prefix}/{origin.name(candidate)}")
            return
        raise UserError(
            f"source {prefix!r} has too many images that cannot be decoded: the first of "
            f"{min(ATTEMPTS + 1, len(origin))} in a row is {reason}"
        )

    def _candidates(self, length: int, epoch: int, index: int) -> Iterator[int]:
        """The sample, then its replacements: others of its source, in an order of its own."""
        yield index
        for attempt in range(min(ATTEMPTS, length - 1)):
            other = int(shuffled(attempt, length - 1, mix(self.view_seed, 2, epoch, index))[0])
            yield other + (other >= index)


def _iterate(made: _Steps, order: range, workers: int) -> Iterator[Batch]:
    loader: DataLoader = DataLoader(
        made,
        batch_size=None,
        sampler=order,
        num_workers=workers,
        prefetch_factor=2 if workers else None,
        pin_memory=torch.cuda.is_available(),
        # Forked workers share the list of files and start at once; only Linux forks safely.
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
    )
    # The loader's own iterator stops its workers when it is let go of, which an abandoned
    # generator does on being closed. torch gives each worker one thread.
    for batch in loader:
        if isinstance(batch, UserError):
            raise batch
        yield batch
