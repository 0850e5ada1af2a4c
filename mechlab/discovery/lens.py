"""Lenses: what would the model say if it stopped after this layer?

The logit lens reads a residual stream in the middle of the model with the last norm and the unembedding, as
if it were the last stream. An affine lens first carries it over with a map, one for each layer, fitted to
the last stream or, as a tuned lens, to the model's answers. Entry l of a lens is the stream on entering layer
l; the last entry is the stream that the model itself reads, where every lens is exact.

A lens shows what can be read, not what the model uses.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechlab.arguments import at_least, one_of, whole
from mechlab.discovery.streams import residual_entries
from mechlab.discovery.tuned_lens import AffineLens
from mechlab.moved import was
from mechlab.prompts import Answers, answer_ids
from mechlab.results import Scores, token_labels
from mechlab.tokens import Prompts, batch_of

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from mechlab.pictures.plots import Picture

QUANTITIES = {"rank": "rank of the answer (0 is first)", "log_prob": "log-probability of the answer (nats)"}


@was(position="pos")
@torch.no_grad()
def logit_lens(
    model: "TransformerBridge",
    base: Prompts,
    answers: Answers,
    *,
    lens: AffineLens | None = None,
    pos: int = -1,
    what: str = "rank",
) -> Scores:
    """How far up `answers` stand at each layer, at one position of each prompt.

    dims ("layer",), 31 entries for 30 layers.

    what: "rank" (0 is first; tokens of exactly the same logit share a rank) or "log_prob" (nats)
    lens: an `AffineLens`; None is the plain logit lens (nostalgebraist 2020)
    pos:  -1 is each prompt's own last token

    TransformerLens' `logit_lens` does the reading, through the soft cap of the logits too, where the model
    has one. The norm is computed anew from each stream; holding it at
    the last layer's scale gives other curves. `answers`: one word of one token for all prompts or for each,
    or ids.
    """
    from transformer_lens.tools.analysis import logit_lens as read

    one_of("what", what, QUANTITIES)
    batch, lens = batch_of(model, base), _fitting(model, lens)
    ids, at = answer_ids(model, answers, len(batch)), batch.position(pos)
    scores = torch.zeros(len(batch), model.cfg.n_layers + 1)
    for place in at.unique().tolist():  # prompts that are read at one position are run together
        rows = (at == place).nonzero()[:, 0]
        asked: dict[str, Any] = {"targets": ids[rows], "return_type": "log_probs"}
        found = read(model, batch.tokens[rows], positions=place, lens=lens, **asked).readout
        values = found.target_ranks if what == "rank" else found.values
        assert values is not None  # there are ranks where there are targets
        scores[rows.cpu()] = values[..., 0].T.float().cpu()
    return Scores.over_prompts(scores, ("layer",), QUANTITIES[what], signed=False, units=batch.units)


@dataclass(frozen=True)
class LensTable:
    """The likeliest token at every layer and position of one prompt, and its probability."""

    tokens: list[list[str]]
    probability: Scores

    def plot(self, **layout) -> "Picture":
        from mechlab.pictures import plots

        return plots.scores(self.probability, words=self.tokens, **layout)


@torch.no_grad()
def lens_table(
    model: "TransformerBridge",
    base: Prompts,
    *,
    lens: AffineLens | None = None,
    every: int = 1,
) -> LensTable:
    """What the lens says first at each layer (every n-th, and the last) and position of one prompt."""
    from transformer_lens.tools.analysis import logit_lens as read

    batch = batch_of(model, base)
    if len(batch) != 1:
        raise ValueError(f"A table shows one prompt, and there are {len(batch)}. Give one: base[:1].")
    at_least("every", every, 1)
    entries = sorted({*range(0, model.cfg.n_layers, every), model.cfg.n_layers})
    asked: dict[str, Any] = {"layers": entries, "top_k": 1, "return_type": "probs"}
    found = read(model, batch.tokens, positions=None, lens=_fitting(model, lens), **asked).readout
    assert found.top_ids is not None  # asked for with top_k
    words = [[repr(model.tokenizer.decode(int(i))) for i in row] for row in found.top_ids[:, 0, :, 0]]
    labels = {"layer": [str(entry) for entry in entries], "pos": token_labels(model, batch.tokens[0])}
    name, likeliest = "probability of the likeliest token", found.values[:, 0, :, 0]
    return LensTable(words, Scores(likeliest, ("layer", "pos"), name, labels, signed=False))


@dataclass(frozen=True)
class LensQuality:
    """How like the model's own answers a lens' answers are, at each entry, with one value for each text.

    kl:        KL(model ‖ lens) of the next-token distributions, nats; 0 when they are equal
    agreement: share of the positions where both have the same likeliest token
    bias:      KL between the two distributions averaged over all positions, nats: what a lens says whatever
               the text
    """

    kl: Scores
    agreement: Scores
    bias: Scores


@torch.no_grad()
def lens_quality(
    model: "TransformerBridge",
    texts: Prompts,
    *,
    lens: AffineLens | None = None,
    skip: int = 4,
    layers: Sequence[int] | None = None,
) -> LensQuality:
    """Compare a lens with the model's last layer over whole texts (Belrose et al. 2023).

    The first `skip` positions are left out: position 0 is an attention sink with a stream a hundred times as
    long, in many models whether the model's first token stands there or a word. So is padding.
    layers: which entries (default all, n_layers + 1).
    """
    lens, batch = _fitting(model, lens), batch_of(model, texts, what="texts")
    entries = _entries(model, layers)
    if at_least("skip", skip, 0) >= min(batch.lengths):
        raise ValueError(
            f"A text has {min(batch.lengths)} tokens, and the first {skip} are left out: none is left."
        )
    kl, same = torch.zeros(2, len(batch), len(entries))
    mean, mean_final = torch.zeros(len(entries), model.cfg.d_vocab), torch.zeros(model.cfg.d_vocab)
    for row, streams in enumerate(residual_entries(model, batch.tokens, batch=1)):
        streams = streams[:, :, skip : batch.lengths[row]]
        final = _read(model, streams[-1, 0])
        mean_final += final.exp().mean(0).cpu() / len(batch)
        for place, entry in enumerate(entries):
            stream = streams[entry, 0]
            found = _read(model, stream if lens is None else lens(stream, entry))
            kl[row, place] = (final.exp() * (final - found)).sum(-1).mean()
            same[row, place] = (final.argmax(-1) == found.argmax(-1)).float().mean()
            mean[place] += found.exp().mean(0).cpu() / len(batch)
    bias = (mean_final * (mean_final.log() - mean.log())).nan_to_num(0).sum(-1)
    given: dict[str, Any] = {
        "labels": {} if layers is None else {"layer": [str(entry) for entry in entries]},
        "signed": False,
    }
    return LensQuality(
        Scores.over_prompts(kl, ("layer",), "KL to the last layer (nats)", **given),
        Scores.over_prompts(same, ("layer",), "share with the same first token", **given),
        Scores(bias, ("layer",), "KL between the mean distributions (nats)", **given),
    )


def _read(model: "TransformerBridge", stream: Float[Tensor, "... d_model"]) -> Float[Tensor, "... d_vocab"]:
    """Log-probabilities through the model's last norm and unembedding."""
    from transformer_lens.tools.analysis import logit_readout

    return logit_readout(model, stream, return_type="log_probs").values


def _entries(model: "TransformerBridge", layers: Sequence[int] | None) -> list[int]:
    """The entries asked for, or all: the stream on entering each layer, and after the last."""
    last = model.cfg.n_layers
    entries = list(range(last + 1)) if layers is None else list(layers)
    if not entries or not all(whole(entry) and 0 <= entry <= last for entry in entries):
        raise ValueError(f"layers is {entries}: a lens of this model has the entries 0 to {last}.")
    return [int(entry) for entry in entries]


def _fitting(model: "TransformerBridge", lens: AffineLens | None) -> AffineLens | None:
    """The lens, after a check that it belongs to this model."""
    layers, d_model = (model.cfg.n_layers, model.cfg.d_model) if lens is None else lens.bias.shape
    if (layers, d_model) != (model.cfg.n_layers, model.cfg.d_model):
        raise ValueError(
            f"This lens is for {layers} layers of width {d_model}; the model has {model.cfg.n_layers} of "
            f"width {model.cfg.d_model}."
        )
    if lens is not None:
        lens.check(model)
    return lens
