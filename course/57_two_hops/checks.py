"""Checks of notebook 57, two hops."""

import torch
from torch import Tensor

import mechlab as ml
from mechlab.runs.run import Put, Run
from mechlab_course.checking import close, declare, random, refuse, seeded
from mechlab_course.exercises import Attempt, NotYet, checker


def _rows(size: Tensor, k: int, first: int = 0, last: bool = False) -> Tensor:
    size = size.clone()
    size[:first] = -torch.inf
    best = size.flatten().topk(k).indices
    return torch.stack(torch.unravel_index(best.flip(0) if last else best, size.shape), dim=1)


def _others(totals: Tensor, tested: int) -> Tensor:
    return totals[torch.arange(len(totals)) != tested]


@declare(
    "57.1",
    axes="k, (layer, neuron)",
    says="The largest by size, from the training pairs alone, in three tables.",
    whole=True,
)
class Supernode:
    cases = (
        (random(4, 6, 3, 7, seed=0), 1, 2, 5, 2),
        (random(5, 4, 5, 9, seed=1), 4, 0, 7, 1),
        (random(3, 7, 2, 8, seed=2), 0, 1, 6, 3),
    )

    def right(totals, tested, pos, k, first):
        return _rows(_others(totals, tested).mean(0)[:, pos].abs(), k, first)

    def all_pairs(totals, tested, pos, k, first):
        """The tested pair helped to choose. Leave it out, or the test is none."""
        return _rows(totals.mean(0)[:, pos].abs(), k, first)

    def the_tested(totals, tested, pos, k, first):
        """You chose on the tested pair alone. Choose on all the others."""
        return _rows(totals[tested, :, pos].abs(), k, first)

    def signed(totals, tested, pos, k, first):
        """You lost those far below zero. Size counts, either way: `abs`."""
        return _rows(_others(totals, tested).mean(0)[:, pos], k, first)

    def sizes_first(totals, tested, pos, k, first):
        """You averaged sizes. Average first: what rises in one pair and falls in another is not of it."""
        return _rows(_others(totals, tested).abs().mean(0)[:, pos], k, first)

    def one_pair(totals, tested, pos, k, first):
        """You chose on one training pair. Take the mean over all but the tested one."""
        return _rows(_others(totals, tested)[0, :, pos].abs(), k, first)

    def all_layers(totals, tested, pos, k, first):
        """Layers before `first` are among yours. There one would exchange the word itself."""
        return _rows(_others(totals, tested).mean(0)[:, pos].abs(), k)

    def one_layer_more(totals, tested, pos, k, first):
        """The layer `first` is allowed, and you leave it out."""
        return _rows(_others(totals, tested).mean(0)[:, pos].abs(), k, first + 1)

    def counted_from_first(totals, tested, pos, k, first):
        """Your layers are counted from `first`. Counted from 0, please: add it."""
        return _rows(_others(totals, tested).mean(0)[first:, pos].abs(), k)

    def all_positions(totals, tested, pos, k, first):
        """You added up the positions. Only what happens at `pos` counts."""
        return _rows(_others(totals, tested).mean(0).sum(1).abs(), k, first)

    def neuron_first(totals, tested, pos, k, first):
        """Your rows are (neuron, layer). The layer comes first."""
        return _rows(_others(totals, tested).mean(0)[:, pos].abs(), k, first).flip(1)

    def smallest_first(totals, tested, pos, k, first):
        """These are the right neurons in reverse. The largest comes first."""
        return _rows(_others(totals, tested).mean(0)[:, pos].abs(), k, first, last=True)


def _turn_case(seed: int, times: float, neurons: list[int]):
    start, goal = random(2, len(neurons), seed=seed + 50)
    return random(2, 4 + seed, 9, seed=seed), seed + 1, neurons, start, goal, times


def _put(x: Tensor, pos, neurons, value) -> Tensor:
    x = x.clone()
    x[:, pos, neurons] = value
    return x


@declare(
    "57.2",
    axes="prompt, pos, d_mlp",
    says="Start at 0, goal at 1, straight on beyond it; all else as it was.",
)
class Turn:
    cases = (
        _turn_case(0, 1.5, [7, 2, 5]),
        _turn_case(1, 0.0, [1, 4]),
        _turn_case(2, 1.0, [3, 8, 0, 6]),
        _turn_case(3, -2.0, [5]),
    )

    def right(x, pos, neurons, start, goal, times):
        return _put(x, pos, neurons, start + times * (goal - start))

    def nothing(x, pos, neurons, start, goal, times):
        """Nothing has changed. Return the changed copy."""
        return x

    def factor(x, pos, neurons, start, goal, times):
        """You multiplied activations by `times`. A neuron has a sign and a mean: go from start to goal."""
        return _put(x, pos, neurons, times * x[:, pos, neurons])

    def added(x, pos, neurons, start, goal, times):
        """You added the step to what the prompt has. Put the value itself there: 0 is start, 1 is goal."""
        return _put(x, pos, neurons, x[:, pos, neurons] + times * (goal - start))

    def from_its_own(x, pos, neurons, start, goal, times):
        """Your way begins at the prompt's own value. It begins at `start`."""
        own = x[:, pos, neurons]
        return _put(x, pos, neurons, own + times * (goal - own))

    def goal_times(x, pos, neurons, start, goal, times):
        """You multiplied the goal by `times`. That is no way from start to goal: at 0 it should be start."""
        return _put(x, pos, neurons, times * goal)

    def step_alone(x, pos, neurons, start, goal, times):
        """You put the step alone. Add `start`."""
        return _put(x, pos, neurons, times * (goal - start))

    def reversed(x, pos, neurons, start, goal, times):
        """You go from goal to start: at 0 it should be start."""
        return _put(x, pos, neurons, goal + times * (start - goal))

    def all_positions(x, pos, neurons, start, goal, times):
        """You turned the neurons at all positions. Only at `pos`."""
        return _put(x, slice(None), neurons, start + times * (goal - start))

    def first_prompt(x, pos, neurons, start, goal, times):
        """Only the first prompt is changed. All of them, please."""
        return torch.cat([_put(x[:1], pos, neurons, start + times * (goal - start)), x[1:]])


SEVERAL = 3  # members of the group in whose place a rank must have been drawn
Group = list[tuple[int, int]]


@checker("57.3")
def check_matched(attempt: Attempt) -> str:
    for seed, nearest in enumerate((4, 3, 6, 5)):
        change = random(5, 40 + seed, seed=seed) * torch.linspace(0.3, 3, 5)[:, None]
        group = [(layer, int(n)) for layer in (1, 3) for n in change[layer].abs().topk(4).indices]
        group += [(4, 7), (1, 11)]
        draws = [0, *range(13)]  # the first of them twice
        drawn = [_pairs(attempt(change, group, nearest, seeded(draw)), change) for draw in draws]
        for found in drawn:
            _is_matched(found, group, change, nearest)
        refuse(drawn[0] != drawn[1], "The same generator must give the same group: draw with `generator`.")
        same = all(each == drawn[0] for each in drawn)
        refuse(same, "Other generators give the same group: it is not drawn by chance.")
        _is_drawn_from_all([_ranks(found, group, change) for found in drawn], nearest)
    return "As many, of the same layers, about as large, none of the group and none twice, on four tables."


def _is_drawn_from_all(ranks: list[list[int]], nearest: int) -> None:
    """ranks: for each draw, how near the neuron is that stands for each of the group."""
    refuse(
        all(len({*each}) == 1 for each in ranks),
        "In every draw yours are equally near, all the first or all the last: draw anew for each neuron.",
    )
    for rank in range(nearest):
        count = sum(rank in drawn for drawn in zip(*ranks, strict=True))
        refuse(
            count < SEVERAL,
            f"In {len(ranks)} draws, number {rank + 1} of the {nearest} that come closest was taken for "
            f"{count} of the {len(ranks[0])} neurons: draw from all {nearest} for each of them.",
        )


def _pairs(found, change: Tensor) -> Group:
    """What was returned, as (layer, neuron) of plain ints."""
    what = "a list of pairs (layer, neuron)"
    try:
        found = found.tolist() if isinstance(found, Tensor) else [*found]
        pairs = [tuple(int(part) for part in each) for each in found]
    except (TypeError, ValueError, RuntimeError):
        raise NotYet(f"Return {what}; this is a {type(found).__name__} of something else.") from None
    layers, width = change.shape
    fits = all(len(each) == 2 and 0 <= each[0] < layers and 0 <= each[1] < width for each in pairs)
    refuse(not fits, f"Return {what}: layers 0 to {layers - 1}, neurons 0 to {width - 1}.")
    return pairs


def _is_matched(found: Group, group: Group, change: Tensor, nearest: int) -> None:
    refuse(len(found) != len(group), f"The group has {len(group)} neurons, and yours {len(found)}.")
    inside = {*found} & {*group}
    refuse(bool(inside), f"Yours holds neurons of the group itself, such as {next(iter(inside), '')}.")
    refuse(
        sorted(each[0] for each in found) != sorted(each[0] for each in group),
        "Yours are of other layers than the group's. Replace each by a neuron of its own layer.",
    )
    refuse(len({*found}) < len(found), "One neuron stands twice in yours.")
    refuse(
        [each[0] for each in found] != [each[0] for each in group],
        "The layers are right, in another order. The n-th of yours replaces the n-th of the group.",
    )
    ranks = _ranks(found, group, change)
    worst = max(range(len(ranks)), key=ranks.__getitem__)
    (layer, old), (_, new) = group[worst], found[worst]
    sizes = f"{change[layer, old].abs():.2f} by one of {change[layer, new].abs():.2f}"
    near = f"those {nearest} that come closest in size of change"
    refuse(
        ranks[worst] >= nearest,
        f"You replace a neuron of size {sizes}. Draw from {near}: signs are no matter.",
    )


def _ranks(found: Group, group: Group, change: Tensor) -> list[int]:
    """How many neurons that were still free came closer than the one drawn, for each of the group."""
    ranks = []
    for n, ((layer, old), (_, new)) in enumerate(zip(group, found, strict=True)):
        far = (change[layer].abs() - change[layer, old].abs()).abs()
        taken = [at for where, at in [*group, *found[:n]] if where == layer]
        mine = far[new].item()
        far[taken] = torch.inf
        ranks.append(int((far < mine).sum()))
    return ranks


def _mediation_case(kind: str, seed: int):
    model, prompts = ml.tiny(kind), torch.randint(5, 60, (3, 7), generator=seeded(seed))
    layers, width = model.cfg.n_layers, model.cfg.d_mlp
    early = [(0, 3, n) for n in range(0, width, 2)]
    late = [(layers - 1, 6, n) for n in range(0, width, 3)] + [(layers - 1, 4, 1)]
    turn = ml.group_hooks(model, early, to=3 * random(len(early), seed=seed))
    metric = ml.logit_difference(torch.tensor([11, 12, 13]), torch.tensor([21, 22, 23]))
    return model, prompts, metric, turn, late


@torch.no_grad()
def _measured(model, prompts, metric, hooks) -> Tensor:
    model.reset_hooks()  # an answer may have left some
    with ml.intervene(model, [*hooks]):
        return metric(model(prompts)).double()


@torch.no_grad()
def _values(model, prompts, late, hooks=()) -> Tensor:
    """What the late neurons hand on, [prompt neuron], with some hooks."""
    model.reset_hooks()
    names = {f"blocks.{layer}.mlp.hook_post" for layer, *_ in late}
    with ml.intervene(model, [*hooks]):
        _, cache = model.run_with_cache(prompts, names_filter=lambda name: name in names)
    return torch.stack([cache[f"blocks.{layer}.mlp.hook_post"][:, pos, n] for layer, pos, n in late], 1)


def _four(model, prompts, metric, turn, late, to=None) -> tuple[Tensor, Tensor, Tensor]:
    """The metric before, with the hooks, and with the late neurons held too, for each prompt."""
    hold = ml.group_hooks(model, late, to=_values(model, prompts, late) if to is None else to)
    return tuple(_measured(model, prompts, metric, hooks) for hooks in ((), turn, [*turn, *hold]))


@declare(
    "57.4",
    axes="one number",
    says="Held where they were, in three models; no hook is left.",
    tolerance=1e-3,
)
class Mediated:
    def cases():
        return [_mediation_case(kind, seed) for seed, kind in enumerate(("gqa", "gpt2", "gqa"))]

    def right(*case):
        before, full, held = (each.mean() for each in _four(*case))
        return ((full - held) / (full - before)).float()

    def what_is_left(*case):
        """That is the share that is left. Asked is the share that is lost: 1 minus it."""
        before, full, held = (each.mean() for each in _four(*case))
        return ((held - before) / (full - before)).float()

    def at_the_turned(model, prompts, metric, turn, late):
        """You hold the late neurons at the values they have *with* the hooks: so they follow."""
        to = _values(model, prompts, late, turn)
        before, full, held = (each.mean() for each in _four(model, prompts, metric, turn, late, to))
        return ((full - held) / (full - before)).float()

    def at_their_mean(model, prompts, metric, turn, late):
        """You hold every prompt at the mean over prompts. Each prompt has its own values."""
        to = _values(model, prompts, late).mean(0)
        before, full, held = (each.mean() for each in _four(model, prompts, metric, turn, late, to))
        return ((full - held) / (full - before)).float()

    def at_zero(model, prompts, metric, turn, late):
        """You set the late neurons to 0. Hold them at what they are without the hooks."""
        to = torch.zeros(len(late))
        before, full, held = (each.mean() for each in _four(model, prompts, metric, turn, late, to))
        return ((full - held) / (full - before)).float()

    def of_the_metric(*case):
        """You divide by the metric with the hooks. The effect is what the hooks *change*."""
        _, full, held = (each.mean() for each in _four(*case))
        return ((full - held) / full).float()

    def in_logits(*case):
        """That is what is lost, in logits. Divide by the effect of the hooks."""
        _, full, held = (each.mean() for each in _four(*case))
        return (full - held).float()

    def of_what_is_left(*case):
        """You divide by what is left of the effect. Divide by the whole effect."""
        before, full, held = (each.mean() for each in _four(*case))
        return ((full - held) / (held - before)).float()

    def mean_of_shares(*case):
        """You averaged one share a prompt. Average the metric first, or prompts with no effect decide."""
        before, full, held = _four(*case)
        return ((full - held) / (full - before)).mean().float()

    def nothing_left(model, prompts, metric, turn, late):
        """You say that everything is lost. Are they held *together with* the turn: `[*turn, *hold]`?"""
        return torch.tensor(1.0)

    def further(attempt):
        model, *given = _mediation_case("gqa", 5)
        plain = _measured(model, given[0], given[1], ())
        model.reset_hooks()
        attempt(model, *given)
        hooks = sum(len(point.fwd_hooks) for point in model.hook_dict.values())
        model.reset_hooks()
        refuse(
            hooks > 0 or not close(_measured(model, given[0], given[1], ()), plain),
            "A hook is still on the model after the function returns. Use `with ml.intervene(...)`.",
        )


FEW = "In Salzburg people speak German. In Rio people speak Portuguese. In {} people speak"
HIDDEN = {  # cities that no notebook names, on which the model says the language with 0.3 or more
    "German": "Stuttgart Dortmund Hanover Mannheim Düsseldorf",
    "French": "Marseille Bordeaux Toulouse Nantes Strasbourg Rouen Grenoble",
    "Italian": "Turin Genoa Verona Siena Pisa",
    "Spanish": "Seville Valencia Malaga Granada Salamanca Zaragoza",
    "Japanese": "Niigata Nagano Okayama Kanazawa Matsuyama Yokosuka",
    "Russian": "Petersburg Omsk Rostov Smolensk Kazan Vladivostok",
    "Arabic": "Mecca Damascus Aleppo Basra Riyadh",
}
SHOWN = {"German", "French", "Italian", "Japanese"}
MOST, FIRST, DRAWS = 20, 4, 20
LEAST = 0.2  # by how much the new language must rise, and half of it above every matched group


@checker("57.5")
def check_knob(attempt: Attempt, model) -> str:
    old, new, neurons, values = _knob(model, attempt(model))
    told, rises, chance = [], [], torch.zeros(DRAWS)
    for city in HIDDEN[old].split():
        run = ml.run_of(model, FEW.format(city))
        puts = _pushes(model, run, neurons, values)
        asked = [ml.probability(ml.single_token(model, f" {name}")) for name in (old, new)]
        before = [run.value(metric).item() for metric in asked]
        after = [run.edited(metric, puts)[:, 0].cpu() for metric in asked]
        told.append(f"{city} {before[0]:.2f}/{before[1]:.2f} → {after[0][0]:.2f}/{after[1][0]:.2f}")
        rises.append(after[1][0].item() - before[1])
        chance += after[1][1:] - before[1]
    rise, chance = sum(rises) / len(rises), chance / len(rises)
    each = f"p({old})/p({new}) in cities you have not seen: {'; '.join(told)}."
    mean = f"The new language rises by {rise:.2f} in the mean"
    refuse(rise < LEAST, f"{mean}, and should by {LEAST}. {each}")
    refuse(
        rise - chance.max() < LEAST / 2,
        f"{mean}; the best of {DRAWS} matched groups, pushed as far, reaches {chance.max():.2f}: "
        f"that is no better than chance. {each}",
    )
    return f"{mean}; the best of {DRAWS} matched groups, pushed as far, reaches {chance.max():.2f}. {each}"


def _knob(model, answer) -> tuple[str, str, Group, Tensor]:
    """The four parts of an answer, if each is what it should be."""
    fits = isinstance(answer, (tuple, list)) and len(answer) == 4
    refuse(not fits, "Return four things: language, new language, neurons, and a value for each of them.")
    old, new, neurons, values = answer
    words = all(isinstance(name, str) and name.strip() for name in (old, new))
    refuse(not words, 'Return two languages as str first, such as "Spanish" and "Japanese".')
    old, new = old.strip(), new.strip()
    refuse(
        old not in HIDDEN,
        f"The first language is {old!r:.30}; there are other cities for {', '.join(HIDDEN)}.",
    )
    refuse(old == new, "Two different languages, please.")
    refuse(len(model.to_tokens(f" {new}", prepend_bos=False)[0]) != 1, f"{new!r:.30} is not one token.")
    refuse({old, new} <= SHOWN, f"The table has turned {old} into {new}. Take a language that is not in it.")
    group = _places(model, neurons)
    try:
        values = torch.as_tensor(values).detach().float().flatten()
    except (TypeError, ValueError, RuntimeError):
        raise NotYet("Return the values as a tensor, or a list of numbers.") from None
    refuse(len(values) != len(group), f"There are {len(group)} neurons, and {len(values)} values.")
    refuse(not values.isfinite().all(), "A value is NaN or infinite.")
    return old, new, group, values


def _places(model, neurons) -> Group:
    width, layers = model.cfg.d_mlp, model.cfg.n_layers
    group = _pairs(neurons, torch.empty(layers, width))
    refuse(not 1 <= len(group) <= MOST, f"At most {MOST} neurons, and at least one; yours are {len(group)}.")
    refuse(len({*group}) < len(group), "One neuron stands twice in your group.")
    early = min(layer for layer, _ in group)
    refuse(
        early < FIRST,
        f"Layer {early}: in layers 0 to {FIRST - 1} one exchanges the word itself. From {FIRST} on.",
    )
    return group


def _pushes(model, run: Run, group: Group, values: Tensor) -> list[Put]:
    """Edits of 1 + DRAWS copies: the group at the city's last token, and others of its layers, pushed as far.

    As far: what a neuron writes into the stream changes by a vector of the same length, either way.
    """
    pos, chance, puts = run.tokens.shape[1] - 3, seeded(57), []
    for layer in {layer for layer, _ in group}:
        mine = [n for n, (where, _) in enumerate(group) if where == layer]
        neurons = torch.tensor([group[n][1] for n in mine])
        own = run.at("post", layer)[0, pos].cpu()
        length = model.blocks[layer].mlp.W_out.detach().norm(dim=1).cpu()
        put = own.repeat(1 + DRAWS, 1)
        put[0, neurons] = values[mine]
        push = (values[mine] - own[neurons]) * length[neurons]
        free = [n for n in range(len(own)) if n not in neurons.tolist()]
        for copy in range(1, 1 + DRAWS):
            some = torch.tensor(free)[torch.randperm(len(free), generator=chance)[: len(mine)]]
            sign = 2 * torch.randint(2, (len(mine),), generator=chance) - 1
            put[copy, some] = own[some] + sign * push / length[some]
        where = (put != own)[:, None, None].expand(-1, 1, run.tokens.shape[1], -1).clone()
        where[:, :, torch.arange(where.shape[2]) != pos] = False
        puts.append(Put("post", layer, put[:, None, None], where))
    return puts
