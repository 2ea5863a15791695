"""Evaluation data sets in the layouts in which people have them."""

from distill.datasets.open import LAYOUTS, open_evaluation
from distill.datasets.parts import (
    IGNORE,
    Annotated,
    Captions,
    Classification,
    Correspondence,
    Depth,
    EvaluationSet,
    Instances,
    KeypointPair,
    Labelled,
    Landmarks,
    Part,
    Segmentation,
)

__all__ = [
    "IGNORE",
    "LAYOUTS",
    "Annotated",
    "Captions",
    "Classification",
    "Correspondence",
    "Depth",
    "EvaluationSet",
    "Instances",
    "KeypointPair",
    "Labelled",
    "Landmarks",
    "Part",
    "Segmentation",
    "open_evaluation",
]
