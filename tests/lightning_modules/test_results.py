from __future__ import annotations

import csv
import itertools
import json
from datetime import timedelta

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import Timer

import replora
from lightning_modules import PredictionWriter, ResultsWriter
from lightning_modules.callbacks import results_writer
from lightning_modules.callbacks.final_validation import FinalValidation
from replora import results
from replora.results import ResultsError, read_results, record_evaluation, record_fit, stored, weights_source
from tests.lightning_modules.helpers import StopBefore, StopError, TinyImages, module, trainer

ADAPTER = replora.RepLoRAConfig(rank=2, factors="none", blocks=[0])
MODEL = {"backbone": {"name": "a"}, "method": "lora", "options": {"rank": 2, "targets": ["q"]}}


class Described(TinyImages):
    def describe(self):
        return {"task": "tiny", "split_sizes": self.sizes, "train_indices": [0, 1, 2]}


def test_a_run_writes_everything_a_number_depends_on(tmp_path):
    model, writer = module(adapter=ADAPTER), ResultsWriter(tmp_path)
    fit = trainer(tmp_path, 2, (writer,))
    fit.fit(model, Described())
    fit.test(model, Described(), verbose=False)
    content = json.loads((tmp_path / "results.json").read_text())
    assert content == stored(read_results(tmp_path)) == stored(read_results(tmp_path / "results.json"))
    content = read_results(tmp_path)
    assert content["format"] == 2
    assert content["backbone"]["name"] == "vit_nano"
    assert content["backbone"]["weights"] == "random"
    assert content["method"] == "lora"
    assert content["options"]["rank"] == 2
    assert content["targets"] == ["blocks.0.attn.qkv[q]", "blocks.0.attn.qkv[v]"]
    counts = {"backbone": 1204352, "adapter_trained": 1024, "adapter_deployed": 1024, "head": 387}
    assert content["parameters"] == counts
    assert content["data"] == {
        "task": "tiny",
        "split_sizes": model.trainer.datamodule.sizes,
        "train_indices": [0, 1, 2],
    }
    entry = content["fit"]
    assert set(entry["metrics"]) == {
        "train/loss",
        "train/accuracy",
        "train/learning_rate",
        "val/loss",
        "val/accuracy",
        "val/mean_class_accuracy",
    }
    assert (entry["epochs"], entry["steps"], entry["selection"], entry["resumed_from"]) == (2, 4, "last epoch", None)
    assert entry["optimizer"] == {"class": "AdamW", "lr": 0.001, "weight_decay": 0.0001}
    assert entry["schedule"]["class"] == "WarmupCosine"
    assert {"warmup_epochs", "warmup_lr", "min_lr", "per"} < set(entry["schedule"])
    assert entry["batch"] == {"per_process": 4, "processes": 1, "accumulated": 1}
    assert [epoch for epoch, _ in entry["history"]["train/loss"]] == [1, 2]
    assert entry["history"]["val/accuracy"][-1] == [2, entry["metrics"]["val/accuracy"]]
    assert entry["seed"] == 0
    assert entry["seconds"] > 0
    assert entry["peak_memory_bytes"]["cpu"] > 10_000_000
    assert entry["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert {"python", "lightning", "timm", "peft", "replora"} < set(entry["versions"])
    assert entry["command"]
    assert entry["date"].endswith("+00:00")
    assert weights_source(content["test"]) == "last epoch"
    assert set(content["test"]["metrics"]) == {"test/loss", "test/accuracy", "test/mean_class_accuracy"}
    assert "[0, 1, 2]" in (tmp_path / "results.json").read_text(), "index lists stay on one line"

    fresh = module(adapter=ADAPTER)
    replora.load_adapter(fresh.model, tmp_path / "adapter.safetensors")
    assert torch.equal(fresh.model.head.weight, model.model.head.weight)


def test_a_later_verb_names_its_checkpoint_and_keeps_the_rest(tmp_path):
    trainer(tmp_path, 1, (ResultsWriter(tmp_path),)).fit(module(adapter=ADAPTER), Described())
    before = read_results(tmp_path)["fit"]
    later = trainer(tmp_path, 1, (ResultsWriter(tmp_path),))
    later.validate(module(adapter=ADAPTER), Described(), ckpt_path=tmp_path / "last.ckpt", verbose=False)
    content = read_results(tmp_path)
    assert content["fit"] == before
    assert weights_source(content["validate"]) == f"{tmp_path / 'last.ckpt'} (after 1 epochs)"


def test_weights_without_a_fit_are_not_called_the_last_epochs(tmp_path):
    trainer(tmp_path, 1, (ResultsWriter(tmp_path),)).test(module(adapter=ADAPTER), Described(), verbose=False)
    assert weights_source(read_results(tmp_path)["test"]) == "as given"


def test_dry_and_broken_runs_write_nothing(tmp_path):
    trainer(tmp_path, callbacks=(ResultsWriter(tmp_path),), fast_dev_run=True).fit(
        module(adapter=ADAPTER), TinyImages()
    )
    callbacks = (ResultsWriter(tmp_path), StopBefore(1))
    with pytest.raises(StopError):
        trainer(tmp_path, 2, callbacks).fit(module(adapter=ADAPTER), TinyImages())
    assert {file.name for file in tmp_path.iterdir()} == {"last.ckpt"}


def test_another_run_in_the_same_directory_fails_before_training(tmp_path):
    trainer(tmp_path, 1, (ResultsWriter(tmp_path),)).fit(module(adapter=ADAPTER), TinyImages())
    other = replora.RepLoRAConfig(rank=3, factors="none", blocks=[0])
    with pytest.raises(ResultsError, match=r"belongs to another run:\n.*  options\.rank: \d there, 3 here\n"):
        trainer(tmp_path, 1, (ResultsWriter(tmp_path), StopBefore(0))).fit(module(adapter=other), TinyImages())


FIT = {"metrics": {"val/accuracy": 0.5}, "weights_sha256": "w", "partial": []}


def evaluation(verb: str = "test", weights: str = "w", split_hash: str = "t", **entries: object) -> dict:
    data = {"split": "test", "sha256": split_hash, "root": "/somewhere"}
    measured = {"verb": verb, "metrics": {"test/accuracy": 1.0}, "data": data, "partial": []}
    return measured | {"weights": {"source": "last epoch", "sha256": weights}} | entries


DATA = {"task": "t", "splits": {"test": {"size": 9, "sha256": "t"}}, "train_indices": [1, 2]}


def test_an_evaluation_does_not_touch_what_the_fit_recorded(tmp_path):
    file = tmp_path / "deep" / "results.json"
    record_fit(file, MODEL, DATA, FIT, {"run_id": "r"})
    record_evaluation(file, MODEL, {"task": "other"}, evaluation())
    content = read_results(file)
    assert (content["data"], content["fit"], content["run_id"]) == (DATA, FIT, "r")
    assert content["test"]["metrics"] == {"test/accuracy": 1.0}
    assert [child.name for child in file.parent.iterdir()] == ["results.json"]
    assert stored(content) == json.loads(file.read_text())


@pytest.mark.parametrize(
    "other",
    [{"weights": "x"}, {"split_hash": "x"}, {"partial": ["limit_test_batches=1"]}],
    ids=["other weights", "other data", "a part"],
)
def test_an_evaluation_of_something_else_is_a_further_entry(tmp_path, other):
    file = tmp_path / "results.json"
    record_fit(file, MODEL, DATA, FIT, {})
    record_evaluation(file, MODEL, DATA, evaluation())
    record_evaluation(file, MODEL, DATA, evaluation(metrics={"test/accuracy": 0.3}, **other))
    content = read_results(file)
    assert len(content["evaluations"]) == 2
    assert content["test"]["metrics"] == {"test/accuracy": 1.0}


def test_the_same_measurement_again_replaces_its_entry(tmp_path):
    file = tmp_path / "results.json"
    record_fit(file, MODEL, DATA, FIT, {})
    record_evaluation(file, MODEL, DATA, evaluation(date="1"))
    record_evaluation(file, MODEL, DATA, evaluation("predict", metrics={}))
    moved = evaluation(date="2")
    moved["data"]["root"] = "/elsewhere"
    record_evaluation(file, MODEL, DATA, moved)
    content = read_results(file)
    assert [(e["verb"], e.get("date")) for e in content["evaluations"]] == [("predict", None), ("test", "2")]


def test_a_fit_that_goes_on_keeps_the_evaluations_of_the_earlier_weights(tmp_path):
    file = tmp_path / "results.json"
    record_fit(file, MODEL, DATA, FIT, {})
    record_evaluation(file, MODEL, DATA, evaluation())
    record_fit(file, MODEL, DATA, FIT | {"weights_sha256": "later"}, {})
    content = read_results(file)
    assert len(content["evaluations"]) == 1
    assert "test" not in content


def test_format_1_is_read_as_it_was_and_goes_on_in_format_2(tmp_path):
    file = tmp_path / "results.json"
    former = {"format": 1, **MODEL, "data": DATA, "fit": {"metrics": {}}}
    former["test"] = {"metrics": {"test/accuracy": 0.9}, "weights": "last epoch"}
    results.write_json(file, former)
    assert read_results(file) == former
    record_evaluation(file, MODEL, {}, evaluation(metrics={"test/accuracy": 0.1}))
    content = read_results(file)
    assert content["format"] == 2
    assert content["test"]["metrics"] == {"test/accuracy": 0.9}
    assert weights_source(content["test"]) == weights_source(former["test"]) == "last epoch"
    assert len(content["evaluations"]) == 2


def test_a_failed_write_leaves_the_old_file(tmp_path):
    file = tmp_path / "results.json"
    record_fit(file, MODEL, {}, FIT, {})
    before = file.read_text()
    with pytest.raises(TypeError):
        record_evaluation(file, MODEL, {}, evaluation(metrics=object()))
    assert file.read_text() == before
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"There is no .*results\.json"),
        ("{", "is corrupt"),
        ("[]", "is not a results file"),
        ('{"format": 99}', "has format 99; this release reads up to 2. Update"),
    ],
)
def test_unreadable_results(tmp_path, content, message):
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    with pytest.raises(ResultsError, match=message):
        read_results(tmp_path)


def test_git_commit(monkeypatch, tmp_path):
    monkeypatch.setattr(results, "_git", lambda *_: None)
    assert results.git_commit() is None
    answers = {"ls-files": "errors.py", "rev-parse": "abc", "status": " M errors.py"}
    monkeypatch.setattr(results, "_git", lambda _folder, verb, *_: answers[verb])
    assert results.git_commit() == "abc-dirty"
    monkeypatch.undo()
    assert results._git(tmp_path, "rev-parse", "HEAD") is None


def test_predictions_are_written_once_an_image_in_order(tmp_path):
    class Named(Described):
        class_names = ("zero", "one", "two")
        eval_split = "test"

        def listed(self, split):
            return split

        def build_dataset(self, split):
            assert split == "test"
            return type("Files", (), {"paths": [f"images/{i}.jpg" for i in range(7)]})()

        def predict_dataloader(self):
            return self.loader("test")

    model = module(adapter=ADAPTER)
    run = trainer(tmp_path, callbacks=(PredictionWriter(tmp_path), ResultsWriter(tmp_path)))
    outputs = run.predict(model, Named(padding=2))
    with (tmp_path / "predictions.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [int(row["index"]) for row in rows] == list(range(7))
    best = torch.cat([out["probabilities"] for out in outputs])[3].max(-1)
    assert rows[3] == {
        "index": "3",
        "path": "images/3.jpg",
        "label": "0",
        "label_name": "zero",
        "predicted": str(best.indices.item()),
        "predicted_name": Named.class_names[best.indices],
        "probability": f"{best.values:.6f}",
    }
    assert "predict" in read_results(tmp_path)


def test_the_course_is_thinned_and_without_epochs_that_were_not_validated(tmp_path):
    writer = ResultsWriter(tmp_path)
    fit = trainer(tmp_path, 5, (writer,), check_val_every_n_epoch=2)
    fit.fit(module(adapter=ADAPTER), Described())
    history = read_results(tmp_path)["fit"]["history"]
    assert [epoch for epoch, _ in history["train/loss"]] == [1, 2, 3, 4, 5]
    assert [epoch for epoch, _ in history["val/loss"]] == [2, 4]
    long = {epoch: 1 / epoch for epoch in range(1, 121)}
    thinned = results_writer._thinned(long)
    assert len(thinned) == results_writer.HISTORY == 50
    assert thinned[-1] == [120, 1 / 120]
    gaps = {after - before for (before, _), (after, _) in itertools.pairwise(thinned)}
    assert gaps == {2, 3}
    assert results_writer._thinned({1: float("nan")}) == [[1, None]]


def test_a_later_verb_keeps_what_a_sweep_wrote(tmp_path):
    file = tmp_path / "results.json"
    record_fit(file, MODEL, {}, FIT, {})
    results.write_json(file, read_results(file) | {"sweep": {"name": "s"}})
    record_evaluation(file, MODEL, {}, evaluation())
    assert read_results(file)["sweep"] == {"name": "s"}


class StopInSecondEpoch(Callback):
    def on_train_batch_end(self, trainer, *_arguments):
        trainer.should_stop = trainer.current_epoch == 1


@pytest.mark.parametrize("interval", [1, 2, 4])
@pytest.mark.parametrize("stop", ["max_time", "callback", "max_epochs", "max_steps"])
def test_every_end_of_a_fit_is_validated(tmp_path, monkeypatch, interval, stop):
    elapsed = itertools.chain([0.0], itertools.repeat(100.0))  # when the fit starts, and after a batch
    monkeypatch.setattr(Timer, "time_elapsed", lambda *_: next(elapsed))
    options = {
        "max_time": {"max_time": timedelta(seconds=10), "max_epochs": 5},
        "callback": {"max_epochs": 5},
        "max_epochs": {"max_epochs": 3},
        "max_steps": {"max_epochs": 5, "max_steps": 1},
    }[stop]
    callbacks = [FinalValidation(), *([StopInSecondEpoch()] if stop == "callback" else [])]
    writer = ResultsWriter(tmp_path)
    epochs = options.pop("max_epochs")
    fit = trainer(tmp_path, epochs, (writer, *callbacks), check_val_every_n_epoch=interval, **options)
    fit.fit(module(adapter=ADAPTER), Described())
    last = {"max_time": 1, "callback": 2, "max_epochs": 3, "max_steps": 1}[stop]
    history = read_results(tmp_path)["fit"]["history"]["val/loss"]
    assert history[-1][0] == last
    assert fit.check_val_every_n_epoch == interval
