"""What a trained run says of files: classes, or answers to questions."""

from replora.inference.answers import (
    Answerer,
    Answers,
    answer_questions,
    answers_questions,
    data_of,
    find_questions,
    load_answerer,
    write_answers,
)
from replora.inference.classification import (
    FORMATS,
    PredictionError,
    Predictions,
    check_options,
    classify,
    find_files,
    load_predictor,
    predictor_of,
    write,
)

__all__ = [
    "FORMATS",
    "Answerer",
    "Answers",
    "PredictionError",
    "Predictions",
    "answer_questions",
    "answers_questions",
    "check_options",
    "classify",
    "data_of",
    "find_files",
    "find_questions",
    "load_answerer",
    "load_predictor",
    "predictor_of",
    "write",
    "write_answers",
]
