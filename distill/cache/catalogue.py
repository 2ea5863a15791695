"""What a store holds: its shards, which row lies where, and reading rows from there."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from distill.cache.about import read_codec
from distill.cache.codec import Codec, RowLayout
from distill.cache.index import MISSING, RowIndex
from distill.cache.shard import RECORD, Shard
from students.features import Features

MOST_SOURCES, MOST_VIEWS, MOST_SAMPLES = 1 << 8, 1 << 16, 1 << 40
"""How many there may be of each: together they are a row's key of 64 bits."""

_SHARD = np.uint64(32)
_SLOT = np.uint64((1 << 32) - 1)


class RowKeys:
    """Rows (n, 3) int64, columns source, index and epoch of the view, as keys and as records.

    Args:
        sources: identities by number. On the disk a source goes by its identity's digest, so that
            stores may be opened with more of them, or in another order.
    """

    def __init__(self, sources: Sequence[str]):
        if len(sources) > MOST_SOURCES:
            raise ValueError(f"{len(sources)} sources: a store has at most {MOST_SOURCES}")
        self.sources = np.array([source_digest(source) for source in sources], dtype=np.uint64)
        self._by_digest = np.argsort(self.sources)

    def keys(self, rows: NDArray[np.int64]) -> NDArray[np.uint64]:
        """(n,) uint64.

        Raises:
            ValueError: if rows are not (n, 3), of these sources, and within what keys can say.
        """
        most = (len(self.sources), MOST_SAMPLES, MOST_VIEWS)
        if rows.ndim != 2 or rows.shape[1] != 3:
            raise ValueError(f"rows are {rows.shape}, not (n, 3): source, index, epoch of the view")
        if len(rows) and ((rows < 0).any() or (rows >= np.array(most)).any()):
            raise ValueError(f"a row is beyond {most} sources, samples and views")
        source, index, view = rows.T.astype(np.uint64)
        return source << np.uint64(56) | view << np.uint64(40) | index

    def records(
        self, rows: NDArray[np.int64], prints: NDArray[np.uint32] | None
    ) -> NDArray[np.void]:
        """(n,) RECORD with what is known of rows before they have a place."""
        records = np.zeros(len(rows), dtype=RECORD)
        records["source"] = self.sources[rows[:, 0]]
        records["index"], records["view"] = rows[:, 1], rows[:, 2]
        records["print"] = 0 if prints is None else prints
        return records

    def of_records(
        self, records: NDArray[np.void]
    ) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """Keys and slots of those records that are of these sources."""
        none = np.zeros(0, dtype=np.uint64)
        if len(self.sources) == 0 or len(records) == 0:
            return none, none
        ranked = self.sources[self._by_digest]
        at = np.minimum(np.searchsorted(ranked, records["source"]), len(ranked) - 1)
        ours = ranked[at] == records["source"]
        ours &= (records["index"] < MOST_SAMPLES) & (records["view"] < MOST_VIEWS)
        at, records = at[ours], records[ours]
        columns = [self._by_digest[at], records["index"], records["view"]]
        rows = np.stack([column.astype(np.int64) for column in columns], axis=1)
        return self.keys(rows), records["slot"].astype(np.uint64)


class Catalogue:
    """The shards of a store's folder, read only.

    Args:
        folder: of the store.
        layout: of its rows.
        keys: of the rows that are asked for.
        say: takes a line for the user.
    """

    def __init__(self, folder: Path, layout: RowLayout, keys: RowKeys, say: Callable[[str], None]):
        self.folder, self.layout = folder, layout
        self.shards: list[Shard] = []
        self.index = RowIndex()
        self._keys, self._say = keys, say
        self._numbers: dict[str, int] = {}
        self._codecs: dict[str, Codec | None] = {}

    def refresh(self, without: Shard | None = None) -> None:
        """Take in what has been written since; `without` a shard that this process writes."""
        for name in shard_names(self.folder):
            if name not in self._numbers:
                self.number(Shard(self.folder, name, self.layout.bytes))
        for number, shard in enumerate(self.shards):
            if shard.sealed or shard is without or self._codec(shard.codec) is None:
                continue
            known = shard.damaged
            keys, slots = self._keys.of_records(shard.new_records())
            self.add(number, keys, slots)
            if shard.damaged and not known:
                self._say_damaged(shard)

    def number(self, shard: Shard) -> int:
        """A shard's number, a new one for one that is new."""
        if shard.name not in self._numbers:
            self._numbers[shard.name] = len(self.shards)
            self.shards.append(shard)
        return self._numbers[shard.name]

    def add(self, number: int, keys: NDArray[np.uint64], slots: NDArray[np.uint64]) -> None:
        """Take in rows of shard `number`."""
        self.index.add(keys, np.uint64(number) << _SHARD | slots)

    def get(
        self,
        rows: NDArray[np.int64],
        prints: NDArray[np.uint32] | None,
        device: torch.device | str,
    ) -> tuple[list[Features], NDArray[np.int64]]:
        """Features of those rows that are there and whole, one part for each codec, and which of
        `rows` they are, in the order of the parts."""
        keys = self._keys.keys(rows)
        places = self.index.find(keys)
        parts: list[Features] = []
        order = [np.zeros(0, dtype=np.int64)]
        for codec, those in self._by_codec(places):
            buffer = np.empty((len(those), codec.layout.bytes + RECORD.itemsize), dtype=np.uint8)
            wanted = self._keys.records(rows[those], None if prints is None else prints[those])
            whole = self._read(places[those], wanted, buffer)
            for key in keys[those[~whole]]:
                self.index.drop(key)
            if whole.any():
                kept = torch.from_numpy(buffer if whole.all() else buffer[whole])
                parts.append(codec.decode(kept.to(device)))
                order.append(those[whole])
        return parts, np.concatenate(order)

    def _by_codec(self, places: NDArray[np.uint64]) -> list[tuple[Codec, NDArray[np.int64]]]:
        """The rows that have a place, by the codec of their shard."""
        there = np.flatnonzero(places != MISSING)
        shards = (places[there] >> _SHARD).astype(np.int64)
        groups: dict[str, list[NDArray[np.int64]]] = {}
        for number in np.unique(shards).tolist():
            groups.setdefault(self.shards[number].codec, []).append(there[shards == number])
        found = [(self._codec(name), np.sort(np.concatenate(of))) for name, of in groups.items()]
        return [(codec, those) for codec, those in found if codec is not None]

    def _read(
        self, places: NDArray[np.uint64], wanted: NDArray[np.void], buffer: NDArray[np.uint8]
    ) -> NDArray[np.bool_]:
        """Read rows into a buffer (n, stride); which of them are whole."""
        whole = np.zeros(len(places), dtype=bool)
        shards = (places >> _SHARD).astype(np.int64)
        slots = (places & _SLOT).astype(np.int64)
        for number in np.unique(shards).tolist():
            shard, at = self.shards[number], np.flatnonzero(shards == number)
            good, bad = shard.read(slots[at], wanted[at], buffer, at)
            whole[at] = good
            if bad.any():
                self._condemn(shard, slots[at[bad]])
        return whole

    def _condemn(self, shard: Shard, slots: NDArray[np.int64]) -> None:
        if not shard.damaged:
            shard.damaged = True
            self._say_damaged(shard)
        try:
            shard.condemn(slots)
        except OSError:  # a folder that cannot be written to: the next process finds it out again
            return

    def _say_damaged(self, shard: Shard) -> None:
        self._say(
            f"cache {self.folder}: shard {shard.name} is damaged, or its images have changed; what "
            "is lost is computed again"
        )

    def _codec(self, name: str) -> Codec | None:
        """The codec of a shard; None where its statistics cannot be read."""
        if name not in self._codecs:
            self._codecs[name] = read_codec(self.folder, self.layout, name)
            if self._codecs[name] is None:
                self._say(
                    f"cache {self.folder}: the statistics {name} are damaged; the rows of their "
                    "shards are computed again"
                )
        return self._codecs[name]


def source_digest(source: str) -> int:
    """What records call a source."""
    return int.from_bytes(hashlib.sha256(source.encode()).digest()[:8], "little")


def shard_names(folder: Path) -> list[str]:
    """The names of all shards in a store's folder, oldest first."""
    return sorted(path.stem for path in folder.glob("*.index"))
