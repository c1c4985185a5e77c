"""What a data set is trained with if nothing else is said, and that what is said goes before it."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import image_trees
import pytest
import tiny_training
from typer.testing import CliRunner, Result

pytest.importorskip("safetensors")

from ccp_fast.cli.train_command import app
from ccp_fast.data import inshop
from ccp_fast.evaluation import retrieval
from ccp_fast.training import compare
from ccp_fast.training.config import load_config, to_yaml
from ccp_fast.training.datasets import DATASETS
from ccp_fast.training.errors import UserError
from ccp_fast.training.export import load_model
from ccp_fast.training.objective import build_loss
from ccp_fast.training.presets import configured, preset
from ccp_fast.training.run_folder import RunFolder
from ccp_fast.training.settings import Config

pytestmark = pytest.mark.usefixtures("torch_as_it_was")

PUBLISHED = ("sop", "cub", "cars", "inshop")
EXAMPLE = Path(__file__).parents[1] / "examples" / "sop.yaml"
PAGE = Path(__file__).parents[1] / "docs" / "tools" / "data.md"


def of(name: str, *settings: str, **flags: Any) -> Config:
    return configured(None, settings, {"data.name": name, **flags})


# What it is


@pytest.mark.parametrize(
    ("name", "picks", "pool", "every", "margins"),
    [
        ("sop", 4, 7, 250, (0.2858, 0.5130)),
        ("inshop", 4, 7, 250, (0.2858, 0.5130)),
        ("cub", 8, 12, 25, (0.0, 0.3841)),
        ("cars", 8, 12, 25, (0.2652, 0.5409)),
    ],
)
def test_a_data_set_is_trained_as_published(
    name: str, picks: int, pool: int, every: int, margins: tuple[float, float]
) -> None:
    c = of(name)
    assert (c.model.name, c.model.dim, c.model.pooling, c.model.frozen_norms) == (
        "bn-inception", 128, "gap", True,
    )  # fmt: skip
    assert (c.crop.shorter_side, c.crop.least, c.crop.aspect, c.crop.mirror) == (256, 40, 4 / 3, 0.5)
    assert (c.batch.classes, c.batch.samples) == (8, 4)
    assert (c.optimizer.lr, c.optimizer.betas, c.optimizer.weight_decay) == (1e-5, (0.9, 0.99), 1e-4)
    assert (c.ccp.proxies_per_class, c.ccp.pool_size, c.ccp.lam) == (picks, pool, 2e-4)
    assert (c.ccp.project_every, c.ccp.patience, c.ccp.warm_start, c.ccp.min_delta) == (None, 3, 0, 1e-5)
    assert (c.evaluation.every, c.evaluation.patience) == (every, 60)
    assert of(name, "protocol.name=conventional").evaluation.patience is None
    assert c.loss.given_options == dict(zip(("pos_margin", "neg_margin"), margins, strict=True))


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("method", ["ccp", "xbm", "alternating"])
def test_a_method_begins_before_patience_ends_the_run(name: str, method: str) -> None:
    c = of(name, method=method)
    assert c.evaluation.patience is not None
    assert c.warm_start_steps < c.evaluation.patience * c.evaluation.every
    assert c.warm_start_steps == (1000 if method == "xbm" else 0)


def test_message_passing_is_trained_as_its_page_says() -> None:
    page = PAGE.parents[1] / "methods" / "intra_batch.md"
    rows = re.findall(
        r"^\| [\w-]+ \| (\d+)×(\d+) \| (\d), (\d) \| ([.\d]+) \| ([.\de-]+) \|$",
        page.read_text(encoding="utf-8"),
        re.M,
    )
    for name, row in zip(("cub", "cars", "sop", "inshop"), rows, strict=True):
        c = of(name, method="intra-batch")
        assert (c.optimizer.name, c.optimizer.schedule, c.evaluation.patience) == ("radam", "drop", None)
        passing = c.intra_batch.layers, c.intra_batch.heads, c.intra_batch.temperature
        assert (c.batch.classes, c.batch.samples, *passing, c.optimizer.lr) == tuple(map(float, row))
        images = 0.75 * importlib.import_module(f"ccp_fast.data.{name}").PUBLISHED["training images"]
        assert c.steps * c.batch.classes * c.batch.samples / images == pytest.approx(70, rel=0.02)
        assert of(name).optimizer.name == "adam"


def test_the_example_is_what_was_reported_for_sop() -> None:
    c = configured(EXAMPLE)
    assert (c.protocol.name, c.protocol.count) == ("reality-check", 4)
    assert (c.method, c.loss.name) == ("ccp", "c2")
    assert c.optimizer == of("sop").optimizer


def test_no_photographs_are_shown_to_the_network_for_glyphs_unless_that_is_said() -> None:
    for name in DATASETS.keys() - {"glyphs", "glyphs-large"}:
        assert of(name).model.name != "glyph-cnn"
        assert of(name, "model.name=glyph-cnn").model.name == "glyph-cnn"
    for name in ("glyphs", "glyphs-large"):
        assert preset(name) == {}
        assert of(name) == load_config(flags={"data.name": name})
    assert configured() == load_config()


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_loss_can_be_built_with_what_was_published_for_it(name: str) -> None:
    for loss in (*of(name).loss.options_of, "c1", "proxy_anchor"):
        c = of(name, "method=plain", **{"loss.name": loss, "model.dim": 8})
        made = build_loss(c, 3)
        for option, value in c.loss.given_options.items():
            assert made.options[option] == value


def test_the_page_lists_what_the_presets_say() -> None:
    """Of each row of its table a setting by its whole name, and its value for each data set."""
    table = (
        PAGE.read_text(encoding="utf-8").partition("## What each is trained with")[2].partition("\n## ")[0]
    )
    rows = re.findall(r"^\| `([\w.]+)` \| (.+) \|$", table, re.M)
    assert len(rows) > 15
    listed = set()
    for key, cells in rows:
        listed.add(key)
        *values, source = cells.split(" | ")
        assert source
        values = values * len(PUBLISHED) if len(values) == 1 else values
        for name, text in zip(PUBLISHED, values, strict=True):
            value: Any = of(name)
            for part in key.split("."):
                value = value[part] if isinstance(value, dict) else getattr(value, part)
            assert eval(text, {"null": None, "true": True, "false": False}) == pytest.approx(value), (
                key,
                name,
            )
    for name in PUBLISHED:
        assert (
            leaves(preset(name)) - {"model.name", "optimizer.name", "model.pooling", "optimizer.betas"}
            <= listed
        )


def leaves(section: dict[str, Any], prefix: str = "") -> set[str]:
    return {
        leaf
        for key, value in section.items()
        for leaf in (leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key})
    }


# What goes before it


def test_what_is_given_goes_before_the_preset(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("data: {name: cub}\nbatch: {classes: 16}\nsteps: 7\noptimizer: {lr: 3.0e-4}\n")
    c = configured(file, ["optimizer.lr=1e-3", "loss.options_of.c2.neg_margin=0.6"], {"steps": 9})
    assert (c.batch.classes, c.batch.samples, c.steps) == (16, 4, 9)
    assert (c.optimizer.lr, c.optimizer.weight_decay) == (1e-3, 1e-4)
    assert c.loss.given_options == {"pos_margin": 0, "neg_margin": 0.6}
    assert c.loss.options_of["triplet"] == {"margin": 0.0961}
    assert of("cub", "loss.options.neg_margin=0.5").loss.given_options == {"pos_margin": 0, "neg_margin": 0.5}
    assert configured(file, flags={"data.name": "cars"}).ccp.pool_size == 12  # the last name counts


def test_settings_that_go_together_only_with_the_preset_are_taken() -> None:
    assert of("cub", "ccp.proxies_per_class=10").ccp.pool_size == 12


def test_a_whole_configuration_stays_what_it_is(tmp_path: Path) -> None:
    """Of a run, and of a cell of a comparison, also if the preset had something else for it."""
    for c in (of("sop", "loss.options_of={}"), of("inshop"), load_config(flags={"data.name": "cars"})):
        (tmp_path / "a.yaml").write_text(to_yaml(c))
        assert configured(tmp_path / "a.yaml") == c


def test_a_stored_run_takes_no_preset(tmp_path: Path) -> None:
    """One from before there were any means the defaults."""
    (tmp_path / "config.yaml").write_text("data: {name: sop}\nsteps: 5\n")
    stored = RunFolder.open(tmp_path).config
    assert (stored.model.name, stored.optimizer.lr, stored.loss.options_of) == ("glyph-cnn", 1e-3, {})


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["data.name=[sop]"], "data.name: expected 'glyphs',"),
        (["data=sop"], "data: expected a valid dictionary"),
        (["loss.options_of.ms.beta=3"], "loss.options_of.ms.* expected 'c1', 'c2'"),
        (
            ["data.name=sop", "loss.options_of.c2.margn=3", "loss.name=c2"],
            "unknown key 'loss.options_of.c2.margn'",
        ),
    ],
)
def test_what_is_wrong_is_told(settings: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=re.escape(sentence).replace(r"\.\*", ".*")):
        build_loss(configured(settings=settings), 3)


# Comparisons


def cells(base: Config, *losses: str) -> dict[str, dict[str, object]]:
    experiment = compare.Experiment(Path("all"), base, losses, ["plain", "ccp"], [0])
    return {c.loss: dict(experiment.config(c).loss.given_options) for c in experiment.cells(timed=False)}


def test_a_comparison_trains_every_loss_with_its_own_options() -> None:
    assert cells(configured(EXAMPLE), "c1", "c2", "ms", "triplet") == {
        "c1": {},
        "c2": {"pos_margin": 0.2858, "neg_margin": 0.5130},
        "multi_similarity": {"alpha": 2, "beta": 40, "base": 0.5},
        "triplet": {"margin": 0.0451},
    }


def test_options_are_of_the_loss_that_is_named() -> None:
    base = load_config(settings=["loss.name=triplet", "loss.options.margin=0.3"])
    assert cells(base, "c2", "triplet") == {"c2": {}, "triplet": {"margin": 0.3}}
    sentence = (
        "loss.options: expected triplet, whose they are, among --losses, got c1, c2; "
        "loss.options_of.c1 has those of another"
    )
    with pytest.raises(UserError, match=f"^{re.escape(sentence)}$"):
        cells(base, "c1", "c2")


# Runs


def train(name: str, root: Path, out: Path, *settings: str) -> Result:
    given = [part for setting in settings for part in ("--set", setting)]
    return CliRunner().invoke(app, ["--data", name, "--data-root", str(root), "--out", str(out), *given])


@pytest.mark.parametrize(
    ("name", "tree", "queries", "ks"),
    [
        ("sop", image_trees.sop, 8 * 3, (1, 10, 100, 1000)),
        ("cub", image_trees.cub, 8 * 2, (1, 2, 4, 8)),
        ("cars", image_trees.cars, 8 * 2, (1, 2, 4, 8)),
        ("inshop", image_trees.inshop, 8, (1, 10, 20, 30, 40, 50)),
    ],
)
def test_each_set_is_trained_on_by_its_name(
    tmp_path: Path, name: str, tree: Callable[..., Path], queries: int, ks: tuple[int, ...]
) -> None:
    root, out = tree(tmp_path / "set", 16), tmp_path / "run"
    small = [
        "model.name=glyph-cnn",
        "crop.shorter_side=32",
        "crop.least=12",
        "data.counts=any",
        "data.workers=0",
    ]
    result = train(name, root, out, *tiny_training.SETTINGS, *small, "steps=4", "evaluation.every=2")
    assert result.exit_code == 0, result.output
    run = RunFolder.open(out)
    assert run.config.loss.options_of == preset(name)["loss"]["options_of"]
    assert (run.config.data.val_share, run.config.optimizer.lr) == (0.25, 1e-5)
    assert run.summary is not None
    found = run.summary["test"]
    assert found["num_queries"] == queries
    recalls = [found[f"recall_at_{k}"] for k in ks]
    assert recalls == sorted(recalls)
    assert sum(key.startswith("recall_at_") for key in found) == len(ks)
    assert ("nmi" in found) == (name in ("cub", "cars"))
    if name == "inshop":
        model, test = load_model(out), inshop(root, any_counts=True).test
        assert test.gallery is not None
        vectors = [model.embed_for_retrieval(images) for images in (test.query, test.gallery)]
        labels = [images.labels for images in (test.query, test.gallery)]
        expected = retrieval(
            vectors[0], labels[0], vectors[1], labels[1], ("map_at_r",), normalize=model.retrieval_normalize
        )
        assert found["map_at_r"] == expected["map_at_r"]


def test_weights_that_are_not_there_are_told_with_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    result = train("cub", image_trees.cub(tmp_path / "set", 16), tmp_path / "run", "data.counts=any")
    assert result.exit_code == 2
    assert f"{tmp_path}/torch/hub/checkpoints/bn_inception-52deb4733.pth is not there" in result.stderr
    assert "pretrained-models.pytorch names its address" in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()
