from __future__ import annotations

import pytest

from replora.metrics import normalize_answer, vqa_accuracy


@pytest.mark.parametrize(
    ("said", "matching", "accuracy"),
    [("yes", 10, 1.0), ("yes", 0, 0.0), ("yes", 1, 0.3), ("yes", 2, 0.6), ("yes", 3, 0.9), ("yes", 4, 1.0)],
)
def test_each_answer_is_left_out_once(said, matching, accuracy):
    """With k matches: k times min(1, (k - 1) / 3) and 10 - k times min(1, k / 3), over ten."""
    assert vqa_accuracy(said, ["yes"] * matching + ["no"] * (10 - matching)) == pytest.approx(accuracy)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A red bus.", "red bus"),
        ("two", "2"),
        ("none", "0"),
        ("dont know", "don't know"),
        ("The man's hat", "man's hat"),
        ("cant", "can't"),
        ("yall'd've", "y'all'd've"),
        ("somebody'd", "somebodyd"),  # the one entry of the table that takes an apostrophe away
        ("3.5", "3.5"),  # a digit follows
        ("5. street", "5 street"),
        ("black/white", "black white"),  # a mark between letters becomes a space
        ("black / white", "black white"),  # beside a space it goes
        ("10,000", "10000"),  # a comma between digits: every mark goes
        ("10,000 x-y", "10000 xy"),
        ("wi-fi", "wi fi"),
    ],
)
def test_predictions_are_normalized_as_by_the_official_script(text, expected):
    assert normalize_answer(text) == expected


def test_only_32_full_stops_are_removed():
    """The script passes a flag of `re` where the count is expected."""
    assert normalize_answer("a b" + "." * 40) == "b" + "." * 8


def test_answers_lose_their_punctuation_only_where_they_disagree():
    assert vqa_accuracy("t shirt", ["t-shirt"] * 10) == 0, "the answers agree, so they stay as they are"
    assert vqa_accuracy("t shirt", ["t-shirt"] * 9 + ["shirt"]) == 1
    assert vqa_accuracy("two", ["two"] * 9 + ["2"]) == pytest.approx(0.3), "numbers of answers are never normalized"


def test_line_ends_and_spaces_of_a_prediction_do_not_count():
    assert vqa_accuracy(" yes\n", ["yes"] * 10) == 1
