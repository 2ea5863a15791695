import pytest
import torch
from torch.nn import functional as F

from students import Features, UserError, build_student, describe_student
from students.adapters import adapter_parameters, build_adapters, misfit

TINY = {"embed_dim": 32, "depth": 3, "num_heads": 2, "patch_size": 8}
BOTH = {"summary": (12, 5), "dense": (12, 7)}
KINDS = ("linear", "mlp", "ladder", "attention", "conv")


def random_(module, seed=0):
    """Weights of a scale at which every term counts, in place: fresh norms and biases hide some."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def features_of(width, batch=2, grid=(2, 3), levels=0, seed=1):
    generator = torch.Generator().manual_seed(seed)

    def one():
        summary = torch.randn(batch, width, generator=generator)
        return Features(summary, torch.randn(batch, *grid, width, generator=generator))

    return Features(one().summary, one().dense, tuple(one() for _ in range(levels)))


def normed(x, weight, bias):
    """LayerNorm by its formula."""
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight + bias


def gelu(x):
    return x * 0.5 * (1 + torch.erf(x / 2**0.5))


def mlp(state, prefix, x):
    hidden = normed(
        x @ state[f"{prefix}.0.weight"].T,
        state[f"{prefix}.1.weight"],
        state[f"{prefix}.1.bias"],
    )
    return gelu(hidden) @ state[f"{prefix}.3.weight"].T


def linear(state, name, x):
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def near(found, expected):
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)


def test_linear_and_the_published_mlp():
    given = features_of(12)
    for kind in ("linear", "mlp"):
        adapters = random_(build_adapters(kind, BOTH, hidden=9))
        state, found = adapters.state_dict(), adapters(given)
        for name in ("summary", "dense"):
            tokens = given.get(name)
            near(
                found.get(name),
                mlp(state, name, tokens) if kind == "mlp" else linear(state, f"{name}.0", tokens),
            )


@pytest.mark.parametrize("arch", ["vit_small_patch16_dinov3_qkvb", "vit_tiny_patch16_224"])
def test_a_ladder_is_the_sum_of_an_mlp_for_every_block(arch):
    student = random_(build_student(arch, size=32, overrides=TINY))
    student.with_levels = True
    seen = []
    for block in (*student.model.blocks[:-1], student.model.norm):
        block.register_forward_hook(lambda *call: seen.append(call[2]))
    widths = {"summary": (32, 5), "dense": (32, 7)}
    adapters = random_(build_adapters("ladder", widths, hidden=9, levels=student.levels))
    with torch.no_grad():
        found = adapters(student(torch.rand(2, 3, 32, 16), (32, 16)))
    assert len(seen) == 3
    assert not torch.allclose(seen[0], seen[1], atol=1e-2)
    state = adapters.state_dict()
    near(found.summary, sum(mlp(state, f"summary.{i}", x[:, 0]) for i, x in enumerate(seen)))
    dense = sum(mlp(state, f"dense.{i}", x[:, -8:]) for i, x in enumerate(seen))
    near(found.dense.flatten(1, 2), dense)
    assert found.dense.shape == (2, 4, 2, 7)
    assert found.levels == ()


def attended(state, block, x, each):
    """One pre-norm block, a head and a token at a time."""
    seen = normed(x, state[f"{block}.norm1.weight"], state[f"{block}.norm1.bias"])
    query, keys, values = linear(state, f"{block}.attn.qkv", seen).chunk(3, -1)
    out = torch.zeros_like(x)
    for image in range(x.shape[0]):
        for start in range(0, x.shape[-1], each):
            head = slice(start, start + each)
            for token in range(x.shape[1]):
                score = keys[image, :, head] @ query[image, token, head] / each**0.5
                weight = score.exp() / score.exp().sum()
                out[image, token, head] = weight @ values[image, :, head]
    x = x + linear(state, f"{block}.attn.proj", out)
    seen = normed(x, state[f"{block}.norm2.weight"], state[f"{block}.norm2.bias"])
    inner = gelu(linear(state, f"{block}.mlp.fc1", seen))
    return x + linear(state, f"{block}.mlp.fc2", inner)


@pytest.mark.parametrize(("width", "each"), [(12, 12), (96, 48), (67, 1)])
def test_attention_is_blocks_over_all_tokens_and_a_linear_for_each_kind(width, each):
    widths = {"summary": (width, 5), "dense": (width, 7)}
    adapters = random_(build_adapters("attention", widths, hidden=9, depth=2))
    given, state = features_of(width), adapters.state_dict()
    tokens = torch.stack(
        [given.summary, *(given.dense[:, row, column] for row in range(2) for column in range(3))],
        dim=1,
    )
    with torch.no_grad():
        for block in ("blocks.0", "blocks.1"):
            tokens = attended(state, block, tokens, each)
        found = adapters(given)
    scale = float(tokens.abs().max())
    near(found.summary / scale, linear(state, "summary.0", tokens[:, 0]) / scale)
    dense = torch.stack([linear(state, "dense.0", tokens[:, 1 + i]) for i in range(6)], dim=1)
    near(found.dense.flatten(1, 2) / scale, dense / scale)


def test_an_attention_head_is_64_wide_where_the_width_allows_it():
    for width, heads in ((768, 12), (384, 6), (64, 1), (100, 2), (32, 1)):
        with torch.device("meta"):
            built = build_adapters("attention", {"dense": (width, 3)}, hidden=8)
        assert built["blocks"][0].attn.num_heads == heads


def test_an_attention_mlp_is_as_wide_as_asked():
    with torch.device("meta"):
        for width in (7, 12, 49, 192, 384):
            for hidden in (1, 10, 33, 191, 960, 1537):
                built = build_adapters("attention", {"dense": (width, 3)}, hidden=hidden)
                assert built["blocks"][0].mlp.fc1.weight.shape == (hidden, width)


def test_conv_is_two_convolutions_of_the_map_and_an_mlp_of_the_summary():
    adapters = random_(build_adapters("conv", BOTH, hidden=9))
    given, state = features_of(12, grid=(4, 3)), adapters.state_dict()

    def turned(name, x):
        maps = x.permute(0, 3, 1, 2)
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        return F.conv2d(maps, weight, bias, padding=1).permute(0, 2, 3, 1)

    def norm(name, x):
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])

    x = norm("dense.0", given.dense)
    x = F.gelu(norm("dense.2", turned("dense.1", x)))
    x = F.gelu(norm("dense.5", turned("dense.4", x)))
    with torch.no_grad():
        found = adapters(given)
        near(found.dense, linear(state, "dense.7", x))
        near(found.summary, mlp(state, "summary", given.summary))
        # Neighbours count: what is far off in the map does not.
        moved = given.dense.clone()
        moved[:, 0, 0] *= -1
        differs = (adapters(Features(given.summary, moved)).dense - found.dense).abs().amax((0, 3))
    assert bool((differs[:3] > 1e-4).all())
    assert float(differs[3].max()) < 1e-6


def in_formulas(kind, width, out, hidden, token, depth=1, levels=0):
    """Weights of one head; of `attention` without its blocks."""
    mlp_weights = width * hidden + 2 * hidden + hidden * out
    if kind in ("linear", "attention"):
        return width * out + out
    if kind == "conv" and token == "dense":
        convs = 9 * width * hidden + hidden + 9 * hidden * hidden + hidden
        return 2 * width + convs + 4 * hidden + hidden * out + out
    return mlp_weights * (levels + 1 if kind == "ladder" else 1)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_counted_as_built(kind):
    how = {"hidden": 10, "depth": 3, "levels": 4}
    expected = sum(in_formulas(kind, i, o, 10, token, 3, 4) for token, (i, o) in BOTH.items())
    if kind == "attention":
        expected += 3 * (4 * 12 + 12 * 36 + 36 + 12 * 12 + 12 + 2 * 12 * 10 + 10 + 12)
    built = sum(p.numel() for p in build_adapters(kind, BOTH, **how).parameters())
    assert adapter_parameters(kind, BOTH, **how) == built == expected


def test_a_ladder_of_the_published_size():
    """UNIC: 141.7 million for a ViT-B and four teachers of width 768; so many have eleven MLPs of
    width 768 and one of 3072, with biases and without norms, or twelve of width 960."""
    levels = describe_student("vit_base_patch16_224", size=224).levels
    widths = {"summary": (768, 768), "dense": (768, 768)}
    four = 4 * adapter_parameters("ladder", widths, hidden=960, levels=levels)
    assert four / 1e6 == pytest.approx(141.7, abs=0.05)
    plain = [2 * 768 * hidden + hidden + 768 for hidden in (*[768] * 11, 3072)]
    assert 4 * 2 * sum(plain) / 1e6 == pytest.approx(141.7, abs=0.05)


def test_counting_takes_no_memory_and_no_draw():
    before = torch.random.get_rng_state()
    wide = {"dense": (10**6, 10**6)}
    assert adapter_parameters("attention", wide, hidden=10**6, depth=9) > 10**13
    assert torch.equal(torch.random.get_rng_state(), before)


def test_attention_for_one_kind_reads_the_other_too():
    adapters = random_(build_adapters("attention", {"dense": (12, 7)}, hidden=9))
    given = features_of(12)
    with torch.no_grad():
        first = adapters(given)
        other = adapters(Features(-given.summary, given.dense))
    assert first.summary is None
    assert float((first.dense - other.dense).abs().max()) > 1e-3
    assert adapters.kinds == ("dense",)
    with pytest.raises(ValueError, match="together"):
        adapters(Features(None, given.dense))


def test_a_ladder_for_one_kind_and_of_other_blocks():
    adapters = random_(build_adapters("ladder", {"dense": (12, 7)}, hidden=9, levels=2))
    found = adapters(features_of(12, levels=2))
    assert found.summary is None
    assert found.dense.shape == (2, 2, 3, 7)
    for levels in (0, 3):
        with pytest.raises(ValueError, match=f"ladder of 3 blocks, features of {levels + 1}"):
            adapters(features_of(12, levels=levels))


@pytest.mark.parametrize("kind", KINDS)
def test_no_image_at_all_still_reaches_every_weight(kind):
    """A rank may have no row of a teacher: its gradients are zeros, not missing."""
    adapters = build_adapters(kind, BOTH, hidden=8, depth=2, levels=2)
    found = adapters(features_of(12, batch=0, levels=2))
    assert found.summary.shape == (0, 5)
    assert found.dense.shape == (0, 2, 3, 7)
    (found.summary.sum() + found.dense.sum()).backward()
    for name, parameter in adapters.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


@pytest.mark.parametrize("kind", KINDS)
def test_under_autocast_predictions_stay_near(kind):
    adapters = random_(build_adapters(kind, BOTH, hidden=8, levels=2))
    given = features_of(12, levels=2)
    with torch.no_grad():
        exact = adapters(given)
        with torch.autocast("cpu", torch.bfloat16):
            short = adapters(given)
    for name in ("summary", "dense"):
        gap = (short.get(name).float() - exact.get(name)).norm() / exact.get(name).norm()
        assert float(gap) < 0.05


def test_what_does_not_fit_is_said_in_one_line():
    convnext = describe_student("convnext_tiny", size=32)
    averaged = describe_student(
        "vit_tiny_patch16_224", size=32, overrides={**TINY, "global_pool": "avg"}
    )
    vit = describe_student("vit_tiny_patch16_224", size=32, overrides=TINY)
    for info in (convnext, averaged):
        assert "class token and patches of every block" in misfit("ladder", info)
        assert info.arch in misfit("ladder", info)
        assert misfit("attention", info) is None
    assert [misfit(kind, vit) for kind in KINDS] == [None] * 5
    uneven = describe_student("mobilenetv4_conv_small", size=32)
    assert uneven.summary_dim != uneven.dense_dim
    line = misfit("attention", uneven)
    assert f"width {uneven.summary_dim}" in line
    assert f"width {uneven.dense_dim}" in line
    assert "\n" not in line
    with pytest.raises(UserError, match="width 3 and dense tokens of width 4 together"):
        build_adapters("attention", {"dense": (4, 9), "summary": (3, 9)}, hidden=8)
    with pytest.raises(ValueError, match="'stairs'"):
        build_adapters("stairs", BOTH, hidden=8)
