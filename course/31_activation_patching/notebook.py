# %% [markdown]
# # 31 Activation patching and causal tracing
#
# **Question:** which activations carry the answer?
#
# After this notebook you will be able to
#
# - put one activation of one run into another run, and say how much of the answer came with it,
# - tell an AND from an OR, say which of denoising and noising can see it, and design a corruption for what you look for,
# - trace facts through the model with noise, and name four ways in which such a map misleads.
#
# Time: 100 minutes. The cells take about 90 seconds in all. Memory: 2.0 GB.
# Download: none, once the model is here (93 MB). Before: notebooks 03, 12 and 24.

# %% kind="setup"
# (written by the build)

# %% [markdown]
# ## The picture
#
# Thirty-two sentences like "When Laura and Larry walked to the school, **Laura** gave a ring to". They are balanced: sixteen couples in eight
# templates, and in each couple either person is once the one who is named again. These are the **clean** prompts. In the **corrupted** ones the *other*
# person is named again: "... **Larry** gave a ring to". One token differs, and the answer turns round.
#
# Now run the model on the corrupted sentence, but take *one* vector of its residual stream, on entering one layer, at one position, from the clean run.
# How far does the logit difference come back? 0: not at all, 1: all the way. Each square is one such patch, on all the sentences.

# %%
prompts = ml.ioi_prompts(model, 32)
corrupted, metric = prompts.corrupted("flip"), prompts.metric
print(prompts.text(0), corrupted.text(0), sep="\n")
assert ((prompts.tokens != corrupted.tokens).sum(1) == 1).all()
shown = [0, 10, *range(19, 26)]
places = {"other name": prompts.positions["IO"], "name, first time": prompts.positions["S1"]}
places |= {"name, again": prompts.positions["S2"], "end": prompts.positions["end"]}
stream = ml.activation_patching(model, corrupted, prompts, metric, layers=shown, positions=places)
stream.plot(height=420)

# %% kind="assert"
assert prompts.pairs.unique(return_counts=True)[1].tolist() == [2] * 16
at = {layer: stream.values[row].tolist() for row, layer in enumerate(shown)}
claim(model, "corrupted", stream.baselines["base"], says=-4.5, within=0.1)
claim(model, "clean", stream.baselines["source"], says=4.5, within=0.1)
assert stream.values[:, :2].abs().max() == 0
assert at[19][2] > 0.97 and at[21][3] > 0.5 and at[25][3] > 0.9 and abs(at[25][2]) < 0.03

# %% [markdown]
# The clean model prefers the right name by 4.5 logits, the corrupted one the wrong name by exactly as much. That is no result: each corrupted
# prompt is its partner's clean one.
#
# The figure is a result. Up to layer 19 everything that matters is in one place, where the name comes again. Then it moves to the end. What carries it across must be
# attention, in layers 19 to 24. Which heads?
#
# ## By hand
#
# Three runs: on the **source**, kept in a cache; on the **base**, as it is; and on the base with one activation from the cache. The model always *reads*
# the base. Here base is the corrupted sentence and source the clean one. This is **denoising**; the other way round is **noising**.
#
# ### Exercise 31.1 One head from another run
#
# Difficulty 3 of 5 · 15 minutes · needs notebook 03, hooks


# %% kind="exercise" id="31.1"
@exercise("31.1")
def patched_run(
    model, base: Int[Tensor, "prompt pos"], source: Int[Tensor, "prompt pos"], layer: int, head: int
) -> Float[Tensor, "prompt pos d_vocab"]:
    """The logits on `base`, with what this head hands to W_O taken from the run on `source`, at all positions.

    The hook is `blocks.{layer}.attn.hook_z`, [prompt, pos, head, d_head]. No hook stays on the model.
    """
    # >>> solution
    name = f"blocks.{layer}.attn.hook_z"
    _, cache = model.run_with_cache(source, names_filter=name)

    def put(z, hook):
        changed = z.clone()
        changed[:, :, head] = cache[name][:, :, head]
        return changed

    with ml.intervene(model, [(name, put)]):
        return model(base)
    # <<< solution


# %% kind="check"
check(patched_run)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Two runs: one only to fill the cache, and one whose logits you return. Which of them reads `base`?
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# `model.run_with_cache(source)` gives logits and a cache. A hook function gets `(z, hook)` and returns a changed copy. Run the model on `base` inside
# `with ml.intervene(model, [(name, put)]):`.
#
# </details>


# %% kind="wrong" id="31.1" expects="still on the model"
@exercise("31.1")
def patched_run(model, base, source, layer, head):
    name = f"blocks.{layer}.attn.hook_z"
    _, cache = model.run_with_cache(source)

    def put(z, hook):
        z = z.clone()
        z[:, :, head] = cache[name][:, :, head]
        return z

    model.add_hook(name, put)
    return model(base)


# %% [markdown]
# The change in logits depends on how far apart the two runs were. So it is put on a scale, the **recovered** (or normalized) logit difference:
# (patched − base) / (source − base), of the means over the prompts. We also call it the share of the way. It can leave the scale: a patch can go the wrong way.
#
# Before you believe any patching code, three things must hold: everything patched gives 1, nothing patched gives 0, and a run patched with its own
# activations stays as it is. Here is one head, with the library's parts.

# %%
ends_in_z = lambda name: name.endswith("hook_z")
with torch.no_grad():
    logits, cache = model.run_with_cache(prompts.tokens, names_filter=ends_in_z)
    start, end = metric(model(corrupted.tokens)), metric(logits)
    with ml.intervene(model, ml.replace_head(model, (23, 3), cache)):
        after = metric(model(corrupted.tokens))
    with ml.intervene(model, ml.replace_head(model, (23, 3), cache)):
        own = metric(model(prompts.tokens))
by_hand = ml.recovered(after.mean(), start.mean(), end.mean())
print(f"{start.mean():.2f} → {after.mean():.2f}, of {end.mean():.2f}: a share of {by_hand:.2f}")

# %% kind="assert"
claim(model, "share of 23.3", by_hand, says=0.48, within=0.02)
assert (own - end).abs().max() < 1e-3
# by=() patches all positions at once
everything = ml.activation_patching(model, corrupted, prompts, metric, by=(), layers=[29])
assert abs(everything.values - 1).max() < 1e-4

# %% [markdown]
# This one head brings back nearly half.
#
# ## From layers to heads
#
# `ml.activation_patching(model, base, source, metric, site)` does this for every layer and head. It says only what is edited: these values, at these
# places. An engine carries that out. The plain one is your exercise 31.1 for any site: each edit is a hook, each patch a full run.

# %%
from mechlab.runs.plain import Plain

ml.show_source(Plain.edited)

# %% [markdown]
# First whole layers: all that attention writes, at all positions at once. Only layers that bring something are opened. They are **chosen on other
# sentences** than those they are then measured on; else the largest of thirty would look larger than it is.

# %%
draw = ml.ioi_prompts(model, 16, seed=1)
scout = ml.activation_patching(model, draw.corrupted("flip"), draw, draw.metric, "attn_out", by=())
opened = [layer for layer, share in enumerate(scout.values.tolist()) if abs(share) > 0.05]
print("layers whose attention brings something:", {n: round(scout.values[n].item(), 2) for n in opened})
heads = ml.activation_patching(model, corrupted, prompts, metric, "z", layers=opened)
share = {
    (layer, head): heads.values[opened.index(layer), head].item() for layer in opened for head in range(9)
}
heads.plot(height=330)

# %%
heads.top(10)

# %% kind="assert"
assert opened == [17, 19, 20, 23, 24, 29]
low, high = heads.interval()
for head, says in {(23, 3): 0.48, (20, 0): 0.47, (17, 4): 0.26, (24, 4): -0.19}.items():
    claim(model, f"share of {head[0]}.{head[1]}", share[head], says=says, within=0.02)
    row = opened.index(head[0])
    assert low[row, head[1]] * high[row, head[1]] > 0
assert abs(share[23, 3] - by_hand) < 1e-4 and len(heads.units.unique()) == 16

# %% [markdown]
# The intervals are over couples: other people in the same eight templates. In brackets each head's share.
#
# - **23.3** (0.48) speaks against the repeated name (notebook 12). **29.1** too was found there.
# - **20.0** (0.47) and **17.4** (0.26) could *not* be found there: they write next to nothing in the answer's direction. They act *through* later heads.
# - 29.0 and **24.4** (−0.19) pull the other way.
#
# Shares of heads need not add up to 1: a signal that passes through three heads in turn is counted three times. And a layer that was left shut may hold two
# heads that cancel.
#
# A patch in layer L leaves the layers before it as they were, and the two runs are equal up to the name that differs. So the fast engine runs only the rest: about
# a seventh of the multiplications, and the same numbers (asserted for 23.3).
#
# In these sentences the repeated name is always at the same position. In others it is not, and then each prompt needs its own.
#
# ### Exercise 31.3 A place for each prompt
#
# Difficulty 2 of 5 · 10 minutes · needs indexing


# %% kind="exercise" id="31.3"
@exercise("31.3")
def patched_stream(
    base: Float[Tensor, "prompt pos d_model"],
    source: Float[Tensor, "prompt pos d_model"],
    positions: Int[Tensor, "prompt"],
) -> Float[Tensor, "prompt pos d_model"]:
    """The stream of base, with one vector of each prompt from the same place in source: prompt n at positions[n].

    `base` itself stays as it is.
    """
    # >>> solution
    rows = torch.arange(len(base))
    changed = base.clone()
    changed[rows, positions] = source[rows, positions]
    return changed
    # <<< solution


# %% kind="check"
check(patched_stream)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# `changed[:, positions]` takes all the positions in every prompt. You want pairs: (prompt 0, its position), (prompt 1, its position), ...
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# Two index tensors of the same length are taken as pairs: `changed[rows, positions]` with `rows = torch.arange(len(base))`.
#
# </details>


# %% kind="wrong" id="31.3" expects="in place"
@exercise("31.3")
def patched_stream(base, source, positions):
    rows = torch.arange(len(base))
    base[rows, positions] = source[rows, positions]
    return base


# %% [markdown]
# ## Where it looks, or what it finds there?
#
# A head hands on its values, weighted by its attention pattern. Either can carry the signal, and each can be patched alone. Head 20.0 as a whole brings
# nearly half. Take only its *pattern* from the clean run, with the values of the corrupted one. What share will that bring?

# %% kind="predict"
predict("31.p", 0.3)

# %%
inside = [17, 20, 24]
found = {
    site: ml.activation_patching(model, corrupted, prompts, metric, site, layers=inside).values
    for site in ("pattern", "v")
}
some = [(17, 4), (20, 0), (24, 4)]
rows = {
    "output": [share[head] for head in some],
    "pattern": [found["pattern"][inside.index(layer), head] for layer, head in some],
    "shared value head": [found["v"][inside.index(layer), head // 3] for layer, head in some],
}
labels = {"taken from the clean run": list(rows), "head": [f"{layer}.{head}" for layer, head in some]}
values = torch.tensor(list(rows.values()))
ml.Scores(values, tuple(labels), "share of the way: whole output, pattern, values", labels).plot(height=300)

# %% kind="assert"
assert abs(values[1, 1]) < 0.03 and values[2, 1] > 0.4  # 20.0
assert values[1, 0] > 0.2 and abs(values[2, 0]) < 0.02  # 17.4
assert values[1, 2] < -0.2 and values[2, 2] > 0.05  # 24.4
reveal("31.p", round(values[1, 1].item(), 2))

# %% [markdown]
# <details><summary>What we saw</summary>
#
# 17.4 is all pattern: with another repeated name it looks at another place. 20.0 looks at the same place in both runs, and finds something else there: nothing
# in its pattern, all in its values. At 24.4 the two go against each other, so its small share hides two larger effects. (Query heads share value heads here,
# notebook 02: a value patch belongs to all the heads that read it.)
#
# </details>
#
# ## Enough, or needed?
#
# **Denoising** asks: is this part *enough* to bring the answer back? **Noising** (base clean, source corrupted) asks: is it *needed*? First on toys. Two
# parts, each 1 in the clean run and 0 in the corrupted one. The answer needs **both** (AND), or **either** (OR).

# %%
gates = {"AND": lambda a, b: min(a, b), "OR": lambda a, b: max(a, b)}


def toy_share(gate, base, source):
    """Part a comes from source, part b stays as in base."""
    start, goal = gate(base, base), gate(source, source)
    return (gate(source, base) - start) / (goal - start)


# %% [markdown]
# Four shares: AND denoised, AND noised, OR denoised, OR noised. Write them down first.

# %% kind="predict"
predict("31.q", [0, 0, 0, 0])

# %%
ways = {"denoised": (0, 1), "noised": (1, 0)}
toys = {f"{name}, {way}": toy_share(gates[name], *ways[way]) for name in gates for way in ways}
print(toys)
reveal("31.q", [round(share) for share in toys.values()])
assert list(toys.values()) == [0, 1, 1, 0]

# %% [markdown]
# <details><summary>What we saw</summary>
#
# Denoising cannot see an AND: one part alone is not enough. Noising cannot see an OR: the other one still stands in. A head that "does nothing" in one sweep may
# be half of a gate. To tell, patch **both** parts.
#
# </details>
#
# ### Exercise 31.6 AND, OR or neither
#
# Difficulty 3 of 5 · 15 minutes · needs the toys


# %% kind="exercise" id="31.6"
@exercise("31.6")
def gate(neither: float, only_a: float, only_b: float, both: float) -> str:
    """ "AND", "OR" or "neither": what two parts make together, told from four values of a metric.

    The values: with neither part from the clean run, with one of the two, with both. The metric may have any scale
    and may fall instead of rise. What both bring is compared with the sum of what each brings alone: where more than
    half of it needs both together, say "AND"; where the sum is too large by more than half of it, "OR"; else "neither".
    Where both together bring nothing (less than 1e-6): "neither".
    """
    # >>> solution
    whole = both - neither
    if abs(whole) < 1e-6:
        return "neither"
    extra = 1 - (only_a - neither + only_b - neither) / whole
    return "AND" if extra > 0.5 else "OR" if extra < -0.5 else "neither"
    # <<< solution


# %% kind="check"
check(gate)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# What would `both` be if the two parts had nothing to do with one another? Try it on the toys' four values.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# Measure everything from `neither`. Divide by what both bring, so that scale and sign drop out. Then one number tells: 1 for a pure AND, −1 for a pure OR, 0
# where the parts simply add up.
#
# </details>


# %% kind="wrong" id="31.6" expects="scale"
@exercise("31.6")
def gate(neither, only_a, only_b, both):
    extra = both - only_a - only_b + neither
    return "AND" if extra > 0.5 else "OR" if extra < -0.5 else "neither"


# %% kind="wrong" id="31.6" expects="from `neither`"
@exercise("31.6")
def gate(neither, only_a, only_b, both):
    if abs(both - neither) < 1e-6:
        return "neither"
    extra = (both - only_a - only_b) / (both - neither)
    return "AND" if extra > 0.5 else "OR" if extra < -0.5 else "neither"


# %% kind="wrong" id="31.6" expects="one part does it all"
@exercise("31.6")
def gate(neither, only_a, only_b, both):
    whole = both - neither
    if abs(whole) < 1e-6:
        return "neither"
    a, b = (only_a - neither) / whole, (only_b - neither) / whole
    return "OR" if max(a, b) > 0.5 else "AND"


# %% [markdown]
# ## Two corruptions
#
# What is corrupted decides too. The name **exchanged**, as so far; or **three unrelated** people in the places of the names (the paper's "ABC"). Six heads, patched at the end. 23.0, 23.1 and
# 23.2 are **name movers** (notebook 12): they copy a name to the end.

# %%
unrelated = prompts.corrupted("abc")
six = [(19, 2), (20, 0), (23, 3), (23, 0), (23, 1), (23, 2)]
runs = {
    "exchanged": (corrupted, prompts),
    "unrelated, denoising": (unrelated, prompts),
    "unrelated, noising": (prompts, unrelated),
}
last = {"layers": [19, 20, 23], "positions": prompts.positions["end"][:1].tolist()}
swept = {name: ml.activation_patching(model, *pair, metric, "z", **last) for name, pair in runs.items()}
pick = lambda scores: torch.stack([scores.per_prompt[:, (19, 20, 23).index(n), head] for n, head in six], 1)
labels = {"corruption": list(runs), "head": [f"{layer}.{head}" for layer, head in six]}
each = torch.stack([pick(scores) for scores in swept.values()], 1)
ways = ml.Scores.over_prompts(
    each, tuple(labels), "share of the way, with two corruptions", labels=labels, units=prompts.pairs
)
ways.plot(height=330)

# %% kind="assert"
low, high = ways.interval()
assert {*map(tuple, prompts.tokens.tolist())} == {*map(tuple, corrupted.tokens.tolist())}  # the same 32
assert (low[1, :2] <= 0).all() and (low[2, :2] > 0.05).all()  # 19.2, 20.0: not enough, needed
assert (low[1, 3:] > 0.05).all() and (high[2, 3:] < 0.02).all()  # movers: bring some back, not needed
claim(model, "20.0, unrelated, denoising", ways.values[1, 1], says=0.03, within=0.03)
claim(model, "20.0, unrelated, noising", ways.values[2, 1], says=0.42, within=0.03)
claim(model, "23.1, exchanged", ways.values[0, 4], says=0.03, within=0.02)

# %% [markdown]
# With the name exchanged, clean and corrupted are the same 32 prompts in another order, so denoising and noising give the same numbers. To see a difference one needs a
# corruption that is no sentence of the task. With unrelated names there are two surprises.
#
# - 19.2 and **20.0** bring nothing back (0.03 for 20.0), and yet are needed (0.42). Half of an **AND**?
# - The three **movers** bring something back, and are not needed: noised alone, none costs anything. One of an **OR**?
#
# Both are guesses. Patch them before you believe them.
#
# **The AND.** Perhaps 20.0 says *which place* holds the repeated name. That helps only if the right names stand at their places. So part a is 20.0, part b the two
# names of the first clause. What do you expect?

# %% kind="assert"
with_names = unrelated.tokens.clone()
with_names[:, :10] = prompts.tokens[:, :10]  # the first clause of the clean prompt
with torch.no_grad():
    clean_20 = ml.replace_head(model, (20, 0), cache, positions=[14])
    four = [metric(model(tokens)).mean().item() for tokens in (unrelated.tokens, with_names)]
    with ml.intervene(model, clean_20):
        four += [metric(model(tokens)).mean().item() for tokens in (unrelated.tokens, with_names)]
nothing, names, head, both = four
print(f"neither {nothing:.2f}, only 20.0 {head:.2f}, only the names {names:.2f}, both {both:.2f}")
extra = 1 - (head + names - 2 * nothing) / (both - nothing)  # exercise 31.6
assert extra > 0.8 and both - nothing > 1.5 and max(head, names) - nothing < 0.3

# %% [markdown]
# Alone, neither brings anything; together they bring nearly half of the way. An AND, by your own rule. (On sixteen other couples too.) A sweep that patches one part at a time
# cannot see it. The reading fits: what 20.0 says is worth something only where the names are. But a head that says the repeated *name* would need the names too. That it is the
# place takes another test: 20.0 from a sentence about other people, with the same place (notebook 41).
#
# **The OR.** If the movers stood in for one another, noising all three would cost much. And if not they, who makes the loss good? Four later heads pull *down* the answer
# in the sweep above. Perhaps they push against what the movers bring, and stop when nothing comes. Then, with these four **held** at their clean values, the movers' loss must
# show. Beside it, twenty sets of four other later heads.

# %%
import random

from mechlab.runs.engines import run_of
from mechlab.runs.run import Put
from mechlab.statistics import estimate

clean, away = run_of(model, prompts), run_of(model, unrelated)


def noised_movers(sets):
    """How much the three movers' noise costs, while each set of later heads is held at its clean values."""
    where = torch.zeros(30, len(sets), 1, 15, 9, dtype=torch.bool)
    where[23, :, :, 14, :3] = True
    for n, held in enumerate(sets):
        for layer, head in held:
            where[layer, n, :, 14, head] = True
    values = {layer: (away if layer == 23 else clean).at("z", layer)[None] for layer in range(23, 30)}
    edits = [Put("z", layer, values[layer], where[layer]) for layer in values]
    begin, goal = clean.value(metric), away.value(metric)
    return (clean.edited(metric, edits) - begin) / (goal.mean() - begin.mean())


against = [head for head in share if share[head] < -0.03]  # in the sweep with the name exchanged
others = [(layer, head) for layer in range(24, 30) for head in range(9) if (layer, head) not in against]
dice = random.Random(0)
cost = noised_movers([[], against] + [dice.sample(others, 4) for _ in range(20)])
print("against:", against)
for name, row in {"nothing held": cost[0], "these four held": cost[1]}.items():
    print(f"{name}: {estimate(row, prompts.pairs)}")
print("four others held, the largest of twenty:", round(cost[2:].mean(1).max().item(), 2))

# %% kind="assert"
assert against == [(24, 4), (24, 5), (24, 7), (29, 0)]
claim(model, "movers noised", cost[0].mean(), says=0.08, within=0.03)
claim(model, "movers noised, the four held", cost[1].mean(), says=0.48, within=0.05)
assert cost[2:].mean(1).max() < cost[1].mean() / 2

# %% [markdown]
# The three movers together cost 0.08 as they are, and 0.48 when the four cannot let go; no set of four others does the like. So it is **no OR of movers**. It is self-repair
# (notebook 12), and not by backups that jump in: heads that push against the answer stop pushing. McDougall et al. (2023) found this in GPT-2 small and called it **copy suppression**.
# "Not needed" was a statement about one way of asking.
#
# **The corruption chooses the circuit.** With the name exchanged, a list of "the heads that matter" has 20.0 on top and 23.1 nowhere. With unrelated names and denoising it has
# the movers and not 20.0. Zhang and Nanda (2024) report the like for GPT-2 small. A corruption finds what carries *what it changed*; name it in every result.
#
# ### Exercise 31.7 A corruption that finds 23.1
#
# Difficulty 4 of 5 · 25 minutes · needs this section
#
# Both corruptions show 23.3 far better than 23.1. Design one that does the reverse: denoised at the end, 23.1 brings back at least 0.15 (its interval over
# couples above 0.1), and more than 23.3. The check tries it on other couples. The last token must stay, since the patch is there.


# %% kind="exercise" id="31.7"
@exercise("31.7")
def corruption(prompts: ml.IOIPrompts) -> Int[Tensor, "prompt pos"]:
    """The tokens of corrupted prompts, one for each of `prompts`, of the same length.

    Of use: `prompts.tokens`, `prompts.io`, `prompts.s` (token ids of the two names), `prompts.positions` ("IO", "S1",
    "S2", "end" -> one position a prompt), `prompts.names` (ids of many names), `prompts.corrupted(...)`.
    """
    # >>> solution
    tokens, rows = prompts.tokens.clone(), torch.arange(len(prompts))
    tokens[rows, prompts.positions["IO"]] = prompts.io.roll(2)  # the next couple's name
    return tokens
    # <<< solution


# %% kind="check"
check(corruption, model=model)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# A head is found when the corruption changes what it carries. 23.3 carries *which name is repeated*. What does a name mover carry?
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# The movers copy the name that is *not* repeated. Let another one stand there, and leave the repetition alone. `tokens[rows, positions] = new` writes one token
# into each prompt. `ml.activation_patching(model, your_tokens, prompts, prompts.metric, "z", layers=[23], positions=[14])` shows what you would find.
#
# </details>


# %% kind="wrong" id="31.7" expects="named again"
@exercise("31.7")
def corruption(prompts):
    return prompts.corrupted("flip").tokens


# %% kind="wrong" id="31.7" expects="named again"
@exercise("31.7")
def corruption(prompts):
    return prompts.corrupted("abc").tokens


# %% kind="wrong" id="31.7" expects="Nothing is corrupted"
@exercise("31.7")
def corruption(prompts):
    return prompts.tokens


# %% kind="wrong" id="31.7" expects="last token"
@exercise("31.7")
def corruption(prompts):
    return prompts.tokens.roll(1, 1)


# %% [markdown]
# **Question 31.a.** A colleague denoises with the name exchanged, finds 0.03 for 23.1 with a narrow interval, and writes "23.1 plays no part". Which one run
# could show that this is wrong?
#
# - **a** The same on ten times as many prompts.
# - **b** Noising with the same corruption.
# - **c** Denoising with another person in the place of the right answer.

# %% kind="quiz"
quiz("31.a", "c")

# %% [markdown]
# ## Probability saturates
#
# Again the name exchanged and 23.3 patched at the end, read with the *probability* of the right name instead of the logit difference.

# %%
used = ml.probability(prompts.io)
seen = {"logit difference, both ways": ways.per_prompt[:, 0, 2]}
for way, pair in {"denoising": (corrupted, prompts), "noising": (prompts, corrupted)}.items():
    found = ml.activation_patching(model, *pair, used, "z", layers=[23], positions=[14])
    seen[f"probability, {way}"] = found.per_prompt[:, 0, 3]
given = {"labels": {"metric": [*seen]}, "units": prompts.pairs}
seen = ml.Scores.over_prompts(
    torch.stack([*seen.values()], 1), ("metric",), "share of the way of 23.3", **given
)
rows = seen.values
seen.plot(height=300)

# %% kind="assert"
assert rows[2] > 2.5 * rows[1] and rows[1] < rows[0] < rows[2] and found.baselines["source"] < 0.02

# %% [markdown]
# In probabilities the head counts three times as much one way as the other: near 0 a probability hardly moves, whatever the
# logits do. Use logit differences; else look from both ends.
#
# ## Causal tracing
#
# For a fact there is often no second prompt. **Causal tracing** (Meng et al. 2022) corrupts with noise: on the embeddings of the subject's tokens, normally
# distributed, with three times the standard deviation of the *subjects'* embeddings (of all the facts together). Then one clean state is restored: the stream on entering one
# layer, at one position. The **indirect effect** of this state is the probability of the answer after that, minus the corrupted one, averaged over draws
# of the noise; the **average** indirect effect is its mean over facts, in the paper a thousand.
#
# ### Exercise 31.5 Noise on the subject
#
# Difficulty 3 of 5 · 10 minutes · needs nothing


# %% kind="exercise" id="31.5"
@exercise("31.5")
def noisy_copies(
    embeddings: Float[Tensor, "pos d_model"],
    subject: list[int],
    all_subjects: Float[Tensor, "token d_model"],
    level: float,
    samples: int,
    generator: torch.Generator,
) -> Float[Tensor, "sample pos d_model"]:
    """Copies of one prompt's embeddings with normal noise added at the subject's positions, a new draw for each copy.

    Its standard deviation is `level` times that of all the entries of `all_subjects`: the embeddings of the tokens of
    every fact's subject. Draw with `generator`.
    """
    # >>> solution
    shape = (samples, len(subject), embeddings.shape[1])
    copies = embeddings.repeat(samples, 1, 1)
    copies[:, subject] += level * all_subjects.std() * torch.randn(shape, generator=generator)
    return copies
    # <<< solution


# %% kind="check"
check(noisy_copies)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# How many numbers must be drawn? One for each copy, each position of the subject and each coordinate.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# `embeddings.repeat(samples, 1, 1)` makes the copies. Add `level * all_subjects.std() * torch.randn(..., generator=generator)` to `copies[:, subject]`.
#
# </details>


# %% kind="wrong" id="31.5" expects="same noise"
@exercise("31.5")
def noisy_copies(embeddings, subject, all_subjects, level, samples, generator):
    changed = embeddings.clone()
    drawn = torch.randn(len(subject), embeddings.shape[1], generator=generator)
    changed[subject] += level * all_subjects.std() * drawn
    return changed.repeat(samples, 1, 1)


# %% kind="wrong" id="31.5" expects="outside the subject"
@exercise("31.5")
def noisy_copies(embeddings, subject, all_subjects, level, samples, generator):
    drawn = torch.randn(samples, *embeddings.shape, generator=generator)
    return embeddings + level * all_subjects.std() * drawn


# %% kind="wrong" id="31.5" expects="standard deviation"
@exercise("31.5")
def noisy_copies(embeddings, subject, all_subjects, level, samples, generator):
    copies = embeddings.repeat(samples, 1, 1)
    copies[:, subject] += level * torch.randn(copies[:, subject].shape, generator=generator)
    return copies


# %% kind="wrong" id="31.5" expects="in the place of"
@exercise("31.5")
def noisy_copies(embeddings, subject, all_subjects, level, samples, generator):
    copies = embeddings.repeat(samples, 1, 1)
    copies[:, subject] = (
        level * all_subjects.std() * torch.randn(copies[:, subject].shape, generator=generator)
    )
    return copies


# %% [markdown]
# Eleven facts with eleven answers, which the model knows: its likeliest next token is right. (The paper, too, takes only such facts.) Two places are restored: the last token of the subject,
# and the last token of all. `noise_of="subjects"` is the paper's noise.

# %%
cities = {"The Eiffel Tower": "Paris", "The Colosseum": "Rome", "The Acropolis": "Athens"}
cities |= {"The Brandenburg Gate": "Berlin", "The Hagia Sophia": "Istanbul", "The Rijksmuseum": "Amsterdam"}
cities |= {"The Statue of Liberty": "New", "The Golden Gate Bridge": "San"}
countries = {"The Taj Mahal": "India", "Machu Picchu": "Peru", "The Great Barrier Reef": "Australia"}
facts = [(f"{name} is located in the city of", name, answer) for name, answer in cities.items()]
facts += [(f"{name} is located in the country of", name, answer) for name, answer in countries.items()]
texts, names, words = zip(*facts, strict=True)
subjects = [ml.subject_positions(model, text, name) for text, name in zip(texts, names, strict=True)]
answers = [ml.single_token(model, f" {word}") for word in words]
with torch.no_grad():
    assert [int(model(text)[0, -1].argmax()) for text in texts] == answers
traced = [0, 4, 8, 12, 16, 20, 22, 24]
asked = {"metric": [ml.probability(each) for each in answers], "subject": subjects, "samples": 3}
places = {"last token of the subject": [at[-1] for at in subjects], "last token": [-1] * len(texts)}
trace = ml.causal_tracing(model, texts, **asked, positions=places, layers=traced, noise_of="subjects")
swap = ml.Scores.over_prompts(
    trace.per_prompt.mT, ("pos", "layer"), "average indirect effect (probability)", labels=trace.labels
)
ml.plots.scores(swap, lines=True, title="What one restored state brings back, mean of 11 facts")

# %% kind="assert"
low, high = trace.interval()
level = dict(zip(traced, trace.values.tolist(), strict=True))
claim(model, "clean", trace.baselines["clean"], says=0.5, within=0.08)
claim(model, "with noise", trace.baselines["corrupted"], says=0.02, within=0.02)
assert (low[1:5, 0] > 0.03).all() and high[7, 0] < 0.08 and low[7, 1] > 0.15 and high[6, 1] < 0.2
lost = trace.per_prompt[:, 7, 1]  # what the last token at layer 24 brings back: nearly everything
half = trace.per_prompt[:, 2, 0] > lost / 2  # the subject's last token on entering layer 8
for name, share in zip(names, (trace.per_prompt[:, 2, 0] / lost).tolist(), strict=True):
    print(f"{name:24} {share:5.2f}")
assert 4 <= half.sum() <= 7 and 3 <= (trace.per_prompt[:, 2, 0] < 0.25 * lost).sum() <= 6

# %% [markdown]
# Two sites, as in the paper: an early one at the subject's last token, a late one at the last token of all. The hand-over is sharp: between the inputs of layers 22 and 24 nearly all of it moves.
# (The early curve falls before that while nothing else rises. An AND of several tokens, we guess, and have not tested.)
#
# The mean hides a split. Above you see each fact's share at layer 8. In about half of them the subject's last token alone brings back more than half, in
# others next to nothing. The Eiffel Tower is one of these: where does its answer lie?

# %%
one = {"subject": subjects[0], "noise_of": "subjects", "samples": 5}
eiffel = ml.causal_tracing(model, texts[0], asked["metric"][0], **one, layers=[0, 10, 22, 24])
eiffel.plot(height=330, title="indirect effect of one restored state (probability)")

# %% kind="assert"
assert eiffel.values[1].argmax() == 3 and eiffel.values[1, 3] > 0.2  # "iffel"
assert eiffel.values[:, 4].abs().max() < 0.1  # " Tower"

# %% [markdown]
# At "iffel", where one can first tell *which* tower; the subject's last token has nothing. A map of one fact is no law, and a mean may describe none of them.
#
# The paper goes on to say which *parts* wrote the early site: MLPs of middle layers. It restores **windows** of ten layers at once. Here single MLPs at the subject's
# last token, and one window of seven:

# %%
at_subject = {
    "positions": {"last token of the subject": places["last token of the subject"]},
    "site": "mlp_out",
}
at_subject |= {"noise_of": "subjects"}
single = ml.causal_tracing(model, texts, **asked, **at_subject, layers=[0, 1, 2, 3])
window = ml.causal_tracing(model, texts, **asked, **at_subject, window=7, layers=[3])
both = torch.cat([single.per_prompt, window.per_prompt], 1)[..., 0]
labels = {"restored": [f"MLP {layer}" for layer in single.labels["layer"]] + ["MLPs 0 to 6"]}
ml.Scores.over_prompts(both, tuple(labels), "average indirect effect (probability)", labels=labels).plot(
    height=300
)

# %% kind="assert"
mean = both.mean(0)
assert mean[:4].argmax() == 0 and mean[1:4].abs().max() < 0.05 and mean[4] > mean[0] > 0.03
assert both[names.index("Machu Picchu"), 0] > 0.5 * both[:, 0].sum()

# %% [markdown]
# Seven MLPs, centred at MLP 3, have a clear effect. MLP 3 alone has none. So **a window inflates**: it credits its middle with what its members do, and the member that does
# something alone is MLP 0. (Not for every fact: more than half of its mean is Machu Picchu's.) That is not what the paper reports for GPT-2 XL (a peak in the middle of the network). And Hase et al. (2023) showed that such a peak does not tell where to
# edit either (notebook 34).
#
# **Question 31.b.** You want to say "the MLP of layer 3 stores these facts", and a window of seven around it has a large effect. Which one measurement could refute you?
#
# - **a** The same window with other draws of the noise.
# - **b** The window without layer 3.
# - **c** A wider window.

# %% kind="quiz"
quiz("31.b", "b")

# %% [markdown]
# And the noise? Here is what it does to the stream at the subject's last token, and what noise of three standard deviations of *all* the model's embeddings would have shown:

# %%
spread = model.W_E[
    torch.cat([model.to_tokens(t)[0, at] for t, at in zip(texts, subjects, strict=True)])
].std()


def add_noise(x, hook):
    drawn = torch.randn(10, 4, x.shape[-1], generator=torch.Generator().manual_seed(0))
    return torch.cat([x[:, :1], x[:, 1:5] + 3 * spread * drawn, x[:, 5:]], 1)


norms = {}
for name, hooks in {"clean": [], "noise": [("blocks.0.hook_resid_pre", add_noise)]}.items():
    with torch.no_grad(), ml.intervene(model, hooks):
        tokens = model.to_tokens(texts[0]).expand(10, -1)
        _, seen = model.run_with_cache(tokens, names_filter=ml.only("resid_mid", "resid_post"))
    places_in = (("resid_mid", 0), ("resid_post", 0))
    norms[name] = [seen[where][:, 4].norm(dim=-1).mean().item() for where in places_in]
    print(
        f"norm of the stream at ' Tower', {name}: {norms[name][0]:.1f} before MLP 0, {norms[name][1]:.0f} after"
    )
assert norms["noise"][0] > 2 * norms["clean"][0] and norms["noise"][1] < norms["clean"][1]

# %%
wanted = {"layers": [8, 24], "positions": places}
every = ml.causal_tracing(model, texts, **asked, **wanted, noise_of="vocabulary")
pairs = torch.stack([trace.per_prompt[:, [2, 7], [0, 1]], every.per_prompt[:, [0, 1], [0, 1]]], 1)
labels = {
    "sd of": ["the subjects", "all embeddings"],
    "restored": ["subject, layer 8", "last token, layer 24"],
}
ml.Scores.over_prompts(pairs, tuple(labels), "average indirect effect (probability)", labels=labels).plot(
    height=300
)

# %% kind="assert"
assert (pairs.mean(0)[0] - pairs.mean(0)[1]).abs().max() < 0.08
print(f"standard deviations: {spread:.3f} of the subjects, {model.W_E.std():.3f} of all embeddings")

# %% [markdown]
# The noise makes the stream at this token three times as long before MLP 0, and *shorter* than it should be after it. No text puts the model there: the noise is **out of distribution**,
# and what the parts do in such a state is not what they do in a sentence. Which standard deviation one counts in makes no difference here: the two are much alike.
#
# So such a map misleads in four ways: one fact is no law, a window credits its middle, a place that restores nothing may be half of an AND, and the
# noise puts the model where no text does.
#
# ## Beside the papers

# %%
mine = {
    "probability of the answer, clean": trace.baselines["clean"],
    "probability of the answer, noise on the subject": trace.baselines["corrupted"],
    "largest average indirect effect at the subject's last token": trace.values[:, 0].max(),
}
ml.reference.table("31", mine)

# %% [markdown]
# | term | meaning |
# |---|---|
# | base, source | the run that reads its own tokens; the one that gives an activation |
# | recovered, share of the way | (patched − base) / (source − base), of the means over the prompts: 0 nothing, 1 everything |
# | denoising, noising | base corrupted (is it enough?), base clean (is it needed?) |
# | AND, OR | both parts needed: only noising sees them; one of two enough: only denoising sees them; to tell, patch both |
# | copy suppression | heads that push against an answer stop when nobody brings it: a loss looks small |
# | corruption | what the two runs differ in; a patch finds only what carries this difference |
# | causal tracing | noise on the subject, one clean state restored; the effect is the probability that comes back, averaged over facts |
# | window | several layers restored at once: larger effects, a blurred place |
#
# `ml.activation_patching`, `ml.causal_tracing`, `ml.recovered`, `ml.replace_head`. Papers: Meng et al. 2022, Wang et al. 2022, Zhang and Nanda 2024, Heimersheim and Nanda 2024, Hase et al. 2023,
# McDougall et al. 2023 (copy suppression).
# Next: notebook 32, steering.
