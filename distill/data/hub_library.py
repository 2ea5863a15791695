"""Data sets as the library `datasets` has them: a split, its column of images, one-line errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from distill.data.fetch import without_secrets
from students.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from datasets import Dataset, DatasetBuilder, IterableDataset

EXAMPLE = "hf:NAME,split=train,column=image"


@dataclass(frozen=True)
class HubOptions:
    """What follows the name; `column` by default the only one of images, or `image`."""

    name: str
    split: str | None = None
    column: str | None = None
    config: str | None = None
    streaming: bool = False


def hub_options(rest: str) -> HubOptions:
    """What `NAME,key=value,...` says.

    Raises:
        UserError: for an unknown key, a wrong value, or a folder that is not there.
    """
    name, *parts = (part.strip() for part in rest.split(","))
    known = [field.name for field in fields(HubOptions) if field.name != "name"]
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
    return HubOptions(name, **given)


def library() -> ModuleType:
    """The package `datasets`.

    Raises:
        UserError: if it is not installed.
    """
    try:
        import datasets

        datasets.load_dataset_builder  # noqa: B018 - a folder named datasets can be imported too
    except (ImportError, AttributeError):
        raise UserError(
            "hf: needs the package datasets, which is not installed: "
            "pip install 'distill-workbench[data]'"
        ) from None
    return datasets


def is_saved(options: HubOptions) -> bool:
    """Whether the name is of a folder that save_to_disk left."""
    folder = Path(options.name)
    return any((folder / file).is_file() for file in ("state.json", "dataset_dict.json"))


def saved_rows(options: HubOptions) -> Dataset:
    """A split that save_to_disk left; opened, nothing of it read.

    Raises:
        UserError: if it cannot be opened, has no such split or no rows, or is asked for otherwise.
    """
    if options.streaming:
        raise UserError(
            f"hf: {options.name!r} was saved by save_to_disk and is read in place: leave out "
            "streaming=true"
        )
    if options.config:
        raise UserError(f"hf: {options.name!r} was saved by save_to_disk: leave out config=")
    return _call(options, lambda: _opened_split(options))


def _opened_split(options: HubOptions) -> Dataset:
    folder = Path(options.name)
    if (folder / "dataset_dict.json").is_file():
        splits = json.loads((folder / "dataset_dict.json").read_text())["splits"]
        folder /= _split(options, splits)
    # The library cannot open what it saves of no rows.
    _not_empty(options, bool(json.loads((folder / "state.json").read_text())["_data_files"]))
    found = library().load_from_disk(str(folder))
    if folder == Path(options.name) and options.split not in (None, str(found.split)):
        raise UserError(
            f"hf: {options.name!r} is not split, so it has no {options.split!r}: leave out split="
        )
    _not_empty(options, len(found))
    return found


def builder_of(options: HubOptions) -> DatasetBuilder:
    """What the library knows of a data set before reading it.

    Raises:
        UserError: if it cannot be had, or has no such configuration.
    """
    load = library().load_dataset_builder
    return _call(options, lambda: load(options.name, options.config))


def prepared_rows(options: HubOptions, builder: DatasetBuilder) -> Dataset:
    """A split in the library's own files, which it writes the first time.

    Raises:
        UserError: if that fails, or there is no such split or nothing in it.
    """
    _call(options, builder.download_and_prepare)
    split = _split(options, list(builder.info.splits or {}))
    _not_empty(options, builder.info.splits[split].num_examples)
    return _call(options, lambda: builder.as_dataset(split=split))


def streamed_rows(options: HubOptions, builder: DatasetBuilder) -> tuple[IterableDataset, str]:
    """A split as its files are read, images left undecoded, and the name of their column.

    Raises:
        UserError: if it cannot be read, or there is no such split or column, or nothing in it.
    """
    splits = _call(options, builder.as_streaming_dataset)
    stream = splits[_split(options, list(splits))]
    first = _call(options, lambda: next(iter(_bare(stream).take(1)), None))
    _not_empty(options, first is not None)
    features = dict(stream.features or dict.fromkeys(first))
    column = image_column(options, features)
    return undecoded(stream, column), column


def _split(options: HubOptions, known: list[str]) -> str:
    """The split asked for, else `train`, else the only one."""
    split = options.split or ("train" if "train" in known or len(known) != 1 else known[0])
    if split not in known:
        raise UserError(
            f"hf: {options.name!r} has no split {split!r}{did_you_mean(split, known)}: "
            f"its splits are {', '.join(known)}"
        )
    return split


def image_column(options: HubOptions, features: dict[str, Any]) -> str:
    """The column asked for, else the only one of images, else `image`.

    Raises:
        UserError: if there is none of that name.
    """
    images = [name for name, kind in features.items() if type(kind).__name__ == "Image"]
    wanted = options.column or (images[0] if len(images) == 1 else "image")
    if wanted in features:
        return wanted
    hint = did_you_mean(wanted, features) if options.column else ""
    raise UserError(
        f"hf: {options.name!r} has no column {wanted!r}{hint}: name that of its images with "
        f"column=, one of {', '.join(features)}"
    )


def undecoded(rows: Any, column: str) -> Any:
    """Only that column of rows or of a stream, its values as they are stored, not decoded.

    Raises:
        UserError: if it holds no images, which are bytes, a path, or a struct of both.
    """
    from datasets import Image

    rows = rows.select_columns([column])
    kind = (rows.features or {}).get(column)
    if isinstance(kind, Image):
        return rows.cast_column(column, Image(decode=False))
    stored = getattr(kind, "dtype", None)
    if kind is None or stored in ("binary", "large_binary", "string", "large_string"):
        return rows
    if isinstance(kind, dict) and {"bytes", "path"} & kind.keys():
        return rows
    raise UserError(f"hf: {column!r} is no column of images, it holds {stored or kind}")


def _bare(stream: IterableDataset) -> IterableDataset:
    """Without decoding, which may need packages or memory, whatever the columns are."""
    return stream.decode(False)


def _not_empty(options: HubOptions, rows: int) -> None:
    if not rows:
        raise UserError(f"hf: {options.name!r} has no rows: take another split or data set")


def _call(options: HubOptions, call: Callable[[], Any]) -> Any:
    """The result of a call of the library's, its errors as one line."""
    try:
        return call()
    except UserError:
        raise
    except Exception as error:  # of the library, the Hub, pyarrow
        raise UserError(f"hf: cannot open {options.name!r}: {one_line(error)}") from None


def one_line(error: Exception) -> str:
    """What an error says, on one line of at most 300 characters, without secrets."""
    text = " ".join(str(error).split()) or type(error).__name__
    return without_secrets(text if len(text) <= 300 else text[:297] + "...")
