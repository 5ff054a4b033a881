"""RepLoRA: low-rank adaptation whose factors are produced by a lightweight MLP from two diagonal matrices (ICML 2025).

    import replora
    model = replora.inject(model, replora.RepLoRAConfig(rank=8), also_train=["head"])
    ...                                          # train the parameters that require gradients
    replora.save_adapter(model, "adapter.safetensors")
    with replora.merged(model):                  # the backbone's own speed
        evaluate(model)

What it offers is listed in `__init__.pyi`; each name is imported when it is first used, so that the light verbs of the
command line start without torch. `lightning_modules` and `datamodules` hold the Lightning side.
"""

from typing import Any

import lazy_loader

from replora.former_names import FORMER_NAMES

__version__ = "0.2.0"

_lazy_attribute, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    """A public name, imported when it is first used; the files of earlier runs may use a former one."""
    return _lazy_attribute(FORMER_NAMES.get(name, name))
