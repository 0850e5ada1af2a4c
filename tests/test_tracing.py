"""Causal tracing: the short way against whole runs with hooks, and what must hold for any fact."""

import pytest
import torch

import mechlab as ml
from mechlab.runs import engines
from tests.test_hooks import hooks_left
from tests.test_runs import Refuses

METRIC = ml.probability(7)


@pytest.fixture(scope="module")
def prompt():
    return torch.randint(5, 60, (1, 8), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("site", "window"), [("resid_pre", 1), ("attn_out", 1), ("mlp_out", 2), ("mlp_out", 3)]
)
def test_the_short_way_is_the_plain_way(tiny, prompt, site, window, monkeypatch):
    given = {"site": site, "window": window, "samples": 3}
    found = ml.causal_tracing(tiny, prompt, METRIC, subject=[2, 3], **given)
    monkeypatch.setattr(engines, "Fast", Refuses)
    with pytest.warns(UserWarning, match="slower, the same numbers"):
        plain = ml.causal_tracing(tiny, prompt, METRIC, subject=[2, 3], **given)
    assert torch.allclose(found.per_prompt, plain.per_prompt, atol=1e-5)
    assert found.baselines == pytest.approx(plain.baselines, abs=1e-5)
    assert plain.per_prompt.abs().max() > 1e-3
    assert hooks_left(tiny) == 0


def test_one_state_by_hand(gqa, prompt):
    """Restoring the stream at (layer 1, position 3), written out."""
    found = ml.causal_tracing(gqa, prompt, METRIC, subject=[2, 3], samples=2, noise=2.0, seed=5)
    noise = torch.zeros(2, 8, 32)
    drawn = torch.randn(2, 2, 32, generator=torch.Generator().manual_seed(5))
    noise[:, 2:4] = 2.0 * gqa.W_E.detach().std() * drawn
    with torch.no_grad():
        _, cache = gqa.run_with_cache(prompt)
        corrupt = ("blocks.0.hook_resid_pre", lambda x, hook: x + noise)

        def restore(x, hook):
            x = x.clone()
            x[:, 3] = cache["resid_pre", 1][0, 3]
            return x

        with ml.intervene(gqa, [corrupt]):
            corrupted = METRIC(gqa(prompt.expand(2, -1)))
        with ml.intervene(gqa, [corrupt, ("blocks.1.hook_resid_pre", restore)]):
            restored = METRIC(gqa(prompt.expand(2, -1)))
    assert torch.allclose(found.per_prompt[:, 1, 3], restored - corrupted, atol=1e-5)


def test_the_whole_subject_restored_at_the_start_is_the_clean_run(tiny, prompt):
    found = ml.causal_tracing(tiny, prompt, METRIC, subject=[4], samples=4)
    whole = found.baselines["clean"] - found.baselines["corrupted"]
    assert found.values[0, 4] == pytest.approx(
        whole, abs=1e-5
    )  # one token: its embedding set back is everything
    assert torch.equal(found.values[:, :4], torch.zeros(3, 4))  # never corrupted
    assert found.per_prompt.shape == (4, 3, 8) and found.interval().shape == (2, 3, 8)


def test_a_wide_window_restores_at_least_what_it_holds(tiny, prompt):
    narrow = ml.causal_tracing(tiny, prompt, METRIC, subject=[2, 3], site="mlp_out", samples=2, layers=[1])
    wide = ml.causal_tracing(
        tiny, prompt, METRIC, subject=[2, 3], site="mlp_out", samples=2, layers=[1], window=3
    )
    assert not torch.allclose(narrow.values, wide.values, atol=1e-4)


def test_some_positions_are_those_of_the_whole_map(tiny, prompt):
    whole = ml.causal_tracing(tiny, prompt, METRIC, subject=[2, 3], samples=2)
    some = ml.causal_tracing(tiny, prompt, METRIC, subject=[2, 3], samples=2, positions=[7, 1, 3])
    assert torch.allclose(some.values, whole.values[:, [7, 1, 3]], atol=1e-6)
    assert list(some.labels["pos"]) == [whole.labels["pos"][p] for p in (7, 1, 3)]


def test_a_place_before_the_subject_has_no_effect(tiny, prompt):
    found = ml.causal_tracing(tiny, prompt, METRIC, subject=[3], samples=2, positions=[1])
    assert torch.equal(found.values, torch.zeros(3, 1))


def test_no_noise_is_no_effect(tiny, prompt):
    found = ml.causal_tracing(tiny, prompt, METRIC, subject=[2], noise=0.0, samples=2)
    assert found.values.abs().max() < 1e-5


def test_where_a_subject_stands(tiny):
    prompt = "When John and Mary went to the store, John gave a drink to"
    texts = tiny.to_str_tokens(prompt)
    assert ml.subject_positions(tiny, prompt, "Mary") == [texts.index(" Mary")]
    assert ml.subject_positions(tiny, prompt, "John") == [len(texts) - 1 - texts[::-1].index(" John")]
    several = ml.subject_positions(tiny, prompt, "the store")
    assert "".join(texts[p] for p in several).strip() == "the store"
    assert ml.subject_positions(tiny, prompt, "When")[0] == 1  # the model's first token is no subject
    with pytest.raises(ml.PromptError, match="'Paris' does not occur in the prompt"):
        ml.subject_positions(tiny, prompt, "Paris")
    with pytest.raises(ml.PromptError, match="'' does not occur"):
        ml.subject_positions(tiny, prompt, "")


TEXTS = ["The Eiffel Tower is in", "In Rome one speaks", "The old Colosseum stands in the city of"]
SUBJECTS = [[2, 3], [2], [2, 3, 4]]


def test_several_facts_are_the_mean_of_each_alone(tiny):
    """Of unequal lengths, with a metric of their own; the noise of each drawn anew."""
    answers = [7, 8, 9]
    metrics = [ml.probability(answer) for answer in answers]
    asked = {"samples": 3, "layers": [0, 2], "noise": 2.0}
    found = ml.causal_tracing(tiny, TEXTS, metrics, subject=SUBJECTS, seed=4, **asked)
    assert found.labels["pos"] == ["first of the subject", "last of the subject", "last token"]
    for n, (text, metric, subject) in enumerate(zip(TEXTS, metrics, SUBJECTS, strict=True)):
        alone = ml.causal_tracing(tiny, text, metric, subject=subject, seed=4 + n, **asked)
        places = [subject[0], subject[-1], -1]
        assert torch.allclose(found.per_prompt[n], alone.values[:, places], atol=1e-6)
    last = ml.causal_tracing(
        tiny, TEXTS, metrics, subject=SUBJECTS, positions={"end": [-1, -1, -1]}, seed=4, **asked
    )
    assert torch.allclose(last.values[:, 0], found.values[:, 2], atol=1e-6)


@pytest.mark.parametrize("of", ["vocabulary", "subjects"])
def test_what_the_noise_is_counted_in(gqa, of):
    """Noise of three times the spread of all embeddings, or of the subjects' own, added by hand."""
    tokens = [gqa.to_tokens(text)[0] for text in TEXTS]
    ids = torch.cat([t[s] for t, s in zip(tokens, SUBJECTS, strict=True)])
    sd = (gqa.W_E.detach()[ids] if of == "subjects" else gqa.W_E.detach()).std()
    found = ml.causal_tracing(gqa, TEXTS, METRIC, subject=SUBJECTS, samples=2, noise_of=of, layers=[0])
    values = []
    for n, (row, subject) in enumerate(zip(tokens, SUBJECTS, strict=True)):
        noise = torch.zeros(2, len(row), 32)
        noise[:, subject] = (
            3 * sd * torch.randn(2, len(subject), 32, generator=torch.Generator().manual_seed(n))
        )
        with (
            torch.no_grad(),
            ml.intervene(gqa, [("blocks.0.hook_resid_pre", lambda x, hook, e=noise: x + e)]),
        ):
            values.append(METRIC(gqa(row.expand(2, -1))).mean())
    assert found.baselines["corrupted"] == pytest.approx(torch.stack(values).mean().item(), abs=1e-6)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"subject": [2, 3]}, "3 prompts: give one subject for each"),
        ({"subject": SUBJECTS[:2]}, "3 prompts: give one subject for each"),
        ({"metric": [METRIC] * 2}, "Got 2 metrics"),
        ({"positions": [1, 2]}, "of several prompts, name places"),
        ({"positions": {"late": [19, 19, 19]}}, "position of 'late'"),
        ({"metric": ml.probability([7, 8, 9])}, "3 answers"),
    ],
)
def test_what_several_facts_need_is_named(gqa, given, message):
    given = {"metric": METRIC, "subject": SUBJECTS, "samples": 2, "layers": [0]} | given
    with pytest.raises(ValueError, match=message):
        ml.causal_tracing(gqa, TEXTS, given.pop("metric"), **given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"site": "z"}, "site is 'z'"),
        ({"noise_of": "subject"}, "noise_of is 'subject'"),
        ({"window": 3}, "1 for the stream"),
        ({"subject": []}, "positions between 0 and 7"),
        ({"subject": [8]}, r"subject is \[8\]: give positions between 0 and 7"),
        ({"positions": [9]}, r"positions is \[9\]: give positions between 0 and 7"),
        ({"layers": [3]}, "the model has layers 0 to 2"),
    ],
)
def test_bad_input_is_named(gqa, prompt, given, message):
    with pytest.raises(ValueError, match=message):
        ml.causal_tracing(gqa, prompt, METRIC, subject=given.pop("subject", [2]), **given)
