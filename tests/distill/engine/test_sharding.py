"""Students and teachers that are split over ranks, and teachers on devices of their own."""

import itertools
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from launch import assert_same_run, on_ranks, run_on, varied
from safetensors.torch import load_file
from timm.models import save_for_hf
from torch.distributed.tensor import DTensor

from distill.engine.parts import Part
from distill.engine.placement import load_placed, notes_of_sharding
from distill.engine.rows import rows_seen
from distill.engine.sharding import blocks
from distill.engine.targets import TargetTeacher
from distill.launch import make_accelerator
from distill.recipe.load import from_dict
from distill.recipe.resolve import problems
from distill.recipe.schema import TeacherConfig
from distill.runner import run
from students import UserError
from teachers import TeacherSpec, load_teacher

VIT = {"embed_dim": 16, "depth": 3, "num_heads": 2, "patch_size": 8, "img_size": 32}


@pytest.fixture(scope="module")
def timm_folder(tmp_path_factory):
    """A ViT of timm's in a folder, as the Hub has it."""
    folder = tmp_path_factory.mktemp("timm") / "vit"
    torch.manual_seed(0)
    options = {**VIT, "dynamic_img_size": True}
    model = timm.create_model("vit_small_patch16_dinov3_qkvb", **options, num_classes=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    save_for_hf(model, str(folder), model_args=options, safe_serialization=True)
    return folder


def teachers(timm_folder):
    """A teacher of each of four families and two sizes that it takes, its own first."""
    return {
        "dinov2": (TeacherSpec("dinov2", "builtin:dinov2-tiny"), (64, 96)),
        "siglip": (TeacherSpec("siglip", "builtin:siglip-tiny"), (64, 96)),
        "sam": (TeacherSpec("sam", "builtin:sam-tiny", tokens=("dense",)), (64, 96)),
        "timm": (TeacherSpec("timm", str(timm_folder)), (32, 64)),
    }


@pytest.mark.parametrize(
    ("arch", "options", "count"),
    [
        ("vit_small_patch16_224", {"depth": 3}, 3),
        ("vit_small_patch16_dinov3_qkvb", {"depth": 2}, 2),
        ("convnext_tiny", {"depths": (1, 2, 3, 1)}, 7),
        ("swin_tiny_patch4_window7_224", {"depths": (1, 2, 1, 1)}, 5),
    ],
)
def test_blocks_are_the_column(arch, options, count):
    with torch.device("meta"):
        model = timm.create_model(arch, num_classes=0, **options)
    found = list(blocks(model))
    assert len(found) == count
    assert len({type(block) for block in found}) == 1
    inside = sum(p.numel() for block in found for p in block.parameters())
    assert inside > 0.7 * sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", ["dinov2", "siglip", "sam", "timm"])
def test_blocks_of_a_teacher_are_of_its_encoder(name, timm_folder):
    teacher = load_teacher(teachers(timm_folder)[name][0])
    found = list(blocks(teacher.encoder))
    assert len(found) > 1
    assert len({type(block) for block in found}) == 1


@pytest.mark.slow
@pytest.mark.parametrize("micro_batch", [None, 2])
def test_sharded_teachers_give_the_same_features(timm_folder, micro_batch):
    """At their own size and at another, with as many rows on each rank or with none on one."""
    pixels = torch.rand(8, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    named = teachers(timm_folder)

    def work():
        accelerator = make_accelerator()
        rank = accelerator.process_index
        own = torch.arange(8).chunk(2)[rank]
        for name, (spec, sizes) in named.items():
            spec = replace(spec, micro_batch=micro_batch)
            config = TeacherConfig(family=spec.family, weights=spec.weights, shard=True)
            plain, teacher = load_teacher(spec), load_placed(spec, config, accelerator)
            split = [p for p in teacher.parameters() if isinstance(p, DTensor)]
            held = sum(p.to_local().numel() for p in split)
            assert 0 < held <= 0.6 * sum(p.numel() for p in split)
            for size, share in itertools.product(sizes, (1.0, 0.625, 0.125)):
                rows = rows_seen(own, share, 8, 2)
                target = TargetTeacher.of(name, teacher, [size], "none", batch_share=share)
                part = Part(pixels[own], own, np.zeros((len(own), 3), dtype=np.int64))
                found = target.features(part, rows, 0, "stage", 0)
                assert (found is None) == rows.none
                if found is None:
                    continue
                expected = plain(pixels[own[rows.of(torch.arange(4))]], size)
                for kind in spec.tokens:
                    ours, theirs = found.get(kind), expected.get(kind)
                    assert ours.shape == theirs.shape
                    limit = 1e-6 * float(theirs.abs().max())
                    assert float((ours - theirs).abs().max()) <= limit, (name, size, share, kind)

    on_ranks(work)


@pytest.mark.slow
def test_a_run_with_sharded_teachers(tiny, tmp_path):
    """A rank of which a teacher sees no row, micro-batches of unlike number; then the probes, which
    other ranks than the first write nothing of."""
    config = varied(tiny)
    config["teachers"]["sam"]["micro_batch"] = 1
    config["validate"] = {
        "tasks": ["attributes", "masks", "affinity"],
        "sizes": [32],
        "train": 64,
        "test": 64,
    }
    run_on(1, config, tmp_path / "one")
    for teacher in config["teachers"].values():
        teacher["shard"] = True
    run_on(2, config, tmp_path / "two")
    assert_same_run(tmp_path / "one", tmp_path / "two")
    one, two = (
        json.loads((tmp_path / name / "validation.json").read_text())["rows"]
        for name in ("one", "two")
    )
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        assert {k: a[k] for k in ("model", "task", "metric")} == {
            k: b[k] for k in ("model", "task", "metric")
        }
        assert (a["value"] is None) == (b["value"] is None)
        if a["value"] is not None:
            assert b["value"] == pytest.approx(a["value"], abs=0.02)
    assert (tmp_path / "two" / "report.html").exists()


def checkpoints(folder, stage):
    """The steps of a stage's checkpoints and, for each, the tensors of its files."""
    return {
        step.name: {file.name: load_file(file) for file in step.glob("*.safetensors")}
        for step in sorted((folder / stage / "checkpoint").glob("step-*"))
    }


@pytest.mark.slow
@pytest.mark.parametrize("sharded_first", [True, False])
def test_a_run_goes_on_sharded_or_not(tiny, tmp_path, sharded_first):
    """The files of a checkpoint are those of an unsharded run, and either goes on from them."""
    config = varied(tiny)
    run_on(1, config, tmp_path / "one")

    def set_shard(shard):
        for stage in config["stages"].values():
            stage["train"]["shard"] = shard

    set_shard(sharded_first)
    run_on(2, config, tmp_path / "two")
    one, two = (checkpoints(tmp_path / name, "multires") for name in ("one", "two"))
    assert one.keys() == two.keys() == {"step-000000003", "step-000000006"}
    for step in one:
        assert one[step].keys() == two[step].keys()
        for file, tensors in one[step].items():
            assert {k: (v.shape, v.dtype) for k, v in tensors.items()} == {
                k: (v.shape, v.dtype) for k, v in two[step][file].items()
            }
            for name, tensor in tensors.items() if "log" not in file else ():
                difference = (tensor.double() - two[step][file][name].double()).abs()
                assert float(difference.mean()) < 2e-6 * max(1, float(tensor.abs().max())), name
    # Back to step 3 of the second stage.
    shutil.rmtree(tmp_path / "two/multires/checkpoint/step-000000006")
    for student in ("vit", "convnext"):
        shutil.rmtree(tmp_path / "two/multires" / student)
    set_shard(not sharded_first)
    run_on(2 if sharded_first is False else 1, config, tmp_path / "two")
    assert_same_run(tmp_path / "one", tmp_path / "two")


def test_one_process_holds_what_was_to_be_sharded(tiny, tmp_path):
    config = from_dict(tiny)
    config.teachers["sam"].shard = config.stages["proxy"].train.shard = True
    accelerator = make_accelerator()
    assert notes_of_sharding(config, accelerator) == [
        "teachers.sam.shard: there is one process, which holds all of it",
        "stages.proxy.train.shard: there is one process, which holds all of it",
    ]
    teacher = load_placed(
        TeacherSpec("sam", config.teachers["sam"].weights), config.teachers["sam"], accelerator
    )
    assert not any(isinstance(p, DTensor) for p in teacher.parameters())


@pytest.mark.parametrize(
    ("device", "says"),
    [
        ("cuda:99", "teachers.sam.device: cuda:99 is not on this machine; it has cpu"),
        ("cudda", "teachers.sam.device: 'cudda' is no device; write cpu, cuda or cuda:N"),
        ("meta", "teachers.sam.device: meta is not on this machine; it has cpu"),
    ],
)
def test_a_device_that_is_not_there(tiny, tmp_path, device, says):
    tiny["teachers"]["sam"]["device"] = device
    with pytest.raises(UserError) as error:
        run(from_dict(tiny), run_dir=tmp_path / "run", quiet=True)
    assert str(error.value).startswith(says)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_teacher_of_its_own_device_is_not_sharded(tiny):
    tiny["teachers"]["sam"] |= {"device": "cpu", "shard": True}
    assert problems(from_dict(tiny)) == [
        "teachers.sam.shard: a sharded teacher is on the devices of all processes; leave out its "
        "device, cpu"
    ]


def test_a_teacher_on_the_cpu(tiny, tmp_path):
    tiny["teachers"]["sam"]["device"] = "cpu"
    del tiny["stages"]["multires"]
    run_on(1, tiny, tmp_path / "run")
    assert (tmp_path / "run/proxy/proxy/model.safetensors").exists()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs two devices")
@pytest.mark.parametrize("name", ["dinov2", "siglip", "sam", "timm"])
def test_features_come_back_to_the_device_of_the_pixels(name, timm_folder):
    spec, sizes = teachers(timm_folder)[name]
    teacher = load_teacher(spec, "cpu")
    pixels = torch.rand(2, 3, 96, 96)
    for size in sizes:
        expected, found = teacher(pixels, size), teacher(pixels.cuda(), size)
        for kind in spec.tokens:
            assert found.get(kind).is_cuda
            torch.testing.assert_close(found.get(kind).cpu(), expected.get(kind))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs two devices")
def test_a_run_whose_teacher_is_on_another_device(tiny, tmp_path):
    tiny["teachers"]["sam"]["device"] = "cpu"
    run(from_dict(tiny), run_dir=tmp_path / "run", quiet=True)
    assert (tmp_path / "run/multires/convnext/model.safetensors").exists()
