# %% [markdown]
# # 24 Ablation
#
# **Question:** what breaks if a part is gone, and gone in which sense?
#
# After this notebook you will be able to
#
# - take away heads, value heads, MLPs and directions, and choose what to put in their place,
# - say what each of four ways keeps and what it brings in, and show a part on which they disagree,
# - find parts that no single ablation finds.
#
# Time: 65 minutes. The cells take about 80 seconds in all. Memory: 2.0 GB.
# Download: none, once the model is here (93 MB). Before: notebooks 03 and 12.

# %% kind="setup"
# (written by the build)

# %% [markdown]
# ## The picture
#
# Balanced prompts as in notebook 12, sixteen couples in both roles, from eight templates. The metric is the logit of the right
# name minus the wrong one. Take away six heads, one at a time: each output is replaced by its mean over other sentences
# of the same template, in which three *different* names occur.

# %%
prompts = ml.ioi_prompts(model, 32)
three_names = ml.ioi_prompts(model, 64, seed=1).corrupted("abc")
print(prompts.text(0), "|", three_names.text(0))
form = lambda of: [name.split(",")[0] for name in of.templates]
usual = {"source": three_names, "templates": (form(prompts), form(three_names))}

# %%
with torch.no_grad():
    intact = prompts.metric(model(prompts.tokens))
heads = [(17, 4), (20, 0), (23, 0), (23, 3), (29, 0), (29, 1)]
mean = ml.ablation_effects(model, prompts, prompts.metric, heads, "mean", **usual)
mean.plot(title="change of the logit difference without the head (logits)")

# %% kind="assert"
claim(model, "intact", intact.mean(), says=4.5, within=0.1)
claim(model, "change without 23.3", mean.values[3], says=-2.4, within=0.15)
claim(model, "change without 20.0", mean.values[1], says=-2.0, within=0.15)
claim(model, "change without 29.0", mean.values[4], says=0.8, within=0.15)
claim(model, "change without 23.0", mean.values[2], says=0.06, within=0.1)

# %% [markdown]
# Of 4.5 logits the model loses 2.4 without 23.3. Without 29.0 it does *better*. And without 23.0, which by notebook 12 adds 0.7 by
# itself, nothing is lost. The whiskers are 95 % intervals; couples are drawn again, since the two prompts of one belong together.
#
# ## By hand: what comes in its place
#
# A hook gets an activation and returns another one. Here the activation is `z`, what each head gathered, before $W_O$ (notebook 02).
# The sentences with three names are the **reference**. Mean ablation writes, at each position, the mean over the reference prompts at
# that position.
#
# ### Exercise 24.1 Mean ablation
#
# Difficulty 2 of 5 · 5 minutes · needs notebook 03, hooks


# %% kind="exercise" id="24.1"
@exercise("24.1")
def mean_ablated(
    z: Float[Tensor, "batch pos head d_head"], reference: Float[Tensor, "other pos head d_head"], head: int
) -> Float[Tensor, "batch pos head d_head"]:
    """z with one head replaced by its mean over the reference prompts, position by position. z itself stays as it is."""
    # >>> solution
    changed = z.clone()
    changed[:, :, head] = reference[:, :, head].mean(0)
    return changed
    # <<< solution


# %% kind="check"
check(mean_ablated)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Position 3 gets the mean of the reference at position 3, not a mean over all positions.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# `reference[:, :, head].mean(0)` has shape [pos, d_head]. Write it into a copy (`z.clone()`), for every prompt.
#
# </details>


# %% kind="wrong" id="24.1" expects="in place"
@exercise("24.1")
def mean_ablated(z, reference, head):
    z[:, :, head] = reference[:, :, head].mean(0)
    return z


# %% [markdown]
# Each prompt gets the mean of its own template. Over all templates together, one position would mix names and verbs.
#
# ## Four ways
#
# **Zero**: the part says nothing. **Mean**: it says what it says on average. **Resample**: it says what it said about another prompt, drawn at random from
# the reference. **Noise**: the mean, plus random numbers as widely spread, in each coordinate, as over the reference. The library does all four; the mean
# equals the version by hand:

# %%
with torch.no_grad():
    _, cache = model.run_with_cache(three_names.tokens, names_filter="blocks.20.attn.hook_z")


def by_hand(z, hook):
    changed = z.clone()
    for row, template in enumerate(form(prompts)):
        same = [n for n, other in enumerate(form(three_names)) if other == template]
        changed[row, :, 0] = cache[hook.name][same, :, 0].mean(0)
    return changed


with torch.no_grad(), ml.intervene(model, [("blocks.20.attn.hook_z", by_hand)]):
    effect = prompts.metric(model(prompts.tokens)) - intact
print(f"20.0 by hand {effect.mean():.3f}, library {mean.values[1]:.3f}")

# %% kind="assert"
assert abs(effect.mean() - mean.values[1]) < 1e-3

# %% [markdown]
# Do the four agree? On the MLPs of four layers, with one couple of each template:

# %%
some = prompts.rows(range(16))
fewer = three_names.rows(range(32))
few = {"source": fewer, "templates": (form(some), form(fewer))}
layers, ways = [1, 10, 20, 29], ("zero", "mean", "resample", "noise")
table = torch.stack([
    ml.ablation_effects(model, some, some.metric, layers, how, unit="mlp", **few).values for how in ways
])  # fmt: skip
labels = {"way": list(ways), "MLP of layer": [str(layer) for layer in layers]}
ml.Scores(table, ("way", "MLP of layer"), "change of the logit difference (logits)", labels).plot(height=330)

# %% kind="assert"
claim(model, "zero, MLP 10", table[0, 1], says=-0.8, within=0.1)
claim(model, "the others, MLP 10, furthest from zero", table[1:, 1].abs().max(), says=0.1, within=0.15)
claim(model, "zero, MLP 29", table[0, 3], says=0.2, within=0.15)
claim(model, "the others, MLP 29, mean", table[1:, 3].mean(), says=-0.26, within=0.15)
assert (table[1:].max(0).values - table[1:].min(0).values).max() < 0.7

# %% [markdown]
# Without MLP 10 the model loses 0.8 logits, or nothing at all: it depends on what stands in its place. For MLP 29 zero and mean lie half a logit apart. Mean, resample
# and noise are closer together, though not equal.
#
# Why does zero cost more? A story suggests itself: zero is a value that an MLP never takes, and later layers miss a **constant** that it always adds. Then one constant vector
# must do as well as the mean of each position. Put the same vector at every position but the first, the mean over positions too:

# %%
outputs = [f"blocks.{layer}.hook_mlp_out" for layer in layers]
with torch.no_grad():
    _, usually = model.run_with_cache(fewer.tokens, names_filter=lambda name: name in outputs)


def one_vector(x, hook):
    return torch.cat([x[:, :1], usually[hook.name][:, 1:].mean((0, 1)).expand_as(x[:, 1:])], dim=1)


constant = {}
for layer, name in zip(layers, outputs, strict=True):
    with torch.no_grad(), ml.intervene(model, [(name, one_vector)]):
        constant[layer] = (some.metric(model(some.tokens)) - intact[:16]).mean().item()
print("one constant vector in place of the MLP:", {layer: round(x, 2) for layer, x in constant.items()})

# %% kind="assert"
claim(model, "zero, MLP 1", table[0, 0], says=-1.1, within=0.15)
claim(model, "constant, MLP 1", constant[1], says=-0.13, within=0.15)
claim(model, "constant, MLP 10", constant[10], says=-0.93, within=0.15)

# %% [markdown]
# For MLP 1 the story holds: 1.1 with zero, 0.13 with a constant. For MLP 10 it fails: a constant costs 0.93, no less than zero. What is missed there differs from position to position,
# and is the same in all these sentences, whoever is named. **A large effect of zero ablation need not be missing information about what varies; which constant would do is a question of its own.**
#
# And what is "usual"? The mean depends on the reference. Two heads, with the mean over the prompts themselves:

# %%
own = ml.ablation_effects(
    model,
    prompts,
    prompts.metric,
    heads[:2],
    "mean",
    source=prompts,
    templates=(form(prompts), form(prompts)),
)
both = torch.stack([own.values, mean.values[:2]])
labels = {"mean over": ["the prompts themselves", "three names"], "head": list(own.labels["part"])}
ml.Scores(both, ("mean over", "head"), "change of the logit difference (logits)", labels).plot(height=270)

# %% kind="assert"
claim(model, "20.0, mean over the prompts themselves", own.values[1], says=-1.3, within=0.1)
claim(model, "17.4, mean over the prompts themselves", own.values[0], says=-0.6, within=0.1)
claim(model, "17.4, mean over three names", mean.values[0], says=-1.6, within=0.1)

# %% [markdown]
# In the prompts one name always comes twice, and so their mean still says "some name was said twice". The mean of the three-name sentences does not. What
# the reference shares with the prompts stays in; choose it so that it lacks exactly what you ask about.
#
# ## Directions
#
# A direction of the stream can be taken away too, at one layer or at every layer.
#
# ### Exercise 24.3 Take a direction out
#
# Difficulty 2 of 5 · 10 minutes · needs linear algebra: projection


# %% kind="exercise" id="24.3"
@exercise("24.3")
def without_direction(
    stream: Float[Tensor, "batch pos d_model"], direction: Float[Tensor, "d_model"], level: float
) -> Float[Tensor, "batch pos d_model"]:
    """The stream with its component along `direction` set to `level`; everything at right angles to it stays.

    The direction can have any length; the component is measured along the direction scaled to length 1.
    """
    # >>> solution
    unit = direction / direction.norm()
    along = stream @ unit
    return stream + (level - along)[..., None] * unit
    # <<< solution


# %% kind="check"
check(without_direction)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# First scale the direction to length 1. How much of the stream lies along it now, and how much should?
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# `along = stream @ unit` has one number a position. Add the difference, `level - along`, times `unit`, to the stream.
#
# </details>

# %% [markdown]
# To zero, or to its mean over the reference (one number, over all positions but the first)? Take the direction that the unembedding reads for " Mary",
# minus the mean of all names, out of the stream on leaving layer 27. The prompts have six names, so that Mary is
# sometimes the answer and sometimes the one who gives. What should happen when she gives?

# %%
people = ["Mary", "John", "Laura", "Tom", "Anna", "Paul"]
six = ml.ioi_prompts(model, 32, names=people, seed=4)
mary = ml.single_token(model, " Mary")
direction = (model.W_U[:, mary] - model.W_U[:, prompts.names].mean(1)).detach()
with torch.no_grad():
    before, rows = six.metric(model(six.tokens)), {}
for name, given in (("to zero", None), ("to its mean", three_names.tokens)):
    hooks = ml.direction_hooks(model, direction, [27], reference=given)
    with torch.no_grad(), ml.intervene(model, hooks):
        change = six.metric(model(six.tokens)) - before
    rows[name] = [
        change[who].mean() for who in (six.io == mary, six.s == mary, (six.io != mary) & (six.s != mary))
    ]
labels = {"way": list(rows), "Mary is": ["the answer", "the giver", "not there"]}
ml.Scores(list(rows.values()), ("way", "Mary is"), "change of the logit difference (logits)", labels).plot(
    height=270
)

# %% kind="assert"
claim(model, "to zero, where she is the answer", rows["to zero"][0], says=-4.2, within=0.3)
claim(model, "to zero, where she gives", rows["to zero"][1], says=2.3, within=0.3)
claim(model, "to its mean, where she is the answer", rows["to its mean"][0], says=-2.7, within=0.3)
claim(model, "to its mean, where she gives", rows["to its mean"][1], says=0.8, within=0.3)
assert max(abs(change[2]) for change in rows.values()) < 0.1

# %% [markdown]
# Where Mary is the answer the right name loses. Where she gives she is the wrong name, and the model does *better* without the direction: her
# logit, too, stood above that of an absent name. Elsewhere nothing happens, as it should. But the two ways do not agree: the mean
# along this direction is not zero, so zero takes out more than what varies. In notebook 33 the mean lies far from zero, and that changes
# much more.
#
# ## Predict: four at once
#
# Heads 23.0, 23.1, 23.2 and 23.7 raise names. Notebook 12 took all four away, and the model lost little. Does layer 23 then do without any
# four heads? The control: take away four *others* of its nine heads, drawn at random. What is left of the 4.5, on average over such draws?

# %% kind="predict"
predict("24.p", 4.5)

# %%
movers = [(23, 0), (23, 1), (23, 2), (23, 7)]
together = ml.ablate_together(model, prompts, prompts.metric, movers, draws=4, **usual)
print(together)

# %% kind="assert"
claim(model, "without the four", together.after.mean(), says=4.1, within=0.15)
claim(model, "without four random others of layer 23", together.random.mean(), says=2.8, within=0.4)
reveal("24.p", round(together.random.mean().item(), 1))

# %% [markdown]
# <details><summary>What we saw</summary>
#
# Without the four only 0.4 is lost, although they raise the right name. Taking a part away tells what the model *cannot do without*, not what it *uses*:
# others step in, or had said enough.
#
# The random control costs *more*: 2.8 is left. Layer 23 has only five other heads. Any four of them leave out just one, so most draws include 23.3. A
# matched control is only as good as its pool.
#
# </details>
#
# **Question 24.b.** The four can go, and hardly anything is lost. "So the model does not use them", says a colleague. Which experiment could prove
# him wrong?
#
# - **a** The same ablation on a thousand prompts.
# - **b** Zeros in their place instead of the mean.
# - **c** Take them away together with the heads that spoke up when they were gone.
# - **d** Take four random heads away, in many layers.

# %% kind="quiz"
quiz("24.b", "c")

# %% [markdown]
# ### Exercise 24.5 None alone, all together
#
# Difficulty 4 of 5 · 25 minutes · needs `ml.ablation_effects` and `ml.ablation_hooks`
#
# A sweep over single heads finds what cannot be replaced. It is blind for parts of which any one can go, but not all.


# %% kind="exercise" id="24.5"
@exercise("24.5")
def hidden_set() -> list[tuple[int, int]]:
    """Two to six heads, (layer, head): each alone can go, all together cannot.

    The check takes them away on other names and other templates, with the mean over three names. No single one may
    change the mean logit difference by more than 20 %, up or down. Together they must lower it by at least 40 %, and
    by a quarter more than their single losses sum to.
    """
    # >>> solution
    return [(2, 4), (5, 6), (8, 1), (9, 2), (14, 3), (15, 7)]
    # <<< solution


# %% kind="check"
check(hidden_set, model=model)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Which heads do the same job? Notebook 23 looked for heads that look from a word to its earlier copy, and found several.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# `prompts.positions["S2"]` and `["S1"]` say where the repeated name stands. Run with the cache and sort all heads by their attention from
# S2 to S1. Take away the first few together with `ml.ablation_hooks(model, some, chosen, "mean", **few)`, and leave out those whose
# loss alone is large.
#
# </details>


# %% kind="wrong" id="24.5" expects="sees it already"
@exercise("24.5")
def hidden_set():
    return [(23, 3), (20, 0)]


# %% kind="wrong" id="24.5" expects="must lose at least"
@exercise("24.5")
def hidden_set():
    return [(23, 0), (23, 1), (23, 2), (23, 7)]


# %% kind="wrong" id="24.5" expects="You return 9 heads"
@exercise("24.5")
def hidden_set():
    return [(5, layer) for layer in range(9)]


# %% [markdown]
# ## Shared values
#
# Query heads that share a value head can go together, through that one head. Value head 17.1 serves query heads 17.3 to 17.5; 20.0 serves 20.0 to 20.2; 23.0 serves
# 23.0 to 23.2; 23.1 serves 23.3 to 23.5.

# %%
shared = [(17, 1), (20, 0), (23, 0), (23, 1)]
kv = {
    how: ml.ablation_effects(model, some, some.metric, shared, how, unit="kv_head", **few).values
    for how in ("zero", "resample")
}
kv_labels = {"way": list(kv), "value head": [f"{layer}.{head}" for layer, head in shared]}
ml.Scores(
    torch.stack(list(kv.values())),
    ("way", "value head"),
    "change of the logit difference (logits)",
    kv_labels,
).plot(height=260)

# %% kind="assert"
claim(model, "value head 23.1, zero", kv["zero"][3], says=-2.3, within=0.2)
claim(model, "value head 17.1, zero", kv["zero"][0], says=-1.7, within=0.2)
claim(model, "value head 17.1, resample", kv["resample"][0], says=0.0, within=0.15)
claim(model, "value head 23.0, zero", kv["zero"][2], says=-0.2, within=0.15)
claim(model, "value head 23.0, resample", kv["resample"][2], says=-0.4, within=0.3)

# %% [markdown]
# Value head 17.1 costs 1.7 when it is zero and nothing when it speaks of another prompt: what is missed is nothing about the names. Is it a constant? One vector for all positions again:

# %%
with torch.no_grad():
    _, spoken = model.run_with_cache(fewer.tokens, names_filter="blocks.17.attn.hook_v", stop_at_layer=18)


def one_value(v, hook):
    changed = v.clone()
    changed[:, 1:, 1] = spoken[hook.name][:, 1:, 1].mean((0, 1))
    return changed


with torch.no_grad(), ml.intervene(model, [("blocks.17.attn.hook_v", one_value)]):
    same_value = (some.metric(model(some.tokens)) - intact[:16]).mean()
claim(model, "value head 17.1, one vector", same_value, says=-0.75, within=0.15)

# %% [markdown]
# In part: 0.75 is still lost. The rest differs from position to position and is alike in all these sentences. (Where 17.4 *looks* still matters: resampling the values leaves the patterns
# in place.)
#
# ## Beside the papers

# %%
mine = {
    "logit difference, intact": intact.mean(),
    "without the strongest head, mean ablation": intact.mean() + mean.values[3],
    "without the four heads that raise the right name": together.after.mean().item(),
}
ml.reference.table("24", mine)

# %% [markdown]
# | way | what it keeps | what it brings in | when |
# |---|---|---|---|
# | zero | nothing | a value the part may never take | parts whose usual output is near zero |
# | mean | what all reference prompts share | an average that no single prompt need show | the default; choose the reference with care |
# | resample | what both prompts share | another prompt's content | to test a hypothesis about what matters |
# | noise | the mean | random variation | when the mean is much shorter than a usual output |
#
# `ml.ablation_effects` (one at a time), `ml.ablate_together` (with random controls), `ml.direction_hooks`. Papers: Wang et al. 2022 (mean, per template),
# Chan et al. 2022 (resampling). Next: notebook 25, more features than dimensions.
