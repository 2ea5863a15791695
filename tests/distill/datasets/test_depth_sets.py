"""`nyu:` and `depth:`: metres to the last bit."""

import numpy as np
import pytest
import torch
from layouts import colour_of, values, write_depth, write_nyu
from reading import assert_picture, names, refused, wrong

from distill.datasets import open_evaluation
from distill.datasets.depth_files import read_list


def assert_depth(annotated, written, scale):
    assert names(annotated.pictures) == [name for name, _ in written]
    for i, (_, stored) in enumerate(written):
        truth = annotated.truth(i)
        assert truth.dtype == torch.float32
        expected = [[np.float32(int(v) / scale) for v in row] for row in stored[:2]]
        assert truth[:2].tolist() == expected
        assert annotated.pictures.read(i).shape[1:] == truth.shape == stored.shape


def test_nyu(tmp_path):
    written = write_nyu(tmp_path)
    data = open_evaluation(f"nyu:{tmp_path}")
    part = data.parts["depth"]
    assert data.notes == ("train: 1 picture whose depth is None left out",)
    assert (part.near, part.far, part.unit) == (0.001, 10.0, "m")
    assert part.crop == (45, 471, 41, 601)
    assert_depth(part.train, written.train, 1000)
    assert_depth(part.test, written.test, 1000)
    assert part.train.truth(1)[0, 0] == 0
    assert part.train.truth(1)[0, 639] == pytest.approx(9.999)
    assert_picture(part.test.pictures.read(1), (480, 640), colour_of(1))


@pytest.mark.parametrize("place", ["filelists", "train_test_inputs"])
def test_lists_lie_where_they_are_put(tmp_path, place):
    write_nyu(tmp_path, (1, 1))
    (tmp_path / place).mkdir()
    for file in tmp_path.glob("*.txt"):
        file.rename(tmp_path / place / file.name)
    assert len(open_evaluation(f"nyu:{tmp_path}").pictures) == 1


def test_paths_from_the_folder_itself(tmp_path):
    write_nyu(tmp_path, (1, 1))
    (tmp_path / "sync/kitchen_0028b").rename(tmp_path / "kitchen_0028b")
    (tmp_path / "official_splits/test/bathroom").rename(tmp_path / "bathroom")
    part = open_evaluation(f"nyu:{tmp_path}").parts["depth"]
    assert names(part.train.pictures) == ["kitchen_0028b/rgb_00000.jpg"]
    assert part.test.truth(0).shape == (480, 640)


def test_lines_without_depth_are_counted(tmp_path):
    write_nyu(tmp_path)
    pairs, without = read_list(tmp_path / "nyudepthv2_train_files_with_gt.txt")
    assert (len(pairs), without) == (3, 1)
    assert pairs[1] == ("kitchen_0028b/rgb_00001.jpg", "kitchen_0028b/sync_depth_00001.png")
    file = tmp_path / "nyudepthv2_test_files_with_gt.txt"
    file.write_text("a/b.jpg None 518.8\n\na/c.jpg None 518.8\n")
    assert refused(f"nyu:{tmp_path}").endswith(
        "lists no picture with a depth, but 2 lines whose depth is None"
    )
    file.write_text("a/b.jpg a/c.png 5\na/b.jpg\n")
    assert f"{file}, line 2: 'a/b.jpg' is not 'PICTURE DEPTH FOCAL'" in refused(f"nyu:{tmp_path}")


def test_files_that_are_listed_and_not_there(tmp_path):
    write_nyu(tmp_path)
    (tmp_path / "sync/kitchen_0028b/sync_depth_00002.png").unlink()
    message = refused(f"nyu:{tmp_path}")
    assert "1 depth map of the 3 that" in message
    assert message.endswith("sync/kitchen_0028b/sync_depth_00002.png")
    (tmp_path / "official_splits").rename(tmp_path / "official")
    (tmp_path / "sync").rename(tmp_path / "synced")
    message = refused(f"nyu:{tmp_path}")
    assert f"3 images of the 3 that {tmp_path}/nyudepthv2_train_files_with_gt.txt lists" in message
    assert f"are not in '{tmp_path}' or '{tmp_path}/sync'" in message
    (tmp_path / "nyudepthv2_train_files_with_gt.txt").unlink()
    message = refused(f"nyu:{tmp_path}")
    assert "no nyudepthv2_train_files_with_gt.txt in" in message
    assert "expected the lists of BTS there, or in filelists/" in message


def test_depth_of_the_wrong_kind_or_size(tmp_path):
    write_nyu(tmp_path)
    files = [tmp_path / f"official_splits/test/bathroom/sync_depth_0000{n}.png" for n in (0, 1)]
    values(files[0], np.zeros((480, 640), np.uint8))
    values(files[1], np.zeros((48, 64), np.uint16))
    part = open_evaluation(f"nyu:{tmp_path}").parts["depth"]
    assert wrong(part.test.truth, 0) == f"{files[0]} has 8 bits a pixel: depth is a 16-bit PNG"
    assert wrong(part.test.truth, 1) == (
        f"{files[1]} is 64 x 48 pixels: what is scored lies within 640 x 480"
    )


def test_depth(tmp_path):
    written = write_depth(tmp_path)
    part = open_evaluation(f"depth:{tmp_path}").parts["depth"]
    assert (part.near, part.far, part.crop) == (0.001, 10.0, None)
    assert_depth(part.train, written.train, 1000)
    part = open_evaluation(f"depth:{tmp_path},scale=256,far=80,test=train").parts["depth"]
    assert part.far == 80
    assert_depth(part.test, written.train, 256)
    assert refused(f"depth:{tmp_path},far=0.0001").endswith("far=0.0001 must be above 0.001")
    (tmp_path / "depth/test/d0.png").rename(tmp_path / "depth/test/e0.png")
    assert refused(f"depth:{tmp_path}").endswith(
        "1 image without depth map: d0.jpg; 1 depth map without image: e0.png"
    )


def test_a_depth_map_of_another_size(tmp_path):
    write_depth(tmp_path)
    values(tmp_path / "depth/test/d1.png", np.ones((20, 20), np.uint16))
    part = open_evaluation(f"depth:{tmp_path}").parts["depth"]
    assert "is 20 x 20 pixels and its picture images/test/d1.jpg 26 x 20" in wrong(
        part.test.truth, 1
    )
