"""Validation end to end with tiny fake teachers: rows, reasons, determinism, disjoint splits."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from distill.probes import ProbedModel, World, validate
from distill.probes.tasks import TASKS, Outcome
from distill.recipe import schema
from distill.scenes.captions import VOCABULARY
from students import Features, UserError

SIZE, TRAIN, TEST = 64, 64, 64


class Pooled(nn.Module):
    """Colours of patches of 8 pixels; the summary is their mean and spread, mapped at random."""

    stride = 8
    text_tower = None
    mask_decoder = None
    segment = None

    def __init__(self, width=12, summary=True, dense=True, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.mixing = torch.randn(12, width, generator=generator)
        self.kinds = (("summary",) if summary else ()) + (("dense",) if dense else ())
        self.calls = 0
        self.dropout = nn.Dropout(0.9)

    def forward(self, pixels, size=None):
        self.calls += 1
        grid = F.pixel_unshuffle(F.adaptive_avg_pool2d(pixels, size // self.stride * 2), 2)
        dense = self.dropout(grid.permute(0, 2, 3, 1) @ self.mixing)
        summary = dense.mean((1, 2)) + dense.std((1, 2))
        return Features(summary, dense).only(self.kinds)


class Texts:
    def __init__(self):
        self.calls = 0
        self.table = torch.randn(len(VOCABULARY), 12, generator=torch.Generator().manual_seed(1))

    def __call__(self, texts):
        self.calls += 1
        rows = [[VOCABULARY.index(word) for word in text.split()] for text in texts]
        return F.normalize(torch.stack([self.table[r].mean(0) for r in rows]), dim=1)

    def project(self, summary):
        return summary


class Masks:
    def __call__(self, dense, points, size):
        assert dense.shape[1] * 8 == size
        fine = F.interpolate(dense.permute(0, 3, 1, 2), scale_factor=4)
        return fine[:, None, :3].expand(-1, points.shape[1], -1, -1, -1), torch.ones(
            *points.shape[:2], 3
        )


@pytest.fixture
def world():
    captions, masks, plain = Pooled(), Pooled(summary=False), Pooled(seed=3)
    captions.text_tower, masks.mask_decoder = Texts(), Masks()
    teachers = {"captions": captions, "masks": masks, "plain": plain}

    def same(features):
        return features

    models = [ProbedModel(n, "teacher", "", 0, t, {n: same}) for n, t in teachers.items()]
    reach = {"captions": same, "masks": lambda f: f.only(("dense",))}
    models.append(ProbedModel("fixed/vit", "student", "fixed", 5, Pooled(seed=9).train(), reach))
    return models, teachers


def go(models, teachers, tasks=schema.TASKS, **more):
    settings = {"sizes": [SIZE], "train": TRAIN, "test": TEST, **more}
    return validate(models, teachers, tasks=tasks, **settings)


@pytest.fixture(autouse=True)
def short_schedules(monkeypatch):
    for module in ("segmentation", "depth"):
        monkeypatch.setattr(f"distill.probes.{module}.STEPS", 12)


def test_the_registry_is_the_recipes():
    assert tuple(TASKS) == schema.TASKS
    assert all(name == task.name for name, task in TASKS.items())


def test_rows_of_every_task(world):
    models, teachers = world
    told = []
    rows = go(models, teachers, progress=lambda *a: told.append(a))
    json.dumps(rows, allow_nan=False)

    keys = {
        "model", "role", "stage", "seed", "task", "dataset", "split", "image_size", "samples",
        "metric", "value", "better", "protocol", "seconds",
    }  # fmt: skip
    assert all(set(row) - {"reason"} == keys for row in rows)
    assert all((row["value"] is None) == ("reason" in row) for row in rows)
    of = {(row["model"], row["task"], row["metric"]): row for row in rows}
    assert len(of) == len(rows) == 4 * sum(len(task.metrics) for task in TASKS.values())

    student = [row for row in rows if row["model"] == "fixed/vit"]
    assert all(row["value"] is not None for row in student)
    assert {(r["role"], r["stage"], r["seed"]) for r in student} == {("student", "fixed", 5)}
    assert {r["task"] for r in rows if r["better"] == "lower"} == {"depth"}
    assert 0 < of["fixed/vit", "depth", "rmse"]["value"] < 5
    assert all(0 <= r["value"] <= 100 for r in rows if r["value"] is not None)
    assert of["fixed/vit", "knn", "accuracy"]["samples"] == TEST

    def reason(model, task):
        return next(r["reason"] for r in rows if (r["model"], r["task"]) == (model, task))

    assert reason("masks", "knn") == "masks has no summary features"
    assert "does not reach the space of captions" in reason("plain", "text_retrieval")
    assert "does not reach the space of masks" in reason("captions", "masks")

    # Every image is seen once by every model: two splits in one batch each.
    assert {model.encoder.calls for model in models} == {2}
    assert teachers["captions"].text_tower.calls == 1
    total = 4 * (1 + len(TASKS))
    assert [t[1:] for t in told] == [(i, total) for i in range(total + 1)]

    again = go(models, teachers)
    assert [r["value"] for r in again] == [r["value"] for r in rows]
    assert models[3].encoder.training  # as it was given


def test_no_teacher_with_the_head_and_no_dense_features():
    encoder = Pooled(dense=False)
    rows = go([ProbedModel("a", "student", "s", 0, encoder)], {}, ("masks", "affinity", "knn"))
    assert rows[0]["reason"] == "no teacher has a mask decoder"
    assert rows[1]["reason"] == "a has no dense features"
    assert rows[2]["value"] is not None


def test_a_space_without_what_the_task_needs(world):
    models, teachers = world
    models[3].to_space = {"masks": lambda features: Features(None, None)}
    rows = go(models[3:], teachers, ["masks"])
    assert rows[0]["reason"] == "fixed/vit's space of masks has no dense features"
    models[3].to_space = {"masks": lambda features: features.map(lambda _, t: t / 0)}
    rows = go(models[3:], teachers, ["masks"])
    assert rows[0]["reason"] == "fixed/vit in the space of masks is not finite numbers"


def test_features_that_are_no_numbers_and_sizes_that_are_refused():
    def broken(pixels, size=None):
        return Features(torch.full((len(pixels), 4), torch.nan), None)

    def choosy(pixels, size=None):
        raise UserError(f"size {size} is not for me")

    models = [ProbedModel(f.__name__, "student", "s", 0, f) for f in (broken, choosy)]
    rows = go(models, {}, ["knn"])
    assert "not finite" in rows[0]["reason"]
    assert rows[1]["reason"] == "size 64 is not for me"


def test_a_value_that_is_no_number_becomes_null(monkeypatch):
    diverged = dataclasses.replace(TASKS["depth"], run=lambda _: Outcome({"rmse": math.nan}, 1))
    monkeypatch.setitem(TASKS, "depth", diverged)
    rows = go([ProbedModel("a", "student", "s", 0, Pooled())], {}, ["depth"])
    assert rows[0]["value"] is None
    assert rows[0]["reason"] == "rmse is not a finite number"


def test_scenes_too_small_for_a_patch_an_object_give_a_reason():
    rows = go([ProbedModel("a", "student", "s", 0, Pooled())], {}, ["affinity"], sizes=[16])
    assert rows[0]["value"] is None
    assert "no image has two object patches" in rows[0]["reason"]


def test_an_unknown_task_is_the_users_error():
    with pytest.raises(UserError, match=r"'knnn' \(did you mean 'knn'\?\)"):
        go([], {}, ["knnn"])


def test_splits_share_no_scene_and_annotations_fit():
    world = World(SIZE, TRAIN, TEST, seed=1)
    train, test = world.train.parameters, world.test.parameters
    assert world.train.seed == world.test.seed == 10_001
    assert not set(train.index) & set(test.index)
    assert not np.array_equal(train.x, test.x)
    assert world.annotation("depth", "test").dtype == torch.float32
    assert world.annotation("segmentation", "train").shape == (TRAIN, SIZE, SIZE)
    assert world.annotation("attributes", "train").sum(1).min() >= 1
    with pytest.raises(ValueError, match="at most"):
        World(SIZE, 1_000_001, 1)
