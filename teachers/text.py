"""Text towers: frozen encoders of texts into the space of a teacher's summaries."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from students.errors import UserError
from teachers.checkpoint import Checkpoint
from teachers.loading import quiet

VOCABULARIES = ("tokenizer.json", "vocab.*", "*.model")


class TextTower(nn.Module):
    """A frozen text encoder that shares a space with its teacher's summaries.

    A score is the cosine of `tower(texts)` and `tower.project(summary)`. A family's tower is a
    subclass with `embed`, and with `project` where summaries are not in that space yet. Always in
    eval mode: `train()` has no effect.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model: Any = model.requires_grad_(False)
        super().train(False)

    def train(self, mode: bool = True) -> TextTower:
        """Nothing: a teacher stays in eval mode."""
        return self

    @torch.no_grad()
    def forward(self, texts: list[str]) -> Tensor:
        """Embeddings (N, D) of N texts, L2-normalised, in the teacher's dtype."""
        with torch.autocast(self.device.type, enabled=False):
            return F.normalize(self.embed(texts), dim=-1)

    @abstractmethod
    def embed(self, texts: list[str]) -> Tensor:
        """Embeddings (N, D) of N texts, as the model gives them."""

    def project(self, summary: Tensor) -> Tensor:
        """A teacher's summaries (..., D_s) in the texts' space (..., D); here they are in it."""
        return summary

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.parameters()).device


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    """The checkpoint's own tokeniser, by transformers; code that it brings is not run.

    Raises:
        UserError: if there is none that can be read.
    """
    from transformers import AutoTokenizer

    folder = checkpoint.folder or Path()
    try:
        # Without a vocabulary some classes of the library start with an empty one.
        if not any(path for pattern in VOCABULARIES for path in folder.glob(pattern)):
            raise FileNotFoundError
        with quiet():
            return AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
    except (OSError, ValueError, ImportError, TypeError) as error:
        raise UserError(
            f"{checkpoint.source}: its text tower has no tokeniser that can be read "
            f"({type(error).__name__}); add tokenizer.json and tokenizer_config.json (of a hub "
            "id: `hf download ID` fetches all of them)"
        ) from None
