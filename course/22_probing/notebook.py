# %% [markdown]
# # 22 Probing
#
# **Question:** is it in there, and what must a probe beat before we believe it?
#
# After this notebook you will be able to
#
# - train a linear probe on activations and test it on groups that it has not seen,
# - name four floors for its accuracy, and make each of them,
# - take an impressive probe apart with one well-chosen baseline.
#
# Time: 95 minutes. The cells take about 90 seconds in all. Memory: 2.8 GB.
# Download: none, once the model is here (93 MB). Before: notebooks 02 and 03.

# %% kind="setup"
# (written by the build)

# %% [markdown]
# ## The picture
#
# "The film was wonderful." Is the feeling in the residual stream at the full stop? 48 adjectives, half of them positive, with three nouns:
# 144 sentences. On each layer's stream a **probe** learns to tell positive from negative. Ours is logistic regression: a weighted sum of the
# 576 numbers of the stream; above a threshold it says positive. The adjectives are dealt into five parts. A probe learns on four and is tested on
# the fifth, five times over, so that each sentence is tested once, by a probe that has never seen its adjective. Layer 30 stands for the stream
# after the last layer.

# %%
import numpy as np
import pandas as pd

folder = ml.reference.data_dir() / "probing"
listed = pd.read_csv(folder / "adjectives.csv")
words = np.repeat(listed.adjective.to_numpy(), 3)
positive = np.repeat(listed.positive.to_numpy(), 3)
nouns = ["film", "book", "meal"] * len(listed)
some = [0, 1, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30]
streams = ml.residual_streams(model, [f"The {n} was {w}." for n, w in zip(nouns, words, strict=True)])[some]

# %%
real = ml.probe_layers(streams, positive, groups=words).score.values


def drawn(rows, title="share of held-out examples right"):
    labels = {"probe": list(rows), "layer": [str(layer) for layer in some]}
    values = torch.stack(list(rows.values()))
    chance = {"chance": 0.5}
    return ml.Scores(values, ("probe", "layer"), title, labels, chance, signed=False).plot(lines=True)


drawn({"feeling, new adjectives": real}, "feeling, new adjectives: share of held-out examples right")

# %% kind="assert"
claim(model, "accuracy on entering layer 1", real[1], says=0.79, within=0.04)
claim(model, "accuracy on entering layer 6", real[3], says=0.99, within=0.02)
claim(model, "accuracy on entering layer 0", real[0], says=0.48, within=0.05)
assert real[4:].min() > 0.97

# %% [markdown]
# On entering layer 0 there is only the full stop, so nothing can be told (0.48). On entering layer 1 the probe is right on 79 %, and from layer 6 on,
# on 99 % of sentences with adjectives that it has never seen. That looks convincing. The rest of this notebook is about what such a number is worth.
#
# ## By hand: the simplest probe
#
# No training is needed: take the mean of each class, and ask which of the two means an example is nearer to.
#
# ### Exercise 22.1 The mass-mean probe
#
# Difficulty 2 of 5 · 10 minutes · needs nothing


# %% kind="exercise" id="22.1"
@exercise("22.1")
def mass_mean_predictions(
    train: Float[Tensor, "example d_model"],
    labels: Int[Tensor, "example"],
    test: Float[Tensor, "other d_model"],
) -> Int[Tensor, "other"]:
    """Project on the line between the two class means of `train`, split at the middle.

    Returns 1 for a test example on the side of class 1, 0 on the other. `labels` are 0 and 1.
    """
    # >>> solution
    low, high = train[labels == 0].mean(0), train[labels == 1].mean(0)
    return ((test - (low + high) / 2) @ (high - low) > 0).long()
    # <<< solution


# %% kind="check"
check(mass_mean_predictions)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# The direction is the mean of class 1 minus the mean of class 0. Where on that line do the two classes meet?
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# Take the point half way between the means away from each test example, then the inner product with the direction. Above 0 is 1.
#
# </details>


# %% kind="wrong" id="22.1" expects="split at zero"
@exercise("22.1")
def mass_mean_predictions(train, labels, test):
    low, high = train[labels == 0].mean(0), train[labels == 1].mean(0)
    return (test @ (high - low) > 0).long()


# %% kind="wrong" id="22.1" expects="turned round"
@exercise("22.1")
def mass_mean_predictions(train, labels, test):
    low, high = train[labels == 0].mean(0), train[labels == 1].mean(0)
    return ((test - (low + high) / 2) @ (low - high) > 0).long()


# %% kind="wrong" id="22.1" expects="test examples"
@exercise("22.1")
def mass_mean_predictions(train, labels, test):
    low, high = train[labels == 0].mean(0), train[labels == 1].mean(0)
    along = test @ (high - low)
    return (along > along.mean()).long()


# %% kind="wrong" id="22.1" expects="mean of all examples"
@exercise("22.1")
def mass_mean_predictions(train, labels, test):
    low, high = train[labels == 0].mean(0), train[labels == 1].mean(0)
    return ((test - train.mean(0)) @ (high - low) > 0).long()


# %% [markdown]
# ## Four floors
#
# What could a probe reach without any feeling in the stream?
#
# 1. **Shuffled labels**: nothing to learn. It should be at 0.5. (The control task below on new adjectives is this.)
# 2. **A control task** (Hewitt and Liang 2019): each adjective gets a random label, the same in all its sentences. What a probe learns there,
#    it learned by heart. The real accuracy less this one is the probe's **selectivity**.
# 3. **A model with random weights**: same architecture, no training.
# 4. **The surface**: what can be told from the text without any model.

# %%
blank = ml.random_weights(model)
blank_streams = ml.residual_streams(blank, [f"The {n} was {w}." for n, w in zip(nouns, words, strict=True)])[
    some
]
random_labels = ml.control_labels(words, positive)
rows = {
    "feeling, new adjectives": real,
    "feeling, same adjectives": ml.probe_layers(streams, positive).score.values,
    "control task, same adjectives": ml.probe_layers(streams, random_labels).score.values,
    "control task, new adjectives": ml.probe_layers(streams, random_labels, groups=words).score.values,
    "random model, same adjectives": ml.probe_layers(blank_streams, positive).score.values,
    "random model, new adjectives": ml.probe_layers(blank_streams, positive, groups=words).score.values,
}
drawn(rows)

# %% kind="assert"
values = list(rows.values())
claim(model, "same adjectives, layer 1", values[1][1], says=1.0, within=0.02)
claim(model, "control task, same adjectives, layer 1", values[2][1], says=0.98, within=0.03)
claim(model, "control task, same adjectives, last layers", values[2][-2:].mean(), says=0.85, within=0.05)
assert values[4][1:].min() > 0.95
claim(model, "random model, new adjectives, last layers", values[5][-6:].mean(), says=0.69, within=0.07)
assert values[3].max() < 0.62

# %% [markdown]
# Look at "feeling, same adjectives": split at random, so that other sentences with the same adjective are in the training part, the probe is perfect
# from layer 1 on. It nearly is on *random* labels too ("control task": 0.98 on entering layer 1, and still 0.85 in the last layers) and on a *random*
# model (above 0.95): it recognises the word and recalls its label. **Splitting at random would have told us nothing.** Only whole adjectives held out
# tell feeling from memory.
#
# ### Exercise 22.2 Hold groups out
#
# Difficulty 2 of 5 · 10 minutes · needs nothing


# %% kind="exercise" id="22.2"
@exercise("22.2")
def held_out(groups: list[str], share: float, generator: torch.Generator) -> Tensor:
    """Which examples are for testing, True or False for each: all examples of a random `share` of the groups (rounded to whole groups)."""
    # >>> solution
    names = sorted(set(groups))
    order = torch.randperm(len(names), generator=generator)
    chosen = {names[i] for i in order[: round(share * len(names))]}
    return torch.tensor([group in chosen for group in groups])
    # <<< solution


# %% kind="check"
check(held_out)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Draw among the groups, not among the examples.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# List the different groups, put them in random order with `torch.randperm(..., generator=generator)`, take the first ones, and mark every
# example whose group is among them.
#
# </details>


# %% kind="wrong" id="22.2" expects="both sides"
@exercise("22.2")
def held_out(groups, share, generator):
    return torch.rand(len(groups), generator=generator) < share


# %% kind="wrong" id="22.2" expects="same groups every time"
@exercise("22.2")
def held_out(groups, share, generator):
    names = sorted(set(groups))
    chosen = set(names[: round(share * len(names))])
    return torch.tensor([group in chosen for group in groups])


# %% kind="wrong" id="22.2" expects="for training"
@exercise("22.2")
def held_out(groups, share, generator):
    names = sorted(set(groups))
    order = torch.randperm(len(names), generator=generator)
    chosen = {names[i] for i in order[: round(share * len(names))]}
    return torch.tensor([group not in chosen for group in groups])


# %% [markdown]
# ### Exercise 22.3 A control task
#
# Difficulty 2 of 5 · 5 minutes · needs exercise 22.2


# %% kind="exercise" id="22.3"
@exercise("22.3")
def control_task(groups: list[str], generator: torch.Generator) -> Int[Tensor, "example"]:
    """A random label, 0 or 1, for each group, the same for all its examples; half of the groups (rounded down) get 1."""
    # >>> solution
    names = sorted(set(groups))
    order = torch.randperm(len(names), generator=generator)
    ones = {names[i] for i in order[: len(names) // 2]}
    return torch.tensor([int(group in ones) for group in groups])
    # <<< solution


# %% kind="check"
check(control_task)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Draw one label a group, then look it up for each example.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# `torch.randperm` over the different groups; the first half of that order gets 1.
#
# </details>


# %% kind="wrong" id="22.3" expects="two labels"
@exercise("22.3")
def control_task(groups, generator):
    return torch.randint(2, (len(groups),), generator=generator)


# %% kind="wrong" id="22.3" expects="half of the groups"
@exercise("22.3")
def control_task(groups, generator):
    names = sorted(set(groups))
    labels = dict(zip(names, (torch.rand(len(names), generator=generator) < 0.2).int().tolist(), strict=True))
    return torch.tensor([labels[group] for group in groups])


# %% kind="wrong" id="22.3" expects="not random"
@exercise("22.3")
def control_task(groups, generator):
    names = sorted(set(groups))
    return torch.tensor([names.index(group) % 2 for group in groups])


# %% [markdown]
# And the last line in the legend? A random model on new adjectives should know nothing, and reaches about 0.69 in the last layers. The surface
# explains most of it. How many tokens does each adjective have? (The probe here is a decision tree: one or two yes-or-no questions about that number.)

# %%
length = torch.tensor([len(model.to_tokens(" " + word)[0]) - 1 for word in words]).float()
from sklearn.tree import DecisionTreeClassifier

surface = ml.probe_layers(
    length[None, :, None], positive, groups=words, probe=DecisionTreeClassifier(max_depth=2)
)
print(f"all positive adjectives have one token: {bool((length[positive == 1] == 1).all())}")
print(f"right from the number of tokens alone: {surface.score.values.item():.2f}")

# %% kind="assert"
claim(model, "accuracy from the number of tokens", surface.score.values, says=0.65, within=0.04)
assert (length[positive == 1] == 1).all() and (length[positive == 0] > 1).any()

# %% [markdown]
# Our positive adjectives are all one token long; some negative ones are longer. A random model passes that on. It is a flaw in *our* data,
# small enough here (0.99 against 0.69), and only the random model showed it.
#
# ## What does it read?
#
# The probe learned on "The film was wonderful." Test it on "The film was not wonderful at all." The right answer is reversed.

# %%
denied = ml.residual_streams(
    model, [f"The {n} was not {w} at all." for n, w in zip(nouns, words, strict=True)]
)[some]
reading = ml.probe_layers(streams, positive, on=(denied, 1 - positive))
turned = reading.score.values
drawn({"trained plain, tested on denials": turned}, "trained plain, tested on denials: share right")

# %% kind="assert"
assert all(
    len(set(said)) == 1 for said in reading.predictions[:3]
)  # entering layers 0, 1 and 3: one label for all
claim(model, "denials on entering layer 6", turned[3], says=0.03, within=0.04)
claim(model, "denials on entering layer 15", turned[6], says=0.85, within=0.07)

# %% [markdown]
# Up to layer 3 it gives all denials the same label, and is right on half of them. On entering layer 6 it is right on 3 %: it reads the *word*, and "not"
# reverses the word. From layer 15 on it is mostly right (with a dip at 18): there the stream holds something about the sentence. An accuracy of 0.99
# could not tell the feeling of a word from the feeling of a sentence. Testing somewhere else did.
#
# ## Is it true?
#
# Three sets of statements, each true one beside a false one: "The capital of France is Paris." and "... is Caracas."; "The city of Shanghai is in
# China." and "... in Pakistan."; "Twenty-seven is larger than twenty-two.", and the other way round.

# %%
facts = pd.read_csv(folder / "statements.csv")
facts = facts.query("item < 80").reset_index(drop=True)
fact_streams = ml.residual_streams(model, facts.statement.tolist())[some]
blank_facts = ml.residual_streams(blank, facts.statement.tolist())[some]
rows, of = {}, {kind: np.where(facts.kind == kind)[0] for kind in ("capitals", "cities", "larger")}
for kind, index in of.items():
    true, item = facts.true.to_numpy()[index], facts.item.to_numpy()[index]
    rows[kind] = ml.probe_layers(fact_streams[:, index], true, groups=item).score.values
    rows[f"{kind}, random model"] = ml.probe_layers(blank_facts[:, index], true, groups=item).score.values
drawn(rows)

# %% kind="assert"
claim(model, "capitals, best layer", rows["capitals"].max(), says=0.76, within=0.05)
claim(model, "capitals, entering layer 3", rows["capitals"][2], says=0.15, within=0.06)
claim(model, "cities, best layer", rows["cities"].max(), says=0.9, within=0.05)
claim(model, "larger, best layer", rows["larger"].max(), says=0.99, within=0.04)
claim(model, "larger, random model, best layer", rows["larger, random model"].max(), says=0.94, within=0.04)
for kind in ("capitals", "cities"):
    assert rows[f"{kind}, random model"].max() < 0.55
    assert (rows[kind][5:] > rows[f"{kind}, random model"][5:] + 0.3).all()  # from layer 12 on
ends = facts[facts.kind == "capitals"].assign(name=lambda table: table.statement.str.split(" is ").str[1])
assert (ends.groupby("name").true.agg(["count", "sum"]) == [2, 1]).to_numpy().all()
assert (ends.groupby("name")["item"].nunique() == 2).all()

# %% [markdown]
# "Larger" looks best and shows hardly anything beyond the words: 0.99, and a random model gets 0.94. Whether a big number word comes first can be read off
# the words. From layer 12 on, capitals (0.76 at best) and cities (0.90 at best) are well above their random models, which are at or *below* 0.5. (Why below? Each
# capital ends one true statement and one false one, in two different pairs. When a pair is held out, its two names are mostly in the training part with the opposite
# label only. A probe that remembers names is wrong each time. In early layers the trained model falls for it too: 0.15 on entering layer 3.)
#
# **Question 22.a.** A probe trained on capitals is tested on cities. What would speak for a direction of truth?
#
# - **a** It is right on the cities too.
# - **b** It is right on capitals that were held out.
# - **c** A probe trained on the cities is right on held-out cities.

# %% kind="quiz"
quiz("22.a", "a")

# %%
true, onto = facts.true.to_numpy(), {}
city = facts.statement.str.extract("The city of (.*) is in")[0]
capital = facts.statement.str.extract("The capital of .* is (.*)[.]")[0]
twice = city.isin(capital.dropna())  # cities that are capitals in the other set: left out
of["cities"] = of["cities"][~twice[of["cities"]]]
ways = [("capitals", "cities"), ("cities", "capitals"), ("cities", "larger")]
for (a, b), read in [*((way, fact_streams) for way in ways), (ways[0], blank_facts)]:
    other = (read[:, of[b]], true[of[b]])
    name = f"{a} to {b}" + (", random model" if read is blank_facts else "")
    onto[name] = ml.probe_layers(read[:, of[a]], true[of[a]], on=other).score.values
drawn(onto, "trained on one kind, tested on another: share right")

# %% kind="assert"
assert len(of["cities"]) == 2 * (80 - 26) and int(onto["capitals to cities"].argmax()) == some.index(12)
claim(model, "capitals to cities, best", onto["capitals to cities"].max(), says=0.86, within=0.05)
claim(
    model,
    "capitals to cities, layers 21 to 27",
    onto["capitals to cities"][8:11].max(),
    says=0.57,
    within=0.06,
)
claim(model, "cities to capitals, best", onto["cities to capitals"].max(), says=0.74, within=0.05)
claim(model, "cities to larger, best", onto["cities to larger"].max(), says=0.58, within=0.06)
claim(model, "random model, best", onto["capitals to cities, random model"].max(), says=0.52, within=0.05)

# %% [markdown]
# 26 of the 80 cities are capitals, which the probe has seen, so they are left out. To the other cities the probe carries over, best on entering layer 12
# (0.86); from layer 21 to 27 hardly (0.57 at most), and on a random model nowhere (0.52 at most). From cities to capitals it reaches 0.74. To "larger" it hardly
# carries over anywhere (0.58 on the best of twelve layers). So there is something that place statements share. Truth as such it is not.
#
# ## The map of the world
#
# Now numbers instead of classes: latitude and longitude of 558 large cities, from "The city of Shanghai is located on the continent of". The probe is
# linear again, with a penalty that keeps its weights small (`ridge`). R² is 1 for perfect, 0 for no better than always saying the mean.

# %%
cities = pd.read_csv(folder / "cities.csv")
city_streams = ml.residual_streams(
    model, [f"The city of {c} is located on the continent of" for c in cities.city]
)
place = cities[["latitude", "longitude"]].to_numpy()
late = city_streams[[30]]  # after the last layer
mapped = ml.probe_layers(late, place, probe="ridge")
countries = ml.probe_layers(late, place, probe="ridge", groups=cities.country).score.values
print("R² of latitude and longitude, after the last layer:", mapped.score.values[-1].numpy().round(2))
print("with whole countries held out:", countries[-1].numpy().round(2))

# %% kind="assert"
claim(model, "R² of latitude", mapped.score.values[-1, 0], says=0.59, within=0.05)
claim(model, "R² of longitude", mapped.score.values[-1, 1], says=0.73, within=0.05)
claim(model, "R² of latitude, new countries", countries[-1, 0], says=0.48, within=0.06)

# %% [markdown]
# 0.59 and 0.73: a map of the world in 135 million parameters? Before you tell anyone: which baseline could kill it?
#
# ### Exercise 22.4 The baseline
#
# Difficulty 2 of 5 · 10 minutes · needs nothing
#
# Suppose somebody knows only the continent, and says its mean latitude and longitude.


# %% kind="exercise" id="22.4"
@exercise("22.4")
def group_means(
    train_groups: list[str], train_values: Float[Tensor, "example target"], test_groups: list[str]
) -> Float[Tensor, "other target"]:
    """For each test example the mean of the training examples of its group; of all of them if the group is new."""
    # >>> solution
    said = []
    for group in test_groups:
        same = [n for n, other in enumerate(train_groups) if other == group]
        said.append(train_values[same].mean(0) if same else train_values.mean(0))
    return torch.stack(said)
    # <<< solution


# %% kind="check"
check(group_means)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Only the training examples have values. A test example has nothing but its group.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# For each test group collect the training rows of that group and take their mean over the rows. If there are none, take the mean of all.
#
# </details>


# %% kind="wrong" id="22.4" expects="new group"
@exercise("22.4")
def group_means(train_groups, train_values, test_groups):
    said = []
    for group in test_groups:
        same = [n for n, other in enumerate(train_groups) if other == group]
        said.append(train_values[same].mean(0) if same else torch.zeros(train_values.shape[1]))
    return torch.stack(said)


# %% [markdown]
# A linear fit on one column for each continent says the same as your function. Beside it the probe **within continents**: the errors of the same
# predictions, compared with those of somebody who says the continent's mean.

# %%
from sklearn.linear_model import LinearRegression

known = torch.tensor(pd.get_dummies(cities.continent).to_numpy()).float()[None]
baseline = ml.probe_layers(known, place, probe=LinearRegression()).score.values[0]
within = ml.r_squared(mapped.predictions, place, within=cities.continent).values[-1]
print(
    "the continent alone:",
    baseline.numpy().round(2),
    " the probe within continents:",
    within.numpy().round(2),
)

# %% kind="assert"
claim(model, "R² of latitude from the continent", baseline[0], says=0.62, within=0.03)
claim(model, "R² of longitude from the continent", baseline[1], says=0.87, within=0.03)
claim(model, "within continents, latitude", within[0], says=-0.13, within=0.15)
claim(model, "within continents, longitude", within[1], says=-1.13, within=0.3)

# %% [markdown]
# The continent alone does better on both, and within continents these predictions are worse than nothing (below 0). **The attractive number is a coarse label in
# disguise**, which the prompt asked for. Is there no map, then? Careful: this probe had to fit the continents first. Ask a new one for the rest
# alone: how many degrees north and east of the middle of its continent does each city lie?

# %%
middle = cities.groupby("continent")[["latitude", "longitude"]].transform("mean").to_numpy()
third = np.arange(0, len(cities), 3)  # enough for a control
blank_cities = ml.residual_streams(
    blank, [f"The city of {c} is located on the continent of" for c in cities.city[third]]
)[[30]]
rest = {
    "new cities": ml.probe_layers(late, place - middle, probe="ridge"),
    "new countries": ml.probe_layers(late, place - middle, probe="ridge", groups=cities.country),
    "new cities, every third": ml.probe_layers(late[:, third], (place - middle)[third], probe="ridge"),
    "the same, random model": ml.probe_layers(blank_cities, (place - middle)[third], probe="ridge"),
}
rest = pd.DataFrame(
    {k: v.score.values[0].numpy() for k, v in rest.items()}, index=["latitude", "longitude"]
).T.round(2)
rest

# %% kind="assert"
claim(model, "the rest, latitude", rest.loc["new cities", "latitude"], says=0.28, within=0.05)
claim(model, "the rest, longitude", rest.loc["new cities", "longitude"], says=0.53, within=0.05)
claim(
    model, "the rest, latitude, new countries", rest.loc["new countries", "latitude"], says=0.09, within=0.06
)
claim(
    model,
    "the rest, longitude, new countries",
    rest.loc["new countries", "longitude"],
    says=0.36,
    within=0.06,
)
claim(
    model,
    "every third city, latitude",
    rest.loc["new cities, every third", "latitude"],
    says=0.29,
    within=0.08,
)
claim(
    model,
    "every third city, longitude",
    rest.loc["new cities, every third", "longitude"],
    says=0.49,
    within=0.08,
)
assert rest.loc["the same, random model"].max() < 0.0

# %% [markdown]
# 0.28 and 0.53, and with whole countries held out 0.09 and 0.36. A random model stays below 0 on a third of the cities, where the trained one has
# 0.29 and 0.49. So there is some of a map, more from west to east than from south to north, and far less than
# 0.59 and 0.73 seemed to say. (In a model fifty times as large, Llama-2-7b, Gurnee and Tegmark find 0.88. That belongs beside our 0.59 and 0.73: the
# continents are not taken away.) **A control can mislead too**: the first one only said what *those* predictions were made of.
#
# ### Exercise 22.5 R²
#
# Difficulty 3 of 5 · 15 minutes · needs nothing


# %% kind="exercise" id="22.5"
@exercise("22.5")
def r_squared(
    said: Float[Tensor, "example"], truth: Float[Tensor, "example"], groups: list[str] | None = None
) -> float:
    """1 − squared error / squared distance of the truth from its mean; with `groups`, from the mean of its group."""
    # >>> solution
    centre = truth.mean().expand(len(truth))
    if groups is not None:
        centre = torch.stack([truth[torch.tensor([g == group for g in groups])].mean() for group in groups])
    return (1 - (said - truth).pow(2).sum() / (truth - centre).pow(2).sum()).item()
    # <<< solution


# %% kind="check"
check(r_squared)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# The error is compared with the error of somebody who always says the mean.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# Without groups, `centre` is the mean of the truth. With groups, it is for each example the mean of the truth over its group. The error stays the same.
#
# </details>


# %% kind="wrong" id="22.5" expects="square of a correlation"
@exercise("22.5")
def r_squared(said, truth, groups=None):
    return torch.corrcoef(torch.stack([said, truth]))[0, 1].item() ** 2


# %% kind="wrong" id="22.5" expects="of the predictions"
@exercise("22.5")
def r_squared(said, truth, groups=None):
    return (1 - (said - truth).pow(2).sum() / (said - said.mean()).pow(2).sum()).item()


# %% kind="wrong" id="22.5" expects="left the groups out"
@exercise("22.5")
def r_squared(said, truth, groups=None):
    return (1 - (said - truth).pow(2).sum() / (truth - truth.mean()).pow(2).sum()).item()


# %% [markdown]
# ## Without labels: CCS
#
# Contrast-consistent search (Burns et al. 2022) looks for truth without labels: a direction on which "... This statement is true." and "... This statement is
# false." get opposite, confident answers. Its **loss**, the number that training makes small, is 0 when the two answers of every pair are opposite and
# certain. 80 statements about capitals, half of them true, on entering layer 21:

# %%
asked = facts[(facts.kind == "capitals") & (facts.item < 40)]
yes, no = (
    ml.residual_streams(model, [f"{s} This statement is {end}." for s in asked.statement])[21]
    for end in ("true", "false")
)
found = ml.contrast_consistent_search(yes, no, restarts=4)
labels = torch.tensor(asked.true.to_numpy())
accuracy = [((probe.truth(yes, no) > 0.5).long() == labels).float().mean().item() for probe in found]
accuracy = [max(a, 1 - a) for a in accuracy]
apart = (yes - yes.mean(0)) - (no - no.mean(0))  # the difference within each pair, each side less its mean
supervised = ml.probe_layers(apart[None], labels, groups=asked.item).score.values.item()
print(f"loss {found[0].loss:.3f}; accuracy, best sign: " + ", ".join(f"{a:.2f}" for a in accuracy))
print(f"with labels: {supervised:.2f}")

# %% kind="assert"
claim(model, "loss of the best CCS probe", found[0].loss, says=0.002, within=0.003)
claim(model, "mean accuracy of the CCS probes", np.mean(accuracy), says=0.57, within=0.05)
claim(model, "with labels", supervised, says=0.84, within=0.08)
assert max(accuracy) < 0.68
noise = torch.randn(2, 80, 576, generator=torch.Generator().manual_seed(0))
assert ml.contrast_consistent_search(*noise, restarts=1)[0].loss < 0.002

# %% [markdown]
# The smallest loss is 0.002: there CCS found a direction that is almost perfectly consistent. The four tries are right on 57 % on average, where a probe with labels
# is right on 84 %. Eighty pairs in 576 dimensions can always be told apart: on pure noise of that shape the loss is as small. And many things differ between the two
# sides of a pair besides truth. (Choosing the better sign already lifts chance above 0.5. CCS is scored on its own pairs, the other probe on pairs held out.)
#
# ## How it misleads: decodable need not be used
#
# Two probes, both nearly perfect on entering layer 12. Remove the direction of each from the stream there, once, at every position. Does the model still go
# on from "I thought it was" with " great" after a good film and " terrible" after a bad one? The gap: logit of " great" minus logit of " terrible", after eight
# good films, less the same after eight bad ones.

# %%
good, bad = ml.single_token(model, " great"), ml.single_token(model, " terrible")
shown = [*listed[listed.positive == 1].adjective[:8], *listed[listed.positive == 0].adjective[:8]]
prompts = model.to_tokens([f"The film was {word}. I thought it was" for word in shown])
difference = ml.logit_difference(good, bad)
directions = {
    kind: ml.probe_layers(streams[[5]], positive, groups=words, probe=kind)
    for kind in ("mass_mean", "logistic")
}
removed = {kind: probed.directions[0] for kind, probed in directions.items()}
removed["random"] = torch.randn(model.cfg.d_model, generator=torch.Generator().manual_seed(0))
gap = {}
for kind, direction in [("intact", None), *removed.items()]:
    hooks = [] if direction is None else ml.direction_hooks(model, direction, [11])
    with torch.no_grad(), ml.intervene(model, hooks):
        said = difference(model(prompts))
    gap[kind] = (said[:8].mean() - said[8:].mean()).item()
print({kind: round(value, 2) for kind, value in gap.items()})

# %% kind="assert"
claim(model, "good minus bad film, intact", gap["intact"], says=3.1, within=0.2)
claim(model, "without the mass-mean direction", gap["mass_mean"], says=0.5, within=0.3)
claim(model, "without the logistic direction", gap["logistic"], says=2.5, within=0.3)
claim(model, "accuracy of the mass-mean probe", directions["mass_mean"].score.values, says=0.98, within=0.03)
claim(model, "accuracy of the logistic probe", directions["logistic"].score.values, says=1.0, within=0.02)
claim(model, "without a random direction", gap["random"], says=2.9, within=0.2)
assert len({len(model.to_tokens(f"The film was {word}.")[0]) for word in shown}) == 1  # no padding

# %% [markdown]
# The gap of 3.1 logits falls to 0.5 without the mass-mean direction, and only to 2.5 without the logistic one (to 2.9 without a random one). As probes they are
# nearly equal, 0.98 and 1.00. A likely reason: the trained probe is free to read any cue that works; the difference of means lies where the classes really
# differ. Marks and Tegmark (2023) found the same for truth.
#
# **Few coordinates are enough.** TransformerLens has a sparse probe: how many of the 576 coordinates does it take?

# %%
from transformer_lens.tools.analysis.sparse_probing import fit_sparse_probe

group_ids = torch.tensor([list(dict.fromkeys(words)).index(word) for word in words])
sparse = {
    k: fit_sparse_probe(
        streams[4], torch.tensor(positive), k=k, groups=group_ids, preprocess="standardize"
    ).metrics.accuracy
    for k in (1, 2, 4, 16)
}
print("entering layer 9:", {k: round(float(a), 2) for k, a in sparse.items()})

# %% kind="assert"
claim(model, "sparse probe with 1 coordinate", sparse[1], says=0.6, within=0.15)
claim(model, "sparse probe with 2 coordinates", sparse[2], says=1.0, within=0.08)

# %% [markdown]
# One coordinate is hardly better than chance, two are nearly perfect. That says where feeling is easy to *read*. Whether the model reads it there is the question
# of the section before.
#
# ## Languages, and the surface once more
#
# Twenty sentences in six languages; which language is it? The six versions of a sentence are held out together. Beside it a probe that counts runs of one to
# three letters, without any model.

# %%
from sklearn.feature_extraction.text import CountVectorizer

spoken = pd.read_csv(folder / "languages.csv")
tongue = ml.residual_streams(model, spoken.sentence.tolist())[some]
counts = CountVectorizer(analyzer="char_wb", ngram_range=(1, 3)).fit_transform(spoken.sentence).toarray()
known = ml.probe_layers(tongue, spoken.language, groups=spoken.meaning).score.values
trigrams = ml.probe_layers(
    torch.tensor(counts)[None].float(), spoken.language, groups=spoken.meaning
).score.values.item()
print(
    f"probe, entering layer 15: {known[6]:.2f}, layer 27: {known[10]:.2f}; characters alone: {trigrams:.2f}"
)

# %% kind="assert"
claim(model, "language, entering layer 15", known[6], says=0.62, within=0.06)
claim(model, "language, entering layer 27", known[10], says=0.96, within=0.03)
claim(model, "language from characters", trigrams, says=0.85, within=0.04)

# %% [markdown]
# Chance is 1/6. On entering layer 15 the stream at the full stop says less about the language (0.62) than the letters do (0.85). On entering layer 27 it says more (0.96).
#
# ## Beside the papers

# %%
mine = {
    "R² of latitude and longitude, best layer (mean)": mapped.score.values[-1].mean().item(),
    "the same from the continent alone (mean)": baseline.mean().item(),
    "CCS accuracy": float(np.mean(accuracy)),
    "selectivity: accuracy less control task, random split, layer 1": (values[1][1] - values[2][1]).item(),
}
ml.reference.table("22", mine)

# %% [markdown]
# | term | in one line | `mechlab` | elsewhere |
# |---|---|---|---|
# | probe | a simple reader of frozen activations | `ml.probe_layers` | scikit-learn |
# | control task | random labels, fixed for each word | `ml.control_labels` | Hewitt and Liang 2019 |
# | mass-mean | difference of the class means | `probe="mass_mean"` | Marks and Tegmark 2023 |
# | sparse probe | few coordinates | | TransformerLens `fit_sparse_probe` |
# | CCS | consistency instead of labels | `ml.contrast_consistent_search` | Burns et al. 2022 |
#
# Next: notebook 23 looks at who looks where.
