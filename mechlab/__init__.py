"""mechlab: open up a language model, by doing it.

The listing of this package is the table of contents of the course: one technique, one file.
Importing it is cheap; torch comes with the first name you use.
"""

from importlib import import_module

__version__ = "0.1.0"

_PUBLIC = {
    # the model
    "load": "models", "tiny": "models", "ModelError": "checkpoints",
    # prompts, metrics, results
    "prompt_pair": "prompts", "PromptPair": "prompts", "PromptError": "prompts", "single_token": "prompts",
    "logit_difference": "metrics", "log_prob": "metrics", "kl_divergence": "metrics", "recovered": "metrics",
    "Scores": "results", "token_labels": "results",
    # observing: what there is, what it is called, what it costs
    "hook_map": "caching", "cache_bytes": "caching", "only": "caching",
    # intervening: hooks that cannot leak and cannot silently miss
    "intervene": "hooks", "replace_with": "hooks", "replace_head": "hooks", "HookError": "hooks",
    # pictures
    "Picture": "plots",
    # reading the code
    "show_source": "source",
}  # fmt: skip
_MODULES = (
    "caching",
    "forward",
    "hooks",
    "metrics",
    "models",
    "plots",
    "prompts",
    "results",
    "widgets",
    "reference",
    "course",
)

__all__ = [*_PUBLIC, *_MODULES]


def __getattr__(name: str):
    if name in _PUBLIC:
        return getattr(import_module(f"mechlab.{_PUBLIC[name]}"), name)
    if name in _MODULES:
        return import_module(f"mechlab.{name}")
    raise AttributeError(f"mechlab has no {name!r}. Names: {', '.join(__all__)}.")


def __dir__() -> list[str]:
    return __all__
