# %% [markdown]
# # 24 Ablation
#
# **Question:** what breaks if a part is gone, and gone in which sense?
#
# After this notebook you will be able to
#
# - take away heads, value heads, MLPs and directions, and choose what to put in their place,
# - say what each of four ways keeps and what it brings in, and show a part on which they disagree,
# - give an effect its interval and its random control.
#
# Time: 65 minutes. The cells take about 80 seconds in all. Memory: 2.0 GB.
# Download: none, once the model is here (93 MB). Before: notebooks 03 and 12.

# %% kind="setup"
# (written by the build)

# %% [markdown]
# ## The picture
#
# The sixteen sentences of notebook 12, and the logit of the right name minus the wrong one. Take away six heads, one at a time: each output is replaced
# by its mean over 32 other sentences. They have the same form, but three different names ("When Alice and Ben went to the store, Kate gave a drink to").

# %%
import random

couples = [("John", "Mary"), ("Tom", "Laura"), ("Mark", "Anna"), ("Peter", "Sarah")]
couples += [("Paul", "Jane"), ("David", "Emma"), ("Mary", "John"), ("Laura", "Tom")]
asked = [(s, io, first) for s, io in couples for first in ((s, io), (io, s))]
sentence = "When {} and {} went to the store, {} gave a drink to"
base = model.to_tokens([sentence.format(a, b, s) for s, _, (a, b) in asked])
metric = ml.logit_difference(
    [ml.single_token(model, f" {io}") for _, io, _ in asked],
    [ml.single_token(model, f" {s}") for s, _, _ in asked],
)
others = [
    "Alice",
    "Kate",
    "Sam",
    "James",
    "Robert",
    "Ben",
    "Lisa",
    "Susan",
    "Jack",
    "Alan",
    "Simon",
    "George",
]
draw = random.Random(0)
reference = model.to_tokens([sentence.format(*draw.sample(others, 3)) for _ in range(32)])

# %%
heads = [(17, 4), (20, 0), (23, 0), (23, 3), (29, 0), (29, 1)]
mean = ml.ablation_effects(model, base, metric, heads, "mean", source=reference)
mean.plot(title="change of the logit difference without the head (logits)")

# %% kind="assert"
with torch.no_grad():
    intact = metric(model(base)).mean().item()
claim(model, "intact", intact, says=5.1, within=0.05)
claim(model, "change without 23.3", mean.values[3], says=-2.6, within=0.1)
claim(model, "change without 29.0", mean.values[4], says=1.07, within=0.1)
claim(model, "change without 23.0", mean.values[2], says=0.2, within=0.15)

# %% [markdown]
# Of 5.1 logits the model loses 2.6 without 23.3 and 1.2 without 20.0. Without 29.0 it does *better*, by 1.1. And without 23.0, which by notebook 12
# adds 0.8 by itself, nothing is lost. The whiskers are 95 % intervals over the prompts.
#
# ## By hand: what comes in its place
#
# A hook gets an activation and returns another one. Here the activation is `z`, what each head gathered, before $W_O$ (notebook 02). The 32 other
# sentences are the **reference**. Mean ablation writes, at each position, the mean over the reference prompts at that position.
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
# With several sentence forms (**templates**) in one set, each prompt gets the mean of its own template. Otherwise names and verbs are mixed up at one position.
#
# ### Exercise 24.2 Within the template
#
# Difficulty 2 of 5 · 10 minutes · needs 24.1


# %% kind="exercise" id="24.2"
@exercise("24.2")
def template_means(
    found: Float[Tensor, "other pos d"], its_templates: list[str], templates: list[str]
) -> Float[Tensor, "batch pos d"]:
    """For each prompt, by its template, the mean over the reference prompts of the same template.

    found: an activation on each reference prompt; its_templates: the template of each of them
    templates: the template of each prompt that is to be changed; every one of them occurs in its_templates
    """
    # >>> solution
    rows = []
    for template in templates:
        same = [n for n, other in enumerate(its_templates) if other == template]
        rows.append(found[same].mean(0))
    return torch.stack(rows)
    # <<< solution


# %% kind="check"
check(template_means)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# For each prompt: which reference prompts have its template?
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# Collect the numbers of those prompts in a list, `found[same]` picks them, `.mean(0)` averages. Stack the results.
#
# </details>

# %% [markdown]
# ## Four ways
#
# **Zero**: the part says nothing. **Mean**: it says what it says on average. **Resample**: it says what it said about another prompt, drawn at random from
# the reference. **Noise**: the mean, plus random numbers as widely spread, in each coordinate, as over the reference. The library does all four; the mean
# equals the version by hand:

# %%
with torch.no_grad():
    _, cache = model.run_with_cache(reference, names_filter="blocks.20.attn.hook_z")


def by_hand(z, hook):
    changed = z.clone()
    changed[:, :, 0] = cache[hook.name][:, :, 0].mean(0)
    return changed


with torch.no_grad(), ml.intervene(model, [("blocks.20.attn.hook_z", by_hand)]):
    effect = metric(model(base)) - intact
print(f"20.0 by hand {effect.mean():.3f}, library {mean.values[1]:.3f}")

# %% kind="assert"
assert abs(effect.mean() - mean.values[1]) < 1e-3

# %% [markdown]
# Do the four agree? On the MLPs of five layers:

# %%
layers = [1, 10, 20, 25, 29]
table = torch.stack([
    ml.ablation_effects(model, base, metric, layers, how, unit="mlp", source=reference).values
    for how in ("zero", "mean", "resample", "noise")
])  # fmt: skip
labels = {"way": ["zero", "mean", "resample", "noise"], "MLP of layer": [str(layer) for layer in layers]}
ml.Scores(table, ("way", "MLP of layer"), "change of the logit difference (logits)", labels).plot(height=330)

# %% kind="assert"
claim(model, "zero, MLP 10", table[0, 1], says=-0.99, within=0.1)
claim(model, "mean, MLP 10", table[1, 1], says=0.19, within=0.1)
claim(model, "zero, MLP 1", table[0, 0], says=-0.9, within=0.1)
claim(model, "mean, MLP 1", table[1, 0], says=-0.16, within=0.1)
assert (table[1:].max(0).values - table[1:].min(0).values).max() < 0.25

# %% [markdown]
# MLP 10 matters by −0.99 logits if it is set to zero, and by +0.19 (the model does *better*) with its mean. Which is it? On every one of the five, the mean, resample and noise agree within a quarter of a logit.
# Zero is a value that this MLP never takes: later layers have learned to expect its usual output, and without it they are in a situation they never met. **A large effect of zero
# ablation can be a missing constant, not missing information.**
#
# And what is "usual"? The mean depends on the reference:

# %%
own = ml.ablation_effects(model, base, metric, heads, "mean")
both = torch.stack([own.values, mean.values])
labels = {
    "mean over": ["the 16 sentences themselves", "32 with three names"],
    "head": list(mean.labels["part"]),
}
ml.Scores(both, ("mean over", "head"), "change of the logit difference (logits)", labels).plot(height=270)

# %% kind="assert"
claim(model, "20.0, mean over the sentences themselves", own.values[1], says=-0.81, within=0.1)
claim(model, "20.0, mean over three names", mean.values[1], says=-1.23, within=0.1)
claim(model, "17.4, mean over the sentences themselves", own.values[0], says=-0.38, within=0.1)
claim(model, "17.4, mean over three names", mean.values[0], says=-1.04, within=0.1)

# %% [markdown]
# In the sixteen sentences one name always comes twice, and so their mean still says "some name was said twice". The mean of the three-name sentences does not. What
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
# minus the mean of the reference's twelve names, out of the stream on leaving layer 27:

# %%
names = [ml.single_token(model, f" {name}") for name in others]
direction = (model.W_U[:, ml.single_token(model, " Mary")] - model.W_U[:, names].mean(1)).detach()
rows = {}
for name, given in (("to zero", None), ("to its mean", reference)):
    hooks = ml.direction_hooks(model, direction, [27], reference=given)
    with torch.no_grad(), ml.intervene(model, hooks):
        rows[name] = metric(model(base)) - intact
mary = torch.tensor([io == "Mary" for _, io, _ in asked])
for name, change in rows.items():
    print(
        f"{name}: {change[mary].mean():+.2f} where the answer is Mary, {change[~mary].mean():+.2f} elsewhere"
    )

# %% kind="assert"
claim(
    model,
    "Mary's direction to zero, where she is the answer",
    rows["to zero"][mary].mean(),
    says=-4.5,
    within=0.2,
)
claim(model, "to its mean, where she is the answer", rows["to its mean"][mary].mean(), says=-4.3, within=0.2)
assert max(change[~mary].mean().abs() for change in rows.values()) < 0.1

# %% [markdown]
# Here the two ways agree, and nothing happens where another name is the answer. Do not count on
# it: in notebook 33 zero lies far from the usual value, and setting a direction to zero changes much more than what this direction says.
#
# ## How sure?
#
# Sixteen prompts are few. A **bootstrap** interval: draw sixteen of the sixteen with replacement, take the mean, many times over; between which
# values do 95 % of the means lie?
#
# ### Exercise 24.4 An interval
#
# Difficulty 3 of 5 · 10 minutes · needs nothing


# %% kind="exercise" id="24.4"
@exercise("24.4")
def interval(effects: Float[Tensor, "prompt"], draws: int, generator: torch.Generator) -> tuple[float, float]:
    """Bootstrap: the 2.5 % and 97.5 % quantiles of the means of `draws` samples, each as large as the data, with replacement."""
    # >>> solution
    n = len(effects)
    picked = torch.randint(n, (draws, n), generator=generator)
    low, high = effects[picked].mean(1).quantile(torch.tensor([0.025, 0.975]))
    return low.item(), high.item()
    # <<< solution


# %% kind="check"
check(interval)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# The quantiles are of the means, not of the effects.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# `torch.randint(n, (draws, n), generator=generator)` picks with replacement. `effects[picked]` has shape [draws, n]. Mean over the last axis, then
# `.quantile`.
#
# </details>


# %% kind="wrong" id="24.4" expects="of the effects themselves"
@exercise("24.4")
def interval(effects, draws, generator):
    low, high = effects.quantile(torch.tensor([0.025, 0.975]))
    return low.item(), high.item()


# %% kind="wrong" id="24.4" expects="without replacement"
@exercise("24.4")
def interval(effects, draws, generator):
    means = torch.stack(
        [effects[torch.randperm(len(effects), generator=generator)].mean() for _ in range(draws)]
    )
    low, high = means.quantile(torch.tensor([0.025, 0.975]))
    return low.item(), high.item()


# %% kind="wrong" id="24.4" expects="too narrow"
@exercise("24.4")
def interval(effects, draws, generator):
    picked = torch.randint(len(effects), (draws, len(effects)), generator=generator)
    low, high = effects[picked].mean(1).quantile(torch.tensor([0.25, 0.75]))
    return low.item(), high.item()


# %% [markdown]
# The whiskers in the first picture were made in this way, with 2,000 draws.
#
# ## Predict: four at once
#
# Heads 23.0, 23.1, 23.2 and 23.7 raise names. Notebook 12 took all four away, and the logit difference of 5.1 hardly moved. Does layer 23 then do without any
# four heads? The control: take away four *others* of its nine heads, drawn at random. What is left of the 5.1, on average over such draws?

# %% kind="predict"
predict("24.p", 5.0)

# %%
movers = [(23, 0), (23, 1), (23, 2), (23, 7)]
together = ml.ablate_together(model, base, metric, movers, source=reference, draws=4)
print(together)

# %% kind="assert"
claim(model, "without the four", together.after.mean(), says=5.1, within=0.15)
claim(model, "without four random others of layer 23", together.random.mean(), says=3.1, within=0.7)
reveal("24.p", round(together.random.mean().item(), 1))

# %% [markdown]
# Without the four nothing is lost (5.1), although they raise the right name. Taking a part away tells what the model *cannot do without*, not what it *uses*:
# others step in, or had said enough. (Notebook 12 found the first of those others, 24.4; notebook 42 finds more.)
#
# The random control costs *more*: 3.1 is left. Layer 23 has only five other heads. Any four of them leave out just one, so most draws include 23.3, which costs 2.6
# alone. A matched control is only as good as its pool.
#
# **Question 24.a.** Mean ablation of a head changes nothing. Which conclusion is safe?
#
# - **a** The head does nothing on these prompts.
# - **b** On these prompts, with this reference, the model does as well without what varies in this head.
# - **c** The head can be deleted from the model.

# %% kind="quiz"
quiz("24.a", "b")

# %% [markdown]
# ## Shared values
#
# Query heads that share a value head can go together, through that one head. Value head 17.1 serves query heads 17.3 to 17.5; 20.0 serves 20.0 to 20.2; 23.0 serves
# 23.0 to 23.2; 23.1 serves 23.3 to 23.5.

# %%
shared = [(17, 1), (20, 0), (23, 0), (23, 1)]
kv = {
    how: ml.ablation_effects(model, base, metric, shared, how, unit="kv_head", source=reference).values
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
claim(model, "value head 23.1, zero", kv["zero"][3], says=-2.5, within=0.15)
claim(model, "value head 17.1, zero", kv["zero"][0], says=-1.3, within=0.15)
claim(model, "value head 17.1, resample", kv["resample"][0], says=0.0, within=0.15)
claim(model, "value head 23.0, zero", kv["zero"][2], says=-0.3, within=0.1)
claim(model, "value head 23.0, resample", kv["resample"][2], says=-0.8, within=0.15)

# %% [markdown]
# Value head 17.1 costs 1.3 when it is zero and nothing when it speaks of another prompt. What is missed is a constant in its values, not information. (Where 17.4
# *looks* still matters: resampling the values leaves the patterns in place.) It can also go the other way: value head 23.0 costs 0.3 with zeros and 0.8 with
# another prompt's values.
#
# ## Beside the papers

# %%
mine = {
    "logit difference, intact": intact,
    "without the strongest head, mean ablation": intact + mean.values[3].item(),
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
