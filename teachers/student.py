"""Family `student`: a finished stage's student, or any exported one, as a teacher."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from students.errors import UserError
from students.pixels import Size
from teachers import checkpoint as files
from teachers import timm_models
from teachers.checkpoint import TIMM, Checkpoint
from teachers.spec import FamilyCard, TeacherInfo, TeacherSpec
from teachers.teacher import register_family
from teachers.timm_teacher import TimmTeacher

ADAPTERS = "adapters.json"
STUDENT = replace(TIMM, beside=(ADAPTERS, "adapters.safetensors"))


@register_family("student")
class StudentTeacher(TimmTeacher):
    """summary and dense as the student gave them while it was trained."""

    card = FamilyCard(
        models="timm: any exported student of this project",
        summary="as trained",
        dense="as trained",
        sizes="multiples of its stride",
        beside="earlier layers of ViTs",
        weights="folder, hub id",
    )

    @classmethod
    def summary(cls, model: Any, out: Any) -> Tensor:
        """Summaries (B, D_s) in `out`: what the student pools, as while it was trained."""
        return model.forward_head(out, pre_logits=True)

    @classmethod
    def locate(cls, spec: TeacherSpec) -> Checkpoint:
        """A student's folder, or the cached files of its hub id.

        Raises:
            UserError: if `spec.weights` is neither.
        """
        found = files.resolve(spec.weights, STUDENT, spec.allow_pickle)
        if found.folder is None or found.source == str(found.folder):
            return found
        # Other programs load the encoder from the hub and leave its adapters behind.
        return replace(found, fetched=found.fetched and (found.folder / ADAPTERS).exists())

    @classmethod
    def describe(cls, spec: TeacherSpec, checkpoint: Checkpoint) -> TeacherInfo:
        """What config.json of an exported student says.

        Raises:
            UserError: if the checkpoint is not that of a student, or damaged.
        """
        if checkpoint.folder is None:
            return TeacherInfo(spec, fetched=False, source=checkpoint.source)
        timm_models.stated(spec, checkpoint)
        if checkpoint.fetched and not (checkpoint.folder / ADAPTERS).exists():
            raise UserError(
                f"{spec.weights}: has no {ADAPTERS}, so it is no exported student; a plain timm "
                "model is of family 'timm'"
            )
        return super().describe(spec, checkpoint)

    @classmethod
    def size_error(cls, info: TeacherInfo, size: Size) -> str | None:
        """A student takes multiples of its stride."""
        sides = (size, size) if isinstance(size, int) else size
        if info.stride is not None and any(side % info.stride for side in sides):
            return f"{info.spec.weights}: size {size} is no multiple of its stride {info.stride}"
        return super().size_error(info, size)
