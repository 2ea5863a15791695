"""What a cache will take, and what is in one."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from distill.cache.about import read_about, read_layout
from distill.cache.catalogue import shard_names
from distill.cache.codec import RowLayout
from distill.cache.room import SPARE, used_bytes
from distill.cache.shard import RECORD, Shard, rows_of_shard
from students.errors import UserError

SEAL_BYTES = 100
"""Of a shard's seal, about."""


def estimate_bytes(rows: int, layouts: Iterable[RowLayout]) -> int:
    """The bytes that a cache of `rows` views takes when it is full, one layout for each teacher and
    each of its sizes. A teacher that draws one of several sizes a step fills all of its stores
    only in the long run: this is the most that it comes to."""
    total = 0
    for layout in layouts:
        shards = -(-rows // rows_of_shard(layout.bytes))
        total += rows * (layout.bytes + 2 * RECORD.itemsize) + shards * SEAL_BYTES + SPARE
    return total


@dataclass(frozen=True)
class StoreInfo:
    """What a store holds: the teacher's label ("?" where about.json is damaged), the size in pixels
    that it is shown, whole rows, bytes on disk, format and dtype, when it was begun and last
    written to (seconds since 1970), and how many of its shards are damaged."""

    folder: Path
    teacher: str
    size: str
    rows: int
    bytes: int
    format: str
    created: str
    written: float
    shards: int
    damaged: int


def info(folder: str | Path) -> list[StoreInfo]:
    """The stores of a cache, the largest first; their rows are counted and not read.

    Raises:
        UserError: if there is no such folder, or it holds something else.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise UserError(f"cache {folder}: no such folder")
    stores = [path for path in sorted(folder.iterdir()) if path.is_dir() and _is_store(path)]
    if not stores and not (folder / "lock").exists() and any(folder.iterdir()):
        raise UserError(f"{folder} holds no cache of teachers' features")
    return sorted((_store_info(path) for path in stores), key=lambda found: -found.bytes)


def print_info(folder: str | Path, console: Console | None = None) -> None:
    """Print the stores of a cache as a table, and their sum.

    Raises:
        UserError: as `info`.
    """
    stores = info(folder)
    console = console or Console()
    table = Table(box=None, pad_edge=False, header_style="bold")
    right = ("size", "rows", "size on disk", "damaged")
    columns = ("teacher", "size", "rows", "size on disk", "format", "written", "damaged", "folder")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for found in stores:
        written = time.strftime("%Y-%m-%d %H:%M", time.localtime(found.written))
        damaged = f"{found.damaged} of {found.shards}" if found.damaged else "-"
        cells = [found.teacher, found.size, f"{found.rows:,}", shown_bytes(found.bytes)]
        cells += [found.format, written, damaged, found.folder.name]
        table.add_row(*(Text(cell) for cell in cells))
    if stores:
        console.print(table)
    total = sum(found.bytes for found in stores)
    word = "store" if len(stores) == 1 else "stores"
    console.print(Text(f"{folder}: {len(stores)} {word}, {shown_bytes(total)}"))


def shown_bytes(count: int) -> str:
    """A count of bytes in a unit of 1000s that leaves one to three digits before the point."""
    value, units = float(count), ["B", "kB", "MB", "GB", "TB", "PB"]
    while value >= 999.5 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.0f} {units[0]}" if units[0] == "B" else f"{value:.3g} {units[0]}"


def _is_store(path: Path) -> bool:
    return (path / "about.json").exists() or bool(shard_names(path))


def _store_info(folder: Path) -> StoreInfo:
    about, layout = read_about(folder) or {}, read_layout(folder)
    names = shard_names(folder)
    shards = [Shard(folder, name, layout.bytes) for name in names] if layout else []
    rows = sum(len(shard.new_records()) for shard in shards)
    key = about.get("key")
    size = key.get("size", "?") if isinstance(key, dict) else "?"
    return StoreInfo(
        folder=folder,
        teacher=str(about.get("label", "?")),
        size=size if isinstance(size, str) else json.dumps(size),
        rows=rows,
        bytes=used_bytes(folder),
        format="?" if layout is None else f"{layout.format} of {layout.dtype}",
        created=str(about.get("created", "?")),
        written=max((path.stat().st_mtime for path in folder.iterdir()), default=0.0),
        shards=len(names),
        damaged=sum(shard.damaged or shard.file("bad").exists() for shard in shards),
    )
