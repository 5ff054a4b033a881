"""`replora-cli export` and `merge`: a trained adapter in formats that other libraries read."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from replora.io import check_output


def export(
    source: Path,
    out: Path | None = None,
    format: Literal["peft", "adapter", "timm", "onnx"] = "peft",
    base: str | None = None,
    checkpoint: Path | None = None,
    license: str = "unknown",
    import_module: str | None = None,
    force: bool = False,
    overwrite: bool = False,
) -> None:
    """Write a trained adapter for peft, timm or ONNX, or as a small file of A and B, each with a model card.

        replora-cli export runs/NAME --out adapter_for_peft
        replora-cli export runs/NAME --format onnx --out model_for_onnxruntime
        replora-cli export adapter.safetensors --base models/llama --out adapter_for_peft

    peft is a folder of plain LoRA with the heads: peft.PeftModel.from_pretrained(base, folder) opens it without this
    package. timm and onnx are folders of the merged model, which was compared with the unmerged one: the first for
    timm.create_model("local-dir:FOLDER", pretrained=True), the second with model.onnx for batches of any size, compared
    with torch on onnxruntime. The card has the code that opens what was written and classifies a photo.

    Args:
        source: Directory of a run, or an adapter file of replora.save_adapter together with --base.
        out: Folder to write, or file with --format adapter, whose card is beside it. Default: peft, timm, onnx or
            deployed.safetensors in the run's directory, or beside the adapter file.
        format: peft, timm, onnx, or adapter for one file of this package's format, without the MLPs that only training
            needs.
        base: Model that an adapter file was trained on: a folder or hub name of transformers, or a model name of timm.
        checkpoint: File of the backbone's weights for a run or a timm base, if they are not where these look for them.
        license: License of the adapter for the model card, an identifier of the Hugging Face hub such as apache-2.0.
        import_module: Python module that defines the run's LightningModule, if it is your own.
        force: Whether to use an adapter whose training diverged.
        overwrite: Whether to replace an output that exists, if it holds nothing else.
    """
    out = out or _beside(source, "deployed.safetensors" if format == "adapter" else format)
    check_output(out, overwrite, _inputs(source, base, checkpoint), folder=format != "adapter")
    # Only here: the light verbs of the command line do not wait for torch.
    from replora import export as deployment
    from replora import runs

    if format == "onnx":
        deployment.check_onnx()
    runs.import_module(import_module)
    trained = deployment.load_trained(source, base, checkpoint, force)
    difference = deployment.export(trained, out, format, license, overwrite)
    if format == "onnx":
        print(f"probabilities of onnxruntime and torch differ by at most {difference:.1e}")
    elif format == "timm":
        print(f"merged and unmerged outputs differ by at most {difference:.1e} of their size")
    print(f"{_WRITTEN[format]}: {out}")
    _print_how_to_open(out)


_WRITTEN = {"peft": "adapter for peft", "adapter": "adapter", "timm": "model for timm", "onnx": "model for onnxruntime"}


def merge(
    source: Path,
    out: Path | None = None,
    base: str | None = None,
    checkpoint: Path | None = None,
    license: str = "unknown",
    import_module: str | None = None,
    force: bool = False,
    dtype: Literal["keep", "float32"] = "keep",
    overwrite: bool = False,
) -> None:
    """Fold a trained adapter into its backbone, and write the model for timm or transformers.

        replora-cli merge runs/NAME --out model
        replora-cli merge adapter.safetensors --base models/llama --out model

    Open a timm model with timm.create_model("local-dir:model", pretrained=True) and a transformers model with its
    class's from_pretrained("model"). The outputs of the merged and unmerged model are compared before it is written.

    Args:
        source: Directory of a run, or an adapter file of replora.save_adapter together with --base.
        out: Folder to write. Default: merged in the run's directory, or beside the adapter file.
        base: Model that an adapter file was trained on: a folder or hub name of transformers, or a model name of timm.
        checkpoint: File of the backbone's weights for a run or a timm base, if they are not where these look for them.
        license: License of the merged model for its card, an identifier of the Hugging Face hub such as apache-2.0.
        import_module: Python module that defines the run's LightningModule, if it is your own.
        force: Whether to use an adapter whose training diverged.
        dtype: Data type of the written weights: `keep` that of the backbone, or write `float32`, without rounding.
        overwrite: Whether to replace an output that exists, if it holds nothing else.
    """
    out = out or _beside(source, "merged")
    check_output(out, overwrite, _inputs(source, base, checkpoint), folder=True)
    # Only here: the light verbs of the command line do not wait for torch.
    from replora import export as deployment
    from replora import runs

    runs.import_module(import_module)
    trained = deployment.load_trained(source, base, checkpoint, force)
    if dtype == "float32":
        trained.model.float()
    difference = deployment.merge(trained, out, license, overwrite)
    print(f"merged and unmerged outputs differ by at most {difference:.1e} of their size")
    if difference > 1e-3:
        print("this is the rounding of 16-bit weights; --dtype float32 writes the sums without it")
    print(f"model: {out}")
    _print_how_to_open(out)


def _print_how_to_open(out: Path) -> None:
    if (card := out / "README.md" if out.is_dir() else out.with_suffix(".md")).is_file():
        print(f"how to open it: {card}")


def _inputs(source: Path, base: str | None, checkpoint: Path | None) -> list[Path]:
    """What the call reads: the files of a run or an adapter file, and the base where it is a folder."""
    files = [source / name for name in ("fit.yaml", "adapter.safetensors", "results.json")]
    return [source, *files, *([Path(base)] if base else []), *([checkpoint] if checkpoint else [])]


def _beside(source: Path, name: str) -> Path:
    """RUN -> RUN/name, file.safetensors -> file_name."""
    return source.with_name(f"{source.stem}_{name}") if source.is_file() else source / name
