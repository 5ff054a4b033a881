"""The README of an exported adapter or merged model, in the form that model hubs read."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from replora.io import markdown


def model_card(
    description: Mapping[str, Any],
    base_model: str | None,
    license: str,
    data: str | None,
    images: str | None,
    metrics: Mapping[str, float],
    *,
    classes: Sequence[str] = (),
    base_class: str,
    library: str,
    usage: str,
) -> str:
    """Markdown with a YAML head.

    Args:
        description: Description of the adapter that `replora.describe` returns.
        base_model: Name of the frozen model, None if unknown.
        license: An identifier of the Hugging Face hub.
        data: What it was trained on.
        images: How images are preprocessed.
        metrics: Name -> value.
        classes: Class names in the order of the outputs.
        base_class: Python class of the base model.
        library: Which opens the folder: `peft`, `timm`, `transformers` ...
        usage: Code that opens it.
    """
    origin = description.get("trained_as", description)
    head = {
        "library_name": library,
        "base_model": base_model,
        "license": license,
        "tags": list(dict.fromkeys(["replora", origin["method"]])),
    }
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in head.items() if value is not None]
    counts = description["parameters"]
    trained = origin["parameters"]["adapter_trained"]
    rows = {
        "Base model": f"{base_model or 'not recorded'} ({base_class}, {counts['backbone']:,} parameters)",
        "Method": origin["method"],
        "Options": ", ".join(f"{name} = {value}" for name, value in origin["options"].items()) or "none",
        "Adapted layers": f"{len(description['targets'])}",
        "Parameters trained": f"{trained:,} of the adapter and {counts['head']:,} of the head",
        "Parameters deployed": f"{counts['adapter_deployed']:,} of the adapter and {counts['head']:,} of the head",
        "Training data": data or "not recorded",
        **({"Classes": f"{len(classes):,}, in the order of the outputs: {', '.join(classes)}"} if classes else {}),
        **({"Images": images} if images else {}),
    }
    table = "\n".join(f"| {name} | {markdown(value)} |" for name, value in rows.items())
    measured = ["| metric | value |", "|---|---|", *(f"| {markdown(k)} | {v:.6g} |" for k, v in metrics.items())]
    needed = re.search("^(from|import) replora", usage, re.MULTILINE)
    software = "Loading it needs that software" if needed else "Loading it needs no such software"
    return f"""---
{chr(10).join(lines)}
---

# Adapter of {markdown(base_model or base_class)}, trained with {markdown(origin["method"])}

Made with [RepLoRA](https://arxiv.org/abs/2502.03044) software. {software}:

```python
{usage}
```

| | |
|---|---|
{table}

{chr(10).join(measured) if metrics else "No metrics were recorded."}
"""
