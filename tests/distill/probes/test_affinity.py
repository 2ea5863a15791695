"""Instance affinity: AUC against scikit-learn, the whole against a plain loop."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from distill.probes.affinity import auc, instance_affinity, patch_owners


@pytest.mark.parametrize("levels", [3, 10, 10**6])
def test_auc_against_scikit_learn_with_ties(levels):
    random = np.random.default_rng(levels)
    positive = random.random(200) < 0.3
    scores = np.floor((random.normal(size=200) + positive) * levels) / levels
    value = auc(torch.from_numpy(scores), torch.from_numpy(positive))
    assert value == pytest.approx(roc_auc_score(positive, scores), abs=1e-12)


def test_auc_needs_both_sorts():
    assert np.isnan(auc(torch.rand(5), torch.ones(5, dtype=torch.bool)))
    assert np.isnan(auc(torch.rand(5), torch.zeros(5, dtype=torch.bool)))


def test_owners_have_six_tenths_of_a_patch():
    instances = torch.zeros(1, 10, 20, dtype=torch.uint8)
    instances[0, :, :6] = 1  # 60 of 100 pixels
    instances[0, :, 6:10] = 2
    instances[0, :, 10:15] = 3  # 50 of 100
    assert patch_owners(instances, (1, 2)).tolist() == [[[1, 0]]]
    assert patch_owners(torch.zeros_like(instances), (1, 2)).tolist() == [[[0, 0]]]


def scene():
    """Three images of 48 pixels: two objects, one object, none big enough for a patch."""
    instances = torch.zeros(3, 48, 48, dtype=torch.uint8)
    instances[0, 0:16, 0:24], instances[0, 30:48, 20:48] = 1, 2
    instances[1, 8:40, 8:40] = 3
    instances[2, 0:4, 0:4] = 1
    return instances


def test_against_a_loop():
    instances = torch.cat([scene(), scene().flip(1)])
    dense = torch.randn(6, 6, 6, 5, generator=torch.Generator().manual_seed(0)) + 3
    owners = patch_owners(instances, (6, 6))
    dense[0][owners[0] == 1] += 1.0
    centred = dense.numpy().astype(np.float64)
    centred = centred - centred.reshape(-1, 5).mean(0)
    areas = []
    for image in range(6):
        patches = []
        for i, j in np.ndindex(6, 6):
            block = instances[image, 8 * i : 8 * i + 8, 8 * j : 8 * j + 8]
            for number in (1, 2, 3):
                if (block == number).sum() >= 0.6 * 64:
                    patches.append((number, centred[image, i, j]))
        same, score = [], []
        for a in range(len(patches)):
            for b in range(a):
                x, y = patches[a][1], patches[b][1]
                score.append(x @ y / np.linalg.norm(x) / np.linalg.norm(y))
                same.append(patches[a][0] == patches[b][0])
        if len(set(same)) == 2:
            areas.append(roc_auc_score(same, score))
    value, counted = instance_affinity(dense, instances)
    assert counted == len(areas) == 2
    assert value == pytest.approx(100 * np.mean(areas), abs=1e-3)


def test_features_that_know_the_objects_and_a_common_offset():
    instances = scene()
    owners = patch_owners(instances, (6, 6))
    dense = torch.nn.functional.one_hot(owners, 4).float()
    noise = 0.3 * torch.randn(dense.shape, generator=torch.Generator().manual_seed(1))
    value, counted = instance_affinity(dense + noise, instances)
    assert counted == 1
    assert value > 95
    offset, _ = instance_affinity(dense + noise + 1000.0, instances)
    assert offset == pytest.approx(value, abs=1.0)


def test_grids_of_other_strides_answer_for_the_same_patches():
    instances = scene()
    fine = torch.nn.functional.one_hot(patch_owners(instances, (12, 12)), 4).float()
    value, counted = instance_affinity(fine, instances)
    assert counted == 1
    assert value > 90
    with pytest.raises(ValueError, match="no image"):
        instance_affinity(fine[1:], instances[1:])
