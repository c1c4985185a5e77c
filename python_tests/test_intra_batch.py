"""Message passing within a batch: the published code's output, the attention's null logit, the loss of two heads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from golden import Case, load
from golden.compare import assert_golden
from golden.coverage import INTRA_BATCH, cases_of
from helpers import one_thread  # noqa: F401
from torch import Tensor, nn
from torch.nn import functional

from ccp_fast.nn import IntraBatchLoss, IntraBatchMessagePassing, MessagePassingLayer

CROSS_ENTROPY = "intra_batch/ce_label_smooth_eps0.1"
DIM = 16
# Samples that are all equal have no variance: the batch norm multiplies gradients, whose sum is 0, by 1/√1e-5, and
# the temperature by 5.
CANCELS = {"intra_batch/hard_gnn_all_equal": 5 / 1e-5**0.5}


class Masked(nn.Module):
    """Dropout with the mask of a published run."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.mask = mask

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask


class Published(nn.Module):
    """The published GNNReID put together from this package's parts, with its weights.

    Its linear maps of queries, keys and values are one here; each head has a batch norm and a linear map; with
    `every` there is one after each layer, else one after the last.
    """

    def __init__(self, case: Case) -> None:
        super().__init__()
        flags, self.case = case.flags, case
        params, dim = flags["params"], flags["embed_dim"]
        gnn, narrow = params["gnn"], dim // params["red"]
        self.messages = IntraBatchMessagePassing(narrow, gnn["num_heads"], gnn["num_layers"], in_dim=dim)
        count = gnn["num_layers"] if params["every"] else 1
        self.necks = nn.ModuleList(nn.BatchNorm1d(narrow) for _ in range(count))
        self.heads = nn.ModuleList(nn.Linear(narrow, flags["num_classes"], bias=False) for _ in range(count))
        self.double()
        self.load_state_dict(published_names(case, "sd:"))
        self.train(flags["mode"].startswith("train"))
        if flags["mode"] == "train_nodrop":
            self.set_dropout(lambda _: 0.0)

    def set_dropout(self, p: Any) -> None:
        for module in self.modules():
            if isinstance(module, nn.Dropout):
                module.p = p(module)
            if isinstance(module, MessagePassingLayer):
                module.attention_dropout = p(module)

    def forward(self, embeddings: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Logits and refined embeddings of each head."""
        refined = [self.messages.project(embeddings)]
        for layer in self.messages.layers:
            refined.append(layer(refined[-1]))
        refined = refined[-len(self.necks) :]
        logits = [head(neck(x)) for head, neck, x in zip(self.heads, self.necks, refined, strict=True)]
        return logits, refined


RENAMED = {
    "dim_red": "messages.project",
    "bottleneck": "necks",
    "fc": "heads",
    "gnn_model.node_model.layers": "messages.layers",
    "att.out": "out",
    "linear1": "widen",
    "linear2": "narrow",
}


def published_names(case: Case, prefix: str) -> dict[str, Tensor]:
    """The arrays of a prefix under this package's names; those of queries, keys and values in one."""
    found = {}
    for key in [k for k in case.arrays if k.startswith(prefix)]:
        name = key.removeprefix(prefix)
        if ".att.k_linear." in name or ".att.v_linear." in name:
            continue
        together = "qkv" if "q_linear" in key else "q"
        parts = [case[key.replace("q_linear", f"{which}_linear")] for which in together]
        for old, new in {**RENAMED, "att.q_linear": "queries_keys_values"}.items():
            name = name.replace(old, new)
        found[name] = torch.from_numpy(np.concatenate(parts) if together == "qkv" else parts[0])
    return found


def use_published_masks(model: Published, monkeypatch: pytest.MonkeyPatch) -> None:
    """All dropouts as they fell; that of the attention goes in by hand, which its function has no room for."""
    case = model.case
    stem = "mask:gnn_model.node_model.layers.0."
    masks = {k.removeprefix(stem): torch.from_numpy(v) for k, v in case.arrays.items() if k.startswith(stem)}
    (layer,) = model.messages.layers
    layer.message_dropout = Masked(masks["dropout1"])
    layer.hidden_dropout = Masked(masks["dropout"])
    layer.out_dropout = Masked(masks["dropout2"])
    count = len(case["feats"])
    # [H, E, 1], an edge from its source r to its target c; to [H, target, source].
    kept = masks["att.dropout"].view(-1, count, count).transpose(1, 2)
    assert np.array_equal(case["edge_index"][1], [0, 1])

    def attention(q: Tensor, k: Tensor, v: Tensor, *, dropout_p: float) -> Tensor:
        assert dropout_p == case.flags["params"]["gnn"]["dropout_1"] == 0.1
        weights = (q @ k.transpose(1, 2) / q.shape[2] ** 0.5).softmax(2)
        return weights[:, :, :count] * kept @ v[:, :count]

    monkeypatch.setattr(functional, "scaled_dot_product_attention", attention)


@pytest.mark.parametrize("name", [n for n in cases_of(INTRA_BATCH) if n != CROSS_ENTROPY])
def test_reproduces_the_published_output(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = load(name)
    model = Published(case)
    if case.flags["mode"] == "train_drop":
        use_published_masks(model, monkeypatch)
    embeddings = torch.from_numpy(case["feats"]).requires_grad_()
    labels = torch.from_numpy(case["labels"]).long()
    logits, refined = model(embeddings)
    loss = sum(
        functional.cross_entropy(x / case.flags["temperatur"], labels, label_smoothing=0.1) for x in logits
    )
    loss.backward()

    def same(key: str, ours: Tensor | None) -> None:
        assert ours is not None, key
        assert_golden(key, ours.detach().numpy(), case[key], loss.item() * CANCELS.get(name, 1.0))

    same("loss", loss)
    same("grad_feats", embeddings.grad)
    for i, (x, h) in enumerate(zip(logits, refined, strict=True)):
        same(f"pred_{i}", x)
        same(f"feats_out_{i}", functional.normalize(h))
    gradients = published_names(case, "grad:")
    assert len(gradients) >= 15
    parameters = dict(model.named_parameters())
    for key, golden in gradients.items():
        ours = parameters[key].grad
        assert ours is not None
        assert_golden(key, ours.numpy(), golden.numpy(), loss.item() * CANCELS.get(name, 1.0))
    for key, golden in published_names(case, "after:").items():
        assert_golden(key, dict(model.named_buffers())[key].numpy(), golden.numpy())


def test_cross_entropy_smooths_as_the_published_code_does() -> None:
    case = load(CROSS_ENTROPY)
    loss = IntraBatchLoss(5, 2, heads=1, temperature=1.0)
    inputs = torch.from_numpy(case["inputs"]).requires_grad_()
    value = loss._cross_entropy(inputs, torch.from_numpy(case["labels"]).long())
    value.backward()
    assert inputs.grad is not None
    assert_golden("loss", value.detach().numpy(), case["loss"])
    assert_golden("gradient", inputs.grad.numpy(), case["grad_inputs"])


def test_a_lone_sample_in_training_mode_is_refused_as_in_the_published_code() -> None:
    case = load("intra_batch/hard_gnn_b1_train")
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        IntraBatchLoss(2, DIM).double()(torch.from_numpy(case["feats"]), torch.zeros(1, dtype=torch.int64))


def layer(heads: int = 2) -> MessagePassingLayer:
    torch.manual_seed(0)
    return MessagePassingLayer(DIM, heads).double().eval()


def samples(count: int) -> Tensor:
    return torch.randn(count, DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("heads", [1, 2, 8])
def test_attention_is_the_formula(heads: int) -> None:
    module, h = layer(heads), samples(7)
    q, k, v = (x.view(7, heads, -1) for x in module.queries_keys_values(h).chunk(3, dim=1))
    expected = torch.zeros(7, heads, DIM // heads, dtype=torch.float64)
    for head in range(heads):
        logits = q[:, head] @ k[:, head].T / (DIM // heads) ** 0.5
        alpha = logits.exp() / (1 + logits.exp().sum(1, keepdim=True))
        expected[:, head] = alpha @ v[:, head]
    torch.testing.assert_close(module._messages(h), expected.flatten(1), rtol=1e-12, atol=1e-12)


def test_where_nobody_fits_the_message_vanishes() -> None:
    """Without the null logit a sample would have to listen to somebody."""
    module, h = layer(1), torch.ones(3, DIM, dtype=torch.float64)
    with torch.no_grad():
        module.queries_keys_values.weight.zero_()
        module.queries_keys_values.bias.copy_(torch.cat([torch.full((DIM,), s) for s in (30.0, -30.0, 1.0)]))
    assert module._messages(h).abs().max() < 1e-100
    with torch.no_grad():
        module.queries_keys_values.bias[:DIM] = -30.0
    torch.testing.assert_close(module._messages(h), torch.ones_like(h))


def test_samples_have_no_order() -> None:
    module, h, order = layer(), samples(6), torch.tensor([4, 0, 5, 2, 1, 3])
    torch.testing.assert_close(module(h[order]), module(h)[order])


def test_a_sample_hears_of_all_others() -> None:
    h = samples(5).requires_grad_()
    (grad,) = torch.autograd.grad(layer()(h)[0].square().sum(), h)
    assert (grad.abs().sum(1) > 0).all()


def test_dropout_acts_in_training_only() -> None:
    module, h = layer(), samples(5)
    assert torch.equal(module(h), module(h))
    module.train()
    assert not torch.equal(module(h), module(h))
    silent = MessagePassingLayer(DIM, 2, dropout=0.0, attention_dropout=0.0).double().train()
    assert torch.equal(silent(h), silent(h))
    only_attention = MessagePassingLayer(DIM, 2, dropout=0.0, attention_dropout=0.5).double().train()
    assert not torch.equal(only_attention(h), only_attention(h))


def test_the_loss_is_that_of_both_heads() -> None:
    torch.manual_seed(0)
    loss = IntraBatchLoss(4, DIM, 2, 2, temperature=0.3, smoothing=0.2, dropout=0, attention_dropout=0)
    embeddings, labels = samples(8).float().requires_grad_(), torch.arange(8) % 4
    value = loss(embeddings, labels)
    refined = loss.refined_head(loss.neck(loss.messages(embeddings)))
    expected = torch.zeros(())
    for logits in (refined, loss.head(embeddings)):
        log_p = (logits / 0.3).log_softmax(1)
        targets = torch.full_like(log_p, 0.05).scatter_add_(1, labels[:, None], torch.full((8, 1), 0.8))
        expected = expected - (targets * log_p).sum(1).mean()
    torch.testing.assert_close(value, expected)
    value.backward()
    assert loss.neck.bias.grad is None
    trained = {name for name, p in loss.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    # A key's bias shifts all logits of a query but the null one; every parameter but the frozen shift learns.
    assert trained == {name for name, _ in loss.named_parameters()} - {"neck.bias"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_trains_under_autocast(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    loss = IntraBatchLoss(4, DIM)
    with torch.autocast("cpu", dtype):
        value = loss(100 * samples(8).float(), torch.arange(8) % 4)
    value.backward()
    assert value.isfinite()
    assert all(p.dtype == torch.float32 for p in loss.parameters())
    assert all(p.grad.isfinite().all() for p in loss.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: IntraBatchMessagePassing(16, 3), "heads: expected a divisor of dim = 16, got 3"),
        (lambda: IntraBatchMessagePassing(16, 0), "heads: expected a divisor of dim = 16, got 0"),
        (lambda: IntraBatchMessagePassing(16, 2, 0), "layers: expected at least 1, got 0"),
        (lambda: IntraBatchLoss(4, 16, temperature=0.0), "temperature: expected a number above 0, got 0.0"),
        (lambda: IntraBatchLoss(4, 16, smoothing=1.5), "smoothing: expected a number from 0 to 1, got 1.5"),
        (lambda: IntraBatchLoss(0, 16), "num_classes: expected at least 1, got 0"),
    ],
)
def test_refuses(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        call()
