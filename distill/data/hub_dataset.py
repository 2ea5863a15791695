"""Source `hf:`: an image column of a data set that the library `datasets` reads.

A folder of save_to_disk, a local folder of parquet files, or a data set of the Hub by its name. Not
streaming, any row is read by itself from the library's memory-mapped files. Streaming, each of the
data set's files is written into a shard of the cache when it is drawn from (distill.data.shards).
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from torch import Tensor

from distill.data.decode import MAX_PIXELS, decode_image_bytes
from distill.data.fetch import FetchError, without_secrets
from distill.data.folder import EXTENSIONS
from distill.data.hub_library import (
    builder_of,
    hub_options,
    image_column,
    is_saved,
    library,
    one_line,
    prepared_rows,
    saved_rows,
    streamed_rows,
    undecoded,
)
from distill.data.shard_cache import ShardCache
from distill.data.shards import ShardedSource
from distill.data.source import BadSample, IndexedSource
from students.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

_ROWS_AT_ONCE = 16


def open_hub_dataset(
    rest: str, *, max_pixels: int = MAX_PIXELS, cache: ShardCache | None = None
) -> IndexedSource | ShardedSource:
    """The source that `hf:rest` names.

    Args:
        rest: `NAME,split=train,column=image,config=NAME,streaming=true`, all but the name optional.
        max_pixels: of the largest image that is decoded.
        cache: of a streaming data set; default: the user's, with its default room.

    Raises:
        UserError: if the library is not installed, or the data set, its configuration, split or
            column is not there, or it is empty.
    """
    options = hub_options(rest)
    if is_saved(options):
        rows = saved_rows(options)
        return HubRows(rows, image_column(options, dict(rows.features)), max_pixels)
    builder = builder_of(options)
    if not options.streaming:
        rows = prepared_rows(options, builder)
        return HubRows(rows, image_column(options, dict(rows.features)), max_pixels)
    stream, column = streamed_rows(options, builder)
    version = f"{builder.config_id}-{builder.hash}"
    shards = [
        HubShard(stream, column, f"{options.name}/{number:05d}", number, version)
        for number in range(stream.num_shards)
    ]
    return ShardedSource(shards, cache or ShardCache(), max_pixels)


def check_hub_dataset(rest: str) -> str | None:
    """What is wrong with `hf:rest`, one line, or None; of the Hub's data sets only what is written.

    Of a local data set's rows the first is looked at.
    """
    try:
        options = hub_options(rest)
        library()
        if is_saved(options):
            rows = saved_rows(options)
            undecoded(rows, image_column(options, dict(rows.features)))
        elif Path(options.name).expanduser().is_dir():
            streamed_rows(options, builder_of(options))
    except UserError as error:
        return str(error)
    return None


def count_hub_dataset(rest: str) -> int | None:
    """How many rows a data set saved by save_to_disk has; None of others: not known beforehand."""
    options = hub_options(rest)
    return len(saved_rows(options)) if is_saved(options) else None


class HubRows:
    """Images of a data set any row of which can be read."""

    def __init__(self, rows: Dataset, column: str, max_pixels: int):
        self.column, self.max_pixels = column, max_pixels
        self.rows = undecoded(rows, column)

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, index: int) -> Tensor:
        """See Source.read."""
        try:
            data = _image_bytes(self.rows[index][self.column])
            return decode_image_bytes(data, self.max_pixels)
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise BadSample(self.name(index), without_secrets(reason)) from error

    def name(self, index: int) -> str:
        """`row INDEX`."""
        return f"row {index}"


@dataclass(frozen=True, slots=True)
class HubShard:
    """One of the files of a streaming data set; `version` is the library's hash of its files."""

    stream: IterableDataset
    column: str
    label: str
    number: int
    version: str

    def path(self) -> None:
        """See Shard.path."""

    def key(self) -> str:
        """Of the data set as it is now, the column and the number."""
        split = self.stream.split
        parts = (self.label, self.version, split, self.column, self.number, self.stream.num_shards)
        return hashlib.sha256("|".join(map(str, parts)).encode()).hexdigest()[:32]

    def fetch(self, file: BinaryIO) -> None:
        """See Shard.fetch; an image that is not there leaves an empty member, a bad sample."""
        with tarfile.open(fileobj=file, mode="w") as tar:
            for row, (name, data) in enumerate(self._images()):
                ending = Path(name).suffix.lower()
                ending = ending if ending in EXTENSIONS else ".jpg"  # the decoder goes by content
                member = tarfile.TarInfo(f"{row:08d}{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))

    def _images(self) -> Iterator[tuple[str, bytes]]:
        """Name (may be empty) and file of each image."""
        part = self.stream.shard(num_shards=self.stream.num_shards, index=self.number)
        try:
            # Not iter(part): in a loader's worker that would be the worker's part of it.
            for rows in part.iter(batch_size=_ROWS_AT_ONCE):
                for value in rows[self.column]:
                    try:
                        data = _image_bytes(value)
                    except (FileNotFoundError, ValueError):  # a path of nothing, or that is none
                        data = b""
                    yield _name(value), data
        except Exception as error:  # the library's readers raise nearly every type there is
            raise FetchError(one_line(error)) from None


def _image_bytes(value: dict[str, Any] | bytes | str | None) -> bytes:
    """The file of an image: bytes, a path, or a struct of both; nothing where there is none."""
    if isinstance(value, bytes):
        return value
    path = value
    if isinstance(value, dict):
        if value.get("bytes") is not None:
            return value["bytes"]
        path = value.get("path")
    if not path:
        return b""
    import fsspec  # comes with datasets

    with fsspec.open(path, "rb") as file:
        return file.read()


def _name(value: dict[str, Any] | bytes | str | None) -> str:
    """What a row says of its image's name, if anything."""
    named = value.get("path") if isinstance(value, dict) else value
    return named if isinstance(named, str) else ""
