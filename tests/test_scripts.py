"""The measuring scripts run, here with a tiny model on a CPU."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from replora.reports.statistics import t_interval
from replora.results import read_results
from tests.fake_data import write_commonsense
from tests.tiny_llama import write_tiny_llama

SCRIPTS = Path(__file__).parents[1] / "scripts"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_commonsense_smollm2(tmp_path, monkeypatch):
    """Two runs on a tiny LLaMA; their tables go into the page, and what is there is not run again."""
    script = load("commonsense_smollm2")
    write_commonsense(tmp_path / "data", {"ARC-Easy": (20, 5)})
    llama = [f"--model.backbone={write_tiny_llama(tmp_path / 'llama')}", f"--data.root={tmp_path / 'data'}"]
    small = [*llama, "--data.check_sizes=false", "--trainer.max_epochs=1", "--trainer.enable_progress_bar=false"]
    tables = {"cloze": {"untuned": [*script.UNTUNED, *small], "lora": [*script.LORA, *small]}}
    monkeypatch.setattr(script, "TABLES", tables)
    page = tmp_path / "page.md"
    page.write_text("before\n\n<!-- table cloze -->\n\nold\n\n<!-- end -->\n\nafter\n\n<!-- end -->\n")
    arguments = [f"--out={tmp_path}", "--tables=cloze", f"--page={page}"]
    script.main(arguments)
    content = read_results(tmp_path / "cloze-lora.json")
    assert content["fit"]["command"].startswith("replora-cli fit --config=commonsense_smollm2.yaml --config=ad")
    found = content["test"]["tasks"]["ARC-Easy"]
    digits = content["test"]["right"]["ARC-Easy"]
    assert {name: text.count("1") / 5 for name, text in digits.items()} == {k: found[k] for k in ("acc", "acc_norm")}
    text = page.read_text()
    assert text.startswith("before\n\n<!-- table cloze -->\n\n| acc_norm |")
    assert "| lora | ARC-e | overlap |" in text
    assert text.endswith("exact sign test.\n\n<!-- end -->\n\nafter\n\n<!-- end -->\n")
    monkeypatch.setattr(script, "run", lambda *_: pytest.fail("it was there"))
    script.main(arguments)
    assert page.read_text() == text


def test_compare_filters(tmp_path, monkeypatch):
    """Each run is tested with both filters; what is there is not run again."""
    script = load("compare_filters")
    quick = ["--config=quickstart.yaml", "--trainer.limit_train_batches=2", "--data.batch_size=8"]
    monkeypatch.setattr(script, "TASKS", {"digits, 8 to 32 pixels": quick})
    arguments = [f"--out={tmp_path / 'out'}", f"--runs={tmp_path / 'runs'}", "--count=2", "--seeds", "0", "--epochs=1"]
    script.main(arguments)
    rows = json.loads((tmp_path / "out" / "accuracy.json").read_text())["rows"]
    assert [row["trained with"] for row in rows] == ["bilinear", "tf1_bilinear"]
    assert all(set(row["mean test accuracy with"]) == {"bilinear", "tf1_bilinear"} for row in rows)
    pixels = json.loads((tmp_path / "out" / "pixels.json").read_text())["rows"]
    assert all(row["bilinear and tf1_bilinear"] > row["bilinear and bicubic"] for row in pixels)
    monkeypatch.setattr(script, "replora_cli", lambda *_: pytest.fail("it was there"))
    script.main(arguments)


def test_the_page_of_images_quotes_the_comparison_of_filters():
    page = (SCRIPTS.parent / "docs" / "images.md").read_text(encoding="utf-8")
    for name in ("pixels", "accuracy"):
        for row in json.loads((SCRIPTS.parent / "results" / "filters" / f"{name}.json").read_text())["rows"]:
            if name == "pixels":
                cells = [row["images"], row["to"], *(value for key, value in row.items() if " and " in key)]
            else:
                means = row["mean test accuracy with"]
                cells = [row["task"], row["trained with"], *(f"{100 * mean:.1f}" for mean in means.values())]
            assert f"| {' | '.join(str(cell) for cell in cells)} |" in page


@pytest.fixture
def experiment(monkeypatch):
    """Imports a script that imports `evidence` from beside it."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module


@pytest.mark.parametrize("name", ["theory_simulation", "rate_tolerance"])
def test_an_experiment_continues_and_makes_its_page(name, experiment, tmp_path, monkeypatch):
    script = experiment(name)
    if name == "rate_tolerance":
        monkeypatch.setattr(script, "POWER_ITERATIONS", 1)
    file, page = tmp_path / "runs.jsonl", tmp_path / "page.md"
    script.main(["--quick", f"--runs={file}"])
    runs = file.read_text()
    file.write_text(runs + runs[: len(runs) // 9])  # interrupted while it wrote a line
    script.main(["--quick", f"--runs={file}"])
    assert file.read_text() == runs
    shown = (SCRIPTS.parent / "docs" / f"{PAGES[name]}.md").read_text("utf-8")
    page.write_text(re.sub(r"(<!-- table .*? -->\n).*?(<!-- end -->)", r"\1\2", shown, flags=re.DOTALL))
    script.main(["--report", f"--runs={file}", f"--out={tmp_path}", f"--page={page}"])
    content = json.loads((tmp_path / f"{PAGES[name]}.json").read_text())
    assert {"command", "git", "versions", "rows"} <= content.keys()
    assert all(text in page.read_text() for text in script.tables(content).values())
    assert {file.name for file in tmp_path.glob("*.png")} == set(re.findall(r"!\[.*\]\(.*/(.*)\)", page.read_text()))


PAGES = {"theory_simulation": "theory", "rate_tolerance": "tolerance"}


@pytest.mark.parametrize("name", PAGES)
def test_the_page_of_an_experiment_says_what_its_results_say(name, experiment):
    root, kind = SCRIPTS.parent, PAGES[name]
    page = (root / "docs" / f"{kind}.md").read_text("utf-8")
    if not (root / "results" / kind).is_dir():
        assert page.count("Not measured yet.") == page.count("<!-- table ")
        return
    content = json.loads((root / "results" / kind / f"{kind}.json").read_text("utf-8"))
    assert experiment("evidence").filled(page, experiment(name).tables(content)) == page
    assert not any(commit.endswith("-dirty") for commit in content["git"])
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", page):
        assert (root / "docs" / picture).is_file()


def test_what_the_page_of_the_theory_concludes():
    """The bold sentences at its end, as numbers."""
    content = json.loads((SCRIPTS.parent / "results" / "theory" / "theory.json").read_text("utf-8"))
    for slope in content["slopes"]:
        mean = np.mean([value for value in slope["by_seed"] if value is not None])
        outside = slope["case"] == "truth not shared" and slope["class"] != "free"
        if slope["error"] == "prediction":
            assert mean > -0.05 if outside else -0.65 < mean < -0.35, slope
        elif not outside and "too many" not in slope["case"]:
            assert mean > -0.25 if slope["error"] == "raw" else -0.7 < mean < -0.3, slope
    of = {(row["case"], row["class"]): row for row in content["rows"]}  # at the largest n, which comes last
    for case in (case for case in content["cases"] if case.startswith("exact")):
        free, shared = of[case, "free"], of[case, "shared"]
        low, high = np.exp(t_interval(np.log(free["prediction"]) - np.log(shared["prediction"])))
        counted = np.sqrt(free["effective"] / shared["effective"])
        assert low < counted < high, case
        assert np.median(free["products"]) > counted * np.median(shared["products"])


def test_derivatives_and_losses_of_the_mixture(experiment):
    script = experiment("theory_simulation")
    generator = np.random.default_rng(0)
    mixture, truth = script.Mixture(3, generator), script.draw_truth(script.CASES["exact"], generator)
    x = generator.uniform(-1, 1, (4, 3))
    for kind in script.CLASSES:
        fitted = script.Fitted(kind, 2, 3)
        flat = fitted.start(truth)
        np.testing.assert_allclose(mixture.predict(x, fitted.unpack(flat)[0]), mixture.predict(x, truth))
        flat = flat + generator.normal(0, 0.1, flat.shape)
        ends = [[mixture.predict(x, fitted.unpack(flat + s * e)[0]) for s in (1e-6, -1e-6)] for e in np.eye(len(flat))]
        differences = np.stack([(above - below).ravel() / 2e-6 for above, below in ends], axis=1)
        np.testing.assert_allclose(fitted.jacobian(mixture, x, flat), differences, atol=1e-7)
        # What the predictions do not see: one factor for each product that may move between B and A.
        many = generator.uniform(-1, 1, (200, 3))
        assert np.linalg.matrix_rank(fitted.jacobian(mixture, many, flat), tol=1e-8) == fitted.effective
    moved = truth | {"BQ": 3 * truth["BQ"], "AQ": truth["AQ"] / 3}
    assert script.voronoi_losses(truth, truth) == {"products": 0, "raw": 0, "balanced": 0}
    losses = script.voronoi_losses(moved, truth)
    assert losses["raw"] > 1 > 1e-9 > max(losses["products"], losses["balanced"])


def test_each_change_of_an_adapter_does_what_it_says(experiment):
    """After one step at a rate that is far too high."""
    script = experiment("rate_tolerance")
    images, labels = script.images_of("train", tuple(range(8)))
    found = {}
    for name in ("LoRA", "LoRA, step of BA clipped", "LoRA, weight normalization", "RepLoRA, only c of it trained"):
        run = script.Run(script.METHODS[name], 1.0, 0, 10)
        assert not run.update().any()
        before = {key: value.clone() for key, value in run.bank.state_dict().items()}
        found[name] = [run.step(images, labels) for _ in range(2)]
        moved = {key for key, value in run.bank.state_dict().items() if not value.equal(before[key])}
        if name.startswith("RepLoRA"):
            assert moved == {f"mlp_{side}.{part}" for side in "AB" for part in ("c", "V.0", "V.1")}
        else:
            assert moved == set(before)
    assert found["LoRA"][-1]["step_norm"] > 20
    assert found["LoRA, step of BA clipped"][-1]["step_norm"] <= 1
    capped = script.Run(script.Method(script.LORA, clip_norm=2.0), 1.0, 0, 10)
    assert capped.step(images, labels)["update_norm"] == pytest.approx(2, rel=1e-4)
    faster = script.Run(script.METHODS["LoRA+"], 1.0, 0, 10)
    assert faster.step(images, labels)["update_norm"] == pytest.approx(16 * found["LoRA"][0]["update_norm"], rel=0.01)
