import numpy as np
import torch
from sklearn.decomposition import PCA

from distill.report.colours import (
    CLASS_COLOURS,
    colour_classes,
    colour_depth,
    overlay_mask,
    principal_colours,
    rgb,
)


def test_components_agree_with_sklearn():
    torch.manual_seed(0)
    dense = torch.randn(3, 4, 4, 12) * torch.linspace(3, 0.3, 12)
    ours = principal_colours(dense, 4).reshape(-1, 3).astype(float) / 255  # no resizing

    fitted = PCA(n_components=3, svd_solver="full").fit(dense.reshape(-1, 12).numpy())
    theirs = fitted.transform(dense.reshape(-1, 12).numpy())
    for k in range(3):
        loadings = fitted.components_[k]
        component = theirs[:, k] * np.sign(loadings[np.abs(loadings).argmax()])
        low, high = np.percentile(component, [2, 98])
        want = np.clip((component - low) / (high - low), 0, 1)
        assert np.abs(want - ours[:, k]).max() < 0.5 / 255 + 1e-4


def test_components_are_resized_and_one_or_two_channels_do():
    assert principal_colours(torch.randn(2, 4, 6, 5), 20).shape == (2, 20, 20, 3)
    assert principal_colours(torch.randn(2, 4, 4, 2), 8)[..., 2].max() == 0
    assert principal_colours(torch.zeros(1, 2, 2, 4), 4).max() == 0


def test_classes_have_colours_of_their_own():
    labels = np.arange(9).reshape(3, 3)
    picture = colour_classes(labels)
    assert picture.dtype == np.uint8
    assert [tuple(c) for c in picture.reshape(-1, 3)] == [rgb(c) for c in CLASS_COLOURS]
    assert len({tuple(c) for c in picture.reshape(-1, 3)}) == 9
    far = colour_classes(np.array([[9, 100]]))  # more classes than colours: never the background's
    assert not (far == rgb(CLASS_COLOURS[0])).all(-1).any()


def test_class_colours_differ_in_lightness_or_hue_for_the_colour_blind():
    # Viénot, Brettel and Mollon 1999: what a deuteranope sees, as a matrix in linear RGB.
    matrix = np.array([[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]])
    linear = (np.array([rgb(c) for c in CLASS_COLOURS]) / 255) ** 2.2
    seen = np.clip(linear @ matrix.T, 0, 1) ** (1 / 2.2)
    distance = np.linalg.norm(seen[:, None] - seen[None], axis=-1)
    assert distance[~np.eye(len(seen), dtype=bool)].min() > 0.12


def test_depth_goes_from_bright_to_dark():
    picture = colour_depth(np.array([[0.0, 1.0, 3.0, 5.0, 10.0, 12.0]]), 1.0, 10.0)[0].astype(int)
    assert tuple(picture[1]) == (254, 232, 56)
    assert tuple(picture[4]) == (0, 34, 78)
    assert (picture[0] == picture[1]).all()
    assert (picture[5] == picture[4]).all()
    lightness = picture @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(lightness[1:5]) < 0).all()


def test_mask_dims_the_outside_and_marks_the_point():
    image = np.full((16, 16, 3), 100, dtype=np.uint8)
    mask = np.zeros((16, 16))
    mask[:, 8:] = 1
    picture = overlay_mask(image, mask, (12, 4))
    assert tuple(picture[0, 0]) == (35, 35, 35)
    assert tuple(picture[15, 15]) == (172, 132, 45)
    assert tuple(picture[4, 12]) == (255, 255, 255)
    assert tuple(overlay_mask(image, mask, (0, 0))[0, 0]) == (255, 255, 255)  # at the border
    assert (image == 100).all()
