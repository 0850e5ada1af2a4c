"""Checks of notebook 41, the IOI circuit: finding it."""

from functools import cache

import torch
from torch import Tensor

import mechlab as ml
from mechlab_course.checking import close, must_equal, random, seeded
from mechlab_course.exercises import Attempt, NotYet, checker


@checker("41.1")
def check_names(attempt: Attempt) -> str:
    for seed, count, length, people in ((0, 6, 15, 12), (1, 3, 9, 7), (2, 40, 12, 9)):
        tokens, places, names = _prompts(seed, count, length, people)
        found = _renamed(attempt, tokens, places, names, seed)
        if torch.equal(found, tokens):
            raise NotYet("Nothing is changed. Do you return the changed copy?")
        _only_at(found, tokens, places)
        new, old = found.gather(1, places), tokens.gather(1, places)
        if not torch.isin(new, names).all():
            raise NotYet(
                "At one of the places stands something that is none of `names`. Is it a number in the list?"
            )
        if (new[:, :, None] == old[:, None]).any():
            raise NotYet("A prompt got one of its own names back. Leave its names out before you draw.")
        if any(len(set(row)) < 3 for row in new.tolist()):
            raise NotYet(
                "Somebody is still named twice: two of the new names are equal. Draw without putting back."
            )
        if count > 5 and (new == new[0]).all():
            raise NotYet("All prompts got the same three names. Each prompt needs its own draw.")
    again = [_renamed(attempt, tokens, places, names, seed) for seed in (5, 5, 6)]
    if not torch.equal(again[0], again[1]) or torch.equal(again[0], again[2]):
        raise NotYet(
            "The same generator must give the same names, and another one others: draw with `generator`."
        )
    _fair(attempt)
    return (
        "Three different new names in each prompt, nothing else touched, and every free name has its chance."
    )


def _renamed(attempt: Attempt, tokens: Tensor, places: Tensor, names: Tensor, seed: int) -> Tensor:
    given = (tokens, places, names, seeded(seed))
    return attempt.tensor(*given, shape=tuple(tokens.shape), axes="prompt, pos", whole=True)


def _prompts(seed: int, count: int, length: int, people: int):
    draw = seeded(seed + 50)
    names = torch.randperm(400, generator=draw)[:people] + 1000
    tokens = torch.randint(1, 900, (count, length), generator=draw)
    places = torch.stack([torch.randperm(length, generator=draw)[:3] for _ in range(count)])
    for row, at in enumerate(places):
        io, s = names[torch.randperm(people, generator=draw)[:2]]
        tokens[row, at] = torch.stack([io, s, s])
    return tokens, places, names


def _only_at(found: Tensor, tokens: Tensor, places: Tensor) -> None:
    allowed = torch.zeros_like(tokens, dtype=torch.bool).scatter_(1, places, True)
    stray = ((found != tokens) & ~allowed).any(1)
    if stray.any():
        row = int(stray.int().argmax())
        raise NotYet(f"Prompt {row} is changed at a position other than its three places, `places[{row}]`.")
    if ((found == tokens) & allowed).any():
        raise NotYet(
            "At one of the places still stands what stood there: one of its own names. Replace all three."
        )


def _fair(attempt: Attempt) -> None:
    """Over many prompts every free name turns up at every place."""
    tokens, places, names = _prompts(9, 1, 8, 6)
    tokens, places = tokens.repeat(300, 1), places.repeat(300, 1)
    free = names[~torch.isin(names, tokens[0])]
    for column in _renamed(attempt, tokens, places, names, 0).gather(1, places).T:
        shares = (column[:, None] == free).float().mean(0)
        if shares.min() < 0.12 or shares.max() > 0.4:  # four free names: a quarter each
            raise NotYet(
                "With four free names each should come about a quarter of the time at each place; yours come "
                f"{shares.min():.0%} to {shares.max():.0%}. Draw at random among all free names."
            )


@cache
def _tiny(kind: str):
    return ml.tiny(kind)


@checker("41.2")
def check_path(attempt: Attempt) -> str:
    cases = [("gqa", 0, 1, 2, 7), ("gpt2", 1, 3, 3, 6), ("gqa", 1, 2, 1, 5), ("gpt2", 2, 0, 2, 6)]
    for seed, (kind, layer, head, batch, length) in enumerate(cases):
        model, draw = _tiny(kind), seeded(seed)
        base, source = (torch.randint(5, 300, (batch, length), generator=draw) for _ in range(2))
        before = _hooks(model)
        wanted = {"shape": (batch, length, model.cfg.d_vocab), "axes": "prompt, pos, d_vocab"}
        found = attempt.tensor(model, base, source, layer, head, **wanted)
        if _hooks(model) != before:
            model.reset_hooks(including_permanent=True)
            raise NotYet(
                "Your hooks are still on the model. Run it inside `with ml.intervene(model, hooks):`."
            )
        must_equal(found, *_paths(model, base, source, layer, head), 1e-3)
        same = attempt.tensor(model, base, base, layer, head, **wanted)
        if not close(same, model(base), 1e-3):
            raise NotYet(
                "With source equal to base nothing is sent: the logits must be those of a plain run on base."
            )
    return "On two models: the sender speaks as on source, all other heads as on base, and MLPs answer to it."


def _hooks(model) -> int:
    return sum(len(point.fwd_hooks) for point in model.hook_dict.values())


@torch.no_grad()
def _paths(model, base: Tensor, source: Tensor, layer: int, head: int) -> tuple[Tensor, dict[str, Tensor]]:
    """The right logits, and those of likely mistakes."""
    caches = {"base": model.run_with_cache(base)[1], "source": model.run_with_cache(source)[1]}
    layers, heads = range(model.cfg.n_layers), range(model.cfg.n_heads)
    z = [f"blocks.{n}.attn.hook_z" for n in layers]

    def run(tokens, held="base", sender="source", others=layers, mlps=False, sends=(head,), at=slice(None)):
        def put(value, hook):
            n = int(hook.name.split(".")[1])
            new = (caches[held][hook.name] if n in others or "mlp" in hook.name else value).clone()
            if hook.name == z[layer]:
                for each in sends:
                    new[:, at, each] = caches[sender][hook.name][:, at, each]
            return new

        names = z + [f"blocks.{n}.hook_mlp_out" for n in layers if mlps]
        with ml.intervene(model, [(name, put) for name in names]):
            return model(tokens)

    return run(base), {
        "Nothing is sent: these are the logits of a plain run on base.": model(base),
        "Later heads are free here: they read the change and pass it on. Hold them.": run(base, others=()),
        "Only the sender's layer is held. Hold every other head, in all layers.": run(base, others=(layer,)),
        "The MLPs are held. They and the norms must be computed anew.": run(base, mlps=True),
        "The whole layer is taken from source. Only one head sends.": run(base, sends=heads),
        "base and source are exchanged.": run(source, "source", "base"),
        "The heads are right, but the model must read base, and it reads source.": run(source),
        "All other heads are held at source. Hold them at base.": run(base, "source", "source"),
        "The sender is held at base, and all others at source: exchanged.": run(base, "source", "base"),
        "The sender speaks at the last position only. Patch all positions.": run(base, at=slice(-1, None)),
    }


@checker("41.3")
def check_reader(attempt: Attempt) -> str:
    shapes = [
        (2, 6, 2, 5, 1, 2),
        (3, 9, 3, 4, 7, 0),
        (1, 4, 4, 6, 2, 3),
        (2, 8, 2, 5, 6, 1),
        (2, 9, 3, 7, 5, 4),
    ]
    for seed, (batch, heads, kv, count, head, at) in enumerate(shapes):
        later = torch.ones(count, count).triu(1).bool()
        pattern = random(batch, heads, count, count, seed=seed).masked_fill(later, -torch.inf).softmax(-1)
        v, new = (random(batch, count, kv, 3, seed=seed + more) for more in (9, 18))
        found = attempt.tensor(
            pattern, v, new, head, at, shape=(batch, count, 3), axes="prompt, query, d_head"
        )
        must_equal(found, *_readings(pattern, v, new, head, at))
    for kind in ("gqa", "gpt2"):
        _, cache = _tiny(kind).run_with_cache(torch.arange(10, 17)[None])
        pattern, v, z = (cache[f"blocks.1.attn.hook_{part}"] for part in ("pattern", "v", "z"))
        for head in range(4):
            mine = z[:, :, head]
            found = attempt.tensor(
                pattern, v, v, head, 3, shape=tuple(mine.shape), axes="prompt, query, d_head"
            )
            if not close(found, mine):
                raise NotYet(
                    f"In a small model ({kind}), with the values it had, head {head} must hand on what it did."
                )
    return "Right for five ways of sharing; and with the old values two models hand on what they did."


def _readings(
    pattern: Tensor, v: Tensor, new: Tensor, head: int, at: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """What the head hands on, and what it would after likely mistakes."""
    kv, count = v.shape[2], v.shape[1]
    share = pattern.shape[1] // kv

    def read(places=(at,), number=head // share, old=v, fresh=new, looks=head):
        changed = old[:, :, number % kv].clone()
        changed[:, list(places)] = fresh[:, list(places), number % kv]
        return pattern[:, looks] @ changed

    mine, gone = head // share, "What the head reads at other positions is gone. Only one value changes."
    return read(), {
        "Nothing is changed: that is the head with its old values.": read(()),
        "The value is new at every position. Only the one at `at` should be.": read(range(count)),
        "The old and the new values are exchanged.": read(old=new, fresh=v),
        "Query heads that share are neighbouring: divide by how many share, take no remainder.": read(
            number=head % kv
        ),
        "Divide by how many query heads share, not by the number of value heads.": read(number=head // kv),
        gone: pattern[:, head, :, at, None] * new[:, at, None, mine],
        "That is only the change. The head hands on the rest too.": read() - read(()),
        "The new value was added to the old one. Put it in its place.": read(fresh=v + new),
        "You changed all positions up to `at`. Only that one is new.": read(range(at + 1)),
        "That is another query head's pattern: each has its own, also where values are shared.": read(
            looks=mine * share
        ),
    }


@checker("41.4")
def check_roles(attempt: Attempt) -> str:
    draw = seeded(4)
    rand = lambda: torch.rand((), generator=draw).item()
    pick = lambda options: options[int(rand() * len(options))]
    looks, ways, readers = ("end→IO", "end→S2", "S2→S1"), (None, "for", "against"), ("logits", "queries")
    for trial in range(60):
        names = [f"role {number}" for number in range(2 + trial % 4)]
        rules = {name: (pick(looks), pick(ways), pick(readers), pick((1, -1))) for name in names}
        limits = {
            "attention": 0.1 + 0.3 * rand(),
            "copying": 0.2 + 0.4 * rand(),
            "path": 0.01 + 0.04 * rand(),
        }
        evidence = {name: rand() for name in (*looks, "for", "against")}
        evidence |= {reader: 0.2 * rand() - 0.1 for reader in readers}
        if trial % 3 == 0:  # right at the limits
            evidence |= {
                looks[trial % 2]: limits["attention"],
                "for": limits["copying"],
                "logits": limits["path"],
            }
        _compare(attempt, evidence, rules, limits)
    return "Sixty heads, with none, one or several roles, and some right at a limit."


def _compare(attempt: Attempt, evidence: dict, rules: dict, limits: dict) -> None:
    def fit(*, without: str = "", sign: bool = True, strict: bool = False) -> list[str]:
        kept = []
        for role, (looks, copies, serves, way) in rules.items():
            effect = way * evidence[serves] if sign else abs(evidence[serves])
            asked = {"attention": evidence[looks], "copying": evidence.get(copies, torch.inf), "path": effect}
            held = [(x > limits[k] if strict else x >= limits[k]) or k == without for k, x in asked.items()]
            kept += [role] if all(held) else []
        return kept

    given = (dict(evidence), dict(rules), dict(limits))
    found, expected = attempt(*given), fit()
    if given != (evidence, rules, limits):
        raise NotYet("Your function changes a dictionary it was given. Only read from them.")
    if not isinstance(found, (list, tuple)) or not all(isinstance(role, str) for role in found):
        raise NotYet(
            f"Return a list of names of roles, empty if none fits; you returned {str(found)[:60]!r}."
        )
    mistakes = {
        "Evidence right at a limit reaches it: compare with `>=`.": fit(strict=True),
        "The sign of the path counts: an effect in the wrong direction is no evidence.": fit(sign=False),
        "A head that serves nobody has no role: the path effect must reach its limit too.": fit(without="path"),
        "A head that does not copy as the rule asks does not have that role.": fit(without="copying"),
        "A head that does not look at the place does not have that role.": fit(without="attention"),
        "You stopped at the first role that fits. A second role makes the head ambiguous: return both.": expected[:1],
        "Only the last role that fits is there. Collect all of them.": expected[-1:],
        "You gave no role where two fit. Return both: that is what ambiguous means here.": [],
        "A rule whose `copies` is None does not ask for copying; do not leave it out.": [r for r in expected if rules[r][1]],
    }  # fmt: skip
    for why, like in mistakes.items():
        if list(found) == like != expected:
            raise NotYet(why)
    if list(found) != expected:
        raise NotYet(f"With {evidence}, {limits} and {rules} the roles are {expected}; yours are {found}.")


@checker("41.5")
def check_fit(attempt: Attempt) -> str:
    paper = torch.tensor([[3.55, -0.99], [2.45, -1.96], [1.77, -3.16]])
    place, token = torch.tensor([1.0, -1.0]), torch.tensor([1.0, 0.0, -1.0])
    exact = 2.0 * place - 0.5 * token[:, None]
    for table in (
        exact,
        paper,
        *(3 * random(3, 2, seed=seed) for seed in range(4)),
        random(3, 2, seed=9) + 5,
    ):
        a, b = (table * place).sum() / 6, (table * token[:, None]).sum() / 4
        must_equal(attempt.tensor(table, shape=(2,), axes="place, token"), *_fits(table, a, b, place, token))
    return "Exact where the table is a sum of the two, and least squares where it is not: 2.31 and 0.99 for the paper's."


def _fits(
    table: Tensor, a: Tensor, b: Tensor, place: Tensor, token: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    def flat(one, two):
        return torch.linalg.lstsq(torch.stack([one, two], 1), table.reshape(6, 1)).solution[:, 0]

    row_by_row = "The cells of `table.reshape(6)` go row by row; your places and tokens go another way."
    return torch.stack([a, b]), {
        "The two are exchanged: place first, token second.": torch.stack([b, a]),
        row_by_row: flat(place.repeat_interleave(3), token.repeat(2)),
        "From 1 to −1 the difference changes by twice the coefficient: take half of it.": torch.stack(
            [2 * a, 2 * b]
        ),
        "The place is right; of the token's change from 1 to −1 take half of it.": torch.stack([a, 2 * b]),
        "The token is right; of the place's change from 1 to −1 take half of it.": torch.stack([2 * a, b]),
        "You used one row and one column. The fit takes all six cells.": (table[0, 0] - table[[0, 2], [1, 0]])
        / 2,
        "Only four of six cells tell about the token: divide by 4, not by 6.": torch.stack([a, b * 4 / 6]),
        "Both signs are turned round: same is 1, opposite and IO's are −1.": torch.stack([-a, -b]),
        "The place's sign is turned round: same is 1.": torch.stack([-a, b]),
        "The token's sign is turned round: the same token is 1, IO's −1.": torch.stack([a, -b]),
        "Tokens are 1, 0 and −1, not 2, 1 and 0.": flat(place.repeat(3), (token + 1).repeat_interleave(2)),
    }
