"""Head scores: perfect heads, TransformerLens' detector, circuits against the model's own activations; bad input."""

import pytest
import torch
from transformer_lens.head_detector import detect_head

import mechlab as ml
from mechlab.discovery.attention import _alone, looked_for
from mechlab.runs import rotary
from tests.test_hooks import hooks_left


@pytest.fixture(scope="module")
def tokens(tiny):
    return ml.repeated_tokens(tiny, length=9, batch=3)


def test_repeated_tokens_repeat(tiny, tokens):
    assert tokens.shape == (3, 19) and torch.equal(tokens[:, 1:10], tokens[:, 10:])
    assert (tokens[:, 0] == tiny.to_tokens("")[0, 0]).all()
    assert not set(tokens[:, 1:].flatten().tolist()) & set(tiny.tokenizer.all_special_ids)
    assert torch.equal(tokens, ml.repeated_tokens(tiny, length=9, batch=3))


def test_places_of_a_text_with_a_copy():
    text = torch.tensor([[0, 5, 6, 5, 6]])
    assert looked_for(text, "duplicate token")[0].nonzero().tolist() == [[3, 1], [4, 2]]
    assert looked_for(text, "induction")[0].nonzero().tolist() == [[3, 2], [4, 3]]
    assert looked_for(text, "previous token")[0].nonzero().tolist() == [[q, q - 1] for q in range(1, 5)]
    assert looked_for(text, "sink")[0].nonzero().tolist() == [[q, 0] for q in range(1, 5)]


def test_scores_are_means_of_the_patterns(tiny, tokens):
    _, cache = tiny.run_with_cache(tokens)
    pattern = cache["pattern", 1]
    previous = ml.head_scores(tiny, tokens, "previous token")
    assert torch.allclose(previous.values[1], pattern.diagonal(-1, 2, 3).mean((0, 2)), atol=1e-5)
    sink = ml.head_scores(tiny, tokens, "sink")
    assert torch.allclose(sink.values[1], pattern[:, :, 1:, 0].mean((0, 2)), atol=1e-5)
    assert hooks_left(tiny) == 0


@pytest.mark.parametrize("kind", ["previous token", "duplicate token", "induction"])
def test_transformer_lens_detector_agrees_up_to_its_divisor(tiny, tokens, kind):
    text = tokens[:1]
    mask = looked_for(text, kind)[0]
    theirs = detect_head(tiny, "".join(tiny.to_str_tokens(text[0])), mask.float(), error_measure="mul") \
        if tiny.to_tokens("".join(tiny.to_str_tokens(text[0]))).shape == text.shape else None  # fmt: skip
    _, cache = tiny.run_with_cache(text)
    by_hand = torch.stack([(cache["pattern", n][0] * mask).sum((1, 2)) / text.shape[1] for n in range(3)])
    if theirs is not None:
        assert torch.allclose(theirs.cpu().float(), by_hand, atol=2e-3)
    ours = ml.head_scores(tiny, text, kind).values * mask.any(-1).sum() / text.shape[1]
    assert torch.allclose(ours, by_hand, atol=1e-5)


def test_copying_through_a_head_that_copies(gqa):
    tokens = torch.arange(20, 50)
    with torch.no_grad():
        attention = gqa.blocks[1].attn
        streams = gqa.blocks[1].ln1(_alone(gqa, tokens)[None])[0]
        written = streams @ attention.W_V[1] @ attention.W_O[2]  # query head 2 uses key/value head 1
        logits = gqa.unembed(gqa.ln_final(written[None]))[0]
        expected = (logits.topk(5).indices == tokens[:, None]).any(1).float().mean()
    assert torch.isclose(ml.copying_scores(gqa, tokens).values[1, 2], expected)


def test_matching_is_the_share_of_best_keys(tiny):
    tokens = torch.arange(20, 40)
    found = ml.matching_scores(tiny, tokens)
    with torch.no_grad():
        attention = tiny.blocks[2].attn
        x = tiny.blocks[2].ln1(_alone(tiny, tokens)[None])[0]
        q = x @ attention.W_Q[3] + (0 if attention.b_Q is None else attention.b_Q[3])
        group = tiny.cfg.n_heads // attention.W_K.shape[0]
        k = x @ attention.W_K[3 // group] + (0 if attention.b_K is None else attention.b_K[3 // group])
    expected = ((q @ k.T).argmax(1) == torch.arange(20)).float().mean()
    assert torch.isclose(found.values[2, 3], expected)
    through = ml.matching_scores(tiny, tokens, through=(1, 0))
    assert through.values[:2].abs().max() == 0  # a head's output reaches later layers only
    assert ml.matching_scores(tiny, tokens, distance=3).values.shape == (3, 4)


def test_rotary_distance_gives_the_models_own_scores(gqa):
    """Query and key `distance` apart, rotated by the model, have the inner product that matching_scores uses."""
    tokens = torch.tensor([[0, 7, 7, 7, 7, 7]])
    _, cache = gqa.run_with_cache(tokens)
    q, k = cache["blocks.0.attn.hook_q"][0], cache["blocks.0.attn.hook_k"][0]
    score = cache["blocks.0.attn.hook_attn_scores"][0, 0]
    q, k = q.reshape(6, 4, 8), k.reshape(6, 2, 8)
    ours = (rotary.rotate(q[5], rotary.turn_of(gqa, 4), slice(3, None))[0] @ k[2, 0]) / 8**0.5
    assert torch.isclose(ours, score[5, 2], atol=1e-4)
    usual = rotary.rotate(q[5], rotary.turn_by(10_000, 4, 8), slice(3, None))[0] @ k[2, 0] / 8**0.5
    assert not torch.isclose(
        usual, score[5, 2], atol=1e-3
    )  # a rotary base that is not the model's would show
    fits = ml.matching_scores(gqa, torch.arange(5, 25), distance=3)
    assert not torch.equal(fits.values, ml.matching_scores(gqa, torch.arange(5, 25)).values)


@pytest.mark.model
def test_matching_scores_at_a_distance_on_the_model_of_the_course(smollm2):
    """Beside the model's own scores: one prompt a pair of tokens, query and key 20 apart, with a fixed filling."""
    tokens, distance, (layer, head) = torch.arange(2000, 2030), 20, (0, 4)
    turn = rotary.turn_of(smollm2, 64)
    q, k = (torch.randn(9, 64, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    far = rotary.rotate(q, turn, slice(distance, distance + 1)) @ k.T
    both = rotary.rotate(q, turn, slice(distance + 9, distance + 10)) @ rotary.rotate(k, turn, slice(9, 10)).T
    assert torch.allclose(far, both, atol=1e-3)  # only how far apart they stand counts
    theta = smollm2.cfg.rope_parameters["rope_theta"]
    assert theta == 100_000 and torch.allclose(rotary.turn_by(theta, 64, 64)[0], turn[0], atol=1e-5)
    near, apart = (ml.matching_scores(smollm2, tokens, distance=d).values[layer, head] for d in (0, distance))
    assert 0 <= apart <= 1 and near >= apart


def test_in_context_learning_score_is_a_difference_of_losses(tiny, tokens):
    loss = tiny(tokens, return_type="loss", loss_per_token=True)
    found = ml.in_context_learning_score(tiny, tokens, early=3, late=12)
    assert torch.allclose(found, loss[:, 11] - loss[:, 2])
    with pytest.raises(ValueError, match="tokens 1 to 18"):
        ml.in_context_learning_score(tiny, tokens)


def test_what_cannot_be_scored_is_refused(tiny):
    with pytest.raises(ValueError, match="'previous token', 'duplicate token'"):
        ml.head_scores(tiny, torch.ones(1, 4).long(), "name mover")
    with pytest.raises(ValueError, match="no token of it comes back"):
        ml.head_scores(tiny, torch.arange(5)[None], "induction")
