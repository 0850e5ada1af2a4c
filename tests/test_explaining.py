"""Explanations as programs: predicates are true where they say, the search finds what was planted, scores are those
of the definition, the look-up table stands beside; bad input."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError
from sklearn.metrics import balanced_accuracy_score, f1_score

import mechlab as ml
from mechlab.discovery import predicates
from mechlab.discovery.explaining import read_program, shown
from mechlab.discovery.labels import Label, read_labels, simulate, write_labels
from mechlab.discovery.predicates import CONTEXTS, FORMS, KINDS, Predicate, Vocabulary
from mechlab.pictures.widgets import feature_browser

WORDS = [
    "<bos>",
    " the",
    " The",
    " wine",
    " and",
    "-",
    " 12",
    "\n",
    '"',
    "(",
    ")",
    "```",
    ".",
    " red",
    "dog",
    " or",
]

REAL = predicates._vocabulary


@pytest.fixture(scope="module")
def model():
    """A tiny model whose tokens are those sixteen, so that texts can be read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predicates, "_vocabulary", lambda tokenizer, size: Vocabulary(WORDS))
        yield ml.tiny("gpt2")


@pytest.fixture(scope="module")
def texts():
    drawn = torch.randint(1, len(WORDS), (60, 20), generator=torch.Generator().manual_seed(0))
    drawn[:, 0] = 0
    return drawn


@pytest.fixture(scope="module")
def readings(model, texts):
    return ml.read_predicates(model, texts[:40], texts[40:], fewest=2)


def true_at(predicate: str, tokens: list[str]) -> list[bool]:
    """Where a predicate is true in one text, its first token too."""
    vocabulary = Vocabulary(WORDS)
    ids = torch.tensor([[WORDS.index(token) for token in tokens]])
    codes = predicates._coded([Predicate.of(predicate)], vocabulary)
    return predicates._matrix(ids, codes, vocabulary, 0).toarray()[:, 0].astype(bool).tolist()


@pytest.mark.parametrize(
    ("predicate", "tokens", "where"),
    [
        ("token(' The')", [" the", " The", "dog"], [1]),
        ("word('the')", [" the", " The", "dog"], [0, 1]),
        ("previous(' The')", [" the", "dog", " wine"], [1]),
        ("before('the')", [" the", "dog", " wine", " the"], [2]),
        ("bigram('the', 'wine')", [" the", " wine", " red", " wine"], [1]),
        ("near('wine')", [" wine", *["dog"] * 9], range(1, 9)),
        ("form('a number')", [" 12", "dog"], [0]),
        ("previous_form('a conjunction')", [" and", "dog", " or", "-"], [1, 3]),
        ("context('said before')", ["dog", " the", "dog", " The"], [2, 3]),
        ("context('said before, after the same word')", [" the", "dog", "-", " The", "dog"], [4]),
        ("context('inside quotation marks')", ['"', "dog", '"', "dog"], [1, 2]),
        ("context('inside brackets')", ["(", "dog", ")", "dog"], [1, 2]),
        ("context('inside a block of code')", ["```", "dog", "```", "dog"], [1, 2]),
        ("context('at the start of a line')", ["dog", "\n", "dog", "dog"], [2]),
        ("context('among the first 4 tokens')", ["dog"] * 6, range(4)),
    ],
)
def test_a_predicate_is_true_where_it_says(predicate, tokens, where):
    assert true_at(predicate, tokens) == [n in [*where] for n in range(len(tokens))]


def test_nothing_looks_ahead(texts):
    """What is said of the first ten tokens does not change when others follow."""
    other = texts.clone()
    other[:, 10:] = texts[:, 10:].flip(0)
    one, two = (predicates._Places(Vocabulary(WORDS), each.numpy()) for each in (texts, other))
    for kind in KINDS:
        assert np.array_equal(getattr(one, kind)()[:, :10], getattr(two, kind)()[:, :10]), kind


def test_predicates_are_read_back_from_what_they_print():
    for each in ("token(' a \"b\"\\n')", "bigram('```', '\\n')", "form('a number')"):
        assert str(Predicate.of(each)) == str(Predicate.of(str(Predicate.of(each))))
    assert Predicate.of("previous('and')").words == "after 'and'"
    assert Predicate.of("form('a number')").words == "a number"
    for wrong in (
        "wine",
        "token(3)",
        "tokens('a')",
        "bigram('a')",
        "token('a', 'b')",
        "__import__('os')",
        "token('",
    ):
        with pytest.raises(ValueError, match="is no predicate"):
            Predicate.of(wrong)


def test_a_reading_holds_the_frequent_predicates_and_any_other(readings):
    train, test = readings
    assert train.predicates == test.predicates and train.true.shape == (40 * 19, len(train.predicates))
    counts = np.asarray(train.true.sum(0)).ravel()
    assert counts.min() >= 1 and set(np.unique(train.true.data)) == {1}
    for kind in ("token", "previous", "bigram"):  # one at a place, so the count is the number of places
        assert min(n for n, p in zip(counts, train.predicates, strict=True) if p.kind == kind) >= 2
    rare = [Predicate("bigram", (a, b)) for a in ("dog", "-", "wine") for b in ("wine", "12", "or", "dog")]
    rare = [each for each in rare if each not in train.index]
    asked = [Predicate.of("previous('and')"), *rare, Predicate.of("token('dog')"), *rare]
    found = test.columns(asked)
    assert rare and np.array_equal(found[:, 1 : 1 + len(rare)], found[:, 2 + len(rare) :])
    assert np.array_equal(found[:, 1 + len(rare)], test.tokens.numpy() == WORDS.index("dog"))
    values = torch.randn(20, 20)
    assert torch.allclose(test.on_tokens(test.flat(values))[:, 1:], values[:, 1:], atol=1e-6)


def planted(texts: torch.Tensor, noise: float = 0.0) -> torch.Tensor:
    """An activation of 5 after "and", 2 more on "wine"."""
    values = 2.0 * (texts == WORDS.index(" wine"))
    values[:, 1:] += 5.0 * (texts[:, :-1] == WORDS.index(" and"))
    return values + noise * torch.randn(values.shape, generator=torch.Generator().manual_seed(1))


def test_the_search_finds_what_was_planted(readings, texts):
    train, test = readings
    program = ml.explain(planted(texts[:40]), train)
    found = dict(zip(map(str, program.predicates), program.weights, strict=True))
    assert found.pop("previous('and')") == pytest.approx(5)
    assert [*found.values()] == pytest.approx([2]) and program.base == pytest.approx(0, abs=1e-9)
    score = program.score(planted(texts[40:]), test)
    assert score.correlation == pytest.approx(1) and score.f1 == score.balanced == 1 and score.held_out
    assert score.lookup < 0.6  # the token says only half of it
    base, terms = read_program(str(program))
    assert [str(p) for _, p in terms] == [str(p) for p in program.predicates] and base == pytest.approx(
        0, abs=1e-3
    )


def test_on_the_table_only_context_is_searched(readings, texts):
    train, test = readings
    program = ml.explain(planted(texts[:40]), train, on_table=True)
    assert program.predicates[0] == Predicate.of("previous('and')")
    assert not {p.kind for p in program.predicates} & {"token", "word", "form"}
    score = program.score(planted(texts[40:]), test)
    assert score.correlation > score.lookup + 0.3


def test_scores_are_those_of_their_definitions(readings, texts):
    train, test = readings
    values = planted(texts, noise=1.0)
    program = ml.explain(values[:40], train, terms=3)
    said, true = program._at(test), test.flat(values[40:])
    assert np.allclose(test.flat(program.predict(test)), said, atol=1e-5)
    score = program.score(values[40:], test)
    assert score.correlation == pytest.approx(np.corrcoef(said, true)[0, 1])
    active, cut = np.abs(true) >= program.level, program._cuts[0]
    assert score.active == active.sum() and 0 < active.mean() < 0.1
    assert score.f1 == pytest.approx(f1_score(active, np.abs(said) >= cut))
    assert score.balanced == pytest.approx(balanced_accuracy_score(active, np.abs(said) >= cut))
    trained = np.abs(program._at(train))
    goal = np.abs(train.flat(values[:40])) >= program.level
    assert f1_score(goal, trained >= cut) == pytest.approx(
        max(f1_score(goal, trained >= c) for c in np.unique(trained))
    )
    assert "look-up table" in repr(score) and "held-out" in repr(score)
    for same in (train, train.read(texts[:40])):
        assert "texts of the search" in repr(program.score(values[:40], same))


def test_the_table_is_the_mean_of_each_token_and_of_all_for_others(readings, texts):
    train, _ = readings
    values = planted(texts[:40], noise=1.0)
    table = ml.explain(values, train).lookup
    places, ids = torch.from_numpy(train.flat(values)), train.tokens
    for token in (1, 3):
        assert table.means[token] == pytest.approx(places[ids == token].mean().item(), rel=1e-5)
    assert table.means[0] == pytest.approx(places.mean().item(), rel=1e-4)  # never at a place


def test_noise_is_not_explained(readings, texts):
    train, test = readings
    values = torch.randn(60, 20, generator=torch.Generator().manual_seed(3))
    program = ml.explain(values[:40], train)
    assert (
        abs(program.score(values[40:], test).correlation)
        < 0.15
        < program.score(values[:40], train).correlation + 0.15
    )


def test_own_predicates_get_fitted_weights(readings, texts):
    train, _ = readings
    program = ml.explain(planted(texts[:40]), train, using=["previous('and')", "word('wine')"])
    assert program.weights == pytest.approx((5, 2)) and "after 'and'" in repr(program)


def test_another_model_can_be_asked_and_no_score_depends_on_it(readings, texts):
    train, _ = readings
    program, seen = ml.explain(planted(texts[:40]), train), []
    said = program.ask(lambda prompt: seen.append(prompt) or "  whatever follows and\n", examples=3)
    assert said == "whatever follows and"
    loud, quiet = seen[0].split("Not active:")
    assert loud.count("«") == 3 + 1 and quiet.count("«") == 3  # one more where the signs are explained
    assert all(" and«" in line for line in loud.splitlines() if line.startswith("- "))
    assert program.ask(lambda prompt: prompt, prompt="{tokens}").count(",") == 4
    assert program.ask(lambda prompt: prompt, prompt="{a: 1} {tokens}").startswith("{a: 1} ")
    for nothing in (lambda prompt: "  ", lambda prompt: None):
        with pytest.raises(ValueError, match="returned"):
            program.ask(nothing)
    assert shown(train, 0, 2).startswith("«")


def test_labels_are_kept_beside_the_activity_and_shown_on_the_page(readings, tmp_path):
    labels = {3: Label("5 * previous('and') + 2 * word('wine') + -1", 0.8, 0.3, 0.85, 0.5, 0.2)}
    labels[4] = Label("2 * token('-') + 0", None, None, None, None, None)
    write_labels(tmp_path / "labels.csv", labels)
    assert read_labels(tmp_path / "labels.csv") == labels
    assert labels[3].words == "5 after 'and'; 2 the word 'wine'" and "never active" in repr(labels[4])
    assert "<details>" in labels[3]._repr_html_() and "0.30" in labels[3]._repr_html_()
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="holds no labels"):
        read_labels(tmp_path / "other.csv")
    train, _ = readings
    found = simulate(labels, train, 6)
    expected = 5 * train.columns([Predicate.of("previous('and')")]) + 2 * train.columns(
        [Predicate.of("word('wine')")]
    )
    assert np.allclose(train.flat(found[..., 3]), np.maximum(expected[:, 0] - 1, 0), atol=1e-5)
    assert found[..., [0, 1, 2, 5]].abs().max() == 0 == found[:, 0].abs().max()


def test_activity_brings_its_labels(tmp_path):
    activity = ml.Activity(
        torch.arange(6).view(2, 3), torch.tensor([1, 5]), torch.tensor([2, 0]), torch.ones(2), 4, 1
    )
    assert activity.values(2).tolist() == [[0, 1, 0], [0, 0, 0]] and activity.labels == {}
    activity.save(tmp_path / "activity.safetensors")
    write_labels(tmp_path / "labels.csv", {2: Label("1 * word('a') + 0", 0.5, 0.4, 0.6, 0.1, 0.1)})
    assert ml.Activity.load(tmp_path / "activity.safetensors").labels[2].lookup == 0.4
    with pytest.raises(ValueError, match="features 0 to 3"):
        activity.values(4)


def test_the_page_and_the_browser_show_a_label_folded():
    model, hook = ml.tiny("gqa"), "blocks.1.hook_resid_post"
    texts = torch.randint(5, 60, (13, 14), generator=torch.Generator().manual_seed(0))
    sae = ml.train_sae(
        ml.token_activations(model, texts, hook), width=24, k=4, steps=50, batch=64, hook=hook
    ).sae
    activity = ml.feature_activity(model, sae, texts)
    label = Label("2 * previous('a') + 0", 0.5, 0.25, 0.6, 0.1, 0.1)
    feature = int(activity.feature[0])
    named = replace(activity, labels={feature: label})
    page = ml.feature_page(model, sae, named, feature)
    assert page.label is label and "look-up table of tokens 0.25" in repr(page)
    box = feature_browser(model, sae, named, feature=feature)
    assert any("<details><summary>A program" in str(getattr(child, "value", "")) for child in box.children)
    assert "<details>" not in ml.feature_page(model, sae, activity, feature)._repr_html_()


def test_bad_input_is_refused(model, readings, texts):
    train, test = readings
    never = torch.zeros(40, 20)
    with pytest.raises(ValueError, match="never active"):
        ml.explain(never, train)
    program = ml.explain(planted(texts[:40]), train)
    with pytest.raises(ValueError, match="never active"):
        program.score(torch.zeros(20, 20), test)
    with pytest.raises(ValueError, match=r"\(40, 20\), and the texts \(20, 20\)"):
        program.score(planted(texts[:40]), test)
    broken = planted(texts[:40])
    broken[3, 5] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        ml.explain(broken, train)
    with pytest.raises(ValueError, match="NaN or infinite"):
        program.score(broken, train)
    with pytest.raises(ValueError, match="shows no evidence"):
        program.ask(str, prompt="What is this? {}")
    with pytest.raises((TypeError, TypeCheckError), match=r"Reading|read_predicates"):
        ml.explain(planted(texts[:40]), texts[:40])
    with pytest.raises(ValueError, match="examples is 0"):
        program.evidence(0)
    assert len(ml.explain(planted(texts[:40]), train, using=str(train.predicates[0])).weights) == 1
    with pytest.raises(ValueError, match="terms"):
        ml.explain(planted(texts[:40]), train, terms=0)
    with pytest.raises(ValueError, match="2 of the texts stand in both"):
        ml.read_predicates(model, texts[:40], texts[38:])
    with pytest.raises(ValueError, match="there is nothing"):
        ml.read_predicates(model, texts[:40, :1], texts[40:])
    with pytest.raises(ValueError, match=r"nothing of that name.*one token"):
        ml.explain(planted(texts[:40]), train, using=["previous('zebra')"])
    with pytest.raises(ValueError, match=r"nothing of that name.*a number"):
        ml.explain(planted(texts[:40]), train, using=["form('a verb')"])
    with pytest.raises(ValueError, match="no sum of weights"):
        read_program("3 * 4 + wine")


def test_forms_and_contexts_are_all_found_by_name():
    for name in FORMS:
        assert len(true_at(f"form({name!r})", ["dog"])) == 1
    for name in CONTEXTS:
        assert len(true_at(f"context({name!r})", ["dog"])) == 1


@pytest.mark.model
def test_the_stored_labels_are_made_by_the_search(smollm2, monkeypatch):
    """Feature 2135 and some others: program and scores, as the script would make them today."""
    from mechlab.reference import data_dir

    monkeypatch.setattr(predicates, "_vocabulary", REAL)
    activity = ml.Activity.load(data_dir() / "sae" / "smollm2_layer12" / "activity.safetensors")
    train, test = ml.read_predicates(smollm2, activity.texts[:280], activity.texts[280:])
    assert len(activity.labels) == activity.d_sae
    for feature in (2135, 778, 50):
        values, label = activity.values(feature), activity.labels[feature]
        program = ml.explain(values[:280], train, terms=5)
        score = program.score(values[280:], test)
        assert (score.correlation, score.lookup) == pytest.approx((label.correlation, label.lookup), abs=0.02)
        assert str(program).split(" + ")[0] == label.program.split(" + ")[0]
