"""Family `sam3`: the image encoder of SAM 3 (Carion et al., 2025), of its detector and its tracker.

As in SAM 2 the tracker's mask decoder reads a whole pyramid (here of stride 3.5, 7 and 14): it
answers for this encoder's own pixels, by `segment`, and there is no `mask_decoder`.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from students.features import Features
from students.pixels import Size
from teachers.contents import read_config
from teachers.loading import load_model
from teachers.sam import Segmenter
from teachers.sam2 import MEMORY, PROMPTS, PyramidTeacher
from teachers.spec import FamilyCard, TeacherInfo
from teachers.teacher import register_family
from teachers.transformers_teacher import Geometry

# What finds objects by their names; and what a part's name may have above it in a file: the
# library's own saver repeats "tracker_model.", and puts the detector's under it.
DETECTOR = (
    "vision_encoder.neck.",
    "text_encoder.",
    "text_projection.",
    "geometry_encoder.",
    "detr_encoder.",
    "detr_decoder.",
    "mask_decoder.",
    "dot_product_scoring.",
)
ABOVE = ("", "detector_model.", "tracker_model.", "tracker_model.tracker_model.")


@register_family("sam3")
class Sam3Teacher(PyramidTeacher):
    """dense: the ViT's last tokens as a map (`last_hidden_state`), of stride 14.

    There is no norm behind the last block, and every map of the library's pyramids, the detector's
    and the tracker's, is made from these tokens alone, each by a neck of its own. The encoder of
    this family is the ViT without a neck. Masks of points are the tracker's: a checkpoint of the
    detector alone (Sam3Model) has none, and `segment` is None.
    """

    model_types = ("sam3", "sam3_video", "sam3_tracker", "sam3_tracker_video")
    prompted = "Sam3TrackerModel"
    renamed: ClassVar[dict[str, str]] = {
        r"^(tracker_model\.)*detector_model\.(?=vision_encoder\.backbone\.)": "",
        r"^(tracker_model\.)*tracker_neck\.": "vision_encoder.neck.",
        r"^(tracker_model\.)+": "",
    }
    card = FamilyCard(
        models="transformers: Sam3Model, Sam3VideoModel, Sam3TrackerModel, their Sam3VisionModel",
        summary="none",
        dense="the ViT's last tokens, before any neck",
        sizes="its own only",
        beside="promptable masks of its own pixels (not Sam3Model)",
    )

    def encode(self, pixels: Tensor) -> Features:
        """dense (B, S / patch, S / patch, D) of normalised pixels (B, 3, S, S)."""
        grid = (pixels.shape[2] // self.stride, pixels.shape[3] // self.stride)
        return Features(None, self.model(pixels).last_hidden_state.unflatten(1, grid))

    def _load(self, model_class: Any, config: Any) -> Any:
        parts = (*DETECTOR, *PROMPTS, *MEMORY, "tracker_neck.")
        others = tuple(above + part for above in ABOVE for part in parts)
        mapping = {r"^(tracker_model\.)*(detector_model\.)?vision_encoder\.backbone\.": ""}
        return load_model(
            model_class, self.checkpoint, self.dtype, others, config=config, key_mapping=mapping
        )

    @property
    def backbone(self) -> Any:
        """All of the encoder."""
        return self.model

    @property
    def segment(self) -> Segmenter | None:
        """The tracker's prompt encoder and mask decoder; None without a tracker."""
        tracked = read_config(self.checkpoint)["model_type"] != "sam3"
        return super().segment if tracked else None

    @classmethod
    def geometry(cls, config: Any, preprocessor: dict[str, Any]) -> Geometry:
        """The ViT's."""
        _, backbone = cls.vision_part(config)
        return Geometry(backbone.image_size, backbone.patch_size, None, backbone.hidden_size)

    @classmethod
    def vision_part(cls, config: Any) -> tuple[Any, Any]:
        """The ViT, which detector and tracker share."""
        from transformers import Sam3ViTModel

        detector = getattr(config, "detector_config", config)
        return Sam3ViTModel, detector.vision_config.backbone_config

    @classmethod
    def is_vision_weight(cls, name: str) -> bool:
        """The ViT's."""
        return "vision_encoder.backbone." in name

    @classmethod
    def size_error(cls, info: TeacherInfo, size: Size) -> str | None:
        """SAM 3 takes the configuration's size alone: its global attention has angles for that
        grid's positions only."""
        if info.size is None or size in (info.size, (info.size, info.size)):
            return None
        return f"{info.spec.weights}: size {size} is not SAM 3's {info.size} pixels, its only size"
