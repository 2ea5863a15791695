"""Pictures that show their own truth, and a backbone that could do everything wrong."""

import runpy
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from distill.data.source import BadSample
from distill.datasets.parts import Annotated, Depth, EvaluationSet, Segmentation
from distill.probes.models import ProbedModel
from distill.protocols.task import Setting
from students.features import Features

on_ranks = runpy.run_path(str(Path(__file__).parents[1] / "engine" / "launch.py"))["on_ranks"]

PAINT = torch.tensor([[250, 10, 10], [10, 250, 10], [10, 10, 250], [240, 240, 240]]).byte()
"""The colours of classes 0 to 3."""


class Painted:
    """A source of given pictures; those in `bad` cannot be read."""

    def __init__(self, pictures, bad=()):
        self.pictures, self.bad = pictures, bad

    def __len__(self):
        return len(self.pictures)

    def read(self, index):
        if index in self.bad:
            raise BadSample(self.name(index), "truncated")
        return self.pictures[index].clone()

    def name(self, index):
        return f"picture {index}"


class Mosaic(nn.Module):
    """Mean colours of cells of 4 pixels through a fixed map, and then what train mode changes."""

    def __init__(self, width=8, cell=4):
        super().__init__()
        self.cell = cell
        mixing = torch.randn(4, width, generator=torch.Generator().manual_seed(9))
        self.mixing = nn.Parameter(mixing)
        self.norm = nn.BatchNorm2d(width)
        self.drop = nn.Dropout(0.5)
        self.modes, self.pixels = set(), []

    def forward(self, pixels, size=None):
        assert pixels.min() >= 0
        assert pixels.max() <= 1
        self.modes.add((self.norm.training or self.drop.training, torch.is_grad_enabled()))
        self.pixels.append(pixels.clone())
        cells = F.adaptive_avg_pool2d(pixels, max(1, (size or 16) // self.cell))
        across = torch.linspace(0, 1, cells.shape[-1]).expand_as(cells[:, :1])  # not symmetric
        seen = torch.cat([cells, across], 1).permute(0, 2, 3, 1) @ self.mixing
        dense = self.drop(self.norm(seen.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        return Features(dense.mean((1, 2)), dense)


def blocks(count, seed, shape=(24, 32), block=8, classes=3):
    """Class maps of blocks, with a border of IGNORE, and pictures painted by class."""
    generator = torch.Generator().manual_seed(seed)
    pictures, truths = [], []
    for number in range(count):
        height, width = shape[0] + 4 * (number % 3), shape[1] + 4 * (number % 2)
        coarse = torch.randint(0, classes, (height, width), generator=generator)
        coarse = coarse[: -(-height // block), : -(-width // block)]
        truth = coarse.repeat_interleave(block, 0).repeat_interleave(block, 1)[:height, :width]
        pictures.append(PAINT[truth].permute(2, 0, 1).contiguous())
        truth = truth.clone()
        truth[:2] = -100
        truths.append(truth)
    return pictures, truths


def ramps(count, seed, shape=(24, 32)):
    """Depths from 1 to 9, with holes of 0, and pictures whose brightness is the depth."""
    generator = torch.Generator().manual_seed(seed)
    pictures, truths = [], []
    for number in range(count):
        size = shape[0] + 4 * (number % 3), shape[1] + 4 * (number % 2)
        coarse = torch.rand(1, 1, 3, 3, generator=generator)
        smooth = F.interpolate(coarse, size, mode="bilinear", align_corners=True)[0, 0]
        pictures.append((smooth * 255).byte().expand(3, -1, -1).contiguous())
        truth = 1 + 8 * smooth
        truth[torch.rand(size, generator=generator) < 0.2] = 0
        truths.append(truth)
    return pictures, truths


def annotated(pictures, truths, bad=()):
    return Annotated(Painted(pictures, bad), lambda index: truths[index].clone())


def setting(part, encoder=None, size=16, **more):
    """A task's setting on one part."""
    name = "segmentation" if isinstance(part, Segmentation) else "depth"
    data = EvaluationSet("painted", "painted", "0", part.test.pictures, {name: part})
    model = ProbedModel("mosaic", "teacher", "", 0, encoder or Mosaic())
    return Setting(model, data, size, {}, None, **more)


def segmentation(train, test, classes=3):
    return Segmentation(train, test, tuple("abcdefgh"[:classes]))


def depth(train, test, crop=None):
    return Depth(train, test, 0.5, 10.0, crop)


def alone_and_on_ranks(work, ranks, folder):
    """What `work(rank, ranks)` answers in one process, and in each of several that share it."""

    def child():
        from accelerate.state import PartialState

        state = PartialState(cpu=True)
        assert torch.distributed.get_world_size() == ranks
        answer = work(state.process_index, ranks)
        torch.save(answer, folder / f"{state.process_index}.pt")
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()

    on_ranks(child, ranks)
    return work(0, 1), [torch.load(folder / f"{rank}.pt") for rank in range(ranks)]
