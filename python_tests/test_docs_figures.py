"""docs/figures.py: what it trains, and that it draws the same twice."""

from __future__ import annotations

import csv
import importlib
import re
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest
import torch

pytest.importorskip("safetensors", reason="ccp-train needs the extra [train]")

import tiny_training
from training_runs import QUIET, tiny_data  # noqa: F401

from ccp_fast.training import compare, trainer
from ccp_fast.training.errors import UserError
from ccp_fast.training.metrics import read_rows
from ccp_fast.training.objective import PRESETS
from ccp_fast.training.paired import paired
from ccp_fast.training.settings import Config

DOCS = Path(__file__).parents[1] / "docs"
TINY = tuple(s for s in tiny_training.SETTINGS if s.partition("=")[0] not in ("threads", "steps"))


def load(name: str) -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DOCS))
        return importlib.import_module(name)


def train_here(config: Config, path: Path) -> None:
    """With the tiny data of the tests, which another process would not see."""
    trainer.train(config, path, QUIET)


@pytest.fixture(scope="module")
def figures() -> ModuleType:
    return load("figures")


def test_every_figure_has_a_place_and_its_runs(figures: ModuleType) -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in DOCS.rglob("*.md"))
    for name, runs in figures.FIGURES.items():
        assert text.count(f":::{{measured}} {name}\n") == 1
        assert set(runs) <= figures.RUNS.keys()
    names = re.findall(r"\n:::{measured} (\S+)\n", text)
    assert sorted(names) == sorted([*figures.FIGURES, "glyphs_large_curves", "glyphs_large_coverage"])


def test_figures_are_drawn_from_finished_runs(figures: ModuleType, tmp_path: Path) -> None:
    runs_module = load("guide_runs")
    ccp = runs_module.Run("A", "c2", "ccp", settings=TINY)
    other = runs_module.Run("B", None, "intra-batch", settings=(*TINY, "intra_batch.heads=2"))
    assert figures.obtain("a", ccp, 8, tmp_path, train=None) is None
    runs = [
        figures.obtain("a", ccp, 8, tmp_path, train=train_here),
        figures.obtain("b", other, 8, tmp_path, train=train_here),
    ]
    again = figures.obtain("a", ccp, 8, tmp_path, train=None)
    assert again.run.summary == runs[0].run.summary
    with pytest.raises(UserError, match="made with other settings than ccp-train --loss c1"):
        figures.obtain("a", runs_module.Run("A", "c1", settings=TINY), 8, tmp_path)

    for name, shown in (("ccp", runs), ("k_center", runs[:1])):
        drawn = []
        for attempt in ("1", "2"):
            figures.write(name, shown, tmp_path / attempt)
            drawn.append((tmp_path / attempt / f"{name}.svg").read_bytes())
        assert drawn[0] == drawn[1]
        assert len(drawn[0]) < figures.LARGEST
        ElementTree.fromstring(drawn[0])
        caption = (tmp_path / "1" / f"{name}.md").read_text(encoding="utf-8")
        assert ccp.command(8) in caption


def test_table_of_methods_is_that_of_the_rows() -> None:
    methods = load("methods_table")
    page = methods.PAGE.read_text(encoding="utf-8")
    marked = load("marked")
    assert marked.put(methods.NAME, methods.table(methods.kept()), page) == page
    with pytest.raises(UserError, match="expected the lines <!-- another -->"):
        marked.put("another", "", page)


def test_table_of_methods_from_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    methods, runs = load("methods_table"), load("guide_runs")
    monkeypatch.setattr(methods, "RUNS", {"a": runs.Run("A", "c2", settings=TINY)})
    assert methods.train_all(8, tmp_path, 1, None) == []
    rows = methods.train_all(8, tmp_path, 1, train_here)
    assert [row["seed"] for row in rows] == [0, 1, 2]
    (line,) = methods.table(rows).splitlines()[2:]
    name, accuracy, *_, memory, seeds = line.strip("| ").split(" | ")
    assert (name, seeds) == ("A", "3")
    mean = sum(row["test_map_at_r"] for row in rows) / 3
    assert float(accuracy.split()[0]) == pytest.approx(mean, abs=5e-4)
    assert int(memory) > 50


def test_tables_of_glyphs_large_are_those_of_the_rows() -> None:
    page = load("glyphs_large")
    with page.ROWS.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    columns = list(dict.fromkeys(row["column"] for row in rows))
    text = page.PAGE.read_text(encoding="utf-8")
    for key, digits in (("test_map_at_r", 3), ("cpu_seconds", 0)):
        for loss in page.LOSSES:
            cells = [
                compare.spread([float(r[key]) for r in rows if (r["loss"], r["column"]) == (loss, c)], digits)
                for c in columns
            ]
            assert f"| {PRESETS[loss].title} | {' | '.join(cells)} |\n" in text


def test_tables_of_tuned_rivals_are_those_of_the_rows() -> None:
    page, tuned = load("glyphs_large"), load("tuned_rivals")
    with page.TUNED_ROWS.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    text = page.PAGE.read_text(encoding="utf-8")
    for loss in page.LOSSES:
        best = [PRESETS[loss].title]
        for column in tuned.COLUMNS:
            values: dict[str, dict[str, str]] = {str(rate): {} for rate in tuned.RATES}
            for row in rows:
                if (row["loss"], row["column"]) == (loss, column):
                    rate = tuned.Rate(float(row["lr"]), row["schedule"])
                    values[str(rate)][row["seed"]] = row["test_map_at_r"]
                    if row["seed"] == "0":
                        values[str(rate)]["tried"] = row["val_map_at_r"]
            tried = {rate: float(of["tried"]) for rate, of in values.items() if "tried" in of}
            cells = [f"{tried[rate]:.3f}" if rate in tried else "–" for rate in values]
            title = f"{PRESETS[loss].title}, {compare.COLUMNS[column].title}"
            assert f"| {title} | {' | '.join(cells)} |\n" in text
            if len(tried) == len(values):
                rate = max(tried, key=tried.__getitem__)
                seeds = [float(v) for seed, v in values[rate].items() if seed != "tried"]
                best += [rate, compare.spread(seeds)]
            else:
                best += ["–", "–"]
        assert f"| {' | '.join(best)} |" in text


def test_tuned_rivals_run_at_the_rates_that_validation_picks(tmp_path: Path) -> None:
    module = load("tuned_rivals")
    base = tiny_training.config("steps=8", "threads=1", "ccp.warm_start=0.25", "ccp.project_every=3")
    cells = compare.Experiment(tmp_path, base, ["c2"], ["plain", "ccp"], [0, 1])
    constant, decaying = rates = module.Rate(base.optimizer.lr, "constant"), module.Rate(1e-5, "cosine")
    tuned = module.TunedRivals(cells, rates)
    assert tuned.best("c2", "plain") is None
    assert "| C2 (Euclidean contrastive), plain | – | – |" in tuned.markdown()
    tuned.run(train_here, 1, lambda _: None)
    assert {folder.name for folder in (tmp_path / "tuned").iterdir()} == {"lr-1e-05"}
    rows, said, values = tuned.rows(), tuned.markdown(), []
    for column in ("plain", "ccp"):
        of_column = {
            (module.Rate(r["lr"], r["schedule"]), r["seed"]): r for r in rows if r["column"] == column
        }
        trials = {rate: of_column[rate, 0]["val_map_at_r"] for rate in rates}
        best = max(trials, key=trials.__getitem__)
        assert trials == tuned.trials("c2", column)
        assert sorted(of_column) == sorted([(constant, 0), (decaying, 0), (best, 1)])
        values.append({seed: of_column[best, seed]["test_map_at_r"] for seed in (0, 1)})
        assert f" | {best} | {compare.spread(values[-1].values())} | " in said
    assert said.endswith(f" | {paired(*values)} |\n")
    config = tuned.at(decaying, ["c2"], ["ccp"], [1]).config(compare.Cell("c2", "ccp", 1))
    assert (config.optimizer.lr, config.optimizer.schedule, config.method) == (1e-5, "cosine", "ccp")


def test_ccp_is_set_against_each_rival_of_its_batch_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = load("glyphs_large")
    cells = compare.Experiment(
        tmp_path, Config(), ["c2"], ["plain", "ccp", "xbm", "plain-32x4", "ccp-32x4"], [0]
    )
    values = {"plain": 0.5, "ccp": 0.7, "xbm": 0.6, "plain-32x4": 0.8, "ccp-32x4": 0.75}
    by_seed = {name: {0: value, 1: value + 0.01} for name, value in values.items()}
    by_seed["xbm"].pop(1)
    monkeypatch.setattr(cells, "table", lambda: {"c2": by_seed})
    head, _, line = page.rivals_table(cells).splitlines()
    assert head == "| MAP@R, full CCP less | cross-batch memory | plain, 32×4, cosine |"
    assert re.fullmatch(r"\| C2 .* \| – \| -0\.050 \[.*\], p .* \|", line)


def test_page_of_glyphs_large_from_runs(tmp_path: Path) -> None:
    page = load("glyphs_large")
    base = tiny_training.config("steps=8", "threads=1", "ccp.warm_start=0.25", "ccp.project_every=3")
    cells = compare.Experiment(tmp_path, base, ["c2", "triplet"], ["plain", "ccp"], [0, 1])
    cells.run(train_here, 1, lambda _: None)
    assert all(re.fullmatch("[0-9a-f]{10}|unknown", row["commit"]) for row in cells.rows())
    _, _, *lines = page.radii_table(cells).splitlines()
    assert [line.split(" | ")[:3] for line in lines[:2]] == [
        ["| C2 (Euclidean contrastive)", "2", "–"],
        ["| C2 (Euclidean contrastive)", "5", lines[1].split(" | ")[2]],
    ]
    histories = [read_rows(cells.folder(compare.Cell("c2", "ccp", s)) / "subproblems.jsonl") for s in (0, 1)]
    before = sum(history[1]["previous_radius_mean"] for history in histories) / 2
    assert float(lines[1].split(" | ")[2]) == pytest.approx(before, abs=5e-4)
    for svg, _ in (page.draw_curves_of_all(cells), page.draw_coverage(cells)):
        ElementTree.fromstring(svg)
    assert re.search(
        r"C2 plain (\d\.\d\d|inf), ccp (\d\.\d\d|inf); Triplet plain", page.draw_coverage(cells)[1]
    )


def test_coverage_is_that_of_every_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = load("glyphs_large")
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([2, 0, 1, 0, 2, 1, 0, 1, 2, 0, 2, 2])
    points = torch.randn(12, 3, generator=generator)
    model = type("Model", (), {"embed": lambda self, _: points})()
    monkeypatch.setattr(page, "load_model", lambda _: model)
    found = page.coverage(tmp_path, type("Test", (), {"labels": labels}))
    distances = torch.cdist(points.double(), points.double())
    radii = []
    for one in range(3):
        (members,) = (labels == one).nonzero(as_tuple=True)
        first = members[points[members].norm(dim=1).argmax()]
        radii.append(distances[members, first].max())
    assert found.radii[0] == pytest.approx(float(torch.stack(radii).mean()), rel=1e-5)
    assert found.radii[3] <= found.radii[0]
    other = distances.masked_fill(labels[:, None] == labels, torch.inf).amin(1).mean()
    assert found.other == pytest.approx(float(other), rel=1e-5)


def test_pairs_are_counted_once(figures: ModuleType) -> None:
    class Embedder:
        method = type("Method", (), {"normalize": "unit"})

        def embed(self, _: object) -> torch.Tensor:
            return torch.eye(4)[[0, 0, 1, 1]]

    test = type("Test", (), {"labels": torch.tensor([0, 0, 1, 1])})
    found = figures.pairs(Embedder(), test)
    assert found.positive[-1] == 1  # cosine 1
    assert found.negative[figures.BINS // 2] == 1  # cosine 0
    assert found.map_at_r == 1


def test_covering_radii_by_chance(figures: ModuleType) -> None:
    points = torch.randn(5, 6, 3)
    radii = figures.covering_radii(points, 0)
    assert radii.shape == (5, 6)
    assert (radii.diff(dim=1) <= 0).all()
    torch.testing.assert_close(radii[:, -1], torch.zeros(5), atol=1e-3, rtol=0)


def test_unknown_names_are_refused(figures: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        figures.main(["tripled"])
    assert "unknown figure 'tripled'" in capsys.readouterr().err
