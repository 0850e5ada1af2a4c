"""IOI prompts: two people are named, one of them again; the next word is the other one's name.

    " Mary" is the indirect object (IO), " John" the subject, named twice (S1, S2):
    When John and Mary went to the store, John gave a drink to
         S1  S1+1                         S2                end

Prompts come in balanced pairs: the same sentence with either person named again, so that whatever the model
thinks of a name or of a place in the sentence cancels, and a model without the ability has a mean of zero.
The templates are our own, in the manner of Wang et al. 2022.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from mechlab.circuits.ioi.words import ALIGNED, NAMES, OBJECTS, PLACES
from mechlab.metrics import Metric, logit_difference
from mechlab.tokens import PromptError, first_tokens, padding, tokenized

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

# what a corruption does to the three names (IO, S1, S2); "?" is a name drawn anew, another one each time
CORRUPTIONS = {
    "abc": ("?", "?", "?"),  # nobody is named twice: the paper's distribution for path patching and means
    "io": ("?", "s1", "s2"),
    "s1": ("io", "?", "s2"),
    "s2": ("io", "s1", "?"),  # nobody is named twice, the first clause stays: for attribution patching
    "flip": ("io", "s1", "io"),  # the other one is named again: the answer flips
    "names": ("?", "= s", "= s"),  # two other people, in the same order: s1 and s2 are the same new name
    "swap names": ("s1", "io", "io"),  # each takes the other's place: same order, other answer
    "order": ("io", "s1", "s2"),  # the two names of the first clause exchange places
}


@dataclass(frozen=True)
class IOIPrompts:
    """IOI prompts of one model, right-padded to one length.

    What stands after `end` is padding and reads as nothing.

    tokens:    [prompt, pos], with the model's first token (BOS) where its tokenizer adds one, or it was asked
               for
    io, s:     [prompt], the answer and its rival; a corruption keeps them, so that one metric serves all
    templates: [prompt], the number of the template, with "S first" or "IO first": what means are taken over
    positions: "IO", "S1", "S1+1", "S2", "end" -> [prompt], where each of them stands
    pairs:     [prompt], equal for the two prompts of a balanced pair
    """

    model: "TransformerBridge"
    tokens: Int[Tensor, "prompt pos"]
    io: Int[Tensor, "prompt"]
    s: Int[Tensor, "prompt"]
    templates: tuple[str, ...]
    positions: dict[str, Int[Tensor, "prompt"]]
    pairs: Int[Tensor, "prompt"]
    names: Int[Tensor, "name"]

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def metric(self) -> Metric:
        """Logit of the indirect object minus logit of the subject at each prompt's end."""
        return logit_difference(self.io, self.s, pos=self.positions["end"])

    def text(self, row: int = 0) -> str:
        """One prompt as text, without padding."""
        return str(self.model.to_string(self.tokens[row, : int(self.positions["end"][row]) + 1]))

    def labels(self, row: int = 0) -> list[str]:
        """Names of the positions of one prompt, up to its end: `' John' 2`."""
        from mechlab.results import token_labels

        return token_labels(self.model, self.tokens[row, : int(self.positions["end"][row]) + 1])

    def rows(self, chosen: Sequence[int] | slice) -> "IOIPrompts":
        """Some of the prompts, cut to the longest of them."""
        if not len(index := torch.arange(len(self))[chosen]):
            raise PromptError("No prompt is chosen.")
        positions = {name: each[index] for name, each in self.positions.items()}
        return replace(
            self,
            tokens=self.tokens[index, : int(positions["end"].max()) + 1],
            io=self.io[index],
            s=self.s[index],
            templates=tuple(self.templates[i] for i in index),
            positions=positions,
            pairs=self.pairs[index],
        )

    def by_length(self) -> list["IOIPrompts"]:
        """The prompts in groups that end at the same position: such groups run fastest."""
        ends = self.positions["end"]
        return [self.rows((ends == end).nonzero()[:, 0].tolist()) for end in ends.unique()]

    def corrupted(self, how: str = "abc", *, seed: int = 0) -> "IOIPrompts":
        """The same prompts with other names in the same places; templates, lengths and the metric stay.

        how: one of `CORRUPTIONS`. Names drawn anew are none of the prompt's own. Corruptions can follow one
             another:
        `prompts.corrupted("order").corrupted("names")`.
        """
        if how not in CORRUPTIONS:
            raise PromptError(
                f"There is no corruption {how!r}. Choose one of {', '.join(map(repr, CORRUPTIONS))}."
            )
        rows, tokens = torch.arange(len(self)), self.tokens.clone()
        places = dict(zip(("io", "s1", "s2"), (self.positions[n] for n in ("IO", "S1", "S2")), strict=True))
        if how == "order":
            io, s1 = self.tokens[rows, places["io"]], self.tokens[rows, places["s1"]]
            tokens[rows, places["io"]], tokens[rows, places["s1"]] = s1, io
            after = self.positions | {"IO": places["s1"], "S1": places["io"], "S1+1": places["io"] + 1}
            turned = tuple(
                f"{t.split(',')[0]}, {'IO' if t.endswith(' S first') else 'S'} first" for t in self.templates
            )
            return replace(self, tokens=tokens, positions=after, templates=turned)
        before = {name: self.tokens[rows, at] for name, at in places.items()}
        taken = torch.stack([*before.values(), self.io, self.s], 1)
        fresh = _draw(self.names, taken, CORRUPTIONS[how], torch.Generator().manual_seed(seed))
        for number, (place, new) in enumerate(zip(places, CORRUPTIONS[how], strict=True)):
            number = 1 if new == "= s" else number
            tokens[rows, places[place]] = before[new] if new in before else fresh[:, number]
        return replace(self, tokens=tokens)


def ioi_prompts(
    model: "TransformerBridge",
    count: int = 32,
    *,
    templates: Sequence[str] = ALIGNED,
    names: Sequence[str] = NAMES,
    prepend_bos: bool | None = None,
    seed: int = 0,
) -> IOIPrompts:
    """`count` IOI prompts in balanced pairs, the templates in turn, names and things drawn at random.

    Each pair is one sentence with either person named again: once the subject stands first in it, once the
    indirect object. Names of several tokens for this model are left out, with a warning that says which; of
    places and objects, those of the usual number of tokens are kept, so that a template has one length.

    prepend_bos: whether the model's first token is put before each prompt; by default where its tokenizer
                 does it (not in Qwen, Pythia, Bloom: a word stands at position 0 there). The paper did not.
    """
    if count < 2 or count % 2:
        raise PromptError(f"count is {count}: prompts come in pairs, so ask for an even number of them.")
    for template in templates:
        missing = [slot for slot in ("{first}", "{second}", "{subject}") if template.count(slot) != 1]
        if missing or template.startswith("{"):
            raise PromptError(
                f"The template {template!r} must hold {', '.join(missing) or 'a word'} "
                f"{'once' if missing else 'before its first name'}."
            )
    ids = _single_tokens(model, names)
    things = {"place": _of_one_length(model, PLACES), "object": _of_one_length(model, OBJECTS)}
    generator = torch.Generator().manual_seed(seed)
    pick = lambda options: options[int(torch.randint(len(options), (), generator=generator))]
    words = list(ids)
    rows = []
    for pair in range(count // 2):
        template = templates[pair % len(templates)]
        people = [words[i] for i in torch.randperm(len(words), generator=generator)[:2].tolist()]
        filled = {slot: pick(options) for slot, options in things.items()}
        for again in (0, 1):
            text = template.format(first=people[0], second=people[1], subject=people[again], **filled)
            tokens = _begun(model, text, prepend_bos)
            s, io = ids[people[again]], ids[people[1 - again]]
            rows.append((tokens, io, s, _positions(tokens, io, s, text), pair % len(templates), again, pair))
    return _padded(model, rows, list(ids.values()))


def _begun(model: "TransformerBridge", text: str, prepend_bos: bool | None) -> Int[Tensor, "pos"]:
    """The tokens of a text, with or without the model's first token; by default as its tokenizer does it."""
    if prepend_bos is None:
        return tokenized(model, text)
    own = model.to_tokens(text, prepend_bos=False, truncate=False)[0]
    if not prepend_bos:
        return own
    first = model.to_tokens("")[0, : first_tokens(model)].tolist()
    first = first or [getattr(model.tokenizer, "bos_token_id", None)]
    if first == [None]:
        raise PromptError("This model's tokenizer has no first token, so none can be put before a prompt.")
    return torch.cat([own.new_tensor(first), own])


def _padded(model: "TransformerBridge", rows: list[tuple], names: list[int]) -> IOIPrompts:
    longest = max(len(row[0]) for row in rows)
    filler = padding(model)  # so that the tokens alone, too, show where a prompt ends
    tokens = torch.stack([F.pad(row[0], (0, longest - len(row[0])), value=filler) for row in rows])
    device = tokens.device
    return IOIPrompts(
        model,
        tokens,
        torch.tensor([row[1] for row in rows], device=device),
        torch.tensor([row[2] for row in rows], device=device),
        tuple(f"template {row[4] + 1}, {'IO' if row[5] else 'S'} first" for row in rows),
        {name: torch.tensor([row[3][name] for row in rows]) for name in rows[0][3]},
        torch.tensor([row[6] for row in rows]),
        torch.tensor(names, device=device),
    )


def _positions(tokens: Tensor, io: int, s: int, text: str) -> dict[str, int]:
    at_io, at_s = ((tokens == name).nonzero()[:, 0].tolist() for name in (io, s))
    if (len(at_io), len(at_s)) != (1, 2):
        raise PromptError(
            "The indirect object must stand in the prompt once and the subject twice, as whole tokens; "
            f"found {len(at_io)} and {len(at_s)} in {text!r}"
        )
    return {"IO": at_io[0], "S1": at_s[0], "S1+1": at_s[0] + 1, "S2": at_s[1], "end": len(tokens) - 1}


def _single_tokens(model: "TransformerBridge", names: Sequence[str]) -> dict[str, int]:
    pieces = {name: model.to_tokens(f" {name}", prepend_bos=False)[0].tolist() for name in names}
    unknown = getattr(model.tokenizer, "unk_token_id", None)
    kept = {name: ids[0] for name, ids in pieces.items() if len(ids) == 1 and ids[0] != unknown}
    dropped = [name for name in names if name not in kept]
    if len(kept) < 6:
        raise PromptError(
            f"Only {len(kept)} of {len(pieces)} names are one token for this model "
            f"({', '.join(kept) or 'none'}); six are "
            "needed, so that corruptions find other ones. Give more `names`."
        )
    if dropped:
        warnings.warn(
            f"{len(dropped)} of {len(pieces)} names are several tokens for this model and were left out: "
            f"{', '.join(dropped)}",
            stacklevel=3,
        )
    return kept


def _of_one_length(model: "TransformerBridge", words: Sequence[str]) -> list[str]:
    counts = {word: model.to_tokens(f" {word}", prepend_bos=False).shape[1] for word in words}
    usual = 1 if 1 in counts.values() else max(set(counts.values()), key=list(counts.values()).count)
    return [word for word, count in counts.items() if count == usual]


def _draw(
    names: Tensor, taken: Int[Tensor, "prompt name"], wanted: Sequence[str], generator: torch.Generator
) -> Int[Tensor, "prompt 3"]:
    """Different names for the places of `wanted` that ask for one, for each prompt, none of those it has."""
    order = torch.stack([torch.randperm(len(names), generator=generator) for _ in taken]).to(names.device)
    drawn = names[order]
    free = ~(drawn[:, :, None] == taken[:, None, :]).any(-1)
    places = [{"= s": 1}.get(new, n) for n, new in enumerate(wanted) if new in ("?", "= s")]
    most = 1 + max(places, default=-1)
    if most > int(free.sum(1).min()):
        raise PromptError(
            f"{most} names that a prompt does not have are needed, and of {len(names)} only "
            f"{int(free.sum(1).min())} are left: make the prompts with more `names`."
        )
    first = free.int().argsort(dim=1, descending=True, stable=True)[:, :3]
    return drawn.gather(1, first)
