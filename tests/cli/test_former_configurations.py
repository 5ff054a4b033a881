"""The fit.yaml files of runs before the rooms were laid out go on loading, with every option and value.

Each file is what `replora-cli fit ... --print_config` printed then: all options with the values in force.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

import replora
from replora.cli.main import main

FORMER = sorted((Path(__file__).parent / "former").glob("*.yaml"))


def options(content: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(content, dict) or not content:
        return {path: content}
    return {k: v for key, value in content.items() for k, v in options(value, f"{path}.{key}".lstrip(".")).items()}


@pytest.mark.parametrize("file", FORMER, ids=lambda file: file.stem)
def test_a_former_fit_yaml_gives_the_same_options(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["fit", f"--config={file}", "--print_config"])
    assert not stopped.value.code
    printed = capsys.readouterr().out
    found = options(yaml.safe_load(printed[printed.index("seed_everything:") :]))
    former = options(yaml.safe_load(file.read_text("utf-8")))
    assert {name: found.get(name, "absent") for name in former} == former


def test_a_former_class_name_still_names_the_class() -> None:
    assert replora.PeftConfig is replora.PeftMethodConfig


@pytest.mark.parametrize(
    ("name", "expected"), [("vtab_lora", "by_split"), ("small_images", "by_split"), ("ssv2", None)]
)
def test_a_former_fit_yaml_keeps_the_former_rule_of_subsets(
    name: str, expected: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    file = next(file for file in FORMER if file.stem == name)
    with pytest.raises(SystemExit):
        main(["fit", f"--config={file}", "--print_config"])
    printed = capsys.readouterr().out
    found = yaml.safe_load(printed[printed.index("seed_everything:") :])["data"]["init_args"]
    assert found.get("subset_rule") == expected


def test_a_new_run_has_the_rule_of_nested_protocols(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fit", "--config=vtab.yaml", "--print_config"])
    assert "subset_rule: within_final" in capsys.readouterr().out
