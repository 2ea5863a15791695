"""Retrieval of pictures by captions and of captions by pictures, zero-shot.

Protocol (zero-shot retrieval on COCO and Flickr30k, Radford et al., arXiv 2103.00020, table 13):
the model's summaries in the space of a teacher with a text tower, cosine with that tower's
embeddings of the captions. Text to image: the share of captions whose one picture is among the
first k pictures. Image to text: the share of pictures with any of their captions among the first k
captions, of all pictures' together. Captions go to the tower as they are (CLIP's own figures are
with "a photo of" before them). Equal captions of two pictures stay two: only its own counts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from distill.datasets.parts import Captions
from distill.probes.models import NothingToScore, SpaceOwner
from distill.probes.retrieval import cross_retrieval
from distill.probes.tasks import Outcome
from distill.protocols.spaces import mapped, owner
from distill.protocols.task import FieldTask, Rows, Setting
from distill.protocols.views import centre_crop

RECALLS = (1, 5, 10)

_TEXTS = 256
_SUMMARIES = 4096


def run(setting: Setting) -> Outcome:
    """Recall at 1, 5 and 10 in percent, both ways, and the pictures counted.

    Raises:
        CannotProbe: if the model reaches no teacher with a text tower, or has no summary there.
        NothingToScore: if there are no captions.
    """
    part = setting.data.parts["captions"]
    assert isinstance(part, Captions)
    if not part.captions:
        raise NothingToScore("there are no captions")
    name, teacher = owner(setting, "text_tower")
    stored = setting.features(part.pictures, centre_crop(setting.size))
    with torch.no_grad():
        images = _projected(teacher, mapped(setting, name, stored, "summary"))
        texts = _embedded(teacher, part.captions, setting)
    numbers = torch.arange(len(images))
    values = cross_retrieval(images, texts, numbers, part.owner, RECALLS, setting.device)
    return Outcome(values, len(images))


def _projected(teacher: SpaceOwner, summaries: Rows) -> Tensor:
    parts = [
        teacher.text_tower.project(summaries[start : start + _SUMMARIES]).float().cpu()
        for start in range(0, len(summaries), _SUMMARIES)
    ]
    return torch.cat(parts)


def _embedded(teacher: SpaceOwner, captions: tuple[str, ...], setting: Setting) -> Tensor:
    parts = []
    for start in range(0, len(captions), _TEXTS):
        texts = list(captions[start : start + _TEXTS])
        parts.append(teacher.text_tower(texts).float().cpu())
        setting.progress(start + len(texts), len(captions))
    return torch.cat(parts)


TASK = FieldTask(
    name="caption_retrieval",
    part="captions",
    kind="summary",
    metrics=tuple(f"{way}_r{k}" for way in ("text_to_image", "image_to_text") for k in RECALLS),
    protocol="summary in the text-aligned teacher's space, short side 256/224, centre crop, cosine "
    "with its text tower's captions, recall at k = hit rate, no template",
    run=run,
)
