"""`sweep --workers`: processes of this machine, without Ray."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from replora.cli.main import run as main
from replora.errors import RepLoRAError
from replora.sweeps.local_workers import LocalWorkers
from tests.sweeps.small_sweep import SMALL, finished, measurements, start, wait_for_processes, write_sweep


def start_workers(folder: Path, *options: str) -> subprocess.Popen[str]:
    """A sweep in two processes, where Ray cannot be imported."""
    hidden = folder / "hidden"
    hidden.mkdir(exist_ok=True)
    (hidden / "ray.py").write_text("raise ImportError('hidden')\n", encoding="utf-8")
    paths = [str(hidden), os.environ.get("PYTHONPATH", "")]
    return start(folder, *options, limit="--workers=2", PYTHONPATH=os.pathsep.join(filter(None, paths)))


def running(folder: Path) -> list[psutil.Process]:
    """The processes of workers that run a trial now, which hold the file of its output."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        spawned = "spawn_main" in " ".join(process.info["cmdline"] or []) and process.info["cwd"] == str(folder)
        with suppress(psutil.NoSuchProcess):  # it has ended meanwhile
            if spawned and any(Path(str(file.path)).name == "output.log" for file in process.open_files()):
                found.append(process)
    return found


def wait_for_trial(folder: Path, sweep: subprocess.Popen[str]) -> list[psutil.Process]:
    return wait_for_processes(lambda: running(folder), sweep)


def left(folder: Path) -> list[psutil.Process]:
    """Processes of workers that are there a moment later."""

    def there() -> list[psutil.Process]:
        every = psutil.process_iter(["cmdline", "cwd"])
        return [p for p in every if "spawn_main" in " ".join(p.info["cmdline"] or []) and p.info["cwd"] == str(folder)]

    deadline = time.monotonic() + 60
    while there() and time.monotonic() < deadline:
        time.sleep(0.1)
    return there()


def test_it_ends_and_resumes_as_an_undisturbed_sweep(tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    """Ctrl-C, SIGTERM, the end of the command itself and of a worker; then the whole of it."""
    write_sweep(tmp_path / "s.yaml")
    for number, to_all in ((signal.SIGINT, True), (signal.SIGTERM, False)):
        process = start_workers(tmp_path)
        wait_for_trial(tmp_path, process)
        os.killpg(process.pid, number) if to_all else process.send_signal(number)
        shown, _ = process.communicate(timeout=60)
        assert process.returncode == 128 + number, shown
        assert shown.splitlines()[-1] == "replora-cli: interrupted"
        assert "Traceback" not in shown
        assert not left(tmp_path)
    assert not (tmp_path / "out" / "final").exists()

    process = start_workers(tmp_path)
    wait_for_trial(tmp_path, process)
    process.kill()
    process.communicate()
    assert not left(tmp_path), "workers end when nobody is there to give them trials"

    process = start_workers(tmp_path)
    wait_for_trial(tmp_path, process)[0].kill()
    shown, _ = process.communicate(timeout=300)
    assert process.returncode == 0, shown
    assert shown.count("its process died (out of memory?); it is tried again after the others, with at most 1") == 1
    assert "chosen on the validation images" in shown
    assert "Traceback" not in shown
    assert measurements(tmp_path / "out") == undisturbed
    assert (tmp_path / "out" / "report" / "report.html").is_file()
    assert not left(tmp_path)


def test_a_trial_that_fails_again_ends_nothing_else(tmp_path: Path) -> None:
    """One size asks for more images per class than there are."""
    methods = {"LoRA": {"configs": ["adapter/lora.yaml"]}}
    write_sweep(tmp_path / "s.yaml", methods=methods, select=None, sizes={"data.shots": [1, 5000]})
    process = start_workers(tmp_path, "--make_report=false")
    shown, _ = process.communicate(timeout=300)
    assert process.returncode == 2, shown
    assert "2 trials failed:\n" in shown
    assert "asks for 5000 examples of every class" in shown
    assert set(finished(tmp_path)) == {"final/LoRA/shots=1/seed=0", "final/LoRA/shots=1/seed=1"}


def test_a_wrong_option_is_said_before_any_trial(tmp_path: Path) -> None:
    write_sweep(tmp_path / "s.yaml", options=SMALL["options"] | {"data.bach_size": 8})
    process = start_workers(tmp_path)
    shown, _ = process.communicate(timeout=120)
    assert process.returncode == 2, shown
    assert "bach_size" in shown
    assert not left(tmp_path)
    assert not list((tmp_path / "out").rglob("trial.json"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gpus_per_trial=1"], "--workers cannot be combined with --gpus_per_trial: which GPU a trial has"),
        (["--shard=1/2"], "--workers cannot be combined with --shard"),
        (["--address=auto"], "--workers cannot be combined with --address"),
        (["--max_concurrent=2"], "--workers cannot be combined with --max_concurrent"),
        (["--trial=1"], "--workers cannot be combined with --trial"),
    ],
)
def test_what_does_not_fit_together_is_refused(tmp_path: Path, options: list[str], message: str) -> None:
    file = write_sweep(tmp_path / "s.yaml")
    with pytest.raises(RepLoRAError, match=message):
        main(["sweep", f"--config={file}", f"--out={tmp_path / 'out'}", "--workers=2", *options])


def test_the_estimate_is_for_the_workers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_sweep(tmp_path / "s.yaml", seconds_per_trial=30)
    main(["sweep", f"--config={file}", f"--out={tmp_path / 'out'}", "--workers=2", "--dry_run=true"])
    assert "with 2 at once" in capsys.readouterr().out
    with pytest.raises(RepLoRAError, match=r"--workers 0 is too small\. It must be at least 1"):
        main(["sweep", f"--config={file}", f"--out={tmp_path / 'out'}", "--workers=0"])


def test_few_trials_at_first_limit_only_what_is_started_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Final trials at a former point count as finished until another one is selected."""
    started: list[int] = []

    class Idle:
        def __init__(self, threads: int) -> None:
            started.append(threads)

        def kill(self) -> None:
            pass

    monkeypatch.setattr("replora.sweeps.local_workers._Worker", Idle)
    room: list[int] = []

    def remember(_sweep: object, _home: object, queue: LocalWorkers, *_: object) -> None:
        room.append(queue.capacity())

    monkeypatch.setattr("replora.sweeps.sweep.check_sweep", lambda _: None)
    monkeypatch.setattr("replora.sweeps.sweep.run_sweep", remember)
    file = write_sweep(tmp_path / "s.yaml", methods={"LoRA": {"configs": ["adapter/lora.yaml"]}}, select=None)
    main(["sweep", f"--config={file}", f"--out={tmp_path / 'out'}", "--workers=4", "--cpus_per_trial=3"])
    assert started == [3, 3], "there are two trials"
    assert room == [4]
