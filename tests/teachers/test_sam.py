import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from students.errors import UserError
from teachers import TeacherSpec, describe_teacher, load_teacher, size_error


def resized(small, model, size):
    """The library's SAM built for another size, with resized position tables."""
    other = small("sam", image_size=size)
    weights = model.state_dict()
    table = weights["vision_encoder.pos_embed"].permute(0, 3, 1, 2)
    table = F.interpolate(table, (size // 4, size // 4), mode="bicubic", align_corners=False)
    weights["vision_encoder.pos_embed"] = table.permute(0, 2, 3, 1)
    for axis in ("h", "w"):  # the block with global attention has one entry per offset
        key = f"vision_encoder.layers.1.attn.rel_pos_{axis}"
        offsets = F.interpolate(weights[key].T[None], 2 * (size // 4) - 1, mode="linear")
        weights[key] = offsets[0].T
    other.load_state_dict(weights)
    return other.eval()


@pytest.fixture
def sam(checkpoint):
    folder, model = checkpoint("sam")
    return load_teacher(TeacherSpec("sam", str(folder))), model


def test_native_size_is_bit_exact(sam, pixels, normalise):
    teacher, model = sam
    with torch.no_grad():
        out = model.vision_encoder(normalise(pixels(32))).last_hidden_state
    features = teacher(pixels(32))
    assert features.summary is None
    assert_close(features.dense, out.permute(0, 2, 3, 1), atol=0, rtol=0)


@pytest.mark.parametrize("size", [20, 48, 64])
def test_other_sizes_equal_a_model_built_for_them(size, sam, small, pixels, normalise):
    teacher, model = sam
    with torch.no_grad():
        out = resized(small, model, size).vision_encoder(normalise(pixels(size)))
    dense = teacher(pixels(size), size).dense
    assert dense.shape == (3, size // 4, size // 4, 16)
    assert_close(dense, out.last_hidden_state.permute(0, 2, 3, 1), atol=1e-5, rtol=0)


def test_switching_sizes_leaves_nothing_behind(sam, pixels):
    teacher, _ = sam
    weights = {name: p.clone() for name, p in teacher.named_parameters()}
    first = {size: teacher(pixels(size), size).dense for size in (32, 48, 20)}
    tables = dict(teacher._tables)
    for size in (48, 32, 20, 32, 48):
        assert_close(teacher(pixels(size), size).dense, first[size], atol=0, rtol=0)
    # Resized once for each of the two sizes that are not its own, and never again.
    assert len(teacher._tables) == 2
    assert all(teacher._tables[key] is table for key, table in tables.items())
    assert weights.keys() == dict(teacher.named_parameters()).keys()
    assert all(torch.equal(p, weights[name]) for name, p in teacher.named_parameters())


def test_decoder_equals_the_library(sam, small, pixels, normalise):
    teacher, model = sam
    generator = torch.Generator().manual_seed(3)
    for size, library in ((32, model), (48, resized(small, model, 48)), (32, model)):
        points = torch.rand(3, 5, 2, generator=generator) * size
        with torch.no_grad():
            embeddings = library.get_image_embeddings(normalise(pixels(size)))
            out = library(
                image_embeddings=embeddings,
                input_points=points[:, :, None],
                input_labels=torch.ones(3, 5, 1, dtype=torch.long),
                multimask_output=True,
            )
        masks, iou = teacher.mask_decoder(teacher(pixels(size), size).dense, points, size)
        side = size  # stride 4, and logits at four times the grid
        assert masks.shape == (3, 5, 3, side, side)
        assert_close(masks, out.pred_masks, atol=1e-5, rtol=1e-5)
        assert_close(iou, out.iou_scores, atol=1e-5, rtol=1e-5)


def test_segment_equals_the_librarys_whole_model(sam, small, pixels, normalise):
    teacher, model = sam
    generator = torch.Generator().manual_seed(3)
    for size, library in ((32, model), (48, resized(small, model, 48)), (32, model)):
        points = torch.rand(3, 5, 2, generator=generator) * size
        with torch.no_grad():
            out = library(
                pixel_values=normalise(pixels(size)),
                input_points=points[:, :, None],
                input_labels=torch.ones(3, 5, 1, dtype=torch.long),
                multimask_output=True,
            )
        masks, iou = teacher.segment(pixels(size), points, size)
        assert_close(masks, out.pred_masks, atol=1e-5, rtol=1e-5)
        assert_close(iou, out.iou_scores, atol=1e-5, rtol=1e-5)
    assert_close(teacher.segment(pixels(32), points)[0], masks, atol=0, rtol=0)
    with pytest.raises(UserError, match="multiple"):
        teacher.segment(pixels(32), points, 30)
    with pytest.raises(TypeError, match="uint8"):
        teacher.segment(torch.zeros(3, 3, 32, 32, dtype=torch.uint8), points)
    with pytest.raises(ValueError, match="points"):
        teacher.segment(pixels(32), points[:2])


def test_segment_in_parts(sam, checkpoint, pixels):
    folder, _ = checkpoint("sam")
    parts = load_teacher(TeacherSpec("sam", str(folder), micro_batch=2))
    points = torch.tensor([[[5.0, 20.0]], [[9.0, 9.0]], [[30.0, 1.0]]])
    expected = sam[0].segment(pixels(32), points)
    assert_close(parts.segment(pixels(32), points), expected, atol=1e-5, rtol=1e-5)


def test_other_families_have_no_masks(checkpoint):
    teacher = load_teacher(TeacherSpec("dinov2", str(checkpoint("dinov2")[0])))
    assert teacher.segment is None
    assert teacher.mask_decoder is None


def test_points_are_x_then_y(sam, pixels):
    teacher, _ = sam
    dense = teacher(pixels(32)).dense
    points = torch.tensor([[[5.0, 20.0]]]).expand(3, 1, 2)
    masks, _ = teacher.mask_decoder(dense, points, 32)
    swapped, _ = teacher.mask_decoder(dense, points.flip(-1), 32)
    assert (masks - swapped).abs().max() > 1e-3


def test_decoder_stays_in_float32(checkpoint, pixels):
    folder, _ = checkpoint("sam")
    teacher = load_teacher(TeacherSpec("sam", str(folder), dtype="bfloat16"))
    dense = teacher(pixels(32)).dense
    assert dense.dtype == torch.bfloat16
    masks, iou = teacher.mask_decoder(dense, torch.rand(3, 2, 2) * 32, 32)
    assert masks.dtype == iou.dtype == torch.float32


def test_decoder_refuses_grids_that_are_not_square(sam):
    teacher, _ = sam
    with pytest.raises(ValueError, match="dense"):
        teacher.mask_decoder(torch.zeros(1, 8, 6, 16), torch.zeros(1, 1, 2), 32)


def test_sizes(sam, checkpoint, pixels):
    teacher, _ = sam
    folder, _ = checkpoint("sam")
    info = describe_teacher(TeacherSpec("sam", str(folder)))
    assert size_error(info, 64) is None
    assert size_error(info, (64, 64)) is None
    assert "nearest is 32" in size_error(info, 33)
    assert "square" in size_error(info, (32, 64))
    with pytest.raises(UserError, match="square"):
        teacher(pixels(32), (32, 64))
    with pytest.raises(UserError, match="multiple"):
        teacher(pixels(32), 30)
