"""Brace patterns as shells expand them: `{00000..00123}` and `{a,b}`."""

from __future__ import annotations

import itertools
import re

_RANGE = re.compile(r"(\d+)\.\.(\d+)")
MOST = 1 << 18
"""Names that a pattern may stand for."""


def expand_braces(pattern: str) -> list[str]:
    """The names that `pattern` stands for, in order, the last brace running fastest.

    A range `{first..last}` of whole numbers keeps the width with which they are written; a list
    `{a,b,c}` is of plain text. Braces do not nest.

    Raises:
        ValueError: if a brace is not closed, holds neither range nor list, counts down, or the
            names are too many; one line.
    """
    parts = re.split(r"([{}])", pattern)
    choices: list[list[str] | range] = []
    widths: list[int] = []
    total = 1
    inside = False
    for number, part in enumerate(parts):
        if part == "{" and inside:
            raise ValueError("a brace within a brace")
        if part == "}" and not inside:
            raise ValueError("'}' without '{'")
        if part in "{}" and part:
            inside = part == "{"
            continue
        if inside and number == len(parts) - 1:
            raise ValueError("'{' without '}'")
        options, width = _inside(part) if inside else ([part], 0)
        choices.append(options)
        widths.append(width)
        total *= len(options)
    if total > MOST:
        raise ValueError(f"it stands for {total} names, more than {MOST}")
    names = (
        [str(one).zfill(width) for one in options]
        for options, width in zip(choices, widths, strict=True)
    )
    return ["".join(name) for name in itertools.product(*names)]


def _inside(text: str) -> tuple[list[str] | range, int]:
    """What `{text}` may be, and how many digits it has at least."""
    if match := _RANGE.fullmatch(text):
        first, last = match.groups()
        if int(first) > int(last):
            raise ValueError(f"'{{{text}}}' counts down: write {{{last}..{first}}}")
        padded = any(len(end) > 1 and end.startswith("0") for end in (first, last))
        return range(int(first), int(last) + 1), max(len(first), len(last)) if padded else 0
    if "," in text:
        return text.split(","), 0
    raise ValueError(
        f"'{{{text}}}' is neither a range such as {{000..123}} nor a list such as {{a,b}}"
    )
