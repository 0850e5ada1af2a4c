"""What an answer brings along of its notebook: it must behave as it does when all is run from the top, or say why not.

Every case is run twice, as a notebook and as what was cut out of it, and the two must agree.
"""

import math
import random
import sys
from contextlib import nullcontext

import pytest
import torch

from mechlab_course.grading.answers import find
from mechlab_course.grading.grader import _tried
from mechlab_course.grading.submissions import Learner

ANSWER = '@exercise("01.1")\ndef f():\n    return {}'


class Model:
    """Stands for what costs something to run."""

    def __call__(self, x):
        return x

    def run_with_cache(self, x):
        return x

    def hooks(self):
        return nullcontext()


def names():
    """What the setup cell defines."""
    return {"exercise": lambda id: lambda function: function, "check": lambda function: None} | {
        "torch": torch, "model": Model(), "sys": sys, "quiz": lambda *a: None, "__name__": "__main__"
    }  # fmt: skip


def as_notebook(cells):
    """What `f()` is when every cell has run: a broken one stops itself only."""
    session, seen = names(), []
    session["check"] = lambda function: seen.append(function())
    for cell in cells:
        try:
            exec(compile(cell, "<cell>", "exec", dont_inherit=True), session)
        except Exception:
            continue
    return seen[-1] if seen else session["f"]()


def as_cut_out(answer):
    session = names()
    exec(compile(answer.code, "<answer>", "exec", dont_inherit=True), session)
    return session[answer.name]()


CARRIED = {  # cells, the answer among them
    "augmented": ["AXIS = 0\nAXIS += 1", ANSWER.format("AXIS")],
    "augmented in another cell": ["AXIS = 0", "AXIS += 1", "AXIS *= 5", ANSWER.format("AXIS")],
    "item": ["S = {}", 'S["a"] = 1', ANSWER.format('S["a"]')],
    "item of an item": ["S = {'a': {}}", 'S["a"]["b"] = 1', ANSWER.format("S")],
    "slice": ["S = [0, 0, 0]\nS[1:] = [7]", ANSWER.format("S")],
    "deleted item": ["S = {'a': 1, 'b': 2}", 'del S["a"]', ANSWER.format("S")],
    "deleted name": ["sum = 3\ndel sum", ANSWER.format("sum([1, 2])")],
    "loop": ["T = {}\nfor i in range(5):\n    T[i] = i * i", ANSWER.format("T")],
    "loop with a helper": ["def sq(i):\n    return i * i", "T = []\nfor i in range(5):\n    T.append(sq(i))", ANSWER.format("T")],
    "while": ["n = 1\nwhile n < 100:\n    n *= 3", ANSWER.format("n")],
    "loop variable": ["for last in range(5):\n    pass", ANSWER.format("last")],
    "loop else": ["for i in []:\n    pass\nelse:\n    K = 4", ANSWER.format("K")],
    "two loops": ["T = []\nfor i in range(3):\n    for j in range(i):\n        T += [(i, j)]", ANSWER.format("T")],
    "if": ["FAST = False\nif FAST:\n    K = 1\nelse:\n    K = 2", ANSWER.format("K")],
    "elif": ["n = 2\nif n == 1:\n    K = 1\nelif n == 2:\n    K = 22\nelse:\n    K = 3", ANSWER.format("K")],
    "if, over a first value": ["K = 1", "if sys.version_info > (3,):\n    K = 3", ANSWER.format("K")],
    "if, not taken": ["K = 1", "if False:\n    K = 3", ANSWER.format("K")],
    "function in an if": ["if True:\n    def g():\n        return 1\nelse:\n    def g():\n        return 2", ANSWER.format("g()")],
    "import that fails": ["try:\n    import nonsense as q\nexcept ImportError:\n    import math as q", ANSWER.format("q.pi")],
    "import that works": ["try:\n    import math as q\nexcept ImportError:\n    q = None", ANSWER.format("q.pi")],
    "names that are not there": ["try:\n    unicode\nexcept NameError:\n    unicode = str", ANSWER.format("unicode(3)")],
    "finally": ["try:\n    K = 1\nfinally:\n    L = 2", ANSWER.format("K + L")],
    "try else": ["try:\n    K = 1\nexcept ValueError:\n    K = 2\nelse:\n    K = 3", ANSWER.format("K")],
    "with": ["with torch.no_grad():\n    K = torch.ones(2).sum().item()", ANSWER.format("K")],
    "with as": ["from contextlib import nullcontext\nwith nullcontext(5) as K:\n    pass", ANSWER.format("K")],
    "match": ["match 3:\n    case int(n):\n        K = n\n    case _:\n        K = 0", ANSWER.format("(K, n)")],
    "tuple": ["A, B = 1, 2", ANSWER.format("A + B")],
    "nested tuple": ["(A, [B, *C]), D = (1, [2, 3, 4]), 5", ANSWER.format("[A, B, C, D]")],
    "tuple with an item": ["S = {}\nA, S['b'] = 1, 2", ANSWER.format("(A, S)")],
    "chain": ["A = B = [1]\nB.append(2)", ANSWER.format("A")],
    "swap": ["A, B = 1, 2\nA, B = B, A", ANSWER.format("(A, B)")],
    "walrus": ["if (n := 10) > 5:\n    pass", ANSWER.format("n")],
    "walrus alone": ["(n := 10)\n[y := 1, y**2]", ANSWER.format("n + y")],
    "walrus in a list": ["L = [last := i for i in range(3)]", ANSWER.format("last")],
    "annotated": ["K: int = 3\nL: int", ANSWER.format("K")],
    "global": ["N = 0\ndef bump():\n    global N\n    N += 1", "bump()\nbump()", ANSWER.format("N")],
    "global, new": ["def start():\n    global N\n    N = 5", "start()", ANSWER.format("N")],
    "change by a function": ["S = []\ndef add(x):\n    S.append(x)", "add(3)\nadd(4)", ANSWER.format("S")],
    "change by a function of a function": ["S = []\ndef a(x):\n    S.append(x)\ndef b():\n    a(1)", "b()", ANSWER.format("S")],
    "change of what is given": ["S = {}\ndef fill(d):\n    d['k'] = 1", "fill(S)", ANSWER.format("S")],
    "change by its local name": ["S = {}\ndef fill():\n    d = S\n    d['k'] = 1", "fill()", ANSWER.format("S")],
    "change in a return": ["S = [1, 2]\nlast = S.pop()", ANSWER.format("S")],
    "change in a test": ["S = [1, 2]\nif S.pop() == 2:\n    pass", ANSWER.format("S")],
    "alias of a function": ["def g():\n    return 3\nh = g", ANSWER.format("h()")],
    "alias of a value": ["S = [1]\nT = S\nT.append(2)", ANSWER.format("S")],
    "alias of a part": ["S = {'a': [1]}\nrow = S['a']\nrow.append(2)", ANSWER.format("S")],
    "alias in a loop": ["S = [[1], [2]]\nfor row in S:\n    row.append(0)", ANSWER.format("S")],
    "alias by setdefault": ["S = {}\nS.setdefault('a', []).append(1)", ANSWER.format("S")],
    "part put in": ["T = [1]\nS = {}\nS['t'] = T\nT.append(2)", ANSWER.format("S")],
    "attribute": ["class Cfg:\n    axis = 0", "Cfg.axis = 1", ANSWER.format("Cfg.axis")],
    "attribute of an object": ["class Cfg: ...\ncfg = Cfg()", "cfg.a = 1\ncfg.b = cfg.a + 1", ANSWER.format("cfg.b")],
    "setattr": ["class Cfg: ...\ncfg = Cfg()\nsetattr(cfg, 'a', 1)", ANSWER.format("cfg.a")],
    "setattr of the class": ["class Cfg:\n    a = 0\nsetattr(Cfg, 'a', 1)", ANSWER.format("Cfg().a")],
    "update": ["cfg = {'a': 0}\ncfg.update(a=1)", ANSWER.format("cfg")],
    "update of an object": ["from types import SimpleNamespace as N\ncfg = N(a=0)\ncfg.__dict__.update(a=1)", ANSWER.format("cfg.a")],
    "vars": ["from types import SimpleNamespace as N\ncfg = N(a=0)\ncfg.__dict__['a'] = 2", ANSWER.format("cfg.a")],
    "list methods": ["L = [3, 1]\nL.append(2)\nL.sort()\nL.insert(0, 9)\nL.extend([4])", ANSWER.format("L")],
    "method of a class": ["L = [1]\nlist.append(L, 2)", ANSWER.format("L")],
    "own method": ["class Bag:\n    def __init__(self):\n        self.x = []\n    def put(self, x):\n        self.x.append(x)\nbag = Bag()", "bag.put(3)", ANSWER.format("bag.x")],
    "registry": ["R = {}\ndef register(g):\n    R[g.__name__] = g\n    return g", "@register\ndef g():\n    return 4", ANSWER.format("R['g']()")],
    "registry with a name": ["R = {}\ndef register(name):\n    def mark(g):\n        R[name] = g\n        return g\n    return mark", "@register('x')\ndef g():\n    return 4", ANSWER.format("R['x']()")],
    "in place": ["W = torch.zeros(3)\nW.add_(1)\nW[0] = 5", ANSWER.format("W.tolist()")],
    "view": ["W = torch.zeros(4)\nV = W.view(2, 2)\nV[0, 0] = 5", ANSWER.format("W.tolist()")],
    "out": ["W = torch.zeros(2)\ntorch.add(torch.ones(2), 1, out=W)", ANSWER.format("W.tolist()")],
    "seed": ["torch.manual_seed(3)\nW = torch.randn(3)", ANSWER.format("W.tolist()")],
    "random": ["import random\nrandom.seed(3)\nL = [1, 2, 3, 4, 5]\nrandom.shuffle(L)", ANSWER.format("L")],
    "heap": ["import heapq\nH = [3, 1]\nheapq.heapify(H)\nheapq.heappush(H, 0)", ANSWER.format("H")],
    "shuffle by name": ["import random\nfrom random import shuffle\nrandom.seed(1)\nL = [1, 2, 3, 4]\nshuffle(L)\nL.sort()", ANSWER.format("L")],
    "iterator": ["it = iter([1, 2, 3])\nnext(it)", ANSWER.format("next(it)")],
    "iterator in values": ["from itertools import count\nc = count()\nA = next(c)\nB = next(c)", ANSWER.format("(A, B)")],
    "counter": ["from collections import Counter, defaultdict\nC = Counter('aab')\nD = defaultdict(list)\nD['x'].append(1)", ANSWER.format("(C['a'], D)")],
    "dataclass": ["from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int = 3\np = P()\np.x += 1", ANSWER.format("p.x")],
    "enum": ["from enum import Enum\nclass E(Enum):\n    A = 1", ANSWER.format("E.A.value")],
    "named tuple": ["from typing import NamedTuple\nclass P(NamedTuple):\n    x: int = 3", ANSWER.format("P().x")],
    "inherits": ["class A:\n    k = 1\nclass B(A):\n    def g(self):\n        return self.k + K\nK = 2", ANSWER.format("B().g()")],
    "class that uses its own names": ["class C:\n    a = 1\n    b = a + 1\n    def g(self):\n        return self.b", ANSWER.format("C().g()")],
    "lambda": ["K = 2\ng = lambda x: x * K", ANSWER.format("g(3)")],
    "lambda in a table": ["OPS = {'d': lambda x: 2 * x}\nOPS['t'] = lambda x: 3 * x", ANSWER.format("OPS['t'](1)")],
    "partial": ["from functools import partial\ndef g(a, b):\n    return a - b\nh = partial(g, 5)", ANSWER.format("h(2)")],
    "cache": ["from functools import cache\n@cache\ndef g(n):\n    return n if n < 2 else g(n - 1) + g(n - 2)", ANSWER.format("g(20)")],
    "own decorator": ["def twice(g):\n    return lambda *a: 2 * g(*a)", '@exercise("01.1")\n@twice\ndef f():\n    return 4'],
    "own decorator outside": ["def twice(g):\n    return lambda *a: 2 * g(*a)", '@twice\n@exercise("01.1")\ndef f():\n    return 4'],
    "default": ["K = 1", '@exercise("01.1")\ndef f(k=K):\n    return k', "K = 2"],
    "closure of a factory": ["def make(n):\n    def g():\n        return n\n    return g\ng = make(4)", ANSWER.format("g()")],
    "star": ["from math import *", ANSWER.format("floor(pi)")],
    "star over a value": ["pi = 3\nfrom math import *", ANSWER.format("pi")],
    "value over a star": ["from math import *\npi = 3", ANSWER.format("pi")],
    "star, and what is not there": ["from math import *\nS = [1]", "big = expensive(S)\nother = nowhere", ANSWER.format("S")],
    "star of the course": ["from mechlab_course import *\nK = 3", "quiz('01.a', 'b')\nbig = expensive(K)", ANSWER.format("K")],
    "used up by a list": ["g = (i for i in range(3))\nlist(g)", ANSWER.format("list(g)")],
    "used up by a loop": ["g = iter([1, 2, 3])\nfor x in g:\n    break", ANSWER.format("list(g)")],
    "import with a dot": ["import os.path", ANSWER.format("os.path.join('a', 'b')")],
    "imports in a function": [ANSWER.format("m()"), "def m():\n    import math\n    return math.floor(2.5)"],
    "future": ["from __future__ import annotations\ndef g(x: Undefined) -> Nothing:\n    return x", ANSWER.format("g(3)")],
    "defined below": [ANSWER.format("g()"), "def g():\n    return K", "K = 9"],
    "redefined below": ["K = 1", ANSWER.format("K"), "K = 2"],
    "redefined below the check": ["K = 1", ANSWER.format("K"), "check(f)", "K = 2"],
    "redefined before the check": ["K = 1", ANSWER.format("K"), "K = 2", "check(f)", "K = 3"],
    "redefined in between": ["K = 1", "L = K * 2", "K = 5", ANSWER.format("(K, L)")],
    "helper redefined in between": ["def g():\n    return 1", "T = [g()]", "def g():\n    return 2", ANSWER.format("(T, g())")],
    "late name at two times": ["K = 1\ndef g():\n    return K", "T = g()", "K = 2", ANSWER.format("(T, g())")],
    "check of a helper": ["K = 1", ANSWER.format("K"), "def g(): return 2", "check(g)\nK = 7\ncheck(f)"],
    "checked twice": ["K = 1", ANSWER.format("K"), "check(f)\ncheck(f)"],
    "of two exercises": ["def g():\n    return 1", ANSWER.format("g()"), "check(f)", "def g():\n    return 2", '@exercise("01.2")\ndef h():\n    return g()'],
    "uses another answer": ['@exercise("01.2")\ndef g():\n    return 3', ANSWER.format("g()")],
    "recursion": ['@exercise("01.1")\ndef f(n=5):\n    return 1 if n < 2 else n * f(n - 1)'],
    "table on the function": [ANSWER.format("f.table[1]"), "f.table = {}\nf.table[1] = 5"],
    "one line": ["K = 1; L = K + 1; K += 5", ANSWER.format("(K, L)")],
    "a string of lines": ['S = """a\nb = 3\n"""', ANSWER.format("S")],
    "magics": ["%matplotlib inline\nK = 3\n!ls", ANSWER.format("K")],
    "a broken cell between": ["K = 1", "def (:", "K += 1", ANSWER.format("K")],
    "answer in a with": ["K = 2", 'with torch.no_grad():\n    @exercise("01.1")\n    def f():\n        return K'],
    "answer in a with of the model": ["K = 2", 'with model.hooks():\n    L = 3\n    @exercise("01.1")\n    def f():\n        return K'],
    "answer in a try": ['try:\n    @exercise("01.1")\n    def f():\n        return 3\nexcept Exception:\n    pass'],
    "answer in an if": ['K = 2\nif K == 1:\n    @exercise("01.1")\n    def f():\n        return 1\nelse:\n    @exercise("01.1")\n    def f():\n        return 2'],
    "answer by a call": ["def f():\n    return 4", 'exercise("01.1")(f)'],
    "answer by a lambda": ["K = 3", 'f = exercise("01.1")(lambda: K)'],
    "answer by itself": ["def f():\n    return 4", 'f = exercise("01.1")(f)'],
    "run of a model above": ["logits = model(3)\nK = 2", ANSWER.format("K")],
    "run of a model inside": ["T = []\nfor i in range(3):\n    T.append(i)\n    shown = model(i)", ANSWER.format("T")],
    "number of the model": ["sizes = [0] * 3\nn = len(sizes)", ANSWER.format("list(range(n))")],
    "printed": ["S = [1]\nprint(S)\nlen(S)\ncheck(S)", ANSWER.format("S")],
    "comprehension": ["rows = [[1, 2], [3]]\nflat = [x for row in rows for x in row if x > 1]", ANSWER.format("flat")],
    "generator used up": ["g = (i for i in range(3))\nA = list(g)", ANSWER.format("(A, list(g))")],
    "except as": ["try:\n    1 / 0\nexcept ZeroDivisionError as error:\n    K = str(error)", ANSWER.format("K")],
    "deleted and made again": ["K = 1\ndel K\nK = 2", ANSWER.format("K")],
    "formatted": ["K = 3\nS = f'{K}-{K + 1}'", ANSWER.format("S")],
    "a long chain": ["a0 = 1", *(f"a{n} = a{n - 1} + 1" for n in range(1, 40)), ANSWER.format("a39")],
    "nonlocal": ["def make():\n    n = 0\n    def g():\n        nonlocal n\n        n += 1\n        return n\n    return g\ng = make()\ng()", ANSWER.format("g()")],
    "matrix product": ["A = torch.eye(2)\nA @= 2 * torch.eye(2)", ANSWER.format("A.tolist()")],
    "set operators": ["S = {1}\nS |= {2}\nS -= {1}", ANSWER.format("S")],
    "bom and CRLF": ["\ufeffK = 1\r\nK += 1\r\n", ANSWER.format("K").replace("\n", "\r\n")],
    "assert": ["S = [1]\nassert len(S) == 1", ANSWER.format("S")],
    "async helper": ["async def g():\n    return 1\nK = 2", ANSWER.format("K")],
}  # fmt: skip


@pytest.mark.parametrize("cells", CARRIED.values(), ids=CARRIED)
def test_an_answer_behaves_as_in_its_notebook(cells):
    found = [a for a in find(cells, "n") if a.id == "01.1"]
    assert found and not any(a.missing or a.problem for a in found), found
    wanted = as_notebook(
        [c.lstrip("\ufeff").replace("%matplotlib inline", "").replace("!ls", "") for c in cells]
    )
    assert as_cut_out(found[-1 if "K = 7" in cells[-1] else 0]) == wanted


SAID = {  # cells: what is said of the name
    "a run": (["L = model(3)", ANSWER.format("L")], "`L`, which code cell 1 makes by running something"),
    "a run in a loop": (["T = []\nfor i in range(3):\n    T.append(model(i))", ANSWER.format("T")], "`T`, which code cell 1 changes by running"),
    "a change by a run": (["S = {}", "S.update(model(3))", ANSWER.format("S")], "`S`, which code cell 2 changes by running"),
    "an item by a run": (["S = {}", "S['a'] = model(3)", ANSWER.format("S")], "`S`, which code cell 2 changes by running"),
    "augmented by a run": (["K = 1", "K += model(3)", ANSWER.format("K")], "`K`, which code cell 2"),
    "a run by a helper": (["def g(x):\n    return model(x)", "L = g(3)", ANSWER.format("L")], "`L`, which code cell 2 makes"),
    "a run under another name": (["run = model.run_with_cache", "L = run(3)", ANSWER.format("L")], "`L`, which code cell 2 makes"),
    "a run in a with": (["with torch.no_grad():\n    L = model(3)", ANSWER.format("L")], "`L`, which code cell 1 makes"),
    "a run in an if": (["if True:\n    L = model(3)", ANSWER.format("L")], "`L`, which code cell 1 makes"),
    "a run in a test": (["if model(3) > 2:\n    K = 1\nelse:\n    K = 2", ANSWER.format("K")], "`K`, which code cell 1 makes"),
    "from a run": (["L = model(3)", "K = L + 1", ANSWER.format("K")], "`K`, which code cell 2 makes"),
    "a file": (["T = open('x').read()", ANSWER.format("T")], "`T`, which code cell 1 makes"),
    "an unknown library": (["import pandas as pd\nd = pd.read_csv('x')", ANSWER.format("d")], "`d`, which code cell 1 makes"),
    "not there": ([ANSWER.format("nowhere")], "`nowhere`, which the notebook does not define"),
    "deleted": (["K = 1", "L = model(3)\ndel L", ANSWER.format("L")], "`L`"),
    "a star of a file": (["from my_own_helpers import *", ANSWER.format("thing()")], "`from my_own_helpers import *`, and no such file"),
    "exec": (["K = 1", "exec('K = 2')", ANSWER.format("K")], "Code cell 2 calls `exec`"),
    "globals": (["K = 1", "globals()['K'] = 2", ANSWER.format("K")], "Code cell 2 calls `globals`"),
    "awaited": (["L = await model(3)", ANSWER.format("L")], "`L`, which code cell 1 makes"),
    "a change that fails": (["S = [1]\nS.append(undefined)\nT = S", ANSWER.format("T")], "`S`, which code cell 1 changes"),
    "a helper's need": (["def g():\n    return L", "L = model(3)", ANSWER.format("g()")], "`L`, which code cell 2 makes"),
}  # fmt: skip


@pytest.mark.parametrize(("cells", "says"), SAID.values(), ids=SAID)
def test_what_cannot_be_brought_is_said(cells, says):
    (found,) = find(cells, "n")
    assert any(says in sentence for sentence in found.missing), found
    compile(found.code, "<answer>", "exec")


def test_what_stays_behind_stops_nothing():
    """An answer that does not need it runs."""
    cells = ["L = model(3)\nS = [1]", "S.append(L)\nT = L + 1", "S.append(2)", ANSWER.format("S")]
    (found,) = find(cells, "n")
    assert as_cut_out(found) == [1, 2] and "`S`, which code cell 2 changes" in found.missing[0]


PROBLEMS = {
    "in a function": 'def make():\n    @exercise("01.1")\n    def f():\n        return 1\n    return f\nf = make()',
    "in a class": 'class A:\n    @exercise("01.1")\n    def f():\n        return 1',
    "a class": '@exercise("01.1")\nclass F:\n    pass',
    "async": '@exercise("01.1")\nasync def f():\n    return 1',
    "not Python": '@exercise("01.1")\ndef f(:\n    return 1',
    "cut in two": '@exercise("01.1")',
}


@pytest.mark.parametrize("code", PROBLEMS.values(), ids=PROBLEMS)
def test_an_answer_that_cannot_be_run_is_told_and_takes_no_place(code):
    found = find([code, *(ANSWER.format(n) for n in range(7))], "n")
    assert found[0].problem and found[0].id == "01.1" and len(found[0].problem) > 20
    learner = Learner("x", answers=found)
    assert sum(not a.problem for a in _tried(learner, ["01.1"])) == 5


def test_an_answer_without_a_name_gets_one():
    (found,) = find(["K = 3", 'check(exercise("01.1")(lambda: K))'], "n")
    assert as_cut_out(found) == 3


def test_an_answer_that_is_checked_in_two_states_counts_in_both():
    cells = ["K = 1", ANSWER.format("K"), "check(f)", "K = 2", "check(f)", "K = 3"]
    assert [as_cut_out(a) for a in find(cells, "n")] == [1, 2]
    assert [as_cut_out(a) for a in find([*cells[:2], "K = 3"], "n")] == [
        3,
        1,
    ]  # never checked: end, and above


def test_of_attempts_each_is_tried_with_its_own_state():
    cells = ["K = 1", ANSWER.format("(K, 1)"), "check(f)", "K = 2", ANSWER.format("(K, 2)"), "check(f)"]
    assert [as_cut_out(a) for a in find(cells, "n")] == [(1, 1), (2, 2)]


DRAWN = [  # statements over three lists, three functions, three classes, and what holds parts of them
 "{a} = [{n}]", "{a} = {b} + [{n}]", "{a}.append({n})", "{a} = {b}", "{a} += {b}", "{a}[0] = {n}",
 "{a}, {b} = {b}, {a}", "for i in range(2):\n    {a}.append(i)", "if len({a}) > 2:\n    {b} = [{n}]",
 "def g{n}():\n    return {a} + {b}", "{a} = g{m}()", "def g{n}():\n    {a}.append({n})\n    return {b}",
 "g{m}()", "def g{n}():\n    global {a}\n    {a} = [{m}]\n    return {b}", "{a} = list({b})",
 "try:\n    {a} = [z]\nexcept NameError:\n    {a}.append({n})", "{a}.extend({b})", "del {a}[0]",
 "{a} = [x for x in {b} if x != {n}]", "print({a})", "with torch.no_grad():\n    {a}.insert(0, {n})",
 "class K{n}:\n    v = {a}\n    def m(self):\n        self.v.append({n})\n        return {b}", "{a} = K{m}().m()", "k = K{m}()\nk.m()", "K{n}.v = {a}", "{a} = k.v",
 "d['{a}'] = {b}", "d['{b}'].append({n})", "{a} = d['{b}']", "d = {{'a': {a}, 'b': {b}, 'c': {a}}}",
 "def g{n}(x={a}):\n    x.append({m})\n    return x", "g{n} = g{m}", "def g{n}():\n    return g{m}()" , "g{n} = lambda: {a} + {b}",
 "def w(h):\n    h.append({n})\n    return h", "{a} = w({b})", "w({a})", "({a} := [{n}]).append({m})", "[{a}.append(q) for q in list({b})]",
 "for {a} in ([1], [2]):\n    {b}.append({n})", "while len({a}) < 4:\n    {a}.append({n})", "{a} = {b} if {b} else [{n}]", "shown = model({a})", "if model({a}):\n    {b} = [{n}]", "{a} = [model({n})]","del {a}\n{a} = {b}",
 "def deco(h):\n    {a}.append({n})\n    return h","@deco\ndef g{n}():\n    return {b}","assert {a} is not None", "{a}.sort()", "{a} = sorted({b})", "{a}[:] = {b}", "it = iter({a} * 9)\nnext(it)", "{a} = [next(it)]", "{a} = {b}[:1]", "setattr(K{n}, 'v', {a})", "e = [{a}, {b}]\ne[0].append({n})", "for row in e:\n    row.append({m})", "match len({a}):\n    case 1:\n        {b} = [{n}]\n    case _:\n        {b}.append({m})",
]  # fmt: skip
START = "a, b, c = [1], [2], [3]\ng0 = g1 = g2 = lambda: [9]\nclass K0: v = [4]\nclass K1(K0):\n    def m(self): return [5]\nclass K2(K1): pass\nK0 = K1\nk = K1()\nd = {'a': a, 'b': [8], 'c': c}\ndef w(h): return h\ndef deco(h): return h\nit = iter(range(99))\ne = [[1], [2]]"


@pytest.mark.parametrize("seed", range(150))
def test_random_notebooks_behave_as_cut_out(seed):
    """Statements drawn at random: what is cut out gives what the notebook gives, or says that it could not."""
    draw = random.Random(seed)
    cells = [START]
    for _ in range(draw.randrange(4, 16)):
        one, other = draw.sample("abc", 2)
        cells.append(draw.choice(DRAWN).format(a=one, b=other, n=draw.randrange(3), m=draw.randrange(3)))
    cells.insert(draw.randrange(1, len(cells) + 1), ANSWER.format("str((a[:20], b[:20], g1()[:20], d, k.v))"))
    try:
        wanted = as_strict_notebook(cells)
    except (Exception, RecursionError):
        return  # no notebook that runs
    found = find(cells, "n")[0]
    if found.missing:
        assert "model(" in "".join(cells), found.missing
    else:
        assert as_cut_out(found) == wanted, "\n".join(cells)


def as_strict_notebook(cells):
    session = names()
    for cell in cells:
        exec(cell, session)
    return session["f"]()


def test_the_cases_are_right():
    assert as_notebook(CARRIED["star"]) == math.floor(math.pi)
