"""Every file and folder that is written has the mode of the umask: no stranger reads more, no colleague less."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from fsspec.implementations.local import get_umask
from PIL import Image

from replora.cli.main import main
from replora.datasets.text.rebuild import write_entries
from replora.datasets.video.frame_cache import EVERY_FRAME, ClipCache
from replora.datasets.video.motion import read_motion
from replora.datasets.vision_language.features import write_h5, write_npz
from tests.cli.helpers import fit
from tests.fake_videos import write_avi


@pytest.fixture
def umask(tmp_path: Path) -> Iterator[int]:
    """The group may read and others may not: neither what is always private nor what is always public agrees."""
    tmp_path.chmod(0o755)
    before = os.umask(0o027)
    get_umask.cache_clear()  # fsspec, which writes checkpoints, asks once per process
    yield 0o027
    os.umask(before)
    get_umask.cache_clear()


def wrong_modes(folder: Path, umask: int) -> dict[str, str]:
    found = {}
    for path in folder.rglob("*"):
        expected = (0o777 if path.is_dir() else 0o666) & ~umask
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode != expected:
            found[str(path.relative_to(folder))] = oct(mode)
    return found


def test_files_of_every_verb(umask: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fit(tmp_path / "run")
    Image.new("RGB", (32, 32)).save("image.png")
    main(["predict", "--config=run/fit.yaml", "--trainer.enable_progress_bar=false"])
    main(["predict-files", "run", "image.png", "--contact_sheet=sheet.png", "--progress=false"])
    main(["predict-files", "run", "image.png", "--out=new/predictions.json", "--progress=false"])
    main(["plot", "run"])
    main(["report", "run"])
    main(["export", "run"])
    main(["export", "run", "--format=adapter"])
    main(["merge", "run"])
    assert wrong_modes(tmp_path, umask) == {}
    names = {path.name for path in tmp_path.rglob("*")}
    assert names >= {"results.json", "fit.yaml", "predictions.csv", "report.html", "model.safetensors", "last.ckpt"}


def test_data_and_caches(umask: int, tmp_path: Path) -> None:
    pytest.importorskip("av")
    pytest.importorskip("h5py")
    write_entries(tmp_path / "prepared" / "train.json", [])
    write_h5(tmp_path / "features" / "a.h5", "a", np.zeros((2, 2)))
    write_npz(tmp_path / "features" / "a.npz", np.zeros((2, 2)))
    read_motion(tmp_path / "motion")
    write_avi(tmp_path / "video.avi")
    frames = ClipCache(tmp_path / "cache", 10**9).read(tmp_path / "video.avi", range, 32, EVERY_FRAME)
    assert frames.dtype == torch.uint8
    assert wrong_modes(tmp_path, umask) == {}
