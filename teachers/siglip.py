"""Family `siglip`: SigLIP (Zhai et al., 2023) and fixed-size SigLIP 2 (Tschannen et al., 2025)."""

from __future__ import annotations

import string
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from students.errors import UserError
from students.features import Features
from teachers.checkpoint import Checkpoint
from teachers.contents import crop_side, read_config
from teachers.loading import load_model, quiet
from teachers.spec import FamilyCard, TeacherInfo
from teachers.teacher import register_family
from teachers.transformers_teacher import Geometry, TransformersTeacher

# What a whole checkpoint holds beside one of its towers.
LOSS_WEIGHTS = ("logit_scale", "logit_bias")
TEXT, VISION = "text_model.", "vision_model."


@register_family("siglip")
class SiglipTeacher(TransformersTeacher):
    """summary: the attention-pooling head. dense: the patch tokens after the final norm."""

    model_types = ("siglip", "siglip_vision_model")
    card = FamilyCard(
        models="transformers: SiglipModel, SiglipVisionModel",
        summary="attention-pooling head",
        dense="patch tokens after the final norm",
        sizes="any; floors to whole patches",
        beside="text tower",
    )

    def __init__(self, info: TeacherInfo, checkpoint: Checkpoint, dtype: torch.dtype):
        super().__init__(info, checkpoint, dtype)
        from transformers import SiglipVisionModel

        self.model = load_model(SiglipVisionModel, checkpoint, dtype, (TEXT, *LOSS_WEIGHTS))
        self._text_tower: TextTower | None = None

    def encode(self, pixels: Tensor) -> Features:
        """summary (B, D), dense (B, H // patch, W // patch, D) of normalised pixels."""
        # At the native size the library then adds its position table as it is.
        out = self.model(pixels, interpolate_pos_encoding=True)
        grid = (pixels.shape[2] // self.stride, pixels.shape[3] // self.stride)
        return Features(out.pooler_output, out.last_hidden_state.unflatten(1, grid))

    @property
    def text_tower(self) -> TextTower | None:
        """The checkpoint's text encoder, loaded on first use; None for a vision-only checkpoint.

        Raises:
            UserError: if its weights are incomplete or its tokeniser is missing.
        """
        if self._text_tower is None and read_config(self.checkpoint)["model_type"] == "siglip":
            device = self.norm.mean.device
            self._text_tower = TextTower(self.checkpoint, self.dtype).to(device)
        return self._text_tower

    @classmethod
    def geometry(cls, config: Any, preprocessor: dict[str, Any]) -> Geometry:
        """Without a pooling head there is no summary."""
        vision = getattr(config, "vision_config", config)
        summary_dim = vision.hidden_size if vision.vision_use_head else None
        size = crop_side(preprocessor) or vision.image_size
        return Geometry(size, vision.patch_size, summary_dim, vision.hidden_size)

    @classmethod
    def vision_part(cls, config: Any) -> tuple[Any, Any]:
        """The vision tower."""
        from transformers import SiglipVisionModel

        return SiglipVisionModel, getattr(config, "vision_config", config)

    @classmethod
    def is_vision_weight(cls, name: str) -> bool:
        """All but the text tower and the loss's temperature and bias."""
        return not name.startswith((TEXT, *LOSS_WEIGHTS))


class TextTower(nn.Module):
    """A frozen SigLIP text encoder with its checkpoint's own tokeniser."""

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype):
        super().__init__()
        from transformers import AutoTokenizer, SiglipTextModel

        self.model = load_model(SiglipTextModel, checkpoint, dtype, (VISION, *LOSS_WEIGHTS))
        try:
            with quiet():
                self.tokenizer = AutoTokenizer.from_pretrained(
                    checkpoint.folder, local_files_only=True
                )
        except (OSError, ValueError, ImportError, TypeError) as error:
            raise UserError(
                f"{checkpoint.source}: its text tower has no tokeniser that can be read "
                f"({type(error).__name__}); add tokenizer.json and tokenizer_config.json (of a hub "
                "id: `hf download ID` fetches all of them)"
            ) from None
        super().train(False)

    def train(self, mode: bool = True) -> TextTower:
        """Nothing: a teacher stays in eval mode."""
        return self

    @torch.no_grad()
    def forward(self, texts: list[str]) -> Tensor:
        """Embeddings (N, D) of N texts, L2-normalised, in the teacher's dtype; their dot product
        with L2-normalised summaries of the same teacher is the cosine that SigLIP was trained on.
        """
        # Trained on lower-case text without punctuation, always padded to full length, pads seen.
        ids = self.tokenizer(
            [canonical(text) for text in texts],
            padding="max_length",
            truncation=True,
            max_length=self.model.config.max_position_embeddings,
            return_tensors="pt",
        )["input_ids"]
        device = self.model.head.weight.device
        with torch.autocast(device.type, enabled=False):
            pooled = self.model(input_ids=ids.to(device)).pooler_output
        return F.normalize(pooled, dim=-1)


def canonical(text: str) -> str:
    """Lower-case, without ASCII punctuation, single spaces: the texts SigLIP was trained on."""
    return " ".join(text.lower().translate(str.maketrans("", "", string.punctuation)).split())
