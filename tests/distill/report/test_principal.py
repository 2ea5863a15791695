import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression

from distill.report.principal import outlier_tokens, shared_colours


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def features(seed, width, grid=8, pictures=4, signals=3, noise=0.1):
    """Tokens that all tell of the same skewed signals, in a mixture of their own."""
    # Exponential, so that the sign of a component is far from a tie.
    shared = -torch.rand(pictures, grid, grid, signals, generator=generator()).log()
    shared = shared * torch.linspace(2, 1, signals)
    mixture = torch.randn(signals, width, generator=generator(seed))
    return shared @ mixture + noise * torch.randn(
        pictures, grid, grid, width, generator=generator(seed + 1)
    )


def rotation(width, seed=9):
    return torch.linalg.qr(torch.randn(width, width, generator=generator(seed)).double())[0]


def as_numbers(picture):
    return picture.reshape(-1, 3).astype(float) / 255


def positive(scores):
    return scores * np.where((scores**3).sum(0) < 0, -1, 1)


def scaled(scores, low, high):
    return np.clip((scores - low) / (high - low), 0, 1)


def test_one_models_colours_are_sklearns_components():
    dense = features(1, 12)
    ours = as_numbers(shared_colours([dense], 8).pictures[0])  # no resizing
    tokens = dense.reshape(-1, 12).double().numpy()
    theirs = positive(PCA(n_components=3, svd_solver="full").fit_transform(tokens))
    want = scaled(theirs, *np.percentile(theirs, [2, 98], axis=0))
    assert np.abs(want - ours).max() < 0.5 / 255 + 1e-4


def test_several_models_colours_are_sklearns_of_the_concatenation():
    given = [features(1, 12), 50 * features(3, 7, signals=2), features(5, 16, noise=2.0) + 3]
    ours = [as_numbers(picture) for picture in shared_colours(given, 8).pictures]
    places = 4 * 8 * 8
    blocks = []
    for dense in given:
        tokens = dense.reshape(places, -1).double().numpy()
        kept = min(tokens.shape[1], places // 16)
        reduced = PCA(n_components=kept, svd_solver="full").fit_transform(tokens)
        blocks.append(reduced / np.sqrt(reduced.var(axis=0).sum()))
    joint = positive(PCA(n_components=3, svd_solver="full").fit_transform(np.hstack(blocks)))
    fitted = [LinearRegression().fit(block, joint).predict(block) for block in blocks]
    low, high = np.median([np.percentile(f, [2, 98], axis=0) for f in fitted], axis=0)
    for mine, theirs in zip(ours, fitted, strict=True):
        assert np.abs(scaled(theirs, low, high) - mine).max() < 0.5 / 255 + 1e-4
    assert np.abs(ours[0] - ours[2]).max() > 0.1, "the models differ"


def test_a_rotated_model_looks_the_same():
    dense = features(1, 24)
    turned = dense.double() @ rotation(24) * 7 + 2
    one, other = shared_colours([dense, turned], 16).pictures
    assert (one == other).all()
    assert one.std() > 20
    alone = shared_colours([turned], 16).pictures[0]
    assert np.abs(alone.astype(int) - shared_colours([dense], 16).pictures[0]).max() <= 1


def test_models_of_other_widths_and_grids_agree_in_colour():
    coarse = features(1, 24, grid=4)
    fine = coarse.repeat_interleave(3, 1).repeat_interleave(3, 2) @ torch.randn(
        24, 40, generator=generator(4)
    )
    one, other = shared_colours([coarse, fine], 12).pictures
    assert one.shape == other.shape == (4, 12, 12, 3)
    middle = np.s_[:, 1::3, 1::3]  # of each patch: the one bicubic, the other as it is
    for channel in range(3):
        a, b = one[middle][..., channel].ravel(), other[middle][..., channel].ravel()
        assert np.corrcoef(a, b)[0, 1] > 0.97


def test_noise_does_not_take_on_the_others_picture():
    # As many channels as there are places: least squares over all of them would fit any scores.
    dense = features(1, 24)
    noise = torch.randn(4, 8, 8, 400, generator=generator(8))
    one, other = (as_numbers(p) for p in shared_colours([dense, noise], 8).pictures)
    strongest = one.std(0).argmax()
    assert abs(np.corrcoef(one[:, strongest], other[:, strongest])[0, 1]) < 0.6
    assert other[:, strongest].std() < 0.5 * one[:, strongest].std()


@pytest.mark.parametrize("models", [1, 2])
def test_an_outlier_changes_no_other_colour(models):
    plain = [features(1, 24), features(5, 16)][:models]
    before = shared_colours(plain, 8)
    damaged = [plain[0].clone(), *plain[1:]]
    damaged[0][2, 3, 4] = 60 * torch.randn(24, generator=generator(3))
    after = shared_colours(damaged, 8)
    found = after.outliers[0]
    assert before.outliers[0].number == 0
    assert (found.number, found.tokens) == (1, 256)
    assert found.where[2, 3, 4]
    elsewhere = ~found.where.numpy()
    for one, other in zip(before.pictures, after.pictures, strict=True):
        change = np.abs(one.astype(int) - other)[elsewhere]
        assert change.max() <= 12
        assert change.mean() < 2


def test_outliers_take_no_part_in_the_scale():
    plain = features(1, 24)
    damaged = plain.clone()
    damaged[:, ::4, ::4] = 60 * torch.randn(24, generator=generator(3))  # 16 of 256: 6 %
    found = shared_colours([damaged], 8)
    elsewhere = ~found.outliers[0].where.numpy()
    assert elsewhere.sum() == 240
    one = shared_colours([plain], 8).pictures[0][elsewhere].astype(float)
    other = found.pictures[0][elsewhere].astype(float)
    assert np.abs(other.std(0) / one.std(0) - 1).max() < 0.1


def test_outliers_are_counted_with_their_norms():
    norms = torch.tensor([9.0, 10, 11, 10, 9, 11, 10, 19, 21, 400]).view(1, 2, 5, 1)
    dense = norms * torch.nn.functional.normalize(
        torch.randn(1, 2, 5, 6, generator=generator()), dim=-1
    )
    found = outlier_tokens(dense)
    # Median 10 and a deviation of 1: what is beyond 20.
    assert found.where.flatten().tolist() == [False] * 8 + [True] * 2
    assert found.median == pytest.approx(10.0, abs=1e-4)
    assert found.norm == pytest.approx(21.0, abs=1e-4)
    assert found.sentence == "outlier tokens: 20.0 % (2 of 10), norm 21 against a median of 10"
    even = outlier_tokens(dense[:, :, :3])
    assert even.sentence == "no outlier tokens, median norm 10"


def test_objects_on_a_plain_background_are_no_outliers():
    dense = torch.ones(2, 8, 8, 4)
    dense[:, 2:4, 2:4] = 1.5  # a deviation of 0
    assert outlier_tokens(dense).number == 0


def test_tokens_that_are_not_finite_are_black_and_harm_no_one():
    dense, other = features(1, 12), features(5, 16)
    broken = dense.clone()
    broken[0, 0, 0, 3] = torch.nan
    pictures = shared_colours([broken, other], 8)
    assert pictures.outliers[0].number == 1
    assert (pictures.pictures[0][0, 0, 0] == 0).all()
    plain = shared_colours([dense, other], 8).pictures
    assert np.abs(plain[1].astype(int) - pictures.pictures[1]).max() <= 12
    diverged, kept = shared_colours([torch.full_like(dense, torch.inf), other], 8).pictures
    assert diverged.max() == 0
    assert (kept == shared_colours([other], 8).pictures[0]).all()


def test_few_channels_and_flat_features_do():
    assert shared_colours([torch.rand(2, 4, 6, 2, generator=generator())], 8).pictures[0].shape == (
        (2, 8, 8, 3)
    )
    flat, lively = shared_colours([torch.full((4, 8, 8, 5), 0.1), features(1, 12)], 8).pictures
    assert flat.std(axis=(0, 1, 2)).max() == 0
    assert lively.std() > 20
    assert shared_colours([torch.zeros(1, 2, 2, 4)], 4).pictures[0].std() == 0


def test_colours_are_the_same_twice():
    given = [features(1, 24), features(5, 16)]
    first, second = (shared_colours(given, 8).pictures for _ in range(2))
    assert all((a == b).all() for a, b in zip(first, second, strict=True))


def test_different_pictures_are_refused():
    with pytest.raises(ValueError, match="same pictures"):
        shared_colours([torch.rand(2, 4, 4, 3), torch.rand(3, 4, 4, 3)], 8)
    with pytest.raises(ValueError, match="same pictures"):
        shared_colours([], 8)
