# %% [markdown]
# # 21 Logit lens and tuned lens
#
# **Question:** what would the model say if it stopped after this layer?
#
# After this notebook you will be able to
#
# - read any residual stream as a prediction of the next token,
# - fit or train a map that makes the reading fair to early layers, and measure how fair on texts it has not seen,
# - tell what a reading owes to the prompt, and test whether the model uses it.
#
# Time: 90 minutes. The cells take about 70 seconds in all. Memory: 2.0 GB.
# Download: none, once the model is here (93 MB). Before: notebooks 02, 03 and 12.

# %% kind="setup"
# (written by the build)

# %% [markdown]
# ## The picture
#
# The last norm and the unembedding turn the last residual stream into words. Nothing stops us from handing them an earlier
# stream: that is the **logit lens**. Each cell shows the likeliest next token, read on entering the layer at its left (up)
# after the token below it (across). The colour is its probability. Layer 30 stands for the stream after the last layer, 29:

# %%
base = model.to_tokens("The capital of France is")
table = ml.lens_table(model, base, every=3)
table.plot(height=520, title="what the logit lens reads: probability of the likeliest token")

# %% kind="assert"
assert table.tokens[-1][-1] == "' Paris'"
assert not any("' Paris'" in row for row in table.tokens[:-2])
assert all(row[-1] in ("'.'", "' '") for row in table.tokens[1:-1])  # stops and blanks in the last column
echoed = [a == repr(b) for a, b in zip(table.tokens[0], model.to_str_tokens(base[0]), strict=True)]
assert echoed == [False, True, True, True, False, True]  # not the begin token, and not " France"

# %% [markdown]
# In the top row, last column, the model says " Paris". Three layers below there is no trace of it, only full stops and blanks.
# Does the model find Paris in its last three layers? Or is the reading at fault? This notebook answers both questions.
#
# ## Two exercises first
#
# A norm, a matrix: that is all the lens is. Write it, and a score to read it by.
#
# ### Exercise 21.1 The logit lens
#
# Difficulty 1 of 5 · 5 minutes · needs the RMS norm (notebook 02)


# %% kind="exercise" id="21.1"
@exercise("21.1")
def lens_logits(
    streams: Float[Tensor, "layer d_model"], W_U: Float[Tensor, "d_model d_vocab"]
) -> Float[Tensor, "layer d_vocab"]:
    """The logits that each stream would give if it were the last one.

    The last norm is an RMS norm without weights: it divides a stream by its own root mean square.
    """
    # >>> solution
    return streams / streams.pow(2).mean(-1, keepdim=True).sqrt() @ W_U
    # <<< solution


# %% kind="check"
check(lens_logits)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Streams grow along the layers. Each needs its own divisor.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# Root mean square of a row: square, mean over the last axis, root. Keep the axis, so that the division fits.
#
# </details>


# %% [markdown]
# ### Exercise 21.2 The rank of the answer
#
# Difficulty 1 of 5 · 5 minutes · needs nothing
#
# A top token hides how close the others are. The rank of the answer says more: 0 is first place.


# %% kind="exercise" id="21.2"
@exercise("21.2")
def ranks(logits: Float[Tensor, "layer d_vocab"], answer: int) -> Int[Tensor, "layer"]:
    """At each layer, how many tokens have a larger logit than `answer`."""
    # >>> solution
    return (logits > logits[:, answer, None]).sum(-1)
    # <<< solution


# %% kind="check"
check(ranks)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Count, in each row, the logits that are larger than the answer's.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# `logits[:, answer]` has one number a row. `logits[:, answer, None]` is a column that can be compared with every logit.
#
# </details>


# %% [markdown]
# ## By hand

# %%
with torch.no_grad():
    logits, cache = model.run_with_cache(base)
layers = model.cfg.n_layers
streams = torch.stack(
    [*(cache["resid_pre", layer][0, -1] for layer in range(layers)), cache["resid_post", layers - 1][0, -1]]
)
scaled = streams / streams.pow(2).mean(-1, keepdim=True).sqrt()
read = scaled @ model.W_U.detach()
paris = ml.single_token(model, " Paris")
print("rank of Paris, layers 24 to 30:", [int((row > row[paris]).sum()) for row in read[24:]])
raw = ml.logit_lens(model, base, " Paris")  # the same by the library, for all layers

# %% kind="assert"
assert (read[-1] - logits[0, -1]).abs().max() < 0.02
assert (raw.values == torch.tensor([float((row > row[paris]).sum()) for row in read])).float().mean() > 0.9
claim(
    model,
    "first layer with Paris in front, logit lens",
    int((raw.values == 0).nonzero()[0]),
    says=28,
    within=0,
)

# %% [markdown]
# ## The reading is at fault
#
# Early streams are written in another coordinate system than the last one: other directions are large, other means. So carry a stream over
# first with an affine map, one for each layer: x becomes x + xA + b. Here x is the stream divided by its root mean square. There
# are two ways to find A and b:
#
# - **Affine lens**: the result should resemble the last stream, divided likewise. **Least squares** makes the squared differences, added up
#   over all training tokens, as small as possible (Yom Din et al. 2023; our library adds a small penalty on a large A).
# - **Tuned lens**: the *answers* should resemble the model's own. Gradient descent makes their KL as small as possible (Belrose et al. 2023).
#
# `data/` holds an affine lens. Start from it and tune one layer, 12, for forty steps. The model wrote the texts itself; the first four
# positions of each, near the attention sink, are left out.

# %%
texts = ml.own_text(model, length=81, count=100)
test, train = texts[:12], texts[40:100]
affine = ml.AffineLens.load(ml.reference.data_dir() / "lens" / "smollm2.safetensors")
tuned = affine.tune(model, train, [12], steps=40, tokens=64)

# %% [markdown]
# **KL** is the number of nats by which one is misled when one believes the lens instead of the model (exercise 21.3).
# How much closer does tuning bring the lens, on the texts that it was tuned on and on new ones?

# %%
lenses = {"affine": affine, "tuned": tuned}
sides = {
    (name, side): ml.lens_quality(model, texts, lens=lens, layers=[12])
    for name, lens in lenses.items()
    for side, texts in (("tuned on", train[:6]), ("new", test))
}
twelve = {key: found.kl.values.item() for key, found in sides.items()}
for key, value in twelve.items():
    print(f"{key[0]:7} lens, texts: {key[1]:9} KL {value:.2f} nats")
gain = {side: twelve["affine", side] - twelve["tuned", side] for side in ("tuned on", "new")}

# %% kind="assert"
claim(model, "affine lens, new texts", twelve["affine", "new"], says=2.7, within=0.1)
claim(model, "gain on texts tuned on", gain["tuned on"], says=0.62, within=0.08)
claim(model, "gain on new texts", gain["new"], says=0.21, within=0.06)
closer = sides["affine", "new"].kl.per_prompt[:, 0] - sides["tuned", "new"].kl.per_prompt[:, 0]
claim(model, "new texts on which the tuned lens is closer", (closer > 0).sum(), says=10, within=1)
claim(model, "tokens tuned on", train[:, 4:].numel(), says=4620, within=0)

# %% [markdown]
# On the texts that it was tuned on, the lens comes closer by 0.62 nats; on new texts by 0.21, on ten of twelve. Two thirds of the gain were learned by
# heart, from 4,620 tokens. Belrose et al. tune on many millions, so this is their method in small, not their lens. **A lens is judged on texts that it
# has not seen.** (Try `texts[40:64]`: the gain there doubles nearly, and next to nothing of it is left on new texts.) Now all layers, without tuning:

# %%
some = [0, 6, 12, 18, 21, 24, 27, 30]
quality = {
    name: ml.lens_quality(model, test[:6], lens=lens, layers=some)
    for name, lens in (("logit lens", None), ("affine lens", affine))
}
kl = torch.stack([found.kl.values for found in quality.values()])
labels = {"lens": list(quality), "layer": [str(layer) for layer in some[1:]]}
name = "KL to the model's last layer (nats)"
ml.Scores(kl[:, 1:], ("lens", "layer"), name, labels, signed=False).plot(height=260)

# %% kind="assert"
claim(model, "KL of the logit lens at layer 12", kl[0, 2], says=18.2, within=1)
claim(model, "KL of the affine lens at layer 12", kl[1, 2], says=2.6, within=0.2)
claim(model, "KL of the affine lens at layer 24", kl[1, 5], says=0.9, within=0.15)
equal = torch.tensor(model.cfg.d_vocab).log()
claim(model, "nats of an equal share for each token", equal, says=10.8, within=0.05)
assert kl[0, 0] > 50 and (kl[1, :-1] < kl[0, :-1]).all() and kl[:, -1].abs().max() < 1e-3
assert (kl[1].diff() < 0).all()

# %% [markdown]
# At layer 12 the logit lens is 18.2 nats off, worse than saying that all tokens are equally likely (10.8). At layer 0, not shown, it is much
# worse still. The affine lens is 2.6 off at layer 12 and 0.9 at layer 24, closer with every column. So the early streams hold more than the
# logit lens shows. How much of it the map itself brings along is asked at the end.
#
# ### Exercise 21.3 KL
#
# Difficulty 2 of 5 · 10 minutes · needs nothing


# %% kind="exercise" id="21.3"
@exercise("21.3")
def kl_to_model(
    model_logits: Float[Tensor, "pos d_vocab"], lens_logits: Float[Tensor, "pos d_vocab"]
) -> Float[Tensor, "pos"]:
    """KL(model ‖ lens) at each position, in nats: the sum over tokens of p · (log p − log q).

    p: the model's probabilities; q: the lens'; log: the natural logarithm.
    """
    # >>> solution
    p, q = model_logits.log_softmax(-1), lens_logits.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)
    # <<< solution


# %% kind="check"
check(kl_to_model)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Both sets of logits must become log-probabilities first.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# With p and q the two log-probabilities: the sum over tokens of exp(p) · (p − q). The weights belong to the model.
#
# </details>


# %% [markdown]
# ### Exercise 21.4 Fit the map
#
# Difficulty 3 of 5 · 15 minutes · needs least squares, as above
#
# The map is xA + b here. That is no other family than x + xA + b: the added x is part of this A.


# %% kind="exercise" id="21.4"
@exercise("21.4")
def fit_affine(
    x: Float[Tensor, "token d_model"], y: Float[Tensor, "token d_model"]
) -> tuple[Float[Tensor, "d_model d_model"], Float[Tensor, "d_model"]]:
    """The matrix A and the bias b for which x @ A + b is closest to y: least squares, without a penalty."""
    # >>> solution
    ones = torch.ones(len(x), 1)
    solved = torch.linalg.lstsq(torch.cat([x, ones], dim=1), y).solution
    return solved[:-1], solved[-1]
    # <<< solution


# %% kind="check"
check(fit_affine)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# `torch.linalg.lstsq(x, y).solution` solves it without a bias. A bias is the weight of an input that is always 1.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# Put a column of ones beside x, solve, and split the solution: its last row is the bias. (Or take the means away first; then
# b = mean(y) − mean(x) @ A.)
#
# </details>


# %% kind="wrong" id="21.4" expects="no bias"
@exercise("21.4")
def fit_affine(x, y):
    return torch.linalg.lstsq(x, y).solution, torch.zeros(y.shape[1])


# %% kind="wrong" id="21.4" expects="together"
@exercise("21.4")
def fit_affine(x, y):
    A = torch.linalg.lstsq(x, y).solution
    return A, (y - x @ A).mean(0)


# %% kind="wrong" id="21.4" expects="from y to x"
@exercise("21.4")
def fit_affine(x, y):
    solved = torch.linalg.lstsq(torch.cat([y, torch.ones(len(y), 1)], dim=1), x).solution
    return solved[:-1], solved[-1]


# %% kind="wrong" id="21.4" expects="transposed"
@exercise("21.4")
def fit_affine(x, y):
    solved = torch.linalg.lstsq(torch.cat([x, torch.ones(len(x), 1)], dim=1), y).solution
    return solved[:-1].T, solved[-1]


# %% [markdown]
# ## When does the model know?
#
# Now ask again where " Paris" comes from. The picture has log10(rank + 1): 0 is first place, 1 the tenth, 2 the hundredth. The third line
# is a control: the same word, when the capital of *Germany* is asked for.

# %%
other = model.to_tokens("The capital of Germany is")
read = {
    "logit lens": raw,
    "affine lens": ml.logit_lens(model, base, " Paris", lens=affine),
    "affine lens, asked for Germany": ml.logit_lens(model, other, " Paris", lens=affine),
}
ranked = torch.stack([(found.values + 1).log10() for found in read.values()])
labels = {"lens": list(read)}
ml.Scores(ranked, ("lens", "layer"), "log10(rank + 1) of Paris", labels, signed=False).plot(lines=True)

# %% kind="assert"
fair, control = (read[name].values for name in list(read)[1:])
claim(
    model,
    "first layer with Paris in front, affine lens",
    int((read["affine lens"].values == 0).nonzero()[0]),
    says=24,
    within=0,
)
claim(model, "rank of Paris on entering layer 23", fair[23], says=2, within=2)
claim(model, "the same, asked for Germany", control[23], says=3, within=2)
peru = ml.logit_lens(model, model.to_tokens("The capital of Peru is"), " Paris", lens=affine).values
claim(model, "the same, asked for Peru", peru[23], says=10, within=4)
claim(model, "rank of Paris on entering layer 24, logit lens", raw.values[24], says=312, within=60)
assert control[30] > 3 and fair[30] == 0

# %% [markdown]
# Read fairly, Paris is in front on entering layer 24, four layers earlier than by the logit lens. But look at layer 23. Paris is at rank 2
# there, and at rank 3 when Germany is asked for (10 for Peru). What the lens reads before layer 24 is "some capital", and hardly which one.
# **Half of every reading is a control prompt**: what does the lens say where the answer is another? Move the slider:

# %%
from mechlab.pictures.widgets import lens_explorer

lens_explorer(model, base, {"logit lens": None, "affine lens": affine}, entry=24)

# %% [markdown]
# ### The running example: a wrong name in front?
#
# "When John and Mary went to the store, John gave a drink to": how far does the affine lens put " Mary" above " John"?


# %%
def leaning(tokens, right, wrong, at=-1):
    """Logit of the right answer minus the wrong one by the affine lens, [entry, prompt]."""
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens, names_filter=lambda name: "hook_resid" in name)
    ends = [*(cache["resid_pre", layer] for layer in range(layers)), cache["resid_post", layers - 1]]
    carried = torch.stack([affine(end[range(len(tokens)), at], entry) for entry, end in enumerate(ends)])
    contrast = (model.W_U[:, right] - model.W_U[:, wrong]).T.detach()
    return (carried / carried.pow(2).mean(-1, keepdim=True).sqrt() * contrast).sum(-1)


mary, john = (ml.single_token(model, name) for name in (" Mary", " John"))
sentence = "When John and Mary went to the store, {} gave a drink to"
as_usual = leaning(model.to_tokens(sentence.format("John")), [mary], [john])[:, 0]
print("Mary above John, entering layers 10 to 24:", [round(x, 1) for x in as_usual[10:25].tolist()])

# %% kind="assert"
assert (as_usual[8:24] < 0).all() and (as_usual[24:] > 5).all()
claim(model, "leaning on entering layer 23", as_usual[23], says=-1.2, within=0.2)

# %% [markdown]
# Up to layer 23 the lens puts John, who was named twice, *above* Mary. A story suggests itself: the model first leans to the repeated name,
# and layer 23 turns it. Notebook 12 met the same number without a map. Before you believe it: what would the story say if *Mary* gave the
# drink? Your guess for " John" minus " Mary" on entering layer 23:

# %% kind="predict"
predict("21.q", -1.2)

# %%
exchanged = leaning(model.to_tokens(sentence.format("Mary")), [john], [mary])[:, 0]
pairs = ml.ioi_prompts(model, 64)  # eight sentences, many names; in each pair either person is named again
both = leaning(pairs.tokens, pairs.io, pairs.s, pairs.positions["end"])
lines = torch.stack([as_usual, exchanged, both.mean(1)])
labels = {
    "prompt": ["John gave (answer Mary)", "Mary gave (answer John)", "32 pairs, roles exchanged in each"]
}
ml.Scores(lines, ("prompt", "layer"), "right name above the repeated one (logits)", labels).plot(lines=True)

# %% kind="compare"
reveal("21.q", round(exchanged[23].item(), 1))

# %% kind="assert"
from mechlab.statistics import estimate

claim(model, "roles exchanged, entering layer 23", exchanged[23], says=1.9, within=0.2)
early = estimate(both[23], pairs.pairs)
claim(model, "pairs, entering layer 23", early.mean, says=0.11, within=0.05)
claim(model, "its interval, low", early.low, says=0.04, within=0.05)
claim(model, "its interval, high", early.high, says=0.18, within=0.05)
assert both[:24].mean(1).abs().max() < 0.2  # either way, on entering any layer up to 23
claim(model, "pairs, entering layer 24", both[24].mean(), says=7.3, within=0.3)
peter = leaning(model.to_tokens(sentence.format("Peter")), [mary], [john])[:, 0]
claim(model, "Peter gave, entering layer 23", peter[23], says=-1.4, within=0.2)

# %% [markdown]
# <details><summary>What we saw</summary>
#
# The sign follows the *name*, not the role: 1.9 for John when Mary gave. With Peter as the giver, who is neither, it is −1.4 again. Averaged
# over 32 pairs that exchange the roles, 0.11 [0.04, 0.18] is left on entering layer 23, the interval over pairs, and less than 0.2 either way on entering any
# layer before. So nearly all that the lens read was a liking for John, or for men's names. Of who was repeated it reads next to nothing, until 7.3 logits arrive in layer 23. Notebook 12 tells how its own −1.5
# went the same way. Two readings that agreed were two looks at one imbalance.
#
# </details>
#
# ### Exercise 21.5 Prediction depth
#
# Difficulty 2 of 5 · 10 minutes · needs nothing


# %% kind="exercise" id="21.5"
@exercise("21.5")
def prediction_depth(tops: Int[Tensor, "layer"]) -> int:
    """The first layer from which the likeliest token no longer changes, up to the last.

    tops: the id of the likeliest token at each layer.
    """
    # >>> solution
    other = (tops != tops[-1]).nonzero()[:, 0]
    return int(other[-1]) + 1 if len(other) else 0
    # <<< solution


# %% kind="check"
check(prediction_depth)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Look for the last layer that says something else than the end.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# `(tops != tops[-1]).nonzero()[:, 0]` lists the layers that say something else. The answer is one after the last of them, or 0.
#
# </details>


# %% kind="wrong" id="21.5" expects="changes again"
@exercise("21.5")
def prediction_depth(tops):
    return int((tops == tops[-1]).nonzero()[0])


# %% kind="wrong" id="21.5" expects="still says something else"
@exercise("21.5")
def prediction_depth(tops):
    return int((tops != tops[-1]).nonzero()[-1])


# %% kind="wrong" id="21.5" expects="counts the layers"
@exercise("21.5")
def prediction_depth(tops):
    return int((tops == tops[-1]).sum())


# %% [markdown]
# ## Is it used?
#
# A lens shows what can be read. Whether it is *used* takes an intervention: change only what the lens reads, and see whether the answer
# follows. Not for one fact but for 22, in eleven couples of countries. In each stream the part along the direction that the lens reads gets the
# partner's value, on entering one layer, at the last position: for France what is read of "Paris rather than Berlin" becomes Germany's.

# %%
CAPITALS = (
    "France Paris Germany Berlin Italy Rome Japan Tokyo Russia Moscow England London Greece Athens China Beijing "
    "Cuba Havana Ireland Dublin Austria Vienna Poland Warsaw Iran Tehran Portugal Lisbon Norway Oslo Sweden "
    "Stockholm Finland Helsinki Peru Lima Kenya Nairobi Canada Ottawa Hungary Budapest Denmark Copenhagen"
).split()
facts = model.to_tokens([f"The capital of {country} is" for country in CAPITALS[::2]])
cities = torch.tensor([ml.single_token(model, f" {city}") for city in CAPITALS[1::2]])
partner = torch.arange(22).view(11, 2).flip(1).flatten()
W_U = model.W_U.detach()
contrast = (W_U[:, cities] - W_U[:, cities[partner]]).T  # one row a fact: its capital minus the partner's
metric = ml.logit_difference(cities, cities[partner])
run = ml.run_of(model, facts)  # kept, so that it can be taken up at any layer (notebook 41)
intact = run.value(metric)
to_go = -(intact + intact[partner])  # to the partner's answer

# %% [markdown]
# `reading` gives the direction: (x + xA + b) · c = x · (c + A c) + b · c. `follows` adds a change to the last token's stream on entering a layer, and says which
# share of the way to the partner's answer the model goes. With `direct`, the change is added after the last layer instead, just before norm and
# unembedding: this **direct effect** (notebook 12) needs no further layer to read anything.


# %%
def reading(layer, contrast):
    direction = contrast + contrast @ affine.weight[layer].T
    return direction / direction.norm(dim=-1, keepdim=True)


def follows(layer, change, direct=False):
    """Share of the way to the partner's answer, [copy, fact], after `change` [copy, fact, d_model]."""
    stream = run.at("resid_pre", layers if direct else layer)[:, -1] + change
    if direct:
        scaled = stream / stream.pow(2).mean(-1, keepdim=True).sqrt()
        return ((scaled * contrast).sum(-1) - intact) / to_go
    last = torch.arange(facts.shape[1]) == facts.shape[1] - 1
    put = ml.Put("resid_pre", layer, stream[:, :, None], last[None, None])
    return (run.edited(metric, [put]) - intact) / to_go


# %% [markdown]
# As a null we take directions of the same origin: what the lens reads of twenty *other* pairs of cities, such as Milan and Venice. Each pushes as far
# as the real swap did, in the direction of the partner. Your guess first: which share of the effect at layer 24 is direct?

# %% kind="predict"
predict("21.r", 0.5)

# %%
OTHERS = (
    " Madrid Cairo Baghdad Delhi Seoul Boston Chicago Sydney Toronto Milan Venice Munich Hamburg Barcelona Manchester "
    "Liverpool Dallas Houston Miami Seattle Denver Atlanta Philadelphia Detroit Mumbai Shanghai Istanbul Jerusalem "
    "Melbourne Montreal Vancouver Brussels Amsterdam Geneva Prague Edinburgh Glasgow Naples Florence Portland"
).split()
ids = torch.tensor([ml.single_token(model, f" {city}") for city in OTHERS]).view(20, 2)
elsewhere = (W_U[:, ids[:, 0]] - W_U[:, ids[:, 1]]).T
entries = [12, 20, 22, 23, 24, 25, 26, 27, 28]
found = {}
for layer in entries:
    gap = run.at("resid_pre", layer)[partner, -1] - run.at("resid_pre", layer)[:, -1]
    ours = reading(layer, contrast)
    swap = (gap * ours).sum(-1, keepdim=True) * ours
    null = reading(layer, elsewhere)[:, None]
    pushes = (gap * null).sum(-1, keepdim=True).sign() * null * swap.norm(dim=-1, keepdim=True)
    found[layer] = [
        follows(layer, part, direct) for part in (swap[None], pushes, gap[None]) for direct in (0, 1)
    ]

rows = ["what the lens reads", "its direct share", "other cities, largest of 20", "the whole stream"]

shares = torch.stack(
    [torch.stack([found[layer][k].mean(1).amax(0) for layer in entries]) for k in (0, 1, 2, 4)]
)
labels = {"changed": rows, "layer": [str(layer) for layer in entries]}
ml.Scores(shares, ("changed", "layer"), "share of the way to the partner's answer", labels).plot(lines=True)

# %% kind="compare"
reveal("21.r", round((found[24][1].mean() / found[24][0].mean()).item(), 2))

# %% kind="assert"
from mechlab.statistics import estimate

couples = torch.arange(22) // 2
mean = {layer: [part.mean().item() for part in found[layer]] for layer in entries}
later = estimate((found[24][0] - found[24][1])[0], couples)
claim(model, "swap at 24", mean[24][0], says=0.74, within=0.05)
claim(model, "its direct share", mean[24][1], says=0.56, within=0.05)
claim(model, "later layers", later.mean, says=0.18, within=0.05)
claim(model, "low", later.low, says=0.14, within=0.05)
claim(model, "high", later.high, says=0.21, within=0.05)
by_others = torch.stack([(found[24][2] - found[24][3]).mean(1), found[24][2].mean(1), found[24][3].mean(1)])
claim(model, "largest of 20 by later layers", by_others[0].max(), says=0.08, within=0.05)
claim(model, "largest of 20", by_others[1].max(), says=0.12, within=0.05)
claim(model, "swap at 28", mean[28][0], says=1.03, within=0.05)
claim(model, "direct at 28", mean[28][1], says=0.92, within=0.05)
claim(model, "whole stream at 24", mean[24][4], says=1.0, within=0.05)
claim(model, "whole stream at 23", mean[23][4], says=0.04, within=0.03)
claim(model, "swap at 23", mean[23][0], says=0.02, within=0.03)

# %% [markdown]
# <details><summary>What we saw</summary>
#
# On entering layer 24 the swap moves the output 0.74 of the way, and no other pair of cities more than 0.12. Is it used, then? Look at the direct
# effect: 0.56. Three quarters of the effect need no later layer: norm and unembedding read the change themselves. What later layers add is 0.18
# [0.14, 0.21], over couples; the largest of the twenty nulls adds 0.08. So later layers do use it, a little, for this one sentence and relation. On
# entering layer 28 the swap moves the output all the way, nearly all of it directly.
#
# </details>
#
# And before? On entering layer 23 even the *whole* stream of the partner moves the output only 0.04 of the way; one layer later, all of it. So whatever the last
# token's stream holds before layer 24, the answer hardly depends on it: layer 23 brings it from other positions. (That is not "the country cannot be read there": the check of the next exercise finds a trace.)
# What the lens read there, Paris at rank 2, was not the answer.
#
# ### Exercise 21.6 What the prompt says
#
# Difficulty 4 of 5 · 25 minutes · needs the two controls above
#
# Paris was high whatever the country, and John whoever gave. Design one number that says how much of a reading is owed to *the prompt at hand*. You
# get what a lens reads for several prompts of one kind, each with another answer. The check tries lenses that the notebook does not show, and then the
# affine lens on the 22 capitals. Many designs are right.


# %% kind="exercise" id="21.6"
@exercise("21.6")
def owed_to_prompt(logits: Float[Tensor, "prompt d_vocab"], answers: Int[Tensor, "prompt"]) -> float:
    """How much better each answer is read because of its own prompt, on average, in nats.

    0 for a lens that says the same whatever the prompt, even where it likes all the answers; more, the surer a lens
    is of each prompt's own answer; below 0 when it prefers the answers of other prompts.
    """
    # >>> solution
    read = logits.log_softmax(-1)[:, answers]  # [prompt, answer]: each answer at each prompt
    others = ~torch.eye(len(answers), dtype=torch.bool)
    return (read.diagonal().mean() - read[others].mean()).item()
    # <<< solution


# %% kind="check"
check(owed_to_prompt, model=model)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# How is " Paris" read for France? How for Germany? A table of every answer at every prompt holds all you need.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# `logits.log_softmax(-1)[:, answers]` is that table. On its diagonal each answer meets its own prompt. Take off what the same answer gets at the
# other prompts (or what the other answers get at this prompt), and average.
#
# </details>


# %% kind="wrong" id="21.6" expects="whatever the prompt"
@exercise("21.6")
def owed_to_prompt(logits, answers):
    return logits.log_softmax(-1)[range(len(answers)), answers].mean().item()


# %% kind="wrong" id="21.6" expects="constant"
@exercise("21.6")
def owed_to_prompt(logits, answers):
    read = logits[:, answers]
    first = read[0]
    return (read.diagonal() - first).mean().item()


# %% kind="wrong" id="21.6" expects="other prompts"
@exercise("21.6")
def owed_to_prompt(logits, answers):
    right = logits.argmax(-1)
    return ((right == answers).float().mean() - (right == answers.roll(1)).float().mean()).item()


# %% kind="wrong" id="21.6" expects="whatever the prompt"
@exercise("21.6")
def owed_to_prompt(logits, answers):
    read = logits.log_softmax(-1)[:, answers]
    return (read.amax(1) - read.mean(1)).mean().item()


# %% [markdown]
# ### Exercise 21.7 Readable, and not used
#
# Difficulty 4 of 5 · 25 minutes · needs `reading` and `follows`
#
# Find what the capitals did not show: two prompts that the affine lens tells apart on entering some layer, and swapping what it reads changes
# next to nothing. The check runs your prompts through the model: the output must tell them apart by 3 logits or more, the lens by 2 or more, and
# the swap must move the output by at most 0.1 of the way, in both directions. Both prompts end with the same token. There are many.


# %% kind="exercise" id="21.7"
@exercise("21.7")
def readable_not_used() -> tuple[str, str, str, str, int]:
    """Two prompts, the word that the first prefers, the word that the second prefers, and the layer entered."""
    # >>> solution
    return "She has one son and two", "She has one cat and two", " daughters", " dogs", 21
    # <<< solution


# %% kind="check"
check(readable_not_used, model=model)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# What the next word will be about is often clear long before the word itself is chosen. Think of a word in the middle of the prompt that sets the theme.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# Write two prompts that differ in one early word and end alike ("He wanted to eat, so he went to the"). Run both, and take two words that the output tells
# apart. Then print `ml.logit_lens(..., what="log_prob")` of both words for all layers, and try the layers from 15 to 22, where the lens begins to tell
# them apart.
#
# </details>


# %% kind="wrong" id="21.7" expects="notebook's own"
@exercise("21.7")
def readable_not_used():
    return "The capital of France is", "The capital of Germany is", " Paris", " Berlin", 23


# %% kind="wrong" id="21.7" expects="end with different tokens"
@exercise("21.7")
def readable_not_used():
    return "La mesa y la", "The table and the", " la", " the", 8


# %% kind="wrong" id="21.7" expects="used, or read directly"
@exercise("21.7")
def readable_not_used():
    return "She has one son and two", "She has one cat and two", " daughters", " dogs", 27


# %% kind="wrong" id="21.7" expects="The lens should read"
@exercise("21.7")
def readable_not_used():
    return "She has one son and two", "She has one cat and two", " daughters", " dogs", 3


# %% [markdown]
# ## How it misleads
#
# **The map can know things that the stream does not hold.** On entering layer 0 the stream holds nothing but the last token. Yet the affine
# lens there agrees with the model's own first choice at one position in four:

# %%
agreement = {name: found.agreement.values for name, found in quality.items()}
bias = {name: found.bias.values for name, found in quality.items()}
print("same likeliest token as the model, entering layer 0, 12, 24:")
for name in quality:
    print(f"  {name}: " + ", ".join(f"{agreement[name][some.index(layer)]:.2f}" for layer in (0, 12, 24)))
small = {name: sides[name, "new"].bias.values.item() for name in lenses}  # of the same twelve texts
print(f"bias at layer 12: logit lens {bias['logit lens'][2]:.1f} nats")
print(", ".join(f"{name} lens {value:.2f}" for name, value in small.items()))

# %% kind="assert"
claim(model, "agreement of the affine lens at layer 0", agreement["affine lens"][0], says=0.26, within=0.03)
claim(model, "agreement of the affine lens at layer 12", agreement["affine lens"][2], says=0.35, within=0.04)
claim(model, "bias of the logit lens at layer 12", bias["logit lens"][2], says=8.6, within=0.5)
claim(model, "bias of the affine lens at layer 12", small["affine"], says=0.83, within=0.1)
claim(model, "bias of the tuned lens at layer 12", small["tuned"], says=0.61, within=0.1)

# %% [markdown]
# The map has learned which token usually follows which: a table of pairs, in the map, not in the stream. What a lens says at layer 12, with an
# agreement of 0.35, must be held against that.
#
# **Bias** (not the b of the map) is what a lens says whatever the text. Average the lens' probabilities over all positions, and the model's too. At layer
# 12 the KL between the two averages is 8.6 nats for the logit lens, 0.83 for the affine lens and 0.61 for the tuned lens.
#
# **Tied embeddings echo.** This model uses one matrix to read tokens and to write them (folding made a copy). So on entering layer 0 the logit
# lens mostly says the token it has just read: in the picture, the lowest row repeats four of the six tokens (not the begin token, and not " France").
#
# **One table proves little.** The picture at the top shows one prompt. Ranks and KL over many texts are the evidence.
#
# **Question 21.a.** On a new task the lens tells the two answers apart by 8 logits on entering layer 26. Swapping what it reads moves the output
# 0.85 of the way, and twenty directions of other words move it by 0.1 at most. Which measurement could still kill "later layers use it"?
#
# - **a** Twenty isotropic random directions more.
# - **b** The same change, added after the last layer instead.
# - **c** The KL of the lens on entering layer 26.

# %% kind="quiz"
quiz("21.a", "b")

# %% [markdown]
# ## Beside the papers

# %%
# the paper counts in bits: one bit is ln 2 = 0.6931 nats
mine = {
    "bias of the logit lens in middle layers (bits)": bias["logit lens"][2].item() / 0.6931,
    "bias of the tuned lens in middle layers (bits)": small["tuned"] / 0.6931,
    "bias of the affine lens in middle layers (bits)": small["affine"] / 0.6931,
    "KL of the affine lens at layer 12 (nats)": twelve["affine", "new"],
    "KL of the tuned lens at layer 12 (nats)": twelve["tuned", "new"],
    "first layer with Paris in front, affine lens": int((read["affine lens"].values == 0).nonzero()[0]),
}
ml.reference.table("21", mine)

# %% [markdown]
# | term | in one line | `mechlab` | TransformerLens |
# |---|---|---|---|
# | logit lens | last norm and unembedding on an earlier stream | `ml.logit_lens`, `ml.lens_table` | `tools.analysis.logit_lens` |
# | affine lens | the same after a map fitted to the last stream | `ml.AffineLens.fit` | `logit_lens(lens=...)` takes it |
# | tuned lens | the same after a map trained on the model's answers | `ml.AffineLens.tune` | as above |
# | direct effect | what a change does without any later layer | | |
# | KL, agreement, bias | how far a lens is from the model | `ml.lens_quality` | |
# | prediction depth | from where the first choice no longer changes | | |
#
# Papers: nostalgebraist 2020 (logit lens), Yom Din et al. 2023 (maps by least squares), Belrose et al. 2023 (tuned lens; they start from the identity
# and train far longer).
# Next: notebook 22 asks whether a property, not a token, is in the stream.
