"""What a test leaves beside its accuracy, and `compare` of two runs."""

import json
from pathlib import Path

import pytest
import torch
from sklearn.metrics import precision_recall_fscore_support
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from replora.cli.main import main
from replora.evaluation.paired import Paired, paired
from replora.io import read_csv
from replora.metrics.class_report import ClassReport
from tests.cli.helpers import QUICK, refused


def run(folder: Path, *options: str) -> Path:
    quick = [option for option in QUICK if "limit_test" not in option]
    main(["fit", "--config=quickstart.yaml", *quick, "--model.adapter.rank=2", f"--run_dir={folder}", *options])
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return run(folder / "one"), run(folder / "other", "--model.adapter.factors=none", "--model.optimizer.lr=0.02")


def test_class_report_agrees_with_scikit_learn() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(200, 7), torch.randint(0, 6, (200,))  # the last class never occurs
    logits[torch.arange(200), labels] += 1
    report = ClassReport(7, ignore_index=-1)
    for part, truth in zip(logits.split(64), labels.split(64), strict=True):
        report.update(torch.cat([part, part[:3]]), torch.cat([truth, torch.full((3,), -1)]))
    found = report.compute()
    expected = precision_recall_fscore_support(labels, logits.argmax(1), labels=range(7), zero_division=0)
    for name, values in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        assert [c[name] or 0 for c in found["classes"]] == pytest.approx(list(values), abs=1e-6)
    probability, predicted = logits.softmax(1).max(1)
    bins = [(probability * 15).long() == b for b in range(15)]
    right = (predicted == labels).float()
    gaps = [(right[b].sum() - probability[b].sum()).abs() for b in bins]
    assert found["calibration"]["ece"] == pytest.approx(float(sum(gaps)) / 200, abs=1e-6)


def test_a_test_writes_its_predictions_the_classes_and_pictures(runs) -> None:
    results = json.loads((runs[0] / "results.json").read_text())
    (test,) = [e for e in results["evaluations"] if e["verb"] == "test"]
    rows = read_csv(runs[0] / "test_predictions.csv")
    right = sum(row["label"] == row["predicted"] for row in rows)
    assert test["metrics"]["test/accuracy"] == pytest.approx(right / len(rows), abs=1e-6)
    assert sum(c["support"] for c in test["classes"]) == len(rows) == test["data"]["size"]
    assert test["calibration"]["accuracy"] == test["metrics"]["test/accuracy"]
    for name in ("confusion", "mistakes"):
        assert (runs[0] / "plots" / f"{name}.png").stat().st_size > 10_000


def test_tensorboard_has_the_pictures(runs) -> None:
    (log,) = (runs[0] / "logs").glob("fit*")
    events = EventAccumulator(str(log), size_guidance={"images": 0}).Reload()
    assert events.Tags()["images"] == ["confusion", "mistakes"]


def test_mlflow_has_pictures_results_and_metrics(tmp_path) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    logger = ["--trainer.logger=MLFlowLogger", f"--trainer.logger.tracking_uri={store}"]
    run(tmp_path / "run", *logger, f"--trainer.logger.artifact_location={tmp_path / 'files'}")
    client = mlflow.MlflowClient(store)
    (kept,) = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert {"confusion.png", "mistakes.png", "results.json"} <= {
        file.path for file in client.list_artifacts(kept.info.run_id)
    }
    assert "test/accuracy" in kept.data.metrics


def test_compare(runs, capsys) -> None:
    capsys.readouterr()
    main(["compare", *map(str, runs)])
    shown = capsys.readouterr().out
    rights = [
        [row["label"] == row["predicted"] for row in read_csv(folder / "test_predictions.csv")] for folder in runs
    ]
    counts = paired(*rights)
    assert f"only the first {counts.first:,}, only the second {counts.second:,}" in shown
    assert "McNemar" in shown


def test_compare_refuses_other_images(runs, tmp_path, capsys) -> None:
    assert "no test_predictions.csv" in refused(capsys, "compare", str(runs[0]), str(runs[0] / "checkpoints"))
    other = tmp_path / "other"
    other.mkdir()
    (other / "results.json").write_text((runs[1] / "results.json").read_text())
    lines = (runs[1] / "test_predictions.csv").read_text().splitlines()
    (other / "test_predictions.csv").write_text("\n".join(lines[:-5]))
    assert "were not tested on the same images" in refused(capsys, "compare", str(runs[0]), str(other))


def test_the_interval_of_a_difference_covers() -> None:
    """By simulation: 60 pairs, accuracies of 80 and 85 %, correlated."""
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(2000):
        draws = torch.rand(60, generator=generator)
        counts = paired((draws < 0.8).tolist(), ((draws < 0.72) | (draws > 0.87)).tolist())
        low, high = counts.interval
        covered += low <= 0.05 <= high
    assert 0.93 <= covered / 2000 <= 0.985


def test_counts_of_pairs() -> None:
    assert paired([True, True, False, False], [True, False, True, False]) == Paired(1, 1, 1, 1)
    assert Paired(5, 0, 6, 1).p_value == pytest.approx(2 * 0.5**6)
