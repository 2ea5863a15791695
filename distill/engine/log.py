"""log.jsonl of a stage: what a person and a plot see of its training."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object

from distill.data.loader import Batch
from distill.engine.rows import partition_sizes
from distill.engine.targets import TargetTeacher
from distill.engine.trainee import Trainee
from distill.files import write_whole, writing
from distill.losses import explained_variance
from distill.optim import learning_rate
from distill.trackers import scalars, send

if TYPE_CHECKING:
    from distill.engine.stage import Stage


MANY = 4
"""So many students have a line each beside a bar."""


class StageLog:
    """A line per student every `log_every` steps: means over the steps since the last line and over
    all ranks, of those that were finite. Tensors stay on the device until then.

    nonfinite.jsonl names the samples of each step that was left out.
    """

    def __init__(self, stage: Stage, trainees: list[Trainee], first: int):
        self.stage, self.trainees = stage, trainees
        self.path = stage.folder / "log.jsonl"
        self.names: list[list[str]] = []
        self._forget_after(first)
        self.began, self.timed_from, self.waited = time.perf_counter(), first, 0.0

    def _forget_after(self, step: int) -> None:
        """Drop lines of these students that a resumed run is about to write again, and one that a
        killed run left half written."""
        if not self.stage.accelerator.is_main_process:
            return
        names = {trainee.plan.name for trainee in self.trainees}
        for path in (self.path, self._nonfinite):
            forget(path, lambda line: line["step"] > step and line["student"] in names)

    @property
    def _nonfinite(self) -> Path:
        return self.path.with_name("nonfinite.jsonl")

    def paused(self, seconds: float) -> None:
        """Leave seconds that were not spent on training out of images/s."""
        self.began += seconds

    def saw(self, batch: Batch, waited: float) -> None:
        """Take note of a step's batch, and of the seconds that it was waited for."""
        self.names.append(batch.names)
        self.waited += waited

    def write(self, step: int) -> str:
        """Write the lines of `step`, which is done; returns what stands with a progress
        bar: a line of what it costs, then a line per student."""
        train = self.stage.config.train
        seconds = max(time.perf_counter() - self.began, 1e-9)
        rate = (step - self.timed_from) * train.batch_size / seconds
        wait = self.waited / seconds
        self.name_nonfinite(step)
        lines = []
        for trainee in self._running():
            finite = torch.stack(trainee.tally.finite).tolist()
            line: dict[str, Any] = {
                "step": step,
                "student": trainee.plan.name,
                "loss": 0.0 if any(finite) else None,
                "lr": learning_rate(step - 1, train),
                "images_per_second": round(rate, 2),
                "data_wait": round(wait, 4),
                "nonfinite": finite.count(False),
                **self._method(trainee, finite.count(True)),
                "teachers": {},
            }
            for (name, kind), (loss, explained) in self._means(trainee, finite.count(True)).items():
                entry = {"loss": loss, "explained_variance": explained}
                line["teachers"].setdefault(name, {})[kind] = entry
                line["loss"] += self.stage.teachers[name].weight * loss
            trainee.tally.clear()
            lines.append(line)
        self._append(self.path, lines)
        name, say = self.stage.name, self.stage.progress.say
        values = {key: value for line in lines for key, value in scalars(name, line).items()}
        send(self.stage.accelerator, name, step, values, say)
        self.began, self.timed_from, self.waited = time.perf_counter(), step, 0.0
        return "\n".join([f"{rate:.0f} images/s, {wait:.0%} waiting for data", *notes(lines)])

    def name_nonfinite(self, step: int) -> None:
        """Write which samples were in the steps up to `step` that were left out and are not named
        yet. The flags are the same on all ranks, so all of them come here with the same ones."""
        lines = []
        for trainee in self._running():
            flags = (
                torch.stack(trainee.tally.finite[-len(self.names) :]).tolist() if self.names else []
            )
            for number, (finite, names) in enumerate(zip(flags, self.names, strict=True)):
                if finite:
                    continue
                if self.stage.accelerator.num_processes > 1:
                    names = gather_object(names)
                at = step - len(self.names) + number + 1
                lines.append({"step": at, "student": trainee.plan.name, "samples": names})
        self._append(self._nonfinite, lines)
        self.names = []

    def _running(self) -> list[Trainee]:
        return [trainee for trainee in self.trainees if trainee.stopped is None]

    def _means(self, trainee: Trainee, finite: int) -> dict[tuple[str, str], tuple[float, float]]:
        """Mean loss and explained variance of each (teacher, token kind) that counts in the loss,
        over ranks and finite steps; of none if there was no finite step."""
        if not finite:
            return {}
        places = [
            (name, kind)
            for name in trainee.learner.teachers
            for kind in trainee.learner.space(name).kinds
            if self.stage.config.loss.terms(name, kind)
        ]
        tally = trainee.tally
        losses = torch.stack([tally.mean_over_ranks(("loss", k, n)) for n, k in places]) / finite
        sums = torch.stack([tally.mean_over_ranks(("sums", k, n)) for n, k in places])
        explained = explained_variance(sums)
        return dict(zip(places, zip(losses.tolist(), explained.tolist(), strict=True), strict=True))

    def _method(self, trainee: Trainee, finite: int) -> dict[str, Any]:
        """What of a line tells the methods apart: parameters of the adapters, and where there is
        such a thing how many images a batch has of each partition, the share of patches that is
        hidden, the share of images for which a teacher's loss counted (`kept`), what each teacher's
        loss is multiplied by, the means over channels of running statistics (root mean square and
        std), and the cosines between the teachers' gradients."""
        stage, balance = self.stage, trainee.balance
        about: dict[str, Any] = {"adapter_parameters": trainee.adapter_parameters}
        if stage.config.partitions:
            about["partitions"] = partition_sizes(stage.config)
        if stage.config.objective == "masked":
            about["hidden"] = 1 - stage.config.masked.visible
        kept = [entry for entry in trainee.tally.shapes if entry[0] == "kept"]
        if kept and finite:
            means = torch.stack([trainee.tally.mean_over_ranks(entry) for entry in kept]) / finite
            about["kept"] = dict(zip([name for _, name in kept], means.tolist(), strict=True))
        if weights := balance.weights():
            about["weights"] = {name: float(weight) for name, weight in weights.items()}
        targets = [stage.teachers[name] for name in trainee.learner.teachers]
        running = {target.name: _running(target) for target in targets}
        if any(running.values()):
            about["running"] = {name: found for name, found in running.items() if found}
        if balance.conflicts:
            # Where a teacher sent no gradient there is no angle.
            cosines = {pair: float(cosine) for pair, cosine in balance.conflicts.items()}
            about["conflicts"] = {p: None if c != c else c for p, c in cosines.items()}
        return about

    def _append(self, path: Path, lines: list[dict[str, Any]]) -> None:
        if self.stage.accelerator.is_main_process:
            append(path, lines)


def _running(target: TargetTeacher) -> dict[str, dict[str, float]]:
    """Of each token kind whose statistics run along, root mean square of means and mean std."""
    found = {}
    for kind, normaliser in target.normalisers.items():
        if normaliser.running:
            mean, std = normaliser.channels()
            found[kind] = {"mean": float(mean.square().mean().sqrt()), "std": float(std.mean())}
    return found


def append(path: Path, lines: list[dict[str, Any]]) -> None:
    """Write lines of JSON at the end of a file, which is made if there is none; of none, nothing.

    Raises:
        UserError: if it cannot be written.
    """
    if lines:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.write("".join(json.dumps(line) + "\n" for line in lines))


def forget(path: Path, dropped: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
    """Drop some lines of a log, and one that a killed run left half written; those that stay. A
    file that is not there has none."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    kept = [line for line in map(_parsed, text.splitlines()) if line and not dropped(line)]
    write_whole(path, "".join(json.dumps(line) + "\n" for line in kept))
    return kept


def notes(lines: list[dict[str, Any]]) -> list[str]:
    """What stands of the students' losses beside a bar: a line each, or of many of them the mean by
    teacher."""
    if len(lines) <= MANY:
        return [_note(line) for line in lines]
    by_teacher: dict[str, list[float]] = {}
    for line in lines:
        for name, kinds in line["teachers"].items():
            by_teacher.setdefault(name, []).append(sum(entry["loss"] for entry in kinds.values()))
    means = ", ".join(f"{name} {fmean(losses):.2f}" for name, losses in by_teacher.items())
    bad = sum(line["loss"] is None for line in lines)
    students = f"{len(lines)} students" + (f", {bad} not finite" if bad else "")
    return [f"{students}; mean loss {means}" if means else students]


def _note(line: dict[str, Any]) -> str:
    """A student's losses, whole and by teacher, as they stand beside a bar."""
    if line["loss"] is None:
        return f"{line['student']}: not finite"
    parts = [
        f"{name} {sum(entry['loss'] for entry in kinds.values()):.2f}"
        for name, kinds in line["teachers"].items()
    ]
    return f"{line['student']} {line['loss']:.3f}" + (f" ({', '.join(parts)})" if parts[1:] else "")


def _parsed(line: str) -> dict[str, Any] | None:
    """The line of a log; None of one that was not written to its end."""
    try:
        content = json.loads(line)
    except ValueError:
        return None
    return content if isinstance(content, dict) and {"step", "student"} <= content.keys() else None
