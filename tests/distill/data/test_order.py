import numpy as np
import pytest

from distill.data.order import BLOCK, Mixture, block_counts, mix, shuffled
from students.errors import UserError

SIZES = [1, 2, 3, 4, 5, 7, 16, 17, 64, 97, 256, 1000, 1009, 4096, 4097]


@pytest.mark.parametrize("n", SIZES)
def test_shuffled_is_a_permutation(n):
    for key in (0, 1, 12345678901234567890 % 2**63):
        assert sorted(shuffled(np.arange(n), n, key)) == list(range(n))


def test_the_permutation_is_of_the_key_and_looks_random():
    n = 1009
    first, second = (shuffled(np.arange(n), n, key) for key in (0, 1))
    assert not np.array_equal(first, second)
    for order in (first, second):
        assert abs(np.corrcoef(np.arange(n), order)[0, 1]) < 0.1
        # A random permutation has one fixed point and one neighbour kept on average.
        assert (order == np.arange(n)).sum() < 8
        assert (np.diff(order) == 1).sum() < 8


def test_each_place_is_met_equally_often_over_keys():
    n, keys = 5, 4000
    to = shuffled(np.zeros(keys, int), n, mix(np.arange(keys)))
    counts = np.bincount(to, minlength=n)
    chi2 = ((counts - keys / n) ** 2 / (keys / n)).sum()
    assert chi2 < 18.5  # 0.1 % point of chi-square with 4 degrees of freedom


def test_arrays_of_sizes_and_keys_equal_one_by_one():
    n, key = np.array([1, 3, 97, 4097, 3]), np.array([5, 6, 7, 8, 9])
    at = np.array([0, 2, 50, 4000, 1])
    one = [int(shuffled(a, m, k)[0]) for a, m, k in zip(at, n, key, strict=True)]
    assert shuffled(at, n, key).tolist() == one


def test_large_ranges_and_wrong_positions():
    n = 10**9 + 7
    there = shuffled(np.arange(1000), n, 3)
    assert len(set(there.tolist())) == 1000
    assert there.min() >= 0
    assert n / 3 < there.mean() < 2 * n / 3
    for wrong in (-1, 5):
        with pytest.raises(ValueError, match="below n"):
            shuffled(wrong, 5, 0)


def test_mix_is_of_every_part_in_its_order():
    hashes = {int(mix(*parts)[0]) for parts in [(0, 0), (0, 1), (1, 0), (1,), (0,), (2, 2)]}
    assert len(hashes) == 6


def test_shares_are_exact_in_every_block():
    shares = [0.5, 0.3, 0.2]
    source, _, _ = Mixture([1000, 40, 7], shares, seed=4).at(np.arange(5 * BLOCK))
    counts = np.stack([np.bincount(b, minlength=3) for b in source.reshape(5, BLOCK)])
    assert counts.tolist() == [[128, 77, 51]] * 5
    assert block_counts([1, 1, 1]).tolist() == [86, 85, 85]
    assert block_counts([3e6]).tolist() == [256]


def test_within_a_block_sources_are_mixed_anew():
    source, _, _ = Mixture([1000, 1000], [1, 1], seed=0).at(np.arange(2 * BLOCK))
    first, second = source.reshape(2, BLOCK)
    assert not np.array_equal(first, second)
    assert 80 < (np.diff(first) != 0).sum() < 175


def test_each_epoch_shows_each_sample_once():
    lengths = [300, 37, 1]
    source, epoch, index = Mixture(lengths, [2, 1, 1], seed=1).at(np.arange(8 * BLOCK))
    for s, n in enumerate(lengths):
        complete = epoch[source == s].max()  # the last epoch may not be whole
        assert complete > 2
        for e in range(complete):
            assert sorted(index[(source == s) & (epoch == e)]) == list(range(n))


def test_each_epoch_has_an_order_of_its_own():
    # Two blocks an epoch: which samples fill the first one is the source's order alone.
    _, epoch, index = Mixture([2 * BLOCK], [1], seed=1).at(np.arange(6 * BLOCK))
    assert epoch.reshape(3, -1).std(axis=1).max() == 0
    first = [frozenset(half) for half in index.reshape(3, 2, BLOCK)[:, 0].tolist()]
    assert len(set(first)) == 3


def test_any_position_can_be_asked_for_alone():
    mixture = Mixture([50, 9], [3, 1], seed=2)
    together = mixture.at(np.arange(600))
    for p in (0, 255, 256, 599):
        assert [int(a[0]) for a in mixture.at(p)] == [int(a[p]) for a in together]


def test_the_seed_changes_the_order():
    first, second = (Mixture([100], [1], seed).at(np.arange(100))[2] for seed in (0, 1))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("shares", [[1, 0], [1, -1], [1, float("nan")], [1, float("inf")]])
def test_shares_that_are_no_shares(shares):
    with pytest.raises(UserError, match="positive"):
        Mixture([5, 5], shares, 0)


def test_a_share_that_rounds_to_nothing():
    with pytest.raises(UserError, match="less than one image in 256"):
        Mixture([5, 5], [1, 0.001], 0)
