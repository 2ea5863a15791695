"""Quality against latency: what a format, or 8 bits, costs and what it buys."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from distill.compare.frontier import pareto_front
from distill.export.select import Found
from distill.formats.about import exported_files, read_about
from distill.formats.bench import TORCH, shifted
from distill.report.scatter import Point, scatter
from distill.retention import AVERAGE, retention

Quality = dict[tuple[str, str], float]
"""Average gap closed by (model, format)."""


def quality_latency(
    rows: Sequence[Mapping[str, Any]], quality: Mapping[tuple[str, str], float], *, size: int
) -> str:
    """An `<svg>` for report.html of the average gap closed over the latency of one image.

    Args:
        rows: of bench.json; those of `size`, batch 1 and the fewest threads are drawn.
        quality: by (model, format); what is not in it is left out.
        size: image side in pixels.
    """
    ours = [row for row in rows if row["size"] == size and row["batch"] == 1]
    fewest = min((row["threads"] for row in ours), default=0)
    drawn = [
        (f"{row['model']}, {row['format']}", row["median_ms"], quality[row["model"], row["format"]])
        for row in ours
        if row["threads"] == fewest and (row["model"], row["format"]) in quality
    ]
    front = set(pareto_front([(x, y) for _, x, y in drawn]))
    points = [Point(name, x, y, None, i in front) for i, (name, x, y) in enumerate(drawn)]
    threads = f"{fewest} thread" + ("" if fewest == 1 else "s")
    return scatter(
        points,
        label=f"Average gap closed over latency at {size} pixels",
        x_label=f"ms for one image, {threads}",
    )


def run_quality(found: Found, model: str) -> Quality:
    """Average gap closed of a run's student by format, under the name `model`; nothing where the
    run was not validated.

    float32 files have the student's own. Those in 8 bits have what is left when the losses of their
    own probes are taken from it; they are left out where they were not probed.
    """
    if found.run is None:
        return {}
    try:
        held = json.loads((found.run / "validation.json").read_text(encoding="utf-8"))
        rows, untrained_of = held["rows"], held["untrained_of"]
    except (OSError, KeyError, ValueError):
        return {}
    # As validation.json calls it: with several seeds, the entry's name, and rows of its seed.
    stage, folder = found.folder.resolve().parts[-2:]
    entry, _, number = folder.partition(".seed")
    name = f"{stage}/{entry}"
    mine = [row for row in rows if row["model"] != name or not number or str(row["seed"]) == number]
    qualities: Quality = {}
    own = _average(mine, untrained_of, name)
    if own is not None:
        qualities[model, TORCH] = own
    for file in exported_files(found.folder):
        about = read_about(file)
        form, kind = about["format"], about["quantization"]
        if kind is None:
            value = own
        elif about.get("probes"):
            losses = about["probes"]["losses"]
            of_file = [
                after
                for row in mine
                for after in (shifted([row], losses) if row["model"] == name else [row])
            ]
            value = _average(of_file, untrained_of, name)
        else:
            continue
        if value is not None:
            qualities[model, form if kind is None else f"{form}-{kind}"] = value
    return qualities


def _average(rows: Sequence[Any], untrained_of: Mapping[str, str], name: str) -> float | None:
    values = [
        one.gap_closed
        for one in retention(rows, untrained_of)
        if one.model == name and one.task == AVERAGE and one.gap_closed is not None
    ]
    return sum(values) / len(values) if values else None
