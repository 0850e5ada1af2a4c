"""Input attribution: identities, agreement with captum and with slow versions, bad input, nothing left behind."""

from itertools import combinations, permutations

import captum.attr
import pytest
import torch

import mechlab as ml
from mechlab.attribution.masking import CHUNK, FIXED, baseline_tokens, cheapest_stretches, input_game
from mechlab.prompts import PromptError
from tests.architectures import kept
from tests.test_hooks import hooks_left

BASE = torch.tensor([[0, 11, 12, 13, 14], [0, 21, 22, 23, 24]])
SOURCE = torch.tensor([[0, 31, 32, 33, 34], [0, 41, 42, 43, 44]])
METRIC = ml.logit_difference([50, 60], [70, 80])
ONE = ml.logit_difference(50, 70)  # of the first prompt


def slow_value(model, mask, row=0, metric=ONE) -> torch.Tensor:
    """The metric of one prompt with some tokens baseline_tokens, by ids, in a plain run."""
    tokens = BASE[row].clone()
    for place, stands in zip(range(1, 5), mask, strict=True):
        if not stands:
            tokens[place] = SOURCE[row, place]
    with torch.no_grad():
        return metric(model(tokens[None]))[0]


def embedded(model, metric=ONE):
    """The metric as a function of embeddings, through the bridge's own hook: captum's view of the model."""

    def run(x):
        tokens = BASE[:1].expand(len(x), -1)
        return metric(model.run_with_hooks(tokens, fwd_hooks=[("hook_embed", lambda _, hook: x)]))

    return run


@pytest.fixture
def ends(tiny):
    return tiny.embed(BASE[:1]).detach(), tiny.embed(SOURCE[:1]).detach()


@pytest.mark.parametrize("name", ml.INPUT_METHODS)
def test_every_method_gives_a_score_a_token_and_leaves_nothing_behind(name, tiny):
    method = ml.INPUT_METHODS[name]
    with torch.no_grad():
        before, state = tiny(BASE), torch.random.get_rng_state()
        both = method(tiny, BASE, SOURCE, METRIC)  # works inside no_grad too
        for row, metric in enumerate((ONE, ml.logit_difference(60, 80))):
            alone = method(tiny, BASE[row : row + 1], SOURCE[row : row + 1], metric)
            assert torch.allclose(alone.values, both.per_prompt[row], atol=1e-4)
        assert torch.equal(tiny(BASE), before) and torch.equal(torch.random.get_rng_state(), state)
    assert both.dims == ("pos",) and both.per_prompt.shape == (2, 5)
    assert hooks_left(tiny) == 0 and all(p.grad is None for p in tiny.parameters())
    if name != "attention rollout":
        assert (both.per_prompt[:, 0] == 0).all() and (both.per_prompt[:, 1:] != 0).any()


def test_shapley_values_are_the_mean_over_orders_of_plain_runs(tiny):
    exact = ml.shapley_values(tiny, BASE, SOURCE, METRIC)
    total = torch.zeros(4)
    orders = list(permutations(range(4)))
    for order in orders:
        mask = [0] * 4
        for player in order:
            before = slow_value(tiny, mask)
            mask[player] = 1
            total[player] += slow_value(tiny, mask) - before
    assert torch.allclose(exact.per_prompt[0, 1:], total / len(orders), atol=1e-4)
    assert exact.gap.abs().max() < 1e-4


def test_shapley_values_are_captums_and_kernel_shap_is_exact_with_all_masks(tiny):
    game = input_game(tiny, BASE, SOURCE, METRIC)
    ones = torch.ones(1, 4)
    theirs = captum.attr.ShapleyValues(lambda z: game.values(0, z)).attribute(ones, torch.zeros(1, 4))
    exact = ml.shapley_values(tiny, BASE, SOURCE, METRIC)
    assert torch.allclose(theirs[0], exact.per_prompt[0, 1:], atol=1e-4)
    found = ml.kernel_shap(tiny, BASE, SOURCE, METRIC, samples=14)
    assert torch.allclose(found.per_prompt, exact.per_prompt, atol=1e-5)
    assert found.gap.abs().max() < 1e-5


def test_kernel_shap_with_some_of_the_masks_is_nearer_than_captums(tiny):
    base, source = torch.randint(5, 60, (2, 1, 10), generator=torch.Generator().manual_seed(1))
    source[0, 0] = base[0, 0]
    exact = ml.shapley_values(tiny, base, source, ONE).values
    game, far = input_game(tiny, base, source, ONE), {"ours": 0.0, "captum's": 0.0}
    for seed in range(4):
        found = ml.kernel_shap(tiny, base, source, ONE, samples=100, seed=seed)
        assert found.gap.abs().max() < 1e-5
        far["ours"] += (found.values - exact).abs().max().item()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            theirs = captum.attr.KernelShap(lambda z: game.values(0, z))
            ones = torch.ones(1, 9)
            theirs = theirs.attribute(ones, 0 * ones, n_samples=100, perturbations_per_eval=100)
        far["captum's"] += (theirs[0] - exact[1:]).abs().max().item()
    assert far["ours"] < far["captum's"]
    again = ml.kernel_shap(tiny, base, source, ONE, samples=100, seed=3)
    assert torch.equal(again.values, found.values)


def test_shapley_values_are_linear_and_give_a_dummy_nothing(tiny):
    scores = lambda metric, source=SOURCE: ml.shapley_values(tiny, BASE, source, metric).per_prompt
    other = ml.log_prob([51, 61])
    both = scores(lambda logits: METRIC(logits) + 2 * other(logits))
    assert torch.allclose(both, scores(METRIC) + 2 * scores(other), atol=1e-4)
    late = lambda logits: logits[:, 2, 50]  # tokens 3 and 4 come after what is read
    assert scores(late)[:, 3:].abs().max() < 1e-5 < scores(late)[:, 1:3].abs().max()
    assert torch.allclose(scores(lambda logits: METRIC(logits) + 7), scores(METRIC), atol=1e-4)


def test_occlusion_is_plain_runs_with_one_token_replaced(tiny):
    found = ml.occlusion(tiny, BASE, SOURCE, METRIC).per_prompt[0, 1:]
    whole = slow_value(tiny, [1, 1, 1, 1])
    by_hand = [whole - slow_value(tiny, [n != k for n in range(4)]) for k in range(4)]
    assert torch.allclose(found, torch.stack(by_hand), atol=1e-4)


def test_gradients_are_those_of_the_embeddings(tiny, ends):
    x, x_source = ends
    run = embedded(tiny)
    at = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(run(at).sum(), at)
    norm = ml.gradient_norm(tiny, BASE, SOURCE, METRIC)
    assert torch.allclose(norm.per_prompt[0, 1:], gradient[0, 1:].norm(dim=-1), atol=1e-4) and not norm.signed
    step = ml.gradient_x_difference(tiny, BASE, SOURCE, METRIC).per_prompt[0]
    assert torch.allclose(step, (gradient * (x - x_source))[0].sum(-1), atol=1e-4)
    textbook = captum.attr.InputXGradient(run).attribute(x.clone().requires_grad_())[0].sum(-1).detach()
    zero = ml.gradient_x_difference(tiny, BASE[:1], torch.zeros_like(x), ONE).per_prompt[0]
    assert torch.allclose(zero, textbook, atol=1e-4)
    with pytest.warns(FutureWarning, match="which it was, is gradient_x_difference"):
        found = ml.gradient_x_input(tiny, BASE, SOURCE, METRIC).per_prompt[0]
    assert torch.allclose(found[1:], textbook[1:], atol=1e-4) and found[0] == 0  # token 0 does not play
    again = ml.INPUT_METHODS["gradient × input"](tiny, BASE, SOURCE, METRIC)
    assert torch.equal(again.per_prompt[0], found)


def test_integrated_gradients_are_captums_on_embeddings_by_hand_and_complete(tiny, ends):
    x, x_source = ends
    ours = ml.integrated_gradients(tiny, BASE, SOURCE, METRIC, steps=160)
    theirs = captum.attr.IntegratedGradients(embedded(tiny)).attribute(x, x_source, n_steps=160)
    assert torch.allclose(ours.per_prompt[0], theirs[0].sum(-1).float(), atol=1e-4)
    total = torch.zeros_like(x)  # the lesson of exercise 11.3
    for k in range(400):
        at = (x_source + (k + 0.5) / 400 * (x - x_source)).requires_grad_()
        total += torch.autograd.grad(embedded(tiny)(at).sum(), at)[0]
    assert torch.allclose(ours.per_prompt[0], (total / 400 * (x - x_source))[0].sum(-1), atol=3e-3)
    assert ours.gap.abs().max() < 1e-3
    crude = ml.integrated_gradients(tiny, BASE, SOURCE, METRIC, steps=1)
    assert crude.gap.abs().max() > 10 * ours.gap.abs().max()


def test_lime_is_captums_and_depends_on_its_seed_only(tiny):
    game = input_game(tiny, BASE[:1], SOURCE[:1], ONE)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        theirs = captum.attr.Lime(lambda z: torch.cat([game.values(0, row[None]) for row in z]))
        theirs = theirs.attribute(torch.ones(1, 4), torch.zeros(1, 4), n_samples=64)
    ours = ml.lime(tiny, BASE[:1], SOURCE[:1], ONE, samples=64, seed=5)
    assert torch.allclose(ours.values[1:], theirs[0], atol=1e-3)
    torch.manual_seed(99)
    again = ml.lime(tiny, BASE[:1], SOURCE[:1], ONE, samples=64, seed=5)
    other = ml.lime(tiny, BASE[:1], SOURCE[:1], ONE, samples=64, seed=6)
    assert torch.equal(again.values, ours.values) and not torch.equal(other.values, ours.values)


def test_masks_that_share_their_beginning_are_run_once_with_the_same_values(tiny):
    masks = torch.tensor([[i >> p & 1 for p in range(4)] for i in range(16)]).float()
    game = input_game(tiny, BASE, SOURCE, METRIC)
    assert game.shared
    for row in range(2):
        values = game.values(row, masks)
        plain = torch.stack(
            [slow_value(tiny, mask, row, ml.logit_difference([50, 60][row], [70, 80][row])) for mask in masks]
        )
        assert torch.allclose(values, plain, atol=1e-4)
        assert torch.allclose(game.run(row, masks).detach(), plain, atol=1e-4)
    assert torch.allclose(game.full, METRIC(tiny(BASE)), atol=1e-5)
    half = game.values(0, torch.full((1, 4), 0.5))  # between the embeddings
    assert half.shape == (1,) and half != game.full[0]


def test_a_metric_of_another_position_is_run_without_sharing(tiny):
    for metric in (
        ml.logit_difference([50, 60], [70, 80], pos=2),
        ml.logit_difference([50, 60], [70, 80], pos=-2),
    ):
        game = input_game(tiny, BASE, SOURCE, metric)
        assert not game.last_only and not game.shared
        whole = game.values(0, torch.ones(1, 4))
        assert torch.allclose(whole, metric(tiny(BASE))[:1], atol=1e-5)


def test_a_model_whose_past_cannot_be_kept_is_run_without_sharing(tiny):
    def swap(x, hook):  # what a position gets now depends on which positions run with it
        return x.flip(1)

    with tiny.hooks(fwd_hooks=[("blocks.1.hook_resid_post", swap)]):
        game = input_game(tiny, BASE, SOURCE, METRIC)
        assert game.last_only and not game.shared
        assert torch.allclose(game.values(0, torch.ones(1, 4)), METRIC(tiny(BASE))[:1], atol=1e-5)


def test_stretches_are_the_cheapest_of_all_cuts():
    for beginnings in ([1, 1, 2, 4, 8, 16], [1] * 6, [2, 40, 40, 41, 300], [1]):
        n = len(beginnings)
        cost = lambda cuts: sum(FIXED + beginnings[b - 1] * (b - a) for a, b in cuts)  # noqa: B023
        every = [
            list(zip([0, *cut], [*cut, n], strict=True))
            for size in range(n)
            for cut in combinations(range(1, n), size)
        ]
        found = cheapest_stretches(beginnings)
        assert found in every and cost(found) == min(map(cost, every))


def test_exact_shapley_of_ten_tokens_runs_a_fraction_of_the_tokens(gqa):
    base, source = torch.arange(11)[None], torch.cat([torch.zeros(1), torch.arange(100, 110)])[None].long()
    run = []
    with gqa.hooks(
        fwd_hooks=[("blocks.0.hook_resid_pre", lambda x, hook: run.append(x.shape[0] * x.shape[1]))]
    ):
        ml.shapley_values(gqa, base, source, ONE)
    assert CHUNK < 2**10 and sum(run) < 0.4 * 2**10 * 11, sum(run)


def test_replaced_keeps_the_first_token_and_makes_vectors_no_token_has(tiny):
    commas = baseline_tokens(tiny, BASE, ",")
    assert (commas[:, 0] == 0).all() and (commas[:, 1:] == ml.single_token(tiny, ",")).all()
    for by, row in (("zero", torch.zeros(tiny.cfg.d_model)), ("mean", tiny.W_E.mean(0))):
        source = baseline_tokens(tiny, BASE, by, keep=(0, -1))
        assert torch.allclose(source[0, 2], row, atol=1e-6)
        assert torch.equal(source[:, [0, -1]], tiny.embed(BASE)[:, [0, -1]])
        assert (ml.occlusion(tiny, BASE, source, METRIC).per_prompt[:, 1:4] != 0).all()


@pytest.mark.parametrize(
    ("base", "source", "metric", "says"),
    [
        (BASE, SOURCE[:, :4], METRIC, "Every token needs its own replacement"),
        (BASE, SOURCE[:1], METRIC, "Every token needs its own replacement"),
        (BASE, BASE, METRIC, "nothing to attribute"),
        (BASE, SOURCE, lambda logits: METRIC(logits).mean(), "one number per prompt"),
        (BASE[:1], SOURCE[:1], lambda logits: ONE(logits).mean(), "one number per prompt"),
        (BASE, SOURCE, lambda logits: METRIC(logits) * float("nan"), "NaN"),
    ],
)
def test_bad_input_is_one_clear_sentence(base, source, metric, says, tiny):
    for name, method in ml.INPUT_METHODS.items():
        if name != "attention rollout":
            with pytest.raises(ValueError, match=says):
                method(tiny, base, source, metric)


def test_prompts_of_unequal_length_are_refused(tiny):
    base = tiny.to_tokens(["a b c", "a b c d e"])
    for given in (base, ["a b c", "a b c d e"]):
        with pytest.raises(PromptError, match="tokens, and each token gets a score of its own"):
            ml.occlusion(tiny, given, base, METRIC)
        with pytest.raises(PromptError, match="tokens, and each token gets a score of its own"):
            ml.attention_rollout(tiny, given)
    with pytest.raises(PromptError, match="padded at the beginning"):
        ml.lime(tiny, torch.tensor([[0, 0, 0, 5, 6], [0, 1, 2, 5, 6]]), BASE, METRIC)


def test_one_prompt_may_be_a_text_or_a_row(tiny):
    rows = ml.occlusion(tiny, BASE[:1], SOURCE[:1], ONE)
    assert torch.equal(ml.occlusion(tiny, BASE[0], SOURCE[0], ONE).values, rows.values)
    assert torch.equal(ml.occlusion(tiny, BASE[0].tolist(), SOURCE[:1], ONE).values, rows.values)
    text = "When John and Mary went"
    tokens = tiny.to_tokens(text)
    by_text = ml.occlusion(tiny, text, baseline_tokens(tiny, text), ONE)
    assert torch.equal(by_text.values, ml.occlusion(tiny, tokens, baseline_tokens(tiny, tokens), ONE).values)


def test_a_prompt_too_long_for_exact_shapley_values_names_the_way_out(tiny):
    base = torch.tensor([[0, *range(100, 113)]])
    with pytest.raises(PromptError, match=r"2\^13 = 8,192 runs.*kernel_shap"):
        ml.shapley_values(tiny, base, baseline_tokens(tiny, base, ","), ONE)
    few = base.clone()
    few[0, [3, 9]] = 77  # a source that differs in two tokens only
    found = ml.shapley_values(tiny, base, few, ONE)
    assert found.values.nonzero()[:, 0].tolist() == [3, 9]


def test_a_target_of_two_tokens_and_too_few_samples_are_refused(tiny):
    with pytest.raises(PromptError, match=r"is \d+ tokens for this model"):
        ml.single_token(tiny, " unbelievable")
    for method in (ml.lime, ml.kernel_shap):
        with pytest.raises(ValueError, match="random masks"):
            method(tiny, BASE, SOURCE, METRIC, samples=1)


def test_rollout_is_the_product_of_half_attention_half_identity(tiny):
    with torch.no_grad():
        _, cache = tiny.run_with_cache(BASE)
    rolled = torch.eye(5)
    for layer in range(3):
        rolled = (0.5 * cache["pattern", layer][1].mean(0) + 0.5 * torch.eye(5)) @ rolled
    found = ml.attention_rollout(tiny, BASE)
    assert torch.allclose(found.per_prompt[1], rolled[-1], atol=1e-6)
    assert found.gap.abs().max() < 1e-5 and not found.signed
    third = ml.attention_rollout(tiny, BASE, pos=2)
    assert torch.allclose(third.per_prompt[1], rolled[2], atol=1e-6) and (third.values[3:] == 0).all()


def curve_by_hand(model, order, insertion):
    mask, values = [int(not insertion)] * 4, []
    for player in [None, *order]:
        if player is not None:
            mask[player] = int(insertion)
        values.append(slow_value(model, mask))
    return torch.stack(values)


@pytest.mark.parametrize("insertion", [False, True])
def test_deletion_curves_equal_plain_runs(insertion, tiny):
    scores = {
        "shapley": ml.shapley_values(tiny, BASE, SOURCE, METRIC),
        "rollout": ml.attention_rollout(tiny, BASE),
    }
    curves = ml.deletion_curves(tiny, BASE, SOURCE, METRIC, scores, orders=20, insertion=insertion)
    order = scores["shapley"].per_prompt[0, 1:].argsort(descending=True).tolist()
    assert torch.allclose(curves.methods["shapley"][0], curve_by_hand(tiny, order, insertion), atol=1e-4)
    assert curves.random.shape == (20, 2, 5)
    start, end = (0, -1) if not insertion else (-1, 0)
    whole, none = slow_value(tiny, [1] * 4), slow_value(tiny, [0] * 4)
    assert torch.allclose(curves.random[:, 0, start], whole.expand(20), atol=1e-4)
    assert torch.allclose(curves.random[:, 0, end], none.expand(20), atol=1e-4)
    again = ml.deletion_curves(tiny, BASE, SOURCE, METRIC, scores, orders=20, insertion=insertion)
    assert torch.equal(again.random, curves.random)
    table = curves.table()
    assert list(table.columns) == [
        "mean of the curve",
        "better than random by",
        "95 % low",
        "95 % high",
        "random orders as good",
    ]
    by_hand = curves.random.mean(-1).mean(0) - curves.methods["shapley"].mean(-1)
    assert torch.allclose(curves.gain("shapley"), -by_hand if insertion else by_hand, atol=1e-5)
    picture = curves.plot()
    assert "20 random orders" in picture.figure.data[0].name and "shapley" in picture.text


def test_the_best_order_beats_chance_and_a_random_one_does_not(tiny):
    exact = ml.shapley_values(tiny, BASE[:1], SOURCE[:1], ONE)
    worst = ml.Scores.over_prompts(-exact.per_prompt, ("pos",), "worst")
    curves = ml.deletion_curves(tiny, BASE[:1], SOURCE[:1], ONE, {"best": exact, "worst": worst}, orders=200)
    assert curves.chance("best") < 0.4 < 0.6 < curves.chance("worst")
    assert curves.gain("best") > 0 > curves.gain("worst")


def test_deletion_refuses_scores_of_other_prompts_and_no_random_orders(tiny):
    scores = {"x": ml.attention_rollout(tiny, BASE[:, :4])}
    with pytest.raises(ValueError, match=r'scores of "x" are for \(2, 4\)'):
        ml.deletion_curves(tiny, BASE, SOURCE, METRIC, scores)
    with pytest.raises(ValueError, match="nothing to compare with"):
        ml.deletion_curves(tiny, BASE, SOURCE, METRIC, {}, orders=0)


def test_labels_name_tokens_on_which_all_prompts_agree(tiny):
    base = BASE.clone()
    base[1, 3] = base[0, 3]
    labels = ml.occlusion(tiny, base, SOURCE, METRIC).labels["pos"]
    assert labels[2] == "position 2" and labels[3].endswith(" 3") and not labels[3].startswith("position")


def test_every_method_runs_on_a_folder_in_hugging_face_format(folder):
    model = ml.load(folder[0], quiet=True)
    base = model.to_tokens("the cat")[:, :6]
    source = baseline_tokens(model, base, ",")
    found = {name: method(model, base, source, ONE) for name, method in ml.INPUT_METHODS.items()}
    assert ml.deletion_curves(model, base, source, ONE, found).table().shape[0] == len(found)


# --- one player, one token, no first token ---


@pytest.mark.parametrize(
    "name", [n for n in ml.INPUT_METHODS if "gradient" not in n and n != "attention rollout"]
)
def test_a_single_token_that_differs_has_the_whole_difference(name, tiny):
    source = BASE.clone()
    source[:, 2] = SOURCE[:, 2]
    found = ml.INPUT_METHODS[name](tiny, BASE, source, METRIC)
    with torch.no_grad():
        whole = METRIC(tiny(BASE)) - METRIC(tiny(source))
    assert torch.allclose(found.per_prompt[:, 2], whole, atol=1e-4)
    assert found.per_prompt[:, [0, 1, 3, 4]].abs().max() == 0 and found.gap.abs().max() < 1e-4
    with pytest.raises(ValueError, match="so every order is the same"):
        ml.deletion_curves(tiny, BASE, source, METRIC, {name: found})


@pytest.mark.parametrize("name", ml.INPUT_METHODS)
def test_a_prompt_of_one_token(name, tiny):
    found = ml.INPUT_METHODS[name](tiny, torch.tensor([[11]]), torch.tensor([[31]]), ONE)
    assert found.values.shape == (1,) and found.values.abs() > 0
    if name in ("occlusion", "LIME", "kernel SHAP", "Shapley values"):
        with torch.no_grad():
            whole = ONE(tiny(torch.tensor([[11]]))) - ONE(tiny(torch.tensor([[31]])))
        assert torch.allclose(found.values, whole, atol=1e-4)


def test_position_0_is_kept_only_where_the_models_first_token_stands_there(tiny):
    with_first, without = BASE, BASE[:, 1:]
    assert baseline_tokens(tiny, with_first)[:, 0].tolist() == [0, 0]
    comma = ml.single_token(tiny, ",")
    assert (baseline_tokens(tiny, without) == comma).all()
    assert torch.equal(baseline_tokens(tiny, without, keep=(0,))[:, 0], without[:, 0])
    qwen = kept("Qwen2")
    assert qwen.to_tokens("").shape == (1, 0)
    assert (baseline_tokens(qwen, BASE) == ml.single_token(qwen, ",")).all()
    found = ml.occlusion(qwen, BASE, baseline_tokens(qwen, BASE), METRIC)
    assert (found.per_prompt[:, 0] != 0).all()
    with pytest.raises(PromptError, match="A position in keep is 5, and prompt 0 has 5 tokens"):
        baseline_tokens(tiny, BASE, keep=(5,))


def test_the_mean_embedding_is_of_what_the_model_embeds():
    gemma = kept("Gemma")
    every = gemma.embed(torch.arange(400)[None])[0].detach()
    assert (every - gemma.W_E).abs().max() > 1  # Gemma scales the rows of W_E
    assert torch.allclose(baseline_tokens(gemma, BASE, "mean")[0, 1], every.mean(0), atol=1e-5)


# --- metrics, sources ---


def test_a_metric_that_reads_elsewhere_is_not_taken_for_one_of_the_last_position(tiny):
    """Tiny values at both positions would look alike; that they depend on other tokens is not seen by one look."""
    late = lambda logits: 1e-9 * logits[:, 2, 50]
    found = ml.shapley_values(tiny, BASE, SOURCE, late).per_prompt * 1e9
    plain = ml.shapley_values(tiny, BASE, SOURCE, lambda logits: logits[:, 2, 50]).per_prompt
    assert torch.allclose(found, plain, rtol=1e-3, atol=1e-3) and (found[:, 3:].abs() < 1e-3).all()
    explicit = ml.logit_difference([50, 60], [70, 80], pos=4)
    game = input_game(tiny, BASE, SOURCE, explicit)
    assert game.last_only and torch.allclose(game.full, METRIC(tiny(BASE)), atol=1e-5)
    same = ml.occlusion(tiny, BASE, SOURCE, METRIC)
    assert torch.allclose(ml.occlusion(tiny, BASE, SOURCE, explicit).values, same.values, atol=1e-5)
    with torch.no_grad():
        reference = tiny(SOURCE)
    for metric in (ml.kl_divergence(reference), lambda logits: ml.kl_divergence(reference)(logits)):
        by_hand = metric(tiny(BASE)) - metric(tiny(SOURCE))
        assert torch.allclose(
            ml.shapley_values(tiny, BASE, SOURCE, metric).per_prompt.sum(1), by_hand, atol=1e-4
        )


def test_a_position_that_is_not_there_is_refused_before_anything_is_read(tiny):
    for pos in (5, -6):
        with pytest.raises(ValueError, match=f"pos is {pos}, and prompt 0 has 5 tokens"):
            ml.occlusion(tiny, BASE, SOURCE, ml.logit_difference(50, 70, pos=pos))
    with pytest.raises(ValueError, match="asks for token 400; this model's ids go from 0 to 399"):
        ml.occlusion(tiny, BASE, SOURCE, ml.log_prob(400))


def test_one_answer_serves_many_prompts_and_counts_are_numbers(tiny):
    one, each = (ml.occlusion(tiny, BASE, SOURCE, ml.log_prob(ids)).values for ids in ([50], [50, 50]))
    assert torch.equal(one, each)
    counted = ml.occlusion(tiny, BASE, SOURCE, lambda logits: logits[:, -1].argmax(-1))
    with torch.no_grad():
        wanted = tiny(BASE)[:, -1].argmax(-1) - tiny(SOURCE)[:, -1].argmax(-1)
    assert torch.equal(counted.whole, wanted.float())


def test_a_source_that_does_not_fit_is_refused(tiny):
    with pytest.raises(
        PromptError, match=r"source is \(2, 5, 8\); embeddings of these prompts are \(2, 5, 32\)"
    ):
        ml.occlusion(tiny, BASE, torch.zeros(2, 5, 8), METRIC)
    with pytest.raises(PromptError, match="all finite"):
        ml.occlusion(tiny, BASE, torch.full((2, 5, 32), float("nan")), METRIC)
    with pytest.raises(ValueError, match="`scores` is empty"):
        ml.deletion_curves(tiny, BASE, SOURCE, METRIC, {})
    with pytest.raises(ValueError, match="steps is 0"):
        ml.integrated_gradients(tiny, BASE, SOURCE, METRIC, steps=0)
