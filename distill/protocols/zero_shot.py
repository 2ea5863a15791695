"""Zero-shot classification: pictures by the names of the classes, without any training.

CLIP (Radford et al., arXiv 2103.00020): each class name is put into prompt templates; the texts'
L2-normalised embeddings are averaged and normalised again; a picture belongs to the class of
highest cosine. The templates are the seven of CLIP's published notebook "Prompt Engineering for
ImageNet" that work together about as well as all eighty. A model that is no text-aligned teacher
itself is judged in the space of one that it reaches, by that teacher's text tower.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.datasets.parts import Classification
from distill.probes.models import SpaceOwner
from distill.probes.tasks import Outcome
from distill.protocols.spaces import mapped, owner
from distill.protocols.task import FieldTask, Setting
from distill.protocols.views import centre_crop

TEMPLATES = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)
RANKS = (1, 5)

_TEXTS = 256
_PICTURES = 4096


def run(setting: Setting) -> Outcome:
    """`top1` and `top5` in percent; `top5` is left out where there are no more than five classes.

    Raises:
        CannotProbe: if the model has no summary, or reaches no space with a text tower.
    """
    part = setting.data.parts["classification"]
    assert isinstance(part, Classification)
    name, teacher = owner(setting, "text_tower")
    stored = setting.features(part.test.pictures, centre_crop(setting.size))
    summaries = mapped(setting, name, stored, "summary")
    classes = class_embeddings(teacher, part.classes)
    hits = dict.fromkeys([k for k in RANKS if k == 1 or k < len(part.classes)], 0)
    for start in range(0, len(summaries), _PICTURES):
        rows = slice(start, start + _PICTURES)
        with torch.no_grad():
            projected = teacher.text_tower.project(summaries[rows]).float().cpu()
        place = places(F.normalize(projected, dim=-1) @ classes.T, part.test.labels[rows])
        for k in hits:
            hits[k] += int((place < k).sum())
        setting.progress(min(start + _PICTURES, len(summaries)), len(summaries))
    return Outcome({f"top{k}": 100 * n / len(summaries) for k, n in hits.items()}, len(summaries))


def class_embeddings(teacher: SpaceOwner, classes: Sequence[str]) -> Tensor:
    """(K, D) float32 on the CPU, L2-normalised: of each class the mean over TEMPLATES of the
    normalised embeddings. An underscore in a name is read as a space."""
    texts = [template.format(name.replace("_", " ")) for name in classes for template in TEMPLATES]
    with torch.no_grad():
        parts = [
            teacher.text_tower(texts[start : start + _TEXTS]).float().cpu()
            for start in range(0, len(texts), _TEXTS)
        ]
    each = F.normalize(torch.cat(parts), dim=-1).unflatten(0, (len(classes), len(TEMPLATES)))
    return F.normalize(each.mean(1), dim=-1)


def places(scores: Tensor, labels: Tensor) -> Tensor:
    """(N,) how many classes stand before the right one, labels (N,), by scores (N, K): those of
    higher score, and of equal ones those of lower index."""
    right = scores.gather(1, labels[:, None])
    before = torch.arange(scores.shape[1]) < labels[:, None]
    return ((scores > right) | ((scores == right) & before)).sum(1)


TASK = FieldTask(
    name="zero_shot",
    part="classification",
    kind="summary",
    metrics=tuple(f"top{k}" for k in RANKS),
    protocol=f"summary in the text-aligned teacher's space, its text tower, {len(TEMPLATES)} "
    "prompt templates averaged, short side 256/224 and centre crop",
    run=run,
)
