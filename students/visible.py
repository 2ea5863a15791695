"""Encoding the visible patches of an image alone, as masked objectives do.

A ViT of timm embeds every patch by itself and gives it its position; what is hidden is left out
there, at the place of timm's own patch dropout, and goes through no block.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from students.encoder import Student, _create
from students.errors import UserError
from students.pixels import Size, resize


class VisiblePatches(nn.Module):
    """Stands in for `patch_drop` of a timm ViT, and keeps given patches of each image.

    Args:
        visible: (B, n) int64, the patches to keep, each once, in the order they are to have.
        prefix: number of class and register tokens, all of which stay in front.
        rotary: whether the encoder asks which patches were kept, as one with rotary positions does.
    """

    def __init__(self, visible: Tensor, prefix: int, rotary: bool):
        super().__init__()
        self.visible, self.prefix, self.rotary = visible, prefix, rotary

    def forward(self, tokens: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Tokens (B, prefix + N, D) to (B, prefix + n, D), and `visible` if the encoder asks."""
        first, patches = tokens[:, : self.prefix], tokens[:, self.prefix :]
        index = self.visible[..., None].expand(-1, -1, tokens.shape[-1])
        kept = torch.cat([first, patches.gather(1, index)], dim=1)
        return (kept, self.visible) if self.rotary else kept


def keeps_patches(model: Any) -> bool:
    """Whether a timm encoder can leave patches out: a ViT of any image size that embeds each patch
    by itself, and in which nothing after that reads the tokens as a map."""
    from timm.layers import PatchEmbed
    from timm.models.eva import Eva
    from timm.models.vision_transformer import VisionTransformer

    # A stem of convolutions (HybridEmbed) looks over the border of a patch.
    return (
        isinstance(model, VisionTransformer | Eva)
        and type(model.patch_embed) is PatchEmbed
        and model.dynamic_img_size
    )


def takes_masks(arch: str, overrides: Mapping[str, Any] | None = None) -> bool:
    """Whether students of this architecture can learn by a masked objective, worked out without
    memory for their weights: see `keeps_patches`.

    Raises:
        UserError: for an unknown architecture or argument.
    """
    with torch.device("meta"):
        model, _ = _create(arch, 224, dict(overrides or {}), pretrained=False)
        return keeps_patches(model)


def encode_visible(
    student: Student, pixels: Tensor, size: Size, visible: Tensor
) -> tuple[Tensor, Tensor]:
    """What a student makes of an image of which it sees some patches: summary (B, D) and tokens
    (B, n, D) of these patches, after the final norm.

    With all patches, in order, they are those of `student(pixels, size)`. The class token and
    registers are always there.

    Args:
        student: one that `keeps_patches`.
        pixels: (B, 3, H, W), RGB in [0, 1], resized to `size` before patches are hidden.
        size: a multiple of the student's stride.
        visible: (B, n) int64 on the device of the pixels, n at least 1: patches of the grid row by
            row, each at most once; the tokens come in their order.

    Raises:
        UserError: if the student's architecture cannot leave patches out.
    """
    model: Any = student.model
    if not keeps_patches(model):
        raise UserError(no_masks(student.arch))
    with _keeping(model, visible):
        out = model.forward_features(student.normalise(resize(pixels, size)))
    return model.forward_head(out, pre_logits=True), out[:, model.num_prefix_tokens :]


def no_masks(arch: str) -> str:
    """What a user is told of an encoder that cannot learn by a masked objective."""
    return (
        f"{arch} cannot leave patches out, as the objective masked asks: choose a ViT that embeds "
        "its patches one by one and takes any image size, or say objective: match"
    )


@contextmanager
def _keeping(model: Any, visible: Tensor) -> Iterator[None]:
    """Let `model` see these patches alone; after it, it is as it was, for copies and exports.

    Activation checkpointing computes blocks again, which come after the patches are left out.
    """
    from timm.models.eva import Eva

    before = model.patch_drop
    model.patch_drop = VisiblePatches(visible, model.num_prefix_tokens, isinstance(model, Eva))
    try:
        yield
    finally:
        if before is None:  # Eva's is a plain attribute then, and no place for a module
            del model.patch_drop
        model.patch_drop = before
