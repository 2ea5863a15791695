import pytest
import timm
import torch

from students import MAX_PARAMETERS, UserError, build_student, describe_student

TINY_VIT = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8}
TINY_CONVNEXT = {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32], "output_stride": 8}


def normalised(student, pixels):
    mean, std = torch.tensor(student.mean), torch.tensor(student.std)
    return (pixels - mean[:, None, None]) / std[:, None, None]


@pytest.mark.parametrize("arch", ["vit_small_patch16_dinov3_qkvb", "vit_small_patch16_224"])
def test_a_vit_gives_its_class_token_and_its_patches_after_the_norm(arch):
    student = build_student(arch, size=32, overrides=TINY_VIT).eval()
    model = student.model
    seen = {}
    model.norm.register_forward_hook(lambda *call: seen.update(out=call[2]))
    pixels = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        features = student(pixels)
    tokens = seen["out"]
    assert tokens.shape[1] == model.num_prefix_tokens + 16
    torch.testing.assert_close(features.summary, tokens[:, 0])
    torch.testing.assert_close(features.dense.flatten(1, 2), tokens[:, -16:])
    # Rows before columns: the last token of the first row is the upper right corner.
    torch.testing.assert_close(features.dense[:, 0, 3], tokens[:, -16 + 3])


@pytest.mark.parametrize(
    ("arch", "overrides"),
    [
        ("vit_small_patch16_dinov3_qkvb", TINY_VIT),
        ("vit_tiny_patch16_224", TINY_VIT),
        ("vit_small_patch16_rope_mixed_224", TINY_VIT),
        ("deit_tiny_distilled_patch16_224", {**TINY_VIT, "depth": 1}),
    ],
)
def test_levels_are_what_the_blocks_give_and_change_nothing(arch, overrides):
    student = build_student(arch, size=32, overrides={**overrides, "drop_path_rate": 0.3})
    assert student.levels == overrides["depth"] - 1
    seen, pixels = [], torch.rand(4, 3, 16, 32)
    for training in (True, False):
        student.train(training)
        student.with_levels = False
        torch.manual_seed(0)
        plain = student(pixels, (16, 32))
        assert plain.levels == ()
        student.with_levels = True
        hooks = [
            block.register_forward_hook(lambda *call: seen.append(call[2]))
            for block in student.model.blocks[:-1]
        ]
        seen.clear()
        torch.manual_seed(0)
        features = student(pixels, (16, 32))
        for hook in hooks:
            hook.remove()
        assert torch.equal(features.summary, plain.summary)
        assert torch.equal(features.dense, plain.dense)
        assert len(features.levels) == len(seen) == student.levels
        for level, tokens in zip(features.levels, seen, strict=True):
            assert torch.equal(level.summary, tokens[:, 0])
            assert torch.equal(level.dense.flatten(1, 2), tokens[:, -8:])
            assert level.dense.shape == (4, 2, 4, 32)
            assert level.levels == ()


@pytest.mark.parametrize(
    ("arch", "overrides"),
    [
        ("convnext_tiny", TINY_CONVNEXT),
        ("vit_tiny_patch16_224", {**TINY_VIT, "global_pool": "avg"}),
        ("vit_medium_patch16_gap_256", TINY_VIT),
    ],
)
def test_what_pools_no_class_token_has_no_levels(arch, overrides):
    student = build_student(arch, size=32, overrides=overrides)
    assert student.levels is None
    assert describe_student(arch, size=32, overrides=overrides) == student.info


def test_a_convnext_gives_its_map_and_its_mean_after_one_norm():
    student = build_student("convnext_tiny", size=32, overrides=TINY_CONVNEXT).eval()
    norm = student.model.head.norm
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        norm.bias.uniform_(-1, 1)
        pixels = torch.rand(2, 3, 32, 48)
        features = student(pixels, (32, 48))
        raw = student.model.forward_features(normalised(student, pixels))
        plain = torch.nn.functional.layer_norm(
            raw.permute(0, 2, 3, 1), (32,), norm.weight, norm.bias, norm.eps
        )
        pooled = torch.nn.functional.layer_norm(
            raw.mean((2, 3)), (32,), norm.weight, norm.bias, norm.eps
        )
    assert features.dense.shape == (2, 4, 6, 32)
    torch.testing.assert_close(features.dense, plain, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(features.summary, pooled, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("arch", "normed"), [("test_mambaout", True), ("inception_next_atto", False)]
)
def test_a_map_goes_through_its_heads_norm_where_that_is_the_final_one(arch, normed):
    """A norm behind a layer of the head (InceptionNeXt) is none of the map."""
    student = build_student(arch, size=32).eval()
    pixels = torch.rand(2, 3, 32, 64)
    with torch.no_grad():
        student.model.head.norm.weight.uniform_(0.5, 2)
        raw = student.model.forward_features(normalised(student, pixels))
        if not normed:
            raw = raw.permute(0, 2, 3, 1)
        dense = student.model.head.norm(raw) if normed else raw
        features = student(pixels, (32, 64))
    assert features.dense.shape[:3] == (2, 1, 2)
    torch.testing.assert_close(features.dense, dense, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("arch", "overrides", "size"),
    [
        ("vit_small_patch16_dinov3_qkvb", TINY_VIT, 32),
        ("convnext_tiny", TINY_CONVNEXT, 32),
        ("resnet10t", {}, 64),
    ],
)
def test_description_without_weights_agrees_with_what_is_built(arch, overrides, size):
    described = describe_student(arch, size=size, overrides=overrides)
    assert described == build_student(arch, size=size, overrides=overrides).info
    plain = timm.create_model(
        arch,
        num_classes=0,
        **{k: tuple(v) if isinstance(v, list) else v for k, v in overrides.items()},
    )
    assert described.parameter_count == sum(p.numel() for p in plain.parameters())


def test_published_sizes_of_the_students_of_the_paper():
    """EUPE's ViT-T/S/B have 5.5, 21.6 and 85.7 million parameters."""
    for name, millions in {"tiny": 5.5, "small": 21.6, "base": 85.7}.items():
        info = describe_student(f"vit_{name}_patch16_dinov3_qkvb", size=256)
        assert info.parameter_count / 1e6 == pytest.approx(millions, abs=0.06)
        assert info.stride == 16


def test_weights_come_from_the_seed_alone():
    torch.manual_seed(1)
    first = build_student("vit_small_patch16_dinov3_qkvb", size=32, overrides=TINY_VIT, seed=5)
    torch.manual_seed(2)
    again = build_student("vit_small_patch16_dinov3_qkvb", size=32, overrides=TINY_VIT, seed=5)
    other = build_student("vit_small_patch16_dinov3_qkvb", size=32, overrides=TINY_VIT, seed=6)
    key = "blocks.0.attn.qkv.weight"
    a, b, c = (s.model.state_dict()[key] for s in (first, again, other))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_a_large_student_is_refused_with_its_count_unless_it_is_a_proxy():
    wide = {"embed_dim": 1152, "depth": 7, "num_heads": 8, "patch_size": 16}
    count = describe_student("vit_base_patch16_dinov3_qkvb", size=32, overrides=wide)
    assert count.parameter_count >= MAX_PARAMETERS
    with pytest.raises(UserError, match=f"{count.parameter_count:,}.*proxy: true"):
        build_student("vit_base_patch16_dinov3_qkvb", size=32, overrides=wide)


@pytest.mark.parametrize(
    ("arch", "overrides", "size", "message"),
    [
        ("vit_smal_patch16_dinov3_qkvb", {}, 32, "did you mean 'vit_small_patch16_dinov3_qkvb'"),
        ("convnext_tiny", {"embed_dims": 3}, 32, "embed_dims"),
        ("vit_small_patch16_dinov3_qkvb", {}, 40, "no multiple of .* stride 16"),
    ],
)
def test_what_cannot_be_built_is_said_in_one_line(arch, overrides, size, message):
    with pytest.raises(UserError, match=message) as caught:
        build_student(arch, size=size, overrides=overrides)
    assert "\n" not in str(caught.value)


def test_a_size_that_cuts_patches_is_refused():
    student = build_student("vit_small_patch16_dinov3_qkvb", size=32, overrides=TINY_VIT)
    with pytest.raises(ValueError, match="36 is no multiple"):
        student(torch.rand(1, 3, 36, 36), 36)
