"""`oxford:` and `paris:`, and pickles: arrays come out, nothing is run."""

import io
import json
import os
import pickle
import pickletools

import numpy as np
import pytest
from layouts import colour_of, write_oxford, write_paris
from reading import assert_picture, names, refused, wrong

from distill.data.source import BadSample
from distill.datasets import open_evaluation
from distill.datasets.inert_pickle import read_pickle


def assert_landmarks(data, truth):
    part = data.parts["landmarks"]
    assert names(part.gallery) == [f"jpg/{name}.jpg" for name in truth["imlist"]]
    for key in ("easy", "hard", "junk"):
        found = getattr(part, key)
        assert [t.tolist() for t in found] == [[int(v) for v in g[key]] for g in truth["gnd"]]
        assert all(str(t.dtype) == "torch.int64" for t in found)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_oxford(tmp_path, protocol):
    written = write_oxford(tmp_path, protocol=protocol)
    data = open_evaluation(f"oxford:{tmp_path}")
    assert_landmarks(data, written.truth)
    assert_picture(data.pictures.read(4), written.size, colour_of(4))


def test_queries_are_cut_to_their_boxes(tmp_path):
    write_oxford(tmp_path)
    queries = open_evaluation(f"oxford:{tmp_path}").parts["landmarks"].queries
    # 30.4 to 80 of 60 columns, 5.6 to 35.5 of 40 rows (a half goes to the even neighbour).
    first, second = queries.read(0), queries.read(1)
    assert first.shape == (3, 30, 30)
    assert second.shape == (3, 40, 30)
    # The right half is blue, the left half is red; JPEG blurs their border.
    assert int(first[2, :, 2:].min()) > 200
    assert int(first[0, :, 2:].max()) < 50
    assert int(second[0, :, :-2].min()) > 200
    assert queries.name(0) == "jpg/queries_000013.jpg (30.4, 5.6, 80, 35.5)"


def test_a_box_beside_the_picture(tmp_path):
    written = write_oxford(tmp_path)
    written.truth["gnd"][0]["bbx"] = [60.0, 0.0, 90.0, 40.0]
    (tmp_path / "gnd_roxford5k.pkl").write_bytes(pickle.dumps(written.truth))
    queries = open_evaluation(f"oxford:{tmp_path}").parts["landmarks"].queries
    with pytest.raises(BadSample, match="no pixel of 60 x 40 is in the box"):
        queries.read(0)


def test_paris(tmp_path):
    written = write_paris(tmp_path)
    assert_landmarks(open_evaluation(f"paris:{tmp_path}"), written.truth)
    message = refused(f"oxford:{tmp_path}")
    assert f"no gnd_roxford5k.pkl in '{tmp_path}'" in message


def plain(value):
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, list) else value


def test_json_comes_first(tmp_path):
    written = write_oxford(tmp_path)
    truth = plain(written.truth)
    truth["gnd"][0]["easy"] = [2]
    (tmp_path / "gnd_roxford5k.json").write_text(json.dumps(truth))
    (tmp_path / "gnd_roxford5k.pkl").write_bytes(b"not read")
    assert_landmarks(open_evaluation(f"oxford:{tmp_path}"), truth)


def test_what_is_wrong_with_the_truth(tmp_path):
    written = write_oxford(tmp_path)
    file = tmp_path / "gnd_roxford5k.json"
    spec = f"oxford:{tmp_path}"

    def said(change):
        truth = plain(written.truth)
        change(truth)
        file.write_text(json.dumps(truth))
        return refused(spec)

    assert "gnd[1]: hard has 6, and imlist 0 to 5" in said(lambda t: t["gnd"][1].update(hard=[6]))
    assert "gnd[0]: easy has 0.5" in said(lambda t: t["gnd"][0].update(easy=[0.5]))
    assert "gnd[0]: junk is no list of numbers" in said(lambda t: t["gnd"][0].update(junk=["x"]))
    assert "gnd[0]: bbx [3.0, 1.0, 2.0, 5.0] is not" in said(
        lambda t: t["gnd"][0].update(bbx=[3, 1, 2, 5])
    )
    assert "gnd[0]: there is no 'bbx'" in said(lambda t: t["gnd"][0].pop("bbx"))
    assert "2 queries in qimlist and 1 in gnd" in said(lambda t: t["gnd"].pop())
    assert "there is no 'imlist', only qimlist, gnd" in said(lambda t: t.pop("imlist"))
    assert "'imlist' is no list of names" in said(lambda t: t.update(imlist=[1]))
    file.unlink()
    (tmp_path / "jpg/all_souls_000002.jpg").unlink()
    assert refused(spec).endswith(f"1 image of 8 not in '{tmp_path}': jpg/all_souls_000002.jpg")
    (tmp_path / "gnd_roxford5k.pkl").write_bytes(b"\x80\x04broken")
    assert "gnd_roxford5k.pkl is no whole pickle: " in refused(spec)


class Malicious:
    """Runs a command when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def test_a_malicious_pickle_does_not_run(tmp_path):
    trace = tmp_path / "ran"
    harm = pickle.dumps(Malicious(os.system, f"touch {trace}"))
    pickle.loads(harm)  # the file is what it claims to be
    assert trace.exists()
    trace.unlink()
    written = write_oxford(tmp_path)
    file = tmp_path / "gnd_roxford5k.pkl"
    written.truth["gnd"][0]["easy"] = Malicious(os.system, f"touch {trace}")
    file.write_bytes(pickle.dumps(written.truth))
    message = refused(f"oxford:{tmp_path}")
    assert f"{file} is not read" in message
    assert "asks for posix.system" in message
    assert not trace.exists()


@pytest.mark.parametrize(
    "function",
    [eval, exec, __import__, getattr, np.load, np.fromfile, np.array, io.open, object],
    ids=lambda function: function.__name__,
)
def test_nothing_else_is_named(tmp_path, function):
    file = tmp_path / "x.pkl"
    file.write_bytes(pickle.dumps([function]))
    assert "this one asks for " in wrong(read_pickle, file)


def raw(*operations):
    """A pickle written by hand, operation by operation."""
    return b"".join(operations) + b"."


def test_detours_to_what_is_not_named(tmp_path):
    file = tmp_path / "x.pkl"
    attempts = {
        "a dotted name": raw(b"\x80\x04", b"\x8c\x05numpy", b"\x8c\x12ndarray.__init__.x", b"\x93"),
        "a module of numpy": raw(b"cnumpy.core.multiarray\nfromfile\n"),
        "a codec": raw(b"c_codecs\nencode\n", b"(X\x01\x00\x00\x00x", b"X\x05\x00\x00\x00rot13tR"),
        "a change of what is let in": raw(b"c_codecs\nencode\n", b"}X\x01\x00\x00\x00xK\x01sb"),
        "a change of its inside": raw(
            b"c_codecs\nencode\n", b"N}X\x09\x00\x00\x00_functionK\x01s\x86b"
        ),
        "a new one of them": raw(b"\x80\x02", b"cnumpy\ndtype\n)\x81"),
        "numpy's array itself": raw(b"cnumpy\nndarray\n", b"K\x05\x85R"),
        "an extension": raw(b"\x82\x01"),
        "a persistent object": raw(b"Pabc\n"),
        "an array of objects": pickle.dumps(np.array([{}], dtype=object)),
        "an array of records": pickle.dumps(np.zeros(2, dtype=[("a", "i4")])),
        "a class of ours": pickle.dumps(BadSample),
    }
    for name, data in attempts.items():
        file.write_bytes(data)
        message = wrong(read_pickle, file)
        assert "is not read" in message or "is no whole pickle" in message, name


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("dtype", ["<i8", ">i4", "<u2", "<f4", ">f8", "?", "i1"])
def test_arrays_come_out_as_they_went_in(tmp_path, protocol, dtype):
    arrays = [
        np.arange(6).astype(dtype),
        np.arange(6).astype(dtype).reshape(2, 3),
        np.asfortranarray(np.arange(6).astype(dtype).reshape(2, 3)),
        np.zeros(0, dtype),
        np.arange(1, 3).astype(dtype)[0],
    ]
    file = tmp_path / "x.pkl"
    file.write_bytes(pickle.dumps({"a": arrays, "b": ("text", b"bytes", 3, None, 0.5)}, protocol))
    found = read_pickle(file)
    for one, other in zip(found["a"], arrays, strict=True):
        assert np.array_equal(one, other)
        assert np.shape(one) == other.shape
    assert found["b"] == ["text", b"bytes", 3, None, 0.5]


def test_a_pickle_of_python_2(tmp_path):
    """Texts of bytes, and the names that numpy's modules had; as Python 2 wrote them."""
    number = b"\x07\x00\x00\x00\x00\x00\x00\x00"
    data = raw(
        b"\x80\x02",
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R",
        b"(K\x01K\x01\x85cnumpy\ndtype\nU\x02i8K\x00K\x01\x87R",
        b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x08" + number + b"tb",
    )
    assert list(pickletools.genops(data))
    file = tmp_path / "x.pkl"
    file.write_bytes(data)
    assert read_pickle(file).tolist() == [7]
