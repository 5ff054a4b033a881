"""`--data.fold i/k`: cross-validation over what `final` trains on, for every kind of data that has one label."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from datamodules import (
    BaseDataModule,
    CommonsenseDataModule,
    DigitsDataModule,
    HMDB51DataModule,
    ImageFolderDataModule,
    VideoFolderDataModule,
    VLDemoDataModule,
    VTABDataModule,
)
from replora.datasets.common.subsample import folds_of, parse_fold
from replora.datasets.errors import ProtocolError, SubsetError
from replora.datasets.video.hmdb51 import film_of
from replora.datasets.video.sampling import ClipOptions
from tests.fake_data import write_commonsense, write_vtab
from tests.fake_videos import write_hmdb51, write_video_folder
from tests.tiny_llama import write_tiny_llama

COUNTS = {"cat": 9, "dog": 6, "one": 1}
CLIPS = ClipOptions(num_frames=2, image_size=16)
Make = Callable[..., BaseDataModule]


def write_photos(root: Path, counts: dict[str, int]) -> Path:
    for number, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (20, 16), (60 * number, 7 * i, 30)).save(root / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Make]:
    home = tmp_path_factory.mktemp("data")
    photos, videos = write_photos(home / "photos", COUNTS), write_video_folder(home / "videos", per_class=8)
    vtab = write_vtab(home / "vtab", tasks=["eurosat"], train=32, val=16)
    films = write_hmdb51(home / "hmdb51", classes=("brush_hair", "wave"))
    texts = write_commonsense(home / "texts", {"boolq": (30, 5), "ARC-Easy": (20, 4)})
    llama = str(write_tiny_llama(home / "llama"))
    return {
        "photos": lambda **o: ImageFolderDataModule(photos, image_size=16, **o),
        "digits": lambda **o: DigitsDataModule(image_size=8, **o),
        "vtab": lambda **o: VTABDataModule(root=vtab, task="eurosat", check_sizes=False, image_size=16, **o),
        "videos": lambda **o: VideoFolderDataModule(videos, clips=CLIPS, num_workers=0, **o),
        "films": lambda **o: HMDB51DataModule(films, check_sizes=False, clips=CLIPS, num_workers=0, **o),
        "texts": lambda **o: CommonsenseDataModule(
            root=texts, tokenizer=llama, tasks=["boolq", "ARC-Easy"], check_sizes=False, preset="cloze", **o
        ),
    }


def used(data: BaseDataModule, split: str) -> set[int]:
    return set(data.lists.examples(split).tolist())


@pytest.mark.parametrize("subset", [{}, {"shots": 4}], ids=["all", "shots"])
@pytest.mark.parametrize("kind", ["photos", "digits", "vtab", "videos", "films", "texts"])
def test_folds_divide_what_final_trains_on(kinds: dict[str, Make], kind: str, subset: dict[str, int]) -> None:
    """Each example is validated once, except those of a class with a single one; nothing is in both parts."""
    if subset and kind in ("photos", "vtab"):
        subset = {"shots": 1} if kind == "photos" else {"train_fraction": 0.7}
    final = kinds[kind](protocol="final", **subset)
    final.setup("fit")
    pool = used(final, "trainval")
    if kind == "photos" and subset:
        with pytest.raises(SubsetError, match=r"largest class has 1. Add examples"):
            kinds[kind](protocol="tune", fold="1/2", **subset).setup("fit")
        return
    validated: list[int] = []
    for fold in ("1/2", "2/2"):
        data = kinds[kind](protocol="tune", fold=fold, **subset)
        data.setup("fit")
        train, val = used(data, "train"), used(data, "val")
        assert data.describe()["fold"] == data.identity("val")["fold"] == fold
        assert train
        assert val
        assert not train & val
        assert train | val == pool
        assert "test" not in data._splits
        validated += val
        batch = next(iter(data.train_dataloader()))
        assert len(batch["index"]) if "index" in batch else batch
        assert next(iter(data.val_dataloader()))
    assert len(validated) == len(set(validated))
    assert len(set(validated)) == len(pool) - (kind == "photos")
    assert "fold" not in final.describe()


@pytest.mark.parametrize(("kind", "subset"), [("digits", {"shots": 4}), ("films", {}), ("texts", {"shots": 4})])
def test_a_seed_of_the_folds_divides_the_same_examples_again(kinds: dict[str, Make], kind: str, subset: Any) -> None:
    validated = {}
    for fold in ("1/2", "1/2@0", "1/2@5", "2/2@5"):
        data = kinds[kind](protocol="tune", fold=fold, **subset)
        data.setup("fit")
        assert data.describe()["fold"] == fold
        validated[fold] = used(data, "val")
        validated[f"pool of {fold}"] = used(data, "train") | used(data, "val")
    assert validated["1/2"] == validated["1/2@0"] != validated["1/2@5"]
    assert validated["pool of 1/2"] == validated["pool of 1/2@5"] == validated["pool of 2/2@5"]
    assert validated["1/2@5"] | validated["2/2@5"] == validated["pool of 1/2"]
    assert not validated["1/2@5"] & validated["2/2@5"]


def test_training_images_of_a_fold_are_augmented_and_validation_is_not(kinds: dict[str, Make]) -> None:
    data = kinds["photos"](protocol="tune", fold="1/3")
    data.setup("fit")
    assert type(data._splits["train"]).__name__ == "Augmented"
    assert type(data._splits["val"]).__name__ == "InMemory"


def test_films_are_not_divided(kinds: dict[str, Make]) -> None:
    data = kinds["films"](protocol="tune", fold="1/3")
    data.setup("fit")
    parts = [data._splits[split] for split in ("train", "val")]
    films = [{(part.paths[i].parent, film_of(part.paths[i])) for i in part.chosen} for part in parts]  # type: ignore[attr-defined]
    assert films[1]
    assert not films[0] & films[1]


def test_folds_are_stratified_and_of_equal_size() -> None:
    labels = [0] * 11 + [1] * 7 + [2] * 2 + [3]
    folds = folds_of(labels, 5, seed=3)
    assert folds == folds_of(labels, 5, seed=3) != folds_of(labels, 5, seed=4)
    assert folds[-1] is None
    sizes = [folds.count(fold) for fold in range(1, 6)]
    assert max(sizes) - min(sizes) <= 1
    for label in (0, 1):
        own = [folds[i] for i in range(len(labels)) if labels[i] == label]
        counts = [own.count(fold) for fold in range(1, 6)]
        assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("text", ["0/5", "6/5", "1/1", "2", "a/b", "-1/3", "1/0", "1/2@", "1/2@a", "1/2@-1", "@3"])
def test_no_fold(text: str) -> None:
    with pytest.raises(SubsetError, match="not of the form i/k"):
        parse_fold(text)


def test_what_contradicts_a_fold(kinds: dict[str, Make]) -> None:
    with pytest.raises(ProtocolError, match="for the protocol 'tune'"):
        kinds["digits"](fold="1/5")
    with pytest.raises(SubsetError, match="which a fold replaces"):
        kinds["digits"](fold="1/5", protocol="tune", select_fraction=0.5)
    with pytest.raises(SubsetError, match=r"the largest class has 8. Use at most 8 folds"):
        kinds["photos"](fold="1/20", protocol="tune").setup("fit")
    with pytest.raises(TypeError, match="fold"):
        VLDemoDataModule(fold="1/5", protocol="tune")


def test_a_class_with_too_few_for_shots_is_named(kinds: dict[str, Make]) -> None:
    with pytest.raises(SubsetError, match=r"but 'dog' has 5, 'one' has 1. Use at most shots=1"):
        kinds["photos"](protocol="final", shots=6).setup("fit")
    with pytest.raises(SubsetError, match=r"but 'left' has 7, 'right' has 7. Use at most shots=7"):
        kinds["videos"](protocol="final", shots=9).setup("fit")
