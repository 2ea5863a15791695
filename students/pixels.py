"""Pixels: RGB (B, 3, H, W), float in [0, 1], resized and normalised by whoever reads them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Size = int | tuple[int, int]


def resize(pixels: Tensor, size: Size) -> Tensor:
    """Pixels (B, 3, H, W) in [0, 1] at another size: bicubic, antialiased, still in [0, 1]."""
    height, width = (size, size) if isinstance(size, int) else size
    if tuple(pixels.shape[-2:]) == (height, width):
        return pixels
    resized = F.interpolate(
        pixels, (height, width), mode="bicubic", align_corners=False, antialias=True
    )
    return resized.clamp_(0, 1)


class PixelNorm(nn.Module):
    """(pixels - mean) / std per channel, with an encoder's own statistics for pixels in [0, 1]."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] to the encoder's own scale."""
        return (pixels - self.mean).div_(self.std)
