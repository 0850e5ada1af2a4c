# %% [markdown]
# # 55 Planted circuits
#
# **Question:** if you knew the answer, would your method find it?
#
# After this notebook you will be able to
#
# - write a small circuit down as a program, compile it into a model, and prove that the model runs it,
# - judge a method by its distance from a mistake instead of by an area under a curve,
# - say which kind of circuit fools which method, and choose a second method that it does not fool,
# - find what no change of a single part can show.
#
# Time: 135 minutes. The cells take about 20 seconds in all. Memory: 1.5 GB.
# Download: none, once the model is here (93 MB). Before: notebooks 24, 31 and 43.

# %% kind="setup"
# (written by the build)

# %% [markdown]
# ## The picture
#
# In a trained model nobody knows which heads do the work, so no method can be marked. Here we write a circuit down, a **plan**, and compile it into a small GPT-2: four layers of six heads. Nothing is trained, and we know what a method should say.
#
# The first plan is a small IOI: "Ann and Ben went , Ann gave to" asks for Ben. Three heads do it. The other 21 do something by chance.

# %%
from itertools import combinations
from math import comb

import pandas as pd

from mechlab.circuits.planted.traps import dialled

circuit = ml.planted("ioi")
asked = circuit.prompts(32)  # balanced pairs; the corrupted prompt asks for the other name
difference = asked.metric(circuit.model(asked.clean))
print(circuit.plan)
print(f"logit difference {difference.mean():.2f}, right in {(difference > 0).float().mean():.2f}")


# %%
def ablated(circuit, asked, how):
    every = [tuple(place) for place in (circuit.truth | True).nonzero().tolist()]
    source = None if how == "zero" else asked.corrupted
    found = ml.ablation_effects(circuit.model, asked.clean, asked.metric, every, how, source=source)
    return ml.Scores(found.values.view(circuit.truth.shape), ("layer", "head"), found.name)


patch, guess = ml.activation_patching, ml.attribution_patching
methods = {
    "direct logit attribution": lambda c, a: ml.direct_logit_attribution(
        c.model, a.clean, *a.metric.tokens, unit="head"
    ),
    "patching, denoising": lambda c, a: patch(c.model, a.corrupted, a.clean, a.metric, "z"),
    "patching, noising": lambda c, a: patch(c.model, a.clean, a.corrupted, a.metric, "z"),
    "ablation, mean": lambda c, a: ablated(c, a, "mean"),
    "ablation, zero": lambda c, a: ablated(c, a, "zero"),
    "attribution patching": lambda c, a: guess(c.model, a.corrupted, a.clean, a.metric),
    "attribution patching, 8 steps": lambda c, a: guess(c.model, a.corrupted, a.clean, a.metric, steps=8),
}


def shares(circuit, scores):
    """Sizes as shares of the largest, the heads of the plan first, and their names."""
    sizes, (_, count) = scores.values.abs().flatten(), circuit.truth.shape
    named = {layer * count + head: name for name, (layer, head) in circuit.heads.items()}
    order = [*named, *(n for n in range(len(sizes)) if n not in named)]
    return sizes[order] / sizes.max(), [named.get(n, f"{n // count}.{n % count}") for n in order]


# %%
sharp = ml.planted("ioi", lambda plan: dialled(plan, 2.0))  # all attention scores twice as large
picked = ["direct logit attribution", "ablation, mean", "attribution patching"]
rows = {name: shares(circuit, methods[name](circuit, asked)) for name in picked}
rows["the same, attention sharper"] = shares(
    sharp, guess(sharp.model, asked.corrupted, asked.clean, asked.metric)
)
values = torch.stack([row for row, _ in rows.values()])
labels = {"method": [*rows], "head": rows[picked[0]][1]}
picture = ml.Scores(values, ("method", "head"), "share of the largest score", labels, signed=False)
picture.plot(title="Three heads do it. Who sees them?")

# %% kind="assert"
claim(model, "the logit difference", difference.mean(), says=3.26, within=0.03)
claim(model, "sharper", asked.metric(sharp.model(asked.clean)).mean(), says=3.73, within=0.05)
claim(model, "direct, the first two", values[0, :2].max(), says=0.0, within=0.02)
claim(model, "mean, the weakest of the three", values[1, :3].min(), says=1.0, within=0.02)
assert values[2, :3].min() > 0.3 and values[3, :3].min() < 0.01 and circuit.truth.sum() == 3
assert circuit.truth.numel() == 24 and values[:, 3:].max() < 0.05

# %% [markdown]
# Direct logit attribution sees the last head alone: the first two write nothing to the logits. Mean ablation sees all three, equally. Attribution patching sees them too, and then, with all attention twice as sharp, no longer. The model is as good as before (3.73 after 3.26). *Only the guess went blind.*
#
# ## The language of plans
#
# The residual stream holds named **channels**: "token", "pos", and those that the plan adds. A head has two kinds of terms.
#
# - **Match**: look where the query's channel holds the code that the key's channel holds. `Match("pos", "pos", shift=-1)` looks one position back.
# - **Move**: take what stands in one channel, where you look, to another channel, where you stand.
#
# An MLP is a **truth table**: one neuron for each rule. Each channel lies in directions drawn by chance, so that no axis of the stream gives the plan away.
#
# ### Exercise 55.1 Where a planned head looks
#
# Difficulty 2 of 5 · 10 minutes · needs notebook 23, attention


# %% kind="exercise" id="55.1"
@exercise("55.1")
def planned_pattern(
    query: Float[Tensor, "pos code"], key: Float[Tensor, "pos code"], gain: float, shift: int
) -> Float[Tensor, "query_pos key_pos"]:
    """The attention of one Match: a causal softmax over gain · agreement.

    Code c of a query agrees with code c + shift of a key. Codes that fall off the end agree with nothing.
    """
    # >>> solution
    codes = query.shape[1]
    agree = torch.diag_embed(torch.ones(codes - abs(shift)), shift)  # [query's code, key's code]
    scores = gain * query @ agree @ key.T
    hidden = torch.ones(scores.shape, dtype=torch.bool).triu(1)
    return scores.masked_fill(hidden, -torch.inf).softmax(-1)
    # <<< solution


# %% kind="check"
check(planned_pattern)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# A matrix between query and key says which codes belong together: ones on a diagonal that is moved by `shift`.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# `torch.diag_embed(torch.ones(codes - abs(shift)), shift)` is that matrix. Scores are `gain * query @ it @ key.T`. Hide later keys with `-torch.inf`, then `softmax(-1)`.
#
# </details>

# %% [markdown]
# ## A program that you write
#
# A plan *is* a program (the idea is RASP's, Weiss et al. 2021, and Tracr's, Lindner et al. 2023). Whether a model runs a program can be tested, and not only on its answers. Exchange the part that should hold a variable for the same part of a run on another input. The answer must be what the program says for the exchanged variable. The share of exchanges in which it is, is the **interchange accuracy** (notebook 44).
#
# ### Exercise 55.2 The larger of two digits
#
# Difficulty 3 of 5 · 25 minutes · needs the language above
#
# Prompts are "2 4 =", with digits from 0 to 4, and the model must say the larger one. Give the plan two heads, "first" and "second", which bring the digits to the "=", and a table that writes the answer. Let rules write with size 2: with 1 the heads that act by chance are sometimes louder.
#
# The check asks all 25 inputs, and exchanges each head on all 625 pairs of inputs.


# %% kind="exercise" id="55.2"
@exercise("55.2")
def my_program() -> ml.Plan:
    """A plan for "a b =": the larger digit. Heads "first" and "second" bring the two digits to the end.

    Words: "<begin>", which begins every prompt, "=" and the digits "0" to "4". What plans are made of is to be
    had here by `from mechlab.circuits.planted.plan import Head, Match, Move, Plan, Rule, Table`.
    """
    # >>> solution
    from mechlab.circuits.planted.plan import Head, Match, Move, Plan, Rule, Table

    words = ("<begin>", "=", *"01234")
    look = lambda shift: (Match("pos", "pos", shift=shift),)
    heads = [
        Head("first", 0, look(-2), (Move("token", "a"),)),
        Head("second", 0, look(-1), (Move("token", "b"),)),
    ]
    code = lambda digit: words.index(str(digit))
    rules = [
        Rule({"a": code(a), "b": code(b)}, {"answer": (code(max(a, b)), 2.0)})
        for a in range(5)
        for b in range(5)
    ]
    channels = {"a": len(words), "b": len(words)}
    return Plan(words, 8, channels, heads, [Table("larger", 1, rules)])
    # <<< solution


# %% kind="check"
check(my_program)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# At "=", the first digit stands two positions back. Two channels, one for each digit, have as many codes as there are words. A rule for each pair of digits.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# `Head("first", 0, [Match("pos", "pos", shift=-2)], [Move("token", "a")])`, a second one with `shift=-1`; `Rule({"a": code_a, "b": code_b}, {"answer": (code_of_the_larger, 2.0)})`; `Plan(words, 8, {"a": 7, "b": 7}, heads, [Table("larger", 1, rules)])`. A code is the word's number in `words`.
#
# </details>


# %% kind="wrong" id="55.2" expects="head 'first' carries"
@exercise("55.2")
def my_program():
    from mechlab.circuits.planted.plan import Head, Match, Move, Plan, Rule, Table

    words = ("<begin>", "=", *"01234")
    heads = [
        Head("first", 0, (Match("pos", "pos", shift=-1),), (Move("token", "a"),)),
        Head("second", 0, (Match("pos", "pos", shift=-2),), (Move("token", "b"),)),
    ]
    code = lambda digit: words.index(str(digit))
    pairs = [(a, b) for a in range(5) for b in range(5)]
    rules = [Rule({"a": code(a), "b": code(b)}, {"answer": (code(max(a, b)), 2.0)}) for a, b in pairs]
    return Plan(words, 8, {"a": 7, "b": 7}, heads, [Table("larger", 1, rules)])


# %% kind="wrong" id="55.2" expects="of 25 inputs"
@exercise("55.2")
def my_program():
    from mechlab.circuits.planted.plan import Head, Match, Move, Plan, Rule, Table

    words = ("<begin>", "=", *"01234")
    heads = [
        Head("first", 0, (Match("pos", "pos", shift=-2),), (Move("token", "a"),)),
        Head("second", 0, (Match("pos", "pos", shift=-1),), (Move("token", "b"),)),
    ]
    code = lambda digit: words.index(str(digit))
    pairs = [(a, b) for a in range(5) for b in range(5)]
    rules = [Rule({"a": code(a), "b": code(b)}, {"answer": (code(min(a, b)), 2.0)}) for a, b in pairs]
    return Plan(words, 8, {"a": 7, "b": 7}, heads, [Table("larger", 1, rules)])


# %% kind="wrong" id="55.2" expects="no head 'second'"
@exercise("55.2")
def my_program():
    from mechlab.circuits.planted.plan import Head, Match, Move, Plan, Rule, Table

    words = ("<begin>", "=", *"01234")
    head = Head("first", 0, (Match("pos", "pos", shift=-2),), (Move("token", "answer", 2.0),))
    return Plan(words, 8, {}, [head])


# %% [markdown]
# ## Does a method find it?
#
# Now the methods. Each gives a number for each of 24 heads; three should be large. The usual figure is the **AUROC**: the probability that a true head has a larger score than a false one.
#
# ### Exercise 55.3 AUROC
#
# Difficulty 2 of 5 · 10 minutes · needs counting pairs


# %% kind="exercise" id="55.3"
@exercise("55.3")
def auroc(scores: Float[Tensor, "place"], truth: Int[Tensor, "place"]) -> Float[Tensor, ""]:
    """The share of pairs (a true place, a false one) in which the true one has the larger size; a tie is half.

    truth: 1 for a true place, 0 for a false one, -1 for one that is not to be judged
    """
    # >>> solution
    sizes = scores.abs()
    true, false = sizes[truth == 1], sizes[truth == 0]
    ahead = true[:, None] - false
    return ((ahead > 0).double() + (ahead == 0).double() / 2).mean().float()
    # <<< solution


# %% kind="check"
check(auroc)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# All pairs at once: true places as a column, false ones as a row.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# With `ahead = true[:, None] - false`: count 1 where it is above zero and a half where it is zero, and take the mean.
#
# </details>


# %%
def judged(circuit, asked):
    """All methods on one circuit, judged: one row a method."""
    found = {
        name: ml.score_against(method(circuit, asked), circuit.truth, excluded=circuit.open)
        for name, method in methods.items()
    }
    return pd.DataFrame(found).T


third = circuit.prompts(32, corruption="third")  # the corrupted prompt asks for neither of the two names
table = judged(circuit, third)
table.round(2)

# %% kind="assert"
assert (table.auroc[1:] == 1).all() and table.auroc.iloc[0] < 0.5
claim(model, "denoising", table["weakest true"]["patching, denoising"], says=0.56, within=0.03)
claim(model, "attribution", table["weakest true"]["attribution patching"], says=0.09, within=0.02)
claim(
    model,
    "attribution, flip",
    judged(circuit, asked)["weakest true"]["attribution patching"],
    says=0.35,
    within=0.03,
)
assert table["strongest false"].max() < 0.05

# %% [markdown]
# All but one have an AUROC of 1.00, a perfect score. Are we done? Look at the third column. A true head that gets a tenth of the largest score falls out of the circuit at the usual cut, and the AUROC knows nothing of it. In attribution patching the weakest true head has 0.09.
#
# So judge by two other numbers: the **weakest true** score and the **strongest false** one, as shares of the largest. *How far they are from the cut* is how far the method is from a mistake.
#
# And mind the counterfactual. Here the corrupted prompt names a third person; with the two names exchanged (**flip**), as in our picture, attribution patching gave 0.35.
#
# ### Exercise 55.4 How far from a mistake
#
# Difficulty 1 of 5 · 5 minutes · needs the lines above


# %% kind="exercise" id="55.4"
@exercise("55.4")
def margins(scores: Float[Tensor, "place"], truth: Int[Tensor, "place"]) -> Float[Tensor, "2"]:
    """The weakest true size and the strongest false one, each over the largest size of all that counts.

    truth: 1 for a true place, 0 for a false one, -1 for one that is not to be judged
    """
    # >>> solution
    sizes = scores.abs()
    true, false = sizes[truth == 1], sizes[truth == 0]
    return torch.stack([true.min(), false.max()]) / sizes[truth >= 0].max()
    # <<< solution


# %% kind="check"
check(margins)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Sizes first. Then drop what is not to be judged, also for the largest.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# `torch.stack([true.min(), false.max()]) / sizes[truth >= 0].max()`.
#
# </details>

# %% [markdown]
# ## Traps
#
# A **trap** changes the plan and leaves the behaviour (nearly) as it is. The first: **OR**. Two equal heads find the repeated name, and either is enough. Take the noising patch with the third name: one head at a time gets the wrong prompt's output. What is the weaker one's score, as a share of the largest?

# %% kind="predict"
predict("55.p", 0.5)

# %%
trapped = {trap: ml.planted("ioi", trap) for trap in ("or", "and")}
tables = {trap: judged(each, each.prompts(32, corruption="third")) for trap, each in trapped.items()}
weak = lambda trap, name: tables[trap]["weakest true"][name]
pd.DataFrame({trap: each["weakest true"] for trap, each in tables.items()}).round(2)

# %% kind="assert"
claim(model, "OR, noising", weak("or", "patching, noising"), says=0.04, within=0.02)
claim(model, "OR, denoising", weak("or", "patching, denoising"), says=0.58, within=0.03)
claim(model, "AND, noising", weak("and", "patching, noising"), says=0.78, within=0.03)
claim(model, "AND, denoising", weak("and", "patching, denoising"), says=0.27, within=0.03)
claim(model, "OR, zero", weak("or", "ablation, zero"), says=0.03, within=0.02)
assert tables["or"]["auroc"]["patching, noising"] > 0.9

# %% kind="compare"
reveal("55.p", f"{weak('or', 'patching, noising'):.2f}")

# %% [markdown]
# <details><summary>What we saw</summary>
#
# 0.04. Whoever takes one of two away sees next to nothing, because the other one is there. Denoising asks "is it *enough*?" and sees both (0.58). **AND** (two heads of half strength, both needed) is the mirror image: noising 0.78, denoising 0.27. The AUROC of noising on OR stays above 0.9.
#
# </details>
#
# **Question 55.a.** A head has a large score by denoising and next to none by noising. What is likely?
#
# - **a** It does nothing, and denoising is wrong.
# - **b** Another part does the same, and each of them is enough.
# - **c** It does something only together with another part, and both are needed.

# %% kind="quiz"
quiz("55.a", "b")

# %% [markdown]
# ## The dial
#
# One number turns every attention score of the plan. The exact patch, the gradient at one point, and the mean of gradients at ten points on the way:

# %%
gains, dial = [0.5, 1.0, 1.5, 2.0, 4.0, 8.0], []
for gain in gains:
    turned = ml.planted("ioi", lambda plan, gain=gain: dialled(plan, gain))
    pair = turned.model, asked.corrupted, asked.clean, asked.metric
    found = patch(*pair, "z"), guess(*pair), guess(*pair, steps=10)
    dial.append([ml.score_against(each, turned.truth)["weakest true"] for each in found])
    dial[-1].append(asked.metric(turned.model(asked.clean)).mean().item() / 4)
names = ["exact patch", "one gradient", "ten gradients", "logit difference / 4"]
labels = {"what": names, "gain": [f"×{gain:g}" for gain in gains]}
lines = ml.Scores(torch.tensor(dial).T, ("what", "gain"), "weakest true head (share of the largest)", labels)
lines.plot(lines=True, title="The same circuit, attention sharper and sharper")

# %% kind="assert"
claim(model, "one gradient, 1", dial[1][1], says=0.35, within=0.03)
assert all(row[0] > 0.85 for row in dial[1:]) and max(row[1] for row in dial[2:]) < 0.12
assert 4 * dial[1][3] > 3.2 and min(row[3] for row in dial[1:]) > 0.8 and dial[2][2] > dial[2][1]
assert dial[1][2] > dial[2][2] > dial[3][2] > 0.1 > dial[4][2]

# %% [markdown]
# Where attention is decided, its softmax is flat: a slope of nearly zero says that a small change does nothing, and the patch is no small change. Gradients on the way help, less and less.
#
# ## What you compare with
#
# Two traps for **zero ablation**. *Constant*: a head writes the same at every prompt, and a reader needs it. *Backup*: a second name mover wakes up when the first did not raise a flag that says "done".

# %%
more = {}
for trap in ("constant", "backup"):
    each = ml.planted("ioi", trap)
    more[trap] = judged(each, each.prompts(32)).loc[["ablation, mean", "ablation, zero"]]
pd.concat(more)[["auroc", "weakest true", "strongest false"]].round(2)

# %% kind="assert"
read = lambda trap, how, what: more[trap][what][f"ablation, {how}"]
claim(model, "constant, zero", read("constant", "zero", "strongest false"), says=0.64, within=0.04)
claim(model, "constant, mean", read("constant", "mean", "strongest false"), says=0.03, within=0.02)
claim(model, "backup, zero", read("backup", "zero", "weakest true"), says=0.01, within=0.02)
claim(model, "backup, mean", read("backup", "mean", "weakest true"), says=0.96, within=0.03)

# %% [markdown]
# Zero ablation accuses the constant head (0.64): without its constant the reader looks at the wrong place. Yet it carries no information about the prompt. And zero ablation acquits the name mover (0.01): zero wipes the flag too, so the backup wakes. The mean keeps the flag. *Self-repair is also a property of the ablation.*
#
# ## What nobody sees alone
#
# Last trap: two more heads, "for" and "against". One writes the answer, the other takes it away again. Together they do nothing at all. How many of the seven methods give one of the two more than a tenth of the largest score?

# %% kind="predict"
predict("55.q", 3)

# %%
cancel = ml.planted("ioi", "cancel")
accused = judged(cancel, cancel.prompts(32, corruption="third"))["strongest false"]
accused.round(2).to_frame()

# %% kind="assert"
assert (accused > 0.1).sum() == 7
claim(model, "the mildest", accused.min(), says=0.73, within=0.03)

# %% kind="compare"
reveal("55.q", int((accused > 0.1).sum()))

# %% [markdown]
# <details><summary>What we saw</summary>
#
# All seven, at 0.73 and more. Each of them judges one head at a time, and either head alone does a lot.
#
# </details>
#
# To see it, change several at once. Let v(S) be the logit difference when the heads in S get the outputs of the corrupted run. The **interaction** of two is v(both) − v(one) − v(other) + v(none). The **Shapley value** of a head (notebook 11 has it for tokens) is its change of v when it joins, averaged over all orders.
#
# ### Exercise 55.5 Shapley values of heads
#
# Difficulty 3 of 5 · 20 minutes · needs `itertools`


# %% kind="exercise" id="55.5"
@exercise("55.5")
def head_shapley(value, players: int) -> Float[Tensor, "player"]:
    """For players 0, 1, ...: the mean over all orders of value(those before and the player) − value(those before).

    value: a function; it takes a frozenset of players and gives a number
    """
    # >>> solution
    from itertools import permutations

    total, orders = torch.zeros(players), [*permutations(range(players))]
    for order in orders:
        for n, player in enumerate(order):
            total[player] += value(frozenset(order[: n + 1])) - value(frozenset(order[:n]))
    return total / len(orders)
    # <<< solution


# %% kind="check"
check(head_shapley)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# With five players there are only 120 orders. Go through them all.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# `itertools.permutations(range(players))`. In each order, the player at place n adds `value(frozenset(order[: n + 1])) - value(frozenset(order[:n]))`. Divide by the number of orders.
#
# </details>


# %%
def exchanges(circuit):
    """v(S) for every set S of the plan's heads: the metric with those heads from the corrupted run."""
    asked, names = circuit.prompts(32, corruption="third"), [*circuit.heads]
    base, source = (ml.run_of(circuit.model, each) for each in (asked.clean, asked.corrupted))
    sets = [frozenset(s) for k in range(len(names) + 1) for s in combinations(names, k)]
    gone = torch.zeros(len(sets), *circuit.truth.shape, dtype=torch.bool)
    for row, members in enumerate(sets):
        for name in members:
            gone[(row, *circuit.heads[name])] = True
    layers = range(gone.shape[1])
    puts = [ml.Put("z", n, source.at("z", n)[None], gone[:, n, None, None]) for n in layers]
    return dict(zip(sets, base.edited(asked.metric, puts).mean(1).tolist(), strict=True))


def weighed(v):
    """Shapley values by sets instead of orders: the same numbers."""
    names = [*max(v, key=len)]
    weight = lambda s: 1 / (len(names) * comb(len(names) - 1, len(s)))
    joins = lambda name: sum(weight(s) * (v[s | {name}] - v[s]) for s in v if name not in s)
    return {name: joins(name) for name in names}


# %%
rows, credit = {}, {}
asked_for = [("for", "against"), ("name mover", "against"), ("duplicate", "duplicate again")]
for trap, pair in zip(("cancel", "cancel", "or"), asked_for, strict=True):
    v = exchanges(ml.planted("ioi", trap))
    credit[trap] = weighed(v)
    one, other, both, none = (v[frozenset(s)] for s in (pair[:1], pair[1:], pair, ()))
    rows[", ".join(pair)] = [none, one, other, both, both - one - other + none]
columns = ["none", "one", "other", "both", "interaction"]
together = pd.DataFrame(rows, columns).T
print({trap: {name: round(x, 2) for name, x in each.items()} for trap, each in credit.items()})
together.round(2)

# %% kind="assert"
claim(model, "cancel, none", together["none"].iloc[0], says=3.28, within=0.05)
claim(model, "cancel, both", together["both"].iloc[0], says=3.28, within=0.05)
claim(model, "for", credit["cancel"]["for"], says=-0.54, within=0.05)
claim(model, "against", credit["cancel"]["against"], says=0.54, within=0.05)
claim(model, "OR, both", together["both"].iloc[2], says=-0.99, within=0.1)
claim(model, "duplicate", credit["or"]["duplicate"], says=-0.46, within=0.05)
assert (
    together["one"].iloc[2] > 3.3
    and abs(together["both"].iloc[1] - together["both"].iloc[0]) < 1e-3
    and abs(together["interaction"].iloc[0]) < 0.05
)

# %% [markdown]
# **OR:** one gone changes nothing, both gone everything (−0.99). The interaction says so, and Shapley values credit both alike (−0.46).
#
# **Cancel:** without both the logit difference is what it was, 3.28. (The interaction is 0: two effects that simply add up.) But without the *name mover* and "against" it is 3.28 too. The experiment says that one of two equal heads has a partner, and not which. Shapley values do not even say that: they still blame each of the two (−0.54 and 0.54): each does something, whatever the other does. Their sum is 0. *Judge parts that might belong together as a group.*
#
# ## The board
#
# The same for 28 ways to score heads and MLPs, three tasks, three seeds. [Methods on trial](../docs/methods_on_trial.md) has it whole. Here the **weakest true** part, the worst of two tasks (names, induction) and their seeds:

# %%
board = pd.read_csv(ml.reference.data_dir() / "reference" / "planted.csv")
shown = ["patching, denoise, third", "patching, noise, third", "ablation, zero", "ablation, mean"]
shown += ["attribution at corrupted, flip", "attribution, 8 steps, third", "pruning, error by prompt"]
traps = ["plain", "or", "and", "backup", "saturated", "constant", "decoy", "cancel", "position"]
nodes = board[board.level == "nodes"]
chains = nodes.task != "sum"
worst = nodes[chains].pivot_table("weakest true", "method", "trap", "min").loc[shown, traps]
labels = {"method": shown, "trap": traps}
values = torch.tensor(worst.values.tolist())
picture = ml.Scores(values, ("method", "trap"), "weakest true part, worst case", labels, signed=False)
picture.plot(title="Who misses what")

# %% kind="assert"
single = worst.loc[["patching, noise, third", "ablation, mean"]]
sums = nodes[~chains & (nodes.trap == "plain") & (nodes.method == shown[0])]["weakest true"]
claim(model, "denoising, OR", worst["or"].iloc[0], says=0.52, within=0.03)
claim(model, "denoising, AND", worst["and"].iloc[0], says=0.20, within=0.03)
claim(model, "the sum, denoising", sums.min(), says=0.08, within=0.03)
assert (
    single["position"].max() < 0.02
    and (single.drop(columns=["or", "position"]) > 0.6).all(axis=None)
    and worst["saturated"].iloc[4:6].max() < 0.12
)
assert worst["backup"]["ablation, zero"] < 0.05 and worst["or"].iloc[1:4].max() < 0.05

# %% [markdown]
# - **OR** hides from what takes one part away. Denoising sees it (0.52), and nearly misses an **AND** (0.20).
# - **Noising** with a third name and **mean ablation** miss a part in two columns only: OR, and **position**, a head that is for the answer in one prompt and against it in the next. Nearly every method misses that one.
# - The gradients are blind where attention is **saturated** and decides the answer, zero ablation where there is a **backup**.
# - An AND needs no trap. In the sum of two digits, one digit brought back leaves the sum as unknown as before: denoising (third) gives the weakest part 0.08 on the *plain* plan.
# - This table shows what is missed, and not who is accused. So **cancel** and **constant** look harmless in it.

# %% [markdown]
# **Question 55.b.** You may use two methods on a circuit that you do not know. Which pair leaves the fewest of these traps open?
#
# - **a** Zero ablation and mean ablation.
# - **b** Attribution patching at two points.
# - **c** Noising, and a second method that changes several parts at once.

# %% kind="quiz"
quiz("55.b", "c")

# %% [markdown]
# ## Edges
#
# The plan says who reads whom, too. How purely do the true edges stand at the top of a ranking (**average precision**, worst seed, the task of two names)?

# %%
names = [
    "edge attribution at corrupted",
    "edge attribution, 8 steps",
    "path patching, denoise",
    "path patching, noise",
]
edges = board[(board.level == "edges") & (board.task == "ioi")]
edges = edges.pivot_table("average precision", "method", "trap", "min")
edges = edges.loc[[f"{name}, {how}" for name in names for how in ("flip", "third")]]
edges[["plain", "or", "saturated", "decoy", "cancel"]].round(2)

# %% kind="assert"
said = lambda name, trap="plain": edges[trap][name]
claim(model, "noise, third", said("path patching, noise, third"), says=1.0, within=0.01)
claim(model, "denoise, third", said("path patching, denoise, third"), says=0.60, within=0.03)
claim(model, "gradient, third", said("edge attribution at corrupted, third"), says=0.60, within=0.03)
assert max(said(f"{name}, flip") for name in names) < 0.65 and edges["cancel"].max() < 0.6

# %% [markdown]
# With flip nobody finds all edges, *the exact method included*: the mark "this name came before" is the same in both runs, so the edges that carry it carry no difference. With the third name it depends on the method. Noising puts all true edges first (1.00); denoising, exact too, has 0.60, and so has one gradient. **The counterfactual and the direction must fit the edge.** Nobody survives cancel.
#
# ## A circuit that was trained
#
# A hand-made model may be too tidy. Here is one that was trained (InterpBench's way, Gupta et al. 2024): to answer, *and* so that three chosen heads hold what the program's three heads hold. Exchange such a head, and the answer must change as the program's would; exchange all else, and it must stay. Beside it a **twin**: the same prompts, trained for the answer alone.

# %%
trained, twin = ml.planted_trained(), ml.planted_trained(twin=True)
figures = pd.DataFrame(
    {"trained": trained.figures, "twin": twin.figures}
).T  # names never together in training
prompts = trained.prompts(32, corruption="third")
marks = judged(trained, prompts)
runs = ml.Counterfactuals(trained.model, prompts.clean, prompts.corrupted, prompts.metric)
curves = {
    name: ml.circuit_curve(runs, methods[name](trained, prompts), truth=trained.truth)
    for name in ("direct logit attribution", "patching, noising")
}
areas = pd.concat({name: curve.areas() for name, curve in curves.items()})
print(figures[["behaviour", *trained.heads, "strict"]].round(2))
print(marks[["weakest true", "strongest false"]].round(2))
areas

# %% kind="assert"
assert (figures[["behaviour", *trained.heads]].iloc[0] == 1).all() and figures["behaviour"].iloc[1] == 1
assert figures[[*trained.heads]].iloc[1].max() < 0.03 and (marks.auroc[1:] == 1).all()
claim(model, "trained, strongest false", marks["strongest false"].max(), says=0.04, within=0.02)
weakest = marks["weakest true"]
claim(model, "trained, attribution", weakest["attribution patching"], says=0.06, within=0.03)
claim(model, "trained, 8 steps", weakest["attribution patching, 8 steps"], says=0.52, within=0.06)
cmd = lambda name, row: areas.CMD[name, row]
claim(model, "CMD, noising", cmd("patching, noising", "ranking"), says=0.17, within=0.03)
claim(model, "CMD, direct", cmd("direct logit attribution", "ranking"), says=0.59, within=0.05)
claim(model, "CMD, random", cmd("patching, noising", "random, mean"), says=0.78, within=0.04)
claim(model, "CMD, truth", cmd("patching, noising", "truth"), says=0.19, within=0.03)
claim(model, "CMD, luckiest", cmd("patching, noising", "random, best"), says=0.30, within=0.03)

# %% [markdown]
# Both always answer right. In the trained one every exchange does what the program says; in the twin next to none. *Behaviour does not tell whether these heads run the program.* ("Strict": all but the three exchanged, the answer stays. The first two hold one variable at two positions; this exchange cannot tell them apart.)
#
# The methods find the three heads here as well. One gradient gives the weakest of the three 0.06, eight steps 0.52; but in the plain plan, without a trap, one gradient has 0.09 with these prompts. So this is not the trap of sharp attention.
#
# The last table marks them without knowing the truth, as one must in a real model: keep the k best nodes, exchange the rest, and see which share f of the metric is back. **CPR** is the area under f over k, **CMD** the area under |1 − f| (after MIB, Mueller et al. 2025, which weighs edges; here nodes). By CMD noising has 0.17, direct attribution 0.59, random rankings 0.78 in the mean, and the luckiest of twenty 0.30. The truth itself has 0.19, no better than noising: CMD does not tell good rankings apart. (One of four models trained so learned the task and not the program. It is not shown.)
#
# ## In the real model
#
# | trap | where | what was seen |
# |---|---|---|
# | OR, or a backup | 42, self-repair | without its four name movers the model loses next to nothing; other heads say more |
# | negative | 42, 29.0 | a head that works against the answer: without it the logit difference is larger |
# | the ablation's value | 42, 20.0 | zeroed or averaged over other prompts, half is lost; averaged over IOI prompts, nothing: the mean knows the answer |
# | a wrong slope, but not ours | 43, 20.0 | the guess loses a head that brings back half: one bad edge, into a gated MLP, where two factors move at once |
#
# ## How this misleads
#
# - **Planted is kinder than trained.** Channels are at right angles, other heads are quiet. A method that passes here has passed an easy exam.
# - **Seeds are not the main uncertainty.** They move heads about, and scores mostly by less than 0.1. The choice of plans and gains is ours.
# - **"True" is a decision.** Does the constant head belong? Does a backup that sleeps? And in cancel the name mover and "for" do the same: no experiment on the answers says which of the two has the partner. The author knows.
#
# ### Exercise 55.6 Plant a trap
#
# Difficulty 5 of 5 · 45 minutes · needs all of the above
#
# Build a plan that fools a method of your choice, and not by one of the library's traps, however loud its answer. Behaviour must stay: logit difference and accuracy within 5 % of the plain plan's. The method must give some head of your plan less than a tenth of the largest score, at two seeds, though exchanging that head (alone or together with others of your plan) changes the logit difference by a quarter.
#
# Methods: those of our list, but direct logit attribution. The corrupted prompts name a third person; for attribution patching at one point they exchange the names.


# %% kind="exercise" id="55.6"
@exercise("55.6")
def my_trap(plan: ml.Plan) -> tuple[str, ml.Plan]:
    """The name of a method, and a plan that fools it; `plan` is that of "ioi"."""
    # >>> solution
    from dataclasses import replace

    from mechlab.circuits.planted.traps import dialled

    return "attribution patching", replace(dialled(plan, 3.0), gain=0.87 * plan.gain)
    # <<< solution


# %% kind="check"
check(my_trap)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Look at the board for a cell that is nearly 0. What made it so, and how far is its behaviour off? A trap may change the size of the answer; the plan's `gain` turns it back.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# `replace(plan, heads=[...], gain=...)` makes another plan, `replace(head, match=[...])` another head. `ml.planted("ioi", lambda plan: yours)` compiles it; `judged` marks all methods.
#
# </details>


# %% kind="wrong" id="55.6" expects="one of the library's"
@exercise("55.6")
def my_trap(plan):
    from mechlab.circuits.planted.traps import either

    return "patching, noising", either(plan)


# %% kind="wrong" id="55.6" expects="logit difference"
@exercise("55.6")
def my_trap(plan):
    from mechlab.circuits.planted.traps import dialled

    return "attribution patching", dialled(plan, 3.0)


# %% kind="wrong" id="55.6" expects="is not fooled"
@exercise("55.6")
def my_trap(plan):
    from dataclasses import replace

    from mechlab.circuits.planted.traps import dialled

    return "ablation, mean", replace(dialled(plan, 3.0), gain=0.87 * plan.gain)


# %% [markdown]
# ## Beside the papers

# %%
ml.reference.table("55")

# %% [markdown]
# Tracr compiles programs too, with dimensions that can be read off and no norm; InterpBench trains its models to have a given circuit. MIB (Mueller et al. 2025) marks methods mostly by how much of the behaviour their circuits bring back; for one model, from InterpBench, the circuit is known.
#
# | term | meaning |
# |---|---|
# | planted circuit | one that was written into a model, so that it is known |
# | plan | a program for a model: channels, heads as match and move, MLPs as truth tables |
# | AUROC | the share of pairs, a true part and a false one, that the scores put in the right order |
# | average precision | how pure the top of a ranking is, over all of its lengths |
# | weakest true, strongest false | the two scores nearest to a mistake, as shares of the largest |
# | OR, AND | two parts of which one is enough, or of which both are needed |
# | interaction | what two changes do together beyond the sum of what each does |
# | Shapley value | what a part adds when it joins, averaged over all orders |
#
# `ml.planted`, `ml.Plan`, `ml.score_against`, `ml.Put`. Papers: Weiss et al. 2021 (RASP), Lindner et al. 2023 (Tracr), Gupta et al. 2024 (InterpBench), Mueller et al. 2025 (MIB).
