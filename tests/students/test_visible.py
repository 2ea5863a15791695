"""Encoding some patches of an image."""

import copy

import pytest
import torch

from students import UserError, build_student
from students.visible import encode_visible, takes_masks

TINY = {"embed_dim": 32, "depth": 3, "num_heads": 2, "patch_size": 8}
POOLED = {"class_token": False, "global_pool": "avg"}
STUDENTS = {
    "absolute": ("vit_small_patch16_224", TINY),
    "absolute, registers": ("vit_small_patch16_224", {**TINY, "reg_tokens": 2}),
    "absolute, no class token": ("vit_small_patch16_224", {**TINY, **POOLED}),
    "absolute, distilled": ("deit_tiny_distilled_patch16_224", TINY),
    "rotary, registers": ("vit_small_patch16_dinov3_qkvb", TINY),
    "rotary and absolute": ("eva02_tiny_patch14_224", TINY),
    "rotary by block": ("vit_base_patch16_rope_mixed_224", TINY),
}
CONVNEXT = ("convnext_tiny", {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32], "output_stride": 8})

every_student = pytest.mark.parametrize("name", STUDENTS)


def built(name):
    """A student whose weights, layer scales too, are far from where they start."""
    arch, overrides = STUDENTS[name]
    student = build_student(arch, size=32, overrides=overrides).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return student


def images(height=32, width=32):
    return torch.rand(3, 3, height, width, generator=torch.Generator().manual_seed(2))


def some(patches, count, seed=3):
    """Some patches of each of three images, in order."""
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randperm(patches, generator=generator)[:count].sort().values for _ in range(3)]
    return torch.stack(rows)


def of_patch(pixels, patch, columns):
    """A view of the pixels (3, 8, 8) of one patch of an image."""
    row, column = 8 * (patch // columns), 8 * (patch % columns)
    return pixels[:, row : row + 8, column : column + 8]


@every_student
@pytest.mark.parametrize("sides", [(32, 32), (48, 48), (24, 40)], ids=str)
def test_all_patches_are_the_plain_forward_pass(name, sides):
    student, pixels = built(name), images(*sides)
    patches = sides[0] * sides[1] // 64
    with torch.no_grad():
        plain = student(pixels, sides)
        summary, tokens = encode_visible(student, pixels, sides, torch.arange(patches).repeat(3, 1))
    torch.testing.assert_close(summary, plain.summary, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(tokens, plain.dense.flatten(1, 2), rtol=1e-5, atol=1e-5)


@every_student
@pytest.mark.parametrize("sides", [(32, 32), (24, 40)], ids=str)
@pytest.mark.parametrize("training", [False, True])
def test_some_patches_are_timms_blocks_on_them_alone(name, sides, training):
    """Image by image, block by block; DINOv3's positions are scaled at random in training, and have
    to be those of the draw."""
    student, pixels = built(name).train(training), images(*sides)
    model, patches = student.model, sides[0] * sides[1] // 64
    visible = some(patches, 5)
    with torch.no_grad():
        torch.manual_seed(7)
        summary, tokens = encode_visible(student, pixels, sides, visible)
        torch.manual_seed(7)
        embedded = model._pos_embed(model.patch_embed(student.normalise(pixels)))
        embedded, rope = embedded if isinstance(embedded, tuple) else (embedded, None)
        prefix = model.num_prefix_tokens
        for image, own in enumerate(visible.tolist()):
            kept = [*range(prefix), *(prefix + patch for patch in own)]
            x = torch.stack([embedded[image, token] for token in kept])[None]
            for depth, block in enumerate(model.blocks):
                if rope is None:
                    x = block(x)
                elif name == "rotary by block":
                    x = block(x, rope=rope[depth][:, own])
                else:
                    x = block(x, rope=rope[own])
            x = model.norm(x)
            torch.testing.assert_close(tokens[image], x[0, prefix:], rtol=1e-4, atol=1e-5)
            pooled = model.forward_head(x, pre_logits=True)
            torch.testing.assert_close(summary[image], pooled[0], rtol=1e-4, atol=1e-5)


@every_student
def test_class_token_and_registers_are_never_dropped(name):
    student, seen = built(name), []
    student.model.blocks[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    visible = some(16, 1)
    with torch.no_grad():
        student(images(), 32)
        encode_visible(student, images(), 32, visible)
    (plain, kept), prefix = seen, student.model.num_prefix_tokens
    assert kept.shape[1] == prefix + 1
    assert torch.equal(kept[:, :prefix], plain[:, :prefix])
    for image in range(3):
        assert torch.equal(kept[image, prefix], plain[image, prefix + visible[image, 0]])


@every_student
def test_hidden_pixels_are_not_seen_and_get_no_gradient(name):
    student, visible, pixels = built(name), some(16, 4), images()
    changed = pixels.clone()
    for image in range(3):
        for patch in set(range(16)) - set(visible[image].tolist()):
            of_patch(changed[image], patch, 4).neg_().add_(1)
    assert not torch.equal(changed, pixels)
    pixels.requires_grad_()
    one = encode_visible(student, pixels, 32, visible)
    other = encode_visible(student, changed, 32, visible)
    assert torch.equal(one[0], other[0])
    assert torch.equal(one[1], other[1])

    (one[0].square().sum() + one[1].square().sum()).backward()
    for image in range(3):
        for patch in range(16):
            gradient = of_patch(pixels.grad[image], patch, 4)
            assert bool(gradient.any()) == (patch in visible[image].tolist())


@every_student
def test_patches_may_come_in_any_order(name):
    student, visible = built(name), some(16, 4)
    turned = visible.flip(1)
    with torch.no_grad():
        summary, tokens = encode_visible(student, images(), 32, visible)
        other_summary, other = encode_visible(student, images(), 32, turned)
    torch.testing.assert_close(other.flip(1), tokens, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(other_summary, summary, rtol=1e-4, atol=1e-5)


@every_student
def test_activations_computed_again_are_of_the_same_patches(name):
    gradients = []
    for checkpointing in (False, True):
        student = built(name).train()
        student.model.set_grad_checkpointing(checkpointing)
        torch.manual_seed(0)
        summary, tokens = encode_visible(student, images(), 32, some(16, 4))
        # Another forward pass, of other patches, comes between.
        encode_visible(student, images(), 32, some(16, 4, seed=9))
        student(images(), 32)
        (summary.sum() + tokens.square().sum()).backward()
        gradients.append({n: p.grad for n, p in student.named_parameters() if p.grad is not None})
    plain, again = gradients
    assert plain.keys() == again.keys()
    assert any(".blocks.2." in entry for entry in plain)
    for entry, gradient in plain.items():
        torch.testing.assert_close(again[entry], gradient, rtol=1e-5, atol=1e-6)


@every_student
def test_the_student_stays_as_it_was(name):
    student = built(name).train()
    untouched, before = copy.deepcopy(student), set(vars(student.model))
    _, tokens = encode_visible(student, images(), 32, some(16, 4))
    tokens.sum().backward()
    with pytest.raises(AssertionError):  # timm's: no multiple of the patch
        encode_visible(student, images(), 33, some(16, 4))
    assert repr(student) == repr(untouched)
    assert set(vars(student.model)) == before
    assert [n for n, _ in student.named_modules()] == [n for n, _ in untouched.named_modules()]
    state, other = student.state_dict(), untouched.state_dict()
    assert list(state) == list(other)
    assert all(torch.equal(state[entry], other[entry]) for entry in state)
    with torch.no_grad():
        plain, same = student.eval()(images(), 32), untouched.eval()(images(), 32)
    assert torch.equal(plain.summary, same.summary)
    assert torch.equal(plain.dense, same.dense)


@pytest.mark.parametrize(
    ("arch", "overrides", "takes"),
    [
        *((arch, overrides, True) for arch, overrides in STUDENTS.values()),
        ("vit_base_patch16_siglip_224", {}, True),
        ("vit_small_patch16_224", {**TINY, "dynamic_img_size": False}, False),
        (*CONVNEXT, False),
        ("swin_tiny_patch4_window7_224", {}, False),
        ("vit_small_r26_s32_224", {}, False),  # patches of a ResNet's map
        ("samvit_base_patch16", {}, False),  # windows
        ("naflexvit_base_patch16_gap", {}, False),
        ("vit_relpos_small_patch16_224", {}, False),
        ("test_efficientnet", {}, False),
    ],
    ids=str,
)
def test_which_architectures_take_masks(arch, overrides, takes):
    assert takes_masks(arch, overrides) is takes


def test_what_cannot_be_masked_is_refused_by_name():
    with pytest.raises(UserError, match="did you mean"):
        takes_masks("convnext_tinny")
    student = build_student(CONVNEXT[0], size=32, overrides=CONVNEXT[1])
    with pytest.raises(UserError, match=r"convnext_tiny cannot leave patches out.*objective"):
        encode_visible(student, images(), 32, some(16, 4))
