"""Family `dinov2`: DINOv2 with and without registers (Oquab et al., 2023; Darcet et al., 2023)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from students.features import Features
from teachers.checkpoint import Checkpoint
from teachers.contents import crop_side, read_config
from teachers.loading import load_model
from teachers.spec import FamilyCard, TeacherInfo
from teachers.teacher import register_family
from teachers.transformers_teacher import Geometry, TransformersTeacher


@register_family("dinov2")
class Dinov2Teacher(TransformersTeacher):
    """summary: the class token. dense: the patch tokens. Both after the final norm."""

    model_types = ("dinov2", "dinov2_with_registers")
    card = FamilyCard(
        models="transformers: Dinov2Model, Dinov2WithRegistersModel",
        summary="class token after the final norm",
        dense="patch tokens after the final norm",
        sizes="any; floors to whole patches",
    )

    def __init__(self, info: TeacherInfo, checkpoint: Checkpoint, dtype: torch.dtype):
        super().__init__(info, checkpoint, dtype)
        model_class = _model_class(read_config(checkpoint)["model_type"])
        self.model = load_model(model_class, checkpoint, dtype)
        self.prefix = 1 + getattr(self.model.config, "num_register_tokens", 0)

    def encode(self, pixels: Tensor) -> Features:
        """summary (B, D), dense (B, H // patch, W // patch, D) of normalised pixels."""
        tokens = self.model(pixels).last_hidden_state
        grid = (pixels.shape[2] // self.stride, pixels.shape[3] // self.stride)
        return Features(tokens[:, 0], tokens[:, self.prefix :].unflatten(1, grid))

    @classmethod
    def geometry(cls, config: Any, preprocessor: dict[str, Any]) -> Geometry:
        """The published checkpoints were last trained at 518 and are used at their crop of 224."""
        size = crop_side(preprocessor) or config.image_size
        return Geometry(size, config.patch_size, config.hidden_size, config.hidden_size)

    @classmethod
    def vision_part(cls, config: Any) -> tuple[Any, Any]:
        """All of it."""
        return _model_class(config.model_type), config


def _model_class(model_type: str) -> Any:
    from transformers import Dinov2Model, Dinov2WithRegistersModel

    return Dinov2Model if model_type == "dinov2" else Dinov2WithRegistersModel
