"""Frozen teachers: a module per family, all behind `load_teacher`."""

from teachers.dinov2 import Dinov2Teacher
from teachers.sam import MaskDecoder, SamTeacher
from teachers.siglip import SiglipTeacher, TextTower
from teachers.spec import TeacherInfo, TeacherSpec
from teachers.student import StudentTeacher
from teachers.teacher import (
    FAMILIES,
    Teacher,
    describe_teacher,
    load_teacher,
    register_family,
    size_error,
)

__all__ = [
    "FAMILIES",
    "Dinov2Teacher",
    "MaskDecoder",
    "SamTeacher",
    "SiglipTeacher",
    "StudentTeacher",
    "Teacher",
    "TeacherInfo",
    "TeacherSpec",
    "TextTower",
    "describe_teacher",
    "load_teacher",
    "register_family",
    "size_error",
]
