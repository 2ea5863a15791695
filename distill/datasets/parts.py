"""What an evaluation data set offers a task, whatever files it was read from.

Pictures are IndexedSources: `read(i)` (3, H, W) uint8 RGB of any size, `name(i)`, `len()`. What
goes with a picture is read when it is asked for, at the picture's own size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from distill.data.source import IndexedSource

IGNORE = -100
"""The class of pixels that count nowhere: torch's cross-entropy leaves it out by itself."""


@dataclass(frozen=True)
class Labelled:
    """Pictures with a class each: `labels` (N,) int64."""

    pictures: IndexedSource
    labels: Tensor


@dataclass(frozen=True)
class Classification:
    """A training and a test split, and the names of the classes, by number."""

    train: Labelled
    test: Labelled
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Annotated:
    """Pictures with a map each: `truth(i)` (H, W) at the size of picture i."""

    pictures: IndexedSource
    truth: Callable[[int], Tensor]


@dataclass(frozen=True)
class Segmentation:
    """Maps of classes, int64 in [0, len(classes)) or IGNORE."""

    train: Annotated
    test: Annotated
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Depth:
    """Maps of metres (or the set's own `unit`), float32, 0 where nothing is known.

    `near` and `far` bound what is learnt and scored; `crop` (top, bottom, left, right) in pixels is
    all that is scored of a test image, None for the whole of it.
    """

    train: Annotated
    test: Annotated
    near: float
    far: float
    crop: tuple[int, int, int, int] | None = None
    unit: str = "m"


@dataclass(frozen=True)
class KeypointPair:
    """Keypoints seen in both of two pictures: `source` and `target` are their numbers.

    Points (K, 2) float32 are x and y in pixels of the picture's own size, in the same order; whole
    numbers are the middles of pixels.
    `reach`: the longer side of the target object's box, of which PCK takes a share.
    """

    source: int
    target: int
    source_points: Tensor
    target_points: Tensor
    reach: float
    category: str = ""


@dataclass(frozen=True)
class Correspondence:
    """Pairs of pictures, the test split alone: nothing is trained."""

    pictures: IndexedSource
    pairs: tuple[KeypointPair, ...]


@dataclass(frozen=True)
class Captions:
    """Captions with the number of their picture: `owner` (C,) int64; a picture has at least one."""

    pictures: IndexedSource
    captions: tuple[str, ...]
    owner: Tensor


@dataclass(frozen=True)
class Landmarks:
    """Queries (already cut to their boxes) and a gallery; for each query the gallery numbers that
    are `easy`, `hard` or `junk`, int64."""

    queries: IndexedSource
    gallery: IndexedSource
    easy: tuple[Tensor, ...]
    hard: tuple[Tensor, ...]
    junk: tuple[Tensor, ...]


@dataclass(frozen=True)
class Instances:
    """Maps of objects, int64, 0 the background; the test split alone."""

    test: Annotated


Part = Classification | Segmentation | Depth | Correspondence | Captions | Landmarks | Instances


@dataclass(frozen=True)
class EvaluationSet:
    """A data set as it was named and opened. `parts` by "classification", "segmentation", "depth",
    "correspondence", "captions", "landmarks" or "instances": what it can be used for. `pictures`
    are those of its test split, whatever the part.

    `notes` are lines for the user: what of it is left out.

    `identity` tells this content from any other (of names, sizes and times of change of its
    files); features that are kept on disk are filed under it.
    """

    name: str
    layout: str
    identity: str
    pictures: IndexedSource
    parts: Mapping[str, Part]
    notes: tuple[str, ...] = ()
