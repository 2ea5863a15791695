"""A setting for classification tasks whose features are given: pictures are not looked at."""

import torch

from distill.datasets.parts import Classification, EvaluationSet, Labelled
from distill.probes.models import ProbedModel
from distill.protocols.task import Setting, Stored


class Features:
    """Stands for pictures, and is handed back as their features."""

    def __init__(self, summary=None, dense=None):
        self.stored = Stored(summary, dense)

    def __len__(self):
        given = self.stored.summary if self.stored.summary is not None else self.stored.dense
        return len(given)


class Asked:
    """`Setting.features` that notes the views that it was asked for."""

    def __init__(self):
        self.views = []

    def __call__(self, pictures, view, of=None):
        self.views.append((view.name, view.size))
        return pictures.stored


def setting(train, test, labels, classes, *, teachers=None, to_space=None, **more):
    """Of `train` and `test` Features, labels (train's, test's), of so many or of named classes."""
    names = tuple(map(str, range(classes))) if isinstance(classes, int) else tuple(classes)
    part = Classification(Labelled(train, labels[0]), Labelled(test, labels[1]), names)
    data = EvaluationSet("set", "folder", "id", test, {"classification": part})
    model = ProbedModel("vit", "student", "s", 0, torch.nn.Identity(), to_space or {})
    return Setting(model, data, 224, teachers or {}, Asked(), **more)
