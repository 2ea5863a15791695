"""The objective `masked`: draws, the decoder, and what a learner makes of visible patches."""

import copy
import math

import pytest
import torch
from launch import on_ranks
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from distill.engine.learner import build_learner
from distill.engine.masked import (
    Decoder,
    draw_visible,
    hidden_patches,
    in_their_places,
    masked_learner,
    positions_of,
)
from distill.engine.rows import Rows
from distill.export import Origin, export_student
from distill.recipe.learning import AdapterConfig
from students import Space, UserError, build_student, load_student
from students.visible import encode_visible

TINY = {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 8}
VITS = {
    "absolute": ("vit_small_patch16_224", TINY),
    "rotary": ("vit_small_patch16_dinov3_qkvb", TINY),
}
CONVNEXT = ("convnext_tiny", {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32], "output_stride": 8})
TEACHERS = {"dino": {"summary": 12, "dense": 20}, "sam": {"summary": None, "dense": 8}}

every_vit = pytest.mark.parametrize("vit", VITS)


def bare(vit="absolute", teachers=TEACHERS, arch=None):
    arch, overrides = arch or VITS[vit]
    student = build_student(arch, size=32, overrides=overrides)
    adapter = AdapterConfig(hidden=16)
    kinds = dict.fromkeys(teachers, "none")
    return build_learner(student, teachers, kinds, adapter, seed=0, name="tiny")


def built(vit="absolute", depth=2):
    """A masked learner whose weights are far from where they start."""
    learner = masked_learner(bare(vit), depth, 0, "tiny")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in learner.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return learner


def images(count=3, size=32):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(2))


def drawn(count=3, patches=16, share=0.25, step=0):
    return draw_visible(0, "pretrain", step, torch.arange(count), count, patches, share)


# Draws


@pytest.mark.parametrize(
    ("patches", "share", "count"),
    [(256, 0.25, 64), (196, 0.25, 49), (49, 0.25, 12), (9, 0.4, 4), (16, 0.01, 1), (16, 1.0, 16)],
)
def test_the_visible_share_is_exact(patches, share, count):
    visible = draw_visible(3, "pretrain", 5, torch.arange(20, 28), 4, patches, share)
    assert visible.dtype == torch.int64
    assert visible.shape == (8, count)
    for row in visible.tolist():
        assert row == sorted(set(row))
        assert 0 <= row[0] <= row[-1] < patches


def test_ranks_and_parts_draw_what_one_process_does():
    batch, step = 12, 7
    positions = torch.arange(step * batch, (step + 1) * batch)
    alone = draw_visible(0, "pretrain", step, positions, batch, 16, 0.25)
    for parts in (2, 3, 12):
        drawn = [
            draw_visible(0, "pretrain", step, part, batch, 16, 0.25)
            for part in positions.chunk(parts)
        ]
        assert torch.equal(torch.cat(drawn), alone)
    some = torch.tensor([2, 3, 7])
    assert torch.equal(
        draw_visible(0, "pretrain", step, positions[some], batch, 16, 0.25), alone[some]
    )


def test_steps_seeds_stages_and_images_have_draws_of_their_own():
    positions = torch.arange(4)
    draws = [
        draw_visible(seed, stage, step, positions, 4, 256, 0.25)
        for seed, stage, step in [(0, "a", 0), (0, "a", 1), (1, "a", 0), (0, "b", 0)]
    ]
    rows = {tuple(row) for draw in draws for row in draw.tolist()}
    assert len(rows) == 16


def test_draws_are_uniform_and_leave_global_state_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    visible = torch.cat([drawn(count=500, step=step) for step in range(4)])
    assert torch.equal(torch.get_rng_state(), before)
    seen = torch.zeros(2000, 16).scatter_(1, visible, 1)
    # Standard deviations: 0.25 * 0.75 / 2000 is 0.0097 squared, and so on for pairs.
    assert (seen.mean(0) - 0.25).abs().max() < 4 * 0.0097
    together = (seen.T @ seen / 2000)[~torch.eye(16, dtype=torch.bool)]
    assert (together - 4 * 3 / (16 * 15)).abs().max() < 5 * 0.0049


# Places


def test_hidden_patches_are_the_others_in_order():
    visible = drawn(count=5, patches=12, share=0.4)
    hidden = hidden_patches(visible, 12)
    for own, others in zip(visible.tolist(), hidden.tolist(), strict=True):
        assert others == [patch for patch in range(12) if patch not in own]
    assert hidden_patches(torch.arange(4).repeat(2, 1), 4).shape == (2, 0)


@every_vit
def test_every_token_comes_back_to_its_place(vit, monkeypatch):
    """With a decoder that says of each patch which one it is, and no adapters."""

    class Marker(nn.Module):
        def forward(self, summary, tokens, visible, hidden, grid):
            assert grid == (6, 6)
            return -1.0 - hidden[..., None].expand(-1, -1, tokens.shape[-1])

    learner, pixels = built(vit).eval(), images(size=48)
    learner.decoder = Marker()
    monkeypatch.setattr(Space, "predict", lambda space, features: features.only(space.kinds))
    visible = drawn(patches=36)
    with torch.no_grad():
        predicted = learner(pixels, 48, visible=visible)
        summary, tokens = encode_visible(learner.student, pixels, 48, visible)
    assert torch.equal(predicted["dino"].summary, summary)
    assert predicted["sam"].summary is None
    for teacher in TEACHERS:
        assert predicted[teacher].dense.shape == (3, 6, 6, 32)
        for image, own in enumerate(visible.tolist()):
            for patch in range(36):
                found = predicted[teacher].dense[image, patch // 6, patch % 6]
                known = patch in own
                wanted = (
                    tokens[image, own.index(patch)] if known else torch.full((32,), -1.0 - patch)
                )
                assert torch.equal(found, wanted)


def test_places_are_given_back_to_any_order():
    generator = torch.Generator().manual_seed(0)
    order = torch.stack([torch.randperm(10, generator=generator) for _ in range(4)])
    tokens = order[..., None].float().expand(-1, -1, 3)
    back = in_their_places(tokens[:, :6], tokens[:, 6:], order[:, :6], order[:, 6:])
    assert torch.equal(back, torch.arange(10.0)[None, :, None].expand(4, 10, 3))


# The decoder


@pytest.mark.parametrize(("grid", "width"), [((2, 3), 8), ((5, 4), 32), ((3, 3), 18)])
def test_positions_are_sines_and_cosines_of_row_and_column(grid, width):
    places = positions_of(grid, width, torch.device("cpu"))
    count = width // 4
    for row in range(grid[0]):
        for column in range(grid[1]):
            wanted = []
            for side in (row, column):
                angles = [side / 10000 ** (i / count) for i in range(count)]
                wanted += [math.sin(angle) for angle in angles]
                wanted += [math.cos(angle) for angle in angles]
            wanted += [0.0] * (width - 4 * count)
            found = places[row * grid[1] + column]
            torch.testing.assert_close(found, torch.tensor(wanted), rtol=1e-5, atol=1e-6)


def norm_by_hand(x, norm):
    centred = x - x.mean(-1, keepdim=True)
    variance = centred.pow(2).mean(-1, keepdim=True)
    return centred / (variance + norm.eps).sqrt() * norm.weight + norm.bias


@pytest.mark.parametrize(("width", "heads"), [(32, 1), (128, 2), (192, 3), (200, 2)])
def test_decoder_is_cross_attention_written_out(width, heads):
    """One image and one query at a time, one head after the other."""
    torch.manual_seed(0)
    decoder = Decoder(width, 2)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    summary, tokens = torch.randn(2, width), torch.randn(2, 3, width)
    visible = torch.tensor([[0, 2, 5], [1, 2, 3]])
    hidden = hidden_patches(visible, 6)
    with torch.no_grad():
        decoded = decoder(summary, tokens, visible, hidden, (2, 3))
        places = positions_of((2, 3), width, torch.device("cpu"))
        for image in range(2):
            seen = [summary[image]]
            seen += [tokens[image, i] + places[p] for i, p in enumerate(visible[image].tolist())]
            patches = hidden[image].tolist()
            queries = [decoder.mask_token[0, 0] + places[patch] for patch in patches]
            for block in decoder.blocks:
                attended = [
                    query + attention_by_hand(block, query, seen + queries, heads)
                    for query in queries
                ]
                queries = []
                for query in attended:
                    inner = block.mlp[0](norm_by_hand(query, block.norm_mlp))
                    grown = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
                    queries.append(query + grown @ block.mlp[2].weight.T + block.mlp[2].bias)
            for row, query in enumerate(queries):
                wanted = norm_by_hand(query, decoder.norm)
                torch.testing.assert_close(decoded[image, row], wanted, rtol=1e-4, atol=1e-4)


def attention_by_hand(block, query, seen, heads):
    attention, width = block.attention, len(query)
    weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
    q = weights[0] @ norm_by_hand(query, block.norm_query) + biases[0]
    keys = [weights[1] @ norm_by_hand(s, block.norm_context) + biases[1] for s in seen]
    values = [weights[2] @ norm_by_hand(s, block.norm_context) + biases[2] for s in seen]
    found = torch.empty(width)
    for head in range(heads):
        part = slice(head * width // heads, (head + 1) * width // heads)
        scores = [float(q[part] @ k[part]) / math.sqrt(width // heads) for k in keys]
        weight = [math.exp(score) for score in scores]
        found[part] = sum(w / sum(weight) * v[part] for w, v in zip(weight, values, strict=True))
    return attention.out_proj.weight @ found + attention.out_proj.bias


def test_decoders_weights_are_drawn_from_seed_and_name():
    learner = bare()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = masked_learner(learner, 1, 0, "tiny").decoder.state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    again = masked_learner(learner, 1, 0, "tiny").decoder.state_dict()
    assert all(torch.equal(again[entry], first[entry]) for entry in first)
    for seed, name in ((1, "tiny"), (0, "small")):
        other = masked_learner(learner, 1, seed, name).decoder.state_dict()
        assert not torch.equal(other["mask_token"], first["mask_token"])
    assert len(masked_learner(learner, 3, 0, "tiny").decoder.blocks) == 3


# The learner


@every_vit
@pytest.mark.parametrize("size", [32, 48])
def test_nothing_hidden_is_the_plain_learner(vit, size):
    learner, pixels = built(vit).eval(), images(size=size)
    patches = (size // 8) ** 2
    rows = {"dino": Rows(torch.tensor([0, 2])), "sam": Rows()}
    with torch.no_grad():
        plain = bare(vit).eval()
        plain.load_state_dict(
            {n: t for n, t in learner.state_dict().items() if not n.startswith("decoder.")}
        )
        wanted = plain(pixels, size, rows)
        without = learner(pixels, size, rows)
        everything = learner(pixels, size, rows, torch.arange(patches).repeat(3, 1))
    for name in TEACHERS:
        assert torch.equal(without[name].dense, wanted[name].dense)
        torch.testing.assert_close(everything[name].dense, wanted[name].dense, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        everything["dino"].summary, wanted["dino"].summary, rtol=1e-5, atol=1e-5
    )
    assert everything["sam"].summary is None


def test_a_teacher_is_given_its_rows_alone():
    learner, pixels, visible = built().eval(), images(), drawn()
    rows = {"dino": Rows(torch.tensor([2, 0])), "sam": Rows(torch.tensor([], dtype=torch.int64))}
    with torch.no_grad():
        whole = learner(pixels, 32, visible=visible)
        given = learner(pixels, 32, rows, visible)
    torch.testing.assert_close(given["dino"].dense, whole["dino"].dense[[2, 0]])
    torch.testing.assert_close(given["dino"].summary, whole["dino"].summary[[2, 0]])
    assert given["sam"].dense.shape == (0, 4, 4, 8)
    assert whole["sam"].dense.shape == (3, 4, 4, 8)


@every_vit
def test_hidden_pixels_change_no_prediction_and_get_no_gradient(vit):
    learner, pixels, visible = built(vit), images(), drawn()
    is_hidden = torch.ones(3, 16, dtype=torch.bool).scatter_(1, visible, False).view(3, 1, 4, 4)
    is_hidden = is_hidden.repeat_interleave(8, 2).repeat_interleave(8, 3).expand(3, 3, 32, 32)
    changed = torch.where(is_hidden, 1 - pixels, pixels).requires_grad_()
    one, other = (learner(shown, 32, visible=visible) for shown in (pixels, changed))
    for name in TEACHERS:
        assert torch.equal(one[name].dense, other[name].dense)
    assert torch.equal(one["dino"].summary, other["dino"].summary)
    shown = learner(torch.where(is_hidden, pixels, 1 - pixels), 32, visible=visible)
    assert not torch.equal(one["sam"].dense, shown["sam"].dense)

    # Of the hidden patches' loss alone: they are predicted from the others.
    mask = is_hidden[:, 0, ::8, ::8]
    other["sam"].dense[mask].square().sum().backward()
    assert not changed.grad[is_hidden].any()
    visible_gradients = changed.grad[~is_hidden].view(3, -1)
    assert visible_gradients.any(1).all()


@pytest.mark.parametrize("share", [0.25, 1.0])
@pytest.mark.parametrize("seen", ["all", "none"])
def test_every_weight_has_a_gradient(share, seen):
    """Even if nothing is hidden, or no teacher sees a row: ranks have to exchange the same."""
    learner = built()
    index = torch.arange(3) if seen == "all" else torch.tensor([], dtype=torch.int64)
    rows = {name: Rows(index) for name in TEACHERS}
    predicted = learner(images(), 32, rows, drawn(share=share))
    sum(features.dense.square().sum() for features in predicted.values()).backward()
    decoder = dict(learner.decoder.named_parameters())
    assert all(parameter.grad is not None for parameter in decoder.values())
    moved = {name for name, parameter in decoder.items() if parameter.grad.any()}
    assert moved == (set(decoder) if (share, seen) == (0.25, "all") else set())
    embedding = learner.student.model.patch_embed.proj.weight.grad
    assert bool(embedding.any()) == (seen == "all")


def test_bfloat16_autocast_is_near_float32():
    learner, visible = built().eval(), drawn()
    with torch.no_grad():
        wanted = learner(images(), 32, visible=visible)["dino"].dense
        with torch.autocast("cpu", torch.bfloat16):
            found = learner(images(), 32, visible=visible)["dino"].dense
    assert found.dtype == torch.bfloat16
    assert (found.float() - wanted).norm() < 0.05 * wanted.norm()


def test_copies_and_saved_states_are_whole():
    learner, visible = built().eval(), drawn()
    averaged = AveragedModel(learner).module
    fresh = masked_learner(bare(), 2, 9, "other").eval()
    fresh.load_state_dict(learner.state_dict())
    with torch.no_grad():
        wanted = learner(images(), 32, visible=visible)["dino"].dense
        for copied in (averaged, copy.deepcopy(learner), fresh):
            assert torch.equal(copied(images(), 32, visible=visible)["dino"].dense, wanted)


@every_vit
def test_what_is_kept_of_it_knows_nothing_of_masks(vit, tmp_path):
    """Trained for some steps, the student is exported as any other, without the decoder."""
    plain, learner = bare(vit), masked_learner(bare(vit), 1, 0, "tiny")
    optimiser = torch.optim.SGD(learner.parameters(), 0.01)
    for step in range(2):
        predicted = learner(images(), 32, visible=drawn(step=step))
        sum(features.dense.square().mean() for features in predicted.values()).backward()
        optimiser.step()
        optimiser.zero_grad()
    assert learner.student.state_dict().keys() == plain.student.state_dict().keys()
    for name in TEACHERS:
        own, other = (x.own_spaces().steps["student", name] for x in (learner, plain))
        assert own.state_dict().keys() == other.state_dict().keys()
        assert own.config == other.config

    origin = Origin("demo", "vit", "pretrain", 2, [32], "apache-2.0")
    for folder, module in (("masked", learner), ("plain", plain)):
        export_student(module.student, module.own_spaces(), tmp_path / folder, origin)
    files = [sorted(path.name for path in (tmp_path / f).iterdir()) for f in ("masked", "plain")]
    assert files[0] == files[1]
    configs = [(tmp_path / folder / "config.json").read_bytes() for folder in ("masked", "plain")]
    assert configs[0] == configs[1]
    loaded = load_student(tmp_path / "masked").eval()
    with torch.no_grad():
        wanted, found = learner.student.eval()(images(), 32), loaded(images(), 32)
        start = plain.student.eval()(images(), 32)
    assert torch.equal(found.dense, wanted.dense)
    assert torch.equal(found.summary, wanted.summary)
    assert not torch.equal(found.dense, start.dense)


def test_what_cannot_be_masked_is_refused():
    with pytest.raises(UserError, match="convnext_tiny cannot leave patches out"):
        masked_learner(bare(arch=CONVNEXT), 1, 0, "tiny")
    with pytest.raises(UserError, match="no dense features"):
        masked_learner(bare(teachers={"clip": {"summary": 12, "dense": None}}), 1, 0, "tiny")
    learner = bare()
    learner.student.with_levels = True
    with pytest.raises(UserError, match="ladder"):
        masked_learner(learner, 1, 0, "tiny")


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_two_ranks_have_the_gradients_of_one(share):
    """DDP that is not told to look for weights without a gradient, and waits for all of them."""
    pixels, visible = images(4), drawn(4, share=share)

    def gradients(learner, module, rows):
        predicted = module(pixels[rows], 32, None, visible[rows])
        sum(features.dense.square().mean() for features in predicted.values()).backward()
        return {
            n: p.grad
            for n, p in learner.named_parameters()
            if p.requires_grad and "spaces" not in n
        }

    alone = built()
    wanted = gradients(alone, alone, slice(0, 4))

    def work():
        import os

        torch.distributed.init_process_group("gloo")
        rank, learner = int(os.environ["RANK"]), built()
        for name in TEACHERS:  # no loss asks for a summary here
            for parameter in learner.space(name).parameters():
                parameter.requires_grad_(False)
        module = DistributedDataParallel(learner)
        for _ in range(2):  # the second one is refused after a weight was left out in the first
            learner.zero_grad()
            found = gradients(learner, module, slice(2 * rank, 2 * rank + 2))
        assert found.keys() == wanted.keys()
        for name, gradient in wanted.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6)
        torch.distributed.destroy_process_group()

    on_ranks(work)


@every_vit
def test_a_sharded_learner_predicts_the_same(vit):
    pixels, visible = images(2), drawn(2)
    with torch.no_grad():
        wanted = built(vit)(pixels, 32, visible=visible)

    def work():
        from accelerate import Accelerator

        from distill.engine.sharding import shard_learner, whole

        learner = built(vit)
        shard_learner(learner, Accelerator(cpu=True))
        predicted = learner(pixels, 32, visible=visible)
        for name in TEACHERS:
            torch.testing.assert_close(predicted[name].dense, wanted[name].dense)
        sum(features.dense.square().sum() for features in predicted.values()).backward()
        assert all(whole(p.grad).any() for p in learner.decoder.parameters())

    on_ranks(work)
