"""recipes/folder.yaml on photographs, with random teachers of true widths and few blocks."""

import json

import pytest
import torch
from PIL import Image

from distill.runner import run
from students import Spaces, load_student

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
SMALL = {"hidden_size": 384, "num_hidden_layers": 3, "num_attention_heads": 6}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """JPEG photographs that scikit-image and scikit-learn bring along, in folders of their own."""
    from skimage import data
    from sklearn.datasets import load_sample_images

    folder = tmp_path_factory.mktemp("photos")
    (folder / "deep" / "er").mkdir(parents=True)
    pictures = [data.astronaut(), data.coffee(), data.chelsea(), data.rocket()]
    pictures += load_sample_images().images
    for number, picture in enumerate(pictures):
        where = folder if number % 2 else folder / "deep" / "er"
        Image.fromarray(picture).save(where / f"{number}.jpg", quality=90)
    return folder


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    """DINOv2, SigLIP and SAM of a ViT-S's width, as transformers saves them."""
    from transformers import (
        Dinov2Config,
        Dinov2Model,
        SamConfig,
        SamModel,
        SiglipConfig,
        SiglipModel,
    )

    torch.manual_seed(0)
    home = tmp_path_factory.mktemp("teachers")
    models = {
        "dinov2": (
            Dinov2Model(Dinov2Config(**SMALL, patch_size=14, image_size=518)),
            IMAGENET | {"crop_size": {"height": 224, "width": 224}},
        ),
        "siglip": (
            SiglipModel(
                SiglipConfig(
                    text_config={
                        "hidden_size": 64,
                        "num_hidden_layers": 1,
                        "num_attention_heads": 2,
                        "intermediate_size": 64,
                        "vocab_size": 100,
                        "projection_size": 384,
                        "bos_token_id": 1,
                        "eos_token_id": 2,
                    },
                    vision_config={
                        **SMALL,
                        "intermediate_size": 1536,
                        "patch_size": 16,
                        "image_size": 224,
                    },
                )
            ),
            HALF,
        ),
        "sam": (
            SamModel(
                SamConfig(
                    vision_config={
                        **SMALL,
                        "mlp_dim": 1536,
                        "global_attn_indexes": [1],
                        "num_pos_feats": 128,
                    }
                )
            ),
            IMAGENET,
        ),
    }
    for name, (model, preprocessor) in models.items():
        model.save_pretrained(home / name)
        (home / name / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return home


@pytest.mark.slow
def test_photographs_become_students(photos, teachers, tmp_path):
    """Grids of 16x16, 14x14 and 32x32 tokens meet students of 16x16 and 8x8."""
    short = [
        f"stages.{stage}.train.{key}={value}"
        for stage in ("proxy", "fixed", "multires")
        for key, value in {"steps": 2, "batch_size": 2, "warmup": 0, "log_every": 1}.items()
    ]
    result = run(
        "folder",
        overrides=[
            f"data.train.photos.source=folder:{photos}",
            "data.workers=1",
            *(f"teachers.{n}.weights={teachers / n}" for n in ("dinov2", "siglip", "sam")),
            # A ViT-L proxy is a matter of memory here, not of another path.
            "stages.proxy.students.proxy.arch=vit_small_patch16_dinov3_qkvb",
            *(f"stages.{stage}.calibration_batches=1" for stage in ("proxy", "fixed", "multires")),
            "stages.multires.image_sizes=[256,384]",
            *short,
            "validate=null",
        ],
        run_dir=tmp_path / "run",
        quiet=True,
    )
    pixels = torch.rand(1, 3, 256, 256)
    for name, width, grid in (("vit_s", 384, 16), ("convnext_t", 768, 8)):
        folder = result.student(f"multires/{name}")
        student = load_student(folder).eval()
        with torch.no_grad():
            features = student(pixels)
            reached = {t: chain(features) for t, chain in Spaces.load(folder).chains().items()}
        assert features.summary.shape == (1, width)
        assert features.dense.shape == (1, grid, grid, width)
        assert reached["dinov2"].dense.shape[-1] == 384
        assert reached["siglip"].summary.shape == (1, 384)
        assert reached["sam"].dense.shape[-1] == 256
        assert reached["sam"].summary is None
        assert all(
            torch.isfinite(t).all()
            for f in reached.values()
            for t in (f.summary, f.dense)
            if t is not None
        )
    lines = [json.loads(s) for s in (tmp_path / "run/proxy/log.jsonl").read_text().splitlines()]
    assert set(lines[-1]["teachers"]) == {"dinov2", "siglip", "sam"}
    assert (tmp_path / "run/report.html").exists()
