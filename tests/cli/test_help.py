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
    assert len(options) <= 55
    assert {"data", "model.adapter.rank", "model.optimizer.lr", "data.batch_size", "trainer.max_epochs"} <= {*options}
    assert options.index("model.optimizer.lr") < options.index("trainer.max_epochs")
    texts = [line for line in page.splitlines() if not line.startswith("  ") or line.startswith("        ")]
    assert max(map(len, texts)) <= 80
    assert len(page.splitlines()) <= 190


@pytest.mark.parametrize("verb", TRAINER_VERBS)
def test_without_a_configuration_the_page_says_where_to_find_one(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    page = shown(capsys, verb, "--help")
    config = "vtab.yaml" if verb == "fit" else "RUN/fit.yaml"
    assert f"replora-cli {verb} --config {config} --help" in re.sub(r"\s+", " ", page)
    assert ("--model.optimizer.lr" in page) == (verb == "fit")
    assert "--data.root" in page


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
    for foreign in ("paramref", ":ref:", ".. note", "``", "`_", "Namespace(", "optimizer.params", "model.num_classes"):
        assert foreign not in page, foreign


def test_the_page_shows_what_a_configuration_sets_beyond_that(capsys: pytest.CaptureFixture[str]) -> None:
    page = shown(capsys, "fit", "--config=vtab.yaml", "--config=trainer/ddp.yaml", "--help")
    assert value_of(page, "model.drop_path_rate") == "0.1  (vtab.yaml)"
    assert value_of(page, "trainer.strategy") == "ddp  (trainer/ddp.yaml)"
    assert "replora-cli fit --config=vtab.yaml --config=trainer/ddp.yaml --help_all" in page


@pytest.mark.parametrize(
    ("option", "message"), [("--lr=0.1", "--model.optimizer.lr"), ("--data.shot=5", "--data.shots?")]
)
def test_a_wrong_option_beside_help_is_named(option: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in refused(capsys, "fit", "--config=vtab.yaml", option, "--help")


@pytest.mark.parametrize("group", ["model", "data"])
def test_help_of_a_group_is_about_the_class_in_force(group: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--config=vtab.yaml", f"--{group}.help"])
    assert stopped.value.code == 0
    assert {"model": "--model.label_smoothing", "data": "--data.track"}[group] in capsys.readouterr().out


def test_help_of_a_configuration_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such file" in refused(capsys, "fit", "--config=nowhere.yaml", "--help")


def test_what_matters_exists() -> None:
    assert {name.split(".")[0] for name in FIRST} <= TOP.keys()
