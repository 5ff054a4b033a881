"""Items as bytes in one array: equal to the items, in their order, and without objects that processes would copy."""

from __future__ import annotations

import multiprocessing
import pickle
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from datamodules.split_lists import SplitLists, _hash
from datamodules.text.texts import _decode, _encode
from replora.datasets.common.packed import Packed, pack_paths, pack_texts
from replora.datasets.errors import ListFileError
from replora.datasets.text.items import TextRow
from replora.datasets.vision_language.image_text import image_text_records
from replora.datasets.vision_language.tasks import VLDataset, VLRecord, pack_records, vl_task
from replora.datasets.vision_language.video_text import video_text_records
from tests.fake_vl import write_image_text, write_video_text
from tests.fuzz import fuzz

EXAMPLES = [None, 0, -1.5, "", "caf\u00e9 \U0001f415", ("a", ("b",)), {"x": [1, 2.0]}, True]


def test_a_sequence_of_items():
    packed = Packed(EXAMPLES)
    assert list(packed) == EXAMPLES == packed[:]
    assert packed == EXAMPLES
    assert packed != EXAMPLES[:-1]
    assert packed[-1] is True
    assert packed[np.int64(4)] == EXAMPLES[4]
    assert packed[1:7:2] == EXAMPLES[1:7:2]
    assert list(reversed(packed)) == EXAMPLES[::-1]
    for index in (8, -9):
        with pytest.raises(IndexError):
            packed[index]
    assert list(Packed([])) == []
    assert pickle.loads(pickle.dumps(packed)) == EXAMPLES


@fuzz(100)
@given(st.lists(st.text(st.characters())))
def test_texts(texts):
    assert list(pack_texts(texts)) == texts


def test_paths_and_tokens():
    paths = [PurePosixPath("a/b.jpg"), PurePosixPath("."), PurePosixPath("caf\udce9/1.png")]
    assert list(pack_paths(paths)) == paths
    row = TextRow(170_419, np.array([5, 0, 151_935], np.int32), 2)
    back = _decode(_encode(row))
    assert (back.position, back.ids.tolist(), back.loss_from) == (170_419, [5, 0, 151_935], 2)
    assert (type(back.position), back.ids.dtype) == (int, np.int32)


def test_records_of_every_task(tmp_path):
    write_video_text(write_image_text(tmp_path))
    read = dict.fromkeys(("vqa", "gqa", "nlvr2", "coco"), image_text_records)
    read |= dict.fromkeys(("tvqa", "how2qa", "tvc", "yc2c"), video_text_records)
    for task, records_of in read.items():
        for split in ("train", "val", "test"):
            packed = records_of(tmp_path, task, split)
            assert isinstance(packed, Packed)
            records = list(packed)
            assert [record.index for record in records] == list(range(len(packed)))
            assert all(isinstance(record.answers, tuple) and isinstance(record.images, tuple) for record in records)
            again = pack_records(replace(record) for record in records)
            assert list(again) == records
            assert again[0] is not again[0], "no record is kept"


class Zeros:
    extraction = None

    def read(self, _):
        return torch.zeros(1, 1)


def test_samples_are_those_of_records_in_a_list():
    random = np.random.default_rng(0)
    records = [
        VLRecord(i, f"q{i}", f"what is {i} ?", (f"{i}",), ("a", "b"), tuple(random.random(2).tolist()), {"x": [1.0]})
        for i in range(50)
    ]
    dataset = VLDataset(vl_task("vqa"), records, Zeros(), "vl_adapter", seed=3)
    assert isinstance(dataset.records, Packed)
    for epoch in (0, 1):
        for i in (0, 7, 49):
            sample = dataset.sample(i, epoch)
            assert (sample["index"], sample["text"]) == (i, f"vqa: what is {i} ?")
            draw = np.random.default_rng((3, epoch, i)).random() * sum(records[i].weights)
            expected = 0 if draw < records[i].weights[0] else 1
            assert (sample["target"], sample["weight"]) == ("ab"[expected], records[i].weights[expected])


def test_the_hash_and_the_examples_of_a_list_are_as_before():
    """SHA-256 of the joined lines, and the hashes of the examples in use, each once."""
    import hashlib

    names, labels = ["a", "b", "caf\udce9", "a"], [1, "x", None, 2]
    lists = SplitLists()
    lists.add("train", iter(names), iter(labels))
    lines = "\n".join(f"{name}\t{label}" for name, label in zip(names, labels, strict=True))
    assert lists.sha256("train") == hashlib.sha256(lines.encode(errors="surrogateescape")).hexdigest()
    assert lists.examples("train").tolist() == sorted({_hash(name) for name in names})
    lists.add("val", ["b", "c"], [1, 1], [1])
    assert lists.examples("val").tolist() == [_hash("c")]
    assert lists.seen("train", lists.examples("val")) == 0
    lists.check_disjoint("train", "val")
    lists.add("test", ["c", "b"], [1, 1])
    assert lists.seen("test", lists.examples("train")) == 1
    with pytest.raises(ListFileError, match="share 1 of 2 examples, such as b"):
        lists.check_disjoint("train", "test")
    assert lists.examples("none").tolist() == []
    with pytest.raises(ValueError, match="zip"):
        lists.add("other", ["a"], [1, 2])


def _written_memory() -> int:
    """kB that this process does not share with the one that it was forked from."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty"))


def _read_all(queue, records):
    before = _written_memory()
    for record in records:
        assert record.text
    queue.put(_written_memory() - before)


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").is_file(), reason="Linux says what a process wrote to")
def test_a_forked_process_copies_no_records():
    context = multiprocessing.get_context("fork")
    records = [VLRecord(i, i, f"what is {i} ?", (f"image{i}",), (f"answer {i}",), (1.0,)) for i in range(30_000)]

    def grown(held) -> int:
        queue = context.Queue()
        process = context.Process(target=_read_all, args=(queue, held))
        process.start()
        found = queue.get(timeout=60)
        process.join()
        return found

    assert grown(records) > 6_000  # kB
    assert grown(pack_records(records)) < 2_000
