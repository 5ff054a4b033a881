"""`replora-cli compare`: two runs on the same test images."""

from __future__ import annotations

from pathlib import Path


def compare(first: Path, second: Path) -> None:
    """Compare two runs on the images that both were tested on.

        replora-cli compare runs/lora runs/replora

    It prints the accuracy of each with its interval, how often one is right where the other is not, the difference with
    its interval, and the p value of McNemar's exact test. All of it is about the choice of test images: another seed of
    the training varies on top of it (`replora-cli sweep` measures that).

    Args:
        first: Directory of a run with a test.
        second: Directory of the other one.
    """
    # Only here: it reads results, which imports torch.
    from replora.reports.pair import compare_runs

    print(compare_runs(first, second))
