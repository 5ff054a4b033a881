from __future__ import annotations

import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from replora.datasets.image.digits import Digits
from replora.datasets.image.read import ImageReader


@pytest.mark.parametrize(("split", "size"), [("train", 800), ("val", 200), ("trainval", 1000), ("test", 797)])
def test_sizes_and_stratification(split: str, size: int) -> None:
    digits = Digits(split)  # type: ignore[arg-type]
    assert len(digits) == size
    counts = Counter(digits.labels)
    whole = np.bincount(load_digits().target) / 1797
    assert all(abs(counts[digit] - share * size) < 1.5 for digit, share in enumerate(whole))


def test_splits_are_disjoint_and_cover_all() -> None:
    train, val, trainval, test = (Digits(split).pixels for split in ("train", "val", "trainval", "test"))  # type: ignore[arg-type]
    assert np.array_equal(np.concatenate([train, val]), trainval)
    everything = np.concatenate([trainval, test]).reshape(1797, -1)
    original = np.clip(np.rint(load_digits().images * 255 / 16), 0, 255).astype(np.uint8).reshape(1797, -1)
    assert Counter(map(bytes, everything)) == Counter(map(bytes, original))


def test_sample() -> None:
    sample = Digits("val", reader=ImageReader(24))[-1]
    assert sample["image"].shape == (3, 24, 24)
    assert sample["image"].dtype == torch.uint8
    assert torch.equal(sample["image"][0], sample["image"][2])
    assert sample["index"] == 199


def test_gray_levels_use_the_full_range() -> None:
    assert {0, 16, 255} <= set(Digits("test").pixels.flat)


def test_split_is_fixed() -> None:
    assert Digits("train").labels[:12] == [3, 0, 4, 2, 6, 8, 9, 7, 1, 5, 3, 1]


def test_datasets_need_no_lightning() -> None:
    code = "import sys, replora.datasets; print({'lightning', 'sklearn', 'torchvision'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"
