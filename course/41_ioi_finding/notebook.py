# %% [markdown]
# # 41 The IOI circuit: finding it
#
# **Question:** which heads put " Mary" after "John gave a drink to", and who reads whom?
#
# After this notebook you will be able to
#
# - follow a behaviour backwards through a model, from the logits to the head that starts it,
# - patch one path between two parts, and say what that tells beyond patching one part,
# - say which evidence a head's role rests on, and withdraw the role when chance would do as well.
#
# Time: 115 minutes. The cells take about 90 seconds in all. Memory: 2.5 GB.
# Download: none, once the model is here (93 MB). Before: notebooks 12, 23, 24 and 31.

# %% kind="setup"
# (written by the build)

# %% [markdown]
# ## The picture
#
# "When Laura and Larry walked to the school, Laura gave a ring to": the next word is " Larry". This task is called **indirect object
# identification** (IOI). Wang et al. (2022) explained how GPT-2 small does it, with 26 heads.
#
# Five places have names. **IO** is the indirect object, the answer. **S1** is the subject where it is first named, beside IO, and **S2** where it is
# named again. **S1+1** is the token after S1. **end** is the last token. The metric is the logit of IO minus the logit of S.
#
# Prompts come in **balanced pairs**: one sentence, with either person named again, so that what the model thinks of a name or a place
# cancels. And each prompt has an **ABC** version with three new names, in which the question has no answer.
#
# Four quantities are easily mixed up. Each paragraph below speaks of one of them:
#
# | quantity | unit | it says | it does not say |
# |---|---|---|---|
# | direct contribution | logits | what a head writes for the answer | who else reads it |
# | attention | share | where it looks | whether that matters |
# | copying score | share of names | what its weights do with a name | whether it does so here |
# | path effect | normalized logit difference ("share of the way" to ABC) | what one reader loses when one sender changes | how |
#
# Which layers write the logit difference? Direct contributions (notebook 12), added up from layer to layer:

# %%
import pandas as pd

from mechlab.results import named

prompts = ml.ioi_prompts(model, 32)
abc = prompts.corrupted("abc")
print(prompts.text(0), prompts.text(1), abc.text(0), sep="\n")
layers = ml.direct_logit_attribution(model, prompts.tokens, prompts.io, prompts.s, unit="layer")
each, what = layers.per_prompt.cumsum(1), "logit difference in the stream after each layer (logits)"
so_far = ml.Scores.over_prompts(each, ("layer",), what, units=prompts.pairs)
so_far.plot(height=330)

# %% kind="assert"
claim(model, "after layer 22", so_far.values[22], says=0.07, within=0.05)
claim(model, "after layer 23", so_far.values[23], says=3.75, within=0.1)
claim(model, "at the end", so_far.values[29], says=4.5, within=0.1)

# %% [markdown]
# A cliff. Up to layer 22 the stream speaks for neither name, as in notebook 12 once its sentences are balanced; layer 23 writes nearly the whole answer.
#
# ## The task
#
# First: does the model do the task at all? Eight sentence forms (templates) of one length, and all sixteen. Intervals are over pairs.

# %%
wide = ml.ioi_prompts(model, 64, templates=ml.ioi.TEMPLATES, seed=1)
seen = {}
with torch.no_grad():
    for name, some in {"8 templates": prompts, "ABC": abc, "16 templates": wide}.items():
        seen[name] = found = some.metric(model(some.tokens))
        pairs = ml.Scores.over_prompts(found.view(-1, 2).mean(1), (), "logit difference (logits)")
        low, high = pairs.interval()
        print(
            f"{name}: {pairs.values:.2f} [{low:.2f}, {high:.2f}], right in {(found > 0).float().mean():.2f}"
        )
# a prompt's label names its template and which name comes first, such as "template 3, S first"
first = torch.tensor([template.endswith("S first") for template in wide.templates])
print(
    f"S first: {seen['16 templates'][first].mean():.2f}, IO first: {seen['16 templates'][~first].mean():.2f}"
)

# %% kind="assert"
claim(model, "8 templates", seen["8 templates"].mean(), says=4.5, within=0.1)
claim(model, "16 templates", seen["16 templates"].mean(), says=3.9, within=0.1)
claim(model, "16 templates, right", (seen["16 templates"] > 0).float().mean(), says=0.89, within=0.02)
claim(model, "S first", seen["16 templates"][first].mean(), says=5.0, within=0.1)
claim(model, "IO first", seen["16 templates"][~first].mean(), says=2.7, within=0.1)
assert abs(seen["ABC"].mean()) < 1

# %% [markdown]
# It does, less surely than GPT-2 small (last table), and better where S comes first. With ABC names nearly nothing is left. From here on: the eight templates of one length.
#
# ### Exercise 41.1 Three new names
#
# Difficulty 2 of 5 · 8 minutes · needs indexing


# %% kind="exercise" id="41.1"
@exercise("41.1")
def three_new_names(
    tokens: Int[Tensor, "prompt pos"],
    places: Int[Tensor, "prompt 3"],
    names: Int[Tensor, "name"],
    generator: torch.Generator,
) -> Int[Tensor, "prompt pos"]:
    """The ABC version: at its three places each prompt gets three different names; every other token stays.

    None of the three is one that the prompt has at its places now. Each prompt has its own draw, made with `generator`.
    """
    # >>> solution
    changed = tokens.clone()
    for row, at in enumerate(places):
        free = names[~torch.isin(names, tokens[row, at])]
        changed[row, at] = free[torch.randperm(len(free), generator=generator)[:3]]
    return changed
    # <<< solution


# %% kind="check"
check(three_new_names)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# For one prompt: which names are free? Then three of them, no name twice.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# `torch.isin(names, tokens[row, at])` marks the names that the prompt has. `torch.randperm(n, generator=generator)[:3]` picks three different numbers.
#
# </details>
#
# ## Where the information is
#
# Activation patching (notebook 31). Base is the "flipped" prompt, with IO named again, so that its answer is S; source is the prompt itself. One vector
# of the stream at a time, at S2 or at the end:


# %% kind="wrong" id="41.1" expects="named twice"
@exercise("41.1")
def three_new_names(tokens, places, names, generator):
    changed = tokens.clone()
    for row, at in enumerate(places):
        free = names[~torch.isin(names, tokens[row, at])]
        changed[row, at] = free[torch.randint(len(free), (3,), generator=generator)]
    return changed


# %% kind="wrong" id="41.1" expects="one of its own names"
@exercise("41.1")
def three_new_names(tokens, places, names, generator):
    changed = tokens.clone()
    for row, at in enumerate(places):
        changed[row, at] = names[torch.randperm(len(names), generator=generator)[:3]]
    return changed


# %% kind="wrong" id="41.1" expects="its own draw"
@exercise("41.1")
def three_new_names(tokens, places, names, generator):
    used = tokens.gather(1, places)
    free = names[~torch.isin(names, used)]
    drawn = free[torch.randperm(len(free), generator=generator)[:3]]
    return tokens.scatter(1, places, drawn.expand(len(tokens), -1))


# %% kind="wrong" id="41.1" expects="other than its three places"
@exercise("41.1")
def three_new_names(tokens, places, names, generator):
    changed = tokens.clone()
    for row in range(len(tokens)):
        free = names[~torch.isin(names, tokens[row, places[row]])]
        changed[row, places[0]] = free[torch.randperm(len(free), generator=generator)[:3]]
    return changed


# %%
flip = prompts.corrupted("flip")
places = {name: prompts.positions[name] for name in ("S2", "end")}
shown = range(17, 26)
stream = ml.activation_patching(
    model, flip.tokens, prompts.tokens, prompts.metric, layers=shown, positions=places
)
stream.plot(height=400, title="stream patched at S2 or at the end (share of the way)")

# %% kind="assert"
at = dict(zip(shown, stream.values, strict=True))
for layer, s2, end in ((19, 1.0, 0.0), (21, 0.39, 0.57), (24, 0.1, 0.84), (25, 0.0, 0.92)):
    claim(model, f"S2, entering layer {layer}", at[layer][0], says=s2, within=0.04)
    claim(model, f"end, entering layer {layer}", at[layer][1], says=end, within=0.04)

# %% [markdown]
# Up to layer 19 everything is at S2. It moves to the end in two large steps: in layers 19 and 20, and in layer 23. Which heads move it? First, direct
# contributions:

# %%
heads = ml.direct_logit_attribution(model, prompts.tokens, prompts.io, prompts.s, unit="head")
for head, says in {(23, 3): 2.0, (29, 1): 1.0, (29, 0): -0.75, (23, 0): 0.7, (24, 4): -0.55}.items():
    claim(model, f"direct contribution of {head[0]}.{head[1]}", heads.values[head], says=says, within=0.1)
assert heads.values[:22].abs().max() < 0.1
heads.top(9)

# %% [markdown]
# Heads of layers 23, 24 and 29 write the answer. Layers 19 and 20 do not: what they move is for others to read. To see *who reads whom* takes a sharper tool.
#
# ## Path patching, by hand
#
# Patch one head from the ABC run, and everything behind it changes: other heads read the change and pass it on. **Path patching** lets the change
# through along chosen paths only. To ask what a head says to the logits *itself*: take this head (the **sender**) from the ABC run, hold every other
# head at what it was, and let the MLPs and norms compute as usual.
#
# ### Exercise 41.2 One sender, all others held
#
# Difficulty 4 of 5 · 15 minutes · needs notebook 31, patching a head


# %% kind="exercise" id="41.2"
@exercise("41.2")
def sent_to_the_logits(
    model, base: Int[Tensor, "prompt pos"], source: Int[Tensor, "prompt pos"], layer: int, head: int
) -> Float[Tensor, "prompt pos d_vocab"]:
    """The logits on `base` when this head hands on what it did on `source`, and every other head what it did on `base`.

    The hooks are `blocks.{n}.attn.hook_z`, [prompt, pos, head, d_head]. MLPs and norms are computed anew. All positions.
    """
    # >>> solution
    in_z = lambda name: name.endswith("hook_z")
    _, kept = model.run_with_cache(base, names_filter=in_z)
    _, other = model.run_with_cache(source, names_filter=in_z)

    def hold(z, hook):
        held = kept[hook.name].clone()
        if hook.name == f"blocks.{layer}.attn.hook_z":
            held[:, :, head] = other[hook.name][:, :, head]
        return held

    hooks = [(f"blocks.{n}.attn.hook_z", hold) for n in range(model.cfg.n_layers)]
    with ml.intervene(model, hooks):
        return model(base)
    # <<< solution


# %% kind="check"
check(sent_to_the_logits)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Three runs: one to know what all heads do on `base`, one for the sender on `source`, and one with a hook on every layer.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# One hook function serves all layers: it returns a copy of the base's cache (`kept[hook.name].clone()`), and in the sender's layer it writes the
# sender's part of the other cache into that copy. Leave the MLPs alone.
#
# </details>
#
# On one pair of prompts, for head 23.3, beside the library:


# %%
pair, other = prompts.rows([0, 1]), abc.rows([0, 1])
in_z = lambda name: name.endswith("hook_z")
with torch.no_grad():
    logits, kept = model.run_with_cache(pair.tokens, names_filter=in_z)
    new = model.run_with_cache(other.tokens, names_filter=in_z)[1]


def hold(z, hook, sender=None):
    held = kept[hook.name].clone()
    if sender and hook.name == f"blocks.{sender[0]}.attn.hook_z":
        held[:, :, sender[1]] = new[hook.name][:, :, sender[1]]
    return held


def sent(sender):
    everywhere = [f"blocks.{layer}.attn.hook_z" for layer in range(30)]
    hooks = [(name, lambda z, hook: hold(z, hook, sender)) for name in everywhere]
    with torch.no_grad(), ml.intervene(model, hooks):
        return pair.metric(model(pair.tokens)) - pair.metric(logits)


two = (pair.tokens, other.tokens, pair.metric)
library = ml.path_patching(model, *two, senders=[[(23, 3)]], normalized=False)
print(f"by hand {sent((23, 3)).mean():.3f}, library {library.values[0]:.3f}")

# %% kind="assert"
assert (sent((23, 3)) - library.per_prompt[:, 0]).abs().max() < 1e-3
assert sent(None).abs().max() < 1e-3
last = ml.activation_patching(model, *two, "z", layers=[29], normalized=False)
paths = ml.path_patching(model, *two, senders=[[(29, head)] for head in range(9)], normalized=False)
assert (last.values[0] - paths.values).abs().max() < 1e-3

# %% [markdown]
# They agree; with no sender nothing changes; and in the last layer, where no head comes after, path patching and activation patching give the same.
#
# The receiver can also be a head. Then the change is caught in the receiver's queries, keys or values; and in one more run the receiver gets these, and
# all else is free. (Three query heads share one key and one value head. The library changes what *one* of them reads; its mates keep theirs.)
#
# ## Into the logits
#
# Path effects from now on. We ask each of the 270 heads whether it has a path to the logits. Suppose that no head did anything at
# all. How many of 270 ordinary 95 % intervals would stay clear of zero?

# %% kind="predict"
predict("41.q", 0)

# %%
base = ml.run_of(model, prompts.tokens)
source = ml.run_of(model, abc.tokens, like=base)
runs, at = (model, base, source, prompts.metric), prompts.positions
direct = ml.path_patching(*runs)
direct.plot(height=560, title="path from each head to the logits (share of the way to ABC)")
reveal("41.q", f"about {0.05 * direct.values.numel():.1f}, one in twenty")

# %% [markdown]
# <details><summary>What we saw</summary>
#
# About fourteen heads would look like senders by luck.
#
# </details>
#
# So our intervals hold **for all heads at once**. Their width comes from a **permutation of the maximum**:
# give each balanced pair a random sign, as if no head did anything; see how far the furthest of all heads strays from zero, in its own standard errors; do so thousands of times. (Four sweeps follow, so each takes a
# quarter of the usual 5 %.)

# %%
from mechlab.circuits.ioi.roles import joint_intervals

low, high = joint_intervals(direct, prompts.pairs)
alone_low, alone_high = direct.interval(units=prompts.pairs)
shown = [tuple(h) for h in (direct.values.abs() >= 0.03).nonzero().tolist()]
told = {h for h in shown if low[h] * high[h] > 0}
rows = {named([h]): [direct.values[h].item(), low[h].item(), high[h].item()] for h in shown}
groups = {named([h]): "told from zero" if h in told else "not told from zero" for h in shown}
print(
    "by ordinary intervals",
    int((alone_low * alone_high > 0).sum()),
    "heads; by joint ones",
    int((low * high > 0).sum()),
)
ml.dots(rows, "path to the logits (share of the way), joint intervals", groups=groups)

# %% kind="assert"
for head, says in {(23, 3): 0.69, (29, 1): 0.25, (29, 0): -0.18, (23, 0): 0.16, (24, 4): -0.12}.items():
    claim(model, f"path from {named([head])} to the logits", direct.values[head], says=says, within=0.02)
claim(model, "path from 20.0 to the logits", direct.values[20, 0], says=0.04, within=0.02)
assert {(23, 3), (23, 0), (29, 1), (29, 0)} <= told and not told & {(23, 2), (23, 7), (24, 4)}
assert int((alone_low * alone_high > 0).sum()) > 40 > 4 * int((low * high > 0).sum())

# %% [markdown]
# Ordinary intervals would give us dozens of heads; joint ones leave a handful. Head 23.3 has by far the largest path, then 29.1 and 23.0; 29.0 surely works against the answer. 20.0, strong in
# notebook 31, sends hardly anything here.
#
# Head 23.0 looks at IO and copies it (below); the paper calls such heads **name movers**. 23.2 and 23.7 look and copy too, but their paths are **not told from zero** on these prompts: we
# do not count on them. (On sixteen other couples 23.0 is not told either; on the 48 prompts of docs/ioi_report.md it is.) Who tells 23.0 where to look?

# %% [markdown]
# ## Predict the sweep before you run it
#
# Below layer 23 lie 207 heads. Could you say whom the sweep will find? Two
# ordinary runs, on the prompts and on ABC, tell what each head writes where the reader reads, and where it looks. The weights tell what the reader takes in.
#
# ### Exercise 41.6 The sweep, foretold
#
# Difficulty 4 of 5 · 20 minutes · needs path patching, W_Q, W_K, W_V


# %% kind="exercise" id="41.6"
@exercise("41.6")
def foretold(
    writes: Float[Tensor, "prompt sender d_model"],
    on_abc: Float[Tensor, "prompt sender d_model"],
    reads: Float[Tensor, "d_model d_head"],
    looks: Float[Tensor, "prompt sender 5"],
) -> Float[Tensor, "sender"]:
    """How far the path from each head into one reader will go: a guess, 0 or more, of which only the proportions count.

    writes, on_abc: what each head writes at the place where the reader is changed, on the prompts and on ABC prompts.
    reads: the reader's own W_Q, W_K or W_V. looks: attention from that place to IO, S1, S1+1, S2 and end.
    """
    # >>> solution
    heard = (writes - on_abc) @ reads
    return heard.pow(2).sum(-1).mean(0)
    # <<< solution


# %% kind="check"
check(foretold, model=model)

# %% [markdown]
# The check asks your rule about six readers, on other sentences, with the heads shuffled. A mean correlation of 0.8 with the true sweeps is wanted.
#
# <details><summary>Hint 1: a nudge</summary>
#
# Path patching replaces what a head writes by what it writes on ABC. When will the reader notice?
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# Start from `writes - on_abc`. A vector at right angles to all columns of `reads` is not heard: multiply. Then turn each prompt's vector into a size, and average over prompts. Is a
# difference twice as long worth twice as much, or more?
#
# </details>


# %% kind="wrong" id="41.6" expects="how loud a head is"
@exercise("41.6")
def foretold(writes, on_abc, reads, looks):
    return writes.norm(dim=-1).mean(0)


# %% kind="wrong" id="41.6" expects="Looking is not sending"
@exercise("41.6")
def foretold(writes, on_abc, reads, looks):
    return looks[..., :4].sum(-1).mean(0)


# %% kind="wrong" id="41.6" expects="its own matrix takes in"
@exercise("41.6")
def foretold(writes, on_abc, reads, looks):
    return (writes - on_abc).norm(dim=-1).mean(0)


# %% kind="wrong" id="41.6" expects="the same for every sender"
@exercise("41.6")
def foretold(writes, on_abc, reads, looks):
    return torch.ones(writes.shape[1])


# %% [markdown]
# ## Backwards from the name movers
#
# **Into the queries** of 23.0 at the end, the real sweep. Below it three guesses, each as a share of its own largest: how loud a head is, how much differs between the two
# sentences, and how much of that 23.0 hears.

# %%
movers = [(23, 0)]
queries = ml.path_patching(*runs, movers, "q", at=at["end"])
rows = torch.arange(len(prompts))
written = [
    torch.cat([run.at("z", n)[rows, at["end"]].unsqueeze(2) @ model.W_O[n] for n in range(23)], 1)[:, :, 0]
    for run in (base, source)
]
differs = written[0] - written[1]
guesses = [written[0].norm(dim=-1), differs.norm(dim=-1), (differs @ model.W_Q[23, 0]).pow(2).sum(-1)]
columns = torch.stack([queries.values.abs().flatten(), *(guess.mean(0) for guess in guesses)])
most = columns[0].argsort(descending=True)[:8]
labels = {"what": ["the sweep", "loud", "differs", "differs, as heard"]}
labels["sender"] = [named([divmod(n, 9)]) for n in most.tolist()]
shares = columns[:, most] / columns.amax(1, keepdim=True)
ml.Scores(shares, tuple(labels), "share of the largest of all senders", labels, signed=False).plot(height=300)

# %% kind="assert"
claim(model, "20.0 into the queries", queries.values[20, 0], says=0.08, within=0.02)
claim(model, "19.2 into the queries", queries.values[19, 2], says=0.012, within=0.005)
assert (queries.values > 0.008).sum() == 2
alike = torch.corrcoef(columns)[0, 1:]
for name, one, says in zip(labels["what"][1:], alike, (0.4, 0.7, 0.98), strict=True):
    claim(model, f"correlation with the sweep, {name}", one, says=says, within=0.1)

# %% [markdown]
# Head 20.0 has nearly all of it, and 19.2 a little. They look from the end to S2. The paper calls such heads **S-inhibition** heads: they keep the name movers
# away from the subject. Loudness alone would have named others too.
#
# What do these two find at S2? **Into their values.** We take a
# shortcut: only heads that look from S2 back to S1 or S1+1, with at least 0.15 of their attention, send one by one. All others send together; their one
# number shows what the shortcut misses.

# %%
from mechlab.circuits.ioi.roles import RULES, THRESHOLDS, attention_to

looks = attention_to(prompts, base)


def senders_that_look(*places, below):
    some = sum(looks[place] >= THRESHOLDS["attention"] for place in places)[:below] > 0
    rest = [tuple(head) for head in (~some).nonzero().tolist()]
    return [*([tuple(head)] for head in some.nonzero().tolist()), rest]


def drawn(scores, groups, title):
    ends = joint_intervals(scores, prompts.pairs).T
    names = [*(named(group) for group in groups[:-1]), "all others together"]
    rows = {
        name: [value.item(), *end.tolist()]
        for name, value, end in zip(names, scores.values, ends, strict=True)
    }
    return ml.dots(rows, f"{title} (share of the way), joint intervals")


inhibitors = [(19, 2), (20, 0)]
at_s2 = senders_that_look("S2→S1", "S2→S1+1", below=20)
values = ml.path_patching(*runs, inhibitors, "v", at=at["S2"], senders=at_s2)
drawn(values, at_s2, "into the values of 19.2 and 20.0 at S2")

# %% kind="assert"
sent_by = dict(zip([group[0] for group in at_s2[:-1]], values.values, strict=False))
there = {(17, 4): 0.23, (8, 1): 0.06, (18, 6): 0.03, (5, 6): 0.015, (17, 5): 0.01, (17, 0): 0.02}
for head, says in there.items():
    claim(model, f"{named([head])} into the values at S2", sent_by[head], says=says, within=0.01)
claim(model, "all the rest together", values.values[-1], says=0.03, within=0.02)

# %% [markdown]
# Mostly what 17.4 wrote there. It is an **induction** head: from S2 it looks at S1+1, the token after the same name. 18.6 does the same, weakly. 8.1 comes next: a **duplicate-token**
# head, which looks from S2 at S1. 17.0 looks at both.
#
# How does an induction head find S1+1? By the key there. **Into the keys at S1+1**, where heads look back to S1:

# %%
inducers = [(17, 4), (18, 6)]
at_next = senders_that_look("S1+1→S1", below=18)
keys = ml.path_patching(*runs, inducers, "k", at=at["S1+1"], senders=at_next)
sent_next = dict(zip([group[0] for group in at_next[:-1]], keys.values, strict=False))
drawn(keys, at_next, "into the keys of the induction heads at S1+1")

# %% kind="assert"
claim(model, "16.0 into the keys at S1+1", sent_next[16, 0], says=0.15, within=0.02)
assert keys.values.abs().sort().values[-2] < 0.02
stored = {(edge.sender, edge.receiver): edge.effect for edge in ml.ioi.found_circuit().edges}
claim(model, "20.0 into the queries of 23.3, stored", stored[(20, 0), (23, 3)], says=0.03, within=0.01)

# %% [markdown]
# One head: **16.0**, a **previous-token** head, which looks from S1+1 to S1. The chain to the
# name movers is complete: 16.0 → 17.4 → 20.0 and 19.2 → name movers → logits. Head 23.3, the largest of all, hardly reads it (docs/ioi_report.md): it looks at S2 itself.
#
# ## Three questions, not asked of every role
#
# A role should rest on three answers: the head **looks** at the right place, it **copies** the names it sees (or writes against them), and it **serves** the right reader. All that
# is asked must say yes; two roles that fit make a head **ambiguous**, and none leaves it without.
#
# The library's limits: 0.15 of the attention, 0.25 of the names copied, a path of 0.01 of which the joint interval stays clear of zero. One rule has one more condition: a subject mover must look at S
# more than at IO. Copying is read off a head's weights (notebook 23): is the name that it looks at among the five words that it raises
# most ("for")? Among the five that it lowers most ("against")? The score is the share of names.
#
# How many heads give each answer? A dash: the question was not asked.


# %%
some = prompts.names[::7]
copies = {way: ml.copying_scores(model, some, against=way == "against").values for way in ("for", "against")}


def on_grid(groups, scores):
    """Value, low and high end of each head that was asked alone, as three maps."""
    grid, ends = torch.zeros(3, 30, 9), joint_intervals(scores, prompts.pairs)
    for group, *three in zip(groups, scores.values, *ends, strict=False):
        if len(group) == 1:
            grid[:, group[0][0], group[0][1]] = torch.stack(three)
    return grid


everybody = [[(layer, head)] for layer in range(30) for head in range(9)]
flat = lambda scores: ml.Scores.over_prompts(scores.per_prompt.flatten(1), ("sender",), scores.name)
paths = {
    "logits": on_grid(everybody, flat(direct)),
    "queries of name movers": on_grid(everybody, flat(queries)),
}
paths |= {"values of S-inhibition": on_grid(at_s2, values), "keys of induction": on_grid(at_next, keys)}

# %%
answers, fits, unsure = {}, {}, {}
for role, rule in RULES.items():
    sees = looks[rule.looks] >= THRESHOLDS["attention"]
    if rule.over:
        sees = sees & (looks[rule.looks] > looks[rule.over])
    right_words = copies[rule.copies] >= THRESHOLDS["copying"] if rule.copies else torch.ones(30, 9) > 0
    effect, low, high = paths[rule.serves]
    served, sure = rule.sign * effect >= THRESHOLDS["path"], low * high > 0
    for head in (sees & right_words & served).nonzero().tolist():
        (fits if sure[tuple(head)] else unsure).setdefault(tuple(head), []).append(role)
    counts = [sees.sum(), right_words.sum() if rule.copies else "–", served.sum(), (served & sure).sum()]
    kept, doubted = ([h for h in which if role in which[h]] for which in (fits, unsure))
    answers[role] = [*(str(getattr(n, "item", lambda n=n: n)()) for n in counts), named(kept), named(doubted)]
questions = ["looks", "copies", "serves", "surely", "heads with the role", "path not told from zero"]
pd.DataFrame(answers, index=questions).T

# %% kind="assert"
assert len(some) == 18 and THRESHOLDS == {"attention": 0.15, "copying": 0.25, "path": 0.01}
assert sum(rule.copies is None for rule in RULES.values()) == 4
sure = {
    "subject suppressor": (23, 3),
    "name mover": (23, 0),
    "S-inhibition": (20, 0),
    "induction": (17, 4),
    "previous token": (16, 0),
}
assert all(fits[head] == [role] for role, head in sure.items()) and (17, 0) in unsure
assert {(23, 2), (23, 7), (24, 4), (23, 5), (19, 2)} <= {*unsure}
assert not {(18, 6), (8, 1), (24, 5)} & {*unsure} and len(fits) == 9
on_48 = ml.ioi.found_figures()["roles"]["paths, joint"]
assert (
    on_48["queries of name movers"]["19.2"][1] > 0 > on_48["logits"]["24.4"][1] * on_48["logits"]["24.4"][2]
)

# %% [markdown]
# *Copies* is asked of four roles. The other four move no word: they tell where a name stands or that it was there, and we cannot read that off weights. Their roles rest
# on two answers; and for three of them the first decides who is asked the second alone. What S-inhibition carries gets a test of its own below.
#
# The last two columns: the chain stands. But 23.2 and 23.7 only look and copy as name movers do, 24.4 as a negative name mover, 23.5 as a subject
# mover: their paths may be nothing. Doubt is not absence: 19.2 passes on 48 prompts with fewer heads asked.
#
# `ml.find_roles(model, prompts, abc)` does the whole walk. The circuit of notebook 42 was searched on more prompts *without* this correction and stays as it was;
# docs/ioi_report.md says which of its heads pass.

# %%
roles = {role: [head for head, its in fits.items() if its == [role]] for role in RULES}
roles["ambiguous"] = [head for head, its in fits.items() if len(its) > 1]
both = {"paper, GPT-2 small": ml.ioi.PAPER_CIRCUIT.roles, "smollm2, found here": roles}
both["smollm2, notebook 42"] = ml.ioi.found_circuit().roles
columns = {name: {role: named(heads) for role, heads in its.items()} for name, its in both.items()}
pd.DataFrame(columns).fillna(named([]))

# %% [markdown]
# Two roles are not in the paper: the **subject suppressor** (a copy suppression head) and the **subject movers**, which look
# at S more than at IO, copy it, and so work against the answer. **Backup name movers** are missing (notebook 42).
#
# Some heads write to the logits and fit no role, 29.1 and 29.0 first. They look at the end itself. What reaches their values there?

# %%
wrote = [(20, 0), (23, 0), (23, 2), (23, 3), (24, 4), (24, 5)]
late = [
    ml.path_patching(*runs, [head], "v", at=at["end"], senders=[[h] for h in wrote])
    for head in ((29, 0), (29, 1))
]
own = base.at("pattern", 29)[:, 14, :2, 14].mean(0)  # the end is position 14
claim(model, "29.1 at the end itself", own[1], says=0.50, within=0.03)
claim(model, "29.0 at the end itself", own[0], says=0.52, within=0.03)
labels = {"values of": ["29.0", "29.1"], "sender": [named([h]) for h in wrote]}
claim(model, "23.3 into the values of 29.0", late[0].values[3], says=-0.15, within=0.03)
claim(model, "23.3 into the values of 29.1", late[1].values[3], says=0.17, within=0.03)
ml.Scores(torch.stack([one.values for one in late]), tuple(labels), late[0].name, labels).plot(
    title="into the values of 29.0 and 29.1 at the end (share of the way)", height=260
)

# %% [markdown]
# Mostly what 23.3 and 23.0 wrote. Head 29.1 says it once more, 29.0 takes nearly as much back.
#
# ## What S-inhibition carries
#
# Heads 19.2 and 20.0 could say *who* is the subject (a **token** signal), or *which* of the two names, first or second (a **position** signal). Wang et
# al. tell them apart: give the two heads at the end what they had on another sentence. In the other sentence the subject's token is
# the same, another one, or IO's; and it stands at the same place or at the other one.
#
# In GPT-2 small the logit difference turns from 3.55 to −0.99 with the same tokens in opposite order (the paper's appendix A). Here we start from 4.3. Where will it end?

# %% kind="predict"
predict("41.p", 2.0)

# %%
half = prompts.rows(range(16))
other_way = half.corrupted("order")
# names: two new people. swap names: each takes the other's place. order: only the first two exchange places.
sentences = [[half, other_way], [half.corrupted("names"), other_way.corrupted("names")]]
sentences += [[half.corrupted("swap names"), half.corrupted("flip")]]


def carried_from(sentence):
    in_z = lambda name: name in ("blocks.19.attn.hook_z", "blocks.20.attn.hook_z")
    with torch.no_grad():
        _, cache = model.run_with_cache(sentence.tokens, names_filter=in_z, stop_at_layer=21)
        hooks = [hook for head in inhibitors for hook in ml.replace_head(model, head, cache, positions=[14])]
        with ml.intervene(model, hooks):
            return half.metric(model(half.tokens)).mean()


signal = torch.tensor([[carried_from(sentence) for sentence in row] for row in sentences])
labels = {"token of S": ["same", "another", "IO's"], "place of S": ["same", "opposite"]}
ml.Scores(signal, tuple(labels), "logit difference (logits)", labels).plot(
    title="19.2 and 20.0 from another sentence", height=330, width=520
)

# %% kind="assert"
assert (half.positions["end"] == 14).all() and (half.positions["S2"] == 10).all()
for row, both in enumerate(((4.3, -0.5), (4.15, -0.8), (4.0, -0.85))):
    for column, says in enumerate(both):
        which = f"{labels['token of S'][row]} token, {labels['place of S'][column]} place"
        claim(model, which, signal[row, column], says=says, within=0.1)
claim(model, "cost of the other place", signal[0, 0] - signal[0, 1], says=4.8, within=0.1)
assert (signal[0] - signal).max() < 0.45
reveal("41.p", f"{signal[0, 1]:.1f}")

# %% [markdown]
# <details><summary>What we saw</summary>
#
# Turning the place round costs more than the whole difference; changing the token, next to nothing.
#
# </details>
#
# The paper sums its table up by a fit: difference ≈ a · place + b · token.
#
# ### Exercise 41.5 Place and token
#
# Difficulty 3 of 5 · 8 minutes · needs least squares


# %% kind="exercise" id="41.5"
@exercise("41.5")
def place_and_token(table: Float[Tensor, "3 2"]) -> Float[Tensor, "2"]:
    """The two coefficients, place first, of the least-squares fit: difference ≈ a · place + b · token, without a constant.

    Rows: the subject's token is the same (token = 1), another one (0), IO's (−1). Columns: place same (1), opposite (−1).
    """
    # >>> solution
    place = torch.tensor([1.0, -1.0]).repeat(3)
    token = torch.tensor([1.0, 0.0, -1.0]).repeat_interleave(2)
    design = torch.stack([place, token], dim=1)
    return torch.linalg.lstsq(design, table.reshape(6, 1)).solution[:, 0]
    # <<< solution


# %% kind="check"
check(place_and_token)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Six equations, two unknowns. Write down place and token for each of the six cells, in the order in which `table.reshape(6)` lists them.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# The flat order is row by row: place is 1, −1, 1, −1, 1, −1 and token is 1, 1, 0, 0, −1, −1. `torch.linalg.lstsq(design, table.reshape(6, 1))`.
#
# </details>


# %%
place, token = torch.tensor([1.0, -1.0]), torch.tensor([1.0, 0.0, -1.0])[:, None]
paper = torch.tensor([[3.55, -0.99], [2.45, -1.96], [1.77, -3.16]])  # Wang et al. 2022, appendix A
signals = {  # place and token are at right angles: each coefficient is a sum by itself
    name: ((x * place).sum() / 6, (x * token).sum() / 4) for name, x in (("paper", paper), ("here", signal))
}
for name, (a, b) in signals.items():
    print(f"{name}: {a:.2f} · place + {b:.2f} · token")
claim(model, "place", signals["here"][0], says=2.4, within=0.1)
claim(model, "token", signals["here"][1], says=0.15, within=0.1)
assert abs(signals["paper"][0] - 2.31) < 0.01 and abs(signals["paper"][1] - 0.99) < 0.01

# %% [markdown]
# The place counts as much as in GPT-2 small, the token hardly at all. Here the signal is almost only "first or second name".
#
# ## A head that the paper does not have
#
# Head 23.3 has the largest path, looks from the end to S2, and writes *against* what it sees. A way of its own to solve the task: do not say the last name
# again. Is it about names? Six other texts. Shown is the direct contribution (logits) of each head of layer 23 to the word that 23.3 looks at most (in brackets;
# the begin token left out), against the mean of all words:

# %%
texts = [
    "Paris is the capital of France, and Rome is the capital of",
    "The dog chased the cat. Then the cat looked at the",
    "She bought apples and pears, because she likes apples and",
    "The doctor called the nurse, and the nurse called the",
    "Bob went to the market and then Bob went to the",
    "My brother lives in London. My sister does not live in",
]
wanted = ["blocks.23.attn.hook_pattern", "blocks.23.attn.hook_z", "ln_final.hook_scale"]
said, shown_as = [], []
for text in texts:
    tokens = model.to_tokens(text)
    with torch.no_grad():
        pattern, z, scale = (model.run_with_cache(tokens, names_filter=wanted)[1][name][0] for name in wanted)
        word = tokens[0, pattern[3, -1, 1:].argmax() + 1]
        direction = (model.W_U[:, word] - model.W_U.mean(1)) / scale[-1]
        said.append(torch.einsum("he,hem,m->h", z[-1], model.W_O[23], direction))
    shown_as.append(f"{' '.join(text.split()[-3:])} ({model.to_string([word.item()]).strip()})")
labels = {"text": shown_as, "head": [f"23.{head}" for head in range(9)]}
ml.Scores(torch.stack(said), tuple(labels), "added to the word that 23.3 looks at (logits)", labels).plot(
    height=380
)

# %% kind="assert"
said = torch.stack(said)
claim(model, "23.3, France", said[0, 3], says=-1.9, within=0.15)
claim(model, "23.3, apples", said[2, 3], says=-3.5, within=0.2)
assert said[:, 3].max() < -0.9 and (said[:, 3:4] <= said).all()

# %% [markdown]
# In all six it lowers the word that it looks at: France where another country is due, apples where pears are. This is **copy suppression**; McDougall et al. (2023) found such a
# head in GPT-2 small. There it is one of the negative name movers, here the same habit makes the largest
# part of the answer.
#
# ## How it misleads
#
# **Attention is not cause.** Three heads that look where a circuit head should, and the effects of their paths:

# %%
watchers = {"11.1": ("S1+1→S1", (11, 1)), "2.1": ("S1+1→S1", (2, 1)), "25.2": ("end→S2", (25, 2))}
effects = {"11.1": sent_next[11, 1], "2.1": sent_next[2, 1], "25.2": direct.values[25, 2]}
for name, (place_seen, head) in watchers.items():
    print(
        f"{name}: {looks[place_seen][head]:.2f} of its attention {place_seen}, effect of its path {effects[name]:+.3f}"
    )
claim(model, "11.1, S1+1→S1", looks["S1+1→S1"][11, 1], says=0.85, within=0.02)
claim(model, "2.1, S1+1→S1", looks["S1+1→S1"][2, 1], says=0.59, within=0.02)
claim(model, "16.0, S1+1→S1", looks["S1+1→S1"][16, 0], says=0.87, within=0.02)
claim(model, "25.2, end→S2", looks["end→S2"][25, 2], says=0.74, within=0.02)
assert abs(effects["11.1"]) < 0.01 and abs(effects["2.1"]) < 0.01 and abs(effects["25.2"]) < 0.04
assert looks["end→S2"].argmax() == 25 * 9 + 2

# %% [markdown]
# Head 11.1 looks back as firmly as 16.0, and the induction heads read nothing of it. Head 25.2 gives S2 more of its
# attention than any other head does, two layers too late to tell the name movers anything.
#
# **The counterfactual decides what is found.** A counterfactual is the spoiled prompt (corruption in notebook 31). The same paths, with three: all names new,
# S2 alone, IO alone.

# %%
asked, swept = [(23, 3), (23, 0), (23, 1), (23, 7)], []
whole = ml.run_of(model, half.tokens)
for how in ("abc", "s2", "io"):
    spoiled = ml.run_of(model, half.corrupted(how).tokens, like=whole)
    of_half = (model, whole, spoiled, half.metric)
    to_logits = ml.path_patching(*of_half, senders=[[head] for head in asked])
    to_queries = ml.path_patching(
        *of_half, movers, "q", at=half.positions["end"], senders=[[head] for head in inhibitors]
    )
    swept.append(torch.cat([to_logits.values, to_queries.values]))
labels = {"replaced": ["all names", "S2", "IO"], "path": [f"{named([h])} logits" for h in asked]}
labels["path"] += [f"{named([h])} queries" for h in inhibitors]
ml.Scores(torch.stack(swept), tuple(labels), to_logits.name, labels).plot(
    title="paths to the logits, or to the name movers' queries (share of the way)", height=360
)

# %% kind="assert"
claim(model, "23.3, all names", swept[0][0], says=0.72, within=0.03)
claim(model, "23.3, IO alone", swept[2][0], says=-0.01, within=0.03)
claim(model, "23.1, all names", swept[0][2], says=0.0, within=0.03)
claim(model, "23.1, IO alone", swept[2][2], says=0.18, within=0.03)
claim(model, "20.0, IO alone", swept[2][5], says=0.0, within=0.02)
claim(model, "20.0, all names", swept[0][5], says=0.07, within=0.02)
assert max(looks["end→IO"][23, 3], looks["end→IO"][20, 0]) < 0.06

# %% [markdown]
# With IO alone replaced, the paths of 23.3 and 20.0 vanish: these heads hardly look at IO. Now 23.1 appears, a would-be name mover whose path ABC had put at zero. Neither list is wrong. Each says what
# depends on *what was changed*.
#
# **Question 41.a.** You ask 1,000 heads of a larger model for a path, with ordinary 95 % intervals. 62 stay clear of zero. How many would you expect if no head did
# anything?
#
# - **a** None: an interval that stays clear of zero is a finding.
# - **b** About 50.
# - **c** About 950.

# %% kind="quiz"
quiz("41.a", "b")

# %% [markdown]
# **Question 41.b.** Somebody claims that 19.2 and 20.0 tell the name movers *who* the subject is. Which prompts would show it, if it were so?
#
# - **a** ABC prompts: if the logit difference falls, they carried the name.
# - **b** The two heads from a sentence with other names, in the same order: the logit difference must fall.
# - **c** The two heads from a sentence with the same names in the other order: the logit difference must fall.

# %% kind="quiz"
quiz("41.b", "b")

# %% [markdown]
# ## Beside the paper

# %%
yours = {
    "logit difference (logits)": seen["16 templates"].mean().item(),
    "share of prompts with the answer above its rival": (seen["16 templates"] > 0).float().mean().item(),
    "attention of name movers from the end to IO": sum(looks["end→IO"][h].item() for h in movers)
    / len(movers),
    "attention of S-inhibition heads from the end to S2": (looks["end→S2"][19, 2] + looks["end→S2"][20, 0])
    / 2,
    "coefficient of place": signals["here"][0].item(),
    "coefficient of token": signals["here"][1].item(),
}
ml.reference.table("41", yours)

# %% [markdown]
# | term | meaning |
# |---|---|
# | path patching | one sender changed, all other heads held, the change caught by one reader |
# | normalized logit difference, share of the way | change of the metric, over the difference between the two runs |
# | joint intervals | hold for all heads that were asked at once; by permutation of the maximum |
# | name mover | looks at IO from the end, copies it |
# | S-inhibition | looks at S2 from the end, tells the name movers where not to look |
# | copy suppression head, subject suppressor | looks at S2 from the end, writes against it |
# | subject mover | looks at S from the end, copies it |
#
# Papers: Wang et al. 2022 (circuit, path patching), Goldowsky-Dill et al. 2023 (path patching in general), McDougall et al. 2023 (copy suppression),
# Zhang and Nanda 2024 (counterfactuals), Westfall and Young 1993 (permutation of the maximum). Next: notebook 42, does this circuit do the work, and is it all?
#
# ## The same on GPT-2
#
# On the paper's own model, beside its 26 heads. The paper puts no begin token first.

# %% kind="gpu"
if torch.cuda.is_available():
    gpt2 = ml.load("gpt2")
    asked_of_it = ml.ioi_prompts(gpt2, 64, prepend_bos=False)
    its = ml.find_roles(gpt2, asked_of_it, asked_of_it.corrupted("abc")).circuit
    for role, published in ml.ioi.PAPER_CIRCUIT.roles.items():
        print(f"{role}: paper {named(published)}; found {named(its.roles.get(role, ()))}")
    print(f"overlap of all heads: {ml.overlap(its.heads, ml.ioi.PAPER_CIRCUIT.heads):.2f}")
else:
    print("Skipped: this cell wants a GPU and the network (550 MB).")
