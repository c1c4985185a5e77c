"""What a re-initialisation of CCP costs beside embedding its pool, and what remembering the pool costs in a step.

    python benchmarks/reinitialisation.py                  # SOP's size: 11,318 classes, b = 7, K = 4, 128-D
    python benchmarks/reinitialisation.py --classes 800 --pool 8

CPU time (of all threads) and wall time in milliseconds, medians. A network of no size shows the choice of proxies
alone; with ResNet-50's 25.6 million parameters, a copy of its weights is added, w_prev.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

import ccp_fast
from ccp_fast.bench import machine
from ccp_fast.bench.cases.projection import resnet50_shapes
from ccp_fast.bench.results import file_name


class Weights(nn.Module):
    """Parameters and nothing else."""

    def __init__(self, shapes: Iterable[tuple[int, ...]]) -> None:
        super().__init__()
        self.all = nn.ParameterList(nn.Parameter(torch.randn(shape)) for shape in shapes)


def timed(call: Callable[[], object], repeats: int) -> dict[str, float]:
    """Medians, after one call that is not counted."""
    call()
    wall, cpu = [], []
    for _ in range(repeats):
        begun = time.perf_counter(), time.process_time()
        call()
        wall.append(1e3 * (time.perf_counter() - begun[0]))
        cpu.append(1e3 * (time.process_time() - begun[1]))
    return {"cpu_ms": median(cpu), "wall_ms": median(wall)}


def algorithm(network: nn.Module, options: argparse.Namespace) -> ccp_fast.AlternatingProjections:
    sizes = {"num_classes": options.classes, "dim": options.dim, "proxies_per_class": options.proxies}
    loss = ccp_fast.losses.ContrastiveLoss(**sizes)
    ccp = ccp_fast.AlternatingProjections(network, loss, pool_size=options.pool, lam=2e-4)
    ccp.attach(torch.optim.Adam([*network.parameters(), *loss.parameters()]))
    return ccp


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--classes", type=int, default=11_318)
    parser.add_argument("--pool", type=int, default=7, help="embeddings a class")
    parser.add_argument("--proxies", type=int, default=4, help="a class")
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path, metavar="PATH", help="JSON; rows are added to those of the file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)

    memory = ccp_fast.ClassMemory(options.classes, options.pool, options.dim)
    labels = torch.arange(options.classes).repeat_interleave(options.pool)
    memory.store_(0.1 * torch.randn(len(labels), options.dim), labels)
    points, offsets = memory.pool()
    seeds = memory.slots[:, : options.proxies].clone()
    batch = labels[torch.randperm(options.classes)[:8] * options.pool].repeat_interleave(4)
    embeddings = torch.randn(len(batch), options.dim)
    small, large = algorithm(nn.Linear(1, 1), options), algorithm(Weights(resnet50_shapes()), options)

    def many_stores() -> None:
        for _ in range(100):
            memory.store_(embeddings, batch)

    cases: dict[str, Callable[[], object]] = {
        "100 batches of 8 x 4 remembered": many_stores,
        "pool from memory": memory.pool,
        "k-center alone": lambda: ccp_fast.functional.farthest_points(
            points, options.proxies, offsets=offsets, seeds=seeds, normalize="ball"
        ),
        "re-initialisation": lambda: small.project(lambda _: memory.pool()),
        "re-initialisation, ResNet-50": lambda: large.project(lambda _: memory.pool()),
    }
    facts, load, rows = machine.facts(options.threads), machine.Load.now(), []
    with load.watched():
        for name, call in cases.items():
            row: dict[str, Any] = {"case": name, **timed(call, options.repeats)}
            print(f"{name:34} {row['cpu_ms']:8.2f} ms CPU {row['wall_ms']:8.2f} ms", flush=True)
            rows.append(row)
    shape = {name: getattr(options, name) for name in ("classes", "pool", "proxies", "dim")}
    rows = [{**row, **shape, "load_at_start": load.at_start, "others": load.share, **facts} for row in rows]
    if options.out:
        is_folder = options.out.is_dir()
        out = options.out / file_name("reinitialisation", facts) if is_folder else options.out
        before = json.loads(out.read_text(encoding="utf-8"))["rows"] if out.exists() else []
        out.write_text(json.dumps({"format": 1, "rows": before + rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
