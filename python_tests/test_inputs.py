"""Image sources, splits, and what of them a network is shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_training
import torch
from training_runs import QUIET, check_page, tiny_data  # noqa: F401

pytest.importorskip("safetensors")

from ccp_fast.data import EvaluationSet, ImageSet
from ccp_fast.evaluation import retrieval
from ccp_fast.training import datasets, trainer
from ccp_fast.training.data import TrainingData
from ccp_fast.training.inputs import NetworkInput, plain_batches
from ccp_fast.training.model import GlyphNet
from ccp_fast.training.report import run_report
from ccp_fast.training.run_folder import RunFolder

PRETRAINED = NetworkInput(channels=3, size=48, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def test_some_classes_of_a_source_are_numbered_anew_and_keep_their_order() -> None:
    images = tiny_training.images("train")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    mixed = ImageSet(
        images.images[order],
        images.labels[order],
        images.class_names,
        images.sources,
        images.source_ids[order],
    )
    some = mixed.of_classes([7, 2])
    assert some.class_names == ("train <7>", "train <2>")
    rows = [i for i in range(len(mixed)) if mixed.labels[i] in (7, 2)]
    assert len(some) == len(rows) == 2 * tiny_training.PER_CLASS
    for i, row in enumerate(rows):
        assert torch.equal(some.image(i), mixed.image(row))
        assert some.caption(i) == mixed.caption(row)
        assert some.class_names[some.labels[i]] == mixed.class_names[mixed.labels[row]]


def test_a_gallery_has_the_classes_of_its_queries() -> None:
    one, other = tiny_training.images("train"), tiny_training.images("val")
    assert EvaluationSet(one).searched is one
    assert EvaluationSet(one, one.of_classes(range(12))).num_classes == 12
    with pytest.raises(ValueError, match="gallery: expected the class names of the queries"):
        EvaluationSet(one, other)


def test_a_network_gets_the_channels_the_size_and_the_range_it_wants() -> None:
    gray = torch.rand(2, 1, 48, 48)
    shown = PRETRAINED.fit(gray)
    for channel, (mean, std) in enumerate(zip(PRETRAINED.mean, PRETRAINED.std, strict=True)):
        torch.testing.assert_close(shown[:, channel], (gray[:, 0] - mean) / std)
    flat = torch.full((1, 3, 20, 30), 0.25)
    assert PRETRAINED.fit(flat).shape == (1, 3, 48, 48)
    torch.testing.assert_close(PRETRAINED.fit(flat)[0, 1], torch.full((48, 48), (0.25 - 0.456) / 0.224))
    red = torch.tensor([1.0, 0.0, 0.0])[None, :, None, None].expand(1, 3, 32, 32)
    torch.testing.assert_close(GlyphNet.input.fit(red), torch.full((1, 1, 32, 32), 0.299))
    with pytest.raises(ValueError, match="images: expected 1, 3 or 3 channels, got 2"):
        PRETRAINED.fit(torch.rand(1, 2, 48, 48))
    with pytest.raises(ValueError, match="mean, std: expected 3 values each"):
        NetworkInput(channels=3, size=48, mean=(0.5,), std=(0.5,))


def test_training_and_evaluation_show_the_same_images_to_another_network() -> None:
    images, config = tiny_training.images("train"), tiny_training.config()
    data = TrainingData(images, config, PRETRAINED)
    batch = data.batch(3, [4, 60])
    assert batch.images.shape == (2, 3, 48, 48)
    assert torch.equal(batch.labels, images.labels[[4, 60]])
    parts = list(plain_batches(images, config, PRETRAINED, batch_size=50))
    assert [len(part) for part in parts] == [50, 22]
    (same,) = data.plain_batches(torch.tensor([4, 60]))
    assert torch.equal(torch.cat(parts)[[4, 60]], same)


def test_queries_are_searched_in_their_gallery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = tiny_training.images("test")
    first = torch.arange(len(images)) % tiny_training.PER_CLASS < 2
    query, gallery = (images.of_images(rows.nonzero().squeeze(1)) for rows in (first, ~first))

    def parts(_: Any) -> datasets.Parts:
        test = EvaluationSet(query, gallery)
        return datasets.Parts(tiny_training.images("train"), test, tiny_training.images("val"))

    monkeypatch.setitem(datasets.DATASETS, "glyphs", parts)
    config = tiny_training.config("steps=4")
    summary = trainer.train(config, tmp_path / "run", QUIET)
    run = RunFolder.open(tmp_path / "run")
    learner = trainer.Trainer(run, datasets.load_splits(config), QUIET).learner
    learner.load_weights(run.at(4).state["learner"])
    expected = retrieval(
        learner.embed(query), query.labels, learner.embed(gallery), gallery.labels, normalize="ball"
    )
    assert summary["test"]["num_queries"] == 20
    assert summary["test"]["map_at_r"] == expected["map_at_r"]
    text = run_report.write_run_report(run).read_text()
    check_page(text)
    # Ten queries drawn and six worst, of ten classes; four images of a class are in the gallery.
    assert text.count('class="right"') + text.count('class="wrong"') == (10 + 6) * 4
