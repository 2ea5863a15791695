"""Where training images come from: a folder of files, or scenes that are drawn.

A source is named by one line, `scheme:rest`; SCHEMES lists what is known.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from distill.data.decode import read_image
from distill.scenes.dataset import Scenes
from students.errors import UserError, did_you_mean

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
"""Endings, in any case, that make a file an image."""

VALIDATION_WORLDS = 10_000
"""World seeds from here up are what probes are scored on: no training image may show them."""


class BadSample(Exception):  # noqa: N818 - an event that the loader counts, not a user's error
    """A sample that cannot be decoded: `name` and `reason`, one line."""

    def __init__(self, name: str, reason: str):
        super().__init__(f"{name}: {reason}")
        self.name, self.reason = name, reason


class Source(Protocol):
    """Images by index. The same index gives the same image in every process."""

    def __len__(self) -> int:
        """How many samples there are, at least 1."""

    def read(self, index: int) -> Tensor:
        """(3, H, W) uint8 RGB of sample `index`, 0 <= index < len.

        Raises:
            BadSample: if it cannot be decoded.
        """

    def name(self, index: int) -> str:
        """What a person calls sample `index`: for a file, its path within the folder."""


class FolderSource:
    """Every image file under a folder, at any depth, sorted by path (`/` between parts).

    Names that begin with a dot are left out; each folder is read once, whatever links lead to it.

    Raises:
        UserError: if there is no such folder, it cannot be listed, or no image is in it.
    """

    example: ClassVar[str] = "folder:PATH"

    def __init__(self, rest: str):
        if problem := self.check(rest):
            raise UserError(problem)
        self.folder = Path(rest).expanduser()
        self.paths = sorted(_image_files(self.folder))

    @staticmethod
    def check(rest: str) -> str | None:
        """What is wrong with `folder:rest`, one line, or None; looks no further than one image."""
        if not rest:
            return "folder: needs a path, as in folder:/data/images"
        folder = Path(rest).expanduser()
        if not folder.is_dir():
            what = "is a file, not a folder" if folder.exists() else "does not exist"
            return f"the image folder {str(folder)!r} {what}: give the folder that holds the images"
        try:
            if next(_image_files(folder), None) is None:
                return (
                    f"no image in the folder {str(folder)!r}: looked at any depth for "
                    f"{' '.join(EXTENSIONS)}, found {_what_is_there(folder)}"
                )
        except UserError as error:
            return str(error)
        return None

    @staticmethod
    def count(rest: str) -> int:
        """How many images `folder:rest` has; opens none."""
        return len(FolderSource(rest))

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> Tensor:
        """See Source.read."""
        name = self.paths[index]
        try:
            return read_image(self.folder / name)
        except Exception as error:  # Pillow's plugins raise nearly every type there is
            reason = " ".join(str(error).split()) or type(error).__name__
            raise BadSample(name, reason.replace(str(self.folder) + os.sep, "")) from error

    def name(self, index: int) -> str:
        """See Source.name."""
        return self.paths[index]


@dataclass(frozen=True)
class _SceneOptions:
    count: int = 8192
    size: int = 96
    seed: int = 0


class ScenesSource:
    """Images of the procedural world: `count` scenes of world `seed`, `size` pixels square.

    They are rendered the first time and kept in the cache folder.

    Raises:
        UserError: for an unknown key, a value that is no legal integer, or a world that is kept
            for validation.
    """

    example: ClassVar[str] = "scenes:count=8192,size=96,seed=0"

    def __init__(self, rest: str):
        options = _scene_options(rest)
        self.seed = options.seed
        self.images = Scenes(options.count, options.size, options.seed).images

    @staticmethod
    def check(rest: str) -> str | None:
        """What is wrong with `scenes:rest`, one line, or None; draws nothing."""
        try:
            _scene_options(rest)
        except UserError as error:
            return str(error)
        return None

    @staticmethod
    def count(rest: str) -> int:
        """How many images `scenes:rest` has; draws nothing."""
        return _scene_options(rest).count

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> Tensor:
        """See Source.read; never a bad sample."""
        return torch.from_numpy(np.array(self.images[index]))

    def name(self, index: int) -> str:
        """`scene SEED:INDEX`."""
        return f"scene {self.seed}:{index}"


SCHEMES: dict[str, type[FolderSource] | type[ScenesSource]] = {
    "folder": FolderSource,
    "scenes": ScenesSource,
}


def count_samples(spec: str) -> int:
    """How many images a source has, without making them.

    Raises:
        UserError: as `open_source`.
    """
    scheme, rest = _split(spec)
    return SCHEMES[scheme].count(rest)


def open_source(spec: str) -> Source:
    """The source that `spec` names: `folder:PATH` or `scenes:count=8192,size=96,seed=0`.

    Raises:
        UserError: if the scheme is unknown or the rest is wrong.
    """
    scheme, rest = _split(spec)
    return SCHEMES[scheme](rest)


def check_source(spec: str) -> str | None:
    """What is wrong with `spec`, in one line, or None. Decodes no image and draws no scene."""
    try:
        scheme, rest = _split(spec)
    except UserError as error:
        return str(error)
    return SCHEMES[scheme].check(rest)


def _split(spec: str) -> tuple[str, str]:
    scheme, colon, rest = spec.partition(":")
    examples = " or ".join(kind.example for kind in SCHEMES.values())
    if not colon:
        raise UserError(f"the source {spec!r} does not say of what kind it is: write {examples}")
    if scheme not in SCHEMES:
        hint = did_you_mean(scheme, SCHEMES)
        raise UserError(f"unknown kind of source {scheme!r} in {spec!r}{hint}: write {examples}")
    return scheme, rest.strip()


def _image_files(folder: Path) -> Iterator[str]:
    """Paths of image files, relative to `folder`, in the order of the walk.

    Raises:
        UserError: if a folder cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"cannot list the folder {error.filename!r}: {error.strerror}")

    seen: set[tuple[int, int]] = set()
    for here, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        status = Path(here).stat()
        if (status.st_dev, status.st_ino) in seen:  # a link back: images would come twice, or ever
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inside = Path(here).relative_to(folder)
        for name in files:
            if name.lower().endswith(EXTENSIONS) and not name.startswith("."):
                yield (inside / name).as_posix()


def _what_is_there(folder: Path) -> str:
    """`nothing`, or a few of the names in the folder itself."""
    names = sorted(path.name for path in folder.iterdir())
    if not names:
        return "nothing"
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _scene_options(rest: str) -> _SceneOptions:
    known = {"count": 1, "size": 8, "seed": 0}  # key: smallest legal value
    given: dict[str, int] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = (text.strip() for text in part.partition("="))
        if not equals:
            raise UserError(f"scenes: {part!r} is not key=value: write {ScenesSource.example}")
        if key not in known:
            raise UserError(f"scenes: has no option {key!r}{did_you_mean(key, known)}")
        if not (value.isascii() and value.isdigit() and int(value) >= known[key]):
            raise UserError(
                f"scenes: {key}={value} must be a whole number of at least {known[key]}"
            )
        given[key] = int(value)
    options = _SceneOptions(**given)
    if options.seed >= VALIDATION_WORLDS:
        raise UserError(
            f"scenes: seed={options.seed} is a world kept for validation: "
            f"train on a seed below {VALIDATION_WORLDS}"
        )
    return options
