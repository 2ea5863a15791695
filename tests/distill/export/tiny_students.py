"""Tiny students in a run's folder, as a run leaves them, and a process without this project."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch

import teachers
from distill.export import Origin, export_student
from distill.recipe.load import from_dict, to_yaml
from students import Space, Spaces, build_student
from students.moments import Moments

BUILTIN = Path(teachers.__file__).parent / "builtin"
VIT = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8}
ARCHITECTURES = {
    "vit": ("vit_small_patch16_dinov3_qkvb", VIT),
    "plain_vit": ("vit_tiny_patch16_224", VIT),
    "convnext": (
        "convnext_tiny",
        {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32], "output_stride": 8},
    ),
}
SECRET = "hf_aSecretOfTheDataThatNobodyMaySee"


def recipe_values():
    """A recipe of two stages whose data come from an address with a token in it."""
    vit = {"arch": ARCHITECTURES["vit"][0], "model": dict(VIT)}
    train = {"steps": 6, "batch_size": 4, "lr": 1e-3}
    own = {
        name: {"arch": arch, "model": dict(model), "teachers": ["proxy/proxy", "dinov2"]}
        for name, (arch, model) in ARCHITECTURES.items()
    }
    return {
        "name": "demo",
        "data": {"train": {"photos": {"source": f"webdataset:https://h/x.tar?token={SECRET}"}}},
        "teachers": {
            "dinov2": {"family": "dinov2", "weights": str(BUILTIN / "dinov2-tiny")},
            "siglip": {"family": "siglip", "weights": str(BUILTIN / "siglip-tiny")},
            "sam": {
                "family": "sam",
                "weights": str(BUILTIN / "sam-tiny"),
                "tokens": ["dense"],
            },
        },
        "stages": {
            "proxy": {
                "students": {"proxy": {**vit, "proxy": True, "teachers": ["siglip", "sam"]}},
                "image_sizes": [32],
                "train": dict(train),
            },
            "fixed": {"students": own, "image_sizes": [32, 64], "train": {**train, "steps": 9}},
        },
        "export": {"licence": "apache-2.0", "author": "[b]me: and | you[/b]"},
    }


def widths(teacher):
    """Widths of the built-in teacher's summary and dense features."""
    from teachers import TeacherSpec, describe_teacher

    info = describe_teacher(TeacherSpec(teacher, str(BUILTIN / f"{teacher}-tiny")))
    return {
        kind: width
        for kind, width in (("summary", info.summary_dim), ("dense", info.dense_dim))
        if width is not None
    }


def make_student(folder, name, stage="fixed", clip=None):
    """A student with random weights in a run's folder, with a direct way to dinov2 and chains by
    way of a proxy to siglip and sam; and to the CLIP of a folder, if there is one. Its adapters
    and normalisers are of all kinds; that of unic, a ladder, is in no chain."""
    arch, overrides = ARCHITECTURES[name]
    student = build_student(arch, size=32, overrides=overrides).eval()
    generator = torch.Generator().manual_seed(3)

    def random(tensor, scale=0.1):
        return scale * torch.randn(tensor.shape, generator=generator)

    def space(ways, **config):
        made = Space(ways, hidden=24, **config)
        with torch.no_grad():
            for parameter in made.adapters.parameters():
                parameter.add_(random(parameter))
            for kind, normaliser in made.normalisers.items():
                width = normaliser.width
                moments = Moments(width, covariance=True)
                rows = random(torch.empty(2 * width, width), 1.0)
                moments.update(rows @ random(torch.eye(width), width**-0.5) + 0.3)
                normaliser.fit(moments)
                made.scales[kind].mul_(1.7)
        return made

    with torch.no_grad():  # fresh norms and layer scales would hide a mix-up
        for parameter in student.parameters():
            parameter.add_(random(parameter))
    both = {"summary": (32, 20), "dense": (32, 20)}
    steps = {
        ("student", "proxy/proxy"): space(both, adapter="attention", depth=2),
        ("student", "dinov2"): space(
            {kind: (32, width) for kind, width in widths("dinov2").items()},
            adapter="linear",
            normaliser="none",
        ),
    }
    for teacher, adapter, normaliser in (("siglip", "mlp", "phi_s"), ("sam", "conv", "ema")):
        ways = {kind: (20, width) for kind, width in widths(teacher).items()}
        steps["proxy/proxy", teacher] = space(ways, adapter=adapter, normaliser=normaliser)
    if clip is not None:
        steps["student", "clip"] = space({"summary": (32, 16)}, normaliser="phi_s")
    steps["student", "unic"] = space(both, adapter="ladder", levels=1)
    origin = Origin(
        run="demo",
        name=name,
        stage=stage,
        steps=9,
        image_sizes=[32, 64],
        licence="apache-2.0",
        teachers={
            teacher: {
                "family": teacher,
                "weights": str(BUILTIN / f"{teacher}-tiny"),
                "licence": None if teacher == "sam" else "apache-2.0",
            }
            for teacher in ("dinov2", "siglip", "sam")
        },
        data={"photos": f"webdataset:https://h/x.tar?token={SECRET}"},
    )
    if clip is not None:
        about = {"family": "clip", "weights": str(clip), "licence": "mit"}
        origin.teachers["clip"] = about
    export_student(student, Spaces(steps), folder, origin)
    return student


def make_clip(folder):
    """A CLIP with random weights, and the tokeniser of the built-in SigLIP."""
    from transformers import CLIPConfig, CLIPModel

    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    small["num_attention_heads"] = 2
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIPModel(
            CLIPConfig(
                text_config={**small, "vocab_size": 4096, "eos_token_id": 2},
                vision_config={**small, "image_size": 32, "patch_size": 8},
                projection_dim=12,
            )
        )
    model.save_pretrained(folder)
    shutil.copy(BUILTIN / "siglip-tiny/tokenizer.json", folder)
    about = json.loads((BUILTIN / "siglip-tiny/tokenizer_config.json").read_text())
    about["model_input_names"] = ["input_ids", "attention_mask"]
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(half))
    return folder


def make_run(folder, names=("vit",), clip=None):
    """A run's folder with its recipe and some of its students, by name."""
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(to_yaml(from_dict(recipe_values())))
    return {name: make_student(folder / "fixed" / name, name, clip=clip) for name in names}


def row(model, role, value, *, task="knn", metric="top1", size=32, better="higher", **other):
    """A row of validation.json."""
    return {
        "model": model,
        "role": role,
        "stage": "",
        "seed": 0,
        "task": task,
        "dataset": "scenes",
        "split": "test",
        "image_size": size,
        "metric": metric,
        "value": value,
        "better": better,
        **other,
    }


def write_validation(run, rows, untrained_of):
    content = {"asked": {}, "untrained_of": untrained_of, "rows": rows}
    (run / "validation.json").write_text(json.dumps(content))


def elsewhere(code, cwd, *arguments, **environment):
    """Run Python in a process that cannot import this project; its output."""
    site = [path for path in sys.path if path.endswith("site-packages")]
    # -S leaves out the .pth files through which an editable install is found.
    start = f"""\
import sys
sys.path[:0] = {site!r}
for name in ("students", "teachers", "distill.export"):
    try:
        __import__(name)
    except ImportError:
        continue
    sys.exit(f"{{name}} can be imported here, so that this shows nothing")
"""
    done = subprocess.run(
        [sys.executable, "-S", "-I", "-c", start + code, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def python_blocks(card):
    """The blocks of Python in a card."""
    return re.findall(r"```python\n(.*?)```", card, re.DOTALL)
