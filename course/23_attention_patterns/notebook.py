# %% [markdown]
# # 23 Attention patterns
#
# **Question:** who looks where, and which of these looks matter?
#
# After this notebook you will be able to
#
# - score every head for the well-known patterns: previous token, duplicate token, induction, sink,
# - read from the weights what a head looks for (QK circuit) and what it writes (OV circuit),
# - tell a head that looks the part from a head that the model needs.
#
# Time: 85 minutes. The cells take about 80 seconds in all. Memory: 2.0 GB.
# Download: none, once the model is here (93 MB). Before: notebooks 02 and 03.

# %% kind="setup"
# (written by the build)

# %% [markdown]
# ## The picture
#
# Fifty random tokens, then the same fifty again. The first half cannot be guessed. The second can, by whoever notices that
# it has all been said. Eight such texts. At each position the **loss**: minus the log-probability of the token that really comes next. 0 is
# certain; saying that all tokens of the vocabulary are equally likely costs 10.8. (The thin bars are 95 % intervals over the eight texts: notebook 24.)

# %%
tokens = ml.repeated_tokens(model, length=50, batch=8)
with torch.no_grad():
    losses = model(tokens, return_type="loss", loss_per_token=True)
curve = ml.Scores.over_prompts(losses, ("position",), "loss of the next token (nats)", signed=False)
curve.plot()

# %% kind="assert"
claim(model, "loss in the first half", losses[:, :50].mean(), says=14.2, within=0.3)
claim(model, "loss in the second half", losses[:, 51:].mean(), says=2.6, within=0.3)
claim(
    model, "loss of saying all equally likely", torch.tensor(model.cfg.d_vocab).log(), says=10.8, within=0.05
)
assert losses[:, 50].mean() > 10  # the first token of the second half comes as a surprise too

# %% [markdown]
# From 14.2 nats to 2.6, within one text. (14.2 is worse than 10.8: the model expects language, and is wrong with confidence.)
# Nothing was trained: the model learns from its context. Somewhere in it, something
# finds the earlier copy of the present token and looks at what came next. That is **induction** (Elhage et al. 2021), and
# heads that do it can be found by their attention patterns alone.

# %%
induction = ml.head_scores(model, tokens, "induction")
induction.plot(height=560)

# %%
best = induction.top(5).place.tolist()
induction.top(6)

# %% kind="assert"
claim(model, "induction score of 18.6", induction.values[18, 6], says=0.88, within=0.03)
claim(model, "induction score of 23.2", induction.values[23, 2], says=0.53, within=0.05)
assert set(best) == {"18.6", "17.3", "17.4", "17.5", "18.7"}

# %% [markdown]
# Head 18.6 gives 88 % of its attention to the token that followed the earlier copy. The next four are all in layers 17 and 18.
#
# ## By hand
#
# A pattern has one row for each position that looks (query) and one column for each that is looked at (key). The simplest score: how much does a
# head look at the token before?
#
# ### Exercise 23.1 Previous token
#
# Difficulty 1 of 5 · 5 minutes · needs the paragraph above


# %% kind="exercise" id="23.1"
@exercise("23.1")
def previous_token_scores(pattern: Float[Tensor, "batch head query key"]) -> Float[Tensor, "head"]:
    """How much attention each head gives to the token before, averaged over positions and texts.

    Position 0 has no token before it and does not count.
    """
    # >>> solution
    return pattern.diagonal(offset=-1, dim1=-2, dim2=-1).mean((0, -1))
    # <<< solution


# %% kind="check"
check(previous_token_scores)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# The places wanted are (query 1, key 0), (query 2, key 1) and so on: a diagonal.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# `pattern.diagonal(offset=-1, dim1=-2, dim2=-1)` has shape [batch, head, query − 1]. Take the mean over the first and the
# last axis.
#
# </details>


# %% kind="wrong" id="23.1" expects="one number for each head"
@exercise("23.1")
def previous_token_scores(pattern):
    return pattern.diagonal(offset=-1, dim1=-2, dim2=-1).mean()


# %% [markdown]
# A head that always looks one back has a bright line just below the diagonal. One head, one text:

# %%
with torch.no_grad():
    _, cache = model.run_with_cache(tokens, names_filter=lambda name: name.endswith("hook_pattern"))
pattern = cache["pattern", 16]
line = pattern[0, 0].diagonal(offset=-1)
print(f"text 0, head 16.0: {line.mean():.3f} of its attention goes to the token before")

# %% kind="assert"
claim(model, "16.0 looks at the token before", line.mean(), says=0.89, within=0.03)
assert tuple(pattern.shape) == (8, 9, 101, 101)

# %% [markdown]
# ### Exercise 23.2 Induction
#
# Difficulty 3 of 5 · 10 minutes · needs 23.1
#
# The texts are: a first token, `length` random tokens, the same tokens again. Position `length + 1` begins the second half.


# %% kind="exercise" id="23.2"
@exercise("23.2")
def induction_scores(pattern: Float[Tensor, "batch head query key"], length: int) -> Float[Tensor, "head"]:
    """How much attention each head gives to the token that *followed* the earlier copy of the present one.

    Averaged over all positions of the second half, and over texts.
    """
    # >>> solution
    queries = torch.arange(length + 1, 2 * length + 1)
    return pattern[:, :, queries, queries - length + 1].mean((0, -1))
    # <<< solution


# %% kind="check"
check(induction_scores)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# The earlier copy of the token at position q stands at q − length. Which position came next?
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# Queries are the positions of the second half, `torch.arange(length + 1, 2 * length + 1)`. Keys are `queries - length + 1`.
# `pattern[:, :, queries, keys]` picks one place for each pair.
#
# </details>


# %% [markdown]
# ## The library, and TransformerLens
#
# `ml.head_scores` takes any texts and finds the places from the tokens: "previous token", "duplicate token", "induction",
# "sink". TransformerLens has `detect_head`. It divides by all positions, also those that have no such place (for "previous token",
# position 0); apart from that the two agree, as the line below the table checks.

# %%
from transformer_lens.head_detector import detect_head

previous = ml.head_scores(model, tokens, "previous token")
text = model.tokenizer.decode(tokens[0, 1:].tolist())
theirs = detect_head(model, text, "previous_token_head", error_measure="mul")
previous.top(6)

# %% kind="assert"
ours = ml.head_scores(model, model.to_tokens(text), "previous token").values
length = model.to_tokens(text).shape[1]
assert (ours * (length - 1) / length - theirs.cpu()).abs().max() < 2e-3
claim(model, "previous-token score of 16.0", previous.values[16, 0], says=0.89, within=0.03)
claim(model, "previous-token score of 11.1", previous.values[11, 1], says=0.83, within=0.04)
assert (pattern[:, 0].diagonal(-1, 1, 2).mean() - previous.values[16, 0]).abs() < 1e-3

# %% [markdown]
# To see patterns, hover over a token, or click a head to keep it. Three heads on a small text that says six words twice. (Its first
# "lamp" has no blank before it and becomes two tokens. Destination is the query, source the key.)

# %%
words = model.to_tokens("lamp apple river stone cloud music lamp apple river stone cloud music")
with torch.no_grad():
    _, small = model.run_with_cache(words)
chosen = [(16, 0), (18, 6), (14, 3)]
patterns = torch.stack([small["pattern", layer][0, head] for layer, head in chosen])
ml.attention_view(patterns, model.to_str_tokens(words[0]), ["16.0", "18.6", "14.3"])

# %% kind="assert"
names = model.to_str_tokens(words[0])
assert names[1:3] == ["l", "amp"] and names.count(" lamp") == 1
river = len(names) - names[::-1].index(" river") - 1
assert names[int(patterns[1, river].argmax())] == " stone"  # 18.6 at the second "river"
assert (
    names[int(patterns[0, river].argmax())] == " apple"
    and names[int(patterns[2, river].argmax())] == " river"
)

# %% [markdown]
# At the second " river", head 16.0 looks one back (" apple"), 14.3 at the first " river", and 18.6 at " stone", which came after
# it. 18.6 looks at what is to be said next.
#
# There are 270 heads. Choose any, and guess its kind before you read on: one back, the same word, the word after, or nowhere (the first token)?

# %%
from mechlab.pictures.widgets import pattern_explorer

pattern_explorer(model, words, layer=16, head=0)

# %% [markdown]
# ## Predict: does looking matter?
#
# Heads 16.0 and 11.1 score 0.89 and 0.83 on "previous token". Take each away alone, by giving it its mean over the texts
# (notebook 24 says more; four of the texts, to save time). What happens to the loss of 2.6 in the second half?
#
# - **a** Both hurt about equally: they do the same thing.
# - **b** Neither hurts: each stands in for the other.
# - **c** Only one of them hurts.

# %% kind="predict"
predict("23.p", "c")

# %%
few = tokens[:4]
ids = few[:, 1:, None]


def second_half(logits):
    # from entry 51 on: entry 50 is the first token of the second half, which nothing announces
    return -logits[:, :-1].log_softmax(-1).gather(-1, ids)[:, 51:, 0].mean(1)


parts = [(16, 0), (11, 1), (2, 1), (18, 6)]
effects = ml.ablation_effects(model, few, second_half, parts)
change = dict(zip(effects.labels["part"], effects.values, strict=True))
letter = "bca"[sum(change[head] > 0.5 for head in ("16.0", "11.1"))]
effects.plot(title="change of the loss in the second half (nats), head set to its mean")
reveal(
    "23.p",
    f"{letter}. The loss grows by {change['16.0']:.2f} without 16.0, by {change['11.1']:.2f} without 11.1",
)

# %% kind="assert"
claim(model, "change of the loss without 16.0", change["16.0"], says=4.2, within=0.5)
claim(model, "change of the loss without 11.1", change["11.1"], says=0.0, within=0.15)
claim(model, "change of the loss without 18.6", change["18.6"], says=1.0, within=0.25)

# %% [markdown]
# <details><summary>What we saw</summary>
#
# Two heads with nearly the same pattern, and the whole effect is in one of them. Without 11.1 nothing happens, on these texts. (That is one task: nobody asked what 11.1 is worth on others.) **A pattern says
# where a head looks, not whether anyone reads what it writes.** To find out why 16.0 and not 11.1, look at the weights.
#
# </details>
#
# ## What a head looks for: the QK circuit
#
# An induction head at the second " river" must find " stone". Its query comes from " river". The key at " stone" must say
# "the token before me was river". Only an earlier head that looks one back can have written that there. Which key suits which query
# is up to the matrices W_Q and W_K: the **QK circuit** of a head.
#
# Take 40 tokens. For each, let a later head make a *key* from what 16.0 writes about it, and a *query* from the token itself. The
# **matching score** is the share of the 40 queries whose best key is the one of the same token; chance is 1 in 40. Then the same with other heads in
# the place of 16.0: the eight that look most at the token before. (A token is its stream after layer 0, in a text of its own. Rotation is left out.)

# %%
some = tokens[0, 1:51].unique()[:40]
matched = [(17, 3), (17, 4), (17, 5), (18, 6), (18, 7), (18, 8)]
lookers = previous.top(8).place.tolist()
through = {
    name: ml.matching_scores(model, some, through=tuple(map(int, name.split(".")))) for name in lookers
}
table = torch.stack([torch.stack([score.values[head] for head in matched]) for score in through.values()])
labels = {"keys made by": lookers, "head": [f"{layer}.{head}" for layer, head in matched]}
ml.Scores(table, ("keys made by", "head"), "matching score (share of 40 tokens)", labels, signed=False).plot()

# %% kind="assert"
first, others = lookers.index("16.0"), [n for n, name in enumerate(lookers) if name != "16.0"]
claim(model, "17.3 matches through 16.0", table[first, 0], says=0.98, within=0.06)
claim(model, "18.8 matches through 16.0", table[first, 5], says=0.57, within=0.1)
claim(model, "induction score of 18.8", induction.values[18, 8], says=0, within=0.03)
claim(model, "best match through the other seven", table[others].max(), says=0.05, within=0.08)
assert through["16.0"].top(5).place.isin(best).all()

# %% [markdown]
# Of all later heads, the five with the highest matching scores through 16.0 are the five with the highest induction scores. One number is made
# from patterns on texts; the other from the weights, on single tokens. Keys made by the other seven mean nothing to these heads.
# Elhage et al. call it **K-composition**. So far it is a guess from weights; patch it. Take 16.0 away, keep the keys of layers 17 and 18, and put *only*
# those that the induction heads use (key head 1 of layer 17, 2 of layer 18) into an intact run:

# %%
read = [("blocks.17.attn.hook_k", 1), ("blocks.18.attn.hook_k", 2)]
with torch.no_grad(), ml.intervene(model, ml.ablation_hooks(model, few, [(16, 0)])):
    _, gone = model.run_with_cache(few, names_filter=[name for name, _ in read])
with torch.no_grad():
    cost, intact = {}, second_half(model(few))
for what, chosen in (
    ("their two keys", read),
    ("the other four", [(n, h) for n, own in read for h in {0, 1, 2} - {own}]),
):
    hooks = [hook for name, head in chosen for hook in ml.replace_with(name, gone[name], head=head)]
    with torch.no_grad(), ml.intervene(model, hooks):
        cost[what] = (second_half(model(few)) - intact).mean().item()
print({what: round(x, 2) for what, x in cost.items()}, "nats; 16.0 itself", round(change["16.0"].item(), 2))
claim(model, "cost of 16.0 through the two keys", cost["their two keys"], says=4.4, within=0.5)
assert abs(cost["the other four"]) < 0.2

# %% [markdown]
# The whole effect of 16.0 goes through these two keys.
#
# One key serves several of them. This model has 9 query heads a layer and only 3 key/value heads (**grouped-query attention**): 17.3, 17.4 and
# 17.5 share a key, and so do 18.6 and 18.7. They are not five inventions. Nor is the key enough: 18.8 has the same
# key as 18.6 and 18.7 and matches on half of the tokens, but its induction score is about 0.
#
# ### Exercise 23.3 Matching
#
# Difficulty 2 of 5 · 5 minutes · needs the paragraph above


# %% kind="exercise" id="23.3"
@exercise("23.3")
def matching_share(queries: Float[Tensor, "token d_head"], keys: Float[Tensor, "token d_head"]) -> float:
    """For what share of the tokens does the query suit its own key best, among all keys?"""
    # >>> solution
    scores = queries @ keys.T
    return (scores.argmax(1) == torch.arange(len(queries))).float().mean().item()
    # <<< solution


# %% kind="check"
check(matching_share)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# One inner product for each pair of query and key. Then, for each query: which key has the largest?
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# `queries @ keys.T` has a row for each query. `argmax(1)` gives the best key. It is right if it equals the row's number.
#
# </details>


# %% kind="wrong" id="23.3" expects="for each key"
@exercise("23.3")
def matching_share(queries, keys):
    return ((queries @ keys.T).argmax(0) == torch.arange(len(queries))).float().mean().item()


# %% kind="wrong" id="23.3" expects="longer key"
@exercise("23.3")
def matching_share(queries, keys):
    unit = keys / keys.norm(dim=-1, keepdim=True)
    return ((queries @ unit.T).argmax(1) == torch.arange(len(queries))).float().mean().item()


# %% kind="wrong" id="23.3" expects="softmax"
@exercise("23.3")
def matching_share(queries, keys):
    return (queries @ keys.T).softmax(-1).diagonal().mean().item()


# %% [markdown]
# ## What a head writes: the OV circuit
#
# Suppose a head looks at one token only. Which tokens does it make likelier? That is up to its matrices W_V and W_O: the **OV
# circuit**. If it is the same token, the head **copies**. For each
# head: the share of 20 tokens that come out among the five likeliest. Chance is 5 in 49,152.

# %%
copying = ml.copying_scores(model, some[:20])
copying.top(6)

# %% kind="assert"
claim(model, "best copying score", copying.values.max(), says=0.45, within=0.11)
claim(model, "copying score of 18.6", copying.values[18, 6], says=0.05, within=0.06)
claim(model, "copying score of 17.3", copying.values[17, 3], says=0.0, within=0.06)
claim(model, "copying score of 23.2", copying.values[23, 2], says=0.45, within=0.11)
assert copying.top(5).place.str.startswith(("23", "24")).all()

# %% [markdown]
# By this measure the copiers sit in layers 23 and 24, and the induction heads of 17 and 18 do not copy. But look at how it was made: from each token's
# stream *after layer 0*. A head of layer 17 never reads that. It reads the stream that enters layer 17. So ask again, on the texts and with what each head really
# writes there: at how many positions of the second half is the token that comes next among the five that it makes likeliest?

# %%
asked = [*matched, (23, 0), (23, 1), (23, 2), (23, 7), (24, 3), (24, 4)]
with torch.no_grad():
    _, cache = model.run_with_cache(
        tokens, names_filter=lambda name: name.endswith("hook_z"), stop_at_layer=25
    )


def writes_next(layer, head):
    """At what share of positions the next token is among the five that the head makes likeliest."""
    with torch.no_grad():
        logits = model.ln_final(cache["z", layer][:, 51:100, head] @ model.W_O[layer, head]) @ model.W_U
    own = logits.gather(-1, tokens[:, 52:101, None])
    return ((logits > own).sum(-1) < 5).float().mean()


both = torch.stack([torch.stack([copying.values[head], writes_next(*head)]) for head in asked]).T
labels = {"read from": ["layer 0", "its own layer, on the texts"], "head": [f"{a}.{b}" for a, b in asked]}
ml.Scores(both, ("read from", "head"), "copying (share of tokens)", labels, signed=False).plot(height=280)

# %% kind="assert"
assert both[1, :6].max() < 0.05 and both[1].argmax() == asked.index((23, 2))
claim(model, "23.2 makes the next token likelier", both[1, asked.index((23, 2))], says=0.32, within=0.06)

# %% [markdown]
# The picture stays, and is sharper. The induction heads find the place, and what they write there does not say the token, as far as the output can read
# it. Of the copiers, 23.2 does it on these texts too, and it has an induction score of its own. So the textbook head, which looks *and* copies, is
# mostly split here. That 17 and 18 find the place *for* the copiers above is a guess until somebody patches the path between them: notebook 41 does.
#
# ### Exercise 23.5 Copying
#
# Difficulty 3 of 5 · 10 minutes · needs the paragraph above


# %% kind="exercise" id="23.5"
@exercise("23.5")
def copying_share(
    streams: Float[Tensor, "token d_model"],
    W_V: Float[Tensor, "d_model d_head"],
    W_O: Float[Tensor, "d_head d_model"],
    W_U: Float[Tensor, "d_model d_vocab"],
    ids: Int[Tensor, "token"],
    k: int,
) -> float:
    """For what share of the tokens is the token's own id among the k largest logits of what the head writes?

    streams: the (normed) stream of each token; ids: the token ids, in the same order. Dividing by a norm's scale would
    not change which logits are largest.
    """
    # >>> solution
    best = (streams @ W_V @ W_O @ W_U).topk(k).indices
    return (best == ids[:, None]).any(1).float().mean().item()
    # <<< solution


# %% kind="check"
check(copying_share)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# What the head writes about a token is its stream, times W_V, times W_O. W_U turns it into logits.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# `.topk(k).indices` has shape [token, k]. Compare it with `ids[:, None]`; `any(1)` says whether one of the k is right.
#
# </details>


# %% kind="wrong" id="23.5" expects="never goes through the head"
@exercise("23.5")
def copying_share(streams, W_V, W_O, W_U, ids, k):
    best = (streams @ W_U).topk(k).indices
    return (best == ids[:, None]).any(1).float().mean().item()


# %% kind="wrong" id="23.5" expects="row numbers"
@exercise("23.5")
def copying_share(streams, W_V, W_O, W_U, ids, k):
    best = (streams @ W_V @ W_O @ W_U).topk(k).indices
    return (best == torch.arange(len(ids))[:, None]).any(1).float().mean().item()


# %% kind="wrong" id="23.5" expects="anybody's"
@exercise("23.5")
def copying_share(streams, W_V, W_O, W_U, ids, k):
    best = (streams @ W_V @ W_O @ W_U).topk(k).indices
    return torch.isin(best, ids).any(1).float().mean().item()


# %% kind="wrong" id="23.5" expects="the very first"
@exercise("23.5")
def copying_share(streams, W_V, W_O, W_U, ids, k):
    return ((streams @ W_V @ W_O @ W_U).argmax(-1) == ids).float().mean().item()


# %% [markdown]
# ## All of them together
#
# Take away the five induction heads at once. Beside it, twenty draws of five other heads of the same layers. Then take away the one value
# head that 17.3, 17.4 and 17.5 share.

# %%
five = [(17, 3), (17, 4), (17, 5), (18, 6), (18, 7)]
gone = ml.ablate_together(model, few, second_half, five, draws=20)
shared = ml.ablate_together(model, few, second_half, [(17, 1)], unit="kv_head", draws=2)
start, end = losses[:, :50].mean(), losses[:, 51:].mean()
worst = gone.random.mean(1).max()
print("five heads:", gone, f"; most harmful of the twenty draws: {worst:.1f}")
print("value head 17.1 of 17.3, 17.4, 17.5:", shared)

# %% kind="assert"
claim(model, "loss without five induction heads", gone.after.mean(), says=7.6, within=0.6)
claim(model, "loss without five others, the most harmful draw", worst, says=2.75, within=0.15)
claim(model, "loss without value head 17.1", shared.after.mean(), says=3.1, within=0.3)
assert (gone.after.mean() - end) / (start - end) > 0.4

# %% [markdown]
# From 2.6 to 7.6, more than 40 % of the way back to not knowing. The most harmful of twenty random sets costs 0.2: the effect belongs to these five.
# The three heads of layer 17 alone cost little, much less than the single head 16.0 that feeds all five.
#
# ## Does it learn from natural text?
#
# One number sums up learning from the context: the **in-context learning score**, the loss at a late token minus the loss at an early one. Olsson et al.
# measure it on natural text, at tokens 500 and 50, and find about −0.4 nats once a model has induction heads. Our texts cannot give that number: nothing but the copy
# helps there. It needs long natural texts. Python brings some along, the help pages of the language. One token is a chancy measure, so take the 21 around each place.

# %%
from importlib import import_module

from mechlab.statistics import estimate

topics = import_module("pydoc_data.topics").topics

pages = [model.to_tokens(topics[page], truncate=False)[0] for page in sorted(topics)]
pages = [page[:512] for page in pages if len(page) >= 512]
natural = torch.stack(pages[:: len(pages) // 16][:16])
with torch.no_grad():
    of_token = torch.cat(
        [model(some_, return_type="loss", loss_per_token=True) for some_ in natural.split(4)]
    )
score = of_token[:, 489:510].mean(1) - of_token[:, 39:60].mean(1)  # tokens 490 to 510, and 40 to 60
print(f"loss around token 500 minus loss around token 50, 16 pages: {estimate(score)} nats")
with torch.no_grad():  # the same late tokens, with the 39 tokens before them and no more
    cut = torch.cat([natural[:, :1], natural[:, 450:512]], 1)
    short = model(cut, return_type="loss", loss_per_token=True)[:, 40:61].mean(1)
long_context = of_token[:, 489:510].mean(1) - short
print(f"of this, from the context before: {estimate(long_context)} nats")
low, high = estimate(score).low, estimate(score).high
claim(model, "in-context learning score, natural text", score.mean(), says=-0.9, within=0.3)
assert low < -0.4 < high < 0
claim(model, "the same late tokens, long and short context", long_context.mean(), says=-0.9, within=0.3)
assert estimate(long_context).high < 0

# %% [markdown]
# About −0.9 nats, and the interval over sixteen pages is wide enough to hold the −0.4 of Olsson et al. Late tokens might be
# easier for another reason: a page begins with headings. So ask for the same late tokens with a short context only: nearly all of it is gone. The model does learn from natural context. Whether it is these
# heads that do it here, this number does not say. (Help pages repeat their terms, and the model has most likely been trained on them.)
#
# ## How it misleads
#
# **The sink.** Many heads give most of their attention to position 0.

# %%
sink = ml.head_scores(model, tokens, "sink")
heads_above = (sink.values > 0.5).sum().item()
with torch.no_grad():
    _, values = model.run_with_cache(tokens[:1], names_filter=lambda name: name.endswith("attn.hook_v"))
sizes = torch.stack([values["v", layer][0].norm(dim=-1).mean(-1) for layer in range(model.cfg.n_layers)])
ratio = sizes[:, 0] / sizes[:, 1:].mean(1)
print(f"{heads_above} of 270 heads give more than half of their attention to position 0")
print(f"its value vectors, beside others': {ratio.median():.2f} times as long (median over the layers)")


# %%
def values_gone(pos):
    def zeroed(value, hook):
        return torch.cat([value[:, :pos], torch.zeros_like(value[:, :1]), value[:, pos + 1 :]], dim=1)

    hooks = [(f"blocks.{layer}.attn.hook_v", zeroed) for layer in range(model.cfg.n_layers)]
    with torch.no_grad(), ml.intervene(model, hooks):
        return model(own, return_type="loss", loss_per_token=True)[:, 20:].mean()


own = ml.own_text(model, length=41, count=8)
with torch.no_grad():
    plain = model(own, return_type="loss", loss_per_token=True)[:, 20:].mean()
without = {pos: (values_gone(pos) - plain).item() for pos in (0, 5)}
print(
    f"loss on its own text without the values of position 0: {without[0]:+.2f}, of position 5: {without[5]:+.2f}"
)

# %% kind="assert"
claim(model, "heads with more than half on position 0", heads_above, says=73, within=12)
claim(model, "length of the sink's values beside others", ratio.median(), says=0.25, within=0.1)
claim(model, "loss without the values of position 0", without[0], says=0.7, within=0.2)
assert without[5] < 0.15

# %% [markdown]
# 73 of 270. A bright column at position 0 looks like interest in the first token. The usual reading is that there is nothing else to look at: the values there are (in the median
# layer) a quarter as long, so that a head that looks there writes little. Little is not nothing. Without these values the loss on the model's own text rises
# by 0.7 nats, without those of position 5 hardly. Before you compare patterns, take position 0 out; before you call it a place to rest, ablate it.
#
# **The threshold.** How many induction heads are there? It depends on where one draws the line.

# %%
counts = {line: int((induction.values > line).sum()) for line in (0.2, 0.4, 0.6, 0.8)}
print("heads above each threshold:", counts)

# %% kind="assert"
claim(model, "heads above 0.8", counts[0.8], says=1, within=1)
claim(model, "heads above 0.4", counts[0.4], says=8, within=2)
claim(model, "heads above 0.2", counts[0.2], says=12, within=3)

# %% [markdown]
# One, or eight, or twelve. Show the ranking, not a list.
#
# **The texts.** Each copy in our texts stands exactly as far away as any other.
#
# **Question 23.a.** A head always looks 49 positions back, whatever stands there. What is its induction score on these texts (50 tokens, said twice)?
#
# - **a** About 1 in 50: it does not compare any tokens.
# - **b** About 0.5: it is right in the second half and wrong in the first.
# - **c** 1.

# %% kind="quiz"
quiz("23.a", "c")

# %% [markdown]
# ### Exercise 23.6 Texts that only induction can read
#
# Difficulty 4 of 5 · 25 minutes · needs question 23.a
#
# Design texts on which that head, and others with a simpler rule, score low, and a head that does induction scores high: one that looks so many back; one that looks
# at the copy itself; one that looks at a fixed place from each position; one that looks everywhere alike. Your function gets 200 token ids and returns 8 to
# 32 texts of 20 to 128 tokens (without the model's first token). The check runs them on new ids, with these four heads and with 18.6.


# %% kind="exercise" id="23.6"
@exercise("23.6")
def induction_texts(ids: Int[Tensor, "id"], generator: torch.Generator) -> Int[Tensor, "batch pos"]:
    """Texts made of `ids`, on which a head with a high induction score must have compared tokens."""
    # >>> solution
    texts = []
    for n in range(8):  # another distance in each text
        said = ids[torch.randperm(len(ids), generator=generator)[: 20 + 3 * n]]
        texts.append(said.repeat(5)[:90])
    return torch.stack(texts)
    # <<< solution


# %% kind="check"
check(induction_texts, model=model)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# In our texts the distance from a token to what followed its copy is 49, for every token of every text. What could vary: between texts, or within one?
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# Give each text a stretch of another length and repeat it, cut to one length. Or: say ten short phrases, then the same phrases in another order.
#
# </details>


# %% kind="wrong" id="23.6" expects="back, whatever stands there"
@exercise("23.6")
def induction_texts(ids, generator):
    half = ids[torch.randint(len(ids), (8, 50), generator=generator)]
    return torch.cat([half, half], dim=1)


# %% kind="wrong" id="23.6" expects="one fixed place"
@exercise("23.6")
def induction_texts(ids, generator):
    texts = []
    for _ in range(8):
        phrases = ids[torch.randperm(len(ids), generator=generator)[:40]].view(8, 5)
        texts.append(torch.cat([phrases, phrases[[3, 1, 7, 5, 0, 2, 6, 4]]]).flatten())
    return torch.stack(texts)


# %% kind="wrong" id="23.6" expects="said before"
@exercise("23.6")
def induction_texts(ids, generator):
    return torch.stack([ids[torch.randperm(len(ids), generator=generator)[:60]] for _ in range(8)])


# %% [markdown]
# One such set of texts, another distance in each. Do the induction heads of the first picture stand the test?

# %%
pool = tokens[:, 1:51].flatten().unique()
draw = torch.Generator().manual_seed(0)
varied = [pool[torch.randperm(len(pool), generator=draw)[: 20 + 3 * n]].repeat(5)[:90] for n in range(8)]
varied = torch.cat([tokens[:, :1], torch.stack(varied)], dim=1)
elsewhere = ml.head_scores(model, varied, "induction")
agreement = torch.corrcoef(torch.stack([induction.values.flatten(), elsewhere.values.flatten()]))[0, 1]
assert set(best) <= set(elsewhere.top(8).place) and agreement > 0.95
elsewhere.top(6)

# %% [markdown]
# The same five are among the first eight of 270: they do compare tokens. (Random tokens are no text, though: a head that needs sentences scores nothing here.)
#
# %% [markdown]
# ## Beside the papers

# %%
mine = {
    "heads with an induction score above 0.4": counts[0.4],
    "in-context learning score, natural text, tokens 50 and 500 (nats)": score.mean().item(),
    "loss in the second half of repeated random tokens (nats)": end.item(),
    "the same without the strongest previous-token head (nats)": (end + change["16.0"]).item(),
}
ml.reference.table("23", mine)

# %% [markdown]
# | term | in one line | `mechlab` | TransformerLens |
# |---|---|---|---|
# | pattern | where each position looks; rows sum to 1 | `ml.head_scores`, `ml.attention_view` | `cache["pattern", layer]`, `detect_head` |
# | induction | look at what followed the earlier copy | `ml.head_scores(..., "induction")` | `detect_head(..., "induction_head")` |
# | QK circuit | which key suits which query | `ml.matching_scores` | `model.QK` |
# | OV circuit | what is written about a token that is looked at | `ml.copying_scores` | `model.OV` |
# | sink | attention parked on position 0 | `ml.head_scores(..., "sink")` | |
#
# Papers: Elhage et al. 2021 (circuits, composition), Olsson et al. 2022 (induction heads). Next: notebook 24 takes parts away,
# in four ways that do not agree.
