import numpy as np
import pytest
import torch

from students import Features, Space, Spaces, UserError
from students.moments import Moments
from students.normalisers import Normaliser
from students.spaces import adapter_parameters, build_adapter


def test_moments_survive_a_large_mean_and_uneven_batches():
    rows = 30 + 0.05 * torch.randn(5000, 7, generator=torch.Generator().manual_seed(0))
    moments = Moments(7)
    for part in rows.split([1, 10, 2000, 2989]):
        moments.update(part.reshape(1, -1, 7))
    exact = rows.double().numpy()
    np.testing.assert_allclose(moments.mean.numpy(), exact.mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.std.numpy(), exact.std(0), rtol=1e-9)
    # The trap that this avoids: one pass of float32 sums is percents off.
    naive = (rows.square().sum(0) / 5000 - (rows.sum(0) / 5000).square()).clamp_min(0).sqrt()
    assert (naive.numpy() / exact.std(0) - 1).__abs__().max() > 0.01


def test_merged_moments_are_those_of_all_rows():
    a, b = torch.randn(40, 3), 5 + torch.randn(60, 3)
    left, right, both = Moments(3), Moments(3), Moments(3)
    left.update(a)
    right.update(b)
    both.update(torch.cat([a, b]))
    left.merge(right.count, right.mean, right.squares)
    torch.testing.assert_close(left.std, both.std)
    torch.testing.assert_close(left.mean, both.mean)


def test_standardised_targets_and_back():
    rows = torch.randn(500, 4) * torch.tensor([1.0, 10, 0.1, 0.0]) + 3
    moments, normaliser = Moments(4), Normaliser("standardise", 4)
    moments.update(rows)
    normaliser.fit(moments)
    targets = normaliser(rows)
    torch.testing.assert_close(targets[:, :3].std(0, correction=0), torch.ones(3))
    assert targets[:, 3].abs().max() < 1e-2  # a dead channel is not blown up to noise
    torch.testing.assert_close(normaliser.inverse(targets), rows, atol=1e-5, rtol=1e-5)


def test_l2_keeps_directions_alone():
    moments, normaliser = Moments(3), Normaliser("l2", 3)
    moments.update(torch.randn(10, 3) * 9)
    normaliser.fit(moments)
    x = 7 * torch.randn(2, 5, 3)
    targets = normaliser(x)
    torch.testing.assert_close(targets, x / (x * x).sum(-1, keepdim=True).sqrt())
    assert torch.equal(normaliser.inverse(targets), targets)


def test_none_leaves_features_alone():
    moments, normaliser = Moments(2), Normaliser("none", 2)
    moments.update(torch.randn(10, 2) * 9)
    normaliser.fit(moments)
    x = torch.randn(3, 2)
    assert torch.equal(normaliser(x), x)


@pytest.mark.parametrize("kind", ["mlp", "linear"])
def test_adapter_parameters_are_counted_as_built(kind):
    built = sum(p.numel() for p in build_adapter(kind, 6, 10, 4).parameters())
    assert adapter_parameters(kind, 6, 10, 4) == built


def test_the_mlp_adapter_is_the_published_head():
    head = build_adapter("mlp", 5, 7, 3)
    x = torch.randn(2, 5)
    hidden = torch.nn.functional.layer_norm(
        x @ head[0].weight.T, (7,), head[1].weight, head[1].bias, 1e-5
    )
    torch.testing.assert_close(head(x), torch.nn.functional.gelu(hidden) @ head[3].weight.T)


def filled(widths, seed):
    torch.manual_seed(seed)
    space = Space(widths, hidden=9)
    for kind in space.kinds:
        space.normalisers[kind].mean.normal_()
        space.normalisers[kind].std.uniform_(0.5, 2)
        space.scales[kind].data.fill_(1.7)
    return space


def test_a_chain_undoes_each_standardisation_on_its_way(tmp_path):
    first = filled({"summary": (4, 6), "dense": (4, 6)}, 0)
    second = filled({"summary": (6, 3)}, 1)
    own = Spaces({("student", "stage/proxy"): first})
    spaces = own.beyond("stage/proxy", Spaces({("student", "siglip"): second}))
    x = torch.randn(2, 4)
    between = first.adapters["summary"](x) * 1.7
    between = between * first.normalisers["summary"].std + first.normalisers["summary"].mean
    expected = second.adapters["summary"](between) * 1.7
    expected = expected * second.normalisers["summary"].std + second.normalisers["summary"].mean
    for held in (spaces, saved_and_loaded(spaces, tmp_path)):
        reached = held.chains()["siglip"](Features(x, torch.randn(2, 2, 2, 4)))
        torch.testing.assert_close(reached.summary, expected)
        assert reached.dense is None  # the second space holds no dense tokens
        assert dict(held.routes()) == {
            "stage/proxy": ["stage/proxy"],
            "siglip": ["stage/proxy", "siglip"],
        }


def saved_and_loaded(spaces, folder):
    spaces.save(folder, {"student": "fixed/vit"})
    return Spaces.load(folder)


def test_a_direct_space_is_preferred_to_a_chain():
    direct, via = filled({"summary": (4, 3)}, 0), filled({"summary": (4, 6)}, 1)
    steps = {
        ("student", "p"): via,
        ("p", "t"): filled({"summary": (6, 3)}, 2),
        ("student", "t"): direct,
    }
    assert Spaces(steps).chains()["t"].spaces == [direct]


def test_a_folder_without_adapters_is_named(tmp_path):
    with pytest.raises(UserError, match="holds no adapters"):
        Spaces.load(tmp_path)
