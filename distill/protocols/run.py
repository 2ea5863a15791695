"""Every task on every model and data set, each result kept as soon as it is there."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from distill.cache.key import code_digest
from distill.datasets import EvaluationSet, open_evaluation
from distill.files import write_whole, writing
from distill.probes.models import CannotProbe, NothingToScore
from distill.probes.tasks import Outcome
from distill.progress import Progress
from distill.protocols.answers import ANSWERS
from distill.protocols.drawing import drawn, drawn_at
from distill.protocols.plan import CURVE, ValidationPlan
from distill.protocols.registry import TASKS, uses_heads
from distill.protocols.store import FeatureStore
from distill.protocols.subjects import Loader, Subject
from distill.protocols.task import FieldTask, Setting, Stored, View
from distill.recipe.build import RecipeError
from distill.recipe.resolve import teacher_spec
from distill.report.gallery import Group, write_pictures
from students import UserError
from students.errors import did_you_mean
from teachers import describe_teacher

if TYPE_CHECKING:
    from accelerate import Accelerator

    from distill.data.source import IndexedSource

Row = dict[str, Any]

RESULTS = "results.json"


FEATURES = FieldTask("features", "", "dense", (), "", lambda setting: Outcome({}, 0))
"""No figures, but dense features for the pictures."""


@dataclass(frozen=True)
class Work:
    """One task of one model on one data set at one size; `drawn`: its answers are, too."""

    data: str
    task: FieldTask
    size: int
    drawn: bool = True


def check_plan(plan: ValidationPlan) -> dict[str, EvaluationSet]:
    """The data sets of a plan, opened; no weight is loaded.

    Raises:
        RecipeError: everything that is wrong with the plan, at once.
    """
    problems, opened = [], {}
    for name in plan.tasks:
        if name not in TASKS:
            problems.append(f"tasks: unknown task {name!r}{did_you_mean(name, TASKS)}")
    for name, spec in plan.data.items():
        try:
            opened[name] = open_evaluation(spec or "")
        except UserError as error:
            problems.append(f"data.{name}: {error}")
    for section in ("models", "teachers"):
        for name, config in getattr(plan, section).items():
            try:
                describe_teacher(teacher_spec(config))
            except UserError as error:
                problems.append(f"{section}.{name}: {error}")
    for name, figure in plan.published.items():
        for what, known in (("model", plan.models), ("data", plan.data), ("task", TASKS)):
            value = getattr(figure, what)
            if value not in known:
                near = did_you_mean(value, known)
                problems.append(f"published.{name}.{what}: there is no {value!r}{near}")
    if not problems:
        for name in plan.tasks:
            if not any(allows(data, TASKS[name]) for data in opened.values()):
                there = [f"{data.layout} ({', '.join(data.parts)})" for data in opened.values()]
                needed = f"tasks: {name} needs a data set with {TASKS[name].part}"
                problems.append(f"{needed}; there is {', '.join(there)}")
    if problems:
        raise RecipeError(problems)
    return opened


def allows(data: EvaluationSet, task: FieldTask) -> bool:
    """Whether a data set has what a task needs."""
    return not task.part or task.part in data.parts


def validate_models(
    plan: ValidationPlan, folder: Path, accelerator: Accelerator, progress: Progress
) -> list[Row]:
    """All results of a plan, in `folder`: results.json and pictures/. In rows/ each lies by itself
    as soon as it is there, so that the same command goes on where it stopped; features/ holds the
    models' features.

    Returns the rows: model, role, task, dataset, split, image_size, samples, metric, value, better,
    protocol, seconds; `reason` where value is None; `published` and `published_source` where the
    plan has a figure. On several ranks all of them work, and the first one writes.

    Raises:
        RecipeError, UserError: as `check_plan`, and where a data set or a model's files are faulty.
    """
    opened = check_plan(plan)
    for name, data in opened.items():
        for note in data.notes:
            progress.say(f"data.{name}: {note}")
    store = FeatureStore(
        folder / "features",
        rank=accelerator.process_index,
        ranks=accelerator.num_processes,
        barrier=accelerator.wait_for_everyone,
        batch=plan.batch,
        workers=plan.workers,
    )
    chosen = [TASKS[name] for name in plan.tasks] or list(TASKS.values())
    loader = Loader(plan.teachers, accelerator.device, uses_heads(chosen), progress.say)
    rows: list[Row] = []
    answers: dict[tuple[str, str, int], dict[str, Path]] = {}
    about: list[dict[str, Any]] = []
    with writing(folder):
        (folder / "rows").mkdir(parents=True, exist_ok=True)
        for number, (name, config) in enumerate(plan.models.items(), 1):
            subject = loader.load(name, config, plan.seed)
            about.append(_about(subject))
            todo = _todo(plan, opened, chosen, subject)
            title = f"{name} ({number} of {len(plan.models)})"
            with progress.task(title, len(todo)) as bar:
                for work in todo:
                    bar.note(f"{work.task.name} on {work.data} at {work.size} px")
                    data = opened[work.data]
                    found, kept = _result(plan, folder, accelerator, store, subject, work, data)
                    if work.task is not FEATURES:
                        rows += found
                    if work.drawn and kept.exists():
                        place = work.data, work.task.name, work.size
                        answers.setdefault(place, {})[name] = kept
                    bar.advance()
        _compare_with_published(rows, plan)
        if accelerator.is_main_process:
            write_pictures(_drawn(opened, answers), folder / "pictures")
            made = time.strftime("%Y-%m-%dT%H:%M:%S%z")
            content = {"name": plan.name, "created": made, "models": about, "rows": rows}
            write_whole(folder / RESULTS, json.dumps(content, indent=1) + "\n")
    return rows


def _todo(
    plan: ValidationPlan,
    opened: Mapping[str, EvaluationSet],
    chosen: Sequence[FieldTask],
    subject: Subject,
) -> list[Work]:
    """Data set by data set, so that features are computed once while they are in the page cache."""
    sizes = {"summary": plan.sizes or [subject.encoder.size]}
    sizes["dense"] = plan.dense_sizes or sizes["summary"]
    found = []
    for name, data in opened.items():
        for task in chosen:
            if not allows(data, task):
                continue
            curved = task.kind == "dense" and plan.curve
            for size in sizes["dense" if task.kind == "dense" else "summary"]:
                for share in CURVE if curved else (1.0,):
                    scaled = _scaled(size, share, subject.encoder.stride)
                    found.append(Work(name, task, scaled, share == 1))
        if any(work.data == name and work.task.kind == "dense" for work in found):
            found.append(Work(name, FEATURES, sizes["dense"][0]))
    return list(dict.fromkeys(found))


def _drawn(
    opened: Mapping[str, EvaluationSet], answers: Mapping[tuple[str, str, int], Mapping[str, Path]]
) -> list[Group]:
    groups = []
    order = sorted(answers, key=lambda place: (list(opened).index(place[0]), drawn_at(place[1])))
    for name, task, size in order:
        paths = answers[name, task, size]
        given = {model: load_file(path) for model, path in paths.items()}
        group = drawn(name, opened[name], task, size, given)
        if group is not None:
            groups.append(group)
    return groups


def _scaled(size: int, share: float, stride: int) -> int:
    """A share of a size, in whole patches unless it is the size itself."""
    return size if share == 1 else max(1, round(size * share / stride)) * stride


def _result(
    plan: ValidationPlan,
    folder: Path,
    accelerator: Accelerator,
    store: FeatureStore,
    subject: Subject,
    work: Work,
    data: EvaluationSet,
) -> tuple[list[Row], Path]:
    """The rows of one piece of work, from rows/ if it has been done before, and the file of its
    answers, which is there if it has any."""
    task = work.task
    own = subject.identities[subject.model.name]
    code = code_digest([task.run.__module__])
    made_of = [own, subject.reached, data.identity, task.name, task.protocol, code]
    key = json.dumps([*made_of, work.size, plan.seed])
    digest = hashlib.sha256(key.encode()).hexdigest()[:24]
    kept = folder / "rows" / f"{digest}.json"
    shown: dict[str, Tensor] = {}
    before = _read(kept)
    # None writes it until all have looked, or some would do the work and others not.
    accelerator.wait_for_everyone()
    if before is not None:
        # Names are the plan's, not the content's.
        names = {"model": subject.model.name, "dataset": work.data}
        return [row | names for row in before], kept.with_suffix(".safetensors")

    def features(pictures: IndexedSource, view: View, of: str | None = None) -> Stored:
        name = of or subject.model.name
        encoder = subject.encoder if of is None else subject.teachers[of]
        identity = subject.identities[name]
        which = _split_identity(data, pictures)
        # Of a task that reads no map only the average of each is kept.
        kind = "summary" if task.kind == "summary" else "dense"
        return store.features(
            encoder, identity, pictures, which, view, accelerator.device, kind=kind, name=name
        )

    setting = Setting(
        model=subject.model,
        data=data,
        size=work.size,
        teachers=subject.teachers,
        features=features,
        show=lambda number, answer: shown.update({str(number): answer}),
        seed=plan.seed,
        device=accelerator.device,
        rank=accelerator.process_index,
        ranks=accelerator.num_processes,
    )
    began, reason, outcome = time.perf_counter(), "", Outcome({}, 0)
    problem = type(subject.encoder).size_error(subject.encoder.info, work.size)
    if problem:
        reason = problem
    else:
        try:
            outcome = task.run(setting)
            if task.name in ANSWERS:
                shown |= ANSWERS[task.name](setting)
        except (CannotProbe, NothingToScore) as why:
            reason = str(why)
    rows = _rows(subject, work, outcome, reason, time.perf_counter() - began)
    if accelerator.is_main_process:
        if shown:
            # Before the rows, which say that all of it is done.
            tensors = {number: answer.contiguous() for number, answer in shown.items()}
            save_file(tensors, kept.with_suffix(".safetensors"))
        write_whole(kept, json.dumps(rows, indent=1) + "\n")
    accelerator.wait_for_everyone()
    return rows, kept.with_suffix(".safetensors")


def _split_identity(data: EvaluationSet, pictures: IndexedSource) -> str:
    """Which of a data set's splits these pictures are."""
    return f"{data.identity} {len(pictures)} {pictures.name(0)} {pictures.name(len(pictures) - 1)}"


def _rows(subject: Subject, work: Work, outcome: Outcome, reason: str, seconds: float) -> list[Row]:
    task = work.task
    # The metrics of some tasks depend on the teachers that are reached; there may be none.
    metrics = list(dict.fromkeys([*task.metrics, *outcome.values])) or [""]
    rows = []
    for metric in metrics:
        value = outcome.values.get(metric)
        row: Row = {
            "model": subject.model.name,
            "role": subject.model.role,
            "task": task.name,
            "dataset": work.data,
            "split": "test",
            "image_size": work.size,
            "samples": outcome.samples,
            "metric": metric,
            "value": value,
            "better": "lower" if metric in task.lower else "higher",
            "protocol": task.protocol,
            "seconds": round(seconds, 3),
        }
        if value is None:
            row["reason"] = reason or f"{metric or task.name}: not with this model and data set"
        elif not math.isfinite(value):
            row |= {"value": None, "reason": f"{metric} is not a finite number"}
        rows.append(row)
    return rows


def _compare_with_published(rows: list[Row], plan: ValidationPlan) -> None:
    for figure in plan.published.values():
        for row in rows:
            asked = (figure.model, figure.data, figure.task, figure.metric)
            if asked == (row["model"], row["dataset"], row["task"], row["metric"]):
                row |= {"published": figure.value, "published_source": figure.source}


def _about(subject: Subject) -> dict[str, Any]:
    encoder = subject.encoder
    return {
        "name": subject.model.name,
        "role": subject.model.role,
        "source": encoder.spec.weights,
        "family": encoder.spec.family,
        "size": encoder.size,
        "parameters": sum(parameter.numel() for parameter in encoder.parameters()),
        "summary_dim": encoder.summary_dim,
        "dense_dim": encoder.dense_dim,
        "licence": encoder.info.licence,
    }


def _read(path: Path) -> list[Row] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
