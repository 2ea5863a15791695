"""All tasks that train nothing, on one small set that has everything, by the real views."""

import math

import pytest
import torch
from in_memory import Cells, Owner, Pictures, encoded, setting

from distill.datasets.parts import (
    Annotated,
    Captions,
    Classification,
    Correspondence,
    Instances,
    KeypointPair,
    Labelled,
    Landmarks,
)
from distill.probes.models import CannotProbe
from distill.protocols import (
    affinity,
    agreement,
    caption_retrieval,
    correspondence,
    image_retrieval,
    landmarks,
    masks,
)

TASKS = [
    module.TASK
    for module in (
        affinity,
        agreement,
        caption_retrieval,
        correspondence,
        image_retrieval,
        landmarks,
        masks,
    )
]
COLOURS = torch.tensor([[230, 20, 20], [20, 220, 40], [30, 40, 240]])
SIZE, COUNT = 32, 9


def truth(number):
    """Two objects, at places of the picture's own."""
    found = torch.zeros(40 + number % 3 * 4, 48 - number % 2 * 6, dtype=torch.int64)
    found[2:22, 2:20], found[24:36, 18 + number :] = 7, 9
    return found


def picture(number):
    """The first object in the colour of the class, the second grey; ramps and noise behind."""
    generator = torch.Generator().manual_seed(number)
    found = truth(number)
    rows, columns = (torch.arange(n) * 4 for n in found.shape)
    ramps = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))
    pixels = torch.cat([ramps, torch.randint(60, 80, (1, *found.shape), generator=generator)])
    pixels[:, found == 7] = COLOURS[number % 3][:, None]
    pixels[:, found == 9] = 160
    return pixels.byte()


class Tower:
    def __init__(self, encoder):
        self.encoder = encoder

    def __call__(self, texts):
        """A text `like N` means what picture N looks like."""
        shown = [picture(int(text.split()[1])) for text in texts]
        pixels = [torch.nn.functional.interpolate(p[None].float(), SIZE) / 255 for p in shown]
        return self.encoder(torch.cat(pixels), SIZE).summary

    def project(self, summary):
        return summary


def decoder(dense, points, size):
    """Whatever looks like the point."""
    grid, looks = dense.shape[1], torch.nn.functional.normalize(dense, dim=-1)
    places = ((points + 0.5) / size * grid).long()
    asked = torch.stack([d[p[:, 1], p[:, 0]] for d, p in zip(looks, places, strict=True)])
    logits = torch.einsum("bpd,bhwd->bphw", asked, looks) - 0.98
    return logits[:, :, None], torch.ones(*points.shape[:2], 1)


@pytest.fixture
def world():
    pictures = Pictures([picture(n) for n in range(COUNT)])
    queries = Pictures([picture(n)[:, 2:22, 2:20] for n in range(3)], "query")
    numbers = torch.arange(COUNT)
    same = [numbers[numbers % 3 == c] for c in range(3)]
    behind = torch.tensor([[4.0, 29.0], [10.0, 35.0], [15.0, 27.0], [36.0, 10.0]])
    return pictures, {
        "classification": Classification(
            Labelled(queries, torch.arange(3)), Labelled(pictures, numbers % 3), ("r", "g", "b")
        ),
        "landmarks": Landmarks(
            queries,
            pictures,
            tuple(s[:1] for s in same),
            tuple(s[1:2] for s in same),
            tuple(s[2:] for s in same),
        ),
        "captions": Captions(
            pictures, tuple(f"like {n}" for n in [*range(COUNT), 0, 3]), torch.arange(COUNT + 2) % 8
        ),
        "correspondence": Correspondence(
            pictures, tuple(KeypointPair(n, n + 2, behind, behind, 80.0) for n in range(6))
        ),
        "instances": Instances(Annotated(pictures, truth)),
    }


def run(task, world, kinds=("summary", "dense")):
    pictures, parts = world
    student, teacher = Cells(4, seed=1, kinds=kinds), Cells(4, seed=2)
    change = torch.linalg.pinv(student.map) @ teacher.map

    def space(features):
        return features.map(
            lambda kind, t: (
                (t.unflatten(-1, (4, -1)) @ change).flatten(-2) if kind == "summary" else t @ change
            )
        )

    owners = {
        "clip": Owner(4, text_tower=Tower(teacher)),
        "sam": Owner(4, mask_decoder=decoder),
    }
    features = encoded({"": student, "clip": teacher, "sam": teacher})
    reach = dict.fromkeys(owners, space)
    told = []
    outcome = task.run(
        setting(
            None,
            parts,
            features,
            SIZE,
            pictures=pictures,
            teachers=owners,
            to_space=reach,
            progress=lambda done, total: told.append((done, total)),
        )
    )
    assert all(0 < done <= total for done, total in told)
    return outcome


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_every_task_on_one_set(task, world):
    outcome = run(task, world)
    metrics = task.metrics or tuple(
        f"{name} {kind} {metric}"
        for name in ("clip", "sam")
        for kind in ("summary", "dense")
        for metric in ("cosine", "cka")
    )
    assert set(outcome.values) == set(metrics)
    assert outcome.samples > 0
    most = 100 if task.metrics else 1 + 1e-6
    assert all(math.isfinite(v) and -1 <= v <= most for v in outcome.values.values())
    # What is painted by class and by object is found.
    assert max(outcome.values.values()) > 0.55 * most
    assert not task.lower


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_every_task_says_what_a_model_lacks(task, world):
    if task.name == "agreement":
        values = run(task, world, ("summary",)).values
        assert {metric.split()[1] for metric in values} == {"summary"}
        return
    with pytest.raises(CannotProbe, match=f"no {task.kind} features"):
        run(task, world, ("dense",) if task.kind == "summary" else ("summary",))
    outcome = run(task, world, (task.kind,))
    assert outcome.values == run(task, world).values
