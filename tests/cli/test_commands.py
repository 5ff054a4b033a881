"""The verbs without a Trainer, and the help texts."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from replora.cli.commands import quickstart
from replora.cli.main import COMMANDS, TRAINER_VERBS, main
from replora.config_files import packaged_configs
from replora.plots.quickstart import learning_curve, row
from replora.results import read_results
from tests.cli.helpers import QUICK


def test_help_lists_every_verb(capsys):
    for arguments in ([], ["--help"], ["-h"]):
        main(arguments)
        shown = capsys.readouterr().out
        assert all(f"  {verb} " in shown for verb in (*TRAINER_VERBS, *COMMANDS))


def test_version(capsys):
    main(["--version"])
    assert capsys.readouterr().out.startswith("replora 0.")


def test_unknown_verb(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["tset"])
    assert stopped.value.code == 2
    assert "There is no verb 'tset'. Did you mean 'test'" in capsys.readouterr().err


def test_configs_are_listed_with_a_line_each(capsys):
    main(["configs"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == sorted(packaged_configs())
    assert all(len(line.split()) > 3 for line in lines)


def test_a_pipe_that_is_closed_early_is_no_error():
    command = [sys.executable, "-m", "replora", "configs"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 128 + signal.SIGPIPE


def test_help_of_a_command(capsys):
    with pytest.raises(SystemExit):
        main(["quickstart", "--help"])
    shown = capsys.readouterr().out
    assert "replora-cli quickstart" in shown
    assert "--run_dir" in shown
    assert "--seed" in shown


def test_light_verbs_start_without_torch():
    code = (
        "import sys; from replora.cli.main import main; main(['configs']); main(['--help']);"
        "heavy = {'torch', 'lightning', 'timm', 'torchvision', 'transformers', 'peft'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_process_ends_without_a_search_for_cycles():
    """Among the objects of torch and Lightning it takes a second; exit handlers run from the last to the first."""
    program = (
        "import atexit, gc; atexit.register(lambda: print(gc.get_freeze_count() > 0)); import sys; "
        "from replora.cli.main import main; sys.argv[1:] = ['--version']; main()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "True"


def test_python_m_replora():
    done = subprocess.run([sys.executable, "-m", "replora", "fti"], check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert "Did you mean 'fit'" in done.stderr


def test_quickstart(tmp_path, monkeypatch, capsys):
    quick = [option for option in QUICK if "shots" not in option] + ["--trainer.limit_train_batches=2"]
    monkeypatch.setattr(
        quickstart, "QUICKSTART_DATA", {"few": [*quick, "--data.shots=1"], "all": [*quick, "--trainer.max_epochs=2"]}
    )
    main(["quickstart", f"--run_dir={tmp_path}"])
    shown = capsys.readouterr().out
    runs = [tmp_path / f"{data}-{method}" for data in ("few", "all") for method in quickstart.QUICKSTART_METHODS]
    rows = [row(run) for run in runs]
    assert [r.method for r in rows] == ["linear_probe", "lora", "replora"] * 2
    assert [r.images for r in rows] == [10] * 3 + [800] * 3
    assert rows[0].trained == rows[0].deployed == 1290
    assert rows[2].trained > rows[2].deployed == rows[1].deployed == rows[1].trained
    assert f"{rows[2].trained:,}" in shown
    assert f"{rows[5].test_accuracy:.1%}" in shown
    assert "linear probe" in shown
    assert "RepLoRA" in shown
    assert learning_curve(runs[5])[0] == [1, 2]
    assert (tmp_path / "quickstart.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "quickstart.png").stat().st_size > 50_000
    assert read_results(runs[5])["predict"]
