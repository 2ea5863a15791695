"""Families `sam2` and `edgetam`: encoders whose mask decoder reads a whole pyramid.

SAM 2 (Ravi et al., 2024) and EdgeTAM (Zhou et al., 2025). The decoder takes maps of stride 4 and 8
beside the one of stride 16, so it answers for this encoder's own pixels, by `segment`, and for
nobody else's dense features: there is no `mask_decoder`.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from students.errors import UserError
from students.features import Features
from students.pixels import Size
from teachers.checkpoint import Checkpoint
from teachers.contents import read_config, weight_shapes
from teachers.loading import load_model
from teachers.sam import Segmenter
from teachers.spec import FamilyCard, TeacherInfo
from teachers.teacher import register_family
from teachers.transformers_teacher import Geometry, TransformersTeacher

# What a checkpoint holds beside its image encoder: what answers prompts, and what a video model
# remembers frames with.
PROMPTS = ("prompt_encoder.", "mask_decoder.", "shared_image_embedding.", "no_memory_embedding")
MEMORY = (
    "memory_attention.",
    "memory_encoder.",
    "memory_temporal_positional_encoding",
    "mask_downsample.",
    "no_memory_positional_encoding",
    "no_object_pointer",
    "object_pointer_proj.",
    "occlusion_spatial_embedding_parameter",
    "spatial_perceiver.",
    "temporal_positional_encoding_projection_layer.",
)

# Two names for one table of random frequencies, of which a file may hold one or both.
FREQUENCIES = (
    "prompt_encoder.shared_embedding.positional_embedding",
    "shared_image_embedding.positional_embedding",
)

# Buffers of batch norms: in the file, but no parameters.
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


class PyramidTeacher(TransformersTeacher):
    """No summary. The decoder, and the neck in front of it, are loaded on first use and stay in
    float32 whatever the encoder's dtype: they turn coordinates into phases, which a short float
    cannot hold, and are small.

    `prompted` is the library's class of encoder and decoder, `renamed` what its weights' names in
    the file are to be read as.
    """

    prompted: ClassVar[str]
    renamed: ClassVar[dict[str, str]] = {}

    def __init__(self, info: TeacherInfo, checkpoint: Checkpoint, dtype: torch.dtype):
        super().__init__(info, checkpoint, dtype)
        config = self.configuration(checkpoint, read_config(checkpoint))
        model_class, vision = self.vision_part(config)
        self.model = self._load(model_class, vision)
        self._decoder: Any = None

    def _load(self, model_class: Any, config: Any) -> Any:
        others, mapping = (*PROMPTS, *MEMORY), {r"^vision_encoder\.": ""}
        return load_model(
            model_class, self.checkpoint, self.dtype, others, config=config, key_mapping=mapping
        )

    @property
    def backbone(self) -> Any:
        """What is in front of the neck."""
        return self.model.backbone

    @property
    def segment(self) -> Segmenter | None:
        """The checkpoint's prompt encoder and mask decoder, on this encoder's own pyramid."""
        return Segmenter(self, self._masks)

    def _masks(self, pixels: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        if self._decoder is None:
            self._decoder = self._load_decoder()
        model, side = self._decoder, pixels.shape[-1]
        grid = side // self.stride
        model.backbone_feature_sizes = [(grid * finer, grid * finer) for finer in (4, 2, 1)]
        model.prompt_encoder.image_embedding_size = (grid, grid)
        model.prompt_encoder.input_image_size = side
        out = model(
            pixel_values=pixels,
            input_points=points[:, :, None],
            input_labels=torch.ones(*points.shape[:2], 1, dtype=torch.long, device=points.device),
            multimask_output=True,
        )
        return out.pred_masks, out.iou_scores

    def _load_decoder(self) -> Any:
        import transformers

        names = weight_shapes(self.checkpoint)
        held = [key for key in FREQUENCIES if any(name.endswith(key) for name in names)]
        copied = [key for key in FREQUENCIES if held and key not in held]
        whole = getattr(transformers, self.prompted)
        body = {"_keys_to_ignore_on_load_missing": copied, "__module__": whole.__module__}
        model_class = type(self.prompted, (whole,), body)
        others = ("detector_model.", *MEMORY)
        options = {"key_mapping": self.renamed} if self.renamed else {}
        model = load_model(model_class, self.checkpoint, torch.float32, others, **options)
        for key in copied:
            model.get_buffer(key).copy_(model.get_buffer(held[0]))
        # The neck casts what it is given to its own dtype.
        model.vision_encoder.backbone = self.backbone
        return model.to(self.norm.mean.device)


@register_family("sam2")
class Sam2Teacher(PyramidTeacher):
    """dense: the neck's map of stride 16, the coarsest that it gives (`fpn_hidden_states[-1]`).

    It is what the library's image embedding is made from: Sam2Model adds `no_memory_embedding` to
    it, one vector for the whole map, which belongs to the decoder ("no frame came before this
    one"); the encoder's own map is before that. `last_hidden_state` is the trunk's, of stride 32.
    """

    model_types: ClassVar[tuple[str, ...]] = ("sam2", "sam2_video")
    prompted = "Sam2Model"
    card = FamilyCard(
        models="transformers: Sam2Model, Sam2VideoModel, their Sam2VisionModel",
        summary="none",
        dense="the neck's map of stride 16",
        sizes="multiples of 32",
        beside="promptable masks of its own pixels",
    )

    def encode(self, pixels: Tensor) -> Features:
        """dense (B, H / stride, W / stride, D) of normalised pixels (B, 3, H, W)."""
        return Features(None, self.model(pixels).fpn_hidden_states[-1].permute(0, 2, 3, 1))

    @classmethod
    def geometry(cls, config: Any, preprocessor: dict[str, Any]) -> Geometry:
        """Size and stride are the prompt encoder's, which counts in pixels of the image.

        Raises:
            UserError: if the first windows are larger than the pixels that `size_error` counts by.
        """
        prompts, vision = config.prompt_encoder_config, config.vision_config
        trunk = vision.backbone_config
        windows = getattr(trunk, "window_size_per_stage", None)
        # The table of a window's positions is tiled over the first map, without a rest.
        if windows and 2 * prompts.patch_size % (windows[0] * trunk.patch_stride[0]):
            raise UserError(
                f"config.json's window_size_per_stage begins with {windows[0]}; family 'sam2' "
                f"reads windows that divide {2 * prompts.patch_size // trunk.patch_stride[0]}"
            )
        return Geometry(prompts.image_size, prompts.patch_size, None, vision.fpn_hidden_size)

    @classmethod
    def vision_part(cls, config: Any) -> tuple[Any, Any]:
        """The image encoder, trunk and neck."""
        from transformers import Sam2VisionModel

        return Sam2VisionModel, config.vision_config

    @classmethod
    def is_vision_weight(cls, name: str) -> bool:
        """The image encoder's."""
        return name.startswith("vision_encoder.") and not name.endswith(BUFFERS)

    @classmethod
    def size_error(cls, info: TeacherInfo, size: Size) -> str | None:
        """Sides must be multiples of the pixels of a token of the trunk's coarsest map, which is
        twice the stride: the neck doubles that map and adds the next finer one."""
        if info.stride is None:
            return None
        step = 2 * info.stride
        sides = (size, size) if isinstance(size, int) else size
        if all(side > 0 and side % step == 0 for side in sides):
            return None
        near = tuple(max(1, round(side / step)) * step for side in sides)
        return (
            f"{info.spec.weights}: size {size} is no multiple of {step} pixels, a token of its "
            f"coarsest map; the nearest is {near[0] if isinstance(size, int) else near}"
        )


@register_family("edgetam")
class EdgeTamTeacher(Sam2Teacher):
    """EdgeTAM: SAM 2 with a RepViT (timm's) as its trunk. dense: as SAM 2's."""

    model_types = ("edgetam", "edgetam_video")
    prompted = "EdgeTamModel"
    card = FamilyCard(
        models="transformers: EdgeTamModel, EdgeTamVideoModel, their EdgeTamVisionModel",
        summary="none",
        dense="the neck's map of stride 16",
        sizes="multiples of 32",
        beside="promptable masks of its own pixels",
    )

    @classmethod
    def vision_part(cls, config: Any) -> tuple[Any, Any]:
        """The image encoder, trunk and neck."""
        from transformers import EdgeTamVisionModel

        return EdgeTamVisionModel, config.vision_config
