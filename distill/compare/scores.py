"""What the students of a comparison scored, by subset, task and seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev

from distill.compare.expansion import Comparison
from distill.compare.figures import words
from distill.compare.subsets import Subset
from distill.comparison import Cell
from distill.retention import AVERAGE, Retained, Row, retention

EVERY_TASK = "every task"
"""The mean over every task that can be scored, for the subsets that can do them all. `AVERAGE` is
that over the tasks that every subset can do, which is the one to compare subsets by."""

BySeed = dict[int, float]


@dataclass
class StudentScores:
    """One student, `stage/student` before it was replicated, at one image size.

    `subsets` are those with at least one value. The figures are by (subset's name,
    task) and seed: `score` is the mean over a task's metrics, in their units (`better` says by
    task which way); `gap` and `retained` are fractions; `metrics` has (subset, task, metric).
    `gap` holds AVERAGE and EVERY_TASK too. `reasons` says why a figure is missing.
    """

    student: str
    image_size: int
    always: tuple[str, ...]
    subsets: tuple[Subset, ...]
    tasks: tuple[str, ...]
    seeds: tuple[int, ...]
    better: dict[str, str] = field(default_factory=dict)
    score: dict[tuple[str, str], BySeed] = field(default_factory=dict)
    metrics: dict[tuple[str, str, str], BySeed] = field(default_factory=dict)
    gap: dict[tuple[str, str], BySeed] = field(default_factory=dict)
    retained: dict[tuple[str, str], BySeed] = field(default_factory=dict)
    reasons: dict[tuple[str, str], str] = field(default_factory=dict)
    shared: tuple[str, ...] = ()
    scorable: tuple[str, ...] = ()

    def cell(self, figures: Mapping[tuple[str, str], BySeed], subset: Subset, task: str) -> Cell:
        """Mean and sample deviation over seeds of one of the mappings, or why there is none."""
        place = subset.name, task
        return over_seeds(figures.get(place, {}), self.reasons.get(place, ""))


def over_seeds(by_seed: BySeed, reason: str = "") -> Cell:
    """Mean and sample standard deviation (None with fewer than two seeds)."""
    values = list(by_seed.values())
    if not values:
        return Cell(None, None, reason)
    return Cell(fmean(values), stdev(values) if len(values) > 1 else None)


def student_scores(
    comparison: Comparison, rows: Sequence[Row], untrained_of: Mapping[str, str]
) -> list[StudentScores]:
    """The scores of each replicated student at each image size, in the order of the rows.

    Args:
        comparison: who is a replica of whom.
        rows, untrained_of: as validation.json has them.
    """
    counted = [row for row in rows if row["task"] in comparison.tasks]
    found: dict[tuple[str, int], list[Row]] = {}
    for row in counted:
        replica = comparison.replicas.get(row["model"])
        if replica is not None:
            found.setdefault((replica.student, row["image_size"]), []).append(row)
    held: dict[tuple[str, int], list[Retained]] = {}
    for one in retention(counted, untrained_of):
        held.setdefault((one.model, one.image_size), []).append(one)
    out = []
    for (student, size), own in found.items():
        models = {row["model"]: comparison.replicas[row["model"]] for row in own}
        scored = {row["model"] for row in own if row["value"] is not None}
        names = {models[model].subset: model for model in scored}
        if not names:
            continue
        scores = StudentScores(
            student=student,
            image_size=size,
            always=next(iter(models.values())).always,
            subsets=tuple(subset for subset in comparison.subsets if subset in names),
            tasks=tuple(t for t in comparison.tasks if t in {row["task"] for row in own}),
            seeds=tuple(sorted({row["seed"] for row in own})),
        )
        _count_metrics(scores, [row for row in own if row["model"] in scored], comparison)
        for subset in scores.subsets:
            for one in held[names[subset], size]:
                place = subset.name, one.task
                if one.task == AVERAGE:
                    continue
                if one.gap_closed is not None:
                    scores.gap.setdefault(place, {})[one.seed] = one.gap_closed
                if one.retention is not None:
                    scores.retained.setdefault(place, {})[one.seed] = one.retention
                if one.reasons:
                    scores.reasons.setdefault(place, "; ".join(one.reasons))
        _average(scores)
        out.append(scores)
    return out


def _count_metrics(scores: StudentScores, rows: Sequence[Row], comparison: Comparison) -> None:
    values: dict[tuple[str, str, int], list[float | None]] = {}
    for row in rows:
        subset = comparison.replicas[row["model"]].subset.name
        scores.better[row["task"]] = row["better"]
        values.setdefault((subset, row["task"], row["seed"]), []).append(row["value"])
        by_seed = scores.metrics.setdefault((subset, row["task"], row["metric"]), {})
        if row["value"] is not None:
            by_seed[row["seed"]] = row["value"]
    for (subset, task, seed), of_metrics in values.items():
        known = [value for value in of_metrics if value is not None]
        if len(known) == len(of_metrics):
            scores.score.setdefault((subset, task), {})[seed] = fmean(known)


def _average(scores: StudentScores) -> None:
    """The tasks that all subsets share, and both averages."""
    ran: dict[str, set[int]] = {}
    for (name, _, _), by_seed in scores.metrics.items():
        ran.setdefault(name, set()).update(by_seed)

    def does(subset: Subset, task: str) -> bool:
        seeds = ran[subset.name]
        return scores.gap.get((subset.name, task), {}).keys() >= seeds

    able = {task: [s for s in scores.subsets if does(s, task)] for task in scores.tasks}
    scores.shared = tuple(t for t in scores.tasks if len(able[t]) == len(scores.subsets))
    scores.scorable = tuple(t for t in scores.tasks if able[t])
    for name, tasks in ((AVERAGE, scores.shared), (EVERY_TASK, scores.scorable)):
        for subset in scores.subsets:
            if tasks and all(subset in able[task] for task in tasks):
                scores.gap[subset.name, name] = {
                    seed: fmean(scores.gap[subset.name, task][seed] for task in tasks)
                    for seed in sorted(ran[subset.name])
                }
            else:
                cannot = [task for task in scores.scorable if subset not in able[task]]
                why = f"cannot do {', '.join(cannot)}" if cannot else "no task is shared by all"
                scores.reasons[subset.name, name] = words(why)
