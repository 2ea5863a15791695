import math

import pytest
import torch

from distill.optim import build_optimiser, learning_rate
from distill.recipe.schema import TrainConfig
from students import build_student


def test_rate_warms_up_and_follows_half_a_cosine():
    config = TrainConfig(steps=110, warmup=10, lr=1.0, min_lr=0.1)
    assert learning_rate(0, config) == pytest.approx(0.1)
    assert learning_rate(9, config) == pytest.approx(1.0)
    for step in (10, 40, 109):
        expected = 0.1 + 0.9 * (1 + math.cos(math.pi * (step - 10) / 100)) / 2
        assert learning_rate(step, config) == pytest.approx(expected)


def test_rate_matches_torch_without_warm_up():
    config = TrainConfig(steps=20, lr=0.3)
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 20)
    for step in range(20):
        assert learning_rate(step, config) == pytest.approx(schedule.get_last_lr()[0])
        optimiser.step()
        schedule.step()


def test_only_matrices_decay():
    overrides = {"embed_dim": 16, "depth": 1, "num_heads": 2, "patch_size": 8}
    student = build_student("vit_small_patch16_dinov3_qkvb", size=16, overrides=overrides)
    decays, others = build_optimiser(student, TrainConfig(weight_decay=0.1)).param_groups
    names = {id(p): n for n, p in student.named_parameters()}
    kept = {names[id(p)] for p in others["params"]}
    assert decays["weight_decay"] == 0.1
    assert others["weight_decay"] == 0.0
    assert all(
        n.endswith("weight") and "norm" not in n for n in map(names.get, map(id, decays["params"]))
    )
    assert {"model.cls_token", "model.reg_token", "model.norm.weight"} <= kept
    assert "model.blocks.0.attn.proj.bias" in kept
