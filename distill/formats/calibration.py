"""Images that a static quantization sees, and those that an exported file is compared on."""

from __future__ import annotations

import torch
from torch import Tensor

from distill.data.loader import batches
from distill.data.source import Source
from distill.data.sources import open_source, open_sources
from distill.export.secrets import without_secrets
from distill.export.select import Found
from students import UserError

IMAGES = 64
"""Calibration images (default)."""

_SEED = 20_000
"""World of the scenes that files are compared on; training worlds have small seeds."""


def calibration_images(
    found: Found, size: int, folder: str | None = None, count: int = IMAGES
) -> tuple[Tensor, str]:
    """Centre views of training images, (count, 3, size, size) float32 in [0, 1], and where they
    are from, in words.

    Args:
        found: the student and its run, whose recipe names the data.
        size: their side in pixels.
        folder: a folder of images to take instead.
        count: how many, as the first step of a run would draw them; some twice where there are few.

    Raises:
        UserError: if the student is in no run and no folder is given, or there are no images.
    """
    sources: dict[str, tuple[Source, float]]
    seed, homogeneous = 0, []
    if folder is not None:
        sources = {"calibration": (open_source(f"folder:{folder}"), 1.0)}
        told = f"folder:{folder}"
    elif found.recipe is not None:
        data = found.recipe.data
        try:
            sources = open_sources(data)
        except UserError as error:
            raise UserError(
                f"{error}: int8-static needs images of the run; give --calibration FOLDER instead"
            ) from None
        seed = data.view_seed
        homogeneous = [name for name, source in data.train.items() if source.homogeneous]
        told = ", ".join(source.source for source in data.train.values())
    else:
        raise UserError(
            f"{found.folder} is in no run whose images int8-static could be calibrated on: give "
            "--calibration FOLDER, a folder of images like those it will see"
        )
    stream = batches(
        sources,
        # What it will be shown is whole and in its own colours.
        policy="centre",
        scale=(1.0, 1.0),
        view_seed=seed,
        canvas=size,
        batch_size=count,
        first_step=0,
        steps=1,
        workers=0,
        homogeneous=homogeneous,
    )
    (batch,) = stream
    # The words are in the file's JSON, which leaves the house with it.
    return batch.pixels.contiguous().float() / 255, without_secrets(told)


def comparison_images(height: int, width: int, count: int) -> Tensor:
    """Built-in scenes (count, 3, height, width) float32 in [0, 1], always the same ones."""
    import numpy as np

    from distill.scenes.generate import draw_scenes
    from distill.scenes.render import render

    drawn = render(draw_scenes(_SEED, np.arange(count)), max(height, width)).image
    return torch.as_tensor(drawn[:, :, :height, :width]).float() / 255
