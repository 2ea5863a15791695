"""Maps that go with pictures: classes, objects or depth, at the full depth of their files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from distill.data.folder import EXTENSIONS
from distill.data.source import BadSample
from distill.datasets.files import Identity, Names, count, few, is_there, listed, need
from distill.datasets.layout import Request
from distill.datasets.parts import IGNORE
from distill.datasets.pictures import Pictures
from students.errors import UserError

ENDINGS = (".png", ".tif", ".tiff", ".bmp", ".gif")
"""Of maps: formats without loss."""

_WIDENED = {"L;2": 85, "L;4": 17}
"""By how much Pillow multiplies grey values of 2 and 4 bits."""


def read_map(path: str) -> NDArray[np.int64]:
    """(H, W) values of a file with one channel as they are stored, a palette's numbers and not its
    colours; EXIF turns nothing.

    Raises:
        UserError: if it cannot be read, or has several channels.
    """
    return _read(path).astype(np.int64)


def _read(path: str) -> NDArray[np.generic]:
    try:
        with Image.open(path) as image:
            mode, tile = image.mode, image.tile
            values = np.array(image)
    except Exception as error:  # Pillow's decoders raise nearly every type there is
        raise UserError(f"cannot read {path!r}: {' '.join(str(error).split())}") from None
    if mode not in ("1", "L", "P", "I") and not mode.startswith("I;16"):
        raise UserError(f"{path} has pixels of mode {mode}: a map has one channel of whole numbers")
    stored = tile[0].args if tile else None
    stored = stored[0] if isinstance(stored, tuple) else stored
    return values // _WIDENED.get(str(stored), 1) if mode == "L" else values


@dataclass(frozen=True)
class Maps:
    """Map files of pictures, by number; `folder` and `names` as in Pictures."""

    pictures: Pictures
    folder: Path
    names: Names

    def path(self, index: int) -> str:
        """Of the map's file."""
        return os.path.join(self.folder, self.names[index])  # noqa: PTH118 - no Path is made

    def fitting(self, index: int, values: NDArray[np.generic]) -> None:
        """Checks that a map is as large as its picture.

        Raises:
            UserError: if it is not: both names and sizes.
        """
        size = (values.shape[0], values.shape[1])
        try:
            with Image.open(self.pictures.path(index)) as image:
                if (image.height, image.width) == size:
                    return
            # EXIF may turn the picture: only now is it worth reading.
            own = tuple(self.pictures.read(index).shape[1:])
        except (OSError, ValueError, SyntaxError, BadSample):
            return  # whoever reads the picture will say so
        if own != size:
            raise UserError(
                f"{self.path(index)} is {size[1]} x {size[0]} pixels and its picture "
                f"{self.pictures.name(index)} {own[1]} x {own[0]}"
            )


@dataclass(frozen=True)
class ClassMaps(Maps):
    """(H, W) int64 of classes: the stored value less `first`; IGNORE where it is `ignore`."""

    classes: int
    first: int
    ignore: int | None

    def __call__(self, index: int) -> Tensor:
        """Map `index`.

        Raises:
            UserError: as `read_map` and `fitting`, or a value that is no class.
        """
        values = read_map(self.path(index))
        self.fitting(index, values)
        ignored = (
            np.zeros_like(values, dtype=bool) if self.ignore is None else values == self.ignore
        )
        wrong = values[~ignored & ((values < self.first) | (values >= self.first + self.classes))]
        if len(wrong):
            beside = "" if self.ignore is None else f", or {self.ignore} for nothing"
            raise UserError(
                f"{self.path(index)} has the value {wrong[0]} ({count(len(wrong), 'pixel')} out of "
                f"range): classes are {self.first} to {self.first + self.classes - 1}{beside}"
            )
        return torch.from_numpy(np.where(ignored, IGNORE, values - self.first))


@dataclass(frozen=True)
class InstanceMaps(Maps):
    """(H, W) int64 of objects, 0 the background."""

    def __call__(self, index: int) -> Tensor:
        """Map `index`; raises UserError as `read_map` and `fitting`."""
        values = read_map(self.path(index))
        self.fitting(index, values)
        return torch.from_numpy(values)


@dataclass(frozen=True)
class DepthMaps(Maps):
    """(H, W) float32: the stored 16-bit value over `scale`, 0 where nothing is known.

    `size` (height, width): of every map, None for any.
    """

    scale: float
    size: tuple[int, int] | None = None

    def __call__(self, index: int) -> Tensor:
        """Map `index`.

        Raises:
            UserError: as `read_map` and `fitting`; not of 16 bits, or not of `size`.
        """
        values = _read(self.path(index))
        if values.dtype.itemsize < 2:
            raise UserError(f"{self.path(index)} has 8 bits a pixel: depth is a 16-bit PNG")
        if self.size is not None and values.shape != self.size:
            raise UserError(
                f"{self.path(index)} is {values.shape[1]} x {values.shape[0]} pixels: what is "
                f"scored lies within {self.size[1]} x {self.size[0]}"
            )
        self.fitting(index, values)
        return torch.from_numpy((values.astype(np.float64) / self.scale).astype(np.float32))


@dataclass(frozen=True)
class MapFolder:
    """Where the maps of a data set lie: the first of the folders `maps` that is there, and what a
    map is called in messages."""

    maps: tuple[str, ...]
    word: str


def paired(
    request: Request, folder: Path, split: str, kind: MapFolder, identity: Identity
) -> tuple[Pictures, Names, Path]:
    """Pictures of images/SPLIT, and the names of their maps with the folder that they lie in; a map
    has its picture's path but for the ending.

    Raises:
        UserError: a folder is missing or empty, or pictures and maps do not pair.
    """
    expected = f"images/{split}*.jpg and {kind.maps[0]}/{split}*.png"
    images = folder / "images" / split
    found = is_there(folder, [f"{name}/{split}" for name in kind.maps])
    if not images.is_dir() or found is None:
        missing = "images" if not images.is_dir() else " or ".join(kind.maps)
        raise need(request, folder, f"{missing}/{split}", expected)
    pictures = _by_stem(images, EXTENSIONS, identity)
    maps = _by_stem(folder / found, ENDINGS, identity)
    if not pictures:
        raise request.error(f"no image in {str(images)!r}: expected {expected}")
    without = [name for stem, name in pictures.items() if stem not in maps]
    alone = [name for stem, name in maps.items() if stem not in pictures]
    if without or alone:
        said = []
        if without:
            said.append(f"{count(len(without), 'image')} without {kind.word}: {few(without)}")
        if alone:
            said.append(f"{count(len(alone), kind.word)} without image: {few(alone)}")
        raise request.error(
            f"images/{split} and {found} in {str(folder)!r} do not pair by name: {'; '.join(said)}"
        )
    inside = f"images/{split}"
    return (
        Pictures(folder, Names(inside + name for name in pictures.values())),
        Names(maps[stem] for stem in pictures),
        folder / found,
    )


def _by_stem(folder: Path, endings: Sequence[str], identity: Identity) -> dict[str, str]:
    """Raises UserError if two files differ by their ending alone."""
    found: dict[str, str] = {}
    identity.words(folder.name)
    for entry in listed(folder, tuple(endings)):
        stem = entry.name.rpartition(".")[0]
        if stem in found:
            raise UserError(f"{folder}: {found[stem]} and {entry.name} are named alike")
        found[stem] = entry.name
        identity.entry(entry)
    return found
