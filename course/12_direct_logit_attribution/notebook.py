# %% [markdown]
# # 12 Direct logit attribution
#
# **Question:** which layers, heads, MLPs and neurons write the answer?
#
# After this notebook you will be able to
#
# - split a logit difference into one exact term for each part of the model,
# - tell a head that speaks for the answer from one that speaks against its rival,
# - say what these terms leave out, and show it by an ablation.
#
# Time: 75 minutes. The cells take about 30 seconds in all. Memory: 2.0 GB.
# Download: none, once the model is here (93 MB). Before: notebooks 02 and 03.

# %% kind="setup"
# (written by the build)

# %% [markdown]
# ## The picture
#
# Sixteen sentences like the running one: eight choices of giver and receiver, with their names in either order. In each
# the model should say the name that is there once. What does each of the 270 heads add to the logit of the right name,
# minus the wrong one?

# %%
couples = [("John", "Mary"), ("Tom", "Laura"), ("Mark", "Anna"), ("Peter", "Sarah")]
couples += [("Paul", "Jane"), ("David", "Emma"), ("Mary", "John"), ("Laura", "Tom")]
both_orders = [(s, io, first) for s, io in couples for first in ((s, io), (io, s))]
texts = [f"When {a} and {b} went to the store, {s} gave a drink to" for s, _, (a, b) in both_orders]
base = model.to_tokens(texts)
answers, rivals = [" " + io for _, io, _ in both_orders], [" " + s for s, _, _ in both_orders]
metric = ml.logit_difference(
    [ml.single_token(model, a) for a in answers], [ml.single_token(model, r) for r in rivals]
)

# %%
heads = ml.direct_logit_attribution(model, base, answers, rivals, unit="head")
heads.plot(height=560, xaxis_dtick=1)

# %%
heads.top(6)

# %% kind="assert"
claim(model, "direct effect of 23.3", heads.values[23, 3], says=2.16, within=0.05)
claim(model, "direct effect of 29.1", heads.values[29, 1], says=1.41, within=0.05)
claim(model, "direct effect of 29.0", heads.values[29, 0], says=-1.15, within=0.05)
claim(model, "all heads together", heads.values.sum(), says=2.73, within=0.1)
outside = heads.baselines["everything else"]
claim(model, "mean logit difference of the model", heads.whole.mean() + outside, says=5.09, within=0.1)
assert heads.values[:23].abs().max() < 0.2

# %% [markdown]
# The heads add 2.73 of the 5.09 logits; `everything else` is the MLPs and the embedding. Among the heads, nearly everything
# happens from layer 23 on, in a handful: 23.3 adds 2.16 logits on average, 29.1 adds 1.41, 29.0 takes 1.15 away. Before
# layer 23 no head adds or takes as much as 0.2. (With other sentences of the kind, the mean would hardly lie outside
# `95 % low` and `95 % high`.)
#
# This notebook shows where these numbers come from, and why it would be wrong to conclude that the other heads do not
# matter.
#
# ## By hand, on one sentence
#
# The last residual stream is the sum of what every part wrote (notebook 03). The norm divides it by one number, its
# scale; the unembedding reads it with one column for each token. So the logit difference is a sum: each part, times the
# difference of two columns, divided by the scale.

# %%
with torch.no_grad():
    logits, cache = model.run_with_cache(base[:1])
right, wrong = ml.single_token(model, answers[0]), ml.single_token(model, rivals[0])
direction = (model.W_U[:, right] - model.W_U[:, wrong]).detach()
scale = cache["ln_final.hook_scale"][0, -1, 0]
parts = {"embedding": cache["hook_embed"][0, -1]}
for layer in range(model.cfg.n_layers):
    parts[f"attention {layer}"] = cache["attn_out", layer][0, -1]
    parts[f"MLP {layer}"] = cache["mlp_out", layer][0, -1]
terms = torch.stack([part @ direction / scale for part in parts.values()])
difference = logits[0, -1, right] - logits[0, -1, wrong]
print(f"sum of {len(terms)} terms {terms.sum():.4f}, the model's difference {difference:.4f}")

# %% kind="assert"
assert abs(terms.sum() - difference) < 1e-3
claim(model, "logit difference of the first sentence", terms.sum(), says=5.58, within=0.05)

# %% [markdown]
# ### Exercise 12.1 Direct effects
#
# Difficulty 1 of 5 · 10 minutes · needs the cell above


# %% kind="exercise" id="12.1"
@exercise("12.1")
def direct_effects(
    written: Float[Tensor, "part d_model"],
    W_U: Float[Tensor, "d_model d_vocab"],
    answer: int,
    rival: int,
    scale: float,
) -> Float[Tensor, "part"]:
    """What each part adds to the logit of `answer` minus the logit of `rival`.

    written: what each part wrote into the last stream; scale: what the last norm divides by.
    """
    # >>> solution
    direction = W_U[:, answer] - W_U[:, rival]
    return written @ direction / scale
    # <<< solution


# %% kind="check"
check(direct_effects)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# A logit is the stream, divided by the scale, times one column of `W_U`.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# A difference of two logits needs the difference of two columns, `W_U[:, answer] - W_U[:, rival]`. Multiply every part
# with it, and divide by `scale`.
#
# </details>


# %% [markdown]
# **Question 12.a.** The scale of the last norm depends on all parts. We hold it at its value. What is the price?
#
# - **a** The terms no longer add up, unless each part is divided by its own length.
# - **b** They add up, but what a part does to the scale is counted nowhere.
# - **c** None: the unembedding undoes the norm.

# %% kind="quiz"
quiz("12.a", "b")

# %% [markdown]
# ## Where does the answer turn up?
#
# Add the layers' terms up from the bottom. The running sum is what the unembedding would read if nothing came after, still
# divided by the scale of the finished stream. So look at where it jumps and at its sign, not at its size half way.

# %%
layers = ml.direct_logit_attribution(model, base, answers, rivals, unit="layer")
start = layers.baselines["everything else"]
running = start + layers.values.cumsum(0)
ml.Scores(running, ("layer",), "logit difference written up to this layer (logits)").plot()

# %% kind="assert"
assert layers.gap.abs().max() < 1e-3
claim(model, "written up to layer 22", running[22], says=-1.5, within=0.1)
claim(model, "written up to layer 23", running[23], says=2.5, within=0.2)
claim(model, "written in all", running[-1], says=5.1, within=0.1)
claim(model, "added by the last layer", layers.values[29], says=1.9, within=0.1)
assert running[26] <= running[-1] / 2 < running[27:].min()

# %% [markdown]
# Up to layer 22 many small terms add up to −1.5, the wrong side. Layer 23 alone turns it to 2.5. Layers 24 and 25 take half a
# logit back, and the last layer adds 1.9. If one asks for the layer from which the sum *stays* above half of its end, the
# answer is not 23 but 27.
#
# ### Exercise 12.2 The layer where it turns
#
# Difficulty 2 of 5 · 10 minutes · needs the running sum above


# %% kind="exercise" id="12.2"
@exercise("12.2")
def turning_layer(effects: Float[Tensor, "layer"], start: float) -> int:
    """The first layer after which the running sum is above half of its final value, and stays above it.

    start: what the embedding and constants give, before layer 0. The final value is positive.
    """
    # >>> solution
    running = start + effects.cumsum(0)
    below = (running <= running[-1] / 2).nonzero()[:, 0]
    return int(below[-1]) + 1 if len(below) else 0
    # <<< solution


# %% kind="check"
check(turning_layer)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# It is easier to find the last layer after which the sum is still at or below half.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# `start + effects.cumsum(0)` is the running sum after each layer. `(running <= running[-1] / 2).nonzero()` lists the
# layers at or below half. The layer after the last of them is the answer; if there is none, it is layer 0.
#
# </details>


# %% kind="wrong" id="12.2" expects="adds most"
@exercise("12.2")
def turning_layer(effects, start):
    return int(effects.argmax())


# %% kind="wrong" id="12.2" expects="One layer too far"
@exercise("12.2")
def turning_layer(effects, start):
    running = torch.cat([torch.tensor([start]), start + effects.cumsum(0)])
    below = (running <= running[-1] / 2).nonzero()[:, 0]
    return int(below[-1]) + 1


# %% kind="wrong" id="12.2" expects="Where is `start`"
@exercise("12.2")
def turning_layer(effects, start):
    running = effects.cumsum(0)
    below = (running <= running[-1] / 2).nonzero()[:, 0]
    return int(below[-1]) + 1 if len(below) else 0


# %% kind="wrong" id="12.2" expects="falls below half again"
@exercise("12.2")
def turning_layer(effects, start):
    running = start + effects.cumsum(0)
    return int((running > running[-1] / 2).nonzero()[0])


# %% [markdown]
# ## Head by head
#
# What an attention layer writes is a sum over its heads: what each head gathered (`z`), times its own slice of W_O. So the
# term of a layer splits once more.
#
# ### Exercise 12.3 The heads of a layer
#
# Difficulty 2 of 5 · 10 minutes · needs notebook 02, head outputs


# %% kind="exercise" id="12.3"
@exercise("12.3")
def head_effects(
    z: Float[Tensor, "pos head d_head"],
    W_O: Float[Tensor, "head d_head d_model"],
    direction: Float[Tensor, "d_model"],
    scale: float,
) -> Float[Tensor, "head"]:
    """What each head of one layer writes along `direction` at the last position, divided by the norm's scale."""
    # >>> solution
    written = torch.einsum("hd,hdm->hm", z[-1], W_O)
    return written @ direction / scale
    # <<< solution


# %% kind="check"
check(head_effects)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# The answer is read at the last position only: `z[-1]`, one row for each head.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# Head h writes `z[-1, h] @ W_O[h]`. `torch.einsum("hd,hdm->hm", z[-1], W_O)` does it for all heads. Then the direction and
# the scale, as before.
#
# </details>


# %% [markdown]
# ## The library, and TransformerLens
#
# `ml.direct_logit_attribution` calls TransformerLens' function of the same name, adds neurons and single layers, keeps
# every prompt's numbers for intervals, and says what the terms must add up to. By hand, library and TransformerLens agree:

# %%
from transformer_lens.tools.analysis import direct_logit_attribution

theirs = direct_logit_attribution(model, base[:1], right, wrong, unit="component")
components = ml.direct_logit_attribution(model, base[:1], right, wrong)
print(components.summary())

# %% kind="assert"
assert len(components.values) == 62 == len(terms) + 1
assert (theirs.attribution[:, 0] - terms).abs().max() < 1e-4
assert (components.values[:-1] - terms).abs().max() < 1e-4 and abs(components.values[-1]) < 1e-6
z = cache["z", 23][0, -1]
layer_23 = torch.einsum("hd,hdm->hm", z, model.W_O[23].detach()) @ direction / scale
assert (layer_23 - heads.per_prompt[0, 23]).abs().max() < 1e-4
assert (layer_23.sum() - terms[list(parts).index("attention 23")]).abs() < 1e-4

# %% [markdown]
# (The library's 62nd term is for constants. It is zero in this model.)
#
# One warning that TransformerLens gives too: all this needs norms that are folded into the weights, as `ml.load` does it.
# Unfolded, the last norm has a weight for each coordinate. By hand one easily forgets it, and no error says so.
#
# ## For the answer, or against its rival?
#
# A difference can grow in two ways: the right name goes up, or the wrong name goes down. And a head that raises *all*
# names says nothing about this sentence. So compare each head's effect on a name with its mean effect on twelve names.

# %%
names = sorted({name for couple in couples for name in couple})
columns = model.W_U[:, [ml.single_token(model, " " + name) for name in names]].detach()
with torch.no_grad():
    clean, cache = model.run_with_cache(base, names_filter=ml.only("hook_z", "ln_final.hook_scale"))
    z = torch.stack([cache["z", layer][:, -1] for layer in range(model.cfg.n_layers)])
    # l layer, b prompt (of the batch), h head, d d_head, m d_model, n name
    effect = torch.einsum("lbhd,lhdm,mn->blhn", z, model.W_O, columns)
    effect = effect / cache["ln_final.hook_scale"][:, -1, 0, None, None, None]
for_answer = torch.stack([effect[row, ..., names.index(a.strip())] for row, a in enumerate(answers)])
for_rival = torch.stack([effect[row, ..., names.index(r.strip())] for row, r in enumerate(rivals)])
mean = effect.mean(-1)  # over the names
shown = [(23, 3), (29, 1), (23, 0), (29, 0), (24, 4)]
split = torch.stack([torch.stack([(of - mean).mean(0)[h] for of in (for_answer, for_rival)]) for h in shown])
labels = {"head": [f"{layer}.{head}" for layer, head in shown], "name": ["right name", "wrong name"]}
ml.Scores(split, ("head", "name"), "effect, less the mean over names (logits)", labels).plot()

# %% kind="assert"
claim(model, "23.3 on the right name", split[0, 0], says=0, within=0.15)
claim(model, "23.3 on the wrong name", split[0, 1], says=-2.15, within=0.15)
claim(model, "29.1 on the right name", split[1, 0], says=1.5, within=0.15)
claim(model, "23.0 on the right name", split[2, 0], says=1.15, within=0.15)
claim(model, "23.0 on the wrong name", split[2, 1], says=0.37, within=0.15)
assert len(names) == 12

# %% [markdown]
# The strongest head does not speak for the answer. Compared with the average name, 23.3 leaves the right one where it is
# and pushes the *wrong* one down by 2.15: it speaks against the name that was there twice. 23.0 raises both above the
# average, the right one more.
#
# ### Exercise 12.4 For and against
#
# Difficulty 1 of 5 · 5 minutes · needs the cell above


# %% kind="exercise" id="12.4"
@exercise("12.4")
def for_and_against(effects: Float[Tensor, "head name"], answer: int, rival: int) -> Float[Tensor, "head 2"]:
    """Each head's effect on the answer and on the rival, both less the head's mean effect over all names.

    answer, rival: which columns they are. First column of the result: the answer; second: the rival.
    """
    # >>> solution
    centred = effects - effects.mean(1, keepdim=True)
    return centred[:, [answer, rival]]
    # <<< solution


# %% kind="check"
check(for_and_against)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Which axis holds the names? The mean goes over that one, separately for each head.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# `effects.mean(1, keepdim=True)` is one mean for each head, in a shape that can be subtracted. Then take the two columns.
#
# </details>


# %% [markdown]
# ## How it misleads
#
# A direct effect is what a part says. Is it also what the model would lose without the part? An **ablation** tells: replace
# a head's output by its mean over the 16 sentences, at every position, and measure the fall of the metric. Guess first:
# head 20.0 has a direct effect of −0.03. How much does the metric fall without it?

# %% kind="predict"
predict("12.p", 0.0)


# %%
def without(*removed):
    """Hooks that give these heads their mean output over the sentences."""
    mean = {
        layer: cache["z", layer].mean(0, keepdim=True).expand_as(cache["z", layer]) for layer, _ in removed
    }
    return [
        hook for at, h in removed for hook in ml.replace_with(f"blocks.{at}.attn.hook_z", mean[at], head=h)
    ]


chosen = [(23, 3), (29, 1), (29, 0), (23, 0), (23, 1), (24, 4), (20, 0), (19, 2), (17, 4)]
fall = []
for head in chosen:
    with torch.no_grad(), ml.intervene(model, without(head)):
        fall.append((metric(clean) - metric(model(base))).mean())
direct = torch.stack([heads.values[head] for head in chosen])
labels = {
    "head": [f"{layer}.{head}" for layer, head in chosen],
    "measure": ["direct effect", "fall without it"],
}
ml.Scores(
    torch.stack([direct, torch.stack(fall)], 1),
    ("head", "measure"),
    "what a head says, and what is lost without it (logits)",
    labels,
).plot()

# %% kind="compare"
reveal("12.p", f"{fall[6]:.1f}")

# %% kind="assert"
claim(model, "fall without 23.3", fall[0], says=2.5, within=0.15)
claim(model, "direct effect of 20.0", direct[6], says=-0.03, within=0.05)
claim(model, "fall without 20.0", fall[6], says=0.81, within=0.15)
claim(model, "fall without 19.2", fall[7], says=0.49, within=0.1)
claim(model, "fall without 17.4", fall[8], says=0.38, within=0.1)
assert direct[7:].abs().max() < 0.05
claim(model, "direct effect of 23.0", direct[3], says=0.78, within=0.05)
claim(model, "fall without 23.0", fall[3], says=-0.09, within=0.1)

# %% [markdown]
# Two failures, in both directions.
#
# *Indirect effects.* Without 20.0 the metric falls by 0.8, though it says next to nothing itself. 19.2 and 17.4 are alike:
# without them it falls by 0.5 and 0.4. Such heads can only act through later parts that read what they write.
#
# *Self-repair.* 23.0 speaks for the right name with 0.78 logits. Without it the metric does not fall at all.

# %% [markdown]
# **Question 12.b.** Where did the effect of 20.0 go in the picture of direct effects?
#
# - **a** It is in the terms of the later heads that read what 20.0 wrote.
# - **b** There is none: its fall is noise of the measurement.
# - **c** It is lost, since the terms do not quite add up.

# %% kind="quiz"
quiz("12.b", "a")

# %% [markdown]
# ### Who repairs?
#
# Remove four heads of layer 23 that raise names, 23.0, 23.1, 23.2 and 23.7 (notebook 41 shows that they copy them), and
# attribute again.

# %%
copiers = [(23, 0), (23, 1), (23, 2), (23, 7)]
with ml.intervene(model, without(*copiers)):
    after = ml.direct_logit_attribution(model, base, answers, rivals, unit="head")
    with torch.no_grad():
        total_fall = (metric(clean) - metric(model(base))).mean()
change = ml.Scores.over_prompts(
    after.per_prompt - heads.per_prompt, heads.dims, "change of direct effect (logits)"
)
print(f"they said {sum(heads.values[head] for head in copiers):.2f}; the metric falls by {total_fall:.2f}")
change.top(6)

# %% kind="assert"
claim(model, "direct effect of the four", sum(heads.values[head] for head in copiers), says=1.53, within=0.1)
claim(model, "fall without the four", total_fall, says=0.04, within=0.15)
claim(model, "24.4 before", heads.values[24, 4], says=-0.39, within=0.05)
claim(model, "change of 23.0", change.values[23, 0], says=-0.69, within=0.1)
growth = change.values[23, 3] / heads.values[23, 3]
claim(model, "growth of 23.3's term", growth, says=0.08, within=0.02)
claim(model, "24.4 after", after.values[24, 4], says=0.28, within=0.08)

# %% [markdown]
# The four heads say 1.53 logits together, and without them the metric hardly moves. (They do not lose all of it, since their
# means still say a little: 23.0 loses 0.69 of its 0.78.) About half of the loss is made good by one head in the next
# layer: 24.4 goes from −0.39 to +0.28. Notebook 41 follows this thread.
#
# The list also shows 23.3, which is in the same layer and cannot read the removed heads. Its term grows by 8 %. Without
# the four heads the stream is shorter, and the last norm divides by less. So every part that writes what it wrote before
# now has a term larger by about as much. That too is repair.
#
# ### Exercise 12.5 Lost and repaired
#
# Difficulty 2 of 5 · 10 minutes · needs the cell above


# %% kind="exercise" id="12.5"
@exercise("12.5")
def lost_and_repaired(
    before: Float[Tensor, "layer head"], after: Float[Tensor, "layer head"], removed: list[tuple[int, int]]
) -> tuple[float, float]:
    """(lost, repaired): the direct effect that the removed heads lost, and what all other heads gained.

    Lost is before minus after: what the removed heads still say afterwards is not lost. Both are positive in the
    usual case. Repaired minus lost is the change of the sum.
    """
    # >>> solution
    change = after - before
    lost = -sum(change[head] for head in removed)
    return float(lost), float(change.sum() + lost)
    # <<< solution


# %% kind="check"
check(lost_and_repaired)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Start with `after - before`. Some entries belong to removed heads, all others to the rest.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# `change[head]` with a tuple (layer, head) is one entry. Lost is minus the sum over the removed ones; repaired is the sum
# over all, less the sum over the removed ones.
#
# </details>


# %% kind="wrong" id="12.5" expects="counts the removed heads too"
@exercise("12.5")
def lost_and_repaired(before, after, removed):
    change = after - before
    return float(-sum(change[head] for head in removed)), float(change.sum())


# %% kind="wrong" id="12.5" expects="said before"
@exercise("12.5")
def lost_and_repaired(before, after, removed):
    change = after - before
    return float(sum(before[head] for head in removed)), float(change.sum() - sum(change[h] for h in removed))


# %% kind="wrong" id="12.5" expects="before minus after"
@exercise("12.5")
def lost_and_repaired(before, after, removed):
    change = after - before
    gone = sum(change[head] for head in removed)
    return float(gone), float(change.sum() - gone)


# %% [markdown]
# ## Neurons
#
# The same sum goes one step further: what an MLP writes is a sum over its 1,536 neurons, each active a little or a lot,
# each with its own row of W_out.

# %%
neurons = ml.direct_logit_attribution(model, base, answers, rivals, unit="neuron")
neurons.top(6)

# %% kind="assert"
assert neurons.gap.abs().max() < 1e-3
claim(model, "all heads together", heads.values.sum(), says=2.73, within=0.1)
claim(model, "all neurons together", neurons.values.sum(), says=2.37, within=0.1)
claim(model, "L26N1262", neurons.values[26, 1262], says=0.41, within=0.05)

# %% [markdown]
# All neurons together add 2.37 logits, and all heads 2.73. But no single neuron adds or takes more than about half a logit: the
# heads speak in a few large pieces, the neurons in thousands of small ones.
#
# ## The paper's figures and yours
#
# A head that copies a name to the end is called a **name mover**. In GPT-2 small the strongest is head 9.9. Its direct
# effect promised that the logit difference of 3.55 would fall to 0.57 without it. It fell to 2.99. (That was with zeros
# at the last position.) Here is the same for 23.0, with its mean at every position. (29.1 raises the right name more,
# but it looks at no name and repeats what heads such as 23.3 wrote, as notebook 41 shows.)

# %% kind="assert"
without_mover = (metric(clean).mean() - fall[3]).item()
yours = {
    "logit difference (logits)": metric(clean).mean().item(),
    "without the strongest name mover, as its direct effect promises (logits)": (
        metric(clean).mean() - direct[3]
    ).item(),
    "without the strongest name mover, measured (logits)": without_mover,
}
claim(model, "measured without 23.0", without_mover, says=5.2, within=0.15)
ml.reference.table("12", yours)

# %% [markdown]
# ## Recap
#
# | term | meaning | here | TransformerLens |
# |---|---|---|---|
# | direct logit attribution | a logit as a sum with one term a part | `ml.direct_logit_attribution` | `direct_logit_attribution` |
# | logit direction | difference of two columns of W_U | `W_U[:, a] - W_U[:, b]` | `tokens_to_residual_directions` |
# | frozen norm | the last scale is held at its value | `cache["ln_final.hook_scale"]` | `apply_ln_to_stack` |
# | indirect effect | what a part makes later parts say | ablation, patching | |
# | self-repair | other parts make good what one part lost | exercise 12.5 | |
# | name mover | a head that copies a name to the end | 23.0 | |
