"""Load a language model as a TransformerLens `TransformerBridge`, ready for every experiment here.

`load()` opens SmolLM2-135M-Instruct, the model of the course; it needs the network once, the first time.
`load("gpt2")`, any Hugging Face Hub id and any local folder in Hugging Face format work too. `tiny()` builds
small random models for tests and checks.
"""

import copy
import io
import os
import sys
import time
from contextlib import nullcontext, redirect_stdout
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mechlab.loading import checkpoints
from mechlab.loading.checkpoints import ModelError, Say
from mechlab.loading.conversion import no_progress_bars
from mechlab.loading.limits import limits_of
from mechlab.waiting import meanwhile

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerFast

DEFAULT = "smollm2"
KNOWN_PROMPT = "When John and Mary went to the store, John gave a drink to"
KNOWN_LOG_PROBS = {" Mary": -0.1054, " John": -5.6817}  # of the 4-bit file, in float32 on a CPU


def load(
    name: str | os.PathLike | None = None,
    *,
    device: str | None = None,
    dtype: torch.dtype = torch.float32,
    fold: bool = True,
    quiet: bool = False,
) -> "TransformerBridge":
    """Return a `TransformerBridge` in compatibility mode and `eval()`, and print one line about it.

    Its weights are frozen: gradients reach activations, and no loss makes those of 135 million weights by the
    way. `model.requires_grad_()` lets them be trained.

    name: "smollm2" (the default, or what `MECHLAB_MODEL` says), "gpt2", a Hub id, or a local folder.
    device: "cpu", "cuda", "mps"; by default CUDA when there is one, else CPU. A device other than the CPU
        must first pass a known-answer test; if it fails, the model stays on the CPU and a line says so.
    fold: fold the norm weights into the next matrices (notebook 02 shows what that changes). False leaves
        them where they were.

    Raises `ModelError` with the remedy when the model cannot be found or fetched.
    """
    say = (lambda text: None) if quiet else print
    name = str(name or os.environ.get("MECHLAB_MODEL") or DEFAULT)
    started = time.monotonic()
    _check_transformer_lens()
    folder = checkpoints.prepare("folded" if fold else "raw", say=say) if name == DEFAULT else None
    first = "" if "transformer_lens" in sys.modules else " (about 10 s)"
    with nullcontext() if quiet else meanwhile(f"loading {name}{first} ..."):
        if folder:
            model = _boot(str(folder), dtype, process=False)
        else:
            model = _boot(_find(name), dtype, process=fold)
            _check_that_it_runs(model, name)
        model.cfg.model_name = Path(name).name if Path(name).is_dir() else name
        model = _to_device(model, device, say)
    weights = sum(p.numel() for p in model.original_model.parameters())
    if name == DEFAULT and fold:
        weights -= model.W_U.numel()  # folding makes a second copy of the tied embedding
    say(
        f"{model.cfg.model_name}: {model.cfg.n_layers} layers × {model.cfg.n_heads} heads, "
        f"{weights / 1e6:.0f} M parameters, {str(dtype).removeprefix('torch.')} on {model.cfg.device}, "
        f"norms {'folded' if fold else 'not folded'} ({time.monotonic() - started:.1f} s)"
    )
    limits = [] if quiet else limits_of(model)
    if limits:
        say(f"Limits of this model: {'; '.join(limits)}. docs/models.md lists what works on which.")
    return model


@cache
def _tiny_tokenizer() -> "PreTrainedTokenizerFast":
    """A byte-level BPE tokenizer trained on four sentences, so that names and places are one token."""
    from tokenizers import ByteLevelBPETokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    names = " John Mary Tom Anna Paul Lisa Mark Sarah"
    text = [f"When{names} went to the store, John gave a drink to the capital of France is Paris."] * 4
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(text, vocab_size=400, show_progress=False, special_tokens=["<|bos|>"])
    bpe.post_processor = TemplateProcessing("<|bos|> $A", special_tokens=[("<|bos|>", 0)])
    marks = dict.fromkeys(("bos_token", "eos_token", "pad_token"), "<|bos|>")
    known = {"name_or_path": "tiny", "add_bos_token": True}  # TransformerLens asks for both
    return PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, **marks, **known)


def wrap(hf_model: Any, tokenizer: Any, *, name: str) -> "TransformerBridge":
    """A bridge from a Hugging Face model that was built or trained by hand, norms folded, on the CPU.

    name: what to call it
    """
    model = _boot(name, torch.float32, process=True, hf_model=hf_model, tokenizer=tokenizer)
    model.cfg.model_name = name
    return model


def tiny(kind: str = "gqa", *, seed: int = 0, layers: int = 3) -> "TransformerBridge":
    """A random model of a few layers in under a second: "gpt2", or the Llama-like "gqa".

    "gqa" has 4 query heads on 2 key heads. Its predictions mean nothing, but every identity that holds for a
    transformer holds for it.
    """
    from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

    size: dict[str, Any] = {"vocab_size": 400, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    if kind == "gpt2":
        config = GPT2Config(n_layer=layers, n_head=4, n_embd=32, n_positions=64, **size)
    elif kind == "gqa":
        heads: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2}
        size["num_hidden_layers"] = layers
        widths: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "max_position_embeddings": 64}
        # Nobody's default, or a wrong theta would go unnoticed.
        rotary = {"rope_type": "default", "rope_theta": 500.0}
        config = LlamaConfig(tie_word_embeddings=True, rope_parameters=rotary, **heads, **widths, **size)
    else:
        raise ValueError(f'There is no tiny model "{kind}". Choose "gpt2" or "gqa".')
    config.initializer_range = 0.2  # larger than usual, so that attention is not flat
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay as they were
        torch.default_generator.manual_seed(seed)  # the CPU's own: a GPU's numbers stay
        hf_model = AutoModelForCausalLM.from_config(config)
        for parameter in hf_model.parameters():  # norms and biases too, or folding would go untested
            parameter.data += 0.1 * torch.randn_like(parameter)
        return wrap(hf_model, _tiny_tokenizer(), name=f"tiny-{kind}")


def random_weights(model: "TransformerBridge", *, seed: int = 0) -> "TransformerBridge":
    """The same architecture with weights drawn anew: what a finding must beat to be about training."""
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # the CPU's own: a GPU's numbers stay
        config = copy.deepcopy(model.original_model.config)  # the model's own stays as it is
        hf_model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).to(model.cfg.dtype)
        given = {"hf_model": hf_model, "tokenizer": model.tokenizer}
        folded = last_norm_adds(model) is None
        # Fresh RMS norms multiply by 1: nothing to fold but the unembedding's mean, and 2 GB less on the way.
        fresh = folded and str(model.cfg.normalization_type).startswith("RMS")
        drawn = _boot(model.cfg.model_name, model.cfg.dtype, process=folded and not fresh, **given)
        if fresh:
            unembed = drawn.unembed.original_component
            centred = unembed.weight.detach() - unembed.weight.detach().mean(0)
            unembed.weight = torch.nn.Parameter(centred, requires_grad=False)
    drawn.cfg.model_name = f"random {model.cfg.model_name}"
    return _moved(drawn, model.cfg.device or "cpu")


def require_folded(model: "TransformerBridge") -> None:
    """Raise `ValueError` unless the last norm is folded into the weights.

    Parts of the stream can be read through the unembedding only then. What counts is what the norm does:
    families store the same thing differently (Gemma keeps w and uses 1 + w).
    """
    adds = last_norm_adds(model)
    if adds is None:
        return
    kind = type(model.original_model).__name__
    if getattr(model, "_weights_processed", False):
        remedy = f"TransformerLens does not fold the norms of {kind}, however it is loaded."
    else:
        remedy = "Load it with fold=True, which is the default."
        if not getattr(model.adapter, "supports_fold_ln", True):
            remedy += f" (It may be that TransformerLens does not fold {kind}.)"
    raise ValueError(
        f"The last norm of this model is not folded into the weights (it has {adds}), so parts of "
        f"the residual stream cannot be read through W_U. {remedy}"
    )


@torch.no_grad()
def last_norm_adds(model: "TransformerBridge") -> str | None:
    """What the last norm does beyond dividing by the length (and taking off the mean): None if nothing.

    Found by giving it a vector and its negative.
    """
    last = getattr(model, "ln_final", None)
    if last is None:  # the blocks of this family norm the stream itself
        return "none at the end: its blocks norm the stream itself"
    norm = getattr(last, "original_component", None) or last
    chance = torch.randn(1, 1, model.cfg.d_model, generator=torch.Generator().manual_seed(0))
    x = chance.to(device=model.W_E.device, dtype=model.W_E.dtype) * 3
    there, back, shifted = (norm(each).cpu().double() for each in (x, -x, x + 1))
    precision = 8 * torch.finfo(model.W_E.dtype).eps
    if (there + back).abs().max() > max(1e-4, precision):
        return "a bias of its own"
    centred = (there - shifted).abs().max() < max(1e-2, 4 * precision)
    x = x.cpu().double()
    plain = x - (x.mean() if centred else 0)
    plain = plain / plain.pow(2).mean().sqrt()
    return (
        None
        if torch.allclose(there, plain, atol=max(1e-4, precision), rtol=precision)
        else "a weight of its own"
    )


def passes_known_answer_test(model: "TransformerBridge", device: str) -> bool:
    """One fixed forward pass on `device`, against stored values (SmolLM2) or the CPU (a tiny model).

    Some devices return wrong numbers without an error; a learner could never tell.
    """
    if model.cfg.model_name == DEFAULT and model.cfg.dtype == torch.float32:
        tokens = model.to_tokens(KNOWN_PROMPT)
        with torch.no_grad():
            log_probs = model(tokens.to(device))[0, -1].log_softmax(-1).cpu()
        found = [log_probs[model.to_single_token(word)].item() for word in KNOWN_LOG_PROBS]
        return bool(torch.tensor(found).allclose(torch.tensor([*KNOWN_LOG_PROBS.values()]), atol=0.01))
    probe = tiny("gqa")
    tokens = torch.arange(1, 17)[None]
    with torch.no_grad():
        expected = probe(tokens)
        found = _moved(probe, device)(tokens.to(device)).cpu()
    return bool(expected.allclose(found, atol=1e-3))


def _to_device(model: "TransformerBridge", device: str | None, say: Say) -> "TransformerBridge":
    wanted = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if wanted == "cpu":
        return model
    try:
        model = _moved(model, wanted)
        healthy = passes_known_answer_test(model, wanted)
        reason = "gave wrong numbers in the known-answer test"
    except (RuntimeError, AssertionError) as error:
        healthy, reason = False, f"could not be used ({str(error).splitlines()[0]})"
    if healthy:
        return model
    say(f"The device {wanted} {reason}. Using the CPU instead: slower, and right.")
    return _moved(model, "cpu")


def _moved(model: "TransformerBridge", device: str | torch.device) -> "TransformerBridge":
    with redirect_stdout(io.StringIO()):  # TransformerLens tells where it moves a model to
        return model.to(device)


def _boot(source: str, dtype: torch.dtype, process: bool, **given) -> "TransformerBridge":
    from transformer_lens.model_bridge import TransformerBridge

    with no_progress_bars():
        model = TransformerBridge.boot_transformers(source, device="cpu", dtype=dtype, **given)
        model.enable_compatibility_mode(disable_warnings=True, no_processing=not process)
    return model.eval().requires_grad_(False)


def _find(name: str) -> str:
    """A local folder as it is; a Hub id from the local Hub cache, or from the Hub when it can be reached."""
    if Path(name).is_dir():
        if not (Path(name) / "config.json").exists():
            raise ModelError(
                f"{name} is a folder without a config.json. `load` needs a folder in Hugging Face format: "
                "config.json, the tokenizer's files and the weights (*.safetensors)."
            )
        return str(Path(name).resolve())
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"There is no folder {name}.")
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
    try:
        return snapshot_download(name, allow_patterns=wanted, local_files_only=True)
    except Exception:  # not in the local cache
        pass
    try:
        with no_progress_bars():
            return snapshot_download(name, allow_patterns=wanted)
    except Exception as error:
        raise ModelError(
            f'"{name}" is not on this machine and the Hugging Face Hub did not deliver it '
            f"({type(error).__name__}). Connect to the network and check the name; or copy the model's "
            'folder from another machine and call `load("path/to/folder")`. '
            '`load("smollm2")` needs no network once it is set up.'
        ) from None


@torch.no_grad()
def _check_that_it_runs(model: "TransformerBridge", name: str) -> None:
    """TransformerLens opens some models that it cannot run."""
    try:
        logits = model(torch.ones(1, 2, dtype=torch.long))
    except Exception as error:
        raise ModelError(
            f"TransformerLens opens {name} and cannot run it ({type(error).__name__}: "
            f"{str(error).splitlines()[0][:160]}), so nothing here can."
        ) from error
    if not torch.isfinite(logits).all():
        raise ModelError(
            f"{name} gives NaN or infinite logits in {str(model.W_E.dtype).removeprefix('torch.')}. Load it "
            "with dtype=torch.float32; if that gives the same, its weights are damaged."
        )


def _check_transformer_lens() -> None:
    from importlib.metadata import version

    found = version("transformer-lens")
    if not found.startswith("4."):
        raise ModelError(
            f"mechlab needs TransformerLens 4, and {found} is installed. "
            'Run `pip install "transformer-lens>=4.3,<4.4"` and restart the kernel.'
        )
