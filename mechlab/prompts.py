"""Prompts in pairs: a clean one, a corrupted one, and the two answers between which the model must choose.

Everything that goes wrong silently in later experiments is refused here, with its reason: prompts of
different lengths, answers of two tokens, a clean and a corrupted prompt that are the same.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Int
from torch import Tensor

from mechlab.metrics import Metric, logit_difference
from mechlab.moved import was
from mechlab.tokens import PromptError, tokenized

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Answers = str | int | Sequence[str] | Sequence[int] | Int[Tensor, "_"]  # one for each prompt, or one for all


@dataclass(frozen=True)
class PromptPair:
    """Aligned prompts, tokenised and checked. Make one with `prompt_pair`.

    clean, corrupted: token ids, one row per prompt, all rows of one length, BOS included
    answers, incorrect: token ids of the answer on the clean prompt and of its rival
    """

    model: "TransformerBridge"
    clean: Int[Tensor, "batch pos"]
    corrupted: Int[Tensor, "batch pos"]
    answers: Int[Tensor, "batch"]
    incorrect: Int[Tensor, "batch"]

    def __len__(self) -> int:
        return len(self.clean)

    @property
    def metric(self) -> Metric:
        """Logit of the answer minus logit of its rival, at the last position."""
        return logit_difference(self.answers, self.incorrect)

    @property
    def wrong(self) -> Int[Tensor, "batch"]:
        """What `incorrect` was called."""
        warnings.warn("pair.wrong is now pair.incorrect.", FutureWarning, stacklevel=2)
        return self.incorrect

    def labels(self, row: int = 0) -> list[str]:
        """Names of the positions of one clean prompt, all different: `' John' 2`."""
        from mechlab.results import token_labels

        return token_labels(self.model, self.clean[row])

    def position(self, word: str, occurrence: int = 1) -> Int[Tensor, "batch"]:
        """Where a token stands in each clean prompt: its first, second, ... occurrence."""
        token = single_token(self.model, word)
        found = []
        for row, tokens in enumerate(self.clean):
            places = (tokens == token).nonzero()[:, 0].tolist()
            if len(places) < occurrence:
                text = self.model.to_string(tokens)
                raise PromptError(
                    f"{word!r} occurs {len(places)} times in prompt {row}, not {occurrence}: {text!r}"
                )
            found.append(places[occurrence - 1])
        return torch.tensor(found)


@was(wrong="incorrect")
def prompt_pair(
    model: "TransformerBridge",
    clean: str | Sequence[str],
    corrupted: str | Sequence[str],
    answers: str | Sequence[str],
    incorrect: str | Sequence[str],
) -> PromptPair:
    """Tokenise and check pairs of prompts. One string, or one string for each prompt.

    Answers must be one token each, written with their leading space: " Mary". Raises `PromptError`.
    """
    texts = [
        [part] if isinstance(part, str) else list(part) for part in (clean, corrupted, answers, incorrect)
    ]
    counts = [len(part) for part in texts]
    if len(set(counts)) > 1 or not counts[0]:
        raise PromptError(
            "clean, corrupted, answers and incorrect have {}, {}, {} and {} entries.".format(*counts)
        )
    rows = [[tokenized(model, text) for text in part] for part in texts[:2]]
    _check_lengths(model, rows[0] + rows[1])
    ids = (torch.tensor([single_token(model, text) for text in part]) for part in texts[2:])
    pair = PromptPair(model, torch.stack(rows[0]), torch.stack(rows[1]), *ids)
    for row, (text, _, answer, _) in enumerate(zip(*texts, strict=True)):
        if torch.equal(pair.clean[row], pair.corrupted[row]):
            raise PromptError(
                f"Prompt {row}: clean and corrupted are the same text, so nothing can be learned by patching "
                f"one into the other: {text!r}"
            )
        if pair.answers[row] == pair.incorrect[row]:
            raise PromptError(f"Prompt {row}: the answer and the wrong answer are both {answer!r}.")
    return pair


def single_token(model: "TransformerBridge", word: str) -> int:
    """The id of a word that is one token for this model, or a `PromptError` that shows the pieces."""
    ids = model.to_tokens(word, prepend_bos=False)[0].tolist()
    pieces = [model.to_string([i]) for i in ids]
    if len(ids) != 1:
        raise PromptError(
            f"{word!r} is {len(ids)} tokens for this model: {' + '.join(map(repr, pieces))}. Choose a word "
            "that is one token."
        )
    if ids[0] == getattr(model.tokenizer, "unk_token_id", None) and pieces[0] != word:
        raise PromptError(f"{word!r} is not in the vocabulary of this model.")
    spaced = model.to_tokens(" " + word, prepend_bos=False)[0].tolist() if not word.startswith(" ") else []
    if len(spaced) == 1 and word[:1].isalpha() and spaced != ids:
        import warnings

        warnings.warn(
            f"{word!r} has no leading space; inside a sentence the token is {' ' + word!r}.", stacklevel=3
        )
    return ids[0]


def answer_ids(model: "TransformerBridge", answers: Answers, prompts: int) -> Int[Tensor, "batch"]:
    """Token ids of the answers, one for each prompt: from words of one token, or from ids; one serves all."""
    several = [answers] if isinstance(answers, (str, int)) else list(answers)
    ids = [single_token(model, a) if isinstance(a, str) else int(a) for a in several]
    if len(ids) not in (1, prompts):
        raise PromptError(
            f"{prompts} prompts and {len(ids)} answers: give one for each prompt, or one for all."
        )
    outside = [i for i in ids if not 0 <= i < model.cfg.d_vocab]
    if outside:
        raise PromptError(f"There is no token {outside[0]}: ids go from 0 to {model.cfg.d_vocab - 1}.")
    return torch.tensor(ids * prompts if len(ids) == 1 else ids, device=model.cfg.device)


def _check_lengths(model: "TransformerBridge", rows: list[Int[Tensor, "_"]]) -> None:
    lengths = [len(row) for row in rows]
    if len(set(lengths)) == 1:
        return
    half = len(rows) // 2
    usual = max(set(lengths), key=lengths.count)
    odd = next(i for i, n in enumerate(lengths) if n != usual)
    name = f"clean prompt {odd}" if odd < half else f"corrupted prompt {odd - half}"
    raise PromptError(
        f"All prompts must have the same number of tokens, or their positions do not line up. {name} has "
        f"{lengths[odd]}, others {usual}: {model.to_str_tokens(rows[odd])}"
    )
