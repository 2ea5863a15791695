"""Family `student`: a finished stage's student, or any exported one, as a teacher."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from students import Size, UserError, describe_student, load_student
from students.encoder import encode
from students.features import Features
from teachers.checkpoint import Checkpoint
from teachers.spec import FamilyCard, TeacherInfo, TeacherSpec
from teachers.teacher import Teacher, register_family


@register_family("student")
class StudentTeacher(Teacher):
    """summary and dense as the student gave them while it was trained."""

    card = FamilyCard(
        models="timm: any exported student of this project",
        summary="as trained",
        dense="as trained",
        sizes="multiples of its stride",
        weights="folder",
    )

    def __init__(self, info: TeacherInfo, checkpoint: Checkpoint, dtype: torch.dtype):
        super().__init__(info, checkpoint, dtype)
        student = load_student(info.source)
        self.model = student.model.eval().requires_grad_(False).to(dtype)

    def encode(self, pixels: Tensor) -> Features:
        """summary (B, D_s), dense (B, h, w, D_d) of normalised pixels."""
        return encode(self.model, pixels)

    @classmethod
    def describe(cls, spec: TeacherSpec, checkpoint: Checkpoint) -> TeacherInfo:
        """What config.json of an exported student says.

        Raises:
            UserError: if the folder is not that of a student.
        """
        try:
            config = json.loads((Path(checkpoint.source) / "config.json").read_text())
            size = int(config["pretrained_cfg"]["input_size"][-1])
            arguments, cfg = config["model_args"], config["pretrained_cfg"]
            student = describe_student(config["architecture"], size=size, overrides=arguments)
        except (OSError, KeyError, ValueError) as error:
            raise UserError(
                f"{spec.weights} is not the folder of an exported student ({error})"
            ) from None
        return TeacherInfo(
            spec,
            fetched=True,
            source=checkpoint.source,
            size=size,
            stride=student.stride,
            summary_dim=student.summary_dim,
            dense_dim=student.dense_dim,
            parameters=student.parameter_count,
            mean=tuple(cfg["mean"]),
            std=tuple(cfg["std"]),
            statistics_from="config.json",
            licence=cfg.get("license"),
        )

    @classmethod
    def size_error(cls, info: TeacherInfo, size: Size) -> str | None:
        """A student takes multiples of its stride."""
        sides = (size, size) if isinstance(size, int) else size
        if info.stride is None or not any(side % info.stride for side in sides):
            return None
        return f"{info.spec.weights}: size {size} is no multiple of its stride {info.stride}"
