"""A process that dies at each single thing that a run does to its folder; damaged checkpoints."""

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import safetensors.torch
from child_runs import dies_at_step, ended, in_child, leftovers, results, whole_run

import distill.engine.checkpoint
from distill.engine.checkpoint import newest_checkpoint
from distill.recipe.load import from_dict
from distill.runner import run

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@pytest.fixture
def small(tiny):
    """One student, three checkpoints of which two are kept, its export, a report."""
    del tiny["stages"]["multires"]
    tiny["stages"]["proxy"]["students"]["proxy"]["teachers"] = ["dinov2"]
    tiny["stages"]["proxy"]["calibration_batches"] = 1
    tiny["stages"]["proxy"]["train"] |= {"steps": 3, "save_every": 1, "log_every": 1, "ema": 0.5}
    return tiny


def touching(folder, act):
    """In this process, call `act(what, path)` before each thing that is done to `folder`: a file
    opened to write, renamed or removed, a folder made or removed, either synced, a file of tensors
    written; and once more when that file is half written."""
    folder = str(folder)

    def hook(event, arguments):
        if event == "open" and isinstance(arguments[0], str):
            path, _, flags = arguments
            if path.startswith(folder) and isinstance(flags, int) and flags & WRITING:
                act("write", path)
        elif event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir"):
            path = os.fspath(arguments[0])
            # What rmtree removes is named from within its folder.
            if path.startswith(folder) or not Path(path).is_absolute():
                act(event, path)

    sync, save = os.fsync, safetensors.torch.save_file

    def synced(descriptor):
        act("sync", str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        sync(descriptor)

    def saved(tensors, path, *more, **named):
        act("write", str(path))
        save(tensors, path, *more, **named)
        whole = Path(path).read_bytes()
        Path(path).write_bytes(whole[: len(whole) // 2])
        act("half", str(path))
        Path(path).write_bytes(whole)

    os.fsync = synced
    for module in list(sys.modules.values()):
        if getattr(module, "save_file", None) is save:
            module.save_file = saved
    sys.addaudithook(hook)


def things_done(config, folder, notes):
    """(what, path) of all that a whole run does to its folder."""

    def work():
        with notes.open("w") as file:
            touching(folder, lambda *what: print(json.dumps(what), file=file, flush=True))
            run(from_dict(config), run_dir=folder, quiet=True)

    assert ended(in_child(work)) == 0
    return [tuple(json.loads(line)) for line in notes.read_text().splitlines()]


def states(config, folder, snapshots):
    """A whole run; beside it, a copy of its folder as each thing that it does to it finds it. Those
    alike are kept once. What Python has yet to write is not in them, as when the process dies."""

    def work():
        seen = set()

        def act(what, path):
            files = sorted(folder.rglob("*"))
            content = [(str(f), f.read_bytes() if f.is_file() else None) for f in files]
            state = hashlib.sha256(repr(content).encode()).hexdigest()
            if state not in seen:
                seen.add(state)
                copying.append(True)
                shutil.copytree(folder, snapshots / f"{len(seen):03d} {what} {Path(path).name}")
                copying.pop()

        copying = []
        snapshots.mkdir()
        touching(folder, lambda *what: copying or not folder.exists() or act(*what))
        run(from_dict(config), run_dir=folder, quiet=True)

    assert ended(in_child(work), 300) == 0
    return sorted(snapshots.iterdir())


@pytest.mark.slow
def test_death_at_every_touch_of_the_folder(small, tmp_path):
    """Whatever the process was about to do when it died, what it left can be gone on from."""
    found = states(small, tmp_path / "whole", tmp_path / "states")
    kinds = {path.name.split()[1] for path in found}
    assert kinds >= {"write", "half", "sync", "os.remove", "os.mkdir", "os.rmdir"}
    assert len(found) > 50
    expected = results(tmp_path / "whole")
    for folder in found:
        whole_run(small, folder)
        assert results(folder) == expected, folder.name
        assert leftovers(folder) == [], folder.name
        assert (folder / "report.html").read_text().rstrip().endswith("</html>")


@pytest.mark.parametrize("moment", [0.3, 0.5, 0.7, 0.9])
def test_death_in_the_act(small, tmp_path, moment):
    """The same with a process that is gone, at some of those moments."""
    done = things_done(small, tmp_path / "whole", tmp_path / "notes")

    def work():
        left = [int(moment * len(done))]

        def act(*_):
            left[0] -= 1
            if left[0] == 0:
                os._exit(9)

        touching(tmp_path / "run", act)
        run(from_dict(small), run_dir=tmp_path / "run", quiet=True)

    assert ended(in_child(work)) == 9
    whole_run(small, tmp_path / "run")
    assert results(tmp_path / "run") == results(tmp_path / "whole")
    assert leftovers(tmp_path / "run") == []


def test_what_is_renamed_was_synced_and_so_was_the_name(small, tmp_path):
    """After a loss of power, a folder of that name holds what was written."""
    done = things_done(small, tmp_path / "run", tmp_path / "notes")
    for place, (what, path) in enumerate(done):
        if what != "os.rename" or path.endswith(".old"):
            continue
        synced = {name for kind, name in done[:place] if kind == "sync"}
        inside = {n for kind, n in done[:place] if kind == "write" and n.startswith(f"{path}/")}
        assert synced >= inside | {path}, path
        assert ("sync", str(Path(path).parent)) in done[place:], path
    renamed = [Path(path).name for what, path in done if what == "os.rename"]
    assert renamed.count(".step-3") == 1
    assert {".proxy.new", ".recipe.yaml.new", ".report.html.new"} <= set(renamed)


def flipped(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "a flipped bit in the weights": lambda at: flipped(at / "proxy.weights.safetensors", -1),
    "a flipped bit in the header": lambda at: flipped(at / "proxy.optimiser.safetensors", 20),
    "a file cut short": lambda at: os.truncate(at / "proxy.ema.safetensors", 100),
    "a missing file": lambda at: (at / "proxy.log.safetensors").unlink(),
    "no state.json": lambda at: (at / "state.json").unlink(),
    "an empty state.json": lambda at: (at / "state.json").write_text(""),
    "another state.json": lambda at: (at / "state.json").write_text("[1, 2]"),
    "state.json is no text": lambda at: (at / "state.json").write_bytes(b"\xff\xfe\x00"),
    "another step": lambda at: (at / "state.json").write_text(
        (at / "state.json").read_text().replace('"step": 2', '"step": 3')
    ),
    "an empty folder": lambda at: [path.unlink() for path in at.iterdir()],
}


RESUMED = ("a flipped bit in the weights", "an empty state.json", "an empty folder")


def test_a_damaged_checkpoint_is_passed_over_in_one_line(small, tmp_path, capfd):
    whole_run(small, tmp_path / "whole")
    dies_at_step(small, tmp_path / "died", 3)
    names = [path.name for path in sorted((tmp_path / "died/proxy/checkpoint").iterdir())]
    assert names == ["step-000000001", "step-000000002"]
    for kind, harm in DAMAGE.items():
        folder = tmp_path / kind
        shutil.copytree(tmp_path / "died", folder)
        checkpoints = folder / "proxy/checkpoint"
        harm(checkpoints / "step-000000002")
        found = newest_checkpoint(checkpoints)
        assert found is not None, kind
        assert (found.step, len(found.damaged)) == (1, 1), kind
        if kind not in RESUMED:
            continue
        capfd.readouterr()
        assert ended(in_child(lambda folder=folder: run(from_dict(small), run_dir=folder))) == 0
        said = [line for line in capfd.readouterr().out.splitlines() if line.startswith("damaged")]
        assert len(said) == 1
        assert "step-000000002" in said[0]
        assert said[0].endswith("going on from step 1")
        assert results(folder) == results(tmp_path / "whole")


def test_where_none_is_whole_it_begins_anew_and_says_so(small, tmp_path, capfd):
    whole_run(small, tmp_path / "whole")
    dies_at_step(small, tmp_path / "run", 3)
    for path in (tmp_path / "run/proxy/checkpoint").iterdir():
        (path / "state.json").unlink()
    capfd.readouterr()
    assert ended(in_child(lambda: run(from_dict(small), run_dir=tmp_path / "run"))) == 0
    said = [line for line in capfd.readouterr().out.splitlines() if line.startswith("damaged")]
    assert len(said) == 1
    assert said[0].endswith("state.json is missing; none is whole: from step 0")
    assert results(tmp_path / "run") == results(tmp_path / "whole")


def test_a_checkpoint_is_safetensors_and_json_and_two_are_kept(small, tmp_path):
    small["stages"]["proxy"]["train"]["steps"] = 5
    run(from_dict(small), run_dir=tmp_path, quiet=True)
    folder = tmp_path / "proxy/checkpoint"
    assert sorted(path.name for path in folder.iterdir()) == ["step-000000004", "step-000000005"]
    for path in folder.iterdir():
        assert {file.name for file in path.iterdir()} == {
            "state.json",
            "proxy.weights.safetensors",
            "proxy.optimiser.safetensors",
            "proxy.ema.safetensors",
            "proxy.log.safetensors",
        }
    assert distill.engine.checkpoint.KEPT == 2
