"""Shards on this machine: fetched once for all processes, indexed once, removed when it is full.

In the cache folder lie `shards/index/KEY.index`, which stays (it is small, and tells how many
samples a shard has), and for shards from elsewhere `shards/data/KEY.tar`, of which the oldest that
no process reads are removed. A process that fetches or indexes a shard holds a lock on
`shards/locks/KEY`; one that reads a fetched shard holds a shared lock on its file.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from distill.data.fetch import FetchError
from distill.data.tar_index import index_tar, load_index, save_index
from distill.scenes.dataset import cache_folder
from students.errors import UserError

CACHE_GB = 100.0
"""Room for fetched shards in 10^9 bytes, unless told otherwise."""

WAITS = (1.0, 4.0, 16.0, 60.0)
"""Seconds between tries to fetch a shard."""


class Shard(Protocol):
    """A tar file of images, here or elsewhere."""

    @property
    def label(self) -> str:
        """What a person calls it, without secrets."""

    def path(self) -> Path | None:
        """Where it lies on this machine, to be read in place; None if it is to be fetched."""

    def key(self) -> str:
        """A file name that no other content has.

        Raises:
            UserError: if it is not there.
        """

    def fetch(self, file: BinaryIO) -> None:
        """Writes the whole tar to `file`.

        Raises:
            FetchError: if that fails.
        """


@dataclass
class OpenShard:
    """A shard to read from: a descriptor of its file, and where its images lie (see index_tar)."""

    descriptor: int
    index: NDArray[np.void]

    def close(self) -> None:
        """Gives the file back; what was fetched may be removed from now on."""
        os.close(self.descriptor)


class ShardCache:
    """The part of the cache folder that holds shards.

    Args:
        gigabytes: how much fetched shards may take, in 10^9 bytes. What is being read and what
            comes next is kept even if it is more.
        folder: default: the user's cache folder, as for scenes.
        waits: seconds between tries.
    """

    def __init__(
        self,
        gigabytes: float = CACHE_GB,
        folder: Path | None = None,
        waits: tuple[float, ...] | None = None,
    ):
        self.bytes = int(gigabytes * 1e9)
        self.folder = (folder or cache_folder()) / "shards"
        self.waits = WAITS if waits is None else waits

    def remembered(self) -> set[str]:
        """Keys of the shards whose samples have been counted."""
        try:
            return {path.stem for path in (self.folder / "index").glob("*.index")}
        except OSError:
            return set()

    def count(self, shard: Shard) -> int:
        """How many samples a shard has; it is opened, and if need be fetched, the first time.

        Raises:
            UserError: if it cannot be had or kept.
        """
        return len(self._index(shard, shard.key()))

    def ready(self, shard: Shard) -> None:
        """Sees to it that a shard can be read without waiting. Raises as `open`."""
        self.open(shard).close()

    def open(self, shard: Shard) -> OpenShard:
        """The shard, fetched and indexed if need be.

        Raises:
            UserError: if it cannot be had, cannot be kept, or is not what it was.
        """
        key, path = shard.key(), shard.path()
        descriptor = _opened(path, shard.label) if path else self._open_fetched(shard, key)
        try:
            return OpenShard(descriptor, self._index(shard, key))
        except BaseException:
            os.close(descriptor)
            raise

    def _index(self, shard: Shard, key: str) -> NDArray[np.void]:
        kept = self._place("index", f"{key}.index")
        if not kept.exists():
            with self._locked(key):
                if not kept.exists():
                    path = shard.path()
                    if path is None:
                        self._bring(shard, key)
                    else:
                        self._save(_indexed(path, shard.label), kept)
        return load_index(kept)

    def _save(self, index: NDArray[np.void], kept: Path) -> None:
        beside = kept.with_name(f".{kept.stem}-{os.getpid()}.partial")
        try:
            save_index(index, beside)
            beside.replace(kept)
        except OSError as error:
            raise self._cannot_keep(error) from None

    def _open_fetched(self, shard: Shard, key: str) -> int:
        """A descriptor of a fetched shard, with a shared lock that keeps it from being removed."""
        while True:
            data = self._place("data", f"{key}.tar")
            if not data.exists():
                with self._locked(key):
                    self._bring(shard, key)
            try:
                descriptor = os.open(data, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue  # removed in between
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            if os.fstat(descriptor).st_nlink:
                os.utime(data)  # the last use, by which the oldest is found
                return descriptor
            os.close(descriptor)

    def _bring(self, shard: Shard, key: str) -> None:
        """Fetches a shard from elsewhere and indexes it; the lock of its key is held.

        It is indexed before it can be seen, for then another process may remove it again.
        """
        data, kept = self._place("data", f"{key}.tar"), self._place("index", f"{key}.index")
        if data.exists() and kept.exists():
            return
        partial = data.with_suffix(".partial")
        try:
            self._fetch(shard, partial)
            index = _indexed(partial, shard.label)
            if not kept.exists():
                self._save(index, kept)
            # Which sample is drawn when depends on the counts, so a shard may not change.
            elif not np.array_equal(load_index(kept), index):
                raise UserError(
                    f"the shard {shard.label} is not what it was when it was first read: bring "
                    f"the old one back, or remove {kept} and start a new run"
                )
            partial.replace(data)
        finally:
            partial.unlink(missing_ok=True)
        self._make_room(data)

    def _fetch(self, shard: Shard, partial: Path) -> None:
        for wait in (*self.waits, None):
            try:
                with partial.open("wb+") as file:
                    shard.fetch(file)
                return
            except FetchError as error:
                if wait is None or not error.again:
                    tries = f", {len(self.waits) + 1} times" if error.again else ""
                    raise UserError(
                        f"cannot get the shard {shard.label}: {error}{tries}; put it right, or "
                        f"leave the shard out of the source"
                    ) from None
            except OSError as error:
                raise self._cannot_keep(error) from None
            time.sleep(wait)

    def _make_room(self, newest: Path) -> None:
        """Removes the fetched shards that were used longest ago and that no process has open."""
        found = []
        for path in newest.parent.iterdir():
            try:
                status = path.stat()
            except FileNotFoundError:  # another process makes room as well
                continue
            if path.suffix == ".partial":
                self._remove_stale(path)
            else:
                found.append((status.st_mtime_ns, status.st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self.bytes:
                return
            if path != newest and _remove_unused(path):
                total -= size

    def _remove_stale(self, partial: Path) -> None:
        """Removes what a process that is no more was fetching."""
        with self._locked(partial.stem, wait=False) as mine:
            if mine:
                partial.unlink(missing_ok=True)

    @contextmanager
    def _locked(self, key: str, wait: bool = True) -> Iterator[bool]:
        """Holds the lock of a key; without `wait` only if it is free. Gives whether it is held."""
        try:
            lock = os.open(self._place("locks", key), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        except OSError as error:
            raise self._cannot_keep(error) from None
        try:
            held = _try_lock(lock, wait)
            yield held
        finally:
            # Closing alone is not enough if a process was forked meanwhile: it holds the lock too.
            fcntl.flock(lock, fcntl.LOCK_UN)
            os.close(lock)

    def _place(self, kind: str, name: str) -> Path:
        folder = self.folder / kind
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._cannot_keep(error) from None
        return folder / name

    def _cannot_keep(self, error: OSError) -> UserError:
        return UserError(
            f"cannot keep shards in {self.folder}: {error.strerror}; make room there, or set "
            "DISTILL_CACHE to another folder"
        )


def _try_lock(descriptor: int, wait: bool) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def _indexed(path: Path, label: str) -> NDArray[np.void]:
    try:
        return index_tar(path)
    except OSError as error:
        raise UserError(f"cannot read the shard {label}: {error.strerror}") from None


def _opened(path: Path, label: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise UserError(f"cannot open the shard {label}: {error.strerror}") from None


def _remove_unused(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
        return True
    except OSError:  # some process reads it
        return False
    finally:
        os.close(descriptor)
