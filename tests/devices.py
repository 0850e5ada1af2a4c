"""Two devices where there is one: tensors remember whether they are the model's or the host's, and may not meet.

A learner's GPU is not here, so the CPU plays both. What the model holds is at home on its device, and so is what
comes of it; what is made without `device=` is at home on the host. An operation in which the two meet raises
`Apart` where CUDA would: it lets host numbers without axes and host indices in, and nothing else.
"""

import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

MODEL, HOST = torch.device("cpu", 0), torch.device("cpu")  # equal for torch, and two for us
LIBRARY = str(Path(__file__).parents[1] / "mechlab")
# Asks for no numbers: what these return is no tensor, or as large as another one is.
SHAPES = {"expand_as", "view_as", "reshape_as", "copy_", "backward", "is_same_size", "result_type"}
SHAPES |= {"promote_types", "is_tensor", "register_hook", "retain_grad", "set_data", "swap_tensors"}
WITH_AXES = {"cat", "stack", "matmul", "mm", "bmm", "einsum", "linear", "gather", "equal", "embedding"}
WITH_AXES |= {"index_select", "index_add", "index_copy", "scatter", "isin", "__matmul__", "__rmatmul__"}
WITH_AXES |= {"concat", "concatenate", "hstack", "vstack", "addmm", "baddbmm", "mv", "outer", "dot"}
TO_HOST = {"cpu"}
NEVER_ON_CUDA = {"numpy", "__array__"}


class Apart(RuntimeError):
    """Tensors of two devices met, and where."""


class TwoDevices(TorchFunctionMode):
    """While it is on, tensors of the model and of the host are kept apart; what was met is in `found`.

    models: they and what they hold are on their device from now on
    """

    def __init__(self, *models: Any):
        super().__init__()
        for model in models:
            model.cfg.device = MODEL
            original = model.original_model
            for tensor in [
                *original.parameters(),
                *original.buffers(),
                *model.parameters(),
                *model.buffers(),
            ]:
                tensor._home = MODEL

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        if name in ("__get__", "__set__"):
            return self._property(function, name, args, kwargs)
        given = [*_tensors(args), *_tensors(kwargs.values())]
        self._check(name, args, kwargs, given)
        result = function(*args, **kwargs)
        if name == "grad":  # each gradient lies where its input does
            inputs = kwargs["inputs"] if "inputs" in kwargs else args[1]
            for slope, of in zip(result, _tensors([inputs]), strict=False):
                _settle([slope], home(of))
            return result
        where = self._target(name, args, kwargs, given)
        if any(result is each and home(each) is not where for each in given):
            result = torch.ops.aten.alias(result)  # moved: on CUDA it would be a copy
        _settle(_tensors([result]), where)
        return result

    def _property(self, function, name: str, args, kwargs):
        what, result = function.__self__.__name__, function(*args, **kwargs)
        if name == "__set__":
            if what == "data":
                args[0]._home = home(args[1])
            return result
        if what == "device":
            return home(args[0])
        if what in ("is_cuda",):
            return home(args[0]) is MODEL
        if isinstance(result, Tensor):
            _settle([result], home(args[0]))
        return result

    def _target(self, name: str, args, kwargs, given: list[Tensor]) -> torch.device:
        """Where the result lies."""
        if name in TO_HOST:
            return HOST
        asked = kwargs.get("device")
        if name == "to":
            others = [each for each in args[1:] if isinstance(each, torch.device | str | Tensor)]
            other = kwargs.get("other", others[0] if others else None)
            asked = home(other) if isinstance(other, Tensor) else other if asked is None else asked
        if name == "type_as":
            return home(args[1])
        if asked is not None:
            return _device(asked)
        if name == "tensor":  # a new one, whatever it is made from
            return HOST
        if name.startswith("new_") or name == "__getitem__" or _in_place(name):
            return home(given[0]) if given else HOST
        return MODEL if any(home(each) is MODEL for each in given) else HOST

    def _check(self, name: str, args, kwargs, given: list[Tensor]) -> None:
        generator = kwargs.get("generator")
        where = home(given[0]) if given else _device(kwargs.get("device") or HOST)
        if generator is not None and where is MODEL:
            raise Apart(_told(name, "a generator of the host draws for the model"))
        if name in NEVER_ON_CUDA and home(given[0]) is MODEL:
            raise Apart(_told(name, "numpy reads what lies on the model's device"))
        if name in SHAPES or name in ("to", "type_as", "grad", "tensor", "as_tensor"):
            return
        if name in ("__getitem__", "__setitem__"):
            return self._index(name, args, given)
        homes = {home(each) for each in given}
        if len(homes) < 2:
            return
        ours = [each for each in given if home(each) is HOST]
        written = _in_place(name) and isinstance(args[0], Tensor) and home(args[0]) is HOST
        if name in WITH_AXES or written or any(each.ndim for each in ours):
            raise Apart(_told(name, ", ".join(map(_described, given))))

    def _index(self, name: str, args, given: list[Tensor]) -> None:
        whole, index = args[0], args[1]
        places = [each for each in _tensors([index]) if each.ndim or each.dtype == torch.bool]
        if home(whole) is HOST and any(home(each) is MODEL for each in places):
            raise Apart(_told(name, "an index on the model's device for a tensor of the host"))
        value = args[2] if len(args) > 2 else None
        lists = any(
            isinstance(each, list | range) for each in (index if isinstance(index, tuple) else [index])
        )
        if isinstance(value, Tensor) and value.ndim and (places or lists) and home(value) is not home(whole):
            raise Apart(_told(name, "values of another device for places given by an index"))


def home(tensor: Tensor) -> torch.device:
    """Where a tensor is at home; one that nobody has seen being made is the host's."""
    return tensor.__dict__.get("_home", MODEL if isinstance(tensor, torch.nn.Parameter) else HOST)


def _in_place(name: str) -> bool:
    return (name.endswith("_") and not name.endswith("__")) or name.startswith("__i")


def _settle(tensors: Iterable[Tensor | None], where: torch.device) -> None:
    for each in tensors:
        if each is not None:
            each._home = where


def _device(asked: Any) -> torch.device:
    return MODEL if (isinstance(asked, torch.device) and asked.index == 0) or asked == "cpu:0" else HOST


def _tensors(values: Iterable[Any]) -> list[Tensor]:
    found: list[Tensor] = []
    for each in values:
        if isinstance(each, Tensor):
            found.append(each)
        elif isinstance(each, list | tuple):
            found += _tensors(each)
        elif isinstance(each, dict):
            found += _tensors(each.values())
    return found


def _described(tensor: Tensor) -> str:
    with torch._C.DisableTorchFunction():
        return f"{'the model' if home(tensor) is MODEL else 'the host'}'s {tuple(tensor.shape)}"


def _told(name: str, what: str) -> str:
    """The operation, and the innermost line of the library that asked for it."""
    lines = [f for f in traceback.extract_stack() if f.filename.startswith(LIBRARY)]
    place = (
        f"{lines[-1].filename.removeprefix(LIBRARY)[1:]}:{lines[-1].lineno} `{lines[-1].line}`"
        if lines
        else "?"
    )
    return f"{place}: {name} of {what}"
