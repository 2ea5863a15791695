"""What a recipe comes to before it is run: parameters, widths, steps, images, memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from distill.compare.expansion import expand
from distill.data.sources import count_samples
from distill.engine.rows import partition_sizes
from distill.lineage import warnings
from distill.recipe.build import RecipeError
from distill.recipe.checks import Survey
from distill.recipe.learning import AdapterConfig
from distill.recipe.methods import tokens_of
from distill.recipe.resolve import survey
from distill.recipe.schema import Recipe, StageConfig, StudentConfig
from distill.recipe.stages import unseeded
from students.adapters import adapter_parameters
from students.encoder import StudentInfo

# A transformer block of width d has 12 d^2 weights, and in training it keeps 34 d bytes per token
# at 16 bits, its attention matrix left out (Korthikanti et al., arXiv 2205.05198, section 4.1).
WEIGHTS_PER_BLOCK = 12
ACTIVATIONS_PER_BLOCK = 34


@dataclass(frozen=True)
class PlannedTeacher:
    """A teacher as far as its files are known: widths, pixels and parameters may be None."""

    name: str
    family: str
    source: str
    fetched: bool
    sizes: tuple[int, ...]
    parameters: int | None
    summary_dim: int | None
    dense_dim: int | None
    licence: str | None


@dataclass(frozen=True)
class PlannedStudent:
    """A student of a stage: `adapters` are the parameters of its heads, None while the widths of
    a teacher are not known; `grids` the sides of its dense map by image size; `seeds` how often
    it is trained."""

    name: str
    arch: str
    parameters: int
    adapters: int | None
    grids: tuple[tuple[int, int], ...]
    teachers: tuple[str, ...]
    seeds: int


@dataclass(frozen=True)
class PlannedStage:
    """A stage: `memory` is an estimate in bytes for the whole batch on one device, None while a
    teacher's parameters are not known; `epochs` are over all training images, None while their
    number is not known."""

    name: str
    students: tuple[PlannedStudent, ...]
    image_sizes: tuple[int, ...]
    teacher_sizes: tuple[int, ...]
    steps: int
    batch_size: int
    images_seen: int
    epochs: float | None
    memory: int | None


@dataclass(frozen=True)
class Plan:
    """A recipe with what is known of it; `images` are those of all sources, None where one is
    counted only as it is read, `notes` what a person may want to know before starting."""

    recipe: Recipe
    images: int | None
    teachers: tuple[PlannedTeacher, ...]
    stages: tuple[PlannedStage, ...]
    notes: tuple[str, ...]


def plan(recipe: Recipe) -> Plan:
    """What `recipe` comes to, from names and configuration files alone.

    Raises:
        RecipeError: everything that hinders a run of it, or else a comparison that it asks for.
    """
    known = survey(recipe)
    if known.problems:
        raise RecipeError(known.problems)
    counts = [count_samples(source.source) for source in recipe.data.train.values()]
    countable = [count for count in counts if count is not None]
    images = sum(countable) if len(countable) == len(counts) else None
    return Plan(
        recipe,
        images,
        tuple(_teacher(recipe, name, known) for name in recipe.teachers),
        tuple(_stage(recipe, name, known, images) for name in recipe.stages),
        tuple(_notes(recipe, known)),
    )


def _teacher(recipe: Recipe, name: str, known: Survey) -> PlannedTeacher:
    info = known.teachers[name]
    native = () if info.size is None else (info.size,)
    return PlannedTeacher(
        name,
        info.spec.family,
        info.source,
        info.fetched,
        tuple(recipe.teachers[name].sizes) or native,
        info.parameters,
        info.summary_dim,
        info.dense_dim,
        info.licence,
    )


def _stage(recipe: Recipe, name: str, known: Survey, images: int | None) -> PlannedStage:
    stage, train = recipe.stages[name], recipe.stages[name].train
    students = tuple(
        _student(recipe, name, student, config, known) for student, config in stage.students.items()
    )
    seen = train.steps * train.batch_size
    return PlannedStage(
        name,
        students,
        tuple(stage.image_sizes),
        tuple(stage.teacher_sizes),
        train.steps,
        train.batch_size,
        seen,
        None if images is None else seen / images,
        _memory(recipe, name, students, known),
    )


def _student(
    recipe: Recipe, stage: str, name: str, config: StudentConfig, known: Survey
) -> PlannedStudent:
    info = known.students[f"{stage}/{name}"]
    adapter = config.adapter or recipe.stages[stage].adapter
    heads = [_heads(recipe, info, teacher, adapter, known) for teacher in config.teachers]
    sizes = recipe.stages[stage].image_sizes
    return PlannedStudent(
        name,
        info.arch,
        info.parameter_count,
        None if None in heads else sum(filter(None, heads)),
        tuple((size, size // info.stride) for size in sizes),
        tuple(config.teachers),
        max(1, len(config.seeds)),
    )


def _heads(
    recipe: Recipe, student: StudentInfo, teacher: str, adapter: AdapterConfig, known: Survey
) -> int | None:
    """Parameters of the adapters to one teacher, None while its widths are not known."""
    widths = {}
    for kind in tokens_of(recipe, teacher):
        width = _width(recipe, teacher, kind, known)
        if width is None:
            return None
        widths[kind] = getattr(student, f"{kind}_dim"), width
    return adapter_parameters(
        adapter.kind,
        widths,
        hidden=adapter.hidden,
        depth=adapter.depth,
        levels=student.levels or 0,
    )


def _width(recipe: Recipe, teacher: str, kind: str, known: Survey) -> int | None:
    if teacher in recipe.teachers:
        return getattr(known.teachers[teacher], f"{kind}_dim")
    return getattr(known.students[unseeded(recipe, teacher)], f"{kind}_dim")


def _memory(
    recipe: Recipe, name: str, students: tuple[PlannedStudent, ...], known: Survey
) -> int | None:
    """Bytes for teachers, students with gradients and optimiser, and activations; an estimate."""
    from distill.engine.precision import has_bfloat16
    from teachers.loading import choose_dtype

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    stage, total = recipe.stages[name], 0
    for teacher in dict.fromkeys(teacher for student in students for teacher in student.teachers):
        if teacher in recipe.teachers:
            parameters = known.teachers[teacher].parameters
            dtype = choose_dtype(recipe.teachers[teacher].dtype, device)
            if parameters is None:
                return None
            total += parameters * dtype.itemsize
        else:
            total += 4 * known.students[unseeded(recipe, teacher)].parameter_count
    precision = stage.train.precision
    short = precision == "bf16" or (precision == "auto" and has_bfloat16(device))
    # Weight, gradient and AdamW's two moments, and the moving average, in float32.
    states = 16 if stage.train.ema is None else 20
    for student in students:
        if student.adapters is None:
            return None
        info = known.students[f"{name}/{student.name}"]
        tokens = stage.train.batch_size * _tokens(stage, info.stride)
        blocks = info.parameter_count / (WEIGHTS_PER_BLOCK * info.dense_dim**2)
        kept = ACTIVATIONS_PER_BLOCK * info.dense_dim * blocks * (1 if short else 2)
        adapter = stage.students[student.name].adapter or stage.adapter
        inside = _kept_inside(adapter, info)
        for teacher in student.teachers:
            if "dense" in tokens_of(recipe, teacher):
                width = _width(recipe, teacher, "dense", known) or 0
                # Inside the adapter; prediction, target and its difference.
                kept += (inside + 3 * width) * 4
        bytes_of_one = states * (student.parameters + student.adapters) + kept * tokens
        total += int(student.seeds * bytes_of_one)
    return total


def _kept_inside(adapter: AdapterConfig, student: StudentInfo) -> int:
    """Numbers that an adapter keeps of a token for the way back; of an MLP its inner width before
    and after norm and activation."""
    return {
        "linear": 0,
        "mlp": 3 * adapter.hidden,
        "ladder": 3 * adapter.hidden * (1 + (student.levels or 0)),
        "attention": adapter.depth * ACTIVATIONS_PER_BLOCK // 2 * student.dense_dim,
        "conv": 2 * 3 * adapter.hidden,
    }[adapter.kind]


def _tokens(stage: StageConfig, stride: int) -> float:
    """Dense tokens of an image at the largest size of its partition, the mean over a batch."""
    if not stage.partitions:
        return (max(stage.image_sizes) // stride) ** 2
    parts = stage.partitions.values()
    weighted = [
        part.share * (max(part.image_sizes or stage.image_sizes) // stride) ** 2 for part in parts
    ]
    return sum(weighted) / sum(part.share for part in parts)


def _notes(recipe: Recipe, known: Survey) -> list[str]:
    notes = []
    taught = {
        t for stage in recipe.stages.values() for s in stage.students.values() for t in s.teachers
    }
    for name, info in known.teachers.items():
        if name not in taught:
            notes.append(f"teachers.{name}: no student learns from it; it is only validated")
        if not info.fetched:
            notes.append(f"teachers.{name}: {info.source} is not fetched yet; a run will fetch it")
        if info.fetched or info.licence is not None:
            about = {name: {"weights": info.spec.weights, "licence": info.licence}}
            notes += [f"licence: {line}" for line in warnings(about)]
    canvas = recipe.data.views.canvas
    for name, stage in recipe.stages.items():
        largest = max(stage.all_sizes())
        if canvas is not None and canvas < largest:
            notes.append(
                f"stages.{name}: views of {canvas} pixels (data.views.canvas) are enlarged "
                f"to {largest}"
            )
        for part, images in partition_sizes(stage).items():
            taught_by = stage.partitions[part].teachers or ["all teachers"]
            sizes = stage.partitions[part].image_sizes or stage.image_sizes
            notes.append(
                f"stages.{name}.partitions.{part}: {images} of {stage.train.batch_size} images, at "
                f"{', '.join(map(str, sizes))} pixels, for {', '.join(taught_by)}"
            )
    if recipe.compare is not None:
        comparison = expand(recipe, recipe.compare)
        originals = dict.fromkeys(replica.student for replica in comparison.replicas.values())
        subsets, seeds = len(comparison.subsets), len(recipe.compare.seeds)
        notes.append(
            f"distill compare trains {', '.join(originals)} {subsets * seeds} times: {subsets} "
            f"subsets of {', '.join(comparison.teachers)}, {seeds} seeds"
        )
    return notes
