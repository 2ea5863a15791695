"""The models of a validation: a frozen encoder each, the spaces that it reaches, and whose heads
serve it there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from distill.cache import teacher_identity
from distill.lineage import ancestors_of
from distill.probes.models import ProbedModel
from distill.recipe.resolve import teacher_spec
from distill.recipe.schema import TeacherConfig
from students import Spaces, UserError
from teachers import Teacher, TeacherSpec, load_teacher


@dataclass(frozen=True)
class Subject:
    """A loaded model under test. `identities` tell features of it, under its own name, and of its
    teachers from any other's; `reached` the spaces and heads that it is judged through."""

    model: ProbedModel
    encoder: Teacher
    teachers: Mapping[str, Teacher]
    identities: Mapping[str, str]
    reached: str


class Loader:
    """Loads models and the teachers whose spaces they reach, each of these once.

    Args:
        teachers: further ones, by name, whose spaces models may reach.
        heads: whether any task asks for a text tower, a mask decoder or a teacher's features; if
            not, no teacher is loaded.
        say: told in one line of a teacher that cannot be loaded: its tasks are left out.
    """

    def __init__(
        self,
        teachers: Mapping[str, TeacherConfig],
        device: torch.device,
        heads: bool,
        say: Callable[[str], None],
    ):
        self.configs, self.device, self.heads, self.say = teachers, device, heads, say
        self._loaded: dict[TeacherSpec, Teacher | None] = {}

    def load(self, name: str, config: TeacherConfig, seed: int = 0) -> Subject:
        """The model `name`.

        Raises:
            UserError: as `load_teacher`.
        """
        encoder = load_teacher(teacher_spec(config), self.device)
        folder = encoder.checkpoint.folder
        if encoder.spec.family == "student" and folder is not None:
            spaces = Spaces.load(folder)
            for space in spaces.steps.values():
                space.to(self.device)
            reached = spaces.chains()
            model = ProbedModel(name, "student", "", seed, encoder, reached, spaces.left_out())
            teachers = self._teachers(folder, reached) if self.heads else {}
            digest = _digest((folder / "adapters.safetensors").read_bytes())
        else:
            # A teacher is in its own space.
            model = ProbedModel(name, "teacher", "", seed, encoder, {name: lambda found: found})
            teachers, digest = ({name: encoder} if self.heads else {}), ""
        heads = {called: _identity(teacher) for called, teacher in teachers.items()}
        identities = {**heads, name: _identity(encoder)}
        return Subject(model, encoder, teachers, identities, _digest(f"{digest}{heads}".encode()))

    def _teachers(self, folder: Path, reached: Mapping[str, object]) -> dict[str, Teacher]:
        """The recipe's teachers that a student names, and further ones of the same name."""
        found = {}
        ancestors = ancestors_of(folder)
        for name in reached:
            if name in self.configs:
                spec = teacher_spec(self.configs[name])
            elif name in ancestors and ancestors[name].get("family"):
                spec = TeacherSpec(ancestors[name]["family"], ancestors[name]["weights"])
            else:
                continue  # an earlier stage's student, which has no heads
            teacher = self._teacher(name, spec)
            if teacher is not None:
                found[name] = teacher
        return found

    def _teacher(self, name: str, spec: TeacherSpec) -> Teacher | None:
        if spec not in self._loaded:
            try:
                self._loaded[spec] = load_teacher(spec, self.device)
            except UserError as error:
                self._loaded[spec] = None
                self.say(f"{name}, whose space is reached, cannot be loaded: {error}")
        return self._loaded[spec]


def _identity(teacher: Teacher) -> str:
    return _digest(json.dumps(teacher_identity(teacher), sort_keys=True).encode())


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
