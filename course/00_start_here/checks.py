"""Checks of notebook 00, start here."""

import re

import numpy as np
import torch

from mechlab.circuits.ioi import ioi_prompts
from mechlab.metrics import logit_difference
from mechlab.prompts import PromptError, single_token
from mechlab.runs.hooks import intervene, replace_head
from mechlab_course.checking import close, must_equal, random, refuse, whole_number
from mechlab_course.exercises import Attempt, NotYet, checker


@checker("00.1")
def check_logit_difference(attempt: Attempt) -> str:
    for seed in (0, 1):
        logits = random(6 + seed, 11, seed=seed) * 3
        _difference(attempt, logits, 2, 7)
        _difference(attempt, logits, 10, 0)
    shifted = torch.as_tensor(attempt(logits + 5.0, 2, 7)).reshape(()).float()
    changes = not close(shifted, logits[-1, 2] - logits[-1, 7])
    refuse(changes, "Adding 5 to every logit must not change the difference, and with yours it does.")
    return "Last row, right sign, and a constant added to every logit changes nothing."


def _difference(attempt: Attempt, logits: torch.Tensor, answer: int, rival: int) -> None:
    found = attempt(logits, answer, rival)
    kinds = int | float | np.number | np.ndarray | torch.Tensor
    refuse(not isinstance(found, kinds), f"Return one number; you returned a {type(found).__name__}.")
    found = torch.as_tensor(found).float()
    which = "one number is needed. Which row of `logits` speaks about the next token?"
    refuse(found.numel() != 1, f"You returned {found.numel()} numbers; {which}")
    found, mine, other, p = found.reshape(()), logits[:, answer], logits[:, rival], logits[-1].softmax(-1)
    expected = mine[-1] - other[-1]
    mistakes = {
        "Leave out the absolute value: the sign says which of the two scores higher.": expected.abs(),
        "You took the first row. The first row speaks about the token after the first token; the next "
        "token after the whole prompt is in the last row, index -1.": mine[0] - other[0],
        "The sign is the other way round: it must be positive when the answer scores higher "
        "than the rival.": -expected,
        "You took the mean of the rows. The last one speaks about the next token: index -1.": (
            (mine - other).mean()
        ),
        "You took the largest logit. Take that of `answer`.": logits[-1].max() - other[-1],
        "You divided. The difference is wanted: subtract.": mine[-1] / other[-1],
        "Your result is a whole number: leave out `int`.": expected.trunc(),
        "These are probabilities: leave out the softmax and subtract the logits.": p[answer] - p[rival],
        "These are log-probabilities of one token only: subtract the rival's.": p[answer].log(),
    }
    given = f"For logits[-1, answer] = {mine[-1]:.4f} and logits[-1, rival] = {other[-1]:.4f}"
    wrong = f"{given} you returned {found:.4f}; expected {expected:.4f}."
    must_equal(found, expected, mistakes, otherwise=lambda: wrong)


@checker("00.2")
def check_my_sentence(attempt: Attempt, model) -> str:
    result = attempt()
    strings = isinstance(result, tuple) and all(isinstance(part, str) for part in result)
    refuse(not strings or len(result) != 4, 'Return four strings: prompt, answer, rival and "+" or "-".')
    prompt, answer, rival, sign = result
    refuse(sign not in ("+", "-"), f'The sign must be "+" or "-", not {sign!r}.')
    ids = [_name(model, name) for name in (answer, rival)]
    end = "The prompt ends with a space or an empty line. The next token brings its own space, so a trailing "
    refuse(prompt != prompt.rstrip(), f"{end}one is a token of its own and spoils the guess.")
    tokens = model.to_tokens(prompt)
    n = tokens.shape[1]
    refuse(n > 200, f"The prompt has {n} tokens; one sentence is enough (at most 200).")
    _once_and_twice(prompt, (answer, rival), [(tokens == id).sum().item() for id in ids])
    with torch.no_grad():
        value = logit_difference(*ids)(model(tokens)).item()
    refuse(
        (value > 0) != (sign == "+"),
        f'You predicted "{sign}" and the model disagrees: the logit difference is {value:+.2f}. Is the '
        "answer the name that occurs once? (If you are sure that the model is wrong, you have found "
        "something: change the sign and note it down.)",
    )
    return f"Measured {value:+.2f} logits, and you predicted the sign."


def _name(model, name: str) -> int:
    """The token of a name that can be used here."""
    spaced, word = f"inside a sentence the token is {' ' + name!r}.", name.strip()
    refuse(not name.startswith(" "), f"{name!r} needs a leading space: {spaced}")
    people = "does not look like a name: the sentence should be about two people."
    refuse(not word[:1].isupper(), f"{name!r} {people}")
    others = "Choose names other than John and Mary: the point is to test the model on new ones."
    refuse(word in ("John", "Mary"), others)
    try:
        return single_token(model, name)
    except PromptError as error:
        raise NotYet(str(error)) from None


def _once_and_twice(prompt: str, names: tuple[str, str], counts: list[int]) -> None:
    if sorted(counts) == [1, 2]:
        return
    a, b = (name.strip() for name in names)
    seen = [len(re.findall(rf"\b{re.escape(word)}\b", prompt)) for word in (a, b)]
    refuse(
        sorted(seen) == [1, 2],
        "Do not begin with a name, and do not put one in quotes: without a space before it, a name is "
        f"another token. As {names[0]!r} and {names[1]!r} they occur {counts[0]} and {counts[1]} times.",
    )
    wanted = "One of them must occur once and the other twice."
    raise NotYet(f"{a} occurs {seen[0]} times and {b} {seen[1]} times. {wanted}")


FORMS = (  # none of the notebook's sentences
    "Later {first} and {second} stayed in the {place}, {subject} lent a {object} to",
    "Maybe {first} and {second} rested at the {place}, {subject} threw a {object} to",
    "Yesterday {first} and {second} met at the {place}, and {subject} handed a {object} to",
)
PEOPLE = ("Bill", "Bob", "Dan", "Frank", "Fred", "Gary", "Rose", "Grace", "Eva", "Anne", "Joan", "Betty")


@checker("00.3")
def check_holding_back(attempt: Attempt, model) -> str:
    found = attempt()
    two = isinstance(found, (tuple, list)) and len(found) == 2
    refuse(not two, "Return two whole numbers, the layer and the head: `return 23, 3`.")
    layer, head = whole_number(found[0], "a layer"), whole_number(found[1], "a head")
    there = 0 <= layer < model.cfg.n_layers and 0 <= head < model.cfg.n_heads
    refuse(not there, f"There is no head {layer}.{head}: layers go from 0 to 29, heads from 0 to 8.")
    gains, ways = [], []
    with torch.no_grad():
        for prompts in ioi_prompts(model, 18, templates=FORMS, names=PEOPLE, seed=5).by_length():
            others = prompts.corrupted("flip")
            before, (turned, cache) = (
                prompts.metric(model(prompts.tokens)),
                model.run_with_cache(others.tokens),
            )
            with intervene(model, replace_head(model, (layer, head), cache)):
                gains.append(prompts.metric(model(prompts.tokens)) - before)
            ways.append(before - prompts.metric(turned))
    gain, way = torch.cat(gains), torch.cat(ways).mean().item()
    mean, most = gain.mean().item(), int((gain > 0).sum())
    told = f"On {len(gain)} new sentences the difference changes by {mean:+.2f} with {layer}.{head} replaced"
    least, what = 0.04 * way, "a rise is wanted, in most of them."
    refuse(mean < -least, f"{told}: it falls, so the head works for the answer.")
    refuse(mean < least, f"{told}: that hardly moves it. A rise of {least:.1f} is wanted.")
    refuse(4 * most < 3 * len(gain), f"{told}, but it rises in {most} of them only; {what}")
    return f"{told}, and it rises in {most} of them: the head holds the answer back."
