"""`ccp-train plan`: what a training step with proxies sharded over many GPUs takes, before anything is rented."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from ccp_fast.distributed.planner import Plan, Setup, plan_step
from ccp_fast.ops.similarity_loss import LOSS_NAMES

_UNITS = ("B", "KB", "MB", "GB", "TB", "PB")


def plan(
    classes: Annotated[str, typer.Option(help="Number of classes, such as 10_000_000.")],
    proxies: Annotated[int, typer.Option(help="Proxies per class.")] = 4,
    dim: Annotated[int, typer.Option(help="Components of an embedding.")] = 512,
    gpus: Annotated[int, typer.Option(help="Number of GPUs, one process each.")] = 8,
    batch: Annotated[int, typer.Option(help="Samples per GPU.")] = 128,
    loss: Annotated[str, typer.Option(help=f"Loss: {', '.join(LOSS_NAMES)}.")] = "proxy_nca",
    anchor: Annotated[str, typer.Option(help='Rows of the loss: "sample" or "proxy".')] = "sample",
    sample_rate: Annotated[float, typer.Option(help="Share of the classes that take part in a step.")] = 1.0,
    optimizer: Annotated[str, typer.Option(help="Optimizer: sgd, momentum or adam.")] = "adam",
    network: Annotated[str, typer.Option(help="What the network is wrapped in: ddp or fsdp.")] = "ddp",
    parameters: Annotated[str, typer.Option(help="Parameters of the network.")] = "25_600_000",
    activations_mb: Annotated[
        float, typer.Option(help="Activations of one sample that are kept for backward, in MB.")
    ] = 90.0,
    embedding_bytes: Annotated[
        int, typer.Option(help="Bytes per number of an embedding: 4 for float32, 2 for bfloat16.")
    ] = 2,
    proxy_bytes: Annotated[
        int, typer.Option(help="Bytes per number of a proxy: 4 for float32, 2 for bfloat16.")
    ] = 4,
    memory_gb: Annotated[float, typer.Option(help="Memory of a GPU, in GB.")] = 80.0,
    gigabits: Annotated[float, typer.Option(help="Bandwidth of each GPU's network, in Gbit/s.")] = 400.0,
    latency_us: Annotated[
        float, typer.Option(help="Latency of a message between two GPUs, in microseconds.")
    ] = 5.0,
) -> None:
    """Plan a step over many GPUs. Prints memory of a GPU by part, bytes and time of every message, and the limit."""
    try:
        setup = Setup(
            classes=_count("--classes", classes),
            proxies=proxies,
            dim=dim,
            ranks=gpus,
            batch=batch,
            loss=loss,
            proxy_rows=anchor == "proxy",
            sample_rate=sample_rate,
            optimizer=optimizer,  # type: ignore[arg-type]
            network=network,  # type: ignore[arg-type]
            parameters=_count("--parameters", parameters),
            activations=int(activations_mb * 1e6),
            embedding_bytes=embedding_bytes,
            proxy_bytes=proxy_bytes,
            memory=int(memory_gb * 1e9),
            bandwidth=gigabits * 1e9 / 8,
            latency=latency_us * 1e-6,
        )
        if anchor not in ("sample", "proxy"):
            raise ValueError(f'anchor: expected "sample" or "proxy", got {anchor!r}')
        show(setup, plan_step(setup), Console())
    except ValueError as error:
        typer.echo(f"plan: {error}", err=True)
        raise typer.Exit(2) from None


def show(setup: Setup, result: Plan, console: Console) -> None:
    """Two tables, and what follows from them."""
    memory = Table(title=f"memory of a GPU, {setup.own_classes:,} classes each", title_justify="left")
    memory.add_column("part")
    memory.add_column("size", justify="right")
    for part in result.memory:
        memory.add_row(part.name, size(part.bytes))
    memory.add_section()
    memory.add_row("together", size(result.total))
    memory.add_row("there is", size(setup.memory))
    console.print(memory)
    if result.messages:
        messages = Table(title="messages of a step", title_justify="left")
        for name in ("message", "kind"):
            messages.add_column(name)
        for name in ("size", "time"):
            messages.add_column(name, justify="right")
        for message in result.messages:
            messages.add_row(
                message.name, message.kind, size(message.bytes), f"{1e3 * message.seconds:.3f} ms"
            )
        messages.add_section()
        messages.add_row("together", "", "", f"{1e3 * sum(m.seconds for m in result.messages):.3f} ms")
        console.print(messages)
    console.print(f"proxies: at least {1e3 * result.proxy_seconds:.2f} ms of products, reading and writing")
    fits = "fits" if result.total <= setup.memory else "does not fit"
    console.print(f"{fits}; most classes on {setup.ranks} GPUs: {result.most_classes:,}")
    if result.fewest_ranks:
        console.print(f"fewest GPUs for {setup.classes:,} classes: {result.fewest_ranks:,}")
    else:
        less = replace(setup, activations=0)
        cause = "activations" if plan_step(less).fewest_ranks else "what every GPU has"
        console.print(f"no number of GPUs is enough for {setup.classes:,} classes: {cause} fill the memory")


def size(count: float) -> str:
    """1234567 -> 1.23 MB; units are powers of 1000."""
    power = 0
    while count >= 999.5 and power < len(_UNITS) - 1:
        count, power = count / 1000, power + 1
    return f"{count:.3g} {_UNITS[power]}"


def _count(option: str, text: str) -> int:
    try:
        return int(float(text)) if "e" in text else int(text)
    except ValueError:
        raise ValueError(
            f"{option}: expected a whole number such as 10_000_000 or 1e7, got {text!r}"
        ) from None
