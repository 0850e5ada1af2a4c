"""Checks of notebook 00, start here."""

import re

import numpy as np
import torch

from mechlab.prompts import PromptError, single_token
from mechlab_course.checking import close, is_like, random
from mechlab_course.exercises import Attempt, NotYet, checker


@checker("00.1")
def check_logit_difference(attempt: Attempt) -> str:
    for seed in (0, 1):
        logits = random(6 + seed, 11, seed=seed) * 3
        for answer, rival in ((2, 7), (10, 0)):
            found = attempt(logits, answer, rival)
            if not isinstance(found, int | float | np.number | np.ndarray | torch.Tensor):
                raise NotYet(f"Return one number; you returned a {type(found).__name__}.")
            found = torch.as_tensor(found).float()
            if found.numel() != 1:
                raise NotYet(
                    f"You returned {found.numel()} numbers; one number is needed. Which row of `logits` speaks about "
                    "the next token?"
                )
            p = logits.softmax(-1)
            expected = logits[-1, answer] - logits[-1, rival]
            if expected < 0 and close(found.reshape(()), expected.abs()):
                raise NotYet("Leave out the absolute value: the sign says which of the two scores higher.")
            mistakes = {
                "You took the first row. The first row speaks about the token after the first token; the next token "
                "after the whole prompt is in the last row, index -1.": logits[0, answer] - logits[0, rival],
                "The sign is the other way round: it must be positive when the answer scores higher than the rival.": -expected,
                "These are probabilities: leave out the softmax and subtract the logits.": p[-1, answer]
                - p[-1, rival],
                "These are log-probabilities of one token only: subtract the rival's.": logits[
                    -1
                ].log_softmax(-1)[answer],
            }
            is_like(found.reshape(()), mistakes)
            if not close(found.reshape(()), expected):
                raise NotYet(
                    f"For logits[-1, answer] = {logits[-1, answer]:.4f} and logits[-1, rival] = "
                    f"{logits[-1, rival]:.4f} you returned {found.item():.4f}; expected {expected:.4f}."
                )
        shifted = torch.as_tensor(attempt(logits + 5.0, 2, 7))
        if not close(shifted.reshape(()).float(), logits[-1, 2] - logits[-1, 7]):
            raise NotYet("Adding 5 to every logit must not change the difference, and with yours it does.")
    return "Last row, right sign, and a constant added to every logit changes nothing."


@checker("00.2")
def check_my_sentence(attempt: Attempt, model) -> str:
    result = attempt()
    if not isinstance(result, tuple) or len(result) != 4 or not all(isinstance(part, str) for part in result):
        raise NotYet('Return four strings: prompt, answer, rival and "+" or "-".')
    prompt, answer, rival, sign = result
    if sign not in ("+", "-"):
        raise NotYet(f'The sign must be "+" or "-", not {sign!r}.')
    for name in (answer, rival):
        if not name.startswith(" "):
            raise NotYet(f"{name!r} needs a leading space: inside a sentence the token is {' ' + name!r}.")
        if not name.strip()[:1].isupper():
            raise NotYet(f"{name!r} does not look like a name: the sentence should be about two people.")
        if name.strip() in ("John", "Mary"):
            raise NotYet("Choose names other than John and Mary: the point is to test the model on new ones.")
        try:
            single_token(model, name)
        except PromptError as error:
            raise NotYet(str(error)) from None
    if prompt != prompt.rstrip():
        raise NotYet(
            "The prompt ends with a space or an empty line. The next token brings its own space, so a trailing one is a "
            "token of its own and spoils the guess."
        )
    tokens = model.to_tokens(prompt)[0].tolist()
    if len(tokens) > 200:
        raise NotYet(f"The prompt has {len(tokens)} tokens; one sentence is enough (at most 200).")
    counts = [tokens.count(single_token(model, name)) for name in (answer, rival)]
    if sorted(counts) != [1, 2]:
        bare = [name.strip() for name in (answer, rival)]
        seen = [len(re.findall(rf"\b{re.escape(name)}\b", prompt)) for name in bare]
        if sorted(seen) == [1, 2]:
            raise NotYet(
                "Do not begin with a name, and do not put one in quotes: without a space before it, a name is another "
                f"token. As {answer!r} and {rival!r} they occur {counts[0]} and {counts[1]} times."
            )
        raise NotYet(
            f"{bare[0]} occurs {seen[0]} times and {bare[1]} {seen[1]} times. One of them must occur once and the "
            "other twice."
        )
    with torch.no_grad():
        logits = model(model.to_tokens(prompt))[0, -1]
    value = (logits[single_token(model, answer)] - logits[single_token(model, rival)]).item()
    if (value > 0) != (sign == "+"):
        raise NotYet(
            f'You predicted "{sign}" and the model disagrees: the logit difference is {value:+.2f}. Is the answer the name that occurs once? '
            "(If you are sure that the model is wrong, you have found something: change the sign and note it down.)"
        )
    return f"Measured {value:+.2f} logits, and you predicted the sign."
