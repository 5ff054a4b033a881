"""Training with PyTorch Lightning: one file per kind of task, one shared base."""

from lightning_modules.base import AdaptedModule
from lightning_modules.callbacks.answer_writer import AnswerWriter
from lightning_modules.callbacks.final_validation import FinalValidation
from lightning_modules.callbacks.last_checkpoint import LastCheckpoint
from lightning_modules.callbacks.merged_evaluation import MergedEvaluation
from lightning_modules.callbacks.prediction_writer import PredictionWriter
from lightning_modules.callbacks.results_writer import ResultsWriter
from lightning_modules.callbacks.submission_writer import SubmissionWriter
from lightning_modules.callbacks.temperature_scaling import TemperatureScaling
from lightning_modules.causal_language_model import CausalLanguageModel
from lightning_modules.classification import ClassificationModule
from lightning_modules.image_classification import ImageClassification
from lightning_modules.lora_plus import LoRAPlus
from lightning_modules.schedule import WarmupCosine, WarmupLinear
from lightning_modules.sharded_backbone import ShardedBackboneStrategy
from lightning_modules.video_classification import VideoClassification
from lightning_modules.vision_language import VisionLanguage

__all__ = [
    "AdaptedModule",
    "AnswerWriter",
    "CausalLanguageModel",
    "ClassificationModule",
    "FinalValidation",
    "ImageClassification",
    "LastCheckpoint",
    "LoRAPlus",
    "MergedEvaluation",
    "PredictionWriter",
    "ResultsWriter",
    "ShardedBackboneStrategy",
    "SubmissionWriter",
    "TemperatureScaling",
    "VideoClassification",
    "VisionLanguage",
    "WarmupCosine",
    "WarmupLinear",
]
