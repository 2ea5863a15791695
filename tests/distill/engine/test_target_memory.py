"""What a step holds of its targets: the teacher's own features, and no second copy."""

from itertools import accumulate

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from distill import losses
from distill.engine import targets
from distill.engine.targets import TargetTeacher
from students import INVERTIBLE, Features
from students.normalisers import build_normaliser

CHUNK = 1 << 12
TERMS = {"cosine": 0.9, "smooth_l1": 0.1}


def allocated(work):
    """What `work` returns, and the most bytes that it held at once beyond those before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        result = work()
    events = recorded.profiler.kineto_results.events()
    changes = [event.nbytes() for event in events if event.name() == "[memory]"]
    return result, max(accumulate(changes), default=0)


@pytest.fixture
def features(monkeypatch):
    """A teacher's dense tokens in bfloat16, much more than is looked at together."""
    for module in (losses, targets):
        monkeypatch.setattr(module, "CHUNK", CHUNK)
    return Features(None, torch.randn(64, 8, 8, 64).to(torch.bfloat16))


@pytest.mark.parametrize("kind", sorted(INVERTIBLE))
def test_targets_are_written_over_the_features(features, kind):
    teacher = TargetTeacher("a", None, [64], {"dense": build_normaliser(kind, 64)})
    found, held = allocated(lambda: teacher.targets(features))
    assert found.dense.data_ptr() == features.dense.data_ptr()
    assert 0 < held < 4 * 4 * CHUNK < features.dense.nbytes


def test_the_loss_holds_a_gradient_and_no_copy_of_the_targets(features):
    prediction = torch.randn(features.dense.shape).to(torch.bfloat16).requires_grad_()
    (each, _), held = allocated(lambda: losses.token_loss(prediction, features.dense, TERMS))
    # The gradient, which is kept for the way back, is as large as the prediction.
    assert prediction.nbytes <= held < prediction.nbytes + 8 * 4 * CHUNK < 2 * prediction.nbytes
    _, held = allocated(each.mean().backward)
    assert prediction.nbytes <= held < prediction.nbytes + 8 * 4 * CHUNK
    assert prediction.grad.isfinite().all()
