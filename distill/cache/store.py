"""A store: the rows of one teacher at one size, over all shards of its folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill.cache.about import about_store, read_layout, write_codec, write_small
from distill.cache.catalogue import Catalogue, RowKeys
from distill.cache.codec import ChannelStatistics, Codec, RowLayout
from distill.cache.index import MISSING
from distill.cache.key import StoreKey
from distill.cache.room import Room
from distill.cache.shard import RECORD
from distill.cache.writer import ShardWriter
from students.features import Features, concatenated

LOOK_AFTER = 5.0
"""Seconds between looks, when rows are missing, at what other processes have written."""


class Store:
    """Features by row: (number of the source, sample's index, epoch of the view).

    Made by FeatureCache.store. Nothing is written before the first `put`; any number of processes
    may have the same store open, and each reads what the others have written.

    Args:
        room: of the cache.
        key: of the store.
        format: one of distill.cache.FORMATS.
        sources: identities of the sources by their number.
        statistics: by token kind, for what a lossy format writes.
        say: takes a line for the user.

    Attributes: `folder`; `layout` of its rows, None as long as none has been written.
    """

    def __init__(
        self,
        room: Room,
        key: StoreKey,
        format: str,
        sources: Sequence[str],
        statistics: Mapping[str, ChannelStatistics] | None,
        say: Callable[[str], None],
    ):
        self.folder = room.folder / key.digest(format)
        self._contents, self._label = key.contents(format), key.label
        self._room, self._say, self._statistics = room, say, statistics
        self._keys = RowKeys(sources)
        self._catalogue: Catalogue | None = None
        self._codec: Codec | None = None
        self._writer: ShardWriter | None = None
        self._full = False
        self._looked = 0.0
        self.refresh()

    @property
    def layout(self) -> RowLayout | None:
        """Of its rows; None as long as there is none."""
        return None if self._catalogue is None else self._catalogue.layout

    @property
    def growing(self) -> bool:
        """Whether `put` still keeps rows: neither the limit nor the disk has said no."""
        return not (self._full or self._room.refused)

    def get(
        self,
        rows: NDArray[np.int64],
        prints: NDArray[np.uint32] | None = None,
        device: torch.device | str = "cpu",
    ) -> tuple[Features, Tensor]:
        """The features of those of `rows` that the store has.

        Args:
            rows: (n, 3) int64, columns source, index and epoch of the view.
            prints: (n,) of distill.cache.view_prints: a row of other pixels is missing.
            device: that the features are wanted on; they are decoded there.

        Returns:
            Features of m rows in their order, and (n,) bool on the CPU, which m rows they are. A
            missing row, and one whose bytes are damaged, is False. Where m is 0, there are no
            tokens of any kind.

        Raises:
            ValueError: if rows are not of this store's sources, or beyond what keys can say.
        """
        if self._missing(rows).any() and time.monotonic() - self._looked > LOOK_AFTER:
            self.refresh()
        mask = torch.zeros(len(rows), dtype=torch.bool)
        if self._catalogue is None:
            return Features(None, None), mask
        parts, which = self._catalogue.get(rows, prints, device)
        mask[torch.from_numpy(which)] = True
        if len(parts) < 2:
            return (parts[0] if parts else Features(None, None)), mask
        back = torch.from_numpy(np.argsort(which)).to(device)
        return concatenated(parts).map(lambda _, tokens: tokens.index_select(0, back)), mask

    def put(
        self,
        rows: NDArray[np.int64],
        features: Features,
        prints: NDArray[np.uint32] | None = None,
    ) -> int:
        """Keep the features of `rows`; what is there already, and what the format cannot hold, is
        left out. Where the disk is full or the limit reached, nothing is kept and nothing raised.

        Args:
            rows: (n, 3) int64, as in `get`.
            features: of n images, in the teacher's dtype.
            prints: (n,) as in `get`.

        Returns:
            How many were written.

        Raises:
            ValueError: if the features are of another layout than the store's, or have no
                statistics where the format needs them; if rows are as `get` refuses them.
        """
        codec = self._codec_of(features)
        first = np.zeros(len(rows), dtype=bool)
        first[np.unique(self._keys.keys(rows), return_index=True)[1]] = True
        new = np.flatnonzero(first & self._missing(rows))
        if self._full or self._room.refused or len(new) == 0:
            return 0
        if len(new) < len(rows):
            chosen = torch.from_numpy(new)
            features = features.map(lambda _, t: t.index_select(0, chosen.to(t.device)))
        encoded, good = codec.encode(features)
        fit = good.cpu().numpy()
        new, content = new[fit], encoded.cpu().numpy()[fit]
        try:
            return self._append(codec, rows[new], None if prints is None else prints[new], content)
        except OSError as error:
            self._room.refuse(error)
            return 0

    def as_kept(self, features: Features) -> Features:
        """Features as they would come back, so that a step's targets do not depend on which of its
        rows were in the cache. Rows that the format refuses stay as they are.

        Raises:
            ValueError: as `put`.
        """
        codec = self._codec_of(features)
        if codec.layout.lossless:
            return features
        encoded, good = codec.encode(features)
        back = codec.decode(encoded)

        def chosen(kind: str, tokens: Tensor) -> Tensor:
            kept = back.get(kind)
            assert kept is not None
            return torch.where(good.view(-1, *[1] * (tokens.ndim - 1)), kept, tokens)

        return features.map(chosen)

    def refresh(self) -> None:
        """Take in what other processes have written since."""
        self._looked = time.monotonic()
        if self._catalogue is None:
            layout = read_layout(self.folder, self._contents)
            if layout is None:
                return
            self._catalogue = Catalogue(self.folder, layout, self._keys, self._say)
        self._catalogue.refresh(None if self._writer is None else self._writer.shard)

    def flush(self) -> None:
        """Wait until all that was put is on the disk, so that it outlives a loss of power."""
        if self._writer is not None:
            try:
                self._writer.flush()
            except OSError as error:
                self._room.refuse(error)

    def close(self) -> None:
        """`flush`, and give back the room that was not needed; a later `put` opens it again."""
        if self._writer is None:
            return
        writer, self._writer = self._writer, None
        try:
            writer.trim()
            writer.flush()
        except OSError as error:
            self._room.refuse(error)
        writer.close()

    def _missing(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        keys = self._keys.keys(rows)
        if self._catalogue is None:
            return np.ones(len(rows), dtype=bool)
        return self._catalogue.index.find(keys) == MISSING

    def _codec_of(self, features: Features) -> Codec:
        layout = RowLayout.of(features, self._contents["format"])
        if self.layout is not None and layout != self.layout:
            raise ValueError(f"features of {layout} in a store of {self.layout}")
        if self._codec is None or self._codec.layout != layout:
            self._codec = Codec(layout, self._statistics)
        return self._codec

    def _append(
        self,
        codec: Codec,
        rows: NDArray[np.int64],
        prints: NDArray[np.uint32] | None,
        content: NDArray[np.uint8],
    ) -> int:
        """Write as many rows as there is room for."""
        keys, records = self._keys.keys(rows), self._keys.records(rows, prints)
        done = 0
        while done < len(rows):
            writer = self._ready(codec)
            if writer is None:
                break
            part = slice(done, min(done + writer.reserved, len(rows)))
            bytes_of = np.empty((part.stop - done, writer.shard.stride), dtype=np.uint8)
            bytes_of[:, : codec.layout.bytes] = content[part]
            slots = writer.append(records[part], bytes_of).astype(np.uint64)
            assert self._catalogue is not None
            self._catalogue.add(self._catalogue.number(writer.shard), keys[part], slots)
            done = part.stop
            if writer.whole:
                self._writer = None
                writer.seal()
        return done

    def _ready(self, codec: Codec) -> ShardWriter | None:
        """This process's shard, with room for at least one row; None where there is none left."""
        if self._writer is not None and self._writer.reserved:
            return self._writer
        about = about_store(self._label, self._contents, codec.layout)
        width = (codec.layout.summary or 0) + (codec.layout.dense or 0)
        with self._room.held():
            if self._writer is None:  # first, since it gives back the room that a dead one took
                self._writer = self._vacant(codec)
            granted = self._room.rows(
                codec.layout.bytes + 2 * RECORD.itemsize, beside=8 * width + len(about)
            )
            if granted == 0:
                self._full = True
                self._room.at_limit()
                return None
            self._describe(codec, about)
            if self._writer is None:
                self._writer = ShardWriter.begun(self.folder, codec.name, codec.layout.bytes)
            self._writer.reserve(granted)
        return self._writer

    def _vacant(self, codec: Codec) -> ShardWriter | None:
        """An unsealed shard of this codec that has lost its writer."""
        self.refresh()
        for shard in () if self._catalogue is None else self._catalogue.shards:
            if not shard.sealed and shard.codec == codec.name:
                writer = ShardWriter.taken_over(shard)
                if writer is not None and not writer.whole:
                    return writer
                if writer is not None:
                    writer.seal()
        return None

    def _describe(self, codec: Codec, about: str) -> None:
        """Write about.json and the codec's statistics where they are not there, or not whole."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if read_layout(self.folder, self._contents) is None:
            write_small(self.folder / "about.json", about.encode())
        write_codec(self.folder, codec)
        if self._catalogue is None:
            self.refresh()
