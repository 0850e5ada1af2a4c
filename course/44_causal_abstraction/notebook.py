# %% [markdown]
# # 44 Causal abstraction
#
# **Question:** does the model run this program?
#
# After this notebook you will be able to
#
# - write down what you think a model computes, as a program whose variables can be exchanged, and test it in the model,
# - train a subspace that holds a variable (DAS), and say what it adds to a plain difference of means,
# - tell a program that is run from one that a subspace was bent to.
#
# Time: 120 minutes. The cells take about 75 seconds in all. Memory: 2.3 GB.
# Download: none, once the model is here (93 MB). Before: notebooks 31 and 41.

# %% kind="setup"
# (written by the build)

# %% [markdown]
# ## Two programs
#
# "When John and Mary walked to the store, John gave a book to": the model says "Mary". Notebook 41 found heads that do this. Here we ask what they *compute*. Two programs give the right answer:
#
# - **position**: find out whether the *first* or the *second* name is said again; answer with the other one.
# - **name**: find out *which name* is said again; answer with the name that is not it.
#
# On ordinary prompts they never differ. They differ when their **variable** is taken from another prompt, the source. Three sources for the base "John and Mary ... John":
#
# | source | says again | position, taken from there | name, taken from there |
# |---|---|---|---|
# | flip: John and Mary ... Mary | second, Mary | answer flips | answer flips |
# | swap names: Mary and John ... Mary | first, Mary | stays | flips |
# | order: Mary and John ... John | second, John | flips | stays |
#
# If the model runs a program, then somewhere in it the variable stands. Take the activation there from the source, let all else run on in the base, and the model must answer as the program does. This is an **interchange intervention**. How often it does is the **interchange intervention accuracy**, IIA (Geiger et al. 2021).

# %%
import pandas as pd

from mechlab.circuits.ioi.words import ALIGNED, NAMES
from mechlab.statistics import bootstrap

KINDS = "flip", "swap names", "order"
FLIPS = {"position": [True, False, True], "name": [True, True, False]}


def interchanges(model, names, templates, count):
    """Runs of base prompts, each three times, and of their three sources; the metric: right − wrong name."""
    prompts = ml.ioi_prompts(model, count, names=names, templates=templates)
    base = ml.run_of(model, prompts).rows([*range(count)] * 3)
    sources = ml.run_of(model, torch.cat([prompts.corrupted(kind).tokens for kind in KINDS]))
    return base, sources, ml.logit_difference(prompts.io.repeat(3), prompts.s.repeat(3))


def flips(program, runs):
    """For each interchange, whether the program says that the answer flips."""
    return torch.tensor(FLIPS[program]).repeat_interleave(len(runs[0].batch) // 3)


def scored(program, runs, values):
    return ml.iia(values, flips(program, runs), runs[0].value(runs[2]))


train = interchanges(model, NAMES[::2], ALIGNED[:5], 30)

# %% [markdown]
# ## The picture
#
# The whole stream at one place is exchanged: at S2, where the name is said again, or at the end, where the answer is given.

# %%
LAYERS = [0, 6, 12, 15, 18, 20, 21, 22, 23, 24, 26, 28]
places = {"S2": 10, "end": 14}
after = {
    name: [ml.interchange(model, *train, layer=layer, pos=pos) for layer in LAYERS]
    for name, pos in places.items()
}
rows = [(program, place) for place in places for program in FLIPS]
shares = [[scored(program, train, values)["all"] for values in after[place]] for program, place in rows]
labels = {"program": [f"{p} at {place}" for p, place in rows], "layer": [str(n) for n in LAYERS]}
picture = ml.Scores(torch.tensor(shares), tuple(labels), "interchange accuracy", labels, signed=False)
picture.plot(height=330, title="Which program, where, on entering which layer")

# %% kind="assert"
at = lambda program, place, layer: shares[rows.index((program, place))][LAYERS.index(layer)]
nothing = scored("position", train, after["end"][0])["no change"]
claim(model, "no change", nothing, says=0.36, within=0.03)
claim(model, "name at S2, layer 0", at("name", "S2", 0), says=0.93, within=0.05)
claim(model, "position at S2, layer 20", at("position", "S2", 20), says=0.64, within=0.05)
claim(model, "position at the end, layer 22", at("position", "end", 22), says=0.66, within=0.05)
claim(model, "name at the end, layer 26", at("name", "end", 26), says=0.91, within=0.05)

# %% [markdown]
# A model in which nothing is changed scores 0.36: that is the ground, not zero. From there the variable can be followed. At S2 it begins as a *name*, by the word itself. About layers 18 to 20 a *position* can be exchanged there too, and by layer 21 it is at the end. From layer 24 on a *name* stands there again: the answer itself. So "the model runs position" holds at S2 for a few layers, then at the end for a few, and not elsewhere.
#
# ## By hand
#
# One pair, one hook: the stream entering layer 22, at the last token.

# %%
base_text = "Although Tom and Anna argued in the store, Tom sold a book to"
source_text = "Although Tom and Anna argued in the store, Anna sold a book to"
name = "blocks.22.hook_resid_pre"
_, seen = model.run_with_cache(source_text, names_filter=name)


def exchanged(x, hook):
    x = x.clone()
    x[:, -1] = seen[name][:, -1]
    return x


pair = [ml.single_token(model, " Anna"), ml.single_token(model, " Tom")]
with torch.no_grad():
    plain, theirs = (model(text)[0, -1, pair] for text in (base_text, source_text))
    with ml.intervene(model, [(name, exchanged)]):
        changed = model(base_text)[0, -1, pair]
before, goal, now = ((anna - tom).item() for anna, tom in (plain, theirs, changed))
print(f"Anna − Tom: base {before:.2f}, source {goal:.2f}, base with the source's stream {now:.2f}")

# %% kind="assert"
claim(model, "base", before, says=5.76, within=0.2)
claim(model, "source", goal, says=-7.65, within=0.2)
claim(model, "exchanged", now, says=-1.49, within=0.2)

# %% [markdown]
# The answer flips, from 5.76 to −1.49, though the base still says "Tom sold". It does not get as far as the source (−7.65). And 576 numbers were exchanged; we want the part that holds the variable.
#
# ### Exercise 44.1 Exchange a part
#
# Difficulty 2 of 5 · 10 minutes · needs projections
#
# Q has k columns of length 1, at right angles to one another. The part of x in their span is Q Qᵀ x.


# %% kind="exercise" id="44.1"
@exercise("44.1")
def exchange(
    x: Float[Tensor, "batch size"], y: Float[Tensor, "batch size"], Q: Float[Tensor, "size k"]
) -> Float[Tensor, "batch size"]:
    """x with its part in the span of Q's columns taken from y. x is of the base, y of the source."""
    # >>> solution
    return x + (y - x) @ Q @ Q.T
    # <<< solution


# %% kind="check"
check(exchange)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Take away x's own part, put y's there. What is not in the span stays as x had it.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# Rows are examples, so the part of each row of x is `x @ Q @ Q.T`.
#
# </details>


# %% [markdown]
# ### Exercise 44.2 What the program says
#
# Difficulty 2 of 5 · 10 minutes · needs the table above
#
# A program in two functions. `variable(first, second, subject)` computes the variable from the three names of a prompt. `answer(first, second, value)` answers from the first two names and the variable's value. For *position*: `subject == second`, and `first if value else second`.


# %% kind="exercise" id="44.2"
@exercise("44.2")
def program_flips(variable, answer, base: list[tuple], sources: list[tuple]) -> list[bool]:
    """Whether the program's answer to each base changes when the variable takes its value in the source.

    base, sources: one (first, second, subject) for each interchange
    """
    # >>> solution
    found = []
    for (first, second, subject), source in zip(base, sources, strict=True):
        own = answer(first, second, variable(first, second, subject))
        found.append(answer(first, second, variable(*source)) != own)
    return found
    # <<< solution


# %% kind="check"
check(program_flips)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Only the variable comes from the source. From whom are the two names that the answer is chosen from?
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# For each pair compare `answer(first, second, variable(*source))` with `answer(first, second, variable(*base))`, first and second being base's.
#
# </details>


# %% kind="wrong" id="44.2" expects="answers the source"
@exercise("44.2")
def program_flips(variable, answer, base, sources):
    run = lambda p: answer(p[0], p[1], variable(*p))
    return [run(b) != run(s) for b, s in zip(base, sources, strict=True)]


# %% kind="wrong" id="44.2" expects="compared the variables"
@exercise("44.2")
def program_flips(variable, answer, base, sources):
    return [variable(*b) != variable(*s) for b, s in zip(base, sources, strict=True)]


# %% kind="wrong" id="44.2" expects="where the answer stays"
@exercise("44.2")
def program_flips(variable, answer, base, sources):
    own = [answer(b[0], b[1], variable(*b)) for b in base]
    return [answer(b[0], b[1], variable(*s)) == o for b, s, o in zip(base, sources, own, strict=True)]


# %% [markdown]
# ### Exercise 44.3 Interchange accuracy
#
# Difficulty 2 of 5 · 10 minutes · needs 44.2
#
# One number hides two. So four, always together.


# %% kind="exercise" id="44.3"
@exercise("44.3")
def accuracy(
    values: Float[Tensor, "batch"], flips: Tensor, before: Float[Tensor, "batch"]
) -> Float[Tensor, "4"]:
    """IIA of all interchanges, of those that should flip, that should stay, and if nothing is exchanged.

    values: logit difference after the exchange, positive for base's right name; before: without an exchange
    flips:  [batch] of booleans, whether the program's answer is the other name
    """
    # >>> solution
    agrees = ((values > 0) != flips).float()
    untouched = ((before > 0) != flips).float()
    return torch.stack([agrees.mean(), agrees[flips].mean(), agrees[~flips].mean(), untouched.mean()])
    # <<< solution


# %% kind="check"
check(accuracy)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Where the program flips, the model agrees when the difference is negative.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# `agrees = (values > 0) != flips`. Its means over all, over `flips`, over `~flips`; and the same with `before`.
#
# </details>


# %% [markdown]
# ## Held-out names and templates
#
# The layer was chosen on the sentences of the picture. From here on all is reported on other ones: three other templates, the other half of the names.
#
# Now smaller parts of the stream. The cheapest direction needs no training: mean of the runs where the first name is said again, minus mean of the others. How much of it is one direction? Guess the IIA of *position* on held-out sentences with **one** direction out of 576.

# %% kind="predict"
predict("44.p", 0.6)

# %%
test = interchanges(model, NAMES[1::2], ALIGNED[5:], 30)
LAYER, position = 22, flips("position", train)
exchanged_in = lambda runs, Q=None: ml.interchange(model, *runs, layer=LAYER, Q=Q)
streams = train[1].at("resid_pre", LAYER)[:, -1]  # of the sources, at the end
first = train[1].tokens[:, 10] == train[1].tokens[:, 2]  # whether a source says its first name again
line = streams[first].mean(0) - streams[~first].mean(0)
line = (line / line.norm())[:, None]
table = {"whole stream": scored("position", test, exchanged_in(test))}
table["difference of means"] = scored("position", test, exchanged_in(test, line))
held_out = table["difference of means"]["all"]

# %% kind="assert"
claim(model, "difference of means", held_out, says=0.64, within=0.04)
claim(model, "whole stream", table["whole stream"]["all"], says=0.74, within=0.04)

# %% kind="compare"
reveal("44.p", f"{held_out:.2f}")

# %% [markdown]
# ## DAS: train the part
#
# **Distributed alignment search** (Geiger et al. 2023) looks for the Q whose exchange makes the model obey. The loss is softplus(−s · LD), with LD the logit difference after the exchange and s = 1 where the program's answer stays, −1 where it flips. The model's weights stay. Q must stay orthonormal: train any matrix, and use the Q of its QR decomposition.
#
# ### Exercise 44.4 Train a subspace
#
# Difficulty 3 of 5 · 20 minutes · needs gradient descent in PyTorch
#
# `values_of(Q)` gives the logit differences after an exchange with Q, and gradients flow through it, inside `torch.enable_grad()` (checks run without gradients).


# %% kind="exercise" id="44.4"
@exercise("44.4")
def train_subspace(
    values_of, flips: Tensor, size: int, k: int, generator: torch.Generator
) -> Float[Tensor, "size k"]:
    """Orthonormal columns, trained so that values are negative where `flips`, and positive elsewhere."""
    # >>> solution
    raw = torch.linalg.qr(torch.randn(size, k, generator=generator))[0].requires_grad_()
    optimizer = torch.optim.Adam([raw], lr=0.03)
    sign = torch.where(flips, -1.0, 1.0)
    for _ in range(150):
        with torch.enable_grad():
            loss = torch.nn.functional.softplus(-sign * values_of(torch.linalg.qr(raw)[0])).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return torch.linalg.qr(raw.detach())[0]
    # <<< solution


# %% kind="check"
check(train_subspace)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Start with random numbers that want gradients. In each step: QR, values, loss, step.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# `torch.linalg.qr(raw)[0]` is orthonormal and differentiable. `torch.optim.Adam([raw], lr=0.03)`, some 150 steps. Return the Q of the last `raw`.
#
# </details>


# %% kind="wrong" id="44.4" expects="not orthonormal"
@exercise("44.4")
def train_subspace(values_of, flips, size, k, generator):
    raw = torch.linalg.qr(torch.randn(size, k, generator=generator))[0].requires_grad_()
    optimizer, sign = torch.optim.Adam([raw], lr=0.03), torch.where(flips, -1.0, 1.0)
    for _ in range(150):
        with torch.enable_grad():
            loss = torch.nn.functional.softplus(-sign * values_of(raw)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return raw.detach()


# %% kind="wrong" id="44.4" expects="should flip"
@exercise("44.4")
def train_subspace(values_of, flips, size, k, generator):
    raw = torch.linalg.qr(torch.randn(size, k, generator=generator))[0].requires_grad_()
    optimizer, sign = torch.optim.Adam([raw], lr=0.03), torch.where(flips, 1.0, -1.0)
    for _ in range(150):
        with torch.enable_grad():
            loss = torch.nn.functional.softplus(-sign * values_of(torch.linalg.qr(raw)[0])).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return torch.linalg.qr(raw.detach())[0]


# %% kind="wrong" id="44.4" expects="should flip"
@exercise("44.4")
def train_subspace(values_of, flips, size, k, generator):
    return torch.linalg.qr(torch.randn(size, k, generator=generator))[0]


# %% [markdown]
# The same on the model, with `ml.align`, for four sizes. Beside it what could give such a score without any variable: directions of the same origin (difference of means with the labels dealt out anew), random subspaces, a place that the signal has not reached (layer 16), and a model with random weights.

# %%
for k in (1, 2, 4, 8):
    fit = ml.align(model, *train, position, layer=LAYER, k=k)
    table[f"DAS, k = {k}"] = scored("position", test, exchanged_in(test, fit.Q))
    trained = fit.Q if k == 1 else trained
alike = {"line and DAS": (line.T @ trained).abs().item()}
early = ml.align(model, *train, position, layer=16, steps=20)
early = scored("position", test, ml.interchange(model, *test, layer=16, Q=early.Q))
table["DAS before the signal arrives"] = early

# %%
unit = lambda Q: torch.linalg.qr(Q)[0]
dealt = ml.null_directions(streams, first.int(), count=20)
score = lambda Q: scored("position", test, exchanged_in(test, unit(Q)))["all"]
shuffled = [score(each[:, None]) for each in dealt]
chance = torch.Generator().manual_seed(0)
isotropic = [score(torch.randn(576, 8, generator=chance)) for _ in range(20)]
print(f"highest of 20: shuffled labels {max(shuffled):.2f}, random with k = 8 {max(isotropic):.2f}")

# %%
drawn = ml.random_weights(model)
sentences = (NAMES[::2], ALIGNED[:5], 10), (NAMES[1::2], ALIGNED[5:], 6)
untaught = [interchanges(drawn, *given) for given in sentences]
fit = ml.align(drawn, *untaught[0], flips("position", untaught[0]), layer=LAYER, k=8)
after_random = ml.interchange(drawn, *untaught[1], layer=LAYER, Q=fit.Q)
table["random weights, k = 8"] = scored("position", untaught[1], after_random)

# %%
del drawn, untaught
own = test[0].value(test[2])  # the logit differences when nothing is exchanged
pd.DataFrame(table).T.round(2)

# %% kind="assert"
agree = lambda Q: ((exchanged_in(test, Q) > 0) != flips("position", test)).float()
right = agree(trained)
low, high = bootstrap(right, test[0].batch.units)
lead = bootstrap(right - agree(None), test[0].batch.units)
claim(model, "ceiling", (own > 0).float().mean(), says=0.83, within=0.03)
claim(model, "one direction", right.mean(), says=0.81, within=0.03)
claim(model, "low", low, says=0.71, within=0.05)
claim(model, "high", high, says=0.90, within=0.05)
claim(model, "ahead of the whole, low", lead[0], says=-0.01, within=0.05)
claim(model, "ahead of the whole, high", lead[1], says=0.14, within=0.05)
claim(model, "eight directions", table["DAS, k = 8"]["all"], says=0.82, within=0.03)
claim(model, "shuffled, highest", max(shuffled), says=0.39, within=0.05)
claim(model, "before it arrives", early["all"], says=0.39, within=0.03)
claim(model, "cosine", alike["line and DAS"], says=0.87, within=0.06)

# %% [markdown]
# <details><summary>What we saw</summary>
#
# **One direction is enough** for "first or second": 0.81 (interval over the 15 pairs of names 0.71 to 0.90). For comparison: the model answers 0.83 of these prompts rightly by itself. Seven more directions add nothing. These controls stay on the ground of 0.39, or at chance. (One is not here: training on labels that were shuffled. Training looks for what turns the answer most, so a good line alone does not show that the labels mattered.)
#
# The difference of means points nearly the same way (cosine 0.87) and has 0.64. So training was worth something. But the whole stream has 0.74: one direction does *better than all of them*, if not clearly (the interval of the difference is −0.01 to 0.14). Keep this in mind.
#
# Three templates are few: the intervals are over names, and say little about other sentences.
#
# </details>
#
# ## Programs that are wrong
#
# A method that always finds something finds nothing. So let us train, with eight dimensions at the same place, what should not be there: *name*; *inverted*, which flips when position stays; and *arbitrary*, which flips when the source's first name has an odd token id.

# %%
odd = lambda runs: runs[1].tokens[:, 2] % 2 == 1
wrong = {
    "name": (flips("name", train), flips("name", test)),
    "inverted": (~position, ~flips("position", test)),
    "arbitrary": (odd(train), odd(test)),
}
trials = {}
for name, (says_train, says_test) in wrong.items():
    Q = ml.align(model, *train, says_train, layer=LAYER, k=8).Q
    trials[f"{name}, trained on"] = ml.iia(exchanged_in(train, Q), says_train, train[0].value(train[2]))
    trials[name] = ml.iia(exchanged_in(test, Q), says_test, own)
pd.DataFrame(trials).T.round(2)

# %% kind="assert"
claim(model, "name", trials["name"]["all"], says=0.39, within=0.06)
claim(model, "inverted", trials["inverted"]["all"], says=0.64, within=0.05)
claim(model, "inverted, flips", trials["inverted"]["flip"], says=0.13, within=0.06)
claim(model, "inverted, no change", trials["inverted"]["no change"], says=0.61, within=0.04)
claim(model, "arbitrary", trials["arbitrary"]["all"], says=0.54, within=0.07)
claim(model, "arbitrary, no change", trials["arbitrary"]["no change"], says=0.63, within=0.04)
above = trials["inverted"]["all"] - trials["inverted"]["no change"]
claim(model, "inverted, above no change", above, says=0.03, within=0.04)

# %% [markdown]
# None of them gets clear of "no change" on held-out sentences: *name* has 0.39, *arbitrary* 0.54 where 0.63 is to be had for nothing. *Inverted* has 0.64, which sounds like much, and is 0.03 above the 0.61 of no change.
#
# **Question 44.a.** Why does it?
#
# - **a** The subspace half holds the inverted variable.
# - **b** Two thirds of its answers stay. A subspace that changes nothing gets those right.
# - **c** Eight dimensions are too many, and it learned the sentences by heart.

# %% kind="quiz"
quiz("44.a", "b")

# %% [markdown]
# ## Where the truth is known
#
# Would the method say so if a program *were* run? A planted model (notebook 55) was compiled from a plan: one head writes the place of the first mention to S2, a second carries it to the end, a third fetches the other name. We know that *position* is true at the second head, and *name* at the third.

# %%
planted = ml.planted("ioi")
clean = planted.prompts(24).clean  # <begin> first and second went , subject gave to
first_name, second_name, subject = clean[:, 1], clean[:, 3], clean[:, 6]
rival = torch.where(subject == first_name, second_name, first_name)


def told(first, second, again):
    tokens = clean.clone()
    tokens[:, 1], tokens[:, 3], tokens[:, 6] = first, second, again
    return tokens


turned = [told(first_name, second_name, rival), told(second_name, first_name, rival)]
turned += [told(second_name, first_name, subject)]
known = (
    ml.run_of(planted.model, clean).rows([*range(24)] * 3),
    ml.run_of(planted.model, torch.cat(turned)),
    ml.logit_difference(rival.repeat(3), subject.repeat(3)),
)
found = {}
for part in ("S-inhibition", "name mover"):
    layer, head = planted.heads[part]
    values = ml.interchange(planted.model, *known, "z", layer=layer, head=head)
    found |= {f"{part}: {program}": scored(program, known, values) for program in FLIPS}
pd.DataFrame(found).T.round(2)

# %% kind="assert"
assert found["S-inhibition: position"]["all"] == 1 and found["name mover: name"]["all"] > 0.9
assert found["S-inhibition: name"]["all"] < 0.4 and found["name mover: position"]["all"] < 0.4

# %% [markdown]
# It does. The right program at the right head has 1.00, and each program fails at the other's head. In smollm2 we never see 1.00: its variable is spread over several heads, and it errs.
#
# ## One head alone
#
# 20.0 is the strongest head that brings the position to the end (notebook 41). Is the variable all there?

# %%
there = {"site": "z", "layer": 20, "head": 0}
head = {"whole head": scored("position", test, ml.interchange(model, *test, **there))}
for k in (1, 4):
    Q = ml.align(model, *train, position, **there, k=k).Q
    head[f"k = {k}"] = scored("position", test, ml.interchange(model, *test, **there, Q=Q))
head["whole stream, training sentences"] = scored("position", train, exchanged_in(train))
head["one direction, training sentences"] = scored("position", train, exchanged_in(train, trained))
pd.DataFrame(head).T.round(2)

# %% kind="assert"
claim(model, "whole head", head["whole head"]["all"], says=0.56, within=0.04)
claim(model, "k = 4", head["k = 4"]["all"], says=0.61, within=0.04)
claim(model, "whole, training", head["whole stream, training sentences"]["all"], says=0.66, within=0.04)
claim(model, "one, training", head["one direction, training sentences"]["all"], says=0.77, within=0.04)

# %% [markdown]
# Part of it: 0.56. But look: four dimensions of the head do better than all of them (0.61). And on the training sentences one direction (0.77) does better than the whole stream (0.66). **How can a part do more than the whole?** The whole is what a real run would bring. A trained part may leave out what speaks against it, or push further than any run does. This is a warning sign.
#
# ## A dormant pathway
#
# Makelov et al. 2023 showed how far that can go. Take the hidden layer of an MLP: 1,536 neurons, which write to a stream of 576 through one matrix. So at least 960 dimensions of it are **null space**: whatever is changed there, nothing comes out.
#
# ### Exercise 44.5 How much is invisible
#
# Difficulty 3 of 5 · 10 minutes · needs the singular value decomposition


# %% kind="exercise" id="44.5"
@exercise("44.5")
def null_share(v: Float[Tensor, "d_mlp"], W: Float[Tensor, "d_mlp d_model"]) -> Float[Tensor, ""]:
    """The share of v's squared length in the null space of W: the part n of v for which n @ W is 0."""
    # >>> solution
    U, sizes, _ = torch.linalg.svd(W, full_matrices=False)
    U = U[:, sizes > 1e-5 * sizes[0]]
    return 1 - (v @ U).square().sum() / v.square().sum()
    # <<< solution


# %% kind="check"
check(null_share)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# The SVD is W = U S Vᵀ. Which columns of U does `v @ W` read?
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# `torch.linalg.svd(W, full_matrices=False)`, keep the columns of U whose singular value is not 0. `v @ U` is the visible part, in new coordinates. Its share is a ratio of squared lengths.
#
# </details>


# %% [markdown]
# Now train one direction in the hidden layer of MLP 20, which lies on the way from head 20.0 to the name movers. Then split it by one SVD: into what `W_out` reads, and what it does not.

# %%
hidden = {"site": "post", "layer": 20}
v = ml.align(model, *train, position, **hidden, steps=60).Q
U = torch.linalg.svd(model.blocks[20].mlp.W_out.detach(), full_matrices=False).U
visible = U @ (U.T @ v)
parts = {"whole layer": None, "trained": v, "visible part": unit(visible), "null part": unit(v - visible)}
should = flips("position", test)
left = {name: ml.interchange(model, *test, **hidden, Q=Q)[should].mean() for name, Q in parts.items()}
change = (test[1].at("post", 20) - test[0].at("post", 20))[should, -1]
invisible = 1 - (change @ U).square().sum() / change.square().sum()
shares = {"direction": ((v - visible).square().sum()).item(), "change between runs": invisible.item()}
untouched = own[should].mean()
print(f"logit difference, should be far below 0; untouched {untouched:.2f}")
print(", ".join(f"{name} {value:.2f}" for name, value in left.items()))
print("in the null space:", ", ".join(f"{name} {share:.2f}" for name, share in shares.items()))

# %% kind="assert"
claim(model, "untouched", untouched, says=3.45, within=0.1)
claim(model, "whole layer", left["whole layer"], says=4.04, within=0.2)
claim(model, "trained", left["trained"], says=1.11, within=0.3)
claim(model, "visible part", left["visible part"], says=2.60, within=0.25)
claim(model, "null part, change", left["null part"] - untouched, says=0, within=0.02)
claim(model, "share of direction", shares["direction"], says=0.36, within=0.06)
claim(model, "share of change", shares["change between runs"], says=0.62, within=0.05)

# %% [markdown]
# The whole layer, taken from the source, moves the answer the *wrong* way (to 4.04, from 3.45). The trained direction takes it down to 1.11. Its visible part alone goes only to 2.60, and its null part does nothing.
#
# How do two parts that do little do much together? 0.62 of what differs between the runs is invisible, no more than the null space's share of dimensions. The trained direction *measures* that difference by its null part, and *writes* by its visible part: a large input is read where nobody looks, and pushes further than the model itself does. **Change in the answer is not proof that the model uses the direction.** In the stream there is no one matrix that reads all, so this split cannot be made. The warning stays: there too the line beats the whole.
#
# ## Another task
#
# "I bought a bed and a book. The first thing I bought was a". Again two programs: *ordinal* (first or second decides) and *word* (which thing). Again three sources with the same table. Trained on "sold" and "lost", tested on "bought", with other things.

# %%
THINGS = "book ring key ticket basket camera watch lamp table chair"
THINGS += " cup shirt knife pen hat bed car phone bag clock"
SAYS = "I {verb} a {} and a {}. The {} thing I {verb} was a"


def two_things(verbs, things, count):
    """As `interchanges`. The sources: the other ordinal; the things exchanged; both."""
    chance, rows, ids = torch.Generator().manual_seed(0), [], []
    for n in range(count):
        a, b = (things[i] for i in torch.randperm(len(things), generator=chance)[:2].tolist())
        for nth, other, said in (("first", "second", (a, b)), ("second", "first", (b, a))):
            four = (a, b, nth), (a, b, other), (b, a, nth), (b, a, other)
            rows.append([SAYS.format(*each, verb=verbs[n % len(verbs)]) for each in four])
            ids.append([ml.single_token(model, f" {word}") for word in said])
    texts = [list(column) for column in zip(*rows, strict=True)]
    base = ml.run_of(model, texts[0]).rows([*range(2 * count)] * 3)
    sources = ml.run_of(model, texts[1] + texts[2] + texts[3])
    return base, sources, ml.logit_difference(*torch.tensor(ids * 3).T)


# %%
FLIPS |= {"ordinal": FLIPS["position"], "word": FLIPS["name"]}
things = THINGS.split()
sold, bought = two_things(["sold", "lost"], things[::2], 8), two_things(["bought"], things[1::2], 10)
Q = ml.align(model, *sold, flips("ordinal", sold), layer=LAYER).Q
second = {}
for program, layer in (("ordinal", 22), ("word", 22), ("ordinal", 26), ("word", 26)):
    values = ml.interchange(model, *bought, layer=layer)
    second[f"whole stream, layer {layer}: {program}"] = scored(program, bought, values)
line_values = ml.interchange(model, *bought, layer=LAYER, Q=Q)
second["one direction, layer 22: ordinal"] = scored("ordinal", bought, line_values)
pd.DataFrame(second).T.round(2)

# %% kind="assert"
right = bought[0].value(bought[2]) > 0
claim(model, "right by itself", right.float().mean(), says=0.70, within=0.04)
claim(model, "word, 26", second["whole stream, layer 26: word"]["all"], says=0.73, within=0.06)
claim(model, "ordinal, 22", second["whole stream, layer 22: ordinal"]["all"], says=0.68, within=0.05)
claim(model, "one direction", second["one direction, layer 22: ordinal"]["all"], says=0.85, within=0.06)

# %% [markdown]
# A similar hand-over at the two layers we looked at: an order arrives, a word leaves. (The line is another one, trained anew.) And the warning sign is loud: the trained line obeys the program in 0.85 of the cases, the whole stream in 0.68, and the model *itself* is right in 0.70 of them. A line that obeys more often than the model answers rightly does not only show what the model runs. It **steers**.
#
# **Question 44.b.** What do all these experiments support?
#
# - **a** smollm2 runs *position*: it decides by the place of the name, from the first layer to the last.
# - **b** At the end of the prompt, about layers 21 to 23, one direction of the stream, trained for each task, carries which of two comes, in sentences of that task nobody trained on.
# - **c** The hidden layer of MLP 20 carries the position in one direction.

# %% kind="quiz"
quiz("44.b", "b")

# %% [markdown]
# ## How this misleads
#
# - **IIA without "no change"** says nothing: *inverted* had 0.61 by doing nothing. Stays and flips apart, always.
# - **A part that beats the whole** borrows from what the model does not use, or steers. Split it by an SVD where there is a null space; look at the whole beside it everywhere.
# - **The sources decide.** With *flip* alone, both programs agree on every answer, and either would pass.
# - **True here is not true elsewhere.** Each program holds in a few layers at one token.
# - **The more a map may bend, the less it shows.** We allowed straight subspaces of at most eight dimensions, and tried wrong programs with as many.
#
# **HyperDAS** (Sun et al. 2025) automates the search: told in words which variable is wanted, a second network picks the token and the subspace. Its authors warn that it may steer rather than interpret. Whatever finds the subspace, the controls above are the same.
#
# ### Exercise 44.6 A program of your own
#
# Difficulty 5 of 5 · 40 minutes · needs all of the above
#
# Write a program for these sentences as in 44.2 (names are token ids), and say where its variable stands: the stream on entering a layer, at "S2" or "end", in at most 8 dimensions. It will be exchanged in templates that no cell here uses, with sources of two other people too. The model must follow it 0.2 more often than "no change" does, and in two fifths of the answers that should flip.


# %% kind="exercise" id="44.6"
@exercise("44.6")
def my_program(model) -> tuple:
    """(variable, answer, layer, "S2" or "end", Q): two functions as in 44.2, and where the variable is."""
    # >>> solution
    prompts = ml.ioi_prompts(model, 12, seed=5)
    base = ml.run_of(model, prompts).rows([*range(12)] * 3)
    kinds = "flip", "swap names", "order"
    sources = ml.run_of(model, torch.cat([prompts.corrupted(kind).tokens for kind in kinds]))
    metric = ml.logit_difference(prompts.io.repeat(3), prompts.s.repeat(3))
    flips = torch.tensor([True, False, True]).repeat_interleave(12)
    Q = ml.align(model, base, sources, metric, flips, layer=21, k=2).Q
    variable = lambda first, second, subject: subject == second
    return variable, lambda first, second, value: first if value else second, 21, "end", Q
    # <<< solution


# %% kind="check"
check(my_program, model=model)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Which of the two programs can say something about a source with two other people? Where did it hold?
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# Make bases and sources with `ml.ioi_prompts` and `.corrupted`, label them by your program, and let `ml.align` find Q. Keep some sentences back to see what it is worth. A difference of means may or may not do.
#
# </details>


# %% kind="wrong" id="44.6" expects="at most 8"
@exercise("44.6")
def my_program(model):
    variable = lambda first, second, subject: subject == second
    return variable, lambda first, second, value: first if value else second, 22, "end", torch.eye(576)


# %% kind="wrong" id="44.6" expects="said again"
@exercise("44.6")
def my_program(model):
    variable = lambda first, second, subject: subject == second
    return variable, lambda first, second, value: second if value else first, 22, "end", torch.eye(576)[:, :1]


# %% kind="wrong" id="44.6" expects="no change"
@exercise("44.6")
def my_program(model):
    variable = lambda first, second, subject: subject == second
    return variable, lambda first, second, value: first if value else second, 22, "end", torch.eye(576)[:, :8]


# %% kind="wrong" id="44.6" expects="orthonormal"
@exercise("44.6")
def my_program(model):
    variable = lambda first, second, subject: subject == second
    return variable, lambda first, second, value: first if value else second, 22, "end", torch.ones(576, 2)


# %% [markdown]
# ## Beside the papers

# %%
ml.reference.table("44")

# %% [markdown]
# Neither is our quantity: the first is a small network trained on a task that compares pairs, the second finds two boundary checks of a price in a model of 7 billion parameters. Both are near the model's own accuracy, as one direction is here.
#
# | term | meaning |
# |---|---|
# | causal abstraction | a program whose variables can be exchanged in the model, with the answers the program gives |
# | interchange intervention | to let base run on with a part of source's activation |
# | interchange accuracy, IIA | how often the model then answers as the program does |
# | distributed alignment search, DAS | to train the subspace that is exchanged |
# | null space | the directions of an activation that the next matrix does not read |
# | dormant pathway | a direction that moves the answer when it is pushed, though the model does not push it |
#
# `ml.interchange`, `ml.align`, `ml.iia`, `run.rows`. Papers: Geiger et al. 2021 and 2023, Wu et al. 2023 (Boundless DAS), Makelov et al. 2023, Sun et al. 2025.
