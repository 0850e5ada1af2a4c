"""What a model does not let us do, found out by trying, once per model.

On some architectures TransformerLens shows an activation and then computes on with what the model had before,
whatever a hook makes of it. Such a hook fires and is ignored.
"""

import warnings
from collections import OrderedDict
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def limits_of(model: "TransformerBridge") -> list[str]:
    """What is different with this model, a sentence each; nothing for most."""
    found = []
    if getattr(model.blocks[0].mlp, "W_out", None) is None:
        found.append(
            "its MLPs are mixtures of experts: techniques that look at neurons or edit facts refuse it, and "
            "each patch is a full run"
        )
    if model.W_E.dtype not in (torch.float32, torch.float64):
        found.append(f"in {str(model.W_E.dtype).removeprefix('torch.')} each patch is a full run")
    if is_ignored(model, "blocks.0.attn.hook_pattern"):
        found.append("attention patterns can be read by hooks and not written")
    return found


def is_ignored(model: "TransformerBridge", name: str) -> bool:
    """Whether the model computes on as before when a hook function returns something else.

    Found by trying, once per model for every kind of hook: a few tokens are run with another value there, and
    what comes out is looked at. A hook that never fires is not called ignored.
    """
    known = model.__dict__.setdefault("_mechlab_ignored", {})
    parts = name.split(".")
    kind = ".".join(parts[2:]) if parts[0] == "blocks" else name
    if kind not in known:
        first = f"blocks.0.{kind}"
        known[kind] = _tried(model, first if parts[0] == "blocks" and first in model.hook_dict else name)
    return known[kind]


@torch.no_grad()
def _tried(model: "TransformerBridge", name: str) -> bool:
    """Run the model with another value at a hook: does nothing come of it?"""
    changed: list[bool] = []

    def other(x: Tensor, hook) -> Tensor | None:
        if not isinstance(x, Tensor) or not x.is_floating_point():
            return None
        changed.append(True)
        finite = torch.isfinite(x) & (x > torch.finfo(x.dtype).min / 2)  # masked scores stay as they are
        return torch.where(finite, x * 1.5 + 0.25 + 0.5 * x.flip(-1).nan_to_num(0, 0, 0).clamp(-9, 9), x)

    length = min(6, model.cfg.n_ctx or 6)  # a model planted by hand may have room for four
    tokens = torch.arange(1, 1 + length, device=model.cfg.device)[None] % model.cfg.d_vocab
    # What a hook of the first layer changes is seen two layers on.
    until = {"stop_at_layer": 2} if name.startswith("blocks.0.") and model.cfg.n_layers > 2 else {}
    with _without_hooks(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TransformerLens tells of some hooks that they are discarded
        intact = model(tokens, **until)
        with model.hooks(fwd_hooks=[(name, other)]):
            found = model(tokens, **until)
    return bool(changed) and torch.equal(intact, found)


@contextmanager
def _without_hooks(model: "TransformerBridge") -> Generator[None]:
    """The model with all hooks that are on it now put aside."""
    points = {id(point): point for point in model.hook_dict.values()}.values()
    kept = [(point, point._forward_hooks) for point in points if len(point._forward_hooks)]
    for point, _ in kept:
        point._forward_hooks = OrderedDict()
    try:
        yield
    finally:
        for point, hooks in kept:
            point._forward_hooks = hooks
