"""Files that other people wrote: read whole, or refused with one sentence."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor


def read_tensors(
    path: str | os.PathLike, what: str, *, needs: Iterable[str] = (), may: Iterable[str] = ()
) -> dict[str, Shaped[Tensor, "..."]]:
    """The tensors of a safetensors file; `what` names it in errors, such as "a tuned lens".

    needs: names that must be there; may: names that are known besides. Where either is given, others are
           refused.
    Raises `FileNotFoundError`, and `ValueError` for a damaged file, missing or unknown names, NaN.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no file {path}, so no {what.split(' ', 1)[1]} can be read.")
    try:
        found = load_file(path)
    except (SafetensorError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{path} is damaged or no safetensors file ({reason}); fetch or write it again."
        ) from None
    needs, may = set(needs), set(may)
    if not needs <= set(found) or (needs | may and not set(found) <= needs | may):
        wanted = ", ".join(sorted(needs))
        raise ValueError(
            f"{path} is not {what}: it holds {', '.join(sorted(found)) or 'nothing'}, not {wanted}."
        )
    for name, tensor in found.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(f"{path} holds NaN or infinite numbers in {name}: it is damaged.")
    return found


def read_names(path: str | os.PathLike) -> dict[str, str]:
    """The notes in a safetensors file, besides its tensors."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """A JSON file that holds a dictionary. Raises `ValueError` for anything else."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged or no JSON file ({error}).") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a {type(found).__name__}, not a dictionary of settings.")
    return found


def check_shapes(path: str | os.PathLike, found: Mapping[str, Tensor], wanted: Mapping[str, tuple]) -> None:
    """Raise a `ValueError` unless each tensor has the shape that the others ask for."""
    for name, shape in wanted.items():
        if tuple(found[name].shape) != tuple(shape):
            raise ValueError(
                f"{path}: {name} is {tuple(found[name].shape)}, and the rest of the file asks for "
                f"{tuple(shape)}."
            )
