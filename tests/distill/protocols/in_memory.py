"""Evaluation sets, features and teachers that lie in memory."""

import torch
from torch.nn import functional as F

from distill.datasets.parts import EvaluationSet
from distill.probes.models import ProbedModel
from distill.protocols.task import Setting, Stored
from students.features import Features


class Pictures:
    """A source of given pictures (3, H, W) uint8."""

    def __init__(self, pictures, name="picture"):
        self.pictures, self.called = pictures, name

    def __len__(self):
        return len(self.pictures)

    def read(self, index):
        return self.pictures[index].clone()

    def name(self, index):
        return f"{self.called} {index}"


def blank(sizes):
    """Black pictures of these (height, width)."""
    return Pictures([torch.zeros(3, *size, dtype=torch.uint8) for size in sizes])


class Owner:
    """A teacher without a head; give it what it is to have."""

    def __init__(self, stride=4, **heads):
        self.stride = stride
        self.text_tower = self.mask_decoder = self.segment = None
        self.__dict__ |= heads


class Cells:
    """An encoder: mean colours of cells of `stride` pixels through a fixed map; the summary is what
    the picture's quarters look like."""

    def __init__(self, stride=4, width=6, seed=0, kinds=("summary", "dense")):
        generator = torch.Generator().manual_seed(seed)
        self.stride, self.kinds = stride, kinds
        self.map = torch.randn(3, width, generator=generator)

    def __call__(self, pixels, size=None):
        grid = size // self.stride
        colours = F.adaptive_avg_pool2d(pixels, grid).permute(0, 2, 3, 1)
        quarters = F.adaptive_avg_pool2d(pixels, 2).permute(0, 2, 3, 1)
        return Features((quarters @ self.map).flatten(1), colours @ self.map).only(self.kinds)


def encoded(encoders):
    """FeaturesOf that runs `encoders` by name, "" for the model's own; keeps what it was asked."""

    def features(pictures, view, of=None):
        features.asked.append((pictures, view, of))
        shown = torch.stack([view.show(pictures.read(i)) for i in range(len(pictures))])
        found = encoders[of or ""](shown.float() / 255, view.size)
        return Stored(found.summary, found.dense)

    features.asked = []
    return features


def given(by_source, view_name=None):
    """FeaturesOf that answers with (summary, dense) by source, which has to be shown in a view
    whose name holds `view_name`."""

    def features(pictures, view, of=None):
        assert of is None
        assert view_name is None or view_name in view.name
        return Stored(*by_source[pictures])

    return features


def setting(
    part, content, features, size=16, *, role="student", teachers=None, to_space=None, **more
):
    """A setting of one part, or of all of a mapping of them if `part` is None."""
    parts = content if part is None else {part: content}
    pictures = more.pop("pictures", None)
    data = EvaluationSet("memory", "memory", "0", pictures, parts)
    model = ProbedModel(more.pop("name", "vit"), role, "", 0, None, to_space or {})
    return Setting(model, data, size, teachers or {}, features, **more)
