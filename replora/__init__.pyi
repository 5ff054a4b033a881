from .adapters.config import (
    AdapterConfig,
    BitFitConfig,
    FullConfig,
    LinearProbeConfig,
    LoRAConfig,
    PeftMethodConfig,
    RepLoRAConfig,
)
from .adapters.container import DeadTargetError, Description, ParameterCounts, describe, parameter_counts
from .adapters.inject import inject, parameter_groups, remove, use_parameter_groups
from .adapters.merge import disabled, merge, merge_and_unload, merged, unmerge
from .adapters.multi_adapter import adapter_names, delete_adapter, set_adapter
from .adapters.peft_format.export import PeftFormatError, export_peft
from .adapters.peft_format.load import import_peft
from .adapters.peft_lora.callback import RepLoRACallback
from .adapters.peft_lora.file import load_generators, save_generators
from .adapters.peft_lora.reparameterize import materialize, reparameterize
from .adapters.state import (
    StateMismatchError,
    adapter_state,
    load_adapter,
    load_adapter_state,
    read_adapter,
    save_adapter,
)
from .adapters.targets import Target, TargetNotFoundError, find_targets
from .errors import RepLoRAError
from .inference.classification import load_run

__version__: str

__all__ = [
    "AdapterConfig",
    "BitFitConfig",
    "DeadTargetError",
    "Description",
    "FullConfig",
    "LinearProbeConfig",
    "LoRAConfig",
    "ParameterCounts",
    "PeftFormatError",
    "PeftMethodConfig",
    "RepLoRACallback",
    "RepLoRAConfig",
    "RepLoRAError",
    "StateMismatchError",
    "Target",
    "TargetNotFoundError",
    "__version__",
    "adapter_names",
    "adapter_state",
    "delete_adapter",
    "describe",
    "disabled",
    "export_peft",
    "find_targets",
    "import_peft",
    "inject",
    "load_adapter",
    "load_adapter_state",
    "load_generators",
    "load_run",
    "materialize",
    "merge",
    "merge_and_unload",
    "merged",
    "parameter_counts",
    "parameter_groups",
    "read_adapter",
    "remove",
    "reparameterize",
    "save_adapter",
    "save_generators",
    "set_adapter",
    "unmerge",
    "use_parameter_groups",
]
