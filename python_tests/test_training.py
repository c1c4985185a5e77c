from __future__ import annotations

import json
import logging
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_training
import torch
from matplotlib.axes import Axes
from training_runs import QUIET, assert_same_results, check_page, tiny_data, without_times  # noqa: F401

pytest.importorskip("safetensors")

from ccp_fast.training import compare, datasets, trainer
from ccp_fast.training.augment import Augment, to_float
from ccp_fast.training.config import load_config, to_yaml, with_settings
from ccp_fast.training.data import TrainingData
from ccp_fast.training.errors import Diverged, UserError
from ccp_fast.training.interrupt import Interrupted
from ccp_fast.training.learner import Learner
from ccp_fast.training.metrics import read_rows
from ccp_fast.training.model import GlyphNet
from ccp_fast.training.paired import paired
from ccp_fast.training.published import settled
from ccp_fast.training.report import write_comparison_report, write_run_report
from ccp_fast.training.run_folder import RunFolder
from ccp_fast.training.schedule import rate_factor
from ccp_fast.training.settings import AugmentConfig, Config


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unbroken run with CCP; not to be changed."""
    path = tmp_path_factory.mktemp("runs") / "unbroken"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "glyphs", tiny_training.images)
        trainer.train(tiny_training.config(), path, QUIET)
    return path


# Settings


def test_the_last_setting_wins_and_a_snapshot_reads_back(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("steps: 50\nloss: {name: ms}\noptimizer: {lr: 1e-2}\n")
    config = load_config(file, ["steps=60", "batch.classes=8"], {"steps": 70, "seed": None})
    assert (config.steps, config.batch.classes, config.seed) == (70, 8, 0)
    assert config.loss.name == "multi_similarity"
    assert config.optimizer.lr == 0.01
    file.write_text(to_yaml(config))
    assert load_config(file) == config


def test_defaults_are_the_recipe_of_the_documentation() -> None:
    c = Config()
    assert (c.method, c.loss.name, c.batch.classes, c.batch.samples, c.optimizer.lr) == (
        "ccp",
        "c2",
        16,
        4,
        1e-3,
    )
    assert (c.ccp.proxies_per_class, c.ccp.pool_size, c.ccp.lam, c.ccp.warm_start) == (4, 8, 2e-4, 0.5)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["batch.clases=4"], "unknown key 'batch.clases'; did you mean 'batch.classes'?"),
        (["lr=1"], "unknown key 'lr'"),
        (["steps.a=1"], "steps: expected a valid integer, got {'a': 1}"),
        (["steps=1", "steps.a=1"], "unknown key 'steps.a': 'steps' is a value, not a section"),
        (["steps=many"], "steps: expected a valid integer, unable to parse string as an integer, got 'many'"),
        (["steps=0"], "steps: expected greater than or equal to 1, got 0"),
        (["steps"], "--set steps: expected key=value"),
        (["ccp.lam=nan"], "ccp.lam: expected a finite number, got 'nan'"),
        (["model.widths=[1"], "--set model.widths=[1: not valid YAML"),
        (["loss.name=triplett"], "did you mean 'triplet'?"),
        (["ccp.pool_size=2"], "ccp.pool_size: expected at least proxies_per_class = 4, got 2"),
    ],
)
def test_bad_settings_are_told_in_a_sentence(settings: list[str], sentence: str) -> None:
    with pytest.raises(UserError) as error:
        load_config(settings=settings)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"steps: [1", "not valid YAML"),
        (b"\xff\xfe\x00", "not text in UTF-8"),
        (b"- 1", "expected keys with values"),
        (b"stepps: 3", "unknown key 'stepps'; did you mean 'steps'?"),
        (b"!!python/object/apply:os.system ['true']", "not valid YAML"),
    ],
)
def test_bad_config_files_are_told_in_a_sentence(
    tmp_path: Path, content: bytes | None, sentence: str
) -> None:
    file = tmp_path / "a.yaml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError) as error:
        load_config(file)
    assert sentence in str(error.value)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


def test_unknown_loss_options_and_too_many_classes_are_told_before_a_folder_is_made(tmp_path: Path) -> None:
    for setting, sentence in [
        ("loss.options={neg_margn: 1}", "unknown key 'loss.options.neg_margn'; did you mean 'neg_margin'?"),
        ("loss.options={distance: l3}", "loss.options: distance: expected"),
        ("batch.classes=13", "batch.classes: expected at most 12"),
        ("loss.options.reduction=none", "loss.options.reduction: expected a sum or mean, got 'none'"),
        ("loss.options.num_classes=3", "unknown key 'loss.options.num_classes'"),
        ("loss.proxies_per_class=2", "loss.proxies_per_class: expected none with method 'ccp'"),
        (
            "loss={name: lifted_structure, options: {variant: pair}}",
            'loss.options: variant: expected "anchor"',
        ),
    ]:
        with pytest.raises(UserError, match="^" + sentence.replace("?", r"\?")):
            trainer.train(tiny_training.config(setting), tmp_path / "run", QUIET)
    assert not (tmp_path / "run").exists()


def test_plain_training_to_proxies() -> None:
    """Also of a loss between samples, in either anchoring."""
    for anchor in ("sample", "proxy"):
        settings = ("method=plain", "loss.proxies_per_class=3", f"loss.options.anchor={anchor}")
        learner = Learner(tiny_training.config(*settings), tiny_training.images("train"))
        before = learner.criterion.proxies.detach().clone()
        assert before.shape == (12, 3, 8)
        assert learner.train_step() > 0
        assert not torch.equal(learner.criterion.proxies, before)
        assert learner.criterion.options["anchor"] == anchor


# Batches


def test_a_batch_is_a_function_of_seed_and_step() -> None:
    images, samples = tiny_training.images("train"), [5, 3, 40, 41]
    sets = [TrainingData(images, tiny_training.config(f"seed={seed}"), GlyphNet.input) for seed in (0, 0, 1)]
    one, again, other = (s.batch(7, samples) for s in sets)
    sets[1].batch(3, samples)
    assert torch.equal(one.images, again.images)
    assert torch.equal(one.images, sets[1].batch(7, samples).images)
    assert not torch.equal(one.images, other.images)
    assert not torch.equal(one.images, sets[0].batch(8, samples).images)
    assert torch.equal(one.labels, images.labels[samples])
    part = sets[0].batch(7, samples, slice(1, None, 2))  # as one of two processes asks for
    assert torch.equal(part.images, one.images[1::2])
    assert torch.equal(part.labels, one.labels[1::2])


def test_augmentation_without_changes_is_the_image_and_with_them_is_not() -> None:
    pixels = tiny_training.images("train").images[:5]
    still = AugmentConfig(rotate=0, shear=0, scale=0, shift=0, erase=0)
    generator = torch.Generator().manual_seed(0)
    torch.testing.assert_close(Augment(still)(pixels, generator), to_float(pixels), atol=1e-5, rtol=0)
    erased = Augment(still.model_copy(update={"erase": 1.0}))(pixels, generator)
    holes = (erased == 0).flatten(1).sum(1)
    assert bool(((holes > 0.01 * 32 * 32) & (holes < 0.25 * 32 * 32)).all())
    moved = Augment(AugmentConfig(erase=0))(pixels, generator)
    assert 0 <= moved.min() <= moved.max() <= 1 + 1e-6
    assert (moved - to_float(pixels)).abs().mean() > 0.05


def test_shift_moves_by_its_fraction_of_the_side() -> None:
    pixels = torch.zeros(200, 1, 32, 32, dtype=torch.uint8)
    pixels[:, :, 16, 16] = 255
    moved = Augment(AugmentConfig(rotate=0, shear=0, scale=0, shift=0.25, erase=0))(
        pixels, torch.Generator().manual_seed(0)
    )
    mass = moved.squeeze(1)
    columns = (mass.sum(1) * torch.arange(32)).sum(1) / mass.sum((1, 2))
    assert 6 < (columns - 16).abs().max() <= 8 + 1e-3  # a quarter of 32 pixels


def test_schedules() -> None:
    assert [rate_factor("constant", s, 10) for s in (0, 9)] == [1, 1]
    assert [rate_factor("cosine", s, 10) for s in (0, 5)] == pytest.approx([1, 0.5])
    assert 0 < rate_factor("cosine", 9, 10) < 0.03
    assert [rate_factor("drop", s, 70) for s in (0, 29, 30, 69)] == [1, 1, 0.1, 0.1]


# Runs


def test_a_run_leaves_what_it_promises(finished: Path) -> None:
    config = tiny_training.config()
    assert load_config(finished / "config.yaml") == settled(config)
    assert json.loads((finished / "environment.json").read_text())["threads"] == 1
    rows = read_rows(finished / "metrics.jsonl")
    assert [row["step"] for row in rows] == [4, 8, 12, 16, 20, 24]
    assert [row["subproblem"] for row in rows] == [-1, 0, 1, 1, 2, 3]
    assert [row["proxy_spread"] is None for row in rows] == [True] + 5 * [False]
    subproblems = read_rows(finished / "subproblems.jsonl")
    assert [(row["index"], row["step"]) for row in subproblems] == [(0, 6), (1, 11), (2, 16), (3, 21)]
    assert list((finished / "tensorboard").iterdir())
    summary = RunFolder.open(finished).summary
    assert summary is not None
    best = max(rows, key=lambda row: row["val_map_at_r"])
    assert (summary["best_step"], summary["val"]["map_at_r"]) == (best["step"], best["val_map_at_r"])
    assert 0 < summary["test"]["map_at_r"] <= 1
    assert summary["test"]["num_queries"] == 60
    assert summary["peak_memory_bytes"] > 50e6  # torch alone
    assert sum(summary["seconds"]["shares"].values()) == pytest.approx(1)
    assert min(summary["seconds"]["shares"].values()) > 0


def test_training_learns(tmp_path: Path) -> None:
    settings = ["method=plain", "optimizer.lr=5e-3", "evaluation.every=80"]
    settings.append("augment={rotate: 0, shear: 0, scale: 0, shift: 0, erase: 0}")
    reached = [
        trainer.train(tiny_training.config(*settings, f"steps={steps}"), tmp_path / f"{steps}", QUIET)["test"]
        for steps in (1, 80)
    ]
    assert reached[1]["map_at_r"] > reached[0]["map_at_r"] + 0.1


def test_proxies_that_are_never_chosen_again_stay_the_first_ones() -> None:
    config = tiny_training.config("ccp.reinitialize=false", "ccp.lam=0", "optimizer.lr=1e-12")
    learner = Learner(config, tiny_training.images("train"))
    for _ in range(7):
        learner.train_step()
    assert learner.criterion.proxies is not None
    chosen = learner.criterion.proxies.detach().clone()
    for _ in range(12):
        learner.train_step()
    torch.testing.assert_close(learner.criterion.proxies.detach(), chosen)


def test_a_killed_run_goes_on_to_the_same_bits(finished: Path, tmp_path: Path) -> None:
    path = tmp_path / "killed"
    settings = [part for setting in tiny_training.SETTINGS for part in ("--set", setting)]
    command = [sys.executable, tiny_training.__file__, *settings, "--out", str(path), "--quiet"]
    # It stops for good at step 14, between two evaluations, where the signal finds it.
    process = subprocess.Popen(command, env={**os.environ, "TINY_TRAINING_HANGS_AT": "14"})
    try:
        deadline = time.monotonic() + 120
        while not (path / "hanging").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert RunFolder.open(path).summary is None
    trainer.resume(path, QUIET)
    assert_same_results(finished, path)


def test_ctrl_c_saves_and_says_how_to_go_on(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "stopped"
    step = Learner.train_step
    before = signal.getsignal(signal.SIGINT)  # of a background job it is "ignore"

    def stopping_step(learner: Learner) -> float:
        if learner.step == 9:
            signal.raise_signal(signal.SIGINT)
        return step(learner)

    monkeypatch.setattr(Learner, "train_step", stopping_step)
    with pytest.raises(Interrupted, match=f"saved at step 10; go on with: ccp-train --resume {path}"):
        trainer.train(tiny_training.config(), path, QUIET)
    monkeypatch.setattr(Learner, "train_step", step)
    assert signal.getsignal(signal.SIGINT) is before
    trainer.resume(path, QUIET)
    assert_same_results(finished, path)
    assert trainer.resume(path, QUIET) == RunFolder.open(path).summary


def test_a_damaged_checkpoint_costs_only_what_came_after_the_one_before(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "damaged"

    def crash(_: trainer.Trainer) -> trainer.Summary:
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "_finish", crash)
        with pytest.raises(RuntimeError, match="power cut"):
            trainer.train(tiny_training.config(), path, QUIET)
    newest = path / "checkpoints" / "step-00000024.safetensors"
    newest.write_bytes(newest.read_bytes()[:-100])
    with caplog.at_level(logging.WARNING):
        trainer.resume(path, QUIET)
    assert "step-00000024.safetensors cannot be used" in caplog.text
    assert_same_results(finished, path)


def test_without_a_readable_checkpoint_nothing_is_changed(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", tiny_training.config(), {})
    (run.path / "checkpoints" / "step-00000004.safetensors").write_bytes(b"cut")
    with pytest.raises(UserError, match=r"none of the 1 checkpoints in .* can be read"):
        trainer.resume(run.path, QUIET)
    assert (run.path / "checkpoints" / "step-00000004.safetensors").read_bytes() == b"cut"


def test_a_run_killed_before_its_first_checkpoint_starts_again(finished: Path, tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", tiny_training.config(), {})
    trainer.resume(run.path, QUIET)
    assert_same_results(finished, run.path)


# Comparisons


def run_here(config: Config, path: Path) -> None:
    trainer.resume(path, QUIET) if path.exists() else trainer.train(config, path, QUIET)


def test_a_comparison_keeps_finished_cells_and_resumes_others(tmp_path: Path) -> None:
    base = tiny_training.config("steps=8", "threads=1")
    experiment = compare.Experiment(tmp_path / "all", base, ["c1", "c2"], ["plain", "ccp"], [0, 1])
    started: list[str] = []

    def stopping(config: Config, path: Path) -> None:
        if len(started) == 3:
            RunFolder.create(path, config, {})  # killed right after its folder was made
            raise UserError("killed")
        started.append(path.name)
        run_here(config, path)

    with pytest.raises(UserError, match="killed"):
        experiment.run(stopping, 1, lambda _: None)
    times = {name: (experiment.path / "cells" / name / "summary.json").stat().st_mtime_ns for name in started}
    experiment.run(run_here, 1, lambda _: None)
    assert len(experiment.rows()) == 8
    for name, changed in times.items():
        assert (experiment.path / "cells" / name / "summary.json").stat().st_mtime_ns == changed
    experiment.write_tables()
    table = (experiment.path / "table.md").read_text()
    values = experiment.table()["c2"]["ccp"].values()
    assert f"{sum(values) / 2:.3f} ±" in table
    assert len((experiment.path / "results.csv").read_text().splitlines()) == 9
    gain = experiment.differences()["c2"]["ccp"]
    assert gain is not None
    plain = experiment.table()["c2"]["plain"].values()
    assert gain.difference == pytest.approx((sum(values) - sum(plain)) / 2)
    assert str(gain) in table
    page = write_comparison_report(experiment).read_text()
    assert f"{sum(values) / 2:.3f} ±" in page
    assert str(gain) in page
    check_page(page)

    other = compare.Experiment(tmp_path / "all", tiny_training.config("steps=9"), ["c1"], ["plain"], [0])
    with pytest.raises(UserError, match="was made with other settings"):
        other.run(run_here, 1, lambda _: None)


def test_a_cell_that_diverges_stops_no_other(tmp_path: Path) -> None:
    columns = ["plain", "ccp", "plain-time"]
    experiment = compare.Experiment(tmp_path, tiny_training.config("steps=8"), ["c1", "c2"], columns, [0])
    said: list[str] = []

    def one_diverges(config: Config, path: Path) -> None:
        if (config.loss.name, config.method) == ("c1", "ccp"):
            raise Diverged("c1_ccp_seed0: step 3: the loss is nan")
        run_here(config, path)

    experiment.run(one_diverges, 1, said.append)
    assert "c1_ccp_seed0: step 3: the loss is nan" in said
    assert [(row["loss"], row["column"]) for row in experiment.rows()] == [
        ("c1", "plain"), ("c2", "plain"), ("c2", "ccp"), ("c2", "plain-time"),
    ]  # fmt: skip
    assert re.search(r"\| C1 .* \| \d\.\d+ \(1 seed\) \| – \| – \|", experiment.markdown())
    check_page(write_comparison_report(experiment).read_text())


def test_a_run_that_diverges_says_so_and_keeps_its_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_training.config("optimizer.lr=1e30", "steps=12", "evaluation.every=1", "method=plain")
    with pytest.raises(
        Diverged, match=r"(step \d+: the loss is|embeddings that are not finite).*optimizer\.lr"
    ):
        trainer.train(config, tmp_path / "run", QUIET)
    step = Learner.train_step
    monkeypatch.setattr(Learner, "train_step", lambda self: step(self) if self.step < 5 else math.nan)
    with pytest.raises(Diverged, match="step 5: the loss is nan"):
        trainer.train(tiny_training.config("steps=8", "evaluation.every=2"), tmp_path / "late", QUIET)
    assert RunFolder.open(tmp_path / "late").last_saved() == 4
    ended = SimpleNamespace(returncode=compare.DIVERGED, stderr="step 5: the loss is nan")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: ended)
    with pytest.raises(Diverged, match="late: step 5: the loss is nan"):
        compare.run_in_a_process(config, tmp_path / "late")


def test_every_column_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = list(compare.COLUMNS)
    experiment = compare.Experiment(tmp_path, Config(), ["c2"], columns, [0])
    monkeypatch.setattr(experiment, "table", lambda _="": {"c2": {name: {0: 0.5} for name in columns}})
    drawn: list[float] = []
    plot = Axes.plot
    monkeypatch.setattr(Axes, "plot", lambda ax, x, *a, **k: drawn.append(x[0]) or plot(ax, x, *a, **k))
    write_comparison_report(experiment)
    assert set(range(len(columns))) <= set(drawn)


def test_differences_are_paired_by_seed() -> None:
    base, other = {0: 0.70, 1: 0.50, 2: 0.60, 7: 0.1}, {0: 0.71, 1: 0.53, 2: 0.62, 8: 0.9}
    found = paired(base, other)
    assert found is not None
    assert found.difference == pytest.approx(0.02)
    # Three pairs: standard error 0.01/√3, t = 2√3; two degrees of freedom, whose 97.5 % quantile is 4.3027.
    assert (found.low, found.high) == pytest.approx(
        (0.02 - 0.04302 / 3**0.5, 0.02 + 0.04302 / 3**0.5), rel=1e-3
    )
    assert found.p == pytest.approx(1 - 2 * 3**0.5 / (12 + 2) ** 0.5, rel=1e-6)  # p = 1 − t/√(t² + 2)
    assert str(found) == "+0.020 [-0.005, +0.045], p 0.074"
    assert paired({0: 1.0}, {0: 2.0}) is None
    assert paired({0: 1.0, 1: 2.0}, {0: 1.5, 1: 2.5}) == (0.5, 0.5, 0.5, 0.0)
    assert paired({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0}) == (0.0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize(
    ("device", "counted", "title"),
    [("cpu", "cpu", "CPU seconds of training"), ("cuda", "training", "Seconds of training")],
)
def test_equal_time_gives_plain_the_steps_that_fit_the_time_of_ccp(
    device: str, counted: str, title: str, tmp_path: Path
) -> None:
    columns, base = (
        ["plain", "ccp", "plain-time"],
        tiny_training.config("steps=8", f"compute.device={device}"),
    )
    experiment = compare.Experiment(tmp_path, base, ["c2"], columns, [0])

    def timed(config: Config, path: Path) -> None:
        """On a machine without a GPU: pretended to have taken so long on one."""
        run_here(with_settings(config, compute__device="cpu"), path)
        run = RunFolder.open(path)
        summary = run.summary
        assert summary is not None
        summary["seconds"] |= {"cpu": 1.0, "training": 1.0}
        summary["seconds"][counted] = 15.0 if config.method == "ccp" else 10.0
        run.write_json("summary.json", summary)

    experiment.run(timed, 1, lambda _: None)
    assert [row["steps"] for row in experiment.rows()] == [8, 8, 12]
    assert f"| {title} |" in experiment.markdown()
    assert re.search(r"C2 .*\| 10 \(1 seed\) \| 15 \(1 seed\) \| 10 \(1 seed\) \|", experiment.markdown())
    assert title in write_comparison_report(experiment).read_text()
    longer = tiny_training.config("steps=12", "method=plain")
    run_here(longer, tmp_path / "unbroken")
    prolonged, ccp = (experiment.folder(compare.Cell("c2", name, 0)) for name in ("plain-time", "ccp"))
    assert_same_results(tmp_path / "unbroken", prolonged)
    with pytest.raises(UserError, match="only a plain run at a constant rate"):
        RunFolder.prolong(tmp_path / "no", RunFolder.open(ccp), 20)
    with pytest.raises(UserError, match="'plain-time' needs 'ccp' beside it"):
        compare.Experiment(tmp_path, Config(), ["c2"], ["plain", "plain-time"], [0])


def test_the_columns_of_a_comparison_are_what_they_say(tmp_path: Path) -> None:
    columns = list(compare.COLUMNS)
    experiment = compare.Experiment(tmp_path, Config(), ["ms"], columns, [3])
    configs = {c.column: experiment.config(c) for c in experiment.cells(timed=False)}
    assert {c.seed for c in configs.values()} == {3}
    assert {c.steps for c in configs.values()} == {4000}
    assert configs["plain"].method == configs["plain-32x4"].method == "plain"
    assert (configs["proxies"].ccp.reinitialize, configs["proxies"].ccp.lam) == (False, 0)
    assert (configs["reinit"].ccp.reinitialize, configs["reinit"].ccp.lam) == (True, 0)
    assert (configs["ccp"].ccp.reinitialize, configs["ccp"].ccp.lam) == (True, 2e-4)
    large = configs["ccp-32x4"]
    assert (large.batch.classes, large.batch.samples, large.optimizer.schedule) == (32, 4, "cosine")
    for names, option in ((["ccq"], "--columns"), (["plain"], "--losses")):
        losses = ["c2"] if option == "--columns" else ["c3"]
        with pytest.raises(UserError, match=f"^{option}: expected some of .* did you mean"):
            compare.Experiment(tmp_path, Config(), losses, names, [0])


# Reports


def test_the_report_shows_curves_gallery_and_map(finished: Path) -> None:
    path = write_run_report(RunFolder.open(finished))
    text = path.read_text()
    page = check_page(text)
    assert page.tags.count("svg") == 5  # four curves and the map
    assert page.tags.count("image") == 10 * tiny_training.PER_CLASS  # all images of all test classes
    assert text.count('class="right"') + text.count('class="wrong"') == text.count('class="query"') * 5
    assert "✓" in text
    assert "✗" in text
    assert "test &lt;" in text  # class names are escaped
    assert "<0>" not in text
    summary = RunFolder.open(finished).summary
    assert summary is not None
    assert f"<b>{summary['test']['map_at_r']:.3f}</b>" in text


def test_an_unfinished_run_has_no_report(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", tiny_training.config(), {})
    with pytest.raises(UserError, match="is not finished: go on with ccp-train --resume"):
        write_run_report(run)
