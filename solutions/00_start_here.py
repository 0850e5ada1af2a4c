# %% [markdown]
# # 00 Start here
#
# **Question:** a language model finishes a sentence correctly. Which of its parts decided that?
#
# After this notebook you will be able to
#
# - run a real language model on your own machine and read what it predicts,
# - copy the output of one attention head from one run into another, and see the answer change,
# - use the exercises, checks, hints and progress of this course.
#
# Time: 20 minutes. The cells take about 20 seconds in all. Memory: 1.2 GB. Network: none, once the model is here.

# %% kind="setup"
# (written by the build)

# %% [markdown]
# ## One sentence
#
# The model reads text in pieces called **tokens** and gives a probability to every possible next token.
# Here is the sentence that goes with you through the whole course. Two people, one of them gives something away.
# Who gets it?

# %% kind="compare"
prompt = "When John and Mary went to the store, John gave a drink to"
with torch.no_grad():
    probabilities = model(model.to_tokens(prompt))[0, -1].softmax(-1)
for p, token in zip(*probabilities.topk(5), strict=True):
    print(f"{p:.2f} {model.to_string([token.item()])!r}")

# %% [markdown]
# The model is nine parts in ten sure of " Mary". To do that it must notice that John is there twice and Mary
# once. Nobody programmed this. Somewhere in 30 layers with 9 attention heads each, something looks for it.
#
# ## Change one part
#
# We run the model on a second sentence, in which *Mary* does the giving, so the right answer is " John".
# Then we run the first sentence again, and replace the output of **one** head, number 3 of layer 23 (we write
# 23.3), by what that head said in the second sentence. The other 269 heads are left alone.
#
# The number to watch is the **logit difference**: the model's score for " Mary" minus its score for " John".
# Above zero it prefers " Mary", below zero " John".

# %%
pair = ml.prompt_pair(
    model, prompt, "When John and Mary went to the store, Mary gave a drink to", " Mary", " John"
)
with torch.no_grad():
    other_logits, other_cache = model.run_with_cache(pair.corrupted)
    with ml.intervene(model, ml.replace_head(model, (23, 3), other_cache)):
        patched_logits = model(pair.clean)
    rows = {
        "first sentence": model(pair.clean),
        "first sentence, head 23.3 swapped": patched_logits,
        "second sentence": other_logits,
    }
difference = {name: pair.metric(logits).item() for name, logits in rows.items()}
ml.Scores(
    torch.tensor(list(difference.values())), ("run",), "logit difference (logits)", {"run": list(rows)}
).plot(height=340)

# %% kind="assert"
claim(model, "first sentence", difference["first sentence"], says=5.6, within=0.1)
claim(model, "with head 23.3 swapped", difference["first sentence, head 23.3 swapped"], says=0.0, within=0.1)
claim(model, "second sentence", difference["second sentence"], says=-6.2, within=0.1)

# %% [markdown]
# One head out of 270, and the model no longer knows who gets the drink: the difference falls from 5.6 to 0.0.
# You have just done **activation patching**, the tool behind half of this course.
#
# Be careful with what this shows. The swapped head *matters* for this sentence. It does not yet say what the
# head does, or that it does it alone. Those are the questions of notebooks 41 and 42.
#
# ## Guess, then move the sliders
#
# How many of the other eight heads in layer 23 lower the difference by more than 2 logits when they are swapped?
# Write a number in place of the three dots. Predictions are for you; nothing marks them.

# %% kind="predict"
predict("00.p", 0)

# %%
ml.widgets.patch_explorer(model, pair.clean, pair.corrupted, pair.metric, layer=23, head=3)

# %%
with torch.no_grad():
    moved = {}
    for head in range(model.cfg.n_heads):
        with ml.intervene(model, ml.replace_head(model, (23, head), other_cache)):
            moved[head] = difference["first sentence"] - pair.metric(model(pair.clean)).item()
layer_23 = ml.Scores(
    torch.tensor(list(moved.values())),
    ("head",),
    "fall of the logit difference (logits)",
    {"head": [f"23.{h}" for h in moved]},
)
layer_23.plot(height=340)

# %% kind="compare"
reveal("00.p", sum(fall > 2 for head, fall in moved.items() if head != 3))

# %% kind="assert"
strongest = sorted(moved, key=moved.get)[-2:]
claim(model, "fall for 23.3", moved[3], says=5.6, within=0.1)
claim(model, "fall for the next head of the layer", moved[strongest[0]], says=1.0, within=0.1)
assert strongest[-1] == 3 or model.cfg.model_name != "smollm2"

# %% [markdown]
# ## Look where it looks
#
# Attention heads move information from earlier tokens to later ones. A head's **pattern** says, for each token
# (row), how much it takes from each earlier token (column). Click a head to keep it in view.

# %%
with torch.no_grad():
    _, cache = model.run_with_cache(pair.clean)
heads = [f"23.{h}" for h in range(model.cfg.n_heads)]
ml.plots.attention(cache["pattern", 23][0], model.to_str_tokens(pair.clean[0]), heads)

# %% kind="assert"
second_john = pair.position(" John", occurrence=2)[0]
looks = cache["pattern", 23][0, 3, -1, second_john]
claim(model, "23.3, from the last token to the second John", looks, says=0.69, within=0.02)

# %% [markdown]
# From the last token, head 23.3 puts two thirds of its attention on the *second John*, hardly any on Mary. It seems to find
# the name that must **not** be said again. Keep that thought for notebook 41.
#
# ## How the exercises work
#
# An exercise is one function. You replace the line `raise NotImplementedError`, run the cell, and run the check
# below it. A check says *correct*, *not yet* (with the likely mistake), or *not attempted*. Nothing breaks if
# you skip one: later cells never use your answer. Hints are folded; the last one is the worked answer.
#
# ### Exercise 00.1 The logit difference by hand
#
# Difficulty 1 of 5 · 5 minutes · needs nothing


# %% kind="exercise" id="00.1"
@exercise("00.1")
def logit_difference(logits: Float[Tensor, "pos d_vocab"], answer: int, rival: int) -> Float[Tensor, ""]:
    """Logit of the token `answer` minus logit of the token `rival`, for the token that comes next.

    `logits` has one row for each token of the prompt; row i holds the scores for what follows token i.
    """
    # >>> solution
    return logits[-1, answer] - logits[-1, rival]
    # <<< solution


# %% kind="check"
check(logit_difference)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Which row of `logits` speaks about the token after the *whole* prompt?
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# Take the last row. Pick two numbers from it with the two token ids. Subtract. Do not apply a softmax: we want
# the difference of the scores themselves.
#
# </details>
# <details><summary>Hint 3: the answer</summary>
#
# ```python
# return logits[-1, answer] - logits[-1, rival]
# ```
#
# </details>


# %% kind="wrong" id="00.1" expects="first row"
@exercise("00.1")
def logit_difference(logits, answer, rival):
    return logits[0, answer] - logits[0, rival]


# %% kind="wrong" id="00.1" expects="other way round"
@exercise("00.1")
def logit_difference(logits, answer, rival):
    return logits[-1, rival] - logits[-1, answer]


# %% kind="wrong" id="00.1" expects="probabilities"
@exercise("00.1")
def logit_difference(logits, answer, rival):
    p = logits.softmax(-1)
    return p[-1, answer] - p[-1, rival]


# %% kind="wrong" id="00.1" expects="one number"
@exercise("00.1")
def logit_difference(logits, answer, rival):
    return logits[:, answer] - logits[:, rival]


# %% [markdown]
# ### Exercise 00.2 Your own sentence
#
# Difficulty 1 of 5 · 10 minutes · needs nothing
#
# Write a sentence of the same kind with two names of your own, and predict the sign of the logit difference
# before the check measures it. Make the *answer* the name you expect and the *rival* the other one, or turn them
# round and predict "-".


# %% kind="exercise" id="00.2"
@exercise("00.2")
def my_sentence() -> tuple[str, str, str, str]:
    """Return (prompt, answer, rival, sign).

    The prompt names two people, one of them twice, and stops before the name that should follow. Answer and
    rival are those two names with a leading space, one token each, not John and not Mary. sign is "+" if you
    think that the model scores the answer above the rival, "-" if below.
    """
    # >>> solution
    prompt = "After Paul and Anna left the office, Paul sent a long letter to"
    return prompt, " Anna", " Paul", "+"
    # <<< solution


# %% kind="check"
check(my_sentence, model=model)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Short common names are single tokens: Paul, Anna, Tom, Lisa, David, Sarah. The prompt must not end with a space.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# Pattern: *After A and B did something, A gave something to*. The model should say B. If B is your answer, the
# sign is "+".
#
# </details>
# <details><summary>Hint 3: one answer</summary>
#
# ```python
# prompt = "After Paul and Anna left the office, Paul sent a long letter to"
# return prompt, " Anna", " Paul", "+"
# ```
#
# </details>


# %% kind="wrong" id="00.2" expects="leading space"
@exercise("00.2")
def my_sentence():
    return "After Paul and Anna left the office, Paul sent a long letter to", "Anna", "Paul", "+"


# %% kind="wrong" id="00.2" expects="the model disagrees"
@exercise("00.2")
def my_sentence():
    return "After Paul and Anna left the office, Paul sent a long letter to", " Anna", " Paul", "-"


# %% kind="wrong" id="00.2" expects="tokens for this model"
@exercise("00.2")
def my_sentence():
    return "After Zbigniew and Anna left, Anna sent a letter to", " Zbigniew", " Anna", "+"


# %% kind="wrong" id="00.2" expects="ends with a space"
@exercise("00.2")
def my_sentence():
    return "After Paul and Anna left the office, Paul sent a long letter to ", " Anna", " Paul", "+"


# %% kind="wrong" id="00.2" expects="twice"
@exercise("00.2")
def my_sentence():
    return "After Paul and Anna left the office, Tom sent a letter to", " Anna", " Paul", "+"


# %% [markdown]
# ### A question
#
# We swapped head 23.3 and the answer changed. Which conclusion is safe?
#
# - **a** Head 23.3 alone computes who gets the drink.
# - **b** For this pair of sentences, what head 23.3 passes on differs, and the answer depends on it.
# - **c** Head 23.3 stores the name Mary.

# %% kind="quiz"
quiz("00.a", "b")

# %% [markdown]
# ## Is one sentence enough?
#
# No. Here are sixteen, eight situations in both orders of the names, beside the figures of the paper that took
# GPT-2 small apart on this task (Wang et al. 2022). Same task, another model, fewer sentences: similar, not equal.

# %%
import pandas as pd

sentences = pd.read_csv(ml.reference.data_dir() / "prompts" / "ioi_small.csv")
found = []
with torch.no_grad():
    for row in sentences.itertuples():
        logits = model(model.to_tokens(row.prompt))
        answer, rival = ml.single_token(model, f" {row.answer}"), ml.single_token(model, f" {row.rival}")
        score = ml.logit_difference(answer, rival)(logits).item()
        found.append((score, ml.log_prob(answer)(logits).exp().item()))
scores, chances = torch.tensor(found).T
yours = {
    "mean logit difference (logits)": scores.mean(),
    "share of prompts with the answer above its rival": (scores > 0).float().mean(),
    "mean probability of the answer": chances.mean(),
}
ml.reference.table("00", yours)

# %% kind="assert"
claim(model, "mean logit difference of 16 prompts", scores.mean(), says=4.7, within=0.1)
claim(model, "share above the rival", (scores > 0).float().mean(), says=1.0, within=0.01)

# %% [markdown]
# ## Finding your way
#
# | part | notebooks | question |
# |---|---|---|
# | the transformer, opened | 01 to 03 | what is inside, and what can be seen? |
# | attribution | 11 to 13 | which inputs and which parts? |
# | discovery | 21 to 26 | what is going on inside? |
# | intervention | 31 to 34 | can I change it? |
# | the IOI circuit | 41 to 43 | how do the parts work together? |
#
# Words you do not know are in [docs/glossary.md](../docs/glossary.md). The course uses SmolLM2, a model of 135
# million parameters. Notebooks 01 to 03 take that very model apart. In this one, and from 11 on, you may write
# `ml.load("gpt2")` in the setup cell instead: then the numbers in the text are SmolLM2's, the others yours.
#
# Something odd? Run `mechlab doctor` in a terminal. Your progress is a file on this machine:

# %%
ml.widgets.progress_table()

# %% [markdown]
# ## Recap
#
# | term | in one line | here | TransformerLens |
# |---|---|---|---|
# | token | a piece of text, the unit the model reads | | `model.to_str_tokens` |
# | logit | the score of a possible next token, before softmax | `logits[0, -1]` | `model(tokens)` |
# | logit difference | score of one token minus score of another | `ml.logit_difference` | |
# | head 23.3 | attention head 3 in layer 23, both counted from 0 | `(23, 3)` | `cache["z", 23][..., 3, :]` |
# | activation patching | copy an activation from one run into another | `ml.replace_head` | `model.hooks` |
