"""A simulated accelerator: what a GPU refuses and what it waits for, on a machine without one.

Tensors on its device are computed on the CPU. An operation that mixes both devices, as CUDA would
not allow, raises `MixedDevices`. What makes the host wait for the device is counted, by the line
that asks for it. Streams, speed and collectives between devices are not simulated.

`register` changes torch for the whole process, so tests use this in a process of its own.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "simulated"
ROOT = Path(__file__).parents[2]
LIBRARIES = ("transformers", "deepspeed", "peft")
ASKING = frozenset(
    [
        "_local_scalar_dense",
        "_unique2",
        "bincount",
        "equal",
        "is_nonzero",
        "masked_select",
        "nonzero",
        "repeat_interleave",
        "unique_consecutive",
        "unique_dim",
        "unique_dim_consecutive",
    ]
)
"""Operations whose result, or its size, the host must know before it goes on."""
TEST = ("accelerator.py", "rank_pool.py", "test_devices.py")
"""Files that run what is tested: their own lines are no places."""
INDEXING = frozenset(["index", "index_put", "index_put_", "_index_put_impl_"])
CROSSING = frozenset(["copy_", "_to_copy", "set_"])
"""Operations that may read one device and write the other."""


class MixedDevices(RuntimeError):
    """An operation got tensors of both devices."""


class Wait(NamedTuple):
    """What makes the host wait for the device, and where."""

    what: str
    place: str
    """Line of this project, and behind it the line of the library that it called; "backward" where
    autograd runs what no line asks for."""

    @property
    def is_ours(self) -> bool:
        """True if a line of this project waits, and not a library that it calls."""
        return self.place != "backward" and " calls " not in self.place


class Simulated(Tensor):
    """A tensor of the simulated device; `raw` has its numbers."""

    raw: Tensor

    @staticmethod
    def __new__(cls, raw: Tensor) -> Simulated:
        made: Simulated = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            raw.shape,
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            layout=raw.layout,
            device=torch.device(NAME, 0),
        )
        made.raw = raw
        return made

    def __repr__(self, **_: Any) -> str:
        return f"Simulated({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        return _current[-1].compute(func, args, kwargs or {})

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        # DeepSpeed lets weights be views of its flat tensors.
        Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        self.raw = value.raw  # type: ignore[attr-defined]

    def tolist(self) -> Any:
        _current[-1].wait("tolist")
        return self.raw.detach().tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("a tensor of the device is no numpy array; use Tensor.cpu()")

    def __getitem__(self, key: Any) -> Tensor:
        # As on CUDA, a list of numbers becomes an index on the device; torch would make it a tensor
        # that this class cannot see.
        if isinstance(key, list) and key and all(type(number) is int for number in key):
            key = torch.tensor(key, device=self.device)
        return super().__getitem__(key)


class Accelerator(TorchDispatchMode):
    """The device while it is in use."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[Wait] = Counter()

    def wait(self, what: str) -> None:
        """Count a wait of the running line."""
        self.waits[Wait(what, running_line())] += 1

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        return self.compute(func, args, kwargs or {})

    def compute(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """An operation of torch, on the CPU if all its tensors are on one device.

        Errors: MixedDevices if they are not.
        """
        name = func.overloadpacket.__name__
        leaves, spec = tree_flatten((args, kwargs))
        device = kwargs.get("device")
        goes_there = device is not None and torch.device(device).type == NAME
        ours = {id(leaf.raw): leaf for leaf in leaves if isinstance(leaf, Simulated)}
        if not ours and not goes_there:
            return func(*args, **kwargs)
        # A single number may be on any device, and so may what indexes a tensor of this one.
        others = [leaf for leaf in leaves if is_on_host(leaf) and leaf.ndim]
        may_mix = name in CROSSING or (name in INDEXING and isinstance(args[0], Simulated))
        if ours and others and not may_mix:
            shapes = ", ".join(str(tuple(other.shape)) for other in others)
            raise MixedDevices(f"{name}: {shapes} of the host at {running_line()}")
        self._count(name, args, kwargs)
        plain = [leaf.raw if isinstance(leaf, Simulated) else on_host(leaf) for leaf in leaves]
        plain_args, plain_kwargs = tree_unflatten(plain, spec)
        if name == "histc" and not plain_args[0].is_floating_point():
            # A GPU counts whole numbers too, and Hugging Face's experts rely on it.
            counts = func(plain_args[0].float(), *plain_args[1:], **plain_kwargs)
            return Simulated(counts.to(plain_args[0].dtype))
        out = func(*plain_args, **plain_kwargs)
        leaves_device = device is not None and not goes_there
        if name == "_local_scalar_dense" or leaves_device or (name == "copy_" and others):
            return args[0] if name == "copy_" and isinstance(args[0], Simulated) else out
        # What an operation has written into stays the same tensor.
        return tree_map_only(Tensor, lambda t: ours[id(t)] if id(t) in ours else Simulated(t), out)

    def _count(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Note whether the host waits in an operation."""
        if name in ASKING:
            self.wait(name)
        elif name in INDEXING:
            indices = args[1] or ()
            if any(isinstance(i, Simulated) and i.dtype == torch.bool for i in indices):
                self.wait(f"{name} by a mask")
            elif any(is_on_host(i) for i in indices):
                self.wait(f"{name} by numbers of the host")
        elif name in CROSSING:
            if name == "_to_copy":  # (values, device=...)
                source, device = args[0], kwargs.get("device")
                arrives = isinstance(source, Simulated) if device is None else device.type == NAME
            else:  # (into, values)
                source, arrives = args[1], isinstance(args[0], Simulated)
            leaves = isinstance(source, Simulated)
            if leaves and not arrives:
                self.wait("copy to the host")
            # torch waits for the copy, and for all that the device has to do before it.
            elif (
                arrives and not leaves and not (kwargs.get("non_blocking") or args[2:3] == (True,))
            ):
                self.wait("copy to the device")


def is_on_host(value: Any) -> bool:
    """True for a tensor of the CPU."""
    return isinstance(value, Tensor) and not isinstance(value, Simulated)


def on_host(value: Any) -> Any:
    """An argument for what computes on the CPU."""
    return torch.device("cpu") if isinstance(value, torch.device) and value.type == NAME else value


def running_line() -> str:
    """The innermost line of this project, and the library's that it calls."""
    ours, library = "", ""
    for frame in traceback.extract_stack():
        file = Path(frame.filename)
        if file.name in TEST:
            continue
        if (
            found := set(file.parts).intersection(LIBRARIES)
            if "site-packages" in file.parts
            else None
        ):
            start = file.parts.index(found.pop())
            library = f"{'/'.join(file.parts[start:])}:{frame.lineno}"
        elif file.is_relative_to(ROOT / "vlds") or file.is_relative_to(ROOT / "tests"):
            ours, library = f"{file.relative_to(ROOT)}:{frame.lineno}", ""
    return " calls ".join(line for line in (ours, library) if line) or "backward"


# Outside `accelerator()`, what tensors of the device do is computed and not counted.
_current = [Accelerator()]


def register() -> torch.device:
    """Make the device known to torch, once in a process."""
    if not hasattr(torch, NAME):
        _setup_privateuseone_for_python_backend(NAME)
    return torch.device(NAME, 0)


@contextmanager
def accelerator() -> Iterator[Accelerator]:
    """Inside, tensors can be moved to the device and computed there."""
    register()
    # torch lists its functions that make tensors once, when `with torch.device(...)` first asks: it
    # must list its own `tensor`, or a model that is made later has buffers without numbers.
    _device_constructors()
    makers: tuple[Any, Any] = torch.tensor, Tensor.new_tensor
    with Accelerator() as device:
        _current.append(device)
        torch.tensor, Tensor.new_tensor = tensor_by(makers[0]), new_tensor  # type: ignore
        try:
            yield device
        finally:
            torch.tensor, Tensor.new_tensor = makers  # type: ignore[method-assign]
            _current.pop()


def tensor_by(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`torch.tensor` of numbers that may be on the device, which it reads past any mode."""

    def numbers(data: Any) -> Any:
        if isinstance(data, Simulated):
            return data.tolist()
        return [numbers(value) for value in data] if isinstance(data, (list, tuple)) else data

    def tensor(data: Any, *, device: Any = None, **kwargs: Any) -> Tensor:
        made = make(numbers(data), **kwargs)
        return made if device is None else made.to(device)

    return tensor


def new_tensor(self: Tensor, data: Any, *, device: Any = None, **kwargs: Any) -> Tensor:
    """`Tensor.new_tensor` through the function above."""
    return torch.tensor(data, **{"dtype": self.dtype, **kwargs}, device=device or self.device)


def move(model: nn.Module) -> None:
    """Put a model on the device. Weights that are one stay one, with all that is set on them:
    `Module.to` keeps neither for a class of tensors of its own."""
    moved: dict[int, Any] = {}

    def of(tensor: Tensor) -> Any:
        if id(tensor) not in moved:
            there: Any = Simulated(tensor.detach())
            if isinstance(tensor, nn.Parameter):
                there = nn.Parameter(there, requires_grad=tensor.requires_grad)
                vars(there).update(vars(tensor))
            moved[id(tensor)] = there
        return moved[id(tensor)]

    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            tensors.update({name: of(t) for name, t in tensors.items() if t is not None})


def raw(value: Tensor) -> Tensor:
    """The numbers of a tensor of the device, without a wait."""
    return value.raw if isinstance(value, Simulated) else value
