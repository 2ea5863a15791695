"""open_clip's image towers: their features, and the same tower for images of another size."""

from __future__ import annotations

import copy
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from students.encoder import stride_of
from students.features import Features
from teachers.timm_models import one_line
from teachers.timm_teacher import column_depth, timm_features


def tower_features(tower: Any, pixels: Tensor, layer: int | None, wanted: bool) -> Features:
    """Features of normalised pixels (B, 3, H, W) through an image tower of their size; a summary
    where it is `wanted`."""
    if hasattr(tower, "trunk"):
        pool = (lambda out: tower.head(tower.trunk.forward_head(out))) if wanted else None
        return timm_features(tower.trunk, pixels, layer, pool)
    given = tower.forward_intermediates(
        pixels,
        indices=[-1 if layer is None else layer - 1],
        stop_early=not wanted,
        normalize_intermediates=_norms_tokens(tower),
        intermediates_only=not wanted,
        output_fmt="NCHW" if depth(tower) is None else "NLC",
    )
    (tokens,), summary = given["image_intermediates"], given.get("image_features")
    if tokens.ndim == 4:
        return Features(summary, tokens.permute(0, 2, 3, 1))
    patch = stride(tower)
    grid = (pixels.shape[2] // patch, pixels.shape[3] // patch)
    return Features(summary, tokens.unflatten(1, grid))


def stride(tower: Any) -> int:
    """Pixels per dense token."""
    if hasattr(tower, "trunk"):
        return stride_of(tower.trunk)
    return tower.patch_size[0] if hasattr(tower, "patch_size") else 32


def depth(tower: Any) -> int | None:
    """How many blocks a ViT has; None for other nets."""
    if hasattr(tower, "trunk"):
        return column_depth(tower.trunk)
    return len(tower.transformer.resblocks) if hasattr(tower, "transformer") else None


def separate_projection(tower: Any) -> nn.Parameter | None:
    """Take the projection off a tower whose pooled token is the summary before it; None where
    pooling and projection are one: timm's towers and attention pools."""
    projection = getattr(tower, "proj", None)
    if projection is None or getattr(tower, "attn_pool", None) is not None:
        return None
    tower.proj = None
    return projection


def at_size(tower: Any, sides: tuple[int, int]) -> Any:
    """The tower for images of this height and width, as open_clip's force_image_size makes it: the
    same weights, the position table resized.

    Raises:
        ValueError: if open_clip would not resize the table.
    """
    if hasattr(tower, "attnpool"):
        raise ValueError("the position table of its attention pool is for its own size")
    shared = {id(tensor): tensor for tensor in (*tower.parameters(), *tower.buffers())}
    other = copy.deepcopy(tower, shared)
    if hasattr(tower, "trunk"):
        if hasattr(other.trunk, "set_input_size"):
            other.trunk.set_input_size(sides)
    else:
        grid = (sides[0] // tower.patch_size[0], sides[1] // tower.patch_size[1])
        own = tower.positional_embedding
        # In float32: torch resizes no bfloat16 table on a CPU.
        table = _resized(own.float(), grid).to(own.dtype)
        if grid != tower.grid_size and table.shape == own.shape:
            raise ValueError(f"it has as many patches as its own grid {tower.grid_size}")
        other.positional_embedding = nn.Parameter(table, requires_grad=False)
    return other


@lru_cache(maxsize=1024)
def refusal(tower: Any, sides: tuple[int, int]) -> str | None:
    """Why a skeleton does not take images of this height and width, by its own account, or None."""
    try:
        with torch.no_grad():
            pixels = torch.empty(1, 3, *sides, device="meta")
            tower_features(at_size(tower, sides), pixels, None, wanted=True)
    except Exception as error:  # whatever a tower's own code raises
        return one_line(error)
    return None


def _resized(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """A position table (1 + h * w, D) for another grid, by open_clip's own function."""
    from open_clip.model import resize_pos_embed

    key = "visual.positional_embedding"
    state = {key: table}
    resize_pos_embed(state, SimpleNamespace(visual=SimpleNamespace(grid_size=grid)))
    return state[key]


def _norms_tokens(tower: Any) -> bool:
    """Whether the final norm fits the tokens: behind an attention pool it fits what that gives."""
    norm = getattr(tower, "ln_post", None)
    return norm is not None and norm.weight.shape == tower.class_embedding.shape
