"""What a card says of the files of other formats beside a student: how near they are to it, and
what 8 bits cost in quality; and the latencies of bench.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from distill.cache.account import shown_bytes
from distill.export.markdown import plain, table
from distill.export.secrets import without_secrets
from distill.formats.latency_table import Bench, columns, lines, machine_words
from students import TOKEN_KINDS

Formats = Mapping[str, Mapping[str, Any]]
"""What the files say of themselves (see distill.formats.about), by their paths in the folder."""


def formats_section(formats: Formats) -> str:
    """Markdown of the files' sizes and verification, and of the probes of those in 8 bits; "" where
    there are none."""
    if not formats:
        return ""
    parts = [
        "## Other formats",
        "Each file takes `pixels` (RGB in [0, 1]; the pixel statistics are inside) and gives "
        "`summary` and `dense`. It was compared with this student when it was written: the largest "
        "error of any feature, and the smallest cosine of any token, on built-in scenes.",
        table(
            ("file", "bytes", "pixels", *(f"{k} {w}" for k in TOKEN_KINDS for w in _WORDS)),
            (
                _comparison(name, about, row)
                for name, about in formats.items()
                for row in _rows(about)
            ),
        ),
    ]
    probed = {name: about for name, about in formats.items() if about.get("probes")}
    for size in dict.fromkeys(about["probes"]["image_size"] for about in probed.values()):
        parts.append(_probes({n: a for n, a in probed.items() if _size(a) == size}, size))
    bare = [n for n, a in formats.items() if a["quantization"] is not None and n not in probed]
    if bare:
        parts.append(f"Not probed, so that their loss is not known: {', '.join(map(plain, bare))}.")
    return "\n\n".join(parts)


_WORDS = ("error", "cosine")


def _rows(about: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    found: Sequence[Mapping[str, Any]] = about["verification"]
    return found


def _size(about: Mapping[str, Any]) -> int:
    return int(about["probes"]["image_size"])


def _comparison(name: str, about: Mapping[str, Any], row: Mapping[str, Any]) -> list[str]:
    cells = [name, shown_bytes(about["bytes"]), f"{row['height']} x {row['width']}"]
    for kind in TOKEN_KINDS:
        error, cosine = row[kind]["max_error"], row[kind]["min_cosine"]
        cells += [
            "-" if error is None else f"{error:.1e}",
            "-" if cosine is None else f"{cosine:.6f}",
        ]
    return cells


def _probes(formats: Formats, size: int) -> str:
    """A line a metric, a column a file: what it scores, and what it lost."""
    first = next(iter(formats.values()))["probes"]
    losses = {
        name: {(one["task"], one["metric"]): one for one in about["probes"]["losses"]}
        for name, about in formats.items()
    }
    rows = []
    for one in first["losses"]:
        if one["float_value"] is None:
            continue
        lower = one["better"] == "lower"
        digits = 3 if lower else 1
        cells = [
            f"{one['task']} {one['metric']}".replace("_", " ") + (" ↓" if lower else ""),
            f"{one['float_value']:.{digits}f}",
        ]
        for found in losses.values():
            mine = found.get((one["task"], one["metric"]), {"loss": None})
            known = mine["loss"] is not None
            cells.append(_changed(mine["value"], mine["loss"], digits, lower) if known else "-")
        rows.append(cells)
    closed = [about["probes"]["gap_closed"] for about in formats.values()]
    if any(one is not None for one in closed):
        before = next(one["float_value"] for one in closed if one is not None)
        rows.append(
            [
                "average gap closed",
                f"{before:.3f}",
                *map(_closed, closed),
            ]
        )
    return (
        f"In 8 bits, probed on {first['test']} scenes of {size} pixels with heads trained on "
        f"{first['train']} others, {first['worlds']} times, and what that is more or less than in "
        "float32:\n\n" + table(("", "float32", *formats), rows)
    )


def _closed(gap: Mapping[str, Any] | None) -> str:
    if gap is None:
        return "-"
    said = _changed(gap["value"], gap["loss"], 3, False)
    return said if gap["error"] is None else f"{said[:-1]} ± {gap['error']:.3f})"


def _changed(value: float, loss: float, digits: int, lower: bool) -> str:
    change = loss if lower else 0.0 - loss  # not -0.0
    return f"{value:.{digits}f} ({change:+.{digits}f})"


def latencies(bench: Bench) -> str:
    """Markdown of bench.json: milliseconds and memory, and the machine."""
    order, every = columns(bench), lines(bench)
    memory = any(line.peak_mb is not None for line in every)
    names = [f"{one.size} px, {one.words}" for one in order]
    rows = [
        [
            line.model,
            line.form,
            *("-" if ms is None else f"{ms:.4g}" for ms in line.ms),
            *([_megabytes(line.peak_mb), _megabytes(line.library_mb)] if memory else []),
        ]
        for line in every
    ]
    extra = ["peak MB", "of it libraries"] if memory else []
    machine = plain(without_secrets(machine_words(bench["machine"])))
    return (
        f"Median milliseconds of a batch, measured in turns on {machine}:\n\n"
        f"{table(('model', 'format', *names, *extra), rows)}"
    )


def _megabytes(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"
