"""Promptable masks on any set with masks of objects.

Protocol: `distill.probes.masks` (single-point evaluation of Kirillov et al., arXiv 2304.02643,
section 7.1), with pictures and their maps of objects squashed to size (maps by nearest pixel): one
interior point for each object of at least 16 pixels in 64 by 64, the mask of highest predicted IoU
of the three, IoU in percent, mean over all objects of all pictures. The model's dense features go
through the decoder of a teacher whose space it reaches. A teacher that segments its own pixels
alone (SAM 2, EdgeTAM, SAM 3) is shown the pictures and answers by itself.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from distill.datasets.parts import Annotated, Instances
from distill.probes.masks import (
    LEAST_SHARE,
    Prompts,
    mask_ious,
    mean_overlap,
    object_prompts,
    own_mask_ious,
    squashed_instances,
)
from distill.probes.tasks import Outcome
from distill.protocols.spaces import mapped, owner, segments_alone
from distill.protocols.task import FieldTask, Setting
from distill.protocols.views import squashed

_CHUNK = 8


def run(setting: Setting) -> Outcome:
    """`iou` in percent, and the objects counted.

    Raises:
        CannotProbe: if the model reaches no decoder, or has no dense features there.
        NothingToScore: if no object is visible enough.
    """
    part = setting.data.parts["instances"]
    assert isinstance(part, Instances)
    overlaps = _by_chunk(setting, part.test, _judge(setting, part.test))
    return Outcome({"iou": mean_overlap(overlaps)}, len(overlaps))


def _judge(setting: Setting, test: Annotated) -> Callable[[int, int, Prompts], Tensor]:
    """(start, stop, prompts) to the IoU of these pictures' objects."""
    model, device, view = setting.model, setting.device, squashed(setting.size)
    itself = setting.teachers.get(model.name) if model.role == "teacher" else None
    if itself is not None and segments_alone(itself):
        segment = itself.segment

        def own(start: int, stop: int, prompts: Prompts) -> Tensor:
            shown = [view.show(test.pictures.read(i)) for i in range(start, stop)]
            return own_mask_ious(torch.stack(shown).numpy(), prompts, segment, device)

        return own

    name, teacher = owner(setting, "mask_decoder")
    dense = mapped(setting, name, setting.features(test.pictures, view), "dense")

    def decoded(start: int, stop: int, prompts: Prompts) -> Tensor:
        return mask_ious(dense[start:stop], prompts, teacher.mask_decoder, teacher.stride, device)

    return decoded


def _by_chunk(
    setting: Setting, test: Annotated, judge: Callable[[int, int, Prompts], Tensor]
) -> Tensor:
    count = len(test.pictures)
    overlaps = [torch.zeros(0)]
    for start in range(0, count, _CHUNK):
        stop = min(start + _CHUNK, count)
        maps = [squashed_instances(test.truth(i), setting.size) for i in range(start, stop)]
        prompts = object_prompts(torch.stack(maps))
        if len(prompts.image):
            overlaps.append(judge(start, stop, prompts))
        setting.progress(stop, count)
    return torch.cat(overlaps)


TASK = FieldTask(
    name="masks",
    part="instances",
    kind="dense",
    metrics=("iou",),
    protocol="dense in SAM's space, its frozen decoder (SAM 2 and 3: on their own pixels), "
    f"squashed to size, one interior point per object of at least {LEAST_SHARE:.2%} of the area, "
    "best of 3 by predicted IoU",
    run=run,
)
