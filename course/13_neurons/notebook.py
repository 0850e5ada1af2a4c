# %% [markdown]
# # 13 Neurons
#
# **Question:** which neurons hold the fact, and do they hold only that?
#
# After this notebook you will be able to
#
# - score the neurons of a layer by what they do to the answer's probability,
# - read what a neuron stands for, and how little that says,
# - test a set of neurons against random ones, and against other facts.
#
# Time: 85 minutes. The cells take about 80 seconds in all. Memory: 2.2 GB.
# Download: none, once the model is here (93 MB). Before: notebook 12.

# %% kind="setup"
# (written by the build)

# %% [markdown]
# ## The picture
#
# Eight capitals the model knows. An MLP neuron, when it is active, adds its row of W_out to the residual stream. How much does
# that raise the log-probability of the right capital? The score is read in mid-model, right at the neuron's layer, and is in nats: +0.7 doubles the probability read there. We
# score the last twelve layers, 18,432 neurons.

# %%
facts = [("France", " Paris"), ("Germany", " Berlin"), ("Italy", " Rome"), ("Japan", " Tokyo")]
facts += [("Greece", " Athens"), ("Ireland", " Dublin"), ("Russia", " Moscow"), ("China", " Beijing")]
base = model.to_tokens([f"The capital of {country} is" for country, _ in facts])
answers = [ml.single_token(model, city) for _, city in facts]
scores = ml.value_neuron_scores(model, base, answers, layers=range(18, 30))


# %%
def best(row, k=10):
    """The k neurons with the highest score on one prompt: [(layer, neuron), ...]."""
    index = row.flatten().topk(k).indices
    return [(int(i) // row.shape[1], int(i) % row.shape[1]) for i in index]


paris = best(scores.per_prompt[0])
names = {"neuron": [f"L{layer}N{index}" for layer, index in paris]}
values = torch.stack([scores.per_prompt[0][neuron] for neuron in paris])
ml.Scores(values, ("neuron",), "rise of log p(' Paris') by one neuron (nats)", names).plot(
    xaxis_tickfont_size=10
)

# %%
scores.top(6)

# %% kind="assert"
assert paris[0] == (24, 1005)
claim(model, "L24N1005 on Paris", values[0], says=1.23, within=0.05)
claim(model, "L23N863, mean over the capitals", scores.values[23, 863], says=-1.74, within=0.05)
claim(model, "L27N846, mean over the capitals", scores.values[27, 846], says=1.04, within=0.05)

# %% [markdown]
# For Paris, neuron 1005 of layer 24 leads, with 1.23 nats. Over all eight capitals the score furthest from zero is negative:
# L23N863 takes 1.74 nats *away* from the right answer.
#
# ## By hand: one neuron
#
# An MLP reads the stream after attention and adds to it. The score reads that stream twice, without and with
# what the neuron writes, through the last norm and the unembedding.

# %% [markdown]
# ### Exercise 13.1 The rise of the log-probability
#
# Difficulty 2 of 5 · 10 minutes · needs notebook 12


# %% kind="exercise" id="13.1"
@exercise("13.1")
def log_prob_increase(
    before: Float[Tensor, "d_model"],
    written: Float[Tensor, "d_model"],
    W_U: Float[Tensor, "d_model d_vocab"],
    scale: float,
    answer: int,
) -> float:
    """How much the answer's log-probability rises when `written` is added to the stream `before`.

    scale: what the last norm divides by, the same both times.
    """
    # >>> solution
    log_p = lambda stream: (stream / scale @ W_U).log_softmax(-1)[answer]
    return float(log_p(before + written) - log_p(before))
    # <<< solution


# %% kind="check"
check(log_prob_increase)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Two log-probabilities, one difference. Everything else is the same in both.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# Logits are `stream / scale @ W_U`. `log_softmax(-1)` makes them log-probabilities of all tokens; take the answer's.
#
# </details>


# %% kind="wrong" id="13.1" expects="rise of the logit"
@exercise("13.1")
def log_prob_increase(before, written, W_U, scale, answer):
    return written / scale @ W_U[:, answer]


# %% kind="wrong" id="13.1" expects="difference of probabilities"
@exercise("13.1")
def log_prob_increase(before, written, W_U, scale, answer):
    p = lambda stream: (stream / scale @ W_U).softmax(-1)[answer]
    return p(before + written) - p(before)


# %% kind="wrong" id="13.1" expects="by its own length"
@exercise("13.1")
def log_prob_increase(before, written, W_U, scale, answer):
    log_p = lambda x: (x / x.pow(2).mean().sqrt() @ W_U).log_softmax(-1)[answer]
    return log_p(before + written) - log_p(before)


# %% kind="wrong" id="13.1" expects="Subtract the one without it"
@exercise("13.1")
def log_prob_increase(before, written, W_U, scale, answer):
    return ((before + written) / scale @ W_U).log_softmax(-1)[answer]


# %% kind="wrong" id="13.1" expects="norm is missing"
@exercise("13.1")
def log_prob_increase(before, written, W_U, scale, answer):
    log_p = lambda x: (x @ W_U).log_softmax(-1)[answer]
    return log_p(before + written) - log_p(before)


# %% [markdown]
# The same on the real model: the neuron that leads for Paris.

# %%
with torch.no_grad():
    logits, cache = model.run_with_cache(base)
layer, index = 24, 1005
scale = cache["ln_final.hook_scale"][0, -1, 0]
before = cache["resid_mid", layer][0, -1]
activation = cache["post", layer][0, -1, index]
written = activation * model.W_out[layer, index].detach()
log_p = lambda stream: (stream / scale @ model.W_U.detach()).log_softmax(-1)[answers[0]]
print(f"activation {activation:.2f}, log p {log_p(before):.2f} -> {log_p(before + written):.2f}")

# %% kind="assert"
assert abs(log_p(before + written) - log_p(before) - scores.per_prompt[0, layer, index]) < 1e-3
claim(model, "activation of L24N1005", activation, says=-22.4, within=0.5)

# %% [markdown]
# Why hold the scale? Here is what happens otherwise. Divide each stream by its *own* length, as if a norm stood right
# there, and score the 64 loudest neurons of every layer.

# %%
own = {}
for layer in range(model.cfg.n_layers):
    x = cache["resid_mid", layer][0, -1]
    rows = cache["post", layer][0, -1, :, None] * model.blocks[layer].mlp.W_out.detach()
    loud = rows.norm(dim=-1).topk(64).indices
    streams = torch.cat([x[None], x + rows[loud]])
    read = ml.forward.rms_norm(streams) @ model.W_U.detach()
    rise = read.log_softmax(-1)[:, answers[0]]
    own |= {(layer, int(n)): float(r - rise[0]) for n, r in zip(loud, rise[1:], strict=True)}
leaders = sorted(own, key=own.get, reverse=True)[:6]
print(", ".join(f"L{layer}N{index} {own[layer, index]:+.1f}" for layer, index in leaders))

# %% kind="assert"
assert [layer for layer, _ in leaders[:5]] == [0] * 5
claim(model, "the largest score with its own scale", own[leaders[0]], says=72, within=3)
shallow = ml.value_neuron_scores(model, base[:1], answers[0], layers=[0]).values.abs().max()
claim(model, "the largest score of layer 0, scale held", shallow, says=0.1, within=0.02)

# %% [markdown]
# Layer 0 wins with 72 nats, a factor of 10³¹. The stream is tiny there, so a loud neuron turns it far aside. With the scale held
# at its final value, the largest score of layer 0 is 0.1. (That makes early layers small by construction: this score favours
# late ones.) One line of a recipe decides whether the result means something.
#
# ## What does a neuron stand for?
#
# Its row of W_out, through the unembedding, says which tokens it raises and lowers. (The numbers are for an activation of
# 1, before the norm divides.) Mind the sign. In a gated MLP a neuron can be negative, and L24N1005 is, −22 on this
# prompt; so it raises what the right half of the table lists.

# %%
ml.value_tokens(model, (24, 1005), k=8)

# %% [markdown]
# ### Exercise 13.2 Promoted tokens
#
# Difficulty 1 of 5 · 5 minutes · needs the table above


# %% kind="exercise" id="13.2"
@exercise("13.2")
def promoted(
    row: Float[Tensor, "d_model"], activation: float, W_U: Float[Tensor, "d_model d_vocab"], k: int
) -> Int[Tensor, "token"]:
    """The ids of the k tokens whose logits a neuron raises most, the one raised most first.

    row: the neuron's row of W_out. activation: how active it is, of either sign.
    """
    # >>> solution
    return (activation * row @ W_U).topk(k).indices
    # <<< solution


# %% kind="check"
check(promoted)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# What the neuron writes is its row times its activation.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# Multiply what it writes with `W_U`: one number a token. `topk(k).indices` gives the ids.
#
# </details>


# %% kind="wrong" id="13.2" expects="Multiply by it"
@exercise("13.2")
def promoted(row, activation, W_U, k):
    return (row @ W_U).topk(k).indices


# %% kind="wrong" id="13.2" expects="another order"
@exercise("13.2")
def promoted(row, activation, W_U, k):
    return (activation * row @ W_U).argsort()[-k:]


# %% kind="assert"
lowered = ml.value_tokens(model, (24, 1005), k=8)["lowers"].str.strip().tolist()
assert "capitals" in lowered and "metropolis" in lowered
assert " Paris" not in ml.value_tokens(model, (24, 1005), k=50)["lowers"].tolist()

# %% [markdown]
# "capitals", "metropolis": a neuron about capital cities, it seems. But " Paris" is not among the fifty tokens it raises most,
# and most of the list is junk. A reading picked from a list is a guess. What does the model do without it?
#
# ## Ablate them
#
# **Zero ablation** of a neuron sets its activation to zero. (People also say that it is knocked out, or silenced.)
#
# ### Exercise 13.3 Silence
#
# Difficulty 3 of 5 · 15 minutes · needs hooks from notebook 03


# %% kind="exercise" id="13.3"
@exercise("13.3")
def silence(neurons: list[tuple[int, int]]) -> list:
    """Hooks [(name, function), ...] that set these neurons, (layer, neuron), to zero at every position.

    A function gets (activation [batch pos d_mlp], hook) and returns a changed copy.
    """
    # >>> solution
    hooks = []
    for layer, index in neurons:

        def zero(activation, hook, index=index):
            activation = activation.clone()
            activation[:, :, index] = 0
            return activation

        hooks.append((f"blocks.{layer}.mlp.hook_post", zero))
    return hooks
    # <<< solution


# %% kind="check"
check(silence)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# The hook is `blocks.{layer}.mlp.hook_post`: what the output matrix reads.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# Write one function that copies the activation, sets `[:, :, index]` to 0 and returns it. Functions made in a loop all see the
# loop's *last* index, unless each gets its own, for example as a default value: `def f(activation, hook, index=index)`.
#
# </details>


# %% kind="wrong" id="13.3" expects="keep its own index"
@exercise("13.3")
def silence(neurons):
    hooks = []
    for layer, index in neurons:

        def zero(activation, hook):
            activation = activation.clone()
            activation[:, :, index] = 0  # noqa: B023
            return activation

        hooks.append((f"blocks.{layer}.mlp.hook_post", zero))
    return hooks


# %% kind="wrong" id="13.3" expects="writes into the activation"
@exercise("13.3")
def silence(neurons):
    def make(index):
        def zero(activation, hook):
            activation[:, :, index] = 0
            return activation

        return zero

    return [(f"blocks.{layer}.mlp.hook_post", make(index)) for layer, index in neurons]


# %% kind="wrong" id="13.3" expects="other neurons are silenced"
@exercise("13.3")
def silence(neurons):
    return [(f"blocks.{layer}.mlp.hook_post", lambda a, hook: torch.zeros_like(a)) for layer, _ in neurons]


# %% kind="wrong" id="13.3" expects="at some positions"
@exercise("13.3")
def silence(neurons):
    def make(index):
        def zero(activation, hook):
            activation = activation.clone()
            activation[:, -1, index] = 0
            return activation

        return zero

    return [(f"blocks.{layer}.mlp.hook_post", make(index)) for layer, index in neurons]


# %% kind="wrong" id="13.3" expects="after the nonlinearity"
@exercise("13.3")
def silence(neurons):
    def make(index):
        def zero(activation, hook):
            activation = activation.clone()
            activation[:, :, index] = 0
            return activation

        return zero

    return [(f"blocks.{layer}.hook_mlp_out", make(index)) for layer, index in neurons]


# %% [markdown]
# `ml.ablate_neurons` does this and adds what makes it a result: sets of *random* neurons. How random? Depth matters, and so does
# loudness. So each random neuron is of the same layer and one of the 20 nearest in how much it writes. The chosen are
# often the loudest of their layer, so the random ones are quieter. Below we also ablate the *loudest* neurons that were
# not chosen. The exercise matches the layers only:
#
# ### Exercise 13.4 Random neurons of the same layers
#
# Difficulty 2 of 5 · 10 minutes · needs `torch.randint`


# %% kind="exercise" id="13.4"
@exercise("13.4")
def random_like(chosen: list[tuple[int, int]], n_neurons: int, generator) -> list[tuple[int, int]]:
    """As many random neurons as chosen, with as many of each layer; none of the chosen, none twice.

    n_neurons: neurons of a layer. generator: a torch.Generator to draw with.
    """
    # >>> solution
    drawn = []
    for layer, _ in chosen:
        taken = {index for of, index in chosen + drawn if of == layer}
        free = [index for index in range(n_neurons) if index not in taken]
        drawn.append((layer, free[int(torch.randint(len(free), (1,), generator=generator))]))
    return drawn
    # <<< solution


# %% kind="check"
check(random_like)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Go through the chosen neurons one by one, and for each draw another of its layer.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# List the neurons of the layer that are neither chosen nor drawn already. `torch.randint(len(free), (1,),
# generator=generator)` picks a place in that list.
#
# </details>


# %% kind="wrong" id="13.4" expects="depth alone"
@exercise("13.4")
def random_like(chosen, n_neurons, generator):
    free = [(layer, n) for layer in range(3) for n in range(n_neurons) if (layer, n) not in chosen]
    return [free[i] for i in torch.randperm(len(free), generator=generator)[: len(chosen)]]


# %% kind="wrong" id="13.4" expects="one of the chosen"
@exercise("13.4")
def random_like(chosen, n_neurons, generator):
    place = torch.randperm(n_neurons, generator=generator)
    return [(layer, int(place[n])) for n, (layer, _) in enumerate(chosen)]


# %% kind="wrong" id="13.4" expects="drawn twice"
@exercise("13.4")
def random_like(chosen, n_neurons, generator):
    drawn = []
    for layer, _ in chosen:
        free = [n for n in range(n_neurons) if (layer, n) not in chosen]
        drawn.append((layer, free[int(torch.randint(len(free), (1,), generator=generator))]))
    return drawn


# %% kind="wrong" id="13.4" expects="same generator"
@exercise("13.4")
def random_like(chosen, n_neurons, generator):
    drawn = []
    for layer, _ in chosen:
        free = [n for n in range(n_neurons) if (layer, n) not in chosen + drawn]
        drawn.append((layer, free[int(torch.randint(len(free), (1,)))]))
    return drawn


# %% [markdown]
# Now the test. Ablate the ten best neurons for Paris. The probability of " Paris" is 0.75. What will it be?

# %% kind="predict"
predict("13.p", 0.3)

# %%
metric = ml.log_prob(answers)
gone = ml.ablate_neurons(model, base, metric, paris)
print(f"Paris: {gone.before[0].exp():.2f}, without the ten {gone.after[0].exp():.2f}, ", end="")
print(f"without ten random ones {gone.random.exp().mean(0)[0]:.2f}")

# %%
with torch.no_grad():
    _, one = model.run_with_cache(base[:1], names_filter=ml.only("mlp.hook_post"))
loudest = []
for layer, _ in paris:
    size = one["post", layer][0, -1].abs() * model.blocks[layer].mlp.W_out.norm(dim=-1)
    order = [(layer, int(n)) for n in size.argsort(descending=True)]
    loudest.append(next(n for n in order if n not in paris + loudest))
loud = ml.ablate_neurons(model, base, metric, loudest, draws=1)
print(f"without the ten loudest others {loud.after[0].exp():.2f}")

# %% kind="compare"
reveal("13.p", f"{gone.after[0].exp():.2f}")

# %% kind="assert"
claim(model, "p of Paris", gone.before[0].exp(), says=0.75, within=0.01)
claim(model, "p of Paris without the ten", gone.after[0].exp(), says=0.20, within=0.05)
claim(model, "p of Paris without the loudest others", loud.after[0].exp(), says=0.59, within=0.06)
claim(model, "p of Paris without random ones", gone.random.exp().mean(0)[0], says=0.7, within=0.08)

# %% [markdown]
# <details><summary>What we saw</summary>
#
# From 0.75 to 0.20. Random neurons change little, and the loudest other neurons of the same layers leave 0.59. A clean
# result, ready to be published: *ten neurons hold the fact that Paris is the capital of France.*
#
# </details>

# %% [markdown]
# **Question 13.a.** Which measurement could still refute that sentence?
#
# - **a** A hundred random sets in place of ten.
# - **b** The same ten ablated, and the seven other capitals asked.
# - **c** The same ten ablated at the last position only.

# %% kind="quiz"
quiz("13.a", "b")

# %% [markdown]
# ## How it misleads
#
# <details><summary>When you have answered: the experiment</summary>
#
# Ablate the ten neurons of each fact in turn, and read off all eight facts. If each ten held its own fact, only the diagonal
# would be dark.
#
# </details>


# %%
import functools

intact = functools.cache(lambda asked: metric(model(asked)))  # of each set of prompts once


def left_without(neurons, asked):
    """The share of each answer's probability that is left when these neurons are zero."""
    with torch.no_grad():
        before = intact(asked)
        with ml.intervene(model, ml.ablation_hooks(model, asked, neurons, "zero", unit="neuron")):
            return (metric(model(asked)) - before).exp()


left = torch.stack([left_without(best(row), base) for row in scores.per_prompt])
countries = [country for country, _ in facts]
labels = {"neurons of": countries, "asked about": countries}
ml.Scores(
    left, ("neurons of", "asked about"), "probability left without the ten, as a share", labels, signed=False
).plot(height=480, width=760)

# %% kind="assert"
diagonal, others = left.diagonal().mean(), (left.sum() - left.trace()) / (left.numel() - len(left))
claim(model, "share left of the fact itself", diagonal, says=0.08, within=0.05)
claim(model, "share left of the other facts", others, says=0.19, within=0.06)
means = (left.sum(1) - left.diagonal()) / (len(left) - 1)  # of the others, for each ten
claim(model, "share left of the others, ten of Paris", means[0], says=0.5, within=0.08)
claim(model, "the same, ten of Ireland", means[5], says=0.39, within=0.08)
claim(model, "the same, the other six: least", means[[1, 2, 3, 4, 6, 7]].min(), says=0.05, within=0.03)
claim(model, "the same, the other six: most", means[[1, 2, 3, 4, 6, 7]].max(), says=0.16, within=0.04)
shared = {n for n in paris if sum(n in best(scores.per_prompt[row]) for row in range(len(facts))) >= 6}
claim(model, "neurons of Paris that are in the ten of at least six facts", len(shared), says=4, within=1)

# %% [markdown]
# The ten of Paris leave half of the other capitals' probability, on average. Over all rows, the ten of a fact leave 8 % of
# it and 19 % of the *other* facts. Four of the ten for Paris are among the ten of at least six capitals. They are not
# special to this fact.
#
# ### Exercise 13.6 Ten neurons for one fact
#
# Difficulty 4 of 5 · 25 minutes · needs the two pictures above
#
# Find a better rule. It sees the scores of all eight facts and chooses ten neurons for one of them. The check uses eight
# capitals that this notebook does not show, chooses on the wording above, and asks in another one. On average your ten must
# leave at most half of their own fact's probability, and at least 70 % of the others'.


# %% kind="exercise" id="13.6"
@exercise("13.6")
def ten_for_one(scores: Float[Tensor, "fact layer neuron"], row: int) -> list[tuple[int, int]]:
    """Ten neurons, (layer, neuron) as indices of `scores`, that fact `row` needs and the other facts do not.

    scores: how much each neuron raises the log-probability of each fact's answer, in nats.
    """
    # >>> solution
    others = torch.cat([scores[:row], scores[row + 1 :]])
    special = (scores[row] - others.mean(0)).flatten().topk(10).indices
    return [divmod(int(index), scores.shape[2]) for index in special]
    # <<< solution


# %% kind="check"
check(ten_for_one, model=model)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# A neuron that is high for every capital should not be chosen for one of them. What could you compare its score with?
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# Subtract from the fact's scores what the other facts have: their mean, or their largest. Then take the ten highest.
# `divmod(index, scores.shape[2])` turns a place in the flattened tensor into (layer, neuron).
#
# </details>


# %% kind="wrong" id="13.6" expects="as much as their own"
@exercise("13.6")
def ten_for_one(scores, row):
    best = scores[row].flatten().topk(10).indices
    return [divmod(int(index), scores.shape[2]) for index in best]


# %% kind="wrong" id="13.6" expects="their own fact keeps"
@exercise("13.6")
def ten_for_one(scores, row):
    return [(0, 10 * row + n) for n in range(10)]


# %% kind="wrong" id="13.6" expects="the same ten"
@exercise("13.6")
def ten_for_one(scores, row):
    best = scores.mean(0).flatten().topk(10).indices
    return [divmod(int(index), scores.shape[2]) for index in best]


# %% kind="wrong" id="13.6" expects="ten different neurons"
@exercise("13.6")
def ten_for_one(scores, row):
    others = torch.cat([scores[:row], scores[row + 1 :]])
    special = (scores[row] - others.mean(0)).flatten().topk(5).indices
    return [divmod(int(index), scores.shape[2]) for index in special]


# %% [markdown]
# ## A better question
#
# Which neurons score higher for this fact *than for the others*? Subtract the mean of the other seven, and choose again.
# And ask in a wording that played no part in the choice: "If you travel to France, you will land in its capital,".

# %%
rest = lambda row: scores.per_prompt[[n for n in range(len(facts)) if n != row]].mean(0)
special = [best(scores.per_prompt[row] - rest(row)) for row in range(len(facts))]
anew = model.to_tokens([f"If you travel to {of}, you will land in its capital," for of in countries])
narrow, elsewhere = {}, {}
for name, tens in (("ten highest", [best(row) for row in scores.per_prompt]), ("ten special", special)):
    for asked, found in ((base, narrow), (anew, elsewhere)):
        found[name] = torch.stack([left_without(ten, asked) for ten in tens])
ml.Scores(
    elsewhere["ten special"],
    ("neurons of", "asked about"),
    "probability left without the special neurons, as a share, in another wording",
    labels,
    signed=False,
).plot(height=480, width=760)

# %%
off = ~torch.eye(len(facts), dtype=torch.bool)
kinds = [
    ("ten highest", narrow),
    ("ten highest", elsewhere),
    ("ten special", narrow),
    ("ten special", elsewhere),
]
shares = torch.stack([torch.stack([of[name].diagonal().mean(), of[name][off].mean()]) for name, of in kinds])
labels_of = {
    "chosen": [f"{name}, {'same' if of is narrow else 'new'} wording" for name, of in kinds],
    "asked": ["its own fact", "the seven others"],
}
ml.Scores(shares, ("chosen", "asked"), "probability left, as a share", labels_of, signed=False).plot()

# %% kind="assert"
claim(model, "special neurons, their own fact, same wording", shares[2, 0], says=0.2, within=0.08)
claim(model, "special neurons, the others, same wording", shares[2, 1], says=0.78, within=0.1)
claim(model, "special neurons, their own fact, new wording", shares[3, 0], says=0.24, within=0.08)
claim(model, "special neurons, the others, new wording", shares[3, 1], says=0.95, within=0.12)
claim(model, "highest neurons, the others, new wording", shares[1, 1], says=0.31, within=0.08)
japan = narrow["ten special"][3]
claim(model, "Japan's special neurons, the others", japan[off[3]].mean(), says=0.18, within=0.08)
one_by_one = elsewhere["ten special"].diagonal()
claim(model, "the fact that keeps most, new wording", one_by_one.max(), says=0.73, within=0.12)
lose = (elsewhere["ten special"][off] < 0.7).float().mean()
claim(model, "others that lose three tenths or more, new wording", lose, says=0.30, within=0.08)
born = model.to_tokens([f"She was born in {country}, in the city of" for country in countries])
third = torch.stack([left_without(ten, born) for ten in special])
claim(model, "their own fact, without the word capital", third.diagonal().mean(), says=0.12, within=0.06)
claim(model, "the others there, median", third[off].median(), says=1.1, within=0.1)

# %% [markdown]
# Now the pattern is that of a claim about facts: a fifth to a quarter of the fact itself is left, and most of the others. It
# holds in a wording that played no part in the choice, so it is more than this sentence's last words. It is uneven: the ten
# of Japan take the other capitals along in the old wording, and one fact keeps 73 % in the new one. And the mean of the others is
# kind, since some rise: in the new wording three in ten of them lose 30 % or more.
#
# One more level: ask without the word "capital", with "She was born in France, in the city of". It holds there: 12 % of the own
# answer is left, and the median of the others rises a little. Another level would be something else about France. We have not done
# that: it is shown that these neurons help to *say* this city, not that they store the fact.
#
# ## Two scores, one race
#
# Direct effects (notebook 12) score neurons too, by logit instead of log-probability. (A single logit is counted from the
# mean of all logits here, since folding has moved that mean to zero.) Both choose from the same twelve layers. Which
# choice of ten hurts more?

# %%
effects = ml.direct_logit_attribution(model, base, answers, unit="neuron")
effects.per_prompt[:, :18] = 0
race = {"log-probability increase": scores, "direct effect": effects}
kept, by_chance = {}, {}
for name, result in race.items():
    tests = [
        ml.ablate_neurons(
            model, base[r : r + 1], ml.log_prob(answers[r]), best(result.per_prompt[r]), draws=3
        )
        for r in range(len(facts))
    ]
    kept[name] = sum(one.after.exp().item() for one in tests) / len(facts)
    by_chance[name] = sum(one.random.exp().mean().item() for one in tests) / len(facts)
    print(f"{name}: mean probability {kept[name]:.3f}, random neurons {by_chance[name]:.2f}")

# %% kind="assert"
assert model.W_U.mean(1).abs().max() < 1e-3
claim(model, "mean p before", gone.before.exp().mean(), says=0.64, within=0.01)
claim(model, "mean p, log-probability increase", kept["log-probability increase"], says=0.053, within=0.02)
claim(model, "mean p, direct effect", kept["direct effect"], says=0.015, within=0.01)
claim(model, "mean p, random", by_chance["log-probability increase"], says=0.6, within=0.06)

# %%
chosen_by = {
    name: torch.stack([left_without(best(row), anew)[n] for n, row in enumerate(result.per_prompt)])
    for name, result in race.items()
}
print(", ".join(f"{name}: {of.mean():.3f} is left" for name, of in chosen_by.items()))

# %% kind="assert"
claim(
    model,
    "left in the other wording, log-prob",
    chosen_by["log-probability increase"].mean(),
    says=0.11,
    within=0.05,
)
claim(
    model,
    "left in the other wording, direct effect",
    chosen_by["direct effect"].mean(),
    says=0.03,
    within=0.02,
)
harder = (chosen_by["direct effect"] < chosen_by["log-probability increase"]).sum().item()
claim(model, "facts of eight on which the direct effect hurts more", harder, says=5, within=2)

# %% [markdown]
# From 0.64 the probability falls to 0.05 and to 0.015; random neurons leave 0.6. The direct effect chooses the more
# damaging ten. Is that because both were chosen on this wording? In the other one 11 % and 3 % are left: the order holds.
# But it is an order of means, and two or three facts make it: on the others both choices leave next to nothing.
#
# ## Who switched them on?
#
# A neuron can be seen as a pair (Geva et al. 2021; not the keys and values of attention). Its column of an input matrix is
# its **key**: it says when the neuron is active. Its row of W_out is its **value**: what it then writes. What an earlier
# part wrote, times the key, is its share in switching the neuron on. GPT-2 has one key for each neuron. This model's MLP
# is gated, `silu(gate) · in` (notebook 02): two keys, and no single inner product. One must choose, and say so.
#
# A neuron that raises the answer is called a **value neuron**; an earlier neuron that switches it on, a **query neuron**.
# Take the ten value neurons for Paris, and for each of them every neuron of an earlier layer: its share in the key, times
# the score of the value neuron (`weights`). The sum over the ten is the earlier neuron's score. In the code `row` says
# which key is meant.

# %%
weights = [scores.per_prompt[0][neuron].item() for neuron in paris]
query = {row: ml.query_neuron_scores(model, base[:1], paris, weights, row=row) for row in ("gate", "in")}
p_left = {}
for row, result in query.items():
    ten = best(result.values)
    test = ml.ablate_neurons(model, base[:1], ml.log_prob(answers[0]), ten, pos=-1)
    p_left[row] = test.after.exp().item()
    listed = ", ".join(f"L{layer}N{index}" for layer, index in ten[:4])
    print(f"{row}: {listed} ... p {p_left[row]:.2f}, random {test.random.exp().mean():.2f}")

# %% kind="assert"
overlap = len(set(best(query["gate"].values)) & set(best(query["in"].values)))
claim(model, "of ten, in both lists", overlap, says=6, within=1)
assert all((24, 1005) in best(result.values)[:4] for result in query.values())
claim(model, "p of Paris without the ten of the gate key", p_left["gate"], says=0.52, within=0.08)
claim(model, "p of Paris without the ten of the in key", p_left["in"], says=0.34, within=0.08)

# %% [markdown]
# The two lists share six of ten neurons: the choice matters. Silenced at the last position, the ten of the `gate` key lower
# Paris from 0.75 to 0.52 and those of the `in` key to 0.34; random neurons leave about 0.7. Some of them are value neurons
# themselves, such as L24N1005, so this does not yet separate "switches on" from "says".
#
# ## Comparing two runs
#
# **Comparative neuron analysis** scores every neuron twice, in the model as it is and with something broken, and asks
# which neurons lose. Yu and Ananiadou (2024), who proposed it, studied arithmetic. This model adds badly when asked out of
# the blue, and well after three examples. Head 20.8 was found by breaking each of the 270 heads on four sums. A largest
# of 270 is always large; so ask twelve sums that played no part in the search, and break twenty random heads beside it.

# %%
sums = [(2, 3), (4, 2), (5, 4), (3, 4)]
fresh = [(1, 1), (2, 2), (3, 3), (4, 4), (1, 3), (5, 1), (1, 6), (6, 3), (2, 5), (7, 1), (3, 6), (5, 2)]
ask = lambda some: model.to_tokens([f"1 + 2 = 3, 4 + 1 = 5, 2 + 6 = 8, {a} + {b} = " for a, b in some])
total = lambda some: [ml.single_token(model, str(a + b)) for a, b in some]


no_head = lambda layer, head: ml.ablation_hooks(model, ask(fresh), [(layer, head)], "zero")
generator = torch.Generator().manual_seed(0)
drawn = torch.randperm(11 * 9, generator=generator).tolist()  # of the heads of layers 15 to 25
twenty = [(15 + n // 9, n % 9) for n in drawn if n != 5 * 9 + 8][:20]
heads = [(20, 8), *twenty]
metric_of = ml.log_prob(total(fresh))
with torch.no_grad():
    of_sum = metric_of(model(ask(fresh)))
change = ml.ablation_effects(model, ask(fresh), metric_of, heads, "zero").per_prompt  # [sum, head]
p_new, (p_broken, *others) = of_sum.exp().mean(), (of_sum[:, None] + change).exp().mean(0)
print(
    f"p of the sum {p_new:.2f}, without 20.8 {p_broken:.2f}, without another head {min(others):.2f} or more"
)

# %% kind="assert"
claim(model, "p of twelve new sums", p_new, says=0.9, within=0.05)
claim(model, "p without head 20.8", p_broken, says=0.57, within=0.1)
claim(model, "p without another head, at the least", min(others), says=0.87, within=0.08)

# %% [markdown]
# The head survives: without it the new sums fall from 0.9 to 0.57, without any of the twenty others to 0.87 at the least. Which neurons does it speak through? Choose the ten that lose most on the four sums, and test them on the twelve.
# (The table sorts by size. A negative number is a neuron that gains. Four sums are too few for an interval.)

# %%
lost = ml.comparative_neuron_scores(model, ask(sums), total(sums), no_head(20, 8), layers=range(21, 30))
lost.top(6)

# %%
intact_scores = ml.value_neuron_scores(model, ask(sums), total(sums), layers=range(21, 30))
chosen = {"that lose most": best(lost.values), "highest in the intact model": best(intact_scores.values)}
at_end, p_left, by_chance_of = {"pos": -1, "draws": 3}, {}, []
for asked, some in (("the four", sums), ("twelve new ones", fresh)):
    for name, ten in chosen.items():
        test = ml.ablate_neurons(model, ask(some), ml.log_prob(total(some)), ten, **at_end)
        p_left[name, asked] = test.after.exp()
        by_chance_of.append(test.random.exp().mean())
shown = torch.stack([p.mean() for p in p_left.values()]).reshape(2, 2).T
labels_of = {"the ten": list(chosen), "asked": ["the four sums", "twelve new sums"]}
ml.Scores(
    shown, ("the ten", "asked"), "probability of the sum without the ten", labels_of, signed=False
).plot()

# %% kind="assert"
claim(model, "p of the four sums without the ten that lose most", shown[0, 0], says=0.26, within=0.06)
claim(model, "p of new sums without the ten that lose most", shown[0, 1], says=0.27, within=0.08)
claim(model, "p of the four sums without the ten highest", shown[1, 0], says=0.01, within=0.02)
claim(model, "p of new sums without the ten highest", shown[1, 1], says=0.35, within=0.1)
claim(model, "p without random neurons, at the least", min(by_chance_of), says=0.77, within=0.1)
most, highest = (p_left[name, "twelve new ones"][1:] for name in chosen)  # without 1 + 1
claim(model, "highest less lose most, eleven new sums", (highest - most).mean(), says=0.0, within=0.08)

# %% [markdown]
# On the four sums themselves the ten *highest* neurons win by far: 0.01 is left, and 0.26 without the ten that lose most.
# On new sums nothing is left of that lead: 0.35 and 0.27. Nor is this an order the other way round, since one sum, 1 + 1, makes the
# difference, and on the other eleven the two are level. Neurons that are high on four sums raise those four answers. Had we
# chosen and tested on the same prompts, we would have published that lead. (With four *other* sums to choose on, the
# highest do lead on new ones, more often than not. Four sums are too few to rank two methods.)
#
# The ten that lose most hold what they promised, and random ones leave about 0.8. That they carry the head's message is
# still not shown: for that, one would break the head with these ten held at their intact values (notebook 41 does such a
# thing).

# %% [markdown]
# **Question 13.b.** A neuron has a score of 1 nat, and ablating it changes nothing. What would you measure to learn
# whether others took over?
#
# - **a** The direct effects of all other parts, with and without the neuron.
# - **b** The neuron's score again, with the norm's scale free.
# - **c** The effect of ablating ten random neurons.

# %% kind="quiz"
quiz("13.b", "a")

# %% [markdown]
# ## The paper's figures and yours
#
# The measure of Yu and Ananiadou (2024) is the mean reciprocal rank: 1 when the answer is the first choice, 1/2 when it is
# the second.


# %%
def reciprocal_rank(answer):
    return lambda logits: 1 / (1 + (logits[:, -1] > logits[:, -1, [answer]]).sum(-1).float())


tests = [
    ml.ablate_neurons(
        model, base[r : r + 1], reciprocal_rank(answers[r]), best(scores.per_prompt[r]), draws=1
    )
    for r in range(len(facts))
]
rank = {when: sum(getattr(one, when).item() for one in tests) / len(facts) for when in ("before", "after")}

# %% kind="assert"
claim(model, "reciprocal rank before", rank["before"], says=1.0, within=0.01)
claim(model, "reciprocal rank without the ten", rank["after"], says=0.21, within=0.05)
yours = {
    "mean reciprocal rank of the answer": rank["before"],
    "the same without 10 neurons chosen by log-probability increase": rank["after"],
    "mean probability without 10 random neurons (0.64 with all)": by_chance["log-probability increase"],
}
ml.reference.table("13", yours)

# %% [markdown]
# ## Recap
#
# | term | meaning | here | paper |
# |---|---|---|---|
# | key, value | a neuron's input column, its row of W_out | `ml.value_tokens` | Geva et al. 2021 |
# | value neuron | one that raises the answer's log-probability | `ml.value_neuron_scores` | Yu and Ananiadou 2024 |
# | query neuron | one that switches value neurons on | `ml.query_neuron_scores` | the same |
# | comparative neuron analysis | scores with and without an intervention | `ml.comparative_neuron_scores` | Yu and Ananiadou 2024, arithmetic |
# | zero ablation of neurons | set to zero, knocked out | `ml.ablate_neurons` | |
# | matched random neurons | same layer, as loud as can be found | `ml.ablate_neurons(...).random` | |
#
# This ends part 1. You can say which tokens, parts and neurons pushed. Part 2 asks what they know.
