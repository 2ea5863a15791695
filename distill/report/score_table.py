"""The comparison of a run's models as tables for the page: scores, and what is held of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distill.comparison import Cell, Column, Table, TableRow, comparison_table
from distill.retention import AVERAGE

_LOWER = " \N{DOWNWARDS ARROW}"


@dataclass(frozen=True)
class ShownColumn:
    """A column's heading and the smaller line below it."""

    title: str
    below: str


@dataclass(frozen=True)
class ShownCell:
    """A cell's figure ("" where there is none), the smaller line below it, whether it is the best
    of its column, and why there is no figure."""

    text: str
    below: str
    best: bool
    reason: str


@dataclass(frozen=True)
class ShownRow:
    """A model with its role and its cells."""

    name: str
    role: str
    cells: list[ShownCell]


@dataclass(frozen=True)
class ScoreTable:
    """A table with its title, caption, and notes on what it leaves out."""

    title: str
    caption: str
    columns: list[ShownColumn]
    rows: list[ShownRow]
    notes: list[str]


def score_tables(validation: Mapping[str, Any]) -> list[ScoreTable]:
    """For each image size a table of scores and one of gap closed and retention.

    `validation` is validation.json: `rows`, and `untrained_of`, which names the untrained
    counterpart of each student. The best figure of a column is marked, in the first table among
    all models, in the second among those that have an untrained counterpart.
    """
    table = comparison_table(validation["rows"], validation["untrained_of"])
    out = []
    for size in dict.fromkeys(row.image_size for row in table.rows):
        rows = [row for row in table.rows if row.image_size == size]
        out += [_scores(table, rows, size), _held(table, rows, size)]
    return out


def _scores(table: Table, rows: Sequence[TableRow], size: int) -> ScoreTable:
    places = [i for i, column in enumerate(table.columns) if column.section == "score"]
    columns = [table.columns[i] for i in places]
    best = [_best([row.cells[i] for row in rows], table.columns[i]) for i in places]
    return ScoreTable(
        title=f"Scores at {size} pixels",
        caption="Each model's own figures; the best of each column is marked. "
        "Percent, except where an arrow says that lower is better."
        + (" Mean and deviation over seeds." if max(row.seeds for row in rows) > 1 else ""),
        columns=[
            ShownColumn(
                _words(column.task),
                _words(column.metric)
                + (" \N{DOWNWARDS ARROW}" if column.better == "lower" else ""),
            )
            for column in columns
        ],
        rows=[
            ShownRow(
                row.model,
                row.role,
                [
                    ShownCell(
                        _figure(row.cells[i].mean, columns[k].decimals),
                        _spread(row.cells[i].std, columns[k].decimals),
                        row.cells[i].mean is not None and row.cells[i].mean == best[k],
                        row.cells[i].reason,
                    )
                    for k, i in enumerate(places)
                ],
            )
            for row in rows
        ],
        notes=[],
    )


def _held(table: Table, rows: Sequence[TableRow], size: int) -> ScoreTable:
    place = {(column.section, column.task): i for i, column in enumerate(table.columns)}
    tasks = [column.task for column in table.columns if column.section == "gap closed"]
    tasks.sort(key=lambda task: task != AVERAGE)  # the average first: it is looked for first
    best = {
        task: _best(
            [row.cells[place["gap closed", task]] for row in rows],
            table.columns[place["gap closed", task]],
        )
        for task in tasks
    }

    def cell(row: TableRow, task: str) -> ShownCell:
        closed = row.cells[place["gap closed", task]]
        held = row.cells[place["retention", task]]
        decimals = table.columns[place["gap closed", task]].decimals
        return ShownCell(
            _figure(closed.mean, decimals)
            + (f" {_spread(closed.std, decimals)}" if closed.std is not None else ""),
            "" if held.mean is None else f"ret. {held.mean:.{decimals}f}",
            closed.mean is not None and closed.mean == best[task],
            closed.reason or held.reason,
        )

    return ScoreTable(
        title=f"Gap closed and retention at {size} pixels",
        caption="Gap closed: (model \N{MINUS SIGN} its untrained self) / (best teacher "
        "\N{MINUS SIGN} its untrained self); 0 is untrained, 1 the best teacher of the task. "
        "Below it retention, the model over the best teacher, which an untrained model does not "
        "start at 0.",
        columns=[ShownColumn(_words(task), "") for task in tasks],
        rows=[ShownRow(row.model, row.role, [cell(row, task) for task in tasks]) for row in rows],
        notes=[note for note in table.notes if f" at {size} px" in note],
    )


def _best(cells: Sequence[Cell], column: Column) -> float | None:
    means = [cell.mean for cell in cells if cell.mean is not None]
    return (max if column.better == "higher" else min)(means, default=None)


def _figure(value: float | None, decimals: int) -> str:
    return "" if value is None else f"{value:.{decimals}f}".replace("-", "\N{MINUS SIGN}")


def _spread(std: float | None, decimals: int) -> str:
    return "" if std is None else f"\N{PLUS-MINUS SIGN}{std:.{decimals}f}"


def _words(name: str) -> str:
    return name.replace("_", " ")
