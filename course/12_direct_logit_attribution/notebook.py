# %% [markdown]
# # 12 Direct logit attribution
#
# **Question:** which layers, heads, MLPs and neurons write the answer?
#
# After this notebook you will be able to
#
# - split a logit difference into one exact term for each part of the model,
# - tell what a part does for the task from what it does for the sentences you happened to choose,
# - say for which other sentences an interval speaks,
# - say what these terms leave out, and show it by an ablation.
#
# Time: 95 minutes. The cells take about 60 seconds in all. Memory: 2.0 GB.
# Download: none, once the model is here (93 MB). Before: notebooks 02 and 03.

# %% kind="setup"
# (written by the build)

# %% [markdown]
# ## The picture
#
# Sixteen sentences like the running one: eight choices of giver and receiver, with their names in either order. In each
# the model should say the name that is there once. The last stream is the sum of what all layers wrote, so the logit of
# the right name, minus the wrong one, is a sum with one term for each layer. Add them up from the bottom:

# %%
SENTENCE = "When {} and {} went to the store, {} gave a drink to"


def sentences(couples):
    """Prompts, right names and wrong names, for (giver, receiver) couples in both orders of the first clause."""
    both = [(s, io, first) for s, io in couples for first in ((s, io), (io, s))]
    base = model.to_tokens([SENTENCE.format(*first, s) for s, _, first in both])
    return base, [f" {io}" for _, io, _ in both], [f" {s}" for s, _, _ in both]


def written(base, answers, wrong):
    """The logit difference written up to each layer, mean over the prompts."""
    layers = ml.direct_logit_attribution(model, base, answers, wrong, unit="layer")
    return layers.baselines["everything else"] + layers.values.cumsum(0)


couples = [("John", "Mary"), ("Tom", "Laura"), ("Mark", "Anna"), ("Peter", "Sarah")]
couples += [("Paul", "Jane"), ("David", "Emma"), ("Mary", "John"), ("Laura", "Tom")]
sixteen = written(*sentences(couples))
ml.Scores(sixteen, ("layer",), "logit difference written up to this layer (logits)").plot()

# %% kind="assert"
claim(model, "written up to layer 22", sixteen[22], says=-1.5, within=0.1)
claim(model, "written up to layer 23", sixteen[23], says=2.5, within=0.2)
claim(model, "written in all", sixteen[-1], says=5.1, within=0.1)

# %% [markdown]
# In the end the right name leads by 5.1 logits. But up to layer 22 the *wrong* one leads, by 1.5, and layer 23 turns it
# round. It looks as if the model first said the name that it had just read twice, and then thought better of it. That
# is a good story. Is it true?
#
# **Question 12.c.** Which experiment could kill the story?
#
# - **a** A thousand more sentences with these eight couples, for a narrow interval.
# - **b** The same sentences with the roles exchanged: who gave now receives.
# - **c** The same sum for each single sentence, to see how many of the sixteen lean that way.
# - **d** Take layer 23 away, and see whether the model then says the wrong name.

# %% kind="quiz"
quiz("12.c", "b")

# %% [markdown]
# <details><summary>When you have answered: the experiment, and a guess</summary>
#
# Twelve of the sixteen sentences come from the first six couples. Take these twelve, and exchange the roles in each. If the
# model leans to the *repeated* name, the sum at layer 22 stays below zero. What do you expect there, in logits?
#
# </details>

# %% kind="predict"
predict("12.q", -1.5)

# %% folded="The experiment"
chosen = couples[:6]
exchanged = [(receiver, giver) for giver, receiver in chosen]
sums = {"as chosen": written(*sentences(chosen)), "roles exchanged": written(*sentences(exchanged))}
sums["balanced"] = (sums["as chosen"] + sums["roles exchanged"]) / 2
ml.Scores(
    torch.stack(list(sums.values())),
    ("sentences", "layer"),
    "logit difference written up to this layer (logits)",
    {"sentences": list(sums)},
).plot(lines=True)

# %% kind="assert"
reveal("12.q", f"{sums['roles exchanged'][22]:.1f}")
claim(model, "as chosen, up to layer 22", sums["as chosen"][22], says=-3.3, within=0.15)
claim(model, "exchanged, up to layer 22", sums["roles exchanged"][22], says=3.4, within=0.15)
claim(model, "balanced, up to layer 22", sums["balanced"][22], says=0.05, within=0.1)
claim(model, "balanced, up to layer 23", sums["balanced"][23], says=3.8, within=0.2)
claim(model, "balanced, in all", sums["balanced"][-1], says=4.6, within=0.15)

# %% [markdown]
# <details><summary>What we saw</summary>
#
# The story is dead. With the roles exchanged the sum stands at +3.4 instead of −3.3: it follows the *people*, whoever is
# named twice. In the six couples as we chose them a man gives and a woman receives, and below layer 23 the model
# writes for the man. Twelve of our sixteen sentences have a man who gives: hence the lean. Had we chosen women, the same sum would have
# told the opposite story. With every couple in both roles nothing is left, 0.05. Up to layer 22 nothing is
# written that the unembedding reads as an answer, and layer 23 writes nearly all of it.
#
# An earlier version of this course told the false story in two notebooks, and took it as confirmed that they agreed. Two
# measurements on the same unbalanced sentences share their error.
#
# > **Balance first.** Whatever is not the question must stand on both sides equally often. The test: exchange the roles,
# > and see whether the sign follows the role.
#
# </details>

# %% [markdown]
# ### One level more
#
# "The model prefers men": also a story, from six couples. Twelve other couples, each in both roles and both orders. How far does
# the sum at layer 22 favour the man?

# %%
men = ["James", "Robert", "Michael", "William", "Richard", "Thomas"]
men += ["Daniel", "George", "Kevin", "Henry", "Simon", "Jack"]
women = ["Susan", "Lisa", "Karen", "Emily", "Helen", "Rachel"]
women += ["Julia", "Alice", "Lucy", "Kate", "Claire", "Sally"]
half = 2 * len(men)
twelve = ml.direct_logit_attribution(
    model, *sentences([*zip(men, women, strict=True), *zip(women, men, strict=True)]), unit="layer"
)
at_22 = twelve.per_prompt[:, :23].sum(1)
for_the_man = (at_22[half:] - at_22[:half]).reshape(-1, 2).mean(1) / 2
labels = {"couple": [f"{man}, {woman}" for man, woman in zip(men, women, strict=True)]}
ml.Scores(for_the_man, ("couple",), "favour for the man up to layer 22 (logits)", labels).plot(height=400)

# %% kind="assert"
claim(model, "mean favour for the man, new couples", for_the_man.mean(), says=3.4, within=0.2)
claim(model, "couples in which the man is favoured", (for_the_man > 0).sum(), says=12, within=0)
nobody = model.to_tokens(["When the two friends went to the store, they gave a drink to"] * len(men))
names = [[f" {name}" for name in some] for some in (men, women)]
absent = ml.direct_logit_attribution(model, nobody, *names, unit="layer").per_prompt[:, :23].sum(1)
claim(model, "the same names where nobody is named", absent.mean(), says=3.5, within=0.2)
in_all = twelve.per_prompt.sum(1)
claim(
    model, "favour for the man, all layers", (in_all[half:] - in_all[:half]).mean() / 2, says=-0.7, within=0.2
)

# %% [markdown]
# <details><summary>What we saw</summary>
#
# In all twelve the man is favoured, by 3.4 logits on average: it is men, and not only those six. Nor is it the same for
# all names, as the bars show. Were these people even read? "When the two friends went to the store, they gave a drink to" names nobody, and the
# same men still lead by 3.5. So up to layer 22 the stream leans to men's names, in the sentence or not. It is not the model's last word either: with all
# layers the woman is ahead, by 0.7.
#
# </details>
#
# The next level would be two men, or two women. Are they level? Try it, with `sentences` and `written`.

# %% [markdown]
# ## The heads, on balanced sentences
#
# From here on: pairs of sentences that differ only in who gives, from eight sentence forms (**templates**), with names and things
# drawn at random. What does each of the 270 heads add to the logit difference?

# %%
prompts = ml.ioi_prompts(model, 64)
print(prompts.text(0), "|", prompts.text(1))
heads = ml.direct_logit_attribution(model, prompts, prompts.io, prompts.s, unit="head")
heads.plot(height=560, xaxis_dtick=1)

# %%
heads.top(6)

# %% kind="assert"
claim(model, "direct effect of 23.3", heads.values[23, 3], says=1.91, within=0.05)
claim(model, "direct effect of 29.1", heads.values[29, 1], says=1.04, within=0.05)
claim(model, "direct effect of 29.0", heads.values[29, 0], says=-0.74, within=0.05)
claim(model, "all heads together", heads.values.sum(), says=2.98, within=0.1)
outside = heads.baselines["everything else"]
claim(model, "mean logit difference of the model", heads.whole.mean() + outside, says=4.3, within=0.1)
assert heads.values[:23].abs().max() < 0.15

# %% [markdown]
# The heads add 3.0 of the 4.3 logits; `everything else` is the MLPs and the embedding. Nearly all of it comes from a handful of
# heads in the last seven layers: 23.3 adds most, 29.1 comes next, and 29.0 takes away.
#
# ### For which sentences does an interval speak?
#
# `95 % low` and `95 % high` are a **bootstrap** interval: draw again from the data, with replacement, take the mean, many times
# over, and see between which values it falls. But draw *what*? The 64 prompts are 32 couples in both roles, and come from eight
# templates. Drawing prompts pretends that the two of a couple are independent; `heads.top` draws couples. And if you
# want to speak of other sentences, sentences must be what is drawn: templates.
#
# Try it. Six heads: the interval from the sixteen sentences above (one sentence form, prompts drawn), and the ones from the balanced
# prompts, couples drawn and templates drawn. The test is eight *other* templates, which nothing above has seen. How often
# is their mean inside?

# %%
import pandas as pd

from mechlab.circuits.ioi import ALIGNED, TEMPLATES

six = [(23, 3), (29, 1), (29, 0), (23, 0), (24, 4), (28, 1)]
new = ml.ioi_prompts(model, 64, templates=TEMPLATES[len(ALIGNED) :], seed=1)
new_heads = ml.direct_logit_attribution(model, new, new.io, new.s, unit="head")
old_heads = ml.direct_logit_attribution(model, *sentences(couples), unit="head")
template = torch.tensor([int(name.split(",")[0].split()[1]) for name in prompts.templates])
ends = {
    "one sentence": old_heads.interval(),
    "eight templates, couples drawn": heads.interval(),
    "eight templates, templates drawn": heads.interval(units=template),
}
found = {"head": [f"{layer}.{head}" for layer, head in six]}
for what, (low, high) in ends.items():
    found[what] = [f"{low[h]:.2f} to {high[h]:.2f}" for h in six]
found["new templates, mean"] = [f"{new_heads.values[h]:.2f}" for h in six]
pd.DataFrame(found)

# %% kind="assert"
inside = {
    what: sum(bool(low[h] <= new_heads.values[h] <= high[h]) for h in six)
    for what, (low, high) in ends.items()
}
for what, count in zip(inside, (1, 4, 3), strict=True):
    claim(
        model,
        f"means on new templates inside, {what}",
        inside[what],
        says=count,
        within=1 if count > 1 else 0,
    )
assert all(new_heads.values[h].sign() == heads.values[h].sign() for h in six[:5])
claim(model, "28.1 on the sixteen sentences", old_heads.values[28, 1], says=-0.48, within=0.05)
claim(model, "28.1 on balanced prompts", heads.values[28, 1], says=0.0, within=0.05)

# %% [markdown]
# The interval from one sentence catches one mean of six. It had said what other *names of these couples* might do, and
# nothing about other sentences. Balanced prompts from eight templates do better, and still miss two or three, whether couples or
# templates are drawn. These eight all have one shape and one length; the new ones have not, and no drawing among what you
# have tells of what you have not. (A little is due to chance: the new means have a spread of their own.)
#
# What holds on the new templates is the sign of all five large heads. Trust signs and rough sizes, not second digits. Head
# 28.1, among the strongest on the sixteen sentences, with an interval that left out zero, is gone: it was part of the imbalance. From here on
# intervals draw couples.

# %% [markdown]
# ## What does 28.1 follow?
#
# Head 28.1 was among the strongest on the sixteen sentences, and on the balanced ones it is nothing. Now you choose the
# sentences. Find people for whom 28.1 speaks *for* the answer, and other people for whom it speaks *against* it.
#
# ### Exercise 12.6 Make it change sign
#
# Difficulty 4 of 5 · 40 minutes · needs `sentences` and `ml.direct_logit_attribution`


# %% kind="exercise" id="12.6"
@exercise("12.6")
def two_lists() -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Two lists of at least six couples (giver, receiver) each, as names without a space: ("John", "Mary").

    With the first list 28.1 speaks for the answer, with the second against it. The check puts them into four
    sentences that this notebook does not show, in both orders. It wants |28.1| of at least 0.2 on the mean of each list,
    the right sign for three couples in four, and 23.3 above zero on both. At most ten couples; names of one token; none twice,
    and none of the eight couples at the top of the notebook.
    """
    # >>> solution
    women_give = [("Susan", "Michael"), ("Jennifer", "William"), ("Lisa", "Richard")]
    women_give += [("Karen", "Andrew"), ("Nancy", "George"), ("Helen", "Edward")]
    men_give = [("James", "Emily"), ("Henry", "Lucy"), ("Simon", "Rachel")]
    men_give += [("Scott", "Hannah"), ("Jim", "Sophia"), ("Philip", "Olivia")]
    return women_give, men_give
    # <<< solution


# %% kind="check"
check(two_lists, model=model)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# In the first picture the sum followed the people, not their roles. What did the people who were favoured have in common?
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# `ml.direct_logit_attribution(model, *sentences(mine), unit="head").per_prompt[:, 28, 1]` has two rows a couple, for a list `mine`
# of your own. Who gives, a woman or a man, is too weak alone: many names hardly move 28.1. Give twenty names, one after the other, to one fixed
# partner, in both roles, and keep those that move it most. Whether they hold on other sentences is what the check tells.
#
# </details>


# %% kind="wrong" id="12.6" expects="the wrong way round"
@exercise("12.6")
def two_lists():
    women_give = [("Susan", "Michael"), ("Jennifer", "William"), ("Lisa", "Richard")]
    women_give += [("Karen", "Andrew"), ("Nancy", "George"), ("Helen", "Edward")]
    men_give = [("James", "Emily"), ("Henry", "Lucy"), ("Simon", "Rachel")]
    men_give += [("Scott", "Hannah"), ("Jim", "Sophia"), ("Philip", "Olivia")]
    return men_give, women_give


# %% kind="wrong" id="12.6" expects="lean the same way"
@exercise("12.6")
def two_lists():
    first = [("Michael", "Susan"), ("William", "Jennifer"), ("Richard", "Lisa")]
    first += [("Andrew", "Karen"), ("George", "Nancy"), ("Edward", "Helen")]
    second = [("James", "Emily"), ("Henry", "Lucy"), ("Simon", "Rachel")]
    second += [("Scott", "Hannah"), ("Jim", "Sophia"), ("Philip", "Olivia")]
    return first, second


# %% kind="wrong" id="12.6" expects="must reach"
@exercise("12.6")
def two_lists():
    first = [("Susan", "Michael"), ("William", "Jennifer"), ("Lisa", "Richard")]
    first += [("Andrew", "Karen"), ("Nancy", "George"), ("Edward", "Helen")]
    second = [("James", "Emily"), ("Lucy", "Henry"), ("Simon", "Rachel")]
    second += [("Hannah", "Scott"), ("Jim", "Sophia"), ("Olivia", "Philip")]
    return first, second


# %% [markdown]
# If your lists hold on sentences that you did not choose, you have found something about these names. It is more than women and
# men: of lists drawn by that alone most fail. And you have not found the answer's mechanism: 23.3 has the same sign on both lists.
#
# ## By hand
#
# The last norm divides the stream by one number, its scale; the unembedding reads the result with one column for each
# token. So the logit difference is a sum: each part, times the difference of two columns, divided by the scale.
#
# ### Exercise 12.1 Direct effects
#
# Difficulty 1 of 5 · 10 minutes · needs notebook 03, the stream is a sum


# %% kind="exercise" id="12.1"
@exercise("12.1")
def direct_effects(
    written: Float[Tensor, "part d_model"],
    W_U: Float[Tensor, "d_model d_vocab"],
    answer: int,
    rival: int,
    scale: float,
) -> Float[Tensor, "part"]:
    """What each part adds to the logit of `answer` minus the logit of `rival`.

    written: what each part wrote into the last stream; scale: what the last norm divides by.
    """
    # >>> solution
    direction = W_U[:, answer] - W_U[:, rival]
    return written @ direction / scale
    # <<< solution


# %% kind="check"
check(direct_effects)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# A logit is the stream, divided by the scale, times one column of `W_U`.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# A difference of two logits needs the difference of two columns, `W_U[:, answer] - W_U[:, rival]`. Multiply every part
# with it, and divide by `scale`.
#
# </details>
#
# The same on one prompt of the real model, with every attention and every MLP as a part:

# %%
with torch.no_grad():
    logits, cache = model.run_with_cache(prompts.tokens[:1])
right, wrong = int(prompts.io[0]), int(prompts.s[0])
direction = (model.W_U[:, right] - model.W_U[:, wrong]).detach()
scale = cache["ln_final.hook_scale"][0, -1, 0]
parts = {"embedding": cache["hook_embed"][0, -1]}
for layer in range(model.cfg.n_layers):
    parts[f"attention {layer}"] = cache["attn_out", layer][0, -1]
    parts[f"MLP {layer}"] = cache["mlp_out", layer][0, -1]
terms = torch.stack([part @ direction / scale for part in parts.values()])
difference = logits[0, -1, right] - logits[0, -1, wrong]
print(f"sum of {len(terms)} terms {terms.sum():.4f}, the model's difference {difference:.4f}")
assert abs(terms.sum() - difference) < 1e-3

# %% [markdown]
# **Question 12.a.** The scale of the last norm depends on all parts. We hold it at its value. What is the price?
#
# - **a** The terms no longer add up, unless each part is divided by its own length.
# - **b** They add up, but what a part does to the scale is counted nowhere.
# - **c** None: the unembedding undoes the norm.

# %% kind="quiz"
quiz("12.a", "b")

# %% [markdown]
# ## Where does the answer turn up?
#
# The running sum once more, now on the balanced prompts. It is what the unembedding would read if nothing came after,
# still divided by the scale of the finished stream. So look at where it jumps, not at its size half way.

# %%
layers = ml.direct_logit_attribution(model, prompts, prompts.io, prompts.s, unit="layer")
start = layers.baselines["everything else"]
running = start + layers.values.cumsum(0)
ml.Scores(running, ("layer",), "logit difference written up to this layer (logits)").plot()

# %% kind="assert"
assert layers.gap.abs().max() < 1e-3
assert running[:23].abs().max() < 0.1
claim(model, "written up to layer 23", running[23], says=3.46, within=0.1)
claim(model, "taken back by layers 24 and 25", running[25] - running[23], says=-0.8, within=0.1)
claim(model, "added by the last layer", layers.values[29], says=1.1, within=0.1)
assert running[22] <= running[-1] / 2 < running[23:].min()

# %% [markdown]
# A cliff: nothing up to layer 22, then 3.5 logits in one layer. The next two take 0.8 back, and the last layer adds 1.1.
#
# ### Exercise 12.2 The layer where it turns
#
# Difficulty 2 of 5 · 10 minutes · needs the running sum above


# %% kind="exercise" id="12.2"
@exercise("12.2")
def turning_layer(effects: Float[Tensor, "layer"], start: float) -> int:
    """The first layer after which the running sum is above half of its final value, and stays above it.

    start: what the embedding and constants give, before layer 0. The final value is positive.
    """
    # >>> solution
    running = start + effects.cumsum(0)
    below = (running <= running[-1] / 2).nonzero()[:, 0]
    return int(below[-1]) + 1 if len(below) else 0
    # <<< solution


# %% kind="check"
check(turning_layer)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# It is easier to find the last layer after which the sum is still at or below half.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# `start + effects.cumsum(0)` is the running sum after each layer. `(running <= running[-1] / 2).nonzero()` lists the
# layers at or below half. The layer after the last of them is the answer; if there is none, it is layer 0.
#
# </details>


# %% kind="wrong" id="12.2" expects="adds most"
@exercise("12.2")
def turning_layer(effects, start):
    return int(effects.argmax())


# %% kind="wrong" id="12.2" expects="Where is `start`"
@exercise("12.2")
def turning_layer(effects, start):
    running = effects.cumsum(0)
    below = (running <= running[-1] / 2).nonzero()[:, 0]
    return int(below[-1]) + 1 if len(below) else 0


# %% kind="wrong" id="12.2" expects="falls below half again"
@exercise("12.2")
def turning_layer(effects, start):
    running = start + effects.cumsum(0)
    return int((running > running[-1] / 2).nonzero()[0])


# %% [markdown]
# ## Head by head
#
# What an attention layer writes is a sum over its heads: what each head gathered (`z`), times its own slice of W_O. So the
# term of a layer splits once more.
#
# ### Exercise 12.3 The heads of a layer
#
# Difficulty 2 of 5 · 10 minutes · needs notebook 02, head outputs


# %% kind="exercise" id="12.3"
@exercise("12.3")
def head_effects(
    z: Float[Tensor, "pos head d_head"],
    W_O: Float[Tensor, "head d_head d_model"],
    direction: Float[Tensor, "d_model"],
    scale: float,
) -> Float[Tensor, "head"]:
    """What each head of one layer writes along `direction` at the last position, divided by the norm's scale."""
    # >>> solution
    written = torch.einsum("hd,hdm->hm", z[-1], W_O)
    return written @ direction / scale
    # <<< solution


# %% kind="check"
check(head_effects)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# The answer is read at the last position only: `z[-1]`, one row for each head.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# Head h writes `z[-1, h] @ W_O[h]`. `torch.einsum("hd,hdm->hm", z[-1], W_O)` does it for all heads. Then the direction and
# the scale, as before.
#
# </details>
#
# ## The library, and TransformerLens
#
# `ml.direct_logit_attribution` extends TransformerLens' function of the same name: it adds neurons and single layers, keeps
# every prompt's numbers for intervals, and says what the terms must add up to. By hand, library and TransformerLens agree:

# %%
from transformer_lens.tools.analysis import direct_logit_attribution

theirs = direct_logit_attribution(model, prompts.tokens[:1], right, wrong, unit="component")
components = ml.direct_logit_attribution(model, prompts.tokens[:1], right, wrong)
print(components.summary())

# %% kind="assert"
assert len(components.values) == 62 == len(terms) + 1
assert (theirs.attribution[:, 0] - terms).abs().max() < 1e-4
assert (components.values[:-1] - terms).abs().max() < 1e-4 and abs(components.values[-1]) < 1e-6
z = cache["z", 23][0, -1]
layer_23 = torch.einsum("hd,hdm->hm", z, model.W_O[23].detach()) @ direction / scale
assert (layer_23 - heads.per_prompt[0, 23]).abs().max() < 1e-4
assert (layer_23.sum() - terms[list(parts).index("attention 23")]).abs() < 1e-4

# %% [markdown]
# (The library's last term is for constants. It is zero in this model.)
#
# One warning that TransformerLens gives too: all this needs norms that are folded into the weights, as `ml.load` does it.
# Unfolded, the last norm has a weight for each coordinate. By hand one easily forgets it, and no error says so.
#
# ## For the answer, or against its rival?
#
# A difference can grow in two ways: the right name goes up, or the wrong name goes down. And a head that raises *all*
# names says nothing about this sentence. So compare each head's effect on a name with its mean effect on all names.
#
# ### Exercise 12.4 For and against
#
# Difficulty 1 of 5 · 5 minutes · needs nothing


# %% kind="exercise" id="12.4"
@exercise("12.4")
def for_and_against(effects: Float[Tensor, "head name"], answer: int, rival: int) -> Float[Tensor, "head 2"]:
    """Each head's effect on the answer and on the rival, both less the head's mean effect over all names.

    answer, rival: which columns they are. First column of the result: the answer; second: the rival.
    """
    # >>> solution
    centred = effects - effects.mean(1, keepdim=True)
    return centred[:, [answer, rival]]
    # <<< solution


# %% kind="check"
check(for_and_against)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Which axis holds the names? The mean goes over that one, separately for each head.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# `effects.mean(1, keepdim=True)` is one mean for each head, in a shape that can be subtracted. Then take the two columns.
#
# </details>
#
# The strongest head of the model is 23.3. Guess before you run the next cell: does it raise the right name, or lower the wrong
# one? The mean is taken over all names that are one token.

# %%
columns = model.W_U[:, prompts.names].detach()
with torch.no_grad():
    _, cache = model.run_with_cache(prompts.tokens, names_filter=ml.only("hook_z", "ln_final.hook_scale"))
    z = torch.stack([cache["z", layer][:, -1] for layer in range(model.cfg.n_layers)])
    # l layer, b prompt (of the batch), h head, d d_head, m d_model, n name
    effect = torch.einsum("lbhd,lhdm,mn->blhn", z, model.W_O, columns)
    effect = effect / cache["ln_final.hook_scale"][:, -1, 0, None, None, None]
    effect = effect - effect.mean(-1, keepdim=True)  # over the names
rows = torch.arange(len(prompts))
at = {
    who: (ids[:, None] == prompts.names).int().argmax(1)
    for who, ids in (("right", prompts.io), ("wrong", prompts.s))
}
shown = [(23, 3), (29, 1), (23, 0), (29, 0), (24, 4)]
split = torch.stack(
    [torch.stack([effect[rows, layer, head, at[w]].mean() for w in at]) for layer, head in shown]
)
labels = {"head": [f"{layer}.{head}" for layer, head in shown], "name": ["right name", "wrong name"]}
ml.Scores(split, ("head", "name"), "effect, less the mean over names (logits)", labels).plot()

# %% kind="assert"
claim(model, "23.3 on the right name", split[0, 0], says=-0.25, within=0.1)
claim(model, "23.3 on the wrong name", split[0, 1], says=-2.2, within=0.1)
claim(model, "29.1 on the right name", split[1, 0], says=1.5, within=0.2)
claim(model, "23.0 on the right name", split[2, 0], says=1.2, within=0.2)
claim(model, "23.0 on the wrong name", split[2, 1], says=0.5, within=0.2)
assert (split[:, 0] - split[:, 1] - torch.stack([heads.values[h] for h in shown])).abs().max() < 1e-3

# %% [markdown]
# 23.3 does not speak for the answer. It even lowers the right name a little, and pushes the *wrong* one down by 2.2: it
# speaks against the name that was there twice. 23.0 raises both, the right one more. A head that lowers what it looks at is
# called a **copy suppression head** (McDougall et al. 2023); notebook 41 asks whether 23.3 is one.
#
# ## How it misleads
#
# A direct effect is what a part says. Is it also what the model would lose without the part? An **ablation** (notebook 03) tells. In
# the place of the head's output we put its mean, at each position of each template, over sentences with three different
# names: nobody is named twice there, so the mean cannot know the answer. Guess first: head 20.0 has a direct effect of 0.02. By how
# much does the logit difference fall without it?

# %% kind="predict"
predict("12.p", 0.0)

# %%
some = prompts.rows(range(32))  # two couples of each template
three_names = ml.ioi_prompts(model, 64, seed=2).corrupted("abc")
form = lambda of: [name.split(",")[0] for name in of.templates]
usual = {"source": three_names, "templates": (form(some), form(three_names))}
tested = [(23, 3), (29, 1), (29, 0), (23, 0), (20, 0), (19, 2), (17, 4)]
change = ml.ablation_effects(model, some, some.metric, tested, "mean", **usual)
direct = heads.per_prompt[:32].mean(0)
both = torch.stack([torch.stack([direct[head] for head in tested]), -change.values], 1)
labels = {"head": list(change.labels["part"]), "measure": ["direct effect", "fall without it"]}
ml.Scores(both, ("head", "measure"), "what a head says, and what is lost without it (logits)", labels).plot()

# %% kind="assert"
reveal("12.p", f"{both[4, 1]:.1f}")
claim(model, "fall without 23.3", both[0, 1], says=2.4, within=0.15)
claim(model, "direct effect of 20.0", both[4, 0], says=0.02, within=0.03)
claim(model, "fall without 20.0", both[4, 1], says=1.9, within=0.15)
claim(model, "fall without 19.2", both[5, 1], says=0.7, within=0.1)
claim(model, "fall without 17.4", both[6, 1], says=1.6, within=0.15)
assert both[4:, 0].abs().max() < 0.06
claim(model, "direct effect of 23.0", both[3, 0], says=0.7, within=0.1)
claim(model, "fall without 23.0", both[3, 1], says=-0.06, within=0.1)
low, high = change.interval()
assert high[4] < -1 and high[6] < -0.8 and abs(low[3]) < 0.4 and abs(high[3]) < 0.4

# %% [markdown]
# <details><summary>What we saw</summary>
#
# Two failures, in both directions.
#
# *Indirect effects.* Without 20.0 nearly two logits are lost, though it says next to nothing itself; 19.2 and 17.4 are
# alike. Such heads can only act through later parts that read what they write.
#
# *Self-repair.* 23.0 speaks for the right name with 0.7 logits. Without it the logit difference does not fall.
#
# </details>
#
# **Question 12.b.** Where did the effect of 20.0 go in the picture of direct effects?
#
# - **a** It is in the terms of the later heads that read what 20.0 wrote.
# - **b** There is none: its fall is noise of the measurement.
# - **c** It is lost, since the terms do not quite add up.
# - **d** It is in the other heads of layer 20, which share its values.

# %% kind="quiz"
quiz("12.b", "a")

# %% [markdown]
# ### Who repairs?
#
# Remove four heads of layer 23 that raise names, 23.0, 23.1, 23.2 and 23.7 (notebook 41 shows that they copy them), and
# attribute again.

# %%
copiers = [(23, 0), (23, 1), (23, 2), (23, 7)]
with torch.no_grad():
    whole, cache = model.run_with_cache(some.tokens, names_filter=ml.only("ln_final.hook_scale"))
    with ml.intervene(model, ml.ablation_hooks(model, some, copiers, "mean", **usual)):
        after = ml.direct_logit_attribution(model, some, some.io, some.s, unit="head")
        broken, broken_cache = model.run_with_cache(some.tokens, names_filter=ml.only("ln_final.hook_scale"))
total_fall = (some.metric(whole) - some.metric(broken)).mean()
moved = ml.Scores.over_prompts(
    after.per_prompt - heads.per_prompt[:32], heads.dims, "change of direct effect (logits)", units=some.pairs
)
lost = -sum(moved.values[head] for head in copiers)
print(f"the four say {lost:.2f} less; the logit difference falls by {total_fall:.2f}")
moved.top(7)

# %% kind="assert"
claim(model, "direct effect lost", lost, says=1.65, within=0.1)
claim(model, "fall without the four", total_fall, says=0.42, within=0.1)
claim(model, "change of 24.4", moved.values[24, 4], says=0.73, within=0.1)
growth = moved.values[23, 3] / direct[23, 3]
claim(model, "growth of 23.3's term", growth, says=0.13, within=0.03)

# %% [markdown]
# The four say 1.65 logits less, and the model loses 0.4: three quarters are made good. The list names those whose terms grew: above all 24.4, in the
# next layer. But it also names 23.3, and that cannot be: it stands in the *same* layer and cannot read the removed
# heads. What happened?
#
# Without the four the stream is shorter, and the last norm divides by less. So every part that writes exactly what it wrote
# before has a larger term. That repairs too, but nobody noticed anything. In the next exercise you separate the two.
#
# ### Exercise 12.7 Who really says something else?
#
# Difficulty 3 of 5 · 15 minutes · needs the cell above


# %% kind="exercise" id="12.7"
@exercise("12.7")
def said_anew(
    before: Float[Tensor, "prompt layer head"],
    after: Float[Tensor, "prompt layer head"],
    scale_before: Float[Tensor, "prompt"],
    scale_after: Float[Tensor, "prompt"],
) -> Float[Tensor, "layer head"]:
    """How much of each head's change, after minus before, is there because the head *writes* something else.

    before, after: each head's direct effect in the whole model and in the broken one
    scale_before, scale_after: what the last norm divided by in the two runs

    A head that writes the same in both runs gets exactly 0, whatever the norm does. What it writes is counted as the
    broken model counts it: divided by its scale. Mean over the prompts.
    """
    # >>> solution
    same_words = before * (scale_before / scale_after)[:, None, None]
    return (after - same_words).mean(0)
    # <<< solution


# %% kind="check"
check(said_anew)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# A direct effect is what was written along the direction, divided by the scale. What would `before` have been, had only the
# scale changed?
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# `before * scale_before` is what was written, free of the norm. Divide it by `scale_after`, prompt by prompt, and subtract it
# from `after`. The scales need two more axes: `[:, None, None]`. The mean over prompts comes last.
#
# </details>


# %% folded="The ledger of all heads"
ratio = cache["ln_final.hook_scale"][:, -1, 0] / broken_cache["ln_final.hook_scale"][:, -1, 0]
anew = (after.per_prompt - heads.per_prompt[:32] * ratio[:, None, None]).mean(0)
others = anew.clone()
for head in copiers:
    others[head] = 0
by_norm = (heads.per_prompt[:32] * (ratio - 1)[:, None, None]).mean(0)
ledger = {"lost by the four": anew.sum() - others.sum(), "24.4 says anew": others[24, 4]}
ledger |= {
    "all other heads say anew": others.sum() - others[24, 4],
    "heads, by the norm alone": by_norm.sum(),
}
ledger["MLPs"] = -total_fall - sum(ledger.values())
assert others[:24].abs().max() < 1e-3  # up to layer 23 nobody can have read the removed heads
claim(model, "24.4 says anew", others[24, 4], says=0.85, within=0.1)
claim(model, "heads, by the norm alone", by_norm.sum(), says=0.4, within=0.15)
assert max(abs(ledger[name]) for name in ("all other heads say anew", "MLPs")) < 0.7
with torch.no_grad():
    _, kept = model.run_with_cache(some.tokens, names_filter=ml.only("24.attn.hook_z"))
    without = ml.ablation_hooks(model, some, copiers, "mean", **usual)
    with ml.intervene(model, without + ml.replace_head(model, (24, 4), kept)):
        held = (some.metric(whole) - some.metric(model(some.tokens))).mean()
claim(model, "fall without the four, 24.4 held", held, says=2.2, within=0.2)
print({name: round(float(value), 2) for name, value in ledger.items()})
ml.Scores(list(ledger.values()), ("part",), "change (logits)", {"part": list(ledger)}).plot(height=330)

# %% [markdown]
# Up to layer 23 nobody says anything new: 23.3 has repaired nothing. 24.4 has; what it says anew is nearly half of the first
# bar. The norm alone gives the heads back another 0.4.
#
# But a ledger only adds up. The test is to take the four away and hold 24.4 at what it said before: now the model loses 2.2, in place of 0.4. Without
# 24.4's turn nothing is made good. The ledger gave it too little. Rushing and Nanda (2024) found both kinds of repair in other models. Why 24.4
# turns, this does not say; notebook 42 comes back to it.
#
# ## Neurons
#
# The same sum goes one step further: what an MLP writes is a sum over its 1,536 neurons, each active a little or a lot,
# each with its own row of W_out.

# %%
neurons = ml.direct_logit_attribution(model, some, some.io, some.s, unit="neuron")
neurons.top(6)

# %% kind="assert"
assert neurons.gap.abs().max() < 1e-3
claim(model, "all neurons together", neurons.values.sum(), says=1.4, within=0.1)
claim(model, "the largest neuron", neurons.values.abs().max(), says=0.13, within=0.03)
single = neurons.per_prompt.abs().flatten(1).amax(1).mean()
claim(model, "the largest neuron of a single sentence", single, says=0.7, within=0.1)

# %% [markdown]
# All neurons together add 1.4 logits. But on average over the sentences no single one adds or takes more than 0.13: the
# heads speak in a few large pieces, the neurons in thousands of small ones. In a single sentence the largest neuron has 0.7; with
# other names it is mostly another, so the mean hides it.
#
# ## The paper's figures and yours
#
# A head that copies a name to the end is called a **name mover**. In GPT-2 small the strongest is head 9.9. Its direct
# effect promised that the logit difference of 3.55 would fall to 0.57 when its output at the last position is zero. It fell to
# 2.99. Below is the same for 23.0: zeros at the last position. With the mean over sentences with three names instead, at every position, it
# came out the same way above. (29.1 raises the right name more, but looks at no name; see notebook 41.)

# %%
zero = ml.ablation_effects(model, some, some.metric, [(23, 0)], "zero", positions=[-1])
intact = some.metric(whole).mean()
mine = {
    "logit difference (logits)": intact,
    "without the strongest name mover, zeros at the end, as its direct effect promises (logits)": intact
    - direct[23, 0],
    "without the strongest name mover, zeros at the end, measured (logits)": intact + zero.values[0],
}
ml.reference.table("12", mine)

# %% kind="assert"
claim(model, "promised without 23.0", intact - direct[23, 0], says=3.8, within=0.15)
claim(model, "measured without 23.0, zeros at the end", intact + zero.values[0], says=4.5, within=0.15)

# %% [markdown]
# ## Recap
#
# | term | meaning | here | TransformerLens |
# |---|---|---|---|
# | direct logit attribution | a logit as a sum with one term a part | `ml.direct_logit_attribution` | `direct_logit_attribution` |
# | logit direction | difference of two columns of W_U | `W_U[:, a] - W_U[:, b]` | `tokens_to_residual_directions` |
# | frozen norm | the last scale is held at its value | `cache["ln_final.hook_scale"]` | `apply_ln_to_stack` |
# | balanced pair | one sentence twice, with the roles exchanged | `ml.ioi_prompts` | |
# | indirect effect | what a part makes later parts say | ablation, patching | |
# | self-repair | other parts, or the norm, make good what one part lost | exercise 12.7 | |
# | name mover | a head that copies a name to the end | 23.0 | |
