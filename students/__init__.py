"""Trainable encoders, the Features they return, and the spaces they reach."""

from students.encoder import (
    MAX_PARAMETERS,
    Student,
    StudentInfo,
    build_student,
    describe_student,
    load_student,
)
from students.errors import UserError, did_you_mean
from students.features import TOKEN_KINDS, Features, match_grids, resize_grid
from students.normalisers import INVERTIBLE
from students.pixels import PixelNorm, Size, resize
from students.spaces import Chain, Space, Spaces

__all__ = [
    "INVERTIBLE",
    "MAX_PARAMETERS",
    "TOKEN_KINDS",
    "Chain",
    "Features",
    "PixelNorm",
    "Size",
    "Space",
    "Spaces",
    "Student",
    "StudentInfo",
    "UserError",
    "build_student",
    "describe_student",
    "did_you_mean",
    "load_student",
    "match_grids",
    "resize",
    "resize_grid",
]
