"""The library's tiny models beyond conftest's: KINDS names the family of each."""

import torch

KINDS = {
    "dinov3_vit": "dinov3",
    "dinov3_convnext": "dinov3",
    "depth_anything": "depth_anything",
    "siglip2": "siglip2",
    "siglip2_vision_model": "siglip2",
    "clip": "clip",
    "clip_vision_model": "clip",
    "clip_with_projection": "clip",
    "metaclip_2": "metaclip",
    "metaclip_2_vision_model": "metaclip",
    "radio": "radio",
}
SHARED = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3}
IMAGE = {"patch_size": 4, "image_size": 32}
MLP = {"intermediate_size": 48}

# A text of a CLIP is <s> = 0, its words, </s> = 2, then <pad> = 1; <unk> = 3.
WORDS = ["<s>", "<pad>", "</s>", "<unk>", "a", "red", "blue", "star", "ring", "and", "of", "Red"]


def build(kind: str):
    """The library's model of this kind, as its configuration makes it."""
    import transformers as t

    vision = SHARED | IMAGE | MLP
    text = SHARED | MLP | {"vocab_size": 12, "max_position_embeddings": 7, "hidden_size": 12}
    if kind == "dinov3_vit":
        return t.DINOv3ViTModel(t.DINOv3ViTConfig(**vision, num_register_tokens=2))
    if kind == "dinov3_convnext":
        sizes = {"hidden_sizes": [6, 8, 10, 12], "depths": [1, 1, 2, 1], "image_size": 64}
        return t.DINOv3ConvNextModel(t.DINOv3ConvNextConfig(**sizes))
    if kind == "depth_anything":
        backbone = {"out_indices": [1, 3], "reshape_hidden_states": False, "model_type": "dinov2"}
        neck = {"reassemble_hidden_size": 24, "reassemble_factors": [2, 1], "patch_size": 4}
        neck |= {"neck_hidden_sizes": [6, 8], "fusion_hidden_size": 6, "head_hidden_size": 4}
        config = t.DepthAnythingConfig(backbone_config=SHARED | IMAGE | backbone, **neck)
        return t.DepthAnythingForDepthEstimation(config)
    if kind.startswith("siglip2"):
        vision = SHARED | MLP | {"patch_size": 4, "num_patches": 64}
        text |= {"hidden_size": 24, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
        config = t.Siglip2Config(text_config=text, vision_config=vision)
        whole = kind == "siglip2"
        return t.Siglip2Model(config) if whole else t.Siglip2VisionModel(config.vision_config)
    if kind == "radio":
        tokens = {"num_cls_tokens": 3, "num_registers": 2, "summary_idxs": [0, 2]}
        model = t.RadioModel(t.RadioConfig(**SHARED, **IMAGE, **tokens, max_img_size=64))
        model.input_conditioner.norm_mean.copy_(torch.tensor([0.3, 0.5, 0.7]).view(3, 1, 1))
        model.input_conditioner.norm_std.copy_(torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1))
        return model
    # The towers' own projection_dim is not the whole model's, as in some published checkpoints.
    text |= {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    if kind == "clip":
        text |= {"eos_token_id": 11}
    name = "MetaClip2" if kind.startswith("metaclip_2") else "CLIP"
    config = getattr(t, f"{name}Config")(text_config=text, vision_config=vision, projection_dim=10)
    if kind in ("clip", "metaclip_2"):
        return getattr(t, f"{name}Model")(config)
    if kind == "clip_with_projection":
        return t.CLIPVisionModelWithProjection(config.vision_config)
    return getattr(t, f"{name}VisionModel")(config.vision_config)


def write_tokenizer(kind, folder) -> None:
    """For CLIP and NaFlex the library's own classes; for MetaCLIP 2 words between <s> and </s>."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import CLIPTokenizer, PreTrainedTokenizerFast, Siglip2Tokenizer

    if kind == "clip":
        letters = ["a</w>", "r", "e", "d</w>", "re", "red</w>", "b</w>", "b", "d", "l"]
        merges = [("r", "e"), ("re", "d</w>")]
        ends = ["<|startoftext|>", "<|endoftext|>"]
        vocabulary = {piece: i for i, piece in enumerate(letters + ends)}
        CLIPTokenizer(vocabulary, merges, model_max_length=7).save_pretrained(folder)
        return
    if kind == "siglip2":
        pieces = [
            "<pad>",
            "<eos>",
            "<bos>",
            "<unk>",
            "<mask>",
            "a",
            "▁",
            "r",
            "e",
            "d",
            "re",
            "red",
        ]
        vocabulary = {piece: i for i, piece in enumerate(pieces)}
        tokenizer = Siglip2Tokenizer(vocabulary, [("r", "e"), ("re", "d")], padding_side="right")
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="$A <eos>", special_tokens=[("<eos>", 1)]
        )
        tokenizer.save_pretrained(folder)
        return
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    special = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=inner, **special).save_pretrained(folder)
