"""The account of bad samples: what is written, and when there are too many."""

import json

import pytest

from distill.data.bad_samples import BadSamples
from students.errors import UserError


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def bad(*numbers):
    return [(f"photos/{n}.jpg", f"reason {n}") for n in numbers]


def test_each_is_written_once_with_its_first_reason(tmp_path):
    path = tmp_path / "run/bad_samples.jsonl"
    account = BadSamples(path, max_bad=1)
    account.see("proxy", 0, 32, [])
    assert not path.exists()
    account.see("proxy", 1, 32, [*bad(1, 2), ("photos/1.jpg", "another")])
    account.see("fixed", 7, 32, [("photos/2.jpg", "later"), ("photos/\udcff.jpg", "no\ttext")])
    assert lines(path) == [
        {"stage": "proxy", "step": 1, "name": "photos/1.jpg", "reason": "reason 1"},
        {"stage": "proxy", "step": 1, "name": "photos/2.jpg", "reason": "reason 2"},
        {"stage": "fixed", "step": 7, "name": "photos/\udcff.jpg", "reason": "no\ttext"},
    ]
    assert (account.samples, account.bad) == (32 * 3 + 5, 5)


def test_a_run_that_goes_on_writes_none_again(tmp_path):
    path = tmp_path / "bad_samples.jsonl"
    BadSamples(path).see("proxy", 3, 32, bad(1, 2))
    BadSamples(path).see("proxy", 3, 32, bad(2, 3))
    assert [line["name"] for line in lines(path)] == [f"photos/{n}.jpg" for n in (1, 2, 3)]


def test_a_line_that_was_torn_is_written_anew(tmp_path):
    path = tmp_path / "bad_samples.jsonl"
    BadSamples(path).see("proxy", 3, 32, bad(1, 2))
    path.write_bytes(path.read_bytes()[:-9])
    BadSamples(path).see("proxy", 3, 32, bad(1, 2))
    assert [line["name"] for line in lines(path)] == ["photos/1.jpg", "photos/2.jpg"]


def test_a_file_of_something_else_is_an_error(tmp_path):
    for text in ("photos/1.jpg\n", "[1]\n", '{"file": "x"}\n'):
        (tmp_path / "bad_samples.jsonl").write_text(text)
        with pytest.raises(UserError, match="not a list of bad samples"):
            BadSamples(tmp_path / "bad_samples.jsonl")


def test_one_bad_image_in_the_first_batch_does_not_stop_a_run(tmp_path):
    BadSamples(tmp_path / "bad.jsonl").see("proxy", 0, 32, bad(1))
    BadSamples(tmp_path / "bad.jsonl").see("proxy", 0, 1, bad(*range(10)))


def test_a_folder_that_is_all_bad_stops_at_once(tmp_path):
    account = BadSamples(tmp_path / "bad.jsonl")
    with pytest.raises(UserError) as caught:
        account.see("proxy", 0, 0, bad(*range(32)))
    text = str(caught.value)
    assert "\n" not in text
    for word in ("32 of 32", "data.max_bad = 0.01", "photos/0.jpg (reason 0)", "bad.jsonl"):
        assert word in text
    assert "photos/2.jpg" in text
    assert "photos/3.jpg" not in text
    assert len(lines(tmp_path / "bad.jsonl")) == 32  # the list is whole when it stops


@pytest.mark.parametrize(("share", "stops"), [(0.009, False), (0.011, True)])
def test_the_share_is_of_all_samples_so_far(tmp_path, share, stops):
    account = BadSamples(tmp_path / "bad.jsonl", max_bad=0.01)
    met, stopped = 0, None
    for step in range(400):
        new = int((step + 1) * 100 * share) - met  # of each 100 that are asked for
        try:
            account.see("proxy", step, 100 - new, bad(*range(met, met + new)))
        except UserError:
            stopped = step
            break
        met += new
    assert (stopped is not None) == stops
    if stops:
        assert 9 <= stopped <= 20


def test_no_bad_sample_is_allowed_with_a_share_of_nothing(tmp_path):
    account = BadSamples(tmp_path / "bad.jsonl", max_bad=0)
    for step in range(99):
        account.see("proxy", step, 1000, [])
    with pytest.raises(UserError, match="1 of 99033"):
        account.see("proxy", 99, 32, bad(1))


def test_a_share_of_one_never_stops(tmp_path):
    account = BadSamples(tmp_path / "bad.jsonl", max_bad=1)
    for step in range(5):
        account.see("proxy", step, 0, bad(*range(1000)))
    assert len(lines(tmp_path / "bad.jsonl")) == 1000


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_share_is_between_nothing_and_all(tmp_path, share):
    with pytest.raises(ValueError, match="0 to 1"):
        BadSamples(tmp_path / "bad.jsonl", max_bad=share)
