"""Bytes of features, against numpy and float64."""

import numpy as np
import pytest
import torch

from distill.cache.codec import MIN_COSINE, ChannelStatistics, Codec, RowLayout
from students import Features


def cosines(a, b):
    a, b = a.double().numpy(), b.double().numpy()
    return (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))


def features_of(dtype, width=96, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return Features(
        torch.randn(5, width, generator=draw).to(dtype),
        torch.randn(5, 4, 3, width, generator=draw).to(dtype),
    )


def statistics_of(features):
    statistics = {}
    for kind in ("summary", "dense"):
        tokens = features.get(kind).float().flatten(0, -2)
        statistics[kind] = ChannelStatistics(tokens.mean(0), tokens.std(0))
    return statistics


def codec_for(features, form):
    return Codec(RowLayout.of(features, form), statistics_of(features))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_teachers_own_dtype_comes_back_bit_by_bit(dtype):
    given = features_of(dtype)
    given.dense[1, 0, 0, 3] = float("nan")
    given.summary[2, 5] = -0.0
    codec = Codec(RowLayout.of(given), None)
    rows, good = codec.encode(given)
    assert rows.shape == (5, 13 * 96 * dtype.itemsize)
    assert good.all()
    back = codec.decode(rows)
    for kind in ("summary", "dense"):
        assert back.get(kind).dtype == dtype
        assert torch.equal(back.get(kind).view(torch.uint8), given.get(kind).view(torch.uint8))


def test_a_short_float_of_the_same_kind_is_exact_and_needs_no_statistics():
    given = features_of(torch.bfloat16)
    codec = Codec(RowLayout.of(given, "bfloat16"), None)
    assert torch.equal(codec.decode(codec.encode(given)[0]).dense, given.dense)


@pytest.mark.parametrize("form", ["float16", "bfloat16", "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_directions_survive_an_outlier_channel_and_large_means(form, dtype):
    given = features_of(torch.float32, width=768)
    for tokens in (given.summary, given.dense):
        tokens[..., 7] *= 50
        # float16 alone would be 0.16 of the std off, and bfloat16 has no digits for so small a one
        tokens[..., 11] = 30 + (0.05 if dtype == torch.float32 else 0.5) * tokens[..., 11]
    given = given.map(lambda _, tokens: tokens.to(dtype))
    codec = codec_for(given, form)
    rows, good = codec.encode(given)
    assert good.all()
    back = codec.decode(rows)
    for kind in ("summary", "dense"):
        its, got = given.get(kind), back.get(kind)
        held = statistics_of(given)[kind]
        mean, std = held.mean.double(), held.std.double()
        assert got.dtype == dtype
        assert cosines(its, got).min() > MIN_COSINE
        assert cosines((its.double() - mean) / std, (got.double() - mean) / std).min() > MIN_COSINE


@pytest.mark.parametrize("width", [20, 128, 129, 300])
@pytest.mark.parametrize("magnitude", [1.0, 1e3])
def test_int8_holds_its_bound_for_tokens_that_are_one_value(width, magnitude):
    """Tokens of which one channel has all the length, and the rest half a rounding step."""
    dense = torch.full((1, 6, 1, width), 0.5 * magnitude / 127)
    dense *= torch.linspace(0.9, 1.1, 6).view(1, 6, 1, 1)
    dense[0, :, 0, width // 2] = magnitude
    given = Features(None, dense)
    statistics = {"dense": ChannelStatistics(torch.zeros(width), torch.ones(width))}
    codec = Codec(RowLayout.of(given, "int8"), statistics)
    rows, good = codec.encode(given)
    assert good.all()
    assert cosines(dense, codec.decode(rows).dense).min() >= MIN_COSINE


def test_int8_takes_half_the_bytes_of_float16_and_its_scales():
    for width, scales in ((768, 6), (96, 1), (1280, 10)):
        layout = RowLayout(None, width, (8, 8), "float32", "int8")
        assert layout.bytes == 64 * (width + 2 * scales)
        assert RowLayout(None, width, (8, 8), "float32", "float16").bytes == 64 * 2 * width


@pytest.mark.parametrize("form", ["exact", "float16", "int8"])
def test_odd_widths(form):
    given = Features(features_of(torch.float32, 131).summary, features_of(torch.float32, 77).dense)
    rows, good = codec_for(given, form).encode(given)
    assert good.all()
    assert cosines(given.dense, codec_for(given, form).decode(rows).dense).min() > MIN_COSINE


def test_int8_as_numpy_reads_it():
    given = features_of(torch.float32, width=300)  # three groups of 100
    codec = codec_for(given, "int8")
    rows, _ = codec.encode(given)
    raw, back = rows.numpy(), codec.decode(rows)
    begin = 300 + 6  # the summary and its three scales
    values = raw[:, begin : begin + 3600].view(np.int8).reshape(5, 12, 3, 100)
    scales = np.ascontiguousarray(raw[:, begin + 3600 : begin + 3672]).view(np.float16)
    normalised = values * scales.reshape(5, 12, 3, 1).astype(np.float32)
    held = codec.statistics["dense"]
    expected = normalised.reshape(5, 12, 300) * held.std.numpy() + held.mean.numpy()
    np.testing.assert_allclose(
        back.dense.reshape(5, 12, 300).numpy(), expected, rtol=1e-5, atol=1e-6
    )
    assert np.abs(values).max() == 127


@pytest.mark.parametrize("form", ["float16", "bfloat16", "int8"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_rows_that_a_format_cannot_hold_are_refused(form, value):
    given = features_of(torch.float32)
    codec = codec_for(given, form)
    given.dense[3, 1, 2, 4] = value
    assert codec.encode(given)[1].tolist() == [True, True, True, False, True]


def test_beyond_float16_is_refused():
    given = features_of(torch.float32)
    codec = codec_for(given, "float16")
    given.summary[0, 0] = 1e6
    assert codec.encode(given)[1].tolist() == [False, True, True, True, True]


def test_a_token_at_the_mean_and_a_dead_group():
    given = Features(torch.zeros(2, 256), None)
    given.summary[1, :128] = torch.linspace(-1, 1, 128)
    statistics = {"summary": ChannelStatistics(torch.zeros(256), torch.ones(256))}
    codec = Codec(RowLayout.of(given, "int8"), statistics)
    rows, good = codec.encode(given)
    back = codec.decode(rows).summary
    assert good.all()
    assert torch.equal(back[0], torch.zeros(256))
    assert torch.equal(back[1, 128:], torch.zeros(128))


def test_large_batches_go_through_in_parts(monkeypatch):
    given = features_of(torch.float32)
    codec = codec_for(given, "int8")
    whole = codec.encode(given)[0]
    monkeypatch.setattr("distill.cache.codec._CHUNK", 13 * 96 * 2)
    assert torch.equal(codec.encode(given)[0], whole)


def test_what_cannot_be_kept_is_an_error():
    given = features_of(torch.float32)
    layout = RowLayout.of(given, "int8")
    ones = ChannelStatistics(torch.zeros(95), torch.ones(95))
    with pytest.raises(ValueError, match="needs mean and std of summary"):
        Codec(layout, None)
    with pytest.raises(ValueError, match="96 wide, their statistics 95"):
        Codec(layout, {"summary": ones, "dense": ones})
    with pytest.raises(ValueError, match="std above 0"):
        ChannelStatistics(torch.zeros(3), torch.tensor([1.0, 0.0, 1.0]))
    with pytest.raises(ValueError, match="another layout"):
        codec_for(given, "int8").encode(features_of(torch.bfloat16))
    with pytest.raises(ValueError, match=r"float32 beside dense tokens in torch\.bfloat16"):
        RowLayout.of(Features(given.summary, given.dense.bfloat16()))
    with pytest.raises(ValueError, match="'int4'"):
        RowLayout(4, None, None, "float32", "int4")
