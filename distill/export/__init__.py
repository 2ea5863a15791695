"""Students leave the house: as folders that timm, transformers and others load, and to the Hub."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distill.export.card import model_card
    from distill.export.hub import push
    from distill.export.origin import Origin, exported_steps
    from distill.export.student_folder import export_student

_WHERE = {
    "Origin": "distill.export.origin",
    "export_student": "distill.export.student_folder",
    "exported_steps": "distill.export.origin",
    "model_card": "distill.export.card",
    "push": "distill.export.hub",
}

__all__ = ["Origin", "export_student", "exported_steps", "model_card", "push"]


def __getattr__(name: str) -> Any:
    # Loaded on first use: the arguments of `distill export` must not wait for torch.
    if name not in _WHERE:
        raise AttributeError(f"module 'distill.export' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_WHERE[name]), name)
