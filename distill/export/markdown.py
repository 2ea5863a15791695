"""Text and tables of a card, of which nothing breaks its Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose first line are the columns' names; every cell is made plain."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(plain(cell) for cell in line) + " |" for line in lines)


def plain(text: str) -> str:
    """Text that is no Markdown table, no HTML and one line."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
