"""Warnings and messages of libraries that do not apply here."""

from __future__ import annotations

import logging
import warnings

# Warnings that do not apply here, with the reason.
IGNORED_WARNINGS = (
    ".*does not have many workers.*",  # 1,000 decoded images in memory need no workers
    ".*it is recommended to use `Trainer\\(devices=1.*",  # padded samples are not counted
    ".*(Checkpoint|Experiment logs) directory .* exists and is not empty.*",  # a resumed run
    ".*The dirpath has changed.*",  # a checkpoint measured into another run's directory
    ".*GPU available but not used.*",
    ".*ended before the epoch ended and your dataloader is not resumable.*",  # the sampler does
    ".*You have overridden `(transfer_batch_to_device|on_before_batch_transfer)`.*",  # as the modules do
    ".*isinstance\\(treespec, LeafSpec\\).*",  # Lightning's own use of torch
    ".*It is recommended to use .self.log.*sync_dist=True.*",  # what is logged is a metric over all processes
)
IGNORED_MESSAGES = (
    *("Tip: ", "TPU available", "Loading `train_dataloader` to estimate", "For seamless cloud logging"),
    "callbacks returned in `LightningModule.configure_callbacks` will override",  # in a test after a fit
)


def ignore_messages() -> None:
    """Ignore them in this process."""
    for message in IGNORED_WARNINGS:
        warnings.filterwarnings("ignore", message)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_needed)


def _is_needed(record: logging.LogRecord) -> bool:
    return not any(part in record.getMessage() for part in IGNORED_MESSAGES)
