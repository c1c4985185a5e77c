"""Small inputs at odd shapes for every operator, run on any device and compared with the CPU and with float64.

For the tests on a GPU (`test_gpu.py`) and for the sanitizers (`benchmarks/gpu_small_cases.py`); `test_small_cases.py`
runs them on the CPU. A case's `problems(device)` is a list of sentences, empty where all is right.

No size is a multiple of a vector, a tile or a warp. Inputs of losses with margins are drawn so that no pair lies
within 1e-5 of one: on which side rounding puts it would decide over terms of the loss and of its gradient.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

import ccp_fast.functional as F
from ccp_fast import reference
from ccp_fast.ops import similarity_shard as shard_ops
from ccp_fast.ops.centre_spread import centre_spread
from ccp_fast.ops.similarity_shard import LossSpec, Shard
from ccp_fast.reference.pairs import norm, normalise

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
CLEARANCE = 1e-5  # from every margin
SLACK = 2e-5  # of the largest number; one tf32 product instead of three is off by more
CANCELLED = 5e-7  # of the value: terms of a gradient may cancel to less than their rounding
# Absolute, of a row of a loss with logits: those of 50 are rounded to 4e-6, and where one outweighs the others that is
# all that is left of a gradient; with one class it is all there is.
LOGITS, ONE_CLASS = 2e-6, 1e-4

# Name of the registered loss: the public function, its options, and which of them are margins.
LOSSES: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "contrastive_l2": (
        "contrastive",
        {"distance": "l2", "pos_margin": 1.3, "neg_margin": 1.4},
        ("pos_margin", "neg_margin"),
    ),
    "contrastive_cosine": (
        "contrastive",
        {"distance": "cosine", "pos_margin": 0.9, "neg_margin": 0.02},
        ("pos_margin", "neg_margin"),
    ),
    "triplet": ("triplet", {"margin": 0.2}, ("margin",)),
    "multi_similarity": ("multi_similarity", {"alpha": 2.0, "beta": 50.0, "base": 0.5}, ()),
    "proxy_nca": ("proxy_nca", {"temperature": 1 / 9}, ()),
    "proxy_nca_original": ("proxy_nca", {"temperature": 1 / 9, "variant": "original"}, ()),
    "proxy_anchor": ("proxy_anchor", {"alpha": 32.0, "margin": 0.1}, ()),
    "lifted_anchor": ("lifted_structure", {"margin": 1.0, "variant": "anchor"}, ()),
    "margin_softmax": ("margin_softmax", {"scale": 24.0, "margin": 0.35, "kind": "cosface"}, ()),
    "margin_softmax_arcface": ("margin_softmax", {"scale": 24.0, "margin": 0.5, "kind": "arcface"}, ()),
    "soft_triple": ("soft_triple", {"scale": 20.0, "gamma": 0.1, "margin": 0.05}, ()),
}
KINDS = ("proxies", "proxies as rows", "labelled", "labelled as rows", "batch", "memory", "memory as rows")
ONE_DTYPE = ("batch", "memory", "memory as rows")  # the anchors are among the references
# Of the anchors and of the references.
DTYPES = (
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float16),
    (torch.bfloat16, torch.float32),
)
# Anchors, classes, references per class, dimension; then what goes with them in turn.
SHAPES = (
    (13, 7, 3, 5),
    (70, 29, 3, 33),
    (1, 1, 1, 3),
    (67, 41, 2, 130),
    (3, 77, 1, 257),
    (131, 5, 2, 17),
    (5, 3, 2, 1030),
)
NORMALIZE = ("unit", "ball", None)
REDUCTIONS = ("mean", "active_mean", "anchor_mean", "sum", "none")


class Pairs(NamedTuple):
    """What a loss is called with."""

    anchors: Tensor
    references: Tensor | None
    labels: Tensor
    reference_labels: Tensor | None

    def on(self, device: str, *, wide: torch.dtype | None = None) -> Pairs:
        """Copies that require gradients, all of dtype `wide` where it is given."""

        def leaf(x: Tensor) -> Tensor:
            return x.to(device, wide or x.dtype, copy=True).requires_grad_()

        return Pairs(
            leaf(self.anchors),
            None if self.references is None else leaf(self.references),
            self.labels.to(device),
            None if self.reference_labels is None else self.reference_labels.to(device),
        )

    @property
    def leaves(self) -> list[Tensor]:
        return [self.anchors] if self.references is None else [self.anchors, self.references]


@dataclass(frozen=True)
class LossCase:
    """One loss on one set of inputs."""

    loss: str
    kind: str
    dtypes: tuple[torch.dtype, torch.dtype]
    shape: tuple[int, int, int, int]
    normalize: str | None
    reduction: str

    def __str__(self) -> str:
        names = "-".join(str(dtype).removeprefix("torch.") for dtype in dict.fromkeys(self.dtypes))
        sizes = "x".join(map(str, self.shape))
        return f"{self.loss}-{self.kind}-{names}-{sizes}-{self.normalize}-{self.reduction}".replace(" ", "_")

    @property
    def options(self) -> dict[str, Any]:
        rows = "proxy" if self.kind.endswith("rows") else "sample"
        return {
            **LOSSES[self.loss][1],
            "normalize": self.normalize,
            "reduction": self.reduction,
            "anchor": rows,
            "exclude_self": self.kind.startswith("memory"),
        }

    def pairs(self) -> Pairs:
        """On the CPU, clear of margins."""
        return next(pairs for pairs in map(self.draw, itertools.count()) if self._is_clear(pairs))

    def gradients(self, function: Any, pairs: Pairs) -> list[Tensor]:
        """The value, then the gradients of a weighted sum of it, on the CPU in float64."""
        value = function(*pairs, **self.options)
        weight = torch.linspace(0.5, 1.5, value.numel(), dtype=torch.float64).view(value.shape).to(value)
        results = [value.detach(), *torch.autograd.grad(value, pairs.leaves, weight)]
        for result, leaf in zip(results[1:], pairs.leaves, strict=True):
            assert result.dtype == leaf.dtype
        return [result.double().cpu() for result in results]

    def problems(self, device: str) -> list[str]:
        """Where results on the device are off."""
        fused, dense = (getattr(module, LOSSES[self.loss][0]) for module in (F, reference))
        pairs = self.pairs()
        truth = self.gradients(dense, pairs.on("cpu", wide=torch.float64))
        eager = self.gradients(dense, pairs.on("cpu"))
        on_cpu = self.gradients(fused, pairs.on("cpu"))
        ours = self.on_device(pairs.on(device))
        dtypes = [torch.float32, *(leaf.dtype for leaf in pairs.leaves)]
        found = []
        for name, dtype, o, c, e, t in zip(
            ("value", "gradient of anchors", "gradient of references"), dtypes, ours, on_cpu, eager, truth, strict=False
        ):  # fmt: skip
            allowed = self._allowed(dtype, e, t) + CANCELLED * largest(truth[0])
            for other, against, bound in ((t, "float64", allowed), (c, "the CPU", 2 * allowed)):
                error = largest(o - other)
                if not error <= bound:  # NaN is a problem
                    found.append(
                        f"{self}: {name}: off from {against} by {error:.3g}, allowed {bound:.3g}, "
                        f"largest {largest(t):.3g}"
                    )
        return found

    def on_device(self, pairs: Pairs) -> list[Tensor]:
        """The value and the gradients that are in question."""
        return self.gradients(getattr(F, LOSSES[self.loss][0]), pairs)

    def draw(self, seed: int = 0) -> Pairs:
        """On the CPU, wherever margins are."""
        m, c, k, d = self.shape
        random = torch.Generator().manual_seed(seed)

        def embeddings(dtype: torch.dtype, *shape: int) -> Tensor:
            return (1.2 * d**-0.5 * torch.randn(*shape, d, generator=random)).to(dtype)

        anchors = embeddings(self.dtypes[0], m)
        labels = torch.randint(0, c, (m,), generator=random)
        if (
            self.kind in ONE_DTYPE
        ):  # a few of each class, or triplets would be too many to be clear of a margin
            labels, others = (torch.randint(0, max(c, m // 2), (n,), generator=random) for n in (m, c * k))
            if self.kind == "batch":
                return Pairs(anchors, None, labels, None)
            references = torch.cat([anchors, embeddings(self.dtypes[1], c * k)])
            return Pairs(anchors, references, labels, torch.cat([labels, others]))
        if self.kind.startswith("proxies"):
            return Pairs(anchors, embeddings(self.dtypes[1], c, k), labels, None)
        # Any 64-bit numbers may be labels, and some are nobody else's.
        names = torch.randint(-(2**62), 2**62, (c + 2,), generator=random)
        of_references = torch.randint(0, c, (c * k,), generator=random)
        return Pairs(anchors, embeddings(self.dtypes[1], c * k), names[labels + 2], names[of_references])

    def _allowed(self, dtype: torch.dtype, eager: Tensor, truth: Tensor) -> float:
        """Four times eager's own error, another order of summation, the last rounding, and what eager may be spared."""
        allowed = 4 * largest(eager - truth) + (SLACK + torch.finfo(dtype).eps) * largest(truth) + 1e-12
        if not LOSSES[self.loss][2]:
            rows = self.shape[1] * self.shape[2] if self.kind.endswith("rows") else self.shape[0]
            divisor = 1 if self.reduction in ("sum", "none") else rows
            allowed += (ONE_CLASS if self.shape[1] == 1 else LOGITS) / divisor
        return allowed

    def _is_clear(self, pairs: Pairs) -> bool:
        """A sum of hinges is straight between margins: it bends where a pair lies within CLEARANCE of one."""
        name, options, margins = LOSSES[self.loss]
        if not margins:
            return True
        wide = Pairs(*(x.double() if x is not None and x.is_floating_point() else x for x in pairs))

        def total(shift: float) -> Tensor:
            moved = {margin: options[margin] + shift for margin in margins}
            return getattr(reference, name)(*wide, **{**self.options, **moved, "reduction": "sum"})

        bend = total(CLEARANCE) + total(-CLEARANCE) - 2 * total(0.0)
        return float(bend.abs()) < 1e-9


@dataclass(frozen=True)
class ShardCase(LossCase):
    """The sum of a loss's rows from proxies in two shards, as `ccp_fast.distributed` has them, without its messages."""

    def __str__(self) -> str:
        return f"shards-{super().__str__()}"

    @property
    def options(self) -> dict[str, Any]:
        # The regulariser is no part of the shards' states.
        return super().options | ({"tau": 0.0} if self.loss == "soft_triple" else {})

    def on_device(self, pairs: Pairs) -> list[Tensor]:
        anchors, proxies, labels = pairs.anchors.detach(), pairs.references.detach(), pairs.labels
        parameters = [value for value in LOSSES[self.loss][1].values() if isinstance(value, float)]
        rows = self.options["anchor"] == "proxy"
        spec = LossSpec(self.loss, parameters, self.normalize or "none", "sum", rows)
        known = None
        if spec.needs_positives:
            dtype = torch.promote_types(torch.promote_types(anchors.dtype, proxies.dtype), torch.float32)
            samples, own = (normalise(x.to(dtype), self.normalize) for x in (anchors, proxies[labels]))
            known = norm(samples[:, None] - own)
        cut = len(proxies) // 3  # none in the first of a single class
        shards = [
            Shard(anchors, part.contiguous(), labels - begin, known)
            for begin, part in ((0, proxies[:cut]), (cut, proxies[cut:]))
        ]
        gathered = [shard_ops.states(shard, spec) for shard in shards]
        if rows:
            finished = [shard_ops.finish(states[None], len(labels), spec) for states, _ in gathered]
            value = torch.stack([parts[:2].sum() for _, parts in finished]).sum()
        else:
            states = torch.stack([states for states, _ in gathered])
            finished = [shard_ops.finish(states, proxies[..., 0].numel(), spec)] * 2
            value = finished[0][1][:2].sum()
        counts = None
        if known is not None:
            counts = (
                torch.stack([shard_ops.counts(shard, spec) for shard in shards])
                .sum(0)
                .to(counts_dtype(known))
            )
        weight = torch.full(
            (), 0.5, dtype=torch.float32, device=anchors.device
        )  # as `gradients` weighs one value
        one = torch.ones(2, dtype=torch.float64, device=anchors.device)
        gradients = [
            shard_ops.backward(weight, shard, counts, row_state, one, active, spec, True, True)
            for shard, (_, active), (row_state, _) in zip(shards, gathered, finished, strict=True)
        ]
        of_anchors, of_proxies = zip(*gradients, strict=True)
        results = (value, sum(x.double() for x in of_anchors), torch.cat(of_proxies))
        return [result.double().cpu() for result in results]


def counts_dtype(like: Tensor) -> torch.dtype:
    """As the operator gives them."""
    return torch.int32 if like.is_cuda else like.dtype


def largest(x: Tensor) -> float:
    """Of the magnitudes; NaN if there is one."""
    return float(x.abs().amax()) if x.numel() else 0.0


def loss_cases() -> list[LossCase]:
    """Every loss with every kind of references and dtype; shapes, normalisation and reduction take turns."""
    combinations = [
        (loss, kind, dtypes)
        for loss, kind, dtypes in itertools.product(LOSSES, KINDS, DTYPES)
        if kind not in ONE_DTYPE or dtypes[0] == dtypes[1]
    ]
    return [
        LossCase(
            *combination,
            SHAPES[i % len(SHAPES)],
            NORMALIZE[i % len(NORMALIZE)],
            REDUCTIONS[i % len(REDUCTIONS)],
        )
        for i, combination in enumerate(combinations)
    ]


def hopper_cases() -> list[LossCase]:
    """16-bit inputs whose rows begin on boundaries: with CCP_FAST_HOPPER=1 they take its forward pass."""
    return [
        LossCase(loss, kind, (dtype, dtype), (70, 29, 3, dim), normalize, "anchor_mean")
        for loss, kind, (dtype, dim, normalize) in itertools.product(
            LOSSES,
            ("proxies", "proxies as rows", "memory"),
            ((torch.bfloat16, 72, "unit"), (torch.float16, 136, "ball")),
        )
    ]


def shard_cases() -> list[ShardCase]:
    """Every loss with rows of samples and of proxies, in several precisions; shapes and normalisation take turns."""
    combinations = itertools.product(LOSSES, ("proxies", "proxies as rows"), DTYPES[:2])
    return [
        ShardCase(*combination, SHAPES[i % len(SHAPES)], NORMALIZE[i % len(NORMALIZE)], "sum")
        for i, combination in enumerate(combinations)
    ]


@dataclass(frozen=True)
class SelectionCase:
    """k-center: indices and radii are the CPU's, bit by bit."""

    name: str
    sizes: tuple[int, ...]  # of the segments
    seeds: tuple[int, ...]  # of theirs; empty: none
    dim: int
    k: int
    dtype: torch.dtype
    normalize: str | None
    short: str

    def __str__(self) -> str:
        return (
            f"{self.name}-{self.dim}-{str(self.dtype).removeprefix('torch.')}-{self.normalize}-{self.short}"
        )

    def problems(self, device: str) -> list[str]:
        """Where indices or radii differ."""
        random = torch.Generator().manual_seed(self.dim)
        options: dict[str, Any] = {"normalize": self.normalize, "short": self.short}
        tensors: dict[str, Tensor] = {"offsets": _offsets(self.sizes)}
        # Small integers: squared distances are exact, every tie is a true one, and there are duplicates.
        points = torch.randint(-3, 4, (sum(self.sizes), self.dim), generator=random).to(self.dtype)
        if self.seeds:
            tensors["seeds"] = torch.randint(-3, 4, (sum(self.seeds), self.dim), generator=random).to(
                self.dtype
            )
            tensors["seed_offsets"] = _offsets(self.seeds)
        expected = F.farthest_points(points, self.k, **tensors, **options)
        there = {name: x.to(device) for name, x in tensors.items()}
        ours = F.farthest_points(points.to(device), self.k, **there, **options)
        return [f"{self}: {problem}" for problem in _differences(ours, expected, "in segments")]


def _differences(ours: Sequence[Tensor], expected: Sequence[Tensor], where: str) -> list[str]:
    """Which rows of a NamedTuple's matrices are not the CPU's, bit by bit."""
    found = []
    for name, a, b in zip(type(expected)._fields, ours, expected, strict=True):
        different = (a.cpu() != b).any(1).nonzero().flatten().tolist()
        if different:
            found.append(f"{name} differ from the CPU's {where} {different[:5]}")
    return found


def _offsets(sizes: Sequence[int]) -> Tensor:
    return torch.tensor([0, *sizes]).cumsum(0)


def selection_cases() -> list[SelectionCase]:
    """Many tiny segments, some of a middling size, large ones; with seeds and without, empty ones in between."""
    random = torch.Generator().manual_seed(0)
    tiny = tuple(torch.randint(0, 10, (203,), generator=random).tolist())
    few = tuple(torch.randint(0, 5, (203,), generator=random).tolist())
    regimes = (
        ("tiny", tiny, few, (1, 5, 33, 130, 257), 4),
        ("middling", (300, 0, 5, 1000, 77), (3, 0, 0, 1, 2), (3, 40), 9),
        ("large", (7000, 5, 9001), (1, 0, 5), (21,), 12),
    )
    dtypes = itertools.cycle((*FLOATS, torch.float64))
    normalize = itertools.cycle(NORMALIZE)
    short = itertools.cycle(("repeat", "pad"))
    return [
        SelectionCase(name, sizes, seeds, dim, k, next(dtypes), next(normalize), next(short))
        for name, sizes, its_seeds, dims, k in regimes
        for dim in dims
        for seeds in ((), its_seeds)
    ]


@dataclass(frozen=True)
class ProjectionCase:
    """A list of parameters: gradients and penalty are the CPU's, bit by bit."""

    name: str
    sizes: tuple[int, ...]
    dtypes: tuple[torch.dtype, ...]  # of parameters, previous ones and gradients, in turn

    def __str__(self) -> str:
        return f"{self.name}-{'-'.join(str(dtype).removeprefix('torch.') for dtype in self.dtypes)}"

    def problems(self, device: str) -> list[str]:
        """Where gradients or penalty differ."""
        expected = self._run("cpu")
        ours = self._run(device)
        return [
            f"{self}: tensor {i} differs from the CPU's"
            for i, (a, b) in enumerate(zip(ours, expected, strict=True))
            if not torch.equal(a.cpu(), b)
        ]

    def _run(self, device: str) -> list[Tensor]:
        """The gradients, then the penalty."""
        random = torch.Generator().manual_seed(len(self.sizes))
        dtypes = itertools.cycle(self.dtypes)

        def numbers(size: int) -> Tensor:
            # Of one number more, the first is left out: not aligned to 16 bytes.
            return torch.randn(size + 1, generator=random).to(next(dtypes)).to(device)[1:]

        params, previous, grads = ([numbers(size) for size in self.sizes] for _ in range(3))
        given = [None if i % 5 == 4 else grad for i, grad in enumerate(grads)]
        penalty = F.projection_grad_(params, previous, 0.3, given)
        return [*grads, penalty]


def projection_cases() -> list[ProjectionCase]:
    """Odd sizes with empty tensors in between, more tensors than a launch takes, mixed dtypes."""
    odd = (1, 0, 15, 17, 1023, 0, 4097, 70_001, 3, 0)
    many = tuple(1 + i % 37 for i in range(900))
    mixed = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    return [
        *(ProjectionCase("odd", odd, (dtype,)) for dtype in (*FLOATS, torch.float64)),
        ProjectionCase("odd", odd, mixed),
        ProjectionCase("many", many, (torch.float32,)),
        ProjectionCase("many", many, mixed),
        ProjectionCase("empty", (0, 0), (torch.float32,)),
    ]


@dataclass(frozen=True)
class NeighborCase:
    """The nearest references: of small integers indices and distances are the CPU's, bit by bit."""

    k: int
    shape: tuple[int, int, int]  # anchors, references (0: the anchors themselves), dimension
    dtypes: tuple[torch.dtype, torch.dtype]

    def __str__(self) -> str:
        names = "-".join(str(dtype).removeprefix("torch.") for dtype in dict.fromkeys(self.dtypes))
        return f"nearest-{self.k}-{names}-{'x'.join(map(str, self.shape))}"

    def problems(self, device: str) -> list[str]:
        """Where indices or distances differ."""
        m, n, d = self.shape
        random = torch.Generator().manual_seed(d)
        # Squared distances are exact, every tie is a true one, and there are duplicates.
        anchors = torch.randint(-3, 4, (m, d), generator=random).to(self.dtypes[0])
        references = torch.randint(-3, 4, (n, d), generator=random).to(self.dtypes[1]) if n else None
        expected = F.nearest_references(anchors, references, self.k)
        there = None if references is None else references.to(device)
        ours = F.nearest_references(anchors.to(device), there, self.k)
        return [f"{self}: {problem}" for problem in _differences(ours, expected, "of anchors")]


def neighbor_cases() -> list[NeighborCase]:
    """The nearest one, a few, more than a list has room for at first, more than there are, thousands."""
    dtypes = itertools.cycle(DTYPES)
    shapes = (
        (13, 21, 5),
        (70, 290, 33),
        (300, 0, 17),
        (131, 700, 130),
        (3, 1000, 257),
        (5, 77, 1030),
        (1, 1, 3),
    )
    return [
        *(NeighborCase(k, shape, next(dtypes)) for k in (1, 4, 90) for shape in shapes),
        *(NeighborCase(k, (7, 5000, 9), (torch.float32, torch.float32)) for k in (1000, 2000)),
    ]


@dataclass(frozen=True)
class SpreadCase:
    """SoftTriple's regulariser and its gradient, some centres of a class coinciding."""

    shape: tuple[int, int, int]  # classes, centres of each, dimension
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"spread-{str(self.dtype).removeprefix('torch.')}-{'x'.join(map(str, self.shape))}"

    def problems(self, device: str) -> list[str]:
        """Where value or gradient are off from float64."""
        random = torch.Generator().manual_seed(sum(self.shape))
        centres = torch.randn(self.shape, generator=random).to(self.dtype)
        centres[1::3, -1] = centres[1::3, 0]
        value, gradient = self._run(centres.to(device))
        expected, truth = self._run(centres.double())
        eps = torch.finfo(self.dtype).eps
        return [
            f"{self}: {name}: off from float64 by {error:.3g}, allowed {bound:.3g}"
            for name, error, bound in (
                ("value", largest(value - expected), 1e-5 * largest(expected)),
                ("gradient", largest(gradient - truth), (eps + 1e-5) * largest(truth)),
            )
            if not error <= bound
        ]

    @staticmethod
    def _run(centres: Tensor) -> tuple[Tensor, Tensor]:
        leaf = centres.clone().requires_grad_()
        value = centre_spread(leaf)
        one_each = value * leaf[..., 0].numel()  # or float16 has no numbers for the gradient
        return value.detach().double().cpu(), torch.autograd.grad(one_each, leaf)[0].double().cpu()


def spread_cases() -> list[SpreadCase]:
    """A centre for each class (then there is nothing to add up), a few, more than a warp has lanes."""
    shapes = ((7, 1, 5), (33, 3, 17), (130, 5, 130), (3, 32, 257))
    return [SpreadCase(shape, dtype) for shape in shapes for dtype in FLOATS]


Case = LossCase | SelectionCase | NeighborCase | ProjectionCase | SpreadCase


def all_cases() -> list[Case]:
    """Of every operator."""
    return [
        *loss_cases(),
        *shard_cases(),
        *spread_cases(),
        *selection_cases(),
        *neighbor_cases(),
        *projection_cases(),
    ]
