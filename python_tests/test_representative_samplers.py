"""Representatives of classes and hard class mining: layout, lifetimes, exact neighbours, resumption."""

from __future__ import annotations

import copy
import json
from collections import Counter
from typing import Any

import pytest
import torch
from helpers import assert_same_state
from hypothesis import given, settings
from hypothesis import strategies as st
from sampler_inputs import class_sizes, labels_of

from ccp_fast import losses
from ccp_fast.samplers import HardClassSampler, MPerClassSampler, RepresentativeSampler

CLASSES, DIM = 9, 4


def spread_labels() -> torch.Tensor:
    return labels_of([5, 3, 8, 1, 6, 4, 4, 2, 7])


def class_vectors(seed: int = 0) -> torch.Tensor:
    return torch.randn(CLASSES, DIM, generator=torch.Generator().manual_seed(seed))


def hard(**options: Any) -> HardClassSampler:
    return HardClassSampler(spread_labels(), 4, 3, **options)


@settings(deadline=None)
@given(
    sizes=class_sizes(),
    p=st.integers(1, 9),
    m=st.integers(2, 9),
    lifetime=st.integers(1, 7),
    seed=st.integers(0, 2**70),
)
def test_a_batch_is_representatives_then_others(
    sizes: list[int], p: int, m: int, lifetime: int, seed: int
) -> None:
    labels = labels_of(sizes)
    p = min(p, len(sizes))
    sampler = RepresentativeSampler(labels, p, m, lifetime=lifetime, seed=seed)
    for number in range(15):
        batch = torch.tensor(sampler.next_batch())
        representatives, others = batch[:p], batch[p:].view(p, m - 1)
        assert len(labels[representatives].unique()) == p
        assert (labels[others] == labels[representatives, None]).all()
        everyone = sampler.representatives(number)
        assert torch.equal(labels[everyone], sampler.classes)
        assert set(representatives.tolist()) <= set(everyone.tolist())
        for r, row in zip(representatives.tolist(), others.tolist(), strict=True):
            size = int((labels == labels[r]).sum())
            assert (r in row) == (size == 1)
            assert max(Counter(row).values()) == -(
                -(m - 1) // max(size - 1, 1)
            )  # once each, if there are enough


@settings(deadline=None)
@given(sizes=class_sizes(), lifetime=st.integers(1, 7), seed=st.integers(0, 99))
def test_a_representative_is_kept_and_then_the_next_comes(sizes: list[int], lifetime: int, seed: int) -> None:
    labels = labels_of(sizes)
    sampler = RepresentativeSampler(labels, 1, 2, lifetime=lifetime, seed=seed)
    rounds = max(sizes)
    kept = [sampler.representatives(n) for n in range(lifetime * rounds)]
    for start in range(0, len(kept), lifetime):
        assert all(torch.equal(kept[start], other) for other in kept[start : start + lifetime])
    for c, size in enumerate(torch.unique(labels, return_counts=True)[1].tolist()):
        turns = [int(k[c]) for k in kept[::lifetime]]
        assert len(set(turns[:size])) == size  # every sample of a class has its turn


def test_the_others_of_a_class_come_in_passes() -> None:
    labels = torch.arange(2).repeat_interleave(7)
    sampler = RepresentativeSampler(labels, 1, 3, lifetime=1000)
    drawn: dict[int, list[int]] = {0: [], 1: []}
    for _ in range(60):
        batch = sampler.next_batch()
        drawn[int(labels[batch[0]])] += batch[1:]
    for stream in drawn.values():
        assert all(len(set(stream[i : i + 6])) == 6 for i in range(0, 60, 6))


def test_batches_are_the_same_in_every_version() -> None:
    """A checkpoint names a batch by its number, so what that batch holds must never change."""
    sampler = RepresentativeSampler(torch.arange(6).repeat_interleave(3), 3, 2, lifetime=2, seed=7)
    assert [sampler.next_batch() for _ in range(3)] == [
        [9, 5, 14, 10, 3, 12],
        [17, 2, 7, 16, 0, 8],
        [10, 8, 3, 11, 6, 5],
    ]
    mining = HardClassSampler(torch.arange(9).repeat_interleave(3), 3, 2, seed=7)
    mining.update(class_vectors())
    assert [mining.next_batch() for _ in range(2)] == [[24, 17, 7, 25, 16, 8], [8, 18, 15, 6, 19, 16]]


@settings(deadline=None)
@given(before=st.integers(0, 40), seed=st.integers(0, 99), mining=st.booleans())
def test_resumes_to_the_bit(before: int, seed: int, mining: bool) -> None:
    def make(seed: int) -> RepresentativeSampler:
        kind = HardClassSampler if mining else RepresentativeSampler
        return kind(spread_labels(), 4, 3, lifetime=5, seed=seed)

    unbroken, resumed = make(seed), make(1234)
    for n in range(before):
        if n == 7 and isinstance(unbroken, HardClassSampler):
            unbroken.update(class_vectors(seed))
        unbroken.next_batch()
    resumed.next_batch()
    state = copy.deepcopy(unbroken.state_dict())
    if not mining:
        state = json.loads(json.dumps(state))  # plain integers
    resumed.load_state_dict(state)
    assert [resumed.next_batch() for _ in range(9)] == [unbroken.next_batch() for _ in range(9)]
    assert_same_state(resumed.state_dict(), unbroken.state_dict())


def test_states_of_other_samplers_are_refused() -> None:
    labels = spread_labels()
    sampler = RepresentativeSampler(labels, 4, 3, lifetime=5)
    before = sampler.state_dict()
    for other in (
        MPerClassSampler(labels, 4, 3),
        RepresentativeSampler(labels, 4, 3, lifetime=6),
        RepresentativeSampler(labels.flip(0), 4, 3, lifetime=5),
    ):
        with pytest.raises(ValueError, match="expected"):
            sampler.load_state_dict(other.state_dict())
        assert sampler.state_dict() == before
    mining = hard()
    with pytest.raises(ValueError, match=r"class_vectors: expected floating point of shape \[9, D\], got"):
        mining.load_state_dict({**mining.state_dict(), "class_vectors": torch.zeros(8, DIM)})


# Hard class mining


def nearest_by_hand(vectors: torch.Tensor, seed: int, count: int) -> list[int]:
    distances = (vectors - vectors[seed]).double().norm(dim=1)
    distances[seed] = -1
    return sorted(range(len(vectors)), key=lambda c: (float(distances[c]), c))[:count]


@pytest.mark.parametrize("search", ["torch", "faiss"])
def test_a_batch_is_a_seed_and_its_nearest_classes(search: str) -> None:
    if search == "faiss":
        pytest.importorskip("faiss")
    labels, sampler = spread_labels(), hard(search=search, seed=3)
    names = sampler.classes.tolist()
    for update in range(3):
        vectors = class_vectors(update)
        sampler.update(vectors)
        for _ in range(2 * CLASSES):
            batch = sampler.next_batch()
            classes = [names.index(int(labels[i])) for i in batch[:4]]
            assert classes == nearest_by_hand(vectors, classes[0], 4)


def test_faiss_gives_the_same_batches_where_float32_cannot_tell_classes_apart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Spread, then far from the origin and near each other, where a flat index by itself ranks otherwise."""
    faiss = pytest.importorskip("faiss")
    asked = []
    search = faiss.IndexFlatL2.search
    monkeypatch.setattr(
        faiss.IndexFlatL2, "search", lambda index, *arguments: asked.append(1) or search(index, *arguments)
    )
    labels = torch.arange(400).repeat_interleave(2)
    spread = torch.randn(400, 32, generator=torch.Generator().manual_seed(0))
    for vectors in (spread, 1e3 + spread / 100):
        samplers = [HardClassSampler(labels, 8, 2, search=name) for name in ("torch", "faiss")]
        for sampler in samplers:
            sampler.update(vectors)
        batches = [[sampler.next_batch() for _ in range(50)] for sampler in samplers]
        assert batches[0] == batches[1]
    assert asked


def test_by_proxies_instead_of_representatives() -> None:
    """Which the loss owns, and which it may have moved: those of the last update count."""
    labels = torch.arange(CLASSES).repeat_interleave(3)
    loss = losses.ProxyAnchorLoss(CLASSES, DIM)
    sampler = HardClassSampler(labels, 4, 2)
    unit = torch.nn.functional.normalize(loss.proxies[:, 0], dim=1)
    sampler.update(unit)
    expected = [nearest_by_hand(unit.detach(), seed, 4) for seed in range(CLASSES)]
    loss.reset_parameters()
    for _ in range(CLASSES):
        classes = labels[sampler.next_batch()[:4]].tolist()
        assert classes == expected[classes[0]]
    state = sampler.state_dict()
    assert torch.equal(state["class_vectors"], unit)
    assert not state["class_vectors"].requires_grad


def test_every_class_is_a_seed_once_in_every_pass() -> None:
    labels, sampler = spread_labels(), hard()
    sampler.update(class_vectors())
    seeds = [int(labels[sampler.next_batch()[0]]) for _ in range(6 * CLASSES)]
    for start in range(0, len(seeds), CLASSES):
        assert sorted(seeds[start : start + CLASSES]) == sampler.classes.tolist()


def test_of_classes_at_equal_distances_the_lower_number_is_nearer() -> None:
    """Four classes coincide, which leaves a seed out of its own nearest; two are equally far on either side."""
    vectors = torch.tensor([[0.0], [0], [0], [0], [1], [-1], [5], [6], [7]])
    sampler = hard()
    sampler.update(vectors)
    labels, names = spread_labels(), sampler.classes.tolist()
    found = {}
    for _ in range(CLASSES):
        classes = [names.index(int(labels[i])) for i in sampler.next_batch()[:4]]
        found[classes[0]] = classes[1:]
    assert found[0] == [1, 2, 3]
    assert found[3] == [0, 1, 2]
    assert found[7] == [6, 8, 4]


def test_before_the_first_update_classes_come_in_turn() -> None:
    sampler = hard(lifetime=5, seed=2)
    plain = RepresentativeSampler(spread_labels(), 4, 3, lifetime=5, seed=2)
    assert [sampler.next_batch() for _ in range(8)] == [plain.next_batch() for _ in range(8)]


def test_vectors_are_copied() -> None:
    vectors = class_vectors()
    one, other = hard(), hard()
    one.update(vectors)
    other.update(vectors.clone())
    vectors.zero_()
    assert [one.next_batch() for _ in range(5)] == [other.next_batch() for _ in range(5)]


# What the batch is for


def test_only_pairs_with_representatives_count_and_gradients_flow_through_both() -> None:
    labels = spread_labels()
    sampler = RepresentativeSampler(labels, 4, 3, lifetime=5)
    p, chosen = sampler.classes_per_batch, torch.tensor(sampler.next_batch())
    embeddings = torch.randn(len(chosen), DIM, dtype=torch.float64, requires_grad=True)
    y = labels[chosen]
    loss = losses.ContrastiveLoss(neg_margin=3.0, normalize=None, reduction="sum")
    value = loss(embeddings[p:], y[p:], embeddings[:p], y[:p])
    expected = torch.zeros((), dtype=torch.float64)
    for x, a in zip(embeddings[p:], y[p:], strict=True):
        for r, b in zip(embeddings[:p], y[:p], strict=True):
            d = (x - r).norm()
            expected = expected + (d if a == b else (3.0 - d).relu())
    torch.testing.assert_close(value, expected)
    (grad,) = torch.autograd.grad(value, embeddings)
    torch.testing.assert_close(grad, torch.autograd.grad(expected, embeddings)[0])
    assert (grad.abs().sum(1) > 0).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: RepresentativeSampler([0, 1, 2], 2, 1, lifetime=3),
            "samples_per_class: expected an integer of at least 2, got 1",
        ),
        (
            lambda: RepresentativeSampler([0, 1, 2], 2, 2, lifetime=0),
            "lifetime: expected an integer of at least 1, got 0",
        ),
        (lambda: hard(search="annoy"), 'search: expected "torch" or "faiss", got \'annoy\''),
        (
            lambda: hard().update(torch.zeros(8, 3)),
            r"class_vectors: expected floating point of shape \[9, D\], got float32 of shape \[8, 3\]",
        ),
        (lambda: hard().update(torch.zeros(9, 3).long()), r"class_vectors: .* got int64 of shape \[9, 3\]"),
        (
            lambda: hard().update(torch.zeros(9, 3).index_fill(0, torch.tensor(4), torch.nan)),
            "class_vectors: expected finite numbers, got others in row 4",
        ),
    ],
)
def test_errors(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_without_faiss_it_cannot_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ccp_fast.samplers.hard_class.find_spec", lambda name: None)
    with pytest.raises(ValueError, match='search: expected "torch" where faiss is not installed'):
        hard(search="faiss")
