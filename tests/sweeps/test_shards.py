"""Sweeps without Ray: shards, single trials and stages, killed and started again, in any number of processes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from filelock import FileLock

from replora.cli.main import main
from replora.results import read_results
from replora.sweeps.state import claimed, holder_of, state_of
from replora.sweeps.sweep_file import read_sweep
from tests.sweeps.small_sweep import SMALL, measurements, write_sweep

# What a task of `sbatch --array=1-2 --ntasks=4` sees.
SLURM = {
    "SLURM_JOB_ID": "4711",
    "SLURM_JOB_NAME": "replora-sweep",
    "SLURM_NTASKS": "4",
    "SLURM_NPROCS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "3",
    "SLURM_NODEID": "0",
    "SLURM_CPUS_PER_TASK": "1",
    "SLURM_ARRAY_TASK_ID": "1",
    "SLURM_ARRAY_TASK_COUNT": "2",
}
WITHOUT_RAY = "import sys; sys.modules['ray'] = None; from replora.cli.main import main; main()"
ONE_METHOD = {"LoRA": {"configs": ["adapter/lora.yaml"]}}


def start(folder: Path, *options: str) -> subprocess.Popen[str]:
    """A process in a job of SLURM, in which Ray cannot be imported."""
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", WITHOUT_RAY, "sweep", "--config=s.yaml", *options],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | SLURM | {"OMP_NUM_THREADS": "1"},
    )


def here(*options: str) -> None:
    main(["sweep", "--config=s.yaml", *options])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


def wait_for(condition, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_shards_equal_an_undisturbed_sweep(folder, capsys, undisturbed):
    """Shard 1 is killed in its first trial, shard 2 goes on, shard 1 begins again, then come selection and finals."""
    sweep = read_sweep(write_sweep(folder / "s.yaml"))
    home = folder / "runs" / "s"
    first = sweep.selection_trials()[0]
    killed = start(folder, "--shard=1/2", "--stage=select")
    wait_for((home / first.folder / "trial.json").is_file, killed)
    killed.send_signal(signal.SIGSTOP)  # time to look
    assert holder_of(home, first).startswith(f"process {killed.pid} on ")
    here("--status=true")
    assert re.search(r"select \W+0 \W+1 \W+0 \W+3 \W", capsys.readouterr().out)
    killed.kill()
    killed.wait()
    assert state_of(home, first) == "waiting"

    other = start(folder, "--shard=2/2", "--stage=select")
    assert other.communicate(timeout=300)[0].count("val/accuracy") == 2
    assert other.returncode == 0
    with pytest.raises(SystemExit):
        here("--stage=final", "--shard=1/1")
    assert "no point is selected yet" in capsys.readouterr().err
    here("--shard=1/2")
    assert "report:" not in capsys.readouterr().out
    here("--list=true", "--shard=2/2")
    assert re.findall(r"(\d) +(\w+) +(\S+)/", capsys.readouterr().out) == [
        ("2", "done", "select/LoRA/shots=1/lr=0.02"),
        ("4", "done", "select/RepLoRA/shots=1/lr=0.01"),
        ("6", "waiting", "final/RepLoRA/shots=1"),
        ("8", "waiting", "final/RepLoRA/shots=1"),
    ]
    here("--stage=final", "--shard=2/2")
    assert "report:" in capsys.readouterr().out, "no trial is left"
    assert not list(home.rglob("*.holder"))

    assert measurements(home) == undisturbed
    assert len(undisturbed) == 8


def test_a_signal_ends_a_shard_and_the_same_command_resumes_it(folder):
    """SIGTERM in the first trial, Ctrl-C in the second."""
    options = SMALL["options"] | {"trainer.max_epochs": 20}
    sweep = read_sweep(write_sweep(folder / "s.yaml", methods=ONE_METHOD, options=options, select=None))
    home = folder / "runs" / "s"
    first, second = sweep.only_trials()
    for trial, number, states in (
        (first, signal.SIGTERM, ["waiting", "waiting"]),
        (second, signal.SIGINT, ["done", "waiting"]),
    ):
        process = start(folder, "--shard=1/1")
        wait_for((home / trial.folder / "checkpoints" / "last.ckpt").is_file, process)
        process.send_signal(number)
        shown, _ = process.communicate(timeout=300)
        assert process.returncode == 128 + number, shown
        assert [state_of(home, trial) for trial in (first, second)] == states
        assert (home / second.folder).exists() == (trial is second), "nothing begins after the signal"
    here("--shard=1/1", "--make_report=false")
    assert all("resumed_from" in read_results(home / trial.folder)["fit"] for trial in (first, second))


def test_what_another_process_runs_is_left_out(folder, capsys):
    sweep = read_sweep(write_sweep(folder / "s.yaml", methods=ONE_METHOD, select=None))
    home = folder / "runs" / "s"
    first, second = sweep.only_trials()
    with claimed(home, first) as mine:
        assert mine
        here("--shard=1/1")
        assert f"{first.folder} is being run by process {os.getpid()} on" in capsys.readouterr().out
        assert [state_of(home, trial) for trial in (first, second)] == ["running", "done"]
        with claimed(home, first) as again:
            assert not again
    here("--trial=1")
    assert "report:" in capsys.readouterr().out
    assert state_of(home, first) == "done"
    here("--trial", second.folder)
    assert "1 of 1 trials are finished already" in capsys.readouterr().out


def test_failed_trials_are_counted_and_retried_alone(folder, capsys):
    """A trial fails for want of images; the others end."""
    sizes = {"data.shots": [5000, 1]}
    sweep = read_sweep(write_sweep(folder / "s.yaml", sizes=sizes, methods=ONE_METHOD, select=None))
    failing = [trial.folder for trial in sweep.only_trials() if "5000" in trial.folder]
    for options in (["--shard=1/1", "--max_failures=0"], ["--shard=1/1", "--max_failures=0", "--retry_failed=true"]):
        with pytest.raises(SystemExit) as ended:
            here(*options)
        assert ended.value.code == 2
        shown = capsys.readouterr()
        assert "2 trials failed" in shown.err
        assert "asks for 5000 examples of every class" in shown.err
        assert ("shots=1/" in shown.out) == (len(options) == 2)
    here("--status=true")
    shown = capsys.readouterr().out
    assert re.search(r"final \W+2 \W+0 \W+2 \W+0 \W", shown)
    assert f"failed: {failing[0]}: " in shown
    here("--list=true", "--retry_failed=true")
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["1", "failed", failing[0]],
        ["3", "failed", failing[1]],
    ]


def test_methods_are_run_alone(folder, capsys):
    write_sweep(folder / "s.yaml")
    here("--list=true", "--methods=[RepLoRA]", "--stage=select")
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in shown] == ["3", "4"], "numbers are those of the whole sweep"
    assert all("/RepLoRA/" in line[2] for line in shown)


def test_sizes_are_run_alone(folder, capsys):
    """Their selection needs no other size, and the whole sweep goes on later without repeating them."""
    write_sweep(folder / "s.yaml", sizes={"data.shots": [1, 2]})
    here("--shard=1/1", "--sizes=[2]")
    shown = capsys.readouterr().out
    assert "Nothing is chosen" not in shown
    finished = {path.parent for path in (folder / "runs").rglob("results.json")}
    assert finished
    assert all("shots=2" in str(path) for path in finished)
    assert {path.parts[path.parts.index("s") + 1] for path in finished} == {"select", "final"}
    here("--list=true")
    states = [line.split()[1:] for line in capsys.readouterr().out.splitlines()]
    assert {state for state, trial in states if "shots=2" in trial} == {"done"}
    assert {state for state, trial in states if "shots=2" not in trial} == {"waiting"}


def test_another_size_that_decides_is_awaited(folder, capsys):
    """With one point for all sizes, the selection waits for trials that this part does not run."""
    write_sweep(folder / "s.yaml", sizes={"data.shots": [1, 2]})
    here("--shard=1/1", "--sizes=[2]", "--methods=[LoRA]", "--choice=per_method")
    shown = capsys.readouterr().out
    assert "for 1 of 1 combinations" in shown
    awaited = [line.strip() for line in shown.splitlines() if line.startswith("  select/")]
    assert awaited
    assert all("/LoRA/shots=1/" in trial for trial in awaited)
    assert not (folder / "runs" / "s" / "final").exists()


def test_tasks_go_by_their_values(folder, capsys):
    tasks = {"data.tasks": [["ARC-Easy"], ["boolq"]]}
    write_sweep(folder / "s.yaml", tasks=tasks, sizes=[{"data.shots": 1}, {"data.train_fraction": 1.0}])
    here("--list=true", "--tasks=[ARC-Easy]", "--sizes=[train_fraction=1]", "--stage=select")
    shown = [line.split()[2] for line in capsys.readouterr().out.splitlines()]
    assert shown
    assert all("ARC-Easy" in trial and "train_fraction=1/" in trial for trial in shown)
    with pytest.raises(SystemExit):
        here("--list=true", "--sizes=[1]")
    assert "has no size '1'. Known: 'shots=1', 'train_fraction=1'" in capsys.readouterr().err
    write_sweep(folder / "s.yaml", sizes={"data.shots": [1, 2000000]})
    here("--list=true", "--sizes=[2000000]")
    assert "shots=2000000/" in capsys.readouterr().out, "not as 2e+06"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shard=0/2"], "--shard 0/2 is out of range: it must be 1/2 to 2/2. Number the tasks of a job array from 1"),
        (["--shard=3/2"], "--shard 3/2 is out of range: it must be 1/2 to 2/2"),
        (["--shard=1/0"], "--shard 1/0 is out of range"),
        (["--shard=second"], "--shard second is not of the form i/n, such as 2/8"),
        (["--shard="], "what follows '--shard=' is empty"),
        (["--trial=9"], "--trial 9: the trials have the numbers 1 to 8"),
        (["--trial=0"], "--trial 0: the trials have the numbers 1 to 8"),
        (["--trial=final/LORA/shots=1/seed=0"], "Did you mean 'final/LoRA/shots=1/seed=0'"),
        (["--trial="], "what follows '--trial=' is empty"),
        (["--methods=[LoRa]"], "has no method 'LoRa'. Did you mean 'LoRA'"),
        (["--methods=[]"], "--methods names no method"),
        (["--sizes=[3]"], "--sizes: the sweep 's' has no size '3'. Known: "),
        (["--sizes=[]"], "--sizes names no size"),
        (["--tasks=[digits]"], "--tasks: the sweep 's' has no axis tasks. Leave the option out"),
        (["--trial=1", "--sizes=[1]"], "--trial cannot be combined with --sizes"),
        (["--trial=1", "--shard=1/2"], "--trial cannot be combined with --shard"),
        (["--dry_run=true", "--list=true"], "--dry_run cannot be combined with --list"),
        (["--shard=1/2", "--address=auto"], "--address cannot be combined with --shard"),
        (["--trial=1", "--stage=select"], "--trial cannot be combined with --stage"),
        (["--stage=finale"], "--stage takes"),
        (["--shard=1/2", "--status=maybe"], "--status takes"),
        (["--choice=size"], "--choice takes"),
    ],
)
def test_mistakes_are_named_before_anything_runs(folder, capsys, options, message):
    write_sweep(folder / "s.yaml")
    with pytest.raises(SystemExit) as ended:
        here(*options)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert not (folder / "runs").exists()


def test_states_that_nobody_wrote_like_this(folder, capsys, monkeypatch):
    """Bytes that are no text, a killed holder, and the directory of another user."""
    sweep = read_sweep(write_sweep(folder / "s.yaml"))
    home = folder / "runs" / "s"
    first, second, *_ = sweep.selection_trials()
    for trial in (first, second):
        (home / trial.folder).mkdir(parents=True)
        (home / ".locks" / trial.folder).parent.mkdir(parents=True, exist_ok=True)
    (home / first.folder / "error.txt").write_bytes(b"\xff\xfe\x00")
    holder = home / ".locks" / f"{second.folder}.holder"
    holder.write_bytes(b"\xff killed")
    for _ in range(2):
        here("--status=true")
        shown = capsys.readouterr().out
        assert re.search(r"select \W+0 \W+0 \W+1 \W+3 \W", shown)
        assert f"failed: {first.folder}: \ufffd" in shown
    assert not holder.exists(), "nobody waits for it"
    holder.write_text("process 1 on node1")

    def refused(*_, **__):
        raise PermissionError

    monkeypatch.setattr("filelock.FileLock.acquire", refused)
    here("--status=true")
    assert f"running: {second.folder}, process 1 on node1, or was when it was killed" in capsys.readouterr().out


def test_a_held_lock_is_left_at_once_and_one_that_is_looked_at_is_not(folder, monkeypatch):
    monkeypatch.setattr("replora.sweeps.state.PATIENCE", 60)  # more than a busy machine delays
    trial = read_sweep(write_sweep(folder / "s.yaml")).selection_trials()[0]
    with claimed(folder, trial):
        begin = time.monotonic()
        with claimed(folder, trial) as mine:
            assert not mine
        assert time.monotonic() - begin < 50
    looking = FileLock(folder / ".locks" / f"{trial.folder}.lock", thread_local=False)
    looking.acquire()
    threading.Timer(0.1, looking.release).start()
    with claimed(folder, trial) as mine:
        assert mine


def test_a_stage_that_the_file_does_not_have(folder, capsys):
    write_sweep(folder / "s.yaml", final=None)
    with pytest.raises(SystemExit):
        here("--stage=final", "--list=true")
    assert "--stage final: s.yaml has no such stage" in capsys.readouterr().err


def test_the_status_of_a_sweep_that_has_not_begun(folder, capsys):
    write_sweep(folder / "s.yaml")
    here("--status=true")
    shown = capsys.readouterr().out
    assert "runs/s does not exist yet" in shown
    assert re.search(r"select \W+0 \W+0 \W+0 \W+4 \W", shown)
    assert not (folder / "runs").exists()
