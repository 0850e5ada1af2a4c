# %% [markdown]
# # 42 The IOI circuit: proving it
#
# **Question:** is that circuit the whole story?
#
# After this notebook you will be able to
#
# - hold everything outside a circuit still, and measure how much of a behaviour is left,
# - test a circuit by removal: what it lacks, which heads it needs, and who steps in,
# - draw a line before you look, and say which results lie beyond it for sure,
# - say to which ablation value, metric and prompts a figure belongs, and expose a circuit that only looks good.
#
# Time: 115 minutes. The cells take about 100 seconds in all. Memory: 2.5 GB.
# Download: none, once the model is here (93 MB). Before: notebooks 24 and 41.

# %% kind="setup"
# (written by the build)

# %% [markdown]
# ## The picture
#
# Notebook 41 walked back from the logits and found who reads whom. From that, a circuit of 26 heads was put together on 48 prompts, and then fixed. Each
# head stands at the position where its role acts. A line (an **edge**) goes from a head to its reader; the letter says what it enters there: queries (q), keys (k) or
# values (v). An empty circle is a line into the logits. Thick lines carry more; those below 0.03 are left out.

# %%
from dataclasses import replace

circuit = ml.ioi.found_circuit()
for role, heads in circuit.roles.items():
    print(f"{role} (at {', '.join(circuit.at[role])}): {', '.join(f'{a}.{b}' for a, b in heads)}")
strongest = max(circuit.edges, key=lambda edge: abs(edge.effect))
assert len(circuit.heads) == 26 and (strongest.sender, strongest.receiver) == ((23, 3), None)
strong = replace(circuit, edges=[edge for edge in circuit.edges if abs(edge.effect) >= 0.03])
ml.circuit_picture(strong, title="26 heads that find the indirect object, and who reads whom")

# %% [markdown]
# Fifteen heads come from the rules of notebook 41, without its joint intervals; the other eleven were added because with them the circuit behaves more like the model. (docs/ioi_report.md: which came from
# where, and which roles pass.) About twenty circuits were compared on those prompts, so their figures may
# be too good. We ask again, with names that the search never saw.
#
# ## Everything else held still
#
# To **mean-ablate** a head, or **knock** it **out**, is to hold its output at its mean over ABC prompts: three different names, no answer. The mean is taken for each template,
# each order of the two names and each position apart (notebook 24). MLPs, norms and embeddings compute as usual. **F(C)** is the mean logit difference when all heads outside the circuit C are knocked out;
# **F(M)** that of the whole model M.
#
# A head stays in only where its role acts. S1+1 is earlier where the subject comes first, later where it comes second; so each prompt has its own mask.

# %%
from mechlab.results import named

names = ml.ioi.NAMES[1::2]  # the search used NAMES[::2]
prompts = ml.ioi_prompts(model, 32, names=names)
abc = ml.ioi_prompts(model, 128, names=names, seed=1).corrupted("abc")
knockouts = ml.CircuitRuns(model, prompts, abc)
print("an IOI prompt: ", prompts.text(0))
print("its ABC prompt: ", prompts.corrupted("abc").text(0))
print(f"logit difference of the model: {knockouts.mean(knockouts.intact)}")

# %% kind="assert"
claim(model, "F(M)", knockouts.intact.mean(), says=3.8, within=0.05)
assert not set(prompts.io.tolist()) & set(ml.ioi_prompts(model, 48, names=ml.ioi.NAMES[::2]).io.tolist())

# %% [markdown]
# The brackets are a 95 % interval over the pairs of prompts.
#
# ### Exercise 42.1 Where a head stays in
#
# Difficulty 3 of 5 · 8 minutes · needs indexing


# %% kind="exercise" id="42.1"
@exercise("42.1")
def stays_in(
    acts: dict[tuple[int, int], list[str]],
    positions: dict[str, Int[Tensor, "prompt"]],
    shape: tuple[int, int, int, int],
) -> Tensor:
    """True where a head of the circuit acts, False elsewhere: a bool tensor of this shape, [layer, prompt, pos, head].

    acts: {(layer, head): names of positions}; positions: where each of them stands, in each prompt its own.
    """
    # >>> solution
    kept = torch.zeros(shape, dtype=torch.bool)
    rows = torch.arange(shape[1])
    for (layer, head), names in acts.items():
        for name in names:
            kept[layer, rows, positions[name], head] = True
    return kept
    # <<< solution


# %% kind="check"
check(stays_in)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# Start with all False. For one head and one name of a position: which cell of the mask belongs to prompt 0, which to prompt 1?
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# Two index tensors of one length pick pairs: `kept[layer, rows, positions[name], head] = True` with `rows = torch.arange(...)` marks one position in each prompt.
#
# </details>


# %% kind="wrong" id="42.1" expects="its own position"
@exercise("42.1")
def stays_in(acts, positions, shape):
    kept = torch.zeros(shape, dtype=torch.bool)
    for (layer, head), names in acts.items():
        for name in names:
            kept[layer, :, positions[name], head] = True
    return kept


# %% kind="wrong" id="42.1" expects="at every position"
@exercise("42.1")
def stays_in(acts, positions, shape):
    kept = torch.zeros(shape, dtype=torch.bool)
    for layer, head in acts:
        kept[layer, :, :, head] = True
    return kept


# %% kind="wrong" id="42.1" expects="the other way round"
@exercise("42.1")
def stays_in(acts, positions, shape):
    kept = torch.ones(shape, dtype=torch.bool)
    rows = torch.arange(shape[1])
    for (layer, head), names in acts.items():
        for name in names:
            kept[layer, rows, positions[name], head] = False
    return kept


# %% kind="wrong" id="42.1" expects="only one of its positions"
@exercise("42.1")
def stays_in(acts, positions, shape):
    kept = torch.zeros(shape, dtype=torch.bool)
    for (layer, head), names in acts.items():
        kept[layer, torch.arange(shape[1]), positions[names[0]], head] = True
    return kept


# %% [markdown]
# By hand, with a hook, for head 23.3 at the end of one pair of prompts, beside the library:


# %%
pair, where = prompts.rows([0, 1]), "blocks.23.attn.hook_z"
few = abc.rows([n for n, template in enumerate(abc.templates) if template in pair.templates])
with torch.no_grad():
    _, cache = model.run_with_cache(few.tokens, names_filter=where, stop_at_layer=24)


def by_hand(z, hook):
    changed = z.clone()
    for row, template in enumerate(pair.templates):
        same = [n for n, other in enumerate(few.templates) if other == template]
        changed[row, -1, 3] = cache[where][same, -1, 3].mean(0)
    return changed


with torch.no_grad(), ml.intervene(model, [(where, by_hand)]):
    left = pair.metric(model(pair.tokens))
suppressor = ml.Circuit({"suppressor": [(23, 3)]}, {"suppressor": ["end"]})
library = knockouts.removing([suppressor])[0, :2]
print(f"by hand {left.mean():.3f}, library {library.mean():.3f}, intact {knockouts.intact[:2].mean():.3f}")

# %% kind="assert"
assert (pair.positions["end"] == pair.tokens.shape[1] - 1).all()
assert (left - library).abs().max() < 1e-3
whole, everything = None, ml.Circuit.of([(layer, head) for layer in range(30) for head in range(9)])
assert torch.allclose(knockouts.measure([whole])[0], knockouts.intact)
assert torch.allclose(knockouts.measure([everything])[0], knockouts.intact)

# %% [markdown]
# They agree; and with nothing knocked out, said either way, the model is intact.
#
# ## Faithful?
#
# A circuit is **faithful** if F(C) is near F(M). The share that is left is F(C) / F(M): a ratio of two means. The mean of the prompts' own ratios
# would be another thing: a prompt with a difference near 0 would swamp it.
#
# ### Exercise 42.3 The share that is left
#
# Difficulty 4 of 5 · 12 minutes · needs 24.4, the bootstrap


# %% kind="exercise" id="42.3"
@exercise("42.3")
def share_left(
    circuit: Float[Tensor, "prompt"],
    whole: Float[Tensor, "prompt"],
    pairs: Int[Tensor, "prompt"],
    draws: int,
    generator: torch.Generator,
) -> tuple[float, float, float]:
    """mean(circuit) / mean(whole), and the low and high end of its 95 % bootstrap interval.

    The two prompts of a pair (equal numbers in `pairs`) are not independent: draw pairs, as many as there are. Each draw
    serves both means.
    """
    # >>> solution
    numbers = pairs.unique(return_inverse=True)[1]
    many = int(numbers.max()) + 1
    top, bottom = (torch.zeros(many).index_add_(0, numbers, each) for each in (circuit, whole))
    drawn = torch.randint(many, (draws, many), generator=generator)
    ratios = top[drawn].sum(1) / bottom[drawn].sum(1)
    low, high = ratios.quantile(torch.tensor([0.025, 0.975]))
    return (top.sum() / bottom.sum()).item(), low.item(), high.item()
    # <<< solution


# %% kind="check"
check(share_left)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# First add up each pair: two tensors with one number a pair. Then bootstrap as in 24.4, with pairs in place of prompts.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# `pairs.unique(return_inverse=True)[1]` numbers the pairs 0, 1, 2, ...; `torch.zeros(many).index_add_(0, numbers, values)` adds up each pair. One
# `drawn` of shape [draws, many] picks from both sums; divide the sums, draw by draw.
#
# </details>
#
# Beside the circuit three controls: no head at all; 26 other heads at the same positions; 26 other heads that stay in everywhere.


# %% kind="wrong" id="42.3" expects="mean of the prompts' ratios"
@exercise("42.3")
def share_left(circuit, whole, pairs, draws, generator):
    ratios = circuit / whole
    n = len(ratios)
    means = ratios[torch.randint(n, (draws, n), generator=generator)].mean(1)
    low, high = means.quantile(torch.tensor([0.025, 0.975]))
    return ratios.mean().item(), low.item(), high.item()


# %% kind="wrong" id="42.3" expects="draw pairs"
@exercise("42.3")
def share_left(circuit, whole, pairs, draws, generator):
    n = len(whole)
    drawn = torch.randint(n, (draws, n), generator=generator)
    low, high = (circuit[drawn].mean(1) / whole[drawn].mean(1)).quantile(torch.tensor([0.025, 0.975]))
    return (circuit.mean() / whole.mean()).item(), low.item(), high.item()


# %% kind="wrong" id="42.3" expects="drawn apart"
@exercise("42.3")
def share_left(circuit, whole, pairs, draws, generator):
    numbers = pairs.unique(return_inverse=True)[1]
    many = int(numbers.max()) + 1
    top, bottom = (torch.zeros(many).index_add_(0, numbers, each) for each in (circuit, whole))
    one, other = (torch.randint(many, (draws, many), generator=generator) for _ in range(2))
    low, high = (top[one].sum(1) / bottom[other].sum(1)).quantile(torch.tensor([0.025, 0.975]))
    return (top.sum() / bottom.sum()).item(), low.item(), high.item()


# %% kind="wrong" id="42.3" expects="of the pairs' own ratios"
@exercise("42.3")
def share_left(circuit, whole, pairs, draws, generator):
    numbers = pairs.unique(return_inverse=True)[1]
    many = int(numbers.max()) + 1
    top, bottom = (torch.zeros(many).index_add_(0, numbers, each) for each in (circuit, whole))
    low, high = (top / bottom).quantile(torch.tensor([0.025, 0.975]))
    return (top.sum() / bottom.sum()).item(), low.item(), high.item()


# %%
generator = torch.Generator().manual_seed(0)
pool = [(layer, head) for layer in range(30) for head in range(9) if (layer, head) not in circuit.heads]


def strangers():
    drawn = iter([pool[n] for n in torch.randperm(len(pool), generator=generator).tolist()])
    return {role: [next(drawn) for _ in heads] for role, heads in circuit.roles.items()}


asked = {"the circuit": circuit, "no head at all": ml.Circuit({})}
asked |= {f"others, same places {n}": ml.Circuit(strangers(), circuit.at) for n in (1, 2)}
asked |= {f"others, everywhere {n}": ml.Circuit(strangers()) for n in (1, 2)}
found = dict(zip(asked, ml.faithfulness(knockouts, list(asked.values())), strict=True))


def shares(found):
    rows = {name: [each.share.mean, each.share.low, each.share.high] for name, each in found.items()}
    return ml.dots(rows, "share of the logit difference left, 95 % intervals over pairs", limits=[1])


shares(found)

# %% kind="assert"
claim(model, "share of the circuit", found["the circuit"].share.mean, says=0.91, within=0.03)
claim(model, "its low end", found["the circuit"].share.low, says=0.71, within=0.04)
claim(model, "its high end", found["the circuit"].share.high, says=1.07, within=0.04)
claim(model, "no head at all", found["no head at all"].share.mean, says=0.04, within=0.03)
assert max(each.share.mean for name, each in found.items() if name.startswith("others")) < 0.06

# %% [markdown]
# With a tenth of the heads, each at one or two positions, about nine tenths are left; with none, or with 26 others, next to nothing.
#
# ## How big must it be?
#
# Take the suppressor 23.3 alone: more than half is left. Add the four name movers. What share is left with these five?

# %% kind="predict"
predict("42.p", 0.9)


# %%
def only(heads):
    return circuit.without([head for head in circuit.heads if head not in heads])


steps = {"23.3": [(23, 3)]}
for role in ("name mover", "S-inhibition", "induction", "previous token", "duplicate token"):
    steps[f"+ {role}"] = circuit.roles[role]
so_far, growing = [], []
for heads in steps.values():
    so_far = [*so_far, *heads]
    growing.append(only(so_far))
grown = dict(zip(steps, ml.faithfulness(knockouts, growing), strict=True))
shares(grown)

# %% kind="assert"
for (name, each), says in zip(grown.items(), (0.61, -0.23, -0.22, -0.21, 0.3, 1.05), strict=True):
    claim(model, name, each.share.mean, says=says, within=0.04)
reveal("42.p", round(grown["+ name mover"].share.mean, 2))

# %% [markdown]
# <details><summary>What we saw</summary>
#
# Below zero: the model now prefers the subject. A guess: without S-inhibition the name movers copy the subject, who stands there twice, more than IO. The S-inhibition heads alone change nothing: what
# they read is brought by induction and duplicate-token heads, and those read 16.0. A chain does
# nothing until it is whole.
#
# </details>
#
# And a ranking by what heads do alone? Knock out each head of the circuit by itself in the whole model, order them by the size of the change, and keep the first
# few:

# %%
alone = {head: (knockouts.removing([only([head])])[0] - knockouts.intact).mean() for head in circuit.heads}
order = sorted(alone, key=lambda head: -alone[head].abs())
sizes = [1, 4, 6, 8, 16, 26]
top, six = ml.faithfulness(knockouts, [only(order[:size]) for size in sizes]), only(order[:6])
by_size = {"1 head" if size == 1 else f"{size} heads": each for size, each in zip(sizes, top, strict=True)}
print("in this order:", named(order[:8]), "...")
shares(by_size)

# %% kind="assert"
assert set(six.heads) == {(8, 1), (16, 0), (17, 4), (20, 0), (23, 3), (29, 1)}
assert set(order[6:8]) == {(29, 0), (24, 5)}
for size, says in (("1 head", 0.61), ("6 heads", 0.88), ("8 heads", 0.56), ("26 heads", 0.91)):
    claim(model, size, by_size[size].share.mean, says=says, within=0.04)
apart = knockouts.ratio(by_size["26 heads"].per_prompt - by_size["6 heads"].per_prompt, knockouts.intact)
print(f"26 heads minus six, as a share: {apart}")
assert apart.low < 0 < apart.high

# %% [markdown]
# More is not better: eight heads leave less than six. (The seventh and eighth speak against the answer.) And six cannot be told from 26 on these prompts, which picked them. (On one of two other draws they kept less.)
#
# So there is a second circuit: 8.1, 16.0, 17.4, 20.0, 23.3, 29.1. Nearly as faithful, and smaller. Is it the better account?
#
# ## Complete?
#
# Ask both the same question about a part K: what if it is gone? A circuit is **complete** if F(C without K) is near F(M without K) for every part K of it. A gap
# says that the model has something which the circuit lacks, or leans on K where the circuit does not.
#
# In numbers: the **gap** is F(C without K) − F(M without K). Take 20.0 away, the head that tells the name movers where not to look, from the six and from the model. Will the gap of the six be above zero, below, or
# about zero?

# %% kind="predict"
predict("42.q", "about zero")

# %%
import pandas as pd

sets = {named([head]): [head] for head in [(17, 4), (20, 0), (23, 3)]}
gaps = {name: ml.completeness(knockouts, c, sets) for name, c in (("26 heads", circuit), ("six heads", six))}


def ends_of(table):
    return {name: [row["gap"], row["95 % low"], row["95 % high"]] for name, row in table.iterrows()}


tables = {name: table.set_index(f"{name}, without " + table["set K"]) for name, table in gaps.items()}
rows = {name: ends for table in tables.values() for name, ends in ends_of(table).items()}
ml.dots(rows, "gap (logits), 95 % intervals over pairs", groups={name: name.split(",")[0] for name in rows})

# %% kind="assert"
claim(model, "model without 20.0", gaps["six heads"]["model without K"][1], says=1.93, within=0.1)
claim(model, "six without 20.0", gaps["six heads"]["circuit without K"][1], says=3.2, within=0.1)
claim(model, "26 without 20.0", gaps["26 heads"]["circuit without K"][1], says=1.74, within=0.1)
claim(model, "six without 23.3", gaps["six heads"]["circuit without K"][2], says=0.2, within=0.1)
claim(model, "model without 23.3", gaps["six heads"]["model without K"][2], says=1.91, within=0.1)
claim(model, "largest gap of 26", gaps["26 heads"]["gap"].abs().max(), says=0.47, within=0.1)
assert gaps["six heads"]["95 % low"][1] > 0 > gaps["six heads"]["95 % high"][2]
reveal("42.q", f"a gap of {gaps['six heads']['gap'][1]:+.1f}")

# %% [markdown]
# <details><summary>What we saw</summary>
#
# Without 20.0 the model loses half of its logit difference. The six do not notice: their S-inhibition head has no name movers to tell. Without 23.3 the model keeps half, the six
# next to nothing: they are 23.3, amplified by 29.1. **The small circuit gives the right answer for a part of the model's reasons.** The 26 follow the model, with gaps of half a logit at most.
#
# </details>
#
# The paper has such a pair too: its "naive" circuit is closer to F(M) than its full one, and fails this test at once.
#
# A search can look for the K with the largest gap. A **greedy** search starts with nothing, draws a few candidates, adds the one that makes the gap
# largest, and goes on. On other prompts, with the names of the search:

# %%
theirs = ml.ioi.NAMES[::2]
found_on = ml.CircuitRuns(
    model,
    ml.ioi_prompts(model, 16, names=theirs, seed=3),
    ml.ioi_prompts(model, 64, names=theirs, seed=4).corrupted("abc"),
)
K, gap_there = ml.greedy_gap(found_on, circuit, candidates=5, steps=3)
again = ml.completeness(knockouts, circuit, {"greedy": K})
print(f"K = {named(K)}: gap {gap_there:.2f} where it was found")
again

# %% kind="assert"
empty = found_on.measure([circuit])[0] - found_on.intact
claim(model, "gap of an empty K there", empty.mean(), says=0.5, within=0.1)
claim(model, "greedy gap where it was found", gap_there, says=0.8, within=0.15)
claim(model, "greedy gap on other prompts", again["gap"][0], says=-0.07, within=0.15)

# %% [markdown]
# Large where it was searched (and half of that with nothing removed), about zero on other prompts. The largest of many noisy numbers is too
# large: ask it again.
#
# ### Exercise 42.7 A gap that holds
#
# Difficulty 5 of 5 · 40 minutes · needs `ml.completeness`, ideas, and some minutes of the machine
#
# Find a set K of two to five heads of the circuit, no whole role, so that without K the circuit falls **below** the model, by 0.3 logits or more: something outside steps in, which the circuit lacks. The check asks
# your K on names that no notebook has, and the interval must stay below zero. Search on `found_on` or on prompts of your own; `ml.completeness(found_on, circuit, {"mine": K})` takes about two seconds.


# %% kind="exercise" id="42.7"
@exercise("42.7")
def a_gap_that_holds() -> list[tuple[int, int]]:
    """Two to five heads of the circuit: without them F(C without K) − F(M without K) is −0.3 or less, also on new names."""
    # >>> solution
    return [(20, 0), (8, 1), (24, 4)]
    # <<< solution


# %% kind="check"
check(a_gap_that_holds, model=model)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# The gap is negative where the model has a substitute that stands outside the circuit. Which jobs does the circuit give to one head only? And which heads, once gone, leave the circuit with nothing that speaks for the answer?
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# Begin with heads whose single gap on `found_on` is the most negative, add one head at a time, and keep what makes the gap more negative. Then, before you hand it in, ask the two best sets again on other prompts
# (another `seed`): the better one on the first prompts is often not the better one on the second.
#
# </details>
#
# ## Which gaps would change your mind?
#
# Larger runs (`data/make/ioi.py`), on 208 prompts with held-out names: each role as K, ten random halves of the circuit, and three greedy sets that were searched on other names. A line is drawn
# **before** one looks: half a logit, an eighth of F(M). A gap beyond it *for sure* would change our mind about the circuit; one whose interval crosses the line leaves us where we were.
#
# ### Exercise 42.8 Beyond the line
#
# Difficulty 3 of 5 · 8 minutes · needs intervals


# %% kind="exercise" id="42.8"
@exercise("42.8")
def verdicts(gaps: dict[str, tuple[float, float, float]], line: float) -> dict[str, str]:
    """For each set K "beyond", "within" or "open". gaps: name -> (gap, low end, high end). The lines are at −line and +line.

    beyond: every value in the interval is larger in size than `line`, on the same side. within: every one is smaller in
    size. open: the interval holds values of both kinds. (An end right on a line leaves it open.)
    """
    # >>> solution
    found = {}
    for name, (_, low, high) in gaps.items():
        if low > line or high < -line:
            found[name] = "beyond"
        else:
            found[name] = "within" if -line < low and high < line else "open"
    return found
    # <<< solution


# %% kind="check"
check(verdicts)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# The gap itself is not asked. Draw the two lines and the interval on paper: which ways can it lie?
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# Beyond: the low end is above the upper line, or the high end below the lower one. Within: both ends between the lines. All else is open.
#
# </details>
#
# How many of 23 will lie beyond the line for sure?


# %% kind="wrong" id="42.7" expects="whole role"
@exercise("42.7")
def a_gap_that_holds():
    return ml.ioi.found_circuit().roles["name mover"]


# %% kind="wrong" id="42.7" expects="the circuit has more left"
@exercise("42.7")
def a_gap_that_holds():
    return [(29, 0), (29, 1), (20, 0)]


# %% kind="wrong" id="42.7" expects="not in the circuit"
@exercise("42.7")
def a_gap_that_holds():
    return [(20, 0), (11, 1)]


# %% kind="wrong" id="42.7" expects="may be zero"
@exercise("42.7")
def a_gap_that_holds():
    return [(20, 0), (24, 4), (24, 5)]


# %% kind="wrong" id="42.8" expects="from the gap alone"
@exercise("42.8")
def verdicts(gaps, line):
    return {name: "beyond" if abs(gap) > line else "within" for name, (gap, _, _) in gaps.items()}


# %% kind="wrong" id="42.8" expects="the lower line"
@exercise("42.8")
def verdicts(gaps, line):
    kind = lambda low, high: "beyond" if low > line else "within" if high < line else "open"
    return {name: kind(low, high) for name, (_, low, high) in gaps.items()}


# %% kind="wrong" id="42.8" expects="whether it holds zero"
@exercise("42.8")
def verdicts(gaps, line):
    kind = lambda low, high: "beyond" if low > 0 or high < 0 else "within"
    return {name: kind(low, high) for name, (_, low, high) in gaps.items()}


# %% kind="predict"
predict("42.r", 5)

# %%
from mechlab.statistics import holm

stored = ml.ioi.found_figures()
gaps_stored = pd.DataFrame(stored["completeness"]).T
rows = {name: [float(x) for x in ends] for name, ends in ends_of(gaps_stored).items()}
kind_of = {
    name: "greedy sets" if "greedy" in name else "random halves" if "random" in name else "roles"
    for name in rows
}
ml.dots(rows, "gap (logits), 208 prompts, 95 % intervals over pairs", groups=kind_of, limits=[-0.5, 0.5])

# %%
gap, low, high = (torch.tensor([ends[n] for ends in rows.values()]) for n in range(3))
beyond = [name for name, lo, hi in zip(rows, low, high, strict=True) if lo > 0.5 or hi < -0.5]
within = [name for name, lo, hi in zip(rows, low, high, strict=True) if lo > -0.5 and hi < 0.5]
print("beyond:", ", ".join(beyond))
print("within:", ", ".join(within))
assert len(rows) == 23 and [*circuit.roles] == [name for name in rows if kind_of[name] == "roles"]
assert not set(beyond) & {*circuit.roles} and len(set(circuit.roles) & {*within}) == 8
assert sum("random" in name for name in beyond) == 3 and set(beyond) - {f"random {n}" for n in range(11)} == {
    "greedy 1",
    "greedy 3",
}
claim(model, "the largest", gap.abs().max(), says=0.89, within=0.03)
further = (gap.abs() - 0.5) / ((high - low) / 3.92)  # beyond the line, in standard errors
passed = holm(1 - torch.distributions.Normal(0, 1).cdf(further))
assert {name for name, yes in zip(rows, passed, strict=True) if yes} == {*beyond} - {"greedy 3"}
assert (gap[10:20] > 0).sum() == 9
reveal("42.r", len(beyond))

# %% [markdown]
# <details><summary>What we saw</summary>
#
# Of the roles none lies beyond the line for sure. Eight lie within it; late heads and name movers are open. Three random halves and two greedy sets lie beyond it. (Corrected for 23 questions by Holm's rule, greedy 3 is open too.) So: role by role the circuit follows the model, and
# as a whole it does not. For nine of ten random halves the gap is positive, so the circuit has more left: it lacks something that speaks *against* the answer. For one greedy set it lacks something that speaks for it.
#
# </details>
#
# The largest gap known is a fifth of F(M). The paper's greedy search found one of 87 % of its F(M); it was longer than ours (docs/ioi_report.md). And a gap on these eight sentence forms says nothing about others.
#
# ## Is every head needed?
#
# A circuit is **minimal** if each head v is needed for something: there is a K so that C without K changes when v goes too. Why a K? Because a head can have doubles: as
# long as they are there, nobody misses it.
#
# ### Exercise 42.5 What a head is needed for
#
# Difficulty 3 of 5 · 6 minutes · needs nothing


# %% kind="exercise" id="42.5"
@exercise("42.5")
def most_needed(left, circuit: list, head: tuple[int, int], options: list[list]) -> tuple[list, float]:
    """The K of `options` without which `head` matters most, and how much: F(C without K and head) − F(C without K).

    Most: the largest change in either direction. The change keeps its sign. left(heads): F when only these heads compute. No K holds the head.
    """
    # >>> solution
    changes = []
    for K in options:
        rest = [other for other in circuit if other not in K]
        changes.append(left([other for other in rest if other != head]) - left(rest))
    best = max(range(len(options)), key=lambda n: abs(changes[n]))
    return options[best], changes[best]
    # <<< solution


# %% kind="check"
check(most_needed)

# %% [markdown]
# <details><summary>Hint 1: a nudge</summary>
#
# For each K two numbers are compared: the circuit without K, and the circuit without K and without the head.
#
# </details>
# <details><summary>Hint 2: the method</summary>
#
# `rest = [other for other in circuit if other not in K]`; the change is `left(rest without head) - left(rest)`. Keep the K where `abs(change)` is largest.
#
# </details>
#
# Two of the name movers, once taken from the full circuit, and once with the three others gone already:


# %% kind="wrong" id="42.5" expects="in either direction"
@exercise("42.5")
def most_needed(left, circuit, head, options):
    best = ([], 0.0)
    for K in options:
        rest = [other for other in circuit if other not in K]
        change = left([other for other in rest if other != head]) - left(rest)
        if change > best[1]:
            best = (K, change)
    return best


# %% kind="wrong" id="42.5" expects="K is gone on both sides"
@exercise("42.5")
def most_needed(left, circuit, head, options):
    best = ([], 0.0)
    for K in options:
        gone = [other for other in circuit if other not in K and other != head]
        change = left(gone) - left(circuit)
        if abs(change) >= abs(best[1]):
            best = (K, change)
    return best


# %% kind="wrong" id="42.5" expects="keeps its sign"
@exercise("42.5")
def most_needed(left, circuit, head, options):
    best = ([], 0.0)
    for K in options:
        rest = [other for other in circuit if other not in K]
        change = left([other for other in rest if other != head]) - left(rest)
        if abs(change) >= best[1]:
            best = (K, abs(change))
    return best


# %% kind="wrong" id="42.5" expects="the other way round"
@exercise("42.5")
def most_needed(left, circuit, head, options):
    best = ([], 0.0)
    for K in options:
        rest = [other for other in circuit if other not in K]
        change = left(rest) - left([other for other in rest if other != head])
        if abs(change) >= abs(best[1]):
            best = (K, change)
    return best


# %%
movers, two = circuit.roles["name mover"], [(23, 0), (23, 2)]
mates = [[other for other in movers if other != head] for head in two]
none_left, *left = knockouts.measure(
    [circuit.without(heads) for heads in (movers, *mates, *([h] for h in two))]
)
as_last = [none_left - each for each in left[:2]]
from_all = [each - found["the circuit"].per_prompt for each in left[2:]]
for head, one, then in zip(two, from_all, as_last, strict=True):
    print(f"{named([head])}: from all {knockouts.mean(one)}, as the last of its role {knockouts.mean(then)}")

# %% kind="assert"
claim(model, "23.0 from all", from_all[0].mean(), says=0.1, within=0.1)
claim(model, "23.2 from all", from_all[1].mean(), says=0.03, within=0.1)
claim(model, "23.0 as the last", as_last[0].mean(), says=-0.37, within=0.1)
claim(model, "23.2 as the last", as_last[1].mean(), says=-0.26, within=0.1)

# %% [markdown]
# From the full circuit neither is missed. As the last of their role they are.
#
# Stored, for all heads: K is empty, the rest of the head's own role, or one other role. Which, was chosen on the 48 prompts; the change is measured on the 208. Colour says which way F goes without the head:

# %%
needs = pd.DataFrame(stored["minimality"]).T.rename(columns={"change": "gap"})
needs = needs.sort_values("gap", key=lambda column: column.astype(float))
rows = {f"{head}, {needs['role'][head]}": [float(x) for x in ends] for head, ends in ends_of(needs).items()}
way = {name: "worse without it" if ends[0] < 0 else "better without it" for name, ends in rows.items()}
ml.dots(rows, "change of F without the head (logits), 95 % intervals over pairs", groups=way)

# %% kind="assert"
share, low, high = (needs[name].astype(float) for name in ("share", "95 % low", "95 % high"))
better = needs.index[low > 0]
assert len(needs) == 26 and {"29.0", "23.1", "23.7"} <= {*better} and len(better) == 6
assert not ((low <= 0) & (high >= 0)).any()
claim(model, "the smallest change, share of F(M)", share.min(), says=0.055, within=0.003)

# %% [markdown]
# The paper asks for a change of 1 % of F(M) from every head. Every head here reaches five times that. But the question is
# generous: of up to eleven K the best was taken, and any change counts. For six heads, 29.0 first, the change is for the *better*. A head that gets in the way counts as "needed" too.
#
# ## Who steps in?
#
# Notebook 24 left a question: without the four name movers nothing is lost. Who makes up for them? Direct contributions
# (notebook 12), before and after:

# %%
four = only(movers)
before, after = (ml.direct_contributions(knockouts, gone) for gone in (None, four))
total = knockouts.mean(knockouts.removing([four])[0] - knockouts.intact)
said = sum(before.values[head] for head in movers)
heads = [*movers, (23, 3), (23, 4), (23, 5), (24, 4), (24, 5), (29, 0), (29, 1), (29, 2)]
both = torch.stack([torch.stack([each.values[head] for head in heads]) for each in (before, after)])
print(f"the four say {said:.2f} directly; without them the model changes by {total}")
labels = {"name movers": ["all in place", "without the four"], "head": [named([head]) for head in heads]}
ml.Scores(both, tuple(labels), "direct contribution (logits)", labels).plot(
    title="what each head says, with and without the four name movers (logits)", height=280
)

# %% kind="assert"
rise = dict(zip(labels["head"], both[1] - both[0], strict=True))
claim(model, "said by the four", said, says=1.3, within=0.1)
claim(model, "change of the model", total.mean, says=-0.06, within=0.1)
for head, says in {"24.4": 0.53, "23.3": 0.26, "29.2": 0.18, "29.0": 0.15, "29.1": 0.09}.items():
    claim(model, f"rise of {head}", rise[head], says=says, within=0.06)
at_24_4 = both[:, labels["head"].index("24.4")]
claim(model, "24.4 before", at_24_4[0], says=-0.34, within=0.06)
claim(model, "24.4 after", at_24_4[1], says=0.19, within=0.06)
assert abs(rise["23.4"]) < 0.05 and abs(rise["23.5"]) < 0.05 and abs(before.values[20, 0]) < 0.1
claim(model, "louder by", both[1, 4] / both[0, 4], says=1.15, within=0.03)
claim(model, "29.1, only louder", 0.15 * both[0, 10], says=0.14, within=0.01)

# %% [markdown]
# The four say much, and without them the model loses nothing. This is **self-repair**. 24.4 steps in first: with the name movers it speaks against the answer, without them for it. Then 29.2 and 29.0. And 23.3 says more, though it
# stands *beside* the four and cannot know. It writes what it wrote; but without the four the stream is shorter, and the last norm makes everything in it louder, by a factor of 1.15. (So 29.1, too, gives no help:
# it rises by less than the norm alone would lift it.) We found no **backup name movers**, heads that in GPT-2 begin to copy when the others are gone (docs/ioi_report.md).
#
# ## Try it
#
# Click any head. Five things to try:
#
# 1. It opens at 23.3. Read where it looks. What it says itself and what is lost without it are nearly the same.
# 2. Click 23.0. It says 0.6. Is as much lost without it?
# 3. Press "Remove all 4 of its role". Then also remove 23.3. Is the loss larger than without 23.3 alone?
# 4. Put all back and click 20.0. It says next to nothing. What is lost, and who reads it?
# 5. Click 29.0. What does the model do without it?


# %%
together = (knockouts.removing([only([*movers, (23, 3)])])[0] - knockouts.intact).mean()
claim(model, "without 23.3", alone[23, 3], says=-1.89, within=0.1)
claim(model, "without 23.3 and the four", together, says=-2.38, within=0.15)
claim(model, "without 29.0", alone[29, 0], says=0.66, within=0.1)
ml.circuit_explorer(knockouts, circuit, start=(23, 3))

# %% [markdown]
# Without the four next to nothing is lost; without 23.3 much, and without all five still more: the two ways of solving the task stand in for
# each other, in part.
#
# ## How it misleads
#
# **What stands in.** The circuit, and the five heads from above, with three **ablation values**: the mean over ABC prompts; zero, so that knocked-out heads say nothing; and the
# mean over other IOI prompts, of the same template and order.

# %%
ioi = ml.ioi_prompts(model, 64, names=names, seed=1)
ways = {"mean over ABC": knockouts, "zero": ml.CircuitRuns(model, prompts, abc, "zero")}
ways["mean over IOI"] = ml.CircuitRuns(model, prompts, ioi)
tried = {"26 heads": circuit, "23.3 and name movers": only([(23, 3), *movers])}
tried_with = {
    f"{name}, {way}": each
    for way, runs in ways.items()
    for name, each in zip(tried, ml.faithfulness(runs, list(tried.values())), strict=True)
}
lost = {name: (way.removing([only([(20, 0)])])[0] - way.intact).mean() for name, way in ways.items()}
print("lost without 20.0:", ", ".join(f"{name} {each:.2f}" for name, each in lost.items()))
shares(tried_with)

# %% kind="assert"
for (name, each), says in zip(tried_with.items(), (0.91, -0.23, -0.02, -0.01, 0.91, 1.12), strict=True):
    claim(model, name, each.share.mean, says=says, within=0.08)
claim(model, "without 20.0, ABC", lost["mean over ABC"], says=-1.86, within=0.1)
claim(model, "without 20.0, IOI", lost["mean over IOI"], says=0.0, within=0.1)

# %% [markdown]
# With zero nothing is left. 244 heads that say nothing are a state that the model was never in, and the figure says nothing about the 26. With the mean over IOI prompts five heads leave more than all, and
# nothing is lost without 20.0. Why? In all prompts of one template and order the subject stands at the same place, and the mean of 20.0 says which. **The ablation value knows the answer**, and hands it
# to any circuit for free.
#
# **What is measured.** The same circuit, by the probability of the right name, and with MLPs knocked out too:

# %%
chances = {}
for name, ids in (("IO", prompts.io), ("S", prompts.s)):
    chances[name] = knockouts.measure(
        [None, circuit], ml.probability(ids, pos=prompts.positions["end"])
    ).mean(1)
no_mlps = ml.faithfulness(knockouts, [replace(circuit, mlps=())])[0].share
for name, (intact, left) in chances.items():
    print(f"probability of {name}: model {intact:.3f}, circuit {left:.3f}")
print(f"share of the logit difference with MLPs knocked out too: {no_mlps}")

# %% kind="assert"
claim(model, "P(IO), model", chances["IO"][0], says=0.21, within=0.02)
claim(model, "P(IO), circuit", chances["IO"][1], says=0.06, within=0.02)
claim(model, "P(S), model", chances["S"][0], says=0.02, within=0.01)
assert chances["S"][1] < 0.01
claim(model, "without MLPs", no_mlps.mean, says=0.04, within=0.04)

# %% [markdown]
# The circuit still tells two names apart; but what makes the model say a
# name at all is not in it: the two together get far less probability. And without the MLPs next to nothing of the logit difference is left. "26 heads do it" means: 26 heads, 30 MLPs and the means of all other heads.
#
# **Which prompts.** Stored: the 48 prompts of the search, 208 with other names, 208 with other names and other templates. The last intervals are over templates, eight each: what
# *other sentence forms* might do.

# %%
sets = {name: stored["faithfulness"][name] for name in ("search", "names", "templates")}
rows = {f"{name}, over pairs": each["circuit"]["share"] for name, each in sets.items()}
for name, each in stored["faithfulness by template"].items():
    rows[f"{name}, over templates"] = each["circuit"]
rows["names, 21 heads"] = next(row["share"] for row in sets["names"].values() if row["heads"] == 21)
rows["names, resampled"] = stored["faithfulness"]["names, resample ablation"]["circuit"]["share"]
ml.dots(rows, "share of the logit difference left", limits=[1])

# %% kind="assert"
for name, says in {"search": 1.02, "names": 1.05, "templates": 0.98}.items():
    claim(model, name, rows[f"{name}, over pairs"][0], says=says, within=0.03)
forms = [share for each in stored["faithfulness by template"].values() for share in each["each form"]]
claim(model, "the worst sentence form", min(forms), says=0.46, within=0.02)
assert len(forms) == 16 and sorted(forms)[1] > 0.89
claim(model, "21 heads, names", rows["names, 21 heads"][0], says=1.09, within=0.03)
claim(model, "names, resampled", rows["names, resampled"][0], says=0.84, within=0.03)

# %% [markdown]
# The figure of the search was not too good after all: other names and other templates give about the same, on average. Five warnings:
#
# - On one of sixteen sentence forms (26 prompts) less than half is left.
# - More than 1 is no praise: what lies outside the circuit then speaks, all in all, against the answer.
# - Without 22.4, 23.4, 23.5 and the late heads more still is left. Only the gaps ever asked for those five.
# - With another prompt's output in place of the mean (**resample ablation**) less is left.
# - Our 32 prompts gave less, with an interval three times as wide.
#
# **Question 42.a.** A circuit of 40 heads keeps 1.00 of a behaviour. Which of these measurements could show that it is the wrong account?
#
# - **a** The same share, on ten times as many prompts.
# - **b** The share of 40 other heads, drawn at random.
# - **c** The same part taken away from circuit and model, and the two compared.

# %% kind="quiz"
quiz("42.a", "c")

# %% [markdown]
# **Question 42.b.** Means over IOI prompts, the subject always first in the sentence. You ablate 20.0 with that mean, on prompts where the subject stands first. How much of a logit difference of 4 will be
# lost?
#
# - **a** About 2, as with means over ABC prompts.
# - **b** About 0.
# - **c** All 4: the mean of many names is no name.

# %% kind="quiz"
quiz("42.b", "b")

# %% [markdown]
# ## The whole story?
#
# Faithful: yes, on names and templates that the search never saw. Complete: by role, not as a whole. For half of the circuit at random it keeps more than
# the model: something against the answer is missing. Minimal: generously asked. And it is a story about heads: MLPs, other heads' means and the
# probability of a name stay outside; what 22.4 does, nobody knows yet. 23.4 brings to the end what is known of a place (docs/two_hops.md); here it moves nothing.
#
# ## Beside the paper

# %%
yours = {
    "logit difference of the model (logits)": knockouts.intact.mean().item(),
    "logit difference of the circuit (logits)": found["the circuit"].circuit.mean,
    "share of it that is left": found["the circuit"].share.mean,
    "heads in the circuit": len(circuit.heads),
    "largest greedy gap (logits)": abs(again["gap"].iloc[0]),  # asked again, as the stored one
    "share lost without all name movers": -total.mean / knockouts.intact.mean().item(),
}
ml.reference.table("42", yours)

# %% [markdown]
# | term | meaning |
# |---|---|
# | mean ablation, knock out | hold a head at its mean over ABC prompts, by template and position |
# | F(C), F(M) | mean logit difference of the circuit, of the model |
# | faithful | F(C) near F(M) |
# | complete; gap | F(C without K) near F(M without K), for every part K; their difference |
# | minimal | each head is needed, for some K |
# | greedy set | a K searched to make the gap large; ask it again on other prompts |
#
# Papers: Wang et al. 2022 (the three
# criteria), McGrath et al. 2023 and Rushing and Nanda 2024 (self-repair), Miller et al. 2024 (such figures belong to their ablation). Next: notebook 43, can a
# machine find it?
#
# ## The same on GPT-2
#
# The paper's own circuit, with our prompts and means. The paper puts no begin token first.

# %% kind="gpu"
if torch.cuda.is_available():
    gpt2 = ml.load("gpt2")
    its_prompts = ml.ioi_prompts(gpt2, 128, prepend_bos=False)
    its_abc = ml.ioi_prompts(gpt2, 384, prepend_bos=False, seed=1).corrupted("abc")
    its = ml.CircuitRuns(gpt2, its_prompts, its_abc)
    print(ml.faithfulness(its, [ml.ioi.PAPER_CIRCUIT])[0])
    print(ml.completeness(its, ml.ioi.PAPER_CIRCUIT, ml.ioi.PAPER_CIRCUIT.roles))
else:
    print("Skipped: this cell wants a GPU and the network (550 MB).")
