"""Training with PyTorch Lightning: one file per kind of task, one shared base."""

from lightning_modules.base import AdaptedModule
from lightning_modules.image_classification import ImageClassification
from lightning_modules.prediction_writer import PredictionWriter
from lightning_modules.results_writer import ResultsWriter
from lightning_modules.schedule import WarmupCosine

__all__ = ["AdaptedModule", "ImageClassification", "PredictionWriter", "ResultsWriter", "WarmupCosine"]
