"""The comparison of models as a table: scores, retention and gap closed, over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import rich.box
from rich.console import Group
from rich.table import Table as TerminalTable
from rich.text import Text

from distill.probes.models import ROLES
from distill.retention import AVERAGE, Row, retention


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


def render_terminal(table: Table, width: int) -> Group:
    """The table for a terminal of `width` characters: a line a figure and a column a model, the
    best score in bold; in several tables of some models each, where they do not fit beside each
    other."""
    models = list(dict.fromkeys((row.model, row.role) for row in table.rows))
    first = max((len(column.title) for column in table.columns), default=0) + 2
    groups: list[list[tuple[str, str]]] = []
    left = 0
    for model in models:
        needed = _column_width(table, model) + 2
        if not groups or left < needed:
            groups.append([])
            left = width - first
        groups[-1].append(model)
        left -= needed
    return Group(*(_models_beside(table, group) for group in groups))


def _column_width(table: Table, model: tuple[str, str]) -> int:
    """Characters that a model's figures and the parts of its name take."""
    figures = (
        len(_shown(cell, column.decimals, bold=False))
        for row in table.rows
        if row.model == model[0]
        for cell, column in zip(row.cells, table.columns, strict=True)
    )
    words = (len(word) for word in _heading(*model).split())
    return max(*figures, *words)


def _heading(model: str, role: str) -> str:
    """A name that may be broken after each slash and full stop, and the role below it."""
    return f"{model.replace('/', '/ ').replace('.', '. ')}\n{role}"


def _models_beside(table: Table, models: Sequence[tuple[str, str]]) -> TerminalTable:
    out = TerminalTable(box=rich.box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    out.add_column("", no_wrap=True)
    for model, role in models:
        # Names may hold brackets, which rich would read as markup.
        width = _column_width(table, (model, role))
        out.add_column(Text(_heading(model, role)), justify="right", min_width=width)
    for size in dict.fromkeys(row.image_size for row in table.rows):
        at_size = {row.model: row for row in table.rows if row.image_size == size}
        for section in dict.fromkeys(column.section for column in table.columns):
            out.add_row(Text(f"{section}, {size} px", style="bold cyan"))
            for i, column in enumerate(table.columns):
                if column.section != section:
                    continue
                found = (row.cells[i].mean for row in at_size.values())
                means = [mean for mean in found if mean is not None]
                best = (max if column.better == "higher" else min)(means, default=None)
                bold = section == "score"
                cells = [at_size[m].cells[i] if m in at_size else Cell(None) for m, _ in models]
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
