"""What a quantization costs in quality: the probes on the built-in world, before and after.

The same scenes, heads and seeds for both, so that a difference is the file's. A few hundred scenes
tell a loss of some points from none, and no more; the run's own validation is on more of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from distill.formats.encoder import ExportedEncoder
from distill.probes.models import Encoder, ProbedModel
from distill.probes.validate import Row, validate
from students import Student

TASKS = ("knn", "segmentation", "depth", "image_retrieval")
"""Tasks that need no teacher."""

SCENES = 256
"""Scenes that probes learn from, and as many others that they are scored on."""


@dataclass(frozen=True)
class Loss:
    """A metric of the student in float32 and of a file; `loss` is above 0 where the file is worse,
    whichever way is better. All None where there is no value."""

    task: str
    metric: str
    better: str
    float_value: float | None
    value: float | None
    loss: float | None


class QuantizationProbe:
    """Probes files of one student; the student itself is probed once for each size."""

    def __init__(self, student: Student, scenes: int = SCENES, seed: int = 0):
        self._student, self._scenes, self._seed = student, scenes, seed
        self._known: dict[int, list[Row]] = {}

    def __call__(self, encoder: ExportedEncoder, size: int) -> dict[str, Any]:
        """Content of the JSON's `probes`: image_size, train, test, seed and `losses`, a list of
        Loss as mappings."""
        if size not in self._known:
            self._known[size] = self._rows(self._student, size)
        before, after = self._known[size], self._rows(encoder, size)
        return {
            "image_size": size,
            "train": self._scenes,
            "test": self._scenes,
            "seed": self._seed,
            "losses": [vars(loss) for loss in losses(before, after)],
        }

    def _rows(self, encoder: Encoder, size: int) -> list[Row]:
        model = ProbedModel("student", "student", "", self._seed, encoder)
        return validate(
            [model],
            {},
            tasks=TASKS,
            sizes=[size],
            train=self._scenes,
            test=self._scenes,
            seed=self._seed,
        )


def losses(before: Sequence[Row], after: Sequence[Row]) -> list[Loss]:
    """The losses from rows of `validate` before to those after, of the same tasks."""
    later = {(row["task"], row["metric"]): row["value"] for row in after}
    found = []
    for row in before:
        task, metric, better = row["task"], row["metric"], row["better"]
        first, second = row["value"], later[task, metric]
        loss = None
        if first is not None and second is not None:
            loss = first - second if better == "higher" else second - first
        found.append(Loss(task, metric, better, first, second, loss))
    return found
