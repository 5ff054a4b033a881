"""What a trained run says of files: classes, or answers to questions."""

from lightning_modules.predictors import PredictionError, Predictions, Predictor
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
    check_options,
    find_files,
    load_run,
    predictor_of,
    write,
)

__all__ = [
    "FORMATS",
    "Answerer",
    "Answers",
    "PredictionError",
    "Predictions",
    "Predictor",
    "answer_questions",
    "answers_questions",
    "check_options",
    "data_of",
    "find_files",
    "find_questions",
    "load_answerer",
    "load_run",
    "predictor_of",
    "write",
    "write_answers",
]
