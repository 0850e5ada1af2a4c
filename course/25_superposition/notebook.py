# %% [markdown]
# # 25 Superposition
#
# **Question:** how can a model hold more features than it has dimensions?
#
# After this notebook you will be able to
#
# - train the toy models in which superposition appears, and say when it does,
# - measure the share of a dimension that a feature has to itself, and read the geometry from it,
# - design data that decides which features share a line,
# - check a count of neurons against a model with random weights, and a circle of weekdays against a line.
#
# Time: 75 minutes. The cells take about 50 seconds in all. Memory: 2.0 GB.
# Download: none, once the model is here (93 MB). Before: notebooks 02 and 13.

# %% kind="setup"
# (written by the build)

# %% [markdown]
# ## The picture
#
# A small model gets five numbers, its **features**, squeezes them through two dimensions and must give them back. It is trained on
# random examples, to make the squared difference between what goes in and what comes back small. Each arrow is the direction that one feature gets. From left to
# right the features become rarer: **density** is how often each is present. A feature counts as kept if its arrow is longer than 0.5.

# %%
toy = ml.train_toy_models(5, 2, density=(1.0, 0.3, 0.1, 0.05, 0.02), seed=0)
ml.plot_directions(toy)

# %% kind="assert"
kept = (toy.norms.values > 0.5).sum(1)
print("features kept, by density:", dict(zip(toy.density, kept.tolist(), strict=True)))
assert abs(toy.norms.values[0].pow(2).sum() - 2) < 0.3 and kept[1] == 4 and kept[2] == 5

# %% [markdown]
# Features that are always there do not fit: the arrows are shortened, and share what two dimensions give (their squared lengths add up to about 2). At density 0.3 four features stand in two opposite pairs, and the fifth is
# forgotten. At 0.1 all five are there, in a **pentagon**. More features than dimensions, in directions that are not at right angles, is
# called **superposition** (Elhage et al. 2022).
#
# ## By hand
#
# The whole model: $h = x W$, $x' = \mathrm{ReLU}(h W^\top + b)$. Row i of W is the direction of feature i, and b has one number for each feature. The **ReLU** sets
# everything below zero to 0. The same matrix packs and unpacks. With a negative b, small mistakes end below zero, and the ReLU removes them.
#
# ### Exercise 25.1 Pack and unpack
#
# Difficulty 1 of 5 · 5 minutes · needs the lines above


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

# %% [markdown]
# ### Exercise 25.2 Sparse features
#
# Difficulty 2 of 5 · 5 minutes · needs nothing


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
# The pentagon's five features share two dimensions, 2/5 each. In general: the squared length of a feature's direction, divided by the sum of its squared overlaps
# with all features, itself included.
#
# $$D_i = \frac{|W_i|^2}{\sum_j (\hat W_i \cdot W_j)^2}$$
#
# $W_i$ is the direction of feature i. A hat means scaled to length 1.
#
# ### Exercise 25.3 Feature dimensionality
#
# Difficulty 2 of 5 · 10 minutes · needs the formula above


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

# %%
shares = toy.dimensionality.values
toy.dimensionality.plot(height=320, title="share of a dimension that each feature has")

# %% kind="assert"
assert (ml.feature_dimensionality(toy.W) - shares).abs().max() < 1e-6
assert (shares[1] - torch.tensor([0.0, 0.5, 0.5, 0.5, 0.5])).abs().max() < 0.05
assert (shares[2] - 0.4).abs().max() < 0.03 < (shares[4] - 0.4).abs().max()

# %% [markdown]
# At density 0.3 four features have half a dimension each: opposite pairs. At 0.1 all have 2/5: the pentagon. Both are in the paper. Where does
# one turn into the other? Move the slider.

# %%
from mechlab.pictures.widgets import toy_explorer

fine = ml.train_toy_models(5, 2, density=[round(0.02 * 1.2**n, 3) for n in range(22)][::-1], seed=0)
toy_explorer(fine, start=6)

# %% kind="assert"
found = dict(zip(fine.density, fine.dimensionality.values, strict=True))
assert ((found[0.767] - 2 / 3).abs() < 0.03).sum() == 3
assert all((found[density] - 0.4).abs().max() < 0.03 for density in fine.density if density < 0.18)
assert (found[0.767] < 0.1).sum() == 2 and (found[0.214] < 0.1).sum() == 1
assert all(((found[d] - 0.5).abs() < 0.05).sum() == 4 for d in (0.214, 0.257))

# %% [markdown]
# At density 0.77 three features stand in a triangle, 2/3 each, and two are forgotten. Later four stand in two pairs. Between 0.21 and 0.18 the pairs turn into
# the pentagon. (Above 0.3 some models end between two shapes, and the model at 0.02 in the table above is a bent pentagon: look at several starts before you
# trust one.)
#
# **Question 25.b.** Eight equally important, very rare features are kept in three dimensions, all alike. What share of a dimension has each?
#
# - **a** 1/2: they stand in opposite pairs.
# - **b** 3/8.
# - **c** 2/5, as in the pentagon.
# - **d** 1/8: each has one eighth of the space.

# %% kind="quiz"
quiz("25.b", "b")

# %% [markdown]
# ## Predict: when does it start?
#
# Twenty features, five dimensions, and feature i only 0.7 times as important as the one before: its error counts 0.7 times as much in the training. If
# every feature is always present, how many of them will the model keep?

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
).plot(lines=True, xaxis_type="category")

# %% kind="assert"
assert counts[0, 0] == counts[0, 1] == 5 < counts[0, 2] and 10 <= counts[0, -1] <= 14
for one in (many, linear):
    assert (one.norms.values[0] > 0.5).nonzero()[:, 0].tolist() == [0, 1, 2, 3, 4]
assert (counts[1] == 5).all()
reveal("25.p", int(counts[0, 0]))

# %% [markdown]
# <details><summary>What we saw</summary>
#
# Five, one for each dimension, and they are the five most important. As features become rare the model keeps more of them: with the ReLU this has begun at
# density 0.25 (where exactly differs from start to start) and ends at a dozen. A linear model, without the ReLU, never keeps more than five.
#
# </details>
#
# The reason: where directions are not at right angles, a feature leaks into its neighbours. That is **interference**. While one feature is present alone, b and
# the ReLU can cut off what leaks. When several are present together they cannot, and with rare features that seldom happens. So rarity makes superposition pay,
# and **without a nonlinearity it does not pay**: nothing removes the interference.
#
# ## Who shares a line with whom?
#
# Four equally frequent features in two dimensions: two opposite pairs. Which two become a pair? Six starts, with features that are present independently of each other:

# %%
from mechlab.pictures import plots

four = ml.train_toy_models(4, 2, density=(0.1,) * 6, seed=1)
plots.arrows([*four.W], [f"start {n}" for n in range(1, 7)], "four features, density 0.1")

# %% kind="assert"
directions = torch.nn.functional.normalize(four.W, dim=-1)
partners = torch.einsum("nd,nfd->nf", directions[:, 0], directions).argmin(1)
print("opposite feature 0 stands feature", partners.tolist())
assert len(set(partners.tolist())) > 1

# %% [markdown]
# Chance decides: feature 0 stands opposite another feature from start to start. In real data features are not independent. Some never meet, some always do. Can the data decide who shares a
# line?
#
# ### Exercise 25.5 Choose the pair
#
# Difficulty 4 of 5 · 20 minutes · needs 25.2
#
# Design examples with four features so that 0 and 1 share a line and point opposite ways. All four must be equally frequent (each in 5 to 50 % of the examples) and
# equally large. The check trains 32 models on your examples. In each group of four starts it keeps the model with the lowest loss. In seven of the eight groups 0
# and 1 must share a line. Try it first: `ml.plot_directions(ml.train_toy_models(4, 2, density=(0.2,) * 6, sample=draw))`.


# %% kind="exercise" id="25.5"
@exercise("25.5")
def draw(count: int, generator: torch.Generator) -> Float[Tensor, "count 4"]:
    """Examples with four features between 0 and 1, after which features 0 and 1 share a line."""
    # >>> solution
    size = torch.rand(count, 4, generator=generator)
    which = torch.rand(count, 2, generator=generator)
    first, second = which < 0.25, (which >= 0.25) & (which < 0.5)  # never both
    return size * torch.stack([first, second], dim=2).flatten(1)
    # <<< solution


# %% kind="check"
check(draw)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Let x be 0.8 for one feature and 0.8 for the one opposite, at once. What arrives in the middle? When would sharing a line cost nothing?
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# Change who is present with whom, and nothing else. One draw can decide between three cases: this one, that one, or neither of the two. The rarer all features are,
# the less they meet anyway, and the less your design matters.
#
# </details>


# %% kind="wrong" id="25.5" expects="meet as often"
@exercise("25.5")
def draw(count, generator):
    size = torch.rand(count, 4, generator=generator)
    return size * (torch.rand(count, 4, generator=generator) < 0.2)


# %% kind="wrong" id="25.5" expects="come together"
@exercise("25.5")
def draw(count, generator):
    x = torch.rand(count, 4, generator=generator) * (torch.rand(count, 4, generator=generator) < 0.1)
    x[:, 1], x[:, 3] = x[:, 0], x[:, 2]
    return x


# %% kind="wrong" id="25.5" expects="equally frequent"
@exercise("25.5")
def draw(count, generator):
    size = torch.rand(count, 4, generator=generator)
    return size * (torch.rand(count, 4, generator=generator) < torch.tensor([0.4, 0.4, 0.1, 0.1]))


# %% kind="wrong" id="25.5" expects="5 to 50"
@exercise("25.5")
def draw(count, generator):
    x = torch.rand(count, 4, generator=generator)
    x[:, 2:] = 0
    return x * (torch.rand(count, 4, generator=generator) < 0.2)


# %% [markdown]
# So a shared line does not mean that two features have to do with each other. It can mean that they never meet. Elhage et al. found both sides: features
# that exclude each other become opposite, and features that come together stand at right angles, where they cannot disturb each other.
#
# ## In the real model
#
# If features lie in superposition, a single neuron need not stand for one thing. One that is active for several unrelated things is called **polysemantic**. Take
# the text that the model wrote, and for a neuron of layer 12 the tokens on which it is most active. Each entry shows two tokens; the neuron is active on the
# second. (Only the positive side. These neurons can also be strongly negative, notebook 13; we leave that out.)

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
# Read them, and try to name what each neuron is for. One way to measure it without reading: how large is the share of the *commonest* token among a neuron's 20
# loudest places? (1: always the same token. 0.05: all different.) The same function counts from how many of the 48 texts the 20 come.


# %%
def loudest_places(one):
    """For the 20 loudest places of each neuron of layer 12 of a model: tokens and texts, counted."""
    with torch.no_grad():
        _, cache = one.run_with_cache(texts, names_filter="blocks.12.mlp.hook_post", stop_at_layer=13)
    tops = cache["post", 12][:, 4:].flatten(0, 1).topk(20, dim=0).indices.T  # [neuron, 20]
    spoken, rows = texts[:, 4:].flatten()[tops], tops // (texts.shape[1] - 4)
    same = torch.stack([(row == row.mode().values).float().mean() for row in spoken])
    count = torch.tensor([row.unique().numel() for row in rows]).float()
    return {
        "share of the commonest token, mean": same.mean().item(),
        "neurons with at least 16 of 20 the same": (same >= 0.8).sum().item(),
        "texts, mean": count.mean().item(),
    }


trained = loudest_places(model)
{what: round(value, 2) for what, value in trained.items()}

# %% kind="assert"
share, nearly_one, _ = trained.values()
claim(model, "mean share of the commonest token", share, says=0.19, within=0.02)
claim(model, "neurons with nearly one token on top", nearly_one, says=3, within=2)
assert model.cfg.d_mlp == 1536 and len(texts) == 48

# %% [markdown]
# Only 3 of 1,536 neurons have the same token at 16 or more of their 20 loudest places. Does that come from training? The control: a model with random weights.

# %%
import pandas as pd

both = [trained, loudest_places(ml.random_weights(model))]
control = pd.DataFrame(both, index=["the model", "random weights"]).round(2)
control

# %% kind="assert"
claim(model, "share of the commonest token, random weights", control.iloc[1, 0], says=0.15, within=0.02)
assert abs(control.iloc[0, 1] - control.iloc[1, 1]) < 8
claim(model, "texts of the 20 loudest", control.iloc[0, 2], says=12.7, within=1)
claim(model, "texts of the 20 loudest, random weights", control.iloc[1, 2], says=2.7, within=1)

# %% [markdown]
# A random model has about as many neurons with one token on top. So this count says nothing about what training does. The number of *texts* does: the 20 loudest
# places of a trained neuron come from 13 of the 48 texts on average, those of a random one from 3. Keep that control in mind for notebook 26.
#
# Back to the four lists. Neuron 0 answers to digits, mostly after another digit, and neuron 3 mostly to places in code. Neuron 2 answers to " is" and " was", and
# also to colons: one thing or two? For neuron 1 we found no name. (Different tokens can still be one topic. And reading the loudest examples is
# choosing: it says nothing about the many quieter ones.)
#
# **Question 25.a.** A neuron is active on commas in lists and on French words. Which finding would speak *against* two features that share it?
#
# - **a** Commas in lists and French words are hardly ever present together.
# - **b** In a model with random weights as many neurons are mixed in this way.
# - **c** Over all other neurons of the layer, commas in lists and French words look alike.
# - **d** Without the neuron, the model predicts worse after both.

# %% kind="quiz"
quiz("25.a", "c")

# %% [markdown]
# ## Is a feature a direction?
#
# So far each feature had one direction, and was more or less present along it. That language models work like this is the **linear representation hypothesis** (Park et al. 2023). Probes, steering and
# the autoencoders of notebook 26 build on it, and often it serves. But what direction would "weekday" have? After Sunday comes Monday again. Take the stream at the seven weekdays, in
# eight sentences, and look at the two directions in which their means differ most. For comparison: the numbers one to seven, and the embeddings of the weekdays.

# %%
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
NUMBERS = "one two three four five six seven".split()
ON = """The meeting will take place on {}|She was born on a {}|We will come back next {}|The shop is closed every {}
It all began last {}|Nobody works here on {}|The letter arrived on {}|He always calls his mother on {}"""
OF = """The number that she chose was {}|We counted up to {}|The house has number {}|The answer was {}
They stopped at {}|Nobody got more than {}|The clock struck {}|He always bets on {}"""


def word_means(words, frames):
    """The stream leaving layer 12 at each word, less the mean over words: [sentence, word, d_model]."""
    rows = []
    for frame in frames.replace("\n", "|").split("|"):
        tokens = model.to_tokens([frame.format(word) for word in words])
        with torch.no_grad():
            _, cache = model.run_with_cache(
                tokens, names_filter="blocks.12.hook_resid_post", stop_at_layer=13
            )
        rows.append(cache["resid_post", 12][:, -1])
    return torch.stack(rows) - torch.stack(rows).mean(1, keepdim=True)


embedded = model.W_E[[model.to_single_token(" " + day) for day in DAYS]].detach()
streams = {"weekdays (0 is Monday)": word_means(DAYS, ON), "one (0) to seven (6)": word_means(NUMBERS, OF)}
streams["weekdays, embeddings"] = (embedded - embedded.mean(0))[None]
means = {name: each.mean(0) for name, each in streams.items()}
planes = {name: each @ torch.linalg.svd(each)[2][:2].T for name, each in means.items()}
planes = {name: each / each.norm(dim=1).mean() for name, each in planes.items()}
plots.arrows([*planes.values()], [*planes], "the two main directions, mean length 1", width=760)

# %% [markdown]
# All three go round in order. Circles? Not yet: points on a *line* whose neighbours are alike also bend into an arch in such a picture. What tells them apart is the gap. On a line the last and the first
# are the farthest pair of all; on a circle they are neighbours. So rank this pair among all 21, by distance in all dimensions.


# %%
def ends(points):
    """Distance of the last from the first, in mean distances of neighbours; and its rank among all pairs, nearest first."""
    d = torch.cdist(points, points)
    return (d[0, 6] / d.diagonal(1).mean()).item(), int((d[*torch.triu_indices(7, 7, 1)] <= d[0, 6]).sum())


rank = {name: ends(each)[1] for name, each in means.items()}
gap = {name: torch.tensor([ends(each)[0] for each in every]) for name, every in streams.items()}
for name, each in gap.items():
    print(f"{name}: last and first are pair {rank[name]} of 21, {ml.statistics.estimate(each)} apart")
order = {name: each[:, 1].atan2(each[:, 0]).argsort().tolist() for name, each in planes.items()}

# %% kind="assert"
days, numbers, embeddings = rank.values()
claim(model, "rank, weekdays", days, says=11, within=3)
claim(model, "rank, numbers", numbers, says=21, within=1)
claim(model, "rank, embeddings of the weekdays", embeddings, says=18, within=2)
for name in order:
    turned = [order[name][(order[name].index(0) + n) % 7] for n in range(7)]
    assert turned in ([0, 1, 2, 3, 4, 5, 6], [0, 6, 5, 4, 3, 2, 1])

# %% [markdown]
# The numbers are an arch: one and seven are the farthest pair. In the embeddings the weekdays nearly are one too. After layer 12 they have closed half-way: Sunday and Monday are the eleventh pair of 21, no neighbours, but no ends
# of a line either. (The rank alone says little: seven points in no order at all give 11 on average. The order in the picture says the rest: by chance it is right once in 360 times.) So one direction does not describe the day of the week here, and a perfect circle does not either. Engels et al. (2024)
# found circles of weekdays in GPT-2 and Mistral, and showed by intervention that two larger models calculate with them. We only saw a shape: nothing here shows that this model uses it.
#
# ## How it misleads
#
# **A toy is a toy.** Its features are given, and we chose how rare they are and who meets whom. Nobody hands us the features of a language model.
#
# **Starts differ.** The same model from six starts. The pentagon comes each time, but turned, and with its features in another order (the numbers at the
# tips).

# %%
starts = ml.train_toy_models(5, 2, density=(0.05,) * 6, seed=3)
plots.arrows([*starts.W], [f"start {n}" for n in range(1, 7)], "feature directions, density 0.05")

# %% kind="assert"
print("loss of the six starts:", ", ".join(f"{loss:.4f}" for loss in starts.loss))
assert (starts.dimensionality.values - 0.4).abs().max() < 0.05
around = starts.W[..., 1].atan2(starts.W[..., 0]).argsort(1).tolist()
around = [row[row.index(0) :] + row[: row.index(0)] for row in around]
print("features of the six starts, once around:", around)
assert len({tuple(row) for row in around}) > 1

# %% [markdown]
# So a direction found in one trained model is not the direction in the next. For one of its figures the paper trains ten models each time and drops the worst.
# Report the spread, or say which you kept.
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
# | linear representation hypothesis | a feature is a direction, more or less present | |
#
# Papers: Elhage et al. 2022, Toy Models of Superposition; Park et al. 2023; Engels et al. 2024. Next: notebook 26 tries to undo the mix.
