"""Two processes train what one does: the same views, normalisers, losses and weights."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from distill.recipe.load import from_dict, to_yaml
from distill.runner import run

BIN = Path(sys.executable).parent


@pytest.mark.slow
def test_two_ranks_are_one(tiny, tmp_path):
    # Of the eight images of a batch, the teacher sees two on one rank and one on the other.
    tiny["teachers"]["sam"]["batch_share"] = 0.375
    for stage in tiny["stages"].values():
        stage["train"]["batch_size"] = 8
    recipe = from_dict(tiny)
    run(recipe, run_dir=tmp_path / "one", quiet=True)
    (tmp_path / "tiny.yaml").write_text(to_yaml(recipe))
    command = [BIN / "torchrun", "--nproc_per_node", "2", "--master_port", "29517", BIN / "distill"]
    done = subprocess.run(
        [*command, "run", tmp_path / "tiny.yaml", "--run-dir", tmp_path / "two"],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "two/environment.json").read_text())["processes"] == 2
    for name in ("proxy/proxy", "multires/convnext"):
        for file in ("model.safetensors", "adapters.safetensors"):
            one, two = (load_file(tmp_path / run / name / file) for run in ("one", "two"))
            for key in one:
                torch.testing.assert_close(two[key], one[key], atol=2e-4, rtol=2e-3, msg=key)
    logs = [
        [json.loads(line) for line in (tmp_path / run / "proxy/log.jsonl").read_text().splitlines()]
        for run in ("one", "two")
    ]
    for one, two in zip(*logs, strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
        for teacher, kinds in one["teachers"].items():
            for kind, part in kinds.items():
                other = two["teachers"][teacher][kind]["explained_variance"]
                assert other == pytest.approx(part["explained_variance"], abs=1e-4)
