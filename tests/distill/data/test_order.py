import hashlib

import numpy as np
import pytest

from distill.data.order import (
    BLOCK,
    Mixture,
    Permutation,
    Schedule,
    block_counts,
    mix,
    shuffled,
)
from students.errors import UserError


def stream(lengths, shares, seed, positions):
    """(source, epoch, index) of positions of the mixture of sources of these lengths."""
    source, draw = Mixture(shares, seed).at(positions)
    epoch, index = np.empty_like(draw), np.empty_like(draw)
    for number, length in enumerate(lengths):
        its = source == number
        epoch[its], index[its] = Permutation(length, seed, number).at(draw[its])
    return source, epoch, index


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
    source, _, _ = stream([1000, 40, 7], shares, 4, np.arange(5 * BLOCK))
    counts = np.stack([np.bincount(b, minlength=3) for b in source.reshape(5, BLOCK)])
    assert counts.tolist() == [[128, 77, 51]] * 5
    assert block_counts([1, 1, 1]).tolist() == [86, 85, 85]
    assert block_counts([3e6]).tolist() == [256]


def test_within_a_block_sources_are_mixed_anew():
    source, _, _ = stream([1000, 1000], [1, 1], 0, np.arange(2 * BLOCK))
    first, second = source.reshape(2, BLOCK)
    assert not np.array_equal(first, second)
    assert 80 < (np.diff(first) != 0).sum() < 175


def test_each_epoch_shows_each_sample_once():
    lengths = [300, 37, 1]
    source, epoch, index = stream(lengths, [2, 1, 1], 1, np.arange(8 * BLOCK))
    for s, n in enumerate(lengths):
        complete = epoch[source == s].max()  # the last epoch may not be whole
        assert complete > 2
        for e in range(complete):
            assert sorted(index[(source == s) & (epoch == e)]) == list(range(n))


def test_the_order_is_what_it_always_was():
    # As printed by the first release: a run that goes on must be shown what it would have seen.
    parts = stream([300, 37, 1], [2, 1, 1], 5, np.arange(100000, 100012))
    assert [part.tolist() for part in parts] == [
        [2, 0, 2, 2, 0, 0, 2, 1, 0, 0, 0, 0],
        [24987, 166, 24963, 24992, 166, 166, 25002, 675, 166, 166, 166, 166],
        [0, 33, 0, 0, 286, 112, 0, 23, 289, 80, 193, 143],
    ]
    whole = np.stack(stream([1000, 64, 7, 129], [5, 3, 1, 0.5], 11, np.arange(4096)))
    digest = hashlib.sha256(whole.astype("<i8").tobytes()).hexdigest()
    assert digest == "3e93f4422a6686284568c9805dc1cb527c814d852ef3f8cc0ac787e67491496e"


def test_a_schedule_without_homogeneous_sources_is_the_mixture():
    rows = np.arange(3, 9)
    for step in (0, 1, 1000):
        got = Schedule([3, 1], [False, False], 12, 7).at(step, rows)
        want = Mixture([3, 1], 7).at(12 * step + rows)
        assert all(np.array_equal(a, b) for a, b in zip(got, want, strict=True))


def test_homogeneous_sources_get_their_share_of_the_steps():
    batch, blocks = 8, 3
    shares, own = [0.6, 0.1, 0.2, 0.1], [False, True, False, True]
    schedule = Schedule(shares, own, batch, seed=3)
    batches = [schedule.at(step, np.arange(batch)) for step in range(blocks * BLOCK)]
    kinds = np.array([s[0] if len(set(s.tolist())) == 1 else -1 for s, _ in batches])
    for block in kinds.reshape(blocks, BLOCK):
        assert (block == 1).sum() == 26  # 25.6 of 256, and largest remainders: 205, 26, 25
        assert (block == 3).sum() == 25
    mixed = np.concatenate([s for s, _ in batches if s[0] not in (1, 3)])
    assert set(mixed.tolist()) == {0, 2}
    # 205 mixed steps of 8 are whole blocks of 256 but for 40 % of one: shares hold nearly.
    assert abs((mixed == 0).mean() - 0.75) < 0.01
    for number in range(4):
        draws = np.concatenate([d[s == number] for s, d in batches])
        assert len(set(draws.tolist())) == len(draws)  # none twice
        if own[number]:  # and hardly one left out: the last block of draws is not whole
            assert min(draws) == 0
            assert max(draws) < len(draws) + BLOCK
    assert len(set(np.flatnonzero(kinds == 1) % BLOCK)) > 30  # elsewhere in each block


def test_nothing_but_homogeneous_sources():
    schedule = Schedule([3, 1], [True, True], 4, seed=0)
    first = [int(schedule.at(step, np.arange(4))[0][0]) for step in range(BLOCK)]
    assert np.bincount(first).tolist() == [192, 64]
    alone, draw = Schedule([1], [True], 4, seed=0).at(5, np.array([1, 2]))
    assert alone.tolist() == [0, 0]
    assert set(draw.tolist()) < set(range(BLOCK))


def test_each_epoch_has_an_order_of_its_own():
    # Two blocks an epoch: which samples fill the first one is the source's order alone.
    _, epoch, index = stream([2 * BLOCK], [1], 1, np.arange(6 * BLOCK))
    assert epoch.reshape(3, -1).std(axis=1).max() == 0
    first = [frozenset(half) for half in index.reshape(3, 2, BLOCK)[:, 0].tolist()]
    assert len(set(first)) == 3


def test_any_position_can_be_asked_for_alone():
    together = stream([50, 9], [3, 1], 2, np.arange(600))
    for p in (0, 255, 256, 599):
        assert [int(a[0]) for a in stream([50, 9], [3, 1], 2, p)] == [int(a[p]) for a in together]


def test_the_seed_changes_the_order():
    first, second = (stream([100], [1], seed, np.arange(100))[2] for seed in (0, 1))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("shares", [[1, 0], [1, -1], [1, float("nan")], [1, float("inf")]])
def test_shares_that_are_no_shares(shares):
    with pytest.raises(UserError, match="positive"):
        Mixture(shares, 0)


def test_a_share_that_rounds_to_nothing():
    with pytest.raises(UserError, match="less than one image in 256"):
        Mixture([1, 0.001], 0)
