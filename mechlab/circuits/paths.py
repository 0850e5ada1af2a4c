"""Path patching: who reads whom?

Activation patching says that a head matters; path patching says for whom. One head's output is taken from the
run on `source`; all other heads are held at what they were on `base`; MLPs and norms are computed anew. So
the change reaches a receiver only along the stream, not through other heads. Then the model runs on `base`
once more, with the receiver's queries, keys or values as they were found, and everything else free.

Wang et al. 2022, appendix B. Goldowsky-Dill et al. 2023 put it in general terms; Miller et al. 2024: it is
resampling one edge. With MLPs held too, it is direct path patching
(`transformer_lens.patching.get_act_patch_direct_path`). `edge_patching` does it for single edges of any kind,
`path_patching_all` for all of them.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechlab.arguments import Head, all_heads, head_of, key_value_heads, one_of
from mechlab.metrics import Metric
from mechlab.results import Scores, named, share_of_way
from mechlab.runs.engines import runs_of
from mechlab.runs.matrices import is_parallel
from mechlab.runs.run import Put, Run
from mechlab.tokens import Batch, PromptError, Prompts, whole_numbers
from mechlab.waiting import waiting

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

INPUTS = ("q", "k", "v")
At = Sequence[int] | Int[Tensor, "batch"] | Int[Tensor, "batch place"] | None


def path_patching(
    model: "TransformerBridge",
    base: Prompts | Run,
    source: Prompts | Run,
    metric: Metric,
    receivers: Sequence[Head] | None = None,
    into: str = "q",
    *,
    at: At = None,
    senders: Sequence[Sequence[Head]] | None = None,
    frozen_mlps: bool = False,
    normalized: bool = True,
) -> Scores:
    """Patch the path from each head to the receivers: the share of the way to source's metric.

    Dims ("layer", "head"). (patched − base) / (source − base) of the means over prompts, as in
    `activation_patching`; base is the clean run and source the ABC run in the paper, so 0.2 here is a loss of
    20 % of the metric where source's metric is 0. Only layers below the last receiver appear.
    normalized=False: the change in the metric's own unit.

    receivers:   heads that read, together; None: the logits at the metric's position
    into:        "q", "k" or "v". Keys and values are changed for these query heads alone; others that share
                 the key/value head keep theirs
    at:          where the receivers' queries, keys or values are changed: one position a prompt, or several;
                 None: all. Nothing else counts of the sender: held heads carry nothing from place to place
    senders:     groups of heads that send together; dims are then ("sender",). None: every head alone
    frozen_mlps: hold the MLPs too
    base, source: tokens, or runs (`run_of`), when many receivers are asked
    """
    base, source = runs_of(model, base, source)
    receivers = None if receivers is None else [head_of(head) for head in receivers]
    depth = model.cfg.n_layers if receivers is None else _depth(model, receivers, into)
    heads = [head for head in all_heads(model) if head[0] < depth]
    groups = [[head] for head in heads] if senders is None else _groups(model, senders, depth)
    held = _held(base, source, groups, depth, frozen_mlps)
    if receivers is None:
        if at is not None:
            raise ValueError(
                "`at` says where heads are changed; the logits are read where the metric reads them."
            )
        found = base.edited(metric, held)
    else:
        places = _places(base.batch, at)
        read = base.read(into, sorted({layer for layer, _ in receivers}), held, places)
        found = base.edited(metric, _received(base, read, receivers, into, places))
    before, after = base.value(metric), source.value(metric)
    change, units = (found - before).T, base.batch.units
    if senders is None:
        change = change.unflatten(1, (-1, model.cfg.n_heads))
        return share_of_way(change, before, after, ("layer", "head"), normalized=normalized, units=units)
    labels = {"sender": [named(group) for group in senders]}
    dims = ("sender",)
    return share_of_way(change, before, after, dims, labels, normalized=normalized, units=units)


def edge_patching(
    model: "TransformerBridge",
    base: Prompts | Run,
    source: Prompts | Run,
    metric: Metric,
    edges: Sequence[tuple[str, str]],
    *,
    normalized: bool = True,
) -> Scores:
    """What each edge really does, alone: dims ("edge",); `edge_attribution` guesses the same numbers.

    Only the reader finds what the sender wrote on source; all heads and MLPs between the two are held, and
    everything after the reader is live. (patched − base) / (source − base), as in `activation_patching`.

    edges: (sender, reader), named as `edge_attribution` names them: "embed", "20.0", "mlp 20" write; "23.0
           q", "23.kv0 k", "mlp 20 in", "logits" read. A `ValueError` for another name, and for an edge that
           runs backwards
    """
    if not edges:
        raise ValueError("There is no edge to patch: `edges` is empty.")
    base, source = runs_of(model, base, source)
    every, known, found = writers(model), readers(model), []
    for sender, reader in edges:
        one_of("sender", sender, every)
        one_of("reader", reader, known)
        site, layer, head, below = known[reader]
        if every.index(sender) >= below:
            raise ValueError(f"{sender} cannot send to {reader}: it writes to the stream after that is read.")
        found.append(_through(base, source, metric, [sender], site, layer, [head])[0][0])
    before, after = base.value(metric), source.value(metric)
    change = torch.stack(found, dim=1) - before[:, None]
    labels = {"edge": [f"{sender} → {reader}" for sender, reader in edges]}
    units = base.batch.units
    return share_of_way(change, before, after, ("edge",), labels, normalized=normalized, units=units)


def path_patching_all(
    model: "TransformerBridge",
    base: Prompts | Run,
    source: Prompts | Run,
    metric: Metric,
    *,
    senders: Sequence[str] | None = None,
    receivers: Sequence[str] | None = None,
    normalized: bool = True,
) -> Scores:
    """What every edge really does, alone: dims ("sender", "reader"), as `edge_attribution` guesses it.

    The numbers of `edge_patching`, with what edges share computed once. A model of 24 heads takes seconds;
    one of 270 takes hours, unless some edges are chosen. Edges that would run backwards are 0.

    senders, receivers: names as in `edge_attribution`; None: all. A `ValueError` for another name
    """
    base, source = runs_of(model, base, source)
    every, known = writers(model), readers(model)
    sends = every if senders is None else sorted({*senders}, key=_ordered("sender", senders, every))
    reads = [*known] if receivers is None else sorted({*receivers}, key=_ordered("reader", receivers, known))
    before, after = base.value(metric), source.value(metric)
    change = torch.zeros(len(before), len(sends), len(reads), device=before.device)
    groups = [[*group] for _, group in groupby(range(len(reads)), key=lambda n: known[reads[n]][:2])]
    with waiting("path patching", len(groups)) as done:
        for group in groups:
            (site, layer, _, below), heads = known[reads[group[0]]], [known[reads[n]][2] for n in group]
            if some := [name for name in sends if every.index(name) < below]:
                found = _through(base, source, metric, some, site, layer, heads)
                change[:, : len(some), group] = torch.stack(found).permute(2, 1, 0) - before[:, None, None]
            done()
    labels, units = {"sender": sends, "reader": reads}, base.batch.units
    dims = ("sender", "reader")
    return share_of_way(change, before, after, dims, labels, normalized=normalized, units=units)


def _ordered(what: str, asked: Sequence[str], known: Iterable[str]) -> Callable[[str], int]:
    """In which order names that were asked for stand in the model; refuses unknown ones, and none at all."""
    names = [*known]
    if not len(asked):
        raise ValueError(f"There is no {what}: the list is empty. None asks for all of them.")
    for name in asked:
        one_of(what, name, names)
    return names.index


def writers(model: "TransformerBridge") -> list[str]:
    """The names of all that write to the stream, in their order."""
    names = ["embed"]
    for layer in range(model.cfg.n_layers):
        names += [*(f"{layer}.{head}" for head in range(model.cfg.n_heads)), f"mlp {layer}"]
    return names


def readers(model: "TransformerBridge") -> dict[str, tuple[str, int, int, int]]:
    """The names of all that read the stream: its site, layer and head, and how many write before it."""
    heads, kv_heads, found = model.cfg.n_heads, key_value_heads(model), {}
    for layer in range(model.cfg.n_layers):
        below = 1 + layer * (heads + 1)
        for site, count in (("q", heads), ("k", kv_heads), ("v", kv_heads)):
            group = "kv" if kv_heads != heads and site != "q" else ""
            found |= {f"{layer}.{group}{head} {site}": (site, layer, head, below) for head in range(count)}
        found[f"mlp {layer} in"] = "mlp_out", layer, 0, below + (0 if is_parallel(model, layer) else heads)
    return found | {"logits": ("logits", model.cfg.n_layers, 0, 1 + model.cfg.n_layers * (heads + 1))}


def _through(
    base: Run,
    source: Run,
    metric: Metric,
    senders: Sequence[str],
    site: str,
    layer: int,
    heads: Sequence[int],
) -> list[Float[Tensor, "sender batch"]]:
    """The metric when one reader finds what one sender wrote on source: for each of the heads that read."""
    held = _one_sends(base, source, senders, layer, site)
    if site == "logits":
        return [base.edited(metric, held)]
    value = base.read(site, [layer], held, _places(base.batch, None))[layer]
    if site == "mlp_out":
        return [base.edited(metric, [Put(site, layer, value)])]
    every = torch.arange(value.shape[3], device=value.device)
    return [
        base.edited(metric, [Put(site, layer, value, (every == head)[None, None, None])]) for head in heads
    ]


def _one_sends(base: Run, source: Run, senders: Sequence[str], layer: int, site: str) -> list[Put]:
    """All that writes before a reader is held, but for one sender in each copy, which is as on source."""
    device, first = base.tokens.device, min(map(layer_of, senders))
    mine = lambda name: torch.tensor([name == sender for sender in senders], device=device)[:, None, None]
    sent = lambda at, below: source.at(at, below)[None]
    puts = [Put("resid_pre", 0, sent("resid_pre", 0), mine("embed"))] if "embed" in senders else []
    for below in range(first, layer + (site == "mlp_out")):
        names = [f"{below}.{head}" for head in range(base.model.cfg.n_heads)]
        where = torch.stack([*map(mine, names)], dim=-1)
        puts.append(Put("z", below, sent("z", below), where, held=True))
    for below in range(first, layer):
        name = f"mlp {below}"
        some = (sent("mlp_out", below), mine(name)) if name in senders else ()
        puts.append(Put("mlp_out", below, *some, held=True))
    return puts


def layer_of(sender: str) -> int:
    """Where a sender writes: "embed", "20.0" or "mlp 20"."""
    return 0 if sender == "embed" else int(sender.removeprefix("mlp ").split(".")[0])


def _held(
    base: Run, source: Run, groups: Sequence[Sequence[Head]], depth: int, frozen_mlps: bool
) -> list[Put]:
    """All heads held at what they were on base, but for the heads of one group in each copy.

    Theirs are from source.
    """
    puts = []
    for layer in range(depth):
        sends = torch.zeros(
            len(groups), 1, 1, base.model.cfg.n_heads, dtype=torch.bool, device=base.tokens.device
        )
        for number, group in enumerate(groups):
            sends[number, ..., [head for at, head in group if at == layer]] = True
        puts.append(Put("z", layer, source.at("z", layer)[None], sends, held=True))
        if frozen_mlps:
            puts.append(Put("mlp_out", layer, held=True))
    return puts


def _received(
    base: Run,
    read: dict[int, Float[Tensor, "copy batch place its_head d_head"]],
    receivers: Sequence[Head],
    into: str,
    places: Int[Tensor, "batch place"],
) -> list[Put]:
    """The receivers' queries, keys or values as they were read, at their places; the rest runs freely."""
    rows, heads = torch.arange(len(places), device=places.device)[:, None], base.model.cfg.n_heads
    where = torch.zeros(1, *base.tokens.shape, heads, dtype=torch.bool, device=places.device)
    puts = []
    for layer, found in read.items():
        # Each query head has keys and values of its own.
        found = found.repeat_interleave(heads // found.shape[3], dim=3)
        value = found.new_zeros(len(found), *base.tokens.shape, *found.shape[3:])
        value[:, rows, places] = found
        mine = where.clone()
        for head in (head for at, head in receivers if at == layer):
            mine[0, rows, places, head] = True
        puts.append(Put(into, layer, value, mine))
    return puts


def _groups(model: "TransformerBridge", senders: Sequence[Sequence[Head]], depth: int) -> list[list[Head]]:
    groups, heads = [[head_of(head) for head in group] for group in senders], model.cfg.n_heads
    if not groups:
        raise ValueError("There is nobody to send: `senders` is empty. None asks for every head alone.")
    for group in groups:
        wrong = [head for head in group if not (0 <= head[0] < depth and 0 <= head[1] < heads)]
        if wrong or not group:
            raise ValueError(
                f"{named(wrong)} cannot send to these receivers: senders are in layers 0 to {depth - 1}, "
                "heads 0 to "
                f"{heads - 1}."
            )
    return groups


def _places(batch: Batch, at: At) -> Int[Tensor, "batch place"]:
    prompts, count = batch.tokens.shape
    if at is None:
        return torch.arange(count, device=batch.tokens.device).expand(prompts, -1)
    at = whole_numbers(at, "`at`").to(batch.tokens.device)
    if not at.numel():
        raise PromptError("There is nowhere to change a head: `at` is empty. None asks for all positions.")
    columns = at.T if at.ndim == 2 else at[None]
    return torch.stack([batch.position(column, "`at`") for column in columns], dim=1)


def _depth(model: "TransformerBridge", receivers: Sequence[Head], into: str) -> int:
    """The layer of the last receiver: senders are below it."""
    one_of("into", into, INPUTS)
    if not len(receivers):
        raise ValueError("There is nobody to read: `receivers` is empty. None asks for the logits.")
    for layer, head in receivers:
        if not (0 < layer < model.cfg.n_layers and 0 <= head < model.cfg.n_heads):
            raise ValueError(
                f"Head {layer}.{head} cannot receive: layers go from 1 (layer 0 has no head below it) to "
                f"{model.cfg.n_layers - 1}, heads from 0 to {model.cfg.n_heads - 1}."
            )
    return max(layer for layer, _ in receivers)
