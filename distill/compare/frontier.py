"""Quality against cost: which subsets of teachers nothing beats at their cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from distill.compare.subsets import Subset


@dataclass(frozen=True)
class Costs:
    """What one image costs each teacher, by name, in `unit` ("GFLOP an image", "ms an image")."""

    unit: str
    of: Mapping[str, float]

    def subset(self, subset: Subset, always: Sequence[str] = ()) -> float:
        """The cost of a subset, with the teachers that are in every one.

        Raises:
            KeyError: if a teacher's cost is not known.
        """
        return sum(self.of[name] for name in dict.fromkeys([*always, *subset.teachers]))


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Positions of the points (cost, quality) that no other beats, by rising cost.

    A point is beaten by one that costs no more and is no worse, and is better in either. Of equal
    points none beats the other.
    """
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1]))
    front: list[int] = []
    for i in order:
        best = points[front[-1]] if front else None
        if best is None or points[i][1] > best[1] or points[i] == best:
            front.append(i)
    return front
