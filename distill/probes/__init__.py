"""Probes: the same tasks, by the same code, on every teacher, proxy and student."""

from distill.probes.models import ROLES, CannotProbe, Encoder, ProbedModel, SpaceOwner
from distill.probes.tasks import TASKS, Outcome, Probe, Task
from distill.probes.validate import Progress, Row, validate
from distill.probes.world import World

__all__ = [
    "ROLES",
    "TASKS",
    "CannotProbe",
    "Encoder",
    "Outcome",
    "Probe",
    "ProbedModel",
    "Progress",
    "Row",
    "SpaceOwner",
    "Task",
    "World",
    "validate",
]
