"""Source `folder:`: the image files under a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from distill.data.decode import read_image
from distill.data.source import BadSample
from students.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
"""Endings, in any case, that make a file an image."""


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
