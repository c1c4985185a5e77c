"""Samplers: what a batch and a pool hold, passes without replacement, and resumption to the bit."""

from __future__ import annotations

import copy
import json
import pickle
from collections import Counter
from itertools import combinations
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sampler_inputs import class_sizes, labels_of
from torch.utils.data import DataLoader, TensorDataset

from ccp_fast.samplers import ClassPoolSampler, MPerClassSampler


@settings(deadline=None)
@given(sizes=class_sizes(), p=st.integers(1, 9), m=st.integers(1, 9), seed=st.integers(0, 2**70))
def test_a_batch_is_p_classes_of_m_samples(sizes: list[int], p: int, m: int, seed: int) -> None:
    labels = labels_of(sizes)
    p = min(p, len(sizes))
    sampler = MPerClassSampler(labels, p, m, seed=seed)
    for _ in range(12):
        batch = torch.tensor(sampler.next_batch()).view(p, m)
        classes = labels[batch]
        assert (classes == classes[:, :1]).all()
        assert len(classes[:, 0].unique()) == p
        for label, row in zip(classes[:, 0].tolist(), batch.tolist(), strict=True):
            size = int((labels == label).sum())
            counts = Counter(row)
            assert max(counts.values()) == -(-m // size)  # once each, unless the class is too small
            assert min(counts[i] for i in (labels == label).nonzero().flatten().tolist()) == m // size


@settings(deadline=None)
@given(sizes=class_sizes(smallest=4), p=st.integers(1, 9), m=st.integers(1, 4), seed=st.integers(0, 99))
def test_passes_are_without_replacement(sizes: list[int], p: int, m: int, seed: int) -> None:
    labels = labels_of(sizes)
    p, count = min(p, len(sizes)), len(sizes)
    sampler = MPerClassSampler(labels, p, m, seed=seed)
    drawn = torch.tensor([sampler.next_batch() for _ in range(40)]).view(-1, m)
    visited = labels[drawn[:, 0]].tolist()
    for start in range(0, len(visited) - count + 1, count):
        assert len(set(visited[start : start + count])) == count
    for label in labels.unique():
        stream = drawn[labels[drawn[:, 0]] == label].flatten().tolist()
        size = int((labels == label).sum())
        for start in range(0, len(stream) - size + 1, size):
            assert len(set(stream[start : start + size])) == size


@settings(deadline=None)
@given(sizes=class_sizes(), p=st.integers(1, 9), m=st.integers(1, 9), numbers=st.lists(st.integers(0, 60)))
def test_batch_is_a_function_of_its_number(sizes: list[int], p: int, m: int, numbers: list[int]) -> None:
    labels = labels_of(sizes)
    p = min(p, len(sizes))
    sampler = MPerClassSampler(labels, p, m, seed=3)
    in_turn = [sampler.next_batch() for _ in range(61)]
    other = MPerClassSampler(labels, p, m, seed=3)
    assert [other.batch(n) for n in numbers] == [in_turn[n] for n in numbers]
    assert other.position == 0


@pytest.mark.parametrize(("size", "hand"), [(5, 2), (5, 3), (5, 4), (4, 2)])
def test_classes_meet_in_every_combination(size: int, hand: int) -> None:
    sampler = MPerClassSampler(torch.arange(size), hand, 1)
    met = Counter(frozenset(sampler.next_batch()) for _ in range(2000))
    assert set(met) == {frozenset(c) for c in combinations(range(size), hand)}
    assert max(met.values()) < 1.6 * min(met.values())


def test_batches_are_the_same_in_every_version() -> None:
    """A checkpoint names a batch by its number, so what that batch holds must never change."""
    sampler = MPerClassSampler(torch.arange(6).repeat_interleave(3), 4, 2, seed=7)
    assert sampler.next_batch() == [9, 11, 3, 4, 14, 12, 17, 16]
    assert sampler.next_batch() == [2, 0, 7, 8, 10, 11, 5, 3]
    pool = ClassPoolSampler(torch.arange(3).repeat_interleave(4), 2, seed=7).pool(5)
    assert pool.indices.tolist() == [3, 0, 4, 6, 9, 10]


def test_seeds_and_passes_differ() -> None:
    labels = torch.arange(50)
    one, two = MPerClassSampler(labels, 50, 1, seed=1), MPerClassSampler(labels, 50, 1, seed=2)
    batches = [tuple(s.batch(n)) for s in (one, two) for n in range(3)]
    assert len(set(batches)) == 6


@settings(deadline=None)
@given(before=st.integers(0, 30), seed=st.integers(0, 99))
def test_resumes_to_the_bit(before: int, seed: int) -> None:
    labels = labels_of([5, 3, 8, 1, 6])
    unbroken = MPerClassSampler(labels, 3, 4, seed=seed)
    for _ in range(before):
        unbroken.next_batch()
    state = json.loads(json.dumps(unbroken.state_dict()))  # plain integers
    resumed = MPerClassSampler(labels, 3, 4, seed=1234)
    resumed.next_batch()
    resumed.load_state_dict(state)
    assert [resumed.next_batch() for _ in range(9)] == [unbroken.next_batch() for _ in range(9)]


def test_resumes_behind_a_prefetching_loader() -> None:
    labels = labels_of([5, 3, 8, 2, 6])
    dataset = TensorDataset(torch.arange(len(labels)))
    sampler = MPerClassSampler(labels, 3, 2)
    batches = iter(DataLoader(dataset, batch_sampler=sampler, num_workers=1, prefetch_factor=4))
    seen = [next(batches)[0].tolist() for _ in range(3)]
    assert sampler.position > 3  # drawn ahead
    resumed = MPerClassSampler(labels, 3, 2)
    assert seen == [resumed.next_batch() for _ in range(3)]
    resumed.load_state_dict(sampler.state_dict(consumed=3))
    assert next(batches)[0].tolist() == resumed.next_batch()


def test_epochs() -> None:
    labels = labels_of([5, 3, 8])
    sampler = MPerClassSampler(labels, 2, 2, batches_per_epoch=5)
    assert len(sampler) == 5
    assert [len(list(sampler)), len(list(sampler))] == [5, 5]
    sampler.load_state_dict(sampler.state_dict(consumed=8))
    assert list(sampler) == [sampler.batch(8), sampler.batch(9)]  # the rest of the second epoch
    with pytest.raises(TypeError, match="batches_per_epoch"):
        len(MPerClassSampler(labels, 2, 2))


def test_copies_and_pickles() -> None:
    sampler = MPerClassSampler(labels_of([5, 3, 8]), 2, 2)
    sampler.next_batch()
    for twin in (copy.deepcopy(sampler), pickle.loads(pickle.dumps(sampler))):
        assert twin.next_batch() == sampler.batch(1)


def test_a_refused_state_changes_nothing() -> None:
    labels = labels_of([5, 3, 8])
    sampler = MPerClassSampler(labels, 2, 2)
    sampler.next_batch()
    expected = sampler.state_dict()
    bad: list[dict[str, Any]] = [
        MPerClassSampler(labels, 2, 3).state_dict(),
        MPerClassSampler(labels.flip(0), 2, 2).state_dict(),
        {**expected, "position": -1},
        {**expected, "position": 1.5},
        {**expected, "seed": None},
        {},
    ]
    for state in bad:
        with pytest.raises(ValueError, match="expected"):
            sampler.load_state_dict(state)
        assert sampler.state_dict() == expected


@settings(deadline=None, max_examples=200)
@given(sizes=class_sizes(), b=st.integers(1, 12), distinct=st.booleans(), k=st.integers(0, 2**40))
def test_pool(sizes: list[int], b: int, distinct: bool, k: int) -> None:
    labels = labels_of(sizes)
    sampler = ClassPoolSampler(labels, b, seed=5, distinct=distinct)
    pool = sampler.pool(k)
    again = ClassPoolSampler(labels, b, seed=5, distinct=distinct).pool(k)
    assert torch.equal(pool.indices, again.indices)
    assert sampler.classes.tolist() == labels.unique().tolist()
    assert pool.offsets[0] == 0
    assert pool.offsets[-1] == len(pool.indices)
    for c, label in enumerate(sampler.classes):
        members = (labels == label).nonzero().flatten().tolist()
        drawn = pool.indices[pool.offsets[c] : pool.offsets[c + 1]].tolist()
        counts = Counter(drawn)
        assert set(drawn) <= set(members)
        if distinct:
            assert len(drawn) == len(counts) == min(b, len(members))
        else:
            assert len(drawn) == b
            assert len(set(drawn[: len(members)])) == min(b, len(members))  # all before any comes again
            assert max(counts.values()) == -(-b // len(members))


def test_pools_reach_every_choice_equally() -> None:
    labels = torch.tensor([1, 0, 1, 1, 1, 0])
    sampler = ClassPoolSampler(labels, 2)
    met = Counter(frozenset(sampler.pool(k).indices[2:].tolist()) for k in range(1200))
    assert set(met) == {frozenset(c) for c in combinations([0, 2, 3, 4], 2)}
    assert max(met.values()) < 1.4 * min(met.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            dict(labels=torch.zeros(0, dtype=torch.int64)),
            r"labels: expected int64 .*got int64 of shape \[0\]",
        ),
        (dict(labels=torch.zeros(4)), r"labels: expected int64 .*got float32 of shape \[4\]"),
        (dict(labels=torch.zeros(4, 1, dtype=torch.int64)), r"labels: .*shape \[4, 1\]"),
        (dict(labels=["a", "b"]), "labels: expected integers"),
        (dict(classes_per_batch=4), "classes_per_batch: expected at most 3, the number of classes, got 4"),
        (dict(classes_per_batch=0), "classes_per_batch: expected an integer of at least 1, got 0"),
        (dict(samples_per_class=1.5), "samples_per_class: expected an integer of at least 1, got 1.5"),
        (dict(batches_per_epoch=0), "batches_per_epoch: expected an integer of at least 1, got 0"),
        (dict(seed=-1), "seed: expected an integer of at least 0, got -1"),
    ],
)
def test_errors(arguments: dict[str, Any], message: str) -> None:
    given_arguments = {"labels": [0, 1, 2], "classes_per_batch": 2, "samples_per_class": 2, **arguments}
    with pytest.raises(ValueError, match=message):
        MPerClassSampler(**given_arguments)


def test_pool_errors() -> None:
    with pytest.raises(ValueError, match="pool_size: expected an integer of at least 1, got 0"):
        ClassPoolSampler([0, 1], 0)
    with pytest.raises(ValueError, match="labels: expected int64"):
        ClassPoolSampler([], 3)
    with pytest.raises(ValueError, match="k: expected an integer of at least 0, got -1"):
        ClassPoolSampler([0, 1], 3).pool(-1)
