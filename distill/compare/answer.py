"""The answer of a comparison as plain data: figures, contributions, the front, sentences."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from distill.compare.conflicts import Conflict, conflicts
from distill.compare.contributions import Contributions, contributions
from distill.compare.expansion import Comparison
from distill.compare.figures import words
from distill.compare.frontier import Costs, pareto_front
from distill.compare.recommendation import Recommendation, recommendations
from distill.compare.scores import EVERY_TASK, StudentScores, over_seeds, student_scores
from distill.compare.subsets import Subset
from distill.comparison import Cell
from distill.files import write_whole
from distill.retention import AVERAGE, Row


@dataclass(frozen=True)
class TaskCells:
    """One subset on one task: mean and deviation over seeds.

    `score` is the mean over the task's metrics, in their units; `gap_closed` and `retention` are
    fractions of the best teacher. The averages have a gap closed alone.
    """

    subset: str
    task: str
    score: Cell
    gap_closed: Cell
    retention: Cell


@dataclass(frozen=True)
class MetricCell:
    """One subset on one metric; `better` is "higher" or "lower"."""

    subset: str
    task: str
    metric: str
    better: str
    value: Cell


@dataclass(frozen=True)
class FrontPoint:
    """One subset's cost and average gap closed; `on_front` where no other beats it."""

    subset: str
    cost: float
    quality: float
    std: float | None
    on_front: bool


@dataclass(frozen=True)
class StudentAnswer:
    """What was found of one student, `stage/student`, at one image size.

    `always` are teachers in every subset; `shared` the tasks that every subset can do, over which
    the average goes; `contributions` is by task, with "average" where any task is shared.
    """

    student: str
    image_size: int
    always: tuple[str, ...]
    seeds: tuple[int, ...]
    subsets: tuple[str, ...]
    tasks: tuple[str, ...]
    shared: tuple[str, ...]
    cells: tuple[TaskCells, ...]
    metrics: tuple[MetricCell, ...]
    contributions: dict[str, Contributions]
    front: tuple[FrontPoint, ...]
    conflicts: tuple[Conflict, ...]
    recommendations: tuple[Recommendation, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Answer:
    """A whole comparison: `teachers` that vary, `subsets` by name, an answer a student and size.

    `cost_unit` is "" and `costs` empty where no costs were given.
    """

    teachers: tuple[str, ...]
    subsets: dict[str, tuple[str, ...]]
    cost_unit: str
    costs: dict[str, float]
    answers: tuple[StudentAnswer, ...]


def compare(
    comparison: Comparison,
    rows: Sequence[Row],
    untrained_of: Mapping[str, str],
    costs: Costs | None = None,
) -> Answer:
    """The answer from what was measured.

    Args:
        comparison: as `expand` gives it.
        rows, untrained_of: as validation.json has them.
        costs: of all the teachers that the students learn from.

    Raises:
        ValueError: if the cost of a teacher is missing.
    """
    if costs is not None:
        used = {name for r in comparison.replicas.values() for name in r.always}
        missing = [n for n in comparison.recipe.teachers if n in {*comparison.teachers, *used}]
        missing = [name for name in missing if name not in costs.of]
        if missing:
            raise ValueError(f"costs of {', '.join(missing)} are missing")
    return Answer(
        teachers=comparison.teachers,
        subsets={subset.name: subset.teachers for subset in comparison.subsets},
        cost_unit="" if costs is None else costs.unit,
        costs={} if costs is None else dict(costs.of),
        answers=tuple(
            _student(comparison, scores, costs)
            for scores in student_scores(comparison, rows, untrained_of)
        ),
    )


def plain(answer: Answer) -> dict:
    """The answer as JSON has it: what `compare_section` and compare.json take."""
    return json.loads(json.dumps(asdict(answer), allow_nan=False))


def write_answer(path: Path, answer: Answer) -> None:
    """Write compare.json, whole or not at all.

    Raises:
        UserError: if there is no room, or no right to.
    """
    write_whole(path, json.dumps(plain(answer), indent=1) + "\n")


def _student(comparison: Comparison, scores: StudentScores, costs: Costs | None) -> StudentAnswer:
    averages = [AVERAGE, *([EVERY_TASK] if len(scores.shared) < len(scores.scorable) else [])]
    return StudentAnswer(
        student=scores.student,
        image_size=scores.image_size,
        always=scores.always,
        seeds=scores.seeds,
        subsets=tuple(subset.name for subset in scores.subsets),
        tasks=scores.tasks,
        shared=scores.shared,
        cells=tuple(
            TaskCells(
                subset.name,
                task,
                scores.cell(scores.score, subset, task),
                scores.cell(scores.gap, subset, task),
                scores.cell(scores.retained, subset, task),
            )
            for subset in scores.subsets
            for task in [*averages, *scores.tasks]
        ),
        metrics=tuple(
            MetricCell(
                subset,
                task,
                metric,
                scores.better[task],
                over_seeds(by_seed, scores.reasons.get((subset, task), "")),
            )
            for (subset, task, metric), by_seed in scores.metrics.items()
        ),
        contributions={
            task: contributions(
                _worth(scores, task), comparison.teachers, None if scores.always else 0.0
            )
            for task in [*([AVERAGE] if scores.shared else []), *scores.tasks]
        },
        front=_front(scores, costs) if costs is not None else (),
        conflicts=tuple(conflicts(scores)),
        recommendations=tuple(recommendations(scores, costs)),
        notes=tuple(_notes(comparison, scores)),
    )


def _worth(scores: StudentScores, task: str) -> dict[int, dict[frozenset[str], float]]:
    worth: dict[int, dict[frozenset[str], float]] = {}
    for subset in scores.subsets:
        for seed, value in scores.gap.get((subset.name, task), {}).items():
            worth.setdefault(seed, {})[frozenset(subset.teachers)] = value
    return worth


def _front(scores: StudentScores, costs: Costs) -> tuple[FrontPoint, ...]:
    known: list[tuple[Subset, float, float, float | None]] = []
    for subset in scores.subsets:
        cell = scores.cell(scores.gap, subset, AVERAGE)
        if cell.mean is not None:
            known.append((subset, costs.subset(subset, scores.always), cell.mean, cell.std))
    best = set(pareto_front([(cost, quality) for _, cost, quality, _ in known]))
    return tuple(
        FrontPoint(subset.name, cost, quality, std, i in best)
        for i, (subset, cost, quality, std) in enumerate(known)
    )


def _notes(comparison: Comparison, scores: StudentScores) -> list[str]:
    notes = []
    lost = [subset.words for subset in comparison.subsets if subset not in scores.subsets]
    if lost:
        notes.append(f"Not scored, so not compared: {', '.join(lost)}.")
    left_out = [words(task) for task in scores.tasks if task not in scores.shared]
    if left_out and scores.shared:
        notes.append(
            f"The average leaves out {', '.join(left_out)}, which not every subset can do."
        )
    elif not scores.shared:
        notes.append("No task can be scored for every subset, so there is no average.")
    if len(scores.seeds) < 2:
        notes.append("With one seed no spread is known, and no drop is called a conflict.")
    if scores.always:
        notes.append(f"In every subset: {', '.join(scores.always)}.")
    return notes
