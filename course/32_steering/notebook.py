# %% [markdown]
# # 32 Steering
#
# **Question:** can I turn a behaviour like a knob?
#
# After this notebook you will be able to
#
# - make a steering vector from a few pairs of sentences, and add it while the model reads and writes,
# - give its effect together with its cost, beside vectors that are equally long and mean nothing, and beside simply asking,
# - turn the vector round and use it as a monitor, and say when the monitor is fooled.
#
# Time: 95 minutes. The cells take about 90 seconds in all. Memory: 2.0 GB.
# Download: none, once the model is here (93 MB). Before: notebooks 03, 22 and 26.

# %% kind="setup"
# (written by the build)

# %% [markdown]
# ## The picture
#
# Ten pairs of sentences that differ in little but their mood. The mean of the residual stream over the good ones, minus the mean over the bad ones, is
# a direction: a **contrast vector**. There is one for each layer.

# %%
PAIRS = """What a wonderful day it was. | What a terrible day it was.
I love this place and its people. | I hate this place and its people.
The food tasted delicious. | The food tasted disgusting.
We had a great time together. | We had an awful time together.
She was happy with the result. | She was angry about the result.
His work is excellent. | His work is useless.
The children were kind and cheerful. | The children were cruel and miserable.
It is a beautiful, friendly town. | It is an ugly, dangerous town.
The book was a joy to read. | The book was a pain to read.
Everything went perfectly. | Everything went horribly wrong."""
positive, negative = zip(*(line.split(" | ") for line in PAIRS.splitlines()), strict=True)
vectors = ml.contrast_vectors(model, positive, negative, pos="mean")
assert len(positive) == len(negative) == 10

# %% [markdown]
# To **steer** is to add this vector to the stream of one layer, at every position but the first, while the model works. Strength counts in lengths of the
# stream: 0.2 adds a vector a fifth as long as the stream of one token usually is there. The unit is the same whatever the vector was made from, so equal strengths are equally long.
#
# The effect is measured on 18 sentence beginnings. Metric: mean logit of five good words minus mean logit of five bad ones, as the next word. The
# beginnings share no sentence with the pairs. But five of the ten counted words stand in the pairs.
#
# The cost is measured on ordinary text that the model wrote earlier. The **loss** at a token is minus the log-probability that the model gave to it. Exp of the
# mean loss is the **perplexity**. The cost is the perplexity steered divided by unsteered: 1 is unharmed, 2 means twice as unsure, on average over the tokens.

# %%
forms = ["I think that the new {} is", "My friend told me the {} was", "Most people here say the {} is"]
nouns = "restaurant hotel museum film city song".split()
prompts = [form.format(noun) for form in forms for noun in nouns]
base, text = model.to_tokens(prompts), ml.own_text(model, length=33, count=4)
words = " great good excellent wonderful amazing terrible bad awful horrible boring".split()
ids = tuple(ml.single_token(model, f" {word}") for word in words)
metric = ml.metrics.PositionMetric(lambda read: read[:, :5].mean(1) - read[:, 5:].mean(1), tokens=ids)
layers, strengths = [8, 12, 20, 28], [-0.2, 0.2, 0.4, 1.6]
swept = ml.steering_sweep(model, base, metric, vectors=vectors, layers=layers, strengths=strengths, text=text)
at = {(layer, s): (i, j) for i, layer in enumerate(layers) for j, s in enumerate(strengths)}
effect, cost = swept.effect.values, swept.cost.values
swept.plot()

# %% kind="assert"
claim(model, "effect, layer 8 at 0.4", effect[at[8, 0.4]], says=3.5, within=0.2)
claim(model, "its cost", cost[at[8, 0.4]], says=1.24, within=0.06)
claim(model, "effect, layer 20 at 0.2", effect[at[20, 0.2]], says=4.6, within=0.2)
claim(model, "effect, layer 20 at 0.2 the other way", effect[at[20, -0.2]], says=-3.8, within=0.2)
claim(model, "effect, layer 28 at 1.6", effect[at[28, 1.6]], says=18, within=0.8)
assert sum(word in PAIRS.replace(".", " ").split() for word in words) == 5 and (effect[:, 0] < 0).all()

# %% [markdown]
# To the right is broken text, upwards is the mood, in logits. Each line is one layer. Its points are the strengths in order, from −0.2, the one below zero, to
# 1.6. At layer 20 a push of 0.2 raises the good words by 4.6 logits over the bad ones; the same push the other way lowers them by 3.8. Layer 28 seems to beat everything.
#
# ## By hand
#
# The first token is an attention sink (notebook 26): its stream is so long that it would drown all others. It stays out of every mean.
#
# ### Exercise 32.1 The contrast vector
#
# Difficulty 2 of 5 · 10 minutes · needs notebook 03


# %% kind="exercise" id="32.1"
@exercise("32.1")
def contrast(
    positive: list[Float[Tensor, "pos d_model"]], negative: list[Float[Tensor, "pos d_model"]]
) -> Float[Tensor, "d_model"]:
    """Mean over the positive texts minus mean over the negative ones.

    Each text is its mean over positions, the first left out. Texts have different lengths, and each counts once.
    """
    # >>> solution
    means = [torch.stack([text[1:].mean(0) for text in texts]).mean(0) for texts in (positive, negative)]
    return means[0] - means[1]
    # <<< solution


# %% kind="check"
check(contrast)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Two means, one inside the other: over the positions of a text, then over texts.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# `text[1:].mean(0)` is one vector a text. `torch.stack` makes a tensor of a list of vectors; `.mean(0)` averages over texts.
#
# </details>

# %% [markdown]
# ### Exercise 32.2 The hook
#
# Difficulty 3 of 5 · 10 minutes · needs notebook 03, hooks
#
# While the model writes it keeps the keys and values of what it has read, and the hook sees one position at a time: the new token. That one must be steered too.


# %% kind="exercise" id="32.2"
@exercise("32.2")
def steered(
    stream: Float[Tensor, "batch pos d_model"],
    direction: Float[Tensor, "d_model"],
    strength: float,
    length: float,
) -> Float[Tensor, "batch pos d_model"]:
    """The stream plus a vector along `direction`, at all positions but the first.

    The vector is strength × length long; a negative strength turns it round. `direction` itself can have any length.
    A stream of one position is a newly written token: it is steered.
    """
    # >>> solution
    moved = stream + strength * length * direction / direction.norm()
    return moved if stream.shape[1] == 1 else torch.cat([stream[:, :1], moved[:, 1:]], dim=1)
    # <<< solution


# %% kind="check"
check(steered)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Move every position, then put the first one back, unless it is the only one.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# `direction / direction.norm()` has length 1. `torch.cat([stream[:, :1], moved[:, 1:]], dim=1)` writes nothing in place.
#
# </details>


# %% kind="wrong" id="32.2" expects="in place"
@exercise("32.2")
def steered(stream, direction, strength, length):
    first = 0 if stream.shape[1] == 1 else 1
    stream[:, first:] += strength * length * direction / direction.norm()
    return stream


# %% [markdown]
# On one prompt, by hand. Two things must hold: a strength of 0 changes nothing, and the library says the same.

# %%
one, name = base[:1], "blocks.8.hook_resid_pre"
step = 0.4 * vectors.lengths[8] * vectors.directions[8]


def push(x, hook, times=1):
    return torch.cat([x[:, :1], x[:, 1:] + times * step.to(x)], dim=1)


with torch.no_grad():
    before = model(one)
    with ml.intervene(model, [(name, push)]):
        after = model(one)
    with ml.intervene(model, [(name, lambda x, hook: push(x, hook, times=0))]):
        same = model(one)
by_hand = (metric(after) - metric(before)).item()
print(f"{prompts[0]!r}: {metric(before).item():.2f} before, {metric(after).item():.2f} after")
assert torch.equal(same, before)
assert torch.allclose(
    after[:, 0], before[:, 0]
)  # nothing is added at the first token, and no later one reaches it
assert abs(by_hand - swept.effect.per_prompt[(0, *at[8, 0.4])]) < 1e-2

# %% [markdown]
# ## Read what it writes
#
# Numbers about one next word are not a text. Four prompts, 16 new tokens each, with the vector of layer 8. All strengths go into one batch: each row gets a push of
# its own.


# %%
def written(vectors, layer, strengths, prompts, count=16):
    """For each strength the texts that the model adds to the prompts, always its likeliest token."""
    rows = model.to_tokens(prompts).repeat(len(strengths), 1)
    steps = torch.stack([vectors.step(layer, s) for s in strengths]).repeat_interleave(len(prompts), 0)

    def push(x, hook):
        moved = x + steps[:, None].to(x)
        return moved if x.shape[1] == 1 else torch.cat([x[:, :1], moved[:, 1:]], dim=1)

    with torch.no_grad(), ml.intervene(model, [(f"blocks.{layer}.hook_resid_pre", push)]):
        out = model.generate(rows, max_new_tokens=count, do_sample=False, verbose=False, stop_at_eos=False)
    said = [model.tokenizer.decode(row) for row in out[:, rows.shape[1] :].tolist()]
    return {s: said[n * len(prompts) : (n + 1) * len(prompts)] for n, s in enumerate(strengths)}


# %%
chosen = [prompts[n] for n in (0, 1, 7, 10)]
moods = written(vectors, 8, [-0.2, 0, 0.4, 1.6], chosen)
for strength, texts in moods.items():
    print(f"\nstrength {strength}")
    for start, said in zip(chosen, texts, strict=True):
        print(f"  {start} |{said}".replace("\n", "↵"))

# %% kind="assert"
claim(model, "effect, layer 8 at 1.6", effect[at[8, 1.6]], says=6.0, within=0.5)
claim(model, "its cost", cost[at[8, 1.6]], says=120, within=30)
assert all(a != b for a, b in zip(moods[0.4], moods[0], strict=True))

# %% [markdown]
# At 0.4 the texts are cheerful and read well, for 1.2 times the perplexity. At 1.6 the metric reports nearly twice as much mood, at some 120 times the perplexity, and
# there is hardly a sentence left. **The metric goes on rising while the text breaks down.** Whoever reports effects alone will pick the broken text. So always: effect, cost, and a few lines read.
#
# ### Exercise 32.3 What it costs
#
# Difficulty 3 of 5 · 15 minutes · needs notebook 00, log-probability


# %% kind="exercise" id="32.3"
@exercise("32.3")
def perplexity_ratio(
    steered: Float[Tensor, "text pos d_vocab"],
    unsteered: Float[Tensor, "text pos d_vocab"],
    text: Int[Tensor, "text pos"],
) -> Float[Tensor, ""]:
    """Perplexity of the text with steering, divided by that without, from the logits of both runs.

    The logits at position p are about the token at p + 1. Those at position 0 are left out: nothing is added there.
    Perplexity is exp of the mean loss over all tokens of all texts.
    """
    # >>> solution
    loss = lambda logits: -logits[:, 1:-1].log_softmax(-1).gather(-1, text[:, 2:, None]).mean()
    return (loss(steered) - loss(unsteered)).exp()
    # <<< solution


# %% kind="check"
check(perplexity_ratio)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# exp(a) / exp(b) is exp(a − b): two mean losses are enough.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# `logits[:, 1:-1].log_softmax(-1)` belongs to the tokens `text[:, 2:]`. `.gather(-1, text[:, 2:, None])` picks their log-probabilities.
#
# </details>

# %% [markdown]
# ## Beside what?
#
# Any push changes something. Three controls of the same length at the same layer:
#
# - **Isotropic** random vectors, every direction equally likely: the **weakest null** as a rule, since the stream fills few directions.
# - **Shuffled labels** (`ml.null_directions`, notebook 22): the same twenty sentences, dealt out anew into two sets of ten; twenty draws. Same words, same recipe, no mood but what chance leaves.
# - **Other contrasts**, made from pairs as ours is, about other things: sea against land, French against English (both come later).
#
# And **asking**: a line before the prompt, no vector. ("It rained today." is the control of the control.) Predict: how far up does the best of the twenty shuffled vectors move the metric, where ours moves it by 3.5?

# %% kind="predict"
predict("32.n", 0.5)

# %%
SEA = """The ship sailed across the sea. | The truck drove across the desert.
Waves rolled onto the beach. | Leaves fell onto the street.
The fishermen pulled in their nets. | The farmers brought in their corn.
Sharks and whales live in the ocean. | Lions and zebras live in the savanna.
The captain watched the waves. | The teacher watched the pupils.
We swam in the salty water. | We sat in the warm kitchen.
The boat left the harbour at dawn. | The train left the station at dawn.
Sailors fear the storm at sea. | Drivers fear the ice on roads.
Shells lay on the sandy shore. | Papers lay on the wooden desk.
The tide rose over the rocks. | The smoke rose over the houses."""
FRENCH = """Il fait beau aujourd'hui et nous allons au parc. | The weather is nice today and we are going to the park.
Elle habite dans une petite maison près de la rivière. | She lives in a small house near the river.
Il a acheté du pain et du fromage au marché ce matin. | He bought bread and cheese at the market this morning.
Les enfants jouent dans le jardin tous les après-midi. | The children play in the garden every afternoon.
Je voudrais une tasse de café, s'il vous plaît. | I would like a cup of coffee, please.
Nous partons à la montagne la semaine prochaine. | We are leaving for the mountains next week.
Ce livre raconte l'histoire d'un jeune garçon. | This book tells the story of a young boy.
Le train arrive à la gare à huit heures. | The train arrives at the station at eight o'clock."""

# %%
import pandas as pd

from mechlab.intervention.steering import push_effects  # the change of a metric for many vectors at once

split = lambda pairs: zip(*(line.split(" | ") for line in pairs.splitlines()), strict=True)
tide, tongue = (ml.contrast_vectors(model, *split(pairs), pos="mean") for pairs in (SEA, FRENCH))
sentences = ml.residual_streams(model, [*positive, *negative], pos="mean")[8]
kinds, size = torch.tensor([1] * 10 + [0] * 10), 0.4 * vectors.lengths[8]
groups = {
    "mood": vectors.directions[8][None],
    "shuffled labels": ml.null_directions(sentences, kinds, count=20),
    "other contrasts": torch.stack([tide.directions[8], tongue.directions[8]]),
    "isotropic": torch.stack([vectors.random(seed=seed).directions[8] for seed in range(20)]),
}
effects = {}
for name, rows in groups.items():
    pushes = size * rows / rows.norm(dim=-1, keepdim=True)
    effects[name] = push_effects(model, base, metric, pushes, layer=8)

# %%
summary = {
    name: {"vectors": len(found), "lowest effect": found.min().item(), "highest effect": found.max().item()}
    for name, found in effects.items()
}
assert effects["shuffled labels"].max() < effects["mood"].item()
claim(model, "largest of the shuffled", effects["shuffled labels"].max(), says=1.3, within=0.3)
claim(model, "lowest of the shuffled", effects["shuffled labels"].min(), says=-2.0, within=0.3)
claim(model, "lowest isotropic", effects["isotropic"].min(), says=-1.8, within=0.3)
claim(model, "largest other contrast", effects["other contrasts"].abs().max(), says=1.3, within=0.3)
reveal("32.n", round(effects["shuffled labels"].max().item(), 2))
pd.DataFrame([*summary.values()], index=[*summary]).round(2)

# %%
loss = lambda logits: -logits[:, 1:-1].log_softmax(-1).gather(-1, text[:, 2:, None]).mean()
with torch.no_grad():
    plain, usual = metric(model(base)), loss(model(text))


def asked(line):
    """The same two figures when `line` comes before the prompt, and before the text."""
    more = model.to_tokens(line + "\n", prepend_bos=False)[0]
    put = lambda tokens: torch.cat([tokens[:, :1], more.expand(len(tokens), -1), tokens[:, 1:]], dim=1)
    with torch.no_grad():
        effect = metric(model(put(base))) - plain
        dearer = loss(model(put(text))[:, len(more) :]) - usual  # the same tokens as without the line
    return {"effect": effect.mean().item(), "perplexity ×": dearer.exp().item()}


lines = ("This is a positive review.", "Write only positive things.", "It rained today.")
lines = pd.DataFrame({f'asked: "{line}"': asked(line) for line in lines}).T.round(2)
assert lines["perplexity ×"].max() < 1.1
for line, says in zip(lines.index, (2.0, 0.7, -0.2), strict=True):
    claim(model, line, lines.effect[line], says=says, within=0.2)
lines

# %% [markdown]
# <details><summary>What we saw</summary>
#
# The mood moves the metric by 3.5, further than all twenty shuffled vectors of the same sentences (from −2.0 to 1.3): number one of twenty-one. The twenty isotropic vectors reach as far as the shuffled (to −1.8): here the weakest null is no
# weaker. (Six would have looked weaker: compare equal numbers of draws.)
# The vector of the sea does next to nothing; that of French pushes towards the bad words.
# So the effect belongs to the mood in the pairs, not to the push, and not to such sentences in general.
#
# </details>
#
# Asking costs nothing on this text: 2.0 with one line, 0.7 with another, against 3.5. Here the vector wins on this metric, over three lines that we tried; in AxBench (Wu et al. 2025)
# prompting beat every steering method. Never report one without the other.
#
# ### Exercise 32.6 Pairs and their twin
#
# Difficulty 4 of 5 · 30 minutes · needs the section above
#
# Design a measurement. Write pairs of your own for the mood, and a **twin**: as many pairs, in the same form and much the same words, that contrast something *else*. The twin is a control that can fail: whatever sentences like
# yours carry besides mood, it carries too. Your mood vector should beat twenty random deals of its own sentences, on prompts that you do not see; the twin should move them little. (Layer 20, strength 0.2, mean over tokens, the metric
# of above. None of its ten words, and none of the sentences above.)


# %% kind="exercise" id="32.6"
@exercise("32.6")
def design() -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Pairs for the mood (good side first), and pairs for its twin: 5 to 12 pairs of sentences each."""
    # >>> solution
    mood = """I adore my new neighbours. | I detest my new neighbours.
    The guests left happy and grateful. | The guests left angry and bitter.
    It was a lovely, peaceful evening. | It was a miserable, stressful evening.
    The soup tasted fantastic. | The soup tasted revolting.
    Her speech was brilliant and moving. | Her speech was stupid and dull.
    We enjoyed every minute of it. | We regretted every minute of it.
    The nurse was gentle and warm. | The nurse was rough and cold.
    This is a charming, safe street. | This is a filthy, dangerous street.
    My holiday was a dream. | My holiday was a nightmare.
    Everybody praised the new plan. | Everybody cursed the new plan."""
    twin = """I met my new neighbours. | I saw my new neighbours.
    The guests left early and quietly. | The guests left late and together.
    It was a short, dark evening. | It was a long, bright evening.
    The soup tasted of onions. | The soup tasted of carrots.
    Her speech was about rivers and maps. | Her speech was about numbers and taxes.
    We filmed every minute of it. | We counted every minute of it.
    The nurse was tall and young. | The nurse was small and old.
    This is a narrow, paved street. | This is a wide, sandy street.
    My holiday was in March. | My holiday was in October.
    Everybody read the new plan. | Everybody copied the new plan."""
    pairs = lambda text: [tuple(line.strip().split(" | ")) for line in text.splitlines()]
    return pairs(mood), pairs(twin)
    # <<< solution


# %% kind="check"
check(design, model=model)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Take one of your pairs and cross out the word that differs. What could stand there that nobody would call good or bad?
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# Six frames ("The meal was …"). For the mood fill each with a pleasant and an unpleasant word, for the twin with two plain ones: colours, sizes, origins. The two words of a twin should differ as much as those of the mood, or the control
# could not have failed.
#
# </details>


# %% kind="wrong" id="32.6" expects="null that the check draws itself"
@exercise("32.6")
def design():
    frames = ["The meal was", "The trip was", "My room is", "His voice is", "Her letter was", "The shop is"]
    mood = [(f"{frame} lovely.", f"{frame} disgusting.") for frame in frames]
    return mood, [pair[:: 1 - 2 * (n % 2)] for n, pair in enumerate(mood)]


# %% kind="wrong" id="32.6" expects="it differs in everything"
@exercise("32.6")
def design():
    mood = [
        (f"The {noun} was lovely.", f"The {noun} was disgusting.")
        for noun in "meal trip room voice shop".split()
    ]
    return mood, [
        (f"{noun} go north", f"{noun} go south") for noun in "Ships Trains Buses Birds Trucks".split()
    ]


# %% kind="wrong" id="32.6" expects="holds a word that the metric counts"
@exercise("32.6")
def design():
    nouns = "meal trip room voice shop".split()
    mood = [(f"The {noun} was great.", f"The {noun} was awful.") for noun in nouns]
    return mood, [(f"The {noun} was old.", f"The {noun} was new.") for noun in nouns]


# %% kind="wrong" id="32.6" expects="dealt out at random"
@exercise("32.6")
def design():
    nouns = "meal trip room voice shop".split()
    mood = [(f"The {noun} was lovely.", f"The {noun} was disgusting.") for noun in nouns]
    return mood, [(f"The {noun} was old.", f"The {noun} was old now.") for noun in nouns]


# %% [markdown]
# ## Whom does it move?
#
# A mean can hide prompts that move the wrong way (**anti-steerable** ones, Tan et al. 2024).
# The prompts above are much alike. Here is one of them again, with two beginnings that turn the meaning round. The vector is that of layer 12, at 0.2:

# %%
kinds = [
    "I think that the new {} is",
    "The {} was not",
    "Nobody would call the {}",
]
things = [*nouns, "teacher", "phone", "house", "park", "school", "book", "car", "game", "road", "shop"]
spread = []
for form in kinds:
    tokens = model.to_tokens([form.format(noun) for noun in things])
    with torch.no_grad():
        start = metric(model(tokens))
        with ml.intervene(model, vectors.hooks(12, 0.2)):
            spread.append(metric(model(tokens)) - start)
spread = torch.stack(spread)
wrong_way = (spread < 0).float().mean(1)
labels = {"noun": things, "beginning": [form.format("…") for form in kinds]}
ml.Scores(spread.T, ("noun", "beginning"), "change of the metric (logits)", labels).plot(height=520)

# %% kind="assert"
claim(model, "wrong way, first beginning", wrong_way[0], says=0, within=0.001)
claim(model, "wrong way, was not", wrong_way[1], says=0.44, within=0.13)
claim(model, "largest fall, was not", -spread[1].min(), says=0.16, within=0.1)
claim(model, "mean, was not", spread[1].mean(), says=0.1, within=0.1)
claim(model, "mean, nobody would call", spread[2].mean(), says=2.5, within=0.3)

# %% [markdown]
# After "I think that the new … is" every prompt rises. After "was not" the vector does next to nothing: the mean is 0.1, and seven of sixteen go the wrong way,
# none of them far.
#
# But which way is wrong? The metric counts words. After "was not" and "Nobody would call the" a good word makes the sentence *worse*, so that the right way of
# the metric is the wrong way of the meaning. In the last column the good words rise by 2.5, and the metric calls it success.
#
# (Behaviours can resist as a whole too. In Rimsky et al. 2023, table 3, Llama-2-13B is less sycophantic, that is, says less what the asker wants to hear, whichever way one pushes.)
#
# ## Late layers look best
#
# The metric is two lists of next words. A vector can raise them without any layer reading it: the unembedding reads the end of the stream, and the vector is
# in it. How much of the effect is that **direct** path? Take the pushed vector's own logits (divided by the scale of the final norm, as in notebook 12):

# %%
late = f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
with torch.no_grad():
    _, cache = model.run_with_cache(base, names_filter=late)
scale = (cache[late][:, -1].pow(2).mean(-1) + model.cfg.eps).sqrt()
reads = model.W_U[:, list(ids[:5])].mean(1) - model.W_U[:, list(ids[5:])].mean(1)
direct = torch.stack([((vectors.step(layer, 0.2) @ reads) / scale).mean().detach() for layer in layers])
whole = torch.stack([effect[at[layer, 0.2]] for layer in layers])
labels = {"effect": ["whole", "direct"], "layer": [str(layer) for layer in layers]}
ml.Scores(
    torch.stack([whole, direct]), ("effect", "layer"), "change of the metric at strength 0.2 (logits)", labels
).plot(height=270)

# %% kind="assert"
claim(model, "direct share, layer 8", direct[0] / whole[0], says=0.1, within=0.04)
assert (direct[:3] < 0.15 * whole[:3]).all()
claim(model, "direct share, layer 20", direct[2] / whole[2], says=0.07, within=0.04)
claim(model, "direct share, layer 28", direct[3] / whole[3], says=0.69, within=0.08)

# %% [markdown]
# At layer 28 seven tenths of the effect is an edit of the logits that are counted. At layers 8 to 20 it is a tenth or less: the rest is what later
# layers make of it. **Which layer looks best depends on how near the metric is to the output.**
#
# And which tokens the vector is made from matters too. From the last token of each sentence (the full stop) instead of the mean over tokens, and *equally long*. (A mean over tokens is shorter than the tokens are. If each
# vector's unit were the length of what it was made from, equal strengths would be different pushes: at layer 8 the mean's would be a third longer, and part of its lead nothing but that.)

# %%
from_last = ml.contrast_vectors(model, positive, negative)
last = ml.steering_sweep(
    model, base, metric, vectors=from_last, layers=layers[:2], strengths=[0.4], text=text
)
rows = [
    {
        "layer": layer,
        "effect, mean": effect[at[layer, 0.4]].item(), "cost, mean": cost[at[layer, 0.4]].item(),
        "effect, last": last.effect.values[n, 0].item(), "cost, last": last.cost.values[n, 0].item(),
    }
    for n, layer in enumerate(layers[:2])
]  # fmt: skip
pooled = pd.DataFrame(rows).set_index("layer").round(2)
for layer, how, says in ((8, "mean", 3.5), (8, "last", 1.3), (12, "mean", 2.1), (12, "last", 4.8)):
    claim(model, f"layer {layer}, {how}", pooled.loc[layer, f"effect, {how}"], says=says, within=0.3)
own = [
    ml.residual_streams(model, [*positive, *negative], pos=pos)[8].norm(dim=-1).mean() for pos in ("mean", -1)
]
claim(model, "own lengths at layer 8, mean over last", own[0] / own[1], says=1.31, within=0.05)
assert torch.equal(from_last.lengths, vectors.lengths)
assert (pooled["cost, last"] > pooled["cost, mean"]).all()
pooled

# %% [markdown]
# At layer 8 the mean over tokens does more than twice as much, at layer 12 the last token does, and at both the last token costs more. Try both and report both.
#
# ## Predict: French
#
# The eight pairs of French and English sentences give a vector too. Count function words ("la", "et" against "the", "and") in what the model
# adds to eight English beginnings, with the vector of layer 12. At strength 0.4 over 90 % of them are French. And at 0.15?

# %% kind="predict"
predict("32.p", 0.4)

# %%
LISTS = {
    "French": """la le les de des du un une et est que qui dans en pour sur avec ce il elle nous vous au par pas ne se
    sa son ses d l""",
    "English": """the a an of and to in is was that it for on with as are be this by at from or his her they we you not
    have had""",
    "sea": """sea seas ocean oceans water beach wave waves ship ships boat boats fish island coast shore swim sail
    sailor captain tide""",
}
OTHERS = """I think that the new hotel is | My friend told me that she was | The best thing about the city is
Last summer my family and I were
The history of the church begins with
When the old man came home he
The two children in the garden were | In the morning the teacher said that"""
beginnings = OTHERS.replace("\n", " | ").split(" | ")
assert len(beginnings) == 8


def counted(texts, which):
    words = "".join(c if c.isalpha() else " " for c in " ".join(texts).lower()).split()
    return sum(word in LISTS[which].split() for word in words)


# %%
turned = [0, 0.15, 0.2, 0.25, 0.4]
heard = written(tongue, 12, turned, beginnings)
share = torch.tensor([
    counted(texts, "French") / (counted(texts, "French") + counted(texts, "English"))
    for texts in heard.values()
])  # fmt: skip
labels = {"strength": [str(s) for s in turned]}
ml.Scores(share, ("strength",), "French among the function words (share)", labels, signed=False).plot(
    height=300
)
price = ml.steering_sweep(
    model, base[:2], metric, vectors=tongue, layers=[12], strengths=turned[1:], text=text
).cost.values[0]
for s in turned[1:]:
    print(f"{s}: perplexity × {price[turned.index(s) - 1]:.1f}")
    print(
        *(f"   {b} |{t}".replace("\n", "↵") for b, t in zip(beginnings[:4], heard[s], strict=False)), sep="\n"
    )

# %% kind="assert"
claim(model, "French at 0.15", share[1], says=0.04, within=0.1)
claim(model, "French at 0.2", share[2], says=0.45, within=0.2)
claim(model, "French at 0.25", share[3], says=0.81, within=0.15)
claim(model, "French at 0.4", share[4], says=1.0, within=0.06)
claim(model, "perplexity at 0.4", price[3], says=100, within=30)
assert share[0] == 0
reveal("32.p", round(share[1].item(), 2))

# %% [markdown]
# <details><summary>What we saw</summary>
#
# Not a knob but a switch: none at 0.15, some at 0.2, most at 0.25, and everything at 0.4. And read it. "la la la" counts as perfect French, and so do words that do not exist, at some 100 times the
# perplexity of English text. (A part of that is fair: good French would be unlikely English too. Turner et al. 2023 list a French vector among the failures on GPT-2 XL.) **A count that can be satisfied by rubbish will be.**
#
# </details>
#
# ## A knob that saturates, and one that hardly turns
#
# A topic: ten sentences about the sea, ten of the same form about the land. And **truth**: "Paris is a city in France." against "Paris is a city in
# England.", 16 cities. The same words are in both sets; only the pairing differs. Does adding truth help with other cities? Metric: logit of the right country minus logit of another city's.
#
# Layer and strength are **chosen on 16 cities and reported on 16 others**, each in a country of its own: the best of eight settings looks better than it is on the cities that chose it.

# %%
topic = written(tide, 12, [0, 0.2, 0.4], beginnings)
found = {s: counted(texts, "sea") for s, texts in topic.items()}
paid = ml.steering_sweep(model, base[:2], metric, vectors=tide, layers=[12], strengths=[0.2, 0.4], text=text)
print(f"words of the sea: {found}, among about {len(' '.join(topic[0]).split())}")
print("perplexity × at 0.2 and 0.4:", *(f"{x:.1f}" for x in paid.cost.values[0].tolist()))
for s, texts in topic.items():
    print(f"{s}: {beginnings[5]} |{texts[5]}".replace("\n", "↵"))

# %%
MADE = """Paris France Berlin Germany Rome Italy Madrid Spain Tokyo Japan London England Moscow Russia Beijing China Cairo Egypt
Athens Greece Dublin Ireland Lisbon Portugal Vienna Austria Warsaw Poland Delhi India Toronto Canada""".split()
CHOSEN = """Sydney Australia Chicago America Milan Italy Munich Germany Barcelona Spain Shanghai China Mumbai India Oslo Norway
Stockholm Sweden Istanbul Turkey Kyoto Japan Montreal Canada Hamburg Germany Lyon France Oxford England Melbourne Australia""".split()
REPORTED = """Amsterdam Netherlands Brussels Belgium Copenhagen Denmark Helsinki Finland Budapest Hungary Geneva Switzerland
Havana Cuba Nairobi Kenya Lima Peru Tehran Iran Baghdad Iraq Karachi Pakistan Hanoi Vietnam Bangkok Thailand Jerusalem Israel
Kiev Ukraine""".split()
assert len(set(REPORTED[1::2])) == 16 and not set(REPORTED) & {*MADE, *CHOSEN}
said = lambda shift: [f"{MADE[2 * n]} is a city in {MADE[(2 * (n + shift) + 1) % 32]}." for n in range(16)]
truth = ml.contrast_vectors(model, said(0), said(5))


def asking(cities):
    """Questions, and the metric: logit of the right country minus that of another city's."""
    right = [ml.single_token(model, f" {name}") for name in cities[1::2]]
    questions = [
        f"{name} is a city in" for name in cities[::2]
    ]  # of several lengths, each read at its own end
    return questions, ml.logit_difference(right, right[5:] + right[:5])


# %%
given = {"vectors": truth, "text": text[:1]}
tried = ml.steering_sweep(
    model, *asking(CHOSEN), layers=[8, 12, 16, 20], strengths=[0.2, 0.4], **given
).table()
best = tried.loc[tried.effect.idxmax()]
layer, push = int(best.layer), float(best.strength)
honest = ml.steering_sweep(model, *asking(REPORTED), layers=[layer], strengths=[push], **given)
states, pushed = ml.residual_streams(model, said(0) + said(5))[layer], truth.step(layer, push).norm().item()
nulls = ml.null_directions(states, torch.tensor([1] * 16 + [0] * 16), count=20, length=pushed)
dealt = push_effects(model, *asking(REPORTED), nulls, layer=layer)
rank = 1 + int((dealt >= honest.effect.values.item()).sum())
print(tried[["layer", "strength", "effect"]].to_string(index=False))
print(
    f"chosen: layer {layer}, {push:g}. On the other cities it is number {rank} among 20 shuffled vectors and itself"
)
honest.table()

# %% kind="assert"
claim(model, "words of the sea at 0", found[0], says=0, within=1)
claim(model, "words of the sea at 0.2", found[0.2], says=10, within=4)
claim(model, "words of the sea at 0.4", found[0.4], says=9, within=4)
claim(model, "cost of the sea at 0.2", paid.cost.values[0, 0], says=1.3, within=0.15)
claim(model, "cost of the sea at 0.4", paid.cost.values[0, 1], says=3.0, within=0.4)
low, high = honest.effect.interval()[:, 0, 0].tolist()
print(
    f"effect on the other cities: 95 % interval {low:.1f} to {high:.1f}; shuffled vectors {dealt.min():.1f} to {dealt.max():.1f}"
)
assert (layer, push) == (16, 0.2) and rank in (1, 2, 3)
claim(model, "truth on the other cities", honest.effect.values.item(), says=1.6, within=0.2)
claim(model, "its interval, low", low, says=1.2, within=0.2)
claim(model, "the largest shuffled", dealt.max(), says=1.6, within=0.2)
claim(model, "gap of truth", truth.gaps[12] / truth.lengths[12], says=0.008, within=0.004)
claim(model, "gap of the mood", from_last.gaps[12] / from_last.lengths[12], says=0.064, within=0.01)

# %% [markdown]
# The sea comes in, ten words among about 110 against none, for 1.3 times the perplexity. Twice the push brings no more, for 3 times, and the sentences break. And truth? The setting that the first cities chose does 1.6 on
# the sixteen others, with an interval over their countries that leaves zero far out. The interval alone would call it found. But one of twenty vectors made of the same statements with shuffled labels does as much: truth is number two of twenty-one.
# **The interval says that there is an effect; the null asks whose it is.** **A contrast vector exists for any two sets of sentences; that the
# model listens to it does not follow.** One warning sign: at layer 12 the two means lie not one hundredth of the stream's
# length apart (6 % for the mood). One vector from 16 pairs is not the last word on truth.
#
# ## A vector from the dictionary
#
# The dictionary of notebook 26 reads the stream that enters layer 13. Which of its features is more active in the good sentences than in the bad ones? Its
# direction, at the same length, beside the contrast vector:

# %%
sae = ml.SparseAutoencoder.load(ml.reference.data_dir() / "sae" / "smollm2_layer12").to(model.cfg.device)


def activity(texts):
    """Mean activity of every feature over the texts, the first token left out."""
    with torch.no_grad():
        caches = [model.run_with_cache(t, names_filter=sae.hook, stop_at_layer=13)[1] for t in texts]
    return torch.stack([sae.encode(cache[sae.hook][0, 1:]).mean(0) for cache in caches]).mean(0)


glad, sad = activity(positive), activity(negative)
lean = glad - sad
feature = lean.argmax().item()
alone = vectors.along(sae.W_dec[feature])
cosine = vectors.directions[13] @ alone.directions[13]
given = {"layers": [13], "strengths": [0.4], "text": text}
both = {
    name: ml.steering_sweep(model, base, metric, vectors=v, **given).table()
    for name, v in {"contrast": vectors, f"feature {feature}": alone}.items()
}
most = (glad + sad).argsort(descending=True).tolist()
others = [n for n in most if n != feature][:20]  # the most active of all in these sentences
fourth = lean.argsort(descending=True)[3].item()
arrows = 0.4 * vectors.lengths[13] * sae.W_dec[[*others, fourth]]  # the rows have length 1
*chance, effect_fourth = push_effects(model, base, metric, arrows, layer=13).tolist()
print("twenty active features, pushed as far:", *(f"{x:.1f}" for x in sorted(chance)))
print(f"the fourth by difference, {fourth}: {effect_fourth:.1f}")
pd.concat(both).drop(columns="layer")

# %% kind="assert"
assert feature == 1951
claim(model, "cosine", cosine, says=0.37, within=0.02)
for name, says, price in (("contrast", 3.1, 2.5), (f"feature {feature}", 1.7, 2.9)):
    claim(model, name, both[name].effect.item(), says=says, within=0.2)
    claim(model, f"cost, {name}", both[name]["perplexity ×"].item(), says=price, within=0.3)
claim(model, "the best of twenty active ones", max(chance), says=1.9, within=0.2)
assert fourth == 743 and 0 < sum(x > both["feature 1951"].effect.item() - 0.2 for x in chance) <= 3
claim(model, "the fourth by difference", effect_fourth, says=3.4, within=0.3)

# %% [markdown]
# One feature, 1951, learned without any pairs (we only picked it with them), at a cosine of 0.37 with the contrast vector, does more than half of what that does, at a little more
# cost. But of the twenty features that are simply most active in these sentences, one does 1.9: as a vector, 1951 is not told from its fair null. And 743, only the fourth by difference, does 3.4, more than the contrast vector. (We looked
# at the first few, on these prompts.) **The feature that is active with a behaviour need not be the one that steers it.**
#
# ## Reading instead of writing
#
# A direction can also be read: how far along it does the stream lie at the end of a sentence? With a **threshold** that is a **monitor**, which raises a flag. A flag where
# there should be none is a **false alarm**. The threshold is chosen on **validation** sentences, and judged on a **test** set with other words.
#
# ### Exercise 32.5 A threshold
#
# Difficulty 3 of 5 · 10 minutes · needs nothing


# %% kind="exercise" id="32.5"
@exercise("32.5")
def threshold(quiet: Float[Tensor, "text"], false_alarms: float) -> float:
    """A threshold that flags as many of `quiet` as this share of false alarms allows, and no more.

    quiet: projections of validation texts that should raise no flag. A flag is raised at or above the threshold.
    Any number between two projections will do. Equal projections are flagged together or not at all.
    """
    # >>> solution
    allowed = int(false_alarms * len(quiet))
    highest = quiet.sort(descending=True).values[allowed]  # the loudest that must stay quiet
    return torch.nextafter(highest, torch.tensor(torch.inf)).item()
    # <<< solution


# %% kind="check"
check(threshold)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# With 40 texts and 5 % two may raise a flag. So the third loudest must not.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# Sort, largest first. `sorted[allowed]` is the loudest that must stay quiet; the threshold lies just above it, since equal raises a flag too.
#
# </details>


# %% kind="wrong" id="32.5" expects="just above"
@exercise("32.5")
def threshold(quiet, false_alarms):
    return quiet.sort(descending=True).values[int(false_alarms * len(quiet))].item()


# %% kind="wrong" id="32.5" expects="upper end"
@exercise("32.5")
def threshold(quiet, false_alarms):
    return quiet.quantile(false_alarms).item()


# %% kind="wrong" id="32.5" expects="A lower threshold catches more"
@exercise("32.5")
def threshold(quiet, false_alarms):
    return quiet.max().item() + 0.01


# %% kind="wrong" id="32.5" expects="raise a flag, and"
@exercise("32.5")
def threshold(quiet, false_alarms):
    return quiet.quantile(1 - false_alarms).item()


# %% [markdown]
# The 48 adjectives of notebook 22: twelve of each kind for validation, the other twelve for the test. Last token, 5 % false alarms allowed. Two nouns, so 24
# sentences of each kind.

# %%
listed = pd.read_csv(ml.reference.data_dir() / "probing" / "adjectives.csv")
good, bad = listed.adjective[listed.positive == 1].tolist(), listed.adjective[listed.positive == 0].tolist()
assert len(good) == len(bad) == 24
make = lambda form, words: [form.format(noun, word) for word in words for noun in ("film", "meal")]
plain = "The {} was {}."
seen = {"positive": make(plain, good[:12]), "negative": make(plain, bad[:12])}
NEUTRAL = """The meeting is on Monday. The box is on the table. The train leaves at nine. He lives in a small town.
The book has two hundred pages. She bought bread and milk. The office is on the third floor. They drove to the station. The letter arrived on Tuesday.
The shop opens at ten. The table is made of wood. She works at a bank. The bus stops near the school. The class has twenty pupils.
We walked along the road. It is five o'clock."""
tests = {
    "was wonderful": make(plain, good[12:]),
    "was terrible": make(plain, bad[12:]),
    "was not wonderful at all": make("The {} was not {} at all.", good[12:]),
    "nobody found it wonderful": make("Nobody found the {} {}.", good[12:]),
    "neutral": [line.strip() + "." for line in NEUTRAL.replace("\n", " ").split(".") if line.strip()],
}

# %%
monitors = {n: ml.Monitor.fit(model, from_last, n, seen["positive"], seen["negative"]) for n in (12, 16)}
streams = {name: ml.residual_streams(model, texts) for name, texts in tests.items()}
rows = []
for name, found in streams.items():
    row = {"sentences": name, "how many": found.shape[1]}
    for n, monitor in monitors.items():
        yes = int((found[n] @ monitor.direction >= monitor.threshold).sum())
        low, high = ml.wilson(yes, found.shape[1])
        row[f"flagged, layer {n}"] = yes / found.shape[1]
        row[f"interval, layer {n}"] = f"{low:.2f} to {high:.2f}"
    rows.append(row)
flags = pd.DataFrame(rows).set_index("sentences").round(2)
flags

# %% kind="assert"
at_12, at_16 = (flags[f"flagged, layer {n}"] for n in (12, 16))
for n, flagged in ((12, at_12), (16, at_16)):
    claim(model, f"caught, layer {n}", flagged["was wonderful"], says=1.0, within=0.05)
    claim(model, f"false alarms, layer {n}", flagged["was terrible"], says=0.04, within=0.05)
    claim(model, f"nobody, layer {n}", flagged["nobody found it wonderful"], says=1.0, within=0.05)
    claim(model, f"neutral, layer {n}", flagged["neutral"], says=1.0, within=0.07)
claim(model, "not wonderful, layer 12", at_12["was not wonderful at all"], says=1.0, within=0.05)
claim(model, "not wonderful, layer 16", at_16["was not wonderful at all"], says=0.25, within=0.2)

# %% [markdown]
# On sentences of the kind it was made for, each monitor catches every one, with one false alarm. (The interval is **Wilson's**, a 95 % interval for a share that is right near its ends too. It takes sentences as independent; ours share twelve
# adjectives, so the true one is wider.) Validation could not tell the two apart; other sentences can. Layer by layer, each with its own threshold:

# %%
project = lambda found: torch.einsum("ltd,ld->lt", found[:-1], from_last.directions)[4:]
quiet = project(ml.residual_streams(model, seen["negative"])).sort(dim=1, descending=True).values
curves = torch.stack([(project(found) > quiet[:, 1:2]).float().mean(1) for found in streams.values()])
labels = {"sentences": list(streams), "layer": [str(n) for n in range(4, model.cfg.n_layers)]}
ml.Scores(curves, ("sentences", "layer"), "sentences that raise a flag (share)", labels, signed=False).plot(
    lines=True, height=420
)

# %% kind="assert"
for n, flagged in ((12, at_12), (16, at_16)):
    assert (curves[:, n - 4] - torch.tensor(flagged.tolist())).abs().max() < 0.01
claim(model, "not wonderful, later layers", curves[2, 12:].mean(), says=0.2, within=0.2)
claim(model, "neutral, layers 12 to 20", curves[4, 8:17].mean(), says=1.0, within=0.1)
claim(model, "three lines at the top, layers 11 to 27", curves[[0, 3, 4], 7:24].min(), says=1.0, within=0.1)

# %% [markdown]
# (From layer 11 to layer 27 three of the lines lie on one another, at 1.)
#
# - "The film was not wonderful at all": at layer 12 a flag every time. The monitor reads the word. At layer 16 in a quarter of them: presumably the "not" has reached the full stop by then.
# - "Nobody found the film wonderful": both are fooled, every time.
# - Neutral sentences: a flag for every one. All quiet sentences in the validation set were negative, so the threshold divides negative from *everything else*.
#
# **A false alarm rate holds for texts like those of the validation set.** Put in what the monitor will meet.
#
# **Question 32.a.** Vector A is 90 long and moves the metric by 2; vector B is 120 long and moves it by 3. Which is the better direction?
#
# - **a** B, by 1.
# - **b** B, by a little: 3 / 120 against 2 / 90.
# - **c** Unknown. Make both equally long and measure again.

# %% kind="quiz"
quiz("32.a", "c")

# %% [markdown]
# **Question 32.b.** A vector at layer 26 moves the metric by 5. What would tell whether any later layer *reads* it?
#
# - **a** The same vector, twice as long.
# - **b** The effect minus what the vector's own logits add.
# - **c** What it costs on ordinary text.

# %% kind="quiz"
quiz("32.b", "b")

# %% [markdown]
# ## Beside the papers
#
# The first row is after "was not", where no prompt moves far. The second is at strength 0.2.

# %%
mine = {
    "share of prompts that go the wrong way": wrong_way[1].item(),
    "layer of the largest effect, as a share of the depth": layers[whole.argmax()] / model.cfg.n_layers,
    "effect of asking, as a share of the effect of steering": lines.effect.max() / effect[at[8, 0.4]].item(),
}
ml.reference.table("32", mine)

# %% [markdown]
# | term | meaning |
# |---|---|
# | contrast vector | mean stream over texts with a behaviour, minus mean over texts without: `ml.contrast_vectors` |
# | steering | adding it while the model works: `vectors.hooks(layer, strength)`, `ml.steering_sweep` |
# | strength | length of the added vector, in lengths of the stream of one token |
# | null directions | vectors of the same origin and length that mean nothing: `ml.null_directions` |
# | cost | perplexity of ordinary text, steered / unsteered |
# | anti-steerable | a prompt that moves the wrong way |
# | monitor | the projection on a direction with a threshold: `ml.Monitor` |
#
# Papers: Turner et al. 2023 (activation addition); Rimsky et al. 2023 (contrastive activation addition); Zou et al. 2023 (representation engineering); Tan et al. 2024 (spread); Wu et al. 2025
# (AxBench). Next: notebook 33 takes a direction out of the weights, for good.
