"""`replora-cli export` and `merge`: a trained adapter in formats that other libraries read."""

from __future__ import annotations

from pathlib import Path
from typing import Literal


def export(
    source: Path,
    out: Path | None = None,
    format: Literal["peft", "adapter"] = "peft",
    base: str | None = None,
    checkpoint: Path | None = None,
    license: str = "unknown",
) -> None:
    """Write a trained adapter as a folder of the peft library, or as a small file of A and B.

        replora-cli export runs/NAME --out adapter_for_peft
        replora-cli export adapter.safetensors --base models/llama --out adapter_for_peft

    The folder is plain LoRA: peft.PeftModel.from_pretrained(base, folder) opens it, and nothing of this package is
    needed to use it. Heads are in it.

    Args:
        source: A run's directory, or an adapter file of replora.save_adapter together with --base.
        out: The folder to write, or the file with --format adapter. Default: peft or deployed.safetensors in the run's
            directory; beside an adapter file. Nothing is overwritten.
        format: peft, or adapter: one file of our own for use alone, without the MLPs that only training needs.
        base: For an adapter file: what it was trained on, a folder or hub name of transformers or a model of timm.
        checkpoint: For a run or a timm base: the backbone's weights, where they are not where the run or timm has them.
        license: Of the adapter, for the model card: an identifier of the Hugging Face hub such as apache-2.0.
    """
    from replora import export as deployment

    out = out or _beside(source, "peft" if format == "peft" else "deployed.safetensors")
    deployment.export(deployment.load_trained(source, base, checkpoint), out, format, license)
    print(f"{'adapter for peft' if format == 'peft' else 'adapter'}: {out}")


def merge(
    source: Path,
    out: Path | None = None,
    base: str | None = None,
    checkpoint: Path | None = None,
    license: str = "unknown",
) -> None:
    """Fold a trained adapter into its backbone, and write the model for timm or transformers.

        replora-cli merge runs/NAME --out model
        replora-cli merge adapter.safetensors --base models/llama --out model

    A timm model is opened by timm.create_model("local-dir:model", pretrained=True), a transformers model by its class's
    from_pretrained("model"). The merged model's outputs are compared with the unmerged one's before it is written.

    Args:
        source: A run's directory, or an adapter file of replora.save_adapter together with --base.
        out: The folder to write. Default: merged in the run's directory; beside an adapter file. Nothing is
            overwritten.
        base: For an adapter file: what it was trained on, a folder or hub name of transformers or a model of timm.
        checkpoint: For a run or a timm base: the backbone's weights, where they are not where the run or timm has them.
        license: Of the merged model, for its card: an identifier of the Hugging Face hub such as apache-2.0.
    """
    from replora import export as deployment

    out = out or _beside(source, "merged")
    difference = deployment.merge(deployment.load_trained(source, base, checkpoint), out, license)
    print(f"merged and unmerged outputs differ by at most {difference:.1e} of their size")
    print(f"model: {out}")


def _beside(source: Path, name: str) -> Path:
    """RUN -> RUN/name, file.safetensors -> file_name."""
    return source.with_name(f"{source.stem}_{name}") if source.is_file() else source / name
