"""Several models on public data sets as tables: one a data set, for the page and the terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rich.box
from rich.console import Group
from rich.table import Table as TerminalTable
from rich.text import Text

from distill.comparison import Column
from distill.report.score_table import ScoreTable, ShownCell, ShownColumn, ShownRow
from students.errors import UserError

_ROW = ("model", "role", "task", "dataset", "image_size", "metric", "value", "better")
_NAME = 16
"""The least width of a model's column that a name is broken into."""


@dataclass(frozen=True)
class Figure:
    """What a model has in a column: its value, or why there is none; the size it was shown, and a
    published figure with its source, if there is one."""

    value: float | None
    size: int | None = None
    reason: str = ""
    published: float | None = None
    source: str = ""


@dataclass(frozen=True)
class DataSetTable:
    """A data set's figures. `sizes[k]` is the image size of column k, None where each model has its
    own; `figures[m][k]` belongs to model m, (name, role), and column k."""

    dataset: str
    columns: tuple[Column, ...]
    sizes: tuple[int | None, ...]
    models: tuple[tuple[str, str], ...]
    figures: tuple[tuple[Figure, ...], ...]

    def best(self, column: int) -> float | None:
        """The best value of a column, if there are several to compare."""
        values = [row[column].value for row in self.figures]
        known = [value for value in values if value is not None]
        if len(known) < 2:
            return None
        return (max if self.columns[column].better == "higher" else min)(known)

    @property
    def one_size(self) -> int | None:
        """The image size of all figures, if it is the same."""
        sizes = {f.size for row in self.figures for f in row if f.size is not None}
        return sizes.pop() if len(sizes) == 1 else None


def read_results(path: Path) -> dict[str, Any]:
    """results.json: `models` and `rows`.

    Raises:
        UserError: if it is not there, or not such a file.
    """
    if not path.is_file():
        raise UserError(f"{path} is not there; `distill validate` writes it")
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        missing = [key for row in results["rows"] for key in _ROW if key not in row]
        named = [model["name"] for model in results["models"]]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} does not hold the results of `distill validate` ({error!r})"
        ) from None
    if missing:
        raise UserError(f"{path} has a row without {missing[0]!r}")
    if not named:
        raise UserError(f"{path} holds no models")
    return results


def dataset_tables(results: Mapping[str, Any]) -> list[DataSetTable]:
    """A table a data set, in the order of the rows; models in the order of `models`.

    A metric has one column if no model was measured at several sizes of it, else one a size.
    """
    order = {model["name"]: place for place, model in enumerate(results["models"])}
    out = []
    for dataset in dict.fromkeys(row["dataset"] for row in results["rows"]):
        rows = [row for row in results["rows"] if row["dataset"] == dataset]
        models = tuple(
            sorted(
                dict.fromkeys((row["model"], row["role"]) for row in rows),
                key=lambda model: order.get(model[0], len(order)),
            )
        )
        keys = _columns(rows)
        out.append(
            DataSetTable(
                dataset,
                tuple(
                    Column(dataset, task, metric, better, _decimals(rows, task, metric))
                    for task, metric, better, _ in keys
                ),
                tuple(size for *_, size in keys),
                models,
                tuple(tuple(_figure(rows, name, key) for key in keys) for name, _ in models),
            )
        )
    return out


def _decimals(rows: Sequence[Mapping[str, Any]], task: str, metric: str) -> int:
    """One for percentages, three for what is around 1: errors, fractions, cosines."""
    own = [row for row in rows if (row["task"], row["metric"]) == (task, metric)]
    values = [abs(row["value"]) for row in own if row["value"] is not None]
    return 3 if own[0]["better"] == "lower" or max(values, default=2) <= 1 else 1


_Key = tuple[str, str, str, int | None]


def _columns(rows: Sequence[Mapping[str, Any]]) -> list[_Key]:
    """(task, metric, better, size or None), tasks together in the order of the rows.

    A task that could not be done has no metric if these depend on the model: it has a column of its
    own only if no model has figures.
    """
    keys: list[_Key] = []
    for task in dict.fromkeys(row["task"] for row in rows):
        own = [row for row in rows if row["task"] == task]
        metrics = dict.fromkeys((row["metric"], row["better"]) for row in own)
        named = [key for key in metrics if key[0]] or list(metrics)[:1]
        for metric, better in named:
            at = [(row["model"], row["image_size"]) for row in own if row["metric"] == metric]
            if len({model for model, _ in at}) == len(set(at)):
                sizes = {size for _, size in at}
                keys.append((task, metric, better, sizes.pop() if len(sizes) == 1 else None))
            else:
                keys += [(task, metric, better, size) for size in sorted({s for _, s in at})]
    return keys


def _figure(rows: Sequence[Mapping[str, Any]], model: str, key: _Key) -> Figure:
    task, metric, _, size = key
    own = [
        row
        for row in rows
        if (row["model"], row["task"]) == (model, task)
        and row["metric"] in (metric, "")
        and size in (None, row["image_size"])
    ]
    if not own:
        return Figure(None)
    row = next((row for row in own if row["metric"] == metric), own[0])
    published, source = row.get("published"), row.get("published_source", "")
    return Figure(row["value"], row["image_size"], row.get("reason", ""), published, source)


def score_table(table: DataSetTable) -> ScoreTable:
    """A data set's table for the page; the notes are the reasons of figures that are missing."""
    one = table.one_size
    columns = [
        ShownColumn(
            column.task.replace("_", " "),
            _below(column, None if one else size),
        )
        for column, size in zip(table.columns, table.sizes, strict=True)
    ]
    rows = []
    for (name, role), figures in zip(table.models, table.figures, strict=True):
        cells = []
        for k, figure in enumerate(figures):
            below = [f"{figure.size} px"] if table.sizes[k] is None and figure.size else []
            if figure.published is not None:
                below.append(f"publ. {_number(figure.published, table.columns[k])}")
            cells.append(
                ShownCell(
                    _number(figure.value, table.columns[k]),
                    ", ".join(below if figure.value is not None else below[-1:]),
                    figure.value is not None and figure.value == table.best(k),
                    figure.reason or ("" if figure.value is not None else "not measured"),
                )
            )
        rows.append(ShownRow(name, role, cells))
    caption = "Percent with one decimal, with three as its protocol says. The best of each column "
    caption += f"is marked. Images of {one} pixels." if one else "is marked."
    return ScoreTable(table.dataset, caption, columns, rows, missing(table))


def missing(table: DataSetTable) -> list[str]:
    """A line for each model and reason: "task, task: reason"."""
    tasks: dict[tuple[str, str], dict[str, None]] = {}
    for (name, _), figures in zip(table.models, table.figures, strict=True):
        for column, figure in zip(table.columns, figures, strict=True):
            if figure.reason:
                tasks.setdefault((name, figure.reason), {})[column.task.replace("_", " ")] = None
    return [f"{name}, {', '.join(of)}: {reason}" for (name, reason), of in tasks.items()]


def published(table: DataSetTable) -> list[str]:
    """A line for each published figure with its source."""
    return [
        f"{name}, {column.title}: {_number(figure.published, column)}, {figure.source}".rstrip(", ")
        for (name, _), figures in zip(table.models, table.figures, strict=True)
        for column, figure in zip(table.columns, figures, strict=True)
        if figure.published is not None
    ]


def render_field_table(results: Path | Mapping[str, Any], width: int) -> Group:
    """The tables for a terminal of `width` characters: a line a data set's task and metric, a
    column a model, the best in bold, and below them why figures are missing. Models that do not
    fit beside each other stand in further tables.

    Args:
        results: results.json, or its path.
        width: of the terminal in characters.

    Raises:
        UserError: as `read_results`.
    """
    if isinstance(results, Path):
        results = read_results(results)
    tables = dataset_tables(results)
    roles = {row["model"]: row["role"] for row in results["rows"]}
    lines = [len(_line(table, k)) for table in tables for k in range(len(table.columns))]
    room = max(1, (width - max(lines, default=0) - 2) // (_NAME + 2))
    names = [model["name"] for model in results["models"] if model["name"] in roles]
    parts: list[Any] = [
        _models_beside(tables, [(name, roles[name]) for name in names[first : first + room]])
        for first in range(0, len(names), room)
    ]
    for table in tables:
        parts += [Text(f"{table.dataset}: {note}", style="dim") for note in missing(table)]
    return Group(*parts)


def _models_beside(
    tables: Sequence[DataSetTable], models: Sequence[tuple[str, str]]
) -> TerminalTable:
    out = TerminalTable(box=rich.box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    out.add_column("", no_wrap=True)
    for name, role in models:
        # Text: names may hold brackets, which rich would read as markup.
        heading = Text(f"{name}\n{role}", overflow="fold")
        out.add_column(heading, justify="right", max_width=_NAME)
    for table in tables:
        shown = dict(zip(table.models, table.figures, strict=True))
        if not any(model in shown for model in models):
            continue
        out.add_row(Text(table.dataset, style="bold cyan"))
        for k in range(len(table.columns)):
            figures = [shown[model][k] if model in shown else Figure(None) for model in models]
            out.add_row(Text(_line(table, k)), *(_shown(figure, table, k) for figure in figures))
        out.add_section()
    return out


def _line(table: DataSetTable, column: int) -> str:
    size = table.sizes[column]
    return f"  {table.columns[column].title}" + (f", {size} px" if size else "")


def _shown(figure: Figure, table: DataSetTable, column: int) -> Text:
    text = Text()
    if figure.value is None:
        text.append("-", "dim")
    else:
        best = figure.value == table.best(column)
        text.append(_number(figure.value, table.columns[column]), "bold" if best else "")
        if table.sizes[column] is None:
            text.append(f" {figure.size} px", "dim")
    if figure.published is not None:
        text.append(f"\npubl. {_number(figure.published, table.columns[column])}", "dim")
    return text


def _below(column: Column, size: int | None) -> str:
    # An arrow or a unit is not broken off what it belongs to.
    arrow = "\N{NO-BREAK SPACE}\N{DOWNWARDS ARROW}" if column.better == "lower" else ""
    metric = column.metric.replace("_", " ") + arrow
    pixels = f"{size}\N{NO-BREAK SPACE}px" if size else ""
    return ", ".join(part for part in (metric, pixels) if part)


def _number(value: float | None, column: Column) -> str:
    if value is None:
        return ""
    return f"{value:.{column.decimals}f}".replace("-", "\N{MINUS SIGN}")
