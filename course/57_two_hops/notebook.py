# %% [markdown]
# # 57 Two hops
#
# **Question:** the model completes "In Frankfurt people speak" with "German". Does it work out the place first and then say its language, or does it go from city to language directly?
#
# After this notebook you will be able to
#
# - choose a group of neurons on some cities, and turn it like a knob in a city it never saw, beside matched groups,
# - find by mediation which head carries an effect, and say what that does not show,
# - say what such an experiment excludes, and what it leaves open.
#
# Time: 105 minutes. The cells take about 90 seconds in all. Memory: 2.0 GB.
# Download: none, once the model is here (93 MB). Before: notebooks 31 and 53.

# %% kind="setup"
# (written by the build)

# %% [markdown]
# ## Dallas first
#
# The best-known example of two hops: "the capital of the state containing Dallas is". Dallas is in Texas (first hop), whose capital is Austin (second hop). In Claude 3.5 Haiku, Lindsey et al. 2025 found a step "Texas" in between, and exchanged it. Arora et al. 2026 turn neurons of each hop in Llama 3.1 8B.
# Our small model, asked the same:

# %%
import itertools

import pandas as pd


def said(prompts, words, hooks=()):
    """The probability of each word as the next token, [prompt word]."""
    ids = [ml.single_token(model, word) for word in words]
    with torch.no_grad(), ml.intervene(model, [*hooks]):
        return model(prompts)[:, -1].softmax(-1)[:, ids]


both = said(["Fact: the capital of the state containing Dallas is"], [" Austin", " Dallas"])[0]
state = said(["The city of Dallas is in the state of"], [" Texas"])[0]
print(f"Austin {both[0]:.3f} · Dallas {both[1]:.3f} · the state alone: Texas {state[0]:.2f}")

# %% kind="assert"
claim(model, "Texas", state[0], says=0.68, within=0.05)
assert both[0] < 0.02 < both[1]

# %% [markdown]
# It fails. It knows Texas, but not Austin. There is nothing to explain where a model does not do the thing. So we ask for something that it can do: the language spoken in a city.
#
# ## The picture
#
# Two examples, then a city. We rank neurons with a contrast (notebook 53) between three German and two Japanese cities, and take the 20 best **at the city's token**. Then the knob: in the prompt about Frankfurt, which had no part in the choice, the 20 are put between where they stand in the German cities (0) and
# where they stand in the Japanese ones (1), or beyond. All else computes on. Beside them, 20 **matched** neurons: drawn by chance, of the same layers, which change about as much.

# %%
FEW = "In Salzburg people speak German. In Rio people speak Portuguese. In {} people speak"
german, japanese, words = ["Munich", "Berlin", "Hamburg"], ["Tokyo", "Kyoto"], (" German", " Japanese")
ask = lambda cities, question=FEW: [question.format(city) for city in cities]
tokens = model.to_tokens(ask(["Munich", "Tokyo"]))
city = int((tokens[0] != tokens[1]).nonzero()[0])  # its position

answer = ml.logit_difference(*(ml.single_token(model, word) for word in reversed(words)))
contrast = ml.Contrast(model, ask([new for new in japanese for _ in german]), ask(german * 2), answer)
group = ml.supernode(contrast.totals(), city, 20, layers=range(4, 30))
matched = ml.matched_groups(contrast.changes(), group)  # 20 of them
runs = [ml.run_of(model, ask(cities)) for cities in (german, japanese)]


def knob(neurons, times, pos=None):
    """Hooks: neurons at the city (or at `pos`), between their means in German and in Japanese cities."""
    start, goal = (ml.group_values(model, run, neurons).mean(0) for run in runs)
    there = [(layer, at if pos is None else pos, n) for layer, at, n in neurons]
    return ml.group_hooks(model, there, around=start, to=goal, times=times)


strengths = [0, 0.5, 1, 1.5, 2, 2.5]
frankfurt = ask(["Frankfurt"])
lines = [torch.cat([said(frankfurt, words, knob(g, x)) for x in strengths]).T for g in (group, matched[0])]
turned = torch.cat(lines)
names = ["German", "Japanese", "German, matched 20", "Japanese, matched 20"]
labels = {"next word": names, "times": [str(x) for x in strengths]}
picture = ml.Scores(turned, tuple(labels), "probability of the next word", labels, signed=False)
picture.plot(lines=True, title="In Frankfurt people speak ...")

# %% kind="assert"
clean = said(frankfurt, words)[0]
claim(model, "German, clean", clean[0], says=0.53, within=0.03)
claim(model, "Japanese, at 1", turned[1, 2], says=0.18, within=0.05)
claim(model, "Japanese, at 2", turned[1, 4], says=0.88, within=0.05)
assert model.cfg.n_layers * model.cfg.d_mlp == 46_080
assert turned[3].max() < 0.05

# %% [markdown]
# Twenty neurons of 46,080 take Frankfurt to Japan. Where the Japanese cities stand (1) they do little yet: 0.18. Twice as far, "Japanese" has 0.88. The matched neurons do nothing.
#
# We left out layers 0 to 3: neurons there still stand for the word's letters, and to exchange these would be to exchange the word.
#
# The same to touch: what the change goes through, and sliders. (Here a slider *adds* the step to what Frankfurt has, so 0 leaves it as it is.)

# %%
late = ml.supernode(contrast.totals(), tokens.shape[1] - 1, 10, layers=range(20, 30))


def as_knob(name, neurons):
    start, goal = (ml.group_values(model, run, neurons).mean(0) for run in runs)
    return ml.Knob(name, neurons, start, goal)


knobs = [as_knob("Germany to Japan", group), as_knob("matched", matched[0])]
names = "Japanese cities", "German cities"
watched = as_knob("say Japanese", late)
ml.tracing_explorer(contrast, frankfurt, knobs, watched, names=names, title="Japanese − German (logits)")

# %% [markdown]
# ### Exercise 57.1 A group from training cities
#
# Difficulty 2 of 5 · 10 minutes · needs notebook 53, totals
#
# A group that is used as one node is a **supernode** (Ameisen et al. 2025). Whatever it is tested on must have no part in the choice.


# %% kind="exercise" id="57.1"
@exercise("57.1")
def supernode(
    totals: Float[Tensor, "pair layer pos neuron"], tested: int, pos: int, k: int, first: int
) -> Int[Tensor, "k 2"]:
    """Rows (layer, neuron) of the k neurons at `pos` whose mean total is largest by size, largest first.

    The mean is over all pairs but the one that will be tested; only layers from `first` on.
    """
    # >>> solution
    keep = torch.arange(len(totals)) != tested
    size = totals[keep].mean(0)[:, pos].abs()
    size[:first] = -1
    best = size.flatten().topk(k).indices
    return torch.stack(torch.unravel_index(best, size.shape), dim=1)
    # <<< solution


# %% kind="check"
check(supernode)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Average first, and take the size of the mean: what goes up in one pair and down in the other is not part of the group.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# Take the rows `torch.arange(n) != tested`, their mean, the position, `.abs()`. Put -1 into the layers before `first`. `topk` of the flattened table; `torch.unravel_index` gives layers and neurons back.
#
# </details>


# %% [markdown]
# ### Exercise 57.2 The knob
#
# Difficulty 2 of 5 · 10 minutes · needs notebook 03, hooks
#
# What a hook does to the neurons of one layer.


# %% kind="exercise" id="57.2"
@exercise("57.2")
def turn(
    x: Float[Tensor, "prompt pos d_mlp"],
    pos: int,
    neurons: list[int],
    start: Float[Tensor, "neuron"],
    goal: Float[Tensor, "neuron"],
    times: float,
) -> Float[Tensor, "prompt pos d_mlp"]:
    """x with the given neurons at `pos` put on the way from start (times 0) to goal (times 1), or beyond it."""
    # >>> solution
    x = x.clone()
    x[:, pos, neurons] = start + times * (goal - start)
    return x
    # <<< solution


# %% kind="check"
check(turn)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# The value to put there does not depend on what the prompt has.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# `x.clone()`, then `x[:, pos, neurons] = ...`. A point on the way between a and b is `a + t * (b - a)`.
#
# </details>


# %% kind="wrong" id="57.2" expects="in place"
@exercise("57.2")
def turn(x, pos, neurons, start, goal, times):
    x[:, pos, neurons] = start + times * (goal - start)
    return x


# %% [markdown]
# ## Cities it never saw
#
# Six German cities that had no part in the choice, and what else could explain the effect:
#
# - **matched**: all 20 groups, each turned as far. This is our null.
# - **at the end**: the same neurons, at the last token.
# - **by size**: the 20 neurons that change most, whatever goes through them; once among all layers from 4 on, once among layers 4 to 22 only.

# %%
cities = ["Frankfurt", "Cologne", "Dresden", "Leipzig", "Bonn", "Nuremberg"]
unseen, changes, end = ask(cities), contrast.changes(), tokens.shape[1] - 1
mean = lambda hooks: said(unseen, words, hooks).mean(0).tolist()
largest = {last: ml.supernode(changes, city, 20, layers=range(4, last + 1)) for last in (29, 22)}
table = {"clean": mean(()), "the group": mean(knob(group, 2)), "at the end": mean(knob(group, 2, end))}
table |= {f"by size, layers 4 to {last}": mean(knob(neurons, 2)) for last, neurons in largest.items()}
null = torch.tensor([mean(knob(other, 2)) for other in matched])
table["matched, highest of 20"] = null.max(0).values.tolist()
table = pd.DataFrame(table, words).T
table.round(3)

# %% kind="assert"
each = said(unseen, words, knob(group, 2))[:, 1]
by_size = table[" Japanese"]["by size, layers 4 to 22"]
claim(model, "the group", each.mean(), says=0.66, within=0.05)
claim(model, "lowest city", each.min(), says=0.22, within=0.05)
claim(model, "by size, layers 4 to 22", by_size, says=0.63, within=0.05)
assert null[:, 1].max() < 0.02 and table[" Japanese"]["by size, layers 4 to 29"] < 0.02
assert table[" Japanese"]["at the end"] < 0.02 and each.argmin() == 3

# %% [markdown]
# The group carries over to all six, from 0.22 (Leipzig) up, 0.66 in the mean. No matched group gets anywhere, nor does the group at another token.
#
# But look at the last control. Without the last seven layers, "changes most" is nearly as good a rule as the contrast: 0.63. Late neurons change a lot, and at the city's token they move nothing. **What the contrast buys here is the knowledge of where to look**, not a better list.
#
# ### Exercise 57.3 A fair null
#
# Difficulty 3 of 5 · 15 minutes · needs sampling
#
# The library's `ml.matched_groups`, by hand.


# %% kind="exercise" id="57.3"
@exercise("57.3")
def matched_group(
    change: Float[Tensor, "layer neuron"],
    group: list[tuple[int, int]],
    nearest: int,
    generator: torch.Generator,
) -> list[tuple[int, int]]:
    """For each (layer, neuron) of the group another neuron of its layer that changes about as much.

    Drawn by chance from the `nearest` that come closest in size of change; none of the group, none twice.
    """
    # >>> solution
    taken, found = set(group), []
    for layer, neuron in group:
        far = (change[layer].abs() - change[layer, neuron].abs()).abs()
        far[[n for where, n in taken if where == layer]] = torch.inf
        near = far.topk(nearest, largest=False).indices
        drawn = layer, int(near[torch.randint(nearest, (1,), generator=generator)])
        taken.add(drawn)
        found.append(drawn)
    return found
    # <<< solution


# %% kind="check"
check(matched_group)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# How far is each neuron of the layer from the one you replace, in size of change? Rule out the group and what you have drawn already.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# Put `torch.inf` where a neuron is taken. `far.topk(nearest, largest=False).indices` are those to draw from, with `torch.randint(nearest, (1,), generator=generator)`.
#
# </details>


# %% kind="wrong" id="57.3" expects="of the group itself"
@exercise("57.3")
def matched_group(change, group, nearest, generator):
    found = []
    for layer, neuron in group:
        far = (change[layer].abs() - change[layer, neuron].abs()).abs()
        near = far.topk(nearest, largest=False).indices
        found.append((layer, int(near[torch.randint(nearest, (1,), generator=generator)])))
    return found


# %% kind="wrong" id="57.3" expects="size of change"
@exercise("57.3")
def matched_group(change, group, nearest, generator):
    found = []
    for layer, _ in group:
        free = [n for n in range(change.shape[1]) if (layer, n) not in [*group, *found]]
        found.append((layer, free[int(torch.randint(len(free), (1,), generator=generator))]))
    return found


# %% kind="wrong" id="57.3" expects="other layers"
@exercise("57.3")
def matched_group(change, group, nearest, generator):
    found = []
    for layer, neuron in group:
        far = (change.abs() - change[layer, neuron].abs()).abs()
        for where, n in [*group, *found]:
            far[where, n] = torch.inf
        near = far.flatten().topk(nearest, largest=False).indices
        found.append(divmod(int(near[torch.randint(nearest, (1,), generator=generator)]), change.shape[1]))
    return found


# %% kind="wrong" id="57.3" expects="not drawn"
@exercise("57.3")
def matched_group(change, group, nearest, generator):
    found = []
    for layer, neuron in group:
        far = (change[layer].abs() - change[layer, neuron].abs()).abs()
        far[[n for where, n in [*group, *found] if where == layer]] = torch.inf
        found.append((layer, int(far.argmin())))
    return found


# %% [markdown]
# ## Other questions
#
# Do these neurons carry the word "German", or the language, the place, or a list of answers? Ask something else: "The city of {} is located in the country of". The same neurons, at the city's token, with the values found on the *language* question. At 2, how likely is "Japan" (mean over the six cities)?

# %% kind="predict"
predict("57.p", 0.2)

# %%
questions = {
    "The city of {} is located in the country of": (" Germany", " Japan"),
    "In Rome people are Italian. In Rio people are Brazilian. In {} people are": words,
    "The city of {} is on the continent of": (" Europe", " Asia"),
}


def place(question, words=("Munich", "Tokyo")):
    """The position at which what is asked about stands."""
    one, two = (model.to_tokens(question.format(word))[0] for word in words)
    return int((one != two).nonzero()[0])


def asked(question, pair, names, pos):
    """The probabilities of the old and the new answer: clean, with the group, with a matched group."""
    hooks = (), knob(group, 2, pos), knob(matched[0], 2, pos)
    return [p for each in hooks for p in said(ask(names, question), pair, each).mean(0).tolist()]


found = {q: asked(q, pair, cities, place(q)) for q, pair in questions.items()}
CAPITAL = "The capital of {} is"  # asked about a country: no city at all
found[CAPITAL] = asked(CAPITAL, (" Berlin", " Tokyo"), ["Germany"], place(CAPITAL, ("Germany", "Japan")))
columns = pd.MultiIndex.from_product([["clean", "the group", "matched"], ["old", "new"]])
found = pd.DataFrame(found, columns).T
new = found["the group", "new"].tolist()
found.round(2)

# %% kind="assert"
claim(model, "Japan", new[0], says=0.97, within=0.03)
claim(model, "nationality", new[1], says=0.85, within=0.05)
claim(model, "Asia", new[2], says=0.60, within=0.06)
claim(model, "Tokyo", new[3], says=0.47, within=0.06)
assert found["matched", "new"].max() < 0.05 and found["clean", "new"].max() < 0.05

# %% kind="compare"
reveal("57.p", f"{new[0]:.2f}")

# %% [markdown]
# <details><summary>What we saw</summary>
#
# "Japan" has 0.97, the continent follows (0.60), and so does the capital of *Germany* (Tokyo, 0.47), where the token is no city at all. Nationality (0.85) is no evidence: its answer is the same word, " Japanese", so a link to the word would move it too.
#
# </details>
#
# The reverse: choose the 20 on the *country* question, and turn them in the language question.

# %%
COUNTRY = next(iter(questions))
ids = [ml.single_token(model, word) for word in (" Japan", " Germany")]
bases, sources = (ask(names, COUNTRY) for names in ([new for new in japanese for _ in german], german * 2))
totals = ml.Contrast(model, bases, sources, ml.logit_difference(*ids)).totals()
chosen = ml.supernode(totals, place(COUNTRY), 20, layers=range(4, 30))
chosen = [(layer, city, n) for layer, _, n in chosen]
shared, crossed = len({*chosen} & {*group}), mean(knob(chosen, 2))
print(f"shared with the first group: {shared} of 20; German {crossed[0]:.2f}, Japanese {crossed[1]:.2f}")

# %% kind="assert"
claim(model, "shared", shared, says=14, within=1)
claim(model, "Japanese, chosen by country", crossed[1], says=0.75, within=0.05)

# %% [markdown]
# Chosen for the country, 14 are the same, and they move the language even better (0.75).
#
# **Question 57.a.** Suppose there were only a direct link: neurons at the city's token that hold the *language*, for the last token to say, and others that hold the country. What would turning the language neurons have done to the country question?
#
# - **a** Nothing, or no more than matched neurons do.
# - **b** The same as we saw: cities of Japan have Japanese for their language.
# - **c** It would have made the model say "Japanese" there.

# %% kind="quiz"
quiz("57.a", "a")

# %% [markdown]
# ## What fetches it
#
# Whatever stands at the city's token, something must fetch it. Which heads carry the change to the last token? We put single heads of Japanese cities into the run on German ones, at the last token only.

# %%
some, donors = ask(["Frankfurt", "Cologne", "Bonn"]), ask(["Tokyo", "Kyoto", "Hiroshima"])
layers = range(15, 30)
heads = ml.activation_patching(model, some, donors, answer, "z", layers=layers, positions=[end])
heads.top(5)

# %% kind="assert"
by_share = heads.values.flatten().sort(descending=True).values
claim(model, "23.4", heads.values[layers.index(23)].flatten()[4], says=0.77, within=0.05)
claim(model, "the next", by_share[1], says=0.15, within=0.04)
assert by_share[0] == heads.values[layers.index(23)].flatten()[4]

# %% [markdown]
# One head: **23.4** brings 0.77 of the way, the next one 0.15. (In notebook 42 it stayed in the circuit without a role. Here is one.)
#
# That says what heads carry when the whole city is exchanged. Now turn the 20 neurons, and **hold** head 23.4 at the last token at what it hands on in the plain German run. If the knob works by way of the head, its effect is lost. This is **mediation**. What share of the effect on the logit difference will be lost?

# %% kind="predict"
predict("57.q", 0.5)

# %%
clean_run = ml.run_of(model, unseen)


def hold_head(layer, head):
    """A hook: this head hands on at the last token what it does in the plain run."""

    def put(z, hook):
        z = z.clone()
        z[:, -1, head] = clean_run.at("z", layer)[:, -1, head]
        return z

    return [(f"blocks.{layer}.attn.hook_z", put)]


def effect(hooks):
    with torch.no_grad(), ml.intervene(model, [*hooks]):
        return answer(model(unseen)).mean()


before, full = effect(()), effect(knob(group, 2))
lost = lambda hold: (1 - (effect([*knob(group, 2), *hold]) - before) / (full - before)).item()
held = {f"23.{head}": lost(hold_head(23, head)) for head in range(9)}
print(", ".join(f"{head}: {share:.2f}" for head, share in held.items()))

# %% kind="assert"
claim(model, "23.4 held", held["23.4"], says=0.79, within=0.04)
claim(model, "23.5 held", held["23.5"], says=0.15, within=0.04)

# %% kind="compare"
reveal("57.q", f"{held['23.4']:.2f}")

# %% [markdown]
# <details><summary>What we saw</summary>
#
# 0.79 of the effect goes through one head, 0.15 through its neighbour 23.5, hardly anything through the other seven. So what stands at the city must be fetched, and one head does most of it.
#
# That is **no evidence for two hops**: a finished "German" at the city would have to be fetched as well. Only the other questions speak about *what* is fetched.
#
# </details>
#
# And then? Ten **late** neurons at the last token, of layers 20 to 29, have the largest totals of the same contrast. They should say the language. Watch them, and hold them.
#
# ### Exercise 57.4 Mediation
#
# Difficulty 4 of 5 · 20 minutes · needs `ml.group_values`, `ml.group_hooks`, `ml.intervene`


# %% kind="exercise" id="57.4"
@exercise("57.4")
def mediated(
    model, prompts: Int[Tensor, "prompt pos"], metric, turn: list, late: list[tuple[int, int, int]]
) -> float:
    """The share of the effect of the hooks `turn` that is lost when the neurons `late` cannot follow.

    The effect: how much the mean of metric(logits) over the prompts changes. late: (layer, position, neuron).
    """
    # >>> solution
    hold = ml.group_hooks(model, late, to=ml.group_values(model, prompts, late))

    def value(hooks):
        with ml.intervene(model, hooks):
            return metric(model(prompts)).mean()

    before, full, held = value([]), value(turn), value([*turn, *hold])
    return ((full - held) / (full - before)).item()
    # <<< solution


# %% kind="check"
check(mediated)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Four things: the late neurons' own values, and the metric without hooks, with `turn`, and with both. Which values hold the late neurons where they *were*?
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# `ml.group_values(model, prompts, late)` outside any hooks gives one row for each prompt; `ml.group_hooks(model, late, to=those)` holds them. Then (with turn − with both) / (with turn − without).
#
# </details>


# %% [markdown]
# With the library's parts, and twenty times with ten matched late neurons instead. Then more is held at the last token: all neurons from layer 23 on, and at last everything but 23.4.

# %%
keep = lambda neurons: ml.group_hooks(model, neurons, to=ml.group_values(model, clean_run, neurons))
late_null = [lost(keep(other)) for other in ml.matched_groups(changes, late)]
shares = {"ten late neurons": lost(keep(late))}
shares |= {"matched, mean": sum(late_null) / len(late_null), "matched, highest": max(late_null)}


def hold_neurons(layer):
    """A hook: all neurons of this layer at the last token are what they are in the plain run."""

    def put(post, hook):
        post = post.clone()
        post[:, -1] = clean_run.at("post", layer)[:, -1]
        return post

    return [(f"blocks.{layer}.mlp.hook_post", put)]


shares["neurons from layer 23 on"] = lost([hook for layer in range(23, 30) for hook in hold_neurons(layer)])
rest = [hook for layer in range(4, 30) for hook in hold_neurons(layer)]
others = [(layer, head) for layer in range(4, 30) for head in range(9) if (layer, head) != (23, 4)]
shares["all but 23.4"] = lost([*rest, *(hook for head in others for hook in hold_head(*head))])
print(", ".join(f"{name}: {share:.2f}" for name, share in shares.items()))

# %% kind="assert"
claim(model, "late ten", shares["ten late neurons"], says=0.23, within=0.04)
claim(model, "matched, highest", shares["matched, highest"], says=0.05, within=0.04)
claim(model, "neurons from 23 on", shares["neurons from layer 23 on"], says=0.51, within=0.04)
claim(model, "left with 23.4 alone", 1 - shares["all but 23.4"], says=0.33, within=0.04)
assert max(late_null) < shares["ten late neurons"]

# %% [markdown]
# Held, the ten take 0.23 of the effect away, more than any matched ten (at most 0.05); *all* neurons from layer 23 on take 0.51. So these ten do not say the word alone, nor do all the late neurons. With everything at the end held but 23.4, 0.33 of the effect is left: **the head that fetches writes a third of the answer itself; the rest is spread.**
#
# ## Twelve pairs
#
# One pair of languages is an example. Four languages make twelve. Two training cities each, two unseen ones, 20 neurons, turned twice as far; beside each the same with two matched groups.

# %%
train = {"German": ["Munich", "Berlin"], "Japanese": ["Tokyo", "Kyoto"]}
train |= {"French": ["Paris", "Lyon"], "Italian": ["Milan", "Florence"]}
fresh = {"German": ["Frankfurt", "Bonn"], "Japanese": ["Hiroshima", "Nagasaki"]}
fresh |= {"French": ["Nice", "Geneva"], "Italian": ["Rome", "Bologna"]}
kept = {name: ml.run_of(model, ask(names)) for name, names in train.items()}
word = lambda name: ml.single_token(model, f" {name}")


def turned_to(old, new, neurons):
    """The probability of the new language in fresh cities of the old one."""
    start, goal = (ml.group_values(model, kept[name], neurons).mean(0) for name in (old, new))
    hooks = ml.group_hooks(model, neurons, around=start, to=goal, times=2)
    return said(ask(fresh[old]), [f" {new}"], hooks).mean().item()


after, by_chance = torch.zeros(4, 4), []
for a, b in itertools.combinations(range(4), 2):
    here, there = (list(train)[n] for n in (a, b))
    metric = ml.logit_difference(word(here), word(there))
    pair = ml.Contrast(model, kept[here], kept[there], metric)  # one contrast serves both directions
    neurons = ml.supernode(pair.totals(), city, 20, layers=range(4, 30))
    after[a, b], after[b, a] = turned_to(here, there, neurons), turned_to(there, here, neurons)
    for other in ml.matched_groups(pair.changes(), neurons, draws=2):
        by_chance += [turned_to(here, there, other), turned_to(there, here, other)]
labels = {"from": list(train), "to": list(train)}
pairs = ml.Scores(after, ("from", "to"), "probability of the new language", labels, signed=False)
pairs.plot(height=380, title="Twelve pairs, 20 neurons each")

# %% kind="assert"
off = after[~torch.eye(4, dtype=torch.bool)]
claim(model, "mean of twelve", off.mean(), says=0.56, within=0.05)
claim(model, "lowest, Italian to German", off.min(), says=0.17, within=0.05)
claim(model, "pairs above 0.4", (off > 0.4).sum(), says=10, within=1)
claim(model, "Italian to French", after[3, 2], says=0.29, within=0.05)
claim(model, "matched, highest of 24", max(by_chance), says=0.10, within=0.03)
assert len(by_chance) == 24 and after[3, 0] == off.min()

# %% [markdown]
# Ten of the twelve pass 0.4; Italian to French has 0.29, and Italian to German 0.17. The mean is 0.56. The matched groups, 24 in all, reach 0.10 at most. Four languages are too few for an interval; [The report](../docs/two_hops.md) has more pairs, other templates, and intervals.
#
# ## Names
#
# What switches such a neuron on? `ml.neuron_reads` shows it texts. "In Shanghai", "In Köln", ...: every third city of our list, and all German and Japanese ones.

# %%
listed = pd.read_csv(ml.reference.data_dir() / "probing" / "cities.csv")
listed = listed[(listed.index % 3 == 0) | listed.country.isin(["Germany", "Japan"])]
names = list(listed.city)
texts = ask(names, "In {}")
reads = {n: ml.neuron_reads(model, (14, n), texts, names=names).text for n in (866, 813)}
pd.DataFrame({f"L14N{n}": order for n, order in reads.items()}).head(12)

# %% kind="assert"
home = dict(zip(listed.city, listed.country, strict=True))
assert {home[name] for name in reads[866][:4]} == {"Germany"} and reads[866][0] == "Köln"
first = [home[name] for name in reads[813][:12]]
claim(model, "Japanese cities among the first twelve", first.count("Japan"), says=9, within=1)
assert home["Kano"] == "Nigeria" and {"Kano", "Maputo"} <= {*reads[813][:12]}

# %% [markdown]
# **L14N866** has the four German cities on top; Köln comes first, though nobody ever chose by it. **L14N813** has nine Japanese ones among its first twelve, and also Kano and Maputo, in Africa: perhaps letters that look Japanese. A name for a neuron is a guess that fits its top. What the group *does* has been tested above; what one neuron *means* has not.
#
# ## Country apart from language
#
# Here is a finer test. Geneva and Paris share a language; Switzerland and France differ. A step "country" should be turned alone: chosen on the country question, the 20 should change the country and leave the language. We make it easy, and turn them in the very city they were chosen on. The control: pairs whose language differs as well.

# %%
ALIKE = {  # one language
    ("Geneva", "Paris"): (" Switzerland", " France"),
    ("Zurich", "Munich"): (" Switzerland", " Germany"),
    ("Madrid", "Havana"): (" Spain", " Cuba"),
    ("Havana", "Santiago"): (" Cuba", " Chile"),
    ("Santiago", "Lima"): (" Chile", " Peru"),
    ("Cairo", "Baghdad"): (" Egypt", " Iraq"),
}
UNLIKE = {  # two languages
    ("Munich", "Tokyo"): (" Germany", " Japan"),
    ("Munich", "Paris"): (" Germany", " France"),
    ("Madrid", "Paris"): (" Spain", " France"),
    ("Moscow", "Tokyo"): (" Russia", " Japan"),
    ("Paris", "Rome"): (" France", " Italy"),
    ("Cairo", "Athens"): (" Egypt", " Greece"),
}
SPOKEN = {"Geneva": "French", "Paris": "French", "Zurich": "German", "Munich": "German", "Moscow": "Russian"}
SPOKEN |= {"Madrid": "Spanish", "Havana": "Spanish", "Santiago": "Spanish", "Cairo": "Arabic"}


# %%
def country_turned(here, there, pair):
    """Old and new country with 20 neurons turned, and the old city's language before and with them turned."""
    before, after = (ml.run_of(model, ask([name], COUNTRY)) for name in (here, there))
    metric = ml.logit_difference(*(ml.single_token(model, word) for word in reversed(pair)))
    totals = ml.Contrast(model, after, before, metric).totals()
    neurons = ml.supernode(totals, place(COUNTRY), 20, layers=range(4, 30))
    start, goal = (ml.group_values(model, run, neurons)[0] for run in (before, after))
    turn = lambda group: ml.group_hooks(model, group, around=start, to=goal, times=2)
    countries = said(ask([here], COUNTRY), pair, turn(neurons))[0].tolist()
    at_city = turn([(layer, city, n) for layer, _, n in neurons])
    return countries + [said(ask([here]), [" " + SPOKEN[here]], hooks).item() for hooks in ((), at_city)]


columns = ["old country", "new country", "its language, clean", "its language, turned"]
alike, unlike = (
    pd.DataFrame({f"{a} → {b}": country_turned(a, b, pair) for (a, b), pair in some.items()}, columns).T
    for some in (ALIKE, UNLIKE)
)
pd.concat([alike, unlike], keys=["one language", "two languages"]).round(2)

# %% kind="assert"
crossed = [(some["new country"] > some["old country"]).sum() for some in (alike, unlike)]
claim(model, "pairs that cross", crossed[0], says=1, within=0)
claim(model, "of two languages", crossed[1], says=4, within=0)
claim(model, "Geneva to Paris", alike["new country"].iloc[0], says=0.74, within=0.05)
left = unlike["its language, turned"]
claim(model, "German, to Paris", left["Munich → Paris"], says=0.04, within=0.03)
claim(model, "German, to Tokyo", left["Munich → Tokyo"], says=0.65, within=0.05)
claim(model, "Arabic, to Athens", left["Cairo → Athens"], says=0.24, within=0.05)
assert alike["its language, turned"].iloc[0] > 0.6 and unlike["old country"].iloc[-1] > 0.9

# %% [markdown]
# One pair of six crosses (Geneva, 0.74, and French stays); of the pairs with two languages four of six do. So twenty neurons often do not turn a country whose language stays, and we cannot say whether there is no such step, or the knob is too small: with 150 neurons [the report](../docs/two_hops.md) turns several such pairs, and not others.
#
# Nor do the twenty turn one thing. Put into the language question, those of Munich → Paris take the language along (0.04 is left), those of Munich → Tokyo hardly (0.65), and in Cairo → Athens it falls (0.24) while the country stays.
#
# ## Is it needed?
#
# We have shown that the group, at 2, is *enough* to move the answer. Is it *needed*? Put it the other way round: Tokyo and Kyoto, with the 20 held where they stand in German cities (1), or twice as far (2). Then with a thousand, and both ways.

# %%
many = ml.supernode(contrast.totals(), city, 1000, layers=range(4, 30))
ways = {"Tokyo, Kyoto → Germany": (ask(japanese), 1, 0), "six German cities → Japan": (unseen, 0, 1)}
both_ways = {}
for way, neurons, times in itertools.product(ways, (group, many), (1, 2)):
    prompts, old, new = ways[way]
    start, goal = (ml.group_values(model, runs[n], neurons).mean(0) for n in (old, new))
    hooks = ml.group_hooks(model, neurons, around=start, to=goal, times=times)
    both_ways[way, len(neurons), times] = said(prompts, words, hooks).mean(0).tolist()
both_ways = pd.DataFrame(both_ways, words).T
both_ways.round(2)

# %% kind="assert"
back, on = (both_ways[" Japanese"][way] for way in ways)
claim(model, "Tokyo and Kyoto, at 1", back[20, 1], says=0.87, within=0.04)
claim(model, "Tokyo and Kyoto, at 2", back[20, 2], says=0.20, within=0.05)
claim(model, "six German cities, at 1", on[20, 1], says=0.15, within=0.04)
claim(model, "six German cities, at 2", on[20, 2], says=0.66, within=0.05)
assert back[1000, 1] > 0.5 > back[1000, 2] and on[1000, 1] < 0.5 < on[1000, 2]

# %% [markdown]
# At 1 the group is **neither**: "Japanese" stays in Tokyo and Kyoto (0.87), and hardly comes in German cities (0.15). At 2 it moves **both ways**: Tokyo and Kyoto fall to 0.20, German cities rise to 0.66. So where cities really stand, the answer does not hang on these neurons alone; pushed twice as far they outvote the rest. With a thousand it is much the same.
#
# (A guess at the rest: layers 0 to 3, which we left alone, already tell Tokyo from Munich, and later layers can read those.)
#
# **Question 57.b.** Which sentence do all the experiments together support?
#
# - **a** The model needs these twenty neurons to say the language of a city.
# - **b** At the city's token the model holds the country, apart from the language.
# - **c** Something about the place stands at the city's token that, pushed twice as far, moves the answers to several questions; most of its effect on the language goes through one head.

# %% kind="quiz"
quiz("57.b", "c")

# %% [markdown]
# ## What is excluded, and what is not
#
# - **Excluded:** that these neurons are a plain link from the city to the *word* of the language. Country, continent and, in one prompt, the capital move with them, and neurons chosen by the country move the language.
# - **Shown:** who carries the effect. The group acts at the city; 23.4 fetches, and says a third of it itself; the rest is spread.
# - **Not excluded:** a list of finished answers at the city (language, country, continent), always moved together, from which the end picks: then there is no second hop.
# - **Not excluded:** other, direct ways beside these neurons. At 1 the answer does not hang on them.
# - **Not shown:** that what stands at the city is the *country*. It may be a bundle of much about a place.
#
# ## How this misleads
#
# Papers turn *features* by a factor, such as −2. A feature is never negative and mostly zero. A neuron has a sign and a mean. Here is −2 times the raw activation, with the group and with eight matched ones:

# %%
zero = torch.zeros(20)
raw = [mean(ml.group_hooks(model, g, around=zero, times=-2))[0] for g in (group, *matched[:8])]
print("German, the group:", round(raw[0], 2), "· matched:", [round(p, 2) for p in raw[1:]])

# %% kind="assert"
claim(model, "raw, the group", raw[0], says=0.35, within=0.04)
claim(model, "raw, lowest matched", min(raw[1:]), says=0.32, within=0.06)
assert min(raw[1:]) < raw[0] and null[:, 0].min() > 0.55

# %% [markdown]
# "German" falls to 0.35, which looks like an effect of the group. A matched group gets as low. **Turn the deviation, not the activation.**
#
# - **Beyond 1 is beyond nature.** Our knob stands at 2, where no city stands. At 1, where Tokyo stands, little happens. Show the whole curve.
# - **A swap proves little alone.** Whatever makes up the difference of two cities turns the answer when it is exchanged. It is the other questions that say more.
# - **One pair is one pair.** With Italian to German we should have seen little.
#
# ### Exercise 57.5 A knob of your own
#
# Difficulty 5 of 5 · 40 minutes · needs all of the above
#
# Find at most 20 neurons that move one language to another in cities nobody showed you. The first language: German, French, Italian, Spanish, Japanese, Russian or Arabic. The second is yours to choose, but one of the two must not be in the table of twelve pairs. From layer 4 on, since before that one exchanges the word itself.
#
# Your values are put at the last token of five or more cities that no notebook names. "New" must rise by 0.2 in the mean, and stand clear of 20 groups by chance of the same layers, each pushed as far.


# %% kind="exercise" id="57.5"
@exercise("57.5")
def my_knob(model) -> tuple[str, str, list[tuple[int, int]], Float[Tensor, "neuron"]]:
    """(language, new language, neurons as (layer, neuron), the value to put at each of them)."""
    # >>> solution
    few = "In Salzburg people speak German. In Rio people speak Portuguese. In {} people speak"
    old, new = ([few.format(name) for name in names] for names in (("Madrid", "Havana"), ("Tokyo", "Kyoto")))
    metric = ml.logit_difference(*(ml.single_token(model, word) for word in (" Japanese", " Spanish")))
    pair = ml.Contrast(model, new, old, metric)
    neurons = ml.supernode(pair.totals(), 15, 20, layers=range(4, 30))
    start, goal = (ml.group_values(model, prompts, neurons).mean(0) for prompts in (old, new))
    return "Spanish", "Japanese", [(layer, n) for layer, _, n in neurons], start + 2 * (goal - start)
    # <<< solution


# %% kind="check"
check(my_knob, model=model)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Which cities of that language are one token, so that the prompts of a contrast correspond? And does the model answer right on them at all?
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# `ml.Contrast` over two or more pairs of cities, `ml.supernode` at the city's token, the two means with `ml.group_values`. Put them at start + 2 · (goal − start), and try it on a city you kept back.
#
# </details>


# %% kind="wrong" id="57.5" expects="rises by"
@exercise("57.5")
def my_knob(model):
    few = "In Salzburg people speak German. In Rio people speak Portuguese. In {} people speak"
    old, new = [few.format("Cairo")], [few.format("Athens")]
    metric = ml.logit_difference(ml.single_token(model, " Greek"), ml.single_token(model, " Arabic"))
    group = ml.supernode(ml.Contrast(model, new, old, metric).totals(), 15, 20, layers=range(4, 30))
    return (
        "Arabic",
        "Greek",
        [(layer, n) for layer, _, n in group],
        ml.group_values(model, new, group).mean(0),
    )


# %% kind="wrong" id="57.5" expects="Take a language that is not in it"
@exercise("57.5")
def my_knob(model):
    return "German", "Japanese", [(14, 866), (14, 813)], torch.tensor([0.0, 3.0])


# %% kind="wrong" id="57.5" expects="one exchanges the word itself"
@exercise("57.5")
def my_knob(model):
    return "Spanish", "Japanese", [(0, n) for n in range(20)], torch.ones(20)


# %% [markdown]
# ## Beside the paper

# %%
ml.reference.table("57")

# %% [markdown]
# Not the same quantity as ours: in Gemma-2-2B features of a dictionary are multiplied, by −2 for Texas and by 2 for another place, on one prompt. What is alike is the pattern. Some places can be exchanged, some cannot (British Columbia there; German for Italian here), and both belong into the table.
#
# | term | meaning |
# |---|---|
# | two hops | an answer by way of something between: city, then place, then its language |
# | supernode | a group of neurons or features that is used as one node |
# | matched group | drawn by chance: as many, of the same layers, about as large a change |
# | mediation | turn one part and hold another: what is lost went by way of the second |
# | clamping | to put a value in place of the one that is computed, whatever comes |
#
# `ml.supernode`, `ml.matched_groups`, `ml.group_values`, `ml.group_hooks`, `ml.neuron_reads`, `ml.tracing_explorer`. Papers: Lindsey et al. 2025 (Dallas), Arora et al. 2026 (Dallas, with neurons), Ameisen et al. 2025 (the method), the circuit-tracer tutorial.
