"""Methods bring the factor of their learning rate; whatever else sets a rate holds."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from replora.config_files import packaged_configs, read_config
from replora.options.settings import RATE, settings_of

NAMES = sorted(name for name in packaged_configs() if name.startswith("adapter/"))
PROBE = "--config=adapter/linear_probe.yaml"


def rate(*arguments: str) -> float | None:
    found = [setting for setting in settings_of(list(arguments)) if setting.name == RATE]
    return float(found[-1].value) if found else None


@pytest.mark.parametrize("name", NAMES)
def test_each_method_has_a_factor_with_its_source(name: str) -> None:
    text = packaged_configs()[name].read_text(encoding="utf-8")
    content = read_config(packaged_configs()[name])["model"]["init_args"]["optimizer"]
    assert content["init_args"]["lr"].endswith("x")
    assert "# Times the rate of the task's configuration" in text


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--config=vtab.yaml", PROBE], 0.01),
        (["--config=vtab", PROBE], 0.01),
        (["--config=quickstart.yaml", PROBE], 0.1),
        (["--config=commonsense_smollm2.yaml", "--config=adapter/lora.yaml"], 0.0015),
        (["--config=vtab.yaml", "--config=adapter/full.yaml"], 0.0002),
        (["--config=vtab.yaml", "--config=adapter/full.yaml", PROBE], 0.01),
        (["--config=vtab.yaml", PROBE, "--config=adapter/lora.yaml"], 0.001),
        (["--config=vtab.yaml", "--config=recipe/noah.yaml", PROBE], 0.001),
        (["--config=vtab.yaml", PROBE, "--config=recipe/vpt.yaml"], 1.0),
        (["--config=vtab.yaml", "--model.optimizer.lr=0.3", PROBE], 0.3),
        (["--config=vtab.yaml", PROBE, "--model.optimizer.lr", "0.3"], 0.3),
        (["--config=vtab.yaml", PROBE, "--model.optimizer.init_args.lr=0.3"], 0.3),
        (["--config=mine.yaml", PROBE], 0.7),
        (["--config=vtab.yaml", "--config=mine.yaml", PROBE], 0.7),
        ([PROBE], None),
    ],
)
def test_rates_in_every_order(
    arguments: list[str], expected: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("model: {init_args: {optimizer: {init_args: {lr: 0.7}}}}")
    assert rate(*arguments) == expected


def test_the_run_and_the_help_have_the_rate(capsys: pytest.CaptureFixture[str]) -> None:
    from replora.cli.main import main

    with pytest.raises(SystemExit):
        main(["fit", "--config=vtab.yaml", PROBE, "--print_config"])
    optimizer = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]["optimizer"]
    assert optimizer["init_args"]["lr"] == 0.01
    assert optimizer["init_args"]["weight_decay"] == 0.0001
    main(["fit", "--config=vtab.yaml", PROBE, "--help"])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "model.optimizer.lr" in line]
    assert "0.01  (adapter/linear_probe.yaml)" in line
