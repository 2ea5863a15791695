"""An exported folder in a process that cannot import this project."""

import json
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors.torch import load_file, save_file

from distill.export import Origin, export_student, exported_steps
from students import Space, Spaces, UserError, build_student, load_student

VIT = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8}
STUDENTS = {
    "vit": ("vit_small_patch16_dinov3_qkvb", VIT),
    "plain_vit": ("vit_tiny_patch16_224", VIT),
    "convnext": (
        "convnext_tiny",
        {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32], "output_stride": 8},
    ),
}

ELSEWHERE = """
import sys
import timm, torch
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModel
for name in ("students", "teachers", "distill.runner"):
    try:
        __import__(name)
    except ImportError:
        continue
    sys.exit(f"{name} can be imported here, so that this shows nothing")
folder, given, out = sys.argv[1:]
pixels = load_file(given)["pixels"]
found = {}
for kind, model in {
    "timm": timm.create_model(f"local-dir:{folder}", pretrained=True).eval(),
    "transformers": AutoModel.from_pretrained(folder).eval(),
}.items():
    inner = model if kind == "timm" else model.timm_model
    with torch.no_grad():
        if kind == "timm":
            summary, raw = model(pixels), model.forward_features(pixels)
        else:
            output = model(pixels)
            summary, raw = output.pooler_output, output.last_hidden_state
        if raw.ndim == 4:
            dense = inner.head.norm(raw).permute(0, 2, 3, 1).flatten(1, 2)
        else:
            dense = raw[:, inner.num_prefix_tokens:]
    found[f"{kind}.summary"], found[f"{kind}.dense"] = summary.contiguous(), dense.contiguous()
processor = AutoImageProcessor.from_pretrained(folder)
from PIL import Image
image = Image.effect_noise((50, 40), 80).convert("RGB")
found["processed"] = processor(image, return_tensors="pt")["pixel_values"].contiguous()
save_file(found, out)
"""


def exported(folder, kind):
    arch, overrides = STUDENTS[kind]
    student = build_student(arch, size=32, overrides=overrides).eval()
    with torch.no_grad():  # fresh norms and layer scales would hide a mix-up
        for parameter in student.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    space = Space({"summary": (32, 6), "dense": (32, 6)}, hidden=8)
    origin = Origin(
        run="demo",
        name=kind,
        stage="fixed",
        steps=7,
        image_sizes=[32],
        licence="apache-2.0",
        teachers={"dinov2": {"family": "dinov2", "weights": "a/b", "licence": None}},
        data={"photos": "folder:/x"},
    )
    export_student(student, Spaces({("student", "dinov2"): space}), folder, origin)
    return student


@pytest.mark.slow
@pytest.mark.parametrize("kind", STUDENTS)
def test_timm_and_transformers_give_the_same_features_elsewhere(tmp_path, kind):
    student = exported(tmp_path / "student", kind)
    pixels = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        ours = student(pixels)
    mean, std = torch.tensor(student.mean), torch.tensor(student.std)
    save_file(
        {"pixels": (pixels - mean[:, None, None]) / std[:, None, None]}, tmp_path / "in.safetensors"
    )
    site = [p for p in sys.path if p.endswith("site-packages")]
    # -S leaves out the .pth files through which an editable install is found.
    code = f"import sys; sys.path[:0] = {site!r}\n" + textwrap.dedent(ELSEWHERE)
    done = subprocess.run(
        [sys.executable, "-S", "-I", "-c", code]
        + [str(tmp_path / name) for name in ("student", "in.safetensors", "out.safetensors")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = load_file(tmp_path / "out.safetensors")
    for library in ("timm", "transformers"):
        torch.testing.assert_close(
            theirs[f"{library}.summary"], ours.summary, atol=1e-5, rtol=0, msg=library
        )
        torch.testing.assert_close(
            theirs[f"{library}.dense"], ours.dense.flatten(1, 2), atol=1e-5, rtol=0, msg=library
        )
    # The processor keeps the student's own size and statistics.
    assert theirs["processed"].shape == (1, 3, 32, 32)
    limit = ((1 - mean) / std).max()
    assert theirs["processed"].max() <= limit + 1e-4


def test_a_folder_says_what_it_is(tmp_path):
    student = exported(tmp_path / "student", "vit")
    config = json.loads((tmp_path / "student/config.json").read_text())
    assert config["pretrained_cfg"]["license"] == "apache-2.0"  # not the architecture's own
    assert config["pretrained_cfg"]["tag"] == "demo"
    assert config["pretrained_cfg"]["input_size"] == [3, 32, 32]
    assert "num_classes" not in config["model_args"]
    assert exported_steps(tmp_path / "student") == 7
    assert exported_steps(tmp_path / "nowhere") == 0
    card = (tmp_path / "student/README.md").read_text()
    assert card.startswith("---\nlibrary_name: timm\n")
    assert "| dinov2 | a/b | unknown |" in card
    assert f"{student.parameter_count:,} parameters" in card
    again = load_student(tmp_path / "student")
    assert again.info == student.info
    with torch.no_grad():
        pixels = torch.rand(1, 3, 40, 40)
        torch.testing.assert_close(again.eval()(pixels, 40).dense, student(pixels, 40).dense)


def test_weights_of_another_architecture_are_named(tmp_path):
    exported(tmp_path / "a", "vit")
    exported(tmp_path / "b", "convnext")
    (tmp_path / "a/model.safetensors").write_bytes((tmp_path / "b/model.safetensors").read_bytes())
    with pytest.raises(UserError, match="does not fit vit_small"):
        load_student(tmp_path / "a")
