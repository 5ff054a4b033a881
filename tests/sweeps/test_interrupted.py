"""What may end while a sweep runs: the command, by a signal, a worker, or Ray itself."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.sweeps.small_sweep import SMALL, finished, start, write_sweep

pytest.importorskip("ray", reason="the extra [sweep] is not installed")

ONE_METHOD = {"LoRA": SMALL["methods"]["LoRA"]}


def wait_until(condition: Callable[[], object], seconds: float = 200) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.1)


def workers(sweep: int) -> list[psutil.Process]:
    """The processes that run trials."""
    found = psutil.Process(sweep).children(recursive=True)
    return [process for process in found if "ray::_Worker.run" in " ".join(process.cmdline())]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_ends_a_sweep_and_begins_nothing_new(tmp_path, number):
    write_sweep(tmp_path / "s.yaml", methods=ONE_METHOD)
    process = start(tmp_path)
    wait_until(lambda: finished(tmp_path) or process.poll() is not None)
    process.send_signal(number)
    shown, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number, shown
    assert shown.splitlines()[-1] == "replora-cli: interrupted"
    assert "Traceback" not in shown
    assert "chosen on the validation images" not in shown
    assert not (tmp_path / "out" / "report").exists()
    assert not (tmp_path / "out" / "final").exists()
    assert not workers_left(tmp_path)


def workers_left(folder: Path) -> list[psutil.Process]:
    """Processes of Ray that still work in a folder a moment later."""

    def found() -> list[psutil.Process]:
        there = psutil.process_iter(["cmdline", "cwd"])
        return [p for p in there if "ray::" in " ".join(p.info["cmdline"] or []) and p.info["cwd"] == str(folder)]

    deadline = time.monotonic() + 20
    while found() and time.monotonic() < deadline:
        time.sleep(0.1)
    return found()


def test_a_worker_that_dies_ends_nothing_else(tmp_path):
    """Its trial is tried again after the others, and the results are those of a sweep that nothing disturbed."""
    write_sweep(tmp_path / "s.yaml", methods=ONE_METHOD, final=None)
    process = start(tmp_path, "--max_concurrent=2", "--make_report=false", "--cpus_per_trial=0.5")
    wait_until(lambda: list((tmp_path / "out").rglob("trial.json")) or process.poll() is not None)
    victim = workers(process.pid)[0]
    assert victim.nice() == psutil.Process(process.pid).nice(), "workers have the priority of the command"
    victim.kill()
    shown, _ = process.communicate(timeout=300)
    assert process.returncode == 0, shown
    assert shown.count("its process died (out of memory?); it is tried again after the others") == 1
    assert "at most 1 at once" in shown
    assert "Traceback" not in shown
    undisturbed = tmp_path / "undisturbed"
    undisturbed.mkdir()
    write_sweep(undisturbed / "s.yaml", methods=ONE_METHOD, final=None)
    start(undisturbed, "--make_report=false").communicate(timeout=300)
    disturbed, expected = finished(tmp_path), finished(undisturbed)
    assert {name: one["fit"]["metrics"] for name, one in disturbed.items()} == {
        name: one["fit"]["metrics"] for name, one in expected.items()
    }
    for file in (tmp_path / "out").rglob("results.json"):
        assert "parameters train" in (file.parent / "output.log").read_text(), "the log has the lines of the run"


def test_a_trial_whose_process_dies_again_has_failed(tmp_path):
    write_sweep(tmp_path / "s.yaml", methods={"LoRA": {"configs": ["adapter/lora.yaml"]}}, select=None)
    process = start(tmp_path, "--make_report=false", "--max_failures=0")
    wait_until(lambda: list((tmp_path / "out").rglob("trial.json")) or process.poll() is not None)
    workers(process.pid)[0].kill()
    shown, _ = process.communicate(timeout=300)
    assert process.returncode == 2, shown
    assert "1 trials failed:\n  final/LoRA/shots=1/seed=0: its process died (out of memory?)" in shown
    assert set(finished(tmp_path)) == {"final/LoRA/shots=1/seed=1"}


def test_cores_are_those_of_the_process(tmp_path, monkeypatch):
    from replora import memory

    monkeypatch.setattr(memory, "CPU_SHARE", tmp_path / "cpu.max")
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    assert memory.usable_cpus() == 6
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "4")
    assert memory.usable_cpus() == 4
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert memory.usable_cpus() == 2
    (tmp_path / "cpu.max").write_text("max 100000\n")
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "16")
    assert memory.usable_cpus() == 6


def test_a_sweep_goes_on_after_ray_itself_was_killed(tmp_path):
    """In another place as well: nothing in its directory names the former one."""
    methods = {"LoRA": {"configs": ["adapter/lora.yaml"]}}
    write_sweep(tmp_path / "s.yaml", methods=methods, select=None, final=SMALL["final"] | {"seeds": [0, 1, 2]})
    process = start(tmp_path, "--make_report=false")
    wait_until(lambda: finished(tmp_path) or process.poll() is not None)
    found = psutil.Process(process.pid).children(recursive=True)
    next(child for child in found if child.name() == "raylet").kill()
    process.communicate(timeout=200)  # workers that live may end their trials
    before = finished(tmp_path)
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("s.yaml", "out"):
        (tmp_path / name).rename(moved / name)
    shown, _ = (again := start(moved, "--make_report=false")).communicate(timeout=300)
    assert again.returncode == 0, shown
    after = finished(moved)
    assert len(after) == 3
    assert {name: after[name]["fit"]["date"] for name in before} == {n: r["fit"]["date"] for n, r in before.items()}
