"""Frozen teachers: a module per family, all behind `load_teacher`."""

from teachers.clip import ClipTeacher, MetaClipTeacher
from teachers.dino import DepthAnythingTeacher, Dinov2Teacher, Dinov3Teacher
from teachers.open_clip_teacher import OpenClipTeacher
from teachers.presets import Preset, all_presets, preset
from teachers.radio import RadioTeacher
from teachers.sam import MaskDecoder, SamTeacher, Segmenter
from teachers.sam2 import EdgeTamTeacher, Sam2Teacher
from teachers.sam3 import Sam3Teacher
from teachers.siglip import Siglip2Teacher, SiglipTeacher
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
from teachers.text import TextTower
from teachers.timm_teacher import TimmTeacher

__all__ = [
    "ClipTeacher",
    "DepthAnythingTeacher",
    "Dinov2Teacher",
    "Dinov3Teacher",
    "EdgeTamTeacher",
    "FamilyCard",
    "MaskDecoder",
    "MetaClipTeacher",
    "OpenClipTeacher",
    "Preset",
    "RadioTeacher",
    "Sam2Teacher",
    "Sam3Teacher",
    "SamTeacher",
    "Segmenter",
    "Siglip2Teacher",
    "SiglipTeacher",
    "StudentTeacher",
    "Teacher",
    "TeacherInfo",
    "TeacherSpec",
    "TextTower",
    "TimmTeacher",
    "all_presets",
    "describe_teacher",
    "families",
    "load_teacher",
    "preset",
    "register_family",
    "size_error",
]
