"""Source `folder:`: the image files under a folder, or those that a file lists."""

from __future__ import annotations

import codecs
import heapq
import os
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from distill.data.decode import MAX_PIXELS, read_image
from distill.data.path_list import PathList
from distill.data.source import BadSample
from distill.scenes.dataset import cache_folder
from students.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
"""Endings, in any case, that make a file of a folder an image."""

_BLOCK = 1 << 20


class FolderSource:
    """Every image file under a folder, at any depth, sorted by path (`/` between parts).

    Names that begin with a dot are left out; each folder is read once, whatever links lead to it.

    A file in place of the folder is a list: a path a line, absolute or relative to the list's own
    folder, in the order of the list and with its repetitions; blank lines and lines that begin
    with `#` do not count. What is listed need not have an image's ending, and is opened only when
    it is read.

    The listing is made on opening and lies in nameless files in the cache folder, so memory does
    not grow with the number of images.

    Args:
        rest: the path; `~` is the home folder.
        max_pixels: see distill.data.decode.decode_image_bytes.

    Raises:
        UserError: if there is no such folder or list, it cannot be read, or no image is in it.
    """

    example: ClassVar[str] = "folder:PATH"

    def __init__(self, rest: str, max_pixels: int = MAX_PIXELS):
        if problem := self.check(rest):
            raise UserError(problem)
        self.rest, self.max_pixels = rest, max_pixels
        given = Path(rest).expanduser()
        listed = given.is_file()
        self.folder = given.parent if listed else given
        found = _listed_files(given) if listed else _image_files(given)
        try:
            self._paths = PathList(found, cache_folder(), in_order=not listed)
        except OSError as error:
            raise UserError(
                f"the paths of {str(given)!r} cannot be kept in the cache folder "
                f"{str(cache_folder())!r}: {error.strerror}; set DISTILL_CACHE to a folder with "
                f"room"
            ) from error

    def __reduce__(self) -> tuple[type[FolderSource], tuple[str, int]]:
        """A process that is not forked makes the listing anew."""
        return FolderSource, (self.rest, self.max_pixels)

    @staticmethod
    def check(rest: str) -> str | None:
        """What is wrong with `folder:rest`, one line, or None; looks no further than one image."""
        if not rest:
            return "folder: needs a path, as in folder:/data/images or folder:/data/list.txt"
        given = Path(rest).expanduser()
        try:
            if given.is_dir():
                return None if any(True for _ in _image_files(given)) else _no_image_in(given)
            if given.is_file():
                return _wrong_list(given)
        except UserError as error:
            return str(error)
        what = "is no folder and no regular file" if given.exists() else "does not exist"
        return (
            f"the image folder {str(given)!r} {what}: give the folder that holds the images, or "
            f"a text file that lists them"
        )

    @staticmethod
    def count(rest: str) -> int:
        """How many images `folder:rest` has; opens none.

        Raises:
            UserError: as the source itself.
        """
        if problem := FolderSource.check(rest):
            raise UserError(problem)
        given = Path(rest).expanduser()
        return sum(1 for _ in (_listed_files(given) if given.is_file() else _image_files(given)))

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, index: int) -> Tensor:
        """See Source.read."""
        name = self.name(index)
        try:
            return read_image(os.path.join(self.folder, name), self.max_pixels)  # noqa: PTH118 - no Path made
        except OSError as error:
            raise BadSample(name, error.strerror or str(error)) from error
        except ValueError as error:
            raise BadSample(name, str(error)) from error

    def name(self, index: int) -> str:
        """See Source.name; of a list, the line."""
        return os.fsdecode(self._paths[index])


def _image_files(folder: Path) -> Iterator[bytes]:
    """Paths of image files, relative to `folder`, in no order; no folder is held as a whole.

    Raises:
        UserError: if a folder cannot be listed.
    """
    seen: set[tuple[int, int]] = set()
    waiting = [""]
    while waiting:
        inside = waiting.pop()
        here = folder / inside
        folders: list[str] = []
        try:
            status = here.stat()
            if (status.st_dev, status.st_ino) in seen:  # a link back: images would come twice
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(here) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if _is_folder(entry):
                        folders.append(inside + entry.name + "/")
                    elif entry.name.lower().endswith(EXTENSIONS):
                        yield os.fsencode(inside + entry.name)
        except OSError as error:
            raise UserError(
                f"cannot list the folder {error.filename or str(here)!r}: {error.strerror}"
            ) from error
        waiting += sorted(folders, reverse=True)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads round in a circle
        return False


def _listed_files(file: Path) -> Iterator[bytes]:
    """The lines of a list that name something, in their order.

    Raises:
        UserError: if it cannot be read.
    """
    try:
        with file.open("rb") as lines:
            if lines.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
                lines.seek(0)
            while block := lines.readlines(_BLOCK):
                for line in block:
                    path = line.strip()
                    if path and not path.startswith(b"#"):
                        yield path
    except OSError as error:
        raise UserError(f"cannot read the list {str(file)!r}: {error.strerror}") from error


def _wrong_list(file: Path) -> str | None:
    if file.suffix.lower() in EXTENSIONS:
        return (
            f"{str(file)!r} is a file, an image by its name: give the folder that holds the "
            f"images, or a text file that lists them"
        )
    first = next(_listed_files(file), None)
    if first is None:
        return f"the list {str(file)!r} names no image: write a path a line"
    if b"\0" in first:
        return f"{str(file)!r} is a file, and no list of images: it is not text"
    return None


def _no_image_in(folder: Path) -> str:
    """With a few of the names in the folder itself."""
    names = heapq.nsmallest(3, (path.name for path in folder.iterdir()))
    count = sum(1 for _ in folder.iterdir())
    there = ", ".join(names) + (f" and {count - 3} more" if count > 3 else "")
    return (
        f"no image in the folder {str(folder)!r}: looked at any depth for "
        f"{' '.join(EXTENSIONS)}, found {there or 'nothing'}"
    )
