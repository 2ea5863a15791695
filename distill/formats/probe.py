"""What a quantization costs in quality: the probes on the built-in world, before and after.

The same scenes, heads and seeds for both, so that a difference is the file's. Where the student's
run was validated, they are that validation's own: its tasks, its number of scenes, its seed, the
text towers and mask decoders of its teachers; so what is lost is lost from the scores of the run,
and from the average gap closed. A few hundred scenes tell no single point from none: one image of
448 that is recognised or not may be half a point of the quickstart's average gap closed. So the
same is done in further worlds, of the seeds that follow, and the means are given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, stdev
from typing import Any

from distill.export.select import Found
from distill.formats.encoder import ExportedEncoder
from distill.formats.quality import RunScores, gap_closed
from distill.probes.models import Encoder, ProbedModel
from distill.probes.validate import Row, validate
from students import Spaces, Student, UserError
from teachers import Teacher, describe_teacher, families, load_teacher

TASKS = ("knn", "segmentation", "depth", "image_retrieval")
"""Tasks of a student whose run was not validated: they need no teacher."""

SCENES = 256
"""Scenes that its probes learn from, and as many others that they are scored on."""

LEAST_SCENES, MOST_WORLDS = 2048, 5
"""Scenes of all worlds together that files are scored on at least, and worlds at most."""

HEADS = ("text_tower", "mask_decoder")
"""What tasks use of a teacher beside its features."""


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
    """Probes files of one student; the student itself is probed once for each size.

    Args:
        found: the student's folder, and its run if any.
        student: what is in the folder.
        scenes: of each split, where the run was not validated.
        say: told in a line what cannot be measured.
    """

    def __init__(
        self,
        found: Found,
        student: Student,
        scenes: int = SCENES,
        say: Callable[[str], None] = lambda line: None,
    ):
        self._found, self._student, self._say = found, student, say
        self._config = None if found.recipe is None else found.recipe.validate
        self._train = self._test = scenes
        self._seed, self._tasks = 0, list(TASKS)
        if self._config is not None:
            self._train, self._test = self._config.train, self._config.test
            self._seed, self._tasks = self._config.seed, list(self._config.tasks)
        self._worlds = min(-(-LEAST_SCENES // self._test), MOST_WORLDS)
        self._known: dict[int, list[list[Row]]] = {}

    def __call__(self, encoder: ExportedEncoder, size: int) -> dict[str, Any]:
        """Content of the JSON's `probes`: image_size, train and test (scenes of each world), seed
        (of the first), worlds, `losses` (a list of Loss as mappings, of means over worlds) and
        `gap_closed`: that of distill.formats.quality, as a mean, and `error`, the standard error
        of the loss, None from one world.

        The images are of `size` pixels, or where the file takes any and the run was validated at
        others, of that of those which is nearest.
        """
        size = self._compared_at(encoder, size)
        if size not in self._known:
            self._known[size] = self._rows(self._student, size)
        before, after = self._known[size], self._rows(encoder, size)
        closed = [gap_closed(self._scores, *world) for world in zip(before, after, strict=True)]
        return {
            "image_size": size,
            "train": self._train,
            "test": self._test,
            "seed": self._seed,
            "worlds": self._worlds,
            "losses": [vars(loss) for loss in losses(mean_rows(before), mean_rows(after))],
            "gap_closed": mean_gap([one for one in closed if one is not None]),
        }

    def _compared_at(self, encoder: ExportedEncoder, size: int) -> int:
        scored = [] if self._scores is None else self._scores.sizes
        if size in scored or not scored or isinstance(encoder.about["sizes"], list):
            return size
        return min(scored, key=lambda other: (abs(other - size), other))

    @cached_property
    def _scores(self) -> RunScores | None:
        return RunScores.read(self._found.run, self._found.folder)

    def _rows(self, encoder: Encoder, size: int) -> list[list[Row]]:
        """The rows of each world."""
        spaces = Spaces.load(self._found.folder)
        reached, left_out = spaces.chains(), spaces.left_out()
        model = ProbedModel("student", "student", "", self._seed, encoder, reached, left_out)
        return [
            validate(
                [model],
                self._teachers,
                tasks=self._tasks,
                sizes=[size],
                train=self._train,
                test=self._test,
                seed=self._seed + world,
            )
            for world in range(self._worlds)
        ]

    @cached_property
    def _teachers(self) -> Mapping[str, Teacher]:
        """The teachers of the run whose heads the tasks use, that are on this machine."""
        from distill.recipe.resolve import teacher_spec

        recipe, found = self._found.recipe, {}
        if recipe is None or not {"text_retrieval", "masks"} & set(self._tasks):
            return {}
        for name, config in recipe.teachers.items():
            try:
                spec = teacher_spec(config)
                family = families()[spec.family]
                if all(getattr(family, head) is getattr(Teacher, head) for head in HEADS):
                    continue
                if not describe_teacher(spec).fetched:
                    raise UserError(f"{spec.weights} is not on this machine")
                if config.shard:
                    raise UserError("it is sharded over several devices")
                found[name] = load_teacher(spec)
            except UserError as error:
                self._say(f"{name}: its text tower or mask decoder is not probed with ({error})")
        return found


def mean_rows(worlds: Sequence[Sequence[Row]]) -> list[Row]:
    """The rows of the first world with each value the mean over all; None where one has none."""
    found = []
    for same in zip(*worlds, strict=True):
        values = [row["value"] for row in same]
        value = None if any(one is None for one in values) else fmean(values)
        found.append({**same[0], "value": value})
    return found


def mean_gap(worlds: Sequence[Mapping[str, float]]) -> dict[str, float | None] | None:
    """The means over worlds of what `gap_closed` gives, and the standard error of the loss."""
    if not worlds:
        return None
    means = {key: fmean(world[key] for world in worlds) for key in worlds[0]}
    spread = stdev(world["loss"] for world in worlds) if len(worlds) > 1 else None
    return {**means, "error": None if spread is None else spread / len(worlds) ** 0.5}


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
