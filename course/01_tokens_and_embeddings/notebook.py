# %% [markdown]
# # 01 Tokens and embeddings
#
# **Question:** what does the model see when you type a sentence?
#
# After this notebook you will be able to
#
# - predict how words, numbers and other languages are cut into tokens, and what that makes hard,
# - find the neighbours of a word in the embedding, and say when the cosine misleads,
# - rotate queries and keys by hand, as the model does to know where a token stands.
#
# Time: 85 minutes. The cells take about 20 seconds in all. Memory: 1.6 GB.
# Download: none, once the model is here (93 MB). Before: notebook 00.

# %% kind="setup"
# (written by the build)

# %% [markdown]
# ## Text arrives in pieces
#
# The model does not read letter by letter. A **tokenizer** cuts text into pieces from a fixed list of 49,152, learned
# from text before training: frequent strings became one piece, rare ones are cut up. In front of every text
# TransformerLens puts a **begin token**, written `<|im_start|>` in this model; here it is left out.

# %% kind="compare"
def pieces(text: str) -> list[str]:
    """The tokens of a text, without the begin token."""
    return model.to_str_tokens(text, prepend_bos=False)


for text in ["The quick brown fox", "strawberry", " strawberry", "HELLO", "1234567", " 42"]:
    print(f"{text!r:24} {len(pieces(text))}  {pieces(text)}")

# %% [markdown]
# Three things to see. A space belongs to the word that follows it (but stays alone before a digit). "strawberry" and
# " strawberry" are different: three tokens and one. And every digit is a token of its own.
#
# When the model is asked how many r's there are in " strawberry", it gets one piece and no letters at all. It has
# to have learned the spelling as a fact. With numbers it has the opposite problem: it
# sees the digits, but to know that the 1 in 1234567 stands for a million, it must count the digits after it.
#
# ## How much text fits
#
# One sentence in five languages, and a row of digits. How many tokens for each character?

# %%
samples = {
    "English": "The quick brown fox jumps over the lazy dog.",
    "German": "Der schnelle braune Fuchs springt über den faulen Hund.",
    "Italian": "La rapida volpe marrone salta sopra il cane pigro.",
    "Russian": "Быстрая коричневая лиса прыгает через ленивую собаку.",
    "Japanese": "素早い茶色の狐は怠け者の犬を飛び越える。",
    "Digits": "31415926535897932384626433832795028841971693",
}
rate = [len(pieces(text)) / len(text) for text in samples.values()]
per_character = ml.Scores(
    torch.tensor(rate), ("text",), "tokens per character", {"text": list(samples)}, signed=False
)
per_character.plot(height=340)

# %% kind="assert"
claim(model, "tokens per character, English", rate[0], says=0.23, within=0.01)
claim(model, "tokens per character, Japanese", rate[4], says=2.0, within=0.3)
claim(model, "tokens per character, digits", rate[5], says=1.0, within=0.01)
claim(model, "tokens of the English sentence", len(pieces(samples["English"])), says=10, within=0)
claim(model, "tokens of the Japanese sentence", len(pieces(samples["Japanese"])), says=41, within=0)
claim(model, "tokens of the context window", model.cfg.n_ctx, says=8192, within=0)
tea = pieces("I would like to drink a cup of tea, please."), pieces("お茶を一杯飲みたいのですが。")
claim(model, "tokens of the tea in English", len(tea[0]), says=12, within=0)
claim(model, "tokens of the tea in Japanese", len(tea[1]), says=24, within=0)

# %% [markdown]
# The tokenizer learned mostly from English and code, and English is cheap: about one token for four characters.
# Japanese costs about two tokens for a *single* character, because most of its characters are not in the list and are
# cut into bytes. A Japanese character says more than a Latin letter, so compare the sentence: 10 tokens in English,
# 41 in Japanese. The model reads at most 8,192 tokens at once, its **context window**. By this sentence
# it holds in Japanese a quarter of what it holds in English. One sentence is one sentence: "I would like to drink a cup of
# tea, please." takes 12 tokens, and its translation 24.
#
# ### Exercise 01.1 Count the tokens of a number
#
# Difficulty 1 of 5 · 5 minutes · needs `model.to_tokens`


# %% kind="exercise" id="01.1"
@exercise("01.1")
def count_tokens(model, number: int) -> int:
    """How many tokens the model reads for `number` at the start of a text, the begin token not counted."""
    # >>> solution
    return model.to_tokens(str(number), prepend_bos=False).shape[1]
    # <<< solution


# %% kind="check"
check(count_tokens, model=model)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# `model.to_tokens` takes text, and puts a begin token in front unless told otherwise.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# Turn the number into text with `str`. Call `model.to_tokens(text, prepend_bos=False)`. It returns a tensor of
# shape (1, number of tokens).
#
# </details>


# %% kind="wrong" id="01.1" expects="begin token"
@exercise("01.1")
def count_tokens(model, number):
    return model.to_tokens(str(number)).shape[1]


# %% kind="wrong" id="01.1" expects="number of rows"
@exercise("01.1")
def count_tokens(model, number):
    return len(model.to_tokens(str(number), prepend_bos=False))


# %% kind="wrong" id="01.1" expects="digits"
@exercise("01.1")
def count_tokens(model, number):
    return len(str(abs(number)))


# %% kind="wrong" id="01.1" expects="digits in pairs"
@exercise("01.1")
def count_tokens(model, number):
    return len(str(number))


# %% kind="wrong" id="01.1" expects="leading space"
@exercise("01.1")
def count_tokens(model, number):
    return model.to_tokens(f" {number}", prepend_bos=False).shape[1]


# %% [markdown]
# ## From a number to a vector
#
# Each token has a number, and the number picks one row of a table, the **embedding** `W_E`: 49,152 rows of 576
# numbers. That row is all the model knows about the token before it looks at the others. (In this model the same
# table is used again at the end, to turn vectors into scores for tokens: it is *tied*.)

# %% kind="compare"
W_E = model.W_E.detach()
token = ml.single_token(model, " Paris")
with torch.no_grad():
    _, cache = model.run_with_cache(" Paris", names_filter="hook_embed")
print("table", tuple(W_E.shape), " token number", token)
print("looked up by the model = row of the table:", torch.equal(cache["hook_embed"][0, -1], W_E[token]))

# %% [markdown]
# ## Neighbours
#
# Two rows tend to point the same way when the two tokens are used alike. The **cosine** measures it: the dot product of
# the two vectors after both are scaled to length 1. It is 1 for the same direction, 0 at right angles and −1 for opposite
# directions. (The plain word *product* of two vectors means their dot product.)
#
# ### Exercise 01.2 Nearest tokens
#
# Difficulty 2 of 5 · 10 minutes · needs the cosine


# %% kind="exercise" id="01.2"
@exercise("01.2")
def nearest_tokens(W_E: Float[Tensor, "d_vocab d_model"], token: int, k: int) -> Int[Tensor, "k"]:
    """The ids of the k tokens whose rows have the highest cosine with the row of `token`, best first.

    `token` itself does not count. Another row that points exactly the same way does.
    """
    # >>> solution
    unit = W_E / W_E.norm(dim=-1, keepdim=True)
    cosine = unit @ unit[token]
    cosine[token] = -torch.inf
    return cosine.topk(k).indices
    # <<< solution


# %% kind="check"
check(nearest_tokens, model=model)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Long rows have large dot products with everything. What must be done to the rows first?
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# Divide each row by its own length (`norm(dim=-1, keepdim=True)`). Multiply all rows with the row of `token`. Make
# sure the token cannot win against itself: write −inf over its cosine. (The first of the list may be another token, one
# that points exactly the same way, so do not just drop the first.) `topk(k).indices` sorts.
#
# </details>


# %% kind="wrong" id="01.2" expects="length"
@exercise("01.2")
def nearest_tokens(W_E, token, k):
    product = W_E @ W_E[token]
    product[token] = -torch.inf
    return product.topk(k).indices


# %% kind="wrong" id="01.2" expects="itself"
@exercise("01.2")
def nearest_tokens(W_E, token, k):
    unit = W_E / W_E.norm(dim=-1, keepdim=True)
    return (unit @ unit[token]).topk(k).indices


# %% kind="wrong" id="01.2" expects="lowest"
@exercise("01.2")
def nearest_tokens(W_E, token, k):
    unit = W_E / W_E.norm(dim=-1, keepdim=True)
    return (unit @ unit[token]).argsort()[:k]


# %% kind="wrong" id="01.2" expects="one length for each row"
@exercise("01.2")
def nearest_tokens(W_E, token, k):
    unit = W_E / W_E.norm(dim=0, keepdim=True)
    cosine = unit @ unit[token]
    cosine[token] = -torch.inf
    return cosine.topk(k).indices


# %% [markdown]
# Now the model's own words. First your guess: are the closest neighbours of " Monday" other days, or other spellings of Monday?

# %% kind="predict"
predict("01.p", "other days")


# %%
def neighbours(word: str, k: int = 6) -> list[str]:
    """The k tokens with the highest cosine to a word, the word itself left out."""
    token = ml.single_token(model, word)
    cosine = torch.cosine_similarity(W_E, W_E[[token]])
    cosine[token] = -torch.inf
    return [model.to_string([i]) for i in cosine.topk(k).indices.tolist()]


for word in (" Monday", " seven", " king", " Paris"):
    print(f"{word!r:10}", neighbours(word))

# %% kind="compare"
reveal("01.p", ", ".join(map(repr, neighbours(" Monday", 3))))

# %% kind="assert"
days = {" Tuesday", " Wednesday", " Thursday", " Friday", " Saturday", " Sunday"}
claim(model, "days among the six neighbours", len(days & set(neighbours(" Monday"))), says=6, within=0)

# %% [markdown]
# <details><summary>What we saw</summary>
#
# The model learned from use that these words are alike. For " king" and " Paris" it is the other way round: other
# spellings come first.
#
# </details>
#
# ## How the cosine misleads
#
# Take two thousand tokens at random and compare each with each. If directions were spread evenly, most cosines
# would be near zero.

# %%
unit = W_E / W_E.norm(dim=-1, keepdim=True)
some = torch.randint(len(W_E), (2000,), generator=torch.Generator().manual_seed(0))
others = ~torch.eye(2000, dtype=torch.bool)  # every pair but a token with itself
plain = (unit[some] @ unit[some].T)[others]
centred = W_E - W_E.mean(0)
centred = centred / centred.norm(dim=-1, keepdim=True)
without_mean = (centred[some] @ centred[some].T)[others]

edges = torch.linspace(-0.5, 1, 61)
shares = torch.stack([torch.histc(c, 60, -0.5, 1) / len(c) for c in (plain, without_mean)])
fig = ml.plots.figure("Cosine of random pairs of tokens", "cosine", "share of the pairs", height=360)
for name, share in zip(["as it is", "mean of all rows removed"], shares, strict=True):
    fig.add_scatter(x=edges[:-1].numpy(), y=share.numpy(), name=name, mode="lines")
ml.Picture(
    fig,
    f"Random pairs have a mean cosine of {plain.mean():.2f}, and {without_mean.mean():.2f} once the mean row is removed.",
)

# %% kind="assert"
claim(model, "mean cosine of random pairs", plain.mean(), says=0.45, within=0.02)
claim(model, "mean cosine, mean row removed", without_mean.mean(), says=0.0, within=0.005)
claim(
    model,
    "share of random pairs with a cosine of 0.5 or more",
    (plain >= 0.5).float().mean(),
    says=0.39,
    within=0.02,
)
early = torch.randint(8000, (2000,), generator=torch.Generator().manual_seed(0))
frequent = (unit[early] @ unit[early].T)[early[:, None] != early]
claim(model, "mean cosine among the first 8,000 tokens", frequent.mean(), says=0.25, within=0.02)
reach = (frequent >= 0.5).float().mean()
claim(model, "share of these pairs with 0.5 or more", reach, says=0.03, within=0.01)
six = lambda table, i: set((table @ table[i]).topk(7).indices[1:].tolist())
kept = torch.tensor([len(six(unit, i) & six(centred, i)) for i in some[:300].tolist()]).float()
claim(model, "of the six nearest, how many stay", kept.mean(), says=3.6, within=0.3)

# %% [markdown]
# Two random tokens have a cosine of 0.45. The rows share a large common direction; people call this
# **anisotropy**. So "their cosine is 0.5" says little by itself: 39 % of random pairs reach it. But most tokens are rare, and
# rare ones share most. The list is in the order in which the pieces were learned, frequent ones first: among its first 8,000
# a random pair has 0.25, and only 3 % reach 0.5. So compare with random pairs that are as frequent, or remove the mean first.
# (That the cosines are then 0.00 on average is arithmetic, not a finding.) The order changes too: on average 3.6 of the six nearest tokens stay.
#
# ## Analogies, and how they flatter
#
# The famous trick: *king − man + woman* should land near *queen*.
#
# ### Exercise 01.3 An honest analogy
#
# Difficulty 1 of 5 · 5 minutes · needs exercise 01.2


# %% kind="exercise" id="01.3"
@exercise("01.3")
def analogy(W_E: Float[Tensor, "d_vocab d_model"], a: int, b: int, c: int) -> int:
    """The token d for which a is to b as c is to d: the row nearest (by cosine) to b - a + c.

    Use the rows as they are in b - a + c (not scaled to length 1). a, b and c are not forbidden.
    """
    # >>> solution
    target = W_E[b] - W_E[a] + W_E[c]
    cosine = (W_E @ target) / W_E.norm(dim=-1)
    return cosine.argmax().item()
    # <<< solution


# %% kind="check"
check(analogy)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Compute the target vector first. Then which row points most in its direction?
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# The cosine of each row with the target is the dot product divided by the row's length and by the target's. The
# target's length is the same for all rows, so it cannot change the winner.
#
# </details>


# %% kind="wrong" id="01.3" expects="a - b"
@exercise("01.3")
def analogy(W_E, a, b, c):
    target = W_E[a] - W_E[b] + W_E[c]
    return ((W_E @ target) / W_E.norm(dim=-1)).argmax().item()


# %% kind="wrong" id="01.3" expects="forbid"
@exercise("01.3")
def analogy(W_E, a, b, c):
    cosine = (W_E @ (W_E[b] - W_E[a] + W_E[c])) / W_E.norm(dim=-1)
    cosine[[a, b, c]] = -torch.inf
    return cosine.argmax().item()


# %% kind="wrong" id="01.3" expects="length"
@exercise("01.3")
def analogy(W_E, a, b, c):
    return (W_E @ (W_E[b] - W_E[a] + W_E[c])).argmax().item()


# %% [markdown]
# Now count how often it works, twice: once as it is usually done, with the three words of the question forbidden as answers, and once
# with every word allowed.

# %%
questions = [
    (" man", " king", " woman", " queen"),
    (" France", " Paris", " Germany", " Berlin"),
    (" France", " Paris", " Italy", " Rome"),
    (" Japan", " Tokyo", " China", " Beijing"),
    (" England", " London", " Russia", " Moscow"),
    (" big", " bigger", " small", " smaller"),
    (" good", " better", " bad", " worse"),
    (" walk", " walked", " jump", " jumped"),
    (" one", " first", " two", " second"),
    (" cat", " cats", " dog", " dogs"),
    (" he", " his", " she", " her"),
]


def answer(a: str, b: str, c: str, forbid: bool) -> str:
    """The token nearest to b - a + c."""
    ids = [ml.single_token(model, w) for w in (a, b, c)]
    cosine = unit @ (W_E[ids[1]] - W_E[ids[0]] + W_E[ids[2]])
    if forbid:
        cosine[ids] = -torch.inf
    return model.to_string([cosine.argmax().item()])


found = {forbid: [answer(a, b, c, forbid) for a, b, c, _ in questions] for forbid in (True, False)}
print(f"{'':34}{'wanted':12}{'words forbidden':17}every word allowed")
for (a, b, c, d), *answers in zip(questions, found[True], found[False], strict=True):
    print(f"{b} -{a} +{c}".ljust(34) + d.ljust(12) + answers[0].ljust(17) + answers[1])

# %% kind="assert"
right = {f: [w == d for w, (*_, d) in zip(words, questions, strict=True)] for f, words in found.items()}
misses = [w in q[:3] for w, q, good in zip(found[False], questions, right[False], strict=True) if not good]
claim(model, "right when the question's words are forbidden", sum(right[True]), says=9, within=0)
claim(model, "right when every word is allowed", sum(right[False]), says=5, within=0)
claim(model, "misses that are a word of the question", sum(misses) / len(misses), says=1.0, within=0)

# %% [markdown]
# Nine of eleven, or five of eleven. Part of the success comes from a rule that is easy to overlook: the nearest word
# is often one of the question, and is struck out. Without the rule, all six misses are words of the question.
#
# Is the *arithmetic* needed at all? Linzen (2016) asked this of word vectors: perhaps " Berlin" is just a neighbour of " Paris". A success counts for
# the arithmetic only where a guess without it fails.
#
# ### Exercise 01.5 What the arithmetic adds
#
# Difficulty 4 of 5 · 25 minutes · needs exercises 01.2 and 01.3
#
# Design the measure. The check tries it on tables with questions that the notebook does not show: some need the arithmetic, in some d is simply
# near b or near c, in some d is anywhere, and in some these are mixed. Many designs are right.


# %% kind="exercise" id="01.5"
@exercise("01.5")
def arithmetic_adds(W_E: Float[Tensor, "d_vocab d_model"], questions: Int[Tensor, "question 4"]) -> float:
    """How much b - a + c finds that no simpler guess would, as a share of the questions (a, b, c, d).

    About 1 where only the arithmetic leads to d, about 0 where d is found without it (it is a neighbour of b, or
    of c) or not found at all, in between where the questions are mixed.
    """
    # >>> solution
    unit = W_E / W_E.norm(dim=-1, keepdim=True)
    a, b, c, d = questions.T

    def found(target):
        cosine = target @ unit.T
        cosine.scatter_(1, questions[:, :3], -torch.inf)  # as usual, the words of the question are forbidden
        return cosine.argmax(1) == d

    alone = found(W_E[b]) | found(W_E[c]) | found(W_E[b] + W_E[c])
    return (found(W_E[b] - W_E[a] + W_E[c]) & ~alone).float().mean().item()
    # <<< solution


# %% kind="check"
check(arithmetic_adds, model=model)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# What would a lazy guesser do who never looks at a? Let the guesser play too, under the same rules.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# Answer each question several times, with the three words forbidden each time: by b − a + c, by the neighbour of b alone, by the neighbour of c
# alone, by b + c. Count the questions that only the first gets right. (Allowing every word is another good design: then b or c itself takes the place of
# a neighbour.)
#
# </details>


# %% kind="wrong" id="01.5" expects="neighbour of c"
@exercise("01.5")
def arithmetic_adds(W_E, questions):
    unit = W_E / W_E.norm(dim=-1, keepdim=True)
    a, b, c, d = questions.T
    cosine = (W_E[b] - W_E[a] + W_E[c]) @ unit.T
    cosine.scatter_(1, questions[:, :3], -torch.inf)
    return (cosine.argmax(1) == d).float().mean().item()


# %% kind="wrong" id="01.5" expects="neighbour of b"
@exercise("01.5")
def arithmetic_adds(W_E, questions):
    unit = W_E / W_E.norm(dim=-1, keepdim=True)
    a, b, c, d = questions.T
    hits = []
    for target in (W_E[b] - W_E[a] + W_E[c], W_E[c]):
        cosine = target @ unit.T
        cosine.scatter_(1, questions[:, :3], -torch.inf)
        hits.append((cosine.argmax(1) == d).float().mean().item())
    return hits[0] - hits[1]


# %% kind="wrong" id="01.5" expects="no arithmetic in it"
@exercise("01.5")
def arithmetic_adds(W_E, questions):
    return 0.0


# %% kind="wrong" id="01.5" expects="half"
@exercise("01.5")
def arithmetic_adds(W_E, questions):
    unit = W_E / W_E.norm(dim=-1, keepdim=True)
    a, b, c, d = questions.T
    cosine = (W_E[b] - W_E[a] + W_E[c]) @ unit.T
    return float((cosine.argmax(1) == d).float().mean() > 0.6)


# %% kind="assert"
ids = torch.tensor([[ml.single_token(model, word) for word in question] for question in questions])
lazy = {}
for name, guess in (("b", W_E[ids[:, 1]]), ("c", W_E[ids[:, 2]]), ("b + c", W_E[ids[:, 1:3]].sum(1))):
    cosine = guess @ unit.T
    cosine.scatter_(1, ids[:, :3], -torch.inf)
    lazy[name] = cosine.argmax(1) == ids[:, 3]
claim(model, "found by the neighbour of b alone", lazy["b"].sum(), says=0, within=0)
claim(model, "found by the neighbour of c alone", lazy["c"].sum(), says=1, within=0)
claim(model, "found by b + c", lazy["b + c"].sum(), says=5, within=0)
earned = torch.tensor(right[True]) & ~lazy["b"] & ~lazy["c"]
claim(model, "found by neither neighbour alone", earned.sum(), says=8, within=0)
claim(model, "found by the arithmetic alone", (earned & ~lazy["b + c"]).sum(), says=4, within=0)

# %% [markdown]
# In the eleven questions above, the neighbour of b alone finds no answer, that of c one (" her"). By these two controls eight of the nine
# are earned by the arithmetic. But a lazy guesser may also take both: the row nearest to b + c, with no a at all, finds five. Only four are left
# that need a taken off: Berlin, Beijing, Moscow and " second". An effect that survives a control has survived *that* control; look for the next.
#
# ## How does the model know the order of the words?
#
# The embedding of " dog" is the same at every place. GPT-2 adds a second table, one learned row for each
# position. SmolLM2 adds nothing: it **rotates**.
#
# Three words from the next notebook. To decide where to look, each attention head makes two vectors of 64 numbers for
# each token: a **query** (what am I looking for?) and a **key** (what do I offer?). The product of a query with a key,
# divided by √64 = 8, says how strongly one token looks at another. The **residual stream** is the vector that a token
# carries through the layers; it starts as its row of the embedding.
#
# Just before a query meets a key, each is turned by an angle that grows with its position (rotary positions; Su et
# al. 2021). Of the turns only the *difference* survives in the product, so a head can ask for "three tokens back" and
# mean the same thing everywhere.
#
# A vector of 64 numbers is turned as 32 pairs. In this family of models number i is paired with number i + 32.
# Pair i (from 0 to 31) turns by the angle position × theta^(−2i/64), in radians, with theta = 100,000: the first pair
# fast, the last so slowly that one full turn takes more than 400,000 tokens.

# %% kind="compare"
theta = model.cfg.rope_parameters["rope_theta"]
angle = theta ** (-torch.arange(0, 64, 2) / 64)
print("tokens for one full turn, first pair:", round(2 * torch.pi / angle[0].item(), 1))
print("tokens for one full turn, last pair: ", round(2 * torch.pi / angle[-1].item(), -3))

# %% [markdown]
# ### Exercise 01.4 Rotary positions by hand
#
# Difficulty 3 of 5 · 20 minutes · needs sine and cosine


# %% kind="exercise" id="01.4"
@exercise("01.4")
def rotate(x: Float[Tensor, "pos d_head"], theta: float) -> Float[Tensor, "pos d_head"]:
    """Turn the vector at each position by its rotary angles.

    Pair i is (x[i], x[i + d_head/2]). At position p it turns by p * theta ** (-2 * i / d_head) radians:
    first' = first * cos - second * sin and second' = second * cos + first * sin. i and p count from 0.
    """
    # >>> solution
    n_pos, d = x.shape
    frequency = theta ** (-torch.arange(0, d, 2) / d)
    turn = torch.arange(n_pos)[:, None] * frequency
    first, second = x[:, : d // 2], x[:, d // 2 :]
    return torch.cat([first * turn.cos() - second * turn.sin(), second * turn.cos() + first * turn.sin()], -1)
    # <<< solution


# %% kind="check"
check(rotate, model=model)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Make a table of angles first: one row for each position, one column for each of the d_head/2 pairs.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# `frequency = theta ** (-torch.arange(0, d, 2) / d)`, then `turn = torch.arange(n_pos)[:, None] * frequency`. Cut x
# into its first and second half, apply the two formulas, and put the halves together with `torch.cat(..., -1)`.
#
# </details>


# %% kind="wrong" id="01.4" expects="neighbouring"
@exercise("01.4")
def rotate(x, theta):
    n_pos, d = x.shape
    turn = torch.arange(n_pos)[:, None] * theta ** (-torch.arange(0, d, 2) / d)
    first, second = x[:, 0::2], x[:, 1::2]
    pairs = [first * turn.cos() - second * turn.sin(), second * turn.cos() + first * turn.sin()]
    return torch.stack(pairs, -1).reshape(n_pos, d)


# %% kind="wrong" id="01.4" expects="other way"
@exercise("01.4")
def rotate(x, theta):
    n_pos, d = x.shape
    turn = torch.arange(n_pos)[:, None] * theta ** (-torch.arange(0, d, 2) / d)
    first, second = x[:, : d // 2], x[:, d // 2 :]
    return torch.cat([first * turn.cos() + second * turn.sin(), second * turn.cos() - first * turn.sin()], -1)


# %% kind="wrong" id="01.4" expects="from 1"
@exercise("01.4")
def rotate(x, theta):
    n_pos, d = x.shape
    turn = torch.arange(1, n_pos + 1)[:, None] * theta ** (-torch.arange(0, d, 2) / d)
    first, second = x[:, : d // 2], x[:, d // 2 :]
    return torch.cat([first * turn.cos() - second * turn.sin(), second * turn.cos() + first * turn.sin()], -1)


# %% kind="wrong" id="01.4" expects="length"
@exercise("01.4")
def rotate(x, theta):
    n_pos, d = x.shape
    turn = torch.arange(n_pos)[:, None] * theta ** (-torch.arange(0, d, 2) / d)
    first, second = x[:, : d // 2], x[:, d // 2 :]
    return torch.cat([first * turn.cos() - second * turn.sin(), second * turn.cos()], -1)


# %% [markdown]
# ## Only the distance matters
#
# Take one query and one key of head 16.0, and pretend that they stand at other places. Move both by the same
# amount, and the product must not change. Move only one, and it must. (`run_with_cache` keeps what the parts of the
# model computed; notebook 03 explains the names.)


# %%
def turned(vector: Float[Tensor, "d_head"], position: int) -> Float[Tensor, "d_head"]:
    """One vector as if it stood at `position`: mechlab's rotation, of which we take one row."""
    everywhere = vector.expand(position + 1, 1, -1)
    return ml.forward.rotate(everywhere, theta)[position, 0]


with torch.no_grad():
    _, cache = model.run_with_cache("The quick brown fox jumps over the lazy dog.")
query, key = cache["blocks.16.attn.hook_q"][0, 5, 0], cache["blocks.16.attn.hook_k"][0, 4, 0]
products = torch.tensor(
    [
        [turned(query, start + distance) @ turned(key, start) / 8 for distance in range(12)]
        for start in (0, 50, 1000)
    ]
)
by_distance = ml.Scores(
    products,
    ("key position", "distance"),
    "attention score before the softmax",
    {"key position": ["0", "50", "1000"], "distance": [str(d) for d in range(12)]},
)
by_distance.plot(height=300)

# %% kind="assert"
claim(model, "largest change from moving both", (products - products[0]).abs().max(), says=0, within=1e-3)
claim(model, "distance with the highest score", products[0].argmax(), says=1, within=0)
queries, keys = cache["blocks.16.attn.hook_q"][0, 1:, 0], cache["blocks.16.attn.hook_k"][0, 1:, 0]
at_key = torch.stack([turned(key, 0) for key in keys])
scores = torch.stack([torch.stack([turned(query, d) for d in range(12)]) @ at_key.T for query in queries])
claim(model, "query-key pairs with their peak at 1", (scores.argmax(1) == 1).sum(), says=100, within=0)

# %% [markdown]
# Three rows equal up to rounding: moving both by 50 or by 1000 changes nothing. And look where the score is highest:
# at distance 1. For head 16.0 this holds for all 100 pairs of a query and a key of this sentence: whichever two tokens
# are paired, the score is highest when the key stands just before the query. You will meet this head again in notebook
# 41, as a *previous-token head*.
#
# ### A question
#
# A query at position 7 and a key at position 3 have the score 3.0. What is it for the same two vectors at positions 107 and 103? And at 107 and
# 102?
#
# - **a** Other numbers in both cases, since both vectors are turned further.
# - **b** 3.0 in both cases, since nothing but the vectors matters.
# - **c** 3.0 in the first case; in the second another number.

# %% kind="quiz"
quiz("01.a", "c")

# %% [markdown]
# ## Recap
#
# | term | in one line | here | TransformerLens |
# |---|---|---|---|
# | token | a piece of text from a fixed list | `pieces(text)` | `model.to_str_tokens` |
# | embedding | the table from token number to vector | `W_E[token]` | `model.W_E`, `hook_embed` |
# | cosine | dot product of two vectors scaled to length 1 | `unit @ unit[token]` | |
# | anisotropy | all vectors share a direction, so cosines are high on average | mean 0.45 | |
# | rotary position | turning queries and keys by an angle that grows with position | `rotate` | `hook_rot_q`, `hook_rot_k` |
