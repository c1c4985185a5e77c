"""Retrieval metrics of large sets: time and peak memory of each implementation, in a process of its own.

    python benchmarks/evaluation_at_scale.py                                  # 60,000 images, as SOP's test set has
    python benchmarks/evaluation_at_scale.py --images 1000000 --queries 20000 # queries of their own in a gallery
    python benchmarks/evaluation_at_scale.py --images 1000000                 # a million among themselves
    python benchmarks/evaluation_at_scale.py --nmi                            # k-means, a cluster for each class

P@1, R-precision and MAP@R of random embeddings (128-D, 5.3 images a class, as SOP has). An implementation that passes
--limit-gb is stopped, and its row says so. Memory is what a process holds beyond the inputs. Where there are fewer
queries than images, "all_queries_s" is the time for as many queries as images, extrapolated: multiplied.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ccp_fast.bench import machine
from ccp_fast.bench.cases.evaluation import DIM, METRICS, make_inputs
from ccp_fast.bench.memory import Peak
from ccp_fast.bench.results import file_name
from ccp_fast.evaluation import normalized_mutual_information, retrieval

Values = dict[str, float]


class Task(NamedTuple):
    """Unit embeddings; without queries of their own the images are searched among themselves."""

    images: Tensor  # [N, D]
    labels: Tensor  # [N]
    queries: Tensor | None = None  # [Q, D]
    query_labels: Tensor | None = None


def make_task(images: int, queries: int) -> Task:
    classes = -(-(images + queries) * 3 // 16)
    x, labels = make_inputs(classes)
    if len(x) < images + queries:
        raise ValueError(f"--images: expected about a multiple of 16, got {images} and {queries} queries")
    x, labels = x[: images + queries].clone(), labels[: images + queries].clone()
    if not queries:
        return Task(x, labels)
    return Task(x[queries:], labels[queries:], x[:queries], labels[:queries])


def ours(backend: str) -> Callable[[Task], Values]:
    def run(task: Task) -> Values:
        gallery = () if task.queries is None else (task.images, task.labels)
        first = (task.images, task.labels) if task.queries is None else (task.queries, task.query_labels)
        return retrieval(*first, *gallery, metrics=METRICS, backend=backend)

    return run


def faiss_by_hand(task: Task) -> Values:
    """A flat index, as many neighbours as the largest class asks for, in blocks; ties as faiss has them."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatL2(task.images.shape[1])
    index.add(task.images.numpy())
    within = task.queries is None
    queries, labels = (task.images, task.labels) if within else (task.queries, task.query_labels)
    counts = torch.bincount(task.labels, minlength=int(labels.max()) + 1)
    most = int(counts.max())
    sums, counted, ranks = torch.zeros(3, dtype=torch.float64), 0, torch.arange(1, most + 1)
    for start in range(0, len(queries), 4096):
        block, of = queries[start : start + 4096], labels[start : start + 4096]
        found = torch.from_numpy(index.search(block.numpy(), most + int(within))[1])
        if within:  # the query itself, or else what comes last
            own = found == torch.arange(start, start + len(block))[:, None]
            own[~own.any(1), -1] = True
            found = found[~own].view(len(block), most)
        relevant = (counts[of] - int(within))[:, None]
        hits = (task.labels[found] == of[:, None]) & (ranks <= relevant)
        precision = hits.cumsum(1) / ranks * hits
        some = relevant[:, 0] > 0
        means = [
            hits[:, 0].double(),
            hits.sum(1) / relevant[:, 0].double(),
            precision.sum(1) / relevant[:, 0].double(),
        ]
        sums += torch.stack([mean[some].sum() for mean in means])
        counted += int(some.sum())
    return dict(zip(METRICS, (sums / counted).tolist(), strict=True))


def pytorch_metric_learning(k: str | None, matrix: bool) -> Callable[[Task], Values]:
    """k="max_bin_count" is what MAP@R needs; None: all neighbours. matrix: its own search, all distances at once."""

    def run(task: Task) -> Values:
        from pytorch_metric_learning.distances import LpDistance
        from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
        from pytorch_metric_learning.utils.inference import CustomKNN

        names = ("precision_at_1", "r_precision", "mean_average_precision_at_r")
        calculator = AccuracyCalculator(
            include=names,
            k=k,
            device=torch.device("cpu"),
            knn_func=CustomKNN(LpDistance()) if matrix else None,
            kmeans_func=lambda *_: None,
        )
        if task.queries is None:
            values = calculator.get_accuracy(task.images, task.labels)
        else:
            values = calculator.get_accuracy(task.queries, task.query_labels, task.images, task.labels)
        return {ours: values[theirs] for ours, theirs in zip(METRICS, names, strict=True)}

    return run


def nmi(kmeans: str) -> Callable[[Task], Values]:
    return lambda task: {"nmi": normalized_mutual_information(task.images, task.labels, kmeans=kmeans)}


RETRIEVAL: dict[str, Callable[[Task], Values]] = {
    "ccp_fast": ours("ccp_fast"),
    "ccp_fast, backend=faiss": ours("faiss"),
    "faiss": faiss_by_hand,
    "pytorch-metric-learning, faiss": pytorch_metric_learning("max_bin_count", matrix=False),
    "pytorch-metric-learning, CustomKNN": pytorch_metric_learning("max_bin_count", matrix=True),
    "pytorch-metric-learning, k=None": pytorch_metric_learning(None, matrix=False),
}
NMI = {f"nmi, {name}": nmi(name) for name in ("scikit-learn", "faiss")}


def child(name: str, images: int, queries: int, threads: int) -> dict[str, Any]:
    """One implementation in this process."""
    torch.set_num_threads(threads)
    run = {**RETRIEVAL, **NMI}[name]
    run(make_task(480, min(queries, 96)))  # libraries, threads and kernels are in place then
    task = make_task(images, queries)
    load = machine.Load.now()
    with Peak() as peak, load.watched():
        wall, cpu = time.perf_counter(), time.process_time()
        values = run(task)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {
        **{name: values[name] for name in values if name != "num_queries"},
        "seconds": wall,
        "cpu_seconds": cpu,
        "extra_bytes": peak.extra_bytes,
        "load_at_start": load.at_start,
        "others": load.share,
        **(
            {"all_queries_s": wall * images / queries, "all_queries_cpu_s": cpu * images / queries}
            if queries
            else {}
        ),
    }


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """A child with a watched size."""
    sizes = ["--images", options.images, "--queries", options.queries, "--threads", options.threads]
    command = [sys.executable, __file__, "--child", name, *map(str, sizes)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    began = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        problem = None
        while process.poll() is None and problem is None:
            time.sleep(0.02)
            if resident_bytes(process.pid) > options.limit_gb * 1e9:
                problem = f"stopped above {options.limit_gb:g} GB"
            elif time.perf_counter() - began > options.limit_s:
                problem = f"stopped after {options.limit_s:g} s"
        if problem:
            process.kill()
            return {"failed": problem}
        output, errors = process.communicate()
    if process.returncode:
        return {"failed": (errors.strip().splitlines() or [f"exit status {process.returncode}"])[-1]}
    return json.loads(output.splitlines()[-1])


def resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0  # it has just ended


def shown(row: dict[str, Any]) -> str:
    if "failed" in row:
        return f"{row['implementation']:38} {row['failed']}"
    values = "  ".join(f"{name} {row[name]:.6f}" for name in (*METRICS, "nmi") if name in row)
    slice_of = f"  (all: {row['all_queries_s']:,.0f} s extrapolated)" if "all_queries_s" in row else ""
    return (
        f"{row['implementation']:38} {row['seconds']:9.1f} s  {row['cpu_seconds']:9.1f} s CPU "
        f"{row['extra_bytes'] / 1e6:9,.0f} MB  {values}{slice_of}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=60_000)
    parser.add_argument("--queries", type=int, default=0, help="of their own; 0: the images among themselves")
    parser.add_argument("--nmi", action="store_true", help="k-means and NMI instead of the ranking metrics")
    parser.add_argument(
        "--only", default="", metavar="NAMES", help=f"of {'; '.join([*RETRIEVAL, *NMI])}; joined by ;"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--limit-gb", type=float, default=16.0)
    parser.add_argument("--limit-s", type=float, default=3600.0)
    parser.add_argument("--out", type=Path, metavar="PATH", help="JSON; rows are added to those of the file")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(options.child, options.images, options.queries, options.threads)))
        return 0

    names = (
        [name.strip() for name in options.only.split(";")]
        if options.only
        else list(NMI if options.nmi else RETRIEVAL)
    )
    unknown = [name for name in names if name not in {**RETRIEVAL, **NMI}]
    if unknown:
        parser.error(f"--only: expected some of {'; '.join([*RETRIEVAL, *NMI])}, got {'; '.join(unknown)}")
    facts = machine.facts(options.threads)
    out = options.out and (
        options.out / file_name("evaluation", facts) if options.out.is_dir() else options.out
    )
    rows = json.loads(out.read_text())["rows"] if out and out.exists() else []
    failed = False
    for name in names:
        row = {"implementation": name, "images": options.images, "queries": options.queries, "dim": DIM}
        row |= measure(name, options)
        failed |= "failed" in row
        print(shown(row), flush=True)
        rows.append({**row, **facts})
        if out:
            out.write_text(json.dumps({"format": 1, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
