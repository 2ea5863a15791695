"""The library's tiny SAM 2, EdgeTAM and SAM 3, with random weights: MODELS names their classes."""

import json
from functools import cache
from pathlib import Path

import torch

MODELS = {
    "sam2": "Sam2Model",
    "sam2_video": "Sam2VideoModel",
    "edgetam": "EdgeTamModel",
    "edgetam_video": "EdgeTamVideoModel",
    "sam3": "Sam3Model",
    "sam3_video": "Sam3VideoModel",
    "sam3_tracker": "Sam3TrackerModel",
    "sam3_tracker_video": "Sam3TrackerVideoModel",
}
DECODER = {"hidden_size": 16, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16}
MEMORY = {
    "memory_attention_hidden_size": 16,
    "memory_attention_num_layers": 1,
    "memory_attention_rope_feat_sizes": [4, 4],
    "memory_encoder_hidden_size": 16,
    "memory_encoder_output_channels": 8,
    "mask_downsampler_embed_dim": 16,
    "memory_fuser_embed_dim": 16,
    "memory_fuser_intermediate_dim": 16,
    "memory_fuser_num_layers": 1,
}
RESAMPLER = {
    "memory_attention_mlp_hidden_size": 16,
    "memory_attention_rope_k_sizes": [2, 2],
    "perceiver_resampler_hidden_size": 8,
    "perceiver_resampler_num_latents": 4,
    "perceiver_resampler_num_latents_2d": 4,
    "perceiver_resampler_mlp_intermediate_size": 8,
    "perceiver_resampler_attention_head_dim": 8,
    "perceiver_resampler_num_layers": 1,
}
WIDTHS = [8, 16, 24, 32]


def build(kind: str, size: int = 64, **trunk):
    """The library's model of this kind for images of this side, its weights as a fixed seed draws
    them. Tokens of 16 pixels (SAM 3: 14); `trunk`: what else the trunk's configuration says."""
    import transformers as t

    torch.manual_seed(0)
    name = MODELS[kind]
    patch = 14 if kind.startswith("sam3") else 16
    sides = [[finer * (size // patch)] * 2 for finer in (4, 2, 1)]
    vision = {"fpn_hidden_size": 16, "backbone_feature_sizes": sides}
    whole = {
        "prompt_encoder_config": {"hidden_size": 16, "image_size": size, "patch_size": patch},
        "mask_decoder_config": DECODER,
    }
    if kind.endswith("_video"):
        whole |= MEMORY | {"image_size": size}
        feed_forward = {"memory_attention_feed_forward_hidden_size": 16}
        whole |= RESAMPLER if kind.startswith("edgetam") else feed_forward
    if kind.startswith("sam3"):
        config = _sam3(kind, size, vision, whole, trunk)
    else:
        make = _repvit if kind.startswith("edgetam") else _hiera
        whole["vision_config"] = make(vision | {"backbone_channel_list": WIDTHS[::-1]}, trunk)
        config = getattr(t, name.replace("Model", "Config"))(**whole)
    return randomise(getattr(t, name)(config))


def randomise(model):
    """Fresh values for all that is loaded, batch norms' running statistics too: an initial value
    of 0 or 1 would hide a step left out."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if not value.is_floating_point():
                continue
            inputs = value[0].numel() if value.ndim > 1 else 10
            value.copy_(torch.randn(value.shape, generator=generator) * inputs**-0.5)
            if "norm" in name or ".bn." in name:
                value.add_(1)
            if name.endswith("running_var"):
                value.abs_().add_(0.5)
    return model.eval()


@cache
def saved(kind: str, folder: Path):
    """(folder of its own below `folder`, the library's model saved in it), made once."""
    place, model = folder / kind, build(kind, 56 if kind.startswith("sam3") else 64)
    model.save_pretrained(place)
    statistics = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.25, 0.3]}
    (place / "preprocessor_config.json").write_text(json.dumps(statistics))
    return place, model


def _hiera(vision, trunk):
    from transformers import Sam2HieraDetConfig, Sam2VisionConfig

    backbone = {
        "hidden_size": WIDTHS[0],
        "blocks_per_stage": [1, 2, 3, 2],
        "embed_dim_per_stage": WIDTHS,
        "num_attention_heads_per_stage": [1, 2, 2, 4],
        "window_size_per_stage": [8, 4, 4, 2],
        "window_positional_embedding_background_size": [3, 3],
        "global_attention_blocks": [5],
    }
    return Sam2VisionConfig(backbone_config=Sam2HieraDetConfig(**backbone | trunk), **vision)


def _repvit(vision, trunk):
    from transformers import EdgeTamVisionConfig, TimmWrapperConfig

    arguments = {"in_chans": 3, "features_only": True, "out_indices": [0, 1, 2, 3]}
    arguments |= {"embed_dim": WIDTHS, "depth": [1, 1, 2, 1]} | trunk
    backbone = TimmWrapperConfig(architecture="repvit_m1", model_args=arguments)
    return EdgeTamVisionConfig(backbone_config=backbone, **vision)


def _sam3(kind, size, vision, tracker, trunk):
    import transformers as t

    backbone = {
        "model_type": "sam3_vit_model",
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": size,
        "patch_size": 14,
        "window_size": 2,
        "global_attn_indexes": [1],
        "pretrain_image_size": 28,
    }
    vision |= {"model_type": "sam3_vision_model", "backbone_config": backbone | trunk}
    tracker |= {"vision_config": vision}
    if "tracker" in kind:
        return getattr(t, MODELS[kind].replace("Model", "Config"))(**tracker)
    text = {"vocab_size": 12, "hidden_size": 16, "intermediate_size": 16, "projection_dim": 16}
    text |= {"num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 8}
    text |= {"model_type": "clip_text_model", "bos_token_id": 0, "eos_token_id": 1}
    part = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16, "num_layers": 1}
    detector = {
        "vision_config": vision,
        "text_config": text | {"pad_token_id": 2},
        "geometry_encoder_config": part,
        "detr_encoder_config": part,
        "detr_decoder_config": part | {"num_queries": 4},
        "mask_decoder_config": {"hidden_size": 16, "num_attention_heads": 2},
    }
    if kind == "sam3":
        return t.Sam3Config(**detector)
    return t.Sam3VideoConfig(
        detector_config=detector | {"model_type": "sam3"},
        tracker_config=tracker | {"model_type": "sam3_tracker_video"},
    )
