"""Writes data in the real layouts of VTAB-1K, FGVC, image folders and the commonsense tasks, as small as tests need."""

from __future__ import annotations

import colorsys
import gzip
import io
import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from replora.datasets.text.commonsense import COMMONSENSE_TASKS
from replora.datasets.vtab.dataset import VTAB_TASKS, VTABSplit, vtab_task
from replora.datasets.vtab.tracks import ImageFormat


def write_vtab_task(
    root: Path,
    task: str = "cifar",
    num_classes: int | None = None,
    folder: str | None = None,
    train: int = 16,
    val: int = 8,
    test: int = 8,
    image_size: tuple[int, int] = (16, 12),
    seed: int = 0,
    image_format: ImageFormat = "JPEG",
) -> Path:
    """Write `root/vtab-1k/<folder>` with its four list files and its images.

    The hue of an image tells its class, so a model can learn the task. The first and the last class of the task are in
    every split, and all classes where the split has that many images.

    Args:
        root: where `vtab-1k` is made.
        task: one of the 19, or any name with `num_classes`.
        folder: its folder, the name of the task by default.
        train, val, test: number of images; 800, 200 and `task.test_size` are the real ones.
        image_size: width and height in pixels.
        seed: of the noise and of the order of the classes.
        image_format: JPEG of quality 75, or PNG as in the clean track.

    Returns:
        The folder of the task.
    """
    classes = vtab_task(task, num_classes).num_classes
    home = root / "vtab-1k" / (folder or task)
    rng = random.Random(f"{seed} {task}")
    train_images, val_images, test_images = (
        [(_image(label, classes, image_size, rng, image_format), label) for label in _labels(count, classes, rng)]
        for count in (train, val, test)
    )
    _write_split(home, "train800", train_images)
    _write_split(home, "val200", val_images)
    _write_split(home, "train800val200", train_images + val_images)
    _write_split(home, "test", test_images)
    return home


def write_vtab(root: Path, tasks: Iterable[str] = VTAB_TASKS, train: int = 16, val: int = 8, test: int = 8) -> Path:
    """Write several of the 19 tasks, all with these sizes; returns `root/vtab-1k`."""
    for task in tasks:
        write_vtab_task(root, task, train=train, val=val, test=test)
    return root / "vtab-1k"


# What the keys of the split files look like, and the folder that they are relative to.
FGVC_LAYOUTS = {
    "cub_200_2011": ("CUB_200_2011", "images", "{c:03d}.Bird_{c}/Bird_{c}_{i:04d}.jpg"),
    "nabirds": ("nabirds", "images", "{c:04d}/{i:032x}.jpg"),
    "oxford_flowers": ("OxfordFlower", "", "jpg/image_{i:05d}.jpg"),
    "stanford_dogs": ("StanfordDogs", "Images", "n{c:08d}-dog_{c}/n{c:08d}_{i}.jpg"),
    "stanford_cars": ("StanfordCars", "", "car_ims/{i:06d}.jpg"),
}


def write_fgvc_task(root: Path, task: str, classes: int = 4, train: int = 8, val: int = 4, test: int = 8) -> Path:
    """Write one data set of FGVC with VPT's three split files; returns its folder.

    The classes in the files are 3, 10, 17, ...: numbers with gaps, as NABirds has them. Their hue tells the classes.
    """
    folder, image_root, pattern = FGVC_LAYOUTS[task]
    home = root / folder
    rng = random.Random(task)
    number = 0
    for split, count in {"train": train, "val": val, "test": test}.items():
        listed = {}
        for i in range(count):
            number += 1
            label = i % classes
            path = pattern.format(c=label + 1, i=number)
            file = home / image_root / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(_image(label, classes, (30, 24) if i % 2 else (20, 28), rng, "JPEG"))
            listed[path] = 3 + 7 * label
        (home / f"{split}.json").write_text(json.dumps(listed), encoding="utf-8")
    return home


def write_image_folder(
    root: Path, classes: Iterable[str] = ("cat", "dog", "eel"), per_class: int = 10, splits: Iterable[str] = ()
) -> Path:
    """Write a folder for each class, in each of `splits` or at once in `root`; returns `root`.

    The hue of an image tells its class.
    """
    names = list(classes)
    rng = random.Random(0)
    for parent in [root / split for split in splits] or [root]:
        for label, name in enumerate(names):
            (parent / name).mkdir(parents=True)
            for i in range(per_class):
                (parent / name / f"{i}.jpg").write_bytes(_image(label, len(names), (24 + i, 30), rng, "JPEG"))
    return root


def _labels(count: int, classes: int, rng: random.Random) -> list[int]:
    labels = [round(i * (classes - 1) / max(1, min(count, classes) - 1)) % classes for i in range(count)]
    rng.shuffle(labels)
    return labels


def _image(
    label: int, classes: int, size: tuple[int, int], rng: random.Random, image_format: ImageFormat = "JPEG"
) -> bytes:
    color = 255 * np.array(colorsys.hsv_to_rgb(label / classes, 0.8, 0.7))
    noise = np.random.default_rng(rng.getrandbits(32)).normal(0, 12, (size[1], size[0], 3))
    buffer = io.BytesIO()
    Image.fromarray(np.clip(color + noise, 0, 255).astype(np.uint8)).save(buffer, image_format, quality=75)
    return buffer.getvalue()


def _write_split(home: Path, split: VTABSplit, images: list[tuple[bytes, int]]) -> None:
    directory = home / "images" / split
    directory.mkdir(parents=True)
    lines = []
    for number, (image, label) in enumerate(images):
        name = f"{number:06d}" + (".jpg" if image.startswith(b"\xff\xd8") else ".png")
        (directory / name).write_bytes(image)
        lines.append(f"images/{split}/{name} {label}\n")
    (home / f"{split}.txt").write_text("".join(lines), encoding="utf-8")


def write_commonsense(
    root: Path, sizes: Mapping[str, tuple[int, int]] | None = None, folder: str = "", seed: int = 0
) -> Path:
    """Write `root/<folder>/<task>/{train,test}.json` in LLM-Adapters' form: sums whose right result is an option.

    Args:
        root: Where the folders of the tasks are made.
        sizes: Task -> records of its training and of its test file; 0 writes no file. All eight with 12 and 6 by
            default.
        folder: Between the root and the tasks.
        seed: Of the sums.

    Returns:
        `root`.
    """
    for task, (train, test) in (sizes or dict.fromkeys(COMMONSENSE_TASKS, (12, 6))).items():
        for split, count in (("train", train), ("test", test)):
            if count:
                file = root / folder / task / f"{split}.json"
                file.parent.mkdir(parents=True, exist_ok=True)
                rng = random.Random(f"{seed} {task} {split}")
                first = 0 if split == "train" else 1_000  # no test record is a training record
                entries = [commonsense_entry(task, first + number, rng) for number in range(count)]
                file.write_text(json.dumps(entries, indent=4), encoding="utf-8")
    return root


def commonsense_entry(task: str, number: int, rng: random.Random) -> dict[str, str]:
    """One record, different from those with another number."""
    template = COMMONSENSE_TASKS[task]
    left, right = number, rng.randrange(10)
    count = rng.choice(template.counts)
    answer = rng.randrange(count)
    results = [left + right + (i - answer) for i in range(count)]
    if task == "boolq":
        question, options = f"is {left} and {right} the same as {left + right + answer}", []
    elif task == "winogrande":
        question, options = f"After {left} and {right} more there were _ in the box.", [str(r) for r in results]
    else:
        question, options = f"What is {left} and {right}?", [f"It is {result}." for result in results]
    label = template.labels(count)[answer]
    return {
        "instruction": template.instruction(question, options),
        "input": "",
        "output": f"the correct answer is {label}",
        "answer": label,
    }


def write_fashion_mnist(folder: Path) -> None:
    """The four files at their true lengths. The first pixels of image i are i in base 256; its class is i modulo 10."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, count in {"train": 60_000, "t10k": 10_000}.items():
        place = np.arange(count)
        images = np.zeros((count, 28, 28), np.uint8)
        images[:, 0, 0], images[:, 0, 1], images[:, 0, 2] = place % 256, place // 256 % 256, place // 65536
        for kind, content in {"images-idx3": images, "labels-idx1": (place % 10).astype(np.uint8)}.items():
            header = np.array([0x0800 + content.ndim, *content.shape], ">i4").tobytes()
            packed = gzip.compress(header + content.tobytes(), compresslevel=1)
            (folder / f"{part}-{kind}-ubyte.gz").write_bytes(packed)
