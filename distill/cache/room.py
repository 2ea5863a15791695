"""The room that a cache may take: its limit over all stores and processes, and a full disk."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

AT_A_TIME = 64 << 20
"""Bytes that a shard is given at a time, so that files are counted seldom."""

SPARE = 16 << 10
"""Bytes left for the small files of a store: about.json, seals, lists of bad rows."""


class Room:
    """How much a cache's folder may still grow.

    A shard's file is made longer before rows are written to it, under a lock that is held no longer
    than that takes, so that files never add up to more than the limit whoever writes. When there is
    no more room, or the disk refuses, the cache stops growing, which is said once.

    Args:
        folder: of the cache.
        limit_bytes: None for no limit.
        say: takes a line for the user.
    """

    def __init__(self, folder: Path, limit_bytes: int | None, say: Callable[[str], None]):
        self.folder, self.limit_bytes, self._say = folder, limit_bytes, say
        self.refused = False
        self._said = False

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keeps other processes from making files of the cache longer."""
        self.folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def rows(self, row_bytes: int, beside: int = 0) -> int:
        """How many rows of so many bytes there is room for, at most what is given at a time; to be
        asked and used while it is `held`. `beside`: bytes of other files that have to be written
        first."""
        rows = max(1, AT_A_TIME // row_bytes)
        if self.limit_bytes is None:
            return rows
        free = self.limit_bytes - used_bytes(self.folder) - SPARE - beside
        return max(0, min(rows, free // row_bytes))

    def at_limit(self) -> None:
        """Say, once, that there is no more room."""
        self._stop(f"has reached its limit of {self.limit_bytes} bytes")

    def refuse(self, error: OSError) -> None:
        """The disk will not take a write: nothing is written any more."""
        self.refused = True
        self._stop(f"cannot be written ({error.strerror or error})")

    def _stop(self, reason: str) -> None:
        if not self._said:
            self._said = True
            self._say(f"cache {self.folder} {reason}: it grows no more, the rest is computed")


def used_bytes(folder: Path) -> int:
    """The length of all files in a cache's folder and its stores, in bytes."""
    total = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                if entry.is_dir(follow_symlinks=False):
                    total += used_bytes(Path(entry.path))
                else:
                    total += entry.stat(follow_symlinks=False).st_size
            except FileNotFoundError:  # another process has renamed it
                continue
    return total
