"""Stored features against a plain loop; kills, faults and ranks."""

import json
import multiprocessing
import os

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from distill.data.source import BadSample
from distill.probes.models import CannotProbe
from distill.protocols.chunks import CHUNK
from distill.protocols.store import FeatureStore, encoder_identity
from distill.protocols.views import squashed
from students.errors import UserError
from students.features import Features

COUNT = 2 * CHUNK + 70
VIEW = squashed(8)


class Pictures:
    """Noise of various sizes; `bad` ones cannot be decoded, and `reads` counts."""

    def __init__(self, count=COUNT, bad=()):
        self.count, self.bad, self.reads = count, bad, 0

    def __len__(self):
        return self.count

    def name(self, index):
        return f"{index}.png"

    def read(self, index):
        self.reads += 1
        if index in self.bad:
            raise BadSample(self.name(index), "is no picture")
        draw = torch.Generator().manual_seed(index)
        size = (3, 8 + index % 3, 8 + index % 5)
        return torch.randint(0, 256, size, dtype=torch.uint8, generator=draw)


class Tiny(nn.Module):
    """Patches of 4 through a linear layer with dropout and batch statistics; counts images, and
    stops (or turns to NaN) at one of them."""

    def __init__(self, dtype=torch.float32, summary=True, dense=True):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 5, 4, 4)
        self.norm = nn.Sequential(nn.BatchNorm2d(5), nn.Dropout(0.5))
        self.to(dtype)
        self.summary, self.dense = summary, dense
        self.seen, self.stop_at, self.nan_at, self.gradients = 0, None, None, False
        self.value = float("nan")

    def forward(self, pixels, size=None):
        assert size == 8
        assert pixels.dtype == torch.float32
        assert 0 <= pixels.min() <= pixels.max() <= 1
        if self.stop_at is not None and self.seen >= self.stop_at:
            raise KeyboardInterrupt
        self.seen += len(pixels)
        out = self.norm(self.conv(pixels.to(self.conv.weight.dtype))).permute(0, 2, 3, 1)
        if self.nan_at is not None and self.seen >= self.nan_at:
            out = out.clone()
            out[-1, -1, -1, -1] = self.value
        self.gradients |= out.requires_grad
        return Features(
            out.mean((1, 2)) if self.summary else None, out.contiguous() if self.dense else None
        )


@pytest.fixture(scope="module")
def truth():
    """Features by one image at a time."""
    encoder, pictures = Tiny().eval(), Pictures()
    with torch.no_grad():
        return [encoder(VIEW.show(pictures.read(i))[None] / 255, VIEW.size) for i in range(COUNT)]


def store(folder, **settings):
    return FeatureStore(folder, **{"workers": 0, "batch": 32, **settings})


def asked(made, encoder, pictures=None, **settings):
    return made.features(encoder, "encoder", pictures or Pictures(), "p", VIEW, "cpu", **settings)


def compare(stored, truth):
    for kind in ("summary", "dense"):
        rows = getattr(stored, kind)
        expected = torch.cat([features.get(kind) for features in truth])
        assert rows.shape == expected.shape
        assert len(rows) == len(expected)
        torch.testing.assert_close(rows[:], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("workers", [0, 2])
def test_features_are_those_of_a_plain_loop(tmp_path, truth, workers):
    told = []
    encoder = Tiny().train()
    made = store(tmp_path, workers=workers, progress=lambda *done: told.append(done))
    compare(asked(made, encoder), truth)
    assert encoder.seen == COUNT
    # Not in train mode (the batch statistics would differ) and without gradients, and put back.
    assert not encoder.gradients
    assert encoder.norm.training
    assert encoder.norm[0].num_batches_tracked == 0
    assert told[0] == (0, COUNT)
    assert told[-1] == (COUNT, COUNT)
    assert sorted(told) == told


def test_rows_come_in_the_order_asked_for(tmp_path):
    stored = asked(store(tmp_path), Tiny())
    for rows in (stored.summary, stored.dense):
        everything = rows[:]
        draw = torch.Generator().manual_seed(1)
        index = torch.randint(0, COUNT, (300,), generator=draw)  # with repetitions
        for wanted in (index, slice(250, 530), slice(-3, None), slice(None, None, 7), slice(5, 2)):
            assert torch.equal(rows[wanted], everything[wanted])
            assert rows[wanted].dtype == torch.float32
        assert rows[torch.tensor([], dtype=torch.int64)].shape == (0, *everything.shape[1:])
        with pytest.raises(IndexError, match=f"{COUNT} of {COUNT}"):
            rows[torch.tensor([0, COUNT])]
        with pytest.raises(TypeError, match="not list"):
            rows[[1, 2]]


def test_a_row_is_read_without_the_rest(tmp_path):
    stored = asked(store(tmp_path), Tiny())
    for kind in ("summary", "dense"):
        first = getattr(stored, kind)[:5]
        # Only the chunk of these rows is needed.
        for path in tmp_path.rglob("000001.safetensors"):
            path.rename(path.with_suffix(".away"))
        assert torch.equal(getattr(stored, kind)[:5], first)
        for path in tmp_path.rglob("000001.away"):
            path.rename(path.with_suffix(".safetensors"))


def test_a_second_run_computes_nothing_and_a_killed_one_only_what_is_missing(tmp_path, truth):
    encoder = Tiny()
    encoder.stop_at = CHUNK + 100
    with pytest.raises(KeyboardInterrupt):
        asked(store(tmp_path), encoder)
    again, pictures = Tiny(), Pictures()
    compare(asked(store(tmp_path), again, pictures), truth)
    assert again.seen == COUNT - CHUNK
    assert pictures.reads == COUNT - CHUNK
    third, pictures = Tiny(), Pictures()
    compare(asked(store(tmp_path), third, pictures), truth)
    assert third.seen == 0
    assert pictures.reads == 0


def kill_while_writing(folder):
    torch.set_num_threads(1)  # the threads of OpenMP do not outlive a fork
    encoder = Tiny()
    import distill.protocols.chunks as chunks

    save = chunks.save_file

    def half(tensors, path, metadata):
        save(tensors, path, metadata)
        if path.name.startswith(".000001"):
            os.truncate(path, 100)
            os.kill(os.getpid(), 9)

    chunks.save_file = half
    asked(store(folder), encoder)


def test_what_a_kill_leaves_half_written_is_not_there(tmp_path, truth):
    process = multiprocessing.get_context("fork").Process(
        target=kill_while_writing, args=(tmp_path,)
    )
    process.start()
    process.join()
    assert process.exitcode == -9
    assert {path.name for path in tmp_path.rglob("*.safetensors")} == {"000000.safetensors"}
    encoder, said = Tiny(), []
    compare(asked(store(tmp_path, say=said.append), encoder), truth)
    assert encoder.seen == COUNT - CHUNK
    assert said == []
    assert not list(tmp_path.rglob("*.new"))


@pytest.mark.parametrize("how", ["truncated", "flipped", "empty", "short"])
def test_a_damaged_chunk_is_computed_again_and_said(tmp_path, truth, how):
    asked(store(tmp_path), Tiny())
    path = next(tmp_path.rglob("000001.safetensors"))
    content = bytearray(path.read_bytes())
    if how == "short":  # whole, but of fewer pictures
        path.write_bytes(next(tmp_path.rglob("000002.safetensors")).read_bytes())
    else:
        content[-1] ^= 1
        path.write_bytes({"truncated": content[:-9], "flipped": content, "empty": b""}[how])
    encoder, said = Tiny(), []
    compare(asked(store(tmp_path, say=said.append), encoder), truth)
    assert encoder.seen == CHUNK
    assert said == [f"{path} is damaged; its {CHUNK} pictures are computed again"]


def test_features_are_filed_by_all_that_they_are_made_of(tmp_path):
    encoder, made = Tiny(), store(tmp_path)
    few = Pictures(3)
    asks = [
        ("a", few, "p", VIEW, "dense"),
        ("b", few, "p", VIEW, "dense"),
        ("a", few, "q", VIEW, "dense"),
        ("a", few, "p", VIEW, "summary"),
        ("a", few, "p", type(VIEW)("another", 8, VIEW.show), "dense"),
    ]
    for number, (of, pictures, identity, view, kind) in enumerate(asks, 1):
        for _ in range(2):
            made.features(encoder, of, pictures, identity, view, "cpu", kind=kind)
        assert encoder.seen == 3 * number
    folders = sorted(tmp_path.iterdir())
    assert len(folders) == len(asks)
    assert all(len(folder.name) == 24 for folder in folders)
    about = [json.loads((folder / "about.json").read_text()) for folder in folders]
    assert {one["key"]["encoder"] for one in about} == {"a", "b"}
    assert all("3 pictures" in one["what"] for one in about)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dense_tokens_keep_their_type_and_summaries_are_float32(tmp_path, dtype):
    asked(store(tmp_path), Tiny(dtype), Pictures(3))
    held = load_file(next(tmp_path.rglob("*.safetensors")))
    assert held["dense"].dtype == dtype
    assert held["summary"].dtype == torch.float32


def test_of_summary_tasks_only_the_average_of_dense_tokens_is_kept(tmp_path, truth):
    stored = asked(store(tmp_path), Tiny(), kind="summary")
    averages = torch.cat([features.dense for features in truth]).mean((1, 2), keepdim=True)
    assert stored.dense.shape == (COUNT, 1, 1, 5)
    torch.testing.assert_close(stored.dense[:], averages)
    assert stored.averaged
    assert not asked(store(tmp_path), Tiny()).averaged
    with pytest.raises(ValueError, match="'both'"):
        asked(store(tmp_path), Tiny(), kind="both")


def test_what_an_encoder_does_not_give_is_none(tmp_path):
    assert asked(store(tmp_path / "a"), Tiny(summary=False), Pictures(3)).summary is None
    assert asked(store(tmp_path / "b"), Tiny(dense=False), Pictures(3)).dense is None
    with pytest.raises(CannotProbe, match="vit gives neither"):
        asked(store(tmp_path), Tiny(summary=False, dense=False), Pictures(3), name="vit")


def test_unreadable_pictures_are_all_counted(tmp_path):
    for workers in (0, 1):
        encoder, pictures = Tiny(), Pictures(bad=(40, 41, 300, COUNT - 1))
        with pytest.raises(UserError) as error:
            asked(store(tmp_path, workers=workers), encoder, pictures)
        assert str(error.value) == (
            f"4 of {COUNT} pictures cannot be read, the first: 40.png: is no picture"
        )
        assert encoder.seen <= 64
    # Once they can be read there is nothing left of the trouble.
    assert asked(store(tmp_path), Tiny()).summary is not None


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("summary", [True, False])
def test_features_that_are_not_finite_are_never_kept(tmp_path, value, summary):
    encoder = Tiny(torch.bfloat16, summary=summary)
    encoder.nan_at, encoder.value = CHUNK + 1, float(value)
    for _ in range(2):
        with pytest.raises(CannotProbe, match=r"^vit gives features that are not finite numbers$"):
            asked(store(tmp_path), encoder, name="vit")
    assert [path.name for path in tmp_path.rglob("*.safetensors")] == ["000000.safetensors"]


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("distill.protocols.chunks.save_file", full)
    with pytest.raises(UserError, match=r"000000.*cannot be written: No space left"):
        asked(store(tmp_path), Tiny())
    assert not list(tmp_path.rglob("*.new"))


def test_two_ranks_in_turn_give_the_same_with_each_picture_once(tmp_path, truth):
    asked(store(tmp_path / "one"), Tiny())
    first, second, pictures = Tiny(), Tiny(), Pictures()
    other = store(tmp_path / "two", rank=1, ranks=2)
    mine = store(tmp_path / "two", rank=0, ranks=2, barrier=lambda: asked(other, second, pictures))
    compare(asked(mine, first, pictures), truth)
    assert (first.seen, second.seen) == (CHUNK + 70, CHUNK)
    assert pictures.reads == COUNT
    one, two = (
        {p.name: p.read_bytes() for p in (tmp_path / n).rglob("*.safetensors")}
        for n in ("one", "two")
    )
    assert one == two


def rank_of_two(rank, folder, answers):
    torch.set_num_threads(1)  # the threads of OpenMP do not outlive a fork
    torch.distributed.init_process_group(
        "gloo", rank=rank, world_size=2, init_method=f"file://{folder}/meeting"
    )
    made = store(folder / "f", rank=rank, ranks=2, barrier=torch.distributed.barrier)
    said = [asked(made, Tiny()).dense[:].sum().item()]
    cases = [(Tiny(), Pictures(bad=(300, 10))), (Tiny(), Pictures())]
    cases[1][0].nan_at = 1 if rank else None  # rank 1 alone meets it
    for number, (encoder, pictures) in enumerate(cases):
        try:
            made.features(encoder, str(number), pictures, "other", VIEW, "cpu")
        except (UserError, CannotProbe) as error:
            said.append(f"{type(error).__name__}: {error}")
    answers.put((rank, said))
    torch.distributed.destroy_process_group()


def test_two_processes_answer_the_same_whatever_happens_to_one(tmp_path, truth):
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    processes = [
        context.Process(target=rank_of_two, args=(rank, tmp_path, answers)) for rank in range(2)
    ]
    for process in processes:
        process.start()
    said = dict(answers.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()
    assert said[0] == said[1]
    total, unreadable, nan = said[0]
    assert total == pytest.approx(float(torch.cat([f.dense for f in truth]).sum()), rel=1e-4)
    assert unreadable == (
        f"UserError: 2 of {COUNT} pictures cannot be read, the first: 10.png: is no picture"
    )
    assert nan == "CannotProbe: the model gives features that are not finite numbers"
    assert not list(tmp_path.rglob("trouble*"))


def test_the_identity_is_of_weights_and_words():
    one, same = Tiny(), Tiny()
    identity = encoder_identity(one, "words")
    assert identity == encoder_identity(same, "words")
    others = {encoder_identity(one, "other words"), encoder_identity(one.bfloat16(), "words")}
    with torch.no_grad():
        same.norm[0].running_mean[2] += 1e-6
    others.add(encoder_identity(same, "words"))
    assert len(others | {identity}) == 4
