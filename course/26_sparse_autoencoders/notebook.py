# %% [markdown]
# # 26 Sparse autoencoders
#
# **Question:** can features in superposition be told apart?
#
# After this notebook you will be able to
#
# - train a sparse autoencoder in two ways, and say what it is worth,
# - choose a null that could have failed, and say what depends on the choice,
# - explain a feature from its inputs, from its outputs, and by intervention,
# - write a test that breaks a feature's name, and a name that survives one.
#
# Time: 90 minutes. The cells take about 90 seconds in all. Memory: 2.5 GB.
# Download: none, once the model is here (93 MB). Before: notebooks 24 and 25.

# %% kind="setup"
# (written by the build)

# %% [markdown]
# ## The picture
#
# A **sparse autoencoder** (SAE) writes an activation as a sum of a few directions out of many. The list of directions is called its **dictionary**. This one was
# trained beforehand, on the residual stream leaving layer 12: 2,304 directions for 576 dimensions, at most 32 in use for any token. Each direction
# has length 1, so a feature's activation is the length of its piece of the stream. Here is what it finds at the word "wine":

# %%
sae = ml.SparseAutoencoder.load(ml.reference.data_dir() / "sae" / "smollm2_layer12").to(model.cfg.device)
base = model.to_tokens("After dinner we drank a glass of wine")
with torch.no_grad():
    _, cache = model.run_with_cache(base, names_filter=sae.hook, stop_at_layer=13)
    features = sae.encode(cache[sae.hook][0, -1])
strength, number = features.sort(descending=True)
labels = {"feature": [str(n) for n in number[:24].tolist()]}
ml.Scores(
    strength[:24], ("feature",), "activation of the 24 strongest features at ' wine'", labels, signed=False
).plot()

# %% kind="assert"
assert (features > 0).sum() <= 32 and sae.d_sae == 2304
assert number[0] == 778

# %% [markdown]
# Feature 778 leads. What is it about? How are such dictionaries made, and is this one good?
#
# ## By hand
#
# The **encoder** turns an activation x into features f: take off a middle $b_{dec}$, multiply by $W_{enc}$, add $b_{enc}$, and keep few of the numbers. The
# **top-k** rule (Gao et al. 2024) keeps the k largest, and of those the ones above zero (ReLU). The **decoder** adds the rows of $W_{dec}$ up again.
#
# $$f = \mathrm{ReLU}\big(\mathrm{top}_k\big((x - b_{dec})\, W_{enc} + b_{enc}\big)\big), \qquad \hat x = f\, W_{dec} + b_{dec}$$
#
# ### Exercise 26.1 Encode
#
# Difficulty 2 of 5 · 10 minutes · needs the formula above


# %% kind="exercise" id="26.1"
@exercise("26.1")
def encode(
    x: Float[Tensor, "token d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, "d_sae"],
    b_dec: Float[Tensor, "d_in"],
    k: int,
) -> Float[Tensor, "token d_sae"]:
    """For each token the k largest features; all others 0. Of the k, those below zero become 0 too."""
    # >>> solution
    before = (x - b_dec) @ W_enc + b_enc
    best = before.topk(k, dim=-1)
    return torch.zeros_like(before).scatter(-1, best.indices, best.values.relu())
    # <<< solution


# %% kind="check"
check(encode)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Compute all of them, find the k largest of each row, and write those into a tensor of zeros.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# `best = before.topk(k, dim=-1)` has `.values` and `.indices`. `zeros.scatter(-1, indices, values)` writes them back.
#
# </details>

# %% [markdown]
# The older way (Bricken et al. 2023) has a plain ReLU and makes activation cost something: an **L1 penalty**, a constant times the sum of all activations, is added to the
# squared error. Now train both, in the same loop. The text was written by the model itself. Position 0, the attention sink, is left out: it is 180 times as long as other
# streams and would be all that the loss sees. The data is centred and divided by one number, so that each of the 576 dimensions is of size 1 on average.

# %%
texts = ml.own_text(model, length=81, count=160)
data = ml.token_activations(model, texts[40:140], sae.hook)
test = texts[:10]  # for testing, never trained on
centre = data.mean(0)
scale = (data - centre).norm(dim=1).mean() / data.shape[1] ** 0.5
print(f"{len(data):,} tokens, {data.shape[1]} dimensions")


# %%
def train(rule, k=None, width=768, seed=0):
    """200 steps; `rule` is the only difference: "L1" (a penalty of 5), or "top-k"."""
    generator = torch.Generator().manual_seed(seed)
    W_dec = torch.nn.functional.normalize(torch.randn(width, 576, generator=generator), dim=1).to(data)
    parts = [W_dec.T.clone(), data.new_zeros(width), W_dec, data.new_zeros(576)]
    W_enc, b_enc, W_dec, b_dec = (part.requires_grad_() for part in parts)
    optimiser = torch.optim.Adam(parts, lr=2e-3)
    for _ in range(200):
        x = (data[torch.randint(len(data), (384,), generator=generator)] - centre) / scale
        f = ((x - b_dec) @ W_enc + b_enc).relu()
        if rule == "top-k":
            f = f * (f >= f.topk(k, dim=1).values[:, -1:])
        error = (f @ W_dec + b_dec - x).pow(2).sum(1)
        loss = (error + 5 * f.sum(1)).mean() if rule == "L1" else error.mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            W_dec /= W_dec.norm(dim=1, keepdim=True)  # or longer rows would make the penalty cheap
    W_enc, b_enc, W_dec, b_dec = (part.detach() for part in parts)
    weights = (W_enc / scale, b_enc, W_dec * scale, b_dec * scale + centre)
    kind = "standard" if rule == "L1" else "topk"
    return ml.SparseAutoencoder(*weights, kind=kind, k=k or 0, hook=sae.hook)


# %% [markdown]
# How good is one? Words first:
#
# - **L0**: how many features are active for a token. Compare SAEs at equal L0 only: the more may be active, the easier the rest. So we count what the
#   penalty leaves, and give top-k that number.
# - **Unexplained variance**: how much of the activation is not rebuilt.
# - **Spliced**: the model's next-token loss when the reconstruction replaces the activation. That is the **splice check**.
# - **Recovered** (loss recovered): 1 when nothing is lost, 0 when it is as bad as the *mean* of the activation. Against zero ablation the same number would flatter.
# - **Dead**: features that are never active again in training. On a few texts we can only see which were active on none of these tokens.

# %%
import pandas as pd

by_l1 = train("L1")
reports = {"large": ml.splice(model, sae, test)}
reports["L1"] = ml.splice(model, by_l1, test, beside=reports["large"])
by_topk = train("top-k", k=round(reports["L1"].active))
reports["top-k"] = ml.splice(model, by_topk, test, beside=reports["large"])
table = {
    name: {"L0": f"{r.active:.1f}", "spliced": f"{r.loss['spliced']:.2f}"}
    | {what: str(v) for what, v in r.intervals().items()}
    | {"never active": f"{r.silent:.0%}"}
    for name, r in reports.items()
}
pd.DataFrame(table).T

# %% kind="assert"
found = {name: report.intervals() for name, report in reports.items()}
assert abs(reports["L1"].active - reports["top-k"].active) < 1
assert found["top-k"]["unexplained"].high < found["L1"]["unexplained"].low
claim(model, "loss recovered by the large dictionary", reports["large"].recovered, says=0.95, within=0.02)
claim(model, "unexplained by the large dictionary", reports["large"].unexplained, says=0.17, within=0.03)

# %% [markdown]
# (Intervals are over the ten texts.) At equal L0 top-k rebuilds more and loses less. The usual reason is **shrinkage**: the penalty charges for every bit of
# activation, so all come out too small. Test it: make all of an SAE's activations larger by one factor, the best one.

# %%
held = ml.token_activations(model, test, sae.hook)


def stretched(one):
    """The best common factor for all activations, and what is unexplained before and after."""
    part, goal = one.encode(held) @ one.W_dec, held - one.b_dec
    factor = (part * goal).sum() / part.pow(2).sum()
    left = [(goal - f * part).pow(2).sum() / (held - held.mean(0)).pow(2).sum() for f in (1, factor)]
    return {"factor": factor.item(), "unexplained": left[0].item(), "stretched": left[1].item()}


shrunk = pd.DataFrame({"L1": stretched(by_l1), "top-k": stretched(by_topk)}).T.round(3)
shrunk

# %% kind="assert"
claim(model, "best factor, L1", shrunk.loc["L1", "factor"], says=1.4, within=0.15)
claim(model, "best factor, top-k", shrunk.loc["top-k", "factor"], says=1.0, within=0.05)

# %% [markdown]
# The L1 activations are too small indeed, and those of top-k are not. But stretching closes little of the gap: most of it has a reason that we did not find. (8,000 tokens, 200 steps and one seed each; published SAEs see billions of tokens.)
#
# ## Predict: does the model still know its facts?
#
# The large SAE recovers nearly all of the loss. Eight facts, such as "The capital of France is": the intact model gives the answer a mean
# probability of 0.8. What is it with the reconstruction spliced in?

# %% kind="predict"
predict("26.p", 0.5)

# %%
facts = pd.read_csv(ml.reference.data_dir() / "prompts" / "attribution.csv").query("kind == 'fact'")


def probabilities(hooks, draws=1):
    """The probability of each fact's answer with these hooks on: [fact, draw]."""
    rows = []
    for prompt, answer in zip(facts.prompt, facts.answer, strict=True):
        one, right = model.to_tokens(prompt).repeat(draws, 1), model.to_single_token(" " + answer)
        with torch.no_grad(), ml.intervene(model, hooks):
            rows.append(model(one)[:, -1].softmax(-1)[:, right])
    return torch.stack(rows)


known = {"intact": probabilities([]), "spliced": probabilities(ml.splice_hooks(model, sae))}
pd.DataFrame({name: p[:, 0] for name, p in known.items()}, index=facts.prompt).round(2)

# %% kind="assert"
claim(model, "probability of the fact, intact", known["intact"].mean(), says=0.79, within=0.05)
claim(model, "probability of the fact, spliced", known["spliced"].mean(), says=0.12, within=0.05)
reveal("26.p", f"{known['spliced'].mean():.2f}")

# %% [markdown]
# <details><summary>What we saw</summary>
#
# Most of it is gone.
#
# </details>
#
# Does the SAE lose just what facts need, or would *any* error of this size do the same? That asks for a null: other errors, as long at each token, that
# mean nothing.
#
# ### Exercise 26.6 A null that could have failed
#
# Difficulty 4 of 5 · 15 minutes · needs nothing
#
# Draw such errors. Before you write, decide two things: what the null must share with the SAE's errors so that it could hurt as much, and what it must not use. The check tells
# which of the usual mistakes is in yours.


# %% kind="exercise" id="26.6"
@exercise("26.6")
def null_errors(
    x: Float[Tensor, "token d_in"],
    errors: Float[Tensor, "token d_in"],
    streams: Float[Tensor, "example d_in"],
    generator: torch.Generator,
) -> Float[Tensor, "token d_in"]:
    """For each token an error as long as the dictionary's own, `errors`, in a direction that means nothing for this token.

    x: the activations that get the errors; streams: activations at tokens of other texts. Not every argument is needed.
    """
    # >>> solution
    one, other = torch.randint(len(streams), (2, len(errors)), generator=generator)
    direction = streams[one] - streams[other]
    return errors.norm(dim=1, keepdim=True) * torch.nn.functional.normalize(direction, dim=1)
    # <<< solution


# %% kind="check"
check(null_errors)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Where do activations differ from each other? In few directions, and some of them much more than others. Which differences between activations have nothing to do with x?
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# For each token draw two other activations, and take their difference. Or draw noise with the covariance of the streams. Or take the SAE's errors at *other* tokens. Then scale each
# row to the length wanted.
#
# </details>


# %% kind="wrong" id="26.6" expects="isotropic"
@exercise("26.6")
def null_errors(x, errors, streams, generator):
    direction = torch.randn(x.shape, generator=generator)
    return errors.norm(dim=1, keepdim=True) * torch.nn.functional.normalize(direction, dim=1)


# %% kind="wrong" id="26.6" expects="own activation"
@exercise("26.6")
def null_errors(x, errors, streams, generator):
    direction = streams[torch.randint(len(streams), (len(x),), generator=generator)] - x
    return errors.norm(dim=1, keepdim=True) * torch.nn.functional.normalize(direction, dim=1)


# %% kind="wrong" id="26.6" expects="as long as"
@exercise("26.6")
def null_errors(x, errors, streams, generator):
    one, other = torch.randint(len(streams), (2, len(errors)), generator=generator)
    direction = streams[one] - streams[other]
    return errors.norm(dim=1).mean() * torch.nn.functional.normalize(direction, dim=1)


# %% [markdown]
# Three nulls, twenty draws each: isotropic directions, the usual choice; noise with the covariance of the streams; a step towards another token's activation.

# %%
pool = ml.token_activations(model, texts[140:156], sae.hook)
spread = (pool - pool.mean(0)) / len(pool) ** 0.5
generator = torch.Generator().manual_seed(0)
drawn = lambda rows, x: rows[torch.randint(len(rows), x.shape[:-1], generator=generator)]
noise = lambda x, width: torch.randn(*x.shape[:-1], width, generator=generator).to(x)
NULLS = {
    "isotropic": lambda x: noise(x, 576),
    "covariance": lambda x: noise(x, len(pool)) @ spread,
    "towards another token": lambda x: drawn(pool, x) - x,
}


def null_hooks(direction):
    """At each token but the first an error as long as the SAE's."""

    def write(x, hook):
        length = (x - sae.decode(sae.encode(x))).norm(dim=-1, keepdim=True)
        length[:, 0] = 0
        return x + length * torch.nn.functional.normalize(direction(x), dim=-1)

    return [(sae.hook, write)]


# %%
tried, of_text = {}, {"the SAE's error": reports["large"].of_text["spliced"]}


def try_null(name, direction):
    """The facts with twenty draws of errors in such directions, and the rise of the loss on text."""
    known[name] = probabilities(null_hooks(direction), draws=20)
    with torch.no_grad(), ml.intervene(model, null_hooks(direction)):
        of_text[name] = model(test, return_type="loss", loss_per_token=True)[:, 1:].mean(1)
    facts_left = known[name].mean(0)
    tried[name] = {
        "facts": facts_left.mean().item(),
        "lowest draw": facts_left.min().item(),
        "loss": rise(name),
    }


rise = lambda name: str(ml.statistics.estimate(of_text[name] - reports["large"].of_text["intact"]))
for name, direction in NULLS.items():
    try_null(name, direction)
tried["the SAE's error"] = {"facts": known["spliced"].mean().item(), "loss": rise("the SAE's error")}
as_text = lambda each: each if isinstance(each, str) else f"{each:.2f}" if each == each else ""
pd.DataFrame(tried).T.map(as_text)

# %% kind="assert"
for name, says in zip(NULLS, (0.45, 0.46, 0.28), strict=True):
    claim(model, f"facts, {name}", known[name].mean(), says=says, within=0.08)

# %% [markdown]
# **Question 26.a.** The last null hurts the facts most. Why?
#
# - **a** It lies where activations lie.
# - **b** Its errors are longer.
# - **c** It takes away part of the token's own activation.
# - **d** Chance: it is one draw.

# %% kind="quiz"
quiz("26.a", "c")

# %% [markdown]
# <details><summary>When you have answered: a fairer null</summary>
#
# So take that into account. The SAE's error takes away part of the token's own activation too, but less. The fairest null we could think of takes away exactly as much, and
# points between two other tokens with the rest.
#
# </details>

# %%
middle, unit = pool.mean(0), lambda v: torch.nn.functional.normalize(v, dim=-1)
cosine = lambda a, b: (unit(a) * unit(b)).sum(-1, keepdim=True)


def as_much_taken_away(x):
    error, own = sae.decode(sae.encode(x)) - x, unit(x - middle)
    rest = drawn(pool, x) - drawn(pool, x)
    rest = unit(rest - (rest * own).sum(-1, keepdim=True) * own)
    taken = cosine(error, own)
    return taken * own + (1 - taken**2).clamp_min(0).sqrt() * rest


try_null("as much taken away", as_much_taken_away)
more = ml.statistics.estimate(of_text["the SAE's error"] - of_text["as much taken away"])
print("the SAE's error costs more on text than this null:", more)
pd.DataFrame(tried).T.map(as_text)

# %% kind="assert"
fair = known["as much taken away"].mean(0)
claim(model, "facts, as much taken away", fair.mean(), says=0.3, within=0.08)
claim(
    model,
    "of its own, SAE",
    cosine(sae.decode(sae.encode(pool)) - pool, pool - middle).mean(),
    says=-0.37,
    within=0.05,
)
claim(
    model,
    "of its own, a step",
    cosine(pool.roll(37, 0) - pool, pool - middle).mean(),
    says=-0.69,
    within=0.05,
)
assert fair.min() > known["spliced"].mean()
assert abs(more.mean) < 0.1

# %% [markdown]
# On ordinary text the SAE's error is not told from this null. On the facts it costs more than the worst of twenty draws, 0.12 against 0.30 on average. So **what the
# SAE leaves out matters more for these facts than its size explains, and by how much depends on the null**: four times with the usual one. Gurnee (2024) called the errors of SAEs pathological,
# beside isotropic ones. Lee and Heimersheim (2024) saw that a step towards another token contains the token's own activation, left it out of their null, and found the errors in GPT-2 no longer unusual. Ours is one
# SAE at one layer, and eight facts.
#
# ## A feature, from its inputs and outputs
#
# To know where a feature is active, texts must be run through the SAE. For the large one this was done beforehand, with 400 texts. A **feature dashboard** (`ml.feature_page`) shows where
# the feature is most active, and also some weaker places, drawn evenly from the rest. It lists the tokens that the feature's direction raises and lowers. Last comes an
# intervention: which next tokens become less likely when the feature is removed where it is most active.

# %%
activity = ml.Activity.load(ml.reference.data_dir() / "sae" / "smollm2_layer12" / "activity.safetensors")
page = ml.feature_page(model, sae, activity, 778)
assert all("wine" in token.lower() for _, token, _, _ in page.examples)
assert not any("wine" in token.lower() for _, token, _, _ in page.quieter)
assert not any("wine" in token.lower() for token, _ in page.raises)
claim(model, "largest fall of a next token without 778", page.needed[0][1], says=-0.02, within=0.009)
page

# %% [markdown]
# The most active places are all "wine". The weaker ones are mostly not about wine. The direction raises no word that has to do with wine. And taken out at its six most active places,
# the feature makes no next token less likely by more than about 0.02 on average. Its inputs look clear; its effect there is small.
#
# **Question 26.b.** A feature is active on 0.6 % of 32,000 tokens. Its dashboard shows its six most active places, and all are clear. What share of its places have you read?
#
# - **a** Nearly all that matter: activation falls off quickly.
# - **b** About 3 %.
# - **c** About 30 %.
# - **d** 0.6 %.

# %% kind="quiz"
quiz("26.b", "b")

# %% [markdown]
# Two features, 778 and 960, are active on "wine" every time (the next cell checks it). A dictionary is not a list of one feature a word.
#
# Browse. Type a word to find features that are active on it, or draw one at random: those that nobody picked are the honest sample. Write down a name for three
# random ones before you go on.

# %%
from mechlab.pictures.widgets import feature_browser

for number, strength in activity.on_word(model, "wine", k=3):
    print(f"feature {number} is active on wine, with a mean strength of {strength:.0f}")
feature_browser(model, sae, activity, feature=1209)

# %% kind="assert"
assert [n for n, _ in activity.on_word(model, "wine", k=2)] == [778, 960]
spoken = [
    model.tokenizer.decode([token]).strip().lower() == "wine" for token in activity.texts.flatten().tolist()
]
places = torch.tensor(spoken).nonzero()[:, 0]
assert all(torch.isin(places, activity.token[activity.feature == n]).all() for n in (778, 960))

# %% [markdown]
# ## By intervention
#
# To ask what a feature does, set it to another value and leave everything else as it is, also the part that the dictionary does not explain.
#
# ### Exercise 26.4 Set one feature
#
# Difficulty 3 of 5 · 10 minutes · needs nothing


# %% kind="exercise" id="26.4"
@exercise("26.4")
def set_feature(
    x: Float[Tensor, "token d_in"],
    features: Float[Tensor, "token d_sae"],
    W_dec: Float[Tensor, "d_sae d_in"],
    b_dec: Float[Tensor, "d_in"],
    index: int,
    value: float,
) -> Float[Tensor, "token d_in"]:
    """The activation x with feature `index` at `value` in every token. What the dictionary does not rebuild stays in x.

    Not every argument is needed.
    """
    # >>> solution
    step = value - features[:, index, None]
    return x + step * W_dec[index]
    # <<< solution


# %% kind="check"
check(set_feature)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# A feature contributes its activity times its row of `W_dec`. How does that contribution change?
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# Add (new − old) times the row. `features[:, index, None]` has shape [token, 1].
#
# </details>

# %% [markdown]
# Feature 1209 is most active on a hyphen after a number: a "17-member" team, a "5-year" treaty. After "The government has just approved a new 5-" the model expects "year" with
# 0.27; when the feature is removed, with 0.20. So "year" needs the feature? That is one prompt and no null. Take eight, and as a null twenty *other features*: the same push along their directions. Ask for −1 times
# the feature, too.

# %%
PROMPTS = """The government has just approved a new 5-|After the trial he was sentenced to a 10-
The two countries have signed a 20-|She has just come back from a 3-|The company gives its customers a 2-
My son is a 7-|The museum shows a 400-|They celebrated their 25-""".replace("\n", "|").split("|")
busy = (activity.density * activity.tokens >= 20).nonzero()[:, 0]  # features with something to do
rows = ml.null_directions(sae.W_dec[busy[busy != 1209]], kind="rows", count=20)
directions = torch.cat([sae.W_dec[[1209]], rows])  # ours first
year = model.to_single_token("year")


def pushes(times):
    """As long as the change of feature 1209, along another direction in each row of the batch."""

    def write(x, hook):
        old = sae.encode(x)[..., 1209, None]
        old[:, 0] = 0
        return x + (times - 1) * old * directions[:, None]

    return [(sae.hook, write)]


# %%
change, first = {}, {}
for times in (1, 0, -1):
    with torch.no_grad(), ml.intervene(model, pushes(times)):
        logs = [model(model.to_tokens(p).repeat(21, 1))[:, -1].log_softmax(-1)[:, year] for p in PROMPTS]
    change[times] = torch.stack(logs).mean(0)  # log probability of "year", mean over prompts: [direction]
    first[times] = logs[0][0].exp()
rank = {times: 1 + int((of[1:] < of[0]).sum()) for times, of in change.items() if times != 1}
falls = torch.stack([change[times] - change[1] for times in (0, -1)])
labels = {"times": ["0", "-1"], "direction": ["1209"] + [f"other {n}" for n in range(1, 21)]}
print("rank of feature 1209 among 21, lowest first:", rank)
ml.Scores(falls, ("times", "direction"), "change of log p('year'), mean of 8 prompts", labels).plot()
assert rank[0] > 3 and rank[-1] <= 2
for times, says in ((1, 0.27), (0, 0.2), (-1, 0.04)):
    claim(model, f"first prompt, times {times}", first[times], says=says, within=0.03)

# %% [markdown]
# Removing the feature (times 0) does not stand out among the others: nothing is shown. At −1 it comes first of 21: now the
# direction matters. But −1 is a value that the feature never has. A large push shows what a direction *can* do, not what the model uses it for.
#
# ## Steer with it
#
# Add a feature's direction at every position but the first while the model writes, as long as the feature gets by itself (about 40). Feature 885 is active on food, 1471 on the sea; both
# read well. Does the model write about them? Eight beginnings, three texts each, twelve tokens. The null: 24 *other* features, one for each text, at the same length. Counted:
# texts that hold a word of a list.

# %%
WORDS = {
    "food": " food eat eating cook cooking taste dish dishes meal meals delicious recipe flavor flavors ingredients restaurant chef cuisine",
    "sea": " sea seas ocean oceans water beach wave waves ship boat fish island coast shore swim marine sail",
}
ids = {name: {*model.to_tokens([" " + w for w in ws.split()])[:, 1].tolist()} for name, ws in WORDS.items()}
STARTS = """I think that the best thing in the world|My plan for the next weekend with friends is
What most people do not know about this is|In the middle of the city there is a
Yesterday in the evening my old friend told|When I was a child, my brother and
One day, a young man decided that he|The most important thing that I learned there was""".replace("\n", "|")
start = model.to_tokens(STARTS.split("|")).repeat(3, 1)


def written(features, strength):
    """How many of 24 texts hold a word of each list, with a feature for each text added at this strength."""
    push = strength * sae.W_dec[features][:, None]
    skip = lambda x: int(x.shape[1] > 1)  # later, a new token comes alone
    hook = lambda x, hook: torch.cat([x[:, : skip(x)], x[:, skip(x) :] + push], dim=1)
    torch.manual_seed(0)
    with torch.no_grad(), ml.intervene(model, [(sae.hook, hook)]):
        out = model.generate(
            start, max_new_tokens=12, do_sample=True, temperature=0.8, verbose=False, stop_at_eos=False
        )
    out = out[:, start.shape[1] :]
    return {name: sum(bool(words & {*row}) for row in out.tolist()) for name, words in ids.items()}, out


# %%
other = busy[torch.randperm(len(busy), generator=torch.Generator().manual_seed(1))[:24]].tolist()
counts = {}
for name, features in {"24 other features": other, "885": [885] * 24, "1471": [1471] * 24}.items():
    for strength in (40,) if name == "885" else (40, 80):
        counts[f"{name} at {strength}"], out = written(features, strength)
    print(f"{name}: {model.tokenizer.decode(out[0].tolist())!r}")
counts["plain"], _ = written(other, 0)
steering = pd.DataFrame(counts).T
assert all(35 < activity.loudest(n, 1)[2][0] < 45 for n in (885, 1471))
food, sea = steering["food"], steering["sea"]
claim(model, "texts about food, steered", food["885 at 40"], says=11, within=5)
claim(model, "texts about the sea, steered", sea["1471 at 40"], says=1, within=2)
claim(model, "texts about the sea, steered twice as hard", sea["1471 at 80"], says=5, within=3)
assert food.drop("885 at 40").max() <= 3 and sea.drop("1471 at 80").max() <= 3
steering

# %% [markdown]
# Food works: nearly half of the texts, against one with other features. The sea does not at the strength that its feature reaches by itself, and little at twice that (five texts), although its most active places are as clean. **A feature
# that reads well need not steer well.** Notebook 32 measures what steering costs.
#
# ## How it misleads
#
# **A name from the most active places is too narrow.** Feature 93 is most active on "York", "Paris", "Berlin": a feature for cities? Test it where it should be inactive.

# %%
cities = pd.read_csv(ml.reference.data_dir() / "probing" / "cities.csv")
GROUPS = {
    "cities": cities.city.tolist(),
    "US states": "Texas California Florida Ohio Alaska Iowa Utah Oregon Virginia Georgia Kansas Nevada".split(),
    "countries": sorted(set(cities.country)),
    "companies": "Google Microsoft Sony Ford Apple Netflix Toyota Amazon Facebook".split(),
    "first names": "Mary John Anna Paul Laura Tom David Sarah James Emma Peter Kate Mark Alice Henry".split(),
    "other nouns": "silence school bed winter space nature hospital church peace bank court theory summer shock".split(),
}
rows = []
for group, words in GROUPS.items():
    words = [word for word in words if model.to_tokens(" " + word, prepend_bos=False).shape[1] == 1]
    one = model.to_tokens([f"Last summer we spent a week in {word} with friends." for word in words])
    with torch.no_grad():
        _, cache = model.run_with_cache(one, names_filter=sae.hook, stop_at_layer=13)
    active = sae.encode(cache[sae.hook])[:, 8, 93]
    rows.append(
        {
            "words": group,
            "how many": len(words),
            "active on": (active > 0).float().mean().item(),
            "mean": active.mean().item(),
        }
    )
narrow = pd.DataFrame(rows).set_index("words").round(2)
narrow

# %% kind="assert"
claim(model, "feature 93 on cities", narrow.loc["cities", "active on"], says=0.97, within=0.04)
claim(model, "feature 93 on US states", narrow.loc["US states", "active on"], says=1.0, within=0.01)
for group, says in zip(narrow.index[:5], (38, 30, 10, 12, 2), strict=True):
    claim(model, f"mean of feature 93 on {group}", narrow.loc[group, "mean"], says=says, within=1)
assert narrow.loc["companies", "active on"] > 0.6 and narrow.loc["countries", "active on"] > 0.7
assert 0.1 < narrow.loc["first names", "active on"] < 0.5 and narrow.loc["other nouns", "active on"] < 0.1

# %% [markdown]
# On all twelve states too. More weakly on most countries and companies, and on some first names. Not "cities", and not "places" either. The most active places show one end of a
# feature; only words on which it *should* be inactive test a name. Now you.
#
# ### Exercise 26.7 Break a name
#
# Difficulty 4 of 5 · 20 minutes · needs nothing
#
# The text above named feature 1209 "a hyphen after a number". Made exact: right behind a digit, as in "a 5-year plan". Write a test that this name fails: four sentences where
# the feature should be active and is not, and four where it should not and is. Active means a quarter of its most, 14. Each sentence is plain English with exactly one hyphen. The check reads
# them through the model; three of each four must come out against the name.


# %% kind="exercise" id="26.7"
@exercise("26.7")
def breaking_test() -> dict[str, list[str]]:
    """Two lists of four sentences: "should" (the hyphen follows a digit) and "should not" (it follows something else)."""
    # >>> solution
    return {
        "should": [
            "Please call me at 555-1234 tomorrow morning.",
            "He lived in London from 1990-1995 with his family.",
            "She flew home in an old Boeing 747-400 last night.",
            "The battery has the number 4711-22 on its back.",
        ],
        "should not": [
            "A five-year plan was approved by the parliament.",
            "We watched a four-part series about whales.",
            "My brother signed a ten-year contract with the club.",
            "A two-day trip to Rome costs very little.",
        ],
    }
    # <<< solution


# %% kind="check"
check(breaking_test, model=model)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# In all the places on the dashboard the number and the word behind it measure something. Which hyphens behind a digit do not? And must the number be written in digits?
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# Try one: `activation = sae.encode(cache[sae.hook][0])[:, 1209]`, with the cache of `model.run_with_cache(sentence)`, and print it beside `model.to_str_tokens(sentence)`. Ranges, names of
# products and numbers that are only labels are worth a try.
#
# </details>


# %% kind="wrong" id="26.7" expects="active on"
@exercise("26.7")
def breaking_test():
    return {
        "should": ["She plays in a 17-member band every week.", "It was a 12-hour flight to Tokyo.",
                   "They built a 3-bedroom house near us.", "He is a 16-year old boy from Rome."],
        "should not": ["A five-year plan was approved by the parliament.", "We watched a four-part series about whales.",
                       "My brother signed a ten-day contract with them.", "A two-week trip to Rome costs very little."],
    }  # fmt: skip


# %% kind="wrong" id="26.7" expects="right behind a digit"
@exercise("26.7")
def breaking_test():
    return {
        "should": ["The Covid-19 vaccine was ready within a year.", "The B-52 bomber was built in that factory.",
                   "An old U-2 plane flew over the island.", "The F-16 landed on the road behind us."],
        "should not": ["A five-year plan was approved by the parliament.", "We watched a four-part series about whales.",
                       "My brother signed a ten-day contract with them.", "A two-week trip to Rome costs very little."],
    }  # fmt: skip


# %% kind="wrong" id="26.7" expects="nearly the same"
@exercise("26.7")
def breaking_test():
    return {
        "should": [f"Please call me at 555-{n} tomorrow morning." for n in (1234, 2345, 3456, 4567)],
        "should not": [
            f"A {n}-year plan was approved by the parliament." for n in ("two", "five", "six", "ten")
        ],
    }


# %% [markdown]
# A name is scored by what it predicts (Bills et al. 2023). The simplest form is **detection**: on sentences that its author has not seen, say where
# the feature is active. **Precision** is the share of your yeses that are right, **recall** the share of active places that you found.
#
# ### Exercise 26.8 A name that survives
#
# Difficulty 5 of 5 · 25 minutes · needs 26.7
#
# Write your name for feature 1209 as a rule. The check runs it on over forty sentences that this notebook does not show, each with one hyphen. It must reach 0.88 in F1, the harmonic mean of precision and recall;
# the check shows what the old name and "every hyphen" get.


# %% kind="exercise" id="26.8"
@exercise("26.8")
def is_active(before: str, after: str) -> bool:
    """Whether feature 1209 is active (14 or more) on the hyphen between these two parts of a sentence."""
    # >>> solution
    numbers = "one two three four five six seven eight nine ten twelve twenty fifty hundred".split()
    word, follows = (before.split() or [""])[-1], (after.split() or [""])[0].strip(".,")
    spelled = word.lower() in numbers
    measured = word.isdigit() and len(word) <= 3 and (follows.isalpha() or len(follows) <= len(word))
    return spelled or measured
    # <<< solution


# %% kind="check"
check(is_active, model=model)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Which kinds of hyphens did you meet? For each kind write two sentences of your own, and look.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# The last word of `before` and the first of `after` say nearly everything: `before.split()[-1]`, `after.split()[0]`. How long is the number? Is it a word? What follows, a word or digits?
#
# </details>


# %% kind="wrong" id="26.8" expects="every hyphen"
@exercise("26.8")
def is_active(before, after):
    return True


# %% kind="wrong" id="26.8" expects="old name"
@exercise("26.8")
def is_active(before, after):
    return before[-1:].isdigit()


# %% kind="wrong" id="26.8" expects="never says yes"
@exercise("26.8")
def is_active(before, after):
    return False


# %% [markdown]
# **A random model has clean features too.** The same model with random weights has learned nothing. Train an SAE on it, with the same text:

# %%
stranger = ml.random_weights(model)
noise = ml.token_activations(stranger, texts[40:140], sae.hook)
of_noise = ml.train_sae(noise, width=768, k=16, steps=200, batch=256, hook=sae.hook).sae
noise_activity = ml.feature_activity(stranger, of_noise, texts[40:70])
loudest = noise_activity.feature[noise_activity.activation.argsort(descending=True)].tolist()
for feature in list(dict.fromkeys(loudest))[:3]:
    print(f"\nFeature {feature} of the random model")
    for before, token, after, strength in ml.feature_page(
        stranger, of_noise, noise_activity, feature, k=5
    ).examples:
        print(f"  {strength:4.1f} {before}[{token}]{after}".replace("\n", " "))
top = list(dict.fromkeys(loudest))[:3]
assert all(noise_activity.loudest(feature, 5)[0].unique().numel() == 1 for feature in top)

# %% [markdown]
# Each looks like one clear topic. So a model that has learned nothing has features with clear names. Heap et al. (2025) found this at scale: the usual automatic scores of
# interpretability hardly tell SAEs of trained models from those of random ones. But look where the lines come from. We guess that random attention gives the tokens of one text a direction in
# common, and the SAE finds the texts. Count: from how many texts do the 20 most active places of a feature come? (For features that are active on at least 20 tokens.)

# %%
small_activity = ml.feature_activity(model, by_topk, texts[40:70])
rows = {}
for name, one in {"the model": small_activity, "random weights": noise_activity}.items():
    often = [n for n in range(one.d_sae) if one.density[n] * one.tokens >= 20]
    spread = torch.tensor([one.loudest(n, 20)[0].unique().numel() for n in often]).float()
    rows[name] = {
        "texts of the 20 loudest, mean": spread.mean().item(),
        "all 20 in one text": (spread == 1).float().mean().item(),
    }
control = pd.DataFrame(rows).T.round(2)
claim(
    model,
    "features of one text, random weights",
    control.loc["random weights", "all 20 in one text"],
    says=0.75,
    within=0.15,
)
claim(
    model,
    "features of one text, the model",
    control.loc["the model", "all 20 in one text"],
    says=0.01,
    within=0.02,
)
control

# %% [markdown]
# With random weights three quarters of the features have all 20 places in a single text; of the model's own, hardly any. **Without this control the clean features of the random model would have
# passed for a discovery.** (No general test: a topic is a feature too.)
#
# **Another start, other features.** Train the small top-k SAE again with another seed. How many features come back? Paulo and Belrose (2025) pair the features of two SAEs one to one, so that the
# cosines are as large as possible (the Hungarian method), once by decoder and once by encoder. A feature is shared when both pairings agree and both cosines are large, here above 0.7.

# %%
from scipy.optimize import linear_sum_assignment

again = train("top-k", k=by_topk.k, seed=1)
cosines = {
    "decoder": unit(by_topk.W_dec) @ unit(again.W_dec).T,
    "encoder": unit(by_topk.W_enc.T) @ unit(again.W_enc.T).T,
}
pairs = {name: torch.tensor(linear_sum_assignment(-each)[1]) for name, each in cosines.items()}
each = torch.arange(by_topk.d_sae)
paired = {name: cosines[name][each, pairs[name]] for name in pairs}
agree = pairs["decoder"] == pairs["encoder"]
shared = agree & (paired["decoder"] > 0.7) & (paired["encoder"] > 0.7)
rebuilt = [stretched(one)["unexplained"] for one in (by_topk, again)]
print(f"unexplained: {rebuilt[0]:.2f} and {rebuilt[1]:.2f}; pairings agree: {agree.float().mean():.2f}")
assert abs(rebuilt[0] - rebuilt[1]) < 0.02
claim(model, "share of features that come back", shared.float().mean(), says=0.001, within=0.005)

# %%
draw = torch.Generator().manual_seed(9)
others = {
    "random directions": torch.randn(each.numel(), 576, generator=draw).to(data),
    "streams of random tokens": (data - centre)[torch.randperm(len(data), generator=draw)[: each.numel()]],
}
closeness = {"another start": paired["decoder"]}
for name, rows in others.items():  # nulls, paired in the same way
    strange = unit(by_topk.W_dec) @ unit(rows).T
    closeness[name] = strange[each, torch.tensor(linear_sum_assignment(-strange)[1])]
for name, says in zip(closeness, (0.29, 0.13, 0.34), strict=True):
    claim(model, f"mean cosine with the partner, {name}", closeness[name].mean(), says=says, within=0.03)
curves = torch.stack([one.sort(descending=True).values[::24] for one in closeness.values()])
labels = {
    "with": list(closeness),
    "feature": [str(n) for n in range(0, len(each), 24)],
}
ml.Scores(
    curves, ("with", "feature"), "cosine with the partner, decoder; best first", labels, signed=False
).plot(lines=True, height=340)

# %% [markdown]
# Equally good SAEs, and hardly a feature comes back. Partners are closer (mean cosine 0.29) than random directions (0.13), the weakest null. But the streams of random tokens, paired
# likewise, are closer still (0.34): partners lie where the data lie, no more. Ours are small and trained briefly; in one trained on billions of tokens
# for Llama 3 8B, Paulo and Belrose found 30 % shared. So do not say *the* features of a model.
#
# **Size decides what counts as one feature.** In a larger SAE one feature often becomes several narrower ones: **feature splitting** (Bricken et al. 2023).
# And where a narrow feature speaks, a general one may stay inactive although it holds: **absorption** (Chanin et al. 2024). Then even a feature with a right name
# misses places. We measured neither here.
#
# **A list of directions finds directions.** An SAE takes the linear representation hypothesis of notebook 25 for granted. What lies on a circle, as the weekdays do there, it can only cut into pieces. Engels et al. (2024) found their circles
# by looking for sets of SAE features that belong together: one of them alone does not show it.
#
# ## Published dictionaries
#
# With a GPU and a network, try the one that EleutherAI trained for this model: 36,864 features for the output of an MLP.

# %% kind="gpu"
if torch.cuda.is_available():
    from huggingface_hub import snapshot_download

    folder = snapshot_download("EleutherAI/sae-SmolLM2-135M-64x", allow_patterns="layers.12.mlp/*")
    published = ml.SparseAutoencoder.load(f"{folder}/layers.12.mlp", hook="blocks.12.hook_mlp_out")
    print(ml.splice(model, published.to(model.cfg.device), test))
else:
    print("Skipped: this cell wants a GPU and the network (170 MB).")

# %% [markdown]
# ## Beside the papers
#
# (Bricken et al. zero an MLP, we the stream: that flatters.)

# %%
loss = reports["large"].loss
mine = {
    "loss recovered, against zero ablation": (loss["zero"] - loss["spliced"])
    / (loss["zero"] - loss["intact"]),
    "loss recovered, against the mean": reports["large"].recovered,
    "mean probability of eight facts, spliced": known["spliced"].mean().item(),
}
ml.reference.table("26", mine)

# %% [markdown]
# | term | in one line | `mechlab` |
# |---|---|---|
# | sparse autoencoder (SAE) | writes an activation as a sum of few directions of a dictionary | `ml.train_sae`, `ml.SparseAutoencoder` |
# | L0 | how many features are active for a token | `splice(...).active` |
# | splice check | the model's loss with the reconstruction in place of the activation | `ml.splice` |
# | feature dashboard | where a feature is active, what its direction raises, what is missing without it | `ml.feature_page` |
# | shrinkage | an L1 penalty makes all activations too small | |
# | feature splitting | one feature of a small dictionary is several narrower ones in a larger one | |
# | absorption | a general feature stays inactive where a narrower one speaks | |
#
# Papers: Bricken et al. 2023; Cunningham et al. 2023; Gao et al. 2024 (top-k); Gurnee 2024, and Lee and Heimersheim 2024 (errors and their null); Heap et al. 2025 (random models); Paulo and Belrose 2025 (seeds); Engels et al. 2024
# (circles); Karvonen et al. 2025 (SAEBench: better scores of this kind do not reliably make an SAE more useful). Next: notebook 31 changes what the model does.
