# %% [markdown]
# # 03 Hooks and caching
#
# **Question:** what can be observed inside a running model, and what is each thing called?
#
# After this notebook you will be able to
#
# - name any activation of the model and know its shape,
# - keep exactly what an experiment needs, and know what it costs,
# - compare two runs, of two prompts or of two models, and find the layer where they part,
# - take a part away by an ablation, and leave nothing behind.
#
# Time: 80 minutes. The cells take about 20 seconds in all. Memory: 1.8 GB.
# Download: none, once the model is here (93 MB). Before: notebook 02.

# %% kind="setup"
# (written by the build)

# %% [markdown]
# ## Two sentences, one word apart
#
# The running sentence, and the one in which Mary gives the drink. They differ in one token, number 10. How far
# does the difference reach? `run_with_cache` runs the model and keeps what its parts computed. The picture shows the
# relative distance of the two streams: the length of their difference, divided by the length of the first.

# %%
pair = ml.prompt_pair(
    model,
    "When John and Mary went to the store, John gave a drink to",
    "When John and Mary went to the store, Mary gave a drink to",
    " Mary",
    " John",
)
with torch.no_grad():
    logits, cache = model.run_with_cache(pair.clean)
    other_logits, other_cache = model.run_with_cache(pair.corrupted)
layers = range(model.cfg.n_layers)
stream = torch.stack([cache["resid_post", layer][0] for layer in layers])
other_stream = torch.stack([other_cache["resid_post", layer][0] for layer in layers])
distance = (stream - other_stream).norm(dim=-1) / stream.norm(dim=-1)
ml.Scores(
    distance, ("layer", "pos"), "relative distance of the streams", {"pos": pair.labels()}, signed=False
).plot()

# %% kind="assert"
claim(model, "distance at the changed name after layer 0", distance[0, 10], says=1.0, within=0.02)
claim(model, "distance at the last token after layer 15", distance[15, -1], says=0.045, within=0.01)
claim(model, "distance at the last token after layer 20", distance[20, -1], says=0.23, within=0.02)
claim(model, "distance at the last token after layer 23", distance[23, -1], says=0.49, within=0.03)
claim(model, "distance at token 11 after layer 23", distance[23, 11], says=0.41, within=0.03)
assert distance[:, :10].max() == 0
for position in (11, -1):  # the two layers at which the distance rises most
    rise = distance[1:, position] - distance[:-1, position]
    assert sorted(rise.topk(2).indices.tolist()) == [20 - 1, 23 - 1]

# %% [markdown]
# Read it column by column. Before token 10 the two runs are equal to the last bit: no token can see the future.
# At token 10 they differ from the start. At the *last* token, where the answer is made, they stay within 5 % of
# each other up to layer 15, and part between layers 18 and 20, and again at layer 23. Something brings the news to the
# last token there. Token 11 also jumps at layers 20 and 23, so the picture does not yet say from where the news comes; it
# says in which layers to look.
#
# ## What is there to see
#
# Almost every quantity has a **hook**: a name, and a place where you can read it or change it. `hook_map` lists the
# hooks of one layer in the order in which they happen, with shapes measured on the live model.

# %%
ml.hook_map(model, layer=5)

# %% kind="compare"
from transformer_lens.utilities import get_act_name

names = ["pattern", "z", "resid_pre", "mlp_out"]
for name in names:
    print(f'cache["{name}", 5] is short for {get_act_name(name, 5)}, {tuple(cache[name, 5].shape)}')

# %% [markdown]
# Keys and values have 3 heads where queries have 9: that is grouped-query attention. TransformerLens hands you
# the true shape; looping over nine key heads would be a mistake.
#
# ### Exercise 03.1 Pick the right hook
#
# Difficulty 1 of 5 · 5 minutes · needs the table above


# %% kind="exercise" id="03.1"
@exercise("03.1")
def hook_names(layer: int) -> dict[str, str]:
    """The full hook names in this layer for four things, under these keys:

    "who looks where": attention shares; each row sums to 1
    "gathered":        what each head has gathered from the tokens it looks at, before W_O
    "neurons":         the activations that the MLP's output matrix reads
    "stream in":       the residual stream before this layer changes it
    """
    # >>> solution
    return {
        "who looks where": f"blocks.{layer}.attn.hook_pattern",
        "gathered": f"blocks.{layer}.attn.hook_z",
        "neurons": f"blocks.{layer}.mlp.hook_post",
        "stream in": f"blocks.{layer}.hook_resid_pre",
    }
    # <<< solution


# %% kind="check"
check(hook_names)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Every name in a layer starts with `blocks.` and the layer's number. Parts of attention continue with `attn.`, parts of
# the MLP with `mlp.`.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# Look in the last column of the table for the descriptions, and copy the names. Put the layer in with an f-string.
#
# </details>


# %% kind="wrong" id="03.1" expects="before the softmax"
@exercise("03.1")
def hook_names(layer):
    b = f"blocks.{layer}"
    return {
        "who looks where": f"{b}.attn.hook_attn_scores",
        "gathered": f"{b}.attn.hook_z",
        "neurons": f"{b}.mlp.hook_post",
        "stream in": f"{b}.hook_resid_pre",
    }


# %% kind="wrong" id="03.1" expects="nonlinearity"
@exercise("03.1")
def hook_names(layer):
    b = f"blocks.{layer}"
    return {
        "who looks where": f"{b}.attn.hook_pattern",
        "gathered": f"{b}.attn.hook_z",
        "neurons": f"{b}.mlp.hook_pre",
        "stream in": f"{b}.hook_resid_pre",
    }


# %% kind="wrong" id="03.1" expects="after the layer"
@exercise("03.1")
def hook_names(layer):
    b = f"blocks.{layer}"
    return {
        "who looks where": f"{b}.attn.hook_pattern",
        "gathered": f"{b}.attn.hook_z",
        "neurons": f"{b}.mlp.hook_post",
        "stream in": f"{b}.hook_resid_post",
    }


# %% kind="wrong" id="03.1" expects="no hook"
@exercise("03.1")
def hook_names(layer):
    b = f"blocks.{layer}"
    return {
        "who looks where": f"{b}.hook_pattern",
        "gathered": f"{b}.attn.hook_z",
        "neurons": f"{b}.mlp.hook_post",
        "stream in": f"{b}.hook_resid_pre",
    }


# %% kind="wrong" id="03.1" expects="another layer"
@exercise("03.1")
def hook_names(layer):
    return {
        "who looks where": "blocks.5.attn.hook_pattern",
        "gathered": "blocks.5.attn.hook_z",
        "neurons": "blocks.5.mlp.hook_post",
        "stream in": "blocks.5.hook_resid_pre",
    }


# %% [markdown]
# ## What it costs
#
# A full cache keeps everything. Many tensors are listed under several names, so the sizes in the list add up to more than
# the memory they take. Guess the share of the memory that you need for the picture above (only `resid_post`), in percent.
# In the cell, `ml.only("hook_resid_post")` keeps the hooks whose names end so.

# %% kind="predict"
predict("03.p", "10 %")

# %%
with torch.no_grad():
    _, small = model.run_with_cache(pair.clean, names_filter=ml.only("hook_resid_post"))
everything, listed = ml.cache_bytes(cache)
needed, _ = ml.cache_bytes(small)
print(f"full cache: {len(cache)} names, {listed / 1e6:.0f} MB listed, {everything / 1e6:.0f} MB in memory")
print(f"resid_post: {len(small)} names, {needed / 1e6:.1f} MB")

# %% kind="compare"
reveal("03.p", f"{100 * needed / everything:.0f} %")

# %% kind="assert"
claim(model, "MB of the full cache, 15 tokens", everything / 1e6, says=24.3, within=0.5)
claim(model, "MB of resid_post", needed / 1e6, says=1.04, within=0.01)
claim(model, "names of the full cache", len(cache), says=1393, within=200)
per_token = everything / 15
claim(
    model,
    "at least so many GB for 64 prompts of 100 tokens",
    64 * 100 * per_token / 1e9,
    says=10.4,
    within=0.5,
)

# %% [markdown]
# Twenty-four megabytes for one short prompt; 64 prompts of 100 tokens would need ten gigabytes. `names_filter` keeps
# what you name and nothing else, and costs one line.
#
# ### Exercise 03.2 Keep only what you need
#
# Difficulty 2 of 5 · 5 minutes · needs `run_with_cache` and `names_filter`


# %% kind="exercise" id="03.2"
@exercise("03.2")
def patterns_only(model, tokens: Int[Tensor, "batch pos"]):
    """Run the model once and return a cache that holds the attention pattern of every layer and nothing else."""
    # >>> solution
    _, cache = model.run_with_cache(tokens, names_filter=lambda name: name.endswith("hook_pattern"))
    return cache
    # <<< solution


# %% kind="check"
check(patterns_only)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# `names_filter` may be a function from a hook name to True or False. What do all the names you want end with?
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# `run_with_cache` returns two things, logits and cache. Filter with
# `names_filter=lambda name: name.endswith(...)`, or use `ml.only(...)`.
#
# </details>


# %% kind="wrong" id="03.2" expects="more than"
@exercise("03.2")
def patterns_only(model, tokens):
    _, cache = model.run_with_cache(tokens)
    return cache


# %% kind="wrong" id="03.2" expects="every layer"
@exercise("03.2")
def patterns_only(model, tokens):
    _, cache = model.run_with_cache(tokens, names_filter="blocks.0.attn.hook_pattern")
    return cache


# %% kind="wrong" id="03.2" expects="two things"
@exercise("03.2")
def patterns_only(model, tokens):
    return model.run_with_cache(tokens, names_filter=lambda name: name.endswith("hook_pattern"))


# %% kind="wrong" id="03.2" expects="before the softmax"
@exercise("03.2")
def patterns_only(model, tokens):
    _, cache = model.run_with_cache(tokens, names_filter=lambda name: name.endswith("hook_attn_scores"))
    return cache


# %% [markdown]
# ## The stream is a sum
#
# Nothing is overwritten, so the stream at any depth must be the embedding plus everything written so far. Check
# it, then use it: since the parts add up, one can ask how much of the last stream each part wrote. The share of a part is
# its length along the direction of the last stream (negative if it points the other way), divided by the length of that
# stream. All shares sum to 1. The embedding's is about zero, and is left out of the picture.

# %%
parts = {"embedding": cache["hook_embed"][0, -1]}
for layer in layers:
    parts[f"attention {layer}"] = cache["attn_out", layer][0, -1]
    parts[f"MLP {layer}"] = cache["mlp_out", layer][0, -1]
final = cache["resid_post", model.cfg.n_layers - 1][0, -1]
error = (sum(parts.values()) - final).norm() / final.norm()
along = torch.stack([part @ final / (final @ final) for part in parts.values()])
shares = along[1:].reshape(-1, 2).T  # without the embedding: [attention or MLP, layer]
written = ml.Scores(shares, ("part", "layer"), "share of the last stream", {"part": ["attention", "MLP"]})
written.plot(lines=True, height=380, title="Share of the last stream that each part wrote")

# %% kind="assert"
assert error < 1e-5, error
assert abs(along.sum() - 1) < 1e-4
claim(model, "share of the embedding", along[0], says=0, within=0.001)
claim(model, "share written by the last MLP", along[-1], says=0.27, within=0.02)
claim(model, "share of the last five layers", along[-10:].sum(), says=0.68, within=0.04)
head_23_3 = cache["z", 23][0, -1, 3] @ model.W_O[23, 3].detach()
claim(model, "share of head 23.3", head_23_3 @ final / (final @ final), says=0, within=0.01)

# %% [markdown]
# The parts add up to the whole, up to rounding. Two thirds of the last stream were written by the last five layers.
# This share measures direction along the last stream, not importance: replacing what head 23.3 says made the two names
# level in notebook 00, and its share here is about zero.
#
# ### Exercise 03.3 Rebuild the stream
#
# Difficulty 2 of 5 · 10 minutes · needs cache indexing


# %% kind="exercise" id="03.3"
@exercise("03.3")
def stream_before(cache, layer: int) -> Float[Tensor, "batch pos d_model"]:
    """The residual stream that enters `layer`, as the sum of what was written before it.

    Use `cache["hook_embed"]`, `cache["hook_pos_embed"]` when the cache has it (models like GPT-2), and
    `cache["attn_out", i]` and `cache["mlp_out", i]` of earlier layers.
    """
    # >>> solution
    stream = cache["hook_embed"]
    if "hook_pos_embed" in cache:
        stream = stream + cache["hook_pos_embed"]
    for earlier in range(layer):
        stream = stream + cache["attn_out", earlier] + cache["mlp_out", earlier]
    return stream
    # <<< solution


# %% kind="check"
check(stream_before, model=model)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# What has been written when layer 0 begins? And when layer 1 begins?
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# Start with the embedding (plus the position embedding if there is one). Loop over `range(layer)` and add both outputs
# of each earlier layer. Write `stream = stream + ...`, so that the cache itself is not changed.
#
# </details>


# %% kind="wrong" id="03.3" expects="layer itself"
@exercise("03.3")
def stream_before(cache, layer):
    stream = cache["hook_embed"]
    if "hook_pos_embed" in cache:
        stream = stream + cache["hook_pos_embed"]
    for earlier in range(layer + 1):
        stream = stream + cache["attn_out", earlier] + cache["mlp_out", earlier]
    return stream


# %% kind="wrong" id="03.3" expects="hook_pos_embed"
@exercise("03.3")
def stream_before(cache, layer):
    stream = cache["hook_embed"]
    for earlier in range(layer):
        stream = stream + cache["attn_out", earlier] + cache["mlp_out", earlier]
    return stream


# %% kind="wrong" id="03.3" expects="MLPs are missing"
@exercise("03.3")
def stream_before(cache, layer):
    stream = cache["hook_embed"]
    if "hook_pos_embed" in cache:
        stream = stream + cache["hook_pos_embed"]
    for earlier in range(layer):
        stream = stream + cache["attn_out", earlier]
    return stream


# %% kind="wrong" id="03.3" expects="changes the cache"
@exercise("03.3")
def stream_before(cache, layer):
    stream = cache["hook_embed"]
    if "hook_pos_embed" in cache:
        stream += cache["hook_pos_embed"]
    for earlier in range(layer):
        stream += cache["attn_out", earlier] + cache["mlp_out", earlier]
    return stream


# %% [markdown]
# ## Comparing two models
#
# The same comparison works between two models that read the same prompt: a base model and a fine-tuned one, or,
# here, the model and a copy in which noise was added to one matrix, `W_out` of the MLP in layer 12. The noise spreads half
# as widely as the weights. Where does the damage show? The picture has the relative distance of the two streams after each
# layer (mean over the tokens, the begin token left out). For the predictions we use the **KL divergence**, which says how
# far the probabilities q of one model are from the probabilities p of the other: the mean of log p − log q over the next
# tokens, each counted with its probability p. It is 0 when the two are equal. With natural logarithms its unit is the
# **nat**.

# %%
noisy = ml.load(quiet=True)
matrix = noisy.blocks[12].mlp.out.weight
noise = torch.randn(matrix.shape, generator=torch.Generator().manual_seed(0))
# A new tensor, not a change in place: the stored weights stay as they are.
matrix.data = matrix.data + 0.5 * matrix.data.std() * noise
with torch.no_grad():
    noisy_logits, noisy_cache = noisy.run_with_cache(pair.clean, names_filter=ml.only("hook_resid_post"))
noisy_stream = torch.stack([noisy_cache["resid_post", layer][0] for layer in layers])
drift = ((stream - noisy_stream).norm(dim=-1) / stream.norm(dim=-1))[:, 1:].mean(1)
damage = ml.kl_divergence(logits)(noisy_logits).item()
drifted = ml.Scores(drift, ("layer",), "relative distance of the streams", signed=False)
drifted.plot(height=340, title="Relative distance of the model and its noisy copy")

# %% kind="assert"
assert drift[:12].max() == 0
claim(model, "distance after layer 12", drift[12], says=0.11, within=0.01)
claim(model, "least distance after layer 12", drift[12:].min(), says=0.064, within=0.005)
claim(model, "distance after layer 28", drift[28], says=0.064, within=0.005)
claim(model, "distance after layer 29", drift[29], says=0.08, within=0.01)
claim(model, "KL of the predictions (nats)", damage, says=0.006, within=0.002)
absolute = (stream - noisy_stream).norm(dim=-1)[:, 1:].mean(1)
claim(model, "how many times longer the damage gets", absolute[29] / absolute[12], says=4.3, within=0.3)

# %% [markdown]
# Nothing before layer 12, a jump to 11 % there, then a slow fall to 6 % at layer 28, and 8 % at the end. The damage itself
# grows, but up to layer 28 the stream grows faster on the whole. The prediction hardly moves, a KL of 0.006 nats. Comparing *streams* tells you where two
# models part; comparing *predictions* tells you whether it matters. Look at both.
#
# ### Exercise 03.4 Where do two runs part?
#
# Difficulty 2 of 5 · 10 minutes · needs `norm`


# %% kind="exercise" id="03.4"
@exercise("03.4")
def first_parting(
    a: Float[Tensor, "layer d_model"], b: Float[Tensor, "layer d_model"], threshold: float
) -> int:
    """The first layer at which the distance of two streams exceeds `threshold` times the length of `a`.

    Distance and length (`norm`) are taken layer by layer. Returns -1 when they never part.
    """
    # >>> solution
    distance = (a - b).norm(dim=-1) / a.norm(dim=-1)
    apart = (distance > threshold).nonzero()
    return apart[0].item() if len(apart) else -1
    # <<< solution


# %% kind="check"
check(first_parting)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# The stream grows with depth, so a fixed distance means less and less. Relative to what should it be measured?
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# One number for each layer: `(a - b).norm(dim=-1) / a.norm(dim=-1)`. Then the first index where it is above the
# threshold: `(… > threshold).nonzero()`. Do not forget the case that there is none.
#
# </details>


# %% kind="wrong" id="03.4" expects="relative"
@exercise("03.4")
def first_parting(a, b, threshold):
    apart = ((a - b).norm(dim=-1) > threshold).nonzero()
    return apart[0].item() if len(apart) else -1


# %% kind="wrong" id="03.4" expects="-1"
@exercise("03.4")
def first_parting(a, b, threshold):
    return ((a - b).norm(dim=-1) / a.norm(dim=-1) > threshold).int().argmax().item()


# %% kind="wrong" id="03.4" expects="last"
@exercise("03.4")
def first_parting(a, b, threshold):
    apart = ((a - b).norm(dim=-1) / a.norm(dim=-1) > threshold).nonzero()
    return apart[-1].item() if len(apart) else -1


# %% kind="wrong" id="03.4" expects="lengths"
@exercise("03.4")
def first_parting(a, b, threshold):
    distance = (a.norm(dim=-1) - b.norm(dim=-1)).abs() / a.norm(dim=-1)
    apart = (distance > threshold).nonzero()
    return apart[0].item() if len(apart) else -1


# %% [markdown]
# ## Ablation: changing something, and leaving nothing behind
#
# A hook can also return another value, and the model goes on with it. TransformerLens puts hooks on while a `with` block
# runs, then takes them off. So a part can be taken away, to see what is lost: an **ablation**. In the first picture the last
# token changes most at layers 20 and 23. Here one head of layer 20, number 0, gets zeros.


# %%
def ablate_head_0(value):
    """A hook function that returns a copy of z in which head 0 says `value`."""

    def replace(z: Float[Tensor, "batch pos head d_head"], hook) -> Float[Tensor, "batch pos head d_head"]:
        z = z.clone()
        z[:, :, 0] = value
        return z

    return replace


with torch.no_grad():
    with model.hooks(fwd_hooks=[("blocks.20.attn.hook_z", ablate_head_0(0))]):
        ablated = pair.metric(model(pair.clean)).item()
    afterwards = pair.metric(model(pair.clean)).item()
before = pair.metric(logits).item()
print(f"before {before:.2f}, head 20.0 at zero {ablated:.2f}, afterwards {afterwards:.2f}")

# %% kind="assert"
claim(model, "logit difference before", before, says=5.6, within=0.1)
claim(model, "logit difference with 20.0 at zero", ablated, says=3.5, within=0.1)
assert afterwards == before

# %% [markdown]
# The logit difference falls from 5.6 to 3.5. Afterwards it is what it was before, to the last bit: the hook is gone.
#
# Nothing can be left out of a running model: something must stand in its place. Zeros are one choice, and a head may never say
# zero by itself. The other usual choice is its **mean** over sentences that lack what is asked about. Here these are
# sentences with three different names, so that their mean cannot know who is named twice. And one sentence is one
# sentence: we measure on sixteen, each of eight couples in both roles.

# %%
prompts = ml.ioi_prompts(model, 16)
three_names = ml.ioi_prompts(model, 32, seed=1).corrupted("abc")
print(prompts.text(0), "|", prompts.text(1), "|", three_names.text(0))
name = "blocks.20.attn.hook_z"
with torch.no_grad():
    _, theirs = model.run_with_cache(three_names.tokens, names_filter=name, stop_at_layer=21)
    found = {"intact": prompts.metric(model(prompts.tokens))}
    for what, value in (("zero", 0), ("mean", theirs[name][:, :, 0].mean(0))):
        with model.hooks(fwd_hooks=[(name, ablate_head_0(value))]):
            found[what] = prompts.metric(model(prompts.tokens))
given = {"labels": {"head 20.0": [*found]}, "units": prompts.pairs}
left = ml.Scores.over_prompts(
    torch.stack([*found.values()], 1), ("head 20.0",), "logit difference (logits)", **given
)
left.plot(height=300)

# %% kind="assert"
claim(model, "sixteen prompts, intact", left.values[0], says=4.3, within=0.1)
claim(model, "20.0 at zero", left.values[1], says=2.1, within=0.15)
claim(model, "20.0 at its mean", left.values[2], says=2.4, within=0.15)

# %% [markdown]
# Of 4.3 logits, zeros leave 2.1 and the mean leaves 2.4. Here the two nearly agree. Notebook 24 has more ways, and cases where they disagree.
#
# ### Exercise 03.5 Find three heads that this answer needs
#
# Difficulty 4 of 5 · 25 minutes · needs the two cells above
#
# Search on these sentences as you like. The check tries your heads on others, and on facts that have nothing to do with names: a
# head that breaks everything is no find.


# %% kind="exercise" id="03.5"
@exercise("03.5")
def needed_heads() -> list[tuple[int, int]]:
    """One to three heads, (layer, head), without which the model can hardly tell the two names apart.

    Not 20.0 and not 23.3, which you know. The check sets them to zero together. On new names and sentences the logit
    difference must fall by 30 %, and the log-probability of five facts by at most 0.3 nats on average.
    """
    # >>> solution
    return [(17, 4), (16, 0), (29, 1)]
    # <<< solution


# %% kind="check"
check(needed_heads, model=model)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Which layers are worth a search? Heads that work on the names at all must come before the answer, and after the second
# name was read.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# Two loops, over layers 15 to 29 and over nine heads. In each step a hook on `blocks.{layer}.attn.hook_z` that sets one head of
# a copy to zero, and the mean of `prompts.metric`. Four of the sixteen prompts are enough for a first search: `prompts.rows(range(4))`. Sort, and
# try the best three together.
#
# </details>


# %% kind="wrong" id="03.5" expects="you know"
@exercise("03.5")
def needed_heads():
    return [(20, 0), (17, 4), (29, 1)]


# %% kind="wrong" id="03.5" expects="a fall of 30 % is wanted"
@exercise("03.5")
def needed_heads():
    return [(23, 0), (23, 1), (23, 2)]


# %% kind="wrong" id="03.5" expects="breaks"
@exercise("03.5")
def needed_heads():
    return [(17, 4), (0, 1), (16, 0)]


# %% [markdown]
# ## How interventions mislead
#
# `ml.intervene` refuses three mistakes. The first is a mistyped name (plain hooks refuse it too; here you also get the
# nearest names). The second is a hook that exists but never fires, such as GPT-2's position embedding in a model that
# rotates: with plain hooks the "effect" is exactly zero, and looks like a finding. The third is a function that writes
# *into* the tensor it was given, which may change what somebody else holds.


# %% kind="compare"
def write_in_place(z, hook):
    z[:, :, 0] = 0
    return z


attempts = {
    "wrong name": ("blocks.20.attn.hook_zz", ablate_head_0(0)),
    "never fires": ("hook_pos_embed", lambda x, hook: 0 * x),
    "in place": ("blocks.20.attn.hook_z", write_in_place),
}
for what, hook in attempts.items():
    try:
        with torch.no_grad(), ml.intervene(model, [hook]):
            model(pair.clean)
    except ml.HookError as error:
        print(f"{what}: {error}\n")

# %% [markdown]
# A fourth mistake it cannot see: an average over positions. In the middle of the model the begin token is over a hundred
# times longer than the others. In this prompt of 15 tokens a mean over positions that includes it points where the begin token points.

# %%
middle = stream[15]
with_sink, without_sink = middle.mean(0), middle[1:].mean(0)
similarity = torch.cosine_similarity(with_sink, middle[0], dim=0)
print(f"mean over all positions: cosine {similarity:.3f} with the begin token alone")
print(f"its length: {with_sink.norm():.0f}; without position 0: {without_sink.norm():.0f}")

# %% kind="assert"
claim(model, "cosine of the mean with the begin token", similarity, says=1.0, within=0.002)
longer = middle[0].norm() / middle[1:].norm(dim=-1).median()
claim(model, "how many times longer the begin token is", longer, says=145, within=10)
ratio = with_sink.norm() / without_sink.norm()
claim(model, "how many times longer the mean is with it", ratio, says=12.4, within=1)
as_heavy = middle[0].norm() / without_sink.norm()
claim(model, "as many others as weigh as much as the begin token", as_heavy, says=180, within=10)

# %% [markdown]
# In a longer prompt it weighs less. But if the mean of the others stayed this long, it would take about 180 of them to
# weigh as much as the begin token alone. Leave position 0 out.
#
# ### A question
#
# You patch `hook_k`, head 4, of SmolLM2, and get an error. Why?
#
# - **a** Keys cannot be patched in this model.
# - **b** There are 3 key heads, numbered 0 to 2; query head 4 reads key head 1, and so do heads 3 and 5.
# - **c** The layer was not named.

# %% kind="quiz"
quiz("03.a", "b")

# %% [markdown]
# ## Recap
#
# | term | in one line | here | TransformerLens |
# |---|---|---|---|
# | hook | a named place where an activation can be read or changed | `ml.hook_map(model)` | `model.hook_dict` |
# | cache | activations kept from one run | `cache["z", 20]` | `model.run_with_cache` |
# | names filter | keep only some hooks | `ml.only("hook_z")` | `names_filter=` |
# | ablation | a part taken away: zeros, or its mean, in its place | `ablate_head_0` | `model.hooks` |
# | intervention | a list of (hook name, function) | `ml.intervene` | `model.hooks(fwd_hooks=...)` |
# | residual sum | stream = embedding + everything written | `stream_before` | `cache.decompose_resid` |
