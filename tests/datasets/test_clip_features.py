from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from replora.cli import main as cli
from replora.datasets.errors import CorruptVideoError, DatasetNotFoundError
from replora.datasets.vision_language import clip_encoder as clip_features
from replora.datasets.vision_language.clip_encoder import (
    FEATURE_SIZES,
    TIMM_NAMES,
    ClipEncoder,
    encoder_of,
    extract,
    find_sources,
    missing_features,
    video_frames,
)
from replora.datasets.vision_language.features import FeatureError, FeatureFolder
from replora.errors import RepLoRAError


@pytest.mark.parametrize(("name", "shape"), [("rn101", (2, 49, 2048)), ("vit_b32", (2, 512))])
def test_shapes_of_clips_encoders(name, shape):
    with torch.device("meta"):
        model = timm.create_model(TIMM_NAMES[name], pretrained=False).eval()
        assert encoder_of(name, model)(torch.zeros(2, 3, 224, 224)).shape == shape


def test_the_grid_is_row_by_row():
    class Stem(torch.nn.Module):
        def forward_features(self, images):
            return torch.nn.functional.avg_pool2d(images, 32)  # (B, 3, 7, 7)

    image = torch.zeros(1, 3, 224, 224)
    image[:, :, 0:32, 32:64] = 1  # first row, second column
    grid = encoder_of("rn101", Stem())(image)
    assert grid.shape == (1, 49, 3)
    assert grid[0, :, 0].nonzero().flatten().tolist() == [1]


def means(name: str) -> ClipEncoder:
    """Channel means, repeated to the encoder's shape."""

    def encode(images):
        numbers = images.mean((2, 3)).repeat(1, FEATURE_SIZES[name] // 3 + 1)[:, : FEATURE_SIZES[name]]
        return numbers if name == "vit_b32" else numbers[:, None].repeat(1, 49, 1)

    return ClipEncoder(name, encode, torch.device("cpu"))


def write_images(folder: Path, names: list[str]) -> Path:
    folder.mkdir()
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 20), (50 * i, 0, 255)).save(folder / name)
    return folder


def test_images(tmp_path):
    pytest.importorskip("h5py")
    folder = write_images(tmp_path / "images", ["train2014/a.png", "train2014/b.png", "val2014/c.jpg"])
    out = tmp_path / "features"
    sources = find_sources(folder, "rn101")
    assert list(sources) == ["a", "b", "c"]
    done: list[int] = []
    extract(missing_features(sources, out, "rn101"), out, means("rn101"), batch_size=2, advance=done.append)
    assert done == [2, 1]
    features = FeatureFolder(out, 2048).read("b")
    assert features.shape == (49, 2048)
    expected = [
        (value / 255 - mean) / std
        for value, mean, std in zip((50, 0, 255), clip_features.MEAN, clip_features.STD, strict=True)
    ]
    torch.testing.assert_close(features[7, :3], torch.tensor(expected, dtype=torch.float32), rtol=1e-5, atol=1e-5)

    (out / "b.h5").write_bytes(b"cut off")
    assert list(missing_features(sources, out, "rn101")) == ["b"], "whole files are not made again"


def test_what_cannot_be_extracted(tmp_path):
    folder = write_images(tmp_path / "images", ["x/a.png", "y/a.png"])
    with pytest.raises(FeatureError, match="have one name"):
        find_sources(folder, "rn101")
    with pytest.raises(DatasetNotFoundError, match="no videos"):
        find_sources(folder, "vit_b32")
    (folder / "x" / "a.png").write_bytes(b"damaged")
    unread = extract({"a": folder / "x" / "a.png"}, tmp_path / "out", means("rn101"))
    assert list(unread) == ["a"]
    assert not list((tmp_path / "out").iterdir())
    wrong = ClipEncoder("rn101", lambda images: images.mean((2, 3)), torch.device("cpu"))
    with pytest.raises(FeatureError, match=r"shape \(1, 3\) instead of \(1, 49, 2048\)"):
        extract({"a": folder / "y" / "a.png"}, tmp_path / "out", wrong)
    with pytest.raises(RepLoRAError, match="resnet101_clip"):
        clip_features.load_encoder("rn101", tmp_path / "none.safetensors")


def write_video(file: Path, seconds: float, rate: int = 10) -> Path:
    """Frames whose red grows with time."""
    av = pytest.importorskip("av")
    with av.open(str(file), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(round(seconds * rate)):
            picture = np.zeros((48, 64, 3), np.uint8)
            picture[..., 0] = 4 * i
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return file


def test_videos(tmp_path):
    video = write_video(tmp_path / "clip.mp4", 5.0)
    frames = list(video_frames(video, 1.5))
    assert len(frames) == 4  # at 0, 1.5, 3 and 4.5 seconds
    assert frames[0].shape == (3, 224, 224)
    reds = [frame[0].float().mean().item() for frame in frames]
    assert reds == pytest.approx([0, 60, 120, 180], abs=12)
    out = tmp_path / "features"
    extract(find_sources(tmp_path, "vit_b32"), out, means("vit_b32"), batch_size=3)
    assert FeatureFolder(out, 512).read("clip").shape == (4, 512)
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    with pytest.raises(CorruptVideoError, match=r"bad\.mp4 cannot be decoded"):
        list(video_frames(tmp_path / "bad.mp4", 1.5))
    sources = {"bad": tmp_path / "bad.mp4", "again": video}
    assert list(extract(sources, out, means("vit_b32"))) == ["bad"]
    assert (out / "again.npz").is_file(), "the others go on"


def test_an_image_that_cannot_be_read_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    pytest.importorskip("h5py")
    folder = write_images(tmp_path / "images", ["a.png", "b.png", "c.png"])
    (folder / "b.png").write_bytes(b"damaged")
    monkeypatch.setattr(clip_features, "load_encoder", lambda name, *_: means(name))
    command = ["prepare", "clip-features", str(folder), str(tmp_path / "out"), "--progress", "false"]
    with pytest.raises(SystemExit) as stopped:
        cli.main(command)
    assert stopped.value.code
    printed = capsys.readouterr()
    assert "2 new files of features" in printed.out
    assert "1 of 3 files have no features" in printed.err
    assert "b.png" in printed.err
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["a.h5", "c.h5"]


def test_through_the_command_line(tmp_path, monkeypatch, capsys):
    pytest.importorskip("h5py")
    folder = write_images(tmp_path / "images", ["a.png", "b.png"])
    monkeypatch.setattr(clip_features, "load_encoder", lambda name, *_: means(name))
    command = ["prepare", "clip-features", str(folder), str(tmp_path / "out"), "--progress", "false"]
    cli.main(command)
    assert "2 new files of features" in capsys.readouterr().out
    cli.main(command)
    assert "2 in" in (printed := capsys.readouterr().out)
    assert "2 of them are done" in printed
    with pytest.raises(SystemExit):
        cli.main([*command, "--batch_size", "0"])
