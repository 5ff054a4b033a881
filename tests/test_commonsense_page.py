"""The figures of docs/commonsense.md equal those of the results files and support the page's statements."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

import replora
from replora.adapters.container import options_of
from replora.config_files import packaged_configs
from replora.reports.sections.commonsense import commonsense_table
from tests.test_scripts import load

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "commonsense.md").read_text(encoding="utf-8")
RESULTS = ROOT / "results" / "commonsense_smollm2"
TABLES = {name: list(runs) for name, runs in load("commonsense_smollm2").TABLES.items()}
FRACTIONS = {"cloze_three_tasks": 0.05, "cloze_openbookqa": 0.3}


def results(table: str, name: str) -> dict:
    return json.loads((RESULTS / f"{table}-{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("table", TABLES)
def test_tables_are_those_of_the_results(table):
    assert commonsense_table([RESULTS / f"{table}-{name}.json" for name in TABLES[table]]) in PAGE
    for name in TABLES[table]:
        content = results(table, name)
        assert content["backbone"]["name"] == "smollm2"
        assert table.startswith(content["data"]["preset"])
        assert content["data"]["train_fraction"] == FRACTIONS.get(table, 0.1)
        assert content["test"]["seed"] == 0
        for task, found in content["test"]["tasks"].items():
            for metric, digits in content["test"]["right"][task].items():
                assert len(digits) == found["items"]
                assert digits.count("1") / len(digits) == pytest.approx(found[metric], abs=1e-6)


def test_the_page_has_a_place_for_every_table():
    assert re.findall(r"<!-- table (\w+) -->", PAGE) == list(TABLES)


@pytest.mark.parametrize("table", TABLES)
def test_results_are_those_of_the_packaged_configuration(table):
    """After a change of defaults, scripts/commonsense_smollm2.py has to run again."""
    packaged = yaml.safe_load(packaged_configs()["commonsense_smollm2.yaml"].read_text(encoding="utf-8"))
    today = replora.RepLoRAConfig(**packaged["model"]["init_args"]["adapter"]["init_args"])
    assert results(table, "replora")["options"] == json.loads(json.dumps(options_of(today)))


def test_questions_a_second_are_those_of_the_results():
    found = {(t, name): results(t, name)["test"]["items_per_second"] for t, names in TABLES.items() for name in names}
    written = found.pop(("llm_adapters", "replora"))
    least, most = min(found.values()), max(found.values())
    assert f"{least:.0f} to {most:.0f} by\nlikelihood, {written:.1f} by generation with 4 beams" in PAGE


def test_every_result_is_on_the_page():
    names = {f"{table}-{name}" for table, names in TABLES.items() for name in names}
    assert {file.stem for file in RESULTS.glob("*.json")} == names


@pytest.mark.parametrize("method", ["lora", "replora"])
def test_both_methods_clearly_beat_the_untuned_model(method):
    """Over 500 questions of ARC-easy the intervals of acc_norm lie apart."""
    before, after = (results("cloze", name)["test"]["tasks"]["ARC-Easy"] for name in ("untuned", method))
    assert before["items"] == after["items"] == 500
    assert after["acc_norm_interval"][0] > before["acc_norm_interval"][1]
