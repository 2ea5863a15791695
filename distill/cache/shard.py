"""Shards: the files that rows lie in. docs/cache.md describes them.

NAME.rows holds rows of one length, each followed by its record; NAME.index holds the records again,
a row's being written after the row itself, which is what makes the row exist. So a process may end
at any moment, and what is then half written is not there.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distill.data.order import mix

RECORD = np.dtype(
    [
        ("source", "<u8"),
        ("index", "<u8"),
        ("view", "<u4"),
        ("print", "<u4"),
        ("slot", "<u4"),
        ("crc", "<u4"),
        ("check", "<u8"),
    ]
)
"""A row's record, 40 bytes.

source: the first 8 bytes of the SHA-256 of the source's identity. index, view: of the sample, and
the epoch of its view. print: of the view's pixels, 0 for none. slot: the row's number in its shard.
crc: CRC-32 of the four before slot and then of the row. check: a hash of all the others.
"""

SHARD_BYTES = 1 << 30
"""A shard is sealed when it holds about so much."""

_MOST_ROWS = 1 << 17
_NAMED = 24  # bytes of a record that crc covers
CHECK = 8
"""Bytes of a record's last field."""


def rows_of_shard(row_bytes: int) -> int:
    """How many rows of so many bytes a whole shard has."""
    return max(1, min(_MOST_ROWS, SHARD_BYTES // (row_bytes + RECORD.itemsize)))


def record_checks(records: NDArray[np.void]) -> NDArray[np.uint64]:
    """What `check` of each record must be."""
    high = np.uint64(32)
    seen = records["view"].astype(np.uint64) << high | records["print"]
    held = records["slot"].astype(np.uint64) << high | records["crc"]
    return mix(records["source"], records["index"], seen, held)


def as_records(index: bytes) -> NDArray[np.void]:
    """The records in (a part of) an index; a torn one at its end is left out."""
    return np.frombuffer(index[: len(index) // RECORD.itemsize * RECORD.itemsize], RECORD)


def valid_records(records: NDArray[np.void], first: int) -> NDArray[np.bool_]:
    """(n,) which records are as they were written, the first of them being of slot `first`."""
    slots = np.arange(first, first + len(records))
    return (record_checks(records) == records["check"]) & (records["slot"] == slots)


def checksums(records: NDArray[np.void], rows: Iterable[NDArray[np.uint8]]) -> NDArray[np.uint32]:
    """`crc` of records (n,), of their n rows (bytes,)."""
    named = np.ascontiguousarray(records).view(np.uint8).reshape(len(records), -1)[:, :_NAMED]
    return np.fromiter(
        (
            zlib.crc32(row.data, zlib.crc32(name.tobytes()))
            for name, row in zip(named, rows, strict=True)
        ),
        dtype=np.uint32,
        count=len(records),
    )


class Shard:
    """A shard as it is read: whoever writes it, here or in another process.

    Args:
        folder: of the store.
        name: of the shard, whose last part is its codec's.
        row_bytes: bytes of a row without its record.
    """

    def __init__(self, folder: Path, name: str, row_bytes: int):
        self.folder, self.name = folder, name
        self.codec = name.rpartition(".")[2]
        self.row_bytes, self.stride = row_bytes, row_bytes + RECORD.itemsize
        self.sealed = self.damaged = False
        self.records_read = 0

    def file(self, suffix: str) -> Path:
        """Its file "rows", "index", "seal" or "bad"."""
        return self.folder / f"{self.name}.{suffix}"

    def new_records(self) -> NDArray[np.void]:
        """The valid records that have come since the last call.

        Sets `sealed`; sets `damaged` if a sealed shard is not what was sealed, or its rows file
        has lost some. What the file of bad rows condemns is left out.
        """
        first = self.records_read
        seal = _json(self.file("seal"))
        index = bytes_from(self.file("index"), first * RECORD.itemsize)
        records = as_records(index)
        valid = valid_records(records, first)
        slots = np.arange(first, first + len(records))
        # What is not valid may be yet to be written: it is looked at again.
        if valid.any():
            self.records_read = first + int(valid.nonzero()[0][-1]) + 1
        held = _size(self.file("rows")) // self.stride
        there = valid & (slots < held)
        if seal is not None:
            self.sealed = True
            whole = first > 0 or seal.get("sha256") == hashlib.sha256(index).hexdigest()
            self.damaged |= not whole or self.records_read != seal.get("rows")
        self.damaged |= bool((there != valid).any())
        if there.any() and self.file("bad").exists():
            condemned = bytes_from(self.file("bad"), 0)
            checks = np.frombuffer(condemned[: len(condemned) // CHECK * CHECK], "<u8")
            there &= ~np.isin(records["check"], checks)
        return records[there]

    def read(
        self,
        slots: NDArray[np.int64],
        wanted: NDArray[np.void],
        into: NDArray[np.uint8],
        at: NDArray[np.int64],
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Read rows into `into`, with plain reads: a page of a memory map that cannot be read ends
        the process, and those that can are counted as its memory.

        Args:
            slots: (n,) of the rows.
            wanted: (n,) records whose source, index and view the rows must have, and whose print
                where that is not 0.
            into: (m, stride) uint8.
            at: (n,) which of its rows they go to.

        Returns:
            (n,) which rows are as wanted, and which have to be condemned: damaged, or of other
            pixels. A row that is neither has given its place to another.
        """
        whole = np.zeros(len(slots), dtype=bool)
        try:
            descriptor = os.open(self.file("rows"), os.O_RDONLY)
        except OSError:
            return whole, ~whole
        try:
            for number in np.argsort(slots, kind="stable").tolist():
                place = int(slots[number]) * self.stride
                try:
                    got = os.preadv(descriptor, [into[at[number]]], place)
                except OSError:
                    continue
                whole[number] = got == self.stride
        finally:
            os.close(descriptor)
        records = np.ascontiguousarray(into[at, self.row_bytes :]).view(RECORD)[:, 0]
        rows = [into[number, : self.row_bytes] for number in at]
        whole &= checksums(records, rows) == records["crc"]
        same = np.ones(len(slots), dtype=bool)
        for field in ("source", "index", "view"):
            same &= records[field] == wanted[field]
        stale = (wanted["print"] != 0) & (records["print"] != wanted["print"])
        return whole & same & ~stale, ~whole | (same & stale)

    def condemn(self, slots: NDArray[np.int64]) -> None:
        """Writes down that these rows are bad, so that no process counts on them any more.

        Raises:
            OSError: if it cannot be written.
        """
        checks = b""
        with self.file("index").open("rb") as file:
            for slot in slots.tolist():
                file.seek((slot + 1) * RECORD.itemsize - CHECK)
                checks += file.read(CHECK)
        with self.file("bad").open("ab", buffering=0) as file:
            file.write(checks)


def bytes_from(path: Path, offset: int) -> bytes:
    """What a file holds from an offset on; nothing if it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read()
    except OSError:
        return b""


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _json(path: Path) -> dict | None:
    try:
        found = json.loads(path.read_bytes())
    except OSError:
        return None
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
