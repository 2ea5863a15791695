"""A disk that is full, read-only or refuses large files: one line, and the run can go on."""

import ctypes
import errno
import os
import resource

import pytest
from child_runs import ended, in_child, results, whole_run

import distill.report.page
import distill.report.pictures
import distill.runner
import distill.validation
from distill import cli
from distill.engine.checkpoint import newest_checkpoint
from distill.folder import RunFolder
from distill.recipe.load import from_dict, to_yaml
from distill.runner import run
from students import UserError

CLONE_NEWNS, MS_RDONLY, MS_REMOUNT, MS_REC, MS_PRIVATE = 0x20000, 1, 32, 16384, 1 << 18
AGAIN = "Make room or set the rights, then give the same command again"


@pytest.fixture
def small(tiny):
    """One student, a checkpoint after each of four steps."""
    del tiny["stages"]["multires"]
    tiny["stages"]["proxy"]["students"]["proxy"]["teachers"] = ["dinov2"]
    tiny["stages"]["proxy"]["calibration_batches"] = 1
    tiny["stages"]["proxy"]["train"] |= {"steps": 4, "save_every": 1, "log_every": 1}
    return tiny


def mounted(folder, flags, options):
    """Mount, or mount again, a file system in memory that this process alone sees."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not flags & MS_REMOUNT:
        folder.mkdir(exist_ok=True)
        if libc.unshare(CLONE_NEWNS) or libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None):
            return False
    return libc.mount(b"none", os.fsencode(folder), b"tmpfs", flags, options.encode()) == 0


@pytest.fixture
def disk(tmp_path):
    """A folder on which a child may mount a disk of its own size; needs the right to mount."""
    folder = tmp_path / "disk"
    if ended(in_child(lambda: int(not mounted(folder, 0, "size=1m")))) != 0:
        pytest.skip("no file system can be mounted here")
    return folder


def refused(config, folder):
    """The line of a run that ends with one; None if it comes to its end."""
    try:
        run(from_dict(config), run_dir=folder, quiet=True)
    except UserError as error:
        line = str(error)
    else:
        return None
    assert "\n" not in line
    return line


@pytest.mark.slow
def test_a_disk_that_is_full_at_any_moment(small, tmp_path, disk):
    """From no room at all to enough: whatever could not be written, more room is all it takes."""
    whole_run(small, tmp_path / "whole")
    expected = results(tmp_path / "whole")
    size = sum(path.stat().st_size for path in (tmp_path / "whole").rglob("*") if path.is_file())

    def work():
        refusals = set()
        for tenth in range(12):
            assert mounted(disk, 0, f"size={max(4096, size * tenth // 10)},nr_inodes=1000")
            line = refused(small, disk / "run")
            if line is not None:
                assert "No space left on device" in line, line
                assert line.endswith(AGAIN), line
                assert str(disk) in line, line
                refusals.add(line.partition(":")[0].replace(str(disk), ""))
            assert mounted(disk, MS_REMOUNT, "size=64m")
            assert refused(small, disk / "run") is None
            assert results(disk / "run") == expected, tenth
        assert any("the checkpoint of step" in line for line in refusals), refusals
        assert len(refusals) >= 4, refusals

    assert ended(in_child(work), 300) == 0


def test_a_disk_that_may_not_be_written(small, tmp_path, disk):
    whole_run(small, tmp_path / "whole")

    def work():
        assert mounted(disk, 0, "size=64m")
        assert mounted(disk, MS_REMOUNT | MS_RDONLY, "size=64m")
        assert f"{disk}" in (line := refused(small, disk / "run") or "")
        assert "Read-only file system" in line
        assert mounted(disk, MS_REMOUNT, "size=64m")

        from distill.engine import stage as stages

        save, count = stages.save_checkpoint, [0]

        def then_read_only(*arguments):
            count[0] += 1
            if count[0] == 3:
                assert mounted(disk, MS_REMOUNT | MS_RDONLY, "size=64m")
            save(*arguments)

        stages.save_checkpoint = then_read_only
        line = refused(small, disk / "run") or ""
        assert line.startswith("the checkpoint of step 3 cannot be written to "), line
        assert "step 2 in " in line
        assert newest_checkpoint(disk / "run/proxy/checkpoint").step == 2
        assert mounted(disk, MS_REMOUNT, "size=64m")
        assert refused(small, disk / "run") is None
        assert results(disk / "run") == results(tmp_path / "whole")

    assert ended(in_child(work)) == 0


def test_files_that_may_not_be_large(small, tmp_path, capfd):
    """As `ulimit -f` or a quota has it; the weights are what is too large. Through the command."""
    whole_run(small, tmp_path / "whole")
    (tmp_path / "tiny.yaml").write_text(to_yaml(from_dict(small)))
    command = ["run", str(tmp_path / "tiny.yaml"), "--run-dir", str(tmp_path / "run")]

    def work():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        status = cli.main(command)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        return status

    capfd.readouterr()
    assert ended(in_child(work)) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("distill: the checkpoint of step 1 cannot be written to ")
    assert "File too large; there is none before it" in line
    assert newest_checkpoint(tmp_path / "run/proxy/checkpoint") is None
    whole_run(small, tmp_path / "run")
    assert results(tmp_path / "run") == results(tmp_path / "whole")


@pytest.mark.parametrize(
    ("where", "name"),
    [
        (distill.runner, "export_student"),
        (distill.report.pictures, "draw_pictures"),
        (RunFolder, "write_validation"),
        (RunFolder, "write_seconds"),
        (distill.report.page, "write_report"),
    ],
)
def test_what_comes_after_training(small, tmp_path, monkeypatch, where, name):
    """Whoever writes, even a library that does not say which file."""
    small["validate"] = {"tasks": ["knn"], "train": 64, "test": 64}
    small["stages"]["proxy"]["train"]["steps"] = 1
    # The probes and the pictures take a minute, and it is not their results that matter here.
    monkeypatch.setattr(distill.validation, "validate", lambda *_, **__: [])
    monkeypatch.setattr(distill.report.pictures, "draw_pictures", lambda *_: drawn.append(True))
    drawn = []

    def fails(*_, **__):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    with monkeypatch.context() as patch:
        patch.setattr(where, name, fails)
        line = refused(small, tmp_path / "run")
    assert line == f"{tmp_path / 'run'} cannot be written: Disk quota exceeded. {AGAIN}"
    assert refused(small, tmp_path / "run") is None
    assert (tmp_path / "run/report.html").exists()
    assert RunFolder(tmp_path / "run").validation()[0] == []
    assert drawn


def test_another_error_of_the_system_is_not_taken_for_it(small, tmp_path, monkeypatch):
    def fails(*_, **__):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(distill.runner, "export_student", fails)
    with pytest.raises(OSError, match="broken"):
        run(from_dict(small), run_dir=tmp_path / "run", quiet=True)
