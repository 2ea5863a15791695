"""Linear segmentation: the metric against scikit-learn and torchmetrics, and that it learns."""

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, jaccard_score
from torchmetrics import JaccardIndex

from distill.probes.linear_head import Schedule
from distill.probes.segmentation import (
    confusion,
    mean_iou,
    predict_segmentation,
    segmentation_miou,
    train_segmentation,
)

SHORT = Schedule(steps=40, batch=8, lr=2e-2, weight_decay=1e-3, warmup=4)


def maps(seed=0, classes=5):
    random = np.random.default_rng(seed)
    truth = random.integers(0, classes, (6, 9, 7))
    noise = random.integers(0, classes, truth.shape)
    predicted = np.where(random.random(truth.shape) < 0.5, truth, noise)
    return torch.from_numpy(predicted), torch.from_numpy(truth)


def test_confusion_and_miou_against_the_libraries():
    predicted, truth = maps()
    counts = confusion(predicted.to(torch.uint8), truth.to(torch.uint8), 5)
    expected = confusion_matrix(truth.flatten(), predicted.flatten(), labels=range(5))
    np.testing.assert_array_equal(counts.numpy(), expected)
    by_class = jaccard_score(truth.flatten(), predicted.flatten(), average="macro")
    assert mean_iou(counts) == pytest.approx(100 * by_class)
    metric = JaccardIndex("multiclass", num_classes=5, average="macro")
    assert mean_iou(counts) == pytest.approx(100 * metric(predicted, truth).item(), abs=1e-4)


def test_absent_classes_are_left_out_and_invented_ones_count_as_nothing():
    predicted, truth = maps(classes=3)
    with_three = mean_iou(confusion(predicted, truth, 3))
    assert mean_iou(confusion(predicted, truth, 9)) == pytest.approx(with_three)
    invented = predicted.clone()
    invented[0, 0, 0] = 8  # predicted once, never there: IoU 0 of a fourth class
    expected = jaccard_score(
        truth.flatten(), invented.flatten(), labels=[0, 1, 2, 8], average="macro", zero_division=0
    )
    assert mean_iou(confusion(invented, truth, 9)) == pytest.approx(100 * expected)


def blocks(n, seed):
    """Class maps of 4 x 4 blocks at 16 pixels, and dense features that tell them linearly."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(0, 3, (n, 4, 4), generator=generator)
    mixing = torch.randn(3, 8, generator=torch.Generator().manual_seed(9))
    noise = 0.3 * torch.randn(n, 4, 4, 8, generator=generator)
    labels = classes.repeat_interleave(4, 1).repeat_interleave(4, 2)
    return torch.nn.functional.one_hot(classes, 3).float() @ mixing + noise + 5, labels


def test_it_learns_at_full_resolution_without_the_global_generator():
    train, test = blocks(24, 1), blocks(8, 2)
    state = torch.get_rng_state()
    head = train_segmentation(*train, 3, seed=3, schedule=SHORT)
    assert torch.equal(torch.get_rng_state(), state)
    predicted = predict_segmentation(head, test[0], (16, 16))
    assert predicted.shape == (8, 16, 16)
    assert mean_iou(confusion(predicted, test[1], 3)) > 60
    wrong = train_segmentation(train[0], train[1].flip(0), 3, schedule=SHORT)
    assert mean_iou(confusion(predict_segmentation(wrong, test[0], (16, 16)), test[1], 3)) < 45


def test_every_draw_is_the_seeds():
    two_steps = Schedule(steps=2, batch=8, lr=1e-2, weight_decay=1e-3, warmup=1)
    one, again, other = (
        train_segmentation(*blocks(12, 1), 3, seed=seed, schedule=two_steps).linear.weight
        for seed in (3, 3, 4)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_from_features_to_score(monkeypatch):
    monkeypatch.setattr("distill.probes.segmentation.STEPS", 40)
    train, test = blocks(24, 1), blocks(8, 2)
    assert segmentation_miou(*train, *test, 3) > 60
