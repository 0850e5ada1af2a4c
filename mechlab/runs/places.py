"""Which positions: of a word in its prompt, of a patch in each prompt, of two runs' first difference."""

import unicodedata
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from mechlab.results import position_labels
from mechlab.runs.run import Run
from mechlab.tokens import Batch, PromptError, tokenized, whole_numbers

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

# Positions that are the same in all prompts, or names for places that differ from prompt to prompt.
Positions = Sequence[int] | Mapping[str, Int[Tensor, "batch"] | Sequence[int]]
Where = Bool[Tensor, "batch pos"]
SPACED = ("LATIN", "GREEK", "CYRILLIC", "ARMENIAN", "GEORGIAN")  # scripts with spaces between words


def first_difference(run: Run, other: Run) -> int:
    """The first position at which two runs can differ: any prompt has another token there.

    Where there is none, it is how many positions there are.
    """
    if run.tokens.shape != other.tokens.shape or run.elsewhere or other.elsewhere or run.edits or other.edits:
        return 0
    differs = (run.tokens != other.tokens).any(0)
    return int(differs.float().argmax()) if differs.any() else len(differs)


def places_of(batch: Batch, positions: Positions | None, apart: bool) -> dict[str, Where]:
    """Which positions of each prompt are touched: one entry for each place, or one for all together.

    −1 is each prompt's own last token. Raises a `ValueError` for a position that is not there or named twice.
    """
    count = batch.tokens.shape[1]
    if positions is None:
        every = torch.arange(count, device=batch.tokens.device)
        names = position_labels(batch.model, batch.tokens)
        return _masks(
            {name: p.expand(len(batch)) for name, p in zip(names, every, strict=True)}, count, apart
        )
    if not isinstance(positions, Mapping):
        listed = whole_numbers(positions, "positions")
        if listed.ndim != 1:
            raise PromptError(
                f"positions is {positions!r:.80}: give a list of positions that all prompts share, or names "
                'for those that differ, {"subject": [2, 3]}.'
            )
        positions = listed.tolist()
    if not positions:
        raise ValueError("There is nothing to patch: `positions` is empty.")
    if isinstance(positions, Mapping):
        found = {name: batch.position(p, f"The position of {name!r}") for name, p in positions.items()}
    else:
        found = _named(batch, [*positions])
    return _masks(found, count, apart)


def _named(batch: Batch, asked: list[int]) -> dict[str, Int[Tensor, "batch"]]:
    """The positions of a list, by the labels of their tokens."""
    count, labels = batch.tokens.shape[1], position_labels(batch.model, batch.tokens)
    places = [p if batch.padded else p % count for p in asked]
    twice = [p for n, p in enumerate(asked) if places[n] in places[:n]]
    found = [batch.position(p, "positions") for p in asked]
    if twice:
        raise ValueError(f"positions is {asked}: {twice[0]} is there twice (-1 is the last).")
    names = [labels[p] if 0 <= p < count else f"position {p}" for p in places]
    return dict(zip(names, found, strict=True))


def _masks(found: Mapping[str, Int[Tensor, "batch"]], count: int, apart: bool) -> dict[str, Where]:
    places = {name: torch.arange(count, device=at.device) == at[:, None] for name, at in found.items()}
    return places if apart else {"all": torch.stack([*places.values()]).any(0)}


def subject_positions(model: "TransformerBridge", prompt: str, subject: str) -> list[int]:
    """The positions of the tokens that hold `subject` in `prompt`, where it occurs last.

    Occurrences inside a longer word do not count ("art" in "party"). A character that several tokens share
    belongs to all of them. Raises `PromptError`.
    """
    starts = [n for n in range(len(prompt)) if subject and prompt.startswith(subject, n)]
    if not starts:
        raise PromptError(f"The subject {subject!r} does not occur in the prompt {prompt!r}.")
    whole = [n for n in starts if not _inside_a_word(prompt, n, n + len(subject))]
    if not whole:
        raise PromptError(
            f"{subject!r} occurs in {prompt!r} only inside a longer word. Give the word as it stands there."
        )
    return word_positions(model, prompt, whole[-1], whole[-1] + len(subject))


def word_positions(model: "TransformerBridge", text: str, start: int, end: int) -> list[int]:
    """The positions of the tokens that hold any of the characters `start` to `end` (excluded) of a text.

    By the offsets that the tokenizer itself gives, so that it holds for every script and for characters that
    are split between tokens. Spaces around the word do not count. Raises `PromptError`.
    """
    word = text[start:end]
    start, end = start + len(word) - len(word.lstrip()), end - len(word) + len(word.rstrip())
    tokens = tokenized(model, text).tolist()
    tokenizer = model.tokenizer
    if not getattr(tokenizer, "is_fast", False):
        raise PromptError(
            f"The tokenizer of this model ({type(tokenizer).__name__}) does not say which characters a token "
            "holds, so the place of a word cannot be found. Give its positions as numbers."
        )
    said = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
    ids, first = said["input_ids"], _begin(tokens, said["input_ids"])
    if first is None:
        raise PromptError(
            f"The tokenizer of this model reads {text!r} in two ways, so no word has a place in it."
        )
    spans = said["offset_mapping"]
    found = [first + n for n in range(len(ids)) if spans[n][0] < end and spans[n][1] > start]
    if not found:
        raise PromptError(f"No token of this model holds {word!r} in {text!r}.")
    return found


def _begin(tokens: list[int], ids: list[int]) -> int | None:
    """Where the text's own tokens begin among all; None if they are not there."""
    return next((n for n in range(len(tokens) - len(ids) + 1) if tokens[n : n + len(ids)] == ids), None)


def _inside_a_word(text: str, start: int, end: int) -> bool:
    """Whether letters of a script with spaces between words go on before or behind, or marks on them."""
    before = start > 0 and _in_words(text[start - 1]) and _in_words(text[start])
    return before or (end < len(text) and _in_words(text[end - 1]) and _in_words(text[end]))


def _in_words(char: str) -> bool:
    script = unicodedata.name(char, "").partition(" ")[0]
    return char.isdigit() or script == "COMBINING" or (char.isalpha() and script in SPACED)
