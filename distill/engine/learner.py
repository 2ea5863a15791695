"""What a student is made of for a stage: its encoder, its space of each teacher, its plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from distill.engine.rows import Rows
from distill.recipe.learning import AdapterConfig
from distill.recipe.schema import Recipe, StageConfig, StudentConfig
from students import (
    Features,
    Space,
    Spaces,
    Student,
    UserError,
    build_student,
    load_student,
)
from students.adapters import misfit
from students.keys import key
from students.pixels import Size


class Learner(nn.Module):
    """A student and its space of each teacher: pixels in, predictions of all targets out."""

    def __init__(self, student: Student, spaces: dict[str, Space]):
        super().__init__()
        self.student = student
        self.teachers = list(spaces)
        # A ModuleDict takes no name with a dot, and a teacher may be called so.
        self.spaces = nn.ModuleList(spaces.values())

    def forward(
        self, pixels: Tensor, size: int, rows: Mapping[str, Rows] | None = None
    ) -> dict[str, Features]:
        """Predicted targets of each teacher for pixels (B, 3, H, W) in [0, 1] at `size`; with
        `rows`, of each teacher those alone. A teacher that has none gets predictions of no row:
        every weight is in what all ranks return, so that they exchange the same gradients."""
        return self.predictions(self.student(pixels, size), rows)

    def predictions(
        self, features: Features, rows: Mapping[str, Rows] | None = None
    ) -> dict[str, Features]:
        """Predicted targets of each teacher from the student's features, as `forward` gives."""
        return {
            name: self.space(name).predict(_rows(features, rows[name]) if rows else features)
            for name in self.teachers
        }

    def encode(self, pixels: Tensor, size: Size | None = None) -> Features:
        """The student's own features, for those who may not call a part of a sharded learner."""
        return self.student(pixels, size).without_levels()

    def space(self, teacher: str) -> Space:
        """The space of one teacher."""
        space = self.spaces[self.teachers.index(teacher)]
        assert isinstance(space, Space)
        return space

    def own_spaces(self) -> Spaces:
        """All spaces, as they are stored."""
        return Spaces({("student", name): self.space(name) for name in self.teachers})


def _rows(features: Features, rows: Rows) -> Features:
    if rows.index is None:
        return features
    return features.map(lambda _, tokens: rows.of(tokens))


@dataclass
class StudentPlan:
    """A student of a stage for one seed: `entry` is its name in the recipe, `name` its folder's,
    `config` what the recipe says, with references to students of the same seed."""

    entry: str
    name: str
    seed: int
    config: StudentConfig


def planned_students(recipe: Recipe, stage: str) -> list[StudentPlan]:
    """The students of a stage, one for each of their seeds.

    A student with `seeds: [0, 1]` becomes NAME.seed0 and NAME.seed1; what it starts or learns
    from is the one of the same seed, where there is one.
    """
    plans = []
    for name, config in recipe.stages[stage].students.items():
        for seed in config.seeds or [recipe.seed]:
            own = _same_seed(recipe, config, seed)
            plans.append(StudentPlan(name, student_name(name, config, seed), seed, own))
    return plans


def student_name(name: str, config: StudentConfig, seed: int) -> str:
    """NAME, or NAME.seedN where the student is trained for several seeds."""
    return f"{name}.seed{seed}" if config.seeds else name


def _same_seed(recipe: Recipe, config: StudentConfig, seed: int) -> StudentConfig:
    from dataclasses import replace

    def resolved(reference: str) -> str:
        stage, _, name = reference.partition("/")
        other = recipe.stages[stage].students.get(name) if stage in recipe.stages else None
        if other is None or seed not in other.seeds:
            return reference
        return f"{stage}/{student_name(name, other, seed)}"

    return replace(
        config,
        init=None if config.init is None else resolved(config.init),
        teachers=[resolved(teacher) for teacher in config.teachers],
    )


def origin_of(recipe: Recipe, plan: StudentPlan) -> tuple[str, StudentConfig]:
    """Name and entry of the student at the start of a chain of `init`s: it names the architecture,
    unless the chain starts in a folder of another run."""
    name, config = plan.entry, plan.config
    while config.init is not None:
        before = _named(recipe, config.init)
        if before is None:
            break
        name, config = before
    return name, config


def _named(recipe: Recipe, reference: str) -> tuple[str, StudentConfig] | None:
    """The recipe's entry of a `stage/student`, the student's name with or without its seed."""
    stage, _, folder = reference.partition("/")
    if stage in recipe.stages:
        for name, config in recipe.stages[stage].students.items():
            if folder in {name, *(student_name(name, config, seed) for seed in config.seeds)}:
                return name, config
    return None


def widths_between(
    student: Student, teacher_dims: dict[str, int | None], kinds: list[str] | tuple[str, ...]
) -> dict[str, tuple[int, int]]:
    """For each kind that the teacher gives, (width of the student, width of the teacher)."""
    ours = {"summary": student.summary_dim, "dense": student.dense_dim}
    found = {}
    for kind in kinds:
        width = teacher_dims[kind]
        if width is not None:
            found[kind] = (ours[kind], width)
    return found


def build_learner(
    student: Student,
    teachers: dict[str, dict[str, int | None]],
    normalisers: dict[str, str],
    adapter: AdapterConfig,
    *,
    seed: int,
    name: str,
    start: Spaces | None = None,
) -> Learner:
    """A learner with fresh adapters drawn from (seed, name), or those of `start` where they fit.

    Args:
        student: the encoder.
        teachers: for each teacher, its widths by token kind (None: not given).
        normalisers: for each teacher, the kind of its normaliser.
        adapter: kind, hidden width and depth of the heads.
        seed, name: what fresh weights are drawn from.
        start: spaces that an earlier stage trained.

    Raises:
        UserError: if adapters of this kind cannot read the encoder.
    """
    problem = misfit(adapter.kind, student.info)
    if problem is not None:
        raise UserError(problem)
    levels = student.levels if adapter.kind == "ladder" else None
    student.with_levels = levels is not None
    spaces = {}
    for teacher, dims in teachers.items():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(key("adapter", seed, name, teacher))
            space = Space(
                widths_between(student, dims, tuple(dims)),
                adapter=adapter.kind,
                hidden=adapter.hidden,
                depth=adapter.depth,
                levels=levels or 0,
                normaliser=normalisers[teacher],
            )
        before = start.steps.get(("student", teacher)) if start else None
        if before is not None and before.config == space.config:
            space.adapters.load_state_dict(before.adapters.state_dict())
        spaces[teacher] = space
    return Learner(student, spaces)


def initial_student(
    recipe: Recipe, stage: StageConfig, plan: StudentPlan, run_dir: Path
) -> tuple[Student, Spaces | None]:
    """The encoder that a student starts from, and the spaces it brings along."""
    config = plan.config
    if config.init is None:
        assert config.arch is not None
        student = build_student(
            config.arch,
            size=stage.image_sizes[0],
            overrides=config.model,
            pretrained=config.pretrained,
            proxy=config.proxy,
            seed=plan.seed,
            name=config.arch,
        )
        return student, None
    folder = run_dir / config.init
    if not folder.is_dir():
        folder = Path(config.init).expanduser()
    spaces = Spaces.load(folder) if (folder / "adapters.json").exists() else None
    return load_student(folder), spaces
