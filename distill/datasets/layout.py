"""How a data set is asked for, `LAYOUT:PATH,key=value`, and what a layout is."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from distill.datasets.parts import EvaluationSet
from students.errors import UserError, did_you_mean

_KEY_VALUE = re.compile(r"\s*([A-Za-z]\w*)\s*=(.*)", re.DOTALL)


@dataclass(frozen=True)
class Request:
    """What was asked for: the layout's name, what stands behind the colon, and the keys."""

    layout: str
    path: str
    options: Mapping[str, str]

    def error(self, message: str) -> UserError:
        """One line that begins with the layout's name."""
        return UserError(f"{self.layout}: {message}")

    def folder(self) -> Path:
        """The path, which has to be a folder.

        Raises:
            UserError: if it is none; with the nearest name beside it.
        """
        return self.existing(self.path, is_folder=True)

    def file(self) -> Path:
        """The path, which has to be a file.

        Raises:
            UserError: as `folder`.
        """
        return self.existing(self.path, is_folder=False)

    def existing(self, text: str, is_folder: bool) -> Path:
        """A path that has to be a folder, or a file.

        Raises:
            UserError: as `folder`.
        """
        what, other = ("folder", "file") if is_folder else ("file", "folder")
        if not text:
            raise self.error(f"needs the path of a {what}")
        path = Path(text).expanduser()
        if path.is_dir() if is_folder else path.is_file():
            return path
        if path.exists():
            raise self.error(f"{text!r} is no {what} but a {other}")
        before, comma, behind = text.rpartition(",")
        if comma and Path(before).expanduser().exists():
            raise self.error(f"{behind!r} is not key=value")
        raise self.error(f"the {what} {text!r} does not exist{_nearest(path)}")

    def text(self, key: str) -> str | None:
        """The value of a key, None if it was not given."""
        return self.options.get(key)

    def whole(self, key: str, default: int, least: int) -> int:
        """A whole number of at least `least`.

        Raises:
            UserError: if the value is none.
        """
        value = self.options.get(key)
        if value is None:
            return default
        if not (value.isascii() and value.isdigit() and int(value) >= least):
            raise self.error(f"{key}={value} must be a whole number of at least {least}")
        return int(value)

    def positive(self, key: str, default: float) -> float:
        """A number above 0.

        Raises:
            UserError: if the value is none.
        """
        value = self.options.get(key)
        if value is None:
            return default
        try:
            number = float(value)
        except ValueError:
            number = 0.0
        if not 0 < number < float("inf"):
            raise self.error(f"{key}={value} must be a number above 0")
        return number


@dataclass(frozen=True)
class Layout:
    """A way in which data sets lie on disk.

    `example`: how one is written; `keys`: those that may follow its path; `parts`: what it offers,
    keys of EvaluationSet.parts.
    """

    name: str
    example: str
    keys: tuple[str, ...]
    parts: tuple[str, ...]
    open: Callable[[Request], EvaluationSet]


def requested(spec: str, layouts: Mapping[str, Layout]) -> tuple[Layout, Request]:
    """A spec taken apart. Commas belong to the path unless `key=` follows up to the end.

    Raises:
        UserError: no layout, an unknown one, a key that it does not know, a key given twice.
    """
    name, colon, rest = spec.partition(":")
    name = name.strip()
    if not colon:
        raise UserError(
            f"the data set {spec!r} does not say its layout: write LAYOUT:PATH, as in "
            f"imagenet:/data/imagenet (layouts: {', '.join(layouts)})"
        )
    if name not in layouts:
        near = did_you_mean(name, layouts)
        raise UserError(f"unknown layout {name!r} of the data set {spec!r}{near}")
    layout = layouts[name]
    pathless = layout.example.partition(":")[2].startswith(tuple(f"{k}=" for k in layout.keys))
    parts = rest.split(",")
    first = len(parts)
    while first > (not pathless) and _KEY_VALUE.fullmatch(parts[first - 1]):
        first -= 1
    request = Request(name, ",".join(parts[:first]).strip(), _options(layout, parts[first:]))
    if pathless and request.path:
        raise request.error(f"{request.path!r} is not key=value: write {layout.example}")
    return layout, request


def _options(layout: Layout, parts: Sequence[str]) -> dict[str, str]:
    given: dict[str, str] = {}
    for part in parts:
        key, _, value = part.partition("=")
        key, value = key.strip(), value.strip()
        if key not in layout.keys:
            near = did_you_mean(key, layout.keys) or " (it has none)"
            raise UserError(f"{layout.name}: has no key {key!r}{near}")
        if key in given:
            raise UserError(f"{layout.name}: {key}= is there twice")
        if not value:
            raise UserError(f"{layout.name}: {key}= has no value")
        given[key] = value
    return given


def _nearest(path: Path) -> str:
    """What the nearest folder that is there holds, by its nearest name."""
    missing = path
    while not missing.parent.is_dir() and missing.parent != missing:
        missing = missing.parent
    try:
        beside = [entry.name for entry in missing.parent.iterdir() if entry.name[0] != "."]
    except OSError:
        return ""
    near = did_you_mean(missing.name, beside)
    return near if missing == path else f": there is no {str(missing)!r}{near}"
