"""Checks of notebook 41, the IOI circuit: finding it."""

from functools import cache

import torch
from torch import Tensor

import mechlab as ml
from mechlab_course.checking import close, declare, only_wrong, random, refuse, seeded
from mechlab_course.exercises import Attempt, NotYet, checker


def _prompts(seed: int, count: int, length: int, people: int):
    draw = seeded(seed + 50)
    names = torch.randperm(400, generator=draw)[:people] + 1000
    tokens = torch.randint(1, 900, (count, length), generator=draw)
    places = torch.stack([torch.randperm(length, generator=draw)[:3] for _ in range(count)])
    for row, at in enumerate(places):
        io, s = names[torch.randperm(people, generator=draw)[:2]]
        tokens[row, at] = torch.stack([io, s, s])
    return tokens, places, names


def _renamed(attempt: Attempt, tokens: Tensor, places: Tensor, names: Tensor, seed: int) -> Tensor:
    given = (tokens, places, names, seeded(seed))
    return attempt.tensor(*given, shape=tuple(tokens.shape), axes="prompt, pos", whole=True)


@checker("41.1")
def check_names(attempt: Attempt) -> str:
    for seed, count, length, people in ((0, 6, 15, 12), (1, 3, 9, 7), (2, 40, 12, 9)):
        tokens, places, names = _prompts(seed, count, length, people)
        found = _renamed(attempt, tokens, places, names, seed)
        _only_at(found, tokens, places)
        _three_of(names, found.gather(1, places), tokens.gather(1, places))
    one, same, other = (_renamed(attempt, tokens, places, names, seed) for seed in (5, 5, 6))
    refuse(
        not torch.equal(one, same) or torch.equal(one, other),
        "The same generator must give the same names, and another one others: draw with `generator`.",
    )
    _fair(attempt)
    return (
        "Three different new names in each prompt, nothing else touched, and every free name has its chance."
    )


def _only_at(found: Tensor, tokens: Tensor, places: Tensor) -> None:
    """Changed at all three places, and nowhere else."""
    refuse(torch.equal(found, tokens), "Nothing is changed. Do you return the changed copy?")
    allowed = torch.zeros_like(tokens, dtype=torch.bool).scatter_(1, places, True)
    stray = ((found != tokens) & ~allowed).any(1)
    row = int(stray.int().argmax())
    why = f"Prompt {row} is changed at a position other than its three places, `places[{row}]`."
    refuse(stray.any(), why)
    why = "At one of the places still stands what stood there: one of its own names. Replace all three."
    refuse(((found == tokens) & allowed).any(), why)


def _three_of(names: Tensor, new: Tensor, old: Tensor) -> None:
    """Three different names of the list, none of the prompt's own, and not the same three in all prompts."""
    why = "At one of the places stands something that is none of `names`. Is it a number in the list?"
    refuse(not torch.isin(new, names).all(), why)
    why = "A prompt got one of its own names back. Leave its names out before you draw."
    refuse((new[:, :, None] == old[:, None]).any(), why)
    why = "Somebody is still named twice: two of the new names are equal. Draw without putting back."
    refuse(any(len(set(row)) < 3 for row in new.tolist()), why)
    why = "All prompts got the same three names. Each prompt needs its own draw."
    refuse(len(new) > 5 and (new == new[0]).all(), why)


def _fair(attempt: Attempt) -> None:
    """Over many prompts every free name turns up at every place."""
    tokens, places, names = _prompts(9, 1, 8, 6)
    tokens, places = tokens.repeat(300, 1), places.repeat(300, 1)
    free = names[~torch.isin(names, tokens[0])]
    for column in _renamed(attempt, tokens, places, names, 0).gather(1, places).T:
        shares = (column[:, None] == free).float().mean(0)
        refuse(
            shares.min() < 0.12 or shares.max() > 0.4,  # four free names: a quarter each
            "With four free names each should come about a quarter of the time at each place; yours come "
            f"{shares.min():.0%} to {shares.max():.0%}. Draw at random among all free names.",
        )


@cache
def _made(kind: str):
    return ml.tiny(kind)


def _tiny(kind: str):
    """A small model, without the hooks that an answer may have left on it."""
    _made(kind).reset_hooks(including_permanent=True)
    return _made(kind)


def _senders():
    """A head, two sets of prompts, and then one set twice; on models on which no hook may stay."""
    cases = (("gqa", 0, 1, 2, 7), ("gpt2", 1, 3, 3, 6), ("gqa", 1, 2, 1, 5), ("gpt2", 2, 0, 2, 6))
    for seed, (kind, layer, head, batch, length) in enumerate(cases):
        model, draw = _tiny(kind), seeded(seed)
        base, source = (torch.randint(5, 300, (batch, length), generator=draw) for _ in range(2))
        for other in (source, base):
            yield model, base, other, layer, head
            left = any(point.fwd_hooks for point in model.hook_dict.values())
            why = "Run it inside `with ml.intervene(model, hooks):`."
            refuse(left, f"Your hooks are still on the model. {why}")


def _sent(model, base, source, layer, head, reads=None, free=False, mlps=False, sends=None, at=slice(None)):
    """Logits of a run in which one head sends what it says on source; other things after a mistake.

    reads: what the model reads, if not base
    free:  the other heads are not held at base
    mlps:  MLPs are held too
    sends: all heads that send
    at:    the positions at which they do
    """
    old, new = (model.run_with_cache(tokens)[1] for tokens in (base, source))
    sends = sends or [head]

    def put(value, hook):
        value = (value if free else old[hook.name]).clone()
        if hook.name == f"blocks.{layer}.attn.hook_z":
            value[:, at, sends] = new[hook.name][:, at, sends]
        return value

    parts = ["attn.hook_z", "hook_mlp_out"] if mlps else ["attn.hook_z"]
    names = [f"blocks.{n}.{part}" for n in range(model.cfg.n_layers) for part in parts]
    with ml.intervene(model, [(name, put) for name in names]):
        return model(base if reads is None else reads)


@declare(
    "41.2",
    axes="prompt, pos, d_vocab",
    tolerance=1e-3,
    says="On two models: the sender speaks as on source, all other heads as on base, and MLPs answer to it.",
)
class Sent:
    cases = _senders
    right = _sent

    def otherwise(found, model, base, source, layer, head):
        if torch.equal(base, source):
            what = "the logits must be those of a plain run on base."
            return f"With source equal to base nothing is sent: {what}"
        return only_wrong(found, _sent(model, base, source, layer, head))

    def nothing(model, base, source, layer, head):
        """Nothing is sent: these are the logits of a plain run on base."""
        return model(base)

    def later_free(*case):
        """Later heads are free here: they read the change and pass it on. Hold them."""
        return _sent(*case, free=True)

    def mlps_held(*case):
        """The MLPs are held. They and the norms must be computed anew."""
        return _sent(*case, mlps=True)

    def whole_layer(model, *case):
        """The whole layer is taken from source. Only one head sends."""
        return _sent(model, *case, sends=[*range(model.cfg.n_heads)])

    def exchanged(model, base, source, layer, head):
        """base and source are exchanged."""
        return _sent(model, source, base, layer, head)

    def reads_source(model, base, source, layer, head):
        """The heads are right, but the model must read base, and it reads source."""
        return _sent(model, base, source, layer, head, reads=source)

    def held_at_source(model, base, source, layer, head):
        """All other heads are held at source. Hold them at base."""
        return _sent(model, source, source, layer, head, reads=base)

    def sender_at_base(model, base, source, layer, head):
        """The sender is held at base, and all others at source: exchanged."""
        return _sent(model, source, base, layer, head, reads=base)

    def last_position(*case):
        """The sender speaks at the last position only. Patch all positions."""
        return _sent(*case, at=slice(-1, None))


def _reader_case(seed: int, batch: int, heads: int, kv: int, count: int, head: int, at: int):
    later = torch.ones(count, count).triu(1).bool()
    pattern = random(batch, heads, count, count, seed=seed).masked_fill(later, -torch.inf).softmax(-1)
    return pattern, *(random(batch, count, kv, 3, seed=seed + more) for more in (9, 18)), head, at


def _sharing(pattern, v):
    """How many query heads share a value head."""
    return pattern.shape[1] // v.shape[2]


def _read(pattern, v, new, head, at, looks=None, number=None):
    """What the head hands on with new values `at` one position or several."""
    number = head // _sharing(pattern, v) if number is None else number
    changed = v[:, :, number].clone()
    changed[:, at] = new[:, at, number]
    return pattern[:, head if looks is None else looks] @ changed


# batch, heads, value heads, positions, head, at
SIZES = ((2, 6, 2, 5, 1, 2), (3, 9, 3, 4, 7, 0), (1, 4, 4, 6, 2, 3), (2, 8, 2, 5, 6, 1), (2, 9, 3, 7, 5, 4))


@declare(
    "41.3",
    axes="prompt, query, d_head",
    says="Right for five ways of sharing; and with the old values two models hand on what they did.",
)
class Reader:
    cases = tuple(_reader_case(seed, *sizes) for seed, sizes in enumerate(SIZES))
    right = _read

    def further(attempt):
        for kind in ("gqa", "gpt2"):
            _, cache = _tiny(kind).run_with_cache(torch.arange(10, 17)[None])
            pattern, v, z = (cache[f"blocks.1.attn.hook_{part}"] for part in ("pattern", "v", "z"))
            for head, mine in enumerate(z.unbind(2)):
                wanted = {"shape": tuple(mine.shape), "axes": "prompt, query, d_head"}
                found = attempt.tensor(pattern, v, v, head, 3, **wanted)
                why = f"with the values it had, head {head} must hand on what it did."
                refuse(not close(found, mine), f"In a small model ({kind}), {why}")

    def nothing(pattern, v, new, head, at):
        """Nothing is changed: that is the head with its old values."""
        return _read(pattern, v, v, head, at)

    def every_position(pattern, v, new, head, at):
        """The value is new at every position. Only the one at `at` should be."""
        return _read(pattern, new, new, head, at)

    def exchanged(pattern, v, new, head, at):
        """The old and the new values are exchanged."""
        return _read(pattern, new, v, head, at)

    def strided(pattern, v, new, head, at):
        """Query heads that share are neighbouring: divide by how many share, take no remainder."""
        return _read(pattern, v, new, head, at, number=head % v.shape[2])

    def by_value_heads(pattern, v, new, head, at):
        """Divide by how many query heads share, not by the number of value heads."""
        return _read(pattern, v, new, head, at, number=head // v.shape[2] % v.shape[2])

    def others_gone(pattern, v, new, head, at):
        """What the head reads at other positions is gone. Only one value changes."""
        return _read(pattern, 0 * v, new, head, at)

    def change_alone(pattern, v, new, head, at):
        """That is only the change. The head hands on the rest too."""
        return _read(pattern, 0 * v, new - v, head, at)

    def added(pattern, v, new, head, at):
        """The new value was added to the old one. Put it in its place."""
        return _read(pattern, v, v + new, head, at)

    def up_to_it(pattern, v, new, head, at):
        """You changed all positions up to `at`. Only that one is new."""
        return _read(pattern, v, new, head, slice(at + 1))

    def shared_pattern(pattern, v, new, head, at):
        """That is another query head's pattern: each has its own, also where values are shared."""
        share = _sharing(pattern, v)
        return _read(pattern, v, new, head, at, looks=head // share * share)


LOOKS, WAYS, SERVES = ("end→IO", "end→S2", "S2→S1"), (None, "for", "against"), ("logits", "queries")


def _heads():
    """Sixty heads: evidence, rules, limits."""
    draw = seeded(4)
    rand = lambda: torch.rand((), generator=draw).item()
    pick = lambda options: options[int(rand() * len(options))]
    for trial in range(60):
        names = [f"role {number}" for number in range(2 + trial % 4)]
        rules = {name: (pick(LOOKS), pick(WAYS), pick(SERVES), pick((1, -1))) for name in names}
        low_high = {"attention": (0.1, 0.3), "copying": (0.2, 0.4), "path": (0.01, 0.04)}
        limits = {name: low + more * rand() for name, (low, more) in low_high.items()}
        evidence = {name: rand() for name in (*LOOKS, "for", "against")}
        evidence |= {name: 0.2 * rand() - 0.1 for name in SERVES}
        if trial % 3 == 0:  # right at the limits
            at_limits = (LOOKS[trial % 2], "for", "logits")
            evidence |= dict(zip(at_limits, limits.values(), strict=True))
        yield evidence, rules, limits


def _fit(evidence, rules, limits, *, without: str = "", sign: bool = True, strict: bool = False) -> list[str]:
    """The roles that fit; after a mistake without some evidence, signs, or what is right at a limit."""

    def fits(looks, copies, serves, way) -> bool:
        effect = way * evidence[serves] if sign else abs(evidence[serves])
        asked = {"attention": evidence[looks], "copying": evidence.get(copies, torch.inf), "path": effect}
        over = lambda kind, x: x > limits[kind] if strict else x >= limits[kind]
        return all(over(kind, x) or kind == without for kind, x in asked.items())

    return [role for role, rule in rules.items() if fits(*rule)]


@checker("41.4")
def check_roles(attempt: Attempt) -> str:
    for evidence, rules, limits in _heads():
        given = (dict(evidence), dict(rules), dict(limits))
        found, expected = attempt(*given), _fit(evidence, rules, limits)
        changed = given != (evidence, rules, limits)
        refuse(changed, "Your function changes a dictionary it was given. Only read from them.")
        if not isinstance(found, (list, tuple)) or not all(isinstance(role, str) for role in found):
            got = f"you returned {str(found)[:60]!r}."
            raise NotYet(f"Return a list of names of roles, empty if none fits; {got}")
        for why, like in _misfits(expected, evidence, rules, limits).items():
            refuse(list(found) == like != expected, why)
        what = f"With {evidence}, {limits} and {rules} the roles are {expected}; yours are {found}."
        refuse(list(found) != expected, what)
    return "Sixty heads, with none, one or several roles, and some right at a limit."


def _misfits(expected: list[str], *given: dict) -> dict[str, list[str]]:
    fit = lambda **changed: _fit(*given, **changed)
    copying = [role for role in expected if given[1][role][1]]
    return {
        "Evidence right at a limit reaches it: compare with `>=`.": fit(strict=True),
        "The sign of the path counts: an effect in the wrong direction is no evidence.": fit(sign=False),
        "A head that serves nobody has no role: the path effect must reach its limit too.": fit(
            without="path"
        ),
        "A head that does not copy as the rule asks does not have that role.": fit(without="copying"),
        "A head that does not look at the place does not have that role.": fit(without="attention"),
        "You stopped at the first role that fits. A second role makes the head ambiguous: "
        "return both.": expected[:1],
        "Only the last role that fits is there. Collect all of them.": expected[-1:],
        "You gave no role where two fit. Return both: that is what ambiguous means here.": [],
        "A rule whose `copies` is None does not ask for copying; do not leave it out.": copying,
    }


PLACE, TOKEN = torch.tensor([1.0, -1.0]), torch.tensor([1.0, 0.0, -1.0])


def _scaled(table, a, b):
    """The fit, its two numbers taken so many times."""
    return torch.stack([a * (table * PLACE).sum() / 6, b * (table * TOKEN[:, None]).sum() / 4])


def _flat(table, place, token):
    """The fit to the six cells in a row."""
    return torch.linalg.lstsq(torch.stack([place, token], 1), table.reshape(6, 1)).solution[:, 0]


@declare(
    "41.5",
    axes="place, token",
    says="Exact where the table is a sum of the two, and least squares where it is not: "
    "2.31 and 0.99 for the paper's.",
)
class PlaceAndToken:
    cases = (
        (2.0 * PLACE - 0.5 * TOKEN[:, None],),
        (torch.tensor([[3.55, -0.99], [2.45, -1.96], [1.77, -3.16]]),),  # the paper's
        *((3 * random(3, 2, seed=seed),) for seed in range(4)),
        (random(3, 2, seed=9) + 5,),
    )

    def right(table):
        return _scaled(table, 1, 1)

    def exchanged(table):
        """The two are exchanged: place first, token second."""
        return _scaled(table, 1, 1).flip(0)

    def other_order(table):
        """The cells of `table.reshape(6)` go row by row; your places and tokens go another way."""
        return _flat(table, PLACE.repeat_interleave(3), TOKEN.repeat(2))

    def not_halved(table):
        """From 1 to −1 the difference changes by twice the coefficient: take half of it."""
        return _scaled(table, 2, 2)

    def token_not_halved(table):
        """The place is right; of the token's change from 1 to −1 take half of it."""
        return _scaled(table, 1, 2)

    def place_not_halved(table):
        """The token is right; of the place's change from 1 to −1 take half of it."""
        return _scaled(table, 2, 1)

    def one_row_and_column(table):
        """You used one row and one column. The fit takes all six cells."""
        return (table[0, 0] - table[[0, 2], [1, 0]]) / 2

    def by_six(table):
        """Only four of six cells tell about the token: divide by 4, not by 6."""
        return _scaled(table, 1, 4 / 6)

    def both_signs(table):
        """Both signs are turned round: same is 1, opposite and IO's are −1."""
        return _scaled(table, -1, -1)

    def sign_of_place(table):
        """The place's sign is turned round: same is 1."""
        return _scaled(table, -1, 1)

    def sign_of_token(table):
        """The token's sign is turned round: the same token is 1, IO's −1."""
        return _scaled(table, 1, -1)

    def tokens_from_zero(table):
        """Tokens are 1, 0 and −1, not 2, 1 and 0."""
        return _flat(table, PLACE.repeat(3), (TOKEN + 1).repeat_interleave(2))
