"""Source `hf:`: an image column of a data set that the library `datasets` reads.

A folder of save_to_disk, a local folder of parquet files, or a data set of the Hub by its name. Not
streaming, any row is read by itself from the library's memory-mapped files. Streaming, each of the
data set's files is written into a shard of the cache when it is drawn from (distill.data.shards).
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, BinaryIO

import fsspec
from torch import Tensor

from distill.data.decode import MAX_PIXELS, decode_image_bytes
from distill.data.fetch import FetchError, without_secrets
from distill.data.folder import EXTENSIONS
from distill.data.shard_cache import ShardCache
from distill.data.shards import ShardedSource
from distill.data.source import BadSample, IndexedSource
from students.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from datasets import Dataset, DatasetBuilder, IterableDataset

EXAMPLE = "hf:NAME,split=train,column=image"

_ROWS_AT_ONCE = 16


@dataclass(frozen=True)
class _Options:
    """What follows the name; `column` by default the only one of images, or `image`."""

    name: str
    split: str | None = None
    column: str | None = None
    config: str | None = None
    streaming: bool = False


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
    options = _options(rest)
    if _is_saved(options):
        rows = _saved(options)
        return HubRows(rows, _column(options, dict(rows.features)), max_pixels)
    builder = _builder(options)
    if not options.streaming:
        rows = _rows(options, builder)
        return HubRows(rows, _column(options, dict(rows.features)), max_pixels)
    stream, column = _stream(options, builder)
    shards = [
        HubShard(stream, column, f"{options.name}/{number:05d}", number, builder.hash)
        for number in range(stream.num_shards)
    ]
    return ShardedSource(shards, cache or ShardCache(), max_pixels)


def check_hub_dataset(rest: str) -> str | None:
    """What is wrong with `hf:rest`, one line, or None; of the Hub's data sets only what is written.

    Of a local data set's rows the first is looked at.
    """
    try:
        options = _options(rest)
        _library()
        if _is_saved(options):
            _column(options, dict(_saved(options).features))
        elif Path(options.name).expanduser().is_dir():
            _stream(options, _builder(options))
    except UserError as error:
        return str(error)
    return None


def count_hub_dataset(rest: str) -> int | None:
    """How many rows a data set saved by save_to_disk has; None of others: not known beforehand."""
    options = _options(rest)
    return len(_saved(options)) if _is_saved(options) else None


class HubRows:
    """Images of a data set any row of which can be read."""

    def __init__(self, rows: Dataset, column: str, max_pixels: int):
        self.column, self.max_pixels = column, max_pixels
        self.rows = _undecoded(rows, column)

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
                    except FileNotFoundError:
                        data = b""
                    yield (value or {}).get("path") or "", data
        except Exception as error:  # the library's readers raise nearly every type there is
            raise FetchError(_one_line(error)) from None


def _options(rest: str) -> _Options:
    name, *parts = (part.strip() for part in rest.split(","))
    known = [field.name for field in fields(_Options) if field.name != "name"]
    given: dict[str, Any] = {}
    for part in parts:
        key, equals, value = (text.strip() for text in part.partition("="))
        if not (equals and value):
            raise UserError(f"hf: {part!r} is not key=value: write {EXAMPLE}")
        if key not in known:
            raise UserError(f"hf: has no option {key!r}{did_you_mean(key, known)}")
        if key == "streaming" and value not in ("true", "false"):
            raise UserError(f"hf: streaming={value} must be true or false")
        given[key] = value == "true" if key == "streaming" else value
    if not name or "=" in name:
        raise UserError(f"hf: begins with the name of a data set or its folder: write {EXAMPLE}")
    if name.startswith(("/", ".", "~")):
        if not Path(name).expanduser().is_dir():
            raise UserError(f"hf: the folder {name!r} does not exist: give a data set's folder")
        name = str(Path(name).expanduser())
    return _Options(name, **given)


def _library() -> ModuleType:
    try:
        import datasets

        datasets.load_dataset_builder  # noqa: B018 - a folder named datasets can be imported too
    except (ImportError, AttributeError):
        raise UserError(
            "hf: needs the package datasets, which is not installed: "
            "pip install 'distill-workbench[data]'"
        ) from None
    return datasets


def _is_saved(options: _Options) -> bool:
    folder = Path(options.name)
    return any((folder / file).is_file() for file in ("state.json", "dataset_dict.json"))


def _saved(options: _Options) -> Dataset:
    """A split that save_to_disk left."""
    if options.streaming:
        raise UserError(
            f"hf: {options.name!r} was saved by save_to_disk and is read in place: leave out "
            "streaming=true"
        )
    if options.config:
        raise UserError(f"hf: {options.name!r} was saved by save_to_disk: leave out config=")
    found = _call(options, lambda: _library().load_from_disk(options.name))
    if isinstance(found, dict):
        found = found[_split(options, list(found))]
    elif options.split not in (None, str(found.split)):
        raise UserError(
            f"hf: {options.name!r} is not split, so it has no {options.split!r}: leave out split="
        )
    _not_empty(options, len(found))
    return found


def _builder(options: _Options) -> DatasetBuilder:
    library = _library()
    return _call(options, lambda: library.load_dataset_builder(options.name, options.config))


def _rows(options: _Options, builder: DatasetBuilder) -> Dataset:
    """A split in the library's own files, which it writes the first time."""
    _call(options, builder.download_and_prepare)
    split = _split(options, list(builder.info.splits or {}))
    rows = _call(options, lambda: builder.as_dataset(split=split))
    _not_empty(options, len(rows))
    return rows


def _stream(options: _Options, builder: DatasetBuilder) -> tuple[IterableDataset, str]:
    """A split as its files are read, images left undecoded, and the name of their column."""
    splits = _call(options, builder.as_streaming_dataset)
    stream = splits[_split(options, list(splits))]
    first = _call(options, lambda: next(iter(_bare(stream).take(1)), None))
    _not_empty(options, first is not None)
    features = dict(stream.features or dict.fromkeys(first))
    column = _column(options, features)
    return _undecoded(stream.select_columns([column]), column), column


def _split(options: _Options, known: list[str]) -> str:
    """The split asked for, else `train`, else the only one."""
    split = options.split or ("train" if "train" in known or len(known) != 1 else known[0])
    if split not in known:
        raise UserError(
            f"hf: {options.name!r} has no split {split!r}{did_you_mean(split, known)}: "
            f"its splits are {', '.join(known)}"
        )
    return split


def _column(options: _Options, features: dict[str, Any]) -> str:
    """The column asked for, else the only one of images, else `image`."""
    images = [name for name, kind in features.items() if type(kind).__name__ == "Image"]
    wanted = options.column or (images[0] if len(images) == 1 else "image")
    if wanted in features:
        return wanted
    hint = did_you_mean(wanted, features) if options.column else ""
    raise UserError(
        f"hf: {options.name!r} has no column {wanted!r}{hint}: name that of its images with "
        f"column=, one of {', '.join(features)}"
    )


def _undecoded(rows: Any, column: str) -> Any:
    """The same with the column as {"bytes": ..., "path": ...}: images are decoded here."""
    from datasets import Image

    try:
        return rows.cast_column(column, Image(decode=False))
    except (TypeError, ValueError) as error:
        raise UserError(f"hf: {column!r} is no column of images: {_one_line(error)}") from None


def _bare(stream: IterableDataset) -> IterableDataset:
    """Without decoding, which may need packages or memory, whatever the columns are."""
    return stream.decode(False)


def _image_bytes(value: dict[str, Any] | None) -> bytes:
    """The file of an image, out of the row or from its path; nothing where the row has none."""
    if not value:
        return b""
    if value.get("bytes") is not None:
        return value["bytes"]
    with fsspec.open(value["path"], "rb") as file:
        return file.read()


def _not_empty(options: _Options, rows: int) -> None:
    if not rows:
        raise UserError(f"hf: {options.name!r} has no rows: take another split or data set")


def _call(options: _Options, call: Callable[[], Any]) -> Any:
    """The result of a call of the library's, its errors as one line."""
    try:
        return call()
    except UserError:
        raise
    except Exception as error:  # of the library, the Hub, pyarrow
        raise UserError(f"hf: cannot open {options.name!r}: {_one_line(error)}") from None


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return without_secrets(text if len(text) <= 300 else text[:297] + "...")
