# %% [markdown]
# # 02 One forward pass by hand
#
# **Question:** can you recompute the model's answer yourself, from the weights alone?
#
# After this notebook you will be able to
#
# - write the norm, attention and MLP in a few lines each, and get the model's own numbers,
# - predict which tokens notice when one part is broken, and find the broken part by a few runs,
# - say where the parameters are, and what the norms do to large and small vectors,
# - turn logits into text, and know what folding and centring do before you trust a logit.
#
# Time: 110 minutes. The cells take about 30 seconds in all, and 20 seconds more, once, for the unfolded weights. Memory: 1.8 GB.
# Download: none, once the model is here (93 MB). Before: notebook 01.

# %% kind="setup"
# (written by the build)

# %% [markdown]
# ## The picture
#
# This is the answer that you will recompute: what the model expects after the running sentence.

# %%
prompt = "When John and Mary went to the store, John gave a drink to"
tokens = model.to_tokens(prompt)
with torch.no_grad():
    logits, cache = model.run_with_cache(tokens)
n_layers = model.cfg.n_layers
likely = logits[0, -1].softmax(-1).topk(8)
words = [repr(model.to_string([token])) for token in likely.indices.tolist()]
labels = {"next token": words}
ml.Scores(likely.values, ("next token",), "probability", labels, signed=False).plot(height=320)

# %% kind="assert"
assert words[0] == "' Mary'" or model.cfg.model_name != "smollm2"

# %% [markdown]
# ## One stream, many writers
#
# A transformer keeps one vector of 576 numbers for each token, the **residual stream**. Each of the 30 layers
# reads it, computes something, and *adds* the result: attention first, then the MLP. Nothing is ever overwritten.
# (A layer is also called a **block**; the MLP is explained in part 4.) So how long does the sum become, for an ordinary
# token, layer by layer? (The first token, the begin token, is left out: it is a story of its own, told below.)

# %%
length = torch.stack([cache["resid_post", layer][0].norm(dim=-1) for layer in range(n_layers)])
ordinary = length[:, 1:].median(1).values
grown = ml.Scores(ordinary, ("layer",), "length of the stream, median over tokens", signed=False)
grown.plot(height=320)

# %% kind="assert"
claim(model, "length for ordinary tokens after layer 0", ordinary[0], says=44, within=1)
claim(model, "length for ordinary tokens after layer 29", ordinary[29], says=825, within=10)

# %% [markdown]
# The streams grow almost twentyfold.
#
# ## Part 1: the norm
#
# Before any part reads the stream, a copy of it is scaled: divided by the root of the mean of its squares. So parts see
# the *direction* of the stream, not its length. The stream itself stays as it is.
#
# ### Exercise 02.1 RMS norm
#
# Difficulty 1 of 5 · 10 minutes · needs `mean` and `sqrt`


# %% kind="exercise" id="02.1"
@exercise("02.1")
def rms_norm(x: Float[Tensor, "pos d_model"], eps: float) -> Float[Tensor, "pos d_model"]:
    """Each row divided by sqrt(mean of its squares + eps)."""
    # >>> solution
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()
    # <<< solution


# %% kind="check"
check(rms_norm, model=model)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# One divisor for each row, so the mean runs over the last axis, and the axis must stay (`keepdim=True`).
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# Square, mean over the last axis, add eps, square root, divide. Do not subtract the mean; that would be LayerNorm.
#
# </details>


# %% kind="wrong" id="02.1" expects="LayerNorm"
@exercise("02.1")
def rms_norm(x, eps):
    x = x - x.mean(-1, keepdim=True)
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()


# %% kind="wrong" id="02.1" expects="square root"
@exercise("02.1")
def rms_norm(x, eps):
    return x / (x.pow(2).mean(-1, keepdim=True) + eps)


# %% kind="wrong" id="02.1" expects="sum of the squares"
@exercise("02.1")
def rms_norm(x, eps):
    return x / (x.pow(2).sum(-1, keepdim=True) + eps).sqrt()


# %% kind="wrong" id="02.1" expects="over the positions"
@exercise("02.1")
def rms_norm(x, eps):
    return x / (x.pow(2).mean(0, keepdim=True) + eps).sqrt()


# %% [markdown]
# ### What the norm does to an outlier
#
# The norm divides all 576 numbers by the same number. In the begin token, after layer 15, 98.6 % of the *squared* length sits in one of
# them. What is left of the others?

# %%
sink = cache["resid_post", 15][0, 0]
share = sink.pow(2).max() / sink.pow(2).sum()
scaled = ml.forward.rms_norm(sink).abs().sort(descending=True).values
print(f"largest {scaled[0]:.1f}, next {scaled[1]:.1f}, median {scaled.median():.2f}")

# %% kind="assert"
claim(model, "share of the begin token in one number", share, says=0.986, within=0.002)
claim(model, "largest number after the norm", scaled[0], says=23.8, within=0.1)
claim(model, "the next one", scaled[1], says=1.8, within=0.1)
claim(model, "the median", scaled.median(), says=0.05, within=0.01)

# %% [markdown]
# One number is 23.8, the next 1.8, and the median 0.05: an outlier takes the room of all others.
#
# ## Part 2: who looks where
#
# Each head reads the normalised stream x three times, with three small matrices: a **query** `x @ W_Q` ("what am I
# looking for?"), a **key** `x @ W_K` ("what do I offer?") and a **value** `x @ W_V` ("what do I hand over?"), 64
# numbers each. Queries and keys are then rotated (notebook 01). The product of a query with a key, divided by √64, is a
# score. Later tokens are hidden, and a softmax turns each row of scores into shares that sum to 1.
#
# The model has 9 query heads in each layer. Your guess: how many key vectors does it keep for each token and layer?

# %% kind="predict"
predict("02.p", 3)

# %% kind="compare"
reveal("02.p", cache["k", 0].shape[2])

# %% [markdown]
# <details><summary>What we saw</summary>
#
# SmolLM2 saves memory with **grouped queries** (grouped-query attention, GQA): three neighbouring query heads share one key
# head and one value head. So the first three heads use key head 0, the next three key head 1, the last three key head 2.
#
# </details>
#
# One tool for the exercises is `torch.einsum("qhd,khd->hqk", q, k)`. In the string each letter is an axis; after it come
# the tensors. The first tensor has the axes q (query position), h (head) and d, the second k (key position), h and d.
# Numbers that agree in the shared letters, h and d, are multiplied. d is missing on the right, so it is summed over, and
# h, q, k are the axes of the result.
#
# ### Exercise 02.2 The attention pattern
#
# Difficulty 3 of 5 · 20 minutes · needs `einsum` or `@`


# %% kind="exercise" id="02.2"
@exercise("02.2")
def attention_pattern(
    q: Float[Tensor, "pos head d_head"], k: Float[Tensor, "pos kv_head d_head"]
) -> Float[Tensor, "head query_pos key_pos"]:
    """Attention patterns from queries and keys that have already been rotated.

    Score = query · key / sqrt(d_head). A token cannot look at later tokens. Each row sums to 1. Neighbouring
    query heads share a key head.
    """
    # >>> solution
    n_pos, n_heads, d_head = q.shape
    k = k.repeat_interleave(n_heads // k.shape[1], dim=1)
    scores = torch.einsum("qhd,khd->hqk", q, k) / d_head**0.5
    future = torch.ones(n_pos, n_pos, dtype=torch.bool).triu(1)
    return scores.masked_fill(future, -torch.inf).softmax(-1)
    # <<< solution


# %% kind="check"
check(attention_pattern, model=model)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# First give every query head its own copy of its key head, so that both tensors have the same number of heads.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# `k.repeat_interleave(n, dim=1)` gives 0 0 0 1 1 1 2 2 2. Then `einsum("qhd,khd->hqk", q, k)`, divide, write
# -inf where key position > query position (`torch.ones(...).triu(1)` marks those), softmax over the last axis.
#
# </details>


# %% kind="wrong" id="02.2" expects="later tokens"
@exercise("02.2")
def attention_pattern(q, k):
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    return (torch.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5).softmax(-1)


# %% kind="wrong" id="02.2" expects="other axis"
@exercise("02.2")
def attention_pattern(q, k):
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    scores = torch.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5
    future = torch.ones(len(q), len(q), dtype=torch.bool).triu(1)
    return scores.masked_fill(future, -torch.inf).softmax(-2)


# %% kind="wrong" id="02.2" expects="divided by"
@exercise("02.2")
def attention_pattern(q, k):
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    scores = torch.einsum("qhd,khd->hqk", q, k)
    future = torch.ones(len(q), len(q), dtype=torch.bool).triu(1)
    return scores.masked_fill(future, -torch.inf).softmax(-1)


# %% kind="wrong" id="02.2" expects="wrong key head"
@exercise("02.2")
def attention_pattern(q, k):
    k = k.repeat(1, q.shape[1] // k.shape[1], 1)
    scores = torch.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5
    future = torch.ones(len(q), len(q), dtype=torch.bool).triu(1)
    return scores.masked_fill(future, -torch.inf).softmax(-1)


# %% kind="wrong" id="02.2" expects="itself"
@exercise("02.2")
def attention_pattern(q, k):
    k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    scores = torch.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5
    future = torch.ones(len(q), len(q), dtype=torch.bool).triu(0)
    future[0, 0] = False
    return scores.masked_fill(future, -torch.inf).softmax(-1)


# %% [markdown]
# ## Part 3: what a head writes
#
# The pattern says how much to take from where. *What* is taken is the **value**, 64 numbers for each token. (Values are shared like
# keys; here each query head has already been given its own copy.) The weighted sum `z` then goes through the head's own matrix W_O, which
# turns 64 numbers into a vector of the stream.
#
# ### Exercise 02.3 The output of every head
#
# Difficulty 2 of 5 · 15 minutes · needs exercise 02.2


# %% kind="exercise" id="02.3"
@exercise("02.3")
def head_outputs(
    pattern: Float[Tensor, "head query_pos key_pos"],
    v: Float[Tensor, "pos head d_head"],
    W_O: Float[Tensor, "head d_head d_model"],
) -> Float[Tensor, "pos head d_model"]:
    """What each head writes into the stream at each position. The heads are kept apart, not summed."""
    # >>> solution
    z = torch.einsum("hqk,khd->qhd", pattern, v)
    return torch.einsum("qhd,hdm->qhm", z, W_O)
    # <<< solution


# %% kind="check"
check(head_outputs, model=model)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Two products: one sums over the positions that are looked at, one over d_head.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# `einsum("hqk,khd->qhd", pattern, v)` sums over k, the positions that are looked at. `einsum("qhd,hdm->qhm", z, W_O)`
# sends each head through its own matrix.
#
# </details>


# %% kind="wrong" id="02.3" expects="transposed"
@exercise("02.3")
def head_outputs(pattern, v, W_O):
    z = torch.einsum("hkq,khd->qhd", pattern, v)
    return torch.einsum("qhd,hdm->qhm", z, W_O)


# %% kind="wrong" id="02.3" expects="summed over the heads"
@exercise("02.3")
def head_outputs(pattern, v, W_O):
    z = torch.einsum("hqk,khd->qhd", pattern, v)
    return torch.einsum("qhd,hdm->qm", z, W_O)


# %% kind="wrong" id="02.3" expects="head 0"
@exercise("02.3")
def head_outputs(pattern, v, W_O):
    return torch.einsum("hqk,khd->qhd", pattern, v) @ W_O[0]


# %% [markdown]
# ## Part 4: the MLP
#
# The MLP (*multi-layer perceptron*) looks at one token at a time. It has 1,536 **neurons** in each layer. A neuron here is a product of two
# readings of the normalised stream x: a gate, `silu(x @ W_gate)`, and a value, `x @ W_in` (not the *value* of a head).
# Each neuron then writes its own row of `W_out`, times that product, its **activation**.
#
# silu is the **nonlinearity** of this MLP. silu(a) is a · sigmoid(a), and sigmoid(a) = 1 / (1 + e^−a) lies between 0 and 1.
# So silu(a) is about a for large a, and about 0 for very negative a. This form of MLP is called SwiGLU (Shazeer 2020).
#
# ### Exercise 02.4 A gated MLP
#
# Difficulty 2 of 5 · 5 minutes · needs `torch.nn.functional.silu`


# %% kind="exercise" id="02.4"
@exercise("02.4")
def gated_mlp(
    x: Float[Tensor, "pos d_model"],
    W_gate: Float[Tensor, "d_model d_mlp"],
    W_in: Float[Tensor, "d_model d_mlp"],
    W_out: Float[Tensor, "d_mlp d_model"],
) -> Float[Tensor, "pos d_model"]:
    """silu of the gate times the value, through W_out. x is already normalised."""
    # >>> solution
    return (torch.nn.functional.silu(x @ W_gate) * (x @ W_in)) @ W_out
    # <<< solution


# %% kind="check"
check(gated_mlp, model=model)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Two matrices read the same x. Only one of the two results goes through `silu`.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# `gate = silu(x @ W_gate)`, `value = x @ W_in`, multiply them number by number, then `@ W_out`.
#
# </details>


# %% kind="wrong" id="02.4" expects="gate, not on the value"
@exercise("02.4")
def gated_mlp(x, W_gate, W_in, W_out):
    return ((x @ W_gate) * torch.nn.functional.silu(x @ W_in)) @ W_out


# %% kind="wrong" id="02.4" expects="relu"
@exercise("02.4")
def gated_mlp(x, W_gate, W_in, W_out):
    return (torch.relu(x @ W_gate) * (x @ W_in)) @ W_out


# %% kind="wrong" id="02.4" expects="W_in is never used"
@exercise("02.4")
def gated_mlp(x, W_gate, W_in, W_out):
    return torch.nn.functional.silu(x @ W_gate) @ W_out


# %% [markdown]
# ## Part 5: put it together
#
# ### Exercise 02.5 A whole block
#
# Difficulty 2 of 5 · 5 minutes · needs the order: norm, part, add
#
# Attention, MLP and norm come as functions, so that only the wiring is left to you.


# %% kind="exercise" id="02.5"
@exercise("02.5")
def block(resid: Float[Tensor, "pos d_model"], attention, mlp, norm) -> Float[Tensor, "pos d_model"]:
    """The residual stream after one layer.

    `attention` (all heads together), `mlp` and `norm` map a tensor [pos, d_model] to another. Attention and MLP
    read a normalised stream, and what they return is added to the stream. The MLP sees what attention has written.
    """
    # >>> solution
    resid = resid + attention(norm(resid))
    return resid + mlp(norm(resid))
    # <<< solution


# %% kind="check"
check(block)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Two steps of the form: stream = stream + part(norm(stream)).
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# The second step starts from the result of the first. The norm is for reading only; what is added to is the stream
# itself, not its normalised copy.
#
# </details>


# %% [markdown]
# ## The whole model
#
# After the last layer the stream is normalised once more and multiplied by the **unembedding** W_U, 576 × 49,152: one
# score for each token. (In the original model W_U is the embedding table turned on its side. Here it is a copy, changed
# as the end of this notebook explains.) mechlab has all pieces in one short file. Here is its block, and the model
# around it:

# %%
ml.show_source(ml.forward.block)

# %%
ml.show_source(ml.forward.forward)

# %%
by_hand = ml.forward.forward(model, tokens[0])
difference = (by_hand - logits[0]).abs().max()
best = model.to_string([by_hand[-1].argmax().item()])
print(f"by hand the next token is {best!r}; largest difference of a score {difference:.5f}")

# %% kind="assert"
claim(model, "largest difference of a score", difference, says=0, within=2e-4)
assert best == " Mary" or model.cfg.model_name != "smollm2"

# %% [markdown]
# The same 49,152 scores for every token, up to rounding. There is nothing else inside.
#
# ### Exercise 02.7 Which part is broken?
#
# Difficulty 4 of 5 · 30 minutes · needs parts 1 to 3, and a pencil
#
# Somebody wrote the forward pass again and broke one thing: the step that hides later tokens, the rotation that tells positions apart, or
# the norm. Or nothing that matters. You cannot read the code. You may only run it, on any tokens you like, beside the right one. First predict
# on paper: which positions of a text change when nothing is hidden? When the rotation is? When the norm is another? What does a text of *one* token
# tell?


# %% kind="exercise" id="02.7"
@exercise("02.7")
def diagnose(suspect, right) -> str:
    """What is wrong with `suspect`: "future", "positions", "norm", or "nothing".

    Both are functions from token ids, Int[Tensor, "pos"], to logits, Float[Tensor, "pos d_vocab"]. "nothing": no
    probability changes, up to rounding.
    """
    # >>> solution
    tokens = torch.arange(400, 412)
    change = lambda ids: (suspect(ids).log_softmax(-1) - right(ids).log_softmax(-1)).abs().amax(-1) > 0.01
    if change(tokens[:1]).any():  # one token: nothing to hide, no distance, only the norm is left
        return "norm"
    changed = change(tokens)
    if changed[0]:  # the first token sees only itself, unless nothing hides the others
        return "future"
    return "positions" if changed.any() else "nothing"
    # <<< solution


# %% kind="check"
check(diagnose, model=model)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Look for a text in which two of the three parts have nothing to do. Then for a *position* at which only one of the two that are left matters.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# A text of one token has nothing later to hide, and no distances: if it changes, it is the norm. In a longer text the first token sees only
# itself. If it changes, something lets it see more. If only later ones change, it is the rotation. Compare log-probabilities, not logits, and
# allow for rounding.
#
# </details>


# %% kind="wrong" id="02.7" expects="constant"
@exercise("02.7")
def diagnose(suspect, right):
    tokens = torch.arange(400, 412)
    change = lambda ids: (suspect(ids) - right(ids)).abs().amax(-1) > 0.01
    if change(tokens[:1]).any():
        return "norm"
    changed = change(tokens)
    return "future" if changed[0] else "positions" if changed.any() else "nothing"


# %% kind="wrong" id="02.7" expects="rounding"
@exercise("02.7")
def diagnose(suspect, right):
    tokens = torch.arange(400, 412)
    change = lambda ids: (suspect(ids).log_softmax(-1) - right(ids).log_softmax(-1)).abs().amax(-1) > 0
    if change(tokens[:1]).any():
        return "norm"
    changed = change(tokens)
    return "future" if changed[0] else "positions" if changed.any() else "nothing"


# %% kind="wrong" id="02.7" expects="the first token"
@exercise("02.7")
def diagnose(suspect, right):
    tokens = torch.arange(400, 412)
    change = lambda ids: (suspect(ids).log_softmax(-1) - right(ids).log_softmax(-1)).abs().amax(-1) > 0.01
    if change(tokens[:1]).any():
        return "norm"
    return "future" if change(tokens)[-1] else "nothing"


# %% kind="wrong" id="02.7" expects="one token"
@exercise("02.7")
def diagnose(suspect, right):
    tokens = torch.arange(400, 412)
    changed = (suspect(tokens).log_softmax(-1) - right(tokens).log_softmax(-1)).abs().amax(-1) > 0.01
    return "future" if changed[0] else "positions" if changed.any() else "nothing"


# %% [markdown]
# ## A token that everybody looks at
#
# Now the begin token, which was left out of the first picture.

# %%
fig = ml.plots.figure("Length of the residual stream", "layer", "length (log scale)", height=360)
fig.add_scatter(y=length[:, 0].numpy(), name="begin token")
fig.add_scatter(y=ordinary.numpy(), name="other tokens, median")
fig.update_yaxes(type="log", dtick=1)
ml.Picture(fig, f"The begin token jumps to {length[11, 0]:.0f} at layer 11 and stays there until layer 27.")

# %% kind="assert"
claim(model, "length for the begin token after layer 9", length[9, 0], says=150, within=5)
claim(model, "length for the begin token after layer 11", length[11, 0], says=25_100, within=200)
written = cache["mlp_out", 11][0, 0].norm()
claim(model, "length of what the MLP of layer 11 writes there", written, says=25_000, within=300)
to_begin = torch.stack([cache["pattern", layer][0, :, 1:, 0].mean() for layer in range(12, 29)])
claim(model, "share of attention it gets, least of layers 12 to 28", to_begin.min(), says=0.48, within=0.03)
values = torch.stack([cache["v", layer][0].flatten(1).norm(dim=-1) for layer in range(12, 29)])
claim(model, "length of its values, most", values[:, 0].max(), says=5.1, within=0.2)
claim(model, "length of other values, median", values[:, 1:].median(), says=13.7, within=0.5)
given = []  # what the heads of a layer bring from the begin token, beside all that they write
for layer in range(12, 29):
    share, value = cache["pattern", layer][0, :, 1:, 0], cache["v", layer][0, 0].repeat_interleave(3, 0)
    brought = torch.einsum("hq,hd,hdm->qm", share, value, model.W_O[layer].detach())
    given.append(brought.norm(dim=-1) / cache["attn_out", layer][0, 1:].norm(dim=-1))
claim(model, "length of what it gives, beside all of it", torch.stack(given).mean(), says=0.56, within=0.03)
silent = [
    (f"blocks.{layer}.attn.hook_v", lambda v, hook: torch.cat([0 * v[:, :1], v[:, 1:]], 1))
    for layer in range(12, 29)
]
with torch.no_grad(), ml.intervene(model, silent):
    said = model(tokens)[0, 1:].softmax(-1)
gone = (said - logits[0, 1:].softmax(-1)).abs().sum(-1) / 2
claim(model, "probability that goes elsewhere without it", gone.mean(), says=0.55, within=0.05)

# %% [markdown]
# It is 150 long after layer 9, and at layer 11 the MLP writes a vector of length 25,000 into it. That vector cannot depend on the text, since the
# first token sees only itself. From layer 12 to 28 the other tokens give it about half of their attention or more: an **attention sink**. Its values are
# short, 5.1 at most where others have a median of 13.7. Is next to nothing taken from it, then? No. What the heads bring from it is 0.56 times as
# long as all that they write. Set its values to zero in these layers, and on average 0.55 of the probability goes to other tokens. In a short prompt, an average of the streams that includes position 0 is mostly position 0.
#
# ## Early or late?
#
# The stream grows, and parts read it through a norm. So a vector of one length moves what they read less and less: add a random vector of length 20,
# a *nudge*, to the last token's stream after each layer in turn. But is less moved also less *done*? A change made early has all later layers
# to grow in, or to be undone. Your guess: how many times more does the nudge change the output after layer 0 than after layer 29?

# %% kind="predict"
predict("02.q", 1)


# %%
nudges = torch.randn(8, 576, generator=torch.Generator().manual_seed(0))
nudges = 20 * nudges / nudges.norm(dim=1, keepdim=True)
after = [0, 3, 6, 9, 12, 15, 18, 21, 24, 27, 29]
run = ml.run_of(model, tokens)  # a kept run, so that only the layers after a change are run again
last = torch.arange(tokens.shape[1]) == tokens.shape[1] - 1
intact = logits[0, -1].softmax(-1)
moved, changed = torch.zeros(2, len(after))
for place, layer in enumerate(after):
    stream = cache["resid_post", layer][0, -1]
    normed, other = ml.forward.rms_norm(stream), ml.forward.rms_norm(stream + nudges)
    moved[place] = ((other - normed).norm(dim=1) / normed.norm()).mean()
    if layer < n_layers - 1:
        put = ml.Put("resid_pre", layer + 1, (stream + nudges)[:, None, None], last[None, None])
        said = run.logits([put], 1)[:, -1].softmax(-1)
    else:
        said = (other @ model.W_U).softmax(-1)
    changed[place] = (said.detach() - intact).abs().sum(-1).mean() / 2

# %%
both = ml.Scores(
    torch.stack([moved / moved[0], changed / changed[0]]),
    ("quantity", "layer"),
    "as a share of what it is after layer 0",
    {
        "quantity": ["normalised stream, how far moved", "probability that goes to other tokens"],
        "layer": [str(n) for n in after],
    },
    signed=False,
)
both.plot(lines=True, height=340)

# %% kind="compare"
reveal("02.q", round((changed[0] / changed[-1]).item()))

# %% kind="assert"
claim(model, "moved after layer 0", moved[0], says=0.51, within=0.02)
claim(model, "moved after layer 29", moved[-1], says=0.022, within=0.002)
claim(model, "probability moved, after layer 0 beside 29", changed[0] / changed[-1], says=2.3, within=0.4)
assert 0.7 < changed[6] / changed[2] < 1.3 and moved[6] < 0.5 * moved[2]  # layers 18 and 6

# %% [markdown]
# <details><summary>What we saw</summary>
#
# After layer 0 the nudge moves the normalised stream by half of its length, after layer 29 by a fiftieth. What it does to the output shrinks far less:
# after layer 29 it still shifts nearly half as much probability as after layer 0. From layer 6 to layer 18 it does about the same, though it moves ever
# less. So how far a vector moves a stream does not say what it does. Measure the output. (The figures are those of one prompt; other prompts have
# others.)
#
# </details>
#
# ## Where are the parameters?
#
# The embedding and W_U are one table in the original model, so it is counted once.

# %%
sizes = {
    "embedding": model.W_E.numel(),
    "attention": sum(W.numel() for W in (model.W_Q, model.W_K, model.W_V, model.W_O)),
    "MLPs": sum(W.numel() for W in (model.W_gate, model.W_in, model.W_out)),
}
total = sum(sizes.values())
shares = ml.Scores(
    torch.tensor([size / total for size in sizes.values()]),
    ("part",),
    "share of the parameters",
    {"part": list(sizes)},
    signed=False,
)
shares.plot(height=320)

# %% kind="assert"
from transformers import AutoModelForCausalLM, GPT2Config

with torch.device("meta"):  # GPT-2 small from its configuration alone: shapes without weights
    gpt2 = AutoModelForCausalLM.from_config(GPT2Config())
gpt2_mlp = sum(p.numel() for name, p in gpt2.named_parameters() if ".mlp." in name)
gpt2_total = sum(p.numel() for p in gpt2.parameters())
claim(model, "MLPs, share of all parameters", sizes["MLPs"] / total, says=0.592, within=0.001)
claim(
    model,
    "MLPs, share without the embedding",
    sizes["MLPs"] / (total - sizes["embedding"]),
    says=0.75,
    within=0.001,
)
claim(model, "MLPs in GPT-2 small", gpt2_mlp / gpt2_total, says=0.455, within=0.001)
tables = sum(p.numel() for name, p in gpt2.named_parameters() if name.split(".")[1] in ("wte", "wpe"))
claim(model, "the same without its embeddings", gpt2_mlp / (gpt2_total - tables), says=0.667, within=0.001)

# %% [markdown]
# Six parameters in ten are in the MLPs (GPT-2 small: 46 %); without the embeddings, three in four (GPT-2 small: two in
# three).
#
# **GPT-2 for comparison.** It has no gate (one matrix in, a GELU, which is a curve much like silu, one matrix out), adds a
# learned row for each position, uses LayerNorm, which also subtracts the mean, gives every query head its own key and
# value head, and adds a **bias**, a learned constant vector, in every part.
#
# ## Part 6: from scores to text
#
# A softmax turns the last row of logits into probabilities. Always taking the most likely token is called **greedy**.
# Drawing at random, after dividing the logits by a **temperature**, gives variety: below 1 it sharpens, above 1 it
# flattens. Move the slider.

# %%
ranked = logits[0, -1].topk(8).indices
ml.widgets.temperature_explorer(logits[0, -1], [model.to_string([i]) for i in ranked.tolist()])

# %% [markdown]
# ### Exercise 02.6 Sampling
#
# Difficulty 2 of 5 · 10 minutes · needs `torch.multinomial`


# %% kind="exercise" id="02.6"
@exercise("02.6")
def sample(logits: Float[Tensor, "d_vocab"], temperature: float, generator: torch.Generator) -> int:
    """The id of the next token, drawn with probabilities softmax(logits / temperature).

    Temperature 0 means greedy: the largest logit. Draw with `generator`, so that a run can be repeated.
    """
    # >>> solution
    if temperature == 0:
        return logits.argmax().item()
    probabilities = (logits / temperature).softmax(-1)
    return torch.multinomial(probabilities, 1, generator=generator).item()
    # <<< solution


# %% kind="check"
check(sample)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Temperature 0 cannot be divided by. Treat it first.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# Divide, softmax, then `torch.multinomial(probabilities, 1, generator=generator)`. `.item()` makes an int of it.
#
# </details>


# %% kind="wrong" id="02.6" expects="multiply"
@exercise("02.6")
def sample(logits, temperature, generator):
    if temperature == 0:
        return logits.argmax().item()
    return torch.multinomial((logits * temperature).softmax(-1), 1, generator=generator).item()


# %% kind="wrong" id="02.6" expects="always the largest"
@exercise("02.6")
def sample(logits, temperature, generator):
    return logits.argmax().item()


# %% kind="wrong" id="02.6" expects="temperature 0"
@exercise("02.6")
def sample(logits, temperature, generator):
    return torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator).item()


# %% kind="wrong" id="02.6" expects="temperature changes nothing"
@exercise("02.6")
def sample(logits, temperature, generator):
    if temperature == 0:
        return logits.argmax().item()
    return torch.multinomial(logits.softmax(-1), 1, generator=generator).item()


# %% kind="wrong" id="02.6" expects="generator"
@exercise("02.6")
def sample(logits, temperature, generator):
    if temperature == 0:
        return logits.argmax().item()
    return torch.multinomial((logits / temperature).softmax(-1), 1).item()


# %% [markdown]
# ## What was done to this model before you met it
#
# Two things. First, each norm has 576 learned weights of its own: after the division, number i is multiplied by weight
# i. These weights were **folded** into the matrices that read the result. (Let x be what the division leaves. Multiply
# each number x[i] by w[i], then multiply by W: that is x times a W whose row i was multiplied by w[i].) Folding changes no
# logit. Second, the unembedding was **centred**: the mean of its 49,152 columns was subtracted from each of them.
# `ml.load(fold=False)` does neither. Do the two models say the same?

# %%
raw = ml.load(fold=False, quiet=True)
with torch.no_grad():
    raw_logits = raw(tokens)
shift = (raw_logits - logits)[0]
mary = ml.single_token(model, " Mary")
compare = {
    "logit of ' Mary', as loaded in this course": logits[0, -1, mary],
    "logit of ' Mary', with fold=False": raw_logits[0, -1, mary],
    "logits: largest difference": shift.abs().max(),
    "logits: spread of the difference in one row": shift.std(-1).max(),
    "log-probabilities: largest difference": (raw_logits.log_softmax(-1) - logits.log_softmax(-1))
    .abs()
    .max(),
}
for what, value in compare.items():
    print(f"{what:45} {value:.4f}")

# %% kind="assert"
claim(model, "constant between the last rows of the two models", -shift[-1].mean(), says=8.1, within=0.1)
claim(model, "logit of ' Mary', as loaded", logits[0, -1, mary], says=20.5, within=0.06)
claim(model, "logit of ' Mary', with fold=False", raw_logits[0, -1, mary], says=12.4, within=0.06)
john = ml.single_token(model, " John")
claim(model, "logit of ' John', with fold=False", raw_logits[0, -1, john], says=6.8, within=0.06)
claim(model, "logit of ' John', as loaded", logits[0, -1, john], says=14.9, within=0.06)
# x times the mean column of the folded, not yet centred unembedding
mean_column = raw.W_E.mean(0) * raw.ln_final.weight
x = cache["ln_final.hook_normalized"][0]
assert (x @ mean_column - shift.mean(-1)).abs().max() < 1e-3
assert compare["logits: largest difference"] > 1
assert compare["logits: spread of the difference in one row"] < 1e-3
assert compare["log-probabilities: largest difference"] < 1e-3

# %% [markdown]
# Each row of logits has moved by a constant of its own, 8.1 in the last row. That is the centring: x times the mean column
# was taken from every logit of the row. A constant does not matter to a softmax. So logit *differences* and probabilities
# are the model's own; a single raw logit is not a fact about the model. Folding is done because it lets you read
# directions straight off the weights, as notebook 12 will; centring takes out what no probability depends on.
#
# ### A question
#
# With `fold=False`, the last logits of " Mary" and " John" are 12.4 and 6.8. As loaded here, " Mary" has 20.5. What has " John"?
#
# - **a** 6.8
# - **b** 14.9
# - **c** 11.2

# %% kind="quiz"
quiz("02.a", "b")

# %% [markdown]
# ## Recap
#
# | term | in one line | here | TransformerLens |
# |---|---|---|---|
# | residual stream | one vector a token, to which every part adds | `cache["resid_post", 5]` | `hook_resid_post` |
# | RMS norm | divide by the root of the mean square | `ml.forward.rms_norm` | `ln1.hook_normalized` |
# | pattern | who looks where; rows sum to 1 | `ml.forward.attention_pattern` | `hook_pattern` |
# | grouped queries, GQA | several query heads share a key and value head | heads 3g to 3g + 2 | `cfg.n_key_value_heads` |
# | neuron | one product of gate and value, writing one row of W_out | `ml.forward.gated_mlp` | `mlp.hook_post` |
# | attention sink | a token that many heads look at in every text; its values are short, but not without effect | position 0 | |
# | folding | norm weights moved into the next matrices | `ml.load(fold=False)` leaves them | `enable_compatibility_mode` |
# | centring | the mean column taken out of W_U | `ml.load(fold=False)` leaves it in | `enable_compatibility_mode` |
