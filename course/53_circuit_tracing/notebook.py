# %% [markdown]
# # 53 Circuit tracing
#
# **Question:** which few neurons make the model say "are" after "The keys to the old cabinet", and what of such a graph is true?
#
# After this notebook you will be able to
#
# - write the difference between two prompts as an exact sum over neurons, heads and norms,
# - find out how many neurons of a ranking keep a behaviour, with two curves beside chance,
# - say which figures of a graph are as good on random weights, and test one of its edges.
#
# Time: 100 minutes. The cells take about 60 seconds in all. Memory: 2.0 GB.
# Download: none, once the model is here (93 MB). Before: notebooks 13 and 31.

# %% kind="setup"
# (written by the build)

# %% [markdown]
# ## The picture
#
# "The **keys** to the old cabinet" goes on with "are", "The **key** to the old cabinet" with "is". The sentences differ in one word. What carries the difference to the end?
#
# We rank the neurons (how, comes below) and exchange some of them for their values in the other sentence. **Kept:** all *but* the K best are exchanged. **Away:** only the K best are.

# %%
import tempfile
from pathlib import Path

import pandas as pd

from mechlab.statistics import bootstrap

pair = "The keys to the old cabinet", "The key to the old cabinet"
are_is = ml.logit_difference(ml.single_token(model, " are"), ml.single_token(model, " is"))
keys = ml.Contrast(model, *pair, are_is)
sizes = [5, 10, 25, 60, 150]
chance = torch.rand(keys.totals().values.shape, generator=torch.Generator().manual_seed(0))
chance = ml.Scores(chance, ("layer", "pos", "neuron"), "by chance")
curves = [ml.kept_and_away(keys, ranking, sizes).values for ranking in (keys.totals(), chance)]
rows = ["kept", "away", "kept, by chance", "away, by chance"]
shares = ml.Scores(
    torch.cat(curves),
    ("what", "neurons"),
    "share of the change left",
    {"what": rows, "neurons": [str(n) for n in sizes]},
)
shares.plot(lines=True, title="Few neurons kept, or taken away")

# %% kind="assert"
claim(model, "change of are − is", keys.change, says=6.69, within=0.05)
claim(model, "kept, 60", shares.at(what="kept", neurons="60"), says=0.86, within=0.05)
claim(model, "away, 60", shares.at(what="away", neurons="60"), says=0.06, within=0.05)
claim(model, "away, 5", shares.at(what="away", neurons="5"), says=1.27, within=0.05)
assert shares.at(what="kept, by chance").abs().max() < 0.05
assert (shares.at(what="away, by chance") - 1).abs().max() < 0.05
assert keys.totals().values.numel() == 322_560

# %% [markdown]
# Seven tokens have 322,560 neurons. With 60 of them alone, 0.86 of the difference is still there; without these 60, next to nothing. As many by chance, of all that there are, do nothing. (Notebook 57 draws a fairer null: of the same layers, with as large a change.)
# Without the best *five* the difference even grows (1.27): one of the best works against the rest (below).
#
# Attention and norms compute on as usual. "Kept" exchanges nearly all neurons, so hardly any computes on.
#
# ## One prompt first
#
# Circuit tracing (Ameisen et al. 2025) draws who gave what to whom on *one* prompt. For arrows that add up, everything that is not linear is **held**: attention patterns and the lengths by which norms
# divide. Then all is a sum, but for one thing: a neuron here is silu(g) · u, the product of a gate g and an input u (notebook 13). How much of it came through g, and how much through u? A rule must say. The **half rule**: half and half (Arras et al. 2019; RelP, Rezaei Jafari et al. 2025). Ameisen et al. need none: their features are linear once active.
#
# ### Exercise 53.1 Shares of a gated neuron
#
# Difficulty 2 of 5 · 10 minutes · needs notebook 13, gates


# %% kind="exercise" id="53.1"
@exercise("53.1")
def gated_slopes(g: Float[Tensor, "neuron"], u: Float[Tensor, "neuron"]) -> Float[Tensor, "2 neuron"]:
    """Slopes (for g, for u) with which slope · input gives half of silu(g) · u each. Finite at g = 0, u = 0."""
    # >>> solution
    return torch.stack([torch.sigmoid(g) * u, torch.nn.functional.silu(g)]) / 2
    # <<< solution


# %% kind="check"
check(gated_slopes)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# You want one number that gives half of the product when it is multiplied by g, and another one for u.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# silu(g) is g · sigmoid(g). So silu(g) · u = g · (sigmoid(g) · u), and nothing has to be divided.
#
# </details>


# %% kind="wrong" id="53.1" expects="true slopes"
@exercise("53.1")
def gated_slopes(g, u):
    s = torch.sigmoid(g)
    return torch.stack([u * s * (1 + g * (1 - s)), g * s])


# %% kind="wrong" id="53.1" expects="the whole"
@exercise("53.1")
def gated_slopes(g, u):
    return torch.stack([torch.sigmoid(g) * u, torch.nn.functional.silu(g)])


# %% kind="wrong" id="53.1" expects="the parts themselves"
@exercise("53.1")
def gated_slopes(g, u):
    half = torch.nn.functional.silu(g) * u / 2
    return torch.stack([half, half])


# %% [markdown]
# `ml.FrozenRun` follows "are − is" back in this way. Here is all that neurons give to it directly:

# %%
frozen = ml.FrozenRun(model, pair[0], are_is)
given = frozen.direct_on_metric().neurons.flatten()
by_size = given.abs().sort(descending=True).values
needed = int((by_size.cumsum(0) < 0.8 * by_size.sum()).sum()) + 1
print(f"are − is: {frozen.change.item():.2f}; embeddings, followed to the end: {frozen.flow().values[0]:.2f}")
print(f"given by neurons: {given.sum():.2f}; sum of the sizes: {by_size.sum():.0f}")
print(f"{needed:,} of {len(given):,} neurons hold 0.8 of the sum of all sizes")

# %% kind="assert"
claim(model, "are − is", frozen.change, says=1.68, within=0.03)
claim(model, "embeddings", frozen.flow().values[0], says=1.68, within=0.03)
claim(model, "sum of neurons", given.sum(), says=1.67, within=0.03)
claim(model, "sum of sizes", by_size.sum(), says=414, within=15)
claim(model, "needed", needed, says=57_000, within=3_000)

# %% [markdown]
# Nothing is lost: the sum is right. But the parts have sizes of 414 in all and add up to 1.67, so nearly all of them cancel, and 57,000 neurons hold 0.8 of the sum of all sizes. (A guess at the reason: much of it is what *every* prompt has. Dictionaries are meant to help here.)
#
# That alone does not condemn it: our two-prompt graph is hardly better by this figure. The test is to exchange what it ranks first. We do so below.
#
# ## Two prompts
#
# So take a second prompt that differs only in what you ask about, and follow the **change** of each neuron. What all sentences share drops out. A product changes exactly by
#
# Δ(x · y) = ȳ · Δx + x̄ · Δy, with the means of both runs.
#
# And a curve f changes by a slope times Δx: that of the line through the two points, the **secant** (Shrikumar et al. 2017).
#
# ### Exercise 53.2 The secant
#
# Difficulty 2 of 5 · 10 minutes · needs derivatives


# %% kind="exercise" id="53.2"
@exercise("53.2")
def secant_slope(f, x: Float[Tensor, "neuron"], y: Float[Tensor, "neuron"]) -> Float[Tensor, "neuron"]:
    """The slope with slope · (x − y) = f(x) − f(y). Where x and y are equal, or closer than 1e-4: that of f there."""
    # >>> solution
    near = (x - y).abs() < 1e-4
    secant = (f(x) - f(y)) / torch.where(near, 1.0, x - y)
    tangent = (f(x + 1e-2) - f(x - 1e-2)) / 2e-2
    return torch.where(near, tangent, secant)
    # <<< solution


# %% kind="check"
check(secant_slope)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# A difference divided by a difference. Then ask what happens where both are 0.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# `torch.where` chooses, but it computes both sides: put 1 in place of the small differences before you divide. A slope at a point: (f(x + h) − f(x − h)) / 2h with h = 0.01.
#
# </details>


# %% kind="wrong" id="53.2" expects="derivative at x"
@exercise("53.2")
def secant_slope(f, x, y):
    return (f(x + 1e-2) - f(x - 1e-2)) / 2e-2


# %% kind="wrong" id="53.2" expects="half way"
@exercise("53.2")
def secant_slope(f, x, y):
    middle = (x + y) / 2
    return (f(middle + 1e-2) - f(middle - 1e-2)) / 2e-2


# %% kind="wrong" id="53.2" expects="A division by 0"
@exercise("53.2")
def secant_slope(f, x, y):
    return (f(x) - f(y)) / (x - y)


# %% [markdown]
# `ml.Contrast` does this through the whole model. Two kinds of change it follows no further, and keeps their names: a head looked elsewhere, a norm divided by another length.

# %%
keys.flow().to_dataframe()

# %% kind="assert"
claim(model, "embeddings", keys.flow().at(part="embeddings"), says=6.97, within=0.05)
claim(model, "patterns", keys.flow().at(part="patterns"), says=-0.17, within=0.03)
claim(model, "norms", keys.flow().at(part="norms"), says=-0.11, within=0.03)
assert keys.flow().gap.abs() < 1e-3

# %% [markdown]
# 6.97 from the words, −0.17 from heads that looked elsewhere, −0.11 from norms: together the 6.69 by which "are − is" differs, to the last digit. How much of it passes through a neuron, `keys.totals()`, gave the order in our picture.
#
# That the sum is exact says **nothing** about whether these are the right neurons. Only exchanging them does.
#
# ### Exercise 53.3 Kept and away
#
# Difficulty 2 of 5 · 10 minutes · needs `topk`


# %% kind="exercise" id="53.3"
@exercise("53.3")
def exchanged(
    base: Float[Tensor, "layer pos neuron"],
    source: Float[Tensor, "layer pos neuron"],
    ranking: Float[Tensor, "layer pos neuron"],
    k: int,
) -> Float[Tensor, "2 layer pos neuron"]:
    """The neurons' values that are put into the run on base: (only the k largest by size kept, only these away)."""
    # >>> solution
    chosen = torch.zeros(ranking.numel(), dtype=torch.bool)
    chosen[ranking.abs().flatten().topk(k).indices] = True
    chosen = chosen.view(ranking.shape)
    return torch.stack([torch.where(chosen, base, source), torch.where(chosen, source, base)])
    # <<< solution


# %% kind="check"
check(exchanged)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Make a mask of the k chosen ones among all layers, positions and neurons. The two answers use it the opposite way.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# `ranking.abs().flatten().topk(k).indices`, a mask of zeros and ones, back to the shape, then `torch.where(mask, base, source)`.
#
# </details>


# %% kind="wrong" id="53.3" expects="base and source are exchanged"
@exercise("53.3")
def exchanged(base, source, ranking, k):
    chosen = torch.zeros(ranking.numel(), dtype=torch.bool)
    chosen[ranking.abs().flatten().topk(k).indices] = True
    chosen = chosen.view(ranking.shape)
    return torch.stack([torch.where(chosen, source, base), torch.where(chosen, base, source)])


# %% kind="wrong" id="53.3" expects="signs"
@exercise("53.3")
def exchanged(base, source, ranking, k):
    chosen = torch.zeros(ranking.numel(), dtype=torch.bool)
    chosen[ranking.flatten().topk(k).indices] = True
    chosen = chosen.view(ranking.shape)
    return torch.stack([torch.where(chosen, base, source), torch.where(chosen, source, base)])


# %% kind="wrong" id="53.3" expects="in every row"
@exercise("53.3")
def exchanged(base, source, ranking, k):
    chosen = torch.zeros_like(ranking).scatter(-1, ranking.abs().topk(k).indices, 1.0).bool()
    return torch.stack([torch.where(chosen, base, source), torch.where(chosen, source, base)])


# %% [markdown]
# ### Predict
#
# One sentence proves little. Eight nouns next: *key dog picture car boy book teacher tree*. And a **fact** for comparison: "The capital of France is" against Germany, and so on around nine countries. Of how many neurons, kept alone,
# is half of the change left, in the mean: for "are − is", and for the capitals?

# %% kind="predict"
predict("53.p", [20, 1000])

# %%
nouns = ["key", "dog", "picture", "car", "boy", "book", "teacher", "tree"]
sentence = "The {} to the old cabinet"
plural, singular = [[sentence.format(noun + s) for noun in nouns] for s in ("s", "")]
agreement = ml.Contrast(model, plural, singular, are_is)

capitals = {"France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo"}
capitals |= {"Greece": "Athens", "Russia": "Moscow", "Poland": "Warsaw", "Egypt": "Cairo"}
asked = [f"The capital of {country} is" for country in capitals]
cities = [ml.single_token(model, " " + city) for city in capitals.values()]
around = lambda row: row[1:] + row[:1]
fact = ml.Contrast(model, asked, around(asked), ml.logit_difference(cities, around(cities)))

# %%
many = [5, 10, 25, 60, 150, 400, 1000]
left = {
    name: ml.kept_and_away(each, each.totals(), many)
    for name, each in (("are − is", agreement), ("capitals", fact))
}
both = torch.stack([curve.values[n] for curve in left.values() for n in (0, 1)])
rows = [f"{name}, {what}" for name in left for what in ("kept", "away")]
labels = {"what": rows, "neurons": [str(n) for n in many]}
both = ml.Scores(both, ("what", "neurons"), "share of the change left", labels)
ml.plots.scores(both, lines=True, title="Agreement and facts")

# %% kind="assert"
claim(model, "agreement, kept 25", both.at(what="are − is, kept", neurons="25"), says=0.75, within=0.05)
by_noun = left["are − is"].per_prompt[:, 0, 2]
claim(model, "lowest", bootstrap(by_noun)[0], says=0.62, within=0.05)
claim(model, "highest", bootstrap(by_noun)[1], says=0.89, within=0.05)
claim(model, "agreement, away 25", both.at(what="are − is, away", neurons="25"), says=0.07, within=0.04)
claim(model, "agreement, kept 1000", both.at(what="are − is, kept", neurons="1000"), says=1.22, within=0.05)
claim(model, "facts, kept 1000", both.at(what="capitals, kept", neurons="1000"), says=0.57, within=0.05)
claim(model, "facts, kept 60", both.at(what="capitals, kept", neurons="60"), says=0.05, within=0.03)
claim(model, "facts, away 60", both.at(what="capitals, away", neurons="60"), says=0.49, within=0.05)

# %% kind="compare"
half = lambda curve: next(n for n, share in zip(many, curve.values[0], strict=True) if share >= 0.5)
reveal("53.p", [half(left["are − is"]), half(left["capitals"])])

# %% [markdown]
# <details><summary>What we saw</summary>
#
# **Agreement is in a few dozen neurons**: 25 keep 0.75 of the change (0.62 to 0.89 over the nouns), and without them 0.07 is left. With 1,000 it is 1.22, more than all: together the others work against it.
#
# **By this ranking, alone, a capital takes about a thousand**: 60 keep 0.05, 1,000 keep 0.57. But exchange those 60 and let everything else compute, and half of the change is gone (0.49 left). "Kept" counts every stage on the way, because nothing else may answer; a better order might need fewer. (Notebook 57 moves a capital with twenty, pushed twice as far.)
#
# </details>
#
# ### Other orders
#
# Is it the order that does it? Three others, on the same nouns: by the totals of *one* prompt, by largest change, and by that without layers 23 to 29. How much is kept?

# %%
changed = agreement.changes()
earlier = changed.per_prompt.clone()
earlier[:, 23:] = 0
orders = {
    "contrast of two prompts": agreement.totals(),
    "one prompt": ml.FrozenRun(model, plural, are_is).totals(),
    "largest changes": changed,
    "largest changes, layers 0 to 22": ml.Scores.over_prompts(earlier, changed.dims, "changes"),
}
few = [60, 150, 1000]
orders = {name: ml.kept_and_away(agreement, order, few).values[0].tolist() for name, order in orders.items()}
orders = pd.DataFrame(orders, few).T
orders.round(2)

# %% kind="assert"
claim(model, "contrast, 60", orders[60]["contrast of two prompts"], says=1.02, within=0.03)
claim(model, "one prompt, 60", orders[60]["one prompt"], says=0.37, within=0.04)
claim(model, "one prompt, 150", orders[150]["one prompt"], says=0.87, within=0.04)
claim(model, "changes, 1000", orders[1000]["largest changes"], says=0.30, within=0.04)
claim(model, "early changes, 60", orders[60]["largest changes, layers 0 to 22"], says=0.17, within=0.04)
claim(model, "early changes, 1000", orders[1000]["largest changes, layers 0 to 22"], says=0.76, within=0.05)
assert abs(orders[60]["largest changes"]) < 0.1

# %% [markdown]
# **One prompt** is worse, not useless: its 60 best keep 0.37 and its 150 best 0.87, where the contrast needs 60 for all of it (1.02).
#
# The 60 that merely **changed most** keep nothing, and 1,000 of them 0.30: mostly late neurons, which change a lot and move little. Without those it is 0.17 and 0.76. (57 leaves late ones out too, and finds the rule nearly as good; here it is not.) To change is not to carry.
#
# ## Which neurons?
#
# The order above was each noun's own. Do the same neurons come back? And what do they write, with the sign they have here?

# %%
best = [set(each.abs().flatten().topk(25).indices.tolist()) for each in agreement.totals().per_prompt]
shape = agreement.totals().values.shape
common = sorted(
    tuple(int(i) for i in torch.unravel_index(torch.tensor(n), shape)) for n in set.intersection(*best)
)
values = [ml.group_values(model, prompts, common).mean(0) for prompts in (plural, singular)]
table = []
for (layer, pos, neuron), a, b in zip(common, *values, strict=True):
    written = ml.value_tokens(model, (layer, neuron), k=4, activation=(a - b).item())
    row = [f"L{layer}N{neuron}", agreement.totals().values[layer, pos, neuron].item(), a.item(), b.item()]
    table.append([*row, *(" ".join(written[column]) for column in ("raises", "lowers"))])
names = ["neuron", "of the change", "plural", "singular", "change raises", "change lowers"]
pd.DataFrame(table, columns=names).round(2)

# %% kind="assert"
shown = pd.DataFrame(table, columns=names).set_index("neuron")
claim(model, "in the best 25 of all nouns", len(common), says=12, within=1)
claim(model, "of them at the noun", sum(pos == 2 for _, pos, _ in common), says=9, within=1)
for_are = shown["change raises"].str.contains(r"\bare\b")
against = shown["change lowers"].str.contains(r"\bare\b")
claim(model, "for are", for_are.sum(), says=7, within=1)
assert (shown["of the change"][for_are] > 0).all() and (shown["of the change"][against] < 0).all()
assert {"L25N161", "L26N1528"} == {*shown.index[against]}

# %% [markdown]
# Twelve neurons are among the best 25 for every noun, nine of them at the noun. Seven raise " are" when the noun becomes plural, from the first layer on. Two **lower** it, L25N161 and L26N1528, and their share of the change is negative. Three say nothing that we can read.
#
# Does the model brake itself? The two get their singular values, in the plural sentences:

# %%
brakes = [(25, 2, 161), (26, 6, 1528)]
released = ml.group_hooks(model, brakes, to=ml.group_values(model, singular, brakes))
with torch.no_grad(), ml.intervene(model, released):
    rise = are_is(model(plural)) - agreement.base.value(are_is)
print("are − is rises by", ", ".join(f"{x:.2f}" for x in rise))

# %% kind="assert"
claim(model, "rise", rise.mean(), says=0.85, within=0.1)
assert rise.min() > 0.3

# %% [markdown]
# It does: "are − is" rises for all eight nouns, by 0.85 in the mean.

# %% [markdown]
# ## Turned by hand
#
# If five neurons at the noun carry "plural", they should do so for nouns that had no part in the choice. We choose on the first four nouns, and turn them on the other four: in the *singular* sentence they are moved from their mean in the singular
# towards their mean in the plural. 1 puts them there, 2 goes twice as far. Beside them 20 groups by chance, of the same layers and about as large a change.

# %%
four = ml.Contrast(model, plural[:4], singular[:4], are_is)
group = ml.supernode(four.totals(), 2, 5)
runs = [ml.run_of(model, rows[:4]) for rows in (singular, plural)]


def turned(neurons, times):
    """are − is for the other four nouns in the singular."""
    start, goal = (ml.group_values(model, run, neurons).mean(0) for run in runs)
    with (
        torch.no_grad(),
        ml.intervene(model, ml.group_hooks(model, neurons, to=goal, around=start, times=times)),
    ):
        return are_is(model(singular[4:])).mean().item()


with torch.no_grad():
    ends = [are_is(model(rows[4:])).mean().item() for rows in (singular, plural)]
once, twice = turned(group, 1), turned(group, 2)
by_chance = [turned(other, 2) for other in ml.matched_groups(four.changes(), group)]
print("neurons:", ", ".join(f"L{layer}N{neuron}" for layer, _, neuron in group))
print(f"singular {ends[0]:.2f} · five neurons at 1: {once:.2f}, at 2: {twice:.2f} · plural {ends[1]:.2f}")
print(f"20 groups by chance at 2: {min(by_chance):.2f} to {max(by_chance):.2f}")

# %% kind="assert"
claim(model, "singular", ends[0], says=-4.08, within=0.1)
claim(model, "plural", ends[1], says=-1.15, within=0.1)
claim(model, "at 1", once, says=-0.70, within=0.15)
claim(model, "by chance, best", max(by_chance), says=-2.44, within=0.15)
claim(model, "by chance, nothing", sum(value < -3.9 for value in by_chance), says=15, within=0)
assert max(by_chance) < min(once, twice) and (25, 2, 161) in group

# %% [markdown]
# Five neurons turn nouns they were not chosen on: from −4.08 to −0.70, as far as the plural and a little beyond. The best group by chance, turned twice as far, comes half as far (−2.44), and 15 of 20 do next to nothing. One of the five, L25N161, works against the rest: it is a brake (above). Turned twice as far, the five do no more. (The plural's own −1.15 is below 0: the "cabinet" stands nearer, and this model often
# says "is" for these nouns. The neurons move the difference; they do not make the model right.)
#
# ### Predict
#
# Circuit graphs are praised with three figures: it **adds up**; it is **small** (a small share of neurons holds 0.8 of the sum of all sizes); it **predicts** what exchanging one neuron does (a rank correlation over 100 neurons). Computed on a model with *random weights*: in how many of the three
# will it do clearly worse than the trained one?

# %% kind="predict"
predict("53.q", 0)

# %% [markdown]
# ## What random weights can do as well
#
# The three figures and our two curves, on the eight nouns; on the same words shuffled ("The keys cabinet the old to"); and on eight models with random weights. Stored; `data/make/tracing.py` made it.

# %%
stored = pd.read_csv(ml.reference.data_dir() / "tracing" / "controls.csv")
kind = stored["model"].str.replace(r" \d+$", "", regex=True)
weight = stored["change"].abs()
figures = stored[["gap", "for 80 %", "single exchanges"]].groupby(kind, sort=False).mean()
for name in ("kept 60", "away 60"):  # a noun counts by the size of its change
    figures[name] = (stored[name] * weight).groupby(kind).sum() / weight.groupby(kind).sum()
trained, shuffled, drawn = (
    figures.loc[name] for name in ("trained", "trained, words shuffled", "random weights")
)
figures.round(3)

# %% kind="assert"
each = stored.assign(at=stored["kept 60"] * weight, size=weight)[kind == "random weights"].groupby("model")
each = each["at"].sum() / each["size"].sum()
claim(model, "for 80 %, trained", trained["for 80 %"], says=0.18, within=0.01)
claim(model, "for 80 %, random", drawn["for 80 %"], says=0.17, within=0.01)
claim(model, "single exchanges, trained", trained["single exchanges"], says=0.52, within=0.05)
claim(model, "single exchanges, random", drawn["single exchanges"], says=0.99, within=0.02)
claim(model, "kept, trained", trained["kept 60"], says=1.01, within=0.03)
by_noun = stored["kept 60"][kind == "trained"]
claim(model, "lowest noun", by_noun.min(), says=0.74, within=0.02)
claim(model, "highest noun", by_noun.max(), says=1.32, within=0.02)
size = weight.groupby(kind).mean()
claim(model, "larger change", size["trained"] / size["random weights"], says=16, within=2)
claim(model, "kept, shuffled", shuffled["kept 60"], says=0.08, within=0.03)
claim(model, "kept, random, highest of eight", each.max(), says=0.43, within=0.03)
assert stored["gap"].max() < 1e-4 and len(each) == 8

# %% kind="compare"
worse = [drawn["gap"] > 1e-3, drawn["for 80 %"] > 1.5 * trained["for 80 %"]]
worse += [drawn["single exchanges"] < trained["single exchanges"] - 0.1]
reveal("53.q", int(sum(worse)))

# %% [markdown]
# <details><summary>What we saw</summary>
#
# None of the three. Random weights add up as exactly, need as small a share of neurons (0.17, trained 0.18), and are predicted far better, 0.99 against 0.52: perhaps because they hardly bend what passes through. **None of these figures is evidence that anything was understood.**
#
# The curves are: of the figures here, only these are better on the trained model. With 60 neurons it keeps 0.74 to 1.32 by noun, in the mean all of it; the shuffled words 0.08; of the eight random models the best 0.43. (The rank correlation tells them apart too, the wrong way round. And the change itself is about 16 times larger, so the shares of a random model jump about.)
#
# </details>
#
# **Question 53.a.** A paper shows a graph of 40 nodes. It adds up, and its figures agree with single ablations at 0.9. What would convince you that these nodes do the work?
#
# - **a** That the nodes have names that fit the task.
# - **b** That the behaviour is still there with these nodes alone, gone without them, and neither with other nodes of the same kind.
# - **c** That on ten other prompts it adds up just as well.

# %% kind="quiz"
quiz("53.a", "b")

# %% [markdown]
# ## Is an edge true?
#
# Now the arrows. A **link** from one neuron to another says how much of the receiver's change came from the sender directly, not through other neurons. The 25 best neurons of our sentence:

# %%
best = keys.totals().values.abs().flatten().topk(25).indices
places = torch.stack(torch.unravel_index(best, keys.totals().values.shape), 1).tolist()
graph = ml.attribution_graph(keys, [tuple(place) for place in places], "are − is")
graph.top(8)

# %% [markdown]
# An edge is a claim about an experiment, so we do it: all other neurons are held, and the sender alone is exchanged. It can be done in two ways: **taken away** from the plural run, or **put into** the singular one.


# %%
def moved(run, other, sender, receiver):
    """What the receiver loses in `run` when the sender has its value of `other`; other neurons are held."""
    held = {layer: run.at("post", layer).clone() for layer in range(receiver[0])}
    held[sender[0]][0, *sender[1:]] = other.at("post", sender[0])[0, *sender[1:]]
    hooks = [(f"blocks.{layer}.mlp.hook_post", lambda x, hook, v=v: v) for layer, v in held.items()]
    name = f"blocks.{receiver[0]}.mlp.hook_post"
    with torch.no_grad(), ml.intervene(model, hooks):
        _, cache = model.run_with_cache(run.tokens, names_filter=name)
    return (run.at("post", receiver[0]) - cache[name])[0, *receiver[1:]].item()


def links(contrast, graph, share=0.2):
    """Every link between neurons of at least this share of the receiver's change, and both experiments."""
    rows, nodes = [], graph.nodes
    strong = graph.links[:-1, : len(nodes)].abs() >= share * graph.change[:-1, None].abs()
    for r, s in strong.nonzero().tolist():
        away = moved(contrast.base, contrast.source, nodes[s], nodes[r])
        put = -moved(contrast.source, contrast.base, nodes[s], nodes[r])
        rows.append([nodes[s], nodes[r], graph.links[r, s].item(), away, put, (away + put) / 2])
    names = ["sender", "receiver", "link", "taken away", "put in", "mean of both"]
    return pd.DataFrame(rows, columns=names).round(2)


tested = links(keys, graph)
tested

# %% kind="assert"
signs = torch.tensor(tested[["link", "taken away", "put in"]].to_numpy()).sign()
claim(model, "links tested", len(tested), says=17, within=2)
claim(model, "both experiments of the link's sign", (signs == signs[:, :1]).all(1).sum(), says=4, within=2)
claim(
    model, "mean within a third", (tested["mean of both"] / tested["link"] >= 1 / 3).sum(), says=11, within=2
)
claim(model, "put in more", (tested["put in"].abs() > tested["taken away"].abs()).sum(), says=8, within=1)
assert tested.loc[tested["mean of both"] / tested["link"] < 0].shape[0] >= 2

# %% [markdown]
# Seventeen links are as strong as that. In **four** of them do both experiments even have the sign of the link. Take L0N870 → L7N622: put in, the sender does more than the graph says; taken away, it does the opposite. (In eight links putting in does more, in nine taking away. We do not know why; a receiver that bends would do it.)
#
# A link is an average of such experiments, with all else at the *mean* of both runs. As that, eleven hold to a third at least. Six do not: their mean is less, or has the other sign. So: **read an arrow as a guess about an experiment, and do the experiment.**
#
# ### Exercise 53.4 A false link
#
# Difficulty 4 of 5 · 25 minutes · needs the two cells above
#
# Find a link that is false, in another sentence: "The dogs near the old house" against "The dog near the old house", again are − is. The receiver changes by at least 0.3, the graph claims at least 0.15 of that, and the mean of both experiments must give less than a third of the claim, or the other sign.


# %% kind="exercise" id="53.4"
@exercise("53.4")
def false_link() -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """The sender and the receiver, each (layer, position, neuron)."""
    # >>> solution
    return (0, 2, 870), (12, 2, 1441)
    # <<< solution


# %% kind="check"
check(false_link, model=model)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Make the graph of the other sentence as above, and lower `share`.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# `links(contrast, graph, 0.15)` on the new contrast. Look for a row in which "mean of both" is far from "link".
#
# </details>


# %% kind="wrong" id="53.4" expects="is true"
@exercise("53.4")
def false_link():
    return (0, 2, 870), (2, 2, 1293)


# %% kind="wrong" id="53.4" expects="claims only"
@exercise("53.4")
def false_link():
    return (0, 2, 870), (10, 2, 1052)


# %% kind="wrong" id="53.4" expects="earlier layer"
@exercise("53.4")
def false_link():
    return (12, 2, 1441), (0, 2, 870)


# %% [markdown]
# ### Exercise 53.5 Another piece of grammar
#
# Difficulty 4 of 5 · 30 minutes · needs `ml.Contrast`, `ml.kept_and_away`
#
# Number is carried by few neurons. What else? Find two beginnings and two next words for which 60 neurons keep at least two fifths of the change, and at most half is left without them. Not about number: the two words must not differ in it, as "is" and "are", "has" and "have", "it" and "they", "dog" and "dogs" do.


# %% kind="exercise" id="53.5"
@exercise("53.5")
def grammar() -> tuple[str, str, str, str]:
    """(base, source, the word that base asks for, the word that source asks for): beginnings of as many tokens."""
    # >>> solution
    return "She is older", "She is old", " than", " and"
    # <<< solution


# %% kind="check"
check(grammar, model=model)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Think of words that ask for a certain small word: *both* and *either*, *as* and *more*, *so* and *too*.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# `ml.Contrast(model, base, source, ml.logit_difference(...))`, then `ml.kept_and_away(c, c.totals(), [60])`. Try ten; most fail in one of the two.
#
# </details>


# %% kind="wrong" id="53.5" expects="differ in number"
@exercise("53.5")
def grammar():
    return "The dogs near the old house", "The dog near the old house", " are", " is"


# %% kind="wrong" id="53.5" expects="60 neurons keep"
@exercise("53.5")
def grammar():
    return "The opposite of hot is", "The opposite of big is", " cold", " small"


# %% kind="wrong" id="53.5" expects="left without them"
@exercise("53.5")
def grammar():
    return "Both the boy", "Either the boy", " and", " or"


# %% [markdown]
# ## Transcoders, and what they cost
#
# Ameisen et al. do not trace neurons but features of **cross-layer transcoders**, each of which reads one layer and writes to that and all later ones. A **transcoder** is a dictionary (notebook 26) that stands in for an MLP, from what it reads to what it writes, with few features active. Ours are of one layer each: 1,152 features for each of two layers, trained on 56,000 tokens.
# In the MLP's place: how much of its variance is missed, and the loss on held-out text?

# %%
coders = pd.read_csv(ml.reference.data_dir() / "tracing" / "transcoders.csv")
coders.pivot(index="in its place", columns="layer", values=["missed", "loss"]).round(3)

# %% kind="assert"
loss = coders.pivot(index="in its place", columns="layer", values="loss")
claim(model, "the MLP itself", loss.loc["the MLP itself"].mean(), says=2.39, within=0.01)
claim(model, "its mean", loss.loc["nothing, its mean"][8], says=2.59, within=0.01)
small = ["transcoder, 32 features", "its 32 largest neurons"]
assert (loss.loc[small[0]] - loss.loc[small[1]]).abs().max() < 0.01
assert loss.loc["linear map"][14] < loss.loc[small[0]][14] < loss.loc["linear map"][8]
claim(model, "weights, millions", model.cfg.n_layers * 2 * model.cfg.d_model * 1152 / 1e6, says=40, within=1)

# %% [markdown]
# The loss is 2.39 with the MLP itself, and 2.59 with its mean in layer 8. The transcoder comes within 0.01 of the MLP's own 32 largest **neurons**, in both layers; in layer 14 a linear map does as well. A set for all layers would have 40 million weights, and what each misses would add up. With more features and far more text
# transcoders get better, and then they have something that neurons have not: features with a name. At a laptop's size neurons are exact and free.
#
# ## A file for other viewers
#
# `graph.to_json` writes the graph as the published viewers read it. How to open it: [docs/tools.md](../docs/tools.md).

# %%
with tempfile.TemporaryDirectory() as folder:
    graph.to_json(Path(folder) / "keys.json", slug="keys", scan="smollm2")
    print((Path(folder) / "keys.json").stat().st_size // 1000, "kB")

# %% [markdown]
# ## Beside the paper

# %%
first = frozen.totals().values.abs().flatten().topk(60).indices
first = torch.stack(torch.unravel_index(first, frozen.totals().values.shape), 1).tolist()
mine = ml.attribution_graph(frozen, [tuple(place) for place in first]).scores()
mine = {f"{name} score of one prompt": value for name, value in mine.items()}
mine["neurons in the circuit of agreement"] = next(
    n for n, share in zip(many, left["are − is"].values[0], strict=True) if share >= 0.9
)
ml.reference.table("53", mine)

# %% kind="assert"
claim(model, "completeness", mine["completeness score of one prompt"], says=0.41, within=0.05)
claim(model, "replacement", mine["replacement score of one prompt"], says=0.06, within=0.03)
claim(model, "neurons", mine["neurons in the circuit of agreement"], says=60, within=1)

# %% [markdown]
# Completeness and replacement score ask how much of a one-prompt graph begins in errors, here the neurons left out. Ours has 60 neurons, the paper's thousands of features before it is pruned. That few neurons make a circuit of agreement, without any dictionary, was found by Arora et al. 2026: about a hundred, ranked with RelP, which has the half rule.
#
# | term | meaning |
# |---|---|
# | attribution graph | nodes (neurons or features at a position) and how much each gave to another |
# | frozen run | attention patterns and norm lengths held, so that all else adds up |
# | half rule | a product of two gives half of itself back through each factor |
# | secant | the slope of the line through two points of a curve: exact for the change between them |
# | kept, away | the share of the change left with only some neurons kept, and with only these exchanged |
# | transcoder | a dictionary in the place of an MLP, from what it reads to what it writes |
#
# `ml.Contrast`, `ml.FrozenRun`, `ml.kept_and_away`, `ml.attribution_graph`, `ml.supernode`, `ml.group_hooks`, `ml.matched_groups`. Next: two hops, notebook 57.
