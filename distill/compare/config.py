"""The `compare` section of a recipe."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

SUBSETS = ("all", "leave_one_out")


@dataclass
class CompareConfig:
    """Which subsets of the teachers are compared, and by which path.

    `teachers`: those that vary (default: all of the recipe; the others stay in every subset).
    `subsets`: `all` that name at least one of them, `leave_one_out` (all of them, then all but
    one), or a list of lists of names; `sizes` keeps the subsets of so many teachers. `through`:
    the stages to go through (default: all); where a stage is left out, a reference to its student
    stands for what that student learns from, or starts from. `seeds`: each subset is trained once
    for each. `tasks`: those of `validate.tasks` that the answer counts (default: all).
    """

    teachers: list[str] = field(default_factory=list)
    subsets: Any = "all"
    sizes: list[int] = field(default_factory=list)
    through: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    tasks: list[str] = field(default_factory=list)
