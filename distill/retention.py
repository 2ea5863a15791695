"""Retention and gap closed: what a student holds of its teachers, task by task, and the table.

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
from statistics import fmean, stdev
from typing import Any

import rich.box
from rich.table import Table as TerminalTable
from rich.text import Text

from distill.probes.models import ROLES

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


@dataclass(frozen=True)
class Column:
    """A figure: `section` is "score", "retention" or "gap closed"; `metric` is "" but for scores.

    `better` is "higher" or "lower"; `decimals` is how many places a reader needs.
    """

    section: str
    task: str
    metric: str
    better: str
    decimals: int

    @property
    def title(self) -> str:
        """What the column is called beside its section."""
        arrow = " ↓" if self.better == "lower" else ""
        return f"{self.task} {self.metric}".strip().replace("_", " ") + arrow


@dataclass(frozen=True)
class Cell:
    """Mean and sample standard deviation over seeds; `std` is None with fewer than two.

    `mean` is None where there is no value, and then `reason` may say why.
    """

    mean: float | None
    std: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class TableRow:
    """One model at one image size; `cells` in the order of the table's columns."""

    model: str
    role: str
    image_size: int
    seeds: int
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    """The comparison as plain data (`dataclasses.asdict` makes JSON of it).

    Rows: by image size, then untrained, teachers, proxies, students, each in the order given.
    `notes` are one line for each figure that is left out of an average.
    """

    columns: tuple[Column, ...]
    rows: tuple[TableRow, ...]
    notes: tuple[str, ...]


def comparison_table(rows: Sequence[Row], untrained_of: Mapping[str, str]) -> Table:
    """Every model's metrics, then its retention and gap closed by task and on average."""
    metrics = {(row["task"], row["metric"]): row["better"] for row in rows}
    tasks = [*dict.fromkeys(task for task, _ in metrics), AVERAGE] if metrics else []
    columns = [
        # Percentages are the higher the better; the one error there is, is around 1.
        Column("score", task, metric, better, 1 if better == "higher" else 3)
        for (task, metric), better in metrics.items()
    ]
    columns += [Column("retention", task, "", "higher", 2) for task in tasks]
    columns += [Column("gap closed", task, "", "higher", 2) for task in tasks]

    found: dict[tuple[str, int], dict[tuple[str, ...], list[tuple[float | None, str]]]] = {}
    about: dict[tuple[str, int], tuple[str, set[int]]] = {}
    for row in rows:
        model = row["model"], row["image_size"]
        about.setdefault(model, (row["role"], set()))[1].add(row["seed"])
        cells = found.setdefault(model, {})
        entry = row["value"], row.get("reason", "")
        cells.setdefault(("score", row["task"], row["metric"]), []).append(entry)
    notes: dict[str, None] = {}
    for one in retention(rows, untrained_of):
        cells = found[one.model, one.image_size]
        reason = "; ".join(one.reasons)
        cells.setdefault(("retention", one.task, ""), []).append((one.retention, reason))
        if one.model in untrained_of:
            cells.setdefault(("gap closed", one.task, ""), []).append((one.gap_closed, reason))
            if one.task == AVERAGE:
                where = f"{one.model} at {one.image_size} px, left out of its average: "
                notes |= dict.fromkeys(where + reason for reason in one.reasons)

    order = sorted(found, key=lambda key: (key[1], ROLES.index(about[key][0])))
    table_rows = [
        TableRow(
            model,
            about[model, size][0],
            size,
            len(about[model, size][1]),
            tuple(
                _cell(found[model, size].get((c.section, c.task, c.metric), [])) for c in columns
            ),
        )
        for model, size in order
    ]
    return Table(tuple(columns), tuple(table_rows), tuple(notes))


def _cell(entries: Sequence[tuple[float | None, str]]) -> Cell:
    values = [value for value, _ in entries if value is not None]
    reason = "; ".join(dict.fromkeys(reason for _, reason in entries if reason))
    if not values:
        return Cell(None, None, reason)
    return Cell(fmean(values), stdev(values) if len(values) > 1 else None, reason)


def render_terminal(table: Table) -> TerminalTable:
    """The table for a terminal: a line a figure and a column a model, the best score in bold."""
    models = dict.fromkeys((row.model, row.role) for row in table.rows)
    out = TerminalTable(box=rich.box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    out.add_column("", no_wrap=True)
    for model, role in models:
        # Names may hold brackets, which rich would read as markup; a long one breaks at "/".
        out.add_column(Text(f"{model.replace('/', '/ ')}\n{role}"), justify="right")
    for size in dict.fromkeys(row.image_size for row in table.rows):
        by_model = {row.model: row for row in table.rows if row.image_size == size}
        for section in dict.fromkeys(column.section for column in table.columns):
            out.add_row(Text(f"{section}, {size} px", style="bold cyan"))
            for i, column in enumerate(table.columns):
                if column.section != section:
                    continue
                cells = [by_model[m].cells[i] if m in by_model else Cell(None) for m, _ in models]
                means = [cell.mean for cell in cells if cell.mean is not None]
                best = (max if column.better == "higher" else min)(means, default=None)
                bold = section == "score"
                out.add_row(
                    Text("  " + column.title),
                    *(_shown(c, column.decimals, bold and c.mean == best) for c in cells),
                )
            out.add_section()
    return out


def _shown(cell: Cell, decimals: int, bold: bool) -> Text:
    if cell.mean is None:
        return Text("-", style="dim")
    spread = "" if cell.std is None else f" ±{cell.std:.{decimals}f}"
    return Text(f"{cell.mean:.{decimals}f}{spread}", style="bold" if bold else "")
