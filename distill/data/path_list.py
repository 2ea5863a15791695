"""Very many paths in order, on disk: what a process holds of them does not grow with their number.

They are read with pread and not by a memory map, whose pages count as the process's memory once
they are touched: a hundred million paths in random order would touch them all.
"""

from __future__ import annotations

import heapq
import itertools
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

RUN = 200_000
"""Paths that are sorted at a time in memory: some 20 MB."""

_BATCH = 20_000
_READ = 1 << 14
_ENTRY = 8


class PathList:
    """The `paths`, by index, as they come or sorted by their bytes; none may hold a zero byte if
    they are to be sorted.

    They lie in files of `folder` that have no name, so that nothing else can meet them and they
    go when the last process that has them does, however it ends. Forked processes share them.

    Raises:
        OSError: if the files cannot be written.
    """

    def __init__(self, paths: Iterable[bytes], folder: Path, in_order: bool = False):
        self._names: BinaryIO = _nameless(folder)
        self._ends: BinaryIO = _nameless(folder)
        self._count = 0
        if in_order:
            paths = _sorted(paths, folder)
        end = 0
        for batch in _batches(paths, _BATCH):
            self._names.write(b"".join(batch))
            ends = end + np.cumsum([len(path) for path in batch], dtype=np.int64)
            self._ends.write(ends.tobytes())
            end = int(ends[-1])
            self._count += len(batch)
        self._names.flush()
        self._ends.flush()

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> bytes:
        """Path `index`, 0 <= index < len.

        Raises:
            IndexError: if there is none.
        """
        if not 0 <= index < self._count:
            raise IndexError(f"path {index} of {self._count}")
        if index:
            begin, end = np.frombuffer(self._read_ends(index - 1, 2), dtype=np.int64).tolist()
        else:
            begin, end = 0, int.from_bytes(self._read_ends(0, 1), "little")
        return os.pread(self._names.fileno(), end - begin, begin)

    def _read_ends(self, first: int, count: int) -> bytes:
        return os.pread(self._ends.fileno(), _ENTRY * count, _ENTRY * first)


def _nameless(folder: Path) -> BinaryIO:
    folder.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryFile(dir=folder)


def _batches(paths: Iterable[bytes], size: int) -> Iterator[list[bytes]]:
    paths = iter(paths)
    while batch := list(itertools.islice(paths, size)):
        yield batch


def _sorted(paths: Iterable[bytes], folder: Path) -> Iterator[bytes]:
    """Sorted runs in one file, merged; a single run stays in memory."""
    runs: list[tuple[int, int]] = []
    with _nameless(folder) as file:
        run: list[bytes] = []
        for run in _batches(paths, RUN):
            run.sort()
            if len(run) < RUN:
                break
            begin = file.tell()
            file.writelines(path + b"\0" for path in run)
            runs.append((begin, file.tell()))
            run = []
        file.flush()
        yield from heapq.merge(*(_run(file, *place) for place in runs), run)


def _run(file: BinaryIO, begin: int, end: int) -> Iterator[bytes]:
    """What lies in a part of a file that others read as well."""
    rest = b""
    while begin < end:
        block = os.pread(file.fileno(), min(_READ, end - begin), begin)
        begin += len(block)
        *lines, rest = (rest + block).split(b"\0")
        yield from lines
