# %% [markdown]
# # 26 Sparse autoencoders
#
# **Question:** can features in superposition be told apart?
#
# After this notebook you will be able to
#
# - train a sparse autoencoder in two ways, and say what it is worth,
# - explain a feature from its inputs, from its outputs, and by intervention,
# - name the controls without which a clean-looking feature means little.
#
# Time: 95 minutes. The cells take about 90 seconds in all. Memory: 2.5 GB.
# Download: none, once the model is here (93 MB). Before: notebooks 24 and 25.

# %% kind="setup"
# (written by the build)

# %% [markdown]
# ## The picture
#
# A **sparse autoencoder** is a dictionary of directions. It writes an activation as a sum of a few of them. This one was trained beforehand, on the residual
# stream leaving layer 12: 2,304 directions for 576 dimensions, at most 32 of them in use for any token. Each direction has length 1, so a feature's
# **activity** is the length of its piece of the stream. Here is what it finds at the word "wine":

# %%
sae = ml.SparseAutoencoder.load(ml.reference.data_dir() / "sae" / "smollm2_layer12").to(model.cfg.device)
base = model.to_tokens("After dinner we drank a glass of wine")
with torch.no_grad():
    _, cache = model.run_with_cache(base, names_filter=sae.hook, stop_at_layer=13)
    features = sae.encode(cache[sae.hook][0, -1])
strength, number = features.sort(descending=True)
labels = {"feature": [str(n) for n in number[:24].tolist()]}
ml.Scores(
    strength[:24], ("feature",), "activity of the 24 strongest features at ' wine'", labels, signed=False
).plot()

# %% kind="assert"
assert (features > 0).sum() <= 32 and sae.d_sae == 2304
assert number[0] == 778

# %% [markdown]
# Feature 778 leads. What is it about? Before anybody reads it, two questions come first: how are such dictionaries made, and is this one any good?
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
# The older way (Bricken et al. 2023) has a plain ReLU and makes activity cost something: an **L1 penalty**, a constant times the sum of the activities.
#
# ### Exercise 26.2 The loss with an L1 penalty
#
# Difficulty 2 of 5 · 5 minutes · needs nothing


# %% kind="exercise" id="26.2"
@exercise("26.2")
def penalised_loss(
    x: Float[Tensor, "token d_in"],
    back: Float[Tensor, "token d_in"],
    features: Float[Tensor, "token d_sae"],
    l1: float,
) -> Float[Tensor, ""]:
    """For each token: the squared error, added up over dimensions, plus l1 times the sum of its features. Then the mean over tokens.

    back: what the decoder gives back for x
    """
    # >>> solution
    error = (x - back).pow(2).sum(1)
    return (error + l1 * features.sum(1)).mean()
    # <<< solution


# %% kind="check"
check(penalised_loss)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Two numbers a token. Features are never below zero, so their sum is their L1 norm.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# `.pow(2).sum(1)` for the error, `.sum(1)` for the features, `.mean()` at the end.
#
# </details>

# %% [markdown]
# Now train one. The text was written by the model itself. Position 0, the attention sink, is left out: it is 180 times as long as other streams and would
# be all that the loss sees. The data is centred and divided by one number, so that each of the 576 dimensions is of size 1 on average: a dictionary that gives
# back nothing has an error of about 576.

# %%
texts = ml.own_text(model, length=81)
data = ml.token_activations(model, texts[40:140], sae.hook)
test = texts[:8]  # for testing, never trained on
centre = data.mean(0)
scale = (data - centre).norm(dim=1).mean() / data.shape[1] ** 0.5
print(f"{len(data):,} tokens, {data.shape[1]} dimensions")

# %%
torch.manual_seed(0)
W_dec = torch.nn.functional.normalize(torch.randn(1152, 576), dim=1).to(data)
parts = [W_dec.T.clone(), data.new_zeros(1152), W_dec, data.new_zeros(576)]
W_enc, b_enc, W_dec, b_dec = (part.requires_grad_() for part in parts)
optimiser = torch.optim.Adam(parts, lr=2e-3)
for step in range(200):
    x = (data[torch.randint(len(data), (384,))] - centre) / scale
    f = ((x - b_dec) @ W_enc + b_enc).relu()
    error = (f @ W_dec + b_dec - x).pow(2).sum(1)
    loss = (error + 5 * f.sum(1)).mean()
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()
    with torch.no_grad():
        W_dec /= W_dec.norm(dim=1, keepdim=True)  # or longer rows would make the penalty cheap
    if step % 50 == 49:
        print(
            f"step {step + 1}: error {error.mean():.0f} of {x.pow(2).sum(1).mean():.0f}, {(f > 0).sum(1).float().mean():.0f} active"
        )
W_enc, b_enc, W_dec, b_dec = (part.detach() for part in parts)

# %% kind="assert"
assert error.mean() < 0.7 * x.pow(2).sum(1).mean() and 10 < (f > 0).sum(1).float().mean() < 40

# %% [markdown]
# The same size with the top-k rule, by the library (which also raises the step size at the start, lowers it at the end, and restarts silent features). Then both go
# through the test that counts, and the large one too.

# %%
by_l1 = ml.SparseAutoencoder(
    W_enc / scale, b_enc, W_dec * scale, b_dec * scale + centre, kind="standard", hook=sae.hook
)
by_topk = ml.train_sae(data, width=1152, k=16, steps=200, batch=384, hook=sae.hook).sae
reports = {"large": ml.splice(model, sae, test)}
for name, one in {"L1": by_l1, "top-k": by_topk}.items():
    reports[name] = ml.splice(model, one, test, beside=reports["large"])
for name, report in reports.items():
    print(f"{name}: {report}\n")
losses = {"nothing replaced": report.loss["intact"]} | {
    name: r.loss["spliced"] for name, r in reports.items()
}
losses |= {"its mean": report.loss["mean"], "zero": report.loss["zero"]}
ml.Scores(
    torch.tensor(list(losses.values())),
    ("in its place",),
    "next-token loss with the stream after layer 12 replaced (nats)",
    {"in its place": list(losses)},
    signed=False,
).plot(height=320)

# %% kind="assert"
assert 16 <= reports["L1"].active <= 40
assert reports["top-k"].active <= 16 < reports["L1"].active
assert reports["top-k"].unexplained < reports["L1"].unexplained - 0.05
claim(model, "loss recovered by the large dictionary", reports["large"].recovered, says=0.94, within=0.02)

# %% [markdown]
# Read the three lines. Each has eight numbers. Three are the same for all: the loss of the intact model, and its loss with the activation's mean, or zeros, in
# the activation's place. (Position 0 is never replaced.) The other five:
#
# - **active**, also called L0: how many features a token uses. Compare dictionaries at equal L0 only: the more may be active, the easier the rest.
# - **unexplained variance**: how much of the activation is not rebuilt.
# - **spliced**: the model's loss when the reconstruction replaces the activation. That is the **splice check**.
# - **recovered**: 1 when nothing is lost, 0 when it is as bad as the mean of the activation. Against *zero* ablation the same number would flatter.
# - **silent**: the share of features that were active on none of these tokens. Features that never become active again in training are **dead**.
#
# With fewer active features top-k rebuilds more, and loses less. Likely reasons: **shrinkage** (the penalty charges for every bit of activity, so all activities
# come out too small), too few steps for the L1 version, and the library's better training. We did not separate them. (Both saw 8,000 tokens. Published
# dictionaries see billions.)
#
# ### Exercise 26.3 What is left unexplained
#
# Difficulty 2 of 5 · 5 minutes · needs nothing


# %% kind="exercise" id="26.3"
@exercise("26.3")
def unexplained(x: Float[Tensor, "token d_in"], back: Float[Tensor, "token d_in"]) -> Float[Tensor, ""]:
    """The squared error, over all tokens and dimensions, as a share of the squared distance of x from its mean over tokens.

    back: what the decoder gives back for x
    """
    # >>> solution
    return (x - back).pow(2).sum() / (x - x.mean(0)).pow(2).sum()
    # <<< solution


# %% kind="check"
check(unexplained)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Two sums of squares, one divided by the other. What would you get for always answering with the mean?
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# `x.mean(0)` is the mean over tokens: one number for each dimension.
#
# </details>

# %% [markdown]
# Why leave out position 0? Here is a dictionary that knows nothing but the attention sink. It rebuilds position 0, and says "the mean" everywhere else:

# %%
with torch.no_grad():
    _, cache = model.run_with_cache(test, names_filter=sae.hook, stop_at_layer=13)
stream = cache[sae.hook]
back = stream[:, 1:].mean((0, 1)).expand_as(stream).clone()
back[:, 0] = stream[:, 0]
share = lambda x, back: ((x - back).pow(2).sum() / (x - x.mean((0, 1))).pow(2).sum()).item()
print(
    f"unexplained, all positions: {share(stream, back):.4f}; without position 0: {share(stream[:, 1:], back[:, 1:]):.2f}"
)

# %% kind="assert"
claim(model, "unexplained with the sink", share(stream, back), says=0.001, within=0.001)
assert abs(share(stream[:, 1:], back[:, 1:]) - 1) < 1e-3

# %% [markdown]
# It explains 99.9 % of the variance, and knows nothing about any token but the first. Ask of every such figure which positions are in it.
#
# ## Predict: does the model still know its facts?
#
# The large dictionary recovers 0.94 of the loss. Eight facts, such as "The capital of France is": the intact model gives the answer a mean
# probability of 0.8. What is it with the reconstruction spliced in?

# %% kind="predict"
predict("26.p", 0.5)

# %%
import pandas as pd

facts = pd.read_csv(ml.reference.data_dir() / "prompts" / "attribution.csv").query("kind == 'fact'")


def random_error(x, hook):
    """At each token an error as long as the dictionary's, in a random direction."""
    length = (x - sae.decode(sae.encode(x))).norm(dim=-1, keepdim=True)
    length[:, 0] = 0  # position 0 stays as it is
    return x + length * torch.nn.functional.normalize(torch.randn_like(x), dim=-1)


torch.manual_seed(0)
rows = []
for prompt, answer in zip(facts.prompt, facts.answer, strict=True):
    one = model.to_tokens(prompt)
    right = model.to_single_token(" " + answer)
    row = {"prompt": prompt, "answer": answer}
    for name, hooks in {
        "intact": [],
        "spliced": ml.splice_hooks(model, sae),
        "random error": [(sae.hook, random_error)],
    }.items():
        with torch.no_grad(), ml.intervene(model, hooks):
            row[name] = model(one)[0, -1].softmax(-1)[right].item()
    rows.append(row)
known = pd.DataFrame(rows).round(2)
known

# %% kind="assert"
print(f"mean probability: {known.intact.mean():.2f} intact, {known.spliced.mean():.2f} spliced")
claim(model, "probability of the fact, intact", known.intact.mean(), says=0.79, within=0.05)
claim(model, "probability of the fact, spliced", known.spliced.mean(), says=0.12, within=0.05)
claim(model, "probability of the fact, random error", known["random error"].mean(), says=0.49, within=0.1)
assert 3 < known["random error"].mean() / known.spliced.mean() < 5
claim(
    model,
    "rise of the loss",
    reports["large"].loss["spliced"] - reports["large"].loss["intact"],
    says=0.4,
    within=0.05,
)
reveal("26.p", known.spliced.mean())

# %% [markdown]
# The average loss rises by 0.4 nats, and most of the facts' probability is gone: 0.79 falls to 0.12. Is that just what an error of this size does? No: with an error
# of the same length in a random direction the mean is 0.49, about four times as much. What the dictionary leaves out is not spread evenly; it hits what the facts need. **It
# rebuilds most of the stream, and does not preserve what the model does with it.**
#
# **Question 26.a.** A dictionary leaves 16 % of the variance unexplained, so it explains 84 %, and it recovers 94 % of the loss. You want to use it to explain how the model recalls capitals. What do you do first?
#
# - **a** 84 % of the variance is most of what there is. Go on.
# - **b** 94 % of the loss is the number that matters. Go on.
# - **c** Measure the capitals, spliced and intact.

# %% kind="quiz"
quiz("26.a", "c")

# %% [markdown]
# ## A feature, from its inputs and outputs
#
# To know where a feature is active, texts must be run through the dictionary. For the large one this was done beforehand, with 400 texts. A page shows where the feature is loudest,
# and also some quieter places, drawn evenly from the rest. It lists the tokens that the feature's direction raises and lowers. Last comes an
# intervention: which next tokens become less likely when the feature is removed where it is loudest.

# %%
activity = ml.Activity.load(ml.reference.data_dir() / "sae" / "smollm2_layer12" / "activity.safetensors")
page = ml.feature_page(model, sae, activity, 778)
page

# %% kind="assert"
assert all("wine" in token.lower() for _, token, _, _ in page.examples)
assert not any("wine" in token.lower() for _, token, _, _ in page.quieter)
assert not any("wine" in token.lower() for token, _ in page.raises)
claim(model, "largest fall of a next token without 778", page.needed[0][1], says=-0.02, within=0.009)

# %% [markdown]
# The loudest places are all "wine". The quieter ones are mostly not about wine. The direction raises no word that has to do with wine.
#
# **Question 26.b.** What may explain that?
#
# - **a** The dictionary is wrong about this feature.
# - **b** Other layers read the direction before the output does. The list skips them.
# - **c** The feature has no meaning.

# %% kind="quiz"
quiz("26.b", "b")

# %% [markdown]
# And the intervention, the page's last line? Taken out at its six loudest places, the feature makes no next token less likely by more than about 0.02 on
# average. Its inputs are clear; its effect there is small.
#
# Two features, 778 and 960, are active on "wine" every time (the next cell checks it). A dictionary is not a list of one feature a word.
#
# Browse. Type a word to find features that are active on it, or draw one at random: those that nobody picked are the honest sample. Write down a name for three
# random ones before you go on. How many could you name?

# %%
from mechlab.pictures.widgets import feature_browser

print("features active on wine, with their mean strength:", activity.on_word(model, "wine", k=3))
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
# Feature 1209 is loudest on a hyphen after a number: a "17-member" team, a "5-year" treaty. Multiply it by 0, −1 and −2, and read what comes next (times 1 is the unchanged model). The control: a
# push as long, in ten random directions.

# %%
base = model.to_tokens("The government has just approved a new 5-")
year, rows, pushed = model.to_single_token("year"), {}, {}
directions = torch.nn.functional.normalize(
    torch.randn(10, 576, generator=torch.Generator().manual_seed(0)), dim=1
).to(sae.W_dec)


def random_pushes(times):
    """As long as the feature's change, in ten directions, one for each row of the batch."""

    def write(x, hook):
        old = sae.encode(x)[..., 1209, None]
        old[:, 0] = 0
        return x + (times - 1) * old * directions[:, None]

    return [(sae.hook, write)]


for times in (1, 0, -1, -2):
    with torch.no_grad(), ml.intervene(model, ml.feature_hooks(model, sae, 1209, times=times)):
        p = model(base)[0, -1].softmax(-1)
    with torch.no_grad(), ml.intervene(model, random_pushes(times)):
        others = model(base.repeat(10, 1))[:, -1].softmax(-1)[:, year]
    best = p.topk(5)
    rows[f"times {times}"] = [
        f"{model.to_string(i)!r} {v:.2f}" for v, i in zip(best.values, best.indices, strict=True)
    ]
    pushed[times] = {"'year'": p[year], "random, lowest": others.min(), "random, highest": others.max()}
    pushed[times] = {what: value.item() for what, value in pushed[times].items()}
pd.DataFrame(rows)

# %%
pushed = pd.DataFrame(pushed).T.rename_axis("times").round(3)
pushed

# %% kind="assert"
claim(model, "year with the feature", pushed.loc[1, "'year'"], says=0.27, within=0.03)
claim(model, "year without", pushed.loc[0, "'year'"], says=0.2, within=0.03)
claim(model, "year at -1", pushed.loc[-1, "'year'"], says=0.04, within=0.02)
claim(model, "year at -1, lowest of random", pushed.loc[-1, "random, lowest"], says=0.08, within=0.04)
assert pushed.loc[0, "random, lowest"] < pushed.loc[0, "'year'"] < pushed.loc[0, "random, highest"]
assert pushed.loc[-2, "'year'"] < pushed.loc[-2, "random, lowest"]

# %% [markdown]
# Removing it (times 0) takes "year" from 0.27 to 0.20, and random pushes of that length do as much. So nothing is shown. At −1 "year" falls to 0.04, below
# all ten random ones (0.08 at the lowest): now the direction matters. But −1 is a value that the feature never has. A large push shows what a
# direction *can* do, not what the model uses it for.
#
# ## Steer with it
#
# Set a feature at every position but the first while the model writes. Feature 885 is active on food, 1471 on the sea; both read well. Does the model write about
# them? Controls: random directions, one for each text, as long as the features get (about 40), and twice as long. Counted: words on a list, in 24 texts of 12
# tokens.

# %%
WORDS = {
    885: " food eat eating cook cooking taste dish dishes meal meals delicious recipe flavor flavors ingredients restaurant chef cuisine",
    1471: " sea seas ocean oceans water beach wave waves ship boat fish island coast shore swim marine sail",
}
ids = {
    n: {model.to_tokens(" " + w, prepend_bos=False)[0, 0].item() for w in words.split()}
    for n, words in WORDS.items()
}
start = model.to_tokens("I think that the best thing in the world is").repeat(24, 1)


def written(hooks):
    """What the model writes with these hooks on: [24, 12] tokens."""
    torch.manual_seed(0)
    with torch.no_grad(), ml.intervene(model, hooks):
        out = model.generate(
            start, max_new_tokens=12, do_sample=True, temperature=0.8, verbose=False, stop_at_eos=False
        )
    return out[:, start.shape[1] :]


def words_in(out):
    return {feature: sum(int(i) in words for i in out.flatten()) for feature, words in ids.items()}


# %%
push = torch.randn(24, 1, 576, generator=torch.Generator().manual_seed(0)).to(sae.W_dec)
push = torch.nn.functional.normalize(push, dim=-1)


def pushed_by(length):
    """Each text in a random direction of its own, at every position but the first (later, a new token comes alone)."""
    skip = lambda x: int(x.shape[1] > 1)
    return [(sae.hook, lambda x, hook: torch.cat([x[:, : skip(x)], x[:, skip(x) :] + length * push], 1))]


counts = {
    "plain": words_in(written([])),
    "random directions": words_in(written(pushed_by(40))),
    "random, twice as long": words_in(written(pushed_by(80))),
}
for feature, times in ((885, 1), (1471, 1), (1471, 2)):
    text, position, most = activity.loudest(feature, 8)
    print(
        feature,
        "is loudest on",
        [model.tokenizer.decode([t]) for t in activity.texts[text, position].tolist()],
    )
    out = written(ml.feature_hooks(model, sae, feature, value=times * most[0].item()))
    counts[f"{feature} at {times} times its most"] = words_in(out)
    print(f"   it writes: {model.tokenizer.decode(out[0].tolist())!r}")
steering = pd.DataFrame(counts).T.rename(columns={885: "words about food", 1471: "words about the sea"})
steering

# %% kind="assert"
assert all(35 < activity.loudest(n, 1)[2][0] < 45 for n in ids)  # as long as the control
food, sea = steering["words about food"], steering["words about the sea"]
claim(model, "words about food, steered", food["885 at 1 times its most"], says=12, within=6)
claim(
    model, "words about the sea, steered at twice its most", sea["1471 at 2 times its most"], says=4, within=2
)
claim(model, "words about the sea, random, twice as long", sea["random, twice as long"], says=0, within=1)
assert (
    food.drop("885 at 1 times its most").max() <= 1
    and sea.max() <= 6
    and sea["1471 at 1 times its most"] <= 2
)

# %% [markdown]
# Food works: 12 of the words, against one at most without it. The sea does not at the strength that its feature reaches by itself, and hardly at twice that (4
# words; random pushes of that length give none), although its loudest places are as clean. **A feature that reads well need not steer well.** And a dozen words in 24 texts is a push, not control: notebook 32 measures what steering costs, and compares
# it with simply asking.
#
# ## How it misleads
#
# **A name from the loudest places is too narrow.** Feature 93 is loudest on "York", "Paris", "Berlin": a feature for cities? Test it where it should be silent.

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
# On all twelve states too (mean 30, where cities have 38). More weakly on most countries and companies (10 and 12), and on some first names (2). Not "cities", and
# not "places" either. The loudest
# places show one end of a feature; only words on which it *should* be silent test a name.
#
# **A random model has clean features too.** The same model with random weights has learned nothing. Train a dictionary on it, with the same text:

# %%
stranger = ml.random_weights(model)
noise = ml.token_activations(stranger, texts[40:140], sae.hook)
of_noise = ml.train_sae(noise, width=1152, k=16, steps=200, batch=384, hook=sae.hook).sae
noise_activity = ml.feature_activity(stranger, of_noise, texts[40:70])
loudest = noise_activity.feature[noise_activity.activation.argsort(descending=True)].tolist()
for feature in list(dict.fromkeys(loudest))[:3]:
    print(f"\nFeature {feature} of the random model")
    for before, token, after, strength in ml.feature_page(
        stranger, of_noise, noise_activity, feature, k=5
    ).examples:
        print(f"  {strength:4.1f} {before}[{token}]{after}".replace("\n", " "))

# %% kind="assert"
top = list(dict.fromkeys(loudest))[:3]
assert all(noise_activity.loudest(feature, 5)[0].unique().numel() == 1 for feature in top)

# %% [markdown]
# At first sight each looks like one clear topic. So a model that has learned nothing has features with clear names. But look where the lines come from.
# Random attention probably gives the tokens of one text a direction in common, and the dictionary finds the texts. Count: from how many texts
# do the 20 loudest places of a feature come? (For features that are active on at least 20 tokens.)

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
control

# %% kind="assert"
claim(
    model,
    "features of one text, random weights",
    control.loc["random weights", "all 20 in one text"],
    says=0.8,
    within=0.1,
)
claim(
    model,
    "features of one text, the model",
    control.loc["the model", "all 20 in one text"],
    says=0.01,
    within=0.02,
)

# %% [markdown]
# With random weights 80 % of the features have all 20 loudest places in a single text; of the model's own, 1 %. The model's features come back in other texts. **Without this
# control the clean features of the random model would have passed for a discovery.**
#
# **Another start, other features.** Train the small one again with another seed. How many features come back, that is, have a partner with a cosine
# above 0.7?
#
# ### Exercise 26.5 Shared features
#
# Difficulty 2 of 5 · 5 minutes · needs nothing


# %% kind="exercise" id="26.5"
@exercise("26.5")
def shared(
    A: Float[Tensor, "feature_a d_in"], B: Float[Tensor, "feature_b d_in"], threshold: float
) -> Float[Tensor, ""]:
    """The share of directions (rows) of A that have a partner in B: a row with a cosine above the threshold. Rows may have any length."""
    # >>> solution
    A = A / A.norm(dim=1, keepdim=True)
    B = B / B.norm(dim=1, keepdim=True)
    return ((A @ B.T).max(1).values > threshold).float().mean()
    # <<< solution


# %% kind="check"
check(shared)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# All cosines are one matrix product of rows that have length 1. What do you take from each row of it?
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# `(A @ B.T).max(1).values` is the best partner of each row of A.
#
# </details>


# %% kind="wrong" id="26.5" expects="best partner"
@exercise("26.5")
def shared(A, B, threshold):
    A, B = A / A.norm(dim=1, keepdim=True), B / B.norm(dim=1, keepdim=True)
    n = min(len(A), len(B))
    return ((A[:n] * B[:n]).sum(1) > threshold).float().sum() / len(A)


# %%
again = ml.train_sae(data, width=1152, k=16, steps=200, batch=384, seed=1, hook=sae.hook).sae
best = (by_topk.W_dec @ again.W_dec.T).max(1).values
chance = (
    (by_topk.W_dec @ torch.nn.functional.normalize(torch.randn(1152, 576), dim=1).to(best).T).max(1).values
)
print(
    f"cosine with the best partner: mean {best.mean():.2f}; above 0.7: {(best > 0.7).float().mean():.1%} of the features"
)
curves = torch.stack([one.sort(descending=True).values[::36] for one in (best, chance)])
labels = {
    "in": ["another start", "random directions"],
    "features, best first": [str(n) for n in range(0, 1152, 36)],
}
ml.Scores(curves, ("in", "features, best first"), "cosine with the best partner", labels, signed=False).plot(
    lines=True, height=340
)

# %% kind="assert"
rebuilt = [share(stream[:, 1:], one.decode(one.encode(stream[:, 1:]))) for one in (by_topk, again)]
print("unexplained:", rebuilt)
assert abs(rebuilt[0] - rebuilt[1]) < 0.02
claim(model, "share of features that come back", (best > 0.7).float().mean(), says=0.001, within=0.005)
claim(model, "cosine with the best partner", best.mean(), says=0.36, within=0.05)
claim(model, "cosine with the best random direction", chance.mean(), says=0.14, within=0.03)

# %% [markdown]
# Equally good dictionaries. Partners are closer than random directions (0.36 against 0.14), so it is not noise, but only one feature in a thousand comes back. Ours are small and trained briefly. But the large one,
# trained again from another start with twenty times the tokens and 15 times the steps, has the same loss too (2.66 and 2.65, on 40 texts), and shares 0.12 of its features, by
# the same limit (`python data/make/dictionary.py again`). So do not speak of *the* features of a model.
#
# **Size decides what counts as one feature.** In a larger dictionary one feature often becomes several narrower ones: **feature splitting** (Bricken et al. 2023).
# And where a narrow feature speaks, a general one may stay silent although it holds: **absorption** (Chanin et al. 2024). Then even a feature with a right name
# misses places. We measured neither here.
#
# ## Published dictionaries
#
# With a GPU and a network, try the one that EleutherAI trained for this model: 36,864 features for the output of an MLP. (They also published dictionaries of
# a model with random weights, for the same control as above.)

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

# %%
mine = {
    "loss recovered, against zero ablation": (
        reports["large"].loss["zero"] - reports["large"].loss["spliced"]
    )
    / (reports["large"].loss["zero"] - reports["large"].loss["intact"]),
    "loss recovered, against the mean": reports["large"].recovered,
    "mean probability of eight facts, spliced": known.spliced.mean(),
    "share of features that another seed finds": (best > 0.7).float().mean().item(),
}
ml.reference.table("26", mine)

# %% [markdown]
# | term | in one line | `mechlab` |
# |---|---|---|
# | sparse autoencoder | a dictionary that writes an activation as a sum of few directions | `ml.train_sae`, `ml.SparseAutoencoder` |
# | L0 | how many features are active for a token | `splice(...).active` |
# | splice check | the model's loss with the reconstruction in place of the activation | `ml.splice` |
# | feature page | where a feature is active, what its direction raises, what is missing without it | `ml.feature_page` |
# | shrinkage | an L1 penalty makes all activities too small | |
# | feature splitting | one feature of a small dictionary is several narrower ones in a larger one | |
# | absorption | a general feature stays silent where a narrower one speaks | |
#
# Papers: Bricken et al. 2023; Cunningham et al. 2023; Gao et al. 2024 (top-k); Karvonen et al. 2025 (SAEBench: better scores of this kind do not reliably
# make a dictionary more useful). Next: notebook 31 changes what the model does.
