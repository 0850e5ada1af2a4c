# %% [markdown]
# # 11 Input attribution
#
# **Question:** which tokens of the prompt made the model answer as it did, and which of the methods that claim to know
# should you believe?
#
# After this notebook you will be able to
#
# - compute occlusion, Shapley values, integrated gradients and rollout yourself, and say what each one asks,
# - test any of them with a deletion curve beside random orders,
# - show that the baseline you choose, what stands in a token's place, can matter more than the method.
#
# Time: 115 minutes. The cells take about 60 seconds in all. Memory: 2.2 GB.
# Download: none, once the model is here (93 MB). Before: notebook 03.

# %% kind="setup"
# (written by the build)

# %% [markdown]
# ## Nine answers to one question
#
# The model reads "The capital of France is" and says " Paris". Which token did that? Our measure is the logit of
# " Paris" minus the logit of " Rome". To say what a token did, something must stand in its place, the **baseline** (or
# replacement): here, a comma. The first token, which marks the beginning, stays. Nine methods each give every token a
# score.

# %%
base = model.to_tokens("The capital of France is")
source = ml.baseline_tokens(model, base, ",")
metric = ml.logit_difference(ml.single_token(model, " Paris"), ml.single_token(model, " Rome"))
found = {name: method(model, base, source, metric) for name, method in ml.INPUT_METHODS.items()}
shares = torch.stack([scores.values / scores.values.abs().max() for scores in found.values()])
labels = {"method": list(found), "token": ml.token_labels(model, base[0])}
ml.Scores(shares, ("method", "token"), "score, as a share of the method's largest", labels).plot(height=480)

# %% kind="assert"
claim(model, "gradient norm of The", found["gradient norm"].values[1], says=24.3, within=0.5)
claim(model, "gradient norm of France", found["gradient norm"].values[4], says=12.0, within=0.5)
largest = {name: int(scores.values.argmax()) for name, scores in found.items()}
assert largest["attention rollout"] == 0 and largest["gradient norm"] == 1 == largest["gradient × difference"]
assert largest["gradient × input"] == 2
assert largest["Shapley values"] == largest["integrated gradients"] == 4

# %% [markdown]
# They do not agree. Five of them put " France" first. The gradient norm and gradient × difference put "The" first, gradient ×
# input " capital". Attention rollout puts everything on the begin token. The other methods give that token no score, since it
# is not replaced. They cannot all be right. This notebook takes the methods apart, then lets the model judge them.
#
# ## A game
#
# Most of them can be seen as questions about one game. The tokens are players. A **mask** says which of them stand (1) and
# which are replaced (0). The **value** of a mask is the metric of the prompt it makes. `input_game` builds the game;
# `values` plays it.

# %%
game = ml.input_game(model, base, source, metric)
value = lambda masks: game.values(0, torch.as_tensor(masks).float())  # 0: the first prompt, the only one
n = len(game.players)
everything, nothing = torch.ones(n), torch.zeros(n)
all_but_france, only_france = torch.tensor([1, 1, 1, 0, 1]), torch.tensor([0, 0, 0, 1, 0])
whole, none, without, alone = value(torch.stack([everything, nothing, all_but_france, only_france])).tolist()
print(f"whole prompt {whole:.2f}, only commas {none:.2f}")
print(f"without France {without:.2f}, France alone {alone:.2f}")

# %% kind="assert"
claim(model, "the whole prompt", whole, says=6.21, within=0.05)
claim(model, "only commas", none, says=0.46, within=0.05)
claim(model, "without France", without, says=0.68, within=0.05)
claim(model, "the metric falls without France by", whole - without, says=5.53, within=0.05)
# does the game tell the truth? Write the comma into the prompt and run the model
written = base.clone()
written[0, 4] = ml.single_token(model, ",")
with torch.no_grad():
    assert abs(metric(model(written)).item() - without) < 1e-3

# %% [markdown]
# ## One token at a time: occlusion
#
# Replace one token, keep the others, and note how far the metric falls. Do it for each token.
#
# ### Exercise 11.1 Occlusion
#
# Difficulty 1 of 5 · 10 minutes · needs the game above


# %% kind="exercise" id="11.1"
@exercise("11.1")
def occlusion_scores(value, n: int) -> Float[Tensor, "player"]:
    """For each of n players, how much the value falls when that player alone is replaced.

    value: takes masks [how many, n] and returns their values [how many].
    """
    # >>> solution
    masks = torch.cat([torch.ones(1, n), 1 - torch.eye(n)])
    values = value(masks)
    return values[0] - values[1:]
    # <<< solution


# %% kind="check"
check(occlusion_scores)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# You need the value of n + 1 masks: the whole prompt, and the prompt without each of the tokens.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# `1 - torch.eye(n)` holds the n masks with one zero each. `value` takes them all at once.
#
# </details>


# %% kind="wrong" id="11.1" expects="masks of shape"
@exercise("11.1")
def occlusion_scores(value, n):
    out = []
    for player in range(n):
        mask = torch.ones(n)
        mask[player] = 0
        out.append(value(torch.ones(n)) - value(mask))
    return torch.stack(out)


# %% [markdown]
# Occlusion looks at tokens one at a time. But tokens work together, as the running sentence shows. John is there twice.
# Replace the first " John", the second, or both:

# %%
sentence = model.to_tokens("When John and Mary went to the store, John gave a drink to")
asks_mary = ml.logit_difference(ml.single_token(model, " Mary"), ml.single_token(model, " John"))
commas = ml.baseline_tokens(model, sentence, ",")
ioi = ml.input_game(model, sentence, commas, asks_mary)
cases = {"whole": (), "first John": (2,), "second John": (10,), "both": (2, 10)}
masks = torch.tensor([[float(place not in out) for place in ioi.players] for out in cases.values()])
left = dict(zip(cases, ioi.values(0, masks).tolist(), strict=True))
print("; ".join(f"{case} {value:.2f}" for case, value in left.items()))

# %% kind="assert"
claim(model, "whole sentence", left["whole"], says=5.58, within=0.05)
claim(model, "without the first John", left["first John"], says=3.10, within=0.05)
claim(model, "without the second John", left["second John"], says=-0.67, within=0.05)
claim(model, "without both", left["both"], says=1.70, within=0.05)
claim(
    model,
    "the two falls added",
    2 * left["whole"] - left["first John"] - left["second John"],
    says=8.7,
    within=0.1,
)

# %% [markdown]
# Without the second " John" the metric falls to −0.67; without *both* it is 1.70. The falls of 2.5 and 6.2 add up to 8.7,
# but taking both away costs only 3.9. What a token does depends on who else is there. Occlusion looks at one
# neighbourhood only: everybody else present.

# %% [markdown]
# **Question 11.a.** Two tokens each suffice for the answer: with either of them the model is sure. What does
# occlusion say?
#
# - **a** Both get half of the credit.
# - **b** Both get all of the credit.
# - **c** Both get nothing.

# %% kind="quiz"
quiz("11.a", "c")

# %% [markdown]
# ## All neighbourhoods: Shapley values
#
# Let the tokens join one after the other, in some order, and note what each adds when it joins. Average over all orders:
# that is the **Shapley value** (1953). It is the only way of sharing that does all of this: it adds up to the whole,
# treats equal tokens equally, gives nothing to a token that changes nothing, and is linear in the metric (the scores
# for the sum of two metrics are the sums of the scores).
#
# Instead of orders one can go through masks. For player i, take every mask without i, and the gain when i joins it.
# Average first over the masks of the same size, then over the sizes 0 to n − 1. Five tokens have only 32 masks, so here
# it can be exact.
#
# ### Exercise 11.2 Shapley values
#
# Difficulty 4 of 5 · 25 minutes · needs the paragraph above


# %% kind="exercise" id="11.2"
@exercise("11.2")
def shapley(value, n: int) -> Float[Tensor, "player"]:
    """The Shapley value of each of n players: what it adds when it joins, averaged over all orders.

    value: takes masks [how many, n] and returns their values [how many].
    """
    # >>> solution
    masks = torch.tensor([[i >> player & 1 for player in range(n)] for i in range(2**n)])
    values, size = value(masks), masks.sum(1)
    shares = torch.zeros(n)
    for player in range(n):
        out = (masks[:, player] == 0).nonzero()[:, 0]
        gain = values[out + 2**player] - values[out]
        shares[player] = torch.stack([gain[size[out] == k].mean() for k in range(n)]).mean()
    return shares
    # <<< solution


# %% kind="check"
check(shapley)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Number the masks from 0 to 2ⁿ − 1 and let bit p say whether player p stands. Then the mask in which p joins mask i has
# the number i + 2ᵖ.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# Compute all 2ⁿ values once. For each player: the gains over all masks without it; the mean gain for each size of
# mask; the mean of these n means. (Or go through `itertools.permutations(range(n))` and average what each player adds.)
#
# </details>


# %%
exact = found["Shapley values"]
exact.plot()

# %% kind="assert"
assert exact.gap.abs().max() < 1e-3  # efficiency
claim(model, "Shapley value of France", exact.values[4], says=2.59, within=0.05)
claim(model, "Shapley value of of", exact.values[3], says=0.67, within=0.05)
claim(model, "what the tokens add in all", exact.whole[0], says=5.76, within=0.05)
assert 2**n == 32 and 2**20 > 1_000_000

# %% [markdown]
# " France" gets 2.59 of the 5.76 logits that the tokens add to the commas, and " of" gets 0.67. This is our reference, for
# this replacement. It costs 2ⁿ masks: 32 here, more than a million for twenty tokens.
#
# Kernel SHAP and LIME fit one slope a token: the value of a mask is guessed as a constant plus the slopes of the tokens that
# stand. Kernel SHAP weighs the masks in such a way that, fitted to *all* of them, the slopes *are* the Shapley values. LIME
# gives more weight to masks near the whole prompt, and shrinks small slopes to zero.
#
# Long prompts have too many masks, so some are drawn. How far from the Shapley values does one end up? Three ways, four seeds each: LIME
# with 128 random masks; kernel SHAP as captum does it, 128 random masks; and the library's.

# %%
import captum.attr


def captums(value, n, seed):
    """Kernel SHAP with captum: 128 masks, drawn with replacement."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        given = {"n_samples": 128, "perturbations_per_eval": 128}
        return captum.attr.KernelShap(value).attribute(torch.ones(1, n), torch.zeros(1, n), **given)[0]


far = lambda scores: (scores - exact.values[game.players]).abs().max().item()
errors = {
    "LIME": [far(ml.lime(model, base, source, metric, seed=seed).values[game.players]) for seed in range(4)],
    "kernel SHAP, captum": [far(captums(value, n, seed)) for seed in range(4)],
    "kernel SHAP, ours": [far(found["kernel SHAP"].values[game.players])],
}
print(
    "\n".join(f"{name}: largest error {', '.join(f'{e:.4f}' for e in row)}" for name, row in errors.items())
)

# %% kind="assert"
claim(model, "gap of LIME", found["LIME"].gap, says=2.3, within=0.6)
assert errors["kernel SHAP, ours"][0] < 1e-3 < 0.2 < max(errors["kernel SHAP, captum"])
assert 2**n - 2 == 30

# %% [markdown]
# **Question 11.c.** captum's kernel SHAP is off by more than half a logit in some draws. What would you run to find out *why*?
#
# - **a** The same with a thousand masks, and see the error shrink.
# - **b** The same fit with every mask once.
# - **c** The same with other seeds, and average.

# %% kind="quiz"
quiz("11.c", "b")

# %% [markdown]
# <details><summary>What we saw</summary>
#
# Five tokens have only thirty proper masks (all but the empty and the whole one). captum draws 128 *with* replacement, so that some come
# up many times and some never, and the error is its sampler's, not the method's. `ml.kernel_shap` takes every mask when there are few: then it is exact.
# When there are too many, it takes the smallest and the largest masks whole and draws the others, as the shap package
# does. Then report the spread over seeds.
#
# </details>
#
# LIME's scores fall 2.3 logits short of the whole; it estimates something else and does not promise to add up.
#
# ## Slopes: gradients
#
# Gradients need no masks: one backward pass tells how fast the metric changes as each embedding moves. The length of
# this slope is the **gradient norm**: one number a token, without a sign, whatever the token is replaced by.
#
# **Gradient × input** (Shrikumar et al. 2016) multiplies the slope by the embedding itself. It guesses what the embedding brings,
# compared with an embedding of zeros, which no token has. **Gradient × difference** (our name) multiplies by the step from the comma to
# the token, and so asks what the other methods here ask: what does replacing do? (In the literature both are often called gradient × input.
# With zeros as the baseline they are the same.) The trouble of both is that a slope at one point says little about a step as large as a whole token.
#
# To see it, let the masks hold numbers between 0 and 1: at 0.5 an embedding stands half way between the comma's and the
# token's. Here all tokens move together.

# %%
slope = found["gradient × difference"]
along = value(torch.linspace(0, 1, 21)[:, None].expand(-1, n))
print(f"gradient × difference adds up to {slope.values.sum():.1f}; the whole is {slope.whole.item():.1f}")
ml.Scores(along, ("step",), "metric on the way from commas (0) to the prompt (20) (logits)").plot()

# %% kind="assert"
claim(model, "sum of gradient × difference", slope.values.sum(), says=18.6, within=0.4)
claim(model, "lowest point on the way", along.min(), says=-1.84, within=0.15)
assert 8 <= int(along.argmin()) <= 12

# %% [markdown]
# Moving all embeddings at once from commas to the prompt, the metric wanders, falls to −1.8, and then climbs. The slope at
# the end, taken for the whole way, promises 18.6 logits where there are 5.8.
#
# **Integrated gradients** average the slope along the way, then multiply by the way. Averaging a slope along a path gives
# the rise along the path; so the scores add up to the whole. This is called completeness.
#
# ### Exercise 11.3 Integrated gradients
#
# Difficulty 3 of 5 · 15 minutes · needs the paragraph above


# %% kind="exercise" id="11.3"
@exercise("11.3")
def integrate(
    gradient, x: Float[Tensor, "pos d_model"], x_source: Float[Tensor, "pos d_model"], steps: int
) -> Float[Tensor, "pos"]:
    """Integrated gradients: one score a position.

    gradient: takes one input [pos, d_model] and returns the metric's gradient there, of the same shape.
    x, x_source: where the way ends, and where it begins.
    steps: how many points to average over, spread evenly from x_source to x.
    """
    # >>> solution
    total = torch.zeros_like(x)
    for k in range(steps):
        total = total + gradient(x_source + (k + 0.5) / steps * (x - x_source))
    return (total / steps * (x - x_source)).sum(-1)
    # <<< solution


# %% kind="check"
check(integrate)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# A point on the way is `x_source + share * (x - x_source)`, with a share between 0 and 1.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# Take shares in the middle of `steps` equal pieces: `(k + 0.5) / steps`. Average the gradients there, multiply by
# `x - x_source`, and add up over the last axis: a token's score is the sum over its embedding.
#
# </details>


# %% kind="wrong" id="11.3" expects="gradient × difference"
@exercise("11.3")
def integrate(gradient, x, x_source, steps):
    return (gradient(x) * (x - x_source)).sum(-1)


# %% kind="wrong" id="11.3" expects="did not multiply"
@exercise("11.3")
def integrate(gradient, x, x_source, steps):
    points = [x_source + (k + 0.5) / steps * (x - x_source) for k in range(steps)]
    return torch.stack([gradient(p) for p in points]).mean(0).sum(-1)


# %% kind="wrong" id="11.3" expects="begins at zero"
@exercise("11.3")
def integrate(gradient, x, x_source, steps):
    points = [(k + 0.5) / steps * x for k in range(steps)]
    return (torch.stack([gradient(p) for p in points]).mean(0) * x).sum(-1)


# %% kind="wrong" id="11.3" expects="Divide by the number of steps"
@exercise("11.3")
def integrate(gradient, x, x_source, steps):
    points = [x_source + (k + 0.5) / steps * (x - x_source) for k in range(steps)]
    return (torch.stack([gradient(p) for p in points]).sum(0) * (x - x_source)).sum(-1)


# %% kind="wrong" id="11.3" expects="multiplied with x"
@exercise("11.3")
def integrate(gradient, x, x_source, steps):
    points = [x_source + (k + 0.5) / steps * (x - x_source) for k in range(steps)]
    return (torch.stack([gradient(p) for p in points]).mean(0) * x).sum(-1)


# %% [markdown]
# How many steps are enough? The gap answers: what the scores fall short of the whole. (Below zero, they add up to too
# much.)

# %%
few = {steps: ml.integrated_gradients(model, base, source, metric, steps=steps) for steps in (4, 16, 64)}
for steps, scores in few.items():
    print(f"{steps:3} steps: gap {scores.gap.item():+.2f}, France {scores.values[4]:.2f}")

# %% kind="assert"
claim(model, "gap with 16 steps", few[16].gap, says=1.2, within=0.3)
claim(model, "gap with 64 steps", few[64].gap, says=0.0, within=0.05)
claim(model, "France with 64 steps", few[64].values[4], says=3.0, within=0.1)

# %% [markdown]
# With 16 steps the scores miss a fifth of the whole; with 64 they are complete, on this prompt and with commas. Print
# the gap. It is the one error that this method reports by itself.
#
# ## By hand equals the library
#
# The library asks captum, PyTorch's package of attribution methods, for what captum does well (`ml.show_source(ml.integrated_gradients)`). Occlusion and
# Shapley values by hand beside the library's:

# %% kind="assert"
by_hand = value(torch.ones(1, n)) - value(1 - torch.eye(n))
assert (by_hand - found["occlusion"].values[game.players]).abs().max() < 1e-3
masks = torch.tensor([[i >> player & 1 for player in range(n)] for i in range(2**n)])
values, size = value(masks), masks.sum(1)
for player in range(n):
    out = (masks[:, player] == 0).nonzero()[:, 0]
    gain = values[out + 2**player] - values[out]
    share = torch.stack([gain[size[out] == k].mean() for k in range(n)]).mean()
    assert abs(share - exact.values[game.players[player]]) < 1e-3

# %% [markdown]
# ## Let the model judge: deletion curves
#
# If a method knows which tokens matter, then replacing them in its order, highest score first, should make the metric
# fall early. The mean of that curve is the method's mark: lower is better. But a mark has no scale of its own: on some prompts
# any order falls early. So it means nothing without **random orders on the same prompt**.
#
# ### Exercise 11.4 A deletion curve
#
# Difficulty 2 of 5 · 10 minutes · needs the game


# %% kind="exercise" id="11.4"
@exercise("11.4")
def deletion_curve(value, scores: Float[Tensor, "player"]) -> Float[Tensor, "step"]:
    """The value of the whole prompt, and after each further token is replaced, highest score first: n + 1 numbers.

    value: takes masks [how many, n] and returns their values [how many].
    """
    # >>> solution
    masks = torch.ones(len(scores) + 1, len(scores))
    for step, player in enumerate(scores.argsort(descending=True)):
        masks[step + 1 :, player] = 0
    return value(masks)
    # <<< solution


# %% kind="check"
check(deletion_curve)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Build n + 1 masks. The first is all ones, the last all zeros, and each has one zero more than the one before.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# `scores.argsort(descending=True)` lists the players, highest score first. The player at place k is replaced in all
# masks from number k + 1 on.
#
# </details>


# %% kind="wrong" id="11.4" expects="lowest score first"
@exercise("11.4")
def deletion_curve(value, scores):
    masks = torch.ones(len(scores) + 1, len(scores))
    for step, player in enumerate(scores.argsort()):
        masks[step + 1 :, player] = 0
    return value(masks)


# %% kind="wrong" id="11.4" expects="Tokens stay replaced"
@exercise("11.4")
def deletion_curve(value, scores):
    masks = torch.ones(len(scores) + 1, len(scores))
    for step, player in enumerate(scores.argsort(descending=True)):
        masks[step + 1, player] = 0
    return value(masks)


# %% kind="wrong" id="11.4" expects="the whole prompt first"
@exercise("11.4")
def deletion_curve(value, scores):
    masks = torch.ones(len(scores), len(scores))
    for step, player in enumerate(scores.argsort(descending=True)):
        masks[step:, player] = 0
    return value(masks)


# %% kind="wrong" id="11.4" expects="insertion"
@exercise("11.4")
def deletion_curve(value, scores):
    masks = torch.zeros(len(scores) + 1, len(scores))
    for step, player in enumerate(scores.argsort(descending=True)):
        masks[step + 1 :, player] = 1
    return value(masks)


# %% kind="wrong" id="11.4" expects="rank of each token"
@exercise("11.4")
def deletion_curve(value, scores):
    masks = torch.ones(len(scores) + 1, len(scores))
    for step, player in enumerate(scores.argsort(descending=True).argsort()):
        masks[step + 1 :, player] = 0
    return value(masks)


# %% [markdown]
# Now the running sentence and 20 random orders. Thirteen tokens play, since one is a comma already. All methods but the
# exact Shapley values take part: those would need 8,192 masks. Before you look: which method will have the lowest curve?

# %% kind="predict"
predict("11.p", "integrated gradients")

# %%
named = {
    name: method(model, sentence, commas, asks_mary)
    for name, method in ml.INPUT_METHODS.items()
    if name != "Shapley values"
}
curves = ml.deletion_curves(model, sentence, commas, asks_mary, named)
curves.plot(title="Logit difference as tokens are replaced, highest score first")

# %%
marks = curves.table()
marks

# %% kind="compare"
reveal("11.p", marks.index[0])

# %% kind="assert"
assert len(ioi.players) == 13 and 2**13 == 8192
assert marks.index[0] == "LIME" and marks.loc["attention rollout", "random orders as good"] > 0.5
claim(model, "LIME better than random by", marks.loc["LIME", "better than random by"], says=3.2, within=0.4)

# %% [markdown]
# <details><summary>What we saw</summary>
#
# At each step the grey band holds nine in ten random orders. The orders of LIME and of kernel SHAP beat all twenty. A fifth of the random
# orders are at least as good as the gradients and occlusion, and most are better than rollout.
#
# </details>
#
# But one prompt is an anecdote. So the same was done on eight facts. Tokens were replaced in three ways: by a comma; by `<|endoftext|>`, a token that
# marks the end of a text; and by `mean`, the mean of all embeddings, which is no token at all. Below, commas:
#
# - `better`: the distance from random orders, in logits,
# - `low`: the lower end of its 95 % interval over the eight facts. It says what other facts *chosen in the same way* would give, and nothing of
#   sentences of another kind,
# - `chance`: the share of 40 random orders that are at least as good,
# - `seconds`: the time for one prompt.
#
# (Sentences like the running one and sentences about feelings wait in `data/prompts/attribution.csv`, balanced, for whoever has an hour:
# `python -m benchmarks.input_attribution`.)

# %%
import pandas as pd

page = pd.read_csv(ml.reference.data_dir() / "reference" / "input_attribution.csv", keep_default_na=False)
page = page[page.kind == "fact"]
own = page[(page.baseline == page.deletion) | (page.baseline == "")]
own[own.deletion == ","].set_index("method")[["better", "low", "chance", "seconds"]]

# %% kind="assert"
wins = own.assign(win=(own.low > 0) & (own.chance <= 0.05)).groupby("method").win.sum()
print(wins.sort_values(ascending=False).to_string())
print("random orders as good:", marks["random orders as good"].to_dict())
assert all(wins[name] == 3 for name in ("LIME", "kernel SHAP", "Shapley values", "occlusion"))
assert wins["gradient norm"] == 2 and wins["gradient × input"] == 1 == wins["integrated gradients"]
assert wins["attention rollout"] == 0 == wins["gradient × difference"] and len(own) == 27
tied = own[own.tied == "yes"].groupby("deletion").method.apply(set)
unfinished = ml.integrated_gradients(model, base, ml.baseline_tokens(model, base, "mean"), metric)
claim(model, "integrated gradients with mean: gap", unfinished.gap, says=11, within=2)
claim(model, "the whole with mean", unfinished.whole, says=4.7, within=0.1)
assert tied[","] == {"LIME", "integrated gradients"}

# %% [markdown]
# Three replacements make three tables, each with its own judge. Here "beats chance" means: the interval lies above 0, and at most one random order in twenty (of 40)
# does as well. By luck alone one or two of the 27 rows would. LIME, kernel SHAP, Shapley values and occlusion beat chance in all three, the gradient norm in two,
# gradient × input and integrated gradients in one, gradient × difference and rollout in none. (With `mean`, integrated gradients were judged before they were done: after their 64 steps the gap
# on the first fact is 11 logits, where the whole is 4.7.)
#
# Which method is *best* is mostly a tie. Below is every method whose difference to the best, prompt by prompt, has an
# interval that includes 0. (So with commas kernel SHAP is clearly behind LIME, by a hair on nearly every fact, and integrated gradients,
# hardly different in the mean, are not: their differences scatter more.)

# %%
best = own[own.tied == "yes"].groupby("deletion").method.apply(", ".join)
best.to_frame("not clearly worse than the best")

# %% [markdown]
# ## How it misleads: the replacement decides
#
# So far each method was judged by the replacement it had used itself. Now ask one method with one replacement, and judge
# with another. Rows: what kernel SHAP replaced tokens by. Columns: what the judge replaced them by.

# %%
crossed = page[page.method == "kernel SHAP"]
crossed.pivot(index="baseline", columns="deletion", values="better")

# %% kind="assert"
cell = crossed.set_index(["baseline", "deletion"]).better
assert cell[",", ","] > 1 and abs(cell[",", "<|endoftext|>"]) < 0.5
gradients = own[own.method == "integrated gradients"].set_index("deletion").better
assert gradients[","] > 1 and gradients["mean"] < gradients[","] / 2
foreign = page[(page.baseline != page.deletion) & (page.baseline != "")]
beat = foreign.assign(beat=(foreign.low > 0) & (foreign.chance <= 0.05)).groupby("deletion").beat.sum()
print("judged by another replacement, how many of twelve beat chance, by judge:", beat.to_dict())
assert set(foreign.deletion.value_counts()) == {12} and beat["<|endoftext|>"] == 0
assert beat[","] == 5 and beat["mean"] == 6

# %% [markdown]
# Kernel SHAP with commas is more than a logit better than chance when commas judge, and no better than chance when
# `<|endoftext|>` judges. Commas and `mean` agree better with each other. The same holds over all methods. Judged
# by another replacement than their own, about half beat chance when commas or `mean` judge, and *none* of twelve when
# `<|endoftext|>` does. So "which tokens matter?" is half a question. The other half is: compared with what?
#
# What to believe, then? LIME, kernel SHAP and, for short prompts, Shapley values, each with its replacement named and
# judged by a second one. Occlusion is cheap, and did as well here; what it cannot see comes next.

# %% [markdown]
# **Question 11.b.** A colleague's method beats 39 of 40 random orders on eight facts; it replaced tokens by commas, and so did the deletion.
# Which one further number could sink it?
#
# - **a** Its distance from random orders on 80 more facts, with commas.
# - **b** Its distance when the deletion replaces by `<|endoftext|>`.
# - **c** Its distance when tokens come back (insertion) in the place of commas.

# %% kind="quiz"
quiz("11.b", "b")

# %% [markdown]
# ## A token that occlusion does not see
#
# ### Exercise 11.6 A prompt on which occlusion is blind
#
# Difficulty 4 of 5 · 25 minutes · needs 11.1 and 11.2
#
# Question 11.a was about a thought. Make it happen in the real model: write a prompt with a token that **matters** (its exact Shapley value is at
# least 15 % of the whole) and that occlusion **does not see** (at most 5 % of the whole). The check replaces by commas, and then by full stops: the
# same token must pass both. At most eight tokens may play, and the model must prefer your answer to its rival by a logit or more.


# %% kind="exercise" id="11.6"
@exercise("11.6")
def blind_spot() -> tuple[str, str, str]:
    """A prompt, its answer and a rival: ("The capital of France is", " Paris", " Rome"). Both are one token."""
    # >>> solution
    return "In Italy, Italians live in", " Rome", " Paris"
    # <<< solution


# %% kind="check"
check(blind_spot, model=model)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# The answer must have two reasons, each enough. Then taking one away costs nothing.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# Say the reason twice in different words, close together: a country and its people, a feeling and its opposite denied. `ml.shapley_values` and `ml.occlusion` side by
# side show how near you are.
#
# </details>


# %% kind="wrong" id="11.6" expects="every token that matters"
@exercise("11.6")
def blind_spot():
    return "The capital of France is", " Paris", " Rome"


# %% kind="wrong" id="11.6" expects="at most eight"
@exercise("11.6")
def blind_spot():
    return "When John and Mary went to the store, John gave a drink to", " Mary", " John"


# %% kind="wrong" id="11.6" expects="prefer"
@exercise("11.6")
def blind_spot():
    return "The capital of France is", " Rome", " Paris"


# %% [markdown]
# ## Following attention: rollout
#
# Rollout takes no gradient and replaces nothing. In each layer a position is taken to be half itself (the residual
# stream) and half the mean of what the heads attend to. Multiplying the layers follows the attention back to the
# tokens.
#
# ### Exercise 11.5 Attention rollout
#
# Difficulty 2 of 5 · 10 minutes · needs matrix products


# %% kind="exercise" id="11.5"
@exercise("11.5")
def rollout(patterns: Float[Tensor, "layer head query_pos key_pos"]) -> Float[Tensor, "query_pos key_pos"]:
    """For each position, the share of each token in it after the last layer. Rows sum to 1."""
    # >>> solution
    n = patterns.shape[-1]
    rolled = torch.eye(n)
    for layer in patterns:
        rolled = (0.5 * layer.mean(0) + 0.5 * torch.eye(n)) @ rolled
    return rolled
    # <<< solution


# %% kind="check"
check(rollout)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Before layer 0 every position is itself: the identity. Each layer mixes what the layers before it have made.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# For each layer: mean over the heads, times 0.5, plus 0.5 times the identity. Multiply it from the left onto what you
# have.
#
# </details>


# %%
named["attention rollout"].plot()

# %% kind="assert"
rolled = named["attention rollout"].values
claim(model, "share of the first token", rolled[0], says=1.0, within=0.01)
with torch.no_grad():
    _, cache = model.run_with_cache(sentence, names_filter=ml.only("hook_pattern"))
step, hand = torch.eye(15), torch.eye(15)
for layer in range(model.cfg.n_layers):
    hand = (0.5 * cache["pattern", layer][0].mean(0).cpu() + 0.5 * step) @ hand
assert (hand[-1] - rolled).abs().max() < 1e-4

# %% [markdown]
# Everything is on the first token. In each layer many heads look there (the attention sink of
# notebook 02), and the first token sees only itself. So each of the 30 layers moves a part of what is left onto it, and
# nothing comes back. Rollout never looks at values, so it cannot see whether anything was fetched. And it cannot know
# whether you asked about " Mary" or " John".
#
# ## The paper's figures and yours

# %% kind="assert"
complete = [steps for steps, scores in few.items() if scores.gap.abs() < 0.05 * scores.whole]
yours = {
    "enough steps for integrated gradients to be complete within 5 %": min(complete),  # of 4, 16 and 64
    "tables (of 3) in which attention rollout beats random orders": int(wins["attention rollout"]),
    "tables (of 3) in which LIME beats random orders": int(wins["LIME"]),
}
table = ml.reference.table("11", yours)
assert yours["enough steps for integrated gradients to be complete within 5 %"] == 64
table

# %% [markdown]
# ## Recap
#
# | term | meaning | here | elsewhere |
# |---|---|---|---|
# | baseline, replacement | what a token is replaced by | `ml.baseline_tokens` | captum `baselines` |
# | occlusion | fall of the metric without one token | `ml.occlusion` | captum `FeatureAblation` |
# | Shapley value | what a token adds, over all orders | `ml.shapley_values` | captum `ShapleyValues` |
# | LIME, kernel SHAP | one slope a token, fitted to masks; with all masks the second is exact | `ml.lime`, `ml.kernel_shap` | captum `Lime`; shap `KernelExplainer` |
# | gradient norm | length of the slope at the prompt | `ml.gradient_norm` | captum `Saliency` |
# | gradient × input | that slope times the embedding | `ml.gradient_x_input` | captum `InputXGradient` |
# | gradient × difference | that slope times the way from the baseline | `ml.gradient_x_difference` | one step of integrated gradients |
# | integrated gradients | mean slope along the way, times the way | `ml.integrated_gradients` | captum `IntegratedGradients` |
# | completeness | the scores add up to the whole | `Scores.gap` | Sundararajan et al. 2017 |
# | attention rollout | attention multiplied through the layers | `ml.attention_rollout` | Abnar and Zuidema 2020 |
# | deletion curve | the metric as tokens are replaced in order | `ml.deletion_curves` | Petsiuk et al. 2018 |
#
# Tokens are one way to divide the credit. The next notebook divides it among the parts of the model.
