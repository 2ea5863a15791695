"""The files of a data set: what lies in a folder, what it is told apart by, what is wrong."""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from distill.datasets.layout import Request
from students.errors import UserError

SHOWN = 3
"""Names that a message gives before it only counts."""


class Entry(NamedTuple):
    """A file: its path under the folder that was listed, bytes, time of change in ns."""

    name: str
    size: int
    changed: int


class Identity:
    """A sha256 of names, sizes and times of change, so that the content need not be read."""

    def __init__(self, request: Request):
        self._hash = hashlib.sha256()
        self.words(request.layout, *(f"{k}={v}" for k, v in sorted(request.options.items())))

    def words(self, *words: str) -> None:
        """Take in texts, each with its bounds."""
        for word in words:
            data = os.fsencode(word)
            self._hash.update(b"%d:" % len(data) + data)

    def entry(self, entry: Entry) -> None:
        """Take in a file that was listed."""
        self.words(entry.name, f"{entry.size} {entry.changed}")

    def files(self, folder: Path, names: Iterable[str]) -> list[str]:
        """Take in files by name; returns those that are not there, in order."""
        missing = []
        for name in names:
            try:
                status = os.stat(os.path.join(folder, name))  # noqa: PTH116, PTH118 - no Path made
            except OSError:
                missing.append(name)
                continue
            self.entry(Entry(name, status.st_size, status.st_mtime_ns))
        return missing

    def digest(self) -> str:
        """64 hexadecimal digits."""
        return self._hash.hexdigest()


class Names(Sequence[str]):
    """Very many texts in two blocks of memory: their bytes, and 8 more each."""

    def __init__(self, names: Iterable[str]):
        text, ends = bytearray(), array("q")
        for name in names:
            text += os.fsencode(name)
            ends.append(len(text))
        self._text, self._ends = bytes(text), np.array(ends, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"name {index} of {len(self)}")
        index %= len(self)
        begin = int(self._ends[index - 1]) if index else 0
        return os.fsdecode(self._text[begin : int(self._ends[index])])


def listed(
    folder: Path,
    endings: tuple[str, ...],
    inside: str = "",
    above: tuple[tuple[int, int], ...] = (),
) -> Iterator[Entry]:
    """Files with one of the endings (in any case) at any depth, sorted by path, without those whose
    name begins with a dot; a folder at a time is held. `above`: folders that are being listed, by
    device and inode: a link back to one of them is passed over.

    Raises:
        UserError: if a folder or a file cannot be read.
    """
    if not above:
        own = (folder / inside).stat()
        above = ((own.st_dev, own.st_ino),)
    found: list[tuple[bytes, os.stat_result]] = []
    for entry in _entries(folder / inside):
        is_folder = entry.is_dir()
        if is_folder or entry.name.lower().endswith(endings):
            try:
                status = entry.stat()
            except OSError as error:
                raise _unreadable(error, entry.path) from None
            found.append((os.fsencode(inside + entry.name) + b"/" * is_folder, status))
    for encoded, status in sorted(found, key=lambda one: one[0]):
        name = os.fsdecode(encoded)
        if not name.endswith("/"):
            yield Entry(name, status.st_size, status.st_mtime_ns)
        elif (status.st_dev, status.st_ino) not in above:
            here = (*above, (status.st_dev, status.st_ino))
            yield from listed(folder, endings, name, here)


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Raises UserError if the folder cannot be read."""
    try:
        with os.scandir(folder) as entries:
            yield from (entry for entry in entries if not entry.name.startswith("."))
    except OSError as error:
        raise _unreadable(error, str(folder)) from None


def _unreadable(error: OSError, path: str) -> UserError:
    return UserError(f"cannot read {error.filename or path!r}: {error.strerror}")


def folders_in(folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted, without those that begin with a dot.

    Raises:
        UserError: if it cannot be read.
    """
    return sorted(entry.name for entry in _entries(folder) if entry.is_dir())


def is_there(folder: Path, choices: Sequence[str]) -> str | None:
    """The first of the choices that is a folder there."""
    return next((name for name in choices if (folder / name).is_dir()), None)


def need(request: Request, folder: Path, missing: str, expected: str) -> UserError:
    """A folder that is not laid out as it should be: what is missing, expected and there."""
    there = sorted(entry.name + "/" * entry.is_dir() for entry in _entries(folder))
    found = f"there are {few(there)}" if there else "it is empty"
    for name in folders_in(folder):
        if (folder / name / missing.rstrip("/")).exists():
            found += f"; did you mean {str(folder / name)!r}?"
            break
    return request.error(f"no {missing} in {str(folder)!r}: expected {expected}; {found}")


def few(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    shown = ", ".join(names[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN} more"


def count(number: int, one: str, many: str | None = None) -> str:
    """ "1 picture", "2 pictures"."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        UserError: it cannot be read, or is broken: in which line.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {str(path)!r}: {error.strerror}") from None
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}, line {error.lineno}: broken JSON: {error.msg} (column {error.colno})"
        ) from None
    except (UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} is no JSON: {error}") from None


def field(record: Any, key: str, kind: type | tuple[type, ...], where: str) -> Any:
    """A value of a JSON object.

    Raises:
        UserError: if it is not there, or of another kind; begins with `where`.
    """
    if not isinstance(record, dict) or key not in record:
        there = few(list(record)) if isinstance(record, dict) else type(record).__name__
        raise UserError(f"{where}: there is no {key!r}, only {there or 'an empty object'}")
    value = record[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise UserError(f"{where}: {key!r} is {str(value)[:40]!r}, of the wrong kind")
    return value


def lines_of(path: Path) -> list[str]:
    """The lines of a text file, without space at their ends and without empty ones at its end.

    Raises:
        UserError: if it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {str(path)!r}: {error}") from None
