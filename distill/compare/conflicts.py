"""Teachers that do harm: subsets that score below one of their own subsets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import hypot
from statistics import fmean, stdev

from distill.compare.figures import figure, words
from distill.compare.scores import BySeed, StudentScores
from distill.compare.subsets import Subset

LEAST_DROP = 0.02
"""Share of the gap below which a drop is not worth a sentence, however small the spread."""


@dataclass(frozen=True)
class Conflict:
    """On `task`, the subset `larger` closes less of the gap than `smaller`, whose teachers it has.

    `before` and `after` are the mean gaps closed, `spread` their combined standard deviation over
    seeds. `sentence` gives the scores too, as means over the task's metrics.
    """

    task: str
    smaller: str
    larger: str
    added: tuple[str, ...]
    before: float
    after: float
    spread: float
    sentence: str


def conflicts(scores: StudentScores) -> list[Conflict]:
    """Every drop that is more than the spread over seeds, the largest share of the gap first.

    A subset B that holds all teachers of A is in conflict on a task if

        gap(A) - gap(B) > max(0.02, sqrt(s_A^2 + s_B^2)),

    with mean and sample standard deviation over seeds of the gap closed. With fewer than two
    seeds no spread is known, and nothing is called a conflict. Where a subset between A and B
    tells it already (A and it, or it and B, are in conflict), the wider pair is left out.
    """
    out = []
    for task in scores.tasks:
        pairs = {
            (small, large)
            for small in scores.subsets
            for large in scores.subsets
            if set(small.teachers) < set(large.teachers) and _drops(scores, small, large, task)
        }
        for small, large in sorted(pairs, key=lambda pair: (len(pair[1].teachers), str(pair))):
            told = any(
                set(small.teachers) < set(between.teachers) < set(large.teachers)
                and ((small, between) in pairs or (between, large) in pairs)
                for between in scores.subsets
            )
            if not told:
                out.append(_conflict(scores, small, large, task))
    return sorted(out, key=lambda one: one.after - one.before)


def _drops(scores: StudentScores, small: Subset, large: Subset, task: str) -> bool:
    if any(len(scores.gap.get((subset.name, task), {})) < 2 for subset in (small, large)):
        return False
    (before, first), (after, second) = (_figures(scores.gap, s, task) for s in (small, large))
    return before - after > max(LEAST_DROP, hypot(first, second))


def _conflict(scores: StudentScores, small: Subset, large: Subset, task: str) -> Conflict:
    added = tuple(name for name in large.teachers if name not in small.teachers)
    (before, first), (after, second) = (_figures(scores.gap, s, task) for s in (small, large))
    spread, seeds = hypot(first, second), len(scores.gap[large.name, task])
    change = _change(scores, small, large, task)
    sentence = (
        f"Adding {_listed(added)} to {small.words} {change}: it closes "
        f"{figure(after, None, 2)} of the gap instead of {figure(before, None, 2)} "
        f"(spread over {seeds} seeds {spread:.2f})."
    )
    return Conflict(task, small.name, large.name, added, before, after, spread, sentence)


def _change(scores: StudentScores, small: Subset, large: Subset, task: str) -> str:
    """What becomes of the scores."""
    lower = scores.better[task] == "lower"
    if (small.name, task) in scores.score and (large.name, task) in scores.score:
        (before, _), (after, _) = (_figures(scores.score, s, task) for s in (small, large))
        # The mean over several metrics may rise where that of their gaps falls.
        if (before > after) != lower:
            shown = (figure(value, None, 3 if lower else 1) for value in (before, after))
            verb = "worsens" if lower else "lowers"
            return f"{verb} {words(task)} from {' to '.join(shown)}"
    return f"harms {words(task)}"


def _figures(
    figures: Mapping[tuple[str, str], BySeed], subset: Subset, task: str
) -> tuple[float, float]:
    values = list(figures[subset.name, task].values())
    return fmean(values), stdev(values) if len(values) > 1 else 0.0


def _listed(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
