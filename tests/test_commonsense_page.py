"""The figures of docs/commonsense.md are those of the results files, and say what they seem to say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from replora.reports.commonsense import commonsense_table

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "commonsense.md").read_text(encoding="utf-8")
RESULTS = ROOT / "results" / "commonsense_smollm2"
TABLES = {
    "cloze": ["untuned", "lora", "replora"],
    "cloze_three_tasks": ["untuned", "lora", "replora"],
    "clean": ["untuned", "replora"],
    "llm_adapters": ["replora"],
}


def results(table: str, name: str) -> dict:
    return json.loads((RESULTS / f"{table}-{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("table", TABLES)
def test_tables_are_those_of_the_results(table):
    assert commonsense_table([RESULTS / f"{table}-{name}.json" for name in TABLES[table]]) in PAGE
    for name in TABLES[table]:
        content = results(table, name)
        assert content["backbone"]["name"] == "smollm2"
        assert table.startswith(content["data"]["preset"])
        assert content["data"]["train_fraction"] == (0.05 if table == "cloze_three_tasks" else 0.1)
        assert content["test"]["seed"] == 0


def test_every_result_is_on_the_page():
    names = {f"{table}-{name}" for table, names in TABLES.items() for name in names}
    assert {file.stem for file in RESULTS.glob("*.json")} == names


@pytest.mark.parametrize("method", ["lora", "replora"])
def test_both_methods_clearly_beat_the_untuned_model(method):
    """Over 500 questions of ARC-easy the intervals of acc_norm lie apart."""
    before, after = (results("cloze", name)["test"]["tasks"]["ARC-Easy"] for name in ("untuned", method))
    assert before["items"] == after["items"] == 500
    assert after["acc_norm_interval"][0] > before["acc_norm_interval"][1]
