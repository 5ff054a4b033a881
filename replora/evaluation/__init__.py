"""Multiple-choice evaluation of language models: log-likelihoods, generation, accuracies and their uncertainty."""

from replora.evaluation.generation import generate
from replora.evaluation.likelihood import option_log_likelihoods
from replora.evaluation.significance import wilson_interval

__all__ = ["generate", "option_log_likelihoods", "wilson_interval"]
