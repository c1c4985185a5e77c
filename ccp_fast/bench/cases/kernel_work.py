"""What each of our CUDA kernels must do at least, launch by launch: its tile, FLOPs and bytes.

As for the cases, exp, log and square roots are left out, and what passes through the L2 cache again is not counted. A
kernel without an entry has no floor: PyTorch's own, and those of ours whose work depends on values.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ccp_fast.bench.case import Work
from ccp_fast.bench.launch import KernelWork, Launch, parameters_of

# Of csrc/kernels/cuda/similarity_loss; python_tests/test_bench_kernels.py compares them.
ROWS, OWNED, STREAMED = 128, 64, 64  # items of a tile: rows forward, owned and streamed ones
CHUNK_BYTES = 128  # of each item at a time
MOST_DIMS = 512  # components whose gradients a block's registers hold
STATE = 4  # numbers that a row gathers
SAVED = 3  # and of those that backward needs
PROJECTION_CHUNK = 1 << 15
_BLOCKS_EACH = 2  # that a multiprocessor is meant to have


def up(n: int, by: int) -> int:
    """Quotient, rounded up."""
    return -(-n // by)


def slices(owned_tiles: int, streamed_tiles: int, multiprocessors: int) -> int:
    """Into how many the streamed side is cut where there are few owned tiles."""
    return max(1, min(_BLOCKS_EACH * multiprocessors // max(owned_tiles, 1), streamed_tiles))


def of_loss(
    leaves: Sequence[Tensor],  # anchors [M, D], and proxies [C, K, D] unless they are the anchors
    work: Work,
    launches: Sequence[Launch],
    multiprocessors: int,
    proxies_are_rows: bool = False,
) -> list[KernelWork | None]:
    """Of a pass of a similarity loss, forward or backward.

    Both passes compute the similarities; backward needs those of pairs that have a gradient.
    """
    anchors, proxies = leaves[0], leaves[-1]
    samples, dim = anchors.shape
    columns = proxies[..., 0].numel()
    pairs, longer, shorter = samples * columns, max(samples, columns), min(samples, columns)
    active = (work.flops - 2.0 * pairs * dim) / (4.0 * dim)
    dense = active == pairs
    number = anchors.element_size()
    read = sum(leaf.nbytes for leaf in leaves) + 8 * samples  # with labels
    read_backward = (
        read if dense else shorter * dim * number + 8 * samples + longer
    )  # no more than flags are sure
    rows = columns if proxies_are_rows else samples
    row_tiles = up(rows, ROWS)
    tile = f"{{}} x {STREAMED}, {CHUNK_BYTES // number} of {dim} at a time"
    of_forward = [x.grid[0] // row_tiles for x in launches if x.stem == "similarity_forward"]
    forward_slices = max(1, *of_forward) if of_forward else 1
    of_both = [x.grid[0] for x in launches if x.stem == "similarity_both_gradients"]

    def parts(items: int, times: int) -> float:
        return 4.0 * times * items * (dim + 1)

    dim_blocks = up(dim, MOST_DIMS)
    of_sides = {
        owned: slices(up(owned, OWNED) * dim_blocks, up(streamed, STREAMED), multiprocessors)
        for owned, streamed in ((longer, shorter), (shorter, longer))
    }
    handed_on = {n: times for n, times in of_sides.items() if times > 1 or dim > MOST_DIMS}
    apart = sum(parts(n, times) for n, times in handed_on.items())
    apart_direct = sum(n * dim * number for n in (longer, shorter) if n not in handed_on)

    def of(launch: Launch) -> KernelWork | None:
        match launch.stem:
            case "similarity_forward":
                counts_alone = parameters_of(launch.name).endswith(
                    ("true>", "(bool)1>")
                )  # triplet, in backward
                states = 0 if counts_alone else 4 * STATE * forward_slices * rows + longer
                return KernelWork(tile.format(ROWS), 2.0 * pairs * dim, read + states, products=True)
            case "similarity_reduce":
                states = STATE * forward_slices * rows
                return KernelWork("a row a thread", states, 4.0 * (states + SAVED * rows))
            case "similarity_both_gradients":
                written = longer * dim * number + parts(shorter, launch.grid[0])
                return KernelWork(
                    tile.format(OWNED), 6.0 * active * dim, read_backward + written, products=True
                )
            case "similarity_gradient":
                written = apart + apart_direct
                return KernelWork(
                    tile.format(OWNED), 6.0 * active * dim, read_backward + written, products=True
                )
            case "finish_gradient":
                given = parts(shorter, max(of_both)) if of_both else apart
                items = shorter if of_both else sum(handed_on)
                return KernelWork("an item a warp or block", given / 4, given + 2.0 * items * dim * number)
            case "count_flags" | "list_flagged":
                return KernelWork("1,024 flags", longer, longer)
            case "count_each":
                return KernelWork("a row a warp", samples, 16.0 * samples)
            case "add_up":
                return KernelWork("all rows", samples, 16.0 * samples)
            case "gather":
                listed = samples * (proxies.shape[1] if proxies.dim() == 3 else 1)
                return KernelWork("a row a warp", 3.0 * listed * dim, anchors.nbytes + 16.0 * listed)
        return None

    return [of(launch) for launch in launches]


def of_neighbors(
    anchors: Tensor, references: Tensor, k: int, launches: Sequence[Launch]
) -> list[KernelWork | None]:
    """Of `nearest_references`: search, then merge what the slices have found."""
    m, dim = anchors.shape
    row_tiles = up(m, ROWS)
    cut = max([1, *(x.grid[0] // row_tiles for x in launches if x.stem.startswith("search_"))])
    found = 8.0 * m * cut * k  # keys of eight bytes
    tile = f"{ROWS} x {STREAMED}, {CHUNK_BYTES // anchors.element_size()} of {dim} at a time"

    def of(launch: Launch) -> KernelWork | None:
        match launch.stem:
            case "search_one" | "search_many":
                flops = 2.0 * m * len(references) * dim
                return KernelWork(tile, flops, anchors.nbytes + references.nbytes + found, products=True)
            case "merge_slices":
                return KernelWork("an anchor a warp", 0.0, found + 12.0 * m * k)
        return None

    return [of(launch) for launch in launches]


def of_k_center(
    points: Tensor, seeds: Tensor, work: Work, launches: Sequence[Launch]
) -> list[KernelWork | None]:
    """Of `farthest_points`: one launch for small segments; of a large one what pruning cannot save."""
    count, dim = points.shape[0] * points.shape[1], points.shape[2]
    large = any(launch.stem == "open_chunks" for launch in launches)

    def of(launch: Launch) -> KernelWork | None:
        match launch.stem:
            case "select_segments" if not large:
                return KernelWork("segments in shared memory", work.flops, work.bytes)
            case "open_chunks":
                flops = 3.0 * count * seeds.shape[1] * dim
                return KernelWork("a point four threads", flops, points.nbytes + seeds.nbytes + 8.0 * count)
            case "approach_chunks":  # each point's nearest distance and whose it is
                return KernelWork("a point four threads", 0.0, 8.0 * count)
        return None

    return [of(launch) for launch in launches]


def of_projection(
    params: Sequence[Tensor], work: Work, launches: Sequence[Launch]
) -> list[KernelWork | None]:
    """Of `projection_grad_`: launches for a list share its work, then the sums of chunks are added up."""
    chunks = sum(up(param.numel(), PROJECTION_CHUNK) for param in params)
    stems = [launch.stem for launch in launches]
    share = 1 / max(1, stems.count("projection_grad_kernel"))

    def of(launch: Launch) -> KernelWork | None:
        match launch.stem:
            case "projection_grad_kernel":
                tile = f"{PROJECTION_CHUNK:,} numbers"
                return KernelWork(tile, work.flops * share, work.bytes * share)
            case "projection_penalty_kernel":
                return KernelWork("all chunks", chunks, 8.0 * chunks)
        return None

    return [of(launch) for launch in launches]
