"""What a teacher's wrapper costs: images per second of the library's bare forward and through it.

    python benchmarks/teachers.py [family ...]

A ViT-S sized model of each family with random weights (a convolutional or hierarchical one of the
library's small size where the family has no ViT-S), 2 images of its native size, float32 and
bfloat16. Bare and wrapped passes alternate in one process; the ratio is the median over pairs.
One JSON object a line: {"name", "value", "unit", "goal", "holds"}.
"""

import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

# This file is called as the package is, and its folder comes first on the path.
sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != Path(__file__).parent]

from teachers import TeacherSpec, load_teacher  # noqa: E402

BATCH, ROUNDS, GOAL = 2, 24, 0.97
WIDTH = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6}
MLP = {"intermediate_size": 1536}
IMAGE = {"patch_size": 16, "image_size": 224}
TEXT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 8}
HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}


@dataclass
class Case:
    """A family's library model, as it is saved; the bare forward of normalised pixels through the
    encoder that was loaded again, which is the library's own class too; the tokens of its spec."""

    model: Any
    bare: Any
    tokens: tuple[str, ...] = ("summary", "dense")


def cases() -> dict[str, Any]:
    """A function of no arguments for each family: it builds the Case."""
    import transformers as t

    def plain(model):
        return Case(model, lambda m, x: m(x))

    def vision(config_class, model_class):
        config = config_class(
            text_config=TEXT | {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
            vision_config=WIDTH | MLP | IMAGE,
        )
        return Case(
            model_class(config.vision_config), lambda m, x: m(x, interpolate_pos_encoding=True)
        )

    def sam():
        windows = {"global_attn_indexes": [2, 5, 8, 11], "mlp_dim": 1536, "num_pos_feats": 128}
        size = {"patch_size": 16, "image_size": 256}
        config = t.SamConfig(vision_config=WIDTH | windows | size, prompt_encoder_config=size)
        return Case(t.SamModel(config), lambda m, x: m.vision_encoder(x), ("dense",))

    def sam2():
        config = t.Sam2Config(vision_config={"image_size": 256})
        return Case(t.Sam2Model(config), lambda m, x: m(x), ("dense",))

    def edgetam():
        arguments = {"in_chans": 3, "features_only": True, "out_indices": [0, 1, 2, 3]}
        backbone = t.TimmWrapperConfig(architecture="repvit_m1", model_args=arguments)
        vision = t.EdgeTamVisionConfig(
            backbone_config=backbone, backbone_feature_sizes=[[64, 64], [32, 32], [16, 16]]
        )
        prompts = {"image_size": 256}
        model = t.EdgeTamModel(t.EdgeTamConfig(vision_config=vision, prompt_encoder_config=prompts))
        return Case(model, lambda m, x: m(x), ("dense",))

    def sam3():
        windows = {
            "window_size": 8,
            "global_attn_indexes": [2, 5, 8, 11],
            "model_type": "sam3_vit_model",
        }
        size = {"patch_size": 14, "image_size": 224, "pretrain_image_size": 224}
        vision = {
            "model_type": "sam3_vision_model",
            "backbone_config": WIDTH | MLP | windows | size,
            "backbone_feature_sizes": [[64, 64], [32, 32], [16, 16]],
        }
        prompts = {"image_size": 224, "patch_size": 14}
        config = t.Sam3TrackerConfig(vision_config=vision, prompt_encoder_config=prompts)
        model = t.Sam3TrackerModel(config)
        return Case(model, lambda m, x: m(x), ("dense",))

    def naflex():
        config = t.Siglip2Config(
            text_config=TEXT | {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
            vision_config=WIDTH | MLP | {"patch_size": 16, "num_patches": 196},
        )
        return Case(t.Siglip2VisionModel(config.vision_config), patchified)

    def depth_anything():
        backbone = {**WIDTH, "patch_size": 14, "image_size": 224, "model_type": "dinov2"}
        config = t.DepthAnythingConfig(
            backbone_config=backbone
            | {"out_indices": [3, 6, 9, 12], "reshape_hidden_states": False}
        )
        model = t.DepthAnythingForDepthEstimation(config)
        return plain(model)

    dino = WIDTH | {"patch_size": 14, "image_size": 224}
    return {
        "dinov2": lambda: plain(t.Dinov2Model(t.Dinov2Config(**dino))),
        "dinov3": lambda: plain(t.DINOv3ViTModel(t.DINOv3ViTConfig(**WIDTH, **MLP, **IMAGE))),
        "depth_anything": depth_anything,
        "siglip": lambda: vision(t.SiglipConfig, t.SiglipVisionModel),
        "siglip2": naflex,
        "clip": lambda: vision(t.CLIPConfig, t.CLIPVisionModel),
        "metaclip": lambda: vision(t.MetaClip2Config, t.MetaClip2VisionModel),
        "radio": lambda: plain(t.RadioModel(t.RadioConfig(**WIDTH, **IMAGE, max_img_size=448))),
        "sam": sam,
        "sam2": sam2,
        "sam3": sam3,
        "edgetam": edgetam,
        "timm": timm_case,
        "open_clip": open_clip_case,
        "student": timm_case,
    }


def patchified(model, pixels):
    """NaFlex takes flattened patches, row by row."""
    side, (b, _, h, w) = 16, pixels.shape
    grid = pixels.unfold(2, side, side).unfold(3, side, side)
    patches = grid.permute(0, 2, 3, 4, 5, 1).reshape(b, -1, side * side * 3)
    shapes = torch.tensor([[h // side, w // side]] * b)
    return model(
        pixel_values=patches,
        pixel_attention_mask=torch.ones(patches.shape[:2], dtype=torch.long),
        spatial_shapes=shapes,
    )


def timm_case():
    import timm

    model = timm.create_model("vit_small_patch16_dinov3_qkvb", num_classes=0)
    return Case(model, lambda m, x: m.forward_features(x))


def open_clip_case():
    from open_clip.model import CLIP

    vision = {"image_size": 224, "layers": 12, "width": 384, "head_width": 64, "patch_size": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 1, "layers": 1}
    model = CLIP(embed_dim=64, vision_cfg=vision, text_cfg=text)
    model.config = {"embed_dim": 64, "vision_cfg": vision, "text_cfg": text}
    return Case(model, open_clip_forward)


def open_clip_forward(model, pixels):
    return model.forward_intermediates(
        pixels,
        indices=[-1],
        normalize_intermediates=True,
        output_fmt="NLC",
        output_extra_tokens=True,
    )


def save(family: str, case: Case, folder: Path) -> None:
    """As the library's users save it."""
    from safetensors.torch import save_file

    model = case.model
    if family == "open_clip":
        config = {
            "model_cfg": model.config,
            "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3},
        }
        (folder / "open_clip_config.json").write_text(json.dumps(config))
        save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    elif family == "timm":
        from timm.models import save_for_hf

        save_for_hf(model, folder, safe_serialization=True)
    elif family == "student":
        from distill.export import Origin, export_student
        from students import Spaces
        from students.encoder import Student

        student = Student(model, "vit_small_patch16_dinov3_qkvb", {}, 224)
        origin = Origin("bench", "student", "stage", 1, [224], "apache-2.0")
        export_student(student, Spaces({}), folder, origin)
    else:
        model.save_pretrained(folder)
        (folder / "preprocessor_config.json").write_text(json.dumps(HALF))


@torch.no_grad()
def measure(family: str, case: Case, dtype: str) -> tuple[float, float, float]:
    """Images per second bare and wrapped, and their ratio (wrapped over bare)."""
    with tempfile.TemporaryDirectory() as folder:
        save(family, case, Path(folder))
        teacher = load_teacher(TeacherSpec(family, folder, tokens=case.tokens, dtype=dtype))
    pixels = torch.rand(BATCH, 3, teacher.size, teacher.size)
    normalised = teacher.norm(pixels).to(teacher.dtype)
    runs = {
        "bare": lambda: case.bare(teacher.model, normalised),
        "wrapped": lambda: teacher(pixels),
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for round_number in range(ROUNDS + 1):
        # In turn first and second: what runs after the other finds other caches.
        for name in sorted(runs, reverse=round_number % 2 == 1):
            began = time.perf_counter()
            runs[name]()
            if round_number:  # the first pass allocates
                times[name].append(time.perf_counter() - began)
    bare, wrapped = times["bare"], times["wrapped"]
    ratio = statistics.median(b / w for b, w in zip(bare, wrapped, strict=True))
    return BATCH / statistics.median(bare), BATCH / statistics.median(wrapped), ratio


def report(name: str, value: float, unit: str, goal: float | None = None) -> None:
    holds = None if goal is None else value >= goal
    line = {"name": name, "value": round(value, 3), "unit": unit, "goal": goal, "holds": holds}
    print(json.dumps(line), flush=True)


def main() -> None:
    known = cases()
    for family in sys.argv[1:] or known:
        for dtype in ("float32", "bfloat16"):
            torch.manual_seed(0)
            bare, wrapped, ratio = measure(family, known[family](), dtype)
            report(f"{family} {dtype}: bare", bare, "images/s")
            report(f"{family} {dtype}: wrapped", wrapped, "images/s")
            report(f"{family} {dtype}: wrapped / bare", ratio, "ratio", GOAL)


if __name__ == "__main__":
    main()
