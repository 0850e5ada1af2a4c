"""One command for a machine with a GPU: are its numbers right, how fast is it, what does it do with what does not fit?

    python -m benchmarks.gpu                      all parts, under ten minutes
    python -m benchmarks.gpu engines "bad input"  some parts
    python -m benchmarks.gpu --device cpu --quick the same on the CPU in place of the GPU, to try the command itself

The last line says PASS or FAIL, and so does the exit code. Without CUDA it says so and does nothing.
"""

import argparse
import ast
import builtins
import functools
import io
import os
import subprocess
import symtable
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import mechlab as ml
from benchmarks import bad_input, patching, techniques
from benchmarks.techniques import TECHNIQUES, Asked, apart, measured, plain_engine
from mechlab.loading.models import passes_known_answer_test
from mechlab.runs.fast import Fast

ROOT = Path(__file__).parents[1]
FEW = ("Llama", "Gemma 2")
LONGEST = 300  # seconds for the engines
# technique -> what is compared -> the largest difference, and in which model
Worst = dict[str, dict[str, tuple[float, str]]]
PRECISIONS = {torch.float64: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.5}  # and how far from float32
IN_EACH_PRECISION = ["activation_patching(z)", "activation_patching(resid_pre)", "attribution_patching"]
IN_EACH_PRECISION += ["CircuitRuns", "direct_logit_attribution(component)", "ablation(head)"]
IN_EACH_PRECISION += ["residual_streams", "head_scores(sink)", "logit_lens"]
SMALL = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9}
SMALL |= {"num_key_value_heads": 3, "vocab_size": 49152}  # SmolLM2's sizes


@dataclass
class Report:
    """What is run where, and what failed so far."""

    device: str
    quick: bool = False
    failed: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def line(self, what: str, shown: str, ok: bool) -> bool:
        """One row of a table."""
        print(f"  {what:44} {shown:72} {'PASS' if ok else 'FAIL'}", flush=True)
        if not ok:
            self.failed.append(what)
        return ok

    def note(self, text: str) -> None:
        """Something that was left out, told again at the end."""
        print(f"  {text}")
        self.notes.append(text)

    def wait(self) -> None:
        """Until the device has done what was asked; an error in it comes up here."""
        if self.on_cuda:
            torch.cuda.synchronize()

    @property
    def on_cuda(self) -> bool:
        return self.device.startswith("cuda")


def moved(model: Any, device: str) -> Any:
    """The model on a device, without TransformerLens' word about it."""
    with redirect_stdout(io.StringIO()):
        return model.to(device)


@functools.cache
def family(name: str, device: str, dtype: torch.dtype = torch.float32) -> Any:
    """A tiny model of a family; each device has its own."""
    from tests.architectures import bridge

    return moved(bridge(name, device="cpu", dtype=dtype), device)


@functools.cache
def smollm2(device: str) -> Any:
    """The model of the course; None where it is not on this machine."""
    try:
        return moved(ml.load(device="cpu", quiet=True), device)
    except ml.ModelError:
        return None


@functools.cache
def stand_in(device: str) -> Any:
    """Random weights of SmolLM2's sizes: as fast and as large as the model of the course."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    hf_model = AutoModelForCausalLM.from_config(LlamaConfig(**SMALL, tie_word_embeddings=True)).eval()
    given = {"hf_model": hf_model, "tokenizer": ml.models._tiny_tokenizer()}
    model = ml.models._boot("random SmolLM2", torch.float32, process=True, **given)
    model.cfg.model_name = "random weights of SmolLM2's sizes"
    return moved(model, device)


# --- known answers ---


def known_answers(report: Report) -> None:
    """The test that `ml.load` makes, and the logits of tiny models on the device and on the CPU."""
    for kind in ("gqa", "gpt2"):
        model, tokens = ml.tiny(kind), torch.arange(1, 17)[None]
        ok = passes(model, report.device)
        with torch.no_grad():
            wanted = model(tokens)
            found = moved(model, report.device)(tokens.to(report.device)).cpu()
        off = apart(found.double().flatten(), wanted.double().flatten())
        report.line(f"known answers, tiny {kind}", f"{off:.1e} from the CPU (limit 1e-04)", ok and off < 1e-4)
    model = smollm2(report.device)
    if model is None:
        return report.note("SmolLM2 is not on this machine and could not be fetched: left out.")
    report.line("known answers, SmolLM2", "log-probabilities within 0.01", passes(model, report.device))


def passes(model: Any, device: str) -> bool:
    """The known-answer test of `ml.load`, without TransformerLens' word about where it moves a model."""
    with redirect_stdout(io.StringIO()):
        return passes_known_answer_test(model, device)


# --- engines ---


def engines(report: Report) -> None:
    """Every technique on the device beside the CPU, and the fast engine beside the plain one."""
    from tests.architectures import FAMILIES

    start = time.perf_counter()
    models = [] if report.quick else [smollm2("cpu"), smollm2(report.device)]
    if None in models:
        report.note("SmolLM2 is not on this machine: the engines were compared on tiny models only.")
    elif models:
        worst: Worst = {name: {} for name in TECHNIQUES}
        pair = [techniques.ioi_asked(model) for model in models]
        compare(pair, worst, "SmolLM2", until=start + LONGEST / 2)
        table(report, "SmolLM2", worst)
    worst, refused = {name: {} for name in TECHNIQUES}, Counter()
    for name in FEW if report.quick else FAMILIES:
        if time.perf_counter() - start > LONGEST:
            report.note(f"Families left out, for want of time: {len(FAMILIES) - len(refused)}.")
            break
        pair = [techniques.random_asked(family(name, where)) for where in ("cpu", report.device)]
        refused[name] = compare(pair, worst, name)
    table(report, f"{len(refused)} tiny families", worst)
    print(f"  refused on both: {refused.total()} (neurons of a mixture of experts and the like)")


def compare(pair: Sequence[Asked], worst: Worst, name: str, *, until: float = float("inf")) -> int:
    """The largest differences of each technique, joined to those so far; how many are refused on both.

    until: when to stop, in seconds of `time.perf_counter`
    """
    refused = 0
    for which, each in TECHNIQUES.items():
        if time.perf_counter() > until:
            break
        wanted, found = (tried(asked, which) for asked in pair)
        pairs = {"device / CPU": (found, wanted)}
        if each.runs:
            with plain_engine():
                pairs["fast / plain"] = (found, tried(pair[1], which))
        refused += isinstance(wanted, str)
        for kind, (one, two) in pairs.items():
            both_refused = isinstance(one, str) and isinstance(two, str)
            off = 0.0 if both_refused else float("inf")
            if isinstance(one, Tensor) and isinstance(two, Tensor):
                off = apart(one, two)
            elif not both_refused:
                told = next(each for each in (one, two) if not isinstance(each, Tensor))
                print(f"  {name}, {which}: {str(told).strip()[:300]}")
            worst[which][kind] = max(worst[which].get(kind, (0.0, name)), (off, name))
    return refused


def tried(asked: Asked, which: str) -> Tensor | str | Exception:
    """The numbers of a technique, the sentence with which it is refused, or what broke it."""
    try:
        with redirect_stderr(io.StringIO()):  # progress bars
            return measured(asked, which)
    except Exception as error:
        return error


def table(report: Report, title: str, worst: Worst) -> None:
    """The largest difference of each technique, as a share of its largest number, and in which family."""
    print(f"\n  {title}: largest differences, as a share of the largest number")
    late = [name for name, kinds in worst.items() if not kinds]
    if late:
        report.note(f"{title}, not reached in time: {', '.join(late)}.")
    for name, kinds in worst.items():
        if name in late:
            continue
        limit = TECHNIQUES[name].limit
        shown = ", ".join(f"{kind} {off:.0e} ({where})" for kind, (off, where) in kinds.items())
        report.line(name, f"{shown}; limit {limit:.0e}", all(off < limit for off, _ in kinds.values()))


# --- precisions ---


def precisions(report: Report) -> None:
    """What the device says in other precisions, beside float32 on the CPU."""
    for name in FEW[:1] if report.quick else ("Llama", "GPT-2", "Gemma 2"):
        plain = techniques.random_asked(family(name, "cpu"))
        for dtype, limit in PRECISIONS.items():
            asked = techniques.random_asked(family(name, report.device, dtype))
            found = {each: (tried(asked, each), tried(plain, each)) for each in IN_EACH_PRECISION}
            told = [f"{each}: {one}" for each, (one, _) in found.items() if not isinstance(one, Tensor)]
            off = max((apart(*both), each) for each, both in found.items()) if not told else (1e9, told[0])
            title = f"{name} in {str(dtype).removeprefix('torch.')}"
            report.line(title, f"{off[0]:.0e}, {off[1][:40]}; limit {limit:.0e}", off[0] < limit)
        asked = techniques.random_asked(family(name, report.device))
        with redirect_stdout(io.StringIO()):
            exact, short = (
                techniques.numbers(ml.activation_patching(*asked.given, "z", normalized=False, dtype=dtype))
                for dtype in (None, torch.bfloat16)
            )
        report.line(
            f"{name}, products in bfloat16 (limit 0.1)",
            f"{apart(short, exact):.0e}",
            apart(short, exact) < 0.1,
        )


# --- sweeps ---


def sweeps(report: Report) -> None:
    """Every head patched, 16 prompts, beside `transformer_lens.patching` on the same device: seconds and memory."""
    model = None if report.quick else smollm2(report.device)
    if model is not None:
        asked = patching.prompts(model)
    else:
        model = family("Llama", report.device) if report.quick else stand_in(report.device)
        report.note(f"The sweeps are of {model.cfg.model_name}, not of SmolLM2.")
        chance = torch.Generator().manual_seed(0)
        clean, corrupted = torch.randint(5, 390, (2, 16, 15), generator=chance).to(report.device)
        corrupted[:, :10] = clean[:, :10]
        asked = clean, corrupted, ml.logit_difference(50, 51)
    for name, positions in (("all positions", None), ("the last position", [-1])):
        sweep_beside(report, model, asked, name, positions)


def sweep_beside(
    report: Report, model: Any, asked: tuple[Tensor, Tensor, Any], name: str, positions: list[int] | None
) -> None:
    """One sweep, ours and TransformerLens'."""
    clean, corrupted, metric = asked
    end, given = clean.shape[1] - 1 if positions else None, {"positions": positions, "normalized": False}
    ours = lambda: ml.activation_patching(model, corrupted, clean, metric, "z", **given).values
    theirs = lambda: patching.with_transformer_lens(model, clean, corrupted, metric, end)
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        ours()  # what is loaded and tried at the first call counts for neither
        seconds, peak, fast = timed(report, ours)
        slow_seconds, slow_peak, slow = timed(report, theirs)
    off = apart(techniques.numbers(fast), techniques.numbers(slow))
    shown = f"{seconds:.2f} s, {peak:.2f} GB; TransformerLens {slow_seconds:.2f} s, {slow_peak:.2f} GB"
    ok = off < 1e-3 and (report.quick or slow_seconds > seconds)
    report.line(f"head sweep, {name}: ratio {slow_seconds / seconds:.1f}", f"{shown}; off by {off:.0e}", ok)


def timed(report: Report, call: Callable[[], Any]) -> tuple[float, float, Any]:
    """Wall seconds, the peak of memory on the device in GB above what was there, and the result."""
    report.wait()
    before = torch.cuda.memory_allocated() if report.on_cuda else 0
    if report.on_cuda:
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    found = call()
    report.wait()
    seconds = time.perf_counter() - start
    return seconds, (torch.cuda.max_memory_allocated() - before) / 1e9 if report.on_cuda else 0.0, found


# --- memory ---


def memory(report: Report) -> None:
    """Batches that are made too large on purpose are split, and nothing is left behind."""
    asked = techniques.random_asked(family("Llama", report.device))
    tokens = asked.base.repeat(128 if report.on_cuda else 8, 1)
    run, device = ml.run_of(asked.model, tokens), report.device
    places = torch.eye(tokens.shape[1], dtype=torch.bool, device=device).repeat(8, 1)[:, None]
    put = ml.Put("resid_pre", 0, torch.zeros(1, 1, 1, asked.model.cfg.d_model, device=device), places)
    metric = ml.logit_difference(50, 51)
    wanted = run.edited(metric, [put])
    for name, scarce in (("told", told_of_too_little), ("real", really_too_little)):
        if name == "real" and not report.on_cuda:
            report.note("No memory of a GPU to run out of: only a lack that is told was tried.")
            continue
        with scarce(report) as tried:
            found = run.edited(metric, [put])
        off = apart(techniques.numbers(found), techniques.numbers(wanted))
        shown = (
            f"{len(tried)} batches tried, the largest {max(tried, default=0)} of 72 copies, off by {off:.0e}"
        )
        report.line(f"a batch too large, a lack that is {name}", shown, off < 1e-4 and len(tried) > 1)
    try:
        with told_of_too_little(report, most=0):
            run.edited(metric, [put])
        report.line("a single copy that does not fit", "no error", False)
    except MemoryError as error:
        report.line("a single copy that does not fit", str(error)[:57], True)


@contextmanager
def batches_of_all() -> Iterator[list[int]]:
    """The fast engine takes all copies at once inside; yields how many it tried each time."""
    run_on, batch, sizes = Fast._run_on, Fast._batch, []

    def counted(self, start, first, edits=(), copies=slice(0, 1), **given):
        sizes.append(copies.stop - copies.start)
        return run_on(self, start, first, edits, copies, **given)

    Fast._run_on, Fast._batch = counted, lambda *_: 10**9
    try:
        yield sizes
    finally:
        Fast._run_on, Fast._batch = run_on, batch


@contextmanager
def told_of_too_little(report: Report, most: int = 20) -> Iterator[list[int]]:
    """More than so many copies at once raise what torch raises."""
    with batches_of_all() as sizes:
        counted = Fast._run_on

        def scarce(self, start, first, edits=(), copies=slice(0, 1), **given):
            if copies.stop - copies.start > most:
                sizes.append(copies.stop - copies.start)
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate more than there is.")
            return counted(self, start, first, edits, copies, **given)

        Fast._run_on = scarce
        yield sizes


@contextmanager
def really_too_little(report: Report) -> Iterator[list[int]]:
    """The process may have as much memory as it holds now, and 64 MB more: too little for all copies."""
    torch.cuda.empty_cache()
    whole = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 64e6) / whole)
    try:
        with batches_of_all() as sizes:
            yield sizes
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


# --- cells of the course ---


def course(report: Report) -> None:
    """The cells for a GPU of the notebooks, each after the cells whose names it needs."""
    for path in sorted((ROOT / "course").glob("*/notebook.py")):
        if 'kind="gpu"' not in path.read_text(encoding="utf-8"):
            continue
        if report.quick:
            report.note(f"{path.parent.name}: its cell for a GPU was not run.")
            continue
        cells = needed_cells(path)
        start = time.perf_counter()
        ok, said = run_cells(path, [source for _, source in cells])
        print(
            f"  {path.parent.name}: cells {[n for n, _ in cells]} in {time.perf_counter() - start:.0f} s\n{said}"
        )
        no_network = not ok and any(
            word in said for word in ("ModelError", "LocalEntryNotFound", "ConnectError")
        )
        if no_network:
            report.note(f"{path.parent.name}: what its cell fetches could not be fetched.")
        else:
            report.line(f"the cell for a GPU of {path.parent.name}", "", ok)


def needed_cells(path: Path) -> list[tuple[int, str]]:
    """The cell for a GPU, and before it those that make the names it uses, and those they use; with their numbers."""
    from mechlab_course.build.notebooks import setup_cell
    from mechlab_course.build.sources import read

    cells = [(n, cell) for n, cell in enumerate(read(path)) if cell.type == "code" and cell.kind != "wrong"]
    last = max(place for place, (_, cell) in enumerate(cells) if cell.kind == "gpu")
    kept, wanted = [], set()
    for place in range(last, -1, -1):
        number, cell = cells[place]
        source = setup_cell() if cell.kind == "setup" else cell.solved()
        makes, uses = names_in(source)
        if place == last or cell.kind == "setup" or makes & wanted:
            kept.append((number, source))
            own = makes if place == last else set()
            wanted = (wanted - makes) | (uses - own - {*dir(builtins)})
    return kept[::-1]


def names_in(source: str) -> tuple[set[str], set[str]]:
    """Which names of its own some code makes or changes, and which it uses."""
    whole = symtable.symtable(source, "cell", "exec")
    makes = {each.get_name() for each in whole.get_symbols() if each.is_assigned() or each.is_imported()}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
            makes |= {part.id for part in ast.walk(node.value) if isinstance(part, ast.Name)}
    return makes, set(used_in(whole))


def used_in(scope: symtable.SymbolTable) -> Iterator[str]:
    """The names that some code, or a function in it, looks for outside of functions."""
    for each in scope.get_symbols():
        if each.is_referenced() and (scope.get_type() == "module" or each.is_global()):
            yield each.get_name()
    for inner in scope.get_children():
        yield from used_in(inner)


def run_cells(path: Path, sources: Sequence[str]) -> tuple[bool, str]:
    """Cells one after the other in a process of their own; whether they ran, and the last of what they said."""
    code = "\n\n".join(sources)
    given = {"cwd": path.parent, "capture_output": True, "text": True, "timeout": 150}
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    with tempfile.TemporaryDirectory() as home:
        env = os.environ | {"PYTHONPATH": paths, "MECHLAB_HOME": home}
        try:
            done = subprocess.run([sys.executable, "-c", code], env=env, **given)
        except subprocess.TimeoutExpired:
            return False, "it ran for more than 150 seconds"
    return done.returncode == 0, (done.stdout[-1500:] + ("" if done.returncode == 0 else done.stderr[-1500:]))


# --- bad input ---


def refusals(report: Report) -> None:
    """What is not there is refused with a ValueError, and the device works on."""
    for kind in ("gqa",) if report.quick else ("gqa", "gpt2"):
        asked = techniques.random_asked(moved(ml.tiny(kind), report.device))
        with torch.no_grad():
            before = asked.model(asked.base.to(report.device)).cpu()
        count = 0
        for name, call in bad_input.cases(asked):
            outcome = outcome_of(report, call)
            count += outcome is None
            if (
                outcome is not None
                and not report.line(f"{kind}: {name}", outcome[:57], False)
                and "lost" in outcome
            ):
                return
        with torch.no_grad():
            same = torch.equal(before, asked.model(asked.base.to(report.device)).cpu())
        report.line(f"bad input, {kind}", f"{count} refused; the device works on as before: {same}", same)


def outcome_of(report: Report, call: Callable[[], Any]) -> str | None:
    """None where a call is refused as it should be; else what happened."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            call()
            told = "no error"
        except (ValueError, ml.HookError):
            told = None
        except Exception as error:
            told = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    try:
        report.wait()
    except RuntimeError as error:
        return f"the device is lost ({str(error).partition(chr(10))[0]})"
    return told


PARTS: dict[str, Callable[[Report], None]] = {
    "known answers": known_answers,
    "engines": engines,
    "precisions": precisions,
    "sweeps": sweeps,
    "memory": memory,
    "course": course,
    "bad input": refusals,  # last: what it may do to a device cannot be undone
}


def main() -> bool:
    """All parts, as one of the benchmarks; True where nothing failed, or there is no GPU."""
    return run([]) == 0


def run(given: Sequence[str]) -> int:
    """The command; its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("parts", nargs="*", help=", ".join(PARTS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="fewer models and sizes")
    asked = parser.parse_args(given)
    unknown = {*asked.parts} - {*PARTS}
    if unknown:
        print(f"There is no part {sorted(unknown)}. Parts: {', '.join(PARTS)}.")
        return 2
    if asked.device.startswith("cuda") and not torch.cuda.is_available():
        print(
            "This machine has no CUDA, so there is no GPU to measure (`--device cpu` tries the command on the CPU)."
        )
        return 0
    report, start = Report(asked.device, asked.quick), time.perf_counter()
    name = torch.cuda.get_device_name() if report.on_cuda else "the CPU in place of a GPU"
    print(f"\nGPU: {name}, torch {torch.__version__}")
    for part in asked.parts or PARTS:
        began = time.perf_counter()
        print(f"\n{part}")
        try:
            with torch.random.fork_rng(devices=[]):
                PARTS[part](report)
        except Exception as error:  # the other parts are run all the same
            traceback.print_exc()
            report.line(part, f"{type(error).__name__}: {error}"[:72].partition("\n")[0], False)
        print(f"  {part}: {time.perf_counter() - began:.0f} s", flush=True)
    seconds = time.perf_counter() - start
    verdict = f"FAIL ({len(report.failed)}): {'; '.join(report.failed[:5])}" if report.failed else "PASS"
    left_out = f" Left out: {' '.join(report.notes)}" if report.notes else ""
    print(f"\n{verdict} in {seconds:.0f} s.{left_out}")
    return int(bool(report.failed))


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
