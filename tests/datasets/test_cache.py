from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch.utils.data import Subset

from replora.datasets.common.in_memory import InMemory, in_memory
from replora.datasets.errors import CorruptImageError
from replora.datasets.image.read import ImageReader
from replora.datasets.samples import ImageSample
from replora.datasets.vtab.dataset import VTAB
from tests.fake_data import write_vtab_task

IMAGE_BYTES = 3 * 8 * 8


@pytest.fixture
def dataset(tmp_path: Path) -> VTAB:
    write_vtab_task(tmp_path, "dtd")
    return VTAB(tmp_path, "dtd", "train800", reader=ImageReader(8), check_sizes=False)


def same(a: ImageSample, b: ImageSample) -> bool:
    return torch.equal(a["image"], b["image"]) and (a["label"], a["index"]) == (b["label"], b["index"])


def test_holds_what_it_decoded(dataset: VTAB) -> None:
    held = InMemory(dataset)
    assert held.images.dtype == torch.uint8
    assert len(held) == 16
    assert all(same(a, b) for a, b in zip(held, dataset, strict=True))


def test_files_are_read_once(dataset: VTAB) -> None:
    held = InMemory(dataset)
    for path in (dataset.folder / "images" / "train800").iterdir():
        path.unlink()
    assert len(list(held)) == 16


def test_subset_keeps_the_positions_of_the_whole_list(dataset: VTAB) -> None:
    held = InMemory(Subset(dataset, [3, 7]))
    assert held.indices == [3, 7]
    assert held.labels == [dataset.labels[3], dataset.labels[7]]


def test_bound_is_exact_and_the_fallback_is_logged(dataset: VTAB, caplog: pytest.LogCaptureFixture) -> None:
    assert isinstance(in_memory(dataset, 16 * IMAGE_BYTES), InMemory)
    assert not caplog.records
    assert in_memory(dataset, 16 * IMAGE_BYTES - 1, name="train") is dataset
    assert "train: 16 decoded images need 0.0 MiB" in caplog.text
    assert "read from disk every epoch" in caplog.text


def test_no_warning_where_the_cache_is_switched_off(dataset: VTAB, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert in_memory(dataset, 0) is dataset
    assert [record.levelname for record in caplog.records] == ["INFO"]


def test_corrupt_image_is_found_while_decoding(dataset: VTAB) -> None:
    (dataset.folder / "images" / "train800" / "000009.jpg").write_bytes(b"no image")
    with pytest.raises(CorruptImageError, match=r"000009\.jpg"):
        InMemory(dataset)
