# %% [markdown]
# # 41 The IOI circuit: finding it
#
# **Question:** which heads put " Mary" after "John gave a drink to", and who reads whom?
#
# After this notebook you will be able to
#
# - follow a behaviour backwards through a model, from the logits to the head that starts it,
# - patch one path between two parts, and say what that tells beyond patching one part,
# - give a head a role from three kinds of evidence, and leave a head without a role when they disagree.
#
# Time: 115 minutes. The cells take about 95 seconds in all. Memory: 2.5 GB.
# Download: none, once the model is here (93 MB). Before: notebooks 12, 23, 24 and 31.

# %% kind="setup"
# (written by the build)

# %% [markdown]
# ## The picture
#
# "When Laura and Larry walked to the school, Laura gave a ring to": the next word is " Larry". This task is called **indirect object
# identification** (IOI). Wang et al. (2022) explained how GPT-2 small does it, with 26 heads. For SmolLM2 we know of nobody who has.
#
# Five places have names. **IO** is the indirect object, the answer. **S1** is the subject where it is first named, beside IO, and **S2** where it is
# named again. **S1+1** is the token after S1. **end** is the last token. The metric is the logit of IO minus the logit of S.
#
# Prompts come in **balanced pairs**: one sentence, with either person named again. What the model thinks of a name, or of a place in the sentence,
# cancels in the mean of a pair. And each prompt has an **ABC** version with three new names, in which the question has no answer.
#
# Which layers write the logit difference? Direct contributions (notebook 12), added up from layer to layer:

# %%
import pandas as pd

from mechlab.results import named

prompts = ml.ioi_prompts(model, 32)
abc = prompts.corrupted("abc")
print(prompts.text(0), prompts.text(1), abc.text(0), sep="\n")
layers = ml.direct_logit_attribution(model, prompts.tokens, prompts.io, prompts.s, unit="layer")
so_far = layers.values.cumsum(0)
ml.Scores(so_far, ("layer",), "logit difference in the stream after each layer (logits)").plot(height=330)

# %% kind="assert"
claim(model, "after layer 22", so_far[22], says=0.07, within=0.05)
claim(model, "after layer 23", so_far[23], says=3.75, within=0.1)
claim(model, "at the end", so_far[29], says=4.5, within=0.1)

# %% [markdown]
# A cliff: 0.07 logits after layer 22, 3.75 after layer 23, 4.5 at the end. So layer 23 gives the answer. But how does it know it?
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
# The paper has 3.56 and 0.993 for GPT-2 small, on its own templates. Ours: 3.9 and 0.89 on sixteen templates; 4.5 on the eight that we use from here on. The
# order matters: 5.0 where S comes first, 2.7 where IO does. With ABC names nearly nothing is left.
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
# Entering layer 19, all of it is at S2 (1.00). Entering layer 21, 0.39 is there and 0.57 at the end; entering layer 24, 0.10 and 0.84. So there are two large
# moves from S2 to the end: in layers 19 and 20, and in layer 23. (Layer 24 moves the rest: 0.00 and 0.92.) Which heads?

# %%
heads = ml.direct_logit_attribution(model, prompts.tokens, prompts.io, prompts.s, unit="head")
for head, says in {(23, 3): 2.0, (29, 1): 1.0, (29, 0): -0.75, (23, 0): 0.7, (24, 4): -0.55}.items():
    claim(model, f"direct contribution of {head[0]}.{head[1]}", heads.values[head], says=says, within=0.1)
assert heads.values[:22].abs().max() < 0.1
heads.top(9)

# %% [markdown]
# Heads of layers 23, 24 and 29 write the answer; none below layer 22 writes as much as 0.1 itself. Whatever layers 19 and 20 move to the end, they move
# for others to read. To see *who reads whom* takes a sharper tool.
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
# What must hold, holds: they agree; with no sender nothing changes; and in the last layer, where no head comes after, a path to the logits is
# all there is, so path patching and activation patching give the same.
#
# The receiver can also be a head. Then the change is caught in the receiver's queries, keys or values; and in one more run the receiver gets these, and
# all else is free. (A held head gives what it gave, so in the first run nothing moves from one token to another.)
#
# One thing needs care in this model: three query heads share one key and value head. To patch what *one* query head reads, its mates must keep theirs.
#
# ### Exercise 41.3 One reader of a shared value
#
# Difficulty 2 of 5 · 8 minutes · needs 31.4


# %% kind="exercise" id="41.3"
@exercise("41.3")
def reads_anew(
    pattern: Float[Tensor, "prompt head query key"],
    v: Float[Tensor, "prompt pos kv_head d_head"],
    new_v: Float[Tensor, "prompt pos kv_head d_head"],
    head: int,
    at: int,
) -> Float[Tensor, "prompt query d_head"]:
    """What query head `head` hands on (its z) with its own pattern, when its value at position `at` is the new one.

    Neighbouring query heads share a value head: with 9 and 3, query heads 0 to 2 read value head 0, 3 to 5 value head 1.
    """
    # >>> solution
    shared = head // (pattern.shape[1] // v.shape[2])
    mine = v[:, :, shared].clone()
    mine[:, at] = new_v[:, at, shared]
    return pattern[:, head] @ mine
    # <<< solution


# %% kind="check"
check(reads_anew)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Which value head does this query head read? Its values have shape [prompt, pos, d_head]; one position of them changes.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# `pattern.shape[1] // v.shape[2]` query heads share one value head. Copy that value head, write the new value at `at`, and multiply by this head's pattern:
# `pattern[:, head] @ mine`.
#
# </details>
#
# ## Backwards, step by step
#
# Now the walk. Who writes to the logits? Who is read by those, and through what? An effect is the **share of the way** from the prompts to their ABC
# versions: 0.2 means that patching this path costs a fifth of the difference. `ml.run_of` keeps a run, so that many questions can be asked of it;
# with `like=base`, what both runs begin with is computed once.


# %% kind="wrong" id="41.3" expects="in place"
@exercise("41.3")
def reads_anew(pattern, v, new_v, head, at):
    shared = head // (pattern.shape[1] // v.shape[2])
    mine = v[:, :, shared]
    mine[:, at] = new_v[:, at, shared]
    return pattern[:, head] @ mine


# %%
base = ml.run_of(model, prompts.tokens)
source = ml.run_of(model, abc.tokens, like=base)
runs, at = (model, base, source, prompts.metric), prompts.positions
direct = ml.path_patching(*runs)
direct.plot(height=560, title="path from each head to the logits (share of the way to ABC)")

# %% kind="assert"
for head, says in {(23, 3): 0.69, (29, 1): 0.25, (29, 0): -0.18, (23, 0): 0.16, (24, 4): -0.12}.items():
    claim(model, f"path from {named([head])} to the logits", direct.values[head], says=says, within=0.02)
claim(model, "path from 20.0 to the logits", direct.values[20, 0], says=0.04, within=0.02)
low, high = direct.interval()
for head, ends in {(23, 3): (0.61, 0.78), (24, 4): (-0.21, -0.02)}.items():
    claim(model, f"{named([head])}, interval from", low[head], says=ends[0], within=0.03)
    claim(model, f"{named([head])}, interval to", high[head], says=ends[1], within=0.03)

# %% [markdown]
# **Into the logits.** Head 23.3 carries 0.69 of the way (95 % interval 0.61 to 0.78), 29.1 0.25 and 23.0 0.16. Heads 29.0 (−0.18) and 24.4 (−0.12, from
# −0.21 to −0.02) work against the answer. Head 20.0, strong in notebook 31, sends little there (0.04).
#
# **Into the queries** of 23.0, 23.2 (0.05) and 23.7 (0.07). They look at IO and copy it; the paper calls such heads **name movers**. (Evidence
# below. Notebooks 12 and 24 counted 23.1 too; here its path carries nothing.) Who tells them where to look?

# %%
movers = [(23, 0), (23, 2), (23, 7)]
for head, says in zip(movers, (0.16, 0.05, 0.07), strict=True):
    claim(model, f"path from {named([head])} to the logits", direct.values[head], says=says, within=0.02)
queries = ml.path_patching(*runs, movers, "q", at=at["end"])
claim(model, "20.0 into the queries", queries.values[20, 0], says=0.24, within=0.02)
claim(model, "19.2 into the queries", queries.values[19, 2], says=0.04, within=0.02)
assert (queries.values > 0.02).sum() == 2
queries.top(6)

# %% [markdown]
# Two heads help: 20.0 (0.24) and 19.2 (0.04). They look from the end to S2. The paper calls such heads **S-inhibition** heads: they keep the name movers
# away from the subject.
#
# What do these two find at S2? **Into their values.** A head can bring the name's first mention to S2 by looking back from there. So we take a
# shortcut: only heads that look from S2 to S1 or to S1+1, with at least 0.15 of their attention, send one by one. All others send together; their one
# number shows what the shortcut misses.

# %%
from mechlab.circuits.ioi.roles import RULES, THRESHOLDS, attention_to

looks = attention_to(prompts, base)


def senders_that_look(*places, below):
    some = sum(looks[place] >= THRESHOLDS["attention"] for place in places)[:below] > 0
    rest = [tuple(head) for head in (~some).nonzero().tolist()]
    return [*([tuple(head)] for head in some.nonzero().tolist()), rest]


inhibitors = [(19, 2), (20, 0)]
at_s2 = senders_that_look("S2→S1", "S2→S1+1", below=20)
values = ml.path_patching(*runs, inhibitors, "v", at=at["S2"], senders=at_s2)
ml.Scores(values.values[:-1], ("sender",), values.name, {"sender": [named(g) for g in at_s2[:-1]]}).plot(
    title="into the values of 19.2 and 20.0 at S2 (share of the way)"
)

# %% kind="assert"
sent_by = dict(zip([group[0] for group in at_s2[:-1]], values.values, strict=False))
there = {(17, 4): 0.23, (8, 1): 0.06, (18, 6): 0.03, (5, 6): 0.015, (17, 5): 0.01, (17, 0): 0.02}
for head, says in there.items():
    claim(model, f"{named([head])} into the values at S2", sent_by[head], says=says, within=0.01)
claim(model, "all the rest together", values.values[-1], says=0.03, within=0.02)

# %% [markdown]
# Mostly what 17.4 wrote there (0.23). It is an **induction** head: from S2 it looks at S1+1, the token after the same name. Two others that
# look there do the same, weakly: 18.6 (0.03) and 17.5 (0.01). Next comes 8.1 (0.06), and weakly 5.6 (0.015): **duplicate-token** heads, which look from S2
# at S1. (17.0, 0.02, looks at both.) The heads that look at neither have 0.03, all together.
#
# How does an induction head find S1+1? By the key there. **Into the keys at S1+1**, where heads look back to S1:

# %%
inducers = [(17, 4), (17, 5), (18, 6)]
at_next = senders_that_look("S1+1→S1", below=18)
keys = ml.path_patching(*runs, inducers, "k", at=at["S1+1"], senders=at_next)
ml.Scores(keys.values[:-1], ("sender",), keys.name, {"sender": [named(g) for g in at_next[:-1]]}).plot(
    title="into the keys of 17.4, 17.5 and 18.6 at S1+1 (share of the way)"
)

# %% kind="assert"
sent_next = dict(zip([group[0] for group in at_next[:-1]], keys.values, strict=False))
claim(model, "16.0 into the keys at S1+1", sent_next[16, 0], says=0.19, within=0.02)
assert keys.values.abs().sort().values[-2] < 0.01
stored = {(edge.sender, edge.receiver): edge.effect for edge in ml.ioi.found_circuit().edges}
claim(model, "20.0 into the queries of 23.3, stored", stored[(20, 0), (23, 3)], says=0.03, within=0.01)

# %% [markdown]
# One head: **16.0** (0.19), a **previous-token** head, which looks from S1+1 to S1. Nobody else reaches 0.01, the rest together included. The chain to the
# name movers is complete: 16.0 → 17.4 → 20.0 and 19.2 → name movers → logits. Head 23.3, the largest of all, hardly reads it (20.0 has 0.03 there,
# docs/ioi_report.md): it looks at S2 itself.
#
# ## Three kinds of evidence
#
# Three things are asked of each role: that the head **looks** at the right place, that it
# **copies** the names it sees (or writes against them), and that it **serves** the right reader.
#
# ### Exercise 41.4 Which roles fit?
#
# Difficulty 2 of 5 · 8 minutes · needs nothing


# %% kind="exercise" id="41.4"
@exercise("41.4")
def roles_that_fit(
    evidence: dict[str, float],
    rules: dict[str, tuple[str, str | None, str, int]],
    limits: dict[str, float],
) -> list[str]:
    """Every role whose three conditions hold, in the order of `rules`. None: no role; two or more: ambiguous.

    A rule is (looks, copies, serves, sign), for example ("end→IO", "for", "logits", 1). The first three are keys of
    `evidence`; copies may be None: not asked. The evidence must reach limits["attention"], limits["copying"], and, for
    the path, sign × effect must reach limits["path"]. To reach is to be at least as large.
    """
    # >>> solution
    fit = []
    for role, (looks, copies, serves, sign) in rules.items():
        right_place = evidence[looks] >= limits["attention"]
        right_words = copies is None or evidence[copies] >= limits["copying"]
        if right_place and right_words and sign * evidence[serves] >= limits["path"]:
            fit.append(role)
    return fit
    # <<< solution


# %% kind="check"
check(roles_that_fit)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Go through the rules one by one. All three conditions must hold; do not stop at the first role that fits.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# `for role, (looks, copies, serves, sign) in rules.items():`. Compare `evidence[looks]`, `evidence[copies]` (unless it is None) and `sign * evidence[serves]`
# with their limits, each with `>=`.
#
# </details>
#
# The library's limits: 0.15 of the attention, 0.25 of the names copied, a path of 0.01. One rule has one more condition: a subject mover must look at S
# more than at IO. Still missing is the copying, read off a head's weights (notebook 23): is the name that it looks at among the five words that it raises
# most ("for")? Among the five that it lowers most ("against")? The score is the share of names, here of eighteen. `fits` holds the roles that fit:


# %% kind="wrong" id="41.4" expects="second role"
@exercise("41.4")
def roles_that_fit(evidence, rules, limits):
    for role, (looks, copies, serves, sign) in rules.items():
        words = copies is None or evidence[copies] >= limits["copying"]
        if evidence[looks] >= limits["attention"] and words and sign * evidence[serves] >= limits["path"]:
            return [role]
    return []


# %% kind="wrong" id="41.4" expects="sign of the path"
@exercise("41.4")
def roles_that_fit(evidence, rules, limits):
    fit = []
    for role, (looks, copies, serves, _) in rules.items():
        words = copies is None or evidence[copies] >= limits["copying"]
        if evidence[looks] >= limits["attention"] and words and abs(evidence[serves]) >= limits["path"]:
            fit.append(role)
    return fit


# %% kind="wrong" id="41.4" expects="serves nobody"
@exercise("41.4")
def roles_that_fit(evidence, rules, limits):
    fit = []
    for role, (looks, copies, _, _) in rules.items():
        words = copies is None or evidence[copies] >= limits["copying"]
        if evidence[looks] >= limits["attention"] and words:
            fit.append(role)
    return fit


# %% kind="wrong" id="41.4" expects="does not copy"
@exercise("41.4")
def roles_that_fit(evidence, rules, limits):
    fit = []
    for role, (looks, _, serves, sign) in rules.items():
        if evidence[looks] >= limits["attention"] and sign * evidence[serves] >= limits["path"]:
            fit.append(role)
    return fit


# %%
some = prompts.names[::7]
copies = {way: ml.copying_scores(model, some, against=way == "against").values for way in ("for", "against")}


def on_grid(groups, scores):
    grid = torch.zeros(30, 9)
    for group, value in zip(groups[:-1], scores.values, strict=False):
        grid[group[0]] = value
    return grid


paths = {"logits": direct.values, "values of S-inhibition": on_grid(at_s2, values)}
paths |= {"keys of induction": on_grid(at_next, keys), "queries of name movers": torch.zeros(30, 9)}
paths["queries of name movers"][:23] = queries.values
for role, rule in RULES.items():
    copied = rule.copies or "not asked"
    print(f"{role}: looks {rule.looks}, copying {copied}, into the {rule.serves} ({rule.sign:+d})")
assert len(some) == 18 and THRESHOLDS == {"attention": 0.15, "copying": 0.25, "path": 0.01}

# %%
fits = {}
for role, rule in RULES.items():
    looks_there = looks[rule.looks] >= THRESHOLDS["attention"]
    is_read = rule.sign * paths[rule.serves] >= THRESHOLDS["path"]
    fit = looks_there & is_read
    if rule.over:
        fit = fit & (looks[rule.looks] > looks[rule.over])
    if rule.copies:
        fit = fit & (copies[rule.copies] >= THRESHOLDS["copying"])
    for head in fit.nonzero().tolist():
        fits.setdefault(tuple(head), []).append(role)
roles = {role: [head for head, its in fits.items() if its == [role]] for role in RULES}
roles["ambiguous"] = [head for head, its in fits.items() if len(its) > 1]
both = {"paper, GPT-2 small": ml.ioi.PAPER_CIRCUIT.roles, "smollm2, found here": roles}
both["smollm2, notebook 42"] = ml.ioi.found_circuit().roles
columns = {name: {role: named(heads) for role, heads in its.items()} for name, its in both.items()}
assert roles["name mover"] == movers and roles["S-inhibition"] == inhibitors
assert roles["induction"] == inducers and roles["previous token"] == [(16, 0)]
assert {(5, 6), (8, 1)} <= {*roles["duplicate token"]} and (17, 0) in roles["ambiguous"]
assert roles["negative name mover"] == [(24, 4)] and roles["subject suppressor"] == [(23, 3)]
assert roles["subject mover"] == [(23, 5), (24, 5)]
claim(model, "path from 23.5", direct.values[23, 5], says=-0.04, within=0.01)
claim(model, "path from 24.5", direct.values[24, 5], says=-0.12, within=0.02)
pd.DataFrame(columns).fillna(named([]))

# %% [markdown]
# Every role of the paper but one is there, with other heads. The one: **backup name movers**, which are found by removing the name movers first
# (notebook 42). Two roles are not in the paper: the **subject suppressor** 23.3 and the **subject movers** 24.5 (−0.12) and 23.5 (−0.04), which look
# at S more than at IO, copy it, and so work against the answer. And 17.0 looks from S2 at S1 and at S1+1: two roles fit, so it is **ambiguous**.
#
# `ml.find_roles(model, prompts, abc)` does the whole walk in a minute or two. In four other draws (16 prompts each) 16.0, 17.4,
# 18.6, 8.1, 19.2, 20.0, 23.0, 23.2, 23.3 and 24.4 had these roles every time. Others came and went: a limit of 0.01 lets chance in.
#
# The last column is the circuit that notebook 42 puts to the test: searched with more prompts, and added to until little was missing. (There, too, what
# "late" and "no role" mean.)
#
# Some heads write to the logits (0.03 or more, either way) and fit no role. With them 23.1:

# %%
unexplained = [tuple(h) for h in (direct.values.abs() >= 0.03).nonzero().tolist() if tuple(h) not in fits]
rows = {
    named([h]): [looks["end→IO"][h], looks["end→S"][h], copies["for"][h], direct.values[h]]
    for h in [*unexplained, (23, 1)]
}
assert {(29, 0), (29, 1)} <= {*unexplained}
claim(model, "attention of 23.1 to IO", looks["end→IO"][23, 1], says=0.52, within=0.02)
claim(model, "path from 23.1", direct.values[23, 1], says=0.0, within=0.03)
claim(model, "path from 24.7", direct.values[24, 7], says=-0.05, within=0.01)
pd.DataFrame(rows, index=["end→IO", "end→S", "copies", "path to the logits"]).T.astype(float).round(2)

# %% [markdown]
# - **23.1** looks at IO (0.52) and copies, as a name mover does, and yet its path is about 0. More of this one below.
# - **24.7** pulls a little against the answer (−0.05), in no way that we know.
# - **29.1** and **29.0** look at no name at all, but at the end itself (0.50 and 0.52 of their attention). What reaches their values there?

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
# Mostly what 23.3 and 23.0 wrote. Head 29.1 says it once more (0.17 for 23.3), 29.0 takes nearly as much back (−0.15).
#
# ## What S-inhibition carries
#
# Heads 19.2 and 20.0 could say *who* is the subject (a **token** signal), or *which* of the two names, first or second (a **position** signal). Wang et
# al. tell them apart: give the two heads at the end what they had on another sentence. In the other sentence the subject's token is
# the same, another one, or IO's; and it stands at the same place or at the other one.
#
# In GPT-2 small the difference, 3.55 on the prompts of the paper's appendix A, becomes −0.99 with the same tokens in opposite order. Here it is 4.3 (16 prompts). With opposite order, same tokens?

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
reveal("41.p", -0.5)

# %% [markdown]
# Turning the place round costs 4.8 logits; changing the token, 0.35 at most. The paper sums its table up by a fit: difference ≈ a · place + b · token.
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
# Place 2.4, token 0.15; in GPT-2 small 2.31 and 0.99. Here the signal is almost only "first or second name".
#
# ## A head that the paper does not have
#
# Head 23.3 carries the most, looks from the end to S2, and writes *against* what it sees. A way of its own to solve the task: do not say the last name
# again. Is it about names? Six other texts. The numbers are what each head of layer 23 adds to the word that 23.3 looks at most (in brackets;
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
# France is pushed down by 1.9 logits where another country is due, apples by 3.5. In all six it lowers the word that it looks at. McDougall et al. (2023) found such a
# head in GPT-2 small and call what it does **copy suppression**; there it is one of the negative name movers, here the same habit makes the largest
# part of the answer.
#
# ## How it misleads
#
# **Attention is not cause.** Three heads that look where a circuit head should:

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
# Head 11.1 (0.85) looks back as firmly as 16.0 (0.87), 2.1 (0.59) not much less, and the induction heads read neither. Head 25.2 gives S2 more of its
# attention (0.74) than any other head does, two layers too late to tell the name movers anything.
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
claim(model, "20.0, all names", swept[0][5], says=0.23, within=0.03)
assert max(looks["end→IO"][23, 3], looks["end→IO"][20, 0]) < 0.06

# %% [markdown]
# With IO alone replaced, 23.3 falls from 0.72 to −0.01 and 20.0 from 0.23 to 0.00: they hardly look at IO (0.05 of their attention). Now 23.1 appears
# (0.18), the would-be name mover that ABC had put at 0. Neither list is wrong. Each says what depends on *what was changed*.
#
# **A direct contribution is not what is lost without a head.** Each head replaced by its mean over ABC prompts of the same template (notebook 24):

# %%
reference = ml.ioi_prompts(model, 64, seed=5).corrupted("abc")
knockouts = ml.CircuitRuns(model, half, reference)
six = [(23, 3), (23, 0), (23, 1), (20, 0), (29, 1), (29, 0)]
lost = knockouts.removing([ml.Circuit.of([head]) for head in six]).mean(1) - knockouts.intact.mean()
adds = ml.direct_contributions(knockouts).values[[h[0] for h in six], [h[1] for h in six]]
labels = {"what": ["adds directly", "change without it"], "head": [named([h]) for h in six]}
claim(model, "23.0 adds", adds[1], says=0.64, within=0.05)
claim(model, "without 23.0", lost[1], says=0.1, within=0.05)
claim(model, "20.0 adds", adds[3], says=0.02, within=0.05)
claim(model, "without 20.0", lost[3], says=-1.84, within=0.1)
claim(model, "29.1 adds", adds[4], says=1.0, within=0.1)
claim(model, "without 29.1", lost[4], says=-1.1, within=0.1)
ml.Scores(torch.stack([adds, lost]), tuple(labels), "logit difference (logits)", labels).plot(
    title="what a head adds, and what its removal changes (logits)", height=280
)

# %% [markdown]
# Head 20.0 adds 0.02 and is missed by 1.84. Head 23.0 adds 0.64, and without it nothing is lost (+0.1): others make up for it. For 29.1 the two
# agree (1.0 and −1.1), and still it mostly repeats what others said. No single number tells what a head is for.
#
# **Question 41.a.** A head looks from the end to S2 with 0.74 of its attention. What is still needed to call it an S-inhibition head?
#
# - **a** Nothing: that is what S-inhibition heads do.
# - **b** That the logit difference falls when its path into the queries of the name movers is patched.
# - **c** That it adds to the logit difference directly.

# %% kind="quiz"
quiz("41.a", "b")

# %% [markdown]
# **Question 41.b.** With IO alone replaced, the path from 23.3 to the logits has no effect. Which conclusion is safe?
#
# - **a** 23.3 is not part of the circuit.
# - **b** 23.3 is part of the circuit only when all names are new.
# - **c** What 23.3 says to the logits of the two names does not depend on who IO is.

# %% kind="quiz"
quiz("41.b", "c")

# %% [markdown]
# ## Beside the paper

# %%
yours = {
    "logit difference (logits)": seen["16 templates"].mean().item(),
    "share of prompts with the answer above its rival": (seen["16 templates"] > 0).float().mean().item(),
    "attention of name movers from the end to IO": sum(looks["end→IO"][h].item() for h in movers) / 3,
    "attention of S-inhibition heads from the end to S2": (looks["end→S2"][19, 2] + looks["end→S2"][20, 0])
    / 2,
    "coefficient of place": signals["here"][0].item(),
    "coefficient of token": signals["here"][1].item(),
}
ml.reference.table("41", yours)

# %% [markdown]
# | term | meaning |
# |---|---|
# | balanced pair | one sentence twice, with either person named again; preferences for a name cancel |
# | ABC prompts | the same sentences with three different names: no answer, and so a reference |
# | path patching | one sender changed, all other heads held, the change caught by one reader |
# | share of the way | change of the metric, over the difference between the two runs |
# | name mover | looks at IO from the end, copies it |
# | S-inhibition | looks at S2 from the end, tells the name movers where not to look |
# | induction, duplicate token | at S2 they find that the name was there before, and where |
# | previous token | writes at S1+1 which name came before |
# | subject suppressor | looks at S2 from the end, writes against it |
# | subject mover | looks at S from the end, copies it |
#
# Papers: Wang et al. 2022 (circuit, path patching), Goldowsky-Dill et al. 2023 (path patching in general), McDougall et al. 2023 (copy suppression),
# Zhang and Nanda 2024 (counterfactuals). Next: notebook 42, does this circuit do the work, and is it all?
#
# ## The same on GPT-2
#
# The same functions on the paper's own model, beside its 26 heads. The paper puts no begin token before the prompt.

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
