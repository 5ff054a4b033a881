"""A computed matrix that other code may write into.

Where a matrix is a parameter, programs set it in place: `nn.init.zeros_(weight)`, `weight.data = ...`,
`weight.data[:4].copy_(...)`. A computed one would only be a temporary tensor, and what is written into it be lost.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only


class WritableTensor(Tensor):
    """A tensor that tells when something is written into it, or into a part of it.

    Attributes:
        write: Takes the complete tensor that was written into.
        complete: The tensor of which this one is a part; None for the complete one.
    """

    write: Callable[[Tensor], None]
    complete: Tensor | None

    @classmethod
    def of(cls, value: Tensor, write: Callable[[Tensor], None], complete: Tensor | None = None) -> Self:
        """The same tensor, such that `write` is called."""
        tensor = value.as_subclass(cls)
        tensor.write, tensor.complete = write, complete
        # torch.utils.swap_tensors, which would not tell, leaves alone a tensor with a weak reference to it.
        tensor.__dict__["_reference"] = weakref.ref(tensor)
        return tensor

    def plain(self) -> Tensor:
        """The same tensor, of torch's own class."""
        with torch._C.DisableTorchFunctionSubclass():
            return self.as_subclass(Tensor)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **options)
            first = args[0] if args else next(iter(options.values()), None)
            for tensor in {id(t): t for t in (first, options.get("out"))}.values():
                if isinstance(tensor, cls) and (tensor is not first or _writes(func)):
                    tensor.write((tensor if tensor.complete is None else tensor.complete).detach().as_subclass(Tensor))
            if isinstance(first, cls):
                return tree_map_only(Tensor, first._part, result)
        return result

    def _part(self, result: Tensor) -> Tensor:
        """What was made from this tensor: a part of it if they share memory."""
        if isinstance(result, WritableTensor) or not torch._C._is_alias_of(result, self):  # type: ignore[attr-defined]
            return result
        return self.of(result, self.write, self if self.complete is None else self.complete)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        return self.plain().__deepcopy__(memo)  # type: ignore[no-any-return,no-untyped-call]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.plain().__reduce_ex__(protocol)  # type: ignore[no-untyped-call]


def _writes(func: Any) -> bool:
    """Whether a function of torch changes its first argument: `copy_`, `+=`, `[...] = `, `.data = `."""
    name: str = func.__name__
    if name.startswith("__"):
        in_place = name[:3] == "__i" and hasattr(Tensor, f"__{name[3:]}")
        return in_place or name == "__setitem__" or (name == "__set__" and func.__self__ is Tensor.data)
    return name.endswith("_")
