"""The CUDA kernels of the similarity losses, emulated: their launches, their banks, what they visit, far addresses."""

from __future__ import annotations

import emulator
import numpy as np
import pytest
import torch
from emulated_loss import SIXTEEN_BITS, Pairs, Settings, dense, emulate, kernels_of
from emulated_neighbors import emulate as nearest
from helpers import one_thread  # noqa: F401
from test_emulated_similarity_loss import LOSSES, close_pairs, make_pairs

NO_PASS_FOR_BOTH = 0  # bytes of shared memory


def launches(pairs: Pairs, settings: Settings, **options: int) -> tuple[int, int]:
    """Of forward and of backward."""
    module, loss = emulator.load(), kernels_of(pairs, settings, **options)
    start = module.launches()
    value, *_ = loss.forward()
    between = module.launches()
    loss.backward(np.ones(len(value), np.float32), True, True)
    return between - start, module.launches() - between


def test_gradients_keep_their_own_tile_where_the_gpu_has_room() -> None:
    """Of 512 components, 64 items: a block asks for what they take, beside chunks of the others, and for no more than
    there is.
    """
    module, settings = emulator.load(), LOSSES["multi_similarity"]
    pairs = make_pairs("labelled", 70, 133, 512)
    own = {torch.bfloat16: 64, torch.float32: 128}
    kept = {99: [], 163: [torch.bfloat16], 227: [torch.bfloat16, torch.float32]}  # KiB: RTX, A100, H100
    for room, keeps in kept.items():
        for dtype, size in own.items():
            loss = kernels_of(pairs.to(dtype), settings, shared_bytes=room * 1024)
            value, *_ = loss.forward()
            module.most_shared_bytes()
            loss.backward(np.ones(len(value), np.float32), True, True)
            asked = module.most_shared_bytes()
            assert (asked > (size + 24) * 1024) == (dtype in keeps)
            assert asked <= room * 1024


# Launches ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", [name for name in LOSSES if name != "triplet"])
@pytest.mark.parametrize("kind", ["proxies", "proxies as rows", "memory"])
def test_a_step_takes_two_launches_each_way(loss: str, kind: str) -> None:
    """At most 128 samples of at most 128 components, as with CCP's proxies of SOP, on 9 multiprocessors."""
    settings = LOSSES[loss]._replace(proxy_rows=kind.endswith("rows"))
    assert launches(make_pairs(kind, 17, 300, 24), settings, multiprocessors=9) == (2, 2)


@pytest.mark.parametrize("kind", ["proxies", "proxies as rows", "labelled", "batch", "memory"])
def test_of_triplet_the_positives_are_listed_before(kind: str) -> None:
    """In one launch among proxies, otherwise in three, each time; another counts violated triplets."""
    settings = LOSSES["triplet"]._replace(proxy_rows=kind.endswith("rows"))
    listing = 1 if kind == "proxies" else 3
    assert launches(make_pairs(kind, 17, 300, 24), settings) == (2 + listing, 2 + listing + 1)


@pytest.mark.parametrize("kind", ["proxies", "proxies as rows", "labelled", "batch", "memory"])
def test_of_triplet_the_gpu_is_not_asked_how_many_positives_there_are(kind: str) -> None:
    """A CUDA graph cannot. The lists have room for all that there can be, of which the kernels get no more here."""
    pairs = make_pairs(kind, 17, 300, 24)
    settings = LOSSES["triplet"]._replace(proxy_rows=kind.endswith("rows"))
    loss = kernels_of(pairs, settings)
    rows, columns = 17, {"proxies": 300, "batch": 17, "memory": 317}.get(kind, 300)
    assert loss.most_positives() == (rows * columns if kind in ("labelled", "batch", "memory") else rows * 3)
    truth = dense(pairs, settings, torch.float64)
    torch.testing.assert_close(emulate(pairs, settings).value.double(), truth.value, rtol=1e-5, atol=0)


def test_of_triplet_the_gpu_is_asked_where_lists_might_be_long() -> None:
    """From 2^20 pairs on; proxies are known to have few."""
    settings = LOSSES["triplet"]
    for n, most in ((1 << 16, 1 << 20), ((1 << 16) + 1, -1)):
        labelled = Pairs(torch.zeros(16, 1), torch.zeros(n, 1), torch.zeros(16).long(), torch.zeros(n).long())
        assert kernels_of(labelled, settings).most_positives() == most
    proxies = Pairs(torch.zeros(16, 1), torch.zeros(1 << 16, 4, 1), torch.zeros(16).long())
    assert kernels_of(proxies, settings).most_positives() == 64


def test_where_both_do_not_fit_it_is_no_more_without_a_hinge() -> None:
    """More components, or more samples; a hinge's active items are listed first, in two launches."""
    for pairs in (make_pairs("proxies", 17, 90, 132), make_pairs("labelled", 140, 150, 20)):
        assert launches(pairs, LOSSES["multi_similarity"], multiprocessors=20) == (2, 2)
        assert launches(pairs, LOSSES["contrastive_l2"], multiprocessors=20) == (2, 4)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("m", "n"), [(0, 30), (7, 0), (0, 0)])
def test_without_items_no_grid_is_empty(loss: str, m: int, n: int) -> None:
    """CUDA refuses one, and so does the emulator. No launch, but for rows that have a loss without columns."""
    pairs = Pairs(torch.randn(m, 5), torch.randn(n, 5), torch.zeros(m).long(), torch.zeros(n).long())
    for proxy_rows in (False, True):
        settings = LOSSES[loss]._replace(proxy_rows=proxy_rows)
        got = emulate(pairs, settings)
        assert torch.isfinite(got.value).all()
        assert not got.grad_anchors.any()
        assert got.grad_references is not None
        assert not got.grad_references.any()
        rows = n if proxy_rows else m
        assert launches(pairs, settings) == (2 if loss == "negative_lse" and rows > 0 else 0, 0)


def test_no_launch_without_items_of_other_kernels() -> None:
    module, empty = emulator.load(), np.zeros((0, 4, 8), np.float32)
    start = module.launches()
    for shape in ((0, 4, 8), (3, 4, 0)):
        assert module.centre_spread(np.zeros(shape, np.float32), "float32") == 0
        assert module.centre_spread_backward(1.0, np.zeros(shape, np.float32), "float32").size == 0
    assert module.projection_grad([], 0.5, "float32") == 0
    nothing = (0, "float32"), (empty.ctypes.data, "float32"), (empty.ctypes.data, "float32"), 0
    assert module.projection_grad([nothing] * 3, 0.5, "float64") == 0
    assert nearest(torch.zeros(0, 5), torch.zeros(7, 5), 3).indices.shape == (0, 3)
    assert module.launches() == start


# Listing -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 255, 1024, 5003])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_active_items_are_listed_in_order(n: int, share: float) -> None:
    flags = np.random.default_rng(n).random(n) < share
    for seed in range(3):
        emulator.load().set_seed(seed)
        assert emulator.load().list_active(flags.astype(np.uint8)).tolist() == flags.nonzero()[0].tolist()


def test_items_that_a_hinge_leaves_inactive_have_a_gradient_of_zero() -> None:
    """Few are active, and they lie in several units of several blocks."""
    pairs = make_pairs("proxies", 9, 700, 6)
    settings = Settings("contrastive_cosine", [0.9, 0.97], "unit", "sum")
    truth = dense(pairs, settings, torch.float64)
    for processors in (1, 3):
        for shared_bytes in (227 * 1024, NO_PASS_FOR_BOTH):
            got = emulate(pairs, settings, multiprocessors=processors, shared_bytes=shared_bytes)
            assert got.grad_references is not None
            assert truth.grad_references is not None
            active = truth.grad_references.abs().sum(-1) > 0
            assert 0 < active.sum() < 0.3 * active.numel()
            assert torch.equal(got.grad_references.abs().sum(-1) > 0, active)
            torch.testing.assert_close(
                got.grad_references.double(), truth.grad_references, rtol=1e-4, atol=1e-5
            )


# Sixteen bits --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", SIXTEEN_BITS)
def test_fragments_of_16_bits_meet_in_no_bank(dtype: torch.dtype) -> None:
    module = emulator.load()
    loads, conflicts = module.matrix_loads(), module.matrix_conflicts()
    for shared_bytes in (227 * 1024, NO_PASS_FOR_BOTH):
        emulate(make_pairs("proxies", 70, 90, 72).to(dtype), LOSSES["proxy_nca"], shared_bytes=shared_bytes)
    assert module.matrix_loads() > loads
    assert module.matrix_conflicts() == conflicts


def test_floats_take_no_16_bit_tiles() -> None:
    module = emulator.load()
    before = module.matrix_loads()
    pairs = make_pairs("proxies", 7, 9, 16)
    for mixed in (pairs, pairs._replace(anchors=pairs.anchors.bfloat16())):
        emulate(mixed, LOSSES["proxy_nca"])
    assert module.matrix_loads() == before


@pytest.mark.parametrize("dtype", SIXTEEN_BITS)
@pytest.mark.parametrize("d", [2, 7, 64, 72, 128, 200, 520])
def test_16_bits_of_any_number_of_components(d: int, dtype: torch.dtype) -> None:
    """The loss is that of the rounded numbers to float's precision, gradients are rounded once."""
    pairs, settings = make_pairs("labelled", 70, 133, d).to(dtype), LOSSES["multi_similarity"]
    truth = dense(pairs, settings, torch.float64)
    for shared_bytes in (227 * 1024, NO_PASS_FOR_BOTH):
        got = emulate(pairs, settings, multiprocessors=3, shared_bytes=shared_bytes)
        assert got.value.double() == pytest.approx(truth.value, rel=1e-5)
        for x, exact in zip(got[1:], truth[1:], strict=True):
            assert x is not None
            assert exact is not None
            assert (x.double() - exact).abs().max() <= torch.finfo(dtype).eps * exact.abs().max()


@pytest.mark.parametrize("dtype", SIXTEEN_BITS)
def test_close_pairs_of_16_bits(dtype: torch.dtype) -> None:
    """One step of the last place apart."""
    pairs, settings = close_pairs()
    assert pairs.references is not None
    anchors = pairs.anchors.to(dtype)
    nearest = anchors.view(torch.int16) + (torch.rand_like(pairs.anchors) < 0.3)
    pairs = pairs._replace(anchors=anchors, references=nearest.short().view(dtype)[:, None])
    truth = dense(pairs, settings, torch.float64)
    for shared_bytes in (227 * 1024, NO_PASS_FOR_BOTH):
        got = emulate(pairs, settings, shared_bytes=shared_bytes)
        assert got.value.double() == pytest.approx(truth.value, rel=1e-5)
        for x, exact in zip(got[1:], truth[1:], strict=True):
            assert x is not None
            assert exact is not None
            assert (x.double() - exact).abs().max() <= torch.finfo(dtype).eps * exact.abs().max()


# Far addresses -------------------------------------------------------------------------------------------------


ONE = np.ones(1, np.float32)


def missing_items(dim: int) -> int:
    """So many that components beyond 3 · 2^31 are left, in whole tiles, whose rows the last block finishes."""
    return 3 * 2**31 // dim + 255 * 256


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("side", ["columns", "rows"])
@pytest.mark.parametrize("loss", ["contrastive_l2", "multi_similarity"])
def test_items_beyond_2_31_components(loss: str, side: str, dtype: torch.dtype) -> None:
    """Those before the last few are not there at all: only the blocks of the last ones run."""
    dim, few = 256, 50
    pairs = make_pairs("labelled", 5, few, dim).to(dtype)
    missing = missing_items(dim)
    settings = LOSSES[loss]._replace(proxy_rows=side == "rows", reduction="sum")
    here = kernels_of(pairs, settings, shared_bytes=NO_PASS_FOR_BOTH)
    *_, active = here.forward()
    wanted = side == "rows", side == "columns"
    gradient = here.backward(ONE, *wanted)[wanted.index(True)]
    assert gradient.any()
    far = kernels_of(  # as many slices as tiles of columns
        pairs, settings, shared_bytes=NO_PASS_FOR_BOTH, multiprocessors=missing // 64,
        **{f"missing_{side}": missing},
    )  # fmt: skip
    with emulator.only_end_blocks(0, 1):
        _, row_state, _, far_active = far.forward()
    assert len(far_active) == missing + few
    assert (far_active[missing:] == active).all()
    if side == "rows":
        assert (row_state[:, missing:] == here.row_state()).all()
    far.continue_from(here)
    # What a hinge has left active the last blocks list, and the first visit.
    with emulator.only_end_blocks(int(loss == "contrastive_l2"), 1):
        far_gradient = far.backward(ONE, *wanted)[wanted.index(True)]
    assert (far_gradient == gradient).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_positives_beyond_2_31_components(dtype: torch.dtype) -> None:
    """Of triplet: proxies of the last classes, whose distances are listed before the pairs are looked at."""
    dim, classes = 256, 12
    pairs = make_pairs("proxies", 5, 4 * classes, dim, 4).to(dtype)
    missing = missing_items(dim)
    settings = Settings("triplet", [-0.1], "ball", "sum")
    here = kernels_of(pairs, settings, shared_bytes=NO_PASS_FOR_BOTH)
    value, *_, active = here.forward()
    assert value > 0
    moved = pairs._replace(labels=pairs.labels + missing // 4)
    far = kernels_of(
        moved, settings, shared_bytes=NO_PASS_FOR_BOTH, multiprocessors=missing // 64, missing_columns=missing
    )
    with emulator.only_end_blocks(0, 1):
        *_, far_active = far.forward()
    assert (far_active[missing:] == active).all()
    assert 0 < active.sum() < len(active)
    assert pairs.references is not None
    own = pairs.references[pairs.labels]
    distances = torch.linalg.vector_norm((pairs.anchors[:, None] - own).float(), dim=2).numpy()
    counts = here.counts(distances)
    finished = here.row_state(), distances, counts
    _, gradient = here.shard_backward(*finished, need_rows=False)
    far.continue_from(here)
    with emulator.only_end_blocks(1, 1):  # the last list what is active, the first visits it
        _, far_gradient = far.shard_backward(*finished, need_rows=False)
    assert gradient.any()
    assert (far_gradient == gradient).all()


@pytest.mark.parametrize(("k", "dim"), [(1, 256), (3, 2**14)])
def test_nearest_references_beyond_2_31_components(k: int, dim: int) -> None:
    """Several neighbours in few blocks, since each keeps lists."""
    few = 50
    generator = torch.Generator().manual_seed(0)
    anchors, references = (torch.randn(n, dim, generator=generator) for n in (5, few))
    missing = missing_items(dim)
    right = nearest(anchors, references, k)
    with emulator.only_end_blocks(0, 1):
        found = nearest(anchors, references, k, multiprocessors=missing // 64, missing=missing)
    assert (found.indices == right.indices + missing).all()
    assert (found.distances == right.distances).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("loss", ["contrastive_l2", "multi_similarity"])
def test_both_gradients_of_columns_beyond_2_31_components(loss: str, dtype: torch.dtype) -> None:
    """Each block has a tile of the columns, and a part of the rows' gradients: the last begins beyond 2^31, too."""
    dim, few = 128, 50
    pairs = make_pairs("labelled", 5, few, dim).to(dtype)
    missing = missing_items(dim)
    settings, module = LOSSES[loss], emulator.load()
    here = kernels_of(pairs, settings)
    here.forward()
    rows, columns = here.backward(ONE, True, True)
    far = kernels_of(pairs, settings, multiprocessors=missing // 64 + 1, missing_columns=missing)
    far.continue_from(here)
    launched = module.launches()
    with emulator.only_end_blocks(0, 1):
        far_rows, far_columns = far.backward(ONE, True, True)
    assert module.launches() - launched == 2  # one for both sides, one that adds up the rows' parts
    assert columns.any()
    assert (far_columns == columns).all()
    # Of the rows the last alone: parts of blocks that never ran are zero, and the norm is summed up otherwise.
    last, far_last = (torch.from_numpy(x[-1]).view(dtype) for x in (rows, far_rows))
    assert last.abs().max() > 0
    torch.testing.assert_close(far_last, last, rtol=2 * torch.finfo(dtype).eps, atol=1e-7)
