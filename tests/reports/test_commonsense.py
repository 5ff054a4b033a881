from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from replora.evaluation.choice_counts import accuracies
from replora.reports.answers import right_answers
from replora.reports.sections.commonsense import CommonsenseTableError, commonsense_table


def write(folder: Path, name: str, right: dict[str, int], /, **changes: Any) -> Path:
    """A results file of a run with 500 questions a task."""
    counts = {
        task: {"items": 500, "right": count, "right_norm": count + 10, "unparsed": 0} for task, count in right.items()
    }
    names = changes.pop("names", {"acc": "right", "acc_norm": "right_norm"})
    content = {
        "format": 1,
        "backbone": {"name": "smollm2", "fingerprint": changes.pop("fingerprint", "f")},
        "method": "replora",
        "parameters": {"adapter_trained": 1_234_567, "adapter_deployed": 230_400},
        "data": {"preset": changes.pop("preset", "cloze")},
        "test": {"weights": "last epoch", "evaluation": "likelihood", **accuracies(counts, names), **changes},
    }
    file = folder / f"{name}.json"
    file.write_text(json.dumps(content))
    return file


def test_a_row_a_run_and_a_column_a_task(tmp_path):
    runs = [
        write(tmp_path, "untuned", {"ARC-Easy": 230, "boolq": 190}, weights="untrained"),
        write(tmp_path, "replora", {"ARC-Easy": 310, "boolq": 300}),
    ]
    lines = commonsense_table(runs, "acc").splitlines()
    names = "BoolQ | PIQA | SIQA | HellaS. | WinoG. | ARC-e | ARC-c | OBQA"
    assert lines[0] == f"| acc | trained | deployed | {names} | mean |"
    assert lines[2].startswith("| untuned | 0 | 0 | 38.0 [")
    # Wilson's interval of 310 and 300 out of 500.
    boolq, arc = "60.0 [55.6, 64.2]", "62.0 [57.7, 66.1]"
    assert lines[3] == f"| replora | 1,234,567 | 230,400 | {boolq} |  |  |  |  | {arc} |  |  | 61.0 |"
    assert lines[-1] == "Test questions: BoolQ 500, ARC-e 500."


def test_acc_norm_is_taken_where_it_was_measured(tmp_path):
    run = write(tmp_path, "a", {"boolq": 300})
    assert commonsense_table([run]).startswith("| acc_norm |")
    assert "62.0" in commonsense_table([run])
    with pytest.raises(CommonsenseTableError, match=r"metric: 'accuracy' was not measured\. .*'acc'"):
        commonsense_table([run], "accuracy")


def test_texts_without_an_answer_are_shown(tmp_path):
    names = {"accuracy": "right", "unparsed": "unparsed"}
    run = write(tmp_path, "a", {"boolq": 100}, names=names, evaluation="generate")
    assert "unparsed" not in commonsense_table([run])
    content = json.loads(run.read_text())
    content["test"]["tasks"]["boolq"]["unparsed"] = 0.25
    run.write_text(json.dumps(content))
    assert "20.0 [16.7, 23.7], 25.0 unparsed" in commonsense_table([run])


@pytest.mark.parametrize("change", [{"preset": "clean"}, {"evaluation": "generate"}, {"fingerprint": "other"}])
def test_what_does_not_compare_is_refused(tmp_path, change):
    runs = [write(tmp_path, "a", {"boolq": 300}), write(tmp_path, "b", {"boolq": 300}, **change)]
    with pytest.raises(CommonsenseTableError, match="Make a table for each kind"):
        commonsense_table(runs)


def test_other_questions_are_refused(tmp_path):
    runs = [write(tmp_path, "a", {"boolq": 300}), write(tmp_path, "b", {"boolq": 300, "piqa": 300})]
    with pytest.raises(CommonsenseTableError, match=r"'boolq': 500, 'piqa': 500"):
        commonsense_table(runs)


def test_a_run_without_a_test(tmp_path):
    file = tmp_path / "a.json"
    file.write_text('{"format": 1, "fit": {}}')
    with pytest.raises(CommonsenseTableError, match="has no test of commonsense tasks"):
        commonsense_table([file])
    with pytest.raises(CommonsenseTableError, match="There is no run"):
        commonsense_table([])


def test_answers_to_the_same_questions_are_compared_in_pairs(tmp_path):
    """Of 500 questions 90 are gained and 80 lost, then 60 and 20 with intervals that overlap as well."""
    runs = []
    for name, digits in {
        "untuned": "1" * 230 + "0" * 270,
        "a": "0" * 80 + "1" * 150 + "1" * 90 + "0" * 180,
        "b": "0" * 20 + "1" * 210 + "1" * 60 + "0" * 210,
    }.items():
        right = {"ARC-Easy": {"acc": digits}}
        weights = "untrained" if name == "untuned" else "last epoch"
        runs.append(write(tmp_path, name, {"ARC-Easy": digits.count("1")}, weights=weights, right=right))
    lines = commonsense_table(runs, "acc").splitlines()
    assert lines[-6:-2] == [
        "| acc against untuned | task | intervals | gained | lost | p |",
        "|---|---|---|---|---|---|",
        "| replora | ARC-e | overlap | 90 | 80 | 0.490 |",
        "| replora | ARC-e | overlap | 60 | 20 | < 0.001 |",
    ]
    assert "against untuned" not in commonsense_table(runs[1:], "acc")
    assert "against untuned" not in commonsense_table([runs[0], write(tmp_path, "c", {"ARC-Easy": 300})], "acc")


def test_right_answers_in_few_bytes(tmp_path):
    file = tmp_path / "predictions.jsonl"
    answers = [(2, True, False), (10, True, True), (1, False, True)]  # a digit each, by the number of the question
    lines = [{"task": "boolq", "index": i, "right": right, "right_norm": norm} for i, right, norm in answers]
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert right_answers(file, ["acc", "acc_norm"]) == {"boolq": {"acc": "011", "acc_norm": "101"}}
    assert right_answers(file, ["accuracy", "unparsed"]) == {"boolq": {"accuracy": "011"}}


@pytest.mark.parametrize(
    ("entry", "status"),
    [
        ({"fit": {"partial": ["limit_train_batches=2"]}}, "partial: limit_train_batches=2"),
        ({"fit": {"partial": [], "diverged": True}}, "diverged"),
    ],
)
def test_a_row_says_whether_its_run_is_partial_or_diverged(tmp_path, entry, status):
    run = write(tmp_path, "a", {"boolq": 300})
    run.write_text(json.dumps(json.loads(run.read_text()) | entry))
    assert f"| replora, {status} | 1,234,567 |" in commonsense_table([run])
