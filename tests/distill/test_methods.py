"""The published methods as recipes: each is planned without a network, and its tiny variant shows
what makes the method, read from its log, its files, and what teachers and students were shown."""

import json
import socket
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import constants
from safetensors.torch import load_file

from distill.data.sources import open_source
from distill.engine import masked
from distill.engine.learner import Learner
from distill.engine.stage import Stage
from distill.recipe.load import from_dict, load_recipe
from distill.recipe.plan import plan
from distill.runner import run
from students import Spaces
from teachers import Teacher, TeacherSpec, describe_teacher, load_teacher

HOME = Path(__file__).parents[2] / "recipes"
ARXIV = {
    "eupe": "2603.22387",
    "am-radio": "2312.06709",
    "radio-v2.5": "2412.07679",
    "unic": "2408.05088",
    "dune": "2503.14405",
    "theia": "2407.20179",
    "sami": "2312.00863",
}
WIDTH = 96
"""Of the tiny students, and of the tokens of DINOv2 and SigLIP."""
SAM_WIDTH = describe_teacher(TeacherSpec("sam", "builtin:sam-tiny", tokens=("dense",))).dense_dim


def text(name):
    return (HOME / f"{name}.yaml").read_text(encoding="utf-8")


def with_scenes(name):
    """Overrides that put scenes in the place of every source of a recipe."""
    return [
        f"data.train.{source}.source=scenes:count=8"
        for source in yaml.safe_load(text(name))["data"]["train"]
    ]


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """An empty hub cache, and a network on which nothing is reached."""

    def refuse(*_):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(socket.socket, "connect", refuse)
    yield
    assert not (tmp_path / "hub").exists()


# ---- the recipes at full size


@pytest.mark.parametrize("name", ARXIV)
def test_the_header_names_the_paper_and_the_command(name):
    header = text(name).partition("\nname:")[0]
    assert ARXIV[name] in header
    assert f"\n#   distill run {name} " in header
    assert f"\n#   distill run {name}-tiny\n" in text(f"{name}-tiny")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name == "eupe" else ()) for name in ARXIV]
)
def test_it_is_planned_offline(name, offline):
    found = plan(load_recipe(name, with_scenes(name)))
    assert [teacher.fetched for teacher in found.teachers] == [False] * len(found.teachers)
    unknown = {"ibot", "dbot"} if name == "unic" else set()  # in no library, and on no hub
    assert {teacher.name for teacher in found.teachers if not teacher.parameters} == unknown
    for stage in found.stages:
        for student in stage.students:
            assert student.parameters > 1e6
            assert (student.adapters is None) == bool(unknown & set(student.teachers))


@pytest.mark.parametrize("name", ["am-radio", "radio-v2.5"])
def test_partitions_hold_as_many_images_as_they_say(name):
    shares = [
        [part["share"] for part in stage["partitions"].values()]
        for stage in yaml.safe_load(text(name))["stages"].values()
        if "partitions" in stage
    ]
    batches = [
        stage["train"]["batch_size"]
        for stage in yaml.safe_load(text(name))["stages"].values()
        if "partitions" in stage
    ]
    assert [sum(each) for each in shares] == batches


def test_unics_ladder_is_as_large_as_published(offline):
    same = [f"teachers.{name}.weights=deit3_base_patch16_224.fb_in1k" for name in ("ibot", "dbot")]
    found = plan(load_recipe("unic", [*with_scenes("unic"), *same]))
    (student,) = found.stages[0].students
    a_rung = 768 * 960 + 2 * 960 + 960 * 768
    assert student.adapters == 4 * 2 * 12 * a_rung
    assert round(student.adapters / 1e6, 1) == 141.7


def axes(name):
    """What the stages of a recipe say of the axes along which methods differ."""
    values = uncommented(name) if name == "dune" else yaml.safe_load(text(name))
    recipe = from_dict(
        values
        | {
            "data": values["data"]
            | {
                "train": {
                    source: config | {"source": "scenes:count=8"}
                    for source, config in values["data"]["train"].items()
                }
            }
        }
    )
    stages = recipe.stages.values()
    own = [student.adapter for stage in stages for student in stage.students.values()]
    return {
        "adapters": {a.kind for a in [*filter(None, own)] or [stage.adapter for stage in stages]},
        "losses": {json.dumps([s.loss.summary, s.loss.dense, s.loss.grid]) for s in stages},
        "normalisers": {teacher.normaliser for teacher in recipe.teachers.values()},
        "balances": {(stage.balance.kind, stage.balance.drop) for stage in stages},
        "objectives": {(stage.objective, stage.masked.visible) for stage in stages},
        "partitions": [len(stage.partitions) for stage in stages][-1],
        "own images": any(source.teachers for source in recipe.data.train.values()),
        "homogeneous": any(source.homogeneous for source in recipe.data.train.values()),
        "cached": recipe.cache is not None,
    }


def uncommented(name):
    """The recipe with the lines that wait for further teachers."""
    lines = text(name).partition("\nname:")
    body = (lines[1] + lines[2]).replace("  # mast3r:", "  mast3r:")
    for key in ("multi_hmr", "habitat", "bedlam", "balance"):
        body = body.replace(f"  # {key}:", f"  {key}:")
    values = yaml.safe_load(body)
    for stage in values["stages"].values():
        stage["students"]["vit_b"]["teachers"] = ["dinov2", "mast3r", "multi_hmr"]
    return values


@pytest.mark.parametrize("name", ARXIV)
def test_the_tiny_variant_is_the_same_method(name):
    assert axes(f"{name}-tiny") == axes(name)


# ---- DUNE's further teachers, as docs/methods.md has them


class AsymmetricMASt3R(torch.nn.Module):
    """MASt3R's class as far as a family sees it: an encoder of patches, each its mean colour."""

    @classmethod
    def from_pretrained(cls, folder):
        assert (Path(folder) / "model.safetensors").exists()
        return cls()

    def _encode_image(self, image, true_shape):
        assert true_shape.tolist() == [list(image.shape[2:])] * len(image)
        patches = image.unfold(2, 16, 16).unfold(3, 16, 16).mean((-1, -2))
        return patches.flatten(2).transpose(1, 2).repeat(1, 1, 342)[..., :1024], None, None


@pytest.fixture
def mast3r(tmp_path, monkeypatch):
    """The page's package with a stand-in for MASt3R; a folder of its weights."""
    import sys
    from types import ModuleType

    import teachers.teacher as registry

    stand_in = ModuleType("mast3r.model")
    stand_in.AsymmetricMASt3R = AsymmetricMASt3R
    monkeypatch.setitem(sys.modules, "mast3r", ModuleType("mast3r"))
    monkeypatch.setitem(sys.modules, "mast3r.model", stand_in)
    page = (HOME.parent / "docs" / "methods.md").read_text(encoding="utf-8")
    (code,) = [part.partition("```")[0] for part in page.split("```python\n")[1:]]
    names = {}
    exec(code, names)
    known = dict(registry._FAMILIES) | {"mast3r": names["Mast3rTeacher"]}
    monkeypatch.setattr(registry, "_FAMILIES", known)
    (tmp_path / "mast3r").mkdir()
    (tmp_path / "mast3r/model.safetensors").write_bytes(b"")
    return tmp_path / "mast3r"


def test_the_page_makes_a_teacher_of_mast3r(mast3r):
    teacher = load_teacher(TeacherSpec("mast3r", str(mast3r), tokens=("dense",)))
    pixels = torch.zeros(2, 3, 64, 64)
    pixels[1, 0, :16, 16:32] = 1.0  # the patch of row 0, column 1
    features = teacher(pixels, 64)
    assert features.summary is None
    assert features.dense.shape == (2, 4, 4, 1024)
    assert features.dense[0].eq(-1).all()
    assert features.dense[1, 0, 1, 0] == 1
    assert features.dense[1].sum() == pytest.approx(-4 * 4 * 1024 + 2 * 342)


def test_dune_is_whole_with_them(mast3r, tmp_path, offline):
    import timm
    from timm.models import save_for_hf

    arguments = {"embed_dim": 64, "depth": 1, "num_heads": 1, "num_classes": 0, "img_size": 224}
    model = timm.create_model("vit_large_patch14_dinov2", **arguments)
    folder = tmp_path / "multi-hmr"
    kept = {key: value for key, value in arguments.items() if key != "num_classes"}
    save_for_hf(model, folder, model_args=kept, safe_serialization=True)
    values = uncommented("dune")
    for source in values["data"]["train"].values():
        source["source"] = "scenes:count=8"
    values["teachers"]["mast3r"]["weights"] = str(mast3r)
    values["teachers"]["multi_hmr"]["weights"] = str(folder)
    found = plan(from_dict(values))
    widths = {t.name: (t.summary_dim, t.dense_dim) for t in found.teachers}
    assert widths == {"dinov2": (1024, 1024), "mast3r": (None, 1024), "multi_hmr": (64, 64)}
    assert found.recipe.data.train["bedlam"].teachers == ["dinov2", "multi_hmr"]
    assert all(student.adapters for stage in found.stages for student in stage.students)


# ---- the tiny variants, run


@dataclass
class Step:
    """One step of training: the samples of its batch, what each teacher was shown, as (family,
    images, size), what the student was, as (images, size), and how many patches it saw."""

    stage: str
    samples: list[str]
    teachers: list[tuple[str, int, int]] = field(default_factory=list)
    student: list[tuple[int, int]] = field(default_factory=list)
    patches: list[int] = field(default_factory=list)


class Witness:
    """What happens in the steps of a run."""

    def __init__(self, patch):
        self.steps: list[Step] = []
        self.now: Step | None = None
        self._watch_steps(patch)
        self._watch_teachers(patch)
        self._watch_students(patch)

    def _watch_steps(self, patch):
        step = Stage.step

        def watched(stage, trainees, number, batch, pixels):
            self.now = Step(stage.name, list(batch.names))
            self.steps.append(self.now)
            step(stage, trainees, number, batch, pixels)
            self.now = None

        patch.setattr(Stage, "step", watched)

    def _watch_teachers(self, patch):
        forward = Teacher.forward

        def watched(teacher, pixels, size=None):
            if self.now is not None:
                self.now.teachers.append((teacher.info.spec.family, len(pixels), size))
            return forward(teacher, pixels, size)

        patch.setattr(Teacher, "forward", watched)

    def _watch_students(self, patch):
        forward, encode_visible = Learner.forward, masked.encode_visible

        def watched(learner, pixels, size, *arguments, **keywords):
            if self.now is not None:
                self.now.student.append((len(pixels), size))
            return forward(learner, pixels, size, *arguments, **keywords)

        def seen(student, pixels, size, visible):
            if self.now is not None:
                self.now.patches.append(visible.shape[1])
            return encode_visible(student, pixels, size, visible)

        patch.setattr(Learner, "forward", watched)
        patch.setattr(masked, "encode_visible", seen)


@dataclass
class Ran:
    """A finished run and what was seen of it."""

    folder: Path
    steps: list[Step]

    def log(self, stage):
        return [json.loads(line) for line in (self.folder / stage / "log.jsonl").open()]

    def adapters(self, student):
        return load_file(self.folder / student / "adapters.safetensors")

    def of(self, stage):
        return [step for step in self.steps if step.stage == stage]


@pytest.fixture(scope="session")
def ran(tmp_path_factory):
    """ran("unic") -> the run of recipes/unic-tiny.yaml, once for the whole session."""
    runs = {}

    def finished(name):
        if name not in runs:
            with pytest.MonkeyPatch.context() as patch:
                # A cache of this run's own: what others filled would answer for the teachers.
                patch.setenv("DISTILL_CACHE", str(tmp_path_factory.mktemp("cache")))
                witness = Witness(patch)
                folder = tmp_path_factory.mktemp(name) / "run"
                run(f"{name}-tiny", run_dir=folder, quiet=True)
            runs[name] = Ran(folder, witness.steps)
        return runs[name]

    return finished


def first_and_last(lines, teacher, kind):
    values = [line["teachers"][teacher][kind]["explained_variance"] for line in lines]
    return values[0], values[-1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ARXIV)
def test_it_learns(ran, name):
    done = ran(name)
    stage = done.steps[0].stage
    lines = done.log(stage)
    assert not any(line["nonfinite"] for line in lines)
    for teacher in lines[0]["teachers"]:
        before, after = first_and_last(lines, teacher, "dense")
        assert after > before + 0.03


@pytest.mark.slow
def test_eupe_goes_through_a_proxy(ran):
    done = ran("eupe")
    taught = {stage: set(done.log(stage)[-1]["teachers"]) for stage in ("proxy", "fixed")}
    assert taught == {"proxy": {"dinov2", "siglip", "sam"}, "fixed": {"proxy/proxy"}}
    assert {family for step in done.of("fixed") for family, _, _ in step.teachers} == {"student"}
    mlp = [96 * w + 2 * 96 for w in (128, 128)] * 2 + [96 * 128 + 2 * 96]
    outputs = 4 * 96 * WIDTH + 96 * SAM_WIDTH
    assert done.log("proxy")[0]["adapter_parameters"] == sum(mlp) + outputs
    to_proxy = 2 * (WIDTH * 192 + 2 * 192 + 192 * 128)
    assert done.log("fixed")[0]["adapter_parameters"] == to_proxy
    reached = Spaces.load(done.folder / "multires/vit").chains()
    assert set(reached) == {"proxy/proxy", "dinov2", "siglip", "sam"}


@pytest.mark.slow
def test_eupes_proxy_and_student_draw_sizes_independently(ran):
    pairs = [
        (size, shown)
        for step in ran("eupe").of("multires")
        for (_, size), (_, _, shown) in zip(step.student, step.teachers, strict=True)
    ]
    assert len(pairs) == 16
    assert {size for size, _ in pairs} == {shown for _, shown in pairs} == {64, 96}
    assert 0 < sum(size != shown for size, shown in pairs) < len(pairs)


@pytest.mark.slow
def test_eupes_batches_are_of_one_source_or_of_the_other(ran):
    sources = [{name.split("/")[0] for name in step.samples} for step in ran("eupe").steps]
    assert all(len(found) == 1 for found in sources)
    share = sum(found == {"imagenet"} for found in sources) / len(sources)
    assert 0.1 < share < 0.4


@pytest.mark.slow
def test_am_radio_shows_sam_a_partition_of_its_own(ran):
    done = ran("am-radio")
    assert {str(line["partitions"]) for line in done.log("both")} == {"{'low': 16, 'high': 2}"}
    for step in done.of("both"):
        assert sorted(step.teachers) == [("dinov2", 16, 64), ("sam", 2, 128), ("siglip", 16, 64)]
        assert sorted(step.student) == [(2, 128), (16, 64)]
    assert all(step.student == [(16, 64)] for step in done.of("low"))
    assert {family for step in done.of("low") for family, _, _ in step.teachers} == {
        "dinov2",
        "siglip",
    }
    buffers = done.adapters("both/radio")
    kept = [tensor for name, tensor in buffers.items() if ".mean" in name or ".std" in name]
    assert len(kept) == 2 * 5
    assert all(tensor.unique().numel() == 1 for tensor in kept)  # 0 and 1: nothing is normalised


@pytest.mark.slow
def test_radio_v2_5_shows_both_resolutions_to_all_teachers(ran):
    done = ran("radio-v2.5")
    sizes = {"most": 12, "with_sam": 4, "high": 4}
    assert all(line["partitions"] == sizes for line in done.log("both"))
    for step in done.of("both"):
        assert sorted(step.student) == [(4, 64), (4, 128), (12, 64)]
        images = {family: [] for family in ("dinov2", "siglip", "sam")}
        for family, count, _ in step.teachers:
            images[family].append(count)
        assert {family: sorted(counts) for family, counts in images.items()} == {
            "dinov2": [4, 4, 12],
            "siglip": [4, 4, 12],
            "sam": [4, 4],
        }


@pytest.mark.slow
@pytest.mark.parametrize("teacher", ["dinov2", "siglip", "sam"])
def test_phi_s_gives_all_channels_one_variance(ran, teacher):
    """The buffers of the student's folder, on features of images that it was not fitted on."""
    buffers = ran("radio-v2.5").adapters("low/vit")
    mean, weight = (
        buffers[f"student>{teacher}|normalisers.dense.{name}"].double()
        for name in ("mean", "weight")
    )
    width = len(mean)
    assert width == (SAM_WIDTH if teacher == "sam" else WIDTH)
    gram = weight @ weight.T
    scale = gram.diagonal().mean()
    torch.testing.assert_close(gram, scale * torch.eye(width).double(), rtol=0, atol=1e-4 * scale)
    frozen = load_teacher(TeacherSpec(teacher, f"builtin:{teacher}-tiny", tokens=("dense",)))
    source = open_source("scenes:count=64,size=96,seed=7")
    pixels = torch.stack([source.read(index) for index in range(64)]).float() / 255
    tokens = frozen(pixels, 128 if teacher == "sam" else 64).dense.double().flatten(0, 2)
    variance = ((tokens - mean) @ weight.T).var(0)
    assert variance.mean() == pytest.approx(1, abs=0.5)
    spread = (tokens.var(0).amax() / tokens.var(0).amin()).item()
    assert spread > 3
    assert variance.amax() / variance.amin() < min(3, spread)


@pytest.mark.slow
def test_unic_keeps_the_largest_loss_and_about_half_of_the_others(ran):
    lines = ran("unic").log("distil")
    kept = [line["kept"] for line in lines]
    for shares in kept:
        assert set(shares) == {"dinov2", "siglip", "sam"}
        assert sum(shares.values()) >= 1
        assert all(0.3 < share < 1 for share in shares.values())
    # One is kept for certain and two with one half each: 2 of 3, with a deviation of 0.03.
    assert sum(sum(shares.values()) for shares in kept) / len(kept) == pytest.approx(2, abs=0.15)


@pytest.mark.slow
def test_unics_ladder_has_a_rung_for_every_block(ran):
    done = ran("unic")
    weights = load_file(done.folder / "distil/vit/model.safetensors")
    blocks = {name.split(".")[1] for name in weights if name.startswith("blocks.")}
    assert blocks == {"0", "1", "2"}
    names = done.adapters("distil/vit")
    for teacher, kinds in (("dinov2", ("summary", "dense")), ("sam", ("dense",))):
        for kind in kinds:
            prefix = f"student>{teacher}|adapters.{kind}."
            assert {n[len(prefix) :].split(".")[0] for n in names if n.startswith(prefix)} == blocks
    a_rung = [WIDTH * 64 + 2 * 64 + 64 * width for width in (WIDTH,) * 4 + (SAM_WIDTH,)]
    assert done.log("distil")[0]["adapter_parameters"] == 3 * sum(a_rung)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "stage"), [("unic", "distil"), ("dune", "pretrain")])
def test_running_statistics_move(ran, name, stage):
    done = ran(name)
    lines = [line["running"] for line in done.log(stage)]
    for teacher, kinds in lines[0].items():
        for kind, first in kinds.items():
            last = lines[-1][teacher][kind]
            assert first["mean"] != last["mean"]
            assert first["std"] != last["std"]
            # They follow the same images, so they do not move far.
            assert last["mean"] == pytest.approx(first["mean"], rel=0.5)
            held = done.adapters(f"{stage}/vit")[f"student>{teacher}|normalisers.{kind}.std"]
            assert held.mean().item() == pytest.approx(last["std"], rel=1e-5)


@pytest.mark.slow
def test_dunes_sources_are_for_their_teachers(ran):
    sees = {"dinov2": {"shared"}, "siglip": {"shared", "captions"}, "sam": {"shared", "masks"}}
    together = dict.fromkeys(sees, 0)
    for step in ran("dune").steps:
        sources = [name.split("/")[0] for name in step.samples]
        wanted = {t: sum(source in own for source in sources) for t, own in sees.items()}
        shown = {family: count for family, count, _ in step.teachers}
        assert shown == {teacher: count for teacher, count in wanted.items() if count}
        together = {teacher: together[teacher] + count for teacher, count in wanted.items()}
    assert 0 < together["dinov2"] < min(together["siglip"], together["sam"])


@pytest.mark.slow
def test_dunes_projector_is_a_transformer_block(ran):
    done = ran("dune")
    attention = WIDTH * 3 * WIDTH + 3 * WIDTH + WIDTH * WIDTH + WIDTH
    mlp = WIDTH * 192 + 192 + 192 * WIDTH + WIDTH
    a_block = attention + mlp + 2 * 2 * WIDTH
    linears = [WIDTH * width + width for width in (WIDTH,) * 4 + (SAM_WIDTH,)]
    assert done.log("pretrain")[0]["adapter_parameters"] == 3 * a_block + sum(linears)
    assert {size for step in done.of("finetune") for _, size in step.student} == {96}
    for before, after in zip(
        done.log("pretrain")[0]["teachers"].values(),
        done.log("finetune")[0]["teachers"].values(),
        strict=True,
    ):
        # It goes on with the projectors of the first stage.
        assert after["dense"]["loss"] < before["dense"]["loss"]


@pytest.mark.slow
def test_theia_learns_dense_tokens_and_asks_each_teacher_once(ran):
    done = ran("theia")
    for line in done.log("distil"):
        assert {kind for kinds in line["teachers"].values() for kind in kinds} == {"dense"}
    convolutions = 2 * (9 * WIDTH * WIDTH + WIDTH)
    norms = 3 * 2 * WIDTH
    linears = [WIDTH * width + width for width in (WIDTH, WIDTH, SAM_WIDTH)]
    wanted = 3 * (convolutions + norms) + sum(linears)
    assert done.log("distil")[0]["adapter_parameters"] == wanted
    # In a block of 256 positions each of 128 images comes twice; there are two blocks.
    assert sum(len(step.samples) for step in done.steps) == 4 * 128
    assert all(len(step.teachers) == 3 for step in done.steps[:8])
    assert not any(step.teachers for step in done.steps[16:])


@pytest.mark.slow
def test_sami_hides_three_quarters_and_throws_the_decoder_away(ran):
    done = ran("sami")
    assert {line["hidden"] for line in done.log("sami")} == {0.75}
    assert {n for step in done.steps for n in step.patches} == {16}
    assert {shown for step in done.steps for shown in step.teachers} == {("sam", 16, 64)}
    assert done.log("sami")[0]["adapter_parameters"] == WIDTH * SAM_WIDTH + SAM_WIDTH
    folder = done.folder / "sami/vit"
    stored = set(load_file(folder / "model.safetensors")) | set(done.adapters("sami/vit"))
    assert not [name for name in stored if "decoder" in name or "mask_token" in name]
    assert len([name for name in stored if "|adapters." in name]) == 2
