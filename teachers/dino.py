"""Families `dinov2`, `dinov3` and `depth_anything`: a class token, patch tokens, a final norm.

DINOv2 (Oquab et al., 2023) and its registers (Darcet et al., 2023), DINOv3 (Siméoni et al., 2025),
Depth Anything (Yang et al., 2024), whose encoder is a DINOv2.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from students.errors import UserError
from students.features import Features
from teachers.checkpoint import Checkpoint
from teachers.contents import crop_side, read_config
from teachers.loading import load_model
from teachers.spec import FamilyCard, TeacherInfo
from teachers.teacher import register_family
from teachers.transformers_teacher import Geometry, TransformersTeacher

CLASSES = {
    "dinov2": "Dinov2Model",
    "dinov2_with_registers": "Dinov2WithRegistersModel",
    "dinov3_vit": "DINOv3ViTModel",
    "dinov3_convnext": "DINOv3ConvNextModel",
}


class DinoTeacher(TransformersTeacher):
    """summary: the class token. dense: the patch tokens. Both after the final norm."""

    def __init__(self, info: TeacherInfo, checkpoint: Checkpoint, dtype: torch.dtype):
        super().__init__(info, checkpoint, dtype)
        whole = self.configuration(checkpoint, read_config(checkpoint))
        model_class, config = self.vision_part(whole)
        self.model = self._load(model_class, config)
        self.prefix = 1 + getattr(config, "num_register_tokens", 0)

    def encode(self, pixels: Tensor) -> Features:
        """summary (B, D), dense (B, H // stride, W // stride, D) of normalised pixels."""
        out = self.model(pixels, **self.record)
        tokens = out.last_hidden_state
        patches = tokens[:, self.prefix :]
        if self.spec.layer is not None:
            norm = self.model.norm if hasattr(self.model, "norm") else self.model.layernorm
            patches = norm(out.hidden_states[self.spec.layer][:, self.prefix :])
        grid = (pixels.shape[2] // self.stride, pixels.shape[3] // self.stride)
        return Features(tokens[:, 0], patches.unflatten(1, grid))

    def _load(self, model_class: Any, config: Any) -> Any:
        return load_model(model_class, self.checkpoint, self.dtype)

    @classmethod
    def geometry(cls, config: Any, preprocessor: dict[str, Any]) -> Geometry:
        """The native size is the preprocessor's crop: DINOv2 was last trained at 518 pixels, which
        is what its configuration says, and is used at 224."""
        size = crop_side(preprocessor) or config.image_size
        width, blocks = config.hidden_size, config.num_hidden_layers
        return Geometry(size, config.patch_size, width, width, blocks)

    @classmethod
    def vision_part(cls, config: Any) -> tuple[Any, Any]:
        """All of it."""
        import transformers

        return getattr(transformers, CLASSES[config.model_type]), config


@register_family("dinov2")
class Dinov2Teacher(DinoTeacher):
    """DINOv2, with and without registers."""

    model_types = ("dinov2", "dinov2_with_registers")
    card = FamilyCard(
        models="transformers: Dinov2Model, Dinov2WithRegistersModel",
        summary="class token after the final norm",
        dense="patch tokens after the final norm",
        sizes="any; floors to whole patches",
        beside="earlier layers",
    )


@register_family("dinov3")
class Dinov3Teacher(DinoTeacher):
    """DINOv3, ViT and ConvNeXt. A ConvNeXt's class token is the average of its last map, and both
    go through one final norm; its earlier stages have other widths, so it offers no layers."""

    model_types = ("dinov3_vit", "dinov3_convnext")
    card = FamilyCard(
        models="transformers: DINOv3ViTModel, DINOv3ConvNextModel",
        summary="class token (ConvNeXt: average of the last stage) after the final norm",
        dense="patch tokens (ConvNeXt: last stage, stride 32) after the final norm",
        sizes="any; floors to whole patches",
        beside="earlier layers (ViT)",
    )

    @classmethod
    def geometry(cls, config: Any, preprocessor: dict[str, Any]) -> Geometry:
        """A ConvNeXt's stem has stride 4, and each further stage halves the map."""
        if config.model_type == "dinov3_vit":
            return super().geometry(config, preprocessor)
        size = crop_side(preprocessor) or config.image_size
        stride, width = 2 * 2**config.num_stages, config.hidden_sizes[-1]
        return Geometry(size, stride, width, width)


@register_family("depth_anything")
class DepthAnythingTeacher(DinoTeacher):
    """The encoder of Depth Anything 1 and 2; the depth head and its neck are not read."""

    model_types = ("depth_anything",)
    card = FamilyCard(
        models="transformers: DepthAnythingForDepthEstimation, its DINOv2",
        summary="class token after the final norm",
        dense="patch tokens after the final norm",
        sizes="any; floors to whole patches",
        beside="earlier layers",
    )

    def _load(self, model_class: Any, config: Any) -> Any:
        return load_model(
            model_class,
            self.checkpoint,
            self.dtype,
            ("neck.", "head."),
            config=config,
            key_mapping={r"^backbone\.": ""},
        )

    @classmethod
    def configuration(cls, checkpoint: Checkpoint, fields: dict[str, Any]) -> Any:
        """The library's configuration object.

        Raises:
            UserError: if the encoder is no DINOv2.
        """
        config = super().configuration(checkpoint, fields)
        found, known = config.backbone_config.model_type, Dinov2Teacher.model_types
        if found not in known:
            raise UserError(
                f"{checkpoint.source}: its config.json says model_type {found!r} of its "
                f"backbone_config; family 'depth_anything' reads {' and '.join(known)}"
            )
        return config

    @classmethod
    def geometry(cls, config: Any, preprocessor: dict[str, Any]) -> Geometry:
        """The encoder's."""
        return super().geometry(config.backbone_config, preprocessor)

    @classmethod
    def vision_part(cls, config: Any) -> tuple[Any, Any]:
        """The encoder."""
        return super().vision_part(config.backbone_config)

    @classmethod
    def is_vision_weight(cls, name: str) -> bool:
        """The encoder's, without the neck and the depth head."""
        return name.startswith("backbone.")
