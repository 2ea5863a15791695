import json

import pytest
import torch
from safetensors.torch import save_file

from students import Features, Space, Spaces, UserError
from students.moments import Moments
from students.normalisers import INVERTIBLE

ADAPTERS = ("linear", "mlp", "ladder", "attention", "conv")


def measured(normaliser, seed):
    """Statistics of tokens whose channels differ and hang together."""
    generator = torch.Generator().manual_seed(seed)
    width = normaliser.width
    rows = torch.randn(4 * width + 40, width, generator=generator)
    moments = Moments(width, covariance=True)
    moments.update(rows @ torch.randn(width, width, generator=generator) + 3)
    normaliser.fit(moments)


def filled(widths, seed, **config):
    """A space with weights at which every term counts."""
    torch.manual_seed(seed)
    space = Space(widths, hidden=9, **config).requires_grad_(False).eval()
    for parameter in space.adapters.parameters():
        parameter.add_(0.2 * torch.randn_like(parameter))
    for kind in space.kinds:
        measured(space.normalisers[kind], seed + len(kind))
        space.scales[kind].fill_(1.7 if kind == "summary" else 0.6)
    return space


def features_of(width, levels=0, seed=3):
    generator = torch.Generator().manual_seed(seed)
    *below, last = [
        Features(
            torch.randn(2, width, generator=generator),
            torch.randn(2, 3, 2, width, generator=generator),
        )
        for _ in range(levels + 1)
    ]
    return Features(last.summary, last.dense, tuple(below))


def near(found, expected):
    """Equal to 1e-5 of their scale."""
    torch.testing.assert_close(found, expected, atol=1e-5 * float(expected.abs().max()), rtol=0)


def saved_and_loaded(spaces, folder):
    spaces.save(folder, {"student": "fixed/vit"})
    return Spaces.load(folder)


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


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_every_adapter_is_saved_and_loaded(adapter, tmp_path):
    config = {"adapter": adapter, "depth": 2, "levels": 2}
    space = filled({"summary": (4, 6), "dense": (4, 3)}, 5, **config)
    held = saved_and_loaded(Spaces({("student", "t"): space}), tmp_path).steps["student", "t"]
    assert held.config == space.config
    given = features_of(4, levels=2)
    for kind in ("summary", "dense"):
        assert torch.equal(held(given).get(kind), space(given).get(kind))


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("normaliser", sorted(INVERTIBLE))
def test_folded_is_the_same_map(adapter, normaliser, tmp_path):
    config = {"adapter": adapter, "depth": 2, "levels": 2, "normaliser": normaliser}
    space = filled({"summary": (4, 6), "dense": (4, 3)}, 5, **config)
    before = {name: tensor.clone() for name, tensor in space.state_dict().items()}
    given = features_of(4, levels=2)
    expected, folded = space(given), space.folded()
    again = saved_and_loaded(Spaces({("student", "t"): folded}), tmp_path).steps["student", "t"]
    for held in (folded, again, folded.folded()):
        for kind in ("summary", "dense"):
            near(held(given).get(kind), expected.get(kind))
            assert float(held.scales[kind]) == 1
        assert held.config["normaliser"] == ("none" if INVERTIBLE[normaliser] else "l2")
        assert held.config["folded"]
    # Nothing is left to do after the adapters.
    near(folded.predict(given).dense, expected.dense)
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    after = space.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert len(before) == len(after)
    assert space.config["normaliser"] == normaliser


def test_there_is_something_to_fold():
    """Else the test above would say nothing."""
    space = filled({"summary": (4, 6), "dense": (4, 3)}, 5, normaliser="phi_s")
    given = features_of(4)
    assert float((space.predict(given).dense - space(given).dense).abs().max()) > 0.5
    weight, _ = space.normalisers["dense"].inverse_affine()
    assert float((weight - weight.diag().diag()).abs().max()) > 0.1


def test_folders_of_before_still_load(tmp_path):
    """adapters.json without depth and levels, and the names that mlp and linear always had."""
    torch.manual_seed(0)
    tensors, expected = {}, {}
    x = {"summary": torch.randn(2, 4), "dense": torch.randn(2, 1, 2, 4)}
    for teacher in ("lin", "ml"):
        for kind, width in (("summary", 6), ("dense", 3)):
            about = f"student>{teacher}|"
            if teacher == "lin":
                own = {"0.weight": torch.randn(width, 4), "0.bias": torch.randn(width)}
                out = x[kind] @ own["0.weight"].T + own["0.bias"]
            else:
                own = {
                    "0.weight": torch.randn(9, 4),
                    "1.weight": torch.randn(9),
                    "1.bias": torch.randn(9),
                    "3.weight": torch.randn(width, 9),
                }
                hidden = x[kind] @ own["0.weight"].T
                hidden = torch.nn.functional.layer_norm(
                    hidden, (9,), own["1.weight"], own["1.bias"]
                )
                out = torch.nn.functional.gelu(hidden) @ own["3.weight"].T
            mean, std, scale = torch.randn(width), torch.rand(width) + 0.5, torch.tensor(1.3)
            expected[teacher, kind] = out * scale * std + mean
            tensors |= {f"{about}adapters.{kind}.{name}": each for name, each in own.items()}
            tensors |= {
                f"{about}normalisers.{kind}.mean": mean,
                f"{about}normalisers.{kind}.std": std,
                f"{about}scales.{kind}": scale,
            }
    spaces = [
        {
            "from": "student",
            "to": teacher,
            "widths": {"summary": [4, 6], "dense": [4, 3]},
            "adapter": adapter,
            "hidden": 9,
            "normaliser": "standardise",
        }
        for teacher, adapter in (("lin", "linear"), ("ml", "mlp"))
    ]
    save_file(tensors, tmp_path / "adapters.safetensors")
    (tmp_path / "adapters.json").write_text(json.dumps({"student": "a/b", "spaces": spaces}))
    loaded = Spaces.load(tmp_path)
    given = Features(x["summary"], x["dense"])
    for teacher, chain in loaded.chains().items():
        for kind in ("summary", "dense"):
            near(chain(given).get(kind), expected[teacher, kind])
    # A recipe without depth builds the same: so a run goes on with its adapters.
    fresh = Space({"summary": (4, 6), "dense": (4, 3)}, adapter="mlp", hidden=9)
    assert fresh.config == loaded.steps["student", "ml"].config


def test_a_ladder_is_in_no_chain_and_says_why(tmp_path):
    both = {"summary": (4, 6), "dense": (4, 6)}
    ladder = filled(both, 0, adapter="ladder", levels=2)
    assert (ladder.needs_levels, ladder.joint) == (True, False)
    spaces = Spaces(
        {
            ("student", "proxy"): ladder,
            ("proxy", "siglip"): filled({"summary": (6, 3)}, 1),
            ("student", "dinov2"): filled(both, 2),
        }
    )
    reason = "a ladder reads every block of the encoder and serves training only"
    for held in (spaces, saved_and_loaded(spaces, tmp_path)):
        assert dict(held.routes()) == {"dinov2": ["dinov2"]} == {k: [k] for k in held.chains()}
        assert held.left_out() == {"proxy": reason, "siglip": reason}
        assert set(held.steps) == set(spaces.steps)  # training goes on from all of them
        assert set(held.folded().steps) == {("student", "dinov2")}
        assert held.folded().left_out() == {}
    assert json.loads((tmp_path / "adapters.json").read_text())["chains"] == {"dinov2": ["dinov2"]}


def test_a_way_that_can_be_gone_is_preferred_to_a_shorter_ladder():
    both = {"summary": (4, 6), "dense": (4, 6)}
    steps = {
        ("student", "t"): filled(both, 0, adapter="ladder", levels=2),
        ("student", "p"): filled(both, 1),
        ("p", "t"): filled({"summary": (6, 6)}, 2),
    }
    spaces = Spaces(steps)
    assert dict(spaces.routes()) == {"p": ["p"], "t": ["p", "t"]}
    assert spaces.left_out() == {}
    assert set(spaces.folded().steps) == {("student", "p"), ("p", "t")}


def test_a_chain_is_joint_if_a_step_is():
    both, joint = {"summary": (4, 4), "dense": (4, 4)}, {"adapter": "attention", "depth": 2}
    spaces = Spaces(
        {
            ("student", "p"): filled(both, 0),
            ("p", "t"): filled({"dense": (4, 3)}, 1, **joint),
            ("student", "only"): filled({"summary": (4, 4)}, 2),
            ("only", "lost"): filled(both, 3, **joint),
        }
    )
    chains, given = spaces.chains(), features_of(4)
    assert {name: chain.joint for name, chain in chains.items()} == {
        "p": False,
        "only": False,
        "t": True,
    }
    reached = chains["t"](given)
    assert reached.summary is None
    other = chains["t"](Features(-given.summary, given.dense))
    assert float((reached.dense - other.dense).abs().max()) > 1e-3
    # What gives one kind alone leads no further through both.
    assert list(spaces.left_out()) == ["lost"]
    assert "together" in spaces.left_out()["lost"]
