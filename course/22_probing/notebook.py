# %% [markdown]
# # 22 Probing
#
# **Question:** is it in there, and what must a probe beat before we believe it?
#
# After this notebook you will be able to
#
# - train a linear probe on activations and test it on groups that it has not seen,
# - name four floors for its accuracy, and make each of them,
# - take an impressive probe apart, one level after the other, and say where it stops.
#
# Time: 105 minutes. The cells take about 90 seconds in all. Memory: 2.8 GB.
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
# after the last layer. The thin bars are 95 % intervals. They are over adjectives, not over sentences: three sentences about one adjective are right
# or wrong together.

# %%
from dataclasses import replace

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
feeling = ml.probe_layers(streams, positive, groups=words)
layers, real = {"layer": [str(layer) for layer in some]}, feeling.score.values


def drawn(rows, title="share of held-out examples right"):
    labels, values = {"probe": list(rows), **layers}, torch.stack([*rows.values()])
    return ml.Scores(values, ("probe", "layer"), title, labels, {"chance": 0.5}, signed=False).plot(
        lines=True
    )


replace(feeling.score, labels=layers, baselines={"chance": 0.5}).plot(
    title="feeling, new adjectives: share right"
)

# %% kind="assert"
claim(model, "accuracy on entering layer 1", real[1], says=0.79, within=0.04)
claim(model, "accuracy on entering layer 6", real[3], says=0.99, within=0.02)
claim(model, "accuracy on entering layer 0", real[0], says=0.48, within=0.05)
assert real[4:].min() > 0.97 and len(feeling.score.units.unique()) == 48

# %% [markdown]
# On entering layer 0 there is only the full stop, so nothing can be told. One layer later the probe is right on 79 %, and from layer 6 on,
# on 99 % of sentences with adjectives that it has never seen. That looks convincing. What is it worth?
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
values = list(rows.values())
drawn(rows)

# %% kind="assert"
claim(model, "same adjectives, layer 1", values[1][1], says=1.0, within=0.02)
claim(model, "control task, same adjectives, layer 1", values[2][1], says=0.98, within=0.03)
claim(model, "control task, same adjectives, last layers", values[2][-2:].mean(), says=0.85, within=0.05)
assert values[4][1:].min() > 0.95
claim(model, "random model, new adjectives, last layers", values[5][-6:].mean(), says=0.69, within=0.07)
assert values[3].max() < 0.62

# %% [markdown]
# Look at "feeling, same adjectives": split at random, so that other sentences with the same adjective are in the training part, the probe is perfect
# from layer 1 on. It nearly is on *random* labels too ("control task") and on a *random* model: it recognises the word and recalls its label.
# **Splitting at random would have told us nothing.** Only whole adjectives held out tell feeling from memory.
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
# And the last line in the legend? A random model on new adjectives should know nothing, and reaches about 0.69 in the last layers. The surface
# explains most of it. How many tokens does each adjective have? (The probe here is a decision tree: one or two yes-or-no questions about that number.)

# %%
from sklearn.tree import DecisionTreeClassifier

length = torch.tensor([len(model.to_tokens(" " + word)[0]) - 1 for word in words])[None, :, None].float()
tree = DecisionTreeClassifier(max_depth=2)
surface = ml.probe_layers(length, positive, groups=words, probe=tree).score
claim(model, "accuracy from the number of tokens", surface.values, says=0.65, within=0.04)
assert (length[0, positive == 1] == 1).all() and (length[0, positive == 0] > 1).any()

# %% [markdown]
# Our positive adjectives are all one token long; some negative ones are longer. That alone gives 0.65, and a random model passes it on. It is a flaw in
# *our* data, and only the random model showed it.
#
# ## What does it read?
#
# The probe learned on "The film was wonderful." Test it on "The film was not wonderful at all." The right answer is reversed. (A quarter of the
# adjectives at a time is kept out of the training, so that it cannot just recall them.)

# %%
negated = [f"The {n} was not {w} at all." for n, w in zip(nouns, words, strict=True)]
denied, said = ml.residual_streams(model, negated)[some], torch.zeros(feeling.score.per_prompt.shape)
sixth = np.arange(len(words)) // 6  # a positive adjective and a negative one
for test in sixth % 4 == np.arange(4)[:, None]:
    onto = (denied[:, test], 1 - positive[test])
    said[test] = ml.probe_layers(streams[:, ~test], positive[~test], on=onto).score.per_prompt
denials = replace(feeling.score, values=said.mean(0), per_prompt=said, labels=layers)
denials.plot(title="trained plain, tested on denials: share right")

# %% kind="assert"
assert (denials.values[:3] - 0.5).abs().max() < 0.05  # entering layers 0, 1 and 3
claim(model, "denials on entering layer 6", denials.values[3], says=0.07, within=0.05)
claim(model, "denials on entering layer 15", denials.values[6], says=0.87, within=0.07)

# %% [markdown]
# On entering layer 6 it is right on 7 % of the denials: it reads the *word*, and "not" reverses the word. From
# layer 15 on it is mostly right (with a dip at 18): there the stream holds something about the sentence. The first accuracy
# could not tell the two.
#
# ## Is it true?
#
# Three sets of statements, each true one beside a false one: "The capital of France is Paris." and "... is Caracas."; "The city of Shanghai is in
# China." and "... in Pakistan."; "Twenty-seven is larger than twenty-two.", and the other way round. Pairs are held out together; in the second set all
# cities of a country are, since a probe could learn which cities go with China.
#
# The best of twelve layers is a bit too good, also where nothing is to be found. So: choose
# the layer on one half of the groups, report it on the other. Then exchange the halves.

# %%
facts = pd.read_csv(folder / "statements.csv").query("item < 80").reset_index(drop=True)
cities = pd.read_csv(folder / "cities.csv")
fact_streams = ml.residual_streams(model, facts.statement.tolist())[some]
blank_facts = ml.residual_streams(blank, facts.statement.tolist())[some]
city = facts.statement.str.extract("The city of (.*) is in")[0]
kept_together = city.map(cities.set_index("city").country).fillna(facts.item.astype(str)).to_numpy()
true, found = facts.true.to_numpy(), {}
of = {kind: np.where(facts.kind == kind)[0] for kind in ("capitals", "cities", "larger")}
for kind, index in of.items():
    for name, read in ((kind, fact_streams), (f"{kind}, random model", blank_facts)):
        found[name] = ml.probe_layers(read[:, index], true[index], groups=kept_together[index]).score
drawn({name: score.values for name, score in found.items()})

# %%
from mechlab.statistics import estimate


def halved(score):
    """The best layer on half of the units, scored on the other half; and the other way round."""
    draw, said = torch.Generator().manual_seed(0), []
    first = torch.randperm(int(score.units.max()) + 1, generator=draw)[score.units] % 2 == 0
    for half in (first, ~first):
        best = score.per_prompt[half].mean(0).argmax()
        said.append((estimate(score.per_prompt[~half, best], score.units[~half]), some[best]))
    text = [f"layer {layer}: {rest}" for rest, layer in said]
    return dict(
        zip(
            ("mean", "one half", "other half"), (np.mean([rest.mean for rest, _ in said]), *text), strict=True
        )
    )


chosen = pd.DataFrame({name: halved(score) for name, score in found.items()}).T
chosen.assign(mean=chosen["mean"].map("{:.2f}".format))

# %% kind="assert"
claim(
    model, "capitals, layer chosen on the other half", chosen.at["capitals", "mean"], says=0.75, within=0.06
)
assert found["capitals"].values[1:3].max() < 0.4
claim(model, "cities, layer chosen on the other half", chosen.at["cities", "mean"], says=0.81, within=0.08)
claim(model, "larger", chosen.at["larger", "mean"], says=0.98, within=0.04)
claim(model, "larger, random model", chosen.at["larger, random model", "mean"], says=0.94, within=0.05)
for kind in ("capitals", "cities"):
    gap = found[kind].values[5:] - found[f"{kind}, random model"].values[5:]
    assert found[f"{kind}, random model"].values.max() < 0.58 and gap.min() > 0.2  # from layer 12 on
ends = facts[facts.kind == "capitals"].assign(name=lambda table: table.statement.str.split(" is ").str[1])
assert (ends.groupby("name").true.agg(["count", "sum"]) == [2, 1]).to_numpy().all()
assert (ends.groupby("name")["item"].nunique() == 2).all()

# %% [markdown]
# "Larger" looks best and shows hardly anything beyond the words: a random model gets 0.94 too. Whether a big number word comes first can be read off
# the words. Capitals (0.75) and cities (0.81) are far above their random models, which are at or *below* a half. (Why below? Each
# capital ends one true statement and one false one. When a pair is held out, its names are in the training part with the opposite label only: who remembers
# names is wrong each time. In early layers the trained model falls for it too.)
#
# Is there one direction of truth? Then a probe trained on one kind of statement must work on another. (26 of the 80 cities are capitals, which the
# probe has seen. They are left out.)

# %%
capital = facts.statement.str.extract("The capital of .* is (.*)[.]")[0]
of["cities"] = of["cities"][~city.isin(capital.dropna())[of["cities"]]]
onto, ways = {}, [("capitals", "cities"), ("cities", "capitals"), ("cities", "larger")]
for (a, b), read in [*((way, fact_streams) for way in ways), (ways[0], blank_facts)]:
    name = f"{a} to {b}" + (", random model" if read is blank_facts else "")
    score = ml.probe_layers(read[:, of[a]], true[of[a]], on=(read[:, of[b]], true[of[b]])).score
    onto[name] = replace(score, units=torch.tensor(pd.factorize(kept_together[of[b]])[0]))
carried = {name: halved(score)["mean"] for name, score in onto.items()}
claim(model, "capitals to cities, layer chosen", carried["capitals to cities"], says=0.82, within=0.06)
claim(model, "cities to capitals, layer chosen", carried["cities to capitals"], says=0.72, within=0.06)
claim(model, "cities to larger, layer chosen", carried["cities to larger"], says=0.58, within=0.06)
half = of["cities"].reshape(-1, 2)[::2].ravel()  # every second pair, of a true and a false one
denied = facts.statement[half].str.replace(" is in ", " is not in ").tolist()
denied = (ml.residual_streams(model, denied)[some], 1 - true[half])  # what was true is false now
with_not = ml.probe_layers(fact_streams[:, of["capitals"]], true[of["capitals"]], on=denied).score
assert onto["capitals to cities"].values[8:11].max() < 0.65  # layers 21 to 27
assert with_not.values.max() < 0.6 and with_not.values[5:7].max() < 0.3  # entering layers 12 and 15
assert len(of["cities"]) == 2 * (80 - 26) and onto["capitals to cities, random model"].values.max() < 0.56
drawn(
    {name: score.values for name, score in (onto | {"capitals to cities with a not": with_not}).items()},
    "trained on one kind, tested on another: share right",
)

# %% [markdown]
# To cities that it has not seen the probe of capitals carries over (0.82, the layer chosen on one half and scored on the other), from layer 21 to 27
# hardly, and on a random model nowhere. Back from cities to capitals it reaches 0.72. To "larger" it hardly carries over anywhere (0.58). So there is something
# that place statements share. It is not truth. Put "not" into the city statements and the probe is wrong where it was right: it reads that "Shanghai" and "China" belong together.
#
# %% [markdown]
# ## The map of the world
#
# Now numbers instead of classes: latitude and longitude of 558 large cities, from "The city of Shanghai is located on the continent of". The probe is
# linear again, with a penalty that keeps its weights small (`ridge`). **R²** says how much of the spread it explains: 1 is perfect, 0 no better than
# always saying the mean.
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
# Now the probes, at six depths.

# %%
city_streams = ml.residual_streams(
    model, [f"The city of {c} is located on the continent of" for c in cities.city]
)
place, depths = cities[["latitude", "longitude"]].to_numpy(), [6, 12, 18, 24, 27, 30]
mapped = ml.probe_layers(city_streams[depths], place, probe="ridge")
country = torch.tensor(pd.factorize(cities.country)[0])
first = torch.randperm(105, generator=torch.Generator().manual_seed(0))[country].numpy() < 52
for half in (first, ~first):  # of the countries
    best = int(ml.r_squared(mapped.predictions[:, half], place[half]).values.mean(1).argmax())
    rest = ml.r_squared(mapped.predictions[:, ~half], place[~half]).values[best].numpy().round(2)
    print(f"best on one half of the countries: layer {depths[best]}; R² on the other half: {rest}")
late, position = city_streams[[30]], mapped.score.values[-1]
labels = {"target": ["latitude", "longitude"], "layer": [str(layer) for layer in depths]}
ml.Scores(mapped.score.values.T, ("target", "layer"), "R² on new cities", labels, signed=False).plot(
    lines=True
)

# %% kind="assert"
assert depths[best] in (27, 30) and len(country.unique()) == 105
claim(model, "R² of latitude", position[0], says=0.59, within=0.05)
claim(model, "R² of longitude", position[1], says=0.73, within=0.05)

# %% [markdown]
# After the last layer 0.59 and 0.73: a map of the world in 135 million parameters? What would somebody reach who knows
# much less than a map? There is a ladder of such people. One knows nothing and says the mean of all cities (R² 0). One knows the continent of each
# city. One knows its country. **A map is what is left on the last rung.** At each rung, say what you expect before you look.
#
# ### Predict: the first rung
#
# Somebody knows only the continent, and says the mean place of its cities. Which R² do they reach, where the probe has 0.59 and 0.73?

# %% kind="predict"
predict("22.p1", 0.4)

# %%
from sklearn.linear_model import Ridge


def told(labels, truth, groups=None):
    """What a table says about new cities that knows nothing but their labels."""
    columns = torch.tensor(pd.get_dummies(labels).to_numpy()).float()[None]
    return ml.probe_layers(columns, truth, probe=Ridge(alpha=0.01), groups=groups).predictions[0]


def r2(said, truth, units=country):
    """R² of latitude and longitude, and as text with 95 % intervals over countries."""
    error, spread = (torch.tensor(x**2).T for x in (said - truth, truth - truth.mean(0)))
    ends = [estimate(e, units, over=s) for e, s in zip(error, spread, strict=True)]
    text = [f"{1 - each.mean:.2f} [{1 - each.high:.2f}, {1 - each.low:.2f}]" for each in ends]
    return np.array([1 - each.mean for each in ends]), dict(zip(("latitude", "longitude"), text, strict=True))


baseline, shown = r2(told(cities.continent, place), place)
claim(model, "R² of latitude from the continent", baseline[0], says=0.62, within=0.03)
claim(model, "R² of longitude from the continent", baseline[1], says=0.87, within=0.03)
reveal("22.p1", " and ".join(f"{axis} {text}" for axis, text in shown.items()))

# %% [markdown]
# <details><summary>What we saw</summary>
#
# **The continent alone does no worse than the probe.** No wonder: the prompt asked for it. The attractive number is a coarse label in disguise.
#
# </details>
#
# Is there no map, then? That does not follow. This probe had to spend itself on the continents. Ask a new one for the rest alone: how many degrees north and
# east of the middle of its continent does each city lie?
#
# ### Predict: the second rung
#
# Position less the mean of the continent. R² of the new probe?

# %% kind="predict"
predict("22.p2", 0.1)

# %%
from sklearn.feature_extraction.text import TfidfVectorizer

middle = cities.groupby("continent")[["latitude", "longitude"]].transform("mean").to_numpy()
inside, third = place - middle, np.arange(0, len(cities), 3)  # a third is enough for the random model
asked = [f"The city of {c} is located on the continent of" for c in cities.city[third]]
blank_cities = ml.residual_streams(blank, asked)[[30]]
letters = TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 3)).fit_transform(cities.city).toarray()
letters = torch.tensor(letters)[None].float()
rungs = {
    "probe, new cities": ml.probe_layers(late, inside, probe="ridge"),
    "probe, new countries": ml.probe_layers(late, inside, probe="ridge", groups=cities.country),
    "letters of the name, new cities": ml.probe_layers(letters, inside, probe=Ridge()),
    "letters of the name, new countries": ml.probe_layers(
        letters, inside, probe=Ridge(), groups=cities.country
    ),
}
floor = ml.probe_layers(blank_cities, inside[third], probe="ridge").score.values.max()
second = {name: r2(probe.predictions[0], inside) for name, probe in rungs.items()}
value = {name: numbers for name, (numbers, _) in second.items()}
claim(model, "the rest, latitude", value["probe, new cities"][0], says=0.28, within=0.05)
claim(model, "the rest, longitude", value["probe, new cities"][1], says=0.53, within=0.05)
claim(model, "the rest, longitude, new countries", value["probe, new countries"][1], says=0.36, within=0.06)
assert (
    value["letters of the name, new cities"].max() < 0.27
    and floor < 0 < 0.15 - value["probe, new countries"][0]
)
reveal("22.p2", " and ".join(f"{axis} {text}" for axis, text in second["probe, new cities"][1].items()))
pd.DataFrame({name: text for name, (_, text) in second.items()}).T

# %% [markdown]
# <details><summary>What we saw</summary>
#
# It passes. 0.28 and 0.53 on new cities; with whole countries held out 0.36 is left of the longitude, and of the latitude nothing that its interval
# tells from 0. A random model stays below 0. The surface (runs of one to three letters of the name) does less well, and nothing on new countries.
# An earlier version of this notebook stopped here and wrote: "so there is some of a map".
#
# </details>
#
# ### Exercise 22.6 The baseline that kills it
#
# Difficulty 4 of 5 · 25 minutes · needs the table above
#
# Put the cities into groups, by what a person knows without a map. A group is any string. Then a table says, for each city, the mean of its group
# (less the mean of the continent, as above); for a group it has not seen, 0. Beat the probe twice: on **new cities** of known countries, and on cities of
# **new countries**, of which the table has no city. The check has 612 smaller cities of 141 countries, named in English (the 105 of `cities.country` and others).


# %% kind="exercise" id="22.6"
@exercise("22.6")
def group_of(city: str, country: str, continent: str) -> str:
    """The name of the group in which you put a city: all that your table will know about it."""
    # >>> solution
    regions = {
        "east": "China|Japan|South Korea|North Korea|Taiwan|Mongolia",
        "southeast": "Vietnam|Thailand|Indonesia|Malaysia|Philippines|Myanmar|Cambodia|Laos|Singapore",
        "south": "India|Pakistan|Bangladesh|Nepal|Sri Lanka|Afghanistan",
        "west": "Turkey|Iran|Iraq|Syria|Saudi Arabia|Yemen|Israel|Jordan|Lebanon|Kuwait|Oman|Qatar",
        "north Africa": "Egypt|Algeria|Morocco|Libya|Tunisia|Sudan",
        "southern Africa": "South Africa|Namibia|Lesotho|Zimbabwe|Mozambique|Zambia|Malawi|Angola",
        "north of America": "United States|Canada",
        "north of Europe": "Norway|Sweden|Finland|Denmark|Estonia|Latvia|Lithuania|Russia",
    }
    return next((name for name, members in regions.items() if country in members.split("|")), continent)
    # <<< solution


# %% kind="check"
check(group_of)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# What is finer than a continent and known of a city without a map? For countries of which the table has no city: what do they share with
# their neighbours?
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# `return country` kills the first number and not the second. Between country and continent lie regions. Two thirds of the cities are in Asia:
# split that first (east, southeast, south, west), then Africa and the Americas from north to south. `sorted(set(cities.country))` lists the names.
#
# </details>


# %% kind="wrong" id="22.6" expects="new countries"
@exercise("22.6")
def group_of(city, country, continent):
    return country


# %% kind="wrong" id="22.6" expects="continent"
@exercise("22.6")
def group_of(city, country, continent):
    return continent


# %% kind="wrong" id="22.6" expects="one city"
@exercise("22.6")
def group_of(city, country, continent):
    return city


# %% kind="wrong" id="22.6" expects="say little about where"
@exercise("22.6")
def group_of(city, country, continent):
    return country[0]


# %% [markdown]
# Two such tables beside the probe: the country alone, and ten coarse regions, drawn by hand. (The exercise's own cities ask for more: these ten leave Africa and
# the Americas whole.)

# %%
asia = {
    "east": "China Japan South_Korea North_Korea Taiwan Hong_Kong",
    "southeast": "Vietnam Thailand Indonesia Malaysia Philippines Myanmar Cambodia Singapore",
    "south": "India Pakistan Bangladesh Nepal Afghanistan",
    "west": "Turkey Iran Iraq Syria Saudi_Arabia Yemen Jordan Israel Lebanon Georgia Armenia Azerbaijan",
    "north Africa": "Egypt Algeria Morocco Libya Sudan",
}
region = {name.replace("_", " "): which for which, names in asia.items() for name in names.split()}
region = cities.country.map(region).fillna(cities.continent)
tables = {
    "country, new cities": told(cities.country, inside),
    "region, new cities": told(region, inside),
    "region, new countries": told(region, inside, cities.country),
}
tables = {name: r2(said, inside) for name, said in tables.items()}
by = {name: numbers for name, (numbers, _) in tables.items()}
claim(model, "latitude from the country", by["country, new cities"][0], says=0.67, within=0.03)
claim(model, "longitude from the country", by["country, new cities"][1], says=0.85, within=0.03)
for kind in ("new cities", "new countries"):
    assert (by[f"region, {kind}"] > value[f"probe, {kind}"] + 0.1).all()
pd.DataFrame({name: text for name, (_, text) in (tables | second).items()}).T

# %% [markdown]
# Told the country alone, a table reaches 0.67 and 0.85. Told one of about ten regions, it beats the probe on new countries too. Everything that the probe
# showed so far is explained by "it knows the country, or roughly the region". One rung is left.
#
# ### Predict: the third rung
#
# Position less the mean of the *country*, in the 23 countries with five cities or more. R² of a new probe, on the best of six layers?

# %% kind="predict"
predict("22.p3", 0.1)

# %%
of_country = cities.groupby("country")
large = (of_country.city.transform("count") >= 5).to_numpy(copy=True)
within = (place - of_country[["latitude", "longitude"]].transform("mean").to_numpy())[large]
last_rung = ml.probe_layers(city_streams[depths][:, large], within, probe="ridge")
china = (cities.country == "China").to_numpy(copy=True)
of_china = ml.probe_layers(city_streams[depths][:, china], place[china], probe="ridge")
tops = [f"{probe.score.values.max():.2f}" for probe in (last_rung, of_china)]
left_over = r2(last_rung.predictions[-1], within, country[large])[1]
print(*(f"{axis} {text};" for axis, text in left_over.items()), "best of six layers, and in China:", *tops)
reveal("22.p3", f"{last_rung.score.values.max():.2f} on the best of six layers")

# %% [markdown]
# Would this probe have found a map? A test that cannot succeed shows nothing when it fails. Plant a map: add to each stream the
# city's latitude within its country, along one direction, drawn from noise with the covariance of the streams. How large must it be?

# %%
x = city_streams[30][large]
along = ml.null_directions(x, kind="covariance", count=4, length=1)
north = torch.tensor(within[:, 0] / within[:, 0].std()).float()[:, None] * x.var(0).sum().sqrt()
planted = {}
for share in (0.001, 0.003, 0.01, 0.03):
    maps = x + share**0.5 * north * along[:, None]
    planted[f"{share:.1%} of the variance"] = ml.probe_layers(maps, within[:, 0], probe="ridge").score.values
pd.DataFrame(planted, index=[f"direction {n}" for n in range(4)]).round(2)

# %% kind="assert"
assert last_rung.score.values.max() < 0.06 and of_china.score.values.max() < 0.06
assert large.sum() == 424 and len(set(cities.country[large])) == 23
claim(
    model,
    "a planted map of 1 % of the variance, mean",
    planted["1.0% of the variance"].mean(),
    says=0.32,
    within=0.12,
)
of_cities = city_streams[30]
between = sum(
    n * (of_cities[torch.tensor(list(cities.country == c))].mean(0) - of_cities.mean(0)).pow(2).sum()
    for c, n in cities.country.value_counts().items()
)
claim(
    model,
    "share of the variance that countries take",
    between / (of_cities - of_cities.mean(0)).pow(2).sum(),
    says=0.51,
    within=0.05,
)

# %% [markdown]
# <details><summary>What we saw</summary>
#
# A map that took one hundredth of the variance of the streams would have shown, with an R² of about 0.3. (What countries differ in takes half of
# it.) So here the ladder ends: **it knows the country, or roughly the region; inside a country nothing was found.**
#
# What would change our mind? An R² above 0 inside countries, on held-out cities: from a larger model, a prompt that asks for the province
# or the coast, another position, or a probe that is not linear. What would *not*: a higher R² on the first rung.
# Gurnee and Tegmark (2023) find 0.88 for places in Llama-2-7b, at the last token of the name (the last table has ours beside it). That too is the first rung.
#
# </details>
#
# **Question 22.a.** You read: "a probe finds the *altitude* of a city it has not seen, R² 0.40." Which baseline do you make first, and what
# should it reach if the probe knows nothing but the country?
#
# - **a** A model with random weights. It should reach about 0.40.
# - **b** The mean altitude of the other cities of the country. It should reach 0.40 or more.
# - **c** Shuffled altitudes. They should reach 0.

# %% kind="quiz"
quiz("22.a", "b")

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
# %% [markdown]
# ## How it misleads: decodable need not be used
#
# Two probes, both nearly perfect on entering layer 12. Remove the direction of each from the stream there, once, at every position. Does the model still go
# on from "I thought it was" with " great" after a good film and " terrible" after a bad one? The gap: logit of " great" minus logit of " terrible", after
# good films, less the same after bad ones. The directions are fitted on other adjectives than those in the films.
#
# And beside what? A stream fills few of its 576 directions. A random direction of all (**isotropic**) hardly touches it: that is the weakest null.
# A fair one has the same origin: class means again, but with the labels dealt out anew among the adjectives.
#
# ### Exercise 22.7 A fair null
#
# Difficulty 3 of 5 · 15 minutes · needs 22.2


# %% kind="exercise" id="22.7"
@exercise("22.7")
def null_direction(
    streams: Float[Tensor, "example d_model"],
    labels: Int[Tensor, "example"],
    groups: list[str],
    generator: torch.Generator,
) -> Float[Tensor, "d_model"]:
    """A difference of class means that means nothing: class 1 less class 0, with the labels dealt out anew.

    All examples of a group have one label (0 or 1) before and after, and as many groups have a 1. Only the part at
    right angles to the real difference of means is returned: a draw overlaps with that by chance.
    """
    # >>> solution
    names = list(dict.fromkeys(groups))
    old = [int(labels[groups.index(name)]) for name in names]
    dealt = dict(
        zip(names, torch.tensor(old)[torch.randperm(len(names), generator=generator)].tolist(), strict=True)
    )
    new = torch.tensor([dealt[group] for group in groups])
    real, drawn = (streams[y == 1].mean(0) - streams[y == 0].mean(0) for y in (labels, new))
    return drawn - (drawn @ real) / (real @ real) * real
    # <<< solution


# %% kind="check"
check(null_direction)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Deal out the labels of the groups, as in 22.2: draw among groups, not among examples.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# One label for each group, in the order of the groups; `torch.randperm(..., generator=generator)` mixes them. From the drawn difference `d` take
# away its projection on the real one, `(d @ r) / (r @ r) * r`.
#
# </details>


# %% kind="wrong" id="22.7" expects="among the groups"
@exercise("22.7")
def null_direction(streams, labels, groups, generator):
    new = labels[torch.randperm(len(labels), generator=generator)]
    real, drawn = (streams[y == 1].mean(0) - streams[y == 0].mean(0) for y in (labels, new))
    return drawn - (drawn @ real) / (real @ real) * real


# %% kind="wrong" id="22.7" expects="right angles"
@exercise("22.7")
def null_direction(streams, labels, groups, generator):
    names = list(dict.fromkeys(groups))
    old = torch.tensor([int(labels[groups.index(name)]) for name in names])
    dealt = dict(zip(names, old[torch.randperm(len(names), generator=generator)].tolist(), strict=True))
    new = torch.tensor([dealt[group] for group in groups])
    return streams[new == 1].mean(0) - streams[new == 0].mean(0)


# %% kind="wrong" id="22.7" expects="isotropic"
@exercise("22.7")
def null_direction(streams, labels, groups, generator):
    real, drawn = (
        streams[labels == 1].mean(0) - streams[labels == 0].mean(0),
        torch.randn(streams.shape[1], generator=generator),
    )
    return drawn - (drawn @ real) / (real @ real) * real


# %%
pair = np.arange(len(listed)) // 2  # a positive adjective and a negative one
single = np.array([model.to_tokens(f" {w}").shape[1] == 2 for w in listed.adjective])
shown = (single[0::2] & single[1::2])[pair]  # films for the pairs whose words are one token long
answers = ml.logit_difference(ml.single_token(model, " great"), ml.single_token(model, " terrible"))


def gaps_of(films, directions):
    """For each direction taken out, and each film: twice the signed logit difference. Its mean is the gap."""
    prompts = model.to_tokens([f"The film was {word}. I thought it was" for word in films.adjective])
    found, sign = [], torch.tensor(films.positive.to_numpy()) * 2.0 - 1
    for direction in directions:
        hooks = [] if direction is None else ml.direction_hooks(model, direction, [11])
        with torch.no_grad(), ml.intervene(model, hooks):
            found.append(2 * sign * answers(model(prompts)))
    return torch.stack(found)


# %%
gaps = {kind: [] for kind in ("intact", "mass_mean", "logistic", "labels shuffled", "isotropic")}
for fold in range(4):  # the films of a quarter of the pairs, directions from the others
    fit = np.repeat(pair % 4 != fold, 3)
    x, labels, unit = streams[5][fit], torch.tensor(positive[fit]), torch.arange(len(words))[fit] // 3
    kinds = ("mass_mean", "logistic")
    found = {kind: ml.probe_layers(x[None], labels, groups=unit, probe=kind).directions for kind in kinds}
    found["labels shuffled"] = ml.null_directions(
        x, labels, units=unit, apart_from=found["mass_mean"][0], count=20, seed=fold
    )
    found |= {"intact": [None], "isotropic": ml.null_directions(x, kind="isotropic", count=5, seed=fold)}
    for kind, directions in found.items():
        gaps[kind].append(gaps_of(listed[shown & (pair % 4 == fold)], directions))
gaps = {kind: torch.cat(each, dim=1) for kind, each in gaps.items()}  # [draw, film]
null, order = gaps["labels shuffled"].mean(1).sort()
each = {kind: gaps[kind].mean(0) for kind in ("intact", "mass_mean", "logistic")}  # of each film
each |= {
    "labels shuffled, mean of 20": gaps["labels shuffled"].mean(0),
    "most harmful of 20": gaps["labels shuffled"][order[0]],
    "isotropic, mean of 5": gaps["isotropic"].mean(0),
}
bars = {name: gap.mean() for name, gap in each.items()}
claim(model, "good minus bad film, intact", bars["intact"], says=3.4, within=0.2)
claim(model, "without the mass-mean direction", bars["mass_mean"], says=0.9, within=0.25)
couple = torch.cat([torch.tensor(pair[shown & (pair % 4 == fold)]) for fold in range(4)])
above = estimate(gaps["labels shuffled"].mean(0) - gaps["mass_mean"][0], couple)
claim(model, "mass-mean beside the mean of the null", above.mean, says=1.7, within=0.3)
assert bars["mass_mean"] < null[0] - 0.6 and (null < bars["logistic"]).sum() >= 10 and above.low > 1
films = torch.stack([*each.values()], 1)
given = {"labels": {"removed": [name.replace("_", "-") for name in each]}, "units": couple, "signed": False}
ml.Scores.over_prompts(films, ("removed",), "gap, good minus bad film (logits)", **given).plot()

# %% [markdown]
# The gap of 3.4 logits falls to 0.9 without the mass-mean direction, more than in any of the twenty draws; beside their mean the effect is 1.7 logits, not the 2.5 that isotropic
# directions suggest. The logistic direction does *less* harm than most draws. Marks and Tegmark (2023) found mass-mean better for truth too.
#
# Is the feeling gone when the direction is? Take the direction out that was fitted on one half of the pairs, and train a new probe
# on the other half:

# %%
left = {kind: [] for kind in kinds}
for kind, side in [(kind, side) for kind in kinds for side in (0, 1)]:
    fit = np.repeat(pair % 2 == side, 3)
    direction = ml.probe_layers(streams[[5]][:, fit], positive[fit], probe=kind).directions[0]
    unit, rest = direction / direction.norm(), streams[[5]][:, ~fit]
    without = rest - (rest @ unit)[..., None] * unit
    left[kind].append(ml.probe_layers(without, positive[~fit], groups=words[~fit]).score.values.item())
print("a new probe's share right, in two halves:", {kind: [f"{x:.2f}" for x in left[kind]] for kind in left})
assert min(left["logistic"]) > 0.97
claim(
    model, "a new probe without the mass-mean direction", np.mean(left["mass_mean"]), says=0.82, within=0.06
)

# %% [markdown]
# Without the logistic direction a new probe is right on all of them; without the mass-mean direction still on most (0.82). **One direction of a probe is not the concept**:
# others tell the same. (LEACE, Belrose et al. 2023, takes out all that a linear probe can use.)
#
# **Few coordinates are enough.** TransformerLens has a sparse probe: how many of the 576 coordinates does it take?

# %%
from transformer_lens.tools.analysis.sparse_probing import fit_sparse_probe

given = {"groups": feeling.score.units, "preprocess": "standardize"}
fit_one = lambda k, seed: fit_sparse_probe(streams[4], torch.tensor(positive), k=k, seed=seed, **given)
sparse = {k: np.array([float(fit_one(k, seed).metrics.accuracy) for seed in range(8)]) for k in (1, 2, 4, 16)}
claim(model, "two coordinates, mean of eight splits", sparse[2].mean(), says=0.87, within=0.06)
assert sparse[1].mean() < 0.75 and 0.9 < sparse[4].mean() < sparse[16].mean() + 0.05
print("; ".join(f"{k}: {x.mean():.2f}, from {x.min():.2f} to {x.max():.2f}" for k, x in sparse.items()))

# %% [markdown]
# (Entering layer 9; eight splits.) One coordinate tells something, two are right on 0.87, four on more, and sixteen hardly add. One lucky split had us call
# two "nearly perfect".
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
claim(model, "language, entering layer 15", known[6], says=0.62, within=0.06)
claim(model, "language, entering layer 27", known[10], says=0.96, within=0.03)
claim(model, "language from characters", trigrams, says=0.85, within=0.04)

# %% [markdown]
# Chance is 1/6. On entering layer 15 the stream at the full stop says less about the language (0.62) than the letters do (0.85). On entering layer 27 it says more (0.96).
# %% [markdown]
# ## Beside the papers

# %%
mine = {
    "R² of latitude and longitude, prompt asks for the continent, last layer (mean)": position.mean(),
    "the same from the continent alone (mean)": baseline.mean(),
    "R² inside countries, the same probe (mean)": last_rung.score.values[-1].mean().item(),
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
# | fair null | directions of the same origin | `ml.null_directions` | |
# | sparse probe | few coordinates | | TransformerLens `fit_sparse_probe` |
# | CCS | consistency instead of labels | `ml.contrast_consistent_search` | Burns et al. 2022 |
#
# Next: notebook 23 looks at who looks where.
