"""Pictures of an evaluation data set: files by number, read when asked for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from distill.data.decode import read_image
from distill.data.source import BadSample
from distill.datasets.files import Names

Box = tuple[float, float, float, float]


class Pictures:
    """Image files of a folder, an IndexedSource. `names` are paths relative to `folder`."""

    def __init__(self, folder: Path, names: Sequence[str]):
        self.folder = folder
        self.names = names if isinstance(names, Names) else Names(names)

    def __len__(self) -> int:
        return len(self.names)

    def path(self, index: int) -> str:
        """Of the file."""
        return os.path.join(self.folder, self.names[index])  # noqa: PTH118 - no Path is made

    def read(self, index: int) -> Tensor:
        """See Source.read."""
        try:
            return read_image(self.path(index))
        except OSError as error:
            raise BadSample(self.name(index), error.strerror or str(error)) from error
        except ValueError as error:
            raise BadSample(self.name(index), str(error)) from error

    def name(self, index: int) -> str:
        """See Source.name."""
        return self.names[index]


class CutPictures:
    """Pictures cut to boxes (left, top, right, bottom) in pixels, rounded to whole ones and to what
    lies within the picture; a box is part of the name, so that no cut bears the whole's."""

    def __init__(self, pictures: Pictures, boxes: Sequence[Box]):
        self.pictures, self.boxes = pictures, boxes

    def __len__(self) -> int:
        return len(self.pictures)

    def read(self, index: int) -> Tensor:
        """See Source.read; BadSample too if nothing of the box is in the picture."""
        whole = self.pictures.read(index)
        height, width = whole.shape[1:]
        left, top, right, bottom = (round(edge) for edge in self.boxes[index])
        cut = whole[:, max(0, top) : max(0, bottom), max(0, left) : max(0, right)]
        if not cut.numel():
            raise BadSample(self.name(index), f"no pixel of {width} x {height} is in the box")
        return cut.clone()

    def name(self, index: int) -> str:
        """The file's name and the box."""
        return f"{self.pictures.name(index)} ({', '.join(f'{e:g}' for e in self.boxes[index])})"
