"""Frozen teachers: a module per family, all behind `load_teacher`."""

from teachers.dinov2 import Dinov2Teacher
from teachers.presets import Preset, all_presets, preset
from teachers.sam import MaskDecoder, SamTeacher, Segmenter
from teachers.sam2 import EdgeTamTeacher, Sam2Teacher
from teachers.sam3 import Sam3Teacher
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
    "EdgeTamTeacher",
    "FamilyCard",
    "MaskDecoder",
    "Preset",
    "Sam2Teacher",
    "Sam3Teacher",
    "SamTeacher",
    "Segmenter",
    "SiglipTeacher",
    "StudentTeacher",
    "Teacher",
    "TeacherInfo",
    "TeacherSpec",
    "TextTower",
    "all_presets",
    "describe_teacher",
    "families",
    "load_teacher",
    "preset",
    "register_family",
    "size_error",
]
