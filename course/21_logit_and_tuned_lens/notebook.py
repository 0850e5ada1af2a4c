# %% [markdown]
# # 21 Logit lens and tuned lens
#
# **Question:** what would the model say if it stopped after this layer?
#
# After this notebook you will be able to
#
# - read any residual stream as a prediction of the next token,
# - fit a map that makes the reading fair to early layers, and measure how fair,
# - say what such a reading shows, and check whether the model uses what it shows.
#
# Time: 75 minutes. The cells take about 60 seconds in all. Memory: 2.0 GB.
# Download: none, once the model is here (93 MB). Before: notebooks 02 and 03.

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
# ## By hand
#
# A norm, a matrix: that is all. Each stream is divided by its own root mean square.

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
# ### Exercise 21.1 The logit lens
#
# Difficulty 1 of 5 · 5 minutes · needs the cell above


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
# ## The reading is at fault
#
# Early streams are written in another coordinate system than the last one: other directions are large, other means. The
# **tuned lens** (Belrose et al. 2023) first carries a stream over with an affine map, one for each layer: x becomes x + xA + b. Here x
# is the stream divided by its root mean square, and the result should resemble the last stream, divided likewise. We fit by
# **least squares**: A and b are chosen so that the squared differences, added up over all training tokens, are as small as possible. (The
# library adds a small penalty on a large A.) The model wrote the texts itself; the first four positions of each, near the attention sink, are left out.

# %%
texts = ml.own_text(model, length=81, count=100)
test, train = texts[:6], texts[40:]
small = ml.TunedLens.fit(model, train)
lens = ml.TunedLens.load(ml.reference.data_dir() / "lens" / "smollm2.safetensors")
print(f"fitted here on {train[:, 4:].numel()} tokens; the one in data/ on 81,620, by the same function")

# %%
some = [0, 6, 12, 18, 21, 24, 27, 30]
quality = {
    name: ml.lens_quality(model, test, lens=fitted, layers=some)
    for name, fitted in (("logit lens", None), ("tuned, here", small), ("tuned, data/", lens))
}
kl = torch.stack([found.kl.values for found in quality.values()])
labels = {"lens": list(quality), "layer": [str(layer) for layer in some[1:]]}
name = "KL to the model's last layer (nats)"
ml.Scores(kl[:, 1:], ("lens", "layer"), name, labels, signed=False).plot(height=280)

# %% kind="assert"
claim(model, "KL of the logit lens at layer 12", kl[0, 2], says=18.2, within=1)
claim(model, "KL of the tuned lens at layer 12", kl[2, 2], says=2.6, within=0.2)
claim(model, "KL of the one fitted here, layer 12", kl[1, 2], says=3.0, within=0.2)
claim(model, "KL of the tuned lens at layer 24", kl[2, 5], says=0.9, within=0.15)
claim(model, "KL of the logit lens at layer 0", kl[0, 0], says=109, within=5)
equal = torch.tensor(model.cfg.d_vocab).log()
claim(model, "nats of an equal share for each token", equal, says=10.8, within=0.05)
claim(model, "training tokens, data/ beside here", 81620 / train[:, 4:].numel(), says=18, within=0.5)
assert (kl[2, :-1] < kl[1, :-1]).all() and (kl[1, :-1] < kl[0, :-1]).all() and kl[:, -1].abs().max() < 1e-3
assert (kl[2].diff() < 0).all()

# %% [markdown]
# KL is the number of nats by which one is misled when one believes the lens instead of the model. At layer 12 the logit lens is 18.2 nats
# off, worse than saying that all 49,152 tokens are equally likely (that costs at most ln 49,152 = 10.8). At layer 0, not shown, it is 109
# off. The tuned lens from data/ is 2.6 off at layer 12 and 0.9 at layer 24, closer with every column; the one fitted here, on eighteen times fewer
# tokens, is 3.0 off at layer 12. So the early streams hold more than the logit lens shows. How much of it the map itself brings along is asked at the end.
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
# Now ask again where " Paris" comes from. The picture has log10(rank + 1): 0 is first place, 1 the tenth, 2 the hundredth.

# %%
tuned = ml.logit_lens(model, base, " Paris", lens=lens)
both = torch.stack([(raw.values + 1).log10(), (tuned.values + 1).log10()])
labels = {"lens": ["logit lens", "tuned lens"]}
ml.Scores(both, ("lens", "layer"), "log10(rank + 1) of Paris", labels, signed=False).plot(lines=True)

# %% kind="assert"
claim(
    model,
    "first layer with Paris in front, tuned lens",
    int((tuned.values == 0).nonzero()[0]),
    says=24,
    within=0,
)
claim(model, "rank of Paris on entering layer 20, tuned", tuned.values[20], says=70, within=40)
claim(model, "rank of Paris on entering layer 23, tuned", tuned.values[23], says=2, within=2)
claim(model, "rank of Paris on entering layer 24, logit lens", raw.values[24], says=312, within=60)

# %% [markdown]
# Read fairly, Paris is in front on entering layer 24, four layers earlier. From about rank 70 on entering layer 20 it climbs to the top on
# entering layer 24, where the logit lens still has it at rank 312. Move the slider:

# %%
from mechlab.pictures.widgets import lens_explorer

lens_explorer(model, base, {"logit lens": None, "tuned lens": lens}, entry=24)

# %% [markdown]
# The running example, by the tuned lens. Two names compete, and the wrong one is ahead of the right one for long:

# %%
story = model.to_tokens("When John and Mary went to the store, John gave a drink to")
mary, john = (ml.logit_lens(model, story, name, lens=lens).values for name in (" Mary", " John"))
print("entering layer:", list(range(18, 31)))
print("rank of Mary:  ", mary[18:].int().tolist())
print("rank of John:  ", john[18:].int().tolist())

# %% kind="assert"
assert (john[10:24] < mary[10:24]).all() and (mary[24:] == 0).all()
claim(model, "rank of John on entering layer 23", john[23], says=3, within=2)
claim(model, "rank of Mary on entering layer 23", mary[23], says=10, within=5)

# %% [markdown]
# On entering layers 10 to 23 the lens ranks " John", the name that was there twice, above " Mary"; at the end 3 against 10. Layer 23 turns
# it. Notebook 12 found the same without a map, on sixteen sentences: what is written up to layer 22 speaks for the wrong name, and head
# 23.3 pushes it down. (Both read with the same unembedding, so they are not quite independent.)
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
# A lens shows what can be read. Whether the model reads it needs an intervention. Take the direction along which the tuned
# lens tells Paris from Berlin, remove it from the stream at the last position, at one layer, and let the model go on.

# %%
berlin = ml.single_token(model, " Berlin")
metric = ml.logit_difference(paris, berlin)
seen = model.W_U[:, paris].detach() - model.W_U[:, berlin].detach()
generator = torch.Generator().manual_seed(0)


def without(layer, direction):
    # taken out on leaving layer - 1, that is, on entering `layer`
    hooks = ml.direction_hooks(model, direction, [layer - 1], positions=[base.shape[1] - 1])
    with torch.no_grad(), ml.intervene(model, hooks):
        return metric(model(base)).item()


rows = [12, 20, 22, 23, 24, 25, 26, 28]
# (x + xA + b) · seen = x · (seen + A seen) + b · seen: the lens reads x along seen + A seen
along = [without(layer, seen + lens.weight[layer] @ seen) for layer in rows]
by_chance = [without(layer, torch.randn(model.cfg.d_model, generator=generator)) for layer in rows]
labels = {"removed": ["what the lens reads", "a random direction"], "layer": [str(layer) for layer in rows]}
after = torch.tensor([along, by_chance])
whole = metric(logits).item()
ml.Scores(
    after, ("removed", "layer"), "Paris minus Berlin, afterwards (logits)", labels, {"intact": whole}
).plot(lines=True)

# %% kind="assert"
claim(model, "Paris minus Berlin", whole, says=5.9, within=0.2)
claim(model, "without it on entering layer 23", after[0, 3], says=5.3, within=0.3)
claim(model, "without it on entering layer 24", after[0, 4], says=1.4, within=0.3)
claim(model, "without it on entering layer 25", after[0, 5], says=0.3, within=0.3)
claim(model, "without it on entering layer 28", after[0, 7], says=-1.8, within=0.4)
late = (streams[30] - streams[28]) @ seen / streams[30].pow(2).mean().sqrt()
claim(model, "written by layers 28 and 29, intact", late, says=-3.9, within=0.3)
assert (after[1] - whole).abs().max() < 0.2

# %% [markdown]
# Of 5.9 logits, 5.3 are left after a removal on entering layer 23, 1.4 on entering layer 24 and 0.3 on entering layer 25. A random
# direction, one for each layer, changes less than 0.2. (On entering layer 28 it is even −1.8: layers 28 and 29 write 3.9 logits against Paris, in
# the intact run too.) So from layer 24 on the model uses what the lens reads. On entering layer 23 the lens has Paris at rank 2 already,
# and removing it costs little: perhaps layer 23 brings the answer again from elsewhere. **Readable is not the same as used.**
#
# ## How it misleads
#
# **The map can know things that the stream does not hold.** On entering layer 0 the stream holds nothing but the last token. Yet the tuned
# lens there agrees with the model's own first choice at one position in four:

# %%
agreement = {name: found.agreement.values for name, found in quality.items()}
bias = {name: found.bias.values for name, found in quality.items()}
print("same likeliest token as the model, entering layer 0, 12, 24:")
for name in ("logit lens", "tuned, data/"):
    print(f"  {name}: " + ", ".join(f"{agreement[name][some.index(layer)]:.2f}" for layer in (0, 12, 24)))
print(f"bias at layer 12: logit lens {bias['logit lens'][2]:.1f}, tuned {bias['tuned, data/'][2]:.1f} nats")

# %% kind="assert"
claim(model, "agreement of the tuned lens at layer 0", agreement["tuned, data/"][0], says=0.26, within=0.03)
claim(model, "agreement of the tuned lens at layer 12", agreement["tuned, data/"][2], says=0.35, within=0.04)
claim(model, "agreement of the logit lens at layer 12", agreement["logit lens"][2], says=0.14, within=0.03)
claim(model, "agreement of the tuned lens at layer 24", agreement["tuned, data/"][5], says=0.59, within=0.04)
claim(model, "bias of the logit lens at layer 12", bias["logit lens"][2], says=8.6, within=0.5)
claim(model, "bias of the tuned lens at layer 12", bias["tuned, data/"][2], says=1.0, within=0.2)

# %% [markdown]
# The map has learned which token usually follows which: a table of pairs, in the map, not in the stream. What a lens says at layer 12, with an
# agreement of 0.35, must be held against that.
#
# **Bias** (not the b of the map) is what a lens says whatever the text. Average the lens' probabilities over all positions, and the model's too. At layer
# 12 the KL between the two averages is 8.6 nats for the logit lens, and 1.0 for the tuned lens.
#
# **Tied embeddings echo.** This model uses one matrix to read tokens and to write them (folding made a copy). So on entering layer 0 the logit
# lens mostly says the token it has just read: in the picture, the lowest row repeats four of the six tokens (not the begin token, and not " France").
#
# **One table proves little.** The picture at the top shows one prompt. Ranks and KL over many texts are the evidence.
#
# **Question 21.a.** A tuned lens reads " Berlin" in front at layer 15 for some prompt; the model ends with " Berlin". What follows?
#
# - **a** From layer 15 on the model uses its knowledge that the answer is Berlin.
# - **b** At layer 15 there is something from which Berlin can be read. Whether it is used takes an intervention.
# - **c** The layers above 15 are not needed for this prompt.

# %% kind="quiz"
quiz("21.a", "b")

# %% [markdown]
# ## Beside the papers

# %%
# the paper counts in bits: one bit is ln 2 = 0.6931 nats
mine = {
    "bias of the logit lens in middle layers (bits)": bias["logit lens"][2].item() / 0.6931,
    "bias of the tuned lens in middle layers (bits)": bias["tuned, data/"][2].item() / 0.6931,
    "KL of the tuned lens at layer 12 (nats)": kl[2, 2].item(),
    "first layer with Paris in front": int((tuned.values == 0).nonzero()[0]),
}
ml.reference.table("21", mine)

# %% [markdown]
# | term | in one line | `mechlab` | TransformerLens |
# |---|---|---|---|
# | logit lens | last norm and unembedding on an earlier stream | `ml.logit_lens`, `ml.lens_table` | `tools.analysis.logit_lens` |
# | tuned lens | the same after a fitted affine map | `ml.TunedLens` | `logit_lens(lens=...)` takes it |
# | KL, agreement, bias | how far a lens is from the model | `ml.lens_quality` | |
# | prediction depth | from where the first choice no longer changes | | |
#
# Papers: nostalgebraist 2020 (logit lens), Belrose et al. 2023 (tuned lens; trained on KL, which gets closer than least squares).
# Next: notebook 22 asks whether a property, not a token, is in the stream.
