"""The curve of circuits over their size: known values, the two areas, the truth and chance beside it."""

import pytest
import torch

import mechlab as ml
from mechlab.circuits.circuits import CircuitError
from mechlab.circuits.curves import CircuitCurve, nodes_of
from mechlab.circuits.planted.models import planted


class Additive:
    """Runs whose metric is the sum of what each head (and MLP) that is kept is worth, plus one."""

    def __init__(self, heads, mlps=None):
        self.heads = torch.tensor(heads)
        self.mlps = torch.zeros(len(heads)) if mlps is None else torch.tensor(mlps)
        self.z, self.asked = torch.zeros(*self.heads.shape, 1)[:, None, None].expand(-1, 3, 2, -1, -1), 0

    def measure_kept(self, kept, mlps=None):
        self.asked += len(kept)
        found = 1 + (kept[:, :, 0, 0] * self.heads).sum((1, 2))
        found = found + (self.mlps.sum() if mlps is None else (mlps * self.mlps).sum(1))
        return found[:, None].expand(-1, 3)


def scores(values):
    return ml.Scores(torch.tensor(values), ("layer", "head"), "x")


def test_areas_by_hand():
    runs = Additive([[3.0, 0.0], [0.0, -1.0]])
    curve = ml.circuit_curve(runs, scores([[5.0, 1.0], [2.0, -4.0]]), random=20)
    assert curve.counts.tolist() == [0, 1, 2, 3, 4] and curve.ends == (1.0, 3.0)
    assert torch.allclose(curve.found, torch.tensor([0, 1.5, 1, 1, 1]))
    assert curve.cpr == pytest.approx((0.75 + 1.25 + 1 + 1) / 4)
    assert curve.cmd == pytest.approx((0.75 + 0.25 + 0 + 0) / 4)
    signed = ml.circuit_curve(runs, scores([[5.0, 1.0], [2.0, -4.0]]), random=20, signed=True)
    assert torch.allclose(signed.found, torch.tensor([0, 1.5, 1.5, 1.5, 1])) and signed.cpr > curve.cpr


def test_the_truth_is_the_best_and_chance_is_beside_it():
    runs = Additive([[0.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    truth = torch.tensor([[False, True], [True, False], [False, False]])
    curve = ml.circuit_curve(runs, scores([[9.0, 1.0], [2.0, 0.0], [0.0, 0.0]]), truth=truth, random=30)
    assert torch.allclose(curve.truth, torch.tensor([0, 0.5, 1, 1, 1, 1, 1]).expand(30, -1))
    table = curve.areas()
    assert [*table.index] == ["ranking", "truth", "random, mean", "random, best"]
    assert table.CPR["truth"] == pytest.approx(5 / 6, abs=1e-3)
    assert table.CPR["truth"] >= table.CPR["random, best"] > table.CPR["random, mean"]
    assert table.CMD["truth"] <= table.CMD["random, best"] < table.CMD["random, mean"]
    assert table.CPR["random, mean"] == pytest.approx(0.5, abs=0.1)  # of what adds up, half
    assert runs.asked <= 2**6  # each set of nodes once
    twin = ml.circuit_curve(runs, scores([[9.0, 1.0], [2.0, 0.0], [0.0, 0.0]]), truth=truth, random=30)
    assert torch.equal(twin.random, curve.random)


def test_nodes_by_name_and_mlps_that_nobody_scores_stay():
    runs = Additive([[1.0, 0.0], [0.0, 0.0]], [0.0, 4.0])
    names = ["0.0", "1.1", "mlp 1", "embed"]
    named = ml.Scores(torch.tensor([1.0, 2.0, 3.0, 9.0]), ("node",), "x", {"node": names})
    assert nodes_of(named)[0] == [(0, 0), (1, 1), (1, None)]
    true = torch.tensor([False, False, True, False])
    curve = ml.circuit_curve(runs, named, truth=true, random=1)
    assert (
        curve.truth[0, 1] == curve.found[1]
        and curve.ends == (1.0, 6.0)
        and torch.allclose(curve.found, torch.tensor([0, 0.8, 0.8, 1.0]))
    )
    heads = ml.circuit_curve(runs, scores([[1.0, 0.0], [0.0, 0.0]]), random=1)
    assert heads.ends == (5.0, 6.0)


def test_sizes():
    runs = Additive(torch.ones(10, 10).tolist())
    curve = ml.circuit_curve(runs, scores(torch.rand(10, 10).tolist()), random=2)
    assert curve.counts.tolist() == [0, 1, 2, 5, 10, 20, 50, 100]  # MIB's; those below one node are none
    assert curve.cpr == pytest.approx(0.5) and curve.cmd == pytest.approx(0.5)
    few = ml.circuit_curve(runs, scores(torch.rand(10, 10).tolist()), shares=[0.3], random=2)
    assert few.counts.tolist() == [0, 30, 100] and few.shares.tolist() == pytest.approx([0, 0.3, 1])


def test_a_planted_circuit_comes_back_whole():
    """Its own three heads have all of the metric; what patching finds is as good; chance is far from it."""
    circuit = planted("ioi")
    asked = circuit.prompts(16)
    runs = ml.Counterfactuals(circuit.model, asked.clean, asked.corrupted, asked.metric)
    found = ml.activation_patching(circuit.model, asked.corrupted, asked.clean, asked.metric, site="z")
    found = ml.Scores(found.values.sum(1), ("layer", "head"), "x") if found.values.ndim == 3 else found
    sizes = [n / 24 for n in (1, 2, 3, 6, 12)]
    curve = ml.circuit_curve(runs, found, truth=circuit.truth, shares=sizes, random=8)
    assert curve.ends[1] == pytest.approx(float(runs.intact.mean()), abs=1e-4)
    assert curve.truth[:, 3].min() > 0.95 and curve.found[3] > 0.95
    table = curve.areas()
    assert table.CMD["ranking"] < 0.13 < table.CMD["random, best"] < table.CMD["random, mean"]
    picture = curve.plot()
    assert len(picture.figure.data) == 3 and "nodes kept" in picture.text


def test_nothing_kept_is_the_counterfactual_but_for_the_embedding():
    circuit = planted("induction")
    asked = circuit.prompts(8)
    runs = ml.Counterfactuals(circuit.model, asked.clean, asked.corrupted, asked.metric)
    nothing = torch.zeros(1, *runs.z.shape[:4], dtype=torch.bool)
    found = runs.measure_kept(nothing, torch.zeros(1, len(runs.z), dtype=torch.bool))[0]
    there = asked.metric(circuit.model(asked.corrupted))
    assert torch.allclose(found, there.detach(), atol=0.3) and (found < 0).all() and (runs.intact > 0).all()


def test_what_cannot_be_drawn_is_named():
    runs = Additive([[1.0, 0.0], [0.0, 0.0]])
    with pytest.raises(CircuitError, match="same with nothing"):
        ml.circuit_curve(Additive([[0.0, 0.0]]), scores([[1.0, 0.0]]))
    with pytest.raises(CircuitError, match=r"truth is of \(2,\)"):
        ml.circuit_curve(runs, scores([[1.0, 0.0], [0.0, 0.0]]), truth=torch.tensor([True, False]))
    with pytest.raises(CircuitError, match=r"name 2\.0; the runs have"):
        ml.circuit_curve(runs, scores(torch.rand(3, 2).tolist()))
    with pytest.raises(CircuitError, match="not of heads or MLPs"):
        ml.circuit_curve(runs, ml.Scores(torch.ones(2), ("head",), "x"))
    for name in ("mlp", "mlp 1.0", "1", "end"):
        with pytest.raises(CircuitError, match="There is no node"):
            ml.circuit_curve(runs, ml.Scores(torch.ones(1), ("node",), "x", {"node": [name]}))
    with pytest.raises(CircuitError, match="from 0 to 1"):
        ml.circuit_curve(runs, scores([[1.0, 0.0], [0.0, 0.0]]), shares=[1.5])
    with pytest.raises(ValueError, match="random is 0"):
        ml.circuit_curve(runs, scores([[1.0, 0.0], [0.0, 0.0]]), random=0)


@pytest.mark.model
def test_on_smollm2_the_circuits_of_a_guess_beat_chance(smollm2):
    """IOI: a tenth of the heads, and a fifth, ranked by attribution patching; other names are the counterfactual."""
    prompts = ml.ioi_prompts(smollm2, 8, seed=5)
    base, source = (ml.run_of(smollm2, each) for each in (prompts, prompts.corrupted("abc")))
    guess = ml.attribution_patching(smollm2, base, source, prompts.metric, steps=5)
    runs = ml.Counterfactuals(smollm2, base, source, prompts.metric)
    curve = ml.circuit_curve(runs, guess, shares=[0.1, 0.2], random=5)
    assert curve.counts.tolist() == [0, 27, 54, 270] and curve.ends[1] > 1.5
    assert curve.found[1] > 0.6 and curve.found[2] > 0.75 and curve.random[:, 1:3].max() < 0.5
    assert curve.areas().CMD["ranking"] < 0.2 < curve.areas().CMD["random, best"]


def test_a_curve_has_a_share_for_each_size():
    line = torch.tensor([0.0, 1.0])
    curve = CircuitCurve(torch.tensor([0, 4]), line, line[None], None, (0.0, 1.0))
    assert curve.shares.tolist() == [0, 1] and curve.areas().index.tolist()[1] == "random, mean"
