"""The board of methods and traps: its script, its table and its report; and what it needs of the library."""

import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import mechlab as ml
from mechlab.circuits.paths import readers, writers
from mechlab.circuits.planted.compiling import compiled
from mechlab.circuits.planted.plan import Head, Match, Move, Plan, Rule, Table
from mechlab.circuits.planted.tasks import TASKS
from mechlab.circuits.planted.traps import TRAPS

ROOT = Path(__file__).parents[1]
MAKE = ROOT / "data" / "make"


@pytest.fixture(scope="module")
def script() -> dict:
    return runpy.run_path(str(MAKE / "planted.py"))


@pytest.fixture(scope="module")
def made() -> Iterator[dict]:
    sys.path.insert(0, str(MAKE))  # the report shares code with its neighbour
    yield runpy.run_path(str(MAKE / "planted_report.py"))
    sys.path.remove(str(MAKE))


@pytest.fixture(scope="module")
def rows(made) -> list[dict[str, str]]:
    return made["read"]()


@pytest.fixture(scope="module")
def found(made, rows) -> dict:
    return made["figures"](rows)


def runs(circuit: ml.Planted, corruption: str = "third", count: int = 12):
    asked = circuit.prompts(count, corruption=corruption)
    return (*(ml.run_of(circuit.model, each) for each in (asked.clean, asked.corrupted)), asked.metric)


def knockouts(circuit: ml.Planted, how: str = "mean") -> ml.CircuitRuns:
    asked = circuit.prompts(20, corruption="third")
    told = lambda tokens: SimpleNamespace(
        tokens=tokens,
        metric=asked.metric,
        templates=["one"] * len(tokens),
        positions={},
        pairs=torch.arange(len(tokens)),
    )
    return ml.CircuitRuns(circuit.model, told(asked.clean), told(asked.corrupted), how)


# the report and its table


def test_the_report_is_made_from_the_table(made):
    assert made["REPORT"].read_text(encoding="utf-8") == made["report"](), "run: data/make/planted_report.py"
    words = [line for line in made["report"]().splitlines() if not line.startswith("|")]
    assert len(" ".join(words).split()) <= 1560


def test_every_method_met_every_trap(script, rows):
    cells = {(row["level"], row["method"], row["task"], row["trap"], int(row["seed"])) for row in rows}
    assert len(cells) == len(rows) and len({row["seed"] for row in rows}) >= 3
    for place in script["cells"]():
        for level, methods in script["METHODS"].items():
            asked = {name for name in methods if place[1] == "gated" or "half rule" not in name}
            assert asked == {each[1] for each in cells if each[0] == level and each[2:] == place}


FEW = ["ablation, mean", "attribution at clean, half rule, flip"]
FEW += ["path patching, noise, third", "edge attribution at clean, half rule, flip"]


@pytest.mark.parametrize(
    ("place", "only"), [(("sum", "plain", 0), None), (("sum", "gated", 1), FEW)], ids=str
)
def test_the_table_is_found_again(script, rows, place, only):
    """All cheap methods on one model, and some dear ones on another."""
    task, trap, seed = place
    case = script["Case"](ml.planted(task, trap, seed=seed), seed)
    stored = {(row["level"], row["method"]): row for row in rows if placed(row) == place}
    told = stored["model", "logit difference and accuracy"]
    assert case.clean.value(case.metric).mean().item() == pytest.approx(float(told["auroc"]), abs=0.01)
    tried = 0
    for (level, name), row in stored.items():
        if level == "model" or (
            name not in only if only else float(row["cpu seconds"]) > 0.05 or "q and k" in name
        ):
            continue
        again = script["judged"](case, level, script["METHODS"][level][name])
        there = {each: float(row[each]) for each in script["JUDGED"]}
        assert {each: again[each] for each in there} == pytest.approx(there, abs=0.02), name
        tried += 1
    assert tried == len(only) if only else tried > 12


def placed(row: dict[str, str]) -> tuple[str, str, int]:
    return row["task"], row["trap"], int(row["seed"])


def test_what_the_report_says_of_traps(found):
    """The sentences that a figure alone does not carry."""
    true, false = found["true"], found["false"]
    exact = [f"patching, {way}, {how}" for way in ("noise", "denoise") for how in ("flip", "third")]
    ablations = [f"ablation, {how}" for how in ("zero", "mean", "resample")]
    for method in exact:
        assert min(true[method][trap] for trap in ("plain", "saturated", "constant", "backup", "decoy")) > 0.3
        assert true[method]["position"] < 0.05 and false[method]["cancel"] > 0.5
    for twins in ("patching, noise, third", *ablations):
        assert true[twins]["or"] < 0.15 < true["patching, denoise, third"]["or"]
    assert true["patching, denoise, third"]["and"] < 0.35 < 0.6 < true["patching, noise, third"]["and"]
    for guess in (name for name in true if name.startswith("attribution") and "q and k" not in name):
        assert true[guess]["saturated"] < 0.12
    assert [how for how in ablations if true[how]["backup"] < 0.1] == ["ablation, zero"]
    assert [how for how in ablations if false[how]["constant"] > 0.3] == ["ablation, zero"]
    for level in ("true", "true in sum"):
        assert all(each["plain"] < 0.1 for name, each in found[level].items() if name.startswith("direct"))
    assert found["true in sum"]["patching, denoise, third"]["plain"] < 0.1
    half, exactly = (
        found["true in sum"][name]["gated"]
        for name in ("attribution at clean, half rule, flip", "patching, noise, flip")
    )
    assert half < 0.6 * exactly
    assert found["sure"] > 0.6 * found["told"] and found["sure and faint"] > 0.2 * found["sure"]


def test_areas_do_not_tell_methods_apart(rows):
    """Of whoever changes a head, or guesses the change, the median is the same; what is missed is not."""
    areas, missed = {}, {}
    for row in rows:
        if (
            row["level"] == "nodes"
            and not row["method"].startswith("direct")
            and "q and k" not in row["method"]
        ):
            areas.setdefault(row["method"], []).append(float(row["auroc"]))
            missed.setdefault(row["method"], []).append(float(row["weakest true"]) < 0.1)
    assert all(torch.tensor(each).median() > 0.995 for each in areas.values())
    counts = [sum(each) for each in missed.values() if len(each) > 90]
    assert max(counts) > 10 * min(counts) > 0


def test_what_the_report_says_of_edges(found):
    true = found["true"]
    for method in (name for name in true if "edge" in name or "path" in name):
        if "flip" in method:  # two true edges carry the same in both runs
            assert max(true[method].values()) < 0.01
    path = true["path patching, noise, third"]
    assert {trap for trap, share in path.items() if share < 0.1} <= {"or", "position"}


@pytest.mark.parametrize(
    ("notebook", "says"),
    [
        ("42_ioi_proving", '"said by the four", said, says=1.3'),
        ("42_ioi_proving", '"change of the model", total.mean, says=-0.06'),
        ("42_ioi_proving", '"without 23.3 and the four", together, says=-2.38'),
        ("42_ioi_proving", '"without 20.0, ABC", lost["mean over ABC"], says=-1.86'),
        ("43_ioi_automating", '"model without 23.3", gap["model without K"][0], says=2.16'),
        ("43_ioi_automating", '"eight without 23.3", gap["circuit without K"][0], says=0.45'),
        ("43_ioi_automating", "((20, 0), 0.49, 0.10)"),
        ("43_ioi_automating", '("half rule", 0.3, 0.86)'),
        ("43_ioi_automating", '"20.0 into MLP 20, exact", patched.values[0], says=-0.07'),
        ("41_ioi_finding", '"23.3, IO alone", swept[2][0], says=-0.01'),
        ("41_ioi_finding", '"23.1, IO alone", swept[2][2], says=0.18'),
    ],
)
def test_what_is_quoted_stands_in_the_notebooks(notebook, says):
    """Where the report speaks of the trained model: these claims are measured there."""
    assert says in (ROOT / "course" / notebook / "notebook.py").read_text(encoding="utf-8")


# new traps


@torch.no_grad()
def test_new_traps_leave_behaviour_as_it_is():
    for task, trap in (("ioi", "position"), ("induction", "position"), ("sum", "position"), ("sum", "gated")):
        plain, trapped = (ml.planted(task, each) for each in ("plain", trap))
        told = [each.prompts(64, seed=5) for each in (plain, trapped)]
        known = [
            asked.metric(each.model(asked.clean)) for each, asked in zip((plain, trapped), told, strict=True)
        ]
        before, after = ((each > 0).float().mean() for each in known)
        assert after > before - 0.05 and known[1].mean() > 0.9 * known[0].mean(), (task, trap)


def test_a_position_head_is_seen_by_prompt_alone():
    circuit = ml.planted("ioi", "position")
    clean, third, metric = runs(circuit, count=24)
    patched = ml.activation_patching(circuit.model, clean, third, metric, "z", normalized=False)
    place = circuit.heads["position"]
    assert patched.values[place].abs() < 0.05
    gone = knockouts(circuit).removing([ml.Circuit.of([place])])[0] - knockouts(circuit).intact
    assert gone.mean().abs() < 0.05 < 0.3 < gone.abs().mean()  # the two of a pair cancel
    with torch.no_grad():
        _, cache = circuit.model.run_with_cache(clean.tokens)
    assert (cache["pattern", place[0]][:, place[1], -1, 1] > 0.8).all()


def test_gated_rules_are_products_and_positions_are_turned():
    circuit = ml.planted("sum", "gated")
    assert circuit.model.cfg.gated_mlp and circuit.model.cfg.positional_embedding_type == "rotary"
    with torch.no_grad():
        for a, b in ((0, 0), (1, 4), (3, 3)):
            logits, cache = circuit.model.run_with_cache(circuit.tokens([f"{a} {b} ="]))
            assert circuit.model.to_string(logits[0, -1].argmax()[None]) == str((a + b) % 5)
            for name, back in (("fetch first", 2), ("fetch second", 1)):
                layer, head = circuit.heads[name]
                assert cache["pattern", layer][0, head, -1, 3 - back] > 0.95


@pytest.mark.parametrize("positions", [7, 8])
def test_an_offset_is_found_by_rotation_at_every_position(positions):
    words = ("<begin>", *"abcdef")
    looks = Match("pos", "pos", 8.0, shift=-2), Match("pos", "pos", 4.0, shift=-3)
    head = Head("before", 0, looks, (Move("token", "answer"),))
    model, where = compiled(Plan(words, positions, {}, (head,), layers=1, slots=2, gated=True))
    with torch.no_grad():
        _, cache = model.run_with_cache(" ".join("abcdef"))
    pattern = cache["pattern", 0][0, where["before"][1]]
    assert (pattern.diagonal(-2) > 0.95).all()
    second = pattern[3:].diagonal() / pattern[3:].diagonal(1)  # e to the difference of the gains
    assert torch.allclose(second, torch.tensor(-4.0).exp().expand(len(second)), rtol=0.1)


def test_a_gated_plan_that_cannot_be_is_named():
    words, flags = ("<begin>", "a", "b"), {"begin": ("<begin>",)}
    plan = lambda **more: Plan(words, 8, {}, **({"heads": ()} | more), flags=flags, gated=True)
    with pytest.raises(ValueError, match="positions are turned"):
        compiled(plan(heads=(Head("x", 0, (Match("pos", "token"),), ()),)))
    rule = Rule({"token": 1, "begin": 0, "one": 0}, {"answer": (1, 1.0)})
    with pytest.raises(ValueError, match="multiplies two codes"):
        compiled(plan(tables=(Table("x", 0, (rule,)),)))
    with pytest.raises(ValueError, match="nothing in the stream says where"):
        compiled(TRAPS["position"](TRAPS["gated"](TASKS["sum"].plan())))
    with pytest.raises(ValueError, match="needs an MLP"):
        TRAPS["gated"](TASKS["ioi"].plan())


def test_a_counterfactual_can_hide_a_head_from_every_exchange():
    """Induction, and only the last letter is another one: the first head does the same in both prompts."""
    circuit = ml.planted("induction")
    asked = circuit.prompts(24)
    other = asked.clean.clone()
    other[:, -1] = asked.clean[:, 3]
    kept = (asked.clean[:, -1] != other[:, -1]) & (asked.clean[:, 4] != asked.clean[:, -1])
    clean, other = asked.clean[kept], other[kept]
    answers = [tokens.argmax(-1) for tokens in (circuit.model(clean)[:, -1], circuit.model(other)[:, -1])]
    metric = ml.logit_difference(*(each.tolist() for each in answers))
    found = ml.activation_patching(circuit.model, other, clean, metric, "z").values
    assert found[circuit.heads["previous token"]].abs() < 1e-4 and found[circuit.heads["induction"]] > 0.8
    usual = ml.activation_patching(circuit.model, asked.corrupted, asked.clean, asked.metric, "z").values
    assert usual[circuit.heads["previous token"]] > 0.8


# all edges, all nodes, a ranking


@pytest.mark.parametrize("engine", ["fast", "plain"])
@pytest.mark.parametrize("kind", ["gpt2", "gqa"])
def test_all_edges_are_each_edge_alone(kind, engine):
    model, chance = ml.tiny(kind), torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 400, (2, 3, 7), generator=chance)
    base, source = (ml.run_of(model, each, engine=engine) for each in tokens)
    metric = ml.logit_difference(5, 6)
    found = ml.path_patching_all(model, base, source, metric, normalized=False)
    every, known = writers(model), readers(model)
    assert (found.labels["sender"], found.labels["reader"]) == (every, [*known])
    edges = [(sender, name) for name, (*_, below) in known.items() for sender in every[:below]]
    some = [edges[n] for n in torch.randperm(len(edges), generator=chance)[:40].tolist()]
    alone = ml.edge_patching(model, base, source, metric, some, normalized=False)
    together = torch.stack([found.per_prompt[:, every.index(a), [*known].index(b)] for a, b in some], dim=1)
    assert torch.allclose(together, alone.per_prompt, atol=2e-5) and together.abs().max() > 1e-3
    assert all(found.at(sender="mlp 2", reader=name) == 0 for name in known if name != "logits")
    guessed = ml.edge_attribution(model, base, source, metric)
    assert (guessed.labels, guessed.dims) == (found.labels, found.dims)


def test_all_edges_of_queries_are_transformerlens_direct_paths():
    from transformer_lens import patching

    model, chance = ml.tiny("gpt2"), torch.Generator().manual_seed(0)
    base, source = torch.randint(1, 400, (2, 3, 7), generator=chance)
    metric = ml.logit_difference(5, 6)
    (_, clean), (_, corrupted) = (model.run_with_cache(each) for each in (source, base))
    theirs = patching.get_act_patch_direct_path(
        model, base, clean, corrupted, lambda logits: metric(logits).mean(), 0, 2, "q", verbose=False
    )
    readers = [f"{layer}.{head} q" for layer in (1, 2) for head in range(4)]
    asked = {"senders": ["0.2"], "receivers": readers, "normalized": False}
    mine = ml.path_patching_all(model, base, source, metric, **asked).values[0]
    assert torch.allclose(mine + metric(model(base)).mean(), theirs[1:].flatten(), atol=2e-5)


def test_edges_that_are_asked_for():
    circuit = ml.planted("ioi")
    base, source, metric = runs(circuit)
    every = ml.path_patching_all(circuit.model, base, source, metric)
    few = ml.path_patching_all(
        circuit.model, base, source, metric, senders=["mlp 0", "0.3"], receivers=["logits", "1.0 v"]
    )
    assert few.labels == {"sender": ["0.3", "mlp 0"], "reader": ["1.0 v", "logits"]}
    for sender, reader in (("0.3", "1.0 v"), ("mlp 0", "logits")):
        places = {"sender": sender, "reader": reader}
        assert float(few.at(**places)) == pytest.approx(float(every.at(**places)), abs=1e-5)
    for wrong in ({"senders": ["9.9"]}, {"receivers": ["0.0 z"]}, {"senders": []}):
        with pytest.raises(ValueError, match=r"sender|reader"):
            ml.path_patching_all(circuit.model, base, source, metric, **wrong)
    truth, without = circuit.true_edges(every), circuit.open_edges(every)
    assert ml.score_against(every, truth, excluded=without)["average precision"] == 1


def test_nodes_are_named_alike_and_judged_alike():
    circuit = ml.planted("sum")
    base, source, metric = runs(circuit)
    given = circuit.model, base, source, metric
    heads = ml.activation_patching(*given, "z")
    exact = ml.by_node(heads, ml.activation_patching(*given, "mlp_out", by=()))
    guess = ml.attribution_patching(*given, by=("node",))
    assert guess.labels["node"] == writers(circuit.model)
    assert {*exact.labels["node"]} == {*guess.labels["node"]} - {"embed"}
    assert exact.values[exact.labels["node"].index("2.3")] == heads.values[2, 3]
    assert torch.allclose(exact.per_prompt.mean(0), exact.values)
    for scores in (exact, guess):
        truth, without = circuit.true_nodes(scores), circuit.open_nodes(scores)
        marked = {name for name, is_true in zip(scores.labels["node"], truth, strict=True) if is_true}
        assert marked == {"mlp 1", *(f"{layer}.{head}" for layer, head in circuit.heads.values())}
        assert ml.score_against(scores, truth, excluded=without)["auroc"] == 1
        assert without.sum() == ("embed" in scores.labels["node"])
    with pytest.raises(ml.CircuitError, match="not of heads or MLPs"):
        ml.by_node(ml.Scores(torch.zeros(2, 2), ("pos", "head"), "x"))
    with pytest.raises(ml.CircuitError, match="no scores"):
        ml.by_node()


def test_a_guess_by_node_is_the_sum_of_its_edges_and_that_of_heads():
    model, chance = ml.tiny("gqa"), torch.Generator().manual_seed(0)
    base, source = (ml.run_of(model, each) for each in torch.randint(1, 400, (2, 3, 7), generator=chance))
    given = model, base, source, ml.logit_difference(5, 6)
    for how in ({}, {"steps": 3}, {"rule": "half"}):
        nodes, heads = (ml.attribution_patching(*given, by=by, **how) for by in (("node",), ("head",)))
        edges = ml.edge_attribution(*given, **how)
        assert torch.allclose(nodes.values, edges.values.sum(1), atol=1e-5)
        mine = [nodes.values[nodes.labels["node"].index(f"{a}.{b}")] for a in range(3) for b in range(4)]
        assert torch.allclose(torch.stack(mine), heads.values.flatten(), atol=1e-4)
    dropped, heads = (ml.attribution_patching(*given, by=by, drop=True) for by in (("node",), ("head",)))
    mine = [dropped.values[dropped.labels["node"].index(f"{a}.{b}")] for a in range(3) for b in range(4)]
    assert torch.allclose(torch.stack(mine), heads.values.flatten(), atol=1e-4)
    with pytest.raises(ValueError, match="By node"):
        ml.attribution_patching(*given, by=("node",), site="q")


def test_what_sleeps_is_not_judged():
    circuit = ml.planted("ioi", "backup")
    base, source, metric = runs(circuit)
    edges = ml.path_patching_all(circuit.model, base, source, metric, receivers=["logits", "1.0 q"])
    layer, head = circuit.heads["backup"]
    asleep = circuit.open_edges(edges)[edges.labels["sender"].index(f"{layer}.{head}")]
    assert asleep.all() and not circuit.open_edges(edges)[edges.labels["sender"].index("0.0")].any()
    nodes = ml.attribution_patching(circuit.model, base, source, metric, by=("node",))
    without = circuit.open_nodes(nodes)
    assert [name for name, out in zip(nodes.labels["node"], without, strict=True) if out] == [
        "embed",
        f"{layer}.{head}",
    ]


def test_pruning_at_many_thresholds_ranks():
    circuit = ml.planted("sum")
    cut = knockouts(circuit)
    thresholds = (0.5, 0.02, 0.1)
    ranked = ml.prune_ranking(cut, thresholds, mlps=True)
    truth = circuit.true_nodes(ranked)
    assert ml.score_against(ranked, truth)["auroc"] == 1 and {*ranked.values.tolist()} <= {
        0.0,
        *torch.tensor(thresholds).tolist(),
    }
    for threshold in thresholds:
        kept = ml.prune(cut, threshold, mlps=range(circuit.model.cfg.n_layers))
        names = {f"{a}.{b}" for a, b in kept.heads} | {f"mlp {layer}" for layer in kept.mlps}
        at_least = {
            n for n, v in zip(ranked.labels["node"], ranked.values, strict=True) if v >= threshold - 1e-6
        }
        assert names <= at_least
    heads = ml.prune_ranking(cut, thresholds)
    assert heads.dims == ("layer", "head") and ml.prune(cut, 0.1).mlps is None
    with pytest.raises(ml.CircuitError, match="no threshold"):
        ml.prune_ranking(cut, [])
    with pytest.raises(ml.CircuitError, match="MLP of layer 9"):
        ml.prune(cut, 0.1, mlps=[9])
