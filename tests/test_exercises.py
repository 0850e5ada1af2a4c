"""Generated from the sources: each solution passes its check, each stub counts as not attempted, and each wrong
variant is rejected with the message it must earn. An exercise may use only what the setup cell defines."""

import re
from functools import cache

import pytest
import torch

from mechlab_course import check, exercise
from mechlab_course.build import notebooks as build
from mechlab_course.build.sources import exercises, read
from mechlab_course.checking import mistakes_of, only_wrong, random
from mechlab_course.exercises import CORRECT, NOT_ATTEMPTED, NOT_YET, all_ids
from mechlab_course.folders import tried
from mechlab_course.questions import find_quiz
from tests.cells import shown

pytestmark = pytest.mark.model
SOURCES = build.sources()


def variants():
    for stem, path in SOURCES.items():
        for id, cell, asks, wrong in exercises(read(path)):
            yield pytest.param(stem, cell.solved(), asks.source, CORRECT, "", id=f"{id}-solution")
            yield pytest.param(
                stem, cell.stub(), asks.source, NOT_ATTEMPTED, "NotImplementedError", id=f"{id}-stub"
            )
            for n, variant in enumerate(wrong, 1):
                expects = variant.meta["expects"]
                yield pytest.param(stem, variant.source, asks.source, NOT_YET, expects, id=f"{id}-wrong{n}")


@cache
def setup_names() -> dict:
    names: dict = {}
    exec(compile(build.setup_cell(), "<setup>", "exec"), names)
    return names


def run_check(code: str, check: str):
    """Define the answer, run the check cell, and return what its last line evaluates to."""
    names = dict(setup_names())
    exec(compile(code, "<answer>", "exec"), names)
    return shown(check, names)


@pytest.mark.parametrize(("stem", "code", "check", "status", "expects"), variants())
def test_variant(stem, code, check, status, expects, monkeypatch, tmp_path):
    monkeypatch.setenv("MECHLAB_HOME", str(tmp_path))
    monkeypatch.delenv("MECHLAB_STRICT", raising=False)
    outcome = run_check(code, check)
    assert outcome.status == status, outcome
    assert expects.lower() in outcome.message.lower(), outcome
    assert len(outcome.message) > 20  # every outcome tells the learner something


def test_every_checker_has_an_exercise_and_the_other_way_round():
    written = [id for path in SOURCES.values() for id, *_ in exercises(read(path))]
    assert sorted(written) == all_ids()


@pytest.mark.parametrize("stem", SOURCES)
def test_quizzes_explain_every_choice_that_the_text_offers(stem):
    cells = read(SOURCES[stem])
    quizzes = [n for n, cell in enumerate(cells) if cell.kind == "quiz"]
    for n in quizzes:
        id = cells[n].source.split('"')[1]
        answer = cells[n].source.split('"')[3]
        question = find_quiz(id)
        offered = [line[4] for line in cells[n - 1].source.splitlines() if line.startswith("- **")]
        assert offered == list(question.why), f"{id}: text offers {offered}"
        assert answer == question.right
        assert all(len(why) > 40 for why in question.why.values())


class Unprintable(Exception):
    def __str__(self):
        raise ValueError("no text")


def leave(*_, **__):
    raise SystemExit


def unprintable(*_, **__):
    raise Unprintable


JUNK = {
    "string": lambda *_, **__: "junk",
    "number": lambda *_, **__: float("nan"),
    "list": lambda *_, **__: [1, [2]],
    "dict": lambda *_, **__: {"who looks where": ["x"], "gathered": 1, "neurons": {}, "stream in": None},
    "bool tensor": lambda *_, **__: torch.ones(3, dtype=torch.bool),
    "empty tensor": lambda *_, **__: torch.zeros(0),
    "array": lambda *_, **__: torch.zeros(2, 3).numpy(),
    "first argument": lambda *args, **__: args[0] if args else ...,
    "generator": lambda *_, **__: (n for n in range(3)),
    "exit": leave,
    "unprintable": unprintable,
    "signature": lambda: 0,
}


@pytest.mark.parametrize("kind", JUNK)
@pytest.mark.parametrize("id", all_ids())
def test_junk_is_not_correct_and_never_a_traceback(id, kind, smollm2, monkeypatch, tmp_path):
    monkeypatch.setenv("MECHLAB_HOME", str(tmp_path))
    function = lambda *args, **given: JUNK[kind](*args, **given)
    outcome = check(exercise(id)(function), smollm2)
    assert outcome.status == NOT_YET, outcome
    assert 20 < len(outcome.message) < 1000


def test_an_operation_torch_does_not_have_is_not_an_unattempted_exercise(monkeypatch, tmp_path):
    monkeypatch.setenv("MECHLAB_HOME", str(tmp_path))

    def half_written(logits, answer, rival):
        return torch.bincount(logits[-1])

    outcome = check(exercise("00.1")(half_written))
    assert outcome.status == NOT_YET and "torch.bincount" in outcome.message


def test_the_model_may_be_given_by_position_and_must_be_a_model(smollm2, monkeypatch, tmp_path):
    monkeypatch.setenv("MECHLAB_HOME", str(tmp_path))
    count = exercise("01.1")(lambda model, number: model.to_tokens(str(number), prepend_bos=False).shape[1])
    assert check(count, smollm2).status == CORRECT
    assert "model=model" in check(count, "smollm2").message
    assert "model=model" in check(count, model=None).message


P = "After Paul and Anna left the office, Paul sent a long letter to"
F = torch.nn.functional


def own_cosine_zero(W, token, k):
    cosine = F.cosine_similarity(W, W[token][None], dim=-1)
    cosine[token] = 0
    return cosine.topk(k).indices


def unit_rows(W, a, b, c):
    W = F.normalize(W, dim=-1)
    return (W @ (W[b] - W[a] + W[c])).argmax().item()


def loud(logits, temperature, generator):
    print("drawing")
    return sample(logits, temperature, generator)


def sample(logits, temperature, generator):
    if temperature == 0:
        return int(logits.numpy().argmax())
    gumbel = -torch.log(-torch.log(torch.rand(len(logits), generator=generator)))
    return (logits / temperature + gumbel).argmax().item()


CLEVER = [  # (id, answer, correct?, what the message must say): right answers in other styles, wrong ones that nearly pass
    ("00.1", lambda logits, a, r: (logits[-1, [a, r]] @ torch.tensor([1.0, -1.0])).numpy(), True, ""),
    ("00.1", lambda logits, a, r: logits[5, a] - logits[5, r], False, "expected"),
    ("00.1", lambda logits, a, r: (logits[-1, a] - logits[-1, r]).abs(), False, "absolute value"),
    ("00.2", lambda: (P, " Paul", " Anna", "-"), True, ""),
    ("00.2", lambda: (P + "\n", " Anna", " Paul", "+"), False, "empty line"),
    ("00.2", lambda: ("After Paul and the dog left, Paul gave a bone to", " the", " Paul", "+"), False, "a name"),
    ("00.2", lambda: ("Then, \"Paul, Anna and 'Paul'", " Anna", " Paul", "+"), False, "in quotes"),
    ("00.2", lambda: ("Some text. " * 300 + P, " Anna", " Paul", "+"), False, "one sentence is enough"),
    ("01.1", lambda model, n: model.to_tokens([str(n)], prepend_bos=False).shape[1], True, ""),
    ("01.1", lambda model, n: len(model.to_str_tokens(str(n))) - 1, True, ""),
    ("01.1", lambda model, n: len(str(n)), False, "digits in pairs"),
    ("01.2", lambda W, t, k: F.cosine_similarity(W, W[t][None], dim=-1).topk(k + 1).indices[1:], True, ""),
    ("01.2", own_cosine_zero, False, ""),
    ("01.2", lambda W, t, k: (W @ W[t]).topk(k + 1).indices[1:], False, "dot product"),
    ("01.3", lambda W, a, b, c: ((W @ (W[b] - W[a] + W[c])) / W.norm(dim=-1)).numpy().argmax(), True, ""),
    ("01.3", unit_rows, False, "scale the rows to length 1 before"),
    ("01.3", lambda W, a, b, c: b if a != b else c, False, "nearest row is"),
    ("01.4", lambda x, theta: F.normalize(x) * x.norm(dim=-1, keepdim=True), False, "At ["),
    ("02.1", lambda x, eps: F.rms_norm(x, (x.shape[-1],), eps=eps), True, ""),
    ("02.1", lambda x, eps: F.rms_norm(x, (x.shape[-1],), eps=1e-5), False, "use it, not a fixed number"),
    ("02.4", lambda x, g, i, o: F.linear(F.silu(F.linear(x, g.T)) * F.linear(x, i.T), o.T).double(), True, ""),
    ("02.5", lambda r, a, m, n: r + m(n(r + a(n(r)))), False, "What attention has written is lost"),
    ("02.6", sample, True, ""),
    ("02.6", lambda z, t, g: torch.multinomial((z / (t + 0.1)).softmax(-1), 1, generator=g).item(), False, "temperature 0"),
    ("03.3", lambda cache, layer: cache["resid_pre", layer], False, "stopped with"),
    ("03.4", lambda a, b, t: -1 if torch.equal(a, b) else int(((a - b).norm(dim=-1) > t).nonzero()[0]), False, ""),
]  # fmt: skip


@pytest.mark.parametrize(
    ("id", "answer", "correct", "says"), CLEVER, ids=[f"{c[0]}-{n}" for n, c in enumerate(CLEVER)]
)
def test_clever_answers(id, answer, correct, says, smollm2, monkeypatch, tmp_path):
    monkeypatch.setenv("MECHLAB_HOME", str(tmp_path))
    outcome = check(exercise(id)(lambda *args: answer(*args)), smollm2)
    assert (outcome.status == CORRECT) == correct, outcome
    assert says in outcome.message


def tried_answers():
    """(exercise, name, code, right?) of course/NN/tried.txt: what a hostile reader tried on each exercise."""
    for path in tried().values():
        for block in re.split(r"(?m)^### ", path.read_text(encoding="utf-8"))[1:]:
            head, code = block.split("\n", 1)
            id, verdict = head.split(":")[0].split()
            yield id, head.replace(" ", "-"), code, verdict == "right"


def judge(id: str, code: str, model):
    names = dict(setup_names())
    exec(compile(code, "<answer>", "exec"), names)
    return check(exercise(id)(names["f"]), model)


SAID: dict[str, list[str]] = {}  # notebook -> what wrong answers were told, in this run


@pytest.mark.parametrize(
    ("id", "code", "right"), [pytest.param(i, c, r, id=n) for i, n, c, r in tried_answers()]
)
def test_answers_that_a_reader_tried(id, code, right, smollm2, monkeypatch, tmp_path):
    monkeypatch.setenv("MECHLAB_HOME", str(tmp_path))
    outcome = judge(id, code, smollm2)
    assert (outcome.status == CORRECT) == right, outcome
    assert outcome.status != NOT_ATTEMPTED
    SAID.setdefault(id[:2], []).extend([] if right else [outcome.message])


def unspecific(message: str) -> bool:
    """Whether a message gives two numbers and no more, or Python's error and neither its meaning nor an input."""
    if "stopped with" in message:
        return "\n" not in message and "It is called as" not in message
    if message.startswith(("Return ", "True and False are needed", "Predictions worse than the mean")):
        return False
    return bool(re.search(r"(yours is|you returned?|you say) \S+\.$|this check cannot read", message))


@pytest.mark.parametrize("stem", SOURCES)
def test_few_messages_say_only_that_it_is_wrong(stem):
    """One in ten of a notebook at the most; over all of them it is one in twenty."""
    said = SAID.get(stem[:2], [])
    assert sum(map(unspecific, said)) <= max(1, 0.1 * len(said)), [*filter(unspecific, said)]


ACCUSED = {  # answers on which a cause was named that was not theirs -> what is said, what must not be
    "42.3 wrong: pairs drawn, 5 and 95 percent": ("90 % interval", "draw pairs"),
    "42.3 wrong: len(circuit) draws of pairs": ("as many pairs as there are prompts", None),
    "42.3 wrong: prompts drawn, 90 percent": ("prompts one by one", None),
    "42.8 wrong: ends on the line with >=": ("right on a line", None),
    "12.2 wrong: first above": ("falls below half again", "adds most"),
    "23.5 wrong: row any": ("`any(1)`", "anybody's"),
    "25.2 wrong: ones": ("same size", "repeated"),
    "22.7 wrong: class 0 less class 1": ("sign is turned", "among the groups"),
    "34.5 wrong: half threshold": ("above a half", "likeliest"),
    "03.4 wrong: cosine": ("cosine", None),
    "13.3 wrong: returns in loop": ("inside the loop", "changed copy"),
    "43.6 wrong: one size for all": ("size of its own circuit", None),
}


@pytest.mark.parametrize("answer", ACCUSED)
def test_a_cause_is_named_only_where_the_data_rule_out_the_others(answer, smollm2, monkeypatch, tmp_path):
    monkeypatch.setenv("MECHLAB_HOME", str(tmp_path))
    code = next(code for _, name, code, _ in tried_answers() if name == answer.replace(" ", "-"))
    message = judge(answer.split()[0], code, smollm2).message
    said, not_said = ACCUSED[answer]
    assert said in message and (not_said is None or not_said not in message), message


@pytest.mark.parametrize(
    ("wrong", "fact"),
    [
        (lambda x: -x, "sign is turned"),
        (lambda x: x.abs(), "sign is lost"),
        (lambda x: 3 * x, "3 times"),
        (lambda x: x + 2, "+2 off"),
        (lambda x: x.floor(), "rounded"),
        (lambda x: x.roll(1, 1), "along the axis head everything stands one place too late"),
        (lambda x: torch.cat([x[:2], -x[2:]]), "along the axis layer only these are right: 0, 1 of 0 to 3"),
        (lambda x: x.pow(3) + 1, "yours is"),
    ],
)
def test_a_wrong_result_that_no_mistake_explains_is_described(wrong, fact):
    right = random(4, 5)
    message = only_wrong(wrong(right), right, "layer, head")
    assert fact.lower() in message.lower()
    assert "upside down" not in only_wrong(
        torch.ones(3), torch.tensor([1.0, 0.0, 2.0])
    )  # 1 / 0 is like nothing


def test_an_error_says_what_it_means_and_on_which_input(monkeypatch, tmp_path):
    monkeypatch.setenv("MECHLAB_HOME", str(tmp_path))

    def none_below(effects, start):
        run = start + effects.cumsum(0)
        return int((run <= run[-1] / 2).nonzero()[-1]) + 1

    message = check(exercise("12.2")(none_below)).message
    assert "is empty on this input" in message
    assert "On this input: effects = [2.0, 0.1, 0.1, 0.1], start = 0.0" in message


@pytest.mark.parametrize(("id", "why"), [(id, why) for id in all_ids() for why in mistakes_of(id)])
def test_a_declared_mistake_is_told_what_is_wrong(id, why, smollm2, monkeypatch, tmp_path):
    monkeypatch.setenv("MECHLAB_HOME", str(tmp_path))
    mistake = mistakes_of(id)[why]
    outcome = check(exercise(id)(lambda *args: mistake(*args)), smollm2)
    assert (outcome.status, outcome.message) == (NOT_YET, why)


def test_a_function_that_prints_does_not_flood_the_notebook(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("MECHLAB_HOME", str(tmp_path))
    assert check(exercise("02.6")(lambda *args: loud(*args))).status == CORRECT
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["drawing", "drawing"] and len(lines) == 21 and "more lines" in lines[-1]
