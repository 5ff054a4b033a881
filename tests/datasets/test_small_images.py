"""Fashion-MNIST in the 800 / 200 / test form, drawn shapes, letters of fonts, and small pictures."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules import SmallImagesDataModule
from replora.datasets.errors import CorruptImageError, DatasetNotFoundError, ListFileError
from replora.datasets.image import fashion_mnist, letters, stamps
from replora.datasets.image.fashion_mnist import FashionMNIST
from replora.datasets.image.letters import Letters
from replora.datasets.image.sprites import Sprites, draw
from replora.datasets.image.stamps import Stamps
from replora.errors import RepLoRAError
from tests.fake_data import write_fashion_mnist


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "fashion-mnist"
    write_fashion_mnist(folder)
    return folder


@pytest.fixture
def _no_debian(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fashion_mnist, "DEBIAN", Path("/nowhere"))


def test_the_form_of_vtab(root: Path) -> None:
    parts = {split: FashionMNIST(split, root) for split in ("train", "val", "trainval", "test")}  # type: ignore[arg-type]
    assert {split: len(part) for split, part in parts.items()} == {
        "train": 800,
        "val": 200,
        "trainval": 1000,
        "test": 10_000,
    }
    assert Counter(parts["train"].labels) == dict.fromkeys(range(10), 80)
    assert np.array_equal(np.concatenate([parts["train"].pixels, parts["val"].pixels]), parts["trainval"].pixels)
    # Each image says its place in its own file, and the label is that place modulo 10.
    places = parts["trainval"].pixels[:, 0, :3].astype(int) @ [1, 256, 65536]
    assert len(set(places.tolist())) == 1000
    assert (places % 10).tolist() == parts["trainval"].labels
    assert parts["test"].labels[:3] == [0, 1, 2]
    assert parts["test"][0]["image"].shape == (3, 32, 32)


@pytest.mark.usefixtures("_no_debian")
@pytest.mark.parametrize("inside", ["", "fashion-mnist", "FashionMNIST/raw"])
def test_folders_people_have(root: Path, tmp_path: Path, inside: str) -> None:
    place = tmp_path / inside
    place.parent.mkdir(parents=True, exist_ok=True)
    if inside:
        place.symlink_to(root)
    assert len(FashionMNIST("val", tmp_path if inside else root)) == 200


@pytest.mark.usefixtures("_no_debian")
def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetNotFoundError, match=r"(?s)no train-images-idx3-ubyte.gz in .*apt install"):
        FashionMNIST("train", tmp_path)
    (tmp_path / "train-images-idx3-ubyte.gz").touch()
    with pytest.raises(DatasetNotFoundError, match=r"There is no .*t10k-images"):
        FashionMNIST("test", tmp_path)


@pytest.mark.parametrize("damage", ["empty", "cut", "other file", "other length", "label 10"])
def test_damaged_files(root: Path, tmp_path: Path, damage: str) -> None:
    for file in root.iterdir():
        (tmp_path / file.name).symlink_to(file)
    images, labels = tmp_path / "t10k-images-idx3-ubyte.gz", tmp_path / "t10k-labels-idx1-ubyte.gz"
    content = {
        "empty": b"",
        "cut": images.read_bytes()[:-100],
        "other file": labels.read_bytes(),
        "other length": gzip.compress(gzip.decompress(images.read_bytes())[:-1]),
        "label 10": gzip.compress(gzip.decompress(labels.read_bytes())[:-1] + b"\x0a"),
    }[damage]
    damaged = labels if damage == "label 10" else images
    damaged.unlink()
    damaged.write_bytes(content)
    with pytest.raises(ListFileError, match=str(tmp_path)):
        FashionMNIST("test", tmp_path)


def test_sprites_are_fixed_and_disjoint_in_their_draws() -> None:
    train, val = Sprites("train", "location"), Sprites("val", "location")
    both = Sprites("trainval", "location")
    assert (len(train), len(val), len(both), len(Sprites("test", "location"))) == (800, 200, 1000, 2000)
    assert np.array_equal(np.concatenate([train.pixels, val.pixels]), both.pixels)
    assert train.labels[:8] == [4, 2, 9, 8, 0, 12, 13, 7]
    assert set(both.labels) == set(Sprites("trainval", "orientation").labels) == set(range(16))


def test_location_is_the_column_of_the_center() -> None:
    sprites = Sprites("val", "location")
    columns = (sprites.pixels.sum(axis=1) * np.arange(64)).sum(axis=1) / sprites.pixels.sum(axis=(1, 2))
    expected = 14 + (2 * np.array(sprites.labels) + 0.5) * 36 / 31
    assert np.abs(columns - expected).max() < 2.5, "half a class is 1.2 pixels, a heart's center is off by up to one"


def test_orientation_turns_the_shape() -> None:
    heart = draw(2, 5, 0, 16, 16)
    assert np.array_equal(heart, draw(2, 5, 39, 16, 16)), "a whole turn"
    assert (heart != draw(2, 5, 20, 16, 16)).mean() > 0.01
    square = draw(0, 5, 3, 16, 16)
    assert (square != draw(0, 5, 3, 0, 16)).any()


@pytest.mark.parametrize("shape", range(3))
def test_shapes_stay_in_the_image(shape: int) -> None:
    areas = {int((draw(shape, 5, turn, x, y) > 0).sum()) for turn in range(0, 39, 6) for x in (0, 31) for y in (0, 31)}
    assert max(areas) - min(areas) < 0.15 * max(areas), "an upright outline takes in a little more"
    edges = draw(shape, 5, 5, 0, 31)
    assert not any(border.any() for border in (edges[0], edges[-1], edges[:, 0], edges[:, -1]))
    assert (draw(shape, 0, 5, 9, 9) > 0).sum() < 0.4 * min(areas)


def test_letters_are_fixed_and_tested_on_other_fonts() -> None:
    try:
        fonts = letters.find_fonts(Path("/nowhere"))
    except DatasetNotFoundError:
        pytest.skip("the fonts are not installed")
    parts = {split: Letters(split, Path("/nowhere")) for split in ("train", "val", "trainval", "test")}  # type: ignore[arg-type]
    assert [len(part) for part in parts.values()] == [800, 200, 1000, 1000]
    assert np.array_equal(np.concatenate([parts["train"].pixels, parts["val"].pixels]), parts["trainval"].pixels)
    assert set(Counter(parts["test"].labels).values()) == {38, 39}
    assert [parts["train"].class_names[label] for label in parts["train"].labels[:6]] == list("FVCBWW")
    assert not {*letters.TRAIN_FONTS} & {*letters.TEST_FONTS}
    assert fonts.keys() == {*letters.TRAIN_FONTS, *letters.TEST_FONTS}
    of_letters = {label: parts["test"].pixels[np.array(parts["test"].labels) == label] for label in (8, 22)}
    bright = {label: (pixels > 120).mean() for label, pixels in of_letters.items()}
    assert bright[22] > 1.5 * bright[8], "a W has more ink than an I"


def test_fonts_that_are_missing_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(letters, "DEBIAN", (tmp_path / "debian",))
    with pytest.raises(DatasetNotFoundError, match=r"no DejaVuSans.ttf in .*debian. .*apt install fonts-dejavu-core"):
        Letters("train", tmp_path)
    for name in (*letters.TRAIN_FONTS, *letters.TEST_FONTS):
        (tmp_path / name).write_text(name)
    before = letters.fonts_sha256(tmp_path)
    (tmp_path / letters.TEST_FONTS[0]).write_text("another version")
    assert letters.fonts_sha256(tmp_path) != before


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Of each class four to nine pictures in folders inside its folder; a drawing is not used."""
    for number, name in enumerate(stamps.CLASSES):
        for place in range(4 + number):
            file = tmp_path / "tuxpaint" / "stamps" / name / f"kind{place % 2}" / f"{place}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGBA", (100, 50 + place), (40 * number, 10 * place, 0, 255)).save(file)
    (file.parent / "drawing.svg").touch()
    return tmp_path


def test_stamps_are_on_white_and_in_stratified_splits(pictures: Path) -> None:
    parts = {split: Stamps(split, pictures) for split in ("train", "val", "trainval", "test")}  # type: ignore[arg-type]
    assert [len(part) for part in parts.values()] == [20, 4, 24, 15]
    assert set(parts["train"].labels) == set(range(6))
    assert np.array_equal(np.concatenate([parts["train"].pixels, parts["val"].pixels]), parts["trainval"].pixels)
    every = np.concatenate([parts["trainval"].pixels, parts["test"].pixels])
    assert len({tuple(color) for color in every[:, 32, 32].tolist()}) == 39, "each picture is in one split"
    assert (every[:, :10] == 255).all(), "above and below a wide picture is white"
    assert parts["val"][0]["image"].shape == (3, 32, 32)


def test_stamps_that_are_missing_or_corrupt(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = next((pictures / "tuxpaint/stamps/food").rglob("*.png"))
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(CorruptImageError, match=r"food/.*cannot be decoded"):
        Stamps("train", pictures)
    monkeypatch.setattr(stamps, "DEBIAN", tmp_path / "debian")
    with pytest.raises(DatasetNotFoundError, match=r"no folders animals, food, .*apt install tuxpaint-stamps-default"):
        SmallImagesDataModule.check_files({"task": "stamps", "root": tmp_path / "empty"})


def test_fewer_test_images() -> None:
    data = SmallImagesDataModule("digits", protocol="holdout", test_images=100)
    data.setup("test")
    described = data.describe()
    assert described["split_sizes"]["test"] == 100
    few = data.build_dataset("test")
    assert set(Counter(few.labels).values()) <= {9, 10, 11}
    assert len(SmallImagesDataModule("digits", test_images=1000).build_dataset("test")) == 797
    with pytest.raises(RepLoRAError, match="test_images"):
        SmallImagesDataModule("digits", test_images=0)


@pytest.mark.parametrize(
    ("task", "classes", "test"),
    [
        ("fashion_mnist", 10, 10_000),
        ("sprites_location", 16, 2_000),
        ("sprites_orientation", 16, 2_000),
        ("digits", 10, 797),
    ],
)
def test_datamodule(root: Path, task: str, classes: int, test: int) -> None:
    data = SmallImagesDataModule(task, root=root, protocol="holdout", train_fraction=0.1)  # type: ignore[arg-type]
    data.setup("fit")
    described = json.loads(json.dumps(data.describe()))
    assert described["split_sizes"] == {"train": 80, "val": 200, "test": test}
    assert described["task"] == task
    assert data.num_classes == len(data.class_names) == classes
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (64, 3, 32, 32)
    assert data.test_dataloader().num_workers == 0


def test_unknown_task() -> None:
    with pytest.raises(RepLoRAError, match="sprites_location"):
        SmallImagesDataModule("sprites_locatoin")  # type: ignore[arg-type]
