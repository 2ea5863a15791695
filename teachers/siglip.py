"""Families `siglip` and `siglip2`: SigLIP (Zhai et al., 2023), SigLIP 2 (Tschannen et al., 2025).

Fixed-size SigLIP 2 is stored as a SigLIP, and either family loads it. NaFlex, SigLIP 2 at any
aspect ratio, has classes of its own, which take patches instead of images.
"""

from __future__ import annotations

import string
from math import isqrt
from typing import Any, ClassVar

import torch
from torch import Tensor

from students.features import Features
from teachers.checkpoint import Checkpoint
from teachers.contents import crop_side, read_config
from teachers.loading import load_model
from teachers.spec import FamilyCard, TeacherInfo
from teachers.teacher import register_family
from teachers.text import TextTower, load_tokenizer
from teachers.transformers_teacher import Geometry, TransformersTeacher

# What a whole checkpoint holds beside one of its towers.
LOSS_WEIGHTS = ("logit_scale", "logit_bias")
TEXT, VISION = "text_model.", "vision_model."

SUMMARY, DENSE = "attention-pooling head", "patch tokens after the final norm"


@register_family("siglip")
class SiglipTeacher(TransformersTeacher):
    """summary: the attention-pooling head. dense: the patch tokens after the final norm."""

    model_types: ClassVar[tuple[str, ...]] = ("siglip", "siglip_vision_model")
    card = FamilyCard(
        models="transformers: SiglipModel, SiglipVisionModel",
        summary=SUMMARY,
        dense=DENSE,
        sizes="any; floors to whole patches",
        beside="text tower, earlier layers",
    )

    def __init__(self, info: TeacherInfo, checkpoint: Checkpoint, dtype: torch.dtype):
        super().__init__(info, checkpoint, dtype)
        config = self.configuration(checkpoint, read_config(checkpoint))
        model_class, _ = self.vision_part(config)
        self.model = load_model(model_class, checkpoint, dtype, (TEXT, *LOSS_WEIGHTS))
        self.has_texts = config.model_type in TEXT_CLASSES
        self._text_tower: SiglipTextTower | None = None

    def encode(self, pixels: Tensor) -> Features:
        """summary (B, D), dense (B, H // patch, W // patch, D) of normalised pixels."""
        # At the native size the library then adds its position table as it is.
        out = self.model(pixels, interpolate_pos_encoding=True, **self.record)
        return self._tokens(out, (pixels.shape[2] // self.stride, pixels.shape[3] // self.stride))

    def _tokens(self, out: Any, grid: tuple[int, int]) -> Features:
        """Features of the library's output for patches on a grid (h, w)."""
        patches = out.last_hidden_state
        if self.spec.layer is not None:
            patches = self.model.post_layernorm(out.hidden_states[self.spec.layer])
        return Features(out.pooler_output, patches.unflatten(1, grid))

    @property
    def text_tower(self) -> SiglipTextTower | None:
        """The checkpoint's text encoder, loaded on first use; None for a vision-only checkpoint.

        Raises:
            UserError: if its weights are incomplete or its tokeniser is missing.
        """
        if self._text_tower is None and self.has_texts:
            tower = SiglipTextTower(self.checkpoint, self.dtype)
            self._text_tower = tower.to(self.norm.mean.device)
        return self._text_tower

    @classmethod
    def geometry(cls, config: Any, preprocessor: dict[str, Any]) -> Geometry:
        """Without a pooling head there is no summary."""
        vision = getattr(config, "vision_config", config)
        width, blocks = vision.hidden_size, vision.num_hidden_layers
        size = crop_side(preprocessor) or vision.image_size
        summary_dim = width if vision.vision_use_head else None
        return Geometry(size, vision.patch_size, summary_dim, width, blocks)

    @classmethod
    def vision_part(cls, config: Any) -> tuple[Any, Any]:
        """The vision tower."""
        from transformers import SiglipVisionModel

        return SiglipVisionModel, getattr(config, "vision_config", config)

    @classmethod
    def is_vision_weight(cls, name: str) -> bool:
        """All but the text tower and the loss's temperature and bias."""
        return not name.startswith((TEXT, *LOSS_WEIGHTS))


@register_family("siglip2")
class Siglip2Teacher(SiglipTeacher):
    """SigLIP 2: fixed-size checkpoints, and NaFlex ones, which see any grid of patches."""

    model_types = (*SiglipTeacher.model_types, "siglip2", "siglip2_vision_model")
    card = FamilyCard(
        models="transformers: SiglipModel (fixed size), Siglip2Model (NaFlex), their vision halves",
        summary=SUMMARY,
        dense=DENSE,
        sizes="any; floors to whole patches",
        beside="text tower, earlier layers",
    )

    def encode(self, pixels: Tensor) -> Features:
        """summary (B, D), dense (B, H // patch, W // patch, D) of normalised pixels."""
        if not _is_naflex(self.model.config):
            return super().encode(pixels)
        patches, grid = patchify(pixels, self.stride)
        # The library reads the grids on the host, and resizes its position table to each of them.
        # No patch is padding, so there is nothing to mask.
        grids = torch.tensor([grid] * len(pixels))
        out = self.model(patches, None, grids, **self.record)
        return self._tokens(out, grid)

    @classmethod
    def geometry(cls, config: Any, preprocessor: dict[str, Any]) -> Geometry:
        """NaFlex has a number of patches instead of a size: its native size is their square's."""
        vision = getattr(config, "vision_config", config)
        if not _is_naflex(vision):
            return super().geometry(config, preprocessor)
        width, blocks = vision.hidden_size, vision.num_hidden_layers
        patches = preprocessor.get("max_num_patches", vision.num_patches)
        size = isqrt(patches) * vision.patch_size
        summary_dim = width if vision.vision_use_head else None
        return Geometry(size, vision.patch_size, summary_dim, width, blocks)

    @classmethod
    def vision_part(cls, config: Any) -> tuple[Any, Any]:
        """The vision tower."""
        from transformers import Siglip2VisionModel

        vision = getattr(config, "vision_config", config)
        return (Siglip2VisionModel, vision) if _is_naflex(vision) else super().vision_part(config)


TEXT_CLASSES = {"siglip": "SiglipTextModel", "siglip2": "Siglip2TextModel"}


class SiglipTextTower(TextTower):
    """A SigLIP text encoder with its checkpoint's own tokeniser. Image and text embeddings share
    their space as they are, and their cosine is what SigLIP was trained on."""

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype):
        import transformers

        model_class = getattr(transformers, TEXT_CLASSES[read_config(checkpoint)["model_type"]])
        super().__init__(load_model(model_class, checkpoint, dtype, (VISION, *LOSS_WEIGHTS)))
        self.tokenizer = load_tokenizer(checkpoint)

    def embed(self, texts: list[str]) -> Tensor:
        """Embeddings (N, D) of N texts, as the model gives them."""
        # Trained on lower-case text without punctuation, always padded to full length at the end,
        # pads seen. (The library's class for SigLIP 2 would by itself pad at the beginning.)
        ids = self.tokenizer(
            [canonical(text) for text in texts],
            padding="max_length",
            padding_side="right",
            truncation=True,
            max_length=self.model.config.max_position_embeddings,
            return_tensors="pt",
        )["input_ids"]
        return self.model(input_ids=ids.to(self.device)).pooler_output


def canonical(text: str) -> str:
    """Lower-case, without ASCII punctuation, single spaces: the texts SigLIP was trained on."""
    return " ".join(text.lower().translate(str.maketrans("", "", string.punctuation)).split())


def patchify(pixels: Tensor, patch: int) -> tuple[Tensor, tuple[int, int]]:
    """Patches (B, h * w, patch * patch * 3) of pixels (B, 3, H, W), row by row, each row by row
    with its channels last; and their grid (h, w). What is no whole patch is left out."""
    h, w = pixels.shape[2] // patch, pixels.shape[3] // patch
    cut = pixels[:, :, : h * patch, : w * patch]
    cells = cut.unflatten(3, (w, patch)).unflatten(2, (h, patch))  # (B, 3, h, patch, w, patch)
    return cells.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2), (h, w)


def _is_naflex(vision: Any) -> bool:
    return vision.model_type == "siglip2_vision_model"
