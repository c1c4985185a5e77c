"""Each kernel by itself, as `ccp-bench gpu` shows it: the trace, occupancy, work and floors, with recorded events."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import one_thread  # noqa: F401
from pretended_gpu import H100, LAUNCH, RATES, kernel
from torch import Tensor

from ccp_fast.bench import results
from ccp_fast.bench.case import Work
from ccp_fast.bench.cases import k_center, kernel_work, losses, neighbors, projection
from ccp_fast.bench.gpu import report
from ccp_fast.bench.gpu.device import Gpu
from ccp_fast.bench.gpu.kernels import kernels_of
from ccp_fast.bench.gpu.occupancy import Limits
from ccp_fast.bench.gpu.trace import launches_of
from ccp_fast.bench.launch import KernelWork, Launch, parameters_of, stem_of
from ccp_fast.bench.results import GpuFindings, Measured, Row
from ccp_fast.bench.tables import console

SOURCES = Path(__file__).resolve().parents[1] / "csrc" / "kernels" / "cuda"
SMS = 132


# --- the trace --------------------------------------------------------------------------------------------------


def event(cat: str, name: str, ts: float, dur: float = 2.0, **args: Any) -> dict[str, Any]:
    return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur, "args": args}


ONE = {"grid": [3, 1, 1], "block": [256, 1, 1], "registers per thread": 64, "shared memory": 2048}


def test_launches_are_read_off_a_trace() -> None:
    trace = {
        "traceEvents": [
            event("cpu_op", "aten::mm", 1.0),
            event("cuda_runtime", "cudaLaunchKernel", 1.5),
            event("kernel", "second", 9.0, **ONE),
            event("gpu_memset", "Memset (Device)", 8.0, bytes=64),
            event("kernel", "first", 5.0, 3.0, **ONE),
            {"ph": "M", "name": "process_name"},
        ]
    }
    first, memset, second = launches_of(trace)
    assert first == Launch("first", "kernel", (3, 1, 1), (256, 1, 1), 64, 2048, None, 3.0)
    assert (memset.kind, memset.grid, memset.registers, memset.size) == ("memset", (), None, 64)
    assert second.key == first.key._replace(name="second")


def test_the_cache_is_cold_before_each_pass_and_its_flush_is_not_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`Gpu.launches` with a recorded device: a memset of the buffer, and kernels of the steps in turn."""
    gpu, log = object.__new__(Gpu), list[dict[str, Any]]()

    def record(name: str, kind: str = "kernel", **args: Any) -> None:
        log.append(event(kind, name, float(len(log)), **args))

    def trace(calls: Any) -> list[Launch]:
        log.clear()
        calls()
        return launches_of({"traceEvents": log})

    gpu._flushes = None
    monkeypatch.setattr(gpu, "flush", lambda: record("Memset (Device)", "gpu_memset", bytes=1 << 28))
    monkeypatch.setattr(gpu, "_trace", trace)

    def step(name: str) -> Any:
        def run() -> tuple[()]:
            record("Memset (Device)", "gpu_memset", bytes=40)
            record(name, **ONE)
            return ()

        return run

    found = gpu.launches([step("a"), step("b")], 3)
    assert [(x.name, x.size) for x in found if x.kind == "memset"] == [("Memset (Device)", 40)] * 3
    assert [x.name for x in found if x.kind == "kernel"] == ["a", "b", "a"]
    kinds = [x["args"].get("bytes", x["name"]) for x in log]
    assert kinds == [1 << 28, 40, "a", 1 << 28, 40, "b", 1 << 28, 40, "a"]


@pytest.mark.parametrize(
    ("name", "stem", "shown"),
    [
        ("void ccp::cuda::similarity_reduce(ccp::cuda::ReduceJob)", "similarity_reduce", None),
        ("void ccp::cuda::forward<float, 3>(Job)", "forward", "forward<float, 3>"),
        (
            "void ccp::cuda::(anonymous namespace)::finish_gradient<8>(ccp::cuda::(anonymous namespace)::FinishJob)",
            "finish_gradient",
            "finish_gradient<8>",
        ),
        (
            "void ccp::cuda::k_center::choose<ccp::cuda::k_center::Format<float, true> >(ccp::Job<int>, int)",
            "choose",
            "choose<Format<float, true> >",
        ),
        ("ccp::cuda::add_up(long*, ccp::Job<int>)", "add_up", "add_up"),
        ("Memset (Device)", "Memset ", None),
        ("x" * 60, "x" * 60, "x" * 39 + "…"),
    ],
)
def test_names_of_kernels_are_short(name: str, stem: str, shown: str | None) -> None:
    assert stem_of(name) == stem
    assert report.short(name) == (shown or stem)


# --- statistics and floors --------------------------------------------------------------------------------------


def test_a_kernel_is_the_median_of_its_launches_beside_its_floor() -> None:
    times = [5.0, 4.0, 6.0, 40.0]
    other = Launch("Memset (Device)", "memset", size=64, microseconds=1.0)
    launches = [x for t in times for x in (LAUNCH._replace(microseconds=t), other)]
    work = KernelWork("128 x 64", flops=8e8, bytes=4e6, products=True)
    ours, memset = kernels_of(launches, 2, lambda keys: [work, None], H100, RATES, "bfloat16")
    assert (ours.count, ours.samples, ours.p50_us) == (2, 4, 5.5)
    assert (ours.floor_us, ours.floor_from) == (pytest.approx(1.0), "FLOPs")  # of 800 TFLOP/s and 4 TB/s
    assert ours.gigabytes_per_second == pytest.approx(4e6 / 5.5e-6 / 1e9)
    assert ours.teraflops_per_second == pytest.approx(8e8 / 5.5e-6 / 1e12)
    assert (ours.tile, ours.registers, ours.grid) == ("128 x 64", 128, [132, 1, 1])
    assert (memset.kind, memset.floor_us, memset.tile, memset.resident_blocks) == ("memset", None, None, None)
    plain = kernels_of(launches, 2, None, H100, RATES, "float32")
    assert [k.floor_us for k in plain] == [None, None]
    (bytes_,) = kernels_of([LAUNCH], 1, lambda keys: [work._replace(products=False)], H100, RATES, "float32")
    assert (bytes_.floor_us, bytes_.floor_from) == (
        pytest.approx(16.0),
        "FLOPs",
    )  # 50 TFLOP/s outside of matrix units


def test_passes_launch_kernels_and_no_memsets() -> None:
    memset = kernels_of([Launch("Memset", "memset")], 1, None, H100, RATES, "float32")
    found = GpuFindings([kernel(), *memset], [kernel()], "same bits", None, 100, 0)
    assert found.launches == (1, 1)
    assert GpuFindings([], [], "same bits", None, 100, 0).launches is None


# Of the CUDA occupancy calculator for 64K registers: threads of a block, registers, shared bytes -> blocks.
@pytest.mark.parametrize(
    ("limits", "threads", "registers", "shared", "blocks"),
    [
        (H100, 256, 32, 0, 8),  # threads
        (H100, 256, 128, 1024, 2),  # registers
        (H100, 256, 255, 0, 1),
        (H100, 416, 128, 1024, 1),
        (
            H100,
            416,
            136,
            1024,
            0,
        ),  # of 13 warps four meet on one scheduler, which has a quarter of the registers
        (H100, 256, 64, 99 * 1024, 2),  # shared memory
        (H100, 32, 16, 0, 32),  # blocks
        (H100, 256, 64, 228 * 1024, 0),
        (Limits(1536, 65536, 100 * 1024, 16), 256, 40, 0, 6),
        (Limits(1536, 65536, 100 * 1024, 16), 64, 16, 0, 16),
    ],
)
def test_resident_blocks(limits: Limits, threads: int, registers: int, shared: int, blocks: int) -> None:
    launch = Launch("k", "kernel", (1,), (threads, 1, 1), registers, shared)
    assert limits.resident(launch) == blocks
    assert limits.occupancy(launch) == pytest.approx(100 * blocks * -(-threads // 32) * 32 / limits.threads)


def test_limits_come_from_the_device() -> None:
    class Properties:
        major, minor = 9, 0
        max_threads_per_multi_processor = 2048
        regs_per_multiprocessor = 65536
        shared_memory_per_multiprocessor = 233472

    assert Limits.of_device(Properties()) == H100
    Properties.minor = 7
    assert Limits.of_device(Properties()).blocks == 32
    unknown = Limits.of_device(Properties()).resident(Launch("k", "kernel", (1,), (32,), None, None))
    assert unknown is None


# --- work -------------------------------------------------------------------------------------------------------


def launch(stem: str, grid: int = 1, parameters: str = "") -> Launch:
    return LAUNCH._replace(name=f"void ccp::cuda::{stem}{parameters}(Job)", grid=(grid, 1, 1))


def constant(name: str) -> int:
    """A constant of the kernels' sources, which are in one place each."""
    texts = [path.read_text() for path in SOURCES.rglob("*") if path.is_file()]
    found = {int(n) for text in texts for n in re.findall(rf"constexpr int(?:64_t)? {name} = (\d+)", text)}
    (value,) = found
    return value


def test_tiles_are_those_of_the_sources() -> None:
    assert constant("kForwardRows") == kernel_work.ROWS
    assert constant("kGradientOwner") == kernel_work.OWNED
    assert constant("kStreamed") == kernel_work.STREAMED
    assert constant("kRowBytes") == kernel_work.CHUNK_BYTES
    assert constant("kMostDims") == kernel_work.MOST_DIMS
    assert constant("kBlocksPerMultiprocessor") == kernel_work._BLOCKS_EACH
    assert "kChunk = 1 << 15;" in (SOURCES / "projection_grad" / "table.h").read_text()
    assert kernel_work.PROJECTION_CHUNK == 1 << 15


# Of the class-sharded loss, which no case measures, and of choices that depend on values alone.
WITHOUT_WORK = {
    "list_known",
    "list_large",
    "stage_seeds",
    "choose",
    "add_distances",
    "add_blocks",
    "differentiate",
}


def test_every_kernel_has_its_work() -> None:
    text = "".join(path.read_text() for path in SOURCES.rglob("*.cu*"))
    kernels = set(re.findall(r"__global__\s+void\s+(?:__launch_bounds__\(.*\)\s+)?(\w+)\(", text))
    assert len(kernels) > 20
    launches = [launch(stem) for stem in sorted(kernels)]
    small = [x for x in launches if x.stem == "select_segments"]
    inputs = losses.make_inputs(losses.SHAPES["toy"]["sop"])
    lists = projection.make_inputs([(3, 4)])
    pools = k_center.make_inputs(k_center.SHAPES["toy"])
    points = neighbors.make_inputs(neighbors.SHAPES["toy"]["sop"])
    anything = Work(1e9, 1e6)
    found: list[tuple[Sequence[Launch], Sequence[KernelWork | None]]] = [
        (launches, kernel_work.of_loss(inputs.leaves, losses.work(inputs, inputs.pairs), launches, SMS)),
        (launches, kernel_work.of_neighbors(points.anchors, points.references, 1, launches)),
        (launches, kernel_work.of_k_center(pools.points, pools.seeds, anything, launches)),
        (small, kernel_work.of_k_center(pools.points, pools.seeds, anything, small)),
        (launches, kernel_work.of_projection(lists.params, anything, launches)),
    ]
    known = {x.stem for seen, work in found for x, one in zip(seen, work, strict=True) if one}
    assert kernels - known == WITHOUT_WORK
    for _, work in found:
        assert all(one is None or (one.tile and one.bytes > 0 and one.flops >= 0) for one in work)


M, D = 128, 128


def leaves(proxies: int, dtype: torch.dtype = torch.float32, dim: int = D) -> list[Tensor]:
    return [
        torch.empty(M, dim, dtype=dtype, device="meta"),
        torch.empty(proxies, 1, dim, dtype=dtype, device="meta"),
    ]


def test_the_work_of_forward_and_of_one_pass_for_both_gradients() -> None:
    n = 10_000
    work = Work(6.0 * M * n * D, 0.0)
    of = leaves(n, torch.bfloat16)
    forward, reduce = kernel_work.of_loss(
        of, work, [launch("similarity_forward", 264), launch("similarity_reduce")], SMS
    )
    assert forward is not None
    assert reduce is not None
    assert forward.flops == 2 * M * n * D
    states = 4 * 4 * 264 * M
    assert forward.bytes == 2 * D * (M + n) + 8 * M + states + n
    assert forward.tile == "128 x 64, 64 of 128 at a time"
    assert reduce.bytes == states + 4 * 3 * M

    both, finish = kernel_work.of_loss(
        of, work, [launch("similarity_both_gradients", SMS), launch("finish_gradient")], SMS
    )
    assert both is not None
    assert finish is not None
    parts = 4 * SMS * M * (D + 1)
    assert both.flops == 6 * M * n * D
    assert both.bytes == 2 * D * (M + n) + 8 * M + 2 * n * D + parts
    assert finish.bytes == parts + 2 * 2 * M * D


def test_a_hinge_is_bound_to_read_the_flags_and_the_shorter_side() -> None:
    n, active = 10_000, 500
    (both,) = kernel_work.of_loss(
        leaves(n),
        Work(2.0 * M * n * D + 4.0 * active * D, 0.0),
        [launch("similarity_both_gradients", SMS)],
        SMS,
    )
    assert both is not None
    assert both.flops == 6 * active * D
    assert both.bytes == 4 * M * D + 8 * M + n + 4 * n * D + 4 * SMS * M * (D + 1)


def test_gradients_apart_are_handed_on_where_there_are_slices() -> None:
    n, dim = 10_000, 512
    gradient, finish = kernel_work.of_loss(
        leaves(n, dim=dim),
        Work(6.0 * M * n * dim, 0.0),
        [launch("similarity_gradient"), launch("finish_gradient")],
        SMS,
    )
    assert gradient is not None
    assert finish is not None
    # 157 tiles of proxies leave a slice each; two of samples are cut into 132, of the 157 tiles that pass.
    parts = 4 * 132 * M * (dim + 1)
    assert gradient.bytes == 4 * dim * (M + n) + 8 * M + parts + 4 * n * dim
    assert finish.bytes == parts + 2 * 4 * M * dim


def test_proxies_that_are_rows_and_counts_that_write_nothing() -> None:
    n = 10_000
    work = Work(6.0 * M * n * D, 0.0)
    tiles = -(-n // 128)
    (rows,) = kernel_work.of_loss(
        leaves(n), work, [launch("similarity_forward", 2 * tiles)], SMS, proxies_are_rows=True
    )
    assert rows is not None
    assert rows.bytes == 4 * D * (M + n) + 8 * M + 4 * 4 * 2 * n + n
    for parameters in ("<ccp::Triplet, float, true>", "<ccp::Triplet, float, (bool)1>"):
        (counts,) = kernel_work.of_loss(leaves(n), work, [launch("similarity_forward", 264, parameters)], SMS)
        assert counts is not None
        assert counts.bytes == 4 * D * (M + n) + 8 * M


def test_the_floors_of_kernels_stay_below_that_of_their_case() -> None:
    """Of the large launch of each family: its work is a part of the case's, parts that it hands on aside."""
    inputs = losses.make_inputs(losses.SHAPES["quick"]["sop"])
    work = losses.work(inputs, inputs.pairs)
    forward, both = kernel_work.of_loss(
        inputs.leaves, work, [launch("similarity_forward", 16), launch("similarity_both_gradients", 16)], SMS
    )
    assert forward is not None
    assert both is not None
    assert forward.flops < work.flops
    assert both.flops == work.flops
    lists = projection.make_inputs([(300, 4), (5,)])
    of_list = projection.work(lists)
    first, second, penalty = kernel_work.of_projection(
        lists.params, of_list, [launch("projection_grad_kernel")] * 2 + [launch("projection_penalty_kernel")]
    )
    assert first is not None
    assert second is not None
    assert penalty is not None
    assert first.bytes + second.bytes == of_list.bytes
    assert penalty.bytes == 8 * 2


def test_parameters_of_a_template() -> None:
    assert parameters_of("void f<A<int>, (bool)1>(g<3>)") == "<A<int>, (bool)1>"
    assert parameters_of("f(A<int>)") == ""
    assert parameters_of("void (anonymous namespace)::f<3>(int)") == "<3>"


# --- rows and tables --------------------------------------------------------------------------------------------


def row(microseconds: float) -> Row:
    ours = Measured("ccp_fast", "ours", 0.9, 1.0, 1.1, 9, 1.0, 1e-7, 1e-6, 1000, 0.1)
    findings = GpuFindings([kernel(microseconds)], [kernel()], "same bits", 0.07, 100, 0)
    return Row("losses", "c2", "sop", "128 vs 40", "", 4e9, 1e9, 0.5, "bytes", [ours], gpu=findings)


def test_json_and_table_show_each_kernel(capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads(results.to_json([row(4.0)], {"threads": None}, {}))
    kept = document["rows"][0]["gpu"]["forward"][0]
    assert kept["tile"] == "128 x 64"
    assert (kept["flops"], kept["bytes"], kept["p50_us"]) == (6e8, 6e6, 4.0)
    assert (kept["floor_us"], kept["floor_from"]) == (pytest.approx(1.5), "bytes")
    assert (kept["registers"], kept["shared_bytes"], kept["resident_blocks"]) == (128, 1024, 2)
    assert kept["occupancy"] == 25.0
    assert kept["gigabytes_per_second"] == pytest.approx(1500)
    assert kept["teraflops_per_second"] == pytest.approx(150)

    report.show_kernels(console(), [row(4.0)])
    shown = capsys.readouterr().out
    for text in (
        "forward<float>",
        "128 x 64",
        "4.0 – 4.0",
        "1.50",
        "38%",
        "1500",
        "150",
        "132",
        "256",
        "25%",
    ):
        assert text in shown


def test_kernels_are_compared_with_those_of_an_older_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "old.json"
    path.write_text(results.to_json([row(4.0)], {"threads": None, "device": "a GPU"}, {}))
    before = results.read_rows(path)
    faster, same = results.compare_kernels([row(3.0)], before)
    assert (faster.part, faster.relative, faster.clear) == ("forward", -0.25, True)
    assert (same.part, same.relative, same.clear) == ("backward", 0.0, False)
    report.show_kernel_changes(console(), [faster, same])
    shown = capsys.readouterr().out
    assert "-25%" in shown
    assert "(+0%)" in shown
    for other in ({**before[0], "gpu": None}, {**before[0], "setting": "1e6"}):
        assert results.compare_kernels([row(3.0)], [other]) == []
    older = json.loads(json.dumps(before[0]).replace("p50_us", "microseconds"))
    assert results.compare_kernels([row(3.0)], [older]) == []
