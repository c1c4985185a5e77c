"""The command `ccp-bench gpu`, on a machine without a GPU and on one with a pretended GPU."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import one_thread  # noqa: F401
from pretended_gpu import RATES, PretendedGpu
from typer.testing import CliRunner

from ccp_fast.bench.case import Case
from ccp_fast.bench.cases.gpu import gpu_cases
from ccp_fast.bench.command import app
from ccp_fast.bench.gpu import command, machine, runner
from ccp_fast.bench.results import GpuFindings, Row


@pytest.mark.skipif(torch.cuda.is_available(), reason="what a machine without a GPU is told")
def test_without_a_gpu_it_is_one_sentence() -> None:
    result = CliRunner().invoke(app, ["gpu"])
    assert result.exit_code == 2
    assert result.stderr.startswith("ccp-bench gpu: expected CUDA devices, got none: torch ")
    assert result.stderr.count("\n") == 1


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command on a machine with a pretended GPU."""
    facts = {"device": "Pretended", "compute_capability": "9.0", "driver": "1", "commit": None, "threads": None,
             "date": "2025-01-31"}  # fmt: skip
    monkeypatch.setattr(machine, "missing", lambda: None)
    monkeypatch.setattr(machine, "facts", lambda index: facts)
    monkeypatch.setattr(machine, "query", lambda index, fields: dict.fromkeys(fields))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(command, "Gpu", PretendedGpu)
    monkeypatch.setattr(command, "gpu_cases", lambda size, device: gpu_cases("toy", "cpu"))
    monkeypatch.setattr(command.ceilings, "measure", lambda gpu, where, shrink: RATES)


OPTIONS_OF_COMMAND = [
    "gpu",
    "--quick",
    "--only",
    "k-center,c2+batch+float32",
    "--seconds",
    "0",
    "--runs",
    "2",
]


@pytest.mark.usefixtures("pretended")
def test_the_command_measures_keeps_and_compares(tmp_path: Path) -> None:
    first = CliRunner().invoke(app, [*OPTIONS_OF_COMMAND, "--out", str(tmp_path)])
    assert first.exit_code == 0, first.output
    (written,) = tmp_path.iterdir()
    assert written.name == "gpu_pretended_2025-01-31.json"
    document = json.loads(written.read_text())
    assert document["format"] == 3
    assert len(document["rows"]) == 4
    assert document["failures"] == {} == document["left_out"]
    assert document["ceilings"]["bytes_per_second"] == 4e12
    assert "not installed (torch_cluster)" in first.output
    second = CliRunner().invoke(app, [*OPTIONS_OF_COMMAND, "--compare", str(written)])
    assert second.exit_code == 0, second.output
    assert "Change of ccp_fast" in second.output
    assert "Change of kernels" in second.output


@pytest.mark.usefixtures("pretended")
def test_a_device_that_is_not_there_is_one_sentence() -> None:
    result = CliRunner().invoke(app, ["gpu", "--device", "3"])
    assert result.exit_code == 2
    assert result.stderr == "--device: expected 0 to 0, got 3\n"


@pytest.mark.usefixtures("pretended")
def test_a_limit_leaves_out_the_rest(tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    result = CliRunner().invoke(app, [*OPTIONS_OF_COMMAND, "--limit", "0", "--out", str(out)])
    assert result.exit_code == 0
    document = json.loads(out.read_text())
    assert document["rows"] == []
    assert set(document["left_out"].values()) == {"--limit: 0 seconds were over"}


@pytest.mark.usefixtures("pretended")
def test_a_case_that_fails_is_told_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_once(case: Case, *rest: Any) -> Row:
        if case.setting == "sop":
            raise RuntimeError("an illegal access")
        if case.setting == "1e6":
            raise runner.LeftOut("no room")
        found = runner.measure(case, *rest)
        bad = GpuFindings([], [], "same bits", None, 100, 7)
        return found if case.setting == "batch" else replace(found, gpu=bad)

    monkeypatch.setattr(command, "measure", fail_once)
    out = tmp_path / "rows.json"
    result = CliRunner().invoke(app, [*OPTIONS_OF_COMMAND, "--out", str(out)])
    assert result.exit_code == 1
    document = json.loads(out.read_text())
    assert document["failures"] == {
        "k-center farthest_points sop float32": "RuntimeError: an illegal access",
        "k-center farthest_points sop-unseeded float32": "7 of 100 runs gave other bits than the first",
    }
    assert document["left_out"] == {"k-center farthest_points 1e6 float32": "no room"}
    assert [kept["setting"] for kept in document["rows"]] == ["sop-unseeded", "batch"]


@pytest.mark.usefixtures("pretended")
def test_results_that_are_off_fail_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def off(*arguments: Any) -> Row:
        return replace(runner.measure(*arguments), wrong=["ccp_fast: its value is off by 1"])

    monkeypatch.setattr(command, "measure", off)
    result = CliRunner().invoke(
        app, ["gpu", "--quick", "--only", "c2+batch+float32", "--seconds", "0", "--runs", "2"]
    )
    assert result.exit_code == 1
    assert "FAILED: losses c2 batch float32: ccp_fast: its value is off by 1" in result.output


@pytest.mark.usefixtures("pretended")
def test_a_device_that_gave_up_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(PretendedGpu):
        def wait(self) -> None:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def fail(*arguments: Any) -> Row:
        raise RuntimeError("an illegal access")

    monkeypatch.setattr(command, "Gpu", Broken)
    monkeypatch.setattr(command, "measure", fail)
    result = CliRunner().invoke(app, OPTIONS_OF_COMMAND)
    assert result.exit_code == 1
    assert "every case after it: the device gave up: CUDA error: an illegal memory access" in result.output
    assert "2/4" not in result.output
