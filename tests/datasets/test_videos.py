from __future__ import annotations

import re
import struct
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from replora.datasets.errors import CorruptVideoError
from replora.datasets.video import decode as videos
from replora.datasets.video.decode import MissingDecoderError, clip_files, count_frames, read_clip, resize
from replora.datasets.video.motion import write_video
from tests.fake_videos import frames_of, write_avi, write_frames, write_webm


def brightness(clip: torch.Tensor) -> list[float]:
    """Of the green channel, which tells a frame's number: 20 + 15 t."""
    return ((clip[:, 1].float().mean(dim=(1, 2)) - 20) / 15).tolist()


@pytest.fixture(scope="module", params=["webm", "avi", "frames"])
def clip(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 frames of 24 x 32 pixels."""
    home = tmp_path_factory.mktemp("clips")
    if request.param == "frames":
        return write_frames(home / "clip", first=5)  # img_5 to img_16: by number, not by name
    write = {"webm": write_webm, "avi": write_avi}[request.param]
    return write(home / f"clip.{request.param}")


def test_frames_are_picked_by_number(clip: Path) -> None:
    frames = read_clip(clip, lambda count: [0, 3, count - 1, 3, 7])
    assert frames.shape == (5, 3, 24, 32)
    assert frames.dtype == torch.uint8
    assert brightness(frames) == pytest.approx([0, 3, 11, 3, 7], abs=0.3)
    assert count_frames(clip) == 12


def test_long_clips_are_decoded_twice_and_not_held(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = read_clip(clip, range)
    monkeypatch.setattr(videos, "HELD_BYTES", 4 * 24 * 32)
    assert torch.equal(read_clip(clip, range), whole)
    assert torch.equal(read_clip(clip, lambda _: [11, 2]), whole[[11, 2]])


def test_a_frame_does_not_depend_on_the_others_wanted(clip: Path) -> None:
    assert torch.equal(read_clip(clip, lambda _: [4], 16)[0], read_clip(clip, range, 16)[4])


def test_webm_reports_no_count(tmp_path: Path) -> None:
    import av

    with av.open(str(write_webm(tmp_path / "a.webm"))) as container:
        assert container.streams.video[0].frames == 0
        assert container.streams.video[0].codec_context.name.startswith(("vp9", "libvpx-vp9"))


@pytest.mark.parametrize(("shape", "expected"), [((24, 32), (12, 16)), ((32, 24), (16, 12)), ((12, 30), (12, 30))])
def test_the_shorter_side_is_resized(shape: tuple[int, int], expected: tuple[int, int]) -> None:
    frames = torch.randint(256, (2, 3, *shape), dtype=torch.uint8)
    resized = resize(frames, 12)
    assert resized.shape[-2:] == expected
    assert resized.float().mean() == pytest.approx(frames.float().mean().item(), abs=2)


@pytest.mark.parametrize("ending", ["webm", "avi"])
def test_damaged_files_are_named(ending: str, tmp_path: Path) -> None:
    write = {"webm": write_webm, "avi": write_avi}[ending]
    whole = write(tmp_path / f"whole.{ending}", count=40, size=(64, 64)).read_bytes()
    cut = tmp_path / f"cut.{ending}"
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorruptVideoError, match=rf"cut\.{ending} (ends after|cannot be decoded)"):
        read_clip(cut, range)
    noise = tmp_path / f"noise.{ending}"
    noise.write_bytes(bytes(range(256)) * 20)
    with pytest.raises(CorruptVideoError, match=rf"noise\.{ending} cannot be decoded"):
        count_frames(noise)
    empty = tmp_path / f"empty.{ending}"
    empty.touch()
    with pytest.raises(CorruptVideoError, match=r"the file is empty \(0 bytes\)"):
        read_clip(empty, range)
    with pytest.raises(CorruptVideoError, match="there is no such file"):
        read_clip(tmp_path / f"nowhere.{ending}", range)


def rewritten(source: Path, target: Path, change: Callable[[int, Any], Any]) -> Path:
    """The packets of a video as `change` makes them from (number, packet), not encoded again; None leaves one out."""
    import av

    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = old.streams.video[0]
        copied = new.add_stream_from_template(stream)
        for number, packet in enumerate(packet for packet in old.demux(stream) if packet.dts is not None):
            if (changed := change(number, packet)) is not None:
                changed.stream = copied
                new.mux(changed)
    return target


@pytest.mark.parametrize("ending", ["avi", "mp4"])
def test_a_frame_with_damaged_parts_is_no_frame(ending: str, tmp_path: Path) -> None:
    from replora.datasets.video.motion import write_video

    rng = np.random.default_rng(0)
    base = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    codec, options = {"avi": ("mpeg4", {"qmin": "2", "qmax": "4", "g": "12"}), "mp4": ("libx264", {})}[ending]
    file = tmp_path / f"a.{ending}"
    write_video(file, (np.ascontiguousarray(np.roll(base, 3 * t, 1)) for t in range(40)), codec, 30, options)
    assert count_frames(file) == 40
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 200] = rng.bytes(200)
    file.write_bytes(content)
    with pytest.raises(CorruptVideoError, match=rf"a\.{ending} is corrupt: parts of its frame \d+ of 40"):
        read_clip(file, lambda _: [0])


def test_lost_frames_of_a_webm_are_missed(tmp_path: Path) -> None:
    whole = write_webm(tmp_path / "whole.webm", count=40)
    lost = rewritten(whole, tmp_path / "lost.webm", lambda number, packet: None if 10 <= number < 25 else packet)
    with pytest.raises(CorruptVideoError, match=r"lost\.webm has no frames from second 0\.8 to 2\.1, but regular ones"):
        count_frames(lost)

    def stretched(number: int, packet: Any) -> Any:
        packet.pts = packet.dts = packet.pts + 40 * number**2  # milliseconds
        return packet

    varying = rewritten(whole, tmp_path / "varying.webm", stretched)  # its last step is 3 seconds, the first 0.1
    assert count_frames(varying) == 40


@pytest.mark.parametrize(
    ("times", "found"),
    [
        ([0.0], None),
        ([t / 12 for t in range(30)], None),
        ([t / 12 + 0.4 * (t > 9) for t in range(30)], None),  # less than half a second
        ([t / 2 + 0.9 * (t > 9) for t in range(30)], None),  # less than five frames
        ([t / 12 + 0.5 * (t > 9) for t in range(30)], (10 / 12, 10 / 12 + 0.5)),
        ([t / 12 + (t > 9) + (t > 15) + (t > 18) + (t > 21) for t in range(30)], None),  # pauses are usual in it
    ],
)
def test_a_gap_is_one_among_regular_frames(times: list[float], found: tuple[float, float] | None) -> None:
    assert videos._gap(times) == (found if found is None else pytest.approx(found))


def test_an_end_that_is_missing(tmp_path: Path) -> None:
    content = write_avi(tmp_path / "a.avi", count=60, size=(64, 64), noise=1).read_bytes()
    frames = [found.start() for found in re.finditer(b"00dc", content)]
    (tmp_path / "cut.avi").write_bytes(content[: frames[51]])
    with pytest.raises(
        CorruptVideoError, match=r"ends after 5. frames .*, but its header states 60 frames, so it is truncated"
    ):
        count_frames(tmp_path / "cut.avi")
    assert not videos._is_truncated(17, 18, 17 / 30, 18 / 30)  # one too many is stated for packed B-frames
    assert videos._is_truncated(83, 90, 83 / 30, 3.0)
    assert not videos._is_truncated(85, 0, 7.1, 7.5)
    assert videos._is_truncated(60, 0, 5.0, 7.5)


def test_a_trimmed_mp4_is_whole(tmp_path: Path) -> None:
    """Its first packets lie before the second zero, where an edit list begins: stated, but not shown."""
    import av

    from replora.datasets.video.motion import write_video

    write_video(tmp_path / "a.mp4", frames_of(0, 60), "libx264", 30, {"g": "60"})

    def earlier(_: int, packet: Any) -> Any:
        shift = int(1 / packet.time_base)
        packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
        return packet

    trimmed = rewritten(tmp_path / "a.mp4", tmp_path / "trimmed.mp4", earlier)
    with av.open(str(trimmed)) as container:
        assert container.streams.video[0].frames == 60
    assert count_frames(trimmed) < 40


@pytest.mark.parametrize("ending", ["mkv", "webm", "avi", "mp4", "mov", "ts", "flv", "asf", "3gp"])
def test_segments_of_a_video_are_complete(ending: str, tmp_path: Path) -> None:
    """As `ffmpeg -f segment` cuts them, which keeps the times of the whole video."""
    import av

    codec = {"webm": "libvpx-vp9", "flv": "flv"}.get(ending, "mpeg4")
    whole = tmp_path / f"whole.{ending}"
    write_video(whole, frames_of(0, 120, size=(48, 64)), codec, 30, {"g": "15"})
    pattern = str(tmp_path / f"part_%d.{ending}")
    with av.open(str(whole)) as source, av.open(pattern, "w", "segment", {"segment_time": "1"}) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    parts = sorted(tmp_path.glob("part_*"))
    assert len(parts) >= 3
    assert 110 < sum(map(count_frames, parts)) <= 120
    for part in parts:
        assert len(list(videos.frames_every(part, 0.25))) == -(-count_frames(part) * 4 // 30), part


@pytest.mark.parametrize("ending", ["mkv", "avi"])
def test_a_truncated_segment_is_found(ending: str) -> None:
    stated = {"mkv": 0, "avi": 3090}[ending]
    begin = 100
    assert videos._is_truncated(30, stated and stated - 30 * begin, 1.0, 103.0 - begin)
    assert not videos._is_truncated(90, stated and stated - 30 * begin, 3.0, 103.0 - begin)


@pytest.mark.parametrize("ending", ["webm", "mkv"])
def test_sound_may_be_longer_than_the_pictures(ending: str, tmp_path: Path) -> None:
    import av

    file = tmp_path / f"sound.{ending}"
    with av.open(str(file), "w") as container:
        video, sound = container.add_stream("libvpx-vp9", rate=12), container.add_stream("libopus", rate=48000)
        video.width, video.height, video.pix_fmt = 32, 24, "yuv420p"
        for _ in range(24):  # 2 seconds
            container.mux(video.encode(av.VideoFrame.from_ndarray(np.zeros((24, 32, 3), np.uint8), format="rgb24")))
        container.mux(video.encode(None))
        for number in range(200):  # 4 seconds
            samples = av.AudioFrame.from_ndarray(np.zeros((1, 960), np.float32), format="fltp", layout="mono")
            samples.sample_rate, samples.pts = 48000, 960 * number
            container.mux(sound.encode(samples))
        container.mux(sound.encode(None))
    assert count_frames(file) == 24


def test_damaged_folders_of_frames_are_named(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "clip")
    (folder / "img_4.jpg").unlink()
    with pytest.raises(CorruptVideoError, match=r"contains images 1 to 12, but number 4 is missing \(11 found\)"):
        read_clip(folder, range)
    (folder / "img_4.jpg").write_bytes(b"no image")
    with pytest.raises(CorruptVideoError, match=r"The frame .*img_4\.jpg cannot be read"):
        read_clip(folder, range)
    (folder / "img_4.jpg").rename(folder / "four.jpg")
    with pytest.raises(CorruptVideoError, match=r"four\.jpg has no unique number"):
        read_clip(folder, range)
    (tmp_path / "none").mkdir()
    with pytest.raises(CorruptVideoError, match="contains no images"):
        count_frames(tmp_path / "none")


def test_clips_are_files_and_folders_of_images(tmp_path: Path) -> None:
    write_avi(tmp_path / "a" / "1.AVI".lower())
    write_frames(tmp_path / "a" / "deeper" / "2")
    (tmp_path / "a" / "notes.txt").touch()
    (tmp_path / "a" / ".hidden.avi").touch()
    (tmp_path / "a" / "preview.jpg").touch()
    write_avi(tmp_path / "b" / "3.avi")
    (tmp_path / "b" / "3.jpg").touch()
    write_frames(tmp_path / "b" / "thumbs")
    left_out: Counter[str] = Counter()
    found = [path.relative_to(tmp_path).as_posix() for path in clip_files(tmp_path, left_out)]
    assert left_out == {".txt": 1, ".jpg": 2, "hidden file": 1, "hidden, foreign or preview folder": 1}
    assert found == ["a/1.avi", "a/deeper/2", "b/3.avi"]  # and no folder with a preview beside its videos


def test_a_missing_decoder_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_avi(tmp_path / "a.avi")
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.setattr(videos.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingDecoderError, match=r'pip install "replora\[video\]"'):
        read_clip(file, range)
    assert len(read_clip(write_frames(tmp_path / "clip"), range)) == 12


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_videos_of_phones_are_turned_upright(tmp_path: Path, degrees: int) -> None:
    """The matrix in the track's header says how players turn the frames."""
    white_above = np.zeros((24, 32, 3), np.uint8)
    white_above[:12] = 255
    file = tmp_path / "phone.mp4"
    write_video(file, iter([white_above] * 4), "mpeg4", 12, {"qmin": "1", "qmax": "2"})
    upright = read_clip(file, range)
    data = bytearray(file.read_bytes())
    one = 1 << 16
    matrix = {0: (one, 0, 0, one), 90: (0, one, -one, 0), 180: (-one, 0, 0, -one), 270: (0, -one, one, 0)}[degrees]
    a, b, c, d = matrix
    start = data.index(b"tkhd") + 44
    data[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    file.write_bytes(data)
    expected = torch.from_numpy(np.rot90(upright.numpy(), -degrees // 90, axes=(2, 3)).copy())  # clockwise
    assert torch.equal(read_clip(file, range), expected)


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [(".gif", "gif"), (".ts", "mpeg2video"), (".3gp", "mpeg4"), (".mts", "mpeg2video"), (".ogv", "libtheora"),
     (".vob", "mpeg2video"), (".m2v", "mpeg2video"), (".asf", "wmv2"), (".y4m", "rawvideo"), (".mkv", "mpeg4"),
     (".mpe", "mpeg2video"), (".f4v", "h264"), (".3g2", "mpeg4"), (".m2ts", "mpeg2video"), (".mxf", "mpeg2video")],
)  # fmt: skip
def test_every_container_is_read(tmp_path: Path, suffix: str, codec: str) -> None:
    import av

    file = tmp_path / f"video{suffix}"
    try:
        write_video(file, frames_of(1, 15, (64, 96)), codec, 25, {})
    except (av.FFmpegError, ValueError) as error:
        pytest.skip(f"not written: {error}")
    assert clip_files(tmp_path, Counter()) == [file]
    assert read_clip(file, range).shape == (15, 3, 64, 96)


def test_transparent_pixels_of_videos_are_white(tmp_path: Path) -> None:
    images = [Image.new("RGBA", (16, 16), (0, 0, 0, 0)) for _ in range(3)]
    for number, image in enumerate(images):
        image.paste((255, 0, 10 * number, 255), (0, 0, 8, 16))
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:], disposal=2, duration=40)
    frames = read_clip(tmp_path / "a.gif", range)
    assert frames.shape[0] == 3
    assert int(frames[0, :, :, 12:].min()) == 255
    assert int(frames[0, 1, :, :8].max()) == 0


def test_a_narrow_video_needs_little() -> None:
    assert resize(torch.zeros(8, 3, 2, 16384, dtype=torch.uint8), 64).shape == (8, 3, 64, 4096)
