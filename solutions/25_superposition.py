# %% [markdown]
# # 25 Superposition
#
# **Question:** how can a model hold more features than it has dimensions?
#
# After this notebook you will be able to
#
# - train the toy models in which superposition appears, and say when it does,
# - measure the share of a dimension that a feature has to itself, and read the geometry from it,
# - find a neuron of the real model that answers to several unrelated things.
#
# Time: 60 minutes. The cells take about 50 seconds in all. Memory: 1.5 GB.
# Download: none, once the model is here (93 MB). Before: notebooks 02 and 13.

# %% kind="setup"
# (written by the build)

# %% [markdown]
# ## The picture
#
# A small model gets five numbers, its **features**, squeezes them through two dimensions and must give them back. Each arrow is the direction
# that one feature gets. From left to right the features become rarer: **density** is how often each is present.

# %%
toy = ml.train_toy_models(5, 2, density=(1.0, 0.3, 0.1, 0.05, 0.02), seed=0)
ml.plot_directions(toy)

# %% kind="assert"
kept = (toy.norms.values > 0.7).sum(1)
print(
    "features with a direction of their own, by density:", dict(zip(toy.density, kept.tolist(), strict=True))
)
assert abs(toy.norms.values[0].pow(2).sum() - 2) < 0.3 and kept[1] == 4 and kept[2] == 5

# %% [markdown]
# Features that are always there do not fit: five shortened arrows share what two dimensions give (their squared lengths add up to about 2). At density 0.3 four features stand in two opposite pairs, and the fifth is
# forgotten. At 0.1 all five are there, in a **pentagon**. More features than dimensions, in directions that are not at right angles, is
# called **superposition** (Elhage et al. 2022).
#
# ## By hand
#
# The whole model: $h = x W$, $x' = \mathrm{ReLU}(h W^\top + b)$. The same matrix packs and unpacks; the ReLU throws small mistakes away.
#
# ### Exercise 25.1 Pack and unpack
#
# Difficulty 1 of 5 · 10 minutes · needs the line above


# %% kind="exercise" id="25.1"
@exercise("25.1")
def reconstruct(
    x: Float[Tensor, "example feature"], W: Float[Tensor, "feature hidden"], b: Float[Tensor, "feature"]
) -> Float[Tensor, "example feature"]:
    """What the toy model gives back: packed with W, unpacked with its transpose, plus b, through a ReLU."""
    # >>> solution
    return (x @ W @ W.T + b).relu()
    # <<< solution


# %% kind="check"
check(reconstruct)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Two matrix products, one addition, one ReLU.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# `x @ W` has shape [example, hidden]. `@ W.T` brings it back to [example, feature].
#
# </details>
# <details><summary>Hint 3: the answer</summary>
#
# ```python
# return (x @ W @ W.T + b).relu()
# ```
#
# </details>


# %% kind="wrong" id="25.1" expects="ReLU is missing"
@exercise("25.1")
def reconstruct(x, W, b):
    return x @ W @ W.T + b


# %% kind="wrong" id="25.1" expects="before the ReLU"
@exercise("25.1")
def reconstruct(x, W, b):
    return (x @ W @ W.T).relu() + b


# %% kind="wrong" id="25.1" expects="hidden numbers"
@exercise("25.1")
def reconstruct(x, W, b):
    return ((x @ W).relu() @ W.T + b).relu()


# %% [markdown]
# ### Exercise 25.2 Sparse features
#
# Difficulty 2 of 5 · 10 minutes · needs nothing


# %% kind="exercise" id="25.2"
@exercise("25.2")
def sparse_features(
    count: int, features: int, density: float, generator: torch.Generator
) -> Float[Tensor, "count feature"]:
    """Each number is present with probability `density`, independently, and then uniform between 0 and 1; otherwise 0."""
    # >>> solution
    values = torch.rand(count, features, generator=generator)
    present = torch.rand(count, features, generator=generator) < density
    return values * present
    # <<< solution


# %% kind="check"
check(sparse_features)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Two independent draws: how large, and whether at all.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# `torch.rand(..., generator=generator)` for the sizes, and a second one, compared with `density`, for the presence.
#
# </details>
# <details><summary>Hint 3: the answer</summary>
#
# ```python
# values = torch.rand(count, features, generator=generator)
# present = torch.rand(count, features, generator=generator) < density
# return values * present
# ```
#
# </details>


# %% kind="wrong" id="25.2" expects="same draw"
@exercise("25.2")
def sparse_features(count, features, density, generator):
    values = torch.rand(count, features, generator=generator)
    return values * (values < density)


# %% kind="wrong" id="25.2" expects="whole examples"
@exercise("25.2")
def sparse_features(count, features, density, generator):
    values = torch.rand(count, features, generator=generator)
    return values * (torch.rand(count, 1, generator=generator) < density)


# %% kind="wrong" id="25.2" expects="absent"
@exercise("25.2")
def sparse_features(count, features, density, generator):
    values = torch.rand(count, features, generator=generator)
    return values * (torch.rand(count, features, generator=generator) > density)


# %% [markdown]
# ## How much of a dimension?
#
# The pentagon's five features share two dimensions, 2/5 each. In general: the squared length of a feature's direction, divided by how much all features overlap
# with it, its own length included.
#
# $$D_i = \frac{|W_i|^2}{\sum_j (\hat W_i \cdot W_j)^2}$$
#
# ### Exercise 25.3 Feature dimensionality
#
# Difficulty 3 of 5 · 20 minutes · needs the formula above


# %% kind="exercise" id="25.3"
@exercise("25.3")
def dimensionality(W: Float[Tensor, "feature hidden"]) -> Float[Tensor, "feature"]:
    """The share of a dimension that each feature has to itself. A hat means scaled to length 1. No feature has length 0."""
    # >>> solution
    length = W.norm(dim=1)
    overlap = (W / length[:, None]) @ W.T
    return length**2 / overlap.pow(2).sum(1)
    # <<< solution


# %% kind="check"
check(dimensionality)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Only the i in the sum is scaled to length 1, not the j.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# `(W / length[:, None]) @ W.T` has the overlaps of feature i in row i. Square, and add along the row.
#
# </details>
# <details><summary>Hint 3: the answer</summary>
#
# ```python
# length = W.norm(dim=1)
# overlap = (W / length[:, None]) @ W.T
# return length**2 / overlap.pow(2).sum(1)
# ```
#
# </details>


# %% kind="wrong" id="25.3" expects="both sides"
@exercise("25.3")
def dimensionality(W):
    unit = W / W.norm(dim=1, keepdim=True)
    return 1 / (unit @ unit.T).pow(2).sum(1)


# %% kind="wrong" id="25.3" expects="without its own"
@exercise("25.3")
def dimensionality(W):
    length = W.norm(dim=1)
    overlap = ((W / length[:, None]) @ W.T).pow(2)
    return length**2 / (overlap.sum(1) - overlap.diagonal())


# %% kind="wrong" id="25.3" expects="not squared"
@exercise("25.3")
def dimensionality(W):
    length = W.norm(dim=1)
    overlap = (W / length[:, None]) @ W.T
    return length**2 / overlap.abs().sum(1)


# %%
toy.dimensionality.plot(height=320)

# %% kind="assert"
shares = toy.dimensionality.values
assert (ml.feature_dimensionality(toy.W) - shares).abs().max() < 1e-6
assert (shares[1] - torch.tensor([0.0, 0.5, 0.5, 0.5, 0.5])).abs().max() < 0.05
assert (shares[2] - 0.4).abs().max() < 0.03

# %% [markdown]
# At density 0.3 four features have half a dimension each: opposite pairs. At 0.1 all have 2/5: the pentagon. Both are in the paper. Where does
# one turn into the other? Move the slider.

# %%
from mechlab.widgets import toy_explorer

fine = ml.train_toy_models(5, 2, density=[round(0.02 * 1.2**n, 3) for n in range(22)][::-1], seed=0)
toy_explorer(fine, start=6)

# %% kind="assert"
found = dict(zip(fine.density, fine.dimensionality.values, strict=True))
assert ((found[0.767] - 2 / 3).abs() < 0.03).sum() == 3
assert all((found[density] - 0.4).abs().max() < 0.03 for density in fine.density if density < 0.18)
assert (found[0.214] < 0.1).any()

# %% [markdown]
# Three in a triangle, 2/3 each, at density 0.77. Then four in two pairs. Below 0.18 always the pentagon. (Above 0.3 some end between two shapes: look
# at several starts before you trust one.)
#
# ## Predict: when does it start?
#
# Twenty features, five dimensions, and feature i only 0.7 times as important as the one before. If every feature is always present, how many of them will the
# model keep?

# %% kind="predict"
predict("25.p", 5)

# %%
density = (1.0, 0.5, 0.25, 0.12, 0.06, 0.03, 0.01)
importance = 0.7 ** torch.arange(20)
many = ml.train_toy_models(20, 5, density=density, importance=importance, seed=1)
linear = ml.train_toy_models(20, 5, density=density, importance=importance, linear=True, seed=1)
counts = torch.stack([(model_.norms.values > 0.5).sum(1).float() for model_ in (many, linear)])
labels = {"model": ["with ReLU", "linear"], "density": [f"{d:g}" for d in density]}
ml.Scores(
    counts, ("model", "density"), "features kept, of 20", labels, {"dimensions": 5.0}, signed=False
).plot(lines=True)

# %% kind="assert"
assert counts[0, 0] == 5 and counts[0, -1] >= 10
assert (counts[1] == 5).all()
reveal("25.p", int(counts[0, 0]))

# %% [markdown]
# Five, one for each dimension, the five most important: that is what principal components would do. As features become rare the model keeps more of
# them, in the end a dozen. The linear model never does: **without a nonlinearity superposition does not pay**, since nothing removes the interference.
#
# Rarity is what makes it pay: two features that share a direction get in each other's way only when both are present.
#
# ### Exercise 25.4 Interference
#
# Difficulty 2 of 5 · 15 minutes · needs 25.1


# %% kind="exercise" id="25.4"
@exercise("25.4")
def interference(W: Float[Tensor, "feature hidden"]) -> Float[Tensor, "feature"]:
    """For each feature i: the sum over all *other* features j of the squared inner product of W_i and W_j."""
    # >>> solution
    products = (W @ W.T).pow(2)
    return products.sum(1) - products.diagonal()
    # <<< solution


# %% kind="check"
check(interference)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# `W @ W.T` has all inner products. Which of them is a feature with itself?
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# Square, add along the rows, and take the diagonal off.
#
# </details>
# <details><summary>Hint 3: the answer</summary>
#
# ```python
# products = (W @ W.T).pow(2)
# return products.sum(1) - products.diagonal()
# ```
#
# </details>


# %% kind="wrong" id="25.4" expects="with itself"
@exercise("25.4")
def interference(W):
    return (W @ W.T).pow(2).sum(1)


# %% kind="wrong" id="25.4" expects="not squared"
@exercise("25.4")
def interference(W):
    products = W @ W.T
    return products.sum(1) - products.diagonal()


# %% kind="wrong" id="25.4" expects="length 1"
@exercise("25.4")
def interference(W):
    unit = W / W.norm(dim=1, keepdim=True)
    products = (unit @ unit.T).pow(2)
    return products.sum(1) - products.diagonal()


# %% [markdown]
# ## In the real model
#
# If features lie in superposition, a single neuron need not stand for one thing. Take the text that the model wrote, and for a neuron of layer 12 the tokens on
# which it is most active:

# %%
texts = ml.own_text(model, length=81, count=48)
with torch.no_grad():
    _, cache = model.run_with_cache(texts, names_filter="blocks.12.mlp.hook_post", stop_at_layer=13)
active = cache["post", 12][:, 4:]  # without the first positions, the attention sink


def loudest(neuron, k=12):
    """The k tokens on which a neuron is most active, each with the token before."""
    rows, places = torch.unravel_index(active[..., neuron].flatten().topk(k).indices, active.shape[:2])
    return [
        model.tokenizer.decode(texts[r, p + 3 : p + 5].tolist()) for r, p in zip(rows, places, strict=True)
    ]


for neuron in (0, 1, 2, 3):
    print(f"12, neuron {neuron}:", loudest(neuron))

# %% [markdown]
# Read them, and try to name what each neuron is for. How many kinds of tokens are in a neuron's top twelve? One way to count without reading: the number of
# *different* tokens.

# %%
with torch.no_grad():
    tops = active.flatten(0, 1).topk(20, dim=0).indices  # [20, neuron]
    spoken = texts[:, 4:].flatten()[tops]
    purity = torch.stack([(column == column.mode().values).float().mean() for column in spoken.T])
print(f"share of the commonest token among a neuron's 20 loudest: mean {purity.mean():.2f}")
print(f"neurons with at least 16 of 20 the same: {(purity >= 0.8).sum()} of {len(purity)}")

# %% kind="assert"
claim(model, "mean share of the commonest token", purity.mean(), says=0.19, within=0.02)
claim(model, "neurons with nearly one token on top", (purity >= 0.8).sum(), says=3, within=2)

# %% [markdown]
# Only 3 of 1,536 neurons have nearly the same token on top each time. Does that come from training? The control: the same count for a model with random weights.


# %%
def loudest_places(model):
    """Two means over the neurons of layer 12, for the 20 loudest places: share of the commonest token, number of texts."""
    with torch.no_grad():
        _, cache = model.run_with_cache(texts, names_filter="blocks.12.mlp.hook_post", stop_at_layer=13)
    tops = cache["post", 12][:, 4:].flatten(0, 1).topk(20, dim=0).indices.T  # [neuron, 20]
    spoken, rows = texts[:, 4:].flatten()[tops], tops // (texts.shape[1] - 4)
    same = torch.stack([(row == row.mode().values).float().mean() for row in spoken])
    count = torch.tensor([row.unique().numel() for row in rows]).float()
    return {"share of the commonest token": same.mean().item(), "nearly one token": (same >= 0.8).sum().item(),
            "texts": count.mean().item()}  # fmt: skip


import pandas as pd

control = pd.DataFrame(
    {"the model": loudest_places(model), "random weights": loudest_places(ml.random_weights(model))}
).T.round(2)
control

# %% kind="assert"
claim(model, "share of the commonest token, random weights", control.iloc[1, 0], says=0.15, within=0.02)
assert abs(control.iloc[0, 1] - control.iloc[1, 1]) < 8
claim(model, "texts of the 20 loudest", control.iloc[0, 2], says=12.7, within=1)
claim(model, "texts of the 20 loudest, random weights", control.iloc[1, 2], says=2.7, within=1)

# %% [markdown]
# A random model has about as many neurons with one token on top. So this count says nothing about what training does. The number of *texts* does: the 20 loudest
# places of a trained neuron come from 13 texts, those of a random one from 3. Keep that control in mind for notebook 26.
#
# Now read the lists. Neuron 0 answers to pairs of digits, neuron 3 to places in code; neurons 1 and 2 to nothing that one could name: " word of", "'ve heard",
# " music is", " Reason:". (Different tokens can still be one topic. And reading the loudest examples is choosing: it says nothing about the
# many quieter ones.)
#
# **Question 25.a.** A neuron is active on commas in lists and on French words. What does superposition say about it?
#
# - **a** Commas in lists and French words mean the same to the model.
# - **b** They may be two features that share this neuron, because they are rarely present together.
# - **c** The neuron is badly trained.

# %% kind="quiz"
quiz("25.a", "b")

# %% [markdown]
# ## How it misleads
#
# **A toy is a toy.** Its features are given, independent and equally rare. Nobody hands us the features of a language model.
#
# **Starts differ.** The same model from six starts. The pentagon comes each time; which feature stands where does not.

# %%
starts = ml.train_toy_models(5, 2, density=(0.05,) * 6, seed=3)
ml.plot_directions(starts)

# %% kind="assert"
print("loss of the six starts:", [f"{loss:.4f}" for loss in starts.loss])
assert (starts.dimensionality.values - 0.4).abs().max() < 0.05
order = starts.W[..., 1].atan2(starts.W[..., 0]).argsort(1)
assert not all(torch.equal(order[0], other) for other in order[1:])

# %% [markdown]
# So a direction found in one trained model is not the direction in the next. And with fewer steps some starts end worse: the paper trains ten models and drops
# the worst. Report the spread, or say which you kept.
#
# ## Beside the papers

# %%
mine = {
    "share of a dimension in the pentagon": shares[2].mean().item(),
    "features kept of 20 in 5 dimensions, all present": counts[0, 0].item(),
    "features kept of 20 in 5 dimensions, rare": counts[0, -1].item(),
}
ml.reference.table("25", mine)

# %% [markdown]
# | term | in one line | `mechlab` |
# |---|---|---|
# | feature | a property of the input that the model represents | |
# | superposition | more features than dimensions, in directions that interfere a little | `ml.train_toy_models` |
# | dimensionality | the share of a dimension that a feature has to itself | `ml.feature_dimensionality` |
# | polysemantic neuron | a neuron that is active for several unrelated things | |
#
# Paper: Elhage et al. 2022, Toy Models of Superposition. Next: notebook 26 tries to undo the mix.
