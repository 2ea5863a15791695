"""What a run knows of one of its students: the stages on its way, its scores, its recipe."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from distill.engine.learner import StudentPlan, planned_students
from distill.export.secrets import without_secrets
from distill.recipe.schema import Recipe
from distill.retention import (
    Retained,
    Row,
    best_teachers,
    metric_gap_closed,
    metric_retention,
    retention,
)

WEAK = 0.5
"""A task of which less than this share of the gap is closed is one that a student is not good
for."""


@dataclass(frozen=True)
class StageOnTheWay:
    """One stage that made a student what it is; `learns_from` and `starts_from` as in a recipe."""

    stage: str
    student: str
    learns_from: tuple[str, ...]
    starts_from: str
    steps: int
    batch_size: int
    image_sizes: tuple[int, ...]


@dataclass(frozen=True)
class Score:
    """One metric of a student at one image size, beside its untrained self and the best teacher.

    Figures that are not there are None; `reason` says why where the student's own is not.
    """

    task: str
    metric: str
    better: str
    image_size: int
    value: float | None
    untrained: float | None
    best: float | None
    best_teacher: str
    retention: float | None
    gap_closed: float | None
    reason: str = ""


@dataclass(frozen=True)
class Evidence:
    """What a card shows beyond the student itself; whatever there is none of is empty.

    `retained` has each task and their average at each image size. `recipe` is recipe.yaml without
    secrets. `datasets` are those of the validation, `bench` is bench.json, and `formats` what the
    files of other formats say of themselves, by their paths in the folder.
    """

    stages: tuple[StageOnTheWay, ...] = ()
    recipe: str = ""
    scores: tuple[Score, ...] = ()
    retained: tuple[Retained, ...] = ()
    datasets: tuple[str, ...] = ()
    bench: Mapping[str, Any] | None = None
    formats: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def read_evidence(run: Path, recipe: Recipe, stage: str, name: str) -> Evidence:
    """What the run's folder says of the student STAGE/NAME; validation.json may be missing."""
    plan = next((p for p in planned_students(recipe, stage) if p.name == name), None)
    text = without_secrets((run / "recipe.yaml").read_text(encoding="utf-8"))
    if plan is None:
        return Evidence(recipe=text)
    evidence = Evidence(tuple(_way(recipe, stage, plan)), text)
    try:
        held = json.loads((run / "validation.json").read_text(encoding="utf-8"))
        rows, untrained_of = held["rows"], held["untrained_of"]
    except (OSError, ValueError, KeyError):
        return evidence
    model = f"{stage}/{plan.entry}"
    own = [row for row in rows if row["model"] == model and row["seed"] == plan.seed]
    scores = tuple(_score(row, rows, untrained_of.get(model)) for row in own)
    retained = tuple(
        one for one in retention(rows, untrained_of) if (one.model, one.seed) == (model, plan.seed)
    )
    datasets = tuple(dict.fromkeys(f"{row['dataset']} ({row['split']})" for row in own))
    return replace(evidence, scores=scores, retained=retained, datasets=datasets)


def weaknesses(evidence: Evidence) -> list[str]:
    """A line for each task, at each size, of which less than WEAK of the gap between the untrained
    student and the best teacher is closed, or whose gap closed has no meaning."""
    lines = []
    for one in evidence.retained:
        if one.task == "average":
            continue
        where = f"{one.task.replace('_', ' ')} at {one.image_size} pixels"
        if one.gap_closed is None:
            reason = "; ".join(one.reasons) or "no untrained student to compare with"
            lines.append(f"{where}: gap closed is not known ({reason})")
        elif one.gap_closed < WEAK:
            lines.append(f"{where}: gap closed {one.gap_closed:.2f}")
    return lines


def _way(recipe: Recipe, stage: str, plan: StudentPlan) -> list[StageOnTheWay]:
    """The stages behind a student, itself last: those of whom it started and learnt from first."""
    found: dict[tuple[str, str], StageOnTheWay] = {}

    def walk(stage: str, plan: StudentPlan) -> None:
        if (stage, plan.name) in found:
            return
        config, settings = plan.config, recipe.stages[stage]
        for reference in [config.init or "", *config.teachers]:
            earlier, _, name = reference.partition("/")
            for other in planned_students(recipe, earlier) if earlier in recipe.stages else []:
                if other.name == name and earlier != stage:
                    walk(earlier, other)
        start = config.init or (f"timm's weights of {config.arch}" if config.pretrained else "")
        found[stage, plan.name] = StageOnTheWay(
            stage,
            plan.name,
            tuple(config.teachers),
            without_secrets(start),
            settings.train.steps,
            settings.train.batch_size,
            tuple(settings.image_sizes),
        )

    walk(stage, plan)
    return list(found.values())


def _score(row: Row, rows: Sequence[Row], untrained: str | None) -> Score:
    key = row["task"], row["metric"], row["image_size"]
    same = [
        other
        for other in rows
        if (other["task"], other["metric"], other["image_size"]) == key
        and other["value"] is not None
    ]
    starts = {other["seed"]: other["value"] for other in same if other["model"] == untrained}
    start = starts.get(row["seed"], fmean(starts.values()) if starts else None)
    best = best_teachers(same).get(key)
    value, better = row["value"], row["better"]
    kept = closed = None
    if value is not None and best is not None:
        kept = metric_retention(value, best, better)
        if start is not None:
            closed = metric_gap_closed(value, start, best, better)
    return Score(
        row["task"],
        row["metric"],
        better,
        row["image_size"],
        value,
        start,
        best,
        _best_teacher(same, better),
        kept,
        closed,
        row.get("reason", ""),
    )


def _best_teacher(rows: Sequence[Row], better: str) -> str:
    """The name of the teacher with the best value, over its seeds; "" if there is none."""
    values: dict[str, list[float]] = {}
    for row in rows:
        if row["role"] == "teacher":
            values.setdefault(row["model"], []).append(row["value"])
    sign = 1 if better == "higher" else -1
    return max(values, key=lambda name: sign * fmean(values[name]), default="")
