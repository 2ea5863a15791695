"""Writing shards: a process appends to shards of its own, and takes over what a dead one left."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distill.cache.about import write_small
from distill.cache.shard import (
    RECORD,
    Shard,
    as_records,
    bytes_from,
    checksums,
    record_checks,
    rows_of_shard,
    valid_records,
)


class ShardWriter:
    """A shard that this process, and no other, appends rows to.

    Use `begun` or `taken_over`. Every method raises OSError where the disk does.
    """

    def __init__(self, shard: Shard, index: int, rows: int, slots: int):
        self.shard, self.slots = shard, slots
        self.capacity = rows_of_shard(shard.row_bytes)
        self._index, self._rows = index, rows
        self._reserved = slots

    @classmethod
    def begun(cls, folder: Path, codec: str, row_bytes: int) -> ShardWriter:
        """A new shard, whose name begins with the time, so that names sort by age."""
        name = f"{time.time_ns():016x}-{secrets.token_hex(4)}.{codec}"
        shard = Shard(folder, name, row_bytes)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        index = os.open(shard.file("index"), flags, 0o644)
        try:
            fcntl.flock(index, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return cls(shard, index, os.open(shard.file("rows"), flags, 0o644), 0)
        except BaseException:
            os.close(index)
            raise

    @classmethod
    def taken_over(cls, shard: Shard) -> ShardWriter | None:
        """An unsealed shard whose writer has ended, cut back to its last whole row; None if it
        still has a writer."""
        index = os.open(shard.file("index"), os.O_RDWR)
        try:
            fcntl.flock(index, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if shard.file("seal").exists() or not shard.file("rows").exists():
                os.close(index)
                return None
            rows = os.open(shard.file("rows"), os.O_RDWR)
        except BlockingIOError:
            os.close(index)
            return None
        except BaseException:
            os.close(index)
            raise
        records = as_records(bytes_from(shard.file("index"), 0))
        there = np.arange(len(records)) < os.fstat(rows).st_size // shard.stride
        valid = valid_records(records, 0) & there
        slots = len(records) if valid.all() else int(valid.argmin())
        writer = cls(shard, index, rows, slots)
        writer.trim()
        return writer

    @property
    def whole(self) -> bool:
        """Whether it holds all that a shard holds, and has to be sealed."""
        return self.slots >= self.capacity

    @property
    def reserved(self) -> int:
        """How many more rows the files have been given room for."""
        return self._reserved - self.slots

    def reserve(self, rows: int) -> None:
        """Make the files longer by so many rows, but not by more than the shard takes, so that
        their room counts as used before it is (on the disk they take it when it is written)."""
        self._reserved = min(self._reserved + rows, self.capacity)
        os.ftruncate(self._rows, self._reserved * self.shard.stride)
        os.ftruncate(self._index, self._reserved * RECORD.itemsize)

    def append(self, records: NDArray[np.void], rows: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Write rows (n, stride), n at most `reserved`, and then what makes them exist.

        Args:
            records: (n,) with source, index, view and print; the rest is set here.
            rows: (n, stride) uint8, contiguous; the records are written into their ends.

        Returns:
            (n,) their slots.
        """
        slots = np.arange(self.slots, self.slots + len(records))
        records["slot"] = slots
        records["crc"] = checksums(records, rows[:, : self.shard.row_bytes])
        records["check"] = record_checks(records)
        rows[:, self.shard.row_bytes :] = records.view(np.uint8).reshape(len(records), -1)
        _write(self._rows, rows.data.cast("B"), self.slots * self.shard.stride)
        _write(self._index, memoryview(records.tobytes()), self.slots * RECORD.itemsize)
        self.slots += len(records)
        self.shard.records_read = self.slots
        return slots

    def trim(self) -> None:
        """Give back the room that no row has taken, and what is half written."""
        self._reserved = self.slots
        os.ftruncate(self._index, self.slots * RECORD.itemsize)
        os.ftruncate(self._rows, self.slots * self.shard.stride)

    def flush(self) -> None:
        """Wait until what has been appended is on the disk, rows before their records."""
        os.fsync(self._rows)
        os.fsync(self._index)

    def seal(self) -> None:
        """Close the shard for good: nothing is appended any more, and whoever opens it can see
        whether all of its records are as they were."""
        self.trim()
        self.flush()
        digest = hashlib.sha256(bytes_from(self.shard.file("index"), 0)).hexdigest()
        seal = json.dumps({"rows": self.slots, "sha256": digest}) + "\n"
        write_small(self.shard.file("seal"), seal.encode())
        self.shard.sealed = True
        self.close()

    def close(self) -> None:
        """Let go of the shard, which another writer may then take over."""
        os.close(self._rows)
        os.close(self._index)


def _write(descriptor: int, view: memoryview, offset: int) -> None:
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written
