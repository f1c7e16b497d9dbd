"""A GPU that is none: tensors that say they lie on one, compute on the CPU, and are as strict about where others lie.

It shows without a GPU that the paths for CUDA tensors run end to end, that no operation mixes devices (on a CPU nothing
notices), and where the host would wait for the device. What it cannot show: what real kernels of a GPU compute, and
when; launches are those of Triton's interpreter, and attention and products are a CPU's.

A tensor lies on the simulated GPU where its storage is marked so. Operations see through a dispatch mode: what they
read must be marked alike, and what they make is marked.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GPU = torch.device("cuda", 0)
aten = torch.ops.aten
READ_BY_THE_HOST = frozenset(
    {
        aten._local_scalar_dense.default,
        aten.equal.default,
        aten.is_nonzero.default,
        aten.nonzero.default,
        aten.masked_select.default,
        aten.repeat_interleave.Tensor,
        aten._unique2.default,
        aten.unique_dim.default,
    }
)
"""Operations of which the host needs the result, or its size."""
INDEXING = frozenset(
    {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
)
"""Operations that take indices, and those on the host too."""
MADE_LIKE = frozenset({aten.new_zeros.default, aten.new_empty.default, aten.new_empty_strided.default})
"""Operations that make a tensor where another lies."""


class SimulatedGpu(TorchDispatchMode):
    """Inside the block there is one GPU; `waits` names each place at which the host waited for it."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self._honest = self._moving = False
        self._patches = contextlib.ExitStack()

    def __enter__(self) -> SimulatedGpu:
        with contextlib.ExitStack() as stack:
            for name, value in self._of_tensors().items():
                stack.enter_context(mock.patch.object(torch.Tensor, name, value, create=True))
            for name, value in _CUDA.items():
                stack.enter_context(mock.patch.object(torch.cuda, name, value))
            stack.enter_context(mock.patch.object(torch.UntypedStorage, "clone", _cloned, create=True))
            # A dispatch mode is a thread's own.
            stack.enter_context(mock.patch.object(ThreadPoolExecutor, "submit", _at_once))
            # Else torch.tensor(…, device=) would build on a device that is not there.
            torch._C._set_only_lift_cpu_tensors(True)
            stack.callback(torch._C._set_only_lift_cpu_tensors, False)
            super().__enter__()
            self._patches = stack.pop_all()
        return self

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        self._patches.close()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        asked = None if kwargs.get("device") is None else torch.device(kwargs["device"])
        here = any(map(_marked, tensors))
        if func is aten._to_copy.default:
            # Derivatives written in C++ name the device that a tensor really has; who moves one comes by `moved`.
            lands = here if asked is None or (here and not self._moving) else asked.type == "cuda"
            self._copied(here, lands, kwargs.get("non_blocking", False))
        elif func is aten.copy_.default:
            lands = _marked(args[0])
            self._copied(_marked(args[1]), lands, kwargs.get("non_blocking", (*args, False, False)[2]))
        else:
            own = asked is None or (here and func in MADE_LIKE)
            lands = here if own else asked.type == "cuda" or (not tensors and _in_a_derivative())
            if here:
                self._check(func, args, tensors)
        if asked is not None and asked.type == "cuda":
            kwargs["device"] = torch.device("cpu")
        kwargs.pop("pin_memory", None)
        if func is aten.histc.default and not args[0].is_floating_point():  # a CPU counts floats alone
            args = (args[0].float(), *args[1:])
        before = {leaf.untyped_storage()._cdata for leaf in tensors}
        with self._honestly():
            out = func(*args, **kwargs)
            for leaf in tree_leaves(out):
                if isinstance(leaf, torch.Tensor) and leaf.untyped_storage()._cdata not in before:
                    leaf.untyped_storage().simulated = lands
        return out

    def lies(self, tensor: torch.Tensor) -> torch.device:
        """Where a tensor says that it is."""
        return GPU if not self._honest and _marked(tensor) else _DEVICE(tensor)

    @contextlib.contextmanager
    def _honestly(self) -> Iterator[None]:
        """Inside the block tensors are what they are."""
        honest, self._honest = self._honest, True
        try:
            yield
        finally:
            self._honest = honest

    def _check(self, func: Any, args: tuple[Any, ...], tensors: list[torch.Tensor]) -> None:
        """What a GPU would say of these tensors."""
        strangers = any(not _marked(tensor) and tensor.dim() > 0 for tensor in tensors)
        if func in INDEXING:
            if not _marked(args[0]):
                raise RuntimeError(f"{func}: indices on {GPU} of a tensor on the CPU")
            masks = [i for i in args[1] if i is not None and i.dtype in (torch.bool, torch.uint8)]
            if strangers or masks:
                self._waited(f"{func} by {'a mask' if masks else 'indices on the host'}")
        elif strangers:
            raise RuntimeError(f"{func}: expected all tensors to be on the same device, but found {GPU} and the CPU")
        elif func in READ_BY_THE_HOST:
            self._waited(str(func))

    def _copied(self, source: bool, target: bool, non_blocking: bool) -> None:
        if source != target and not (non_blocking and target):
            self._waited("copy to the device" if target else "copy to the host")

    def _waited(self, why: str) -> None:
        frame, places = sys._getframe(1), []
        while frame is not None:
            path = frame.f_code.co_filename
            if "/torch/" not in path and path != __file__:
                places.append(f"{path.rpartition('/')[2]}:{frame.f_lineno}")
            frame = frame.f_back
        self.waits.append(f"{why}: {' < '.join(places[:3])}")

    def _of_tensors(self) -> dict[str, Any]:
        """What torch asks of tensors without an operation."""
        to, numpy, tolist = torch.Tensor.to, torch.Tensor.numpy, torch.Tensor.tolist

        def moved(tensor: torch.Tensor, *args: Any, copy: bool = False, **kwargs: Any) -> torch.Tensor:
            if args and isinstance(args[0], torch.Tensor):
                args, kwargs = (), {"device": args[0].device, "dtype": args[0].dtype, **kwargs}
            device, dtype, non_blocking, _ = torch._C._nn._parse_to(*args, **kwargs)
            if device is None or self._honest or device.type == self.lies(tensor).type:
                return to(tensor, dtype=dtype or tensor.dtype, copy=copy)
            self._moving = True
            try:
                return torch.ops.aten._to_copy(tensor, device=device, dtype=dtype, non_blocking=non_blocking)
            finally:
                self._moving = False

        def to_numpy(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if self.lies(tensor) == GPU:
                raise TypeError(f"can't convert {GPU} device type tensor to numpy")
            return numpy(tensor, *args, **kwargs)

        def listed(tensor: torch.Tensor) -> Any:
            if self.lies(tensor) == GPU:
                self._waited("tolist")
            return tolist(tensor)

        return {
            "device": property(self.lies),
            "is_cuda": property(lambda tensor: self.lies(tensor).type == "cuda"),
            "is_cpu": property(lambda tensor: self.lies(tensor).type == "cpu"),
            "get_device": lambda tensor: 0 if self.lies(tensor) == GPU else -1,
            "to": moved,
            "cpu": lambda tensor: moved(tensor, "cpu"),
            "cuda": lambda tensor, *args: moved(tensor, GPU),
            "pin_memory": lambda tensor: tensor,
            "numpy": to_numpy,
            "tolist": listed,
        }


_DEVICE: Callable[[torch.Tensor], torch.device] = torch.Tensor.device.__get__


def _in_a_derivative() -> bool:
    """Whether one of torch's own derivatives is running: these make tensors where the others really lie."""
    node = torch._C._current_autograd_node()
    return node is not None and not isinstance(node, torch.autograd.function.BackwardCFunction)


def _marked(tensor: torch.Tensor) -> bool:
    return getattr(tensor.untyped_storage(), "simulated", False)


_clone = torch.UntypedStorage.clone


def _cloned(storage: torch.UntypedStorage) -> torch.UntypedStorage:
    """copy.deepcopy of a tensor copies its storage, with no operation."""
    made = _clone(storage)
    made.simulated = getattr(storage, "simulated", False)
    return made


def _at_once(self: ThreadPoolExecutor, work: Callable[..., Any], *args: Any, **kwargs: Any) -> Future[Any]:
    done: Future[Any] = Future()
    try:
        done.set_result(work(*args, **kwargs))
    except Exception as error:
        done.set_exception(error)
    return done


class _Nothing:
    """Streams and events of a device that is always done."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None

    def __enter__(self) -> None: ...

    def __exit__(self, *raised: Any) -> None: ...


class _Event(_Nothing):
    """Of a device that is done with what it is asked for before the host goes on."""

    def record(self, *args: Any) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, other: _Event) -> float:
        """Milliseconds."""
        return 1e3 * (other.at - self.at)


_CUDA = {
    "is_available": lambda: True,
    "is_initialized": lambda: True,
    "_lazy_init": lambda: None,
    "device_count": lambda: 1,
    "current_device": lambda: 0,
    "set_device": lambda *args: None,
    "get_device_name": lambda *args: "a simulated GPU",
    "get_device_capability": lambda *args: (9, 0),
    "get_device_properties": lambda *args: SimpleNamespace(total_memory=8 << 30, L2_cache_size=0),
    "empty_cache": lambda: None,
    "synchronize": lambda *args: None,
    "reset_peak_memory_stats": lambda *args: None,
    "memory_allocated": lambda *args: 0,
    "max_memory_allocated": lambda *args: 0,
    "memory_reserved": lambda *args: 0,
    "mem_get_info": lambda *args: (8 << 30, 8 << 30),
    "device": _Nothing,
    "Stream": _Nothing,
    "Event": _Event,
    "stream": _Nothing,
    "current_stream": _Nothing,
}


def on_gpu(model: nn.Module) -> nn.Module:
    """The model, its parameters and buffers said to lie on the simulated GPU."""
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.untyped_storage().simulated = True
    return model
