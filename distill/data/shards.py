"""A source whose samples lie in shards: tar files that are opened as they are drawn from."""

from __future__ import annotations

import itertools
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from distill.data.decode import MAX_PIXELS, decode_image_bytes
from distill.data.shard_cache import OpenShard, Shard, ShardCache
from distill.data.source import BadSample
from students.errors import UserError

_T = TypeVar("_T")

_PLACE_BITS = 22
MOST_SHARDS = 1 << 18
"""Shards of a source; with the 2^22 samples that a shard may have, an index is below 2^40."""

_AT_ONCE = 8
"""Shards that a process fetches or counts at the same time."""

_OPEN = 48
"""Shards that a process keeps open: those of all lanes, and those that they were in before."""

_BYTES_PER_PIXEL = 8
_BYTES_BESIDE = 64 << 20
"""No image of the largest size takes more: 16-bit RGBA uncompressed, and metadata."""


def sample_index(shard: ArrayLike, place: ArrayLike) -> NDArray[np.int64]:
    """The index of the sample at `place` in shard number `shard`."""
    return np.asarray(shard, np.int64) << _PLACE_BITS | np.asarray(place, np.int64)


def shard_and_place(index: int) -> tuple[int, int]:
    """The inverse of sample_index."""
    return index >> _PLACE_BITS, index & ((1 << _PLACE_BITS) - 1)


class ShardedSource:
    """Images in tar files; a sample's index is made of its shard and its place there.

    `shards` are the tar files in order. `counts` (len(shards),) int64 are their samples, -1 where
    a shard was never opened on this machine. The order of draws is distill.data.lanes.Lanes.

    Args:
        shards: at least one.
        cache: where counts, and shards from elsewhere, are kept.
        max_pixels: of the largest image that is decoded.

    Raises:
        UserError: if the shards are more than MOST_SHARDS.
    """

    def __init__(self, shards: Sequence[Shard], cache: ShardCache, max_pixels: int = MAX_PIXELS):
        if len(shards) > MOST_SHARDS:
            raise UserError(
                f"a source of {len(shards)} shards, more than {MOST_SHARDS}: make the shards larger"
            )
        self.shards, self.cache, self.max_pixels = shards, cache, max_pixels
        self.counts = np.full(len(shards), -1, dtype=np.int64)
        self._prefix = _common_folder([shard.label for shard in shards])
        self._open: OrderedDict[int, OpenShard] = OrderedDict()
        self._ahead = _Ahead(self._make_ready)
        remembered = cache.remembered()
        if remembered:
            # Before the workers are forked, so that not each of them has to look.
            self.count([i for i, shard in enumerate(shards) if shard.key() in remembered])

    def count(self, shards: Iterable[int]) -> None:
        """Fills in `counts` of these shards, opening those that were never opened.

        Raises:
            UserError: if a shard cannot be had, or has more than 2^22 samples.
        """
        unknown = [shard for shard in dict.fromkeys(shards) if self.counts[shard] < 0]
        counts = _together(lambda shard: self.cache.count(self.shards[shard]), unknown)
        for shard, count in zip(unknown, counts, strict=True):
            if count > 1 << _PLACE_BITS:
                raise UserError(
                    f"the shard {self.shards[shard].label} has {count} images, more than "
                    f"{1 << _PLACE_BITS}: write them into several shards"
                )
        self.counts[unknown] = counts

    def prepare(self, shards: Iterable[int]) -> None:
        """Makes shards ready to be read, all at the same time where they have to be fetched.

        Raises:
            UserError: if a shard cannot be had.
        """
        _together(self._make_ready, [shard for shard in shards if shard not in self._open])

    def fetch_ahead(self, shards: Iterable[int]) -> None:
        """Makes shards ready in the background; what fails is met again when they are needed."""
        self._ahead.ask(shard for shard in shards if shard not in self._open)

    def read(self, index: int) -> Tensor:
        """See Source.read; damage to a shard is a bad sample too, named after the shard."""
        shard, place = shard_and_place(index)
        opened = self._opened(shard)
        offset, size, member = opened.index[place].tolist()
        if size < 0:
            raise BadSample(self._short(shard), member.decode(errors="replace"))
        name = f"{self._short(shard)}/{member.decode(errors='replace')}"
        if size > _BYTES_PER_PIXEL * self.max_pixels + _BYTES_BESIDE:
            raise BadSample(name, f"{size} bytes, more than {self.max_pixels} pixels can take")
        data = os.pread(opened.descriptor, size, offset)
        if len(data) < size:
            raise BadSample(name, "the shard has become shorter since it was indexed")
        try:
            return decode_image_bytes(data, self.max_pixels)
        except ValueError as error:
            raise BadSample(name, str(error)) from error

    def name(self, index: int) -> str:
        """`SHARD/MEMBER`: the shard below the folder that all have in common, the tar's member."""
        shard, place = shard_and_place(index)
        member = self._opened(shard).index[place]["name"].decode(errors="replace")
        return f"{self._short(shard)}/{member}"

    def _short(self, shard: int) -> str:
        return self.shards[shard].label.removeprefix(self._prefix)

    def _opened(self, shard: int) -> OpenShard:
        if shard not in self._open:
            self._open[shard] = self.cache.open(self.shards[shard])
            if len(self._open) > _OPEN:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(shard)
        return self._open[shard]

    def _make_ready(self, shard: int) -> None:
        self.cache.ready(self.shards[shard])


class _Ahead:
    """Calls `make_ready` for shards in threads that end with the process, each shard once."""

    def __init__(self, make_ready: Callable[[int], None]):
        self.make_ready = make_ready
        self._start_anew()

    def _start_anew(self) -> None:
        self.process = os.getpid()
        self.free = threading.Semaphore(_AT_ONCE)
        self.asked: OrderedDict[int, None] = OrderedDict()

    def ask(self, shards: Iterable[int]) -> None:
        if self.process != os.getpid():  # a forked worker has none of its parent's threads
            self._start_anew()
        for shard in shards:
            if shard in self.asked:
                continue
            self.asked[shard] = None
            if len(self.asked) > _OPEN:
                self.asked.popitem(last=False)
            # Not a pool of the standard library: it would hold up the end of the process.
            threading.Thread(target=self._make_ready, args=(shard,), daemon=True).start()

    def _make_ready(self, shard: int) -> None:
        with self.free:
            try:
                self.make_ready(shard)
            except UserError:
                self.asked.pop(shard, None)


def _together(function: Callable[[int], _T], shards: Sequence[int]) -> list[_T]:
    """`function` of each shard, several at the same time; the first error is raised."""
    if len(shards) < 2:
        return [function(shard) for shard in shards]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(function, shards))


def _common_folder(labels: Sequence[str]) -> str:
    """What all labels begin with, up to a `/`."""
    first, last = min(labels), max(labels)
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    alike = "".join(letter for letter, _ in same)
    return alike[: alike.rfind("/") + 1]
