"""The cross-batch memory: which references a batch meets, and what a queue keeps."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from golden import load
from golden.compare import assert_golden
from golden.coverage import MEMORY, cases_of
from helpers import assert_same_state, one_thread  # noqa: F401
from hypothesis import given
from hypothesis import strategies as st
from pytorch_metric_learning import losses as peers
from torch import Tensor

from ccp_fast import CrossBatchMemory, losses
from ccp_fast import functional as F

DIM = 5
CONTRASTIVE = losses.ContrastiveLoss(neg_margin=0.9, normalize="unit")
LOSSES = [
    CONTRASTIVE,
    losses.TripletLoss(margin=0.2),
    losses.MultiSimilarityLoss(),
    losses.ProxyNCALoss(7, DIM),
    losses.ProxyAnchorLoss(7, DIM),
    losses.LiftedStructureLoss(variant="anchor"),
    losses.MarginSoftmaxLoss(7, DIM, scale=8, kind="arcface"),
    losses.SoftTripleLoss(7, DIM, 2),
]
every_loss = pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: type(loss).__name__)


def batch(count: int, seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(count, DIM, generator=g, dtype=torch.float64).to(dtype).requires_grad_()
    return embeddings, torch.randint(4, (count,), generator=g)


def make(size: int, **options: object) -> CrossBatchMemory:
    return CrossBatchMemory(size, DIM, dtype=torch.float64, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", cases_of(MEMORY))
def test_reproduces_the_published_run(name: str) -> None:
    case, flags = load(name), load(name).flags
    memory = CrossBatchMemory(
        flags["memory_size"], flags["embedding_size"], pair_weight=0, dtype=torch.float64
    )
    loss = {
        "CrossBatchMemory(ContrastiveLoss)": lambda: losses.ContrastiveLoss(
            pos_margin=flags["pos_margin"], neg_margin=flags["neg_margin"], normalize="unit"
        ),
        "CrossBatchMemory(TripletMarginLoss)": lambda: losses.TripletLoss(
            margin=flags["margin"], normalize="unit"
        ),
    }[case.meta["class"]]()
    for i in itertools.takewhile(lambda i: f"emb_{i}" in case, itertools.count()):
        embeddings = torch.from_numpy(case[f"emb_{i}"]).requires_grad_()
        value = memory(loss, embeddings, torch.from_numpy(case[f"labels_{i}"]))
        value.backward()
        assert embeddings.grad is not None
        assert_golden(f"loss {i}", value.detach().numpy(), case[f"loss_{i}"])
        assert_golden(f"gradient {i}", embeddings.grad.numpy(), case[f"grad_emb_{i}"], value.item())
        assert memory.pointer == case[f"queue_idx_{i}"]
        assert (memory.fill == memory.size) == case[f"filled_{i}"]
    assert i >= 5  # it has gone round the queue
    assert torch.equal(memory.queue, torch.from_numpy(case["memory_emb"]))
    assert torch.equal(memory.queue_labels, torch.from_numpy(case["memory_labels"]))


@pytest.mark.parametrize("sizes", [[4, 4, 4, 4, 4, 4], [1, 6, 3, 9, 2, 2, 10, 10]])
def test_equals_pytorch_metric_learning_on_uneven_batches(sizes: list[int]) -> None:
    ours = make(10, pair_weight=0)
    peer = peers.CrossBatchMemory(peers.MultiSimilarityLoss(alpha=2, beta=50, base=0.5), DIM, 10)
    for i, size in enumerate(sizes):
        x, labels = batch(size, seed=i)
        results = [ours(losses.MultiSimilarityLoss(), x, labels), peer(x, labels)]
        grads = [torch.autograd.grad(r, x)[0] for r in results]
        torch.testing.assert_close(results[0], results[1], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(grads[0], grads[1], rtol=1e-9, atol=1e-11)


@every_loss
@given(
    size=st.integers(1, 12),
    sizes=st.lists(st.integers(0, 15), min_size=1, max_size=8),
    include_batch=st.booleans(),
)
def test_references_are_the_newest_samples(
    loss: losses.MetricLoss, size: int, sizes: list[int], include_batch: bool
) -> None:
    """Against a list of everything seen: any sizes of batches, larger than the memory and empty ones too."""
    memory = make(size, include_batch=include_batch, pair_weight=0.25, memory_weight=2.0)
    seen, seen_labels = torch.zeros(0, DIM, dtype=torch.float64), torch.zeros(0, dtype=torch.int64)
    for i, count in enumerate(sizes):
        x, labels = batch(count, seed=i)
        own = x.detach()
        kept = max(size - count, 0) if include_batch else size
        references, reference_labels = (t[max(len(t) - kept, 0) :] for t in (seen, seen_labels))
        if include_batch:
            references = torch.cat([own, references])
            reference_labels = torch.cat([labels, reference_labels])
        expected = 0.25 * loss.pairs(x, labels) + 2 * loss.function(
            x, references, labels, reference_labels, exclude_self=include_batch, **loss.options
        )
        value = memory(loss, x, labels)
        # Column order changes the order of sums.
        torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-12)
        grads = [torch.autograd.grad(v, x)[0] for v in (value, expected)]
        torch.testing.assert_close(*grads, rtol=1e-8, atol=1e-10)
        seen, seen_labels = torch.cat([seen, own]), torch.cat([seen_labels, labels])
        stored, stored_labels = memory.stored()
        assert torch.equal(stored, seen[max(len(seen) - size, 0) :])
        assert torch.equal(stored_labels, seen_labels[max(len(seen) - size, 0) :])


@every_loss
def test_with_the_batch_alone_in_it_the_memory_gives_the_loss_within_the_batch(
    loss: losses.MetricLoss,
) -> None:
    x, labels = batch(9, seed=0)
    value = make(30, pair_weight=0)(loss, x, labels)
    torch.testing.assert_close(value, loss.pairs(x, labels), rtol=1e-12, atol=1e-12)
    assert make(30, include_batch=False, pair_weight=0)(loss, x, labels) == 0


def test_two_equal_images_are_a_pair_but_one_image_is_none() -> None:
    """Self pairs go by slot: distance 0 to another sample counts."""
    x = torch.tensor([[1.0, 0], [1.0, 0]]).requires_grad_()
    memory = CrossBatchMemory(8, 2, pair_weight=0)
    # Sums of the similarities of positives, as it were: (1 − s + 2)₊ = 2 for each pair.
    loss = losses.ContrastiveLoss(distance="cosine", pos_margin=-2, neg_margin=1, reduction="sum")
    assert memory(loss, x, torch.tensor([3, 3])) == 4  # each with the other
    assert memory(loss, x[:1], torch.tensor([3])) == 4  # with the two before


def test_an_image_of_an_earlier_batch_is_a_reference_like_any_other() -> None:
    """The copy that a call makes of its own batch is left out; what the queue has of the same image counts."""
    loss = losses.ContrastiveLoss(distance="cosine", pos_margin=-2, neg_margin=1, reduction="sum")
    for include_batch in (True, False):
        memory = CrossBatchMemory(8, 2, pair_weight=0, include_batch=include_batch)
        image, label = torch.tensor([[1.0, 0]]), torch.tensor([3])
        assert memory(loss, image, label) == 0
        assert memory(loss, image, label) == 2  # a positive at distance 0: (1 − s + 2)₊


def test_warm_up_stores_batches_and_uses_none() -> None:
    memory = make(20, warm_up=2, memory_weight=3.0)
    for i in range(2):
        x, labels = batch(4, seed=i)
        assert torch.equal(memory(CONTRASTIVE, x, labels), CONTRASTIVE.pairs(x, labels))
    assert memory.fill == 8
    x, labels = batch(4, seed=2)
    assert memory(CONTRASTIVE, x, labels) > CONTRASTIVE.pairs(x, labels)


def test_eval_mode_only_reads() -> None:
    memory = make(20, warm_up=1)
    memory(CONTRASTIVE, *batch(4, seed=0))
    before = copy.deepcopy(memory.state_dict())
    memory.eval()
    values = [memory(CONTRASTIVE, *batch(4, seed=1)) for _ in range(2)]
    assert torch.equal(values[0], values[1])
    assert_same_state(memory.state_dict(), before)
    memory.train()
    assert torch.equal(memory(CONTRASTIVE, *batch(4, seed=1)), values[0])
    assert memory.fill == 8
    memory.reset_()
    assert len(memory.stored()[0]) == memory.steps == 0


@pytest.mark.parametrize("done", range(6))
def test_resumes_to_the_bit(done: int) -> None:
    unbroken, resumed = make(10, warm_up=1), make(10, warm_up=1)
    for i in range(done):
        unbroken(CONTRASTIVE, *batch(4, seed=i))
    resumed(CONTRASTIVE, *batch(3, seed=99))
    resumed.load_state_dict(copy.deepcopy(unbroken.state_dict()))
    for i in range(done, 9):
        assert torch.equal(*(m(CONTRASTIVE, *batch(4, seed=i)) for m in (unbroken, resumed)))
    assert_same_state(unbroken.state_dict(), resumed.state_dict())


def test_a_state_of_another_size_is_refused() -> None:
    state = make(10).state_dict()
    with pytest.raises(RuntimeError, match="queue"):
        make(9).load_state_dict(state)
    state["_extra_state"] = torch.tensor([10, 3, 0])
    with pytest.raises(ValueError, match=r"^state: expected a pointer below size = 10"):
        make(10).load_state_dict(state)


def test_the_queue_keeps_its_dtype_under_autocast() -> None:
    memory, network = CrossBatchMemory(20, DIM), torch.nn.Linear(4, DIM)
    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16):
            embeddings = network(torch.randn(6, 4))
            value = memory(CONTRASTIVE, embeddings, torch.arange(6) % 2)
        assert embeddings.dtype == torch.bfloat16
        assert value.dtype == torch.float32
    assert memory.queue.dtype == torch.float32
    assert torch.equal(memory.stored()[0][-6:], embeddings.detach().float())
    value.backward()
    assert network.weight.grad is not None
    assert network.weight.grad.abs().sum() > 0


def test_a_compiled_model_trains_with_it() -> None:
    torch.manual_seed(0)
    network = torch.nn.Linear(4, DIM)
    compiled = torch.compile(network, backend="aot_eager")
    memories = CrossBatchMemory(10, DIM), CrossBatchMemory(10, DIM)
    for _ in range(4):
        images, labels = torch.randn(4, 4), torch.tensor([0, 0, 1, 1])
        values = [
            m(CONTRASTIVE, net(images), labels) for m, net in zip(memories, (network, compiled), strict=True)
        ]
        assert torch.equal(*values)
        values[1].backward()


@pytest.mark.parametrize(
    ("embeddings", "labels", "message"),
    [
        (torch.zeros(3, 4), torch.arange(3), r"^embeddings: expected floating point of shape \[B, 5\], got"),
        (torch.zeros(3, 5).long(), torch.arange(3), r"got int64 of shape \[3, 5\]"),
        (
            torch.zeros(3, 5),
            torch.arange(4),
            r"^labels: expected int64 of shape \[3\], got int64 of shape \[4\]",
        ),
        (torch.zeros(3, 5), torch.zeros(3), r"^labels: expected int64 of shape \[3\], got float32"),
        (torch.zeros(3, 5, device="meta"), torch.arange(3), r"^embeddings: expected on cpu, .* got meta"),
    ],
)
def test_refuses_other_batches(embeddings: Tensor, labels: Tensor, message: str) -> None:
    memory = CrossBatchMemory(7, DIM)
    for call in (
        lambda: memory(CONTRASTIVE, embeddings, labels),
        lambda: memory.enqueue_(embeddings, labels),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert memory.fill == memory.steps == 0


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (
            losses.LiftedStructureLoss(),
            r"^loss: expected one that takes references beside the batch, got Lifted.*\(.*variant='pair'.*\) "
            r"\(references: expected None",
        ),
        (
            losses.MetricLoss(lambda a, r, labels, ref_labels: a.sum(), None, None, 1),
            r"^loss: expected one that takes references beside the batch, got MetricLoss\(\) \(.*exclude_self",
        ),
        (
            peers.ContrastiveLoss(),
            r"^loss: expected one of ccp_fast\.losses, got a pytorch_metric_learning\..*ContrastiveLoss$",
        ),
    ],
)
def test_refuses_a_loss_that_takes_no_references_before_the_warm_up(
    loss: losses.MetricLoss, message: str
) -> None:
    memory = make(20, warm_up=1000)
    with pytest.raises(ValueError, match=message):
        memory(loss, *batch(4, seed=0))
    assert memory.fill == memory.steps == 0


@pytest.mark.parametrize("sizes", [{"size": 0}, {"dim": 0}, {"warm_up": -1}])
def test_refuses_sizes(sizes: dict[str, int]) -> None:
    ((name, value),) = sizes.items()
    with pytest.raises(ValueError, match=rf"^{name}: expected at least {value + 1}, got {value}"):
        CrossBatchMemory(**{"size": 4, "dim": 2, **sizes})


def test_no_gradient_is_computed_for_the_memory() -> None:
    memory = make(10, pair_weight=0)
    first, _ = batch(4, seed=0)
    memory(CONTRASTIVE, first, torch.arange(4))
    x, labels = batch(4, seed=1)
    memory(CONTRASTIVE, x, labels).backward()
    assert first.grad is None
    references = torch.cat([x.detach(), first.detach()])
    expected = F.contrastive(
        x, references, labels, torch.cat([labels, torch.arange(4)]), exclude_self=True, **CONTRASTIVE.options
    )
    assert torch.equal(x.grad, torch.autograd.grad(expected, x)[0])
