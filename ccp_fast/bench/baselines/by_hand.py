"""The losses in eager PyTorch with gradients by hand: the strongest plain PyTorch we know how to write.

A scalar loss can compute its gradients while it computes its value, so nothing of size M·N outlives the forward pass.
log-sum-exp losses  three matrix products and three passes over one matrix [M, N], in place. Constant factors are folded
                    into the anchors, row and column weights into the thin sides; the similarities of unit vectors are
                    bounded, so no maximum is subtracted (scale up to 80 in float32)
hinge losses        one matrix product and one comparison; where at most one pair in 20 is active, value and gradients
                    come from the active pairs alone
Gradients with respect to unit vectors lose their part along the vector when taken back to the originals.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ccp_fast.bench.baselines.pairs import NEVER, positives_of

DENSE_FROM = 1 / 20  # share of active pairs from which dense products are faster than gathered rows


class PairGradient(NamedTuple):
    """dL/ds: matrix[i, j] · row_weight[i] · column_weight[j], or values[n] at (row[n], column[n])."""

    matrix: Tensor | None = None  # [M, N]
    row_weight: Tensor | None = None  # [M]
    column_weight: Tensor | None = None  # [N]
    row: Tensor | None = None  # [n] int64
    column: Tensor | None = None  # [n] int64
    values: Tensor | None = None  # [n]


class Problem(NamedTuple):
    """One call: similarities are made from these as the loss likes."""

    a: Tensor  # [M, D] unit anchors
    r: Tensor  # [N, D] unit references; the anchors within a batch
    positives: Tensor  # [M, P] columns of the row's class
    within_batch: bool

    def similarities(self, scale: float = 1.0) -> Tensor:
        """scale · a rᵀ; of a sample with itself NEVER."""
        s = torch.mm(self.a if scale == 1 else self.a * scale, self.r.T)
        return s.fill_diagonal_(NEVER) if self.within_batch else s


Loss = Callable[[Problem], tuple[Tensor, PairGradient]]


def loss_of(loss: Loss, anchors: Tensor, references: Tensor | None, labels: Tensor) -> Tensor:
    """As `pairs.loss_of`."""
    value: Tensor = _Fused.apply(loss, anchors, references, labels)  # type: ignore[no-untyped-call]
    return value


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Loss, anchors: Tensor, references: Tensor | None, labels: Tensor) -> Tensor:
        length_a = anchors.norm(dim=1, keepdim=True)
        a = anchors / length_a
        if references is None:
            problem = Problem(a, a, positives_of(labels, None), True)
            value, gradient = loss(problem)
            grad_a, grad_r = _side_gradients(gradient, a, a)
            ctx.gradients = _to_original(grad_a.add_(grad_r), a, length_a), None
            return value
        flat = references.flatten(0, 1)
        length_r = flat.norm(dim=1, keepdim=True)
        problem = Problem(a, flat / length_r, positives_of(labels, references.shape[1]), False)
        value, gradient = loss(problem)
        grad_a, grad_r = _side_gradients(gradient, a, problem.r)
        grad_r = _to_original(grad_r, problem.r, length_r).view_as(references)
        ctx.gradients = _to_original(grad_a, a, length_a), grad_r
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, Tensor | None, None]:  # type: ignore[override]
        grad_a, grad_r = ctx.gradients
        if grad != 1:
            grad_a = grad_a * grad
            grad_r = grad_r * grad if grad_r is not None else None
        return None, grad_a, grad_r, None


def _side_gradients(g: PairGradient, a: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    if g.matrix is None:
        assert g.row is not None and g.column is not None and g.values is not None
        weights = g.values[:, None]
        grad_a = torch.zeros_like(a).index_add_(0, g.row, r[g.column].mul_(weights))
        grad_r = torch.zeros_like(r).index_add_(0, g.column, a[g.row].mul_(weights))
        return grad_a, grad_r
    if g.column_weight is not None:
        grad_a = torch.mm(g.matrix, r * g.column_weight[:, None])
        return grad_a, torch.mm(g.matrix.T, a).mul_(g.column_weight[:, None])
    if g.row_weight is not None:
        grad_r = torch.mm(g.matrix.T, a * g.row_weight[:, None])
        return torch.mm(g.matrix, r).mul_(g.row_weight[:, None]), grad_r
    return torch.mm(g.matrix, r), torch.mm(g.matrix.T, a)


def _to_original(gradient: Tensor, unit: Tensor, length: Tensor) -> Tensor:
    """(I − v̂v̂ᵀ) g / ‖v‖, in place."""
    along = torch.linalg.vecdot(gradient, unit)[:, None]
    return gradient.addcmul_(unit, along, value=-1).div_(length)


def contrastive_cosine(neg_margin: float) -> Loss:
    """C1 of `pairs`."""

    def loss(p: Problem) -> tuple[Tensor, PairGradient]:
        s, rows = p.similarities(), len(p.a)
        pull = 1 - s.gather(1, p.positives)
        s.scatter_(1, p.positives, NEVER)
        active = s > neg_margin
        row, column = active.nonzero(as_tuple=True)
        value = (pull.sum() + (s[row, column] - neg_margin).sum()) / rows
        each = torch.full((len(row),), 1 / rows, dtype=s.dtype)
        return value, _hinge_gradient(p, s, active, row, column, each, torch.full_like(pull, -1 / rows))

    return loss


def contrastive_l2(pos_margin: float, neg_margin: float) -> Loss:
    """C2 of `pairs`: d < m where s > 1 − m²/2, and dd/ds = −1/d."""

    def loss(p: Problem) -> tuple[Tensor, PairGradient]:
        s = p.similarities()
        d_pos = _distance(s.gather(1, p.positives))
        pull = torch.relu(d_pos - pos_margin)
        n_pos = (pull > 0).sum().clamp_(min=1)
        s.scatter_(1, p.positives, NEVER)
        active = s > 1 - 0.5 * neg_margin**2
        row, column = active.nonzero(as_tuple=True)
        d = _distance(s[row, column])
        n_neg = max(len(row), 1)
        value = pull.sum() / n_pos + (neg_margin - d).sum() / n_neg
        return value, _hinge_gradient(p, s, active, row, column, 1 / (n_neg * d), (pull > 0) / (-n_pos * d_pos))

    return loss


def triplet(margin: float) -> Loss:
    """Triplets of `pairs`: only negatives nearer than the row's farthest positive + margin can be active."""

    def loss(p: Problem) -> tuple[Tensor, PairGradient]:
        s = p.similarities()
        d_pos = _distance(s.gather(1, p.positives))
        far = d_pos + margin
        s.scatter_(1, p.positives, NEVER)
        active = s > 1 - 0.5 * far.amax(1, keepdim=True).square_()
        row, column = active.nonzero(as_tuple=True)
        d = _distance(s[row, column])
        total, violations, pos_grad = torch.zeros_like(d), torch.zeros_like(d), torch.empty_like(d_pos)
        for k in range(far.shape[1]):
            hinge = (far[row, k] - d).clamp_(min=0)
            total += hinge
            hit = (hinge > 0).to(d.dtype)
            violations += hit
            pos_grad[:, k] = torch.zeros_like(far[:, k]).index_add_(0, row, hit)
        count = violations.sum().clamp_(min=1)
        pos_grad /= -count * d_pos
        return total.sum() / count, _hinge_gradient(p, s, active, row, column, violations / (count * d), pos_grad)

    return loss


def multi_similarity(alpha: float, beta: float, base: float) -> Loss:
    """Multi-Similarity of `pairs`; e^{−β·base} is taken out of the sum."""

    def loss(p: Problem) -> tuple[Tensor, PairGradient]:
        e, rows = p.similarities(beta), len(p.a)
        pull = torch.exp(alpha * (base - e.gather(1, p.positives) / beta))
        e.scatter_(1, p.positives, NEVER).exp_()
        out, pulls = math.exp(-beta * base), pull.sum(1)
        pushes = e.sum(1).mul_(out)
        value = (pulls.log1p() / alpha + pushes.log1p() / beta).mean()
        weight = out / (rows * (1 + pushes))
        e.scatter_(1, p.positives, -pull / (rows * (1 + pulls) * weight)[:, None])
        return value, PairGradient(e, row_weight=weight)

    return loss


def proxy_nca(temperature: float, original: bool = False) -> Loss:
    """Proxy-NCA++ of `pairs`, or the original, whose first sum leaves the positives out."""

    def loss(p: Problem) -> tuple[Tensor, PairGradient]:
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
        return value, PairGradient(e, row_weight=scale / (rows * every))

    return loss


def proxy_anchor(alpha: float, margin: float) -> Loss:
    """Proxy-Anchor of `pairs`, one proxy a class; rows of the loss are the columns here."""

    def loss(p: Problem) -> tuple[Tensor, PairGradient]:
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
        return value, PairGradient(e, column_weight=weight)

    return loss


def _hinge_gradient(
    p: Problem, s: Tensor, active: Tensor, row: Tensor, column: Tensor, values: Tensor, pos_values: Tensor
) -> PairGradient:
    """Of active negatives (their mask, indices and gradients) and positives; `s` is overwritten."""
    if len(row) > DENSE_FROM * s.numel():
        matrix = s.zero_().masked_scatter_(active, values).scatter_(1, p.positives, pos_values)
        return PairGradient(matrix)
    pos_row = torch.arange(len(s)).repeat_interleave(p.positives.shape[1])
    return PairGradient(
        row=torch.cat([row, pos_row]),
        column=torch.cat([column, p.positives.flatten()]),
        values=torch.cat([values, pos_values.flatten()]),
    )


def _distance(s: Tensor) -> Tensor:
    return (2 - 2 * s).clamp_(min=1e-12).sqrt_()

