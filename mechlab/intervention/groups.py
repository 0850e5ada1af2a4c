"""Groups of neurons at a place ("supernodes", Ameisen et al. 2025): chosen, turned like a knob, and read.

A feature of a dictionary is never negative, and is turned by a factor. A neuron has a sign and a mean: what
is turned is how far it stands from where it stands in other prompts. Minus two times the activation itself
wrecks chance groups just as well; minus two times the deviation does not.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from mechlab.arguments import at_least, check_layer, mlp_width
from mechlab.attribution.following import UNITS, Place, check_place
from mechlab.results import Scores
from mechlab.runs.engines import run_of
from mechlab.runs.hooks import Hook
from mechlab.runs.run import Run, hook_of
from mechlab.tokens import Prompts, batch_of

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge


def supernode(scores: Scores, pos: int, k: int, *, layers: Sequence[int] | None = None) -> list[Place]:
    """The k neurons at one position with the largest scores, by size: `contrast.totals()` over several pairs.

    scores: dims ("layer", "pos", "neuron"), the mean over its prompts; layers: only among these
    """
    if scores.dims != UNITS["neuron"]:
        raise ValueError(
            f"A group is chosen by scores of neurons at positions, and these have {scores.dims}."
        )
    found = scores.values[:, pos].abs().clone()
    if layers is not None:
        found[[layer for layer in range(len(found)) if layer not in set(layers)]] = -1
    at_least("k", k, 1)
    if k > int((found >= 0).sum()):
        raise ValueError(f"k is {k}, and there are {int((found >= 0).sum())} neurons to choose from.")
    place = pos % scores.size("pos")
    best = found.flatten().topk(k).indices.tolist()
    return [(n // found.shape[1], place, n % found.shape[1]) for n in best]


def matched_groups(
    sizes: Scores, neurons: Sequence[Place], *, draws: int = 20, nearest: int = 20, seed: int = 0
) -> list[list[Place]]:
    """Groups by chance to compare a group with: as many, of the same layers and positions, about as large.

    sizes:   dims ("layer", "pos", "neuron"), say `contrast.changes()`: signs do not count
    nearest: each neuron is exchanged for one of so many of its layer that come nearest to it in size; none
             of the group, and none twice
    """
    if sizes.dims != UNITS["neuron"]:
        raise ValueError(f"A group is matched by sizes of neurons at positions, and these have {sizes.dims}.")
    at_least("draws", draws, 1)
    at_least("nearest", nearest, 1)
    size, generator = sizes.values.abs(), torch.Generator().manual_seed(seed)
    return [_matched(size, neurons, nearest, generator) for _ in range(draws)]


def _matched(
    size: Float[Tensor, "layer pos neuron"], neurons: Sequence[Place], nearest: int, chance: torch.Generator
) -> list[Place]:
    taken, found = {*neurons}, []
    for layer, pos, neuron in neurons:
        far = (size[layer, pos] - size[layer, pos, neuron]).abs()
        far[[n for at, where, n in taken if (at, where) == (layer, pos)]] = torch.inf
        near = far.topk(min(nearest, int(far.isfinite().sum())), largest=False).indices
        if not len(near):
            raise ValueError(f"Layer {layer} has no neurons left at position {pos} to compare with.")
        drawn = layer, pos, int(near[torch.randint(len(near), (1,), generator=chance)])
        taken.add(drawn)
        found.append(drawn)
    return found


@torch.no_grad()
def group_values(
    model: "TransformerBridge", base: Prompts | Run, neurons: Sequence[Place]
) -> Float[Tensor, "batch neuron"]:
    """What the neurons of a group hand on, in each prompt."""
    run = run_of(model, base)
    count = run.tokens.shape[1]
    from_the_end = lambda pos: pos % count if -count <= pos < 0 else pos
    places = [check_place(model, count, (layer, from_the_end(pos), n)) for layer, pos, n in neurons]
    at = {layer: run.at("post", layer) for layer in {place[0] for place in places}}
    return torch.stack([at[layer][:, pos, neuron] for layer, pos, neuron in places], 1)


def group_hooks(
    model: "TransformerBridge",
    neurons: Sequence[Place],
    *,
    to: Float[Tensor, "*its neuron"] | None = None,
    around: Float[Tensor, "*their neuron"] | None = None,
    times: float = 1.0,
) -> list[Hook]:
    """Hooks that turn a group of neurons: for `intervene` or `with model.hooks(...)`.

    to:     values to stand there, [neuron] or [batch neuron]
    around: reference values: where a neuron stands otherwise, say its mean over other prompts
    times:  with `around`, the deviation is turned by this factor: 0 puts the reference, 1 changes nothing, -1
            mirrors. With both, it is the way from `around` to `to`: 0 is the one, 1 the other, 1.5 beyond

    Without `around`, `to` is put as it is. All else computes on, live.
    """
    if to is None and around is None:
        raise ValueError("Say where to: give to=, values for the neurons, or around=, with times=.")
    given = {
        name: torch.as_tensor(each) for name, each in (("to", to), ("around", around)) if each is not None
    }
    for name, each in given.items():
        if each.shape[-1:] != (len(neurons),):
            raise ValueError(f"{name} is {tuple(each.shape)}, and there are {len(neurons)} neurons.")
    hooks, width = [], mlp_width(model)
    for layer in sorted({check_layer(model, place[0]) for place in neurons}):
        columns = [n for n, place in enumerate(neurons) if place[0] == layer]
        where = [neurons[n][1] for n in columns], [neurons[n][2] for n in columns]
        if not all(0 <= neuron < width for neuron in where[1]):
            raise ValueError(f"Layer {layer} has neurons 0 to {width - 1}, and {max(where[1])} is asked for.")
        mine = {name: each[..., columns] for name, each in given.items()}
        hooks.append((hook_of(model, "post", layer), _turn(where, mine, times)))
    return hooks


def _turn(where: tuple[list[int], list[int]], given: dict[str, Tensor], times: float):
    """The hook function for the neurons of one layer."""

    def turn(x: Float[Tensor, "batch pos d_mlp"], hook) -> Float[Tensor, "batch pos d_mlp"]:
        x = x.clone()
        own = x[:, where[0], where[1]]
        start = given["around"].to(own) if "around" in given else None
        goal = given["to"].to(own) if "to" in given else own
        x[:, where[0], where[1]] = goal if start is None else start + times * (goal - start)
        return x

    return turn


@torch.no_grad()
def neuron_reads(
    model: "TransformerBridge",
    neuron: tuple[int, int],
    texts: Sequence[str],
    *,
    names: Sequence[str] | None = None,
    pos: int = -1,
) -> "pd.DataFrame":
    """Which texts switch a neuron on: its activation at one position of each, largest first.

    neuron: (layer, neuron); names: what to call the texts; pos: -1 is each text's own end
    """
    import pandas as pd

    batch = batch_of(model, [*texts])
    layer, index = neuron
    layer, width = check_layer(model, layer), mlp_width(model)
    if not 0 <= index < width:
        raise ValueError(f"Layer {layer} has {width} neurons, and {index} is asked for.")
    rows, name = torch.arange(len(batch)), hook_of(model, "post", layer)
    _, cache = model.run_with_cache(batch.tokens, names_filter=name, stop_at_layer=layer + 1)
    found = cache[name][rows, batch.position(pos), index].tolist()
    table = pd.DataFrame({"text": [*(names or texts)], "activation": found})
    return table.sort_values("activation", ascending=False, kind="stable").reset_index(drop=True)
