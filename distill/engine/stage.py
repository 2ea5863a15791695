"""One stage: frozen teachers, some students, from the first batch to the exported folders."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from distill.data.loader import Batch, batches
from distill.data.photometrics import photometrics
from distill.data.source import Source
from distill.engine.checkpoint import load_trainee, newest_checkpoint, save_checkpoint
from distill.engine.learner import StudentPlan, Trainee, build_learner, initial_student
from distill.engine.targets import Rows, TargetTeacher, calibrate, rows_seen, widths
from distill.losses import best_scale, explained_variance, token_loss
from distill.optim import learning_rate
from distill.progress import Progress
from distill.recipe.schema import LossConfig, Recipe
from students import Features, UserError, match_grids
from students.keys import draw_size

if TYPE_CHECKING:
    from accelerate import Accelerator


class Stage:
    """What a stage needs while it runs.

    Args:
        recipe, name: the stage is `recipe.stages[name]`.
        teachers: those that its students learn from, by name.
        sources: opened training sources by name.
        folder: the run's folder.
        accelerator: Accelerate's, for device, ranks and reductions.
        progress: where a person sees how far it is.
    """

    def __init__(
        self,
        recipe: Recipe,
        name: str,
        teachers: dict[str, TargetTeacher],
        sources: dict[str, tuple[Source, float]],
        folder: Path,
        accelerator: Accelerator,
        progress: Progress,
    ):
        self.recipe, self.name, self.config = recipe, name, recipe.stages[name]
        self.teachers, self.sources = teachers, sources
        self.run, self.folder = folder, folder / name
        self.accelerator, self.progress = accelerator, progress
        self.device = accelerator.device
        self.canvas = recipe.data.views.canvas or max(self.config.image_sizes)
        self.autocast = _autocast_dtype(self.config.train.precision, self.device)

    def train(self, plans: list[StudentPlan]) -> list[Trainee]:
        """Train these students together, going on from the newest checkpoint if it is theirs."""
        found = newest_checkpoint(self.folder / "checkpoint")
        trainees = [self._prepare(plan) for plan in plans]
        first = 0
        if found is not None and all(plan.name in found.students for plan in plans):
            first = found.step
            for trainee in trainees:
                load_trainee(found.path, trainee)
            self._share_normalisers(trainees, restore=True)
        else:
            self._calibrate_normalisers()
            self._share_normalisers(trainees)
        self._loop(trainees, first)
        self._calibrate_scales(trainees)
        return trainees

    def _prepare(self, plan: StudentPlan) -> Trainee:
        student, start = initial_student(self.recipe, self.config, plan, self.run)
        learner = build_learner(
            student,
            {name: widths(self.teachers[name].teacher) for name in plan.config.teachers},
            {
                name: next(iter(self.teachers[name].normalisers.values())).kind
                for name in plan.config.teachers
            },
            plan.config.adapter or self.config.adapter,
            seed=plan.seed,
            name=student.arch,
            start=start,
        )
        return Trainee.prepare(plan, learner, self.config, self.accelerator)

    def _pixels(self, first: int, steps: int) -> Iterator[tuple[int, Batch, Tensor]]:
        """(step, batch, pixels on the device after colour changes) for some steps."""
        stream = batches(
            self.sources,
            policy=self.recipe.data.views.policy,
            scale=(self.recipe.data.views.scale[0], self.recipe.data.views.scale[1]),
            view_seed=self.recipe.data.view_seed,
            canvas=self.canvas,
            batch_size=self.config.train.batch_size,
            first_step=first,
            steps=steps,
            rank=self.accelerator.process_index,
            world=self.accelerator.num_processes,
            workers=self.recipe.data.workers,
        )
        for step, batch in enumerate(stream, first):
            pixels = batch.pixels.to(self.device, non_blocking=True).float().div_(255)
            yield step, batch, photometrics(pixels, batch.draws)

    def _calibrate_normalisers(self) -> None:
        steps = min(self.config.calibration_batches, self.config.train.steps)
        with self.progress.task(f"{self.name}: measuring targets", steps) as bar:

            def stream() -> Iterator[tuple[int, Tensor, dict[str, Rows]]]:
                for step, batch, pixels in self._pixels(0, steps):
                    yield step, pixels, self._rows(batch)
                    bar.advance()

            calibrate(
                self.teachers.values(),
                stream(),
                seed=self.recipe.seed,
                stage=self.name,
                accelerator=self.accelerator,
            )

    def _share_normalisers(self, trainees: list[Trainee], restore: bool = False) -> None:
        """Give each student its teachers' normalisers, or the stage those of the students."""
        for trainee in trainees:
            modules = {trainee.learner, trainee.result}
            for name in trainee.learner.teachers:
                for kind, normaliser in self.teachers[name].normalisers.items():
                    for module in modules:
                        held = module.space(name).normalisers[kind]
                        if restore:
                            normaliser.load_state_dict(held.state_dict())
                        else:
                            held.load_state_dict(normaliser.state_dict())

    def _loop(self, trainees: list[Trainee], first: int) -> None:
        train, log = self.config.train, StageLog(self, trainees, first)
        with self.progress.task(f"{self.name}: training", train.steps, first) as bar:
            asked = time.perf_counter()
            for step, batch, pixels in self._pixels(first, train.steps - first):
                arrived = time.perf_counter()
                self._step(trainees, step, pixels, self._rows(batch))
                log.waited += arrived - asked
                if (step + 1) % train.log_every == 0 or step + 1 == train.steps:
                    bar.note(log.write(step + 1))
                bar.advance()
                if (step + 1) % train.save_every == 0 or step + 1 == train.steps:
                    self._save(step + 1, trainees)
                asked = time.perf_counter()

    def _rows(self, batch: Batch) -> dict[str, Rows]:
        """The rows of a batch that each teacher sees."""
        size = self.config.train.batch_size
        return {
            name: rows_seen(batch.positions, teacher.batch_share, size)
            for name, teacher in self.teachers.items()
        }

    def _step(
        self, trainees: list[Trainee], step: int, pixels: Tensor, rows: dict[str, Rows]
    ) -> None:
        """One batch: each teacher once, then each student forward, backward and update."""
        targets = self._targets(step, pixels, rows)
        rate = learning_rate(step, self.config.train)
        for trainee in trainees:
            predictions = self._predict(trainee.wrapped, trainee.plan, step, pixels, rows)
            loss = self._loss(trainee, predictions, targets, rows)
            loss.backward()
            if self.config.train.clip is not None:
                nn.utils.clip_grad_norm_(trainee.learner.parameters(), self.config.train.clip)
            for group in trainee.optimiser.param_groups:
                group["lr"] = rate
            trainee.optimiser.step()
            trainee.optimiser.zero_grad(set_to_none=True)
            if trainee.ema is not None:
                trainee.ema.update_parameters(trainee.learner)

    def _targets(self, step: int, pixels: Tensor, rows: dict[str, Rows]) -> dict[str, Features]:
        seed = self.recipe.seed
        return {
            name: teacher.targets(teacher.features(rows[name].of(pixels), seed, self.name, step))
            for name, teacher in self.teachers.items()
        }

    def _predict(
        self,
        module: nn.Module,
        plan: StudentPlan,
        step: int,
        pixels: Tensor,
        rows: dict[str, Rows],
    ) -> dict[str, Features]:
        # A student's size goes with its seed alone, so that two students of a seed see the same.
        size = draw_size(self.config.image_sizes, plan.seed, self.name, step, "student")
        with torch.autocast(
            self.device.type, self.autocast or torch.float32, enabled=self.autocast is not None
        ):
            return module(pixels, size, rows)

    def _loss(
        self,
        trainee: Trainee,
        predictions: dict[str, Features],
        targets: dict[str, Features],
        rows: dict[str, Rows],
    ) -> Tensor:
        total = torch.zeros((), device=self.device)
        for name, predicted in predictions.items():
            for kind, (mean, sums) in compare(predicted, targets[name], self.config.loss).items():
                loss = rows[name].weight * mean
                total = total + self.teachers[name].weight * loss
                where = (name, kind)
                trainee.sums[where] = trainee.sums.get(where, 0) + sums
                trainee.losses[where] = trainee.losses.get(where, 0) + loss.detach()
        return total

    def _save(self, step: int, trainees: list[Trainee]) -> None:
        if self.accelerator.is_main_process:
            save_checkpoint(self.folder / "checkpoint", step, trainees)
        self.accelerator.wait_for_everyone()

    @torch.no_grad()
    def _calibrate_scales(self, trainees: list[Trainee]) -> None:
        """Fit each adapter's scalar s, the least squares of s * prediction to target."""
        steps = min(self.config.calibration_batches, self.config.train.steps)
        sums: dict[tuple[int, str, str], Tensor] = {}
        for trainee in trainees:
            trainee.result.eval()
        with self.progress.task(f"{self.name}: scaling adapters", steps) as bar:
            for step, batch, pixels in self._pixels(0, steps):
                rows = self._rows(batch)
                targets = self._targets(step, pixels, rows)
                for i, trainee in enumerate(trainees):
                    predictions = self._predict(trainee.result, trainee.plan, step, pixels, rows)
                    for name, predicted in predictions.items():
                        parts = compare(predicted, targets[name], self.config.loss)
                        for kind, (_, part) in parts.items():
                            where = (i, name, kind)
                            sums[where] = sums.get(where, 0) + part.double()
                bar.advance()
        for (i, name, kind), total in sums.items():
            scale = trainees[i].result.space(name).scales[kind]
            scale.data.copy_(best_scale(self.accelerator.reduce(total, "sum")))


def compare(
    predicted: Features, target: Features, config: LossConfig
) -> dict[str, tuple[Tensor, Tensor]]:
    """Loss and sums of each token kind that both have, dense maps on a common grid."""
    parts = {}
    if predicted.summary is not None and target.summary is not None and config.summary:
        parts["summary"] = token_loss(
            predicted.summary, target.summary, config.summary, config.beta
        )
    if predicted.dense is not None and target.dense is not None and config.dense:
        ours, theirs = match_grids(predicted.dense, target.dense, config.grid)
        parts["dense"] = token_loss(ours, theirs, config.dense, config.beta)
    return parts


class StageLog:
    """log.jsonl of a stage: a line per student every `log_every` steps, means over the steps since
    the last line and over all ranks. Tensors stay on the device until then."""

    def __init__(self, stage: Stage, trainees: list[Trainee], first: int):
        self.stage, self.trainees = stage, trainees
        self.path = stage.folder / "log.jsonl"
        self._forget_after(first)
        self.began, self.last, self.waited = time.perf_counter(), first, 0.0

    def _forget_after(self, step: int) -> None:
        """Drop lines of these students that a resumed run is about to write again."""
        if not self.path.exists() or not self.stage.accelerator.is_main_process:
            return
        names = {trainee.plan.name for trainee in self.trainees}
        lines = [json.loads(line) for line in self.path.read_text().splitlines()]
        kept = [line for line in lines if line["step"] <= step or line["student"] not in names]
        self.path.write_text("".join(json.dumps(line) + "\n" for line in kept))

    def write(self, step: int) -> str:
        """Write the lines of `step`; returns what a progress bar shows of them.

        Raises:
            UserError: if a loss is not finite.
        """
        train = self.stage.config.train
        count = step - self.last
        seconds = time.perf_counter() - self.began
        lines, notes = [], []
        for trainee in self.trainees:
            line: dict[str, Any] = {
                "step": step,
                "student": trainee.plan.name,
                "loss": 0.0,
                "lr": learning_rate(step - 1, train),
                "images_per_second": round(count * train.batch_size / seconds, 2),
                "data_wait": round(self.waited / seconds, 4),
                "teachers": {},
            }
            for where, value in trainee.losses.items():
                mean = float(self.stage.accelerator.reduce(value, "mean")) / count
                sums = self.stage.accelerator.reduce(trainee.sums[where], "sum")
                name, kind = where
                line["teachers"].setdefault(name, {})[kind] = {
                    "loss": mean,
                    "explained_variance": float(explained_variance(sums)),
                }
                line["loss"] += self.stage.teachers[name].weight * mean
            if not torch.isfinite(torch.tensor(line["loss"])):
                raise UserError(
                    f"stage {self.stage.name}, student {trainee.plan.name}: the loss is not finite "
                    f"at step {step}: lower stages.{self.stage.name}.train.lr, or set its clip"
                )
            trainee.losses, trainee.sums = {}, {}
            lines.append(json.dumps(line))
            notes.append(f"{trainee.plan.name} {line['loss']:.3f}")
        if self.stage.accelerator.is_main_process:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write("\n".join(lines) + "\n")
        self.began, self.last, self.waited = time.perf_counter(), step, 0.0
        return "  ".join(notes[:3])


def _autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """bfloat16 where it is asked for, or where the processor has it and nothing was said."""
    if precision == "fp32":
        return None
    if precision == "bf16" or has_bfloat16(device):
        return torch.bfloat16
    return None


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 matrices faster than float32 ones."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        able = torch.cpu.get_capabilities()
        return any(able.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return False
