"""`python -m benchmarks.gpu` where there is no GPU: it says so, and on the CPU in place of one it sees what is wrong."""

import subprocess
import sys

import pytest
import torch

import mechlab as ml
from benchmarks import gpu, techniques
from mechlab.runs.fast import Fast

SOME = (
    "activation_patching(z)",
    "path_patching(q)",
    "edge_attribution",
    "CircuitRuns",
    "logit_lens",
    "ablation(head)",
)
ON_CPU = ["--device", "cpu", "--quick"]


@pytest.fixture
def few(monkeypatch):
    """Some techniques only."""
    for name in [*techniques.TECHNIQUES]:
        if name not in SOME:
            monkeypatch.delitem(techniques.TECHNIQUES, name)


def test_without_cuda_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.run([]) == 0 and gpu.main()
    assert "This machine has no CUDA" in capsys.readouterr().out
    assert gpu.run(["nothing"]) == 2


def test_two_families_on_the_cpu(few, capsys):
    assert gpu.run(["engines", "memory", *ON_CPU]) == 0
    said = capsys.readouterr().out
    assert "2 tiny families" in said and "FAIL" not in said and said.splitlines()[-1].startswith("PASS in ")
    assert all(f"\n  {name} " in said for name in SOME) and "fast / plain" in said
    assert "a batch too large, a lack that is told" in said


def test_a_wrong_number_of_the_fast_engine_is_seen(few, monkeypatch, capsys):
    measured = Fast._metric_at
    monkeypatch.setattr(Fast, "_metric_at", lambda *given: measured(*given) * 1.01)
    assert gpu.run(["engines", *ON_CPU]) == 1
    said = capsys.readouterr().out
    failed = [line.split()[0] for line in said.splitlines() if line.endswith("FAIL")]
    assert "CircuitRuns" in failed and "logit_lens" not in failed
    assert said.splitlines()[-1].startswith("FAIL (")


def test_a_wrong_number_of_the_device_is_seen(monkeypatch):
    report, worst = gpu.Report("cpu"), {"logit_lens": {}}
    monkeypatch.setattr(gpu, "TECHNIQUES", {"logit_lens": techniques.TECHNIQUES["logit_lens"]})
    pair = [techniques.random_asked(ml.tiny(seed=seed)) for seed in (0, 1)]
    gpu.compare(pair, worst, "tiny")
    gpu.table(report, "two models that differ", worst)
    assert report.failed == ["logit_lens"]


def test_a_technique_that_breaks_is_seen_and_one_that_is_refused_is_not(monkeypatch, capsys):
    def breaks(asked):
        raise RuntimeError("Expected all tensors to be on the same device")

    def refuses(asked):
        raise ValueError("This model has no neurons.")

    known = {
        "broken": techniques.Technique(breaks, 1e-3, False),
        "refused": techniques.Technique(refuses, 1e-3, True),
    }
    for where in (gpu, techniques):
        monkeypatch.setattr(where, "TECHNIQUES", known)
    report, worst = gpu.Report("cpu"), {"broken": {}, "refused": {}}
    pair = [techniques.random_asked(ml.tiny()) for _ in range(2)]
    assert gpu.compare(pair, worst, "tiny") == 1
    gpu.table(report, "", worst)
    assert report.failed == ["broken"] and "on the same device" in capsys.readouterr().out


def test_a_part_that_stops_is_a_failure(monkeypatch, capsys):
    monkeypatch.setattr(Fast, "_in_batches", lambda self, run, copies, *_: run(slice(0, copies)))
    assert gpu.run(["memory", *ON_CPU]) == 1
    assert "OutOfMemoryError" in capsys.readouterr().out


def test_what_counts_as_apart():
    nan = torch.tensor([1.0, float("nan")])
    assert gpu.apart(torch.ones(2), nan) == gpu.apart(torch.ones(2), torch.ones(3)) == float("inf")
    assert gpu.apart(torch.tensor([2.0, 0.0]), torch.tensor([2.0, 0.02])) == pytest.approx(0.01)


def test_what_a_bad_call_comes_to():
    def beyond():
        return torch.zeros(2)[torch.tensor([5])]

    def refused():
        raise ml.PromptError("no")

    report = gpu.Report("cpu")
    outcomes = [gpu.outcome_of(report, call) for call in (beyond, refused, list)]
    assert outcomes[0].startswith("IndexError") and outcomes[1:] == [None, "no error"]


def test_bad_input_is_refused_before_it_runs():
    """In a process of its own: here shapes are checked first, and a sentence would not be seen."""
    command = [sys.executable, "-m", "benchmarks.gpu", "bad input", *ON_CPU]
    done = subprocess.run(command, cwd=gpu.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_cells_for_a_gpu_get_what_they_need():
    folder = gpu.ROOT / "course"
    found = {
        path.parent.name[:2]: gpu.needed_cells(path)
        for path in folder.glob("*/notebook.py")
        if 'kind="gpu"' in path.read_text()
    }
    assert {"26", "41", "42"} <= {*found}
    for cells in found.values():
        assert "torch.cuda.is_available()" in cells[-1][1] and "import mechlab" in cells[0][1]
        assert len(cells) < 8
    assert any("import named" in source for _, source in found["41"])
    assert gpu.names_in("a[0] = b\nfor c in d: pass\ndef f(x): return x + e") == (
        {"a", "c", "f"},
        {"a", "b", "d", "e"},
    )
