"""Which folder holds the training pictures, and which the test pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from distill.datasets.files import is_there, need
from distill.datasets.layout import Request

TRAIN = ("train", "training")
TEST = ("test", "val", "validation")
"""Names that a split's folder may have, in the order in which they are looked for."""


def split_name(
    request: Request,
    folder: Path,
    key: str,
    choices: Sequence[str],
    expected: str,
    beside: Sequence[Path] = (),
) -> str:
    """The folder of a split: what `key` says, else the first of the choices that is there.

    One that is in a folder of `beside` too, where the maps lie, comes before one that is not: test
    pictures are often given without their maps.

    Raises:
        UserError: if there is none; says what was expected and what is there.
    """
    given = request.text(key)
    both = [c for c in choices if any((other / c).is_dir() for other in beside)]
    name = is_there(folder, (given,) if given else (*both, *choices))
    if name is None:
        missing = f"{given}/" if given else " or ".join(f"{choice}/" for choice in choices)
        raise need(request, folder, missing, expected)
    return name
