# %% [markdown]
# # 00 Start here
#
# **Question:** a language model finishes a sentence correctly. Which of its parts decided that?
#
# After this notebook you will be able to
#
# - run a real language model on your own machine and read what it predicts,
# - copy what one attention head says from one run into another, and see the answer change,
# - use the exercises, checks, hints and progress of this course.
#
# Time: 40 minutes. The cells take about 20 seconds in all. Memory: 1.2 GB.
# Download: none, once the model is here (93 MB).

# %% kind="setup"
# (written by the build)

# %% [markdown]
# ## One sentence
#
# The model reads text in pieces called **tokens**. For every token it knows it computes a score, the **logit**: how
# well would this token continue the text? A **softmax** turns the scores into probabilities: e to the power of each
# score, divided by the sum of all of them.
#
# The whole course uses this **prompt**, a text that the model is asked to go on from. Two people, one of them gives
# something away. Who gets it?

# %% kind="compare"
prompt = "When John and Mary went to the store, John gave a drink to"
with torch.no_grad():
    probabilities = model(model.to_tokens(prompt))[0, -1].softmax(-1)
for p, token in zip(*probabilities.topk(5), strict=True):
    print(f"{p:.2f} {model.to_string([token.item()])!r}")

# %% [markdown]
# The model gives " Mary" a probability of 0.90. To do that it may have noticed that John is there twice and
# Mary once, or only that John is the one who gives: the answer alone does not tell which. The model
# computes in 30 **layers**, one after the other. Each has 9 **attention heads**, parts that move information from one
# token to another. Which of the 270 heads matter here?
#
# ## Change one part
#
# We run the model on a second sentence, in which *Mary* does the giving, so the right answer is " John". Then we run
# the first sentence again, and replace what **one** head says, number 3 of layer 23 (we write 23.3), by what that
# head said in the second sentence. Nothing else is replaced. The layers after it compute as usual, on what they now
# receive.
#
# The number to watch is the **logit difference**: the model's score for " Mary" minus its score for " John".
# Above zero it prefers " Mary", below zero " John".
#
# In the cell, `pair.clean` is the first sentence as token numbers, `pair.corrupted` the second, and `pair.metric`
# computes the logit difference. `run_with_cache` also keeps what the parts of the model computed. Inside
# `with ml.intervene(...)` one of them is replaced. `model` is an object of **TransformerLens**, a library made for
# looking inside models; `ml` is mechlab, the small library of this course.
#
# After the picture comes a folded cell, *Numbers of the text, checked*. There is one wherever the text quotes numbers: it
# compares them with yours. Run it like the others; you need not open it. (VS Code does not fold it: read past it there,
# as it may hold the answer to a prediction.)

# %%
pair = ml.prompt_pair(
    model, prompt, "When John and Mary went to the store, Mary gave a drink to", " Mary", " John"
)
with torch.no_grad():  # we only look, so no gradients are needed
    logits = model(pair.clean)
    other_logits, other_cache = model.run_with_cache(pair.corrupted)
    with ml.intervene(model, ml.replace_head(model, (23, 3), other_cache)):
        patched_logits = model(pair.clean)
first, patched, second = (pair.metric(run).item() for run in (logits, patched_logits, other_logits))
names = ["first sentence", "first sentence, head 23.3 replaced", "second sentence"]
result = ml.Scores([first, patched, second], ("run",), "logit difference (logits)", {"run": names})
result.plot(height=340)

# %% kind="assert"
claim(model, "first sentence", first, says=5.6, within=0.1)
claim(model, "with head 23.3 replaced", patched, says=0.0, within=0.1)
claim(model, "second sentence", second, says=-6.2, within=0.1)
claim(model, "share of the way that 23.3 makes", (first - patched) / (first - second), says=0.47, within=0.01)
silence = {"blocks.23.attn.hook_z": torch.zeros_like(other_cache["z", 23])}
with torch.no_grad(), ml.intervene(model, ml.replace_head(model, (23, 3), silence)):
    claim(model, "with head 23.3 set to zero", pair.metric(model(pair.clean)), says=3.2, within=0.1)

# %% [markdown]
# One head of 270, and the two names are level: 5.6 becomes 0.0. A number that the model computes on the
# way is called an **activation**. Copying activations from one run into another is **activation patching**.
#
# Be careful with what it shows. We did not remove what the head says, we made it say the *opposite*. Set to zero
# instead, it leaves 3.2. And from 5.6 to 0.0 is a little less than half of the way to the −6.2 of the second sentence,
# so other heads matter too. What this head does, and with whom, are the questions of notebooks 41 and 42.
#
# ## Guess, then move the sliders
#
# How many of the other eight heads in layer 23 lower the difference by more than 2 logits when they are replaced?
# Write a number from 0 to 8 in place of the three dots. Predictions are for you; nothing marks them.

# %% kind="predict"
predict("00.p", 0)

# %% [markdown]
# Two sliders choose a layer and a head. The middle bar is the logit difference when what that head says comes from the
# second sentence. Test your guess on layer 23. Then find a head of an earlier layer that matters. The cell after the
# sliders does the same for all nine heads of layer 23 at once.

# %%
sentences = ("first sentence", "second sentence")
ml.widgets.patch_explorer(model, pair.clean, pair.corrupted, pair.metric, layer=23, head=3, names=sentences)

# %%
with torch.no_grad():
    moved = {}
    for head in range(model.cfg.n_heads):
        with ml.intervene(model, ml.replace_head(model, (23, head), other_cache)):
            moved[head] = first - pair.metric(model(pair.clean)).item()
heads = [f"23.{head}" for head in moved]
fall = ml.Scores(list(moved.values()), ("head",), "fall of the logit difference (logits)", {"head": heads})
fall.plot(height=340)

# %% kind="compare"
reveal("00.p", sum(value > 2 for head, value in moved.items() if head != 3))

# %% kind="assert"
strongest = sorted(moved, key=moved.get)[-2:]
claim(model, "fall for 23.3", moved[3], says=5.6, within=0.1)
claim(model, "fall for the next head of the layer", moved[strongest[0]], says=1.0, within=0.1)
assert strongest[-1] == 3 or model.cfg.model_name != "smollm2"

# %% [markdown]
# ## Look where it looks
#
# A head's **pattern** says, for each token (row), how much it takes from itself and from each earlier token
# (column). The shares of a row sum to 1. The text starts with a begin token, `<|im_start|>`. The large picture shows
# 23.3 first: rows (*destination*) look at columns (*source*), and a stronger colour is a larger share. Look at the last row.
# Click another head to see it instead.

# %%
with torch.no_grad():
    _, cache = model.run_with_cache(pair.clean)
order = sorted(range(model.cfg.n_heads), key=lambda head: head != 3)  # head 3, then the others
patterns = cache["pattern", 23][0, order]
ml.attention_view(patterns, model.to_str_tokens(pair.clean[0]), [heads[head] for head in order])

# %% kind="assert"
second_john = pair.position(" John", occurrence=2)[0]
looks = cache["pattern", 23][0, 3, -1, second_john]
claim(model, "23.3, from the last token to the second John", looks, says=0.69, within=0.02)
to_mary = cache["pattern", 23][0, 3, -1, pair.position(" Mary")[0]]
claim(model, "23.3, from the last token to Mary", to_mary, says=0.08, within=0.01)

# %% [markdown]
# From the last token, head 23.3 puts two thirds of its attention on the *second John*, and 0.08 on Mary. It seems to
# find the name that must **not** be said again. Notebook 41 tests this.
#
# ## How the exercises work
#
# An exercise is one function. You replace the line `raise NotImplementedError`, run the cell, and run the check
# below it. A check says *correct*, *not yet* (with the likely mistake), or *not attempted*. Nothing breaks if
# you skip one: later cells never use your answer. Hints are folded below the check; the last one is the worked
# answer. The number of an exercise is its name: where numbers jump, none is missing.
#
# The **kernel**, the Python behind a notebook, forgets everything when it is restarted, or when you come back another
# day: click the cell where you want to go on, then choose *Run > Run All Above Selected Cell*. Your answers and your
# progress stay; `mechlab answers 00` in a terminal prints what a check has called correct, saved or not.
#
# Without a mouse: the arrow keys go from cell to cell, *Enter* edits one, *Escape* ends that, *Shift+Enter* runs it. *Tab* goes to
# sliders, buttons and hints of the cell; arrows move a slider, *Enter* opens a hint, and *J* goes on to the next cell.
#
# `Float[Tensor, "pos d_vocab"]` only says what the axes of a tensor are: one row for each token of the prompt, one
# column for each of the 49,152 tokens the model knows. `Float[Tensor, ""]` has no axes: it is one number.
#
# ### Exercise 00.1 The logit difference by hand
#
# Difficulty 1 of 5 · 5 minutes · needs nothing


# %% kind="exercise" id="00.1"
@exercise("00.1")
def logit_difference(logits: Float[Tensor, "pos d_vocab"], answer: int, rival: int) -> Float[Tensor, ""]:
    """The logit of `answer` minus the logit of `rival`, both as the token that comes next.

    `answer` and `rival` are numbers of tokens.
    `logits` has one row for each token of one prompt (no batch axis); row i scores what follows token i.
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

    The prompt names two people, one of them twice, and stops before the name that should follow. It does not
    begin with a name. Answer and rival are those two names with a leading space, one token each, not John and
    not Mary. sign is "+" if you think that the model scores the answer above the rival, "-" if below.
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


# %% kind="wrong" id="00.2" expects="Do not begin with a name"
@exercise("00.2")
def my_sentence():
    return "Paul and Anna left the office, and Paul sent a letter to", " Anna", " Paul", "+"


# %% kind="wrong" id="00.2" expects="twice"
@exercise("00.2")
def my_sentence():
    return "After Paul and Anna left the office, Tom sent a letter to", " Anna", " Paul", "+"


# %% [markdown]
# ### A question
#
# We replaced what head 23.3 says and the answer changed. Which conclusion is safe? Write its letter, in quotes, in place
# of the three dots.
#
# - **a** Head 23.3 alone computes who gets the drink.
# - **b** For this pair of sentences, what head 23.3 passes on differs, and the answer depends on it.
# - **c** Head 23.3 stores the name Mary.

# %% kind="quiz"
quiz("00.a", "b")

# %% [markdown]
# ## Is one sentence enough?
#
# No. Here are sixteen, eight situations in both orders of the names. One trap is left: perhaps the model just likes some names better. So each
# sentence comes twice, once with either person giving; a mere liking then helps as often as it hurts. Beside
# our numbers stand those of the paper that took GPT-2 small apart on this task, called *indirect object identification* or IOI (Wang et al.
# 2022). Same task, another model, fewer and other sentences: similar, not equal. In the table *stored* is what we measured, *yours* what this cell
# has just measured. The cell also replaces head 23.3 in each sentence, as above.

# %%
import pandas as pd

sentences = pd.read_csv(ml.reference.data_dir() / "prompts" / "ioi_small.csv")
found = []
with torch.no_grad():
    for row in sentences.itertuples():
        before, after = row.prompt.rsplit(row.rival, 1)  # the last time this name comes
        two = ml.prompt_pair(
            model, row.prompt, before + row.answer + after, f" {row.answer}", f" {row.rival}"
        )
        logits, (turned, their_cache) = model(two.clean), model.run_with_cache(two.corrupted)
        with ml.intervene(model, ml.replace_head(model, (23, 3), their_cache)):
            without = two.metric(model(two.clean)).item()
        score, other = two.metric(logits).item(), -two.metric(turned).item()
        chances = [
            ml.log_prob(a)(r).exp().item() for a, r in ((two.answers, logits), (two.incorrect, turned))
        ]
        found.append((score, other, *chances, (score - without) / (score + other)))
table = torch.tensor(found)
scores, chances, shares = table[:, :2].flatten(), table[:, 2:4].flatten(), table[:, 4]
yours = {
    "mean logit difference (logits)": scores.mean(),
    "share of prompts with the answer above its rival": (scores > 0).float().mean(),
    "mean probability of the answer": chances.mean(),
}
ml.reference.table("00", yours)

# %% kind="assert"
claim(model, "mean logit difference of 32 prompts", scores.mean(), says=4.3, within=0.1)
claim(model, "as the list has them, a man gives", table[:, 0].mean(), says=4.7, within=0.1)
claim(model, "with the roles exchanged", table[:, 1].mean(), says=3.9, within=0.1)
claim(model, "share above the rival", (scores > 0).float().mean(), says=1.0, within=0.01)
claim(model, "23.3, smallest share of the way", shares.min(), says=0.37, within=0.05)
claim(model, "23.3, mean share of the way", shares.mean(), says=0.6, within=0.03)

# %% [markdown]
# The answer wins in every sentence, in both roles. The trap was real: in all sixteen, as we had written them, a man gives and
# a woman receives, and the mean is 4.7; with the roles exchanged it is 3.9. Notebook 12 shows how badly that can mislead. And head 23.3 was no accident of
# the first sentence: it makes more than a third of the way in all sixteen, and 0.6 on average.
# (All sixteen have much the same shape. In sentences of other shapes its share is smaller.)
#
# ### Exercise 00.3 A head that holds back (optional)
#
# Difficulty 4 of 5 · 20 minutes · needs the cell that replaces each head of layer 23
#
# Nothing later needs this one; you can come back to it after notebook 03. Not every head works *for* the answer. Find one
# that works against it: with what the head says in the other sentence, the model is even *more* sure of the right name. The check
# tries your head on sentences that you have not seen, in both roles.


# %% kind="exercise" id="00.3"
@exercise("00.3")
def holding_back() -> tuple[int, int]:
    """(layer, head) of a head that works against the right name, on average over new sentences and in most of them."""
    # >>> solution
    return 29, 0
    # <<< solution


# %% kind="check"
check(holding_back, model=model)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# The cell that replaces each head of layer 23 gives the fall of the logit difference. What does a fall below zero mean?
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# Put a second loop around that cell, over the layers 20 to 29, and keep the head with the lowest fall. One sentence can
# mislead: try your two or three best heads with another sentence of your own before you decide.
#
# </details>


# %% kind="wrong" id="00.3" expects="works for the answer"
@exercise("00.3")
def holding_back():
    return 23, 3


# %% kind="wrong" id="00.3" expects="hardly moves"
@exercise("00.3")
def holding_back():
    return 3, 0


# %% kind="wrong" id="00.3" expects="from 0 to 29"
@exercise("00.3")
def holding_back():
    return 30, 0


# %% [markdown]
# ## Finding your way
#
# | part | notebooks | question |
# |---|---|---|
# | the transformer, opened | 01 to 03 | what is inside, and what can be seen? |
# | attribution | 11 to 13 | which inputs and which parts? |
# | discovery | 21 to 26 | what is going on inside? |
# | intervention | 31 to 34 | can I change it? |
# | the circuit for this task (IOI) | 41 to 43 | how do the parts work together? |
#
# Words you do not know are in [the glossary](../docs/glossary.md).
#
# The course uses SmolLM2-135M-Instruct: 135 million **parameters** or weights, the numbers that were learned in
# training. It was trained further on conversations. To make the file small its weights were rounded to about 4 bits each, so its numbers differ a little from the original's. Notebooks 00
# to 03 take this model apart, down to single heads. From 11 on you may write `ml.load("gpt2")` in the setup cell:
# then the numbers in the text are SmolLM2's, the others yours.
#
# Something odd? Run `mechlab doctor` in a terminal. Your progress is a file on this machine. Run the cell
# again to see what is new:

# %%
from mechlab_course import progress_table

progress_table()

# %% [markdown]
# ## Recap
#
# In this table, which ends every notebook, *here* is what the notebook calls a thing, and *TransformerLens* is what that
# library calls it.
#
# | term | in one line | here | TransformerLens |
# |---|---|---|---|
# | token | a piece of text, the unit the model reads | | `model.to_str_tokens` |
# | logit | the score of a possible next token, before softmax | `logits[0, -1]` | `model(tokens)` |
# | logit difference | score of one token minus score of another | `ml.logit_difference` | |
# | head 23.3 | attention head 3 in layer 23, both counted from 0 | `(23, 3)` | `cache["z", 23][..., 3, :]` |
# | activation | a number that the model computes on the way | `other_cache["z", 23]` | `run_with_cache` |
# | activation patching | copy an activation from one run into another | `ml.replace_head` | `model.hooks` |
