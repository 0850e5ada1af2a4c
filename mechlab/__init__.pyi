# The public names of mechlab, by room; `__init__.py` reads this list, and so do editors and type checkers.
# One technique, one file. Rooms stand from the bottom up: each knows only those above it.

# prompts, metrics, results, intervals
from mechlab.metrics import (
    kl_divergence as kl_divergence,
    log_prob as log_prob,
    logit_difference as logit_difference,
    probability as probability,
    recovered as recovered,
)
from mechlab.prompts import (
    PromptError as PromptError,
    PromptPair as PromptPair,
    prompt_pair as prompt_pair,
    single_token as single_token,
)
from mechlab.results import Scores as Scores, token_labels as token_labels
from mechlab.statistics import wilson as wilson
from mechlab.text import own_text as own_text
from mechlab import (
    metrics as metrics,
    prompts as prompts,
    reference as reference,
    results as results,
    statistics as statistics,
)

# loading: the model
from mechlab.loading import models as models
from mechlab.loading.checkpoints import ModelError as ModelError
from mechlab.loading.models import load as load, random_weights as random_weights, tiny as tiny

# runs: what there is to observe, how to change it without leaks and silent misses, and a run that is kept
from mechlab.runs import caching as caching, forward as forward, hooks as hooks
from mechlab.runs.caching import cache_bytes as cache_bytes, hook_map as hook_map, only as only
from mechlab.runs.engines import run_of as run_of
from mechlab.runs.hooks import (
    HookError as HookError,
    intervene as intervene,
    replace_head as replace_head,
    replace_with as replace_with,
)
from mechlab.runs.run import Put as Put
from mechlab.runs.sweeps import sweep as sweep

# attribution: which tokens, which layers and heads, which neurons
from mechlab import attribution as attribution
from mechlab.attribution.contrast import Contrast as Contrast, kept_and_away as kept_and_away
from mechlab.attribution.deletion import deletion_curves as deletion_curves
from mechlab.attribution.frozen import FrozenRun as FrozenRun
from mechlab.attribution.graphs import (
    AttributionGraph as AttributionGraph,
    attribution_graph as attribution_graph,
)
from mechlab.attribution.inputs import (
    INPUT_METHODS as INPUT_METHODS,
    gradient_norm as gradient_norm,
    gradient_x_difference as gradient_x_difference,
    gradient_x_input as gradient_x_input,
    integrated_gradients as integrated_gradients,
    kernel_shap as kernel_shap,
    lime as lime,
    occlusion as occlusion,
    shapley_values as shapley_values,
)
from mechlab.attribution.logits import direct_logit_attribution as direct_logit_attribution
from mechlab.attribution.masking import baseline_tokens as baseline_tokens, input_game as input_game
from mechlab.attribution.neurons import (
    ablate_neurons as ablate_neurons,
    comparative_neuron_scores as comparative_neuron_scores,
    query_neuron_scores as query_neuron_scores,
    value_neuron_scores as value_neuron_scores,
    value_tokens as value_tokens,
)
from mechlab.attribution.rollout import attention_rollout as attention_rollout

# discovery: what would it say if it stopped here, is it in there, who looks where, what breaks without it, ...
from mechlab import discovery as discovery
from mechlab.discovery.ablation import (
    ablate_together as ablate_together,
    ablation_effects as ablation_effects,
    ablation_hooks as ablation_hooks,
    direction_hooks as direction_hooks,
)
from mechlab.discovery.attention import (
    copying_scores as copying_scores,
    head_scores as head_scores,
    in_context_learning_score as in_context_learning_score,
    matching_scores as matching_scores,
    repeated_tokens as repeated_tokens,
)
from mechlab.discovery.ccs import contrast_consistent_search as contrast_consistent_search
from mechlab.discovery.lens import (
    lens_quality as lens_quality,
    lens_table as lens_table,
    logit_lens as logit_lens,
)
from mechlab.discovery.nulls import null_directions as null_directions
from mechlab.discovery.probing import (
    control_labels as control_labels,
    probe_layers as probe_layers,
    r_squared as r_squared,
    residual_streams as residual_streams,
)
from mechlab.discovery.tuned_lens import AffineLens as AffineLens

# ... how can there be more features than dimensions, can the mix be undone, is an explanation worth anything
from mechlab.discovery.explaining import Program as Program, explain as explain
from mechlab.discovery.features import (
    Activity as Activity,
    feature_activity as feature_activity,
    feature_hooks as feature_hooks,
    feature_page as feature_page,
)
from mechlab.discovery.predicates import read_predicates as read_predicates
from mechlab.discovery.sae import SparseAutoencoder as SparseAutoencoder, train_sae as train_sae
from mechlab.discovery.sae_evaluation import (
    splice as splice,
    splice_hooks as splice_hooks,
    token_activations as token_activations,
)
from mechlab.discovery.superposition import (
    feature_dimensionality as feature_dimensionality,
    plot_directions as plot_directions,
    train_toy_models as train_toy_models,
)

# intervention: which activations carry the answer; can it be turned like a knob, removed for good, rewritten
from mechlab import intervention as intervention
from mechlab.intervention.groups import (
    group_hooks as group_hooks,
    group_values as group_values,
    matched_groups as matched_groups,
    neuron_reads as neuron_reads,
    supernode as supernode,
)
from mechlab.intervention.patching import activation_patching as activation_patching
from mechlab.intervention.rome import (
    Fact as Fact,
    edit_fact as edit_fact,
    edit_scores as edit_scores,
    key_covariance as key_covariance,
    load_covariance as load_covariance,
)
from mechlab.intervention.steering import (
    Monitor as Monitor,
    SteeringVectors as SteeringVectors,
    contrast_vectors as contrast_vectors,
    steering_sweep as steering_sweep,
)
from mechlab.intervention.tracing import (
    causal_tracing as causal_tracing,
    subject_positions as subject_positions,
)
from mechlab.intervention.weights import (
    load_adapter as load_adapter,
    orthogonalize as orthogonalize,
    save_model as save_model,
    write_hooks as write_hooks,
)

# circuits: who reads whom, which few heads do the work, is that all of it; the IOI task
from mechlab import circuits as circuits
from mechlab.circuits import ioi as ioi
from mechlab.circuits.abstraction import (
    Alignment as Alignment,
    align as align,
    iia as iia,
    interchange as interchange,
)
from mechlab.circuits.attribution_patching import (
    attribution_patching as attribution_patching,
    edge_attribution as edge_attribution,
)
from mechlab.circuits.circuits import (
    Circuit as Circuit,
    CircuitError as CircuitError,
    Edge as Edge,
    by_node as by_node,
    overlap as overlap,
    roc as roc,
)
from mechlab.circuits.criteria import (
    completeness as completeness,
    direct_contributions as direct_contributions,
    faithfulness as faithfulness,
    greedy_gap as greedy_gap,
    minimality as minimality,
)
from mechlab.circuits.curves import (
    CircuitCurve as CircuitCurve,
    Counterfactuals as Counterfactuals,
    circuit_curve as circuit_curve,
)
from mechlab.circuits.ioi.prompts import IOIPrompts as IOIPrompts, ioi_prompts as ioi_prompts
from mechlab.circuits.ioi.roles import find_roles as find_roles
from mechlab.circuits.knockouts import CircuitRuns as CircuitRuns
from mechlab.circuits.paths import (
    edge_patching as edge_patching,
    path_patching as path_patching,
    path_patching_all as path_patching_all,
)
from mechlab.circuits.planted.models import (
    Planted as Planted,
    planted as planted,
    score_against as score_against,
)
from mechlab.circuits.planted.plan import Plan as Plan
from mechlab.circuits.planted.trained import (
    PlantedTrained as PlantedTrained,
    planted_trained as planted_trained,
)
from mechlab.circuits.pruning import prune as prune, prune_ranking as prune_ranking

# pictures: results as figures, as things to touch, and as code to read
from mechlab.pictures import graph as graph, plots as plots, widgets as widgets
from mechlab.pictures.dots import dots as dots
from mechlab.pictures.graph import circuit_explorer as circuit_explorer, circuit_picture as circuit_picture
from mechlab.pictures.patterns import attention_view as attention_view
from mechlab.pictures.plots import Picture as Picture
from mechlab.pictures.source import show_source as show_source
from mechlab.pictures.tracing.explorer import tracing_explorer as tracing_explorer
from mechlab.pictures.tracing.turning import Knob as Knob
