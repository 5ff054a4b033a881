"""What may end while a sweep runs: the command, by a signal or by a kill, a worker, Ray itself, or the head node."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tests.sweeps.small_sweep import SMALL, finished, measurements, start, wait_for_processes, wait_until, write_sweep

pytest.importorskip("ray", reason="the extra [sweep] is not installed")

ONE_METHOD = {"LoRA": SMALL["methods"]["LoRA"]}


def until_finished(count: int, process: subprocess.Popen[str], folder: Path) -> dict[str, str]:
    """Wait for the end of so many trials; directory -> date of each."""
    wait_until(lambda: len(finished(folder)) >= count or process.poll() is not None)
    assert process.poll() is None, process.communicate()[0]
    return dates(folder)


def dates(folder: Path) -> dict[str, str]:
    return {name: results["fit"]["date"] for name, results in finished(folder).items()}


def workers(sweep: int) -> list[psutil.Process]:
    """The processes that run trials."""
    found = []
    for process in psutil.Process(sweep).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it has ended meanwhile
            if "ray::_Worker.run" in " ".join(process.cmdline()):
                found.append(process)
    return found


def wait_for_worker(sweep: subprocess.Popen[str]) -> psutil.Process:
    return wait_for_processes(lambda: workers(sweep.pid), sweep)[0]


def workers_left(folder: Path) -> list[psutil.Process]:
    """Processes of a sweep in a folder that still run trials a moment later."""

    def found() -> list[psutil.Process]:
        there = psutil.process_iter(["cmdline", "cwd"])
        return [
            p for p in there if "ray::_Worker" in " ".join(p.info["cmdline"] or []) and p.info["cwd"] == str(folder)
        ]

    deadline = time.monotonic() + 60
    while found() and time.monotonic() < deadline:
        time.sleep(0.1)
    return found()


def check_signal(process: subprocess.Popen[str], folder: Path, number: signal.Signals) -> None:
    process.send_signal(number)
    shown, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number, shown
    assert shown.splitlines()[-1] == "replora-cli: interrupted"
    assert "Traceback" not in shown
    assert not (folder / "out" / "report").exists()
    assert not workers_left(folder)


def test_whatever_ends_a_sweep_its_results_are_those_of_an_undisturbed_one(tmp_path, undisturbed):
    """Ctrl-C, a worker that is killed, SIGTERM, a command that is killed, Ray itself, and another place."""
    write_sweep(tmp_path / "s.yaml")
    process = start(tmp_path)
    before = until_finished(1, process, tmp_path)
    check_signal(process, tmp_path, signal.SIGINT)
    assert not (tmp_path / "out" / "final").exists(), "nothing new begins"

    process = start(tmp_path, "--stage=select", "--max_concurrent=2", "--make_report=false", "--cpus_per_trial=0.5")
    victim = wait_for_worker(process)
    assert victim.nice() == psutil.Process(process.pid).nice(), "workers have the priority of the command"
    victim.kill()
    shown, _ = process.communicate(timeout=300)
    assert process.returncode == 0, shown
    assert re.search(r"select: [123] of 4 trials are finished already", shown)
    assert shown.count("its process died (out of memory?); it is tried again after the others") == 1
    assert "at most 1 at once" in shown
    assert "Traceback" not in shown

    process = start(tmp_path)
    before |= until_finished(5, process, tmp_path)
    check_signal(process, tmp_path, signal.SIGTERM)

    process = start(tmp_path)
    before |= until_finished(len(dates(tmp_path)) + 1, process, tmp_path)
    process.kill()
    process.communicate()
    assert not workers_left(tmp_path)

    process = start(tmp_path)
    wait_for_worker(process)
    found = psutil.Process(process.pid).children(recursive=True)
    next(child for child in found if child.name() == "raylet").kill()
    process.communicate(timeout=200)  # workers that live may end their trials
    assert not workers_left(tmp_path)
    before |= dates(tmp_path)

    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("s.yaml", "out"):
        (tmp_path / name).rename(moved / name)
    process = start(moved)
    shown, _ = process.communicate(timeout=300)
    assert process.returncode == 0, shown
    assert "chosen on the validation images" in shown
    assert measurements(moved / "out") == undisturbed
    after = dates(moved)
    assert {name: after[name] for name in before} == before, "what was finished is not repeated"
    for file in (moved / "out").rglob("results.json"):
        assert "parameters train" in (file.parent / "output.log").read_text(), "the log has the lines of the run"
    report = moved / "out" / "report"
    assert "data:image/png;base64," in (report / "report.html").read_text()
    assert len((report / "runs.jsonl").read_text().splitlines()) == 8


def test_a_trial_that_fails_again_ends_nothing_else(tmp_path):
    """One size asks for more images per class than there are, and the process of one trial is killed."""
    methods = {"LoRA": {"configs": ["adapter/lora.yaml"]}}
    write_sweep(tmp_path / "s.yaml", methods=methods, select=None, sizes={"data.shots": [1, 5000]})
    process = start(tmp_path, "--make_report=false", "--max_failures=0")
    wait_for_worker(process).kill()
    shown, _ = process.communicate(timeout=300)
    assert process.returncode == 2, shown
    assert "3 trials failed:\n" in shown
    assert "  final/LoRA/shots=1/seed=0: its process died (out of memory?)\n" in shown
    assert "asks for 5000 examples of every class" in shown
    assert set(finished(tmp_path)) == {"final/LoRA/shots=1/seed=1"}


def kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):  # the end of one may end others
            process.kill()


@contextmanager
def head_node(ports: list[int]) -> Iterator[list[psutil.Process]]:
    """The processes of a Ray cluster with one machine at the first of these ports."""
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder:  # a socket's path must be short
        names = ["--port", "--ray-client-server-port", "--dashboard-agent-listen-port"]
        options = [f"{name}={port}" for name, port in zip(names, ports, strict=True)]
        options += ["--min-worker-port=0", "--max-worker-port=0", "--include-dashboard=false"]  # 0: any free one
        options += [f"--temp-dir={folder}", "--num-cpus=1", "--object-store-memory=100000000"]
        ray = Path(sys.executable).with_name("ray")
        command = [ray] if ray.is_file() else [sys.executable, "-m", "ray.scripts.scripts"]
        subprocess.run([*command, "start", "--head", *options], check=True, stdout=subprocess.DEVNULL, timeout=120)
        found = [p for p in psutil.process_iter(["cmdline"]) if f"{folder}/" in " ".join(p.info["cmdline"] or [])]
        for process in list(found):
            with suppress(psutil.NoSuchProcess):
                found += process.children(recursive=True)
        try:
            yield found
        finally:
            kill(found)
            psutil.wait_procs(found, timeout=20)


def test_a_sweep_on_a_cluster_goes_on_after_its_head_node_was_killed(tmp_path, undisturbed, monkeypatch):
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "2")  # then everything ends; 60 by default
    monkeypatch.setenv("RAY_worker_niceness", "0")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    write_sweep(tmp_path / "s.yaml", methods=ONE_METHOD)
    address = f"--address=127.0.0.1:{ports[0]}"
    with head_node(ports) as processes:
        process = start(tmp_path, address, "--make_report=false")
        before = until_finished(1, process, tmp_path)
        kill(processes)
        shown, _ = process.communicate(timeout=100)
        assert process.returncode not in (0, 130), shown
    assert not workers_left(tmp_path)
    with head_node(ports):
        process = start(tmp_path, address, "--make_report=false")
        shown, _ = process.communicate(timeout=300)
    assert process.returncode == 0, shown
    assert measurements(tmp_path / "out") == {name: one for name, one in undisturbed.items() if "/LoRA/" in name}
    after = dates(tmp_path)
    assert {name: after[name] for name in before} == before


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
