"""The loader: batches of uint8 pixels, the same whatever the workers and the ranks.

A step's batch is a function of the step alone, so a run that goes on from step 700 asks for step
700 and nothing has to be replayed.
"""

from __future__ import annotations

import atexit
import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from distill.data.lanes import Lanes
from distill.data.order import Order, Permutation, Schedule
from distill.data.shards import ShardedSource
from distill.data.source import BadSample, IndexedSource, Source
from distill.data.views import DRAWS, check_views, cut, draw_view
from students.errors import UserError, did_you_mean

_LOOK_AFTER = 1.0
"""Seconds between a worker's looks whether the main process is still there."""


@dataclass
class Batch:
    """One rank's part of one step.

    `pixels` (b, 3, S, S) uint8 RGB; `draws` (b, 6) float32, columns distill.data.views.DRAWS;
    `positions` (b,) int64 in the stream; `samples` (b, 3) int64, of each sample shown the number of
    its source, its index, and the epoch of its view; their `names`, `SOURCE/name`; `bad`, (name,
    reason) of each sample that could not be decoded and was replaced.
    """

    pixels: Tensor
    draws: Tensor
    positions: Tensor
    samples: Tensor
    names: list[str]
    bad: list[tuple[str, str]]

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
    homogeneous: Collection[str] = (),
    per_sample: int | None = None,
) -> Iterator[Batch]:
    """Batches of steps first_step to first_step + steps - 1, in order.

    The batch of step t is positions t * batch_size to (t + 1) * batch_size - 1 of the stream (see
    distill.data.order.Schedule), of which a rank takes its contiguous part. Workers go on at
    Ctrl-C and SIGTERM, so that a step can be finished, and end with this process however it ends.

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
        homogeneous: names of sources whose share is one of steps: batches wholly their own.
        per_sample: how many views a sample has, which come round again; None: one an epoch.

    Raises:
        UserError: at once, if there is no source, a share rounds to nothing, the policy or scale
            is wrong, or the ranks cannot share a batch evenly; later, if a sample and all of its
            replacements are bad, or a shard cannot be had.
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
    for name in homogeneous:
        if name not in sources:
            raise UserError(
                f"no source {name!r} for homogeneous batches{did_you_mean(name, sources)}"
            )
    made = _Steps(
        sources, policy, scale, view_seed, canvas, batch_size, rank, world, homogeneous, per_sample
    )
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
        homogeneous: Collection[str],
        per_sample: int | None,
    ):
        self.names = list(sources)
        self.sources = [source for source, _ in sources.values()]
        self.orders = [
            _order(source, view_seed, number) for number, source in enumerate(self.sources)
        ]
        shares = [share for _, share in sources.values()]
        own = [name in homogeneous for name in self.names]
        self.schedule = Schedule(shares, own, batch_size, view_seed)
        self.policy, self.scale, self.view_seed, self.canvas = policy, scale, view_seed, canvas
        self.batch_size, self.rank, self.world = batch_size, rank, world
        self.per_sample = per_sample

    def __getitem__(self, step: int) -> Batch | UserError:
        """The batch; an error is handed over, since one raised in a worker loses its one line."""
        rows = self.batch_size // self.world
        mine = self.rank * rows + np.arange(rows)
        batch = Batch(
            # Channels last, as views are cut; what comes after makes floats of them anyway.
            pixels=torch.empty((rows, self.canvas, self.canvas, 3), dtype=torch.uint8).permute(
                0, 3, 1, 2
            ),
            samples=torch.empty((rows, 3), dtype=torch.int64),
            draws=torch.empty((rows, len(DRAWS)), dtype=torch.float32),
            positions=torch.from_numpy(step * self.batch_size + mine),
            names=[],
            bad=[],
        )
        try:
            for row, (source, epoch, index) in enumerate(self._samples(step, mine)):
                self._fill(batch, row, source, epoch, index)
        except UserError as error:
            return error
        return batch

    def _samples(self, step: int, rows: NDArray[np.int64]) -> Iterator[tuple[int, int, int]]:
        """(source, epoch, index) of each row of a step."""
        source, draw = self.schedule.at(step, rows)
        epoch, index = np.empty_like(draw), np.empty_like(draw)
        for number in np.unique(source):
            its = source == number
            epoch[its], index[its] = self.orders[number].at(draw[its])
        return zip(source.tolist(), epoch.tolist(), index.tolist(), strict=True)

    def _fill(self, batch: Batch, row: int, source: int, epoch: int, index: int) -> None:
        origin, prefix = self.sources[source], self.names[source]
        reason, tried = "", 0
        replacements = self.orders[source].replacements(epoch, index)
        for candidate in itertools.chain([index], replacements):
            tried += 1
            try:
                image = origin.read(candidate)
            except BadSample as bad:
                batch.bad.append((f"{prefix}/{bad.name}", bad.reason))
                reason = reason or str(bad)
                continue
            size = (image.shape[1], image.shape[2])
            of_view = epoch if self.per_sample is None else epoch % self.per_sample
            view = draw_view(self.policy, self.scale, self.view_seed, of_view, candidate, size)
            # Through numpy: a small tensor costs ten times as much to make and to copy.
            batch.samples.numpy()[row] = source, candidate, of_view
            batch.pixels[row] = cut(image, view, self.canvas)
            batch.draws.numpy()[row] = view.draws
            batch.names.append(f"{prefix}/{origin.name(candidate)}")
            return
        raise UserError(
            f"source {prefix!r} has too many images that cannot be decoded: the first of "
            f"{tried} in a row is {reason}"
        )


def _order(source: Source, seed: int, number: int) -> Order:
    if isinstance(source, ShardedSource):
        return Lanes(source, seed, number)
    return Permutation(len(cast(IndexedSource, source)), seed, number)


def _iterate(made: _Steps, order: range, workers: int) -> Iterator[Batch]:
    # Forked workers share the list of files and start at once; only Linux forks safely.
    context = get_context("fork" if sys.platform == "linux" else None)
    # A byte in the pipe tells every worker to end; none reads it, so all of them see it.
    told, tell = context.Pipe(duplex=False)
    end_workers = partial(tell.send_bytes, b".")
    loader: DataLoader = DataLoader(
        made,
        batch_size=None,
        sampler=order,
        num_workers=workers,
        prefetch_factor=2 if workers else None,
        pin_memory=torch.cuda.is_available(),
        multiprocessing_context=context if workers else None,
        worker_init_fn=partial(_outlive_signals, os.getpid(), told) if workers else None,
    )
    with _signals_held():
        iterator = iter(loader)
    # Where this generator is never closed, before the loader waits for its workers.
    atexit.register(end_workers)
    finalizing = sys.is_finalizing
    try:
        # torch gives each worker one thread.
        for batch in iterator:
            if isinstance(batch, UserError):
                raise batch
            yield batch
    finally:
        if not finalizing():  # they have been told, and modules are being taken apart
            end_workers()
            atexit.unregister(end_workers)


_HELD = {signal.SIGINT, signal.SIGTERM}


@contextmanager
def _signals_held() -> Iterator[None]:
    """What is forked here starts with these signals held back, until it has made itself deaf."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _outlive_signals(parent: int, told: Connection, _worker: int) -> None:
    """Makes a worker deaf to what stops the main process, and ends it when that is gone.

    The loader itself would end a worker that is slow to stop by SIGTERM.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD)
    threading.Thread(target=_end_with, args=(parent, told), daemon=True).start()


def _end_with(parent: int, told: Connection) -> None:
    while os.getppid() == parent and not told.poll(_LOOK_AFTER):
        pass
    time.sleep(_LOOK_AFTER)  # by now a worker that is idle has ended by itself
    os._exit(0)
