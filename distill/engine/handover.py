"""Handing over: each student holds its teachers' normalisers, as they are stored with it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from distill.engine.targets import TargetTeacher
from distill.engine.trainee import Trainee


def hand_out(
    teachers: Mapping[str, TargetTeacher], trainees: Iterable[Trainee], running: bool = False
) -> None:
    """Give each student its teachers' normalisers as they are now; `running`: only those that
    follow what a stage sees."""
    for trainee in trainees:
        for module in {trainee.learner, trainee.result}:
            for name in module.teachers:
                for kind, normaliser in teachers[name].normalisers.items():
                    if normaliser.running or not running:
                        held = module.space(name).normalisers[kind]
                        held.load_state_dict(normaliser.state_dict())


def take_back(teachers: Mapping[str, TargetTeacher], trainees: Iterable[Trainee]) -> None:
    """Give the teachers the normalisers that their students hold."""
    for trainee in trainees:
        for name in trainee.learner.teachers:
            for kind, normaliser in teachers[name].normalisers.items():
                held = trainee.learner.space(name).normalisers[kind]
                normaliser.load_state_dict(held.state_dict())
