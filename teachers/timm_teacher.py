"""Family `timm`: any timm model that has weights (Wightman, 2019): PE, EUPE, EVA, AIMv2, ..."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from students.encoder import dense_map, stride_of
from students.errors import UserError
from students.features import Features
from students.pixels import Size
from teachers import contents, timm_models
from teachers.checkpoint import Checkpoint
from teachers.spec import FamilyCard, TeacherInfo, TeacherSpec
from teachers.teacher import Teacher, register_family


@register_family("timm")
class TimmTeacher(Teacher):
    """summary: the attention pool's where the model has one, else the class token, else what the
    model pools. dense: what `forward_features` gives without its prefix tokens; where the final
    norm is in the head (ConvNeXt), after it.

    timm pools the average of DINOv3 and EUPE by default; the class token is taken all the same. A
    ViT whose only norm follows its pool (fc_norm: EVA-02 and BEiT that pool the average) norms no
    token, so its dense tokens and its class token are those of the last block. A RADIO ViT is
    NVIDIA's at its own size; at others timm says naflexvit_*_radio_* are.
    """

    card = FamilyCard(
        models="timm: any model with weights (PE, EUPE, EVA, AIMv2, DINO, SigLIP, CLIP, ConvNeXt)",
        summary="attention pool, else class token, else the model's own pool",
        dense="forward_features without prefix tokens, after the final norm",
        sizes="what timm takes: most ViTs multiples of the patch, convolutional nets any",
        beside="earlier layers of ViTs",
        weights="timm name with or without tag, hub id",
    )

    def __init__(self, info: TeacherInfo, checkpoint: Checkpoint, dtype: torch.dtype):
        super().__init__(info, checkpoint, dtype)
        self.model = timm_models.load_timm(info.spec, checkpoint).to(dtype)

    def encode(self, pixels: Tensor) -> Features:
        """summary (B, D_s), dense (B, h, w, D_d) of normalised pixels."""
        wanted = "summary" in self.spec.tokens
        pool = partial(self.summary, self.model) if wanted else None
        return timm_features(self.model, pixels, self.spec.layer, pool)

    @classmethod
    def summary(cls, model: Any, out: Any) -> Tensor:
        """Summaries (B, D_s) in `out`, which the model's `forward_features` gave."""
        if _has_class_token(model) and getattr(model, "attn_pool", None) is None:
            return out[:, 0]
        return model.forward_head(out, pre_logits=True)

    @classmethod
    def locate(cls, spec: TeacherSpec) -> Checkpoint:
        """A folder, the cached files of a hub id, or of the hub id that timm has for a name.

        Raises:
            UserError: if `spec.weights` is none of them, or a name without weights.
        """
        return timm_models.locate(spec)

    @classmethod
    def describe(cls, spec: TeacherSpec, checkpoint: Checkpoint) -> TeacherInfo:
        """What config.json or timm's own table says, without weights and without the network.

        Raises:
            UserError: if they are damaged, of no timm model, or without pixel statistics; if the
                model has not the tokens that are asked for.
        """
        if timm_models.create_name(spec, checkpoint) is None:
            return TeacherInfo(spec, fetched=False, source=checkpoint.source)
        cfg, source = timm_models.stated(spec, checkpoint)
        mean, std, statistics_from = contents.pixel_statistics(
            spec, checkpoint, cfg.get("mean"), cfg.get("std"), source
        )
        if checkpoint.fetched:
            contents.weight_shapes(checkpoint)  # a clear error for a damaged file
        model = timm_models.skeleton(spec, checkpoint)
        # Of a height and a width (Sapiens sees persons) the side of a square that is in both.
        size = min(model.pretrained_cfg["input_size"][1:])
        named = f"{spec.weights}: {timm_models.architecture(model)}"
        try:
            with torch.no_grad():
                pixels = torch.empty(1, 3, size, size, device="meta")
                out = model.forward_features(pixels)
                summary, dense = cls.summary(model, out), dense_map(model, out, pixels)
        except Exception as error:  # whatever a model's own code raises
            raise UserError(f"{named} cannot be used: {timm_models.one_line(error)}") from None
        if dense is None and "dense" in spec.tokens:
            raise UserError(f"{named} gives no map of the image; set tokens to [summary]")
        return TeacherInfo(
            spec,
            fetched=checkpoint.fetched,
            source=checkpoint.source,
            size=size,
            stride=stride_of(model),
            summary_dim=summary.shape[-1],
            dense_dim=None if dense is None else dense.shape[-1],
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            mean=mean,
            std=std,
            statistics_from=statistics_from,
            licence=cfg.get("license") or contents.licence(checkpoint),
            layers=column_depth(model),
        )

    @classmethod
    def size_error(cls, info: TeacherInfo, size: Size) -> str | None:
        """Why timm's model does not take this size, by its own account, or None."""
        problem = super().size_error(info, size)
        sides = (size, size) if isinstance(size, int) else size
        if problem or info.stride is None or sides == (info.size, info.size):
            return problem
        checkpoint = cls.locate(info.spec)
        if timm_models.create_name(info.spec, checkpoint) is None:
            return None
        model = timm_models.skeleton(info.spec, checkpoint)
        reason = timm_models.refusal(model, sides, dense=info.dense_dim is not None)
        return reason and (
            f"{info.spec.weights}: {timm_models.architecture(model)} does not take size {size}: "
            f"{reason}; its own is {info.size}"
        )


def timm_features(
    model: Any, pixels: Tensor, layer: int | None, pool: Callable[[Any], Tensor] | None
) -> Features:
    """Features of normalised pixels (B, 3, H, W) through a timm model.

    `pool` makes the summary of what `forward_features` gives; None: no summary. `layer`: dense
    tokens after this block, where `column_depth` says there is a column of them (None: the last).
    """
    if layer is None:
        out = model.forward_features(pixels)
        return Features(pool and pool(out), dense_map(model, out, pixels))
    given = model.forward_intermediates(
        pixels,
        indices=[layer - 1],
        norm=True,
        output_fmt="NLC",
        stop_early=pool is None,
        intermediates_only=pool is None,
    )
    out, (tokens,) = (None, given) if pool is None else given
    stride = stride_of(model)
    grid = (pixels.shape[2] // stride, pixels.shape[3] // stride)
    return Features(pool and pool(out), tokens.unflatten(1, grid))


def column_depth(model: Any) -> int | None:
    """How many blocks there are, where tokens go from any of them through the one final norm."""
    from timm.models.beit import Beit
    from timm.models.eva import Eva
    from timm.models.naflexvit import NaFlexVit
    from timm.models.vision_transformer import VisionTransformer

    column = isinstance(model, Beit | Eva | NaFlexVit | VisionTransformer)
    return len(model.blocks) if column else None


def _has_class_token(model: Any) -> bool:
    if not getattr(model, "num_prefix_tokens", 0):
        return False
    return getattr(model, "has_class_token", getattr(model, "cls_token", None) is not None)
