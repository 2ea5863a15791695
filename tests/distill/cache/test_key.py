"""What makes two features two."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from distill.cache import StoreKey, teacher_identity, view_prints, views_identity
from distill.cache.key import code_digest, syntax
from teachers import TeacherSpec, load_teacher

VIEWS = {"policy": "eupe", "scale": [0.25, 1.0], "view_seed": 0, "canvas": 64}


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    """A tiny DINOv2 in a folder."""
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("dinov2")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    Dinov2Model(Dinov2Config(**sizes, patch_size=8, image_size=32)).save_pretrained(folder)
    statistics = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(statistics))
    return TeacherSpec("dinov2", str(folder))


def identity(spec):
    return teacher_identity(load_teacher(spec))


def test_what_changes_features_changes_the_teacher(spec):
    known = identity(spec)
    others = [
        replace(spec, layer=1),
        replace(spec, tokens=("dense",)),
        replace(spec, dtype="bfloat16"),
        replace(spec, mean=(0.4, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    ]
    found = [known, *(identity(other) for other in others)]
    assert len({json.dumps(one, sort_keys=True) for one in found}) == 5


def test_what_does_not_change_them_does_not(spec, tmp_path):
    import shutil

    copied = shutil.copytree(spec.weights, tmp_path / "elsewhere")
    (copied / "README.md").write_text("another card")
    others = [
        replace(spec, weights=str(copied)),
        replace(spec, trust_remote_code=True, allow_pickle=True),
        replace(spec, micro_batch=1, sizes=(48,)),
        replace(spec, tokens=("dense", "summary")),
    ]
    for other in others:
        assert identity(other) == identity(spec)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "preprocessor_config.json"])
def test_a_file_of_the_checkpoint_changes_the_teacher(spec, tmp_path, name):
    import shutil

    folder = shutil.copytree(spec.weights, tmp_path / "changed")
    content = (folder / name).read_bytes()
    content = (
        content[:-1] + bytes([content[-1] ^ 1]) if name.endswith("tensors") else content + b" "
    )
    (folder / name).write_bytes(content)
    changed, known = identity(replace(spec, weights=str(folder))), identity(spec)
    assert [key for key in known if changed[key] != known[key]] == ["files"]
    assert [file for file in known["files"] if changed["files"][file] != known["files"][file]] == [
        name
    ]


def test_libraries_are_those_that_compute(spec):
    import transformers

    libraries = identity(spec)["libraries"]
    assert libraries == {
        "torch": torch.__version__.partition("+")[0],
        "transformers": transformers.__version__,
    }


def test_every_setting_of_views_changes_them():
    changes = [{}, {"policy": "flip"}, {"scale": [0.3, 1.0]}, {"view_seed": 1}, {"canvas": 96}]
    found = [json.dumps(views_identity(**VIEWS | change)) for change in changes]
    assert len(set(found)) == len(changes)


def test_digests_are_of_content_and_format():
    key = StoreKey({"dtype": "bfloat16"}, 64, views_identity(**VIEWS), "name")
    digests = {form: key.digest(form) for form in ("exact", "bfloat16", "float16", "int8")}
    assert digests["exact"] == digests["bfloat16"]
    assert len(set(digests.values())) == 3
    assert replace(key, label="other").digest("exact") == digests["exact"]
    assert replace(key, size=(64, 64)).digest("exact") != digests["exact"]


def test_syntax_is_without_comments_and_docstrings():
    code = '"""One."""\ndef f(x):\n    """Two."""\n    return x + 1  # three\n'
    assert syntax(code) == syntax("def f(x):\n\n    return (x\n     + 1)\n")
    assert syntax(code) != syntax(code.replace("+ 1", "+ 2"))


def test_the_code_of_views_counts():
    assert code_digest(["distill.data.views"]) != code_digest(["distill.data.photometrics"])
    assert code_digest(["a", "b"]) == code_digest(["b", "a"])


def test_prints_are_of_pixels_and_draws():
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (3, 3, 8, 8), generator=draw, dtype=torch.uint8)
    pixels[2] = pixels[0]
    draws = torch.rand(3, 6, generator=draw)
    draws[2] = draws[0]
    first, second, third = view_prints(pixels, draws)
    assert first == third != second
    changed = pixels.clone()
    changed[0, 2, 7, 7] ^= 1
    assert view_prints(changed, draws)[0] != first
    draws[2, 5] += 1
    assert view_prints(pixels, draws)[2] != first
    assert view_prints(pixels, draws).dtype == np.uint32
