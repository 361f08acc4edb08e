"""Counts the bytes of live tensors while something runs: what `max_memory_allocated` is on a GPU."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any, Self

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveMemory(TorchDispatchMode):
    """Within the `with` block, adds up the storages of all tensors that an operation returned and that live.

    Memory that a kernel takes and gives back while it runs is not seen.

    Attributes:
        now: bytes alive.
        peak: the most there were at any time since `restart`.
    """

    def __init__(self, held: Iterable[Tensor] = ()) -> None:
        """Start with tensors that live already."""
        super().__init__()
        self.now = self.peak = 0
        self._seen: dict[int, Any] = {}
        for tensor in held:
            self.add(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and count what it returns."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.add(leaf)
        return result

    def add(self, tensor: Tensor) -> None:
        """Count a tensor's storage, unless it is counted already."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._seen:
            return
        size = storage.nbytes()
        # The storage's Python object lives as long as the storage does, whoever holds it.
        self._seen[key] = weakref.finalize(storage, self._free, key, size)
        self.now += size
        self.peak = max(self.peak, self.now)

    def _free(self, key: int, size: int) -> None:
        if self._seen.pop(key, None) is not None:
            self.now -= size

    def restart(self) -> None:
        """Forget the peak so far."""
        self.peak = self.now

    def __exit__(self, *error: object) -> None:
        """Stop counting."""
        super().__exit__(*error)
        for finalizer in list(self._seen.values()):
            finalizer.detach()

    def __enter__(self) -> Self:
        """Start counting."""
        super().__enter__()
        return self
