"""Family `open_clip`: any open_clip model (Ilharco et al., 2021; Cherti et al., 2023)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from students.errors import UserError
from students.features import Features
from students.pixels import Size
from teachers import contents, timm_models
from teachers import open_clip_models as models
from teachers import open_clip_towers as towers
from teachers.checkpoint import Checkpoint
from teachers.spec import FamilyCard, TeacherInfo, TeacherSpec
from teachers.teacher import Teacher, register_family
from teachers.text import TextTower


@register_family("open_clip")
class OpenClipTeacher(Teacher):
    """summary of a CLIP ViT: the pooled token (class token or average) after ln_post and before its
    projection, which the text tower's `project` applies. Of a tower with an attention pool, of
    timm's and of CLIP's ResNets, where pooling and projection are one: the image embedding as
    `encode_image` gives it, not normalised; `project` is then the identity.

    dense: the patch tokens of `forward_intermediates` through the final norm. CoCa has a norm for
    what its pool gives and none for its tokens, which are those of the last block. Of a timm tower
    dense is as in family timm.

    At another size than its own a ViT's position table is resized as by `force_image_size`, once
    per size. Weights that the table says were trained with QuickGELU get it whatever NAME says.
    """

    card = FamilyCard(
        models="open_clip: any model (CLIP ViTs, CoCa, SigLIP, PE and other timm towers, ResNets)",
        summary="pooled token before its projection; of timm towers and attention pools after it",
        dense="patch tokens after the final norm",
        sizes="ViTs any, floors to whole patches; timm towers what timm takes; ResNets their own",
        beside="text tower, earlier layers of ViTs",
        weights="NAME:TAG of open_clip's table, hub id",
    )

    def __init__(self, info: TeacherInfo, checkpoint: Checkpoint, dtype: torch.dtype):
        super().__init__(info, checkpoint, dtype)
        self.model = models.load_image_tower(info.spec, checkpoint)
        self.projection = towers.separate_projection(self.model)
        self.to(dtype)
        self._resized: dict[tuple[int, int, torch.device], Any] = {}
        self._text_tower: OpenClipTextTower | None = None

    def encode(self, pixels: Tensor) -> Features:
        """summary (B, D_s), dense (B, h, w, D_d) of normalised pixels."""
        tower = self._tower(pixels.shape[2], pixels.shape[3], pixels.device)
        wanted = "summary" in self.spec.tokens
        return towers.tower_features(tower, pixels, self.spec.layer, wanted)

    def _tower(self, height: int, width: int, device: torch.device) -> Any:
        if (height, width) == (self.size, self.size):
            return self.model
        key = (height, width, device)
        if key not in self._resized:
            self._resized[key] = towers.at_size(self.model, (height, width))
        return self._resized[key]

    @property
    def text_tower(self) -> OpenClipTextTower:
        """The checkpoint's text encoder, loaded on first use.

        Raises:
            UserError: if its weights are incomplete or its tokeniser is missing.
        """
        if self._text_tower is None:
            tower = OpenClipTextTower(self.spec, self.checkpoint, self.projection, self.dtype)
            self._text_tower = tower.to(self.norm.mean.device)
        return self._text_tower

    @classmethod
    def locate(cls, spec: TeacherSpec) -> Checkpoint:
        """A folder, the cached files of a hub id, or of the hub id that open_clip has for NAME:TAG.

        Raises:
            UserError: if `spec.weights` is none of them.
        """
        return models.locate(spec)

    @classmethod
    def describe(cls, spec: TeacherSpec, checkpoint: Checkpoint) -> TeacherInfo:
        """What open_clip_config.json or open_clip's own table says, without weights and without
        the network.

        Raises:
            UserError: if they are damaged, of no open_clip model, or without pixel statistics.
        """
        if checkpoint.folder is None and not models.is_tag(spec):
            return TeacherInfo(spec, fetched=False, source=checkpoint.source)
        config, preprocessing, source = models.stated(spec, checkpoint)
        mean, std, statistics_from = contents.pixel_statistics(
            spec, checkpoint, preprocessing.get("mean"), preprocessing.get("std"), source
        )
        if checkpoint.fetched:
            contents.weight_shapes(checkpoint)  # a clear error for a damaged file
        tower, parameters = models.skeleton(spec, config)
        size = tower.image_size if isinstance(tower.image_size, int) else min(tower.image_size)
        try:
            with torch.no_grad():
                pixels = torch.empty(1, 3, size, size, device="meta")
                features = towers.tower_features(tower, pixels, None, wanted=True)
        except Exception as error:  # whatever a tower's own code raises
            reason = timm_models.one_line(error)
            raise UserError(f"{spec.weights}: its image tower cannot be used: {reason}") from None
        summary, dense = features.summary, features.dense
        if dense is None and "dense" in spec.tokens:
            raise UserError(f"{spec.weights}: gives no map of the image; set tokens to [summary]")
        return TeacherInfo(
            spec,
            fetched=checkpoint.fetched,
            source=checkpoint.source,
            size=size,
            stride=towers.stride(tower),
            summary_dim=None if summary is None else summary.shape[-1],
            dense_dim=None if dense is None else dense.shape[-1],
            parameters=parameters,
            mean=mean,
            std=std,
            statistics_from=statistics_from,
            licence=contents.licence(checkpoint),
            layers=towers.depth(tower),
        )

    @classmethod
    def size_error(cls, info: TeacherInfo, size: Size) -> str | None:
        """Why the tower does not take this size, by its own account, or None."""
        problem = super().size_error(info, size)
        sides = (size, size) if isinstance(size, int) else size
        if problem or info.stride is None or sides == (info.size, info.size):
            return problem
        checkpoint = cls.locate(info.spec)
        if checkpoint.folder is None and not models.is_tag(info.spec):
            return None
        tower, _ = models.skeleton(info.spec, models.stated(info.spec, checkpoint)[0])
        reason = towers.refusal(tower, sides)
        return reason and (
            f"{info.spec.weights}: its image tower does not take size {size}: {reason}; its own "
            f"is {info.size}"
        )


class OpenClipTextTower(TextTower):
    """An open_clip text encoder with its own tokeniser, and the projection of the images' summaries
    into its space, where that is not in the summaries already."""

    def __init__(
        self,
        spec: TeacherSpec,
        checkpoint: Checkpoint,
        projection: nn.Parameter | None,
        dtype: torch.dtype,
    ):
        super().__init__(models.load_text_tower(spec, checkpoint).to(dtype))
        self.projection = projection
        self.tokenizer = models.load_tokenizer(spec, checkpoint)

    def embed(self, texts: list[str]) -> Tensor:
        """Embeddings (N, D) of N texts, as the model gives them."""
        return self.model.encode_text(self.tokenizer(texts).to(self.device))

    def project(self, summary: Tensor) -> Tensor:
        """Summaries (..., D_s) through the image tower's projection: (..., D), in the teacher's
        dtype; as they are where it is in them."""
        if self.projection is None:
            return summary
        with torch.autocast(self.device.type, enabled=False):
            return summary.to(self.projection) @ self.projection
