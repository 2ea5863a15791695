import numpy as np

from distill.report.colours import (
    CLASS_COLOURS,
    class_colours,
    colour_classes,
    colour_depth,
    overlay_mask,
    rgb,
)


def test_classes_have_colours_of_their_own():
    labels = np.arange(9).reshape(3, 3)
    picture = colour_classes(labels)
    assert picture.dtype == np.uint8
    assert [tuple(c) for c in picture.reshape(-1, 3)] == [rgb(c) for c in CLASS_COLOURS]
    assert len({tuple(c) for c in picture.reshape(-1, 3)}) == 9
    far = colour_classes(np.array([[9, 100]]))  # more classes than colours: never the background's
    assert not (far == rgb(CLASS_COLOURS[0])).all(-1).any()


def test_many_classes_have_colours_of_their_own():
    colours = class_colours(150)
    assert colours[:9] == list(CLASS_COLOURS)
    assert len(set(colours)) == 150
    assert class_colours(5) == colours[:5]
    picture = colour_classes(np.arange(150)[None])[0]
    assert [tuple(c) for c in picture] == [rgb(c) for c in colours]
    assert (picture.astype(int).max(-1) > 60).all(), "none is near the black of what is not counted"
    # Numbers next to each other are told apart.
    assert np.abs(np.diff(picture.astype(int), axis=0)).max(-1).min() > 40


def test_what_is_not_counted_is_black():
    picture = colour_classes(np.array([[-100, 0], [-1, 3]]))
    assert (picture[:, 0] == 0).all()
    assert [tuple(c) for c in picture[:, 1]] == [rgb(CLASS_COLOURS[0]), rgb(CLASS_COLOURS[3])]
    assert colour_classes(np.full((2, 2), -100)).max() == 0


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
