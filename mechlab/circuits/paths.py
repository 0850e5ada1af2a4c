"""Path patching: who reads whom?

Activation patching says that a head matters; path patching says for whom. One head's output is taken from the run on
`source`; all other heads are held at what they were on `base`; MLPs and norms are computed anew. So the change reaches
a receiver only along the stream, not through other heads. Then the model runs on `base` once more, with the receiver's
queries, keys or values as they were found, and everything else free.

Wang et al. 2022, appendix B. Goldowsky-Dill et al. 2023 put it in general terms; Miller et al. 2024: it is resampling
one edge. With MLPs held too, it is direct path patching (`transformer_lens.patching.get_act_patch_direct_path`).

Heads that are held do not look anywhere, so positions do not mix on the way: only the places where the receiver reads
are computed, and a sweep over all senders is one batch that grows from layer to layer.
"""

import warnings
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechlab.metrics import Metric, Reading
from mechlab.results import Scores, named
from mechlab.runs.fast import ROWS, Resume

INPUTS = ("q", "k", "v")
Head = tuple[int, int]
At = Sequence[int] | Int[Tensor, "prompt"] | Int[Tensor, "prompt place"] | None


def path_patching(
    model,
    base: "Int[Tensor, 'prompt pos'] | Resume",
    source: "Int[Tensor, 'its_prompt its_pos'] | Resume",
    metric: Metric,
    receivers: Sequence[Head] | None = None,
    into: str = "q",
    *,
    at: At = None,
    senders: Sequence[Sequence[Head]] | None = None,
    frozen_mlps: bool = False,
    normalized: bool = True,
) -> Scores:
    """Patch the path from each head to the receivers: the share of the way to source's metric, dims ("layer", "head").

    (patched − base) / (source − base) of the means over prompts, as in `activation_patching`; base is the clean run and
    source the ABC run in the paper, so 0.2 here is a loss of 20 % of the metric where source's metric is 0. Only
    layers below the last receiver appear. normalized=False: the change in the metric's own unit.

    receivers:   heads that read, together; None: the logits at the metric's position
    into:        "q", "k" or "v". Keys and values are changed for these query heads alone; others that share the
                 key/value head keep theirs
    at:          where the receivers' queries, keys or values are changed: one position a prompt, or several; None: all.
                 Nothing else counts of the sender: held heads carry nothing from place to place
    senders:     groups of heads that send together; dims are then ("sender",). None: every head alone
    frozen_mlps: hold the MLPs too
    base, source: tokens, or runs kept in a `Resume`, when many receivers are asked
    """
    base, source = two_runs(model, base, source)
    at = _at(base, metric if receivers is None else None, at)
    layers = len(base.layers) if receivers is None else _checked(base, receivers, into)
    ends = torch.stack([base.ends(metric), source.ends(metric)])
    heads = [(layer, head) for layer in range(layers) for head in range(base.heads)]
    groups = [[head] for head in heads] if senders is None else _groups(base, senders, layers)
    read = {layers} if receivers is None else {layer for layer, _ in receivers}
    streams = dict(_streams(base, source, at, groups, read, frozen_mlps))
    if receivers is None:
        found = _logits(base, metric, streams[layers], at)
    else:
        found = _received(base, metric, receivers, into, streams, at)
    change = (found - ends[0]).T
    if normalized:
        change = change / check_gap(ends)
    name = "share of the way from base to source" if normalized else "change of the metric"
    baselines = {"base": ends[0].mean().item(), "source": ends[1].mean().item()}
    if senders is None:
        change = change.unflatten(1, (-1, base.heads))
        return Scores.over_prompts(change, ("layer", "head"), name, baselines=baselines)
    labels = {"sender": [named(group) for group in senders]}
    order = [sorted(groups, key=min).index(group) for group in groups]
    return Scores.over_prompts(change[:, order], ("sender",), name, labels=labels, baselines=baselines)


def check_gap(ends: Float[Tensor, "run prompt"]) -> float:
    """The mean difference of two runs' metrics. None is an error; one that may be chance earns a warning."""
    gap = ends[1] - ends[0]
    if gap.mean().abs() < 1e-6:
        raise ValueError(
            "base and source give the same metric, so there is no way between them to take a share of."
        )
    error = (gap.std() / len(gap) ** 0.5).item() if len(gap) > 1 else 0.0
    if gap.mean().abs() < 2 * error:
        warnings.warn(
            f"The metric is {ends[0].mean():.2f} on base and {ends[1].mean():.2f} on source, a difference that may be chance "
            f"({len(gap)} prompts, standard error {error:.2f}). If this model does not do the task, there is no circuit to find.",
            stacklevel=3,
        )
    return gap.mean().item()


@torch.no_grad()
def _streams(
    base: Resume,
    source: Resume,
    at: Tensor,
    groups: Sequence[Sequence[Head]],
    read: set[int],
    frozen_mlps: bool,
) -> Iterator[tuple[int, Float[Tensor, "sender prompt place d_model"]]]:
    """(layer, the stream on entering it, for each group that begins below), for the layers in `read`; first ones first."""
    rows = torch.arange(len(at), device=at.device)[:, None]
    begins = torch.tensor(sorted(min(group)[0] for group in groups))
    sends = torch.zeros(len(groups), len(base.layers), base.heads, device=at.device)
    for number, group in enumerate(sorted(groups, key=min)):
        sends[number, [layer for layer, _ in group], [head for _, head in group]] = 1
    streams = base.resid_pre[0][rows, at][None][:0]
    for layer in range(max(read) + 1):
        if layer in read:
            yield layer, streams
        if layer == max(read):
            return
        begun = int((begins <= layer).sum())
        new = base.resid_mid[layer][rows, at].expand(begun - len(streams), -1, -1, -1)
        streams = torch.cat([streams + base.written("attn_out", layer)[rows, at], new])
        mine = sends[:begun, layer]
        if mine.any():
            W_O = base.layers[layer].out[0].unflatten(0, (base.heads, base.d_head))
            change = (source.z[layer] - base.z[layer])[rows, at]
            streams = streams + torch.einsum("sh,nphd,hdm->snpm", mine, change, W_O)
        if frozen_mlps:
            streams = streams + base.written("mlp_out", layer)[rows, at]
        elif begun:
            some = streams.flatten(0, 1).split(max(1, ROWS // at.shape[1]))
            written = torch.cat([base.mlp(base.layers[layer], base.norm(part)) for part in some])
            streams = streams + written.view_as(streams)


@torch.no_grad()
def _logits(base: Resume, metric: Metric, senders: Tensor, at: Tensor) -> Float[Tensor, "sender prompt"]:
    """The metric when the logits at places `at` read the senders' streams."""
    first, rows, found = int(at.min()), torch.arange(len(at), device=at.device)[:, None], []
    for some in senders.split(32):
        whole = base.resid_pre[-1][:, first:].repeat(len(some), 1, 1, 1)
        whole[:, rows, at - first] = some
        found.append(base.measure(metric, len(base.layers), whole, first))
    return torch.cat(found)


@torch.no_grad()
def _received(
    base: Resume, metric: Metric, receivers: Sequence[Head], into: str, senders: dict, at: Tensor
) -> Float[Tensor, "sender prompt"]:
    """The metric when the receivers' queries, keys or values come from the senders' streams, and the rest runs freely."""
    readers = {
        layer: sorted({head for at_layer, head in receivers if at_layer == layer}) for layer, _ in receivers
    }
    new = {layer: _inputs(base, layer, into, heads, senders[layer], at) for layer, heads in readers.items()}
    first, start, count = int(at.min()), min(readers), base.base.shape[1]
    rows = torch.arange(len(at), device=at.device)

    def edit(kind: str, layer: int, value: Tensor, copies: slice) -> Tensor:
        if kind != into or layer not in readers:
            return value
        if kind != "q" and value.shape[1] != base.heads:
            value = value.repeat_interleave(base.heads // base.kv_heads, dim=1)
        value = value.clone().unflatten(0, (-1, len(at)))
        reach = new[layer][copies]  # senders of later layers do not reach this one
        place = at - (count - value.shape[3])
        for column in range(at.shape[1]):
            here = place[:, column] >= 0  # in the last layer only what is read is computed
            for number, head in enumerate(readers[layer]):
                value[: len(reach), rows[here], head, place[here, column]] = reach[:, here, number, column]
        return value.flatten(0, 1)

    many = len(senders[max(readers)])
    stream = base.resid_pre[start][:, first:].expand(many, -1, -1, -1)
    return base.measure(metric, start, stream, first, edit=edit)


def _inputs(
    base: Resume, layer: int, into: str, heads: list[int], senders: Tensor, at: Tensor
) -> Float[Tensor, "sender prompt reader place d_head"]:
    """The queries, keys or values of some query heads, read from the senders' streams."""
    matrix = getattr(base.layers[layer], into.upper())
    x = base.norm(senders).flatten(0, 1)
    found = base.heads_of(x, matrix, None if into == "v" else at.repeat(len(senders), 1))
    shared = base.heads // base.kv_heads if into != "q" else 1
    return found.unflatten(0, (len(senders), -1))[:, :, [head // shared for head in heads]]


def _groups(base: Resume, senders: Sequence[Sequence[Head]], layers: int) -> list[list[Head]]:
    groups = [[(int(layer), int(head)) for layer, head in group] for group in senders]
    for group in groups:
        wrong = [head for head in group if not (0 <= head[0] < layers and 0 <= head[1] < base.heads)]
        if wrong or not group:
            raise ValueError(
                f"{named(wrong)} cannot send to these receivers: senders are in layers 0 to {layers - 1}, heads 0 to "
                f"{base.heads - 1}."
            )
    return groups


def two_runs(model, base, source) -> tuple[Resume, Resume]:
    base = base if isinstance(base, Resume) else Resume(model, base)
    if not isinstance(source, Resume):
        if source.shape != base.base.shape:
            raise ValueError(
                f"base is {tuple(base.base.shape)} and source {tuple(source.shape)}: path patching needs as many prompts "
                "of the same number of tokens, or positions do not correspond."
            )
        source = Resume(model, source, like=base)
    if torch.equal(base.base, source.base):
        raise ValueError("base and source are the same tokens, so a patch changes nothing.")
    return base, source


def _at(base: Resume, logits_of: Metric | None, at: At) -> Int[Tensor, "prompt place"]:
    prompts, count = base.base.shape
    if logits_of is not None:
        if at is not None:
            raise ValueError(
                "`at` says where heads are changed; the logits are read where the metric reads them."
            )
        at = logits_of.end if isinstance(logits_of, Reading) else None
    if at is None:
        return torch.arange(count, device=base.base.device).expand(prompts, -1)
    at = torch.as_tensor(at, device=base.base.device)
    at = (at if at.ndim == 2 else at.expand(prompts)[:, None]).clone()
    if at.shape[0] != prompts or not ((at >= -count) & (at < count)).all():
        raise ValueError(
            f"`at` is {at.tolist()}: give one position from 0 to {count - 1} for each of the {prompts} prompts."
        )
    return at % count


def _checked(base: Resume, receivers: Sequence[Head], into: str) -> int:
    """The layer of the last receiver."""
    if into not in INPUTS:
        raise ValueError(f"into is {into!r}; heads read through {', '.join(map(repr, INPUTS))}.")
    if not len(receivers):
        raise ValueError("There is nobody to read: `receivers` is empty. None asks for the logits.")
    for layer, head in receivers:
        if not (0 < layer < len(base.layers) and 0 <= head < base.heads):
            raise ValueError(
                f"Head {layer}.{head} cannot receive: layers go from 1 (layer 0 has no head below it) to "
                f"{len(base.layers) - 1}, heads from 0 to {base.heads - 1}."
            )
    return max(layer for layer, _ in receivers)
