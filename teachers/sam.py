"""Family `sam`: Segment Anything (Kirillov et al., 2023), image encoder and mask decoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from students.features import Features
from students.pixels import Size
from teachers.checkpoint import Checkpoint
from teachers.loading import load_model
from teachers.spec import FamilyCard, TeacherInfo
from teachers.teacher import Teacher, register_family
from teachers.transformers_teacher import Geometry, TransformersTeacher


@register_family("sam")
class SamTeacher(TransformersTeacher):
    """No summary. dense: the output of the image encoder's neck. Square images only.

    At another size than its own the position table is resized (bicubic), once per size. The mask
    decoder stays in float32 whatever the encoder's dtype: it turns coordinates into phases, which a
    short float cannot hold, and is small.
    """

    model_types = ("sam",)
    card = FamilyCard(
        models="transformers: SamModel",
        summary="none",
        dense="the neck's map, stride 16",
        sizes="squares, multiples of the patch: position table resized",
        beside="mask decoder",
    )

    def __init__(self, info: TeacherInfo, checkpoint: Checkpoint, dtype: torch.dtype):
        super().__init__(info, checkpoint, dtype)
        from transformers import SamModel

        self.model = load_model(SamModel, checkpoint, torch.float32)
        self.model.vision_encoder.to(dtype)
        self._mask_decoder: MaskDecoder | None = None
        self._tables: dict[tuple[int, torch.device], Tensor] = {}

    def encode(self, pixels: Tensor) -> Features:
        """dense (B, S / patch, S / patch, D) of normalised pixels (B, 3, S, S)."""
        encoder, side = self.model.vision_encoder, pixels.shape[-1]
        encoder.patch_embed.image_size = (side, side)
        if side == self.size or encoder.pos_embed is None:
            out = encoder(pixels)
        else:
            table = self._table(side, pixels.device)
            out = functional_call(encoder, {"pos_embed": table}, (pixels,))
        return Features(None, out.last_hidden_state.permute(0, 2, 3, 1))

    def _table(self, side: int, device: torch.device) -> Tensor:
        """Position table (1, h, h, D) for images of this side."""
        if (side, device) not in self._tables:
            table = self.model.vision_encoder.pos_embed
            grid = (side // self.stride, side // self.stride)
            maps = table.float().permute(0, 3, 1, 2)
            resized = F.interpolate(maps, grid, mode="bicubic", align_corners=False)
            self._tables[side, device] = resized.permute(0, 2, 3, 1).to(table.dtype)
        return self._tables[side, device]

    @property
    def encoder(self) -> nn.Module:
        """The image encoder."""
        return self.model.vision_encoder

    @property
    def mask_decoder(self) -> MaskDecoder:
        """The checkpoint's prompt encoder and mask decoder."""
        if self._mask_decoder is None:
            self._mask_decoder = MaskDecoder(self.model)
        return self._mask_decoder

    @property
    def segment(self) -> Segmenter:
        """The mask decoder on this encoder's own features."""
        return Segmenter(self, self._masks)

    def _masks(self, pixels: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        dense = self.encode(pixels).dense
        assert dense is not None
        return self.mask_decoder(dense, points, pixels.shape[-1])

    @classmethod
    def geometry(cls, config: Any, preprocessor: dict[str, Any]) -> Geometry:
        """All from the image encoder's configuration."""
        vision = config.vision_config
        return Geometry(vision.image_size, vision.patch_size, None, vision.output_channels)

    @classmethod
    def vision_part(cls, config: Any) -> tuple[Any, Any]:
        """The image encoder."""
        from transformers import SamVisionModel

        return SamVisionModel, config.vision_config

    @classmethod
    def is_vision_weight(cls, name: str) -> bool:
        """The image encoder's, without the prompt encoder and the mask decoder."""
        return name.startswith("vision_encoder.")

    @classmethod
    def size_error(cls, info: TeacherInfo, size: Size) -> str | None:
        """SAM takes squares whose side is a multiple of its patch."""
        if not isinstance(size, int):
            if size[0] != size[1]:
                return f"{info.spec.weights}: size {size} is not square, and SAM takes squares only"
            size = size[0]
        if info.stride is None or (size > 0 and size % info.stride == 0):
            return None
        near = max(1, round(size / info.stride)) * info.stride
        return (
            f"{info.spec.weights}: size {size} is no multiple of SAM's patch of "
            f"{info.stride} pixels; the nearest is {near}"
        )


class MaskDecoder:
    """SAM's frozen prompt encoder and mask decoder, on dense features of any origin."""

    def __init__(self, model: Any):
        self.model = model

    @torch.no_grad()
    def __call__(self, dense: Tensor, points: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Masks of what is pointed at.

        `dense` (B, h, h, D): features in this SAM's own space. `points` (B, P, 2): x and y in
        pixels of an image of side `size`; each asks for an object of its own. Returns mask logits
        (B, P, M, 4h, 4h) and predicted IoU (B, P, M), float32; M is 3 for published checkpoints.

        Raises:
            ValueError: if the grid is not square, or the batches differ.
        """
        b, h, w, _ = dense.shape
        if h != w or len(points) != b:
            raise ValueError(
                f"dense {tuple(dense.shape)}, points {tuple(points.shape)}: expected "
                "(B, h, h, D) and (B, P, 2)"
            )
        prompt_encoder = self.model.prompt_encoder
        prompt_encoder.image_embedding_size = (h, h)
        prompt_encoder.input_image_size = size
        self.model.config.prompt_encoder_config.image_embedding_size = h
        device = self.model.shared_image_embedding.positional_embedding.device
        with torch.autocast(device.type, enabled=False):
            out = self.model(
                image_embeddings=dense.to(device).float().permute(0, 3, 1, 2),
                input_points=points.to(device).float()[:, :, None],
                input_labels=torch.ones(*points.shape[:2], 1, dtype=torch.long, device=device),
                multimask_output=True,
            )
        return out.pred_masks.to(dense.device), out.iou_scores.to(dense.device)


class Segmenter:
    """Promptable masks of a teacher's own pixels, by its checkpoint's frozen decoder.

    `decode(pixels, points)` answers for one part of a batch: pixels (B, 3, S, S) as the teacher's
    `encode` takes them, points and answers as below.
    """

    def __init__(self, teacher: Teacher, decode: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]):
        self.teacher, self.decode = teacher, decode

    @torch.no_grad()
    def __call__(
        self, pixels: Tensor, points: Tensor, size: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Masks of what is pointed at.

        `pixels` (B, 3, H, W), RGB float in [0, 1], shown at `size` (a side in pixels, None for the
        native one). `points` (B, P, 2): x and y in pixels of the image as shown, 0 the centre of
        the first; each asks for an object of its own. Returns mask logits (B, P, M, 4h, 4h), of h
        dense tokens a side, and predicted IoU (B, P, M), float32; M is 3 for published checkpoints.

        Raises:
            UserError: if the teacher does not take this size.
            TypeError: if the pixels are not floating point.
            ValueError: if there are not points for each image.
        """
        if points.ndim != 3 or (len(points), points.shape[-1]) != (len(pixels), 2):
            raise ValueError(
                f"points {tuple(points.shape)} for pixels {tuple(pixels.shape)}: expected (B, P, 2)"
            )
        at_once = self.teacher.spec.micro_batch or len(pixels)
        points = points.to(self.teacher.device).float()
        with torch.autocast(self.teacher.device.type, enabled=False):
            parts = [
                self.decode(self.teacher.shown(some, size), asked)
                for some, asked in zip(pixels.split(at_once), points.split(at_once), strict=True)
            ]
        masks, iou = (torch.cat(kind) for kind in zip(*parts, strict=True))
        return masks.to(pixels.device), iou.to(pixels.device)
