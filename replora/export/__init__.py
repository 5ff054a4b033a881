"""A trained adapter for other libraries: a folder of peft, a merged model of timm or transformers, or ONNX."""

from replora.export.formats import Format, export
from replora.export.merged import merge
from replora.export.onnx import check_onnx
from replora.export.trained import ExportError, Trained, load_trained, load_transformers

__all__ = [
    "ExportError",
    "Format",
    "Trained",
    "check_onnx",
    "export",
    "load_trained",
    "load_transformers",
    "merge",
]
