"""What every edit of weights is: new tensors in the place of some parameters, and the way back.

Every edit can be undone exactly. It keeps the old tensors; `undo()` puts the very same memory back, so the
model is bit for bit what it was. As a context manager it undoes itself on leaving.
"""

from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


class WeightEdit:
    """Parameters of a model that were replaced, and the tensors they had before."""

    def __init__(self, model: "TransformerBridge", what: str):
        self.model, self.what = model, what
        self._kept: list[tuple[torch.nn.Parameter, Tensor, Tensor]] = []  # parameter, before, after
        self._untied: list[tuple[torch.nn.Module, torch.nn.Parameter, torch.nn.Parameter, int]] = []

    def __repr__(self) -> str:
        count = sum(after.numel() for _, _, after in self._kept)
        changed = f"{len(self._kept)} matrices of {count / 1e6:.1f} M weights replaced"
        return f"{self.what}: {changed}; undo() puts the old ones back"

    @contextmanager
    def whole(self) -> Generator["WeightEdit"]:
        """All that is changed inside, or nothing: an error or an interruption undoes it."""
        try:
            with torch.inference_mode(False), torch.no_grad():
                yield self
        except BaseException:
            self.undo()
            raise

    @torch.inference_mode(False)
    @torch.no_grad()
    def change(self, weight: Float[Tensor, "..."], new: Float[Tensor, "..."]) -> None:
        """Let `weight` have the values `new`.

        `weight` is a matrix of the model, in whatever view TransformerLens gives it. Where two parameters
        share its memory, both are changed.
        """
        values = new.to(weight.dtype)
        if not torch.isfinite(values).all():
            self.undo()
            raise ValueError(
                f"The edited weights would be NaN or infinite in {weight.dtype}; nothing was changed."
            )
        owners = [p for p in self.model.original_model.parameters() if _holds(p, weight)]
        if not owners:
            self.undo()
            raise ValueError(
                "This matrix is computed from other weights, so it cannot be replaced; nothing was changed."
            )
        if any(owner.is_inference() for owner in owners):
            self.undo()
            raise ValueError(
                "The model was loaded inside torch.inference_mode(), so its weights cannot be changed. "
                "Load it outside."
            )
        for owner in owners:
            before = owner.data
            after, view = _copied(before, weight)
            view.copy_(values)
            self._kept.append((owner, before, after))  # first, so that an interruption here is undone too
            owner.data = after

    def untie(self) -> None:
        """Give the unembedding its own memory, with the same values, where it shares the embedding's."""
        if self.model.W_E.data_ptr() != self.model.W_U.data_ptr():
            return
        found = self.model.original_model
        shared = next(p for p in found.parameters() if p.data_ptr() == self.model.W_E.data_ptr())
        for module in found.modules():
            if not isinstance(module, torch.nn.Embedding) and module._parameters.get("weight") is shared:
                own = torch.nn.Parameter(shared.data.clone(), requires_grad=shared.requires_grad)
                self._untied.append((module, shared, own, own.data_ptr()))
                module._parameters["weight"] = own

    def undo(self) -> None:
        """Put the old tensors back. Edits on top of this one must be undone first."""
        homes: dict[int, set[int]] = {}  # where each parameter may be, if nobody else has moved it
        for owner, before, after in self._kept:
            homes.setdefault(id(owner), set()).update((before.data_ptr(), after.data_ptr()))
        moved = [owner.data_ptr() not in homes[id(owner)] for owner, _, _ in self._kept]
        for module, shared, own, place in self._untied:
            now = module.get_parameter("weight")
            there = now is own and own.data_ptr() in homes.get(id(own), set()) | {place}
            moved.append(now is not shared and not there)
        if any(moved):
            raise ValueError("The same weights were edited again since; undo the later edit first.")
        for parameter, before, _ in reversed(self._kept):
            parameter.data = before
        for module, shared, _, _ in self._untied:
            module._parameters["weight"] = shared
        self._kept, self._untied = [], []

    def __enter__(self) -> "WeightEdit":
        return self

    def __exit__(self, *_) -> None:
        self.undo()


def _holds(parameter: torch.nn.Parameter, view: Tensor) -> bool:
    """Whether all numbers of a view lie in the memory of a parameter."""
    if parameter.untyped_storage().data_ptr() != view.untyped_storage().data_ptr():
        return False
    start, end = _extent(parameter)
    first, last = _extent(view)
    return start <= first and last <= end


def _extent(x: Tensor) -> tuple[int, int]:
    """The first and the last element of a tensor, counted in its storage."""
    steps = zip(x.shape, x.stride(), strict=True)
    start = int(x.storage_offset())
    return start, start + sum((n - 1) * step for n, step in steps)


def _copied(before: Tensor, view: Tensor) -> tuple[Tensor, Tensor]:
    """A copy of a tensor with the same layout, gaps included, and the place of a view of it in the copy."""
    start, end = _extent(before)
    room = before.as_strided((end - start + 1,), (1,), start).clone()
    offset = view.storage_offset() - start
    return room.as_strided(before.shape, before.stride()), room.as_strided(view.shape, view.stride(), offset)
