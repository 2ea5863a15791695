"""The average gap closed of a student in each of its formats, from what its run measured."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distill.formats.about import exported_files, read_about
from distill.formats.labels import TORCH, label
from distill.retention import AVERAGE, retention

Row = Mapping[str, Any]
"""A row of validation.json, see distill.probes.validate."""


class RunScores:
    """What a run's validation.json holds beside one of its students.

    Args:
        folder: the student's, RUN/STAGE/STUDENT.
        rows, untrained_of: those of validation.json.
    """

    def __init__(self, folder: Path, rows: Sequence[Row], untrained_of: Mapping[str, str]):
        # As validation.json calls it: with several seeds, the entry's name, and rows of its seed.
        stage, name = folder.resolve().parts[-2:]
        numbered = re.search(r"\.seed(\d+)$", name)
        entry = name if numbered is None else name[: numbered.start()]
        self.model, self._untrained_of = f"{stage}/{entry}", untrained_of
        own = [row for row in rows if row["model"] == self.model]
        seeds = [int(row["seed"]) for row in own] if numbered is None else [int(numbered[1])]
        self.seed = seeds[0] if seeds else 0
        self.rows = [row for row in own if row["seed"] == self.seed]
        self._others = [row for row in rows if row["model"] != self.model]

    @classmethod
    def read(cls, run: Path | None, folder: Path) -> RunScores | None:
        """Those of a run; None where it was not validated."""
        if run is None:
            return None
        try:
            held = json.loads((run / "validation.json").read_text(encoding="utf-8"))
            return cls(folder, held["rows"], held["untrained_of"])
        except (OSError, KeyError, ValueError):
            return None

    @property
    def sizes(self) -> list[int]:
        """The image sizes at which the student was scored."""
        return list(dict.fromkeys(row["image_size"] for row in self.rows))

    def average(self, rows: Sequence[Row]) -> float | None:
        """The average gap closed if these were the student's rows, all of one image size."""
        mine = [{**row, "model": self.model, "seed": self.seed} for row in rows]
        found = retention([*self._others, *mine], self._untrained_of)
        averages = (one for one in found if (one.model, one.task) == (self.model, AVERAGE))
        return next((one.gap_closed for one in averages), None)


def gap_closed(
    scores: RunScores | None, before: Sequence[Row], after: Sequence[Row]
) -> dict[str, float] | None:
    """The average gap closed by the rows of two probes at one image size: `float_value` of those
    before, `value` of those after, and `loss`, the first less the second.

    Metrics without a value in either count in neither. None where the run has no scores of its
    teachers and of the untrained student at this size.
    """
    if scores is None:
        return None
    known = [
        {(row["task"], row["metric"]) for row in rows if row["value"] is not None}
        for rows in (before, after)
    ]
    first, second = (
        scores.average([row for row in rows if (row["task"], row["metric"]) in known[0] & known[1]])
        for rows in (before, after)
    )
    if first is None or second is None:
        return None
    return {"float_value": first, "value": second, "loss": first - second}


def run_quality(run: Path | None, folder: Path, size: int) -> dict[str, float]:
    """Average gap closed of a run's student by label of format; nothing where the run was not
    validated at `size` pixels.

    Files in float32 have the student's own. Those in 8 bits have that less what their own probes
    say that they lose, and are left out where they were not probed.
    """
    scores = RunScores.read(run, folder)
    if scores is None:
        return {}
    own = scores.average([row for row in scores.rows if row["image_size"] == size])
    if own is None:
        return {}
    found = {TORCH: own}
    for file in exported_files(folder):
        about = read_about(file)
        closed = (about.get("probes") or {}).get("gap_closed")
        if about["quantization"] is None:
            found[label(about["format"], None)] = own
        elif closed is not None:
            found[label(about["format"], about["quantization"])] = own - closed["loss"]
    return found
