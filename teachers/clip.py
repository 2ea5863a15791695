"""Families `clip` and `metaclip`: CLIP (Radford et al., 2021), MetaCLIP (Xu et al., 2024) and
MetaCLIP 2 (Chuang et al., 2025).

MetaCLIP 1 is stored as a CLIP, and either family loads it; MetaCLIP 2 has classes of its own.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from students.features import Features
from teachers.checkpoint import Checkpoint
from teachers.contents import crop_side, read_config
from teachers.loading import build_config, load_model
from teachers.spec import FamilyCard, TeacherInfo
from teachers.teacher import register_family
from teachers.text import TextTower, load_tokenizer
from teachers.transformers_teacher import Geometry, TransformersTeacher

VISION = "vision_model."
# What a checkpoint holds beside the vision tower.
BESIDE = ("text_model.", "text_projection.", "visual_projection.", "logit_scale")

WHOLE_CLASSES = {"clip": "CLIPModel", "metaclip_2": "MetaClip2Model"}
VISION_CLASSES = {
    "clip_vision_model": "CLIPVisionModel",
    "metaclip_2_vision_model": "MetaClip2VisionModel",
}

SUMMARY = "class token after the post-norm, before its projection"
DENSE = "patch tokens before the post-norm"


@register_family("clip")
class ClipTeacher(TransformersTeacher):
    """summary: the class token after the post-norm, before its projection into the texts' space.
    dense: the patch tokens of the last block, which CLIP itself never norms."""

    model_types: ClassVar[tuple[str, ...]] = ("clip", "clip_vision_model")
    card = FamilyCard(
        models="transformers: CLIPModel, CLIPVisionModel, CLIPVisionModelWithProjection",
        summary=SUMMARY,
        dense=DENSE,
        sizes="any; floors to whole patches",
        beside="text tower, earlier layers",
    )

    def __init__(self, info: TeacherInfo, checkpoint: Checkpoint, dtype: torch.dtype):
        super().__init__(info, checkpoint, dtype)
        config = self.configuration(checkpoint, read_config(checkpoint))
        model_class, _ = self.vision_part(config)
        self.model = load_model(model_class, checkpoint, dtype, BESIDE)
        self.has_texts = config.model_type in WHOLE_CLASSES
        self._text_tower: ClipTextTower | None = None

    def encode(self, pixels: Tensor) -> Features:
        """summary (B, D), dense (B, H // patch, W // patch, D) of normalised pixels."""
        # At the native size the library then adds its position table as it is.
        out = self.model(pixels, interpolate_pos_encoding=True, **self.record)
        layer = self.spec.layer
        tokens = out.last_hidden_state if layer is None else out.hidden_states[layer]
        grid = (pixels.shape[2] // self.stride, pixels.shape[3] // self.stride)
        return Features(out.pooler_output, tokens[:, 1:].unflatten(1, grid))

    @property
    def text_tower(self) -> ClipTextTower | None:
        """The checkpoint's text encoder, loaded on first use; None for a vision-only checkpoint.

        Raises:
            UserError: if its weights are incomplete or its tokeniser is missing.
        """
        if self._text_tower is None and self.has_texts:
            tower = ClipTextTower(self.checkpoint, self.dtype)
            self._text_tower = tower.to(self.norm.mean.device)
        return self._text_tower

    @classmethod
    def geometry(cls, config: Any, preprocessor: dict[str, Any]) -> Geometry:
        """All from the vision tower's configuration, and the preprocessor's crop."""
        vision = getattr(config, "vision_config", config)
        size = crop_side(preprocessor) or vision.image_size
        width, blocks = vision.hidden_size, vision.num_hidden_layers
        return Geometry(size, vision.patch_size, width, width, blocks)

    @classmethod
    def vision_part(cls, config: Any) -> tuple[Any, Any]:
        """The vision tower."""
        import transformers

        vision = getattr(config, "vision_config", config)
        return getattr(transformers, VISION_CLASSES[vision.model_type]), vision

    @classmethod
    def is_vision_weight(cls, name: str) -> bool:
        """All but the text tower, the projections and the loss's temperature. Older files also
        hold the numbers of the positions, which are no weights."""
        return not name.startswith(BESIDE) and not name.endswith("position_ids")


@register_family("metaclip")
class MetaClipTeacher(ClipTeacher):
    """MetaCLIP 1 and 2; as CLIP."""

    model_types = (*ClipTeacher.model_types, "metaclip_2", "metaclip_2_vision_model")
    card = FamilyCard(
        models="transformers: CLIPModel (MetaCLIP 1), MetaClip2Model, their vision halves",
        summary=SUMMARY,
        dense=DENSE,
        sizes="any; floors to whole patches",
        beside="text tower, earlier layers",
    )


class ClipTextTower(TextTower):
    """A CLIP text encoder with its checkpoint's own tokeniser, and both projections into the space
    that images and texts share."""

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype):
        import transformers

        fields = read_config(checkpoint)
        config = build_config(checkpoint, fields)
        # The library's whole model, of whose vision tower the teacher has a copy already.
        config.vision_config.num_hidden_layers = 0
        model_class = getattr(transformers, WHOLE_CLASSES[fields["model_type"]])
        model = load_model(model_class, checkpoint, dtype, (VISION,), config=config)
        del model.vision_model
        super().__init__(model)
        self.tokenizer = load_tokenizer(checkpoint)

    def embed(self, texts: list[str]) -> Tensor:
        """Embeddings (N, D) of N texts, as the model gives them."""
        tokens = self.tokenizer(
            texts,
            padding=True,
            truncation=True,
            max_length=self.model.config.text_config.max_position_embeddings,
            return_tensors="pt",
        ).to(self.device)
        pooled = self.model.text_model(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        ).pooler_output
        return self.model.text_projection(pooled)

    def project(self, summary: Tensor) -> Tensor:
        """Summaries (..., D_s) through the visual projection: (..., D), in the teacher's dtype."""
        with torch.autocast(self.device.type, enabled=False):
            return self.model.visual_projection(summary.to(self.device, self.model.dtype))
