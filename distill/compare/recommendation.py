"""The answer in plain sentences: best on average, best at each task, the cheapest that will do."""

from __future__ import annotations

from dataclasses import dataclass

from distill.compare.figures import figure, words
from distill.compare.frontier import Costs
from distill.compare.scores import EVERY_TASK, StudentScores
from distill.compare.subsets import Subset
from distill.retention import AVERAGE

MOST_NAMED = 3
"""Subsets that a sentence names beside the best, the best of them first."""


@dataclass(frozen=True)
class Recommendation:
    """The answer to one question: a subset's name, and a sentence for a reader."""

    question: str
    subset: str
    sentence: str


def recommendations(scores: StudentScores, costs: Costs | None = None) -> list[Recommendation]:
    """One answer a question; a question that cannot be answered is left out.

    "best average": the largest mean gap closed over the tasks that every subset can do.
    "best at every task": the same over all tasks, among the subsets that can do them all, where
    some cannot. "best at TASK": the largest mean gap closed of each task. "cheapest": the least
    cost among the subsets whose average is within one standard deviation (the best one's, over
    seeds) of the best average; of equal costs the better. Without costs, or with fewer than two
    seeds, it is left out. What is as near to the best as that is named beside it.
    """
    out = []
    if scores.shared:
        some_cannot = len(scores.shared) < len(scores.scorable)
        what = _tasks(len(scores.shared)) + (" that every subset can do" if some_cannot else "")
        said = _best(scores, AVERAGE, "best average", f"Best on average over {what}")
        if said is not None:
            out.append(said)
    if len(scores.shared) < len(scores.scorable):
        what = f"Best among those that can do all {_tasks(len(scores.scorable))}"
        said = _best(scores, EVERY_TASK, "best at every task", what)
        if said is not None:
            out.append(said)
    if costs is not None and (cheapest := _cheapest(scores, costs)) is not None:
        out.append(cheapest)
    for task in scores.scorable:
        said = _best(scores, task, f"best at {task}", f"Best at {words(task)}")
        if said is not None:
            out.append(said)
    return out


def _ranked(scores: StudentScores, task: str) -> list[tuple[Subset, float, float | None]]:
    """Subsets with mean and deviation, the best first, then the fewer teachers."""
    cells = [(subset, scores.cell(scores.gap, subset, task)) for subset in scores.subsets]
    known = [(subset, cell.mean, cell.std) for subset, cell in cells if cell.mean is not None]
    return sorted(known, key=lambda one: (-one[1], len(one[0].teachers)))


def _best(scores: StudentScores, task: str, question: str, opening: str) -> Recommendation | None:
    ranked = _ranked(scores, task)
    if not ranked:
        return None
    best, mean, std = ranked[0]
    sentence = f"{opening}: {best.words}, which closes {figure(mean, std, 2)} of the gap"
    near = [s.words for s, value, _ in ranked[1:] if std is not None and value >= mean - std]
    if near:
        more = f" and {len(near) - MOST_NAMED} more" if len(near) > MOST_NAMED else ""
        sentence += f"; within its spread: {', '.join(near[:MOST_NAMED])}{more}"
    elif std is None:
        sentence += "; of one seed, so that a small lead says nothing"
    return Recommendation(question, best.name, sentence + ".")


def _cheapest(scores: StudentScores, costs: Costs) -> Recommendation | None:
    ranked = _ranked(scores, AVERAGE)
    if not ranked:
        return None
    best, mean, spread = ranked[0]
    if spread is None:
        return None
    near = [one for one in ranked if one[1] >= mean - spread]
    subset, value, std = min(near, key=lambda one: costs.subset(one[0], scores.always))
    cost, most = (costs.subset(one, scores.always) for one in (subset, best))
    sentence = f"Cheapest within one spread of the best: {subset.words}, {cost:.3g} {costs.unit}"
    if subset == best:
        sentence += ", which is the best itself"
    else:
        sentence += f" instead of {most:.3g}, closes {figure(value, std, 2)} of the gap"
    return Recommendation("cheapest", subset.name, sentence + ".")


def _tasks(count: int) -> str:
    return "1 task" if count == 1 else f"{count} tasks"
