import base64
import fcntl
import http.server
import multiprocessing
import os
import threading
import time
from contextlib import contextmanager

import loaded
import pytest
import torch
from tar_shards import number_of, write_shards

from distill.data import shard_cache
from distill.data.fetch import without_secrets
from distill.data.shard_cache import ShardCache
from distill.data.shards import ShardedSource, sample_index, shard_and_place
from distill.data.sources import check_source, open_source
from distill.data.webdataset import PipeShard, UrlShard
from students.errors import UserError

COUNTS = [5, 1, 9, 3, 7, 2]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(shard_cache, "WAITS", (0.01, 0.02, 0.04))
    return tmp_path / "cache/shards"


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder and notes what is asked for; `broken` answers come first, by path."""

    def __init__(self, folder):
        self.folder, self.asked, self.broken, self.authorised = folder, [], {}, []
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        name = self.path.split("?")[0].lstrip("/")
        self.server.asked.append(name)
        self.server.authorised.append(self.headers.get("Authorization"))
        answers = self.server.broken.get(name)
        answer = answers.pop(0) if answers else "whole"
        if isinstance(answer, int):
            self.send_error(answer)
            return
        data = (self.server.folder / name).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if answer == "half" else data)

    def log_message(self, *args):
        pass


@contextmanager
def serving(folder):
    server = Server(folder)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def load(source, **changes):
    settings = {"batch_size": 9, "steps": 8} | changes
    return loaded.load({"tars": (source, 1.0)}, **settings)


def pixels(batches_):
    return torch.cat([batch.pixels for batch in batches_])


@pytest.mark.parametrize("workers", [0, 3])
def test_a_server_gives_what_the_files_give_and_is_asked_once(tmp_path, workers):
    pattern = write_shards(tmp_path / "data", COUNTS)
    local = load(open_source(f"webdataset:{pattern}"))
    with serving(tmp_path / "data") as server:
        source = open_source(f"webdataset:{server.url}/{{000..005}}.tar")
        assert server.asked == []
        remote = load(source, workers=workers)
        assert torch.equal(pixels(local), pixels(remote))
        assert [b.names for b in local] == [b.names for b in remote]
        assert sorted(server.asked) == [f"{i:03d}.tar" for i in range(6)]
        load(open_source(f"webdataset:{server.url}/{{000..005}}.tar"), workers=workers)
        assert len(server.asked) == 6


def test_what_fails_for_a_while_is_tried_again(tmp_path):
    write_shards(tmp_path / "data", [4])
    with serving(tmp_path / "data") as server:
        server.broken["000.tar"] = [500, "half", 503]
        source = open_source(f"webdataset:{server.url}/000.tar")
        assert len(load(source, steps=1)[0].names) == 9
        assert len(server.asked) == 4


@pytest.mark.parametrize(
    ("answers", "words", "asked"),
    [
        ([404] * 9, "the server answers 404 Not Found;", 1),
        ([401] * 9, "401 Unauthorized", 1),
        ([500] * 9, "500 Internal Server Error, 4 times", 4),
        (["half"] * 9, "broke off after", 4),
    ],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_that_cannot_be_had_is_one_line(tmp_path, answers, words, asked, workers):
    write_shards(tmp_path / "data", [4])
    with serving(tmp_path / "data") as server:
        server.broken["000.tar"] = answers
        secret = server.url.replace("//", "//me:pass-word@") + "/000.tar?token=s-e-c"
        with pytest.raises(UserError) as caught:
            load(open_source(f"webdataset:{secret}"), workers=workers)
        message = str(caught.value)
        assert f"cannot get the shard {server.url}/000.tar: " in message
        assert words in message
        assert "\n" not in message
        assert "pass-word" not in message
        assert "s-e-c" not in message
        # A worker has two steps in hand, and may get a third before the error is heard of.
        assert asked <= len(server.asked) <= asked * (1 + 2 * workers)
        assert server.authorised[0] == "Basic " + base64.b64encode(b"me:pass-word").decode()


def test_no_server_at_all():
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9/a\.tar: .* cannot be reached"):
        load(open_source("webdataset:http://u:pw@127.0.0.1:9/a.tar"))


def test_what_stays_in_the_cache_is_bounded_and_never_in_use(tmp_path, cache):
    write_shards(tmp_path / "data", [4] * 6)
    size = (tmp_path / "data/000.tar").stat().st_size
    with serving(tmp_path / "data") as server:
        shards = [UrlShard(f"{server.url}/{i:03d}.tar") for i in range(6)]
        kept = ShardCache(2.5 * size / 1e9)
        opened = kept.open(shards[0])
        for shard in shards[1:5]:
            kept.ready(shard)
            time.sleep(0.01)  # times of last use
        there = {path.stem for path in (cache / "data").iterdir()}
        # In use; and the newest.
        assert there == {shards[0].key(), shards[4].key()}
        opened.close()
        kept.ready(shards[5])
        assert {p.stem for p in (cache / "data").iterdir()} == {shards[4].key(), shards[5].key()}
        before = len(server.asked)
        assert [kept.count(shard) for shard in shards] == [4] * 6  # counts stay
        assert len(server.asked) == before
        kept.ready(shards[0])
        assert len(server.asked) == before + 1


def test_a_run_in_a_cache_of_next_to_nothing_is_the_same(tmp_path):
    pattern = write_shards(tmp_path / "data", COUNTS * 12)
    local = load(open_source(f"webdataset:{pattern}"), steps=30)
    with serving(tmp_path / "data") as server:
        source = open_source(f"webdataset:{server.url}/{{000..071}}.tar", cache_gb=1e-6)
        remote = load(source, steps=30, workers=2)
    assert torch.equal(pixels(local), pixels(remote))


def test_a_shard_may_not_change_while_its_count_is_remembered(tmp_path, cache):
    write_shards(tmp_path / "data", [4])
    with serving(tmp_path / "data") as server:
        shard = UrlShard(f"{server.url}/000.tar")
        ShardCache().ready(shard)
        (cache / f"data/{shard.key()}.tar").unlink()
        write_shards(tmp_path / "data", [5])
        with pytest.raises(UserError, match=r"000\.tar is not what it was .* remove .*index"):
            ShardCache().ready(shard)


def _get(url, out):
    ShardCache().ready(UrlShard(url))
    out.put(True)


def test_several_processes_fetch_a_shard_once(tmp_path):
    write_shards(tmp_path / "data", [40])
    context = multiprocessing.get_context("fork")
    out = context.Queue()
    with serving(tmp_path / "data") as server:
        url = f"{server.url}/000.tar"
        processes = [context.Process(target=_get, args=(url, out)) for _ in range(4)]
        for process in processes:
            process.start()
        assert all(out.get(timeout=20) for _ in processes)
        for process in processes:
            process.join(20)
        assert server.asked == ["000.tar"]


def test_what_a_process_left_half_fetched_goes(tmp_path, cache):
    write_shards(tmp_path / "data", [4])
    (cache / "data").mkdir(parents=True)
    (cache / "locks").mkdir()
    for name in ("stale", "busy"):
        (cache / f"data/{name}.partial").write_bytes(b"half")
    held = os.open(cache / "locks/busy", os.O_CREAT | os.O_RDWR)
    fcntl.flock(held, fcntl.LOCK_EX)
    with serving(tmp_path / "data") as server:
        ShardCache().ready(UrlShard(f"{server.url}/000.tar"))
    os.close(held)
    assert not (cache / "data/stale.partial").exists()
    assert (cache / "data/busy.partial").exists()


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path / "file"))
    pattern = write_shards(tmp_path / "data", [4])
    with pytest.raises(UserError, match=r"cannot keep shards in .*; .*DISTILL_CACHE"):
        load(open_source(f"webdataset:{pattern}"))


def test_the_next_shards_are_fetched_ahead(tmp_path):
    write_shards(tmp_path / "data", [20] * 40)
    with serving(tmp_path / "data") as server:
        source = open_source(f"webdataset:{server.url}/{{000..039}}.tar")
        load(source, steps=1, batch_size=256)  # 16 draws of each lane
        until = time.monotonic() + 10
        while len(server.asked) < 32 and time.monotonic() < until:
            time.sleep(0.01)
        assert len(set(server.asked)) == len(server.asked) == 32


def test_a_command_is_refused_then_allowed(tmp_path):
    pattern = write_shards(tmp_path / "data", COUNTS)
    spec = f"webdataset:pipe:cat {pattern}"
    assert "allow_pipe: true" in check_source(spec)
    with pytest.raises(UserError, match="allow_pipe: true"):
        open_source(spec)
    assert check_source(spec, allow_pipe=True) is None
    piped = load(open_source(spec, allow_pipe=True))
    local = load(open_source(f"webdataset:{pattern}"))
    assert torch.equal(pixels(local), pixels(piped))
    assert sorted({number_of(image) for image in pixels(local)}) != [0]


def test_checking_runs_no_command(tmp_path):
    mark = tmp_path / "ran"
    spec = f"webdataset:pipe:touch {mark}; cat a.tar"
    assert check_source(spec, allow_pipe=True) is None
    open_source(spec, allow_pipe=True)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("false | cat", "ends with status 1, 4 times"),
        ("exit 7", "ends with status 7"),
        ("true", "prints nothing"),
        ("no-such-command-here --token s-e-c", "ends with status 127"),
    ],
)
def test_a_command_that_fails(command, words):
    with pytest.raises(UserError) as caught:
        load(open_source(f"webdataset:pipe:{command}", allow_pipe=True))
    assert words in str(caught.value)
    assert "s-e-c" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_secrets_are_not_shown():
    cases = {
        "https://me:pw@host:8/a/b.tar?token=x#y": "https://host:8/a/b.tar",
        "https://host/a@b.tar": "https://host/a@b.tar",
        "https://host?key=x": "https://host",
        "s3://id:key@bucket/a.tar": "s3://bucket/a.tar",
        "see http://u:p@h/a?b and /c?d": "see http://h/a and /c?d",
    }
    for text, shown in cases.items():
        assert without_secrets(text) == shown
    labels = {
        "curl -H 'Authorization: Bearer hf_x' https://me:pw@h/007.tar": "pipe:https://h/007.tar",
        "aws s3 cp s3://bucket/007.tar -": "pipe:000003",
        "cat '/data/007.tar'": "pipe:/data/007.tar",
    }
    for command, label in labels.items():
        assert PipeShard(command, 3).label == label


def test_more_samples_than_an_index_can_tell_apart(tmp_path, monkeypatch):
    assert "stands for 270000 names" in check_source("webdataset:http://h/{0..269999}.tar")
    shards = [UrlShard(f"http://h/{i}.tar") for i in range((1 << 18) + 1)]
    with pytest.raises(UserError, match="more than 262144"):
        ShardedSource(shards, ShardCache())
    monkeypatch.setattr(ShardCache, "count", lambda self, shard: (1 << 22) + 1)
    source = ShardedSource(shards[:3], ShardCache())
    with pytest.raises(UserError, match=r"h/1\.tar has 4194305 images"):
        source.count([1])
    highest = int(sample_index((1 << 18) - 1, (1 << 22) - 1))
    assert highest == (1 << 40) - 1  # what a cache of features can hold
    assert shard_and_place(highest) == ((1 << 18) - 1, (1 << 22) - 1)
