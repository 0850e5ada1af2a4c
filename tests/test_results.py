"""Scores, metrics and prompts: identities, agreement by hand, and the text of every message."""

import pytest
import torch

import mechlab as ml
from mechlab.metrics import per_prompt
from mechlab.prompts import PromptError
from mechlab.results import Scores, distinct
from mechlab.statistics import holm


@pytest.fixture
def scores():
    each = torch.randn(8, 3, 4, generator=torch.Generator().manual_seed(0))
    return Scores.over_prompts(each, ("layer", "head"), "effect (logits)", baselines={"clean": 3.0})


# --- Scores ---


def test_the_mean_is_over_prompts_and_each_prompt_is_kept(scores):
    assert torch.allclose(scores.values, scores.per_prompt.mean(0))
    assert scores.per_prompt.shape == (8, 3, 4)


def test_top_is_sorted_by_size_and_names_heads(scores):
    top = scores.top(12)
    sizes = top["effect (logits)"].abs().tolist()
    assert sizes == sorted(sizes, reverse=True)
    layer, head = divmod(int(scores.values.abs().argmax()), 4)
    assert top.place[0] == f"{layer}.{head}"
    assert (top["95 % low"] <= top["effect (logits)"]).all() and (
        top["95 % high"] >= top["effect (logits)"]
    ).all()


def test_values_are_found_by_the_names_of_their_places():
    values = torch.arange(6.0).view(2, 3)
    found = Scores(values, ("sender", "layer"), "x", labels={"sender": ["20.0", "mlp 20"]})
    assert found.at(sender="mlp 20", layer=1) == 4
    assert found.at(layer=2).tolist() == [2, 5]
    assert torch.equal(found.at(), values)
    with pytest.raises(ValueError, match=r"\"sender\" has no place .20\.1.; it has, for example, 20\.0"):
        found.at(sender="20.1")
    with pytest.raises(ValueError, match="no place 7; it has, for example, 0, 1, 2"):
        found.at(layer=7)
    with pytest.raises(ValueError, match='no axis "head"; the axes are sender, layer'):
        found.at(head=0)


def test_unsigned_top_ignores_small_negative_numbers():
    attention = Scores([0.1, -0.9, 0.5], ("pos",), "attention", signed=False)
    assert attention.top(1)["attention"].tolist() == [0.5]


def test_dataframe_has_one_row_a_value_in_order(scores):
    frame = scores.to_dataframe()
    assert len(frame) == 12
    row = frame[(frame.layer == 2) & (frame["head"] == 1)]
    assert row["effect (logits)"].item() == pytest.approx(scores.values[2, 1].item())


def test_interval_equals_a_slow_bootstrap_and_shrinks_with_prompts(scores):
    low, high = scores.interval(draws=4000)
    generator = torch.Generator().manual_seed(1)
    draws = torch.stack(
        [scores.per_prompt[torch.randint(8, (8,), generator=generator)].mean(0) for _ in range(4000)]
    )
    slow = draws.quantile(torch.tensor([0.025, 0.975]), dim=0)
    assert torch.allclose(torch.stack([low, high]), slow, atol=0.1)
    many = Scores.over_prompts(scores.per_prompt.repeat(16, 1, 1), scores.dims, scores.name)
    assert ((many.interval()[1] - many.interval()[0]) < (high - low)).all()


def test_one_prompt_has_no_interval():
    with pytest.raises(ValueError, match="at least two prompts"):
        Scores([1.0], ("layer",), "x").interval()


def test_summary_names_range_leaders_and_baselines(scores):
    text = scores.summary()
    assert (
        "3 rows (layer) × 4 columns (head)" in text
        and "clean 3.00" in text
        and scores.top(1).place[0] in text
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"values": [1.0], "dims": ("layer", "head"), "name": "x"},
            r"values have 1 axes \(1,\), and dims names 2",
        ),
        (
            {"values": [float("nan")], "dims": ("layer",), "name": "x"},
            r'"x": 1 of 1 values are NaN or infinite',
        ),
        (
            {"values": [1.0], "dims": ("layer",), "name": "x", "labels": {"pos": ["a"]}},
            r'labels are given for "pos"',
        ),
        (
            {"values": [1.0, 2], "dims": ("pos",), "name": "x", "labels": {"pos": ["a"]}},
            r'"pos" has 2 places and 1 labels',
        ),
        (
            {"values": [1.0], "dims": ("pos",), "name": "x", "per_prompt": [[1.0, 2]]},
            r"per_prompt is \(1, 2\)",
        ),
    ],
)
def test_bad_scores_say_what_was_found(given, message):
    with pytest.raises(ValueError, match=message):
        Scores(**given)


def test_repeated_tokens_get_distinct_labels(tiny):
    assert distinct([" John", " and", " John"]) == [" John 0", " and", " John 2"]
    labels = ml.token_labels(tiny, tiny.to_tokens("When John and John went")[0])
    assert len(set(labels)) == len(labels)
    assert "' John' 2" in labels


# --- metrics ---


@pytest.fixture
def logits():
    return torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0))


def test_logit_difference_by_hand_and_blind_to_a_constant(logits):
    metric = ml.logit_difference([1, 2, 3], [4, 5, 6])
    expected = torch.stack([logits[i, -1, 1 + i] - logits[i, -1, 4 + i] for i in range(3)])
    assert torch.allclose(metric(logits), expected)
    assert torch.allclose(metric(logits + 100), expected, atol=1e-4)


def test_each_prompt_may_end_elsewhere(logits):
    found = ml.logit_difference(0, 1, pos=[2, 4, 0])(logits)
    assert torch.allclose(
        found, torch.stack([logits[i, e, 0] - logits[i, e, 1] for i, e in enumerate((2, 4, 0))])
    )


def test_log_prob_sums_to_one_and_kl_is_zero_for_equal_runs(logits):
    total = sum(ml.log_prob(token)(logits).exp() for token in range(7))
    assert torch.allclose(total, torch.ones(3))
    assert torch.allclose(ml.kl_divergence(logits)(logits), torch.zeros(3), atol=1e-6)
    assert (ml.kl_divergence(logits)(logits.flip(-1)) > 0).all()
    other = torch.nn.functional.kl_div(
        logits.flip(-1)[:, -1].log_softmax(-1), logits[:, -1].softmax(-1), reduction="none"
    ).sum(-1)
    assert torch.allclose(ml.kl_divergence(logits)(logits.flip(-1)), other, atol=1e-6)


def test_recovered_is_0_for_base_1_for_source_and_never_nan():
    base, source = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([3.0, -2.0, 3.0])
    assert torch.equal(ml.recovered(base, base, source), torch.zeros(3))
    assert torch.equal(ml.recovered(source, base, source), torch.tensor([1.0, 1.0, 0.0]))
    assert torch.equal(ml.recovered((base + source) / 2, base, source), torch.tensor([0.5, 0.5, 0.0]))


def test_recovered_with_base_equal_to_source_is_an_error():
    with pytest.raises(ValueError, match="base and source give the same metric"):
        ml.recovered(torch.tensor([2.0]), torch.tensor([1.0]), torch.tensor([1.0]))


@pytest.mark.parametrize(
    ("yes", "n", "expected"),
    [(0, 24, (0.0, 0.1380)), (24, 24, (0.8620, 1.0)), (5, 10, (0.2366, 0.7634)), (81, 263, (0.2553, 0.3662))],
)
def test_the_interval_of_a_share_by_known_values(yes, n, expected):
    """0, n and half of n by the formula; 81 of 263 is the example of Newcombe (1998), table I."""
    assert ml.wilson(yes, n) == pytest.approx(expected, abs=1e-4)
    low, high = ml.wilson(n - yes, n)
    assert (1 - high, 1 - low) == pytest.approx(expected, abs=1e-4)
    narrow, wide = ml.wilson(yes, n, z=1), ml.wilson(yes, n)
    assert 0 <= wide[0] <= narrow[0] < narrow[1] <= wide[1] <= 1


def test_the_interval_of_a_share_agrees_with_scipy():
    from scipy.stats import binomtest

    for yes, n in ((0, 7), (1, 9), (50, 60), (60, 60)):
        interval = binomtest(yes, n).proportion_ci(method="wilson")
        assert ml.wilson(yes, n, z=1.959964) == pytest.approx(tuple(interval), abs=1e-6)


@pytest.mark.parametrize(("yes", "n"), [(0, 0), (3, 2), (-1, 5), (0, -1)])
def test_a_share_of_nothing_has_no_interval(yes, n):
    with pytest.raises(ValueError, match="is no share"):
        ml.wilson(yes, n)


def test_a_metric_that_averages_is_refused(logits):
    with pytest.raises(ValueError, match=r"returned shape \(\) for 3 prompts.*leave out the `\.mean\(\)`"):
        per_prompt(lambda x: x.mean(), logits)
    with pytest.raises(ValueError, match="returned float for 3 prompts"):
        per_prompt(lambda x: 1.0, logits)
    with pytest.raises(ValueError, match="The metric is NaN"):
        per_prompt(lambda x: x[:, 0, 0] * float("nan"), logits)
    assert torch.equal(per_prompt(lambda x: x[:, 0, 0], logits), logits[:, 0, 0])


def test_too_few_answers_are_refused(logits):
    with pytest.raises(ValueError, match="3 prompts and 2 answers"):
        ml.logit_difference([1, 2], 0)(logits)


# --- prompts ---

CLEAN = "When John and Mary went to the store, John gave a drink to"
CORRUPTED = "When John and Mary went to the store, Mary gave a drink to"


def test_a_pair_knows_its_positions_labels_and_metric(tiny):
    pair = ml.prompt_pair(tiny, [CLEAN] * 2, [CORRUPTED] * 2, [" Mary"] * 2, [" John"] * 2)
    assert len(pair) == 2
    (place,) = (pair.clean[0] != pair.corrupted[0]).nonzero()[:, 0].tolist()
    assert pair.position(" John", occurrence=2).tolist() == [place, place]
    assert len(set(pair.labels())) == pair.clean.shape[1]
    logits = tiny(pair.clean)
    expected = logits[:, -1, pair.answers[0]] - logits[:, -1, pair.incorrect[0]]
    assert torch.allclose(pair.metric(logits), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((CLEAN, CLEAN, " Mary", " John"), "clean and corrupted are the same text"),
        ((CLEAN, CORRUPTED, " Mary", " Mary"), "the answer and the wrong answer are both ' Mary'"),
        (
            (CLEAN, CORRUPTED, " Wilhelmina", " John"),
            r"' Wilhelmina' is \d+ tokens for this model: .*Choose a word that is one",
        ),
        (([CLEAN] * 2, [CORRUPTED], " Mary", " John"), "have 2, 1, 1 and 1 entries"),
        (
            (CLEAN, CORRUPTED + " Mary", " Mary", " John"),
            r"same number of tokens.*corrupted prompt 0 has 18, others 17",
        ),
        (
            ([CLEAN, CLEAN + " John", CLEAN], [CORRUPTED] * 3, [" Mary"] * 3, [" John"] * 3),
            r"clean prompt 1 has 18, others 17",
        ),
    ],
)
def test_bad_prompts_say_which_and_why(gqa, arguments, message):
    with pytest.raises(PromptError, match=message):
        ml.prompt_pair(gqa, *arguments)


def test_a_missing_occurrence_is_named(gqa):
    pair = ml.prompt_pair(gqa, CLEAN, CORRUPTED, " Mary", " John")
    with pytest.raises(PromptError, match=r"' John' occurs 2 times in prompt 0, not 3"):
        pair.position(" John", occurrence=3)


@pytest.mark.model
def test_a_name_without_its_space_is_warned_about(smollm2):
    with pytest.warns(
        UserWarning, match="'Mary' has no leading space; inside a sentence the token is ' Mary'"
    ):
        ml.single_token(smollm2, "Mary")


def test_an_answer_outside_the_vocabulary_is_refused(gqa):
    with pytest.raises(PromptError, match="tokens for this model"):
        ml.single_token(gqa, " 東京")


# --- what would go wrong without a word ---


@pytest.mark.parametrize(
    "labels", [["a", "a", "a 1"], ["a 0", "a", "a"], ["a", "a 1", "a", "a 1", "a 1 1"], ["x"] * 4]
)
def test_labels_stay_different_after_they_are_numbered(labels):
    found = distinct(labels)
    assert len(set(found)) == len(labels)
    scores = Scores(range(len(labels)), ("pos",), "x", labels={"pos": labels})
    assert [scores.at(pos=label).item() for label in scores.labels["pos"]] == list(range(len(labels)))


def test_values_may_be_whole_numbers_true_and_false_or_of_half_precision():
    for each in (
        torch.tensor([[1, 0], [1, 1]]),
        torch.tensor([[True, False], [True, True]]),
        torch.ones(2, 2).half(),
    ):
        found = Scores.over_prompts(each, ("layer",), "x")
        assert torch.allclose(found.values, each.float().mean(0)) and found.interval().shape == (2, 2)
    with pytest.raises(ValueError, match="there is no prompt, and so no mean"):
        Scores.over_prompts(torch.zeros(0, 3), ("layer",), "x")
    with pytest.raises(ValueError, match="There are 3 prompts, and 1 wholes"):
        Scores.over_prompts(torch.zeros(3, 2), ("pos",), "x", whole=torch.ones(1))


def test_prompts_that_belong_together_are_drawn_together():
    each = torch.tensor([0.0, 1.0] * 8)[:, None]  # two of a pair always differ: only pairs are independent
    scores = Scores.over_prompts(each, ("layer",), "x")
    low, high = scores.interval(units=torch.arange(16) // 2)
    assert low == high == 0.5 and scores.interval()[0] < 0.4
    for level in (95, 0.0, 1.0):
        with pytest.raises(ValueError, match=r"level is a share, such as 0\.95"):
            scores.interval(level=level)


def test_an_interval_of_many_places_is_that_of_each():
    rows = torch.randn(4, 9001, generator=torch.Generator().manual_seed(0))
    found = Scores.over_prompts(rows, ("neuron",), "x").interval()
    assert torch.equal(found[:, 9000], Scores.over_prompts(rows[:, 9000:], ("neuron",), "x").interval()[:, 0])


def test_scores_know_which_prompts_belong_together():
    pairs = torch.arange(10).repeat_interleave(2)
    values = torch.randn(10, 3, generator=torch.Generator().manual_seed(0)).repeat_interleave(2, 0)
    plain = Scores.over_prompts(values, ("head",), "effect")
    paired = Scores.over_prompts(values, ("head",), "effect", units=pairs)
    assert torch.equal(paired.interval(), plain.interval(units=pairs))
    assert torch.allclose(paired.interval(), Scores.over_prompts(values[::2], ("head",), "effect").interval())
    wide, narrow = (scores.top(1) for scores in (paired, plain))
    assert (wide["95 % high"] - wide["95 % low"])[0] > 1.2 * (narrow["95 % high"] - narrow["95 % low"])[0]
    assert paired.independent == 10 and plain.independent == 20


def test_no_interval_is_shown_below_eight_independent_units():
    values = torch.randn(14, 3, generator=torch.Generator().manual_seed(0))
    assert "95 % low" in Scores.over_prompts(values, ("head",), "effect").top()
    few = Scores.over_prompts(values, ("head",), "effect", units=torch.arange(14) // 2)
    assert "95 % low" not in few.top() and few.plot().figure.data[0].error_y.array is None


def test_units_must_name_every_prompt():
    with pytest.raises(ValueError, match="units names the cluster of 3 prompts, and 4 are kept"):
        Scores.over_prompts(torch.zeros(4, 2), ("head",), "effect", units=torch.arange(3))


def test_techniques_on_balanced_pairs_keep_the_pairs(smollm2):
    prompts = ml.ioi_prompts(smollm2, 4)
    found = ml.direct_logit_attribution(smollm2, prompts, prompts.io, prompts.s, unit="layer")
    assert torch.equal(found.units, prompts.pairs)
    patched = ml.activation_patching(
        smollm2, prompts.corrupted("flip"), prompts, prompts.metric, "z", layers=[29]
    )
    assert torch.equal(patched.units, prompts.pairs)


def test_holm_by_known_values():
    assert holm([0.01, 0.04, 0.03, 0.005]) == [True, False, False, True]
    assert holm([0.02, 0.02, 0.02]) == [False, False, False]
    assert holm([0.05]) == [True]
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm([1.2])
