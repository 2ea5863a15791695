"""Checks of what a recipe lists: known names, nothing twice, sizes that fit; and what they find."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from students.errors import did_you_mean

if TYPE_CHECKING:
    from students.encoder import StudentInfo
    from teachers import TeacherInfo


@dataclass
class Survey:
    """What is known of a recipe before anything is loaded.

    `teachers` and `students` (by `stage/student`) hold those that could be described; `problems`
    has a line for everything that hinders a run.
    """

    problems: list[str] = field(default_factory=list)
    teachers: dict[str, TeacherInfo] = field(default_factory=dict)
    students: dict[str, StudentInfo] = field(default_factory=dict)


def unknown_names(
    path: str, values: list[str], known: Iterable[str], what: str, empty: bool = False
) -> list[str]:
    """A line for each of `values` that is not `known`, or is there twice; `what` names their kind.

    With `empty`, there need not be any.
    """
    known = list(known)
    found = [
        f"{path}: unknown {what} {value!r}{did_you_mean(value, known)}"
        for value in values
        if value not in known
    ]
    if not values and not empty:
        found.append(f"{path}: is empty; give at least one of {', '.join(known)}")
    return found + given_twice(path, values)


def no_multiples(
    path: str, sizes: list[int], students: Mapping[str, StudentInfo | None]
) -> list[str]:
    """A line for each of `sizes` (pixels) that some student's patch does not divide, with the
    nearest that all of them take. Students that could not be described (None) are left out."""
    found = []
    strides = {name: info.stride for name, info in students.items() if info is not None}
    step = math.lcm(*strides.values())
    for index, size in enumerate(sizes):
        if size < 1:
            found.append(f"{path}[{index}]: {size} must be at least 1")
            continue
        failing = [f"{name} ({stride})" for name, stride in strides.items() if size % stride]
        if failing:
            below, above = size // step * step, -(-size // step) * step
            nearest = ", ".join(str(legal) for legal in (below, above) if legal)
            found.append(
                f"{path}[{index}]: {size} is no multiple of the patch of {', '.join(failing)}; "
                f"nearest: {nearest}"
            )
    return found + given_twice(path, sizes)


def given_twice(path: str, values: Sequence[str] | Sequence[int]) -> list[str]:
    """A line for each value that is there more than once."""
    repeated = [value for value, count in Counter(values).items() if count > 1]
    return [f"{path}: {value} is given twice" for value in repeated]
