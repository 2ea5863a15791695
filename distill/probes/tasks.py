"""The registry of tasks: what each needs of a model, what it measures and by which protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from distill.probes import depth, segmentation
from distill.probes.affinity import instance_affinity
from distill.probes.attributes import attribute_recall
from distill.probes.extract import apply_space
from distill.probes.knn import knn
from distill.probes.masks import mask_iou, own_mask_iou
from distill.probes.models import CannotProbe, ProbedModel, SpaceOwner
from distill.probes.retrieval import image_retrieval, text_retrieval
from distill.probes.world import TextEmbeddings, World
from distill.scenes.generate import KINDS
from students.features import TOKEN_KINDS, Features


@dataclass
class Probe:
    """One model's stored features of one world, and what a task may ask of them.

    `train` and `test` are as from `extract`; `teachers` by the names that `model.to_space` uses.
    """

    model: ProbedModel
    world: World
    train: Features
    test: Features
    teachers: Mapping[str, SpaceOwner]
    seed: int = 0
    device: torch.device | str = "cpu"
    texts: TextEmbeddings = field(default_factory=TextEmbeddings)

    def tokens(self, kind: str) -> tuple[Tensor, Tensor]:
        """Train and test features of a kind, "summary" or "dense".

        Raises:
            CannotProbe: if the model has none.
        """
        train, test = self.train.get(kind), self.test.get(kind)
        if train is None or test is None:
            raise CannotProbe(f"{self.model.name} has no {kind} features")
        return train, test

    def owner(self, head: str) -> tuple[str, SpaceOwner]:
        """The first teacher with the head ("text_tower", "mask_decoder") that the model reaches.

        Raises:
            CannotProbe: if there is none.
        """
        with_head = [n for n, t in self.teachers.items() if getattr(t, head) is not None]
        for name in with_head:
            if name in self.model.to_space:
                return name, self.teachers[name]
        words = head.replace("_", " ")
        if not with_head and head == "mask_decoder":
            alone = [name for name, t in self.teachers.items() if _segments_alone(t)]
            if alone:
                raise CannotProbe(
                    "no teacher has a mask decoder of dense features alone: that of "
                    f"{', '.join(alone)} reads finer maps of its own pixels too, and serves no "
                    "other model"
                )
        if not with_head:
            raise CannotProbe(f"no teacher has a {words}")
        raise CannotProbe(
            f"{self.model.name} does not reach the space of {', '.join(with_head)}, "
            f"which a {words} needs{self.model.why_not(with_head)}"
        )

    def mapped(self, teacher: str, kind: str) -> Tensor:
        """Test features of a kind in a teacher's own space.

        Raises:
            CannotProbe: if the model, or its space of that teacher, has none, or not finite ones.
        """
        kinds = TOKEN_KINDS if self.model.joint(teacher) else (kind,)
        for needed in kinds:
            self.tokens(needed)
        mapped = apply_space(self.model.to_space[teacher], self.test.only(kinds), self.device).get(
            kind
        )
        if mapped is None:
            raise CannotProbe(f"{self.model.name}'s space of {teacher} has no {kind} features")
        if not bool(mapped.isfinite().all()):
            raise CannotProbe(f"{self.model.name} in the space of {teacher} is not finite numbers")
        return mapped


@dataclass(frozen=True)
class Outcome:
    """Values by metric, and how many of the test split's items they are the mean of."""

    values: dict[str, float]
    samples: int


@dataclass(frozen=True)
class Task:
    """A probe: its metrics (percent unless the protocol says otherwise) and which way is better."""

    name: str
    metrics: tuple[str, ...]
    better: str
    protocol: str
    run: Callable[[Probe], Outcome]


def _knn(probe: Probe) -> Outcome:
    train, test = probe.tokens("summary")
    world = probe.world
    value = knn(
        train, world.annotation("labels", "train"), test, world.annotation("labels", "test")
    )
    return Outcome({"accuracy": value}, len(test))


def _attributes(probe: Probe) -> Outcome:
    train, test = probe.tokens("summary")
    world = probe.world
    truths = world.annotation("attributes", "train"), world.annotation("attributes", "test")
    return Outcome({"recall": attribute_recall(train, truths[0], test, truths[1])}, len(test))


def _segmentation(probe: Probe) -> Outcome:
    train, test = probe.tokens("dense")
    world = probe.world
    value = segmentation.segmentation_miou(
        train,
        world.annotation("segmentation", "train"),
        test,
        world.annotation("segmentation", "test"),
        len(KINDS) + 1,
        seed=probe.seed,
        device=probe.device,
    )
    return Outcome({"miou": value}, len(test))


def _depth(probe: Probe) -> Outcome:
    train, test = probe.tokens("dense")
    truths = probe.world.annotation("depth", "train"), probe.world.annotation("depth", "test")
    value = depth.depth_rmse(
        train, truths[0], test, truths[1], seed=probe.seed, device=probe.device
    )
    return Outcome({"rmse": value}, len(test))


def _image_retrieval(probe: Probe) -> Outcome:
    _, test = probe.tokens("summary")
    return Outcome(*image_retrieval(test, probe.world.annotation("labels", "test")))


def _text_retrieval(probe: Probe) -> Outcome:
    name, teacher = probe.owner("text_tower")
    with torch.no_grad():
        images = teacher.text_tower.project(probe.mapped(name, "summary")).float().cpu()
    captions = probe.world.captions
    texts = probe.texts.of(name, teacher, captions)
    return Outcome(text_retrieval(images, texts, captions), len(images))


def _masks(probe: Probe) -> Outcome:
    model, prompts = probe.model, probe.world.prompts
    itself = probe.teachers.get(model.name) if model.role == "teacher" else None
    if itself is not None and _segments_alone(itself):
        images = probe.world.test.images
        value = own_mask_iou(images, prompts, itself.segment, probe.device)
        return Outcome({"iou": value}, len(prompts.image))
    name, teacher = probe.owner("mask_decoder")
    dense = probe.mapped(name, "dense")
    value = mask_iou(dense, prompts, teacher.mask_decoder, teacher.stride, probe.device)
    return Outcome({"iou": value}, len(prompts.image))


def _segments_alone(teacher: SpaceOwner) -> bool:
    """Whether its masks are those of its own pixels only."""
    return teacher.segment is not None and teacher.mask_decoder is None


def _affinity(probe: Probe) -> Outcome:
    _, test = probe.tokens("dense")
    value, counted = instance_affinity(test, probe.world.annotation("instances", "test"))
    return Outcome({"auc": value}, counted)


def _head(module: object) -> str:
    steps, batch, rate = (getattr(module, n) for n in ("STEPS", "BATCH", "LEARNING_RATE"))
    return f"{steps} steps of {batch}, AdamW {rate:g}, labels at 4x the grid"


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            "knn",
            ("accuracy",),
            "higher",
            "summary, cosine, k=10, temperature 0.07, 64 classes, top-1",
            _knn,
        ),
        Task(
            "attributes",
            ("recall",),
            "higher",
            "summary, logistic regression on 64 (kind, colour) pairs, C=0.1, R-precision",
            _attributes,
        ),
        Task(
            "segmentation",
            ("miou",),
            "higher",
            f"dense, dropout 0.1, BatchNorm, 1x1 conv, {_head(segmentation)}, scored at full "
            "resolution, mean over 9 classes",
            _segmentation,
        ),
        Task(
            "depth",
            ("rmse",),
            "lower",
            f"dense, BatchNorm, 1x1 conv to {depth.BINS} bins over 1 to 10, {_head(depth)}, "
            "scored at full resolution, per-image mean in scene units",
            _depth,
        ),
        Task(
            "image_retrieval",
            ("map", "recall_at_1"),
            "higher",
            "summary, cosine, relevant = same label, self excluded",
            _image_retrieval,
        ),
        Task(
            "text_retrieval",
            ("text_to_image_r1", "text_to_image_r5", "image_to_text_r1", "image_to_text_r5"),
            "higher",
            "summary in the text-aligned teacher's space, its text tower, equal captions count as "
            "hits",
            _text_retrieval,
        ),
        Task(
            "masks",
            ("iou",),
            "higher",
            "dense in SAM's space, its frozen decoder (SAM 2 and 3: on their own pixels), one "
            "interior point per object, best of 3 by predicted IoU",
            _masks,
        ),
        Task(
            "affinity",
            ("auc",),
            "higher",
            "dense, mean removed, cosine, training-free, pairs of object patches within an image, "
            "a patch every 8 pixels",
            _affinity,
        ),
    )
}
