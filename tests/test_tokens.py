"""The door for input: what a person brings becomes the tokens meant, each prompt with its own end, or a sentence."""

import re
import warnings
from functools import cache

import jaxtyping
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mechlab as ml
from mechlab.circuits.circuits import Circuit
from mechlab.circuits.ioi import words
from mechlab.metrics import fitted, per_prompt
from mechlab.runs.engines import run_of
from mechlab.runs.places import places_of, subject_positions, word_positions
from mechlab.tokens import Batch, PromptError, batch_of, batches_of, first_tokens, tokenized
from tests.architectures import kept

HUGE = 10**30
TEXTS = ["When John and Mary went", "John went to the store", "a"]  # 8, 7 and 2 tokens for the tiny models
OTHERS = ["When Mary and John went", "Mary went to the store", "b"]
WITHOUT_FIRST = ["Bloom", "Pythia (GPT-NeoX)"]
examples = lambda count: settings(
    max_examples=count, derandomize=True, deadline=None, database=None, suppress_health_check=[*HealthCheck]
)


@pytest.fixture(scope="module", autouse=True)
def as_learners_run_it():
    """Shapes are not checked: what is wrong must be told by the library's own sentences."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@cache
def model_of(name):
    return ml.tiny(name) if name in ("gqa", "gpt2") else kept(name)


# --- what is taken ---

WHOLE = {
    "list of ints": [5, 6, 7],
    "tuple of ints": (5, 6, 7),
    "range": range(5, 8),
    "numpy's ints": [np.int64(5), np.int64(6), np.int64(7)],
    "tensors of one": [torch.tensor(5), torch.tensor(6), torch.tensor(7)],
    "[pos]": torch.tensor([5, 6, 7]),
    "[batch pos]": torch.tensor([[5, 6, 7]]),
    "lists of ints": [[5, 6, 7]],
    "array": np.array([5, 6, 7]),
    "array of rows": np.array([[5, 6, 7]], dtype=np.uint16),
    "int32": torch.tensor([[5, 6, 7]], dtype=torch.int32),
    "uint8": torch.tensor([5, 6, 7], dtype=torch.uint8),
    "column of a table": pd.Series([5, 6, 7], index=[3, 4, 5]),
}


@pytest.mark.parametrize("given", WHOLE.values(), ids=WHOLE)
def test_whole_numbers_are_tokens_in_any_dress(gqa, given):
    batch = batch_of(gqa, given)
    assert batch.tokens.tolist() == [[5, 6, 7]] and batch.tokens.dtype == torch.long, "as given, and long"
    assert batch.lengths == [3] and not batch.padded


@pytest.mark.parametrize("name", ["gqa", "gpt2", *WITHOUT_FIRST])
def test_texts_begin_with_the_models_first_token_where_it_has_one(name):
    model = model_of(name)
    first = 0 if name in WITHOUT_FIRST else 1
    assert first_tokens(model) == first
    forms = [TEXTS, tuple(TEXTS), np.array(TEXTS), pd.Series(TEXTS, index=[7, 8, 9])]
    for form in forms:
        batch = batch_of(model, form)
        assert batch.padded and batch.tokens.shape == (3, max(batch.lengths))
        for row, text in enumerate(TEXTS):
            own = batch.tokens[row, : batch.lengths[row]]
            assert torch.equal(own, tokenized(model, text)), "each row is the text alone"
            assert model.tokenizer.decode(own[first:]) == text
    assert torch.equal(batch_of(model, TEXTS[0]).tokens, batch_of(model, TEXTS[:1]).tokens)
    assert torch.equal(batch_of(model, np.str_(TEXTS[0])).tokens[0], tokenized(model, TEXTS[0]))


def test_pairs_tasks_and_batches_are_taken_as_they_are():
    model = model_of("gqa")
    pair = ml.prompt_pair(model, ["John went to the store"], ["Mary went to the store"], [" John"], [" Mary"])
    assert torch.equal(batch_of(model, pair).tokens, pair.clean)
    prompts = batch_of(model, TEXTS)
    assert batch_of(model, prompts) is prompts


def test_in_inference_mode_tokens_can_still_carry_gradients(gqa):
    with torch.inference_mode():
        batch = batch_of(gqa, torch.tensor([[5, 6, 7]]))
    assert not batch.tokens.is_inference() and not batch.ends.is_inference()


# --- what is refused ---

REFUSED = {
    "nothing": ([], "is empty: give at least one text"),
    "None": (None, "base is NoneType"),
    "a number": (3, "base is int"),
    "a tensor without axes": (torch.tensor(3), r"base is \(\) of torch.int64"),
    "floats": (torch.rand(2, 3), r"base is \(2, 3\) of torch.float32"),
    "a list of floats": ([1.0, 2.0], "base is list"),
    "booleans": (torch.ones(2, 3, dtype=torch.bool), "torch.bool"),
    "a list of booleans": ([True, False], "base is list"),
    "complex numbers": (torch.ones(2, dtype=torch.complex64), "complex64"),
    "three axes": (torch.ones(1, 2, 3, dtype=torch.long), r"base is \(1, 2, 3\)"),
    "rows of unequal length": ([[1, 2], [3]], "base is list"),
    "texts and numbers": (["a", 3], "base is list"),
    "texts and nothing": (["a", None], "base is list"),
    "lists of texts": ([["a"], ["b"]], "base is list"),
    "bytes": (b"John", "base is bytes"),
    "a set": ({"a"}, "base is set"),
    "a table": (pd.DataFrame({"a": ["b"]}), "base is DataFrame"),
    "no rows": (torch.zeros(0, 3, dtype=torch.long), "there is no token in it"),
    "no columns": (torch.zeros(3, 0, dtype=torch.long), "there is no token in it"),
    "an id below": ([-1, 2], "has the token -1; this model's ids go from 0 to 399"),
    "an id above": ([2, 400], "has the token 400; this model's ids go from 0 to 399"),
    "an id beyond all": ([HUGE], "base is list"),
    "a sparse tensor": (torch.eye(3, dtype=torch.long).to_sparse(), "whole numbers"),
    "a tensor of nothing": (torch.ones(1, 3, dtype=torch.long, device="meta"), "whole numbers"),
    "a long text": ("a " * 70, r"has 7\d tokens; this model reads at most 64"),
    "many tokens": (torch.ones(1, 65, dtype=torch.long), "has 65 tokens; this model reads at most 64"),
    "half a character": ("John \ud83d", "half a character"),
}


@pytest.mark.parametrize("given, says", REFUSED.values(), ids=REFUSED)
def test_what_is_no_prompt_is_refused_in_a_sentence(gqa, given, says):
    for ask in (batch_of, run_of):
        with pytest.raises(PromptError, match=says):
            ask(gqa, given)


@pytest.mark.parametrize("name", WITHOUT_FIRST)
def test_an_empty_text_is_refused_where_it_has_no_token(name):
    with pytest.raises(PromptError, match="Prompt 1 is empty"):
        batch_of(model_of(name), ["John", ""])
    assert batch_of(model_of("gqa"), ["John", ""]).lengths[1] == 1  # the first token alone


def test_prompts_of_a_model_with_other_words_are_refused(gqa):
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    other = ml.tiny("gpt2", seed=3)
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        ["entirely other words for another model"] * 4, vocab_size=300, show_progress=False
    )
    pair = ml.prompt_pair(gqa, "John went", "Mary went", " John", " Mary")
    for prompts in (batch_of(gqa, TEXTS), pair):
        assert torch.equal(batch_of(other, prompts).tokens, batch_of(gqa, prompts).tokens), "the same words"
        assert batch_of(other, prompts).model is other
    mine = other.tokenizer
    try:
        other.tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer)
        for prompts in (batch_of(gqa, TEXTS), pair):
            with pytest.raises(
                PromptError, match="was tokenised for tiny-gqa, and for tiny-gpt2 the same ids"
            ):
                ml.activation_patching(other, prompts, prompts, ml.log_prob(7))
    finally:
        other.tokenizer = mine


# --- padding ---


def padded(pad, left=False):
    rows = [[5, 6, 7, 8], [9, 10]]
    filled = [[pad] * (4 - len(row)) for row in rows]
    return torch.tensor([more + row if left else row + more for row, more in zip(rows, filled, strict=True)])


@pytest.fixture
def pads_with(gqa, monkeypatch):
    """Another padding token than the tiny models have: "!" (1), which is nothing else, or none."""
    return lambda token: monkeypatch.setattr(type(gqa.tokenizer), "pad_token_id", token, raising=False)


def test_padding_at_the_end_is_recognised_and_at_the_beginning_refused(gqa, pads_with):
    assert batch_of(gqa, padded(0)).lengths == [4, 2]
    with pytest.raises(PromptError, match=r"padded at the beginning, with \[0, 2\] tokens"):
        batch_of(gqa, padded(0, left=True))
    pads_with(1)
    assert batch_of(gqa, padded(1)).lengths == [4, 2]
    assert batch_of(gqa, padded(1)[1:]).lengths == [2]  # it is nothing but padding, so also in one row
    with pytest.raises(PromptError, match=r"padded at the beginning, with \[2\] tokens"):
        batch_of(gqa, padded(1, left=True)[1:])
    pads_with(None)
    assert batch_of(gqa, padded(1)).lengths == [4, 4]


def test_padding_that_may_be_the_prompts_own_end_is_said(gqa):
    with pytest.warns(UserWarning, match=r"All prompts end with <\|bos\|>.* If it is padding, cut it off"):
        assert batch_of(gqa, padded(0)[1:]).lengths == [4]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert batch_of(gqa, padded(0)[:1]).lengths == [4]
        assert batch_of(gqa, [0]).lengths == [1]  # the first token alone


def test_ends_that_prompts_say_are_looked_at(gqa):
    class Said:
        tokens = torch.tensor([[5, 6, 7], [8, 9, 0]])

        def __init__(self, end):
            self.positions = {"end": end}

    assert batch_of(gqa, Said([2, 1])).lengths == [3, 2]
    for end, says in (([3, 1], "positions 0 to 2"), ([-1, 1], "positions 0 to 2"), ([2], "2 prompts and 1")):
        with pytest.raises(PromptError, match=says):
            batch_of(gqa, Said(torch.tensor(end)))
    with pytest.raises(PromptError, match="whole numbers"):
        batch_of(gqa, Said([2.0, 1.0]))


def test_two_batches_correspond_or_are_refused_in_words(gqa):
    for source in (torch.ones(2, 4, dtype=torch.long), torch.ones(3, 5, dtype=torch.long), [5, 6], "John"):
        with pytest.raises(PromptError, match=r"base is \(3, 4\) and source \(\d, \d\): patching needs"):
            batches_of(gqa, torch.ones(3, 4, dtype=torch.long), source, "patching")
    with pytest.raises(PromptError, match=r"with \[8, 7, 2\] and \[7, 8, 2\] tokens of their own"):
        batches_of(gqa, TEXTS, [TEXTS[1], TEXTS[0], TEXTS[2]], "patching")
    jaxtyping.config.update("jaxtyping_disable", False)  # shapes are not bound together by the types
    try:
        with pytest.raises(PromptError, match="positions do not correspond"):
            batches_of(
                gqa, torch.ones(3, 4, dtype=torch.long), torch.ones(2, 5, dtype=torch.long), "patching"
            )
    finally:
        jaxtyping.config.update("jaxtyping_disable", True)


# --- positions ---

PLACES = {
    "the last": (-1, [3, 1]),
    "the first": (0, [0, 0]),
    "one in a list": ([1], [1, 1]),
    "one for each": ([3, 0], [3, 0]),
    "from both ends": ([-4, -2], [0, 0]),
    "an array": (np.array([2, 1]), [2, 1]),
    "uint8, no mask": (torch.tensor([1, 0], dtype=torch.uint8), [1, 0]),
    "int32": (torch.tensor([1, 0], dtype=torch.int32), [1, 0]),
}
NO_PLACES = {
    "of no prompt": (4, "pos is 4, and prompt 0 has 4 tokens"),
    "behind a short one": (2, "pos is 2, and prompt 1 has 2 tokens: positions 0 to 1"),
    "before it": (-3, "pos is -3, and prompt 1 has 2 tokens"),
    "for three": ([1, 1, 1], "pos is .* for 2 prompts: give one position for all, or one for each"),
    "none": ([], r"pos is \[\] for 2 prompts"),
    "two axes": ([[1, 1]], "pos is .* for 2 prompts"),
    "a float": (1.0, "pos is 1.0: give whole numbers"),
    "floats": ([1.5, 1], r"pos is \[1.5, 1\]: give whole numbers"),
    "True": (True, "pos is True: give whole numbers"),
    "a mask": ([True, False], "pos is .*give whole numbers"),
    "a name": ("end", "pos is 'end': give whole numbers"),
    "None": (None, "pos is None: give whole numbers"),
}


@pytest.fixture
def two(gqa) -> Batch:
    return batch_of(gqa, padded(0))


@pytest.mark.parametrize("pos, at", PLACES.values(), ids=PLACES)
def test_a_position_is_each_prompts_own(two, pos, at):
    assert two.position(pos).tolist() == at
    logits = torch.randn(2, 4, 400, generator=torch.Generator().manual_seed(0))
    expected = logits[torch.arange(2), torch.tensor(at)].log_softmax(-1)[:, 7]
    assert torch.allclose(fitted(ml.log_prob(7, pos=pos), two)(logits), expected)


@pytest.mark.parametrize("pos, says", NO_PLACES.values(), ids=NO_PLACES)
def test_a_position_that_a_prompt_does_not_have_is_refused(two, pos, says):
    with pytest.raises(PromptError, match=says):
        two.position(pos)
    with pytest.raises(PromptError, match="The metric's " + says):
        fitted(ml.log_prob(7, pos=pos), two)


def test_places_of_a_patch(gqa, two):
    whole = batch_of(gqa, [[5, 6, 7, 8], [9, 10, 11, 12]])
    as_lists = lambda *given: [each.nonzero().tolist() for each in places_of(*given).values()]
    assert len(places_of(whole, None, apart=True)) == 4
    for form in ([1, -1], (1, -1), np.array([1, -1]), torch.tensor([1, -1])):
        assert as_lists(whole, form, True) == [[[0, 1], [1, 1]], [[0, 3], [1, 3]]]
        assert as_lists(whole, form, False) == [[[0, 1], [0, 3], [1, 1], [1, 3]]]
        assert as_lists(two, form, True) == [[[0, 1], [1, 1]], [[0, 3], [1, 1]]]
    assert as_lists(two, {"here": [2, -2]}, True) == [[[0, 2], [1, 0]]]
    refused = {
        "1.5": ([1.5], "whole numbers"),
        "True": ([True], "whole numbers"),
        "mask": (torch.ones(4, dtype=torch.bool), "whole numbers"),
        "name": (["end"], "whole numbers"),
        "word": ("end", "whole numbers"),
        "one": (3, "give a list of positions"),
        "axes": ([[1, 2]], "give a list of positions"),
        "slice": (slice(1, 3), "whole numbers"),
        "empty": ([], "`positions` is empty"),
        "no names": ({}, "`positions` is empty"),
        "twice": ([3, -1], "-1 is there twice"),
        "gone": ([4], "positions is 4, and prompt 0 has 4 tokens"),
        "named": ({"here": [1.0, 2.0]}, "The position of 'here' is"),
        "too few": ({"here": [1, 2, 3]}, "for 2 prompts"),
    }
    for asked, says in refused.values():
        with pytest.raises(ValueError, match=says):
            places_of(whole, asked, apart=True)


# --- metrics ---

NO_METRICS = {
    "a word": (lambda: ml.logit_difference(" Mary", " John"), "asks for ' Mary': give token ids"),
    "words": (lambda: ml.log_prob([" Mary", " John"]), "give token ids"),
    "a float": (lambda: ml.log_prob(2.0), "asks for 2.0: give token ids"),
    "True": (lambda: ml.probability(True), "give token ids"),
    "None": (lambda: ml.log_prob(None), "give token ids"),
    "two axes": (lambda: ml.logit_difference([[1, 2]], [3, 4]), "give token ids"),
    "none": (lambda: ml.log_prob([]), "2 prompts and 0 answers"),
    "three for two": (lambda: ml.log_prob([1, 2, 3]), "2 prompts and 3 answers"),
    "an id above": (lambda: ml.log_prob(400), "asks for token 400; this model's ids go from 0 to 399"),
    "an id below": (lambda: ml.logit_difference(1, -1), "asks for token -1"),
    "no function": (lambda: "logit", "metric is 'logit'; it must be a function"),
    "None at all": (lambda: None, "metric is None; it must be a function"),
    "one number": (lambda: lambda logits: logits.mean(), "must return one number per prompt"),
    "a list": (lambda: lambda logits: [1.0, 2.0], "must return one number per prompt"),
    "an array": (
        lambda: lambda logits: logits[:, 0, 3].detach().numpy(),
        "must return one number per prompt",
    ),
    "complex": (lambda: lambda logits: logits[:, 0, 3] * 1j, "complex numbers"),
    "NaN": (lambda: lambda logits: logits[:, 0, 3] * float("nan"), "The metric is NaN"),
    "a reference of rows": (lambda: ml.kl_divergence(torch.zeros(2, 400)), r"\(2, 400\): give all of them"),
    "a reference of one": (
        lambda: ml.kl_divergence(torch.zeros(1, 4, 400)),
        r"\(1, 4, 400\), and the prompts",
    ),
    "of other words": (lambda: ml.kl_divergence(torch.zeros(2, 4, 50)), "of 50 tokens; this model has 400"),
    "too short": (lambda: ml.kl_divergence(torch.zeros(2, 2, 400)), r"\(2, 2, 400\), and the prompts"),
}


@pytest.mark.parametrize("engine", ["fast", "plain"])
@pytest.mark.parametrize("make, says", NO_METRICS.values(), ids=NO_METRICS)
def test_a_metric_that_says_nothing_is_refused_in_a_sentence(gqa, make, says, engine):
    run = run_of(gqa, padded(0), engine=engine)
    with pytest.raises(ValueError, match=says):
        run.value(make())


@pytest.mark.parametrize("engine", ["fast", "plain"])
def test_answers_in_any_dress_and_one_for_many_copies(gqa, engine):
    run = run_of(gqa, torch.tensor([[5, 6, 7], [8, 9, 10]]), engine=engine)
    expected = run.value(ml.logit_difference([7, 8], 9))
    for dress in (
        (7, 8),
        np.array([7, 8]),
        torch.tensor([7, 8]),
        torch.tensor([7, 8], dtype=torch.int32),
        torch.tensor([7, 8], dtype=torch.uint8),
    ):
        assert torch.allclose(run.value(ml.logit_difference(dress, [9])), expected)
        assert torch.allclose(run.value(ml.log_prob(dress)), run.value(ml.log_prob([7, 8])))
    traced = lambda answer: ml.causal_tracing(gqa, [5, 6, 7], ml.log_prob(answer), subject=[1], samples=4)
    assert torch.equal(traced(7).per_prompt, traced([7]).per_prompt)
    with pytest.raises(ValueError, match="2 answers"):
        traced([7, 8])


@pytest.mark.parametrize("engine", ["fast", "plain"])
def test_a_metric_of_ones_own_may_not_read_padding(gqa, engine):
    run, alone = run_of(gqa, TEXTS, engine=engine), [run_of(gqa, text, engine=engine) for text in TEXTS]
    said = "this metric reads what stands behind the short ones"
    ends = run.batch.ends
    reads = {
        "the end of the row": lambda logits: logits[:, -1, 3],
        "all": lambda logits: logits.logsumexp(-1).mean(1),
        "the most likely": lambda logits: logits[:, -1].argmax(-1),
        "whether it is right": lambda logits: logits[:, -1].argmax(-1) == right[:, None][:, 0],
    }
    rows = torch.arange(3)
    right = torch.stack([each.logits([], 1)[0, -1].argmax() for each in alone])
    for name, metric in reads.items():
        with pytest.raises(ValueError, match=said):
            print(name, run.value(metric))
    own = {
        "the first": (lambda logits: logits[:, 0, 3], lambda logits: logits[:, 0, 3]),
        "each end": (lambda logits: logits[rows, ends, 3], lambda logits: logits[:, -1, 3]),
        "right at each end": (
            lambda logits: logits[rows, ends].argmax(-1) == right,
            lambda logits: torch.ones(1),
        ),
    }
    for name, (metric, single) in own.items():
        expected = torch.cat([each.value(single) for each in alone])
        assert torch.allclose(run.value(metric), expected, atol=1e-4), name


def test_a_metric_that_reads_padding_only_after_a_patch_is_refused_then(gqa):
    """Whether the answer is right may be the same by chance in the first run, and not in a later one."""
    run = run_of(gqa, TEXTS)
    batch = run.batch
    metric = fitted(lambda logits: logits[:, -1].argmax(-1) == 399, batch)
    logits = torch.zeros(3, batch.tokens.shape[1], 400)
    assert metric(logits).tolist() == [0, 0, 0]  # wrong everywhere, wherever it is read
    logits[2, batch.ends[2], 399] = 1  # right at the prompt's own end
    with pytest.raises(ValueError, match="reads what stands behind"):
        metric(logits)


def test_divergence_of_padded_prompts_is_read_at_each_end(gqa):
    other = ml.tiny("gqa", seed=4)
    batch = batch_of(gqa, TEXTS)
    reference = other(batch.tokens).detach()
    found = run_of(gqa, TEXTS).value(ml.kl_divergence(reference))
    for row, text in enumerate(TEXTS):
        alone = run_of(gqa, text).value(ml.kl_divergence(other(batch_of(gqa, text).tokens).detach()))
        assert torch.allclose(found[row], alone[0], atol=1e-4), text


def test_one_real_number_for_each_prompt_in_single_precision_or_better():
    logits = torch.randn(3, 2, 9)
    kinds = {torch.float16: torch.float32, torch.float32: torch.float32, torch.float64: torch.float64}
    for given_as, kept_as in kinds.items():
        assert per_prompt(lambda x: x[:, -1, 0], logits.to(given_as)).dtype == kept_as
    assert per_prompt(lambda x: x[:, -1].argmax(-1) == 3, logits).dtype == torch.float32


# --- every technique on prompts of unequal length ---

METRIC = lambda rows: ml.logit_difference([(7, 8, 9)[n] for n in rows], [(10, 11, 12)[n] for n in rows])
PADDED = {
    "activation_patching": lambda model, pair, rows: ml.activation_patching(
        model, *pair, METRIC(rows), "z", normalized=False
    ),
    "activation_patching at the last": lambda model, pair, rows: ml.activation_patching(
        model, *pair, METRIC(rows), "mlp_out", positions=[-1], normalized=False
    ),
    "path_patching": lambda model, pair, rows: ml.path_patching(model, *pair, METRIC(rows), normalized=False),
    "path_patching into keys": lambda model, pair, rows: ml.path_patching(
        model, *pair, METRIC(rows), [(2, 1)], "k", at=[-1] * len(rows), normalized=False
    ),
    "attribution_patching": lambda model, pair, rows: ml.attribution_patching(model, *pair, METRIC(rows), steps=2),
    "edge_attribution": lambda model, pair, rows: ml.edge_attribution(model, *pair, METRIC(rows)),
    "steering_sweep": lambda model, pair, rows: ml.steering_sweep(
        model, pair[0], METRIC(rows), vectors=vectors_of(model), layers=[1], strengths=[0.5], text="John went to"
    ).effect,
    "CircuitRuns": lambda model, pair, rows: ml.CircuitRuns(
        model, *(Said(model, each, METRIC(rows)) for each in pair), "zero"
    ).measure([Circuit.of([(0, 1), (2, 2)])])[0],
    "direct_contributions": lambda model, pair, rows: ml.direct_contributions(
        ml.CircuitRuns(model, *(Said(model, each, METRIC(rows)) for each in pair), "zero")
    ),
}  # fmt: skip


def vectors_of(model):
    return ml.contrast_vectors(model, ["John went to Paris"], ["Mary gave a drink"])


class Said:
    """Prompts that say where they end."""

    def __init__(self, model, texts, metric):
        batch = batch_of(model, texts)
        self.tokens, self.metric, self.positions = batch.tokens, metric, {"end": batch.ends}
        self.templates, self.pairs = ["a"] * len(batch), torch.arange(len(batch))


def each_prompts(found):
    """The change of each prompt: shares are taken of the mean gap of all of them."""
    if isinstance(found, torch.Tensor):
        return found
    gap = found.baselines["source"] - found.baselines["base"] if "share" in found.name else 1
    return found.per_prompt * gap


@pytest.mark.parametrize("name", ["gqa", "gpt2", "Bloom", "Gemma 2", "Mixtral"])
@pytest.mark.parametrize("technique", PADDED)
def test_a_padded_batch_gives_each_prompts_own_numbers(technique, name):
    model, ask = model_of(name), PADDED[technique]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = each_prompts(ask(model, (TEXTS, OTHERS), [0, 1, 2]))
        tokens = [batch_of(model, texts).tokens for texts in (TEXTS, OTHERS)]
        if technique not in ("CircuitRuns", "direct_contributions"):
            again = each_prompts(ask(model, tokens, [0, 1, 2]))
            assert torch.allclose(again, found, atol=1e-5), "tokens padded at the end are the texts"
        for row in range(3):
            alone = each_prompts(ask(model, (TEXTS[row : row + 1], OTHERS[row : row + 1]), [row]))
            mine = found[row]
            if "pos" in technique:
                mine = mine[..., : alone.shape[-1]]
            assert torch.allclose(mine, alone[0], atol=3e-4), (row, (mine - alone[0]).abs().max())


@pytest.mark.parametrize("name", ["gqa", "gpt2", *WITHOUT_FIRST])
def test_the_task_in_templates_of_several_lengths(name):
    """Read at their own ends; every prompt alone gives the same."""
    model = model_of(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prompts = ml.ioi_prompts(model, 8, templates=words.TEMPLATES[6:10], names=(*words.NAMES, "Lisa"))
    batch = batch_of(model, prompts)
    assert batch.padded and torch.equal(batch.ends.cpu(), prompts.positions["end"])
    found = run_of(model, prompts).value(prompts.metric)
    for row in range(len(prompts)):
        one = prompts.rows([row])
        assert torch.allclose(run_of(model, one).value(one.metric)[0], found[row], atol=1e-4), row


# --- words ---

PIECES = st.sampled_from(
    [
        *["hello", " world", "Café", "Привет", " мир", "Ελλάδα", "مرحبا", " שלום", "नमस्ते", " สวัสดี", "中文字", "한국어"],
        *["👍🏽", "👨‍👩‍👧", " e\u0301", "\u200f", "\u200b", "\t", "\n", "  ", "   x", " ", "ﬁ", "İ", "ß", "\u00a0", "1234", "!?"],
        *["\x00", "𝔘", "\ufeff", "\r\n"],
    ]
)  # fmt: skip
written = st.lists(PIECES, min_size=1, max_size=6).map("".join)


def byte_table():
    """The byte behind each character of a byte-level vocabulary (Radford et al. 2019)."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + n): byte for n, byte in enumerate(rest)}


BYTES = byte_table()


def by_bytes(model, text, start, end):
    """Which tokens hold bytes of a word, from the bytes that each token stands for."""
    first = first_tokens(model)
    if not text[start:end].strip():
        return []  # spaces around a word do not count, and there is no word
    start += len(text[start:end]) - len(text[start:end].lstrip())
    low, high = (len(text[:at].encode()) for at in (start, start + len(text[start:end].strip())))
    at, found = 0, []
    for place, token in enumerate(tokenized(model, text).tolist()[first:], first):
        piece = bytes(BYTES[char] for char in model.tokenizer.convert_ids_to_tokens(token))
        found += [place] if at < high and at + len(piece) > low else []
        at += len(piece)
    assert at == len(text.encode()), "the tokens are the text"
    return found


def check_word(model, text, start, end):
    expected = by_bytes(model, text, start, end)
    if expected:
        assert word_positions(model, text, start, end) == expected
    else:
        with pytest.raises(PromptError, match="No token of this model holds"):
            word_positions(model, text, start, end)


@st.composite
def parts(draw):
    text = draw(written)
    start = draw(st.integers(0, len(text) - 1))
    return text, start, draw(st.integers(start + 1, len(text)))


@examples(120)
@given(st.sampled_from(["gqa", "Bloom"]), parts())
def test_a_word_is_where_its_bytes_are(name, part):
    """Also where tokens split a character, or hold more than the word."""
    if len(part[0].encode()) < 60:
        check_word(model_of(name), *part)


@pytest.mark.model
def test_a_word_is_where_its_bytes_are_for_smollm2(smollm2):
    @examples(120)
    @given(parts())
    def check(part):
        check_word(smollm2, *part)

    check()


@examples(60)
@given(
    st.sampled_from(["gqa", *WITHOUT_FIRST]), st.lists(written | st.text(max_size=8), min_size=1, max_size=4)
)
def test_any_texts_are_read_or_refused(name, texts):
    model = model_of(name)
    try:
        batch = batch_of(model, texts)
    except PromptError:
        long = any(len(text.encode()) + 1 > 64 for text in texts)
        empty = name in WITHOUT_FIRST and "" in texts
        half = any(re.search("[\ud800-\udfff]", text) for text in texts)
        assert long or empty or half
        return
    for row, text in enumerate(texts):
        own = batch.tokens[row, first_tokens(model) : batch.lengths[row]]
        assert model.tokenizer.decode(own, clean_up_tokenization_spaces=False) == text


SUBJECTS = {  # text, subject: what the tokens at the places hold, or the sentence
    "the last of two": ("John gave John", "John", " John"),
    "inside a longer word": ("The party of art", "art", " art"),
    "only inside": ("The party", "art", "only inside a longer word"),
    "not there": ("The party", "dog", "does not occur"),
    "nothing": ("The party", "", "does not occur"),
    "a mark that follows": ("the cafe\u0301", "cafe", "only inside a longer word"),
    "Vietnamese": ("Việt", "Vi", "only inside a longer word"),
    "Greek with breathing": ("ἀρχή", "ρχ", "only inside a longer word"),
    "Chinese has no spaces": ("我在北京市", "北京", "北京"),
    "with a space": ("John gave John", " John", " John"),
    "only spaces": ("John  gave", " ", "No token of this model holds"),
}


@pytest.mark.parametrize("text, subject, holds", SUBJECTS.values(), ids=SUBJECTS)
def test_subjects(gqa, text, subject, holds):
    if len(holds) > 10:
        with pytest.raises(PromptError, match=holds):
            subject_positions(gqa, text, subject)
        return
    places = subject_positions(gqa, text, subject)
    found = gqa.tokenizer.decode(tokenized(gqa, text)[places])
    assert found.strip() == holds.strip() and places == sorted(places), found
    assert places[-1] == max(places) and text.rstrip().endswith(holds.strip()) == (
        places[-1] == len(tokenized(gqa, text)) - 1
    )


# --- the real model ---


@pytest.mark.model
def test_smollm2_reads_every_script_and_its_own_padding(smollm2):
    texts = ["Hello", "Привет мир", "日本語のテキスト", "שלום עולם", "👨‍👩‍👧 family", "\u200fمرحبا", ""]
    batch, metric = batch_of(smollm2, texts), ml.log_prob(7)
    assert batch.lengths == [len(tokenized(smollm2, text)) for text in texts] and batch.padded
    found = run_of(smollm2, texts[:4]).value(metric)
    for row, text in enumerate(texts[:4]):
        assert torch.allclose(found[row], run_of(smollm2, text).value(metric)[0], atol=1e-3), text
    assert torch.equal(
        batch_of(smollm2, smollm2.to_tokens(texts[:4])).ends, batch_of(smollm2, texts[:4]).ends
    )
    with pytest.raises(PromptError, match="has 8193 tokens; this model reads at most 8192"):
        batch_of(smollm2, torch.ones(1, 8193, dtype=torch.long))
    with pytest.warns(UserWarning, match=r"All prompts end with <\|im_end\|>"):
        batch_of(smollm2, smollm2.to_tokens(texts[:2])[:1])
