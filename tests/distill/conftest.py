"""A tiny world for tests of the engine: two random teachers in real files, scenes, a recipe."""

import json
from typing import NamedTuple

import pytest
import torch

from distill.recipe.load import from_dict
from teachers import Teacher


@pytest.fixture(scope="session", autouse=True)
def scenes_cache(tmp_path_factory):
    """Scenes that tests draw are kept for the test session alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISTILL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def teacher_folders(tmp_path_factory):
    """Folders of a DINOv2 and a SAM with random weights, as transformers writes them."""
    from transformers import Dinov2Config, Dinov2Model, SamConfig, SamModel

    torch.manual_seed(0)
    statistics = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    home = tmp_path_factory.mktemp("teachers")
    dinov2 = Dinov2Model(
        Dinov2Config(
            hidden_size=16, num_hidden_layers=1, num_attention_heads=2, patch_size=8, image_size=32
        )
    )
    sam = SamModel(
        SamConfig(
            vision_config={
                "hidden_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "output_channels": 8,
                "patch_size": 8,
                "image_size": 32,
                "window_size": 0,
                "global_attn_indexes": [0],
                "num_pos_feats": 4,
                "mlp_dim": 32,
            },
            prompt_encoder_config={"hidden_size": 8, "image_size": 32, "patch_size": 8},
            mask_decoder_config={
                "hidden_size": 8,
                "mlp_dim": 16,
                "num_attention_heads": 2,
                "iou_head_hidden_dim": 8,
            },
        )
    )
    for name, model in {"dinov2": dinov2, "sam": sam}.items():
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        model.save_pretrained(home / name)
        (home / name / "preprocessor_config.json").write_text(json.dumps(statistics))
    return home


VIT = {"embed_dim": 16, "depth": 1, "num_heads": 2, "patch_size": 8}
CONVNEXT = {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16], "output_stride": 8}


@pytest.fixture
def tiny(teacher_folders):
    """A recipe of two stages as a nested dict: proxy, then a ViT and a ConvNeXt at two sizes."""
    train = {"steps": 6, "batch_size": 4, "lr": 1e-3, "log_every": 2, "save_every": 3}
    train |= {"precision": "fp32"}  # as the plain loops that it is compared with
    vit = "vit_small_patch16_dinov3_qkvb"
    return {
        "name": "tiny",
        "data": {"train": {"scenes": {"source": "scenes:count=16,size=32"}}, "workers": 0},
        "teachers": {
            "dinov2": {"family": "dinov2", "weights": str(teacher_folders / "dinov2")},
            "sam": {
                "family": "sam",
                "weights": str(teacher_folders / "sam"),
                "tokens": ["dense"],
                "sizes": [32, 48],
            },
        },
        "stages": {
            "proxy": {
                "students": {
                    "proxy": {
                        "arch": vit,
                        "model": dict(VIT),
                        "proxy": True,
                        "teachers": ["dinov2", "sam"],
                    }
                },
                "image_sizes": [32],
                "adapter": {"hidden": 8},
                "calibration_batches": 3,
                "train": dict(train),
            },
            "multires": {
                "students": {
                    "vit": {"arch": vit, "model": dict(VIT), "teachers": ["proxy/proxy"]},
                    "convnext": {
                        "arch": "convnext_tiny",
                        "model": dict(CONVNEXT),
                        "teachers": ["proxy/proxy", "sam"],
                    },
                },
                "image_sizes": [32, 48],
                "adapter": {"hidden": 8},
                "calibration_batches": 3,
                "train": dict(train),
            },
        },
        "validate": None,
    }


class TeacherCall(NamedTuple):
    """One forward pass of a teacher."""

    family: str
    images: int


@pytest.fixture
def teacher_calls(monkeypatch):
    """Every forward pass of a teacher from here on, in order; a list that may be cleared."""
    calls = []
    forward = Teacher.forward

    def counted(self, pixels, size=None):
        calls.append(TeacherCall(self.info.spec.family, len(pixels)))
        return forward(self, pixels, size)

    monkeypatch.setattr(Teacher, "forward", counted)
    return calls


@pytest.fixture
def recipe(tiny):
    return from_dict(tiny)
