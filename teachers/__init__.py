"""Frozen teachers: a module per family, all behind `load_teacher`."""

from teachers.dinov2 import Dinov2Teacher
from teachers.sam import MaskDecoder, SamTeacher
from teachers.siglip import SiglipTeacher, TextTower
from teachers.spec import FamilyCard, TeacherInfo, TeacherSpec
from teachers.student import StudentTeacher
from teachers.teacher import (
    Teacher,
    describe_teacher,
    families,
    load_teacher,
    register_family,
    size_error,
)

__all__ = [
    "Dinov2Teacher",
    "FamilyCard",
    "MaskDecoder",
    "SamTeacher",
    "SiglipTeacher",
    "StudentTeacher",
    "Teacher",
    "TeacherInfo",
    "TeacherSpec",
    "TextTower",
    "describe_teacher",
    "families",
    "load_teacher",
    "register_family",
    "size_error",
]
