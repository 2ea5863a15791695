"""Retention and gap closed: what a student holds of its teachers, task by task.

For a metric at one image size, with the best teacher's value T, the student's S and the same
student's untrained U:

    retention  = S / T, or T / S where lower is better;
    gap closed = (S - U) / (T - U), whose sign is right either way: 0 is untrained, 1 the teacher.

A task's figure is the mean over its metrics, the average the mean over tasks. A figure without a
meaning (no value, or a best teacher that is no better than the untrained student) is None with a
reason, and left out of the means. Seeds are scored one by one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

Row = Mapping[str, Any]
"""A row of validation.json, see distill.probes.validate."""

AVERAGE = "average"
"""The task under which the mean over tasks is filed."""


@dataclass(frozen=True)
class Retained:
    """What one model with one seed holds of the best teacher on a task, or on average.

    `retention` and `gap_closed` are fractions, 1 the best teacher, or None where `reasons` says
    why. On the average, `reasons` names what was left out.
    """

    model: str
    role: str
    seed: int
    image_size: int
    task: str
    retention: float | None
    gap_closed: float | None
    reasons: tuple[str, ...] = ()


def metric_retention(value: float, best: float, better: str) -> float | None:
    """`value` over the best teacher's, inverted where lower is better; None where not defined.

    Raises:
        ValueError: if `better` is neither "higher" nor "lower".
    """
    if better not in ("higher", "lower"):
        raise ValueError(f"better is 'higher' or 'lower', not {better!r}")
    over, under = (value, best) if better == "higher" else (best, value)
    return over / under if under > 0 else None


def metric_gap_closed(value: float, untrained: float, best: float, better: str) -> float | None:
    """(value - untrained) / (best - untrained); None unless `best` is better than `untrained`."""
    if better not in ("higher", "lower"):
        raise ValueError(f"better is 'higher' or 'lower', not {better!r}")
    gap = best - untrained if better == "higher" else untrained - best
    return (value - untrained) / (best - untrained) if gap > 0 else None


def best_teachers(rows: Iterable[Row]) -> dict[tuple[str, str, int], float]:
    """The best value over teachers, by (task, metric, image size); a teacher's seeds are averaged.

    Metrics that no teacher has a value for are not there.
    """
    values: dict[tuple[str, str, int], dict[str, list[float]]] = {}
    better: dict[tuple[str, str, int], str] = {}
    for row in rows:
        if row["role"] == "teacher" and row["value"] is not None:
            key = row["task"], row["metric"], row["image_size"]
            values.setdefault(key, {}).setdefault(row["model"], []).append(row["value"])
            better[key] = row["better"]
    return {
        key: (max if better[key] == "higher" else min)(fmean(v) for v in by_model.values())
        for key, by_model in values.items()
    }


def retention(rows: Sequence[Row], untrained_of: Mapping[str, str]) -> list[Retained]:
    """Per model, seed and image size: a Retained for each task and one for their average.

    `untrained_of` maps a model's name to that of its untrained counterpart; the counterpart of the
    same seed is used where there is one, else the mean over its seeds. Models without a
    counterpart (teachers, the untrained ones themselves) have a retention and no gap closed.
    """
    best = best_teachers(rows)
    grouped: dict[tuple[str, int, int], dict[str, list[Row]]] = {}
    for row in rows:
        key = row["model"], row["seed"], row["image_size"]
        grouped.setdefault(key, {}).setdefault(row["task"], []).append(row)
    untrained = _values(rows, set(untrained_of.values()))
    out: list[Retained] = []
    for (model, seed, size), tasks in grouped.items():
        role = next(iter(tasks.values()))[0]["role"]
        reference = untrained_of.get(model)
        scored = [
            _task(group, best, None if reference is None else (reference, untrained))
            for group in tasks.values()
        ]
        out += scored
        out.append(
            Retained(
                model,
                role,
                seed,
                size,
                AVERAGE,
                _mean([one.retention for one in scored]),
                _mean([one.gap_closed for one in scored]),
                tuple(f"{one.task}: {reason}" for one in scored for reason in one.reasons),
            )
        )
    return out


_Values = dict[tuple[str, str, str, int], dict[int, float]]


def _values(rows: Iterable[Row], models: set[str]) -> _Values:
    """Values by (model, task, metric, image size) and seed."""
    values: _Values = {}
    for row in rows:
        if row["model"] in models and row["value"] is not None:
            key = row["model"], row["task"], row["metric"], row["image_size"]
            values.setdefault(key, {})[row["seed"]] = row["value"]
    return values


def _task(
    group: Sequence[Row],
    best: Mapping[tuple[str, str, int], float],
    reference: tuple[str, _Values] | None,
) -> Retained:
    retained: list[float | None] = []
    closed: list[float | None] = []
    reasons: list[str] = []
    for row in group:
        task, metric, size = row["task"], row["metric"], row["image_size"]
        value, top = row["value"], best.get((task, metric, size))
        if value is None or top is None:
            reasons.append(
                row.get("reason", "no value") if value is None else f"no teacher has {metric}"
            )
            continue
        retained.append(metric_retention(value, top, row["better"]))
        if retained[-1] is None:
            reasons.append(f"{metric} has no ratio to a teacher's {top:g}")
        if reference is None:
            continue
        name, untrained = reference
        seeds = untrained.get((name, task, metric, size), {})
        if not seeds:
            reasons.append(f"{name} has no {metric}")
            continue
        start = seeds.get(row["seed"], fmean(seeds.values()))
        closed.append(metric_gap_closed(value, start, top, row["better"]))
        if closed[-1] is None:
            reasons.append(
                f"{metric} of the best teacher, {top:.4g}, is no better than the untrained "
                f"{name}'s {start:.4g}"
            )
    first = group[0]
    return Retained(
        first["model"],
        first["role"],
        first["seed"],
        first["image_size"],
        first["task"],
        _mean(retained),
        _mean(closed),
        tuple(dict.fromkeys(reasons)),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return fmean(known) if known else None
