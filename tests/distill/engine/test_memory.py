"""Running out of memory, and what makes do with less: gradient checkpointing."""

import re
import resource
from pathlib import Path

import pytest
import timm.models.convnext
import timm.models.eva
import torch
from child_runs import ended, in_child, results
from safetensors.torch import load_file

import distill.runner
from distill.engine import scales
from distill.engine import stage as stages
from distill.recipe.load import from_dict, prepare, to_yaml
from distill.runner import run
from students import UserError

FAULTS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: "
        "you tried to allocate 8 bytes. Error code 12 (Cannot allocate memory)"
    ),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    MemoryError(),
]


def raising(error):
    def fails(*_, **__):
        raise error

    return fails


@pytest.mark.parametrize("error", FAULTS, ids=lambda error: str(error)[:12] or "MemoryError")
@pytest.mark.parametrize(
    ("where", "name"),
    [
        (distill.runner.Runner, "teacher"),
        (stages, "build_learner"),
        (stages, "calibrate"),
        (stages.Stage, "step"),
        (scales, "best_scale"),
    ],
)
def test_names_the_stage_and_settings_that_exist(tiny, tmp_path, monkeypatch, where, name, error):
    with monkeypatch.context() as patch:
        patch.setattr(where, name, raising(error))
        with pytest.raises(UserError) as caught:
            run(from_dict(tiny), run_dir=tmp_path / "run", quiet=True)
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith("stage proxy needs more memory than there is (cpu): lower stages.proxy.")
    going_on, _, anew = line.partition("with another --run-dir, ")
    named = {
        "going on": re.findall(r"((?:stages|teachers)\.\S+) \(", going_on),
        "anew": re.findall(r"((?:stages|teachers)\.\S+) \(", anew),
    }
    assert named == {
        "going on": [
            "stages.proxy.train.micro_batch",
            "stages.proxy.train.checkpointing",
            "teachers.dinov2.micro_batch",
            "teachers.sam.micro_batch",
        ],
        "anew": [
            "stages.proxy.train.batch_size",
            "teachers.dinov2.batch_share",
            "teachers.sam.batch_share",
        ],
    }
    # All of them are keys of a recipe.
    prepare(from_dict(tiny), [f"{path}=1" for path in named["going on"] if "micro" in path])
    lower = [f"{path}={4 if 'size' in path else 0.5}" for path in named["anew"]]
    prepare(from_dict(tiny), ["stages.proxy.train.checkpointing=true", *lower])


@pytest.mark.slow
def test_the_settings_named_let_the_same_run_go_on(tiny, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        step, count = stages.Stage.step, [0]

        def fails(self, *arguments):
            count[0] += 1
            if count[0] == 5:
                raise torch.OutOfMemoryError("CUDA out of memory")
            step(self, *arguments)

        patch.setattr(stages.Stage, "step", fails)
        with pytest.raises(UserError, match="micro_batch"):
            run(from_dict(tiny), run_dir=tmp_path, quiet=True)
    tiny["stages"]["proxy"]["train"] |= {"micro_batch": 2, "checkpointing": True}
    run(from_dict(tiny), run_dir=tmp_path, quiet=True)
    assert len(results(tmp_path)["proxy/log.jsonl"]) == 3


@pytest.mark.parametrize("error", [RuntimeError("shapes"), RuntimeError("CUDA error: misaligned")])
def test_another_fault_keeps_its_traceback(tiny, tmp_path, monkeypatch, error):
    monkeypatch.setattr(stages.Stage, "step", raising(error))
    with pytest.raises(RuntimeError, match=str(error)):
        run(from_dict(tiny), run_dir=tmp_path, quiet=True)


def test_in_the_probes(tiny, tmp_path, monkeypatch):
    tiny["validate"] = {"tasks": ["knn"], "train": 64, "test": 64}
    del tiny["stages"]["multires"]
    monkeypatch.setattr(distill.runner, "validate_run", raising(FAULTS[0]))
    with pytest.raises(UserError, match=r"^the probes need more .*validate\.train \(now 64\)"):
        run(from_dict(tiny), run_dir=tmp_path, quiet=True)
    assert (tmp_path / "proxy/proxy/model.safetensors").exists()


def test_a_machine_without_that_much(tiny, tmp_path, capfd):
    """Real memory: the process may take a hundred million bytes more, and a batch needs more."""
    del tiny["stages"]["multires"]
    tiny["stages"]["proxy"]["students"]["proxy"]["teachers"] = ["dinov2"]
    stage = tiny["stages"]["proxy"]
    stage["image_sizes"], stage["train"]["batch_size"] = [128], 1024
    (tmp_path / "tiny.yaml").write_text(to_yaml(from_dict(tiny)))

    def work():
        from distill import cli

        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + 100_000_000, resource.RLIM_INFINITY))
        return cli.main(["run", str(tmp_path / "tiny.yaml"), "--run-dir", str(tmp_path / "run")])

    capfd.readouterr()
    assert ended(in_child(work)) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("distill: stage proxy needs more memory than there is (cpu): lower ")


@pytest.mark.slow
def test_checkpointing_computes_the_same_again(tiny, tmp_path, monkeypatch):
    """Losses and weights are those without; the blocks go forward twice in a step, and once where
    nothing is learnt from them."""
    calls = {}
    for kind in (timm.models.eva.EvaBlock, timm.models.convnext.ConvNeXtBlock):
        forward, name = kind.forward, kind.__name__

        def counted(self, *arguments, forward=forward, name=name, **named):
            calls[name] = calls.get(name, 0) + 1
            return forward(self, *arguments, **named)

        monkeypatch.setattr(kind, "forward", counted)
    for stage in tiny["stages"].values():
        for student in stage["students"].values():
            if "vit" in student["arch"]:
                student["model"] |= {"depth": 2, "proj_drop_rate": 0.1}
    counts = []
    for folder, on in (("without", False), ("with", True)):
        for stage in tiny["stages"].values():
            stage["train"]["checkpointing"] = on
        calls.clear()
        run(from_dict(tiny), run_dir=tmp_path / folder, quiet=True)
        counts.append(dict(calls))
    # Two ViTs of two blocks in six steps; a ConvNeXt of four in six.
    assert counts[1]["EvaBlock"] - counts[0]["EvaBlock"] == 2 * 2 * 6
    assert counts[1]["ConvNeXtBlock"] - counts[0]["ConvNeXtBlock"] == 4 * 6
    for name in ("proxy/proxy", "multires/vit", "multires/convnext"):
        one, other = (
            load_file(tmp_path / folder / name / "model.safetensors")
            for folder in ("without", "with")
        )
        for key in one:
            torch.testing.assert_close(other[key], one[key], atol=1e-6, rtol=0, msg=key)


def test_checkpointing_of_an_architecture_without(tiny, tmp_path):
    del tiny["stages"]["multires"]
    student = tiny["stages"]["proxy"]["students"]["proxy"]
    student |= {"arch": "dla46_c", "model": {}, "teachers": ["dinov2"]}
    tiny["stages"]["proxy"]["train"]["checkpointing"] = True
    with pytest.raises(UserError, match=r"train\.checkpointing: dla46_c cannot compute"):
        run(from_dict(tiny), run_dir=tmp_path / "run", quiet=True)
