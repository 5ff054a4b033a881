"""`replora-cli quickstart`: three methods on the bundled digits, side by side."""

from __future__ import annotations

import contextlib
import io
import logging
import time
from datetime import datetime
from pathlib import Path

from replora.io import check_output, made_by
from replora.progress import progress_bar

# The quickstart's methods (files of configs/adapter), each at a learning rate that was among its best on validation
# images (results/ablation, results/digits_low_data).
QUICKSTART_METHODS = {"linear_probe": 0.1, "lora": 0.01, "replora": 0.01}


# Its training sets, with options that give 200 steps to each.
QUICKSTART_DATA = {
    "few": ["--data.shots=5", "--data.batch_size=10", "--trainer.max_epochs=40", "--trainer.check_val_every_n_epoch=4"],
    "all": [],
}


def quickstart(run_dir: Path | None = None, seed: int = 0) -> None:
    """Compare linear probe, LoRA and RepLoRA on digits, offline, in about two minutes.

    Six runs on two CPU cores: three methods, each with 5 images per class and with all 800. Ends with a table and a
    picture of the learning curves and some predictions.

    Args:
        run_dir: Directory of the six runs and the picture. Default: runs/<time>-quickstart.
        seed: Random seed (>= 0) for heads, adapters and data order.
    """
    import lightning.pytorch  # noqa: F401  (it sets the level of its loggers when it is imported)

    from replora.launch import launch
    from replora.plots.quickstart import MAKER, draw, row, table, title

    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    home = run_dir or Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-quickstart"
    picture = home / "quickstart.png"
    check_output(picture, None, is_own=made_by(MAKER))
    started = time.monotonic()
    runs: list[Path] = []
    summaries = io.StringIO()  # the table at the end has all runs
    bar = progress_bar("", len(QUICKSTART_METHODS) * len(QUICKSTART_DATA))
    with bar as advance, contextlib.redirect_stdout(summaries):
        for data, options in QUICKSTART_DATA.items():
            for method, rate in QUICKSTART_METHODS.items():
                advance(0, title(method, data))
                runs.append(home / f"{data}-{method}")
                launch(
                    [
                        "fit",
                        "--config=quickstart.yaml",
                        f"--config=adapter/{method}.yaml",
                        *options,
                        f"--model.optimizer.lr={rate}",
                        f"--seed_everything={seed}",
                        f"--run_dir={runs[-1]}",
                        "--trainer.enable_progress_bar=false",
                    ]
                )
                advance()
        advance(0, "predictions")
        launch(["predict", f"--config={runs[-1] / 'fit.yaml'}", "--trainer.enable_progress_bar=false"])
    draw(runs, picture)
    table([row(run) for run in runs])
    print(f"{time.monotonic() - started:.0f} seconds. Learning curves and predictions: {picture}")
    print(f"Everything about a run, for example: {runs[-1] / 'results.json'}")
