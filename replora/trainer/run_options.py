"""The options of a verb beyond those of its classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

HELP_FLAGS = ("-h", "--help", "--help_all", "--trainer.help")
CONFIG_TEXT = "YAML file, local or packaged. Can be repeated; later files take precedence."
# Name -> type, default and text.
RUN_OPTIONS: dict[str, tuple[Any, Any, str]] = {
    "run_dir": (
        Path | None,
        None,
        "Directory of the run. Default: that of --ckpt_path, else runs/<time>-<task>-<method>.",
    ),
    "ckpt_path": (
        Path | None,
        None,
        "Checkpoint to resume or to measure, `last` for that of --run_dir, `best` for that of a ModelCheckpoint that "
        "monitors a metric, or `untrained` to measure a language model before any training. Default: none for fit, "
        "RUN_DIR/checkpoints/last.ckpt for other verbs.",
    ),
    "test_after_fit": (
        bool,
        True,
        "Whether fit ends with a test of the last weights, if the protocol of the data has a test.",
    ),
}
# Option -> the option that it is taken from, unless a class has no such option.
LINKS = {
    "data.init_args.tokenizer": "model.init_args.backbone",
    "model.init_args.num_frames": "data.init_args.clips.num_frames",
    "model.init_args.image_size": "data.init_args.image_size",
    "data.init_args.revision": "model.init_args.revision",
}
LINKED = frozenset({"model.num_classes", *(name.replace(".init_args", "") for name in LINKS)})
