from __future__ import annotations

import math
import random

import pytest

from replora.metrics import caption_tokenizer, cider_d
from replora.metrics.caption_tokenizer import CaptionTokenizerError, tokenize_approximately

WORDS = ["a", "dog", "cat", "man", "sits", "runs", "on", "the", "red", "grass", "sofa", "with", "ball", "and"]


def corpus(images, references, seed=0):
    draw = random.Random(seed)
    sentences = [
        [" ".join(draw.choices(WORDS, k=draw.randint(1, 12))) for _ in range(references)] for _ in range(images)
    ]
    return [
        draw.choice(few) if draw.random() < 0.3 else " ".join(draw.choices(WORDS, k=7)) for few in sentences
    ], sentences


def test_by_hand():
    """Two images, unigrams alone: idf is log 2 for what is in one image and 0 for what is in both."""
    scores = cider_d(["dog", "a cat"], [["dog"], ["cat"]])
    assert scores[0] == pytest.approx(10 / 4)  # the unigram's cosine is 1, the other three n-grams do not exist
    # "a" is in no reference: its weight is log 2 as well. One bigram against none: exp(-1 / 72).
    assert scores[1] == pytest.approx(10 / 4 / math.sqrt(2) * math.exp(-1 / 72))


def test_a_repeated_word_earns_no_more_than_the_reference_has():
    """CIDEr-D clips: (min(3, 1) * 1) / (3 * 1) for three times the word."""
    scores = cider_d(["dog dog dog", "x"], [["dog"], ["cat"]])
    assert scores[0] == pytest.approx(10 / 4 / 3 * math.exp(-4 / 72))


def test_one_image_has_no_score():
    assert cider_d(["a dog"], [["a dog"]]) == [0.0]


@pytest.mark.parametrize("references", [1, 5])
def test_it_is_that_of_coco_caption(references):
    cider = pytest.importorskip("pycocoevalcap.cider.cider")
    candidates, sentences = corpus(40, references)
    expected, each = cider.Cider().compute_score(dict(enumerate(sentences)), {i: [c] for i, c in enumerate(candidates)})
    found = cider_d(candidates, sentences)
    assert found == pytest.approx(each.tolist(), rel=1e-9)
    assert sum(found) / len(found) == pytest.approx(expected)


SENTENCES = [
    "A man's dog isn't on the red-brick sofa, is it?",
    "Two people; they've 3.5 balls... and (maybe) more!",
    'A sign says "STOP" - near the well-known U-turn: yes.',
    "the dog & the cat",
    "",
    "I'd say it'll do.",
]


def test_approximate_tokens():
    assert tokenize_approximately(SENTENCES[:2]) == [
        "a man 's dog is n't on the red-brick sofa is it",
        "two people they 've 3.5 balls and -lrb- maybe -rrb- more",
    ]
    assert caption_tokenizer("approximate").name == "approximate"


def test_javas_tokens_are_those_of_coco_caption():
    try:
        tokenizer = caption_tokenizer("ptb_java")
    except CaptionTokenizerError as error:
        pytest.skip(str(error))
    found = tokenizer.tokenize(SENTENCES)
    assert len(found) == len(SENTENCES)
    assert found[4] == ""
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    kept = {i: [{"caption": text}] for i, text in enumerate(SENTENCES) if text}
    assert {i: [found[i]] for i in kept} == PTBTokenizer().tokenize(kept)
    approximate = tokenize_approximately(SENTENCES)
    assert [a == b for a, b in zip(approximate, found, strict=True)].count(True) >= 5


DIFFERENCES = {  # sentence -> the approximation's tokens, and Stanford's
    "cannot gonna lemme 'twas": ("cannot gonna lemme twas", "can not gon na lem me 't was"),
    "3 p.m. now": ("3 p.m now", "3 p.m. now"),
    "the u.s. too": ("the u.s too", "the u.s. too"),
    "Mr. X": ("mr x", "mr. x"),
    "10am 50's 1990s": ("10 am 50 s 1990 s", "10am 50 's 1990s"),
    "3-4 1/2 ½": ("3 4 1 / 2 ½", "3-4 1/2 1/2"),
    "a/b x_y": ("a / b x _ y", "a/b x_y"),
    "see #tag @name": ("see # tag @ name", "see #tag @name"),
    "rock 'n' roll": ("rock n roll", "rock 'n' roll"),
    "don`t": ("don t", "do n`t"),
}


def test_what_the_approximation_does_otherwise():
    """As the module's head lists it."""
    assert tokenize_approximately(list(DIFFERENCES)) == [approximate for approximate, _ in DIFFERENCES.values()]
    try:
        tokenizer = caption_tokenizer("ptb_java")
    except CaptionTokenizerError as error:
        pytest.skip(str(error))
    assert tokenizer.tokenize(list(DIFFERENCES)) == [stanfords for _, stanfords in DIFFERENCES.values()]


def test_a_tokenizer_that_is_not_there(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda _: None)
    assert caption_tokenizer("auto").name == "approximate"
    with pytest.raises(CaptionTokenizerError, match="needs Java"):
        caption_tokenizer("ptb_java")
    with pytest.raises(CaptionTokenizerError, match="Did you mean 'ptb_java'"):
        caption_tokenizer("ptb")


@pytest.mark.parametrize(
    ("java", "reason"),
    [("#!/bin/sh\necho The operation needs a Java Runtime. >&2\nexit 1\n", "Runtime"), ("", "xec format|no output")],
)
def test_a_java_that_does_not_run_is_found_before_training(tmp_path, monkeypatch, java, reason):
    pytest.importorskip("pycocoevalcap")
    stub = tmp_path / "java"
    stub.write_text(java)
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert caption_tokenizer("auto").name == "approximate"
    with pytest.raises(CaptionTokenizerError, match=f"Java could not tokenize .*({reason})"):
        caption_tokenizer("ptb_java")
