"""Which model something was made from, so that it is not used with another of the same sizes.

A few numbers out of the embedding and out of the attention outputs of the first, the middle and the last
layer. They are compared by their correlation, so that they are the same in every precision, on every device,
folded or not, after a direction was removed, a fact edited or an adapter added; and other numbers in a model
that was trained or drawn anew. A model that was fine-tuned from the same weights counts as the same.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

NUMBERS = 24  # of each matrix
ALIKE = 0.8  # least correlation of two models that count as the same; of others it is about 0 ± 0.2

_origins = WeakIdKeyDictionary()  # tensor -> origin, for as long as the tensor lives


@dataclass(frozen=True)
class Origin:
    """A model's name, and numbers out of its weights, `NUMBERS` from each of some matrices."""

    name: str
    numbers: tuple[tuple[float, ...], ...]

    @classmethod
    def of(cls, model: "TransformerBridge") -> "Origin":
        """That of a model."""
        layers = sorted({0, model.cfg.n_layers // 2, model.cfg.n_layers - 1})
        matrices = [model.W_E]
        matrices += [W for layer in layers if (W := _written(model, layer)) is not None]
        return cls(str(model.cfg.model_name), tuple(_drawn(W) for W in matrices))

    def check(self, model: "TransformerBridge", what: str) -> None:
        """Raise a `ValueError` where the model is another one; `what` was made from ours."""
        other = Origin.of(model)
        pairs = zip(self.numbers, other.numbers, strict=False)
        if len(self.numbers) == len(other.numbers) and all(_alike(one, two) for one, two in pairs):
            return
        raise ValueError(
            f"{what} was made from {self.name}, and this model ({other.name}) has other weights, so it says "
            "nothing about it. Use the model that it was made from, or make it anew."
        )

    def text(self) -> str:
        """As one line, to be stored."""
        return json.dumps([self.name, [[float(f"{n:.5g}") for n in row] for row in self.numbers]])

    @classmethod
    def read(cls, text: str | None) -> "Origin | None":
        """From what `text` wrote; None where nothing was. Raises `ValueError`."""
        if text is None:
            return None
        try:
            name, rows = json.loads(text)
            return cls(str(name), tuple(tuple(map(float, row)) for row in rows))
        except (TypeError, ValueError):
            raise ValueError(f"What the file says about its model is damaged: {text[:40]!r}.") from None


def made_from(tensor: Float[Tensor, "..."], origin: Origin | None) -> Float[Tensor, "..."]:
    """Remember for as long as a tensor lives which model it was made from; gives the tensor back."""
    if origin is not None:
        _origins[tensor] = origin
    return tensor


def origin_of(tensor: Tensor) -> Origin | None:
    """What `made_from` remembered of a tensor, or of the one that it is a part of."""
    found = _origins.get(tensor)
    return found if found is not None or tensor._base is None else _origins.get(tensor._base)


def _written(model: "TransformerBridge", layer: int) -> Tensor | None:
    found = getattr(getattr(model.blocks[layer], "attn", None), "W_O", None)
    return found if isinstance(found, Tensor) and found.is_floating_point() else None


def _drawn(W: Float[Tensor, "..."]) -> tuple[float, ...]:
    """Some numbers of a matrix, always of the same places."""
    places = torch.linspace(0.013, 0.987, NUMBERS, dtype=torch.float64) * W.numel()
    index = torch.unravel_index(places.long(), W.shape)
    return tuple(W.detach()[tuple(each.to(W.device) for each in index)].cpu().double().tolist())


def _alike(one: Sequence[float], two: Sequence[float]) -> bool:
    if len(one) != len(two):
        return False
    pair = torch.tensor([one, two], dtype=torch.float64)
    return bool(torch.equal(*pair) or torch.corrcoef(pair)[0, 1] > ALIKE)
