"""`coco-captions:`, `karpathy:`, `flickr30k:` and `captions:`."""

import json

import pytest
import torch
from layouts import (
    write_caption_table,
    write_coco,
    write_flickr30k,
    write_karpathy_coco,
)
from reading import names, refused

from distill.datasets import open_evaluation


def assert_captions(data, written):
    part = data.parts["captions"]
    assert names(part.pictures) == written.pictures
    assert part.owner.dtype == torch.int64
    found = [
        (part.pictures.name(owner), text)
        for owner, text in zip(part.owner.tolist(), part.captions, strict=True)
    ]
    assert found == written.captions
    assert set(part.owner.tolist()) == set(range(len(part.pictures)))
    assert all(part.pictures.read(i).ndim == 3 for i in range(len(part.pictures)))


@pytest.mark.parametrize("inside", ["", "images/"])
def test_coco(tmp_path, inside):
    written = write_coco(tmp_path, inside=inside)
    # Ids are in no order, and the picture of id 17 has no caption.
    assert len(written.pictures) == 2
    assert len(written.captions) == 7
    data = open_evaluation(f"coco-captions:{tmp_path}")
    assert_captions(data, written)
    assert data.notes == ("1 picture without a caption left out",)


def test_another_split_of_coco(tmp_path):
    written = write_coco(tmp_path, "train2014")
    assert_captions(open_evaluation(f"coco-captions:{tmp_path},split=train2014"), written)
    message = refused(f"coco-captions:{tmp_path}")
    assert f"no annotations/captions_val2017.json in '{tmp_path}'" in message


def edit(file, function):
    content = json.loads(file.read_text())
    function(content)
    file.write_text(json.dumps(content))


def test_what_is_wrong_with_coco(tmp_path):
    write_coco(tmp_path)
    spec, file = f"coco-captions:{tmp_path}", tmp_path / "annotations/captions_val2017.json"
    whole = file.read_text()
    (tmp_path / "val2017/000000000404.jpg").unlink()
    assert refused(spec).endswith(
        f"1 image of 2 with captions not in '{tmp_path}': val2017/000000000404.jpg"
    )

    def said(function):
        file.write_text(whole)
        edit(file, function)
        return refused(spec)

    assert "2 captions of no image that it lists: image_id 1, 2" in said(
        lambda c: c["annotations"].extend([{"image_id": n, "caption": "x"} for n in (1, 2)])
    )
    assert "images[3]: a second image of id 900" in said(
        lambda c: c["images"].append(dict(c["images"][0]))
    )
    assert "annotations[1]: there is no 'caption', only image_id, id" in said(
        lambda c: c["annotations"][1].pop("caption")
    )
    assert "an empty caption of val2017/" in said(
        lambda c: c["annotations"][1].update(caption=" \n")
    )
    assert "there is no 'images', only info, licenses, annotations" in said(
        lambda c: c.pop("images")
    )
    assert "has no caption" in said(lambda c: c["annotations"].clear())
    file.write_text(whole.replace('"annotations": [', '"annotations": [\n\n'))
    file.write_text(file.read_text()[:-20])
    assert refused(spec).startswith(f"{file}, line 3: broken JSON: ")
    (tmp_path / "val2017").rename(tmp_path / "val")
    assert f"no val2017/ in '{tmp_path}'" in refused(spec)


def test_karpathy(tmp_path):
    written = write_karpathy_coco(tmp_path)
    file = tmp_path / "dataset_coco.json"
    assert_captions(open_evaluation(f"karpathy:{file}"), written)
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    message = refused(f"karpathy:{file}")
    assert f"val2014/1.jpg of {file} is not beside it" in message
    assert message.endswith("or say images=DIR")
    assert_captions(open_evaluation(f"karpathy:{file},images={tmp_path}/elsewhere"), written)
    assert "(did you mean 'elsewhere'?)" in refused(f"karpathy:{file},images={tmp_path}/elswhere")
    assert refused(f"karpathy:{file},split=tests").endswith(
        "has no image of split 'tests' (did you mean 'test'?)"
    )
    part = open_evaluation(f"karpathy:{file},split=val,images={tmp_path}/elsewhere").parts[
        "captions"
    ]
    assert names(part.pictures) == ["val2014/2.jpg"]
    assert len(part.captions) == 3


def test_flickr30k(tmp_path):
    written = write_flickr30k(tmp_path)
    assert_captions(open_evaluation(f"flickr30k:{tmp_path}"), written)
    (tmp_path / "flickr30k-images/3.jpg").unlink()
    assert refused(f"flickr30k:{tmp_path}").endswith(
        f"1 image of 2 with captions not in '{tmp_path}/flickr30k-images': 3.jpg"
    )
    edit(tmp_path / "dataset_flickr30k.json", lambda c: c["images"][3].pop("sentences"))
    assert "images[3]: there is no 'sentences'" in refused(f"flickr30k:{tmp_path}")


@pytest.mark.parametrize("column", ["path", "image", "filename", "Image "])
def test_a_table(tmp_path, column):
    written = write_caption_table(tmp_path / "x/table.csv", column)
    assert_captions(open_evaluation(f"captions:{tmp_path}/x/table.csv"), written)


def test_a_table_that_excel_wrote(tmp_path):
    written = write_caption_table(tmp_path / "table.csv")
    file = tmp_path / "table.csv"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"id,path", b"path,id", 1))
    file.write_bytes(file.read_bytes().replace(b"path,id", b"id,path", 1))
    assert_captions(open_evaluation(f"captions:{file}"), written)


def test_what_is_wrong_with_a_table(tmp_path):
    file = tmp_path / "table.csv"
    write_caption_table(file)
    whole = file.read_text()

    def said(text):
        file.write_text(text)
        return refused(f"captions:{file}")

    assert "has no column path, image or filename: its first line is 'id,file,caption'" in said(
        whole.replace("path", "file", 1)
    )
    assert "has no column caption" in said(whole.replace("caption", "text", 1))
    assert "has no column path, image or filename: its first line is ''" in said("")
    assert f"{file}, line 3: 1 column, expected 2: 'b.png'" in said(
        "path,caption\na.png,x\nb.png\n"
    )
    assert "line 2: broken CSV" in said('path,caption\na.png,"x"y\n')
    assert said("path,caption\na.png,x\nc.png,y\nd.png,z\n").endswith(
        f"2 images of 3 with captions not in '{tmp_path}': c.png, d.png"
    )
    assert "an empty caption of a.png" in said("path,caption\na.png,\n")
    assert "has no caption" in said("path,caption\n")
    file.write_bytes(b"path,caption\n\xff\xff,x\n")
    assert "broken CSV" in refused(f"captions:{file}")


def test_paths_that_begin_at_the_root(tmp_path):
    write_caption_table(tmp_path / "x/table.csv")
    file = tmp_path / "table.csv"
    file.write_text(f"path,caption\n{tmp_path}/x/a.png,hello\n")
    part = open_evaluation(f"captions:{file}").parts["captions"]
    assert part.pictures.read(0).shape == (3, 12, 14)
