"""The scores of one vision-and-language task, from all of its answers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from replora.datasets.vision_language.tasks import VLRecord, VLTask
from replora.metrics.caption_tokenizer import CaptionTokenizer
from replora.metrics.cider import cider_d
from replora.metrics.nlvr2 import nlvr2_consistency
from replora.metrics.vqa import vqa_accuracy

_CHOICE = re.compile(r"a([0-4])")


def score_answers(
    task: VLTask, records: Sequence[VLRecord], answers: Mapping[int, str], tokenizer: CaptionTokenizer
) -> dict[str, float]:
    """Metric -> value, over the records with an answer and a published label; empty if there are none.

    - `vqa`: `accuracy`, the official one in [0, 1], and `label_score`, the mean score of the unchanged answer in the
      label file.
    - `gqa`: `accuracy`, exact string match.
    - `nlvr2`: `accuracy` and `consistency`.
    - `caption`: `cider`, 1/100 of the number in published tables. All references of an image or clip are used together.
    - `choice`: `accuracy` and `unparsed`, the fraction of answers that name no choice; they count as incorrect.

    Args:
        task: The task.
        records: The records of the split.
        answers: Index of a record -> answer of the model.
        tokenizer: Tokenizer of captions.
    """
    known = [record for record in records if record.truth is not None and record.index in answers]
    if not known:
        return {}
    said = [answers[record.index] for record in known]
    pairs = list(zip(known, said, strict=True))
    if task.kind == "vqa":
        official = [vqa_accuracy(text, record.truth["answers"]) for record, text in pairs]
        by_label = [float(record.truth["scores"].get(text, 0.0)) for record, text in pairs]
        return {"accuracy": _mean(official), "label_score": _mean(by_label)}
    if task.kind == "gqa":
        return {"accuracy": _mean([float(record.truth.get(text, 0.0)) for record, text in pairs])}
    if task.kind == "nlvr2":
        right = {str(record.id): (text == "true") == record.truth for record, text in pairs}
        return {"accuracy": _mean([float(r) for r in right.values()]), "consistency": nlvr2_consistency(right)}
    if task.kind == "choice":
        right_ones = [float(text == f"a{record.truth}") for record, text in pairs]
        return {"accuracy": _mean(right_ones), "unparsed": _mean([float(chosen(text) is None) for text in said])}
    return {"cider": _cider(task, known, said, tokenizer)}


def chosen(text: str) -> int | None:
    """The number of the choice that an answer names, `a3` -> 3; None if it is not exactly the name of a choice."""
    found = _CHOICE.fullmatch(text)
    return int(found[1]) if found else None


def _cider(task: VLTask, records: Sequence[VLRecord], said: Sequence[str], tokenizer: CaptionTokenizer) -> float:
    references = [list(record.truth) for record in records]
    texts = [*said, *(sentence for few in references for sentence in few)]
    if task.video:  # VALUE's scorer (EvaluationTools, scoring_program/evaluate_tvc.py)
        texts = [re.sub(r"[^\x00-\x7f]", " ", text) for text in texts]
    tokens = iter(tokenizer.tokenize(texts))
    candidates = [next(tokens) for _ in said]
    return _mean(cider_d(candidates, [[next(tokens) for _ in few] for few in references]))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
