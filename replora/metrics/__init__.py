"""Metrics of the vision-and-language benchmarks, in plain Python, and mean class accuracy."""

from replora.metrics.caption_tokenizer import CaptionTokenizer, caption_tokenizer
from replora.metrics.cider import cider_d
from replora.metrics.nlvr2 import nlvr2_consistency
from replora.metrics.vision_language import score_answers
from replora.metrics.vqa import normalize_answer, vqa_accuracy

__all__ = [
    "CaptionTokenizer",
    "caption_tokenizer",
    "cider_d",
    "nlvr2_consistency",
    "normalize_answer",
    "score_answers",
    "vqa_accuracy",
]
