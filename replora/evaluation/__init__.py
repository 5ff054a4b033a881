"""Questions with options put to a language model: log-likelihood, generation, and what follows from the answers."""

from replora.evaluation.generation import generate
from replora.evaluation.likelihood import option_log_likelihoods
from replora.evaluation.significance import wilson_interval

__all__ = ["generate", "option_log_likelihoods", "wilson_interval"]
