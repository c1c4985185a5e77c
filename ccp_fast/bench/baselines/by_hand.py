"""The losses in eager PyTorch with gradients by hand: the strongest plain PyTorch we know how to write.

A scalar loss can compute its gradients while it computes its value, so that nothing of size M·N outlives the
forward pass.

log-sum-exp losses  three matrix products and three passes over one matrix [M, N], in place. Constant factors
                    are folded into the anchors, row and column weights into the thin sides; similarities of
                    unit vectors are bounded, so no maximum is subtracted (scales up to 80 in float32)
hinge losses        one matrix product and one comparison; where at most one pair in 20 is active, value and
                    gradients come from the active pairs alone. On a GPU to count them is to wait for it: there
                    the dense version competes as well

Gradients with respect to unit vectors lose their part along the vector when taken back to the originals.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ccp_fast.bench.baselines.pairs import NEVER, positives_of

DENSE_FROM = 1 / 20  # share of active pairs from which dense products are faster than gathered rows


class Dense(NamedTuple):
    """dL/ds[i, j] = matrix[i, j] · row_weight[i] · column_weight[j]."""

    matrix: Tensor  # [M, N]
    row_weight: Tensor | None = None  # [M]
    column_weight: Tensor | None = None  # [N]


class Sparse(NamedTuple):
    """dL/ds of the active pairs; a pair appears once."""

    row: Tensor  # [n] int64
    column: Tensor  # [n] int64
    similarity: Tensor  # [n]
    values: Tensor  # [n]


@dataclass
class Negatives:
    """The negatives above a threshold: few of them gathered, or the whole matrix where they are many."""

    s: Tensor  # [n], or [M, N] where all pairs are kept (no positives in either)
    row: Tensor | None = None  # [n] int64
    column: Tensor | None = None

    def of_row(self, x: Tensor) -> Tensor:
        """x [M], spread like s."""
        return x[:, None] if self.row is None else x[self.row]

    def row_sums(self, x: Tensor, rows: int) -> Tensor:
        """x like s -> [M]."""
        return x.sum(1) if self.row is None else x.new_zeros(rows).index_add_(0, self.row, x)


class Problem:
    """One call: lengths, unit anchors, positives; unit references are a copy that hinge losses do without.

    `gather`: may active pairs be counted, and gathered where they are few?
    """

    def __init__(
        self, anchors: Tensor, references: Tensor | None, labels: Tensor, gather: bool = True
    ) -> None:
        self.gather = gather
        self.length_a = torch.linalg.vector_norm(anchors, dim=1)  # [M]
        self.a = anchors / self.length_a[:, None]  # [M, D]
        self.within_batch = references is None
        if references is None:
            self.references, self.length_r = self.a, torch.ones_like(self.length_a)
            self.positives = positives_of(labels, None)
        else:
            self.references = references.flatten(0, 1)  # [N, D]
            self.length_r = torch.linalg.vector_norm(self.references, dim=1)  # [N]
            self.positives = positives_of(labels, references.shape[1])  # [M, P] columns of the row's class

    @cached_property
    def r(self) -> Tensor:
        """[N, D] unit references."""
        return self.a if self.within_batch else torch.div(self.references, self.length_r[:, None])

    def similarities(self, scale: float) -> Tensor:
        """scale · s, [M, N]; of a sample with itself NEVER."""
        return self._without_self(torch.mm(self.a * scale, self.r.T))

    def near(self, threshold: Callable[[Tensor], Tensor | float]) -> tuple[Tensor, Negatives]:
        """s of the positives [M, P], and the negatives above a threshold: a number or [M, 1]."""
        s = torch.mm(self.a, self.references.T)
        if not self.within_batch:
            s.div_(self.length_r)
        s_pos = s.gather(1, self.positives)
        self._without_self(s).scatter_(1, self.positives, NEVER)
        if not self.gather:
            return s_pos, Negatives(s)
        active = s > threshold(s_pos)
        if active.count_nonzero() > DENSE_FROM * s.numel():
            return s_pos, Negatives(s)
        row, column = active.nonzero(as_tuple=True)
        return s_pos, Negatives(s[row, column], row, column)

    def hinges(self, s_pos: Tensor, g_pos: Tensor, negatives: Negatives, g_neg: Tensor) -> Dense | Sparse:
        """Gradients of the positives [M, P] and of the negatives, put together."""
        if negatives.row is None or negatives.column is None:
            return Dense(g_neg.scatter_(1, self.positives, g_pos))
        row = torch.arange(len(s_pos), device=s_pos.device).repeat_interleave(s_pos.shape[1])
        return Sparse(
            torch.cat([negatives.row, row]),
            torch.cat([negatives.column, self.positives.flatten()]),
            torch.cat([negatives.s, s_pos.flatten()]),
            torch.cat([g_neg, g_pos.flatten()]),
        )

    def _without_self(self, s: Tensor) -> Tensor:
        return s.fill_diagonal_(NEVER) if self.within_batch else s


Loss = Callable[[Problem], tuple[Tensor, Dense | Sparse]]


def loss_of(loss: Loss, anchors: Tensor, references: Tensor | None, labels: Tensor) -> Tensor:
    """As `pairs.loss_of`."""
    value: Tensor = _Fused.apply(loss, anchors, references, labels)  # type: ignore[no-untyped-call]
    return value


def value_and_gradients(
    loss: Loss, anchors: Tensor, references: Tensor | None, labels: Tensor, gather: bool = True
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The value, the gradient of the anchors and that of the references, None within a batch."""
    problem = Problem(anchors, references, labels, gather)
    value, gradient = loss(problem)
    if isinstance(gradient, Sparse):
        grad_a, grad_r = _of_sparse(problem, gradient)
    else:
        grad_a, grad_r = _of_dense(problem, gradient)
    if references is None:
        return value, grad_a.add_(grad_r.div_(problem.length_a[:, None])), None
    return value, grad_a, grad_r.view_as(references)


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Loss, anchors: Tensor, references: Tensor | None, labels: Tensor) -> Tensor:
        value, *ctx.gradients = value_and_gradients(loss, anchors, references, labels)
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, Tensor | None, None]:  # type: ignore[override]
        grad_a, grad_r = ctx.gradients
        if grad != 1:
            grad_a = grad_a * grad
            grad_r = grad_r * grad if grad_r is not None else None
        return None, grad_a, grad_r, None


def _of_dense(p: Problem, g: Dense) -> tuple[Tensor, Tensor]:
    a, r = p.a, p.r
    if g.column_weight is not None:
        weights = g.column_weight[:, None]
        grad_a, grad_r = torch.mm(g.matrix, r * weights), torch.mm(g.matrix.T, a).mul_(weights)
    elif g.row_weight is not None:
        weights = g.row_weight[:, None]
        grad_a, grad_r = torch.mm(g.matrix, r).mul_(weights), torch.mm(g.matrix.T, a * weights)
    else:
        grad_a, grad_r = torch.mm(g.matrix, r), torch.mm(g.matrix.T, a)
    return to_original(grad_a, a, p.length_a), to_original(grad_r, r, p.length_r)


def to_original(gradient: Tensor, unit: Tensor, length: Tensor) -> Tensor:
    """(I − v̂v̂ᵀ) g / ‖v‖, in place."""
    along = torch.einsum("nd,nd->n", gradient, unit)[:, None]
    return gradient.addcmul_(unit, along, value=-1).div_(length[:, None])


def _of_sparse(p: Problem, g: Sparse) -> tuple[Tensor, Tensor]:
    """As for dense, each pair's part taken back by itself."""
    a, r = p.a[g.row], p.references[g.column] / p.length_r[g.column, None]
    s, values = g.similarity[:, None], g.values
    to_a = torch.addcmul(r, a, s, value=-1).mul_((values / p.length_a[g.row])[:, None])
    to_r = torch.addcmul(a, r, s, value=-1).mul_((values / p.length_r[g.column])[:, None])
    grad_a = torch.zeros_like(p.a).index_add_(0, g.row, to_a)
    grad_r = torch.zeros_like(p.references).index_add_(0, g.column, to_r)
    return grad_a, grad_r


def contrastive_cosine(neg_margin: float) -> Loss:
    """C1 of `pairs`."""

    def loss(p: Problem) -> tuple[Tensor, Dense | Sparse]:
        s_pos, negatives = p.near(lambda s_pos: neg_margin)
        rows = len(s_pos)
        push = (negatives.s - neg_margin).clamp_(min=0)
        value = ((1 - s_pos).sum() + push.sum()) / rows
        g_pos = torch.full_like(s_pos, -1 / rows)
        return value, p.hinges(s_pos, g_pos, negatives, push.sign_().div_(rows))

    return loss


def contrastive_l2(pos_margin: float, neg_margin: float) -> Loss:
    """C2 of `pairs`: d < m where s > 1 − m²/2, and dd/ds = −1/d."""

    def loss(p: Problem) -> tuple[Tensor, Dense | Sparse]:
        s_pos, negatives = p.near(lambda s_pos: 1 - 0.5 * neg_margin**2)
        d_pos, d_neg = _distance(s_pos), _distance(negatives.s)
        pull, push = (d_pos - pos_margin).clamp_(min=0), (neg_margin - d_neg).clamp_(min=0)
        n_pos, n_neg = (x.count_nonzero().clamp_(min=1) for x in (pull, push))
        value = pull.sum() / n_pos + push.sum() / n_neg
        g_pos, g_neg = pull.sign_().div_(-n_pos * d_pos), push.sign_().div_(d_neg.mul_(n_neg))
        return value, p.hinges(s_pos, g_pos, negatives, g_neg)

    return loss


def triplet(margin: float) -> Loss:
    """Triplets of `pairs`: only negatives nearer than the row's farthest positive + margin can be active."""

    def loss(p: Problem) -> tuple[Tensor, Dense | Sparse]:
        def nearer(s_pos: Tensor) -> Tensor:
            return 1 - 0.5 * (_distance(s_pos).amax(1, keepdim=True) + margin).square_()

        s_pos, negatives = p.near(nearer)
        d_pos, d_neg = _distance(s_pos), _distance(negatives.s)
        total, g_neg, g_pos = s_pos.new_zeros(()), torch.zeros_like(d_neg), torch.empty_like(d_pos)
        for k in range(d_pos.shape[1]):
            hinge = (negatives.of_row(d_pos[:, k] + margin) - d_neg).clamp_(min=0)
            total += hinge.sum()
            g_neg += hinge.sign_()
            g_pos[:, k] = negatives.row_sums(hinge, len(d_pos))
        count = g_neg.sum().clamp_(min=1)
        g_pos /= -count * d_pos
        return total / count, p.hinges(s_pos, g_pos, negatives, g_neg.div_(d_neg.mul_(count)))

    return loss


def multi_similarity(alpha: float, beta: float, base: float) -> Loss:
    """Multi-Similarity of `pairs`; e^{−β·base} is taken out of the sum."""

    def loss(p: Problem) -> tuple[Tensor, Dense | Sparse]:
        e, rows = p.similarities(beta), len(p.a)
        pull = torch.exp(alpha * (base - e.gather(1, p.positives) / beta))
        e.scatter_(1, p.positives, NEVER).exp_()
        out, pulls = math.exp(-beta * base), pull.sum(1)
        pushes = e.sum(1).mul_(out)
        value = (pulls.log1p() / alpha + pushes.log1p() / beta).mean()
        weight = out / (rows * (1 + pushes))
        e.scatter_(1, p.positives, -pull / (rows * (1 + pulls) * weight)[:, None])
        return value, Dense(e, row_weight=weight)

    return loss


def proxy_nca(temperature: float) -> Loss:
    """Proxy-NCA++ of `pairs`."""
    return _proxy_nca(temperature, original=False)


def proxy_nca_original(temperature: float) -> Loss:
    """Proxy-NCA of `pairs`."""
    return _proxy_nca(temperature, original=True)


def _proxy_nca(temperature: float, original: bool) -> Loss:

    def loss(p: Problem) -> tuple[Tensor, Dense | Sparse]:
        scale, rows = 2 / temperature, len(p.a)
        e = p.similarities(scale).exp_()
        pull = e.gather(1, p.positives)
        own = pull.sum(1)
        if original:
            e.scatter_(1, p.positives, 0.0)
        every = e.sum(1)
        value = (every / own).log_().mean()
        positive = pull * (-every / own)[:, None]
        e.scatter_(1, p.positives, positive if original else positive.add_(pull))
        return value, Dense(e, row_weight=scale / (rows * every))

    return loss


def proxy_anchor(alpha: float, margin: float) -> Loss:
    """Proxy-Anchor of `pairs`, one proxy a class; rows of the loss are the columns here."""

    def loss(p: Problem) -> tuple[Tensor, Dense | Sparse]:
        e = p.similarities(alpha)
        own = p.positives[:, 0]
        pull = torch.exp(alpha * margin - e.gather(1, p.positives)[:, 0])
        e.scatter_(1, p.positives, NEVER).exp_()
        out = math.exp(alpha * margin)
        pulls = e.new_zeros(e.shape[1]).index_add_(0, own, pull)
        pushes = e.sum(0).mul_(out)
        with_positives = (pulls > 0).sum()
        value = pulls.log1p().sum() / with_positives + pushes.log1p().mean()
        weight = alpha * out / (len(pushes) * (1 + pushes))
        mine = -alpha * pull / (with_positives * (1 + pulls[own]) * weight[own])
        e.scatter_(1, p.positives, mine[:, None])
        return value, Dense(e, column_weight=weight)

    return loss


def arcface(scale: float, margin: float) -> Loss:
    """ArcFace of `pairs`, one proxy a class."""

    def loss(p: Problem) -> tuple[Tensor, Dense | Sparse]:
        e, own, rows = p.similarities(scale), p.positives, len(p.a)
        cosine = e.gather(1, own) / scale
        sine = (1 - cosine.square()).clamp_(min=1e-12).sqrt_()
        beyond = cosine < -math.cos(margin)
        turned = cosine * math.cos(margin) - sine * math.sin(margin)
        target = torch.where(beyond, cosine - margin * math.sin(margin), turned)
        slope = torch.where(beyond, 1.0, math.cos(margin) + cosine / sine * math.sin(margin))
        e.scatter_(1, own, target * scale).exp_()
        mine, every = e.gather(1, own), e.sum(1, keepdim=True)
        e.scatter_(1, own, (mine - every) * slope)
        return (every / mine).log_().mean(), Dense(e, row_weight=scale / (rows * every[:, 0]))

    return loss


def soft_triple(scale: float, gamma: float, margin: float) -> Loss:
    """SoftTriple of `pairs`: dS/ds = softmax(s/γ)·(1 + (s − S)/γ)."""

    def loss(p: Problem) -> tuple[Tensor, Dense | Sparse]:
        per_class, rows = p.positives.shape[1], len(p.a)
        own = p.positives[:, :1] // per_class
        s = p.similarities(1.0).unflatten(1, (-1, per_class))
        share = (s / gamma).exp_()
        share.div_(share.sum(2, keepdim=True))
        relaxed = (share * s).sum(2)
        e = relaxed.mul(scale)
        e.scatter_(1, own, e.gather(1, own) - scale * margin).exp_()
        mine, every = e.gather(1, own), e.sum(1, keepdim=True)
        e.scatter_(1, own, mine - every)
        s.sub_(relaxed[:, :, None]).div_(gamma).add_(1).mul_(share).mul_(e[:, :, None])
        return (every / mine).log_().mean(), Dense(s.flatten(1), row_weight=scale / (rows * every[:, 0]))

    return loss


def _distance(s: Tensor) -> Tensor:
    return (2 - 2 * s).clamp_(min=1e-12).sqrt_()
