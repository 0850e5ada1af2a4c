"""mechlab: open up a language model, by doing it.

The listing of this package is the table of contents of the course: one technique, one file.
Importing it is cheap; torch comes with the first name you use.
"""

from importlib import import_module

__version__ = "0.1.0"

_PUBLIC = {
    # the model
    "load": "models", "tiny": "models", "random_weights": "models", "ModelError": "checkpoints",
    # prompts, metrics, results
    "prompt_pair": "prompts", "PromptPair": "prompts", "PromptError": "prompts", "single_token": "prompts",
    "logit_difference": "metrics", "log_prob": "metrics", "probability": "metrics", "kl_divergence": "metrics",
    "recovered": "metrics", "wilson": "metrics",
    "Scores": "results", "token_labels": "results", "own_text": "text",
    # observing: what there is, what it is called, what it costs
    "hook_map": "caching", "cache_bytes": "caching", "only": "caching",
    # intervening: hooks that cannot leak and cannot silently miss
    "intervene": "hooks", "replace_with": "hooks", "replace_head": "hooks", "HookError": "hooks",
    # a run that is kept: the rest of the model, from a changed layer and position on, exactly
    "Resume": "resume",
    # attribution: which tokens, ...
    "replaced": "attribution.masking", "input_game": "attribution.masking", "INPUT_METHODS": "attribution.inputs",
    "gradient_norm": "attribution.inputs", "gradient_x_input": "attribution.inputs",
    "integrated_gradients": "attribution.inputs", "occlusion": "attribution.inputs", "lime": "attribution.inputs",
    "kernel_shap": "attribution.inputs", "shapley_values": "attribution.inputs",
    "attention_rollout": "attribution.rollout", "deletion_curves": "attribution.deletion",
    # ... which layers and heads, which neurons
    "direct_logit_attribution": "attribution.logits",
    "value_tokens": "attribution.neurons", "value_neuron_scores": "attribution.neurons",
    "query_neuron_scores": "attribution.neurons", "comparative_neuron_scores": "attribution.neurons",
    "knock_out": "attribution.neurons",
    # discovery: what would it say if it stopped here, is it in there, who looks where, ...
    "logit_lens": "discovery.lens", "lens_table": "discovery.lens", "lens_quality": "discovery.lens",
    "TunedLens": "discovery.tuned_lens", "residual_streams": "discovery.probing", "probe_layers": "discovery.probing",
    "control_labels": "discovery.probing", "r_squared": "discovery.probing",
    "contrast_consistent_search": "discovery.ccs", "repeated_tokens": "discovery.attention",
    "head_scores": "discovery.attention", "copying_scores": "discovery.attention",
    "matching_scores": "discovery.attention", "in_context_learning_score": "discovery.attention",
    # ... what breaks without it, how can there be more features than dimensions, can the mix be undone
    "ablation_hooks": "discovery.ablation", "ablation_effects": "discovery.ablation",
    "ablate_together": "discovery.ablation", "direction_hooks": "discovery.ablation",
    "train_toy_models": "discovery.superposition", "feature_dimensionality": "discovery.superposition",
    "plot_directions": "discovery.superposition", "SparseAutoencoder": "discovery.sae", "train_sae": "discovery.sae",
    "splice": "discovery.sae_evaluation", "splice_hooks": "discovery.sae_evaluation",
    "token_activations": "discovery.sae_evaluation",
    "feature_activity": "discovery.features", "Activity": "discovery.features", "feature_page": "discovery.features", "feature_hooks": "discovery.features",
    # ... which few heads do the work, is that all of it
    "Circuit": "discovery.circuits", "Edge": "discovery.circuits", "CircuitError": "discovery.circuits",
    "overlap": "discovery.circuits", "roc": "discovery.circuits", "Knockouts": "discovery.knockouts",
    "faithfulness": "discovery.criteria", "completeness": "discovery.criteria", "greedy_gap": "discovery.criteria",
    "minimality": "discovery.criteria", "direct_contributions": "discovery.criteria",
    "attribution_patching": "discovery.attribution_patching", "edge_attribution": "discovery.attribution_patching",
    "prune": "discovery.pruning",
    # intervention: which activations carry the answer, who reads whom, ...
    "activation_patching": "intervention.patching", "path_patching": "intervention.paths",
    "causal_tracing": "intervention.tracing",
    "subject_positions": "intervention.tracing",
    # ... can it be turned like a knob, removed for good, rewritten
    "contrast_vectors": "intervention.steering", "steering_sweep": "intervention.steering",
    "SteeringVectors": "intervention.steering", "Monitor": "intervention.steering",
    "orthogonalize": "intervention.weights", "write_hooks": "intervention.weights",
    "load_adapter": "intervention.weights", "save_model": "intervention.weights",
    "Fact": "intervention.rome", "edit_fact": "intervention.rome", "key_covariance": "intervention.rome",
    "load_covariance": "intervention.rome", "edit_scores": "intervention.rome",
    # the IOI task: prompts, the paper's circuit, roles from evidence
    "ioi_prompts": "ioi.prompts", "IOIPrompts": "ioi.prompts", "find_roles": "ioi.roles",
    # the same experiment many times, here or on a cluster
    "sweep": "sweeps",
    # pictures
    "Picture": "plots", "attention_view": "patterns", "circuit_picture": "graph", "circuit_explorer": "graph",
    # reading the code
    "show_source": "source",
}  # fmt: skip
_MODULES = (
    "attribution",
    "caching",
    "discovery",
    "forward",
    "graph",
    "hooks",
    "intervention",
    "ioi",
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
