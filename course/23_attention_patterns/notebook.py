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
# Time: 80 minutes. The cells take about 60 seconds in all. Memory: 2.0 GB.
# Download: none, once the model is here (93 MB). Before: notebooks 02 and 03.

# %% kind="setup"
# (written by the build)

# %% [markdown]
# ## The picture
#
# Fifty random tokens, then the same fifty again. The first half cannot be guessed. The second can, by whoever notices that
# it has all been said. Four such texts. At each position the **loss**: minus the log-probability of the token that really comes next. 0 is
# certain; saying that all 49,152 tokens are equally likely costs 10.8. (The thin bars are 95 % intervals over the four texts: notebook 24.)

# %%
tokens = ml.repeated_tokens(model, length=50, batch=4)
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
# Head 18.6 gives 88 % of its attention to the token that followed the earlier copy. The next four are all in layers 17 and 18; the sixth is
# 23.2, with 53 %.
#
# ## By hand
#
# A pattern has one row for each position that looks (query) and one column for each that is looked at (key). A head
# that always looks one back has a bright line just below the diagonal. The simplest score is the mean along that line.

# %%
with torch.no_grad():
    _, cache = model.run_with_cache(tokens, names_filter=lambda name: name.endswith("hook_pattern"))
pattern = cache["pattern", 16]
line = pattern[0, 0].diagonal(offset=-1)
print(f"text 0, head 16.0: {line.mean():.3f} of its attention goes to the token before")

# %% kind="assert"
claim(model, "16.0 looks at the token before", line.mean(), says=0.89, within=0.03)
assert tuple(pattern.shape) == (4, 9, 101, 101)

# %% [markdown]
# ### Exercise 23.1 Previous token
#
# Difficulty 1 of 5 · 5 minutes · needs the cell above


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
# (notebook 24 says more). What happens to the loss of 2.6 in the second half?
#
# - **a** Both hurt about equally: they do the same thing.
# - **b** Neither hurts: each stands in for the other.
# - **c** Only one of them hurts.

# %% kind="predict"
predict("23.p", "c")

# %%
ids = tokens[:, 1:, None]


def second_half(logits):
    # from entry 51 on: entry 50 is the first token of the second half, which nothing announces
    return -logits[:, :-1].log_softmax(-1).gather(-1, ids)[:, 51:, 0].mean(1)


parts = [(16, 0), (11, 1), (2, 1), (19, 3), (17, 3), (18, 6)]
effects = ml.ablation_effects(model, tokens, second_half, parts)
change = dict(zip(effects.labels["part"], effects.values, strict=True))
effects.plot(title="change of the loss in the second half (nats), head set to its mean")

# %% kind="assert"
claim(model, "change of the loss without 16.0", change["16.0"], says=4.2, within=0.5)
claim(model, "change of the loss without 11.1", change["11.1"], says=0.0, within=0.15)
claim(model, "change of the loss without 18.6", change["18.6"], says=1.0, within=0.25)
reveal("23.p", "c: 16.0 costs 4.2 nats, 11.1 nothing")

# %% [markdown]
# Two heads with nearly the same pattern, and the whole effect is in one of them. Without 11.1 nothing happens. **A pattern says
# where a head looks, not whether anyone reads what it writes.** To find out why 16.0 and not 11.1, look at the weights.
#
# ## What a head looks for: the QK circuit
#
# An induction head at the second " river" must find " stone". Its query comes from " river". The key at " stone" must say
# "the token before me was river". Only an earlier head that looks one back can have written that there. Which key suits which query
# is up to the matrices W_Q and W_K: the **QK circuit** of a head.
#
# Take 40 tokens. For each, let a later head make a *key* from what 16.0 writes about it, and a *query* from the token itself. The
# matching score is the share of the 40 queries whose best key is the one of the same token. Then the same with 11.1 in the place of
# 16.0. (A token is its stream after layer 0, in a text of its own. Rotation is left out.)

# %%
some = tokens[0, 1:51].unique()[:40]
through = {
    name: ml.matching_scores(model, some, through=head)
    for name, head in (("16.0", (16, 0)), ("11.1", (11, 1)))
}
matched = [(17, 3), (17, 4), (17, 5), (18, 6), (18, 7), (18, 8)]
table = torch.stack([torch.stack([score.values[head] for head in matched]) for score in through.values()])
labels = {"keys made by": list(through), "head": [f"{layer}.{head}" for layer, head in matched]}
ml.Scores(table, ("keys made by", "head"), "matching score (share of 40 tokens)", labels, signed=False).plot(
    height=280
)

# %% kind="assert"
claim(model, "17.3 matches through 16.0", table[0, 0], says=0.98, within=0.06)
claim(model, "18.6 matches through 16.0", table[0, 3], says=0.85, within=0.1)
claim(model, "18.8 matches through 16.0", table[0, 5], says=0.57, within=0.1)
claim(model, "induction score of 18.8", induction.values[18, 8], says=0, within=0.03)
claim(model, "best match through 11.1, of these", table[1].max(), says=0.05, within=0.08)
assert through["16.0"].top(5).place.isin(best).all()

# %% [markdown]
# Of all later heads, the five with the highest matching scores through 16.0 are the five with the highest induction scores. One number is made
# from patterns on texts; the other from the weights, on single tokens. Keys made by 11.1 mean nothing to these heads; chance is 1 in 40. That
# is the mechanism, as far as weights can show it. Elhage et al. call it **K-composition**.
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
# ## Three heads, one key
#
# This model has 9 query heads a layer and only 3 key/value heads: heads 0 to 2 share the first, 3 to 5 the second, 6 to 8 the
# third (**grouped-query attention**). Look at the winners again: 17.3, 17.4, 17.5 share a key, and so do 18.6 and 18.7. They
# are not five inventions. A key that means "the token before me" can serve every query head of its group. It need not: 18.8 has the same
# key as 18.6 and 18.7 and matches on 0.57, but its induction score is about 0.
#
# ### Exercise 23.4 Matching, all heads of a layer
#
# Difficulty 3 of 5 · 15 minutes · needs 23.3


# %% kind="exercise" id="23.4"
@exercise("23.4")
def matching_shares(
    tokens: Float[Tensor, "token d_model"],
    written: Float[Tensor, "token d_model"],
    W_Q: Float[Tensor, "head d_model d_head"],
    W_K: Float[Tensor, "kv_head d_model d_head"],
) -> Float[Tensor, "head"]:
    """The matching share of every query head, where neighbouring heads share a key head.

    Queries are made from `tokens`, keys from `written`, what an earlier head writes about the same tokens.
    """
    # >>> solution
    W_K = W_K.repeat_interleave(len(W_Q) // len(W_K), dim=0)
    queries, keys = tokens @ W_Q, written @ W_K  # [head, token, d_head]
    best = (queries @ keys.mT).argmax(-1)
    return (best == torch.arange(len(tokens))).float().mean(-1)
    # <<< solution


# %% kind="check"
check(matching_shares)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# With 6 query heads and 2 key heads, query heads 0, 1, 2 use key head 0, and 3, 4, 5 use key head 1.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# `W_K.repeat_interleave(n, dim=0)` repeats each matrix n times in a row; `W_K.repeat` would give 0, 1, 0, 1, ... Then
# `tokens @ W_Q` has shape [head, token, d_head], and for each head it is 23.3: `.mT` transposes the last two axes.
#
# </details>


# %% kind="wrong" id="23.4" expects="one number for each head"
@exercise("23.4")
def matching_shares(tokens, written, W_Q, W_K):
    W_K = W_K.repeat_interleave(len(W_Q) // len(W_K), dim=0)
    best = ((tokens @ W_Q) @ (written @ W_K).mT).argmax(-1)
    return (best == torch.arange(len(tokens))).float().mean()


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
# The copiers sit in layers 23 and 24. The induction heads of 17 and 18 hardly copy, as far as the output can read. So here the
# textbook head, which looks *and* copies, is mostly split: 17 and 18 find the place, and probably what they write is read by the
# copiers above. (By the weights alone that is a guess. Notebook 41 tests it with path patching.) Head 23.2 does both: induction
# 0.53, copying 0.45.
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
# Take away the five induction heads at once; for comparison, five random other heads of the same layers. Then take away the one value
# head that 17.3, 17.4 and 17.5 share.

# %%
five = [(17, 3), (17, 4), (17, 5), (18, 6), (18, 7)]
gone = ml.ablate_together(model, tokens, second_half, five, draws=3)
shared = ml.ablate_together(model, tokens, second_half, [(17, 1)], unit="kv_head", draws=2)
print("five heads:", gone)
print("value head 17.1 of 17.3, 17.4, 17.5:", shared)
score = ml.in_context_learning_score(model, tokens, early=30, late=80)
print(f"loss of token 80 minus loss of token 30: {score.mean():.1f}")

# %% kind="assert"
claim(model, "loss without five induction heads", gone.after.mean(), says=7.6, within=0.6)
claim(model, "loss without five random heads", gone.random.mean(), says=2.7, within=0.25)
claim(model, "loss without value head 17.1", shared.after.mean(), says=3.1, within=0.3)
start, end = losses[:, :50].mean(), losses[:, 51:].mean()
assert (gone.after.mean() - end) / (start - end) > 0.4
claim(model, "loss of the first half minus the second", start - end, says=11.6, within=0.4)
claim(model, "in-context learning score, tokens 30 and 80", score.mean(), says=-15, within=4)

# %% [markdown]
# From 2.6 to 7.6, more than 40 % of the way back to not knowing (14.2); five random heads cost 0.1. The three heads of layer 17 alone cost only 0.5, less
# than the single head 16.0 that feeds all five (4.2). One number sums up such learning from the text: the **in-context learning score**,
# the loss at a late token minus the loss at an early one. On these texts it is about −15 nats between tokens 30 and 80. (The halves differ
# by 11.6. With four texts one token is a chancy measure, and token 30 happens to be a hard one.) Olsson et al. measure it on natural text,
# between tokens 50 and 500, and find about −0.4.
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

# %% kind="assert"
claim(model, "heads with more than half on position 0", heads_above, says=84, within=10)
claim(model, "length of the sink's values beside others", ratio.median(), says=0.25, within=0.1)

# %% [markdown]
# 84 of 270. A bright column at position 0 looks like interest in the first token. It is the opposite. The values there are (in the median layer)
# a quarter as long, so that a head that looks there writes little: it is a place to rest. Before you compare patterns, take position 0 out.
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
# One, or eight, or twelve. Show the ranking, not a list. And random tokens are no text: a head that needs sentences scores
# nothing here.
#
# **Question 23.a.** A head has an induction score of 0.5, and taking it away changes nothing. What follows?
#
# - **a** The score is wrong: a head with that pattern must matter.
# - **b** The ablation is wrong: the mean of the head still carries the information.
# - **c** Neither. It looks there, and what it writes is not needed here, or others write it too.

# %% kind="quiz"
quiz("23.a", "c")

# %% [markdown]
# ## Beside the papers

# %%
mine = {
    "heads with an induction score above 0.4": counts[0.4],
    "in-context learning score (nats)": score.mean().item(),
    "loss in the second half of repeated random tokens (nats)": losses[:, 51:].mean().item(),
    "the same without the strongest previous-token head (nats)": losses[:, 51:].mean().item()
    + change["16.0"].item(),
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
