"""`--help`: what matters first, with the values in force and their sources."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from replora.cli.main import TRAINER_VERBS, main
from replora.config_files import packaged_configs
from replora.trainer.help import FIRST
from replora.trainer.in_force import TOP
from tests.cli.helpers import refused

CONFIGS = [name for name in packaged_configs() if "/" not in name]


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    main(list(arguments))
    return capsys.readouterr().out


def value_of(page: str, option: str) -> str:
    line = re.search(rf"^  --{re.escape(option)}  (.*)$", page, re.MULTILINE)
    return line[1] if line else "not shown"


def test_the_page_shows_the_values_in_force_and_their_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("model:\n  init_args:\n    optimizer:\n      init_args:\n        lr: 0.25\n")
    options = ["--config=vtab.yaml", "--config=mine.yaml", "--config", "adapter/lora.yaml", "--data.shots", "3"]
    page = shown(capsys, "fit", *options, "--help")
    assert value_of(page, "model.optimizer.lr") == "0.25  (mine.yaml)"
    assert value_of(page, "model.optimizer.weight_decay") == "0.0001  (vtab.yaml)"
    assert value_of(page, "data.shots") == "3  (given here)"
    assert value_of(page, "data.train_fraction") == "1.0  (default)"
    assert value_of(page, "model.adapter.targets") == "[q, v]  (adapter/lora.yaml)"
    assert value_of(page, "data") == "VTABDataModule  (vtab.yaml)"
    assert "adapter/lora.yaml" in value_of(page, "model.adapter")
    assert "the environment variable REPLORA_DATA" in re.sub(r"\s+", " ", page)
    assert list(tmp_path.iterdir()) == [tmp_path / "mine.yaml"]


@pytest.mark.parametrize("config", CONFIGS)
def test_each_configuration_has_a_short_page_of_what_matters(
    config: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    page = shown(capsys, "fit", f"--config={config}", "--help")
    options = re.findall(r"^  --([a-z_.]+)", page, re.MULTILINE)
    assert len(options) <= 32
    assert {"data", "model.adapter.rank", "model.optimizer.lr", "data.batch_size", "trainer.max_epochs"} <= {*options}
    assert options.index("model.optimizer.lr") < options.index("trainer.max_epochs")
    assert max(map(len, page.splitlines())) <= 80 or "/" in max(page.splitlines(), key=len)
    assert len(page.splitlines()) <= 110


@pytest.mark.parametrize("verb", TRAINER_VERBS)
def test_without_a_configuration_the_page_says_where_to_find_one(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    page = shown(capsys, verb, "--help")
    assert f"replora-cli {verb} --config vtab.yaml --help" in re.sub(r"\s+", " ", page)
    assert "--model.optimizer.lr" in page
    assert "(needed)" in page


def test_the_long_page_has_every_option_of_the_classes_in_force(capsys: pytest.CaptureFixture[str]) -> None:
    page = shown(capsys, "fit", "--config=vtab.yaml", "--help_all")
    options = re.findall(r"^  --([a-z_.0-9]+)", page, re.MULTILINE)
    for name in (
        "test_after_fit",
        "data.subset_seed",
        "model.schedule.min_lr",
        "model.adapter.hidden",
        "model.optimizer.betas",
        "trainer.profiler",
        "data.skip_corrupt",
        "data.track",
    ):
        assert name in options
    first_of_trainer = next(i for i, name in enumerate(options) if name.startswith("trainer.") and name not in FIRST)
    assert all(name.startswith("trainer.") for name in options[first_of_trainer:])
    assert len(set(options)) == len(options)
    assert "paramref" not in page


def test_help_of_a_configuration_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such file" in refused(capsys, "fit", "--config=nowhere.yaml", "--help")


def test_what_matters_exists() -> None:
    assert {name.split(".")[0] for name in FIRST} <= TOP.keys()
