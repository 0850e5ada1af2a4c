"""Direct logit attribution: parts add up, agree with TransformerLens and with the sum written out, bad input."""

import pytest
import torch
from transformer_lens.tools.analysis import direct_logit_attribution as theirs

import mechlab as ml
from mechlab.prompts import PromptError, answer_ids
from tests.test_hooks import hooks_left

BASE = torch.tensor([[0, 11, 12, 13, 14], [0, 21, 22, 23, 24], [0, 5, 6, 7, 8]])
RIGHT, WRONG = [50, 60, 70], [51, 61, 71]


@pytest.fixture
def biased(tiny):
    """The tiny model with biases that are not zero, where it has biases at all; put back afterwards."""
    kept = {}
    for number, (name, p) in enumerate(tiny.named_parameters()):
        if name.endswith(("attn.o._original_component.bias", "c_proj._original_component.bias")):
            kept[name] = p.data
            p.data = torch.randn(p.shape, generator=torch.Generator().manual_seed(number)) * 0.3
    yield tiny
    for name, p in tiny.named_parameters():
        if name in kept:
            p.data = kept[name]


@pytest.mark.parametrize("wrong", [None, WRONG])
@pytest.mark.parametrize("unit", ["layer", "component", "head", "neuron"])
def test_parts_add_up_to_the_models_own_logits(unit, wrong, biased):
    with torch.no_grad():
        logits = biased(BASE)
    found = ml.direct_logit_attribution(biased, BASE, RIGHT, wrong, unit=unit)
    rows = torch.arange(3)
    expected = logits[rows, -1, torch.tensor(RIGHT)]
    if wrong:
        expected = expected - logits[rows, -1, torch.tensor(wrong)]
    assert found.gap.abs().max() < 1e-3
    rest = found.baselines.get("everything else", 0.0)
    assert abs(found.values.sum() + rest - expected.mean()) < 1e-3
    assert found.per_prompt.shape[0] == 3 and hooks_left(biased) == 0
    with torch.no_grad():
        assert torch.equal(biased(BASE), logits)


def test_components_heads_and_running_sum_are_transformer_lens(biased):
    given = {"answer_tokens": torch.tensor(RIGHT), "incorrect_tokens": torch.tensor(WRONG)}
    components = ml.direct_logit_attribution(biased, BASE, RIGHT, WRONG).per_prompt
    by_tl = theirs(biased, BASE, unit="component", **given)
    assert torch.allclose(components[:, :-1].T, by_tl.attribution, atol=1e-5)
    heads = ml.direct_logit_attribution(biased, BASE, RIGHT, WRONG, unit="head").per_prompt
    by_tl = theirs(biased, BASE, unit="head", **given)
    count = by_tl.labels.index("L2H3") + 1
    assert count == 12 and torch.allclose(heads.flatten(1).T, by_tl.attribution[:count], atol=1e-5)
    running = theirs(biased, BASE, unit="layer", **given)
    layers = ml.direct_logit_attribution(biased, BASE, RIGHT, WRONG, unit="layer").per_prompt
    after = layers.cumsum(1) + running.attribution[0][:, None]  # TL's first row is the stream before layer 0
    places = [running.labels.index(label) for label in ("1_pre", "2_pre", "final_post")]
    assert torch.allclose(after.T, running.attribution[places], atol=1e-4)


def test_neurons_are_their_rows_written_out(biased):
    found = ml.direct_logit_attribution(biased, BASE, RIGHT, WRONG, unit="neuron", pos=3)
    with torch.no_grad():
        _, cache = biased.run_with_cache(BASE)
        for row, layer, neuron in ((0, 0, 5), (2, 2, 17)):
            written = cache["post", layer][row, 3, neuron] * biased.W_out[layer, neuron]
            direction = biased.W_U[:, RIGHT[row]] - biased.W_U[:, WRONG[row]]
            by_hand = written @ direction / cache["ln_final.hook_scale"][row, 3, 0]
            assert torch.allclose(found.per_prompt[row, layer, neuron], by_hand, atol=1e-5)


def test_raising_all_logits_alike_changes_no_difference(tiny):
    before = ml.direct_logit_attribution(tiny, BASE, RIGHT, WRONG, unit="head")
    with torch.no_grad():
        same = ml.direct_logit_attribution(tiny, BASE, RIGHT, RIGHT, unit="head")
    assert same.per_prompt.abs().max() == 0
    turned = ml.direct_logit_attribution(tiny, BASE, WRONG, RIGHT, unit="head")
    assert torch.allclose(turned.per_prompt, -before.per_prompt, atol=1e-6)


def test_bad_input_is_one_clear_sentence(tiny):
    with pytest.raises(ValueError, match="unit is 'heads'; it must be one of 'layer'"):
        ml.direct_logit_attribution(tiny, BASE, RIGHT, unit="heads")
    with pytest.raises(PromptError, match="3 prompts and 2 answers"):
        ml.direct_logit_attribution(tiny, BASE, RIGHT[:2])
    with pytest.raises(PromptError, match="tokens for this model"):
        ml.direct_logit_attribution(tiny, BASE, " unbelievable")
    with pytest.raises(PromptError, match="no token 400: ids go from 0 to 399"):
        ml.direct_logit_attribution(tiny, BASE, 400)


@pytest.mark.parametrize("unit", ["layer", "component", "head", "neuron"])
def test_norms_that_are_not_folded_are_gone_through(unit, folder):
    model = ml.load(folder[0], fold=False, quiet=True)
    for norm in (model.ln_final, *(block.ln2 for block in model.blocks)):
        for each in norm.original_component.parameters():
            each.data = each.data + torch.rand(each.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model(BASE)[range(3), -1, RIGHT]
    found = ml.direct_logit_attribution(model, BASE, RIGHT, unit=unit)
    assert found.gap.abs().max() < 1e-4
    assert abs(found.values.sum() + found.baselines.get("everything else", 0) - logits.mean()) < 1e-4


def test_terms_that_do_not_add_up_are_refused(tiny):
    def doubled(x, hook):  # what this writes is in the stream twice, and no hook of the sum says so
        return 2 * x

    with tiny.hooks(fwd_hooks=[("blocks.1.hook_resid_post", doubled)]):
        with pytest.raises(ValueError, match="parts of this model do not add up to its logit"):
            ml.direct_logit_attribution(tiny, BASE, RIGHT)
        with pytest.raises(ValueError, match="do not add up"):
            ml.direct_logit_attribution(tiny, BASE, RIGHT, unit="neuron")


def test_it_runs_on_a_folder_in_hugging_face_format(folder):
    model = ml.load(folder[0], quiet=True)
    for unit in ("layer", "component", "head", "neuron"):
        assert ml.direct_logit_attribution(model, BASE, RIGHT, WRONG, unit=unit).gap.abs().max() < 1e-3


def test_answers_may_be_words_or_ids_one_or_several(tiny):
    comma = ml.single_token(tiny, ",")
    for answers in (",", comma, [","] * 3, [comma] * 3, torch.tensor([comma] * 3), torch.tensor([comma])):
        assert answer_ids(tiny, answers, 3).tolist() == [comma] * 3
