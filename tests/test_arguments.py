"""One sentence for each refusal."""

import jaxtyping
import numpy as np
import pytest
import torch

import mechlab as ml
from mechlab import arguments
from mechlab.arguments import at_least, check_layer, mlp_width, whole
from mechlab.circuits.circuits import Circuit
from tests.architectures import kept


def test_what_is_there_is_given_back(tiny):
    assert arguments.layers_of(tiny) == [0, 1, 2] and arguments.layers_of(tiny, (2, 0)) == [2, 0]
    assert arguments.check_head(tiny, (2, 3)) == (2, 3) and arguments.check_layer(tiny, 1) == 1
    assert arguments.all_heads(tiny)[:5] == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0)]
    assert arguments.layer_of("blocks.12.attn.hook_z") == 12
    arguments.one_of("how", "mean", ("zero", "mean"))


def test_what_is_not_there_is_named(tiny):
    with pytest.raises(ValueError, match="how is 'half'; it must be one of 'zero', 'mean'"):
        arguments.one_of("how", "half", ("zero", "mean"))
    for layers in ([0, 3], [], [-1]):
        with pytest.raises(ValueError, match="the model has layers 0 to 2"):
            arguments.layers_of(tiny, layers)
    with pytest.raises(ValueError, match="There is no layer 3: this model has layers 0 to 2"):
        arguments.check_layer(tiny, 3)
    with pytest.raises(ValueError, match=r"There is no head 2\.4: layers go from 0 to 2, heads from 0 to 3"):
        arguments.check_head(tiny, (2, 4))


def test_key_value_heads(gqa):
    assert arguments.key_value_heads(gqa) == 2


def test_only_whole_numbers_are_layers_and_counts(gqa):
    for value, is_one in (
        (1, True),
        (torch.tensor(1), True),
        (True, False),
        (1.0, False),
        (torch.tensor(True), False),
    ):
        assert whole(value) == is_one
    for layer in (1.5, -1, 3, True):
        with pytest.raises(ValueError, match=f"There is no layer {layer}: this model has layers 0 to 2"):
            check_layer(gqa, layer)
    for value in (0, 1.5, None, True):
        with pytest.raises(ValueError, match=rf"draws is {value}; it must be a whole number of at least 1"):
            at_least("draws", value, 1)


def test_neurons_are_counted_by_the_matrices():
    assert mlp_width(kept("OPT")) == 48 != kept("OPT").cfg.d_mlp
    with pytest.raises(ValueError, match=r"The MLP of layer 0 is a MoEBridge.*mixture of experts"):
        mlp_width(kept("Mixtral"))


# --- what no technique takes: a sentence, never a traceback from inside ---

BASE, SOURCE = torch.randint(5, 60, (2, 3, 7), generator=torch.Generator().manual_seed(0))
METRIC = ml.logit_difference(7, 8)


def patch(*given, **named):
    return lambda model: ml.activation_patching(model, BASE, SOURCE, METRIC, *given, **named)


def path(*given, **named):
    return lambda model: ml.path_patching(model, BASE, SOURCE, METRIC, *given, **named)


def guess(**named):
    return lambda model: ml.attribution_patching(model, BASE, SOURCE, METRIC, **named)


def trace(**named):
    asked = {"subject": [2], "samples": 2} | named
    return lambda model: ml.causal_tracing(model, BASE[:1], METRIC, **asked)


def steer(**named):
    def ask(model):
        vectors = ml.contrast_vectors(model, ["John went"], ["Mary gave"])
        asked = {"vectors": vectors, "layers": [1], "strengths": [1.0], "text": SOURCE} | named
        return ml.steering_sweep(model, BASE, METRIC, **asked)

    return ask


class Task:
    """Prompts of one template."""

    metric, templates, pairs = METRIC, ("a",) * 3, torch.arange(3)

    def __init__(self, tokens, **named):
        self.tokens, self.positions = tokens, {"S": torch.tensor([1, 2, 3]), "end": torch.full((3,), 6)}
        vars(self).update(named)


CIRCUIT = Circuit.of([(0, 1), (2, 2)])


def task(ask, metric=METRIC, **named):
    return lambda model: ask(ml.CircuitRuns(model, Task(BASE, metric=metric, **named), Task(SOURCE)))


WRONG = {
    "layers: one": (patch(layers=1), "layers is 1: the model has layers 0 to 2"),
    "layers: half": (patch(layers=[1.5]), r"layers is \[1.5\]"),
    "layers: a word": (trace(layers="1"), r"layers is \['1'\]"),
    "layers: a mask": (steer(layers=[True]), r"layers is \[True\]"),
    "layers: none": (steer(layers=[]), r"layers is \[\]"),
    "by: another": (patch("z", by=("layer",)), "can be patched by"),
    "by: positions alone": (guess(by=("pos",)), "by is .'pos',.; it must be one of"),
    "by: something": (guess(by=("x",)), "it must be one of"),
    "dtype: whole": (patch(dtype=torch.int32), "dtype is torch.int32; it must be one of"),
    "dtype: a word": (patch(dtype="bfloat16"), "dtype is 'bfloat16'; it must be one of"),
    "steps: half": (guess(steps=1.5), "steps is 1.5; it must be a whole number of at least 1"),
    "steps: none": (guess(steps=None), "steps is None"),
    "receivers: one head": (path((1, 1)), "1 is not a head: give .layer, head."),
    "receivers: names": (path(["1.1"]), "'1.1' is not a head"),
    "receivers: half": (path([(1.5, 1)]), "is not a head"),
    "senders: heads": (path([(1, 1)], senders=[(0, 1)]), "0 is not a head"),
    "senders: half": (path([(1, 1)], senders=[[(0.5, 1)]]), "is not a head"),
    "senders: nobody": (path([(1, 1)], senders=[]), "nobody to send"),
    "at: a name": (path([(1, 1)], at="end"), "`at` is 'end': give whole numbers"),
    "at: nowhere": (path([(1, 1)], at=[]), "`at` is empty"),
    "at: half": (path([(1, 1)], at=[1.5, 1, 1]), "give whole numbers"),
    "subject: a word": (trace(subject="John"), "subject is 'John': give whole numbers"),
    "subject: half": (trace(subject=[1.5]), "give whole numbers"),
    "subject: a mask": (trace(subject=torch.ones(7, dtype=torch.bool)), "give whole numbers"),
    "positions: nowhere": (trace(positions=[]), "give positions between 0 and 6"),
    "positions: half": (trace(positions=[1.5]), "positions is .1.5.: give whole numbers"),
    "samples: none": (trace(samples=0), "samples is 0; it must be a whole number"),
    "samples: half": (trace(samples=1.5), "samples is 1.5"),
    "window: half": (trace(window=1.5, site="mlp_out"), "window is 1.5"),
    "strengths: none": (steer(strengths=[]), "give at least one number in a list"),
    "strengths: one": (steer(strengths=1), "give at least one number in a list"),
    "strengths: words": (steer(strengths=["a"]), "give at least one number in a list"),
    "vectors: a tensor": (steer(vectors=torch.randn(3, 32)), "vectors is a Tensor: make them with"),
    "circuits: one": (task(lambda runs: runs.measure(CIRCUIT)), "Give a list of circuits"),
    "circuits: heads": (task(lambda runs: runs.measure([(0, 1)])), "Give a list of circuits"),
    "circuits: none": (task(lambda runs: runs.removing([])), "no circuit to measure"),
    "prompts: a text": (lambda model: ml.CircuitRuns(model, "John", "Mary"), "a str without tokens"),
    "prompts: templates of some": (task(len, templates=("a",) * 2), "3 prompts, 2 templates and 3 pairs"),
    "prompts: pairs of some": (task(len, pairs=torch.arange(2)), "3 prompts, 3 templates and 2 pairs"),
    "heads: numbers": (lambda model: Circuit.of([0, 1]), "0 is not a head"),
    "heads: names": (lambda model: Circuit.of(["0.1"]), "is not a head"),
    "heads: half": (lambda model: Circuit({"a": [(0, 1.5)]}), "is not a head"),
    "roles: a list": (lambda model: Circuit([(0, 1)]), "Give heads by role"),
    "K: of others": (task(lambda runs: ml.completeness(runs, CIRCUIT, {"K": [(1, 1)]})), "1.1 is in a set K, and not"),
    "K: none": (task(lambda runs: ml.completeness(runs, CIRCUIT, {})), "Give sets of heads by name"),
    "K: of some": (task(lambda runs: ml.minimality(runs, CIRCUIT, {(0, 1): []}), ml.log_prob(7)), "no K for head 2.2"),
    "no heads": (task(lambda runs: ml.minimality(runs, Circuit({})), ml.log_prob(7)), "no heads"),
    "candidates: none": (task(lambda runs: ml.greedy_gap(runs, CIRCUIT, candidates=0)), "candidates is 0"),
    "threshold: NaN": (task(lambda runs: ml.prune(runs, float("nan"))), "threshold is nan"),
    "threshold: a word": (task(lambda runs: ml.prune(runs, "a")), "threshold is 'a'"),
    "a metric of one logit": (task(ml.direct_contributions, ml.log_prob(7)), "reads two logits"),
}  # fmt: skip


@pytest.mark.parametrize("ask, says", WRONG.values(), ids=WRONG)
def test_what_no_technique_takes_is_refused_in_a_sentence(gqa, ask, says):
    jaxtyping.config.update("jaxtyping_disable", True)  # as learners run it
    try:
        with pytest.raises(ValueError, match=says):
            ask(gqa)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def test_lists_in_any_dress_are_lists(gqa):
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        expected = patch("z", by=("pos", "head"), layers=[0, 2], positions=[1, 2])(gqa).values
        for dress in (np.array, torch.tensor, tuple):
            given = {"layers": dress([0, 2]), "positions": dress([1, 2])}
            assert torch.equal(patch("z", by=["pos", "head"], **given)(gqa).values, expected), dress
        heads = path([(1, 1), (2, 0)], "k", at=[3, 4, 5])(gqa).values
        for dress in (np.array, torch.tensor, tuple):
            found = path(dress([(1, 1), (2, 0)]), "k", at=dress([3, 4, 5]))(gqa).values
            assert torch.equal(found, heads), dress
        assert torch.equal(patch(by="pos")(gqa).values, patch(by=["pos"])(gqa).values)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
