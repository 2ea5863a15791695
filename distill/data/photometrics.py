"""Colour changes of a batch, on whatever device it lies: jitter, blur, solarisation.

Which rows change is decided on the host, where the draws are made, so that nothing waits for the
device, and rows that do not change cost nothing and stay as they are, bit for bit.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.data.views import DRAWS, NEUTRAL

SOLARISE_THRESHOLD = 128 / 255
"""Values from here up are inverted (BYOL, arXiv 2006.07733: 128 of 255)."""

_LUMA = (0.2989, 0.587, 0.114)
"""ITU-R BT.601's weights of red, green and blue, as torchvision writes them."""


def photometrics(pixels: Tensor, draws: Tensor) -> Tensor:
    """Brightness, contrast, saturation, hue, blur, solarisation, in this order, row by row.

    Each follows torchvision.transforms.v2.functional's definition and ends in [0, 1].

    Args:
        pixels: (B, 3, S, S) floating point in [0, 1], on any device; left as it is.
        draws: (B, 6) float32 on the CPU, the columns distill.data.views.DRAWS.

    Returns:
        (B, 3, S, S) in [0, 1], of the dtype and on the device of `pixels`.

    Raises:
        ValueError: if the draws are not (B, 6) on the CPU: elsewhere each step would wait for
            the device.
    """
    if draws.device.type != "cpu" or draws.shape != (len(pixels), len(DRAWS)):
        raise ValueError(
            f"draws must be ({len(pixels)}, {len(DRAWS)}) on the CPU, "
            f"not {tuple(draws.shape)} on {draws.device}"
        )
    changes = draws != torch.tensor(NEUTRAL)
    out = pixels
    for rows, change in (
        (changes[:, :4].any(1), _jitter),
        (changes[:, 4], _blur),
        (changes[:, 5], _solarise),
    ):
        which = rows.nonzero()[:, 0]
        if len(which):
            on_device = _to_device(which, pixels)
            changed = change(out.index_select(0, on_device), draws[which])
            # The first change copies, so that the caller's pixels stay; later ones need not.
            copy = out is pixels
            out = (Tensor.index_copy if copy else Tensor.index_copy_)(out, 0, on_device, changed)
    return out


def blur_radius(size: int) -> int:
    """Taps on either side of the blur's middle on a canvas of `size` pixels.

    4 at 224, as DINOv2's kernel of 9; the blur is of the picture, so it grows with the canvas.
    """
    return math.ceil(4 * size / 224)


def _to_device(host: Tensor, like: Tensor) -> Tensor:
    """`host` where `like` lies; from pinned memory, since a pageable copy can wait."""
    if like.device.type == "cuda":
        return host.pin_memory().to(like.device, non_blocking=True)
    return host.to(like.device)


def _jitter(x: Tensor, draws: Tensor) -> Tensor:
    """Colour jitter of (n, 3, H, W), which it may overwrite."""
    factors = _to_device(draws[:, :4].to(x.dtype), x)[:, :, None, None, None].unbind(1)
    brightness, contrast, saturation, hue = factors
    x = x.mul_(brightness).clamp_(0, 1)
    # The mean of the grey image is the grey of the mean colour.
    mean = _grey(x.mean((2, 3), keepdim=True))
    x = x.mul_(contrast).add_(mean.mul_(1 - contrast)).clamp_(0, 1)
    grey = _grey(x).mul_(1 - saturation)
    x = x.mul_(saturation).add_(grey).clamp_(0, 1)
    return _shift_hue(x, hue[:, 0])


def _grey(x: Tensor) -> Tensor:
    """(n, 3, H, W) RGB to (n, 1, H, W)."""
    red, green, blue = x.split(1, 1)
    return (red * _LUMA[0]).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])


def _shift_hue(x: Tensor, turns: Tensor) -> Tensor:
    """Turns the hue in HSV (Smith, 1978, "Color gamut transform pairs"); value and chroma stay.

    With hue h in sixths of a turn, a channel that peaks at h = 0, 2 or 4 (red, green, blue) is
    smallest + chroma * clamp(2 - d, 0, 1), d the distance from its peak round the circle.
    """
    red, green, blue = x.unbind(1)
    value = torch.maximum(torch.maximum(red, green), blue)
    smallest = torch.minimum(torch.minimum(red, green), blue)
    chroma = value - smallest
    # Chosen by arithmetic with masks of 0 and 1: torch.where branches at every pixel of a CPU.
    not_green, not_red = (value - green).sign_(), (value - red).sign_()
    green_or_blue = torch.lerp(
        (blue - red).add_(chroma, alpha=2), (red - green).add_(chroma, alpha=4), not_green
    )
    hue = torch.lerp(green - blue, green_or_blue, not_red)
    # A grey pixel has no hue: nothing is divided there, and any divisor does.
    hue = hue.div_(chroma.clamp_min(torch.finfo(x.dtype).tiny)).add_(6 * turns)
    hue = hue.sub_((hue / 6).floor_(), alpha=6)  # 0 to 6; remainder is several times slower
    weights = torch.stack(
        [(hue - 3).abs_().sub_(1), 2 - (hue - 2).abs_(), 2 - (hue - 4).abs_()], dim=1
    )
    return weights.clamp_(0, 1).mul_(chroma.unsqueeze(1)).add_(smallest.unsqueeze(1))


def _blur(x: Tensor, draws: Tensor) -> Tensor:
    """Gaussian blur of (n, 3, H, W), a sigma to each row; edges are mirrored."""
    n, channels, height, width = x.shape
    radius = min(blur_radius(width), height - 1, width - 1)  # a mirror shows no more than that
    sigma = draws[:, 4:5] * (width / 224)
    taps = torch.arange(-radius, radius + 1, dtype=torch.float32)
    # exp underflows to 0 for all but the middle tap where sigma is tiny: then nothing changes.
    kernel = torch.exp(-0.5 * (taps / sigma).square())
    kernel = _to_device((kernel / kernel.sum(1, keepdim=True)).to(x.dtype), x)
    kernel = kernel.repeat_interleave(channels, 0)  # (n * 3, taps)
    x = F.pad(x, (radius,) * 4, mode="reflect").view(1, n * channels, height + 2 * radius, -1)
    x = F.conv2d(x, kernel[:, None, None, :], groups=n * channels)
    x = F.conv2d(x, kernel[:, None, :, None], groups=n * channels)
    return x.view(n, channels, height, width).clamp_(0, 1)  # weights that sum to 1 but for an ulp


def _solarise(x: Tensor, draws: Tensor) -> Tensor:
    """Inverts what is bright."""
    return torch.where(x >= SOLARISE_THRESHOLD, 1 - x, x)
