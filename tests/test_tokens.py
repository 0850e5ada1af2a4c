"""One door for input: what people bring becomes tokens, read at each prompt's own end, or is refused with a sentence."""

import inspect

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mechlab as ml
from mechlab.metrics import fitted
from mechlab.prompts import PromptError
from mechlab.runs.places import word_positions
from mechlab.tokens import batch_of, batches_of, first_tokens, tokenized
from tests.architectures import kept

SHORT, LONG = "Mary gave a drink to", "When John and Mary went to the store, Mary gave a drink to"
SCRIPTS = {
    "Latin": "The café in Zürich",
    "NFD": "The cafe\u0301 in Zu\u0308rich",
    "Cyrillic": "Москва столица России",
    "Greek": "Η Αθήνα είναι πρωτεύουσα",
    "Arabic": "القاهرة عاصمة مصر",
    "Hebrew": "ירושלים עיר הבירה",
    "Devanagari": "दिल्ली भारत की राजधानी",
    "Thai": "กรุงเทพเป็นเมืองหลวง",
    "CJK": "東京は日本の首都",
    "Hangul": "서울은 한국의 수도",
    "emoji": "The 😀 movie 👩‍👩‍👧 won 👍🏽",
    "marks": "a\u200bb \u200fא tab\tand\nline",
}


@pytest.fixture(scope="module", params=["Llama", "Pythia (GPT-NeoX)"])
def model(request):
    """With and without a first token."""
    return kept(request.param)


def test_a_text_texts_rows_lists_and_arrays_are_the_same(model):
    tokens = model.to_tokens(LONG)
    pair = ml.prompt_pair(model, LONG, LONG.replace(" Mary gave", " John gave"), " Mary", " John")
    for given_ in (LONG, [LONG], tokens, tokens[0], tokens.int(), tokens[0].tolist(), tokens.numpy(), pair):
        batch = inspect.unwrap(batch_of)(model, given_)  # in tests shapes are checked first
        assert torch.equal(batch.tokens, tokens) and batch.lengths == [tokens.shape[1]]
        assert not batch.padded and batch.tokens.dtype == torch.long
    assert batch_of(model, batch) is batch
    assert first_tokens(model) == (1 if model.cfg.model_name == "Llama" else 0)


def test_texts_of_unequal_length_end_where_they_end(model):
    batch = batch_of(model, [SHORT, LONG])
    alone = [tokenized(model, text) for text in (SHORT, LONG)]
    assert batch.padded and batch.lengths == [len(row) for row in alone]
    for row, own in enumerate(alone):
        assert torch.equal(batch.tokens[row, : len(own)], own)
    assert batch.position(-1).tolist() == [len(row) - 1 for row in alone]
    assert batch.position([2, -2]).tolist() == [2, len(alone[1]) - 2]
    by_tokenizer = batch_of(model, model.to_tokens([SHORT, LONG]))
    assert by_tokenizer.lengths == batch.lengths
    with pytest.raises(PromptError, match=r"have \d+, \d+ tokens, and means need it"):
        batch.one_length("means need it")


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ("", "is empty|at least one"),
        ([], "is empty: give at least one text"),
        (torch.zeros(0, dtype=torch.long), "no token in it"),
        (torch.zeros(2, 0, dtype=torch.long), "no token in it"),
        (torch.ones(2, 3), "whole numbers"),
        (torch.ones(2, 3, dtype=torch.bool), "whole numbers"),
        (torch.ones(2, 3, 4, dtype=torch.long), "give a text"),
        (torch.tensor(3), "give a text"),
        ([1.5, 2.0], "give a text"),
        ([[1, 2], [3]], "give a text"),
        (None, "give a text"),
        ({"a": 1}, "give a text"),
        (torch.tensor([[1, 400]]), "has the token 400; this model's ids go from 0 to 399"),
        (torch.tensor([[1, -1]]), "has the token -1"),
        (" John" * 80, r"has \d+ tokens; this model reads at most 64"),
        (torch.ones(1, 65, dtype=torch.long), "has 65 tokens; this model reads at most 64"),
        (["a", " John" * 80], r"reads at most 64"),
        (torch.tensor([[0, 0, 5, 6], [5, 6, 7, 8]]), "padded at the beginning"),
        ("half \ud83d", "half a character"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_by_a_sentence(model, given_, message):
    if isinstance(given_, str) and not given_ and first_tokens(model):
        assert batch_of(model, given_).lengths == [1]  # the first token alone
        return
    with pytest.raises(PromptError, match=message):
        inspect.unwrap(batch_of)(model, given_)  # in tests shapes are checked first


def test_prompts_of_another_models_words_are_refused():
    model, other = kept("Llama"), ml.tiny("gqa")
    batch = batch_of(other, LONG)
    assert torch.equal(batch_of(model, batch).tokens, batch.tokens)  # the same words
    odd = kept("Qwen2")
    batches = batch_of(model, SHORT), batch_of(odd, SHORT)
    assert len(batches[0].tokens[0]) == len(batches[1].tokens[0]) + 1


def test_two_batches_must_correspond(model):
    first, second = batches_of(model, [SHORT, LONG], [SHORT.replace("Mary", "John"), LONG], "this")
    assert torch.equal(first.ends, second.ends)
    with pytest.raises(PromptError, match=r"base is \(1, \d+\) and source \(1, \d+\): this needs"):
        batches_of(model, SHORT, LONG, "this")
    with pytest.raises(PromptError, match="tokens of their own: this needs"):
        batches_of(model, [SHORT, LONG], [LONG, SHORT], "this")


# --- metrics ---


def test_a_metric_is_read_at_each_prompts_own_end(model):
    batch = batch_of(model, [SHORT, LONG])
    with torch.no_grad():
        both, alone = model(batch.tokens), [model(tokenized(model, text)[None]) for text in (SHORT, LONG)]
    for metric in (
        ml.logit_difference([7, 8], 9), ml.log_prob([7, 8]), ml.probability(7, pos=-2), ml.logit_difference(7, 9, pos=1),
    ):  # fmt: skip
        expected = torch.stack(
            [metric.__class__(**vars(metric))(torch.cat([row, row]))[n] for n, row in enumerate(alone)]
        )
        assert torch.allclose(fitted(metric, batch)(both), expected, atol=1e-5)
    reference = both.flip(-1)
    own = [ml.kl_divergence(reference[n : n + 1, : batch.lengths[n]])(row) for n, row in enumerate(alone)]
    assert torch.allclose(fitted(ml.kl_divergence(reference), batch)(both), torch.cat(own), atol=1e-4)


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (ml.logit_difference(7, 9, pos=33), r"pos is 33, and prompt 0 has \d+ tokens"),
        (ml.logit_difference(7, 9, pos=-50), "pos is -50"),
        (ml.logit_difference(7, 9, pos=[1, 2, 3]), "one position for all, or one for each"),
        (ml.logit_difference(7, 9, pos=7), "pos is 7, and prompt 0 has"),
        (ml.logit_difference(400, 9), "asks for token 400; this model's ids go from 0 to 399"),
        (ml.log_prob(-1), "asks for token -1"),
        (ml.probability([1, 2, 3]), "2 prompts and 3 answers"),
        (ml.kl_divergence(torch.zeros(3, 4, 400)), "reference logits are"),
        (lambda logits: logits[:, -1, 3], "reads what stands behind the short ones"),
        (lambda logits: logits.mean((1, 2)), "reads what stands behind the short ones"),
        (lambda logits: logits.mean(), "one number per prompt"),
        ("a word", "must be a function"),
    ],
)
def test_a_metric_that_reads_what_is_not_there_is_refused(metric, message):
    model = kept("Llama")
    batch = batch_of(model, [SHORT, LONG])
    with torch.no_grad(), pytest.raises(ValueError, match=message):
        inspect.unwrap(fitted)(metric, batch)(model(batch.tokens))


def test_a_metric_of_ones_own_that_leaves_padding_alone_is_taken():
    model = kept("Llama")
    batch, rows = batch_of(model, [SHORT, LONG]), torch.arange(2)
    metric = lambda logits: logits[rows, batch.ends, 3]
    with torch.no_grad():
        logits = model(batch.tokens)
    assert torch.equal(fitted(metric, batch)(logits), metric(logits))


def test_one_answer_serves_any_number_of_copies():
    model = kept("Llama")
    pair = ml.prompt_pair(model, LONG, LONG.replace(" Mary gave", " John gave"), " Mary", " John")
    copies = pair.clean.expand(3, -1)
    with torch.no_grad():
        assert torch.allclose(pair.metric(model(copies)), pair.metric(model(pair.clean)).expand(3), atol=1e-5)


# --- places of words ---


def holders(model, text, start, end):
    """The tokens that hold characters, by the bytes that each token stands for: byte-level tokenizers only."""
    first, places, at = len(text[:start].encode()), [], 0
    last = len(text[:end].encode())
    tokens = tokenized(model, text).tolist()
    for place, token in enumerate(tokens):
        if place < first_tokens(model):
            continue
        size = len(model.tokenizer.convert_ids_to_tokens(token))  # a character for each byte
        if at < last and at + size > first:
            places.append(place)
        at += size
    assert at == len(text.encode())
    return places


@pytest.mark.parametrize("script", SCRIPTS)
def test_words_of_every_script_are_found_where_their_bytes_are(script, model):
    """Also characters that are split between tokens, on tokenizers with and without a first token."""
    text = SCRIPTS[script]
    for word in text.split():
        start = text.index(word)
        assert word_positions(model, text, start, start + len(word)) == holders(
            model, text, start, start + len(word)
        )


@pytest.mark.model
@pytest.mark.parametrize("script", SCRIPTS)
def test_words_are_found_on_the_model_of_the_course(script, smollm2):
    text = SCRIPTS[script]
    for word in text.split():
        start = text.index(word)
        found = word_positions(smollm2, text, start, start + len(word))
        assert found == holders(smollm2, text, start, start + len(word))


@given(
    words=st.lists(
        st.text(st.characters(exclude_categories=["Cs", "Zs", "Cc"]), min_size=1, max_size=6),
        min_size=1,
        max_size=6,
    ),
    pick=st.integers(0, 5),
)
@settings(max_examples=60, derandomize=True, deadline=None)
def test_any_word_is_found_where_its_bytes_are(words, pick):
    model, text = kept("Llama"), " ".join(words)
    chosen = pick % len(words)
    start = sum(len(word) + 1 for word in words[:chosen])
    word = words[chosen]
    if word.strip() != word or len(tokenized(kept("Llama"), "a")) > 60:
        return
    try:
        found = word_positions(model, text, start, start + len(word))
    except PromptError as refusal:
        assert "reads at most" in str(refusal)
        return
    assert found == holders(model, text, start, start + len(word))


@pytest.mark.parametrize(
    ("text", "subject", "expected"),
    [
        ("John went to Paris. John", "John", "last"),
        ("The party had art in it", "art", "whole"),
        ("Parisian Paris", "Paris", "whole"),
    ],
)
def test_a_subject_is_a_whole_word_and_the_last_of_its_kind(text, subject, expected):
    model = kept("Llama")
    start = text.rindex(f" {subject}") + 1
    assert ml.subject_positions(model, text, subject) == holders(model, text, start, start + len(subject))


@pytest.mark.parametrize(
    ("text", "subject", "message"),
    [
        ("The party", "art", "only inside a longer word"),
        ("The party", "John", "does not occur"),
        ("The party", "", "does not occur"),
    ],
)
def test_a_subject_that_is_not_there_is_refused(text, subject, message):
    with pytest.raises(PromptError, match=message):
        ml.subject_positions(kept("Llama"), text, subject)


# --- what techniques make of it ---


def test_arrays_and_texts_go_through_the_techniques(model):
    tokens = model.to_tokens(LONG)
    metric = ml.logit_difference(7, 9)
    for given_ in (LONG, tokens[0], tokens[0].tolist()):
        found = ml.activation_patching(model, given_, tokens.flip(1), metric, "z", normalized=False)
        expected = ml.activation_patching(model, tokens, tokens.flip(1), metric, "z", normalized=False)
        assert torch.equal(found.values, expected.values)


def test_a_padded_batch_is_patched_as_each_prompt_alone(model):
    metric = ml.logit_difference(7, 9)
    bases = [SHORT.replace("Mary", "John"), LONG.replace("Mary gave", "John gave")]
    sources = [SHORT, LONG]
    calls = {
        "patching": lambda b, s: (
            ml.activation_patching(model, b, s, metric, "z", normalized=False).per_prompt
        ),
        "paths": lambda b, s: ml.path_patching(model, b, s, metric, normalized=False).per_prompt,
        "heads": lambda b, s: (
            ml.path_patching(model, b, s, metric, [(2, 1)], "q", normalized=False).per_prompt
        ),
    }
    for name, call in calls.items():
        both = call(bases, sources)
        for row in range(2):
            alone = call(bases[row], sources[row])[0]
            assert torch.allclose(both[row], alone, atol=1e-4), name


@pytest.mark.parametrize("positions", [[2, 2], [-1, 13], {"x": [1, 99]}, [99], {}])
def test_positions_that_are_there_twice_or_not_at_all_are_refused(positions):
    model = kept("Llama")
    count = model.to_tokens(LONG).shape[1]
    positions = [-1, count - 1] if positions == [-1, 13] else positions
    with pytest.raises(
        ValueError,
        match=r"twice|tokens: positions 0 to|whole numbers|list of positions|nothing to patch|one position for all",
    ):
        ml.activation_patching(
            model,
            LONG,
            LONG.replace("Mary gave", "John gave"),
            ml.logit_difference(7, 9),
            positions=positions,
        )
