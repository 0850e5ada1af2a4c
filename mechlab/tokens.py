"""One door for input: from what a person brings to tokens that a technique can run on.

A string, several strings, tokens of one prompt or of several, a `PromptPair`, IOI prompts: all become a
`Batch`, which knows where each prompt ends. What would go wrong without a word is refused here: texts beyond
the context, prompts padded at the beginning, tokens that the model does not have.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


class PromptError(ValueError):
    """A prompt or an answer does not fit the experiment. The message says which one and why."""


@runtime_checkable
class Pair(Protocol):
    """Two prompts of which the clean one is meant, such as `PromptPair`."""

    clean: Int[Tensor, "batch pos"]
    corrupted: Int[Tensor, "batch pos"]


@runtime_checkable
class Task(Protocol):
    """Prompts that know where they end, such as `IOIPrompts`."""

    tokens: Int[Tensor, "batch pos"]
    positions: Mapping[str, Int[Tensor, "batch"]]


@dataclass(frozen=True)
class Batch:
    """Prompts as tokens, on the model's device.

    tokens: [batch, pos], padded at the end where prompts differ in length
    ends:   [batch], the position of each prompt's own last token; what stands behind it is padding
    units:  [batch], prompts of one number belong together (the two of a balanced pair); None: each apart
    """

    model: "TransformerBridge"
    tokens: Int[Tensor, "batch pos"]
    ends: Int[Tensor, "batch"]
    units: Int[Tensor, "batch"] | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def padded(self) -> bool:
        """Whether any prompt is shorter than the longest."""
        return bool((self.ends < self.tokens.shape[1] - 1).any())

    @property
    def lengths(self) -> list[int]:
        """How many tokens each prompt has."""
        return (self.ends + 1).tolist()

    def position(
        self, pos: int | Sequence[int] | Int[Tensor, "..."], what: str = "pos"
    ) -> Int[Tensor, "batch"]:
        """A position of each prompt, counted from the front; −1 is each prompt's own last token.

        Raises a `PromptError` for one that a prompt does not have.
        """
        asked = whole_numbers(pos, what).to(self.tokens.device)
        if asked.ndim > 1 or (asked.ndim and len(asked) not in (1, len(self))):
            raise PromptError(
                f"{what} is {asked.tolist()} for {len(self)} prompts: give one position for all, or one for "
                "each."
            )
        asked = asked.expand(len(self))
        found = torch.where(asked < 0, self.ends + 1 + asked, asked)
        wrong = ((found < 0) | (found > self.ends)).nonzero()[:, 0].tolist()
        if wrong:
            row, count = wrong[0], self.lengths[wrong[0]]
            raise PromptError(
                f"{what} is {asked[row].item()}, and prompt {row} has {count} tokens: positions 0 to "
                f"{count - 1}, or -1 for the last."
            )
        return found

    def one_length(self, why: str) -> Int[Tensor, "batch pos"]:
        """The tokens, if all prompts have the same number of them; `why` says what needs that."""
        if self.padded:
            raise PromptError(
                f"The prompts have {', '.join(map(str, self.lengths[:8]))} tokens, and {why}. Run prompts of "
                "one length together, the others in calls of their own."
            )
        return self.tokens


Prompts = str | Sequence[str] | Int[Tensor, "_"] | Int[Tensor, "_ _"] | Sequence[int] | Pair | Task | Batch


def batch_of(model: "TransformerBridge", given: Prompts, *, what: str = "base") -> Batch:
    """What a person gave as prompts, as a `Batch`.

    Strings get the model's first token, where its tokenizer adds one; strings of unequal length are padded at
    the end. Tokens are taken as they are; trailing padding is recognised where rows have different counts of
    it. Of a `PromptPair` the clean prompts are meant. Raises a `PromptError` for a text beyond the context,
    padding at the beginning, ids that the model does not have, or nothing at all.
    """
    ends = None
    _check_vocabulary(model, given, what)
    if isinstance(given, Batch) and given.model is model:
        return given
    texts: Any = given
    if hasattr(texts, "tolist") and not isinstance(texts, Tensor):  # an array, a column of a table
        texts = texts.tolist()
    texts = [texts] if isinstance(texts, str) else texts
    if isinstance(texts, Sequence) and texts and all(isinstance(text, str) for text in texts):
        tokens, ends = _tokenized(model, [str(text) for text in texts])
    elif isinstance(given, Batch):
        tokens, ends = given.tokens, given.ends
    elif isinstance(given, Pair):
        tokens = _as_rows(given.clean, what)
    elif isinstance(given, Task):
        tokens = _as_rows(given.tokens, what)
        ends = _said_ends(given, tokens, what)
    else:
        tokens = _as_rows(given, what)
    tokens = tokens.to(model.cfg.device)
    _check_ids(model, tokens, what)
    check_context(model, tokens.shape[1], what)
    ends = _own_ends(model, tokens) if ends is None else ends.to(tokens.device)
    units = _said_units(given, len(tokens), what)
    with torch.inference_mode(False):  # gradients cannot flow past what inference mode has made
        tokens, ends = (each.clone() if each.is_inference() else each for each in (tokens, ends))
        return Batch(model, tokens, ends, units)


def whole_numbers(given: Any, what: str) -> Int[Tensor, "..."]:
    """Positions or ids as a tensor; a `PromptError` for what is not whole, such as 2.0, True or a word."""
    listed = sorted(given) if isinstance(given, (set, frozenset)) else given
    if isinstance(listed, Sequence) and not isinstance(listed, str) and not len(listed):
        return torch.zeros(0, dtype=torch.long)  # how many there must be, whoever asks knows
    try:
        found = torch.as_tensor(_unlabelled(listed))
    except (TypeError, ValueError, RuntimeError):
        found = torch.empty(0)
    if not _are_whole(found):
        raise PromptError(f"{what} is {given!r:.80}: give whole numbers, counted from 0.")
    return found.long()


def texts_of(model: "TransformerBridge", given: Prompts, *, what: str = "texts") -> Int[Tensor, "batch pos"]:
    """Texts of which every position counts, as tokens; unequal lengths are refused."""
    return batch_of(model, given, what=what).one_length("every position of these texts counts, padding too")


def batches_of(model: "TransformerBridge", base: Prompts, source: Prompts, why: str) -> tuple[Batch, Batch]:
    """Two batches whose prompts correspond position by position; others are refused.

    why: what needs that, for the message
    """
    first, second = batch_of(model, base), batch_of(model, source, what="source")
    if first.tokens.shape != second.tokens.shape or not torch.equal(first.ends, second.ends):
        own = ""
        if first.padded or second.padded:
            own = f", with {first.lengths[:8]} and {second.lengths[:8]} tokens of their own"
        raise PromptError(
            f"base is {tuple(first.tokens.shape)} and source {tuple(second.tokens.shape)}{own}: {why} needs "
            "as many prompts of the same number of tokens, or positions do not correspond."
        )
    return first, second


def first_tokens(model: "TransformerBridge") -> int:
    """How many tokens the model's tokenizer puts before every text: 1, or 0 (Qwen, Pythia, Bloom)."""
    return model.to_tokens("").shape[-1]


def check_context(model: "TransformerBridge", count: int, what: str = "The text") -> None:
    """Refuse texts longer than the model can read; nothing is cut in silence."""
    most = model.cfg.n_ctx
    if count > most:
        raise PromptError(f"{what} has {count} tokens; this model reads at most {most}. Give a shorter text.")


def tokenized(model: "TransformerBridge", text: str) -> Int[Tensor, "pos"]:
    """The tokens of one text, with the model's first token where its tokenizer adds one; never cut."""
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise PromptError(f"{text[:40]!r} holds half a character (a surrogate), which no tokenizer can read.")
    tokens = model.to_tokens(text, truncate=False)[0]
    check_context(model, len(tokens), f"The text {text[:40]!r}{'...' * (len(text) > 40)}")
    return tokens


def _tokenized(
    model: "TransformerBridge", texts: list[str]
) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch"]]:
    rows = [tokenized(model, text) for text in texts]
    empty = [n for n, row in enumerate(rows) if not len(row)]
    if empty:
        raise PromptError(f"Prompt {empty[0]} is empty: this model's tokenizer makes no token of it.")
    ends = torch.tensor([len(row) - 1 for row in rows])
    filler = padding(model)
    whole = torch.full((len(rows), int(ends.max()) + 1), filler, dtype=torch.long)
    for n, row in enumerate(rows):
        whole[n, : len(row)] = row
    return whole, ends


def padding(model: "TransformerBridge") -> int:
    """The token that stands behind a prompt which is shorter than others."""
    tokenizer: Any = model.tokenizer
    known = (getattr(tokenizer, name, None) for name in ("pad_token_id", "eos_token_id", "bos_token_id"))
    return next((each for each in known if each is not None and each < model.cfg.d_vocab), 0)


def _as_rows(given: Any, what: str) -> Int[Tensor, "batch pos"]:
    if isinstance(given, Sequence) and not len(given):
        raise PromptError(f"{what} is empty: give at least one text.")
    try:
        tokens = torch.as_tensor(_unlabelled(given))
    except (TypeError, ValueError, RuntimeError):
        tokens = torch.zeros(())
    tokens = tokens[None] if tokens.ndim == 1 else tokens
    if tokens.ndim != 2 or not _are_whole(tokens):
        shape = (
            f"{tuple(given.shape)} of {given.dtype}" if isinstance(given, Tensor) else type(given).__name__
        )
        raise PromptError(
            f"{what} is {shape}; give a text, several texts, or tokens [pos] or [batch, pos] of whole "
            "numbers, such as `model.to_tokens(...)`."
        )
    if not tokens.numel():
        raise PromptError(f"{what} is {tuple(tokens.shape)}: there is no token in it.")
    return tokens.long()


def _check_ids(model: "TransformerBridge", tokens: Int[Tensor, "batch pos"], what: str) -> None:
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= model.cfg.d_vocab:
        raise PromptError(
            f"{what} has the token {low if low < 0 else high}; this model's ids go from 0 to "
            f"{model.cfg.d_vocab - 1}. Were the prompts tokenised for another model?"
        )


def _unlabelled(given: Any) -> Any:
    """A column of a table as an array, whatever its rows are called."""
    return given.to_numpy(copy=True) if hasattr(given, "to_numpy") else given


def _are_whole(found: Tensor) -> bool:
    """Whether a tensor holds whole numbers that can be read."""
    kind = found.is_floating_point() or found.is_complex() or found.dtype == torch.bool
    return not kind and not found.is_meta and found.layout == torch.strided


def _check_vocabulary(model: "TransformerBridge", given: Any, what: str) -> None:
    """Refuse prompts that were tokenised for a model with other words, where they say for which."""
    theirs = getattr(given, "model", model)
    mine, other = (getattr(each, "tokenizer", None) for each in (model, theirs))
    if other is not mine and mine is not None and other is not None and other.get_vocab() != mine.get_vocab():
        raise PromptError(
            f"{what} was tokenised for {theirs.cfg.model_name}, and for {model.cfg.model_name} the same ids "
            "are other words. Make the prompts again, for this model."
        )


def _said_ends(given: Task, tokens: Int[Tensor, "batch pos"], what: str) -> Int[Tensor, "batch"] | None:
    """Where prompts end that say so themselves."""
    if "end" not in given.positions:
        return None
    ends = whole_numbers(given.positions["end"], f'The position "end" of {what}')
    if ends.ndim != 1 or len(ends) != len(tokens):
        raise PromptError(f'{what} has {len(tokens)} prompts and {ends.numel()} positions named "end".')
    if int(ends.min()) < 0 or int(ends.max()) >= tokens.shape[1]:
        raise PromptError(
            f'{what} has the positions {ends.tolist()[:8]} named "end", and its prompts have positions 0 to '
            f"{tokens.shape[1] - 1}."
        )
    return ends


def _said_units(given: Any, count: int, what: str) -> Int[Tensor, "batch"] | None:
    """Which prompts belong together, where they say so: the `pairs` of a `Task`, the `units` of a `Batch`."""
    said = getattr(given, "pairs" if isinstance(given, Task) else "units", None)
    if said is None or isinstance(given, (str, Tensor)):
        return None
    units = whole_numbers(said, f"The pairs of {what}").cpu()
    if units.shape != (count,):
        raise PromptError(f"{what} has {count} prompts and names the pairs of {units.numel()}.")
    return units


def _own_ends(model: "TransformerBridge", tokens: Int[Tensor, "batch pos"]) -> Int[Tensor, "batch"]:
    """Where each row of tokens ends: padding is what some rows have more of at the end than all have.

    A token that is nothing but padding is padding wherever it stands. Where it is also what texts begin or
    end with, what all rows have is taken for their own, with a warning.
    """
    count, tokenizer = tokens.shape[1], model.tokenizer
    pad = getattr(tokenizer, "pad_token_id", None)
    if pad is None:
        return torch.full((len(tokens),), count - 1, device=tokens.device)
    leading, trailing = ((each == pad).long().cumprod(1).sum(1) for each in (tokens, tokens.flip(1)))
    only = pad not in (getattr(tokenizer, name, None) for name in ("bos_token_id", "eos_token_id"))
    if (leading != leading.min()).any() or (only and leading.any()):
        raise PromptError(
            f"The prompts are padded at the beginning, with {leading.tolist()[:8]} tokens: positions would "
            "not be the prompts' own, and padding would be read. Give the texts themselves, or tokens padded "
            "at the end."
        )
    if only:
        return count - 1 - trailing
    if trailing.min() and count > 1:
        warnings.warn(
            f"All prompts end with {tokenizer.convert_ids_to_tokens(pad)}, which is also this model's "
            "padding: it is read as part of them. If it is padding, cut it off, or give the texts.",
            stacklevel=3,
        )
    return count - 1 - (trailing - trailing.min())
