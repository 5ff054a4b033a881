"""RepLoRA: low-rank adaptation whose factors are produced by a lightweight MLP from two diagonal matrices (ICML 2025).

    import replora
    model = replora.inject(model, replora.RepLoRAConfig(rank=8), also_train=["head"])
    ...                                          # train the parameters that require gradients
    replora.save_adapter(model, "adapter.safetensors")
    with replora.merged(model):                  # the backbone's own speed
        evaluate(model)

Importing it loads torch and nothing else heavy; `lightning_modules` and `datamodules` hold the Lightning side.
"""

from replora.adapters.check import DeadTargetError
from replora.adapters.config import (
    AdapterConfig,
    BitFitConfig,
    FullConfig,
    LinearProbeConfig,
    PeftConfig,
    RepLoRAConfig,
)
from replora.adapters.inject import ParameterCounts, describe, inject, parameter_counts, parameter_groups, remove
from replora.adapters.merge import disabled, merge, merge_and_unload, merged, unmerge
from replora.adapters.peft_format import PeftFormatError, export_peft, import_peft
from replora.adapters.several import adapter_names, delete_adapter, set_adapter
from replora.adapters.state import (
    StateMismatchError,
    adapter_state,
    load_adapter,
    load_adapter_state,
    read_adapter,
    save_adapter,
)
from replora.backbones.targets import TargetNotFoundError
from replora.errors import RepLoRAError

__version__ = "0.1.0"

__all__ = [
    "AdapterConfig",
    "BitFitConfig",
    "DeadTargetError",
    "FullConfig",
    "LinearProbeConfig",
    "ParameterCounts",
    "PeftConfig",
    "PeftFormatError",
    "RepLoRAConfig",
    "RepLoRAError",
    "StateMismatchError",
    "TargetNotFoundError",
    "__version__",
    "adapter_names",
    "adapter_state",
    "delete_adapter",
    "describe",
    "disabled",
    "export_peft",
    "import_peft",
    "inject",
    "load_adapter",
    "load_adapter_state",
    "merge",
    "merge_and_unload",
    "merged",
    "parameter_counts",
    "parameter_groups",
    "read_adapter",
    "remove",
    "save_adapter",
    "set_adapter",
    "unmerge",
]
