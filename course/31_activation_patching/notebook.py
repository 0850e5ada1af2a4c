# %% [markdown]
# # 31 Activation patching and causal tracing
#
# **Question:** which activations carry the answer?
#
# After this notebook you will be able to
#
# - put one activation of one run into another run, and say how much of the answer came with it,
# - say which question denoising asks, which one noising asks, and on which heads they must disagree,
# - trace a fact through the model with noise, and name four ways in which such a map misleads.
#
# Time: 90 minutes. The cells take about 85 seconds in all. Memory: 2.0 GB.
# Download: none, once the model is here (93 MB). Before: notebooks 03, 12 and 24.

# %% kind="setup"
# (written by the build)

# %% [markdown]
# ## The picture
#
# The sixteen sentences of notebooks 12 and 24, **clean**: "When John and Mary went to the store, **John** gave a drink to". And **corrupted**: the
# second sentence half names the other one, "When John and Mary went to the store, **Mary** gave a drink to". One token differs, and the answer turns round.
#
# Now run the model on the corrupted sentence, but take *one* vector of its residual stream, on entering one layer, at one position, from the clean run.
# How far does the logit difference come back? 0: not at all, 1: all the way. Each square is one such patch, on all sixteen sentences. ("position 2",
# "position 4" and "position 10" hold the names, which differ from sentence to sentence.)

# %%
import random

couples = [("John", "Mary"), ("Tom", "Laura"), ("Mark", "Anna"), ("Peter", "Sarah")]
couples += [("Paul", "Jane"), ("David", "Emma"), ("Mary", "John"), ("Laura", "Tom")]
asked = [(s, io, first) for s, io in couples for first in ((s, io), (io, s))]
sentence = "When {} and {} went to the store, {} gave a drink to"
clean = model.to_tokens([sentence.format(a, b, s) for s, _, (a, b) in asked])
corrupted = model.to_tokens([sentence.format(a, b, io) for _, io, (a, b) in asked])
answers = [ml.single_token(model, f" {io}") for _, io, _ in asked]
metric = ml.logit_difference(answers, [ml.single_token(model, f" {s}") for s, _, _ in asked])
assert ((clean != corrupted).sum(1) == 1).all()

# %%
shown = [0, 10, *range(18, 30)]
stream = ml.activation_patching(model, corrupted, clean, metric, layers=shown)
stream.plot(height=560)

# %% kind="assert"
at = {layer: stream.values[row] for row, layer in enumerate(shown)}
claim(model, "corrupted", stream.baselines["base"], says=-4.5, within=0.1)
claim(model, "clean", stream.baselines["source"], says=5.1, within=0.05)
claim(model, "second name, entering layer 19", at[19][10], says=1.0, within=0.02)
claim(model, "second name, entering layer 21", at[21][10], says=0.51, within=0.03)
claim(model, "last token, entering layer 21", at[21][14], says=0.46, within=0.03)
claim(model, "last token, entering layer 25", at[25][14], says=0.88, within=0.03)
assert stream.values[:, :10].abs().max() == 0 and stream.values[:, 11:14].abs().max() < 0.1

# %% [markdown]
# The clean model says 5.1 logits for the right name, the corrupted one −4.5. Up to the input of layer 19 everything that matters is in one place, the
# second name (position 10). Then it moves to the last token: on entering layer 21 about half (0.51 and 0.46), on entering layer 25 nearly all (0.88).
# What carries it across must be attention, in layers 19 to 24. Which heads?
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
# The change in logits depends on how far apart the two runs were. So it is put on a scale from 0 to 1.
#
# ### Exercise 31.2 The share of the way
#
# Difficulty 2 of 5 · 5 minutes · needs nothing


# %% kind="exercise" id="31.2"
@exercise("31.2")
def share(
    patched: Float[Tensor, "prompt"], base: Float[Tensor, "prompt"], source: Float[Tensor, "prompt"]
) -> float:
    """How much of the way from base to source the patch went: 0 = none, 1 = all; below 0 and above 1 can happen.

    Each tensor holds the metric, one number a prompt. Take means over the prompts first, and one ratio of them.
    Where the means of base and source differ by less than 1e-6 there is no way to go: return 0.
    """
    # >>> solution
    change = patched.mean() - base.mean()
    whole = source.mean() - base.mean()
    return 0.0 if whole.abs() < 1e-6 else (change / whole).item()
    # <<< solution


# %% kind="check"
check(share)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# The numerator is how far the patch went from base, the denominator how far source lies from base.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# `(patched.mean() - base.mean()) / (source.mean() - base.mean())`. One prompt whose two runs happen to agree would make its own ratio huge; in the
# ratio of the means it hardly counts.
#
# </details>


# %% kind="wrong" id="31.2" expects="mean of the ratios"
@exercise("31.2")
def share(patched, base, source):
    return ((patched - base) / (source - base)).mean().item()


# %% kind="wrong" id="31.2" expects="starts from source"
@exercise("31.2")
def share(patched, base, source):
    return ((source.mean() - patched.mean()) / (source.mean() - base.mean())).item()


# %% kind="wrong" id="31.2" expects="not a number"
@exercise("31.2")
def share(patched, base, source):
    return ((patched.mean() - base.mean()) / (source.mean() - base.mean())).item()


# %% kind="wrong" id="31.2" expects="above 1"
@exercise("31.2")
def share(patched, base, source):
    whole = source.mean() - base.mean()
    if whole == 0:
        return 0.0
    return float(((patched.mean() - base.mean()) / whole).clamp(0, 1))


# %% [markdown]
# Now head 23.3, with the library's parts. Before you believe any patching code, three things must hold: everything patched gives 1, nothing patched
# gives 0, and a run patched with its own activations stays as it is.

# %%
ends_in_z = lambda name: name.endswith("hook_z")
with torch.no_grad():
    logits, cache = model.run_with_cache(clean, names_filter=ends_in_z)
    start, end = metric(model(corrupted)), metric(logits)
    with ml.intervene(model, ml.replace_head(model, (23, 3), cache)):
        after = metric(model(corrupted))
    with ml.intervene(model, ml.replace_head(model, (23, 3), cache)):
        own = metric(model(clean))
by_hand = ml.recovered(after.mean(), start.mean(), end.mean())
print(f"{start.mean():.2f} → {after.mean():.2f}, of {end.mean():.2f}: a share of {by_hand:.2f}")

# %% kind="assert"
claim(model, "the logit difference with 23.3 patched", after.mean(), says=0.1, within=0.1)
claim(model, "share of 23.3", by_hand, says=0.48, within=0.02)
assert (own - end).abs().max() < 1e-3
# by=() patches all positions at once
everything = ml.activation_patching(model, corrupted, clean, metric, by=(), layers=[29])
assert abs(everything.values - 1).max() < 1e-4
assert stream.values[:, :10].abs().max() == 0  # there the two runs are equal: a run patched with itself

# %% [markdown]
# Head 23.3 alone brings the model from −4.5 to 0.1: nearly half of the way.
#
# ## All 270 heads
#
# `ml.activation_patching(model, base, source, metric, site)` does this for every layer and head. `site="z"` is what a head hands on. It says only what is
# edited: these values, at these places. An engine carries that out. The plain one is your exercise 31.1 for any site: each edit is a hook, each patch a
# full run. The fast one takes a short way to the same numbers (next section).

# %%
from mechlab.runs.plain import Plain

ml.show_source(Plain.edited)

# %%
heads = ml.activation_patching(model, corrupted, clean, metric, "z")
heads.plot(height=560)

# %%
heads.top(8)

# %% kind="assert"
for (layer, head), says in {(23, 3): 0.48, (20, 0): 0.33, (29, 1): 0.30, (17, 4): 0.28}.items():
    claim(model, f"share of {layer}.{head}", heads.values[layer, head], says=says, within=0.02)
for (layer, head), says in {(29, 0): -0.25, (19, 2): 0.14, (24, 4): -0.12}.items():
    claim(model, f"share of {layer}.{head}", heads.values[layer, head], says=says, within=0.02)
assert abs(heads.values[23, 3] - by_hand) < 1e-4
assert heads.values[:17].abs().max() < 0.05
low, high = heads.interval()
assert all(low[head] * high[head] > 0 for head in [(23, 3), (20, 0), (17, 4), (24, 4)])

# %% [markdown]
# Four heads with a large share: 23.3, which speaks against the repeated name (notebook 12), and 29.1, which direct attribution found too. And two
# that it could not find, since no head before layer 23 writes as much as 0.2 logits itself: **20.0** (0.33) and **17.4** (0.28) act *through* later
# heads. Heads 29.0 (−0.25) and 24.4 (−0.12) pull the other way. The shares of heads need not add up to 1: a signal that passes through 17.4, 20.0 and
# 23.0 in turn is counted three times. Two heads lie outside layers 19 to 24: 17.4 acts before the handover, at the second name itself (notebook 41), and
# 29.1 speaks at the end.
#
# ## What had to be computed
#
# A patch in layer L leaves layers 0 to L − 1 as they were. And the two runs are equal up to position 9, so a patch changes nothing there, even one at all
# positions. So only layer L and the later ones are run, from position 10 on, and only the two logits of the metric are read. How much is left?

# %%
cfg, later = model.cfg, 15 - 10
width = cfg.d_model * cfg.d_head * (2 * cfg.n_heads + 2 * cfg.n_key_value_heads)
a_layer = width + 3 * cfg.d_model * cfg.d_mlp
full = 15 * (cfg.n_layers * a_layer + cfg.d_model * cfg.d_vocab)
short = sum(later * (cfg.n_layers - layer) * a_layer for layer in range(cfg.n_layers)) / cfg.n_layers
print(f"{short / 1e6:.0f} of {full / 1e6:.0f} million multiplications a patch: {short / full:.1%}")

# %% kind="assert"
claim(model, "share of the multiplications", short / full, says=0.14, within=0.005)

# %% [markdown]
# About one in seven. Nothing is approximated: the share of 23.3 equals the one from two full runs (asserted above to 1e-4).
#
# In these sentences the second name is always at position 10. In others it is not, and then each prompt needs its own position.
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
# 0.33 of the way. Take only its *pattern* from the clean run, with the values of the corrupted one. How much?

# %% kind="predict"
predict("31.p", 0.3)

# %%
inside = [17, 20, 23, 24]
found = {
    site: ml.activation_patching(model, corrupted, clean, metric, site, layers=inside).values
    for site in ("pattern", "v")
}
some = [(17, 4), (20, 0), (23, 0), (23, 3), (24, 4)]
rows = {
    "output": [heads.values[layer, head] for layer, head in some],
    "pattern": [found["pattern"][inside.index(layer), head] for layer, head in some],
    "shared value head": [found["v"][inside.index(layer), head // 3] for layer, head in some],
}
labels = {"taken from the clean run": list(rows), "head": [f"{layer}.{head}" for layer, head in some]}
values = torch.tensor(list(rows.values()))
ml.Scores(values, tuple(labels), "share of the way: whole output, pattern, values", labels).plot(height=300)

# %% kind="assert"
for name, place, says in [
    ("20.0, pattern", (1, 1), 0.02),
    ("20.0, values", (2, 1), 0.32),
    ("17.4, pattern", (1, 0), 0.28),
    ("17.4, values", (2, 0), 0.0),
    ("23.3, values", (2, 3), 0.45),
    ("24.4, pattern", (1, 4), -0.23),
    ("24.4, values", (2, 4), 0.14),
]:
    claim(model, name, values[place], says=says, within=0.02)
reveal("31.p", round(values[1, 1].item(), 2))

# %% [markdown]
# 17.4 is all pattern: with another second name it looks at another place. 20.0 looks at the second name in both runs (notebook 41 shows it), and finds
# something else there: nothing in its pattern (0.02), all in its values (0.32). At 24.4 the two go against each other: −0.23 by where it looks, +0.14 by what
# its value head finds. The −0.12 of its output is small because larger effects cancel.
#
# But one key and value head serves three query heads here (**grouped queries**): query heads 3, 4 and 5 share value head 1. Patching it changes all three, so
# the +0.14 belongs to them together. To see one head alone, take its own pattern and the values of the other run:
#
# ### Exercise 31.4 One head's values
#
# Difficulty 3 of 5 · 10 minutes · needs notebook 02, grouped queries


# %% kind="exercise" id="31.4"
@exercise("31.4")
def output_with_values(
    pattern: Float[Tensor, "head query key"], values: Float[Tensor, "key value_head d_head"], head: int
) -> Float[Tensor, "query d_head"]:
    """What one query head hands on when it keeps its own pattern (base) and reads these values (source).

    Neighbouring query heads share a value head, the same number of them for each.
    """
    # >>> solution
    group = pattern.shape[0] // values.shape[1]
    return pattern[head] @ values[:, head // group]
    # <<< solution


# %% kind="check"
check(output_with_values)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# How many query heads share one value head? The shapes tell.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# With nine query heads and three value heads, heads 0, 1, 2 read value head 0, heads 3, 4, 5 read value head 1. That is `head // 3`. Then a sum over keys.
#
# </details>


# %% kind="wrong" id="31.4" expects="remainder"
@exercise("31.4")
def output_with_values(pattern, values, head):
    return pattern[head] @ values[:, head % values.shape[1]]


# %% kind="wrong" id="31.4" expects="always three"
@exercise("31.4")
def output_with_values(pattern, values, head):
    return pattern[head] @ values[:, head // 3]


# %% kind="wrong" id="31.4" expects="over the keys"
@exercise("31.4")
def output_with_values(pattern, values, head):
    group = pattern.shape[0] // values.shape[1]
    return pattern[head].T @ values[:, head // group]


# %% [markdown]
# ## Enough, or needed?
#
# **Denoising** asks: is this part enough to bring the answer back? **Noising** (base clean, source corrupted) asks: is it needed? Where two parts are both
# needed (AND), noising either one breaks the answer, and denoising either one alone does nothing. Where one of two is enough (OR), it is the other way
# round.
#
# But what is corrupted decides too. Three corruptions: the second name exchanged, as so far; a **third** name in its place; **three unrelated** names. Six
# heads, patched at the last token:

# %%
draw = random.Random(0)
others = "Alice Kate Sam James Robert Ben Lisa Susan Jack Alan Simon George".split()
third = model.to_tokens([sentence.format(a, b, draw.choice(others)) for _, _, (a, b) in asked])
unrelated = model.to_tokens([sentence.format(*draw.sample(others, 3)) for _ in asked])
six = [(19, 2), (20, 0), (23, 3), (23, 0), (23, 1), (23, 2)]
assert clean.shape == third.shape == unrelated.shape
runs = {
    "exchanged, denoising": (corrupted, clean),
    "exchanged, noising": (clean, corrupted),
    "third, denoising": (third, clean),
    "unrelated, denoising": (unrelated, clean),
    "unrelated, noising": (clean, unrelated),
}
rows = {}
for name, (base, source) in runs.items():
    swept = ml.activation_patching(model, base, source, metric, "z", layers=[19, 20, 23], positions=[14])
    rows[name] = [swept.values[(19, 20, 23).index(layer), head] for layer, head in six]

# %%
ways = torch.tensor(list(rows.values()))
labels = {"corruption": list(runs), "head": [f"{layer}.{head}" for layer, head in six]}
ml.Scores(ways, ("corruption", "head"), "share of the way, with three corruptions", labels).plot(height=350)

# %% kind="assert"
assert (ways[0] - ways[1]).abs().max() < 0.05
for name, place, says in [
    ("19.2, unrelated names, denoising", (3, 0), 0.0),
    ("19.2, unrelated names, noising", (4, 0), 0.09),
    ("20.0, third name, denoising", (2, 1), 0.37),
    ("20.0, unrelated names, denoising", (3, 1), 0.0),
    ("20.0, unrelated names, noising", (4, 1), 0.26),
    ("23.0, unrelated names, denoising", (3, 3), 0.22),
    ("23.1, unrelated names, denoising", (3, 4), 0.14),
    ("23.2, unrelated names, denoising", (3, 5), 0.11),
    ("23.1, exchanged, denoising", (0, 4), 0.02),
    ("23.2, exchanged, denoising", (0, 5), 0.03),
]:
    claim(model, name, ways[place], says=says, within=0.02)
assert ways[4, 3:].max() < 0

# %% [markdown]
# With the names *exchanged* the two directions nearly agree, within 0.05, and they should: each corrupted sentence is itself a sentence of the task, with
# the roles turned round. Noising one is denoising its partner. (For half of the sixteen the partner is among them.) To see a difference one needs a
# corruption that is no such sentence.
#
# - **AND.** With unrelated names, 19.2 and 20.0 bring nothing back (0.00), yet they are needed (0.09 and 0.26). One reading: they tell later heads
#   *which place* holds the repeated name, and that helps only if the right name stands at the other place. The third row agrees: there both names do
#   stand at their places, and 20.0 alone brings 0.37.
# - **OR.** The name movers 23.0, 23.1 and 23.2 bring 0.22, 0.14 and 0.11 back. Noised, each one costs nothing; without it the model does even a
#   little better.
#
# Four other draws of the names gave the same picture. Is it OR? Then the movers together must be needed, although each one is not:

# %%
with torch.no_grad():
    other, cache = model.run_with_cache(unrelated, names_filter="blocks.23.attn.hook_z")
    hooks = [hook for head in six[3:] for hook in ml.replace_head(model, head, cache, positions=[14])]
    with ml.intervene(model, hooks):
        without = metric(model(clean))
together = ml.recovered(without.mean(), end.mean(), metric(other).mean())
print(f"noised one at a time, added up: {ways[4, 3:].sum():+.2f}; together: {together:+.2f}")

# %% kind="assert"
claim(model, "noised one at a time, added up", ways[4, 3:].sum(), says=-0.1, within=0.03)
claim(model, "noised together", together, says=0.09, within=0.03)

# %% [markdown]
# Together they are needed, though not much: 0.09, where one at a time they add up to −0.1. Other heads still hold the answer up, 23.3 first of all.
#
# **The corruption chooses the circuit.** With the name exchanged, a report of "the heads that matter" lists 20.0 and leaves out two of three name
# movers (0.02 and 0.03). With unrelated names and denoising it lists the movers and leaves out 20.0. Zhang and Nanda (2024) report the like for GPT-2
# small: with the second name exchanged most movers are missed; with the first two names exchanged they are found, and the heads that do what 20.0
# does are missed. A corruption finds what carries *what it changed*; name it in every result.
#
# **Question 31.a.** Base corrupted, source clean. A head's share is 0.00 (interval −0.02 to 0.02). Which conclusion is safe?
#
# - **a** The head plays no part in the task.
# - **b** This head's output, alone, does not bring back what this corruption took away.
# - **c** The head does not change between the two runs.

# %% kind="quiz"
quiz("31.a", "b")

# %% [markdown]
# ## Probability saturates
#
# Again with the exchanged name, patched at the last token. Read with the logit difference as before, and with the *probability* of the right name (0.01
# corrupted, 0.59 clean):

# %%
read = {}
for what, used in {"logit difference": metric, "probability": ml.probability(answers)}.items():
    for way, (base, source) in {"denoising": (corrupted, clean), "noising": (clean, corrupted)}.items():
        swept = ml.activation_patching(model, base, source, used, "z", layers=[20, 23, 24], positions=[14])
        read[f"{what}, {way}"] = swept.values[[0, 1, 2], [0, 3, 4]]
seen = torch.stack(list(read.values()))
labels = {"metric": list(read), "head": ["20.0", "23.3", "24.4"]}
ml.Scores(seen, tuple(labels), "share of the way, with two metrics", labels).plot(height=320)

# %% kind="assert"
claim(model, "probability, corrupted", swept.baselines["source"], says=0.01, within=0.005)
claim(model, "probability, clean", swept.baselines["base"], says=0.59, within=0.02)
claim(model, "23.3 in logits, denoising", seen[0, 1], says=0.45, within=0.02)
claim(model, "23.3 in logits, noising", seen[1, 1], says=0.47, within=0.02)
claim(model, "23.3 in probability, denoising", seen[2, 1], says=0.27, within=0.03)
claim(model, "23.3 in probability, noising", seen[3, 1], says=0.69, within=0.03)
claim(model, "24.4 in probability, denoising", seen[2, 2], says=0.0, within=0.01)
claim(model, "24.4 in probability, noising", seen[3, 2], says=-0.11, within=0.02)

# %% [markdown]
# Near 0 a probability hardly moves, whatever the logits do. So 23.3 has 0.27 one way and 0.69 the other (in logits 0.45 and 0.47). And 24.4, which pulls the
# answer down, cannot be seen at all when denoising (0.00; noising, −0.11): there is nothing to pull down. Use logit differences; where only a probability will
# do, look from both ends.
#
# ## Causal tracing
#
# For a fact there is often no second prompt. **Causal tracing** (Meng et al. 2022) corrupts with noise: on the embeddings of the subject's tokens,
# normally distributed, with three times the standard deviation of the model's embeddings. Then one clean state is restored: the stream on entering one
# layer, at one position. The **indirect effect** of this state is the probability of the answer after that, minus the corrupted one, averaged over ten draws
# of the noise. (In notebook 12 the word was used of a head: what it makes later parts say.)
#
# ### Exercise 31.5 Noise on the subject
#
# Difficulty 3 of 5 · 10 minutes · needs nothing


# %% kind="exercise" id="31.5"
@exercise("31.5")
def noisy_copies(
    embeddings: Float[Tensor, "pos d_model"],
    subject: list[int],
    W_E: Float[Tensor, "d_vocab d_model"],
    level: float,
    samples: int,
    generator: torch.Generator,
) -> Float[Tensor, "sample pos d_model"]:
    """Copies of one prompt's embeddings with normal noise added at the subject's positions, a new draw for each copy.

    Its standard deviation is `level` times the standard deviation of all entries of W_E. Draw with `generator`.
    """
    # >>> solution
    shape = (samples, len(subject), embeddings.shape[1])
    copies = embeddings.repeat(samples, 1, 1)
    copies[:, subject] += level * W_E.std() * torch.randn(shape, generator=generator)
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
# `embeddings.repeat(samples, 1, 1)` makes the copies. Add `level * W_E.std() * torch.randn(..., generator=generator)` to `copies[:, subject]`.
#
# </details>


# %% kind="wrong" id="31.5" expects="same noise"
@exercise("31.5")
def noisy_copies(embeddings, subject, W_E, level, samples, generator):
    changed = embeddings.clone()
    drawn = torch.randn(len(subject), embeddings.shape[1], generator=generator)
    changed[subject] += level * W_E.std() * drawn
    return changed.repeat(samples, 1, 1)


# %% kind="wrong" id="31.5" expects="outside the subject"
@exercise("31.5")
def noisy_copies(embeddings, subject, W_E, level, samples, generator):
    drawn = torch.randn(samples, *embeddings.shape, generator=generator)
    return embeddings + level * W_E.std() * drawn


# %% kind="wrong" id="31.5" expects="standard deviation"
@exercise("31.5")
def noisy_copies(embeddings, subject, W_E, level, samples, generator):
    copies = embeddings.repeat(samples, 1, 1)
    copies[:, subject] += level * torch.randn(copies[:, subject].shape, generator=generator)
    return copies


# %% kind="wrong" id="31.5" expects="in the place of"
@exercise("31.5")
def noisy_copies(embeddings, subject, W_E, level, samples, generator):
    copies = embeddings.repeat(samples, 1, 1)
    copies[:, subject] = level * W_E.std() * torch.randn(copies[:, subject].shape, generator=generator)
    return copies


# %%
prompt = "The Eiffel Tower is located in the city of"
fact, subject = model.to_tokens(prompt), ml.subject_positions(model, prompt, "Eiffel Tower")
paris = ml.probability(ml.single_token(model, " Paris"))
traced = [0, 10, 20, 22, 24, 27]
trace = ml.causal_tracing(model, fact, paris, subject=subject, layers=traced)
trace.plot(height=380)

# %% kind="assert"
claim(model, "probability of Paris, clean", trace.baselines["clean"], says=0.30, within=0.02)
claim(model, "probability of Paris, corrupted", trace.baselines["corrupted"], says=0.01, within=0.02)
claim(model, "'iffel', layer 10", trace.values[1, 3], says=0.29, within=0.06)
claim(model, "'iffel', layer 24", trace.values[4, 3], says=0.01, within=0.03)
claim(model, "last token, layer 22", trace.values[3, -1], says=0.01, within=0.03)
claim(model, "last token, layer 24", trace.values[4, -1], says=0.33, within=0.06)
assert trace.values[:, 4].abs().max() < 0.05
assert trace.values[4, -1] + trace.baselines["corrupted"] > trace.baselines["clean"]

# %% [markdown]
# Two sites, as in the paper: an early one at the subject, a late one at the last token, handed over between layers 22 and 24. (0.33 on top of 0.01 is even
# more than the clean 0.30. That can happen here too.) But the early site is the token "iffel", not the subject's last token " Tower" (below 0.05 at every
# layer): it is where one can first tell *which* tower. The map is of one fact; do not take it for a law.
#
# The paper goes on to say which *parts* wrote the early site: MLPs of middle layers. It restores **windows** of ten layers at once. Here each of the 30
# MLPs alone, at "iffel", and one window of seven:

# %%
at_iffel = {"site": "mlp_out", "positions": [3]}
one = ml.causal_tracing(model, fact, paris, subject=subject, layers=range(30), **at_iffel)
seven = ml.causal_tracing(model, fact, paris, subject=subject, window=7, layers=[3], **at_iffel)
draws = torch.cat([one.per_prompt[:, [0, 3], 0], seven.per_prompt[:, :, 0]], 1)
labels = {"restored at 'iffel'": ["MLP 0", "MLP 3", "MLPs 0 to 6, around 3"]}
ml.Scores.over_prompts(draws, tuple(labels), "indirect effect (probability)", labels=labels).plot(height=300)

# %% kind="assert"
claim(model, "MLP 0 alone", draws.mean(0)[0], says=0.22, within=0.05)
claim(model, "MLP 3 alone", draws.mean(0)[1], says=0.0, within=0.02)
assert one.values[1:].abs().max() < 0.1
claim(model, "seven MLPs around 3", draws.mean(0)[2], says=0.30, within=0.05)
claim(model, "MLP 0 alone, smallest draw", draws[:, 0].min(), says=0.1, within=0.1)
claim(model, "MLP 0 alone, largest draw", draws[:, 0].max(), says=0.4, within=0.1)

# %% [markdown]
# Seven MLPs around layer 3 bring back 0.30. MLP 3 alone brings back 0.00. The window *contains* MLP 0, which alone brings 0.22, and no other MLP alone brings
# as much as 0.1. So **a window inflates**: it credits its middle with what all its members do. For this fact most of the early site is written by the first
# layer. That is not what the paper reports for GPT-2 XL (48 layers, a peak around 17). And Hase et al. (2023) showed that such a peak does not tell where to
# edit either (notebook 34).
#
# One draw of the noise is not enough: for MLP 0 the ten lie between 0.1 and 0.4. (The whiskers in the figure are 95 % intervals of the mean.)
#
# And the noise? Look at the streams it makes, and at other levels:


# %%
def add_noise(x, hook):
    drawn = torch.randn(10, 3, x.shape[-1], generator=torch.Generator().manual_seed(0))
    return torch.cat([x[:, :2], x[:, 2:5] + 3 * model.W_E.std() * drawn, x[:, 5:]], 1)


norms = {}
for name, hooks in {"clean": [], "noise": [("blocks.0.hook_resid_pre", add_noise)]}.items():
    with torch.no_grad(), ml.intervene(model, hooks):
        _, cache = model.run_with_cache(fact.expand(10, -1), names_filter=ml.only("resid_mid", "resid_post"))
    norms[name] = [cache["resid_mid", 0][:, 3].norm(dim=-1).mean().item()]
    norms[name] += [cache["resid_post", layer][:, 3].norm(dim=-1).mean().item() for layer in (0, 2, 10)]
print("norm of the stream at 'iffel', before MLP 0 and after layers 0, 2, 10:")
print(*(f"  {name}: {[round(length, 1) for length in lengths]}" for name, lengths in norms.items()), sep="\n")

# %%
levels = {3: trace.values[[1, 4], [3, -1]]}
for noise in (1, 10):
    scores = ml.causal_tracing(model, fact, paris, subject=subject, noise=noise, layers=[10, 24], samples=5)
    levels[noise] = scores.values[[0, 1], [3, -1]]
labels = {"noise": [f"{n} sd" for n in sorted(levels)]}
labels["state restored"] = ["'iffel', layer 10", "last token, layer 24"]
rows = torch.stack([levels[n] for n in sorted(levels)])
ml.Scores(rows, tuple(labels), "indirect effect (probability)", labels).plot(height=290)

# %% kind="assert"
claim(model, "norm before MLP 0, clean", norms["clean"][0], says=3.6, within=0.1)
claim(model, "norm before MLP 0, with noise", norms["noise"][0], says=10.5, within=0.4)
claim(model, "norm after layer 0, clean", norms["clean"][1], says=74, within=1)
claim(model, "norm after layer 0, with noise", norms["noise"][1], says=45, within=5)
claim(model, "'iffel', layer 10, 1 sd", rows[0, 0], says=0.31, within=0.05)
claim(model, "'iffel', layer 10, 10 sd", rows[2, 0], says=0.26, within=0.05)

# %% [markdown]
# Before MLP 0 the noise makes the stream at this token three times as long as without it (10.5 instead of 3.6), and after layer 0 it is *shorter* (45
# instead of 74). No text puts the model there: the noise is **out of distribution**, and what the parts do in such a state is not what they do in a sentence.
# For this fact the effects are much the same with 1, 3 and 10 standard deviations of noise (at "iffel" 0.31, 0.29 and 0.26; five draws for 1 and 10). Do not
# count on it; try another level, another corruption, another fact.
#
# So such a map misleads in four ways. One fact is no law. A window credits its middle with what its members do. One draw of the noise is not enough. And the
# noise puts the model where no text does.
#
# ## Beside the papers

# %%
mine = {
    "probability of the answer, clean": trace.baselines["clean"],
    "probability of the answer, noise on the subject": trace.baselines["corrupted"],
    "layer of the MLPs with the largest effect at the subject": one.values[:, 0].argmax().item(),
}
ml.reference.table("31", mine)

# %% [markdown]
# | term | meaning |
# |---|---|
# | base, source | the run that reads its own tokens, and the run from which one activation comes |
# | share, recovered | (patched − base) / (source − base), of the means over the prompts: 0 nothing, 1 everything |
# | denoising, noising | base corrupted (is it enough?), base clean (is it needed?) |
# | AND, OR | both parts needed: only noising sees them; one of two enough: only denoising sees them |
# | corruption | what the two runs differ in; a patch finds only what carries this difference |
# | causal tracing | noise on the subject, one clean state restored; the effect is the probability that comes back |
# | window | several layers restored at once: larger effects, and a place that is blurred |
#
# `ml.activation_patching` (stream, heads, patterns, queries, keys, values, MLPs; by layer, position, head), `ml.causal_tracing`,
# `ml.recovered`, `ml.replace_head`. Papers: Meng et al. 2022, Wang et al. 2022, Zhang and Nanda 2024, Heimersheim and Nanda 2024, Hase et al. 2023.
# Next: notebook 32, steering.
