"""Publishing on a Hub of this machine: one commit or none, whatever the network does."""

import traceback

import pytest
from hub_server import TOKEN, HubServer, Repository

from distill.export import hub
from distill.export.hub import ATTEMPTS, LONGEST_WAIT, push
from students import UserError

FILES = {
    "README.md": b"---\nlicense: mit\n---\n# A student\n",
    "model.safetensors": b"weights" * 100,
    "config.json": b"{}",
}


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """The library waits by itself too, between attempts of its own."""
    monkeypatch.setattr("time.sleep", lambda _: None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


@pytest.fixture
def server():
    server = HubServer()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def published(server):
    """published(...) -> what push gives; waits and lines are kept."""
    from huggingface_hub import HfApi

    def publish(name="me/student", token=TOKEN, files=FILES, **options):
        return push(
            files,
            name,
            api=HfApi(endpoint=server.url, token=token),
            sleep=publish.waits.append,
            say=publish.lines.append,
            **options,
        )

    publish.waits, publish.lines = [], []
    return publish


def refused(publish, *args, **options):
    """The one line of the error; the token is nowhere in it, nor in anything that hangs on it."""
    with pytest.raises(UserError) as caught:
        publish(*args, **options)
    line = str(caught.value)
    assert "\n" not in line
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value.__dict__)
    error = caught.value
    assert error.__cause__ is None
    assert error.__context__ is None
    assert TOKEN not in shown + line
    return line


def made(server, name="me/student"):
    """Commits beyond the empty one that a new repository has."""
    return len(server.repositories[name].commits) - 1 if name in server.repositories else 0


def test_one_commit_holds_everything(server, published):
    found = published()
    repository = server.repositories["me/student"]
    assert made(server) == 1
    assert repository.branches["main"] == found.commit
    assert repository.commits[found.commit] == FILES
    assert found.url.endswith("/me/student")
    assert not repository.private
    assert sum(line.startswith("POST /api/models/me/student/commit") for line in server.asked) == 1
    again = published()  # nothing is new
    assert (made(server), again.commit) == (1, found.commit)


def test_files_of_others_stay(server, published):
    published()
    files = {**FILES, "config.json": b'{"new": 1}'}
    sha = published(files={k: v for k, v in files.items() if k != "README.md"}).commit
    assert server.repositories["me/student"].commits[sha] == files


def test_a_file_goes_by_its_path(server, published, tmp_path):
    (tmp_path / "w").write_bytes(b"from a file")
    sha = published(files={"model.safetensors": tmp_path / "w"}).commit
    assert server.repositories["me/student"].commits[sha]["model.safetensors"] == b"from a file"


def test_a_new_branch_and_a_private_repository(server, published):
    found = published(private=True, revision="v1")
    repository = server.repositories["me/student"]
    assert repository.private
    assert repository.branches["v1"] == found.commit
    assert repository.commits[repository.branches["main"]] == {}
    assert published(private=True, revision="v1").commit == found.commit


def test_private_is_not_asked_of_what_is_public(server, published):
    server.repositories["me/student"] = Repository(private=False)
    assert "is public" in refused(published, private=True)
    assert made(server) == 0


STEPS = [
    "GET /api/whoami-v2",
    "POST /api/repos/create",
    "POST /api/models/me/student/branch",
    "POST /api/models/me/student/preupload",
    "POST /me/student.git/info/lfs",
    "PUT /lfs/",
    "POST /api/models/me/student/commit",
]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("what", [500, (429, {"Retry-After": "7"}), "drop"])
def test_passing_trouble_is_waited_for(server, published, step, what):
    server.trouble = [(step, what)]
    found = published(revision="v1")
    assert server.trouble == []
    assert made(server) == 1
    assert server.repositories["me/student"].commits[found.commit] == FILES
    # The library waits by itself where it can.
    assert published.waits in ([], [7.0] if isinstance(what, tuple) else [1.0])
    if step in (STEPS[0], STEPS[1], STEPS[2], STEPS[6]):
        assert len(published.waits) == len(published.lines) == 1


@pytest.mark.parametrize("step", STEPS)
def test_a_lost_answer_is_found_again(server, published, step):
    server.trouble = [(step, "lose")]
    found = published(revision="v1")
    assert server.trouble == []
    assert made(server) == 1
    assert server.repositories["me/student"].commits[found.commit] == FILES


@pytest.mark.parametrize("what", [500, (429, {"Retry-After": "100000"}), "drop"])
@pytest.mark.parametrize("step", [STEPS[3], STEPS[5], STEPS[6]])
def test_trouble_that_lasts_publishes_nothing(server, published, step, what):
    server.trouble = [(step, what)] * 100
    line = refused(published)
    assert f"after {ATTEMPTS} attempts" in line
    assert "Nothing was published" in line
    assert made(server) == 0
    assert len(published.waits) == ATTEMPTS - 1
    assert max(published.waits) == (LONGEST_WAIT if isinstance(what, tuple) else 8.0)
    server.trouble = []
    published()
    assert made(server) == 1


def test_the_hub_cannot_be_reached(published, server):
    server.shutdown()
    server.server_close()
    assert "no connection (" in refused(published)


def test_no_token(published, server, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert "has no token of the Hub; log in" in refused(published, token=None)
    assert server.asked == []


def test_a_wrong_token(published, server):
    line = refused(published, token="hf_wrongwrongwrongwrong")
    assert "does not accept this machine's token" in line
    assert "hf_wrong" not in line
    assert server.asked == ["GET /api/whoami-v2"]
    assert published.waits == []


def test_a_token_that_only_reads(published, server):
    server.role = "read"
    assert "the token of me only reads" in refused(published)
    assert server.asked == ["GET /api/whoami-v2"]


def test_a_repository_of_another(published, server):
    server.repositories["you/student"] = Repository(private=False)
    line = refused(published, "you/student")
    assert "me may not write there" in line
    assert made(server, "you/student") == 0
    assert not [one for one in server.asked if one.startswith("PUT")]
    assert "me may not write there" in refused(published, "you/other")
    assert published.waits == []


def test_another_refusal_says_which(published, server):
    server.trouble = [("commit/main", (412, {"X-Error-Message": f"odd {TOKEN}"}))]
    assert "refused to publish: 412 odd (removed)" in refused(published)


def test_offline(published, monkeypatch):
    from huggingface_hub.errors import OfflineModeIsEnabled

    def offline(*_, **__):
        raise OfflineModeIsEnabled("no")

    monkeypatch.setattr("huggingface_hub.HfApi.whoami", offline)
    assert "HF_HUB_OFFLINE is set" in refused(published)
    assert published.waits == []


@pytest.mark.parametrize("name", ["student", "a/b/c", "me/a b", "me/", "../x", "me/--x"])
def test_names_the_hub_does_not_take(published, server, name):
    assert f"--push {name}: expected USER/NAME" in refused(published, name)
    assert server.asked == []


def test_a_revision_that_is_no_branch(published, server):
    assert "expected the name of a branch" in refused(published, revision="a b")


def test_a_retry_after_is_seconds_or_nothing():
    assert hub._seconds("12") == 12.0
    assert hub._seconds("Wed, 21 Oct 2015 07:28:00 GMT") is None
    assert hub._seconds(None) is None
