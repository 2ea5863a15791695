"""Tiny checkpoints with random weights, written by the library's own classes."""

import json
from pathlib import Path

import pytest
import tiny_checkpoints
import torch

STATISTICS = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.25, 0.3]}


def randomise(model):
    """Fresh values for every parameter: an initial value of 0 or 1 would hide a step left out."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * (0.3 if p.ndim > 1 else 0.5))
            if "norm" in name or "lambda" in name:
                p.add_(1)
    return model.eval()


def small_model(kind: str, **changes):
    """The library's model of this kind, on 32-pixel images in patches of 4 (8x8 tokens)."""
    import transformers as t

    shared = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3}
    image = {"patch_size": 4, "image_size": 32} | changes
    if kind == "dinov2":
        model = t.Dinov2Model(t.Dinov2Config(**shared, **image))
    elif kind == "dinov2_with_registers":
        model = t.Dinov2WithRegistersModel(
            t.Dinov2WithRegistersConfig(**shared, **image, num_register_tokens=3)
        )
    elif kind in ("siglip", "siglip_vision_model"):
        shared["intermediate_size"] = 48
        text = {"vocab_size": 12, "max_position_embeddings": 7, "projection_size": 24}
        text |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
        config = t.SiglipConfig(text_config=shared | text, vision_config=shared | image)
        whole = kind == "siglip"
        model = t.SiglipModel(config) if whole else t.SiglipVisionModel(config.vision_config)
    elif kind == "sam":
        windows = {"window_size": 3, "global_attn_indexes": [1], "mlp_dim": 32}
        vision = shared | image | windows | {"output_channels": 16, "num_pos_feats": 8}
        decoder = {"mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16}
        model = t.SamModel(
            t.SamConfig(
                vision_config=vision,
                prompt_encoder_config={"hidden_size": 16, **image},
                mask_decoder_config={"hidden_size": 16, **decoder},
            )
        )
    else:
        model = tiny_checkpoints.build(kind)
    return randomise(model)


def write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "</s>", "<unk>", "a", "red", "blue", "star", "ring", "and", "of"]
    vocabulary = {word: i for i, word in enumerate(words)}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.normalizer = normalizers.Replace("blau", "blue")
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """checkpoint(kind) -> (folder, the library's model that was saved in it), made once."""
    made = {}

    def make(kind: str):
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            model = small_model(kind)
            model.save_pretrained(folder)
            (folder / "preprocessor_config.json").write_text(json.dumps(STATISTICS))
            if kind == "siglip":
                write_tokenizer(folder)
            if kind in ("siglip2", "clip", "metaclip_2"):
                tiny_checkpoints.write_tokenizer(kind, folder)
            made[kind] = folder, model
        return made[kind]

    return make


@pytest.fixture
def small():
    return small_model


@pytest.fixture
def normalise():
    """Pixels in [0, 1] by the statistics above, channel by channel."""

    def apply(pixels):
        channels = zip(
            pixels.unbind(1), STATISTICS["image_mean"], STATISTICS["image_std"], strict=True
        )
        return torch.stack([(c - mean) / std for c, mean, std in channels], 1)

    return apply


@pytest.fixture
def pixels():
    """pixels(height, width): three images of noise in [0, 1]."""

    def make(height: int, width: int | None = None):
        generator = torch.Generator().manual_seed(2)
        return torch.rand(3, 3, height, width or height, generator=generator)

    return make
