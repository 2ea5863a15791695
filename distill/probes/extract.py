"""Features of a frozen encoder over a whole data set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from distill.probes.models import Encoder
from students.features import Features


@contextmanager
def frozen(encoder: Encoder) -> Iterator[None]:
    """Inside: every module of `encoder` in eval mode and no gradients. After: as it was.

    A backbone left in train mode while its probe is trained (dropout, batch statistics, random
    position scales) is a known fault of published probe code.
    """
    modules = list(encoder.modules()) if isinstance(encoder, nn.Module) else []
    modes = [module.training for module in modules]
    try:
        for module in modules:
            module.training = False
        with torch.no_grad():
            yield
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode


def extract(
    encoder: Encoder,
    images: np.ndarray,
    size: int,
    device: torch.device | str = "cpu",
    batch: int = 64,
) -> Features:
    """Features of images (N, 3, S, S) uint8 at `size` pixels, in batches on `device`.

    Returns `summary` (N, D) and `dense` (N, h, w, D) in float32 on the CPU, each None where the
    encoder gives none. The encoder resizes and normalises by itself.

    Raises:
        ValueError: if there are no images or they are not uint8.
    """
    if not len(images) or images.dtype != np.uint8:
        raise ValueError(f"expected uint8 images, not {len(images)} of {images.dtype}")
    with frozen(encoder):
        return _joined(
            encoder(pixels.to(device).float() / 255, size) for pixels in _chunks(images, batch)
        )


def apply_space(
    space: Callable[[Features], Features],
    features: Features,
    device: torch.device | str = "cpu",
    batch: int = 256,
) -> Features:
    """`space` over stored features, in batches on `device`; float32 on the CPU as from `extract`.

    Raises:
        ValueError: if `features` is empty.
    """
    given = features.summary if features.summary is not None else features.dense
    if given is None:
        raise ValueError("features hold neither summary nor dense tokens")

    def at(start: int) -> Features:
        return features.map(lambda _, tokens: tokens[start : start + batch].to(device))

    with torch.no_grad():
        return _joined(space(at(start)) for start in range(0, len(given), batch))


def _chunks(images: np.ndarray, batch: int) -> Iterator[Tensor]:
    for start in range(0, len(images), batch):
        # A copy: the images are a read-only memory map.
        yield torch.from_numpy(np.array(images[start : start + batch]))


def _joined(parts: Iterator[Features]) -> Features:
    final = (part.without_levels() for part in parts)  # of all images, they are many times more
    stored = [part.map(lambda _, tokens: tokens.detach().float().cpu()) for part in final]
    summaries = [part.summary for part in stored if part.summary is not None]
    maps = [part.dense for part in stored if part.dense is not None]
    return Features(torch.cat(summaries) if summaries else None, torch.cat(maps) if maps else None)
