"""Distil vision foundation models into one small encoder: teachers -> proxy -> students.

from distill import Recipe, run
result = run("quickstart")
print(result.student("multires/vit"))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distill.recipe.learning import (
        AdapterConfig,
        BalanceConfig,
        LossConfig,
        MaskedConfig,
        PartitionConfig,
        TeacherLossConfig,
    )
    from distill.recipe.schema import (
        DataConfig,
        ExportConfig,
        Recipe,
        SourceConfig,
        StageConfig,
        StudentConfig,
        TeacherConfig,
        TrainConfig,
        ValidateConfig,
        ViewsConfig,
    )
    from distill.runner import Result, run

_WHERE = {
    **dict.fromkeys(
        (
            "AdapterConfig",
            "BalanceConfig",
            "LossConfig",
            "MaskedConfig",
            "PartitionConfig",
            "TeacherLossConfig",
        ),
        "distill.recipe.learning",
    ),
    **dict.fromkeys(
        (
            "DataConfig",
            "ExportConfig",
            "Recipe",
            "SourceConfig",
            "StageConfig",
            "StudentConfig",
            "TeacherConfig",
            "TrainConfig",
            "ValidateConfig",
            "ViewsConfig",
        ),
        "distill.recipe.schema",
    ),
    "Result": "distill.runner",
    "run": "distill.runner",
}

__all__ = [
    "AdapterConfig",
    "BalanceConfig",
    "DataConfig",
    "ExportConfig",
    "LossConfig",
    "MaskedConfig",
    "PartitionConfig",
    "Recipe",
    "Result",
    "SourceConfig",
    "StageConfig",
    "StudentConfig",
    "TeacherConfig",
    "TeacherLossConfig",
    "TrainConfig",
    "ValidateConfig",
    "ViewsConfig",
    "run",
]


def __getattr__(name: str) -> Any:
    # Loaded on first use: `distill --help` must not wait for torch.
    if name not in _WHERE:
        raise AttributeError(f"module 'distill' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_WHERE[name]), name)
