"""The cache of a run: a folder of stores, one for each teacher and size."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from distill.cache.codec import FORMATS, ChannelStatistics
from distill.cache.key import StoreKey
from distill.cache.room import Room
from distill.cache.store import Store
from students.errors import UserError, did_you_mean


def to_stderr(line: str) -> None:
    """Where lines for the user go unless told otherwise."""
    print(f"distill: {line}", file=sys.stderr)


class FeatureCache:
    """Teachers' features on disk, each of one exact view.

        with FeatureCache("cache", limit_bytes=500 * 10**9, format="int8") as cache:
            store = cache.store(key, sources, statistics)
            features, found = store.get(rows)
            store.put(rows[~found.numpy()], computed)

    Args:
        folder: is made when the first row is put.
        limit_bytes: of all its files, over all stores and processes; None for no limit.
        format: what new rows are kept as, one of distill.cache.FORMATS.
        say: takes a line for the user: a limit reached, a disk full, a shard damaged.

    Raises:
        UserError: if the format is unknown, the folder is a file, or the limit is not above 0.
    """

    def __init__(
        self,
        folder: str | Path,
        limit_bytes: int | None = None,
        format: str = "exact",
        say: Callable[[str], None] = to_stderr,
    ):
        self.folder = Path(folder).expanduser()
        if format not in FORMATS:
            raise UserError(f"cache format {format!r}{did_you_mean(format, FORMATS)}")
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError(f"cache {self.folder} is a file: name a folder")
        if limit_bytes is not None and limit_bytes <= 0:
            raise UserError(f"the limit of the cache is {limit_bytes} bytes: it must be above 0")
        self.format = format
        self._room, self._say = Room(self.folder, limit_bytes, say), say
        self._stores: dict[str, Store] = {}

    def store(
        self,
        key: StoreKey,
        sources: Sequence[str],
        statistics: Mapping[str, ChannelStatistics] | None = None,
    ) -> Store:
        """The store of this key, opened once.

        Args:
            key: what all of its rows have in common.
            sources: an identity for each source, by the number that rows call it: what the recipe
                says of it, and whatever else tells its samples from those of another.
            statistics: by token kind, of the teacher at the sizes of the run, for a lossy format;
                each shard keeps those that it was written with.

        Raises:
            ValueError: if there are too many sources.
        """
        name = repr((key.digest(self.format), tuple(sources)))
        if name not in self._stores:
            self._stores[name] = Store(self._room, key, self.format, sources, statistics, self._say)
        return self._stores[name]

    def flush(self) -> None:
        """Wait until all that was put is on the disk."""
        for store in self._stores.values():
            store.flush()

    def close(self) -> None:
        """Let go of all files; stores open them again if they are used again."""
        for store in self._stores.values():
            store.close()

    def __enter__(self) -> FeatureCache:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()
