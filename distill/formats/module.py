"""The one contract of every exported file, and the traced program that all formats start from.

In: pixels (B, 3, H, W), float32, RGB in [0, 1], H and W multiples of the student's stride. Out:
summary (B, D_s) and dense (B, h, w, D_d) after the final norm, h = H / stride, w = W / stride, as
students.Features. The student's own pixel statistics are inside; resizing is not.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from students import Student, UserError
from students.encoder import encode

PIXELS, SUMMARY, DENSE = "pixels", "summary", "dense"
"""Names of the input and of the two outputs, in this order, in every file."""

MOST_IMAGES = 4096
"""The largest batch of a file that takes any."""

MOST_TOKENS = 512
"""The largest side of the dense grid of a file that takes any size."""


class ExportedModule(nn.Module):
    """A student as the contract above has it: two tensors in place of Features, no resizing."""

    def __init__(self, model: Any, normalise: nn.Module):
        super().__init__()
        self.model, self.normalise = model, normalise

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (B, 3, H, W) in [0, 1] to summary (B, D_s) and dense (B, h, w, D_d)."""
        features = encode(self.model, self.normalise(pixels))
        assert features.summary is not None
        assert features.dense is not None  # a Student has both
        return features.summary, features.dense


def exported_module(student: Student, *, fused_attention: bool = True) -> ExportedModule:
    """A copy of the student on the CPU in float32 and eval, made so that it can be traced; the
    student stays as it is.

    `fused_attention`: by torch's one operator where timm has it, else by products and a softmax,
    which runtimes without that operator know better than what torch takes it apart to.
    """
    model, normalise = copy.deepcopy((student.model, student.normalise))
    _merge_biases(model)
    _free_positions(model)
    _fix_padding(model)
    if not fused_attention:
        for attention in model.modules():
            if hasattr(attention, "fused_attn"):
                attention.fused_attn = False
    module = ExportedModule(model, normalise).cpu().float()
    return module.eval().requires_grad_(False)


def trace(module: nn.Module, student: Student, size: int, *, dynamic: bool) -> ExportedProgram:
    """The graph of `module` (an ExportedModule, or what was made of one).

    `dynamic`: any batch, height and width (multiples of the stride, at least two of it); otherwise
    one image of `size` x `size`.

    Raises:
        UserError: if the architecture cannot be traced.
    """
    stride = student.stride
    shapes: tuple[dict[int, Any], ...] | None = None
    pixels = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    if dynamic:
        # Two unlike sides, for equal ones would be taken for one.
        tokens = max(size // stride, 3)
        pixels = pixels[:, :, :1, :1].expand(2, 3, tokens * stride, (tokens + 1) * stride)
        pixels = pixels.contiguous()
        batch = Dim("batch", min=1, max=MOST_IMAGES)
        height, width = (Dim(name, min=2, max=MOST_TOKENS) for name in ("rows", "columns"))
        shapes = ({0: batch, 2: stride * height, 3: stride * width},)
    try:
        return torch.export.export(module, (pixels,), dynamic_shapes=shapes)
    except Exception as error:  # torch raises its own kinds, of many sorts
        reason = str(error).strip().splitlines() or [type(error).__name__]
        how = "for any size" if dynamic else f"at {size} px"
        raise UserError(f"{student.arch} cannot be traced {how}: {reason[0]}") from error


def _merge_biases(model: nn.Module) -> None:
    """Make one bias of the three that timm's EVA attention puts together at every call: what is
    computed of weights keeps a layer from being quantised."""
    for attention in model.modules():
        biases = [getattr(attention, f"{name}_bias", None) for name in "qkv"]
        qkv = getattr(attention, "qkv", None)
        if any(bias is None for bias in biases) or not isinstance(qkv, nn.Linear):
            continue
        merged = nn.Linear(qkv.in_features, qkv.out_features)
        merged.weight = qkv.weight
        merged.bias = nn.Parameter(torch.cat([b.detach() for b in biases if b is not None]))
        attention.qkv = merged
        attention.register_parameter("q_bias", None)  # timm's way to say: the layer has its own


def _free_positions(model: nn.Module) -> None:
    """Let DINOv3's rotary positions follow the traced size: timm makes Python floats of a grid's
    sides, which fixes them.

    Positions are the centres of patches on [-1, 1], angles 2 pi x / period (arXiv 2508.10104).
    """
    rope: Any = getattr(model, "rope", None)
    if rope is None or not hasattr(rope, "periods") or not hasattr(rope, "normalize_coords"):
        return

    def embedding(shape: Any = None, dtype: torch.dtype | None = None) -> Tensor:
        sides = tuple(rope.feat_shape if shape is None else shape)
        whole = {
            "separate": sides,
            "max": (torch.sym_max(*sides),) * 2,
            "min": (torch.sym_min(*sides),) * 2,
        }[rope.normalize_coords]
        centres = [
            2 * ((torch.arange(side, dtype=torch.float32) + 0.5 + rope.grid_offset) / of) - 1
            for side, of in zip(sides, whole, strict=True)
        ]
        grid = torch.stack(torch.meshgrid(*centres, indexing="ij"), dim=-1).flatten(0, 1)
        angles = (2 * math.pi * grid[:, :, None] / rope.periods).flatten(1)
        halves = rope.rotate_half
        angles = torch.cat([angles] * 2, -1) if halves else angles.repeat_interleave(2, -1)
        found = torch.cat([angles.sin(), angles.cos()], dim=-1)
        return found if dtype is None else found.to(dtype)

    if getattr(rope, "grid_indexing", "ij") == "ij":
        rope.get_embed = embedding


def _fix_padding(model: nn.Module) -> None:
    """Give the layers of a dilated ConvNeXt the padding that timm works out at every call: at a
    stride of 1 it is the same for any size, and torch cannot save how it is worked out."""
    from timm.layers import Conv2dSame

    for parent in model.modules():
        for name, layer in parent.named_children():
            if not isinstance(layer, Conv2dSame) or tuple(layer.stride) != (1, 1):
                continue
            down, across = (
                (kernel - 1) * dilation
                for kernel, dilation in zip(layer.kernel_size, layer.dilation, strict=True)
            )
            edges = (across // 2, across - across // 2, down // 2, down - down // 2)
            fixed = nn.Conv2d(
                layer.in_channels,
                layer.out_channels,
                (layer.kernel_size[0], layer.kernel_size[1]),
                dilation=(layer.dilation[0], layer.dilation[1]),
                groups=layer.groups,
                bias=layer.bias is not None,
            )
            fixed.weight, fixed.bias = layer.weight, layer.bias
            setattr(parent, name, nn.Sequential(nn.ZeroPad2d(edges), fixed))
