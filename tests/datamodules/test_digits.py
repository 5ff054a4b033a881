from __future__ import annotations

import json

from datamodules import DigitsDataModule


def test_splits_and_batches() -> None:
    final = DigitsDataModule()
    final.setup("fit")
    tune = DigitsDataModule(protocol="tune", shots=5)
    tune.setup("fit")
    assert final.describe()["split_sizes"] == {"trainval": 1000, "test": 797}
    assert tune.describe()["split_sizes"] == {"train": 32, "val": 200}  # 18 of the 50 of `final` are of the validation
    assert final.num_classes == len(final.class_names) == 10
    assert [len(batch["label"]) for batch in final.train_dataloader()] == [64] * 15
    assert [len(batch["label"]) for batch in tune.train_dataloader()] == [32]
    of_final = DigitsDataModule(shots=5)
    of_final.setup("fit")
    images = [{sample["image"].numpy().tobytes() for sample in data._splits[split]} for data, split in (
        (tune, "train"), (tune, "val"), (of_final, "trainval"),
    )]  # fmt: skip
    assert images[0] == images[2] - images[1]
    batch = next(iter(final.test_dataloader()))
    normalized = final.on_after_batch_transfer(batch, 0)["image"]
    assert normalized.shape == (128, 3, 32, 32)
    assert -1 <= normalized.min() < normalized.max() <= 1
    described = json.loads(json.dumps(tune.describe()))
    assert (described["dataset"], described["task"], described["source"]) == ("Digits", "digits", "scikit-learn")
