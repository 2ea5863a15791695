"""Two tiny students in folders of their own, and their exported files, each made once."""

import copy
import logging

import numpy as np
import pytest
import torch
from format_students import TINY, tiny_student
from PIL import Image

from distill.export import Origin, export_student
from distill.export.select import find_student
from distill.formats import FormatWriter
from students import Spaces, load_student


@pytest.fixture(scope="session")
def student_folders(tmp_path_factory):
    """STAGE/STUDENT folders of the tiny students, in no run."""
    home = tmp_path_factory.mktemp("students") / "stage"
    for kind in TINY:
        origin = Origin("demo", kind, "stage", 1, [32], "apache-2.0")
        export_student(tiny_student(kind), Spaces({}), home / kind, origin)
    return {kind: home / kind for kind in TINY}


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """A folder of twelve small pictures."""
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for number in range(12):
        coarse = Image.fromarray(random.integers(0, 256, (6, 5, 3), dtype=np.uint8))
        coarse.resize((50, 60), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="session")
def exported(student_folders, photos):
    """exported(kind, form, quantize=None) is the path of that file, written on first use."""
    logging.getLogger("torch.export").setLevel(logging.ERROR)
    writers, files = {}, {}

    def write(kind, form, quantize=None):
        if kind not in writers:
            found = find_student(student_folders[kind])
            writers[kind] = FormatWriter(found, calibration=str(photos), probe=False)
        if (kind, form, quantize) not in files:
            files[kind, form, quantize] = writers[kind].write(form, quantize)
        return files[kind, form, quantize]

    return write


@pytest.fixture(scope="session")
def reference(student_folders):
    """reference(kind, pixels) is what the student itself gives, as (summary, dense)."""
    students = {kind: load_student(folder).eval() for kind, folder in student_folders.items()}

    def run(kind, pixels):
        with torch.no_grad():
            features = copy.copy(students[kind])(pixels, tuple(pixels.shape[-2:]))
        return features.summary, features.dense

    return run


@pytest.fixture
def pictures():
    """pictures(n, height, width): smooth pictures (n, 3, height, width) in [0, 1]."""

    def make(count, height, width):
        generator = torch.Generator().manual_seed(count * height + width)
        coarse = torch.rand(count, 3, 4, 4, generator=generator)
        return torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")

    return make
