from __future__ import annotations

import json

import pytest

from replora.datasets.vision_language.tasks import VL_TASKS, VLRecord
from replora.metrics import caption_tokenizer, nlvr2_consistency, score_answers
from replora.metrics.submissions import write_submission

TOKENIZER = caption_tokenizer("approximate")


def records(truths, ids=None, **about):
    ids = ids or [100 + i for i in range(len(truths))]
    return [VLRecord(i, ids[i], "", ("x",), truth=truth, about=about) for i, truth in enumerate(truths)]


def score(task, truths, said, ids=None):
    return score_answers(VL_TASKS[task], records(truths, ids), dict(enumerate(said)), TOKENIZER)


def test_vqa():
    truths = [
        {"answers": ["yes"] * 10, "scores": {"yes": 1.0}},
        {"answers": ["a cat"] * 2 + ["cat"] * 8, "scores": {"cat": 0.6}},
    ]
    assert score("vqa", truths, ["no", "a cat"]) == pytest.approx({"accuracy": 0.5, "label_score": 0.0})
    assert score("vqa", truths, ["yes", "cat"]) == pytest.approx({"accuracy": 1.0, "label_score": 0.8})


def test_gqa_is_an_exact_match():
    assert score("gqa", [{"yes": 1.0}, {"left": 1.0}], ["yes", "Left"]) == {"accuracy": 0.5}


def test_nlvr2():
    ids = ["dev-1-0-0", "dev-1-1-0", "dev-1-2-0", "dev-1-0-1", "dev-2-0-0"]
    found = score("nlvr2", [True, False, True, True, False], ["true", "true", "true", "true", "false"], ids)
    assert found["accuracy"] == pytest.approx(0.8)
    assert found["consistency"] == pytest.approx(2 / 3), "sentence 1-0 has a wrong pair"
    assert nlvr2_consistency({"test1-0-0-0": True, "test1-0-1-0": True}) == 1


def test_choices():
    found = score("tvqa", [0, 3, 4, 2], ["a0", "a3", "a 4", "a2."])
    assert found == {"accuracy": 0.5, "unparsed": 0.5}


def test_captions_of_a_clip_count_together():
    """A candidate like one of four references scores as coco-caption says, and others of the clip do not spoil df."""
    together = score("tvc", [["a dog runs", "the dog is fast"], ["a cat sits", "one cat"]], ["a dog runs", "one cat"])
    flat = score(
        "tvc", [["a dog runs"], ["the dog is fast"], ["a cat sits"], ["one cat"]], ["a dog runs"] * 2 + ["one cat"] * 2
    )
    assert together["cider"] != pytest.approx(flat["cider"])
    assert together["cider"] > 0


def test_values_scorer_blanks_what_is_not_ascii():
    truths = [["a caf\u00e9 scene"], ["a cat sits"]]
    assert (
        score("tvc", truths, ["a caf scene", "a cat sits"])["cider"]
        > score("coco", truths, ["a caf scene", "a cat sits"])["cider"]
    )


def test_what_has_no_truth_or_no_answer_is_left_out():
    assert score("tvqa", [None, None], ["a0", "a1"]) == {}
    assert score_answers(VL_TASKS["gqa"], records([{"a": 1.0}, {"b": 1.0}]), {1: "b"}, TOKENIZER) == {"accuracy": 1.0}


@pytest.mark.parametrize(
    ("task", "record_id", "said", "name", "content"),
    [
        ("vqa", 7, "red", "vqa_test_predictions.json", [{"question_id": 7, "answer": "red"}]),
        ("gqa", "07", "red", "gqa_test_predictions.json", [{"questionId": "07", "prediction": "red"}]),
        ("coco", 9, "a dog", "coco_test_predictions.json", [{"image_id": 9, "caption": "a dog"}]),
        ("tvqa", "12", "a3", "tvqa_test_predictions.json", {"12": 3}),
        ("how2qa", "12", "nonsense", "how2qa_test_predictions.json", {"12": 0}),
    ],
)
def test_submissions(tmp_path, task, record_id, said, name, content):
    file = write_submission(tmp_path, VL_TASKS[task], "test", records([None], [record_id]), {0: said})
    assert file == tmp_path / name
    assert json.loads(file.read_text()) == content


def test_submissions_of_lines(tmp_path):
    two = records([None, None], ["test1-0-0-0", "test1-0-1-0"])
    file = write_submission(tmp_path, VL_TASKS["nlvr2"], "test", two, {0: "true", 1: "false"})
    assert file.read_text() == "test1-0-0-0,True\ntest1-0-1-0,False\n"
    clips = records([None, None], [86603, 86604], vid_name="v", ts=[1, 2.5])
    file = write_submission(tmp_path, VL_TASKS["tvc"], "val", clips, {0: "A man.", 1: "A cat."})
    assert file.name == "tvc_val_predictions.jsonl"
    first = json.loads(file.read_text().splitlines()[0])
    assert first == {"vid_name": "v", "ts": [1, 2.5], "clip_id": 86603, "descs": [{"desc": "A man."}]}
