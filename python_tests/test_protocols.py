"""Protocols: which classes a network sees, several networks by one command, and what is reported of them."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import image_trees
import pytest
import tiny_training
import torch
from helpers import assert_same_state
from training_runs import QUIET, check_page, tiny_data, without_times  # noqa: F401

pytest.importorskip("safetensors")

from torch.nn.functional import normalize as unit
from typer.testing import CliRunner

from ccp_fast.cli.train_command import app
from ccp_fast.data import ImageSet
from ccp_fast.evaluation import retrieval
from ccp_fast.training import compare, export, load_model, measure, protocols, trainer
from ccp_fast.training.config import to_yaml, with_settings
from ccp_fast.training.display import Display
from ccp_fast.training.errors import UserError
from ccp_fast.training.export import EmbeddingModel
from ccp_fast.training.folds import splits_of
from ccp_fast.training.interrupt import Interrupted
from ccp_fast.training.learner import Learner
from ccp_fast.training.metrics import read_rows
from ccp_fast.training.monitor import Monitor
from ccp_fast.training.report import run_report, write_comparison_report, write_run_report, write_runs_report
from ccp_fast.training.run_folder import RunFolder

REALITY = ["protocol.name=reality-check", "protocol.networks=3", "steps=8"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over three folds; not to be changed."""
    path = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ccp_fast.training.datasets.glyphs", tiny_training.images)
        protocols.train(tiny_training.config(*REALITY), path, QUIET)
    return path


def summary_of(path: Path) -> dict[str, Any]:
    summary = RunFolder.open(path).summary
    assert summary is not None
    return summary


@pytest.mark.parametrize("networks", [2, 3, 5, 6])
def test_folds_hold_out_every_training_class_once(networks: int) -> None:
    held: list[str] = []
    every = tiny_training.images("train").class_names
    for network in range(networks):
        config = tiny_training.config(
            "protocol.name=reality-check", f"protocol.networks={networks}", f"protocol.network={network}"
        )
        splits = splits_of(config)
        kept, out = splits.train.class_names, splits.val.query.class_names
        assert sorted(kept + out) == sorted(every)
        assert len(out) in (12 // networks, -(-12 // networks))
        assert splits.train.labels.unique().tolist() == list(range(len(kept)))
        held += out
    assert held == list(every)


def test_what_is_held_out_else() -> None:
    own = splits_of(tiny_training.config())
    assert own.val.query.class_names == tiny_training.images("val").class_names
    conventional = splits_of(tiny_training.config("protocol.name=conventional"))
    assert conventional.train.class_names == tiny_training.images("train").class_names
    assert conventional.val is None


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["protocol.networks=1"], "protocol.networks: expected at least 2 for reality-check, got 1"),
        (
            ["protocol.networks=7"],
            "protocol.networks: expected at most half as many as the 12 classes, got 7",
        ),
        (["protocol.networks=3", "batch.classes=9"], "batch.classes: expected at most 8, .*, got 9"),
        (["protocol.network=4"], "protocol.network: expected less than 4, got 4"),
    ],
)
def test_what_cannot_be_is_told_before_a_folder_is_made(
    settings: list[str], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=f"^{sentence}"):
        protocols.train(
            tiny_training.config("protocol.name=reality-check", *settings), tmp_path / "run", QUIET
        )
    assert list(tmp_path.iterdir()) == []


def test_separated_and_concatenated_are_what_they_are_called(finished: Path) -> None:
    summary, test = summary_of(finished), tiny_training.images("test")
    each = []
    for number, folder in enumerate(RunFolder.open(finished).networks()):
        config = RunFolder.open(folder).config
        assert (config.seed, config.protocol.network) == (number, number)
        learner = Learner(config, splits_of(config).train)
        best = summary_of(folder)["best_step"]
        learner.load_weights(RunFolder.open(folder).at(best).state["learner"])
        each.append(learner.embed(test))
    values = [
        retrieval(vectors, test.labels, metrics=("map_at_r",), normalize="ball")["map_at_r"]
        for vectors in each
    ]
    assert [one["map_at_r"] for one in summary["test_of_each"]] == values
    assert summary["separated"]["map_at_r"] == pytest.approx(sum(values) / 3)
    inside = [v / v.norm(dim=1, keepdim=True).clamp(min=1) for v in each]
    together = retrieval(torch.cat(inside, 1), test.labels, metrics=("map_at_r",), normalize=None)
    assert summary["test"]["map_at_r"] == pytest.approx(together["map_at_r"])
    assert load_model(finished).embed(test).shape == (60, 3 * 8)


def test_the_end_is_computed_where_training_was_and_embeds_once(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices: list[str] = []

    def load(path: Path, device: str = "cpu") -> EmbeddingModel:
        devices.append(device)  # there is no GPU here
        return load_model(path)

    def copied(path: Path) -> RunFolder:
        """With the settings of a run on a GPU."""
        shutil.copytree(path, tmp_path / path.name)
        run = RunFolder(
            tmp_path / path.name, with_settings(RunFolder.open(path).config, compute__device="cuda:1")
        )
        (run.path / "config.yaml").write_text(to_yaml(run.config))
        return run

    monkeypatch.setattr(protocols, "load_model", load)
    monkeypatch.setattr(run_report, "load_model", load)
    embeddings: list[int] = []
    real = export.plain_batches

    def batches(images: ImageSet, *rest: Any) -> Any:
        embeddings.append(len(images))
        return real(images, *rest)

    monkeypatch.setattr(export, "plain_batches", batches)
    whole = copied(finished)
    expected = summary_of(whole.path)
    (whole.path / "summary.json").unlink()
    monkeypatch.setattr(protocols, "train_or_resume", lambda _, folder, __: summary_of(folder))
    assert without_times(protocols.resume(whole.path, QUIET)) == without_times(expected)
    assert devices == ["cuda:1"] * 3
    assert embeddings == [60] * 3  # each network once, for its own numbers and for those of all together
    config = tiny_training.config("steps=4", "method=plain")
    protocols.train(config, tmp_path / "trained" / "single", QUIET)
    write_run_report(copied(tmp_path / "trained" / "single"))
    assert devices == ["cuda:1"] * 4


def test_test_classes_are_not_looked_at_before_all_are_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[int] = []
    names = tiny_training.images("test").class_names
    real = measure.retrieval

    def retrieval_seen(query: torch.Tensor, labels: torch.Tensor, *rest: Any, **options: Any) -> Any:
        looked.append(len(labels))
        return real(query, labels, *rest, **options)

    monkeypatch.setattr(measure, "retrieval", retrieval_seen)
    path = tmp_path / "whole"
    protocols.train(tiny_training.config(*REALITY), path, QUIET)
    images_of_test = len(names) * tiny_training.PER_CLASS
    assert looked[-4:] == [images_of_test] * 4  # each network and all together
    assert images_of_test not in looked[:-4]
    assert all(summary_of(folder)["test"] is None for folder in RunFolder.open(path).networks())


def test_it_goes_on_where_it_was_stopped(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "whole"
    step, steps = Learner.train_step, [0]

    def stopping_step(learner: Learner) -> float:
        steps[0] += 1
        if steps[0] == 14:  # step 6 of the second network
            import signal

            signal.raise_signal(signal.SIGINT)
        return step(learner)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "train_step", stopping_step)
        with pytest.raises(Interrupted, match=f"go on with: ccp-train --resume {path}$"):
            protocols.train(tiny_training.config(*REALITY), path, QUIET)
    first = path / "network-0" / "summary.json"
    written = first.stat().st_mtime_ns
    assert RunFolder.open(path / "network-1").summary is None
    assert not (path / "network-2").exists()
    protocols.resume(path, QUIET)
    assert first.stat().st_mtime_ns == written
    assert without_times(summary_of(path)) == without_times(summary_of(finished))
    assert protocols.resume(path, QUIET) == summary_of(path)


def test_networks_that_differ_in_their_seed_alone(tmp_path: Path) -> None:
    summary = protocols.train(
        tiny_training.config("protocol.networks=2", "steps=4", "method=plain", "seed=3"),
        tmp_path / "run",
        QUIET,
    )
    configs = [RunFolder.open(folder).config for folder in RunFolder.open(tmp_path / "run").networks()]
    assert [c.seed for c in configs] == [6, 7]
    assert summary["steps"] == 8
    vectors = load_model(tmp_path / "run").embed(tiny_training.images("test"))
    assert not torch.allclose(vectors[:, :8], vectors[:, 8:])


def test_conventional_reports_the_last_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter(range(100, 0, -1))  # falling: another protocol would take the first

    def measured(*_: Any) -> dict[str, float]:
        return dict.fromkeys(("map_at_r", "r_precision", "precision_at_1", "nmi"), next(values) / 100)

    monkeypatch.setattr(trainer, "measure", measured)
    for name, step in (("conventional", 12), ("held-out", 4)):
        config = tiny_training.config(f"protocol.name={name}", "steps=12")
        summary = protocols.train(config, tmp_path / name, QUIET)
        assert summary["best_step"] == step
        assert (summary["val"]["map_at_r"] is None) == (name == "conventional")
    page = write_run_report(RunFolder.open(tmp_path / "conventional")).read_text()
    assert "Reported is the last step" in page
    assert "validation classes.</p>" not in page


def other_test_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of those that a run without this was reported on: their pictures upside down, in other classes."""

    def images(split: str) -> ImageSet:
        found = tiny_training.images(split)
        if split != "test":
            return found
        order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0))
        return replace(found, images=found.images.flip(2), labels=found.labels[order])

    monkeypatch.setattr("ccp_fast.training.datasets.glyphs", images)


@pytest.mark.parametrize("settings", [["ccp.project_every=null", "ccp.patience=1"], ["ccp.reload_best=true"]])
def test_nothing_of_the_test_classes_enters_a_conventional_run(
    settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_training.config("protocol.name=conventional", "steps=32", *settings)
    looked: list[int] = []
    real = measure.retrieval

    def retrieval_seen(query: torch.Tensor, *rest: Any, **options: Any) -> Any:
        looked.append(len(query))
        return real(query, *rest, **options)

    monkeypatch.setattr(measure, "retrieval", retrieval_seen)
    protocols.train(config, tmp_path / "one", QUIET)
    assert looked == [36] * 8 + [60]  # six training classes at a time; the test classes once, at the end
    other_test_classes(monkeypatch)
    protocols.train(config, tmp_path / "other", QUIET)

    rows = [read_rows(tmp_path / name / "metrics.jsonl") for name in ("one", "other")]
    assert without_times(rows[0]) == without_times(rows[1])
    assert all(row["val_map_at_r"] is None and row["train_map_at_r"] is not None for row in rows[0])
    states = [RunFolder.open(tmp_path / name).at(32).state["learner"] for name in ("one", "other")]
    assert len(states[0]["method"]["history"]) >= 3  # the last two begun by what was measured
    assert_same_state(*states)
    numbers = [summary_of(tmp_path / name) for name in ("one", "other")]
    assert numbers[0]["best_step"] == numbers[1]["best_step"] == 32
    assert numbers[0]["test"]["map_at_r"] != numbers[1]["test"]["map_at_r"]


def test_what_is_monitored_without_classes_held_out_is_a_sample_of_those_trained_on() -> None:
    config = tiny_training.config("protocol.name=conventional")
    splits = splits_of(config)
    assert list(map(len, (splits.train, Monitor(config, splits).seen.query))) == [72, 36]
    seen = Monitor(config, splits).seen.query.class_names
    assert set(seen) < set(splits.train.class_names)
    assert seen != splits.train.class_names[:6]  # neighbours in a list are often of a kind
    backwards = splits._replace(train=splits.train.of_classes(range(11, -1, -1)))
    assert set(Monitor(config, backwards).seen.query.class_names) == set(seen)
    alone = torch.cat([(splits.train.labels == c).nonzero()[:1].squeeze(1) for c in range(12)])
    few = splits._replace(train=splits.train.of_images(torch.cat([alone, torch.tensor([1])]).sort().values))
    assert Monitor(config, few).seen.num_classes == 1  # in the others nothing could be found


def test_pages_over_conventional_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_training.config("protocol.name=conventional", "steps=4", "threads=1", "method=plain")
    experiment = compare.Experiment(tmp_path / "compared", base, ["c2"], ["plain"], [0, 1])
    experiment.run(lambda config, path: protocols.train(config, path, QUIET), 1, lambda _: None)
    assert "over the seeds 0, 1, at the last step;" in experiment.markdown()
    page = write_comparison_report(experiment).read_text()
    check_page(page)
    assert "at the last step; mean" in page
    assert "MAP@R on some of the training classes" in page
    networks = with_settings(base, protocol__networks=2)
    step = Learner.train_step
    with monkeypatch.context() as patch:
        patch.setattr(Learner, "train_step", lambda one: step(one) if one.step < 3 else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            protocols.train(with_settings(networks, evaluation__every=2), tmp_path / "half", QUIET)
    summary = protocols.train(networks, tmp_path / "whole", QUIET)
    assert summary["val"]["map_at_r"] is None
    check_page(write_run_report(RunFolder.open(tmp_path / "whole")).read_text())
    paths = [tmp_path / "half" / "network-0", tmp_path / "whole"]
    page = write_runs_report(paths, tmp_path / "a.html").read_text()
    assert "<td>2 of 4</td><td>2</td><td>–</td>" in page
    result = CliRunner().invoke(app, ["evaluate", str(tmp_path / "whole" / "network-0"), "--split", "val"])
    assert result.exit_code == 2
    assert result.stderr == (
        "--split: expected train or test: under conventional no class was held out, got val\n"
    )
    again = CliRunner().invoke(app, ["--resume", str(tmp_path / "whole" / "network-0")])
    assert again.stdout.startswith("trained  (step 4, ")


def test_the_screen_shows_what_there_is_of_a_conventional_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_training.config("protocol.name=conventional", "steps=4", "method=plain")
    protocols.train(config, tmp_path / "run", Display())
    line = capsys.readouterr().out.splitlines()[-1].split()
    assert [line[0], *line[-5:-2]] == ["4", "-", "-", "-"]


def test_a_comparison_under_a_protocol(tmp_path: Path) -> None:
    base = tiny_training.config(*REALITY, "steps=4", "threads=1")
    experiment = compare.Experiment(tmp_path, base, ["c2"], ["plain", "ccp"], [0, 1])
    experiment.run(lambda config, path: protocols.train(config, path, QUIET), 1, lambda _: None)
    assert [row["test_map_at_r"] for row in experiment.rows()] == [
        summary_of(experiment.folder(cell))["test"]["map_at_r"] for cell in experiment.cells(timed=False)
    ]
    experiment.write_tables()
    page = write_comparison_report(experiment).read_text()
    check_page(page)
    assert page.count("full CCP</text>") == 2  # at the dots and in the legend of the curves


def test_the_report_of_several_networks(finished: Path, tmp_path: Path) -> None:
    page = write_run_report(RunFolder.open(finished)).read_text()
    check_page(page)
    summary = summary_of(finished)
    each = [one["map_at_r"] for one in summary["test_of_each"]]
    for value in (summary["separated"]["map_at_r"], summary["test"]["map_at_r"], *each):
        assert re.search(rf"<td( class=.best.)?>{value:.4f}</td>", page)
    assert "3 networks, reality-check: each was taken at the step that was best on its\nfold" in page
    assert page.count("network-") >= 3
    beside = write_runs_report([finished, finished / "network-1"], tmp_path / "a.html").read_text()
    check_page(beside)
    assert f"{summary['test']['map_at_r']:.4f}" in beside
    with pytest.raises(UserError, match="is one of several networks"):
        write_run_report(RunFolder.open(finished / "network-0"))


def test_all_networks_are_evaluated_together_on_classes_that_none_was_trained_on(finished: Path) -> None:
    result = CliRunner().invoke(app, ["evaluate", str(finished)])
    assert f"glyphs, test: MAP@R {summary_of(finished)['test']['map_at_r']:.4f}" in result.stdout
    result = CliRunner().invoke(app, ["evaluate", str(finished), "--split", "val"])
    assert result.exit_code == 2
    assert "--split: expected test: the networks have other training classes, got val" in result.stderr
    one = CliRunner().invoke(app, ["evaluate", str(finished / "network-2"), "--split", "val"])
    assert f"MAP@R {summary_of(finished / 'network-2')['val']['map_at_r']:.4f}" in one.stdout


def test_a_model_of_one_network_gives_vectors_as_they_are_compared(finished: Path) -> None:
    images = tiny_training.images("test")
    for path in (finished / "network-1", finished / "network-1" / "best.safetensors"):
        model = load_model(path)
        vectors = model.embed(images)
        assert vectors.shape == (60, 8)
        assert vectors.norm(dim=1).max() <= 1 + 1e-6  # contrastive: within the unit ball
        assert not model.training
        torch.testing.assert_close(model(model.input.fit(images.images / 255)), vectors)


def test_a_loss_on_the_sphere_gives_unit_vectors(tmp_path: Path) -> None:
    protocols.train(tiny_training.config("loss.name=c1", "steps=4", "method=plain"), tmp_path / "run", QUIET)
    vectors = load_model(tmp_path / "run").embed(tiny_training.images("test"))
    torch.testing.assert_close(vectors, unit(vectors))


def test_an_unfinished_run_gives_its_best_so_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Learner.train_step
    with monkeypatch.context() as patch:
        patch.setattr(Learner, "train_step", lambda one: step(one) if one.step < 14 else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            protocols.train(tiny_training.config("optimizer.ema_decay=0.5"), tmp_path / "run", QUIET)
    run = RunFolder.open(tmp_path / "run")
    latest = run.latest()
    assert latest is not None
    assert latest.best_step is not None
    learner = Learner(run.config, tiny_training.images("train"))
    learner.load_weights(run.at(latest.best_step).state["learner"])
    model = load_model(run.path)
    for name, value in learner.network.state_dict().items():
        assert torch.equal(model.networks[0].state_dict()[name], value)


@pytest.mark.slow
def test_a_pretrained_kind_of_network_on_image_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a practitioner starts it, by the command, stopped and gone on with."""
    root = image_trees.sop(tmp_path / "sop", classes=16, samples=4)
    settings = ["threads=1", "steps=4", "evaluation.every=2", "batch.classes=2", "batch.samples=2"]
    settings += ["ccp.proxies_per_class=2", "ccp.pool_size=4", "ccp.project_every=2", "data.counts=any"]
    settings += [
        "model.name=efficientnet-lite0",
        "model.weights=random",
        "model.image_size=32",
        "model.dim=8",
    ]
    settings += [
        "model.frozen_norms=true",
        "compute.precision=bf16",
        "optimizer.clip_norm=10",
        "data.workers=0",
    ]
    settings += ["protocol.name=reality-check", "protocol.networks=2", "evaluation.nmi=false"]
    given = [part for setting in settings for part in ("--set", setting)]
    command = ["--data", "sop", "--data-root", str(root), *given, "--resume", "auto", "--out"]

    def run(name: str) -> Any:
        return CliRunner().invoke(app, [*command, str(tmp_path / name)])

    step = Learner.train_step
    with monkeypatch.context() as patch:
        patch.setattr(Learner, "train_step", lambda one: step(one) if one.step < 3 else 1 / 0)
        assert isinstance(run("broken").exception, ZeroDivisionError)
    for name in ("broken", "unbroken"):
        result = run(name)
        assert result.exit_code == 0, result.output
        assert re.search(r"unseen classes, 2 networks concatenated: MAP@R [01]\.\d{4}", result.stdout)
    summaries = [without_times(summary_of(tmp_path / name)) for name in ("broken", "unbroken")]
    assert summaries[0] == summaries[1]
    page = (tmp_path / "broken" / "report.html").read_text()
    check_page(page)
    assert "R@1000" in page


def test_what_is_no_model_is_told(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"cut")
    run = RunFolder.create(tmp_path / "run", tiny_training.config(), {})
    for path, sentence in [
        (tmp_path / "other.safetensors", "expected a network that ccp-train exported, got something else"),
        (tmp_path / "cut.safetensors", "cut.safetensors cannot be read"),
        (tmp_path / "nowhere", "nowhere cannot be read"),
        (tmp_path, "is not a run folder"),
        (run.path, "has no network yet"),
    ]:
        with pytest.raises(UserError, match=sentence) as error:
            load_model(path)
        assert "\n" not in str(error.value)
