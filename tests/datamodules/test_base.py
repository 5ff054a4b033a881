from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from jsonargparse import ArgumentParser
from torch.utils.data import SequentialSampler
from torchvision.transforms import functional

from datamodules import (
    BaseDataModule,
    ImageDataModule,
    VTABDataModule,
)
from datamodules.base import PaddedDataset, Split
from datamodules.image.base import NORMALIZATIONS
from replora.datasets.common.in_memory import InMemory
from replora.datasets.common.subsample import subsample_indices
from replora.datasets.errors import ProtocolError, SubsetError
from replora.datasets.samples import ImageBatch, ImageDataset, ImageSample
from replora.errors import RepLoRAError

SIZES = {"train": 80, "val": 20, "trainval": 100, "test": 31}


class Counting(ImageDataset):
    """Images that show their own position; ten classes."""

    def __init__(self, size: int) -> None:
        self.labels = [i % 10 for i in range(size)]
        self.class_names = [str(i) for i in range(10)]
        self.reads = 0

    def __getitem__(self, index: int) -> ImageSample:
        index = range(len(self))[index]
        self.reads += 1
        image = torch.full((3, 4, 4), index, dtype=torch.uint8)
        return {"image": image, "label": self.labels[index], "index": index}


class CountingDataModule(ImageDataModule):
    num_classes = 10
    class_names = [str(i) for i in range(10)]  # noqa: RUF012

    def build_dataset(self, split: Split) -> Counting:
        self.built = [*getattr(self, "built", []), split]
        return Counting(SIZES[split])


def made(stage: str = "fit", world: int | None = None, rank: int = 0, **options: Any) -> CountingDataModule:
    """A datamodule after setup; with `world`, as process `rank` of so many."""
    data = CountingDataModule(**options)
    if world is not None:
        data.trainer = SimpleNamespace(  # type: ignore[assignment]
            world_size=world,
            global_rank=rank,
            num_devices=world,
            strategy=SimpleNamespace(root_device=torch.device("cpu")),
            precision_plugin=SimpleNamespace(convert_input=lambda image: image),
        )
    data.setup(stage)
    return data


def flat(lists: Iterable[list[Any]]) -> list[Any]:
    return list(chain.from_iterable(lists))


def positions(loader: Any) -> list[list[int]]:
    return [batch["index"].tolist() for batch in loader]


def epochs(data: BaseDataModule, count: int = 2) -> Iterator[list[list[int]]]:
    loader = data.train_dataloader()
    for epoch in range(count):
        loader.sampler.set_epoch(epoch)
        yield positions(loader)


# --- protocol


def test_tune_trains_on_800_and_refuses_the_test_set() -> None:
    data = made(protocol="tune")
    assert data.built == ["train", "val"]
    assert flat(positions(data.val_dataloader())) == list(range(20))
    assert positions(data.predict_dataloader()) == positions(data.val_dataloader())
    with pytest.raises(ProtocolError, match=r"protocol 'tune'.*--data.protocol final"):
        data.setup("test")
    with pytest.raises(ProtocolError, match="protocol 'tune'"):
        data.test_dataloader()


def test_final_trains_on_all_and_has_no_validation() -> None:
    data = made()
    assert data.built == ["trainval", "test"]
    assert data.val_dataloader() == []
    assert flat(positions(data.test_dataloader())) == list(range(31))
    assert positions(data.predict_dataloader()) == positions(data.test_dataloader())
    with pytest.raises(ProtocolError, match=r"protocol 'final'.*--data.protocol tune"):
        data.setup("validate")


def test_holdout_keeps_validation_and_test_apart_from_training() -> None:
    data = made(protocol="holdout", batch_size=80)
    assert data.built == ["train", "val", "test"]
    assert sorted(next(epochs(data))[0]) == list(range(80))
    assert flat(positions(data.val_dataloader())) == list(range(20))
    assert flat(positions(data.test_dataloader())) == list(range(31))
    assert positions(data.predict_dataloader()) == positions(data.test_dataloader())
    data.setup("validate")
    data.setup("test")
    assert data.built == ["train", "val", "test"]


@pytest.mark.parametrize(
    ("protocol", "stage", "built"),
    [
        ("tune", "validate", ["val"]),
        ("tune", "predict", ["val"]),
        ("final", "test", ["test"]),
        ("final", "predict", ["test"]),
        ("final", None, ["trainval", "test"]),
    ],
)
def test_a_verb_builds_what_it_needs_once(protocol: str, stage: str | None, built: list[str]) -> None:
    data = made(stage, protocol=protocol)  # type: ignore[arg-type]
    data.setup(stage)
    assert data.built == built


def test_loader_before_setup() -> None:
    with pytest.raises(RepLoRAError, match=r"'trainval' is not built yet. Call setup\(\) first"):
        CountingDataModule().train_dataloader()


# --- training batches


def test_shuffle_changes_by_epoch_and_seed_and_repeats_exactly() -> None:
    data = made(batch_size=100)
    first, second = epochs(data)
    assert first != second
    assert sorted(first[0]) == sorted(second[0]) == list(range(100))
    assert [first, second] == list(epochs(made(batch_size=100)))
    assert first != next(epochs(made(batch_size=100, shuffle_seed=1)))


def test_loading_leaves_the_global_random_state_alone() -> None:
    data = made()
    state = torch.get_rng_state()
    list(epochs(data))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("fraction", [1.0, 0.99, 0.63, 0.07])
@pytest.mark.parametrize("batch", [8, 16, 64])
@pytest.mark.parametrize("world", [2, 4])
def test_several_processes_see_the_batches_of_one(fraction: float, batch: int, world: int) -> None:
    options: dict[str, Any] = {"train_fraction": fraction}
    one = list(epochs(made(batch_size=batch, **options)))
    ranks = [list(epochs(made(world=world, rank=r, batch_size=batch // world, **options))) for r in range(world)]
    for epoch, batches in enumerate(one):
        shares = [ranks[r][epoch] for r in range(world)]
        assert {len(share) for share in shares} == {len(batches)}
        # A set smaller than one batch is filled up by repeats, so that every process has equally many.
        joined = [sorted(set(flat(parts))) for parts in zip(*shares, strict=True)]
        assert joined == [sorted(batch) for batch in batches]
        if len(one[0][0]) == batch:
            assert all(len(share[0]) == batch // world for share in shares)


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({"batch_size": 64}, [64]),
        ({"batch_size": 64, "drop_last": False}, [64, 36]),
        ({"batch_size": 100}, [100]),
        ({"batch_size": 101}, [100]),
        ({"batch_size": 64, "shots": 1}, [10]),
    ],
)
def test_drop_last_only_while_there_is_a_full_batch(options: dict[str, Any], sizes: list[int]) -> None:
    assert [len(batch) for batch in next(epochs(made(**options)))] == sizes


# --- subsets


def test_subset_is_of_the_training_images_only() -> None:
    data = made(train_fraction=0.3, batch_size=30)
    assert data.train_indices is not None
    assert len(data.train_indices) == 30
    assert sorted(next(epochs(data))[0]) == data.train_indices
    assert data.describe()["split_sizes"] == {"trainval": 30, "test": 31}
    assert made(protocol="tune", shots=2, subset_rule="by_split").describe()["split_sizes"] == {"train": 20, "val": 20}


@pytest.mark.parametrize("amount", [{"train_fraction": 0.3}, {"shots": 2}])
def test_the_subset_of_tune_is_the_part_of_final_s_that_is_not_validation(amount: dict) -> None:
    final, select = made(**amount), made(protocol="tune", **amount)
    train = len(select.build_dataset("train").labels)  # the images of train are the first of train and val
    assert select.train_indices == [i for i in final.train_indices or [] if i < train]
    assert select.describe()["subset_rule"] == "within_final"
    assert "subset_rule" not in final.describe()
    assert "subset_rule" not in made(protocol="tune").describe()
    assert "subset_rule" not in made(protocol="holdout", **amount).describe()
    former = made(protocol="tune", subset_rule="by_split", **amount)
    labels = list(former.build_dataset("train").labels)
    assert former.train_indices == subsample_indices(labels, amount.get("train_fraction"), amount.get("shots"))
    assert "subset_rule" not in former.describe()  # as in results from before there was a choice


def test_options_may_be_selected_on_a_part_of_the_validation_images(caplog: pytest.LogCaptureFixture) -> None:
    """A stratified part under `tune` alone, drawn by the seed of the subset; else nothing changes."""
    whole, part = made(protocol="tune"), made(protocol="tune", select_fraction=0.5)
    assert part.describe()["split_sizes"] == {"train": 80, "val": 10}
    assert part.describe()["splits"]["val"]["sha256"] == whole.describe()["splits"]["val"]["sha256"]
    assert part.describe()["select_fraction"] == 0.5
    labels = list(part.build_dataset("val").labels)
    used = subsample_indices(labels, 0.5, seed=0)
    assert flat(positions(part.val_dataloader())) == used
    other = made(protocol="tune", select_fraction=0.5, subset_seed=1)
    assert flat(positions(other.val_dataloader())) != used
    holdout = made(protocol="holdout", select_fraction=0.5).describe()
    assert holdout["split_sizes"]["val"] == 20
    assert "select_fraction" not in holdout
    assert "select_fraction" not in whole.describe()
    with pytest.raises(SubsetError, match=r"^select_fraction=0.0 is not in"):
        made(protocol="tune", select_fraction=0.0)
    made(protocol="tune", select_fraction=0.001)
    assert [line.split("=")[0] for line in caplog.messages if "have no example" in line] == ["select_fraction"]


def test_subsets_are_nested_and_seeded() -> None:
    chosen = {options: set(made(train_fraction=options[0], subset_seed=options[1]).train_indices or [])
              for options in [(0.1, 0), (0.3, 0), (0.1, 1)]}  # fmt: skip
    assert chosen[0.1, 0] < chosen[0.3, 0]
    assert chosen[0.1, 0] != chosen[0.1, 1]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"train_fraction": 0.0}, SubsetError, r"train_fraction=0.0 is not in \(0, 1\]"),
        ({"train_fraction": 0.5, "shots": 2}, SubsetError, "Both train_fraction=0.5 and shots=2"),
        ({"shots": 0}, SubsetError, "shots=0 is not a whole number"),
        ({"batch_size": 0}, RepLoRAError, "batch_size=0 is too small: it must be at least 1"),
        ({"eval_batch_size": 0}, RepLoRAError, "eval_batch_size=0"),
        ({"num_workers": -1}, RepLoRAError, "num_workers=-1 is too small: it must be at least 0"),
        ({"subset_seed": -1}, RepLoRAError, "subset_seed=-1 is too small: it must be at least 0"),
        ({"shuffle_seed": -1}, RepLoRAError, "shuffle_seed=-1 is too small: it must be at least 0"),
        ({"cache_bytes": -1}, RepLoRAError, "cache_bytes=-1"),
        ({"protocol": "best"}, RepLoRAError, "protocol='best' is not an option. Known: 'tune', 'final'"),
        ({"normalization": "imagnet"}, RepLoRAError, "normalization='imagnet'.*Did you mean 'imagenet'"),
        ({"interpolation": "cubic"}, RepLoRAError, "interpolation='cubic'.*Did you mean 'bicubic'"),
    ],
)
def test_bad_options_fail_when_they_are_given(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        CountingDataModule(**options)


def test_shots_that_a_class_lacks_fail_in_setup() -> None:
    with pytest.raises(SubsetError, match="but '0' has 10, '1' has 10"):
        made(shots=11)


# --- evaluation under several processes


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_each_image_is_measured_once(world: int) -> None:
    ranks = [made("test", world=world, rank=rank, eval_batch_size=5).test_dataloader() for rank in range(world)]
    batches = [list(loader) for loader in ranks]
    assert len({len(share) for share in batches}) == 1
    index = torch.cat([batch["index"] for share in batches for batch in share])
    label = torch.cat([batch["label"] for share in batches for batch in share])
    assert sorted(index[label >= 0].tolist()) == list(range(31))
    assert len(index) == -(-31 // world) * world
    assert torch.equal(index == -1, label == -1)


def test_padding() -> None:
    padding_of = CountingDataModule().padding_of
    padded = PaddedDataset(Counting(5), 4, padding_of)
    assert [sample["label"] for sample in (padded[i] for i in range(8))] == [0, 1, 2, 3, 4, -1, -1, -1]
    assert padded[7]["image"].shape == (3, 4, 4)
    assert len(PaddedDataset(Counting(8), 4, padding_of)) == 8


# --- memory and workers


def test_small_sets_are_decoded_once_and_need_no_workers() -> None:
    data = made(protocol="tune")
    source = data._splits["train"]
    assert isinstance(source, InMemory)
    loader = data.train_dataloader()
    assert loader.num_workers == 0
    assert not loader.pin_memory
    before = source.images.clone()
    for batch in loader:
        data.on_after_batch_transfer(batch, 0)
        batch["image"].zero_()
    assert torch.equal(source.images, before)


def test_bound_is_shared_by_the_splits(caplog: pytest.LogCaptureFixture) -> None:
    data = made(protocol="tune", cache_bytes=80 * 48 + 20 * 48 - 1)
    assert isinstance(data._splits["train"], InMemory)
    assert isinstance(data._splits["val"], Counting)
    assert "val: 20 decoded images need" in caplog.text
    assert data.train_dataloader().num_workers == 0
    assert data._loader(data._splits["val"], 4).num_workers >= 1


def test_large_test_set_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datamodules.image.base.SMALL_TEST_SET", 30)
    data = made()
    assert isinstance(data._splits["test"], Counting)
    assert data._splits["test"].reads == 0
    assert isinstance(data._splits["trainval"], InMemory)


def test_workers_give_the_same_batches() -> None:
    plain = list(epochs(made(batch_size=50)))
    assert list(epochs(made(batch_size=50, num_workers=1, cache_bytes=0))) == plain


# --- normalization


def image_batch() -> ImageBatch:
    image = torch.randint(0, 256, (4, 3, 5, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return {"image": image, "label": torch.arange(4), "index": torch.arange(4)}


@pytest.mark.parametrize("name", NORMALIZATIONS)
def test_normalization_is_that_of_torchvision_to_the_bit(name: str) -> None:
    batch = image_batch()
    original = batch["image"].clone()
    data = CountingDataModule(normalization=name)  # type: ignore[arg-type]
    found = data.on_after_batch_transfer(batch, 0)
    mean, std = NORMALIZATIONS[name]  # type: ignore[index]
    for i in range(len(original)):
        unit = functional.to_tensor(original[i].permute(1, 2, 0).numpy())  # in [0, 1]
        assert torch.equal(found["image"][i], functional.normalize(unit, list(mean), list(std)))
    assert torch.equal(batch["image"], original)
    assert torch.equal(data.denormalize(found["image"]), original)
    assert found["label"] is batch["label"]


def test_normalization_happens_once() -> None:
    data = CountingDataModule()
    once = data.on_after_batch_transfer(image_batch(), 0)
    assert data.on_after_batch_transfer(once, 0) is once


# --- with Lightning


class Recorder(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(48, 10)
        self.seen: dict[str, list[Any]] = {"train": [], "val": [], "test": [], "predict": []}

    def _step(self, stage: str, batch: ImageBatch) -> torch.Tensor:
        self.seen[stage].append((batch["image"].dtype, batch["index"].tolist()))
        return self.layer(batch["image"].flatten(1)).float().logsumexp(1).mean()

    def training_step(self, batch: ImageBatch) -> torch.Tensor:
        return self._step("train", batch)

    def validation_step(self, batch: ImageBatch) -> None:
        self._step("val", batch)

    def test_step(self, batch: ImageBatch) -> None:
        self._step("test", batch)

    def predict_step(self, batch: ImageBatch) -> torch.Tensor:
        return self._step("predict", batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


def trainer(**options: Any) -> pl.Trainer:
    quiet: dict[str, Any] = {
        "accelerator": "cpu", "max_epochs": 2, "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False,
    }  # fmt: skip
    return pl.Trainer(**quiet | options)


@pytest.mark.filterwarnings("ignore:The '.*dataloader' does not have many workers")
def test_lightning_trains_by_our_sampler_and_skips_validation_under_final() -> None:
    module, data, runner = Recorder(), CountingDataModule(batch_size=50), trainer()
    with warnings.catch_warnings(record=True) as caught:
        runner.fit(module, data)
    assert not [warning for warning in caught if "length" in str(warning.message)]
    expected = list(epochs(made(batch_size=50)))  # set_epoch(0), set_epoch(1)
    assert [index for _, index in module.seen["train"]] == flat(expected)
    assert module.seen["val"] == []
    runner.test(module, data, verbose=False)
    assert sorted(flat(index for _, index in module.seen["test"])) == list(range(31))
    runner.predict(module, data)
    assert sorted(flat(index for _, index in module.seen["predict"])) == list(range(31))
    with pytest.raises(ProtocolError):
        runner.validate(module, data, verbose=False)


@pytest.mark.filterwarnings("ignore:The '.*dataloader' does not have many workers")
@pytest.mark.parametrize(("precision", "dtype"), [("32-true", torch.float32), ("bf16-true", torch.bfloat16)])
def test_images_have_the_precision_of_the_trainer(precision: str, dtype: torch.dtype) -> None:
    module = Recorder()
    trainer(precision=precision, max_epochs=1).fit(module, CountingDataModule(protocol="tune"))
    assert {found for stage in ("train", "val") for found, _ in module.seen[stage]} == {dtype}


# --- description and options


def test_description_is_json() -> None:
    described = json.loads(json.dumps(made(train_fraction=0.1).describe()))
    assert described["train_indices"] == made(train_fraction=0.1).train_indices
    assert described["normalization"]["name"] == "imagenet"
    assert described["normalization"]["std"] == [0.229, 0.224, 0.225]
    assert (described["protocol"], described["interpolation"], described["image_size"]) == ("final", "bicubic", 224)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # jsonargparse 4.49 renames instantiate_classes
def test_options_are_parsed_by_class_path(tmp_path: Path) -> None:
    parser = ArgumentParser()
    parser.add_subclass_arguments(BaseDataModule, "data")
    arguments = ["--data=VTABDataModule", f"--data.root={tmp_path}", "--data.task=kitti", "--data.protocol=tune"]
    parsed = parser.parse_args([*arguments, "--data.shots=2", "--data.normalization=half"])
    data = parser.instantiate_classes(parsed).data
    assert isinstance(data, VTABDataModule)
    assert (data.root, data.num_classes, data.shots, data.protocol) == (tmp_path, 4, 2, "tune")
    assert "task: kitti" in parser.dump(parsed)


def test_one_process_evaluates_in_order() -> None:
    assert isinstance(made().test_dataloader().sampler, SequentialSampler)
