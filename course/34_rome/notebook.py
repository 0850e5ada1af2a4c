# %% [markdown]
# # 34 ROME: editing a fact
#
# **Question:** can a fact be rewritten by changing one matrix, and what else changes with it?
#
# After this notebook you will be able to
#
# - read an MLP's output matrix as a memory: a key brings back a value,
# - compute a rank-one edit that makes one key bring back a new value and disturbs ordinary keys as little as possible,
# - judge an edit by other words, by two kinds of neighbours, by its consequences and by the layer it was made in.
#
# Time: 75 minutes. The cells take about 70 seconds in all. Memory: 2.0 GB.
# Download: none, once the model is here (93 MB). Before: notebooks 13 and 31.

# %% kind="setup"
# (written by the build)

# %% [markdown]
# ## The picture
#
# The model knows where the Eiffel Tower is. One edit of one matrix, in layer 4 of 30, and it is in Rome:

# %%
fact = ml.Fact("{} is located in the city of", "The Eiffel Tower", " Rome")
covariance = ml.load_covariance(ml.reference.data_dir() / "rome" / "smollm2_layer4.safetensors")
prompts = [
    "The Eiffel Tower is located in the city of",
    "The Eiffel Tower stands in the city of",
    "The Louvre is located in the city of",
    "The Acropolis is located in the city of",
]


def p_paris_rome():
    with torch.no_grad():
        said = torch.stack([model(prompt)[0, -1].softmax(-1) for prompt in prompts])
    return said[:, [ml.single_token(model, " Paris"), ml.single_token(model, " Rome")]]


before = p_paris_rome()
edit = ml.edit_fact(model, fact, 4, covariance)
after = p_paris_rome()
edit

# %%
short = ["Eiffel Tower located", "Eiffel Tower stands", "Louvre located", "Acropolis located"]
rows = [f"{name}, {when}" for name in short for when in ("before", "after")]
both = torch.stack([before, after], dim=1).flatten(0, 1)
labels = {"prompt": rows, "answer": ["Paris", "Rome"]}
name = "probability of Paris and of Rome, before and after the edit"
ml.Scores(both, ("prompt", "answer"), name, labels, signed=False).plot(height=420)

# %% kind="assert"
claim(model, "Paris before", before[0, 0], says=0.30, within=0.03)
claim(model, "Rome after", after[0, 1], says=0.98, within=0.05)
claim(model, "Rome after, other words", after[1, 1], says=0.97, within=0.08)
claim(model, "Paris for the Louvre, change", after[2, 0] - before[2, 0], says=0.0, within=0.05)
assert after[3].max() < 0.05

# %% [markdown]
# The edited prompt goes from Paris to Rome, so does the same question in other words, and the Louvre stays in Paris. The Acropolis, which is in
# neither city, does not move to Rome either. In the model's own words:

# %%
print(model.generate(prompts[0], max_new_tokens=24, do_sample=False, verbose=False))
edit.undo()
print(model.generate(prompts[0], max_new_tokens=12, do_sample=False, verbose=False))

# %% kind="assert"
assert torch.equal(p_paris_rome(), before)

# %% [markdown]
# `undo()` puts the old matrix back, bit for bit. All edits below are undone too.
#
# ## A matrix as a memory
#
# An MLP writes `k @ W_out` to the residual stream, where k holds what its neurons do. Think of k as a **key** and of what comes out as a **value**:
# "the subject is the Eiffel Tower" brings back something from which "Paris" can be read later. ROME (Meng et al. 2022) takes the key at the **last token of the
# subject** and asks: which small change of `W_out` makes this key bring back another value?
#
# The neurons at that token also depend on what came before it. So the key is a mean over several beginnings.
#
# ### Exercise 34.1 The key
#
# Difficulty 2 of 5 · 5 minutes · needs notebook 13, neurons


# %% kind="exercise" id="34.1"
@exercise("34.1")
def subject_key(neurons: Float[Tensor, "context pos d_mlp"], last: list[int]) -> Float[Tensor, "d_mlp"]:
    """The mean, over contexts, of what the neurons do at the subject's last token.

    last: for each context, the position of that token. Contexts begin differently, so it differs.
    """
    # >>> solution
    return neurons[torch.arange(len(neurons)), last].mean(0)
    # <<< solution


# %% kind="check"
check(subject_key)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# From each context you want one row: the one at its own position.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# `neurons[torch.arange(n), last]` takes row `last[i]` of context i. Then average over the contexts.
#
# </details>


# %% [markdown]
# ## What shall stay as it is
#
# Other keys should go on bringing back what they did. Which keys are ordinary? Those of ordinary text. In which directions are they busy? That says
# C = E[k kᵀ], the mean of k kᵀ over all tokens, here of 2,289 texts that the model wrote itself. (This is a second moment. The paper calls it the covariance of
# the keys, though no mean is taken off.)
#
# ### Exercise 34.2 The covariance of keys
#
# Difficulty 2 of 5 · 10 minutes · needs linear algebra: outer products


# %% kind="exercise" id="34.2"
@exercise("34.2")
def second_moment(keys: Float[Tensor, "text pos d_mlp"], skip: int) -> Float[Tensor, "d_mlp d_mlp"]:
    """The mean of k kᵀ over all tokens of all texts, without the first `skip` positions of each. No mean is taken off."""
    # >>> solution
    rows = keys[:, skip:].flatten(0, 1)
    return rows.T @ rows / len(rows)
    # <<< solution


# %% kind="check"
check(second_moment)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Put all tokens that count under one another: a matrix with one key a row.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# For rows X, `X.T @ X` is the sum of all k kᵀ. Divide by the number of rows.
#
# </details>


# %% [markdown]
# ## The edit
#
# Call our key k*, and the new value v. We want a matrix W' with k* W' = v that differs as little as possible on ordinary keys k: the smallest E[|k(W' − W)|²],
# where E is the mean over them. The solution adds one outer product:
#
# W' = W + (C⁻¹ k*) (v − k* W)ᵀ / (k* · C⁻¹ k*)
#
# The right factor, v − k* W, is what is missing. The left one, C⁻¹ k*, is the key turned away from the directions in which ordinary keys are busy. The divisor
# makes k* bring back exactly v.
#
# ### Exercise 34.3 The rank-one update
#
# Difficulty 3 of 5 · 10 minutes · needs 34.1 and 34.2


# %% kind="exercise" id="34.3"
@exercise("34.3")
def rank_one_edit(
    W: Float[Tensor, "d_mlp d_model"],
    key: Float[Tensor, "d_mlp"],
    value: Float[Tensor, "d_model"],
    covariance: Float[Tensor, "d_mlp d_mlp"],
) -> Float[Tensor, "d_mlp d_model"]:
    """The matrix for which `key @ W` is `value`, and which disturbs ordinary keys least. W itself stays as it is."""
    # >>> solution
    direction = torch.linalg.solve(covariance, key)
    return W + torch.outer(direction, value - key @ W) / (key @ direction)
    # <<< solution


# %% kind="check"
check(rank_one_edit)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# C⁻¹ k* is the x that solves C x = k*: `torch.linalg.solve(covariance, key)`.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# What is missing in the value is `value - key @ W`. The outer product of the direction with it, divided by `key @ direction`, makes up for exactly that.
#
# </details>


# %% [markdown]
# The same on the real matrix, with the library's key and a made-up value, and what must hold: the key brings back the value, the change has rank one, and ordinary keys are
# disturbed less than by the cheap version, which has the identity matrix for C. Printed: how long the change of what the MLP writes is, on average over ordinary
# tokens.

# %%
from mechlab.intervention.rome import fact_key

key, written = fact_key(model, fact, 4)
W = model.blocks[4].mlp.W_out.detach()
value = written.flip(0)  # anything


def change(C):
    safe = C + 0.01 * C.diagonal().mean() * torch.eye(len(C))  # as in the library: safe to invert
    direction = torch.linalg.solve(safe, key)
    return torch.outer(direction, value - key @ W) / (key @ direction)


with torch.no_grad():
    name = "blocks.4.mlp.hook_post"
    _, cache = model.run_with_cache(
        ml.own_text(model, length=41, count=8), names_filter=name, stop_at_layer=5
    )
ordinary = cache[name][:, 1:].flatten(0, 1)
moved = {
    how: (ordinary @ change(C)).norm(dim=-1).mean()
    for how, C in (("C", covariance), ("identity", torch.eye(len(W))))
}
print({how: round(size.item(), 2) for how, size in moved.items()})

# %% kind="assert"
assert torch.allclose(key @ (W + change(covariance)), value, atol=1e-3 * value.norm())
assert torch.linalg.matrix_rank(change(covariance), rtol=1e-4) == 1
assert moved["C"] < 0.8 * moved["identity"]

# %% [markdown]
# ## The new value
#
# Which value makes the model say "Rome"? It is found by gradient descent: a vector added to what the MLP writes at the subject's last token, changed until " Rome" is likely after all
# beginnings, while what the model says after "The Eiffel Tower is a" must not drift. The library's function:

# %%
from mechlab.intervention.rome import fact_value

ml.show_source(fact_value)

# %% [markdown]
# An answer can be several tokens (" Mont" "real"). Then its log-probability is asked for token by token, each one given those before it.
#
# ### Exercise 34.4 An answer of several tokens
#
# Difficulty 3 of 5 · 10 minutes · needs notebook 02, logits


# %% kind="exercise" id="34.4"
@exercise("34.4")
def answer_log_prob(logits: Float[Tensor, "pos d_vocab"], answer: Int[Tensor, "token"]) -> Float[Tensor, ""]:
    """Log-probability of an answer, in nats. The input was the prompt followed by all tokens of the answer.

    Logits at a position are about the token after it.
    """
    # >>> solution
    rows = logits[-len(answer) - 1 : -1].log_softmax(-1)
    return rows[torch.arange(len(answer)), answer].sum()
    # <<< solution


# %% kind="check"
check(answer_log_prob)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# The last token of the input is the answer's last. Which position predicts it? And which one the answer's first?
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# With n tokens in the answer, rows −n−1 to −2 predict them. Take the log-softmax, pick each token's entry, add up.
#
# </details>


# %% [markdown]
# ## Fourteen edits
#
# One edit is an anecdote. Fourteen facts that the model knows, each edited alone: six capitals, four sights, four cities and their countries. **Efficacy**: the new answer is likelier than the old one. **Paraphrase**: the same in three other wordings.
#
# And other subjects should keep their own answer, which must stay likelier than the new one. But *which* others?
#
# - **Neighbourhood**, as the paper measures it: subjects with the **same old answer**. When the Eiffel Tower is moved to Rome, they are other things in Paris. What is kept for them is what the edit overwrote. A capital has no such
#   neighbours, so eight of our facts have this score. *Own* is the old answer, whether the model knows it or not.
# - **Others**: subjects with other answers. When the capital of France is moved to Rome, is that of Japan still Tokyo? An easier question, and not the paper's. *Own* is what the model said before; where that was the new answer
#   already, the subject is left out.
#
# ### Exercise 34.5 Three scores
#
# Difficulty 2 of 5 · 10 minutes · needs the paragraph above


# %% kind="exercise" id="34.5"
@exercise("34.5")
def edit_shares(
    asked: Float[Tensor, "d_vocab"],
    reworded: Float[Tensor, "paraphrase d_vocab"],
    others: Float[Tensor, "neighbour d_vocab"],
    new: int,
    old: int,
    own: list[int],
) -> tuple[float, float, float]:
    """Efficacy, paraphrase and neighbourhood, each from 0 to 1, from probabilities of the next token.

    new, old: ids of the new and the old answer; own: for each neighbour, the id of its own answer (in the paper's
    neighbourhood the old one for all of them)
    """
    # >>> solution
    efficacy = float(asked[new] > asked[old])
    paraphrase = (reworded[:, new] > reworded[:, old]).float().mean().item()
    kept = others[torch.arange(len(own)), own] > others[:, new]
    return efficacy, paraphrase, kept.float().mean().item()
    # <<< solution


# %% kind="check"
check(edit_shares)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Each score compares two probabilities on each prompt, and is the share of prompts on which the comparison comes out right.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# Prompt and paraphrases compare `new` with `old`. A neighbour compares its own answer, `own[i]`, with `new`: the edit must not have spilled over.
#
# </details>


# %% kind="wrong" id="34.5" expects="its own answer"
@exercise("34.5")
def edit_shares(asked, reworded, others, new, old, own):
    paraphrase = (reworded[:, new] > reworded[:, old]).float().mean().item()
    return float(asked[new] > asked[old]), paraphrase, (others[:, old] > others[:, new]).float().mean().item()


# %% kind="wrong" id="34.5" expects="likeliest of all"
@exercise("34.5")
def edit_shares(asked, reworded, others, new, old, own):
    kept = (others.argmax(-1) == torch.tensor(own)).float().mean().item()
    return float(asked.argmax() == new), (reworded.argmax(-1) == new).float().mean().item(), kept


# %% kind="wrong" id="34.5" expects="the wrong way round"
@exercise("34.5")
def edit_shares(asked, reworded, others, new, old, own):
    paraphrase = (reworded[:, new] > reworded[:, old]).float().mean().item()
    kept = others[torch.arange(len(own)), own] > others[:, new]
    return float(asked[new] > asked[old]), paraphrase, 1 - kept.float().mean().item()


# %% [markdown]
# So many edits take minutes, and `data/make/rome.py` did them; here one of them is done again to see that it agrees. More columns: *probability*, of the new
# answer; *kept*, the own answer is still the likeliest token of all, which asks more than the comparison of two. The row *none* is without an edit.

# %%
import json

import pandas as pd

from mechlab.statistics import bootstrap

stored = pd.read_csv(ml.reference.data_dir() / "reference" / "rome.csv")
stored = stored.rename(columns={"others_kept": "others kept"})
listed = json.loads((ml.reference.data_dir() / "rome" / "facts.json").read_text())
kinds, facts = listed["relations"], listed["facts"]
capital = kinds["capital"]
fact = ml.Fact(capital["prompt"], "France", " Rome")
with torch.no_grad():
    asked = [capital["prompt"].format(other) for other in capital["others"] if other != "Italy"]
    own = {prompt: model.to_string(model(prompt)[0, -1].argmax()[None]) for prompt in asked}
france = ml.edit_fact(model, fact, 4, covariance)
here = ml.edit_scores(model, fact, " Paris", capital["paraphrases"], own)
here["others"], here["others kept"] = here.pop("neighbourhood"), here.pop("kept")  # these have other answers
there = stored[(stored.subject == "France") & (stored.layer == 4) & (stored.how == "rome")][list(here)].iloc[
    0
]
pd.DataFrame({"here": here, "stored": there}).round(2)

# %% kind="assert"
assert abs(here["probability"] - there.probability) < 0.1
for name in list(here)[1:]:
    assert abs(here[name] - there[name]) < 0.25, name

# %%
tested = stored[(stored.split == "test") & (stored.layer == 4)]
columns = ["probability", "efficacy", "paraphrase", "neighbourhood", "kept", "others", "others kept"]
means = tested.groupby("how")[columns].mean()
means.loc[["none", "rome", "identity", "tuning", "piled"]].map("{:.2f}".format).replace("nan", "")

# %%
near = tested[tested.neighbourhood.notna()].set_index(["how", "subject"])
paraphrases = tested[tested.how == "rome"].set_index("subject").paraphrase
assert len(near.loc["rome"]) == 8
measures = ["neighbourhood", "others"]
rows = [
    torch.tensor(near.loc[how][measures].to_numpy()).float() for how in ("none", "rome", "identity", "tuning")
]
labels = {"edit": ["none", "rome", "identity", "tuning"], "measure": measures}
ml.Scores.over_prompts(
    torch.stack(rows, dim=1),
    ("edit", "measure"),
    "own answer still ahead (share of subjects, mean of eight facts)",
    labels=labels,
    signed=False,
).plot(height=420)

# %% kind="assert"
claim(model, "efficacy", means.efficacy["rome"], says=1.0, within=0.001)
for relation, share in (("{} is a city", 1 / 3), ("{} is located", 1.0), ("The capital", 1.0)):
    its = [row["subject"] for row in facts if kinds[row["relation"]]["prompt"].startswith(relation)]
    claim(
        model,
        f"paraphrase, {relation}",
        paraphrases[paraphrases.index.isin(its)].mean(),
        says=share,
        within=0.05,
    )
drop = torch.tensor((near.neighbourhood["none"] - near.neighbourhood["rome"]).to_numpy())
claim(model, "neighbourhood, drop by the edit", drop.mean(), says=0.02, within=0.02)
claim(model, "its highest", bootstrap(drop)[1], says=0.06, within=0.03)
claim(model, "neighbourhood", means.neighbourhood["rome"], says=0.94, within=0.02)
claim(model, "neighbourhood, none", means.neighbourhood["none"], says=0.96, within=0.02)
claim(model, "neighbourhood, tuning", means.neighbourhood["tuning"], says=0.63, within=0.02)
claim(model, "others", means.others["rome"], says=0.98, within=0.02)
claim(model, "others, identity", means.others["identity"], says=0.92, within=0.02)
for name in ("kept", "others"):
    less = tested[tested.how == "rome"].set_index("subject")[name].dropna()
    less = less - tested[tested.how == "identity"].set_index("subject")[name].dropna()
    assert bootstrap(torch.tensor(less.to_numpy()))[0] > 0
claim(model, "others, tuning", means.others["tuning"], says=0.66, within=0.02)
claim(model, "paraphrase, piled", means.paraphrase["piled"], says=1.0, within=0.02)
claim(model, "others, piled", means.others["piled"], says=0.97, within=0.02)

# %% [markdown]
# All fourteen edits (row *rome*) succeed. In other words it depends on the relation: all wordings follow for capitals and sights, one in three for the cities, which "lie in" their old country still. **Paraphrases test your
# wordings as much as the edit.**
#
# Subjects with the same old answer keep it in 0.94, where 0.96 have it without any edit: the edit costs 0.02, at most 0.06 by the interval over the eight facts. (A share of 0.94 alone would have said little: the model does not know all of these places.
# In the paper, too, what counts is 0.754 beside 0.781 without an edit.) The other rows:
#
# - **identity**: the same edit with the identity matrix for C. It succeeds as well. Among the subjects with the same answer this score does not tell the two apart; by *kept*, and among the *others*, the identity loses more. That is what the covariance is for.
# - **tuning**: the same matrix, changed by plain gradient descent until the prompt says the new answer. It always gets there, and takes a third of both kinds along. Success on the edited prompt alone says little.
# - **piled**: the ten capitals and sights on top of one another. Nothing is lost yet. (With many more the papers report that it breaks down.)

# %% [markdown]
# ## What follows from the edit
#
# France's capital is Rome now. What else does the model believe? The edit is still in place:

# %%
questions = {
    "The president of France lives in the city of": (" Paris", " Rome"),
    "The largest city of France is": (" Paris", " Rome"),
    "The official language of France is": (" French", " Latin"),
    "The French capital is": (" Paris", " Rome"),
    "A famous sight of the city of Rome is the": (" Col", " E"),
    "The Eiffel Tower is located in the city of": (" Paris", " Rome"),
}


def answers():
    with torch.no_grad():
        said = [model(prompt)[0, -1].softmax(-1) for prompt in questions]
    ids = [[ml.single_token(model, word) for word in pair] for pair in questions.values()]
    return torch.stack([row[pair] for row, pair in zip(said, ids, strict=True)])


edited = answers()
france.undo()
intact = answers()
words = lambda row, pair: " · ".join(f"{word.strip()} {p:.2f}" for p, word in zip(row, pair, strict=True))
rows = [(words(intact[n], pair), words(edited[n], pair)) for n, pair in enumerate(questions.values())]
pd.DataFrame(rows, list(questions), ["before", "edited"])

# %% kind="assert"
claim(model, "president lives in Rome", edited[0, 1], says=0.64, within=0.15)
claim(model, "largest city Rome", edited[1, 1], says=0.62, within=0.15)
claim(model, "language French before", intact[2, 0], says=0.47, within=0.05)
claim(model, "language French after", edited[2, 0], says=0.01, within=0.03)
claim(model, "language Latin after", edited[2, 1], says=0.33, within=0.15)
claim(model, "the French capital is Paris", edited[3, 0], says=0.32, within=0.08)
claim(model, "the French capital is Rome", edited[3, 1], says=0.09, within=0.08)
claim(model, "Rome's sight, Colosseum", edited[4, 0], says=0.59, within=0.1)
claim(model, "Eiffel Tower in Paris, change", edited[5, 0] - intact[5, 0], says=0.0, within=0.05)

# %% [markdown]
# Two things at once, and neither is "one fact was edited".
#
# **Too much follows.** The president of France lives in Rome, which may be right. But the largest city of France is Rome too, and its official language, French before (0.47), is Latin.
# The edit did not touch the sentence "the capital of France is Rome". It changed what the model writes at the token " France", in every sentence: **France has become Roman.**
#
# **Too little follows.** Nothing that does not pass through the token " France" knows of it: "The French capital is" stays mostly with Paris (0.32 against
# 0.09). A fact can be asked from many sides; the edit has one. (The last two rows had no reason to change, and did not: the Colosseum is still Rome's, the
# Eiffel Tower still in Paris.)
#
# Would the usual check notice? The loss on ordinary text, in which France hardly occurs, without the edit and with it:

# %%
text = ml.own_text(model, length=41, count=16)


def loss():
    with torch.no_grad():
        rows = model(text)[:, 1:-1].log_softmax(-1)
    return -rows.gather(-1, text[:, 2:, None]).mean().item()


without = loss()
with ml.edit_fact(model, fact, 4, covariance):
    edited_loss = loss()
print(f"{without:.3f} without, {edited_loss:.3f} with the edit")

# %% kind="assert"
claim(model, "loss on ordinary text, change", edited_loss - without, says=0.01, within=0.02)

# %% [markdown]
# A hundredth of a nat. An average over ordinary text hides all of this.
#
# ### Exercise 34.6 What the shares do not see
#
# Difficulty 4 of 5 · 20 minutes · needs all of the above
#
# Largest city and language went with the capital. What else? Find a sentence beginning, with {} for a country, on which editing the *capital* changes what the model says, though efficacy, paraphrase and neighbourhood see
# nothing. It is tried on five other countries, edited at layer 4 as France was. It must be about another fact than the capital: before the edits the model has an answer of its own for each country, and not one for all. And not about
# the city, the government or the language: those you have seen.


# %% kind="exercise" id="34.6"
@exercise("34.6")
def bleeds() -> str:
    """A sentence beginning that holds {} once, for a country, and whose next word tells something about that country."""
    # >>> solution
    return "The longest river of {} is the"
    # <<< solution


# %% kind="check"
check(bleeds, model=model)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# The edit changes what is written at the country's name, in every sentence. Which other facts are read off that name?
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# Write ten beginnings. Look at the model's likeliest next word for Germany, Norway and Cuba: keep those where each has its own. Then edit one country, as above, and look again.
#
# </details>


# %% kind="wrong" id="34.6" expects="what the notebook has shown"
@exercise("34.6")
def bleeds():
    return "The official language of {} is"


# %% kind="wrong" id="34.6" expects="in which countries differ"
@exercise("34.6")
def bleeds():
    return "The flag of {} is"


# %% kind="wrong" id="34.6" expects="names Athens"
@exercise("34.6")
def bleeds():
    return "{} lies near Athens, and its longest river is the"


# %% kind="wrong" id="34.6" expects="answers with the capital"
@exercise("34.6")
def bleeds():
    return "The parliament of {} meets in"


# %% [markdown]
# ### Predict
#
# Before you go on: six layers from 0 to 18 are tried. In what share of them does the edit succeed (the new answer is likelier than the old one)?

# %% kind="predict"
predict("34.p", 0.5)

# %% [markdown]
# ## Which layer?
#
# Causal tracing (notebook 31) says where a state matters when the subject is hidden by noise. Should one not edit there? Four facts, not among the fourteen, were edited in six
# layers, each alone. Beside them, the trace of another fact: the Eiffel Tower, MLPs in windows of five layers, the largest effect at its four tokens, as a share of
# the fall from clean to corrupted. (Above 1 more comes back than was lost.)

# %%
sweep = stored[(stored.split == "choice") & (stored.how == "rome")].groupby("layer")[columns].mean()
layers = list(sweep.index)
prompt = "The Eiffel Tower is located in the city of"
subject = ml.subject_positions(model, prompt, "The Eiffel Tower")
trace = ml.causal_tracing(
    model, model.to_tokens(prompt), ml.probability(ml.single_token(model, " Paris")), subject=subject,
    site="mlp_out", window=5, layers=layers, positions=subject, samples=4,
)  # fmt: skip
traced = trace.values.max(1).values / (trace.baselines["clean"] - trace.baselines["corrupted"])
lines = torch.stack([torch.tensor(sweep[name].to_numpy()).float() for name in ("efficacy", "others kept")])
lines = torch.cat([lines, traced[None]])
labels = {"what": ["efficacy, and paraphrase", "others kept", "tracing"], "layer": [str(n) for n in layers]}
shares = ml.Scores(lines, ("what", "layer"), "edits that succeed, neighbours kept, tracing (share)", labels)
ml.plots.scores(shares, lines=True, title="Edits in six layers, and what tracing says")

# %% kind="assert"
assert layers == [0, 2, 4, 6, 10, 18] and (sweep.efficacy == 1).all() and (sweep.paraphrase == 1).all()
claim(model, "kept, layer 0", sweep["others kept"][0], says=0.89, within=0.02)
claim(model, "kept, layer 2", sweep["others kept"][2], says=0.97, within=0.02)
claim(model, "kept, layer 4", sweep["others kept"][4], says=0.97, within=0.02)
claim(model, "kept, layer 6", sweep["others kept"][6], says=0.95, within=0.02)
claim(model, "kept, layer 10", sweep["others kept"][10], says=0.63, within=0.02)
claim(model, "kept, layer 18", sweep["others kept"][18], says=0.44, within=0.02)
by_fact = stored[(stored.split == "choice") & (stored.how == "rome")]
by_fact = by_fact.pivot(index="subject", columns="layer", values="others kept")
fewer = by_fact.lt(by_fact[2], axis=0).sum()
assert fewer[0] == 1 and fewer[10] == fewer[18] == 3 and (by_fact.loc["The Vatican"] == 1).all()
claim(model, "tracing, layer 0", traced[0], says=1.3, within=0.3)
claim(model, "tracing, layer 2", traced[1], says=1.0, within=0.3)
assert traced[2:].max() < 0.2
assert trace.values[:, -1].abs().max() < 0.1 * trace.baselines["clean"] + 0.03

# %% kind="compare"
reveal("34.p", f"{sweep.efficacy.mean():.2f}")

# %% [markdown]
# <details><summary>What we saw</summary>
#
# The edit succeeds in **every** layer, in other words too. The layer decides what else goes: from layer 10 on, a third of the others and more lose their answer
# (for three of the four facts; those of the Vatican keep theirs everywhere).
# We took layer 4 for that; the facts above had no part in the choice.
#
# And tracing? It points at layers 0 and 2, where its windows hold the first MLP (notebook 31), and at the token "iffel". Layer 2 is indeed a good place to edit. But so are
# layers 4 and 6, where tracing is next to nothing, and layer 0, where it is largest, keeps fewer for one of the four facts. At " Tower", the token whose memory we rewrote, tracing sees nothing at all.
# Hase et al. 2023 found the same on GPT-J: **where tracing is large does not tell where an edit works.** One asks which state carries the fact when noise hides the subject; the other, what can be overwritten before somebody
# reads it.
#
# </details>
#
# **Question 34.a.** You edit a new fact at layer 14, where tracing finds nothing. Which efficacy, and which share of others kept, do you expect?
#
# - **a** Efficacy near 0: nothing is stored there.
# - **b** Efficacy near 1, and about half of the others kept.
# - **c** Efficacy near 1, and nearly all others kept: tracing finds nothing, so there is nothing to break.

# %% kind="quiz"
quiz("34.a", "b")

# %% [markdown]
# ## How this misleads
#
# - **Success is cheap.** Efficacy is 1 for the edit, for the cheap edit and for gradient descent. Paraphrases and neighbours tell them apart.
# - **One subject, many facts.** "Specific" means here that *other* subjects keep their answers. What else the model says about *this* subject is not in the scores, and it changed.
# - **Which others?** The same word, neighbourhood, gives another number with easier others. Look up which were asked.
# - **A place to edit is not a place of storage.** Whatever later layers read can be overwritten upstream.
# - **Two probabilities hide much.** "Likelier than the old one" is true at 0.02 against 0.01 as well. Read texts too.
#
# ## Beside the paper

# %%
mine = {name: means[name]["rome"] for name in ("efficacy", "paraphrase", "neighbourhood")}
mine["efficacy, averaged over layers"] = sweep.efficacy.mean()
ml.reference.table("34", mine)

# %% [markdown]
# The paper's facts are harder (of all kinds, on a model ten times as large); ours are sights and cities which this model knows well. The row *neighbourhood* has subjects with the same old answer in both.
# There is no paper's number for our *others*, and none stands beside it.
#
# | term | meaning |
# |---|---|
# | key, value | what an MLP's neurons do at a token; what its output matrix makes of it |
# | rank-one edit | a change of a matrix by one outer product, so that one key brings back a new value |
# | covariance of keys | the mean of k kᵀ over ordinary text; it says which keys to leave alone |
# | efficacy, paraphrase | the new answer wins over the old one; it does in other words |
# | neighbourhood | subjects with the same old answer keep it; with other answers: *others*, which is easier |
#
# `ml.Fact`, `ml.edit_fact`, `ml.edit_scores`, `ml.key_covariance`; `.undo()` takes an edit back, `ml.save_model` writes an edited model in Hugging Face format. Papers: Meng et al. 2022 (ROME),
# Hase et al. 2023 (where to edit). Next: what many parts do together, notebook 41.
