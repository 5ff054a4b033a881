"""VQAv2's accuracy (Antol et al. 2015, arXiv 1505.00468), with the quirks of its official script.

The script (github.com/GT-Vision-Lab/VQA, PythonEvaluationTools/vqaEvaluation/vqaEval.py, as VL-T5 and VL-Adapter use
it) differs from the paper, and published numbers depend on the differences:

- A mark of punctuation is deleted if a space is next to one of its kind, or if the text has a comma between
  digits; otherwise it becomes a space.
- A full stop is deleted unless a digit follows ("3.5" stays). At most 32 are: a flag of `re` is passed as that count.
- Punctuation is removed from human answers only if the ten disagree; articles and number words never are.
- Contractions are restored in predictions; those with capitals in the table never match, as the words are lower case,
  so they are left out here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_NUMBERS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6"}
_NUMBERS |= {"seven": "7", "eight": "8", "nine": "9", "ten": "10"}
_ARTICLES = {"a", "an", "the"}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_STOP = re.compile(r"\.(?!\d)")
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_MOST_STOPS = int(re.UNICODE)

# A word of this list gets its apostrophe back if a text has the word without it.
_CONTRACTED = """\
ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's isn't
it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've shouldn't
somebody'll somebody's someone'd someone'll someone's something'd something'll that's there'd there're there's they'd
they'll they're they've wasn't we've weren't what'll what're what's what've when's where'd where's where've who'd
who'll who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've"""
# The rest of the table: a word of a text, and its replacement.
_OTHER_WORDS = """couldn'tve couldn't've  couldnt've couldn't've  hadnt've hadn't've  hadn'tve hadn't've  hed've he'd've
he'dve he'd've  itd've it'd've  it'dve it'd've  mightnt've mightn't've  mightn'tve mightn't've  ow's'at 'ow's'at
'ows'at 'ow's'at  'ow'sat 'ow's'at  shed've she'd've  she'dve she'd've  shouldnt've shouldn't've
shouldn'tve shouldn't've  somebody'd somebodyd  somebodyd've somebody'd've  somebody'dve somebody'd've
someoned've someone'd've  someone'dve someone'd've  somethingd've something'd've  something'dve something'd've
thered've there'd've  there'dve there'd've  theyd've they'd've  they'dve they'd've  twas 'twas  wed've we'd've
we'dve we'd've  whod've who'd've  who'dve who'd've  wouldnt've wouldn't've  wouldn'tve wouldn't've  yall'll y'all'll
y'allll y'all'll  yall'd've y'all'd've  y'alld've y'all'd've  y'all'dve y'all'd've  youd've you'd've
you'dve you'd've"""
_CONTRACTIONS = {word.replace("'", ""): word for word in _CONTRACTED.split()}
_CONTRACTIONS |= dict(zip(_OTHER_WORDS.split()[::2], _OTHER_WORDS.split()[1::2], strict=True))


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """The accuracy of one prediction, in [0, 1]: the mean of min(1, matches / 3), each answer left out once.

    Args:
        prediction: Answer of the model.
        answers: The human answers, ten in VQAv2.
    """
    text = normalize_answer(prediction.replace("\n", " ").replace("\t", " ").strip())
    known = [without_punctuation(answer) for answer in answers] if len(set(answers)) > 1 else list(answers)
    same = [answer == text for answer in known]
    return sum(min(1.0, (sum(same) - left_out) / 3) for left_out in same) / len(same)


def normalize_answer(text: str) -> str:
    """A prediction without punctuation and articles, with digits for number words, and with contractions restored."""
    words = (_NUMBERS.get(word, word) for word in without_punctuation(text).lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def without_punctuation(text: str) -> str:
    """The text without punctuation marks, by the rules at the head of this file."""
    bare = text
    comma_in_number = _COMMA_IN_NUMBER.search(text) is not None
    for mark in _PUNCTUATION:
        beside_a_space = f"{mark} " in text or f" {mark}" in text
        bare = bare.replace(mark, "" if beside_a_space or comma_in_number else " ")
    return _STOP.sub("", bare, count=_MOST_STOPS)
