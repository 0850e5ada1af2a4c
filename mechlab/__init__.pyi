# The public names of mechlab, by room; `__init__.py` reads this list, and so do editors and type checkers.
# One technique, one file. Rooms stand from the bottom up: each knows only those above it.

# attribution: which tokens, which layers and heads, which neurons
from mechlab import attribution as attribution

# circuits: who reads whom, which few heads do the work, is that all of it; the IOI task
from mechlab import circuits as circuits

# discovery: what would it say if it stopped here, is it in there, who looks where, what breaks without it, ...
from mechlab import discovery as discovery

# intervention: which activations carry the answer; can it be turned like a knob, removed for good, rewritten
from mechlab import intervention as intervention
from mechlab import metrics as metrics
from mechlab import prompts as prompts
from mechlab import reference as reference
from mechlab import results as results
from mechlab.attribution.deletion import deletion_curves as deletion_curves
from mechlab.attribution.inputs import INPUT_METHODS as INPUT_METHODS
from mechlab.attribution.inputs import gradient_norm as gradient_norm
from mechlab.attribution.inputs import gradient_x_input as gradient_x_input
from mechlab.attribution.inputs import integrated_gradients as integrated_gradients
from mechlab.attribution.inputs import kernel_shap as kernel_shap
from mechlab.attribution.inputs import lime as lime
from mechlab.attribution.inputs import occlusion as occlusion
from mechlab.attribution.inputs import shapley_values as shapley_values
from mechlab.attribution.logits import direct_logit_attribution as direct_logit_attribution
from mechlab.attribution.masking import input_game as input_game
from mechlab.attribution.masking import replaced as replaced
from mechlab.attribution.neurons import comparative_neuron_scores as comparative_neuron_scores
from mechlab.attribution.neurons import knock_out as knock_out
from mechlab.attribution.neurons import query_neuron_scores as query_neuron_scores
from mechlab.attribution.neurons import value_neuron_scores as value_neuron_scores
from mechlab.attribution.neurons import value_tokens as value_tokens
from mechlab.attribution.rollout import attention_rollout as attention_rollout
from mechlab.circuits import ioi as ioi
from mechlab.circuits.attribution_patching import attribution_patching as attribution_patching
from mechlab.circuits.attribution_patching import edge_attribution as edge_attribution
from mechlab.circuits.circuits import Circuit as Circuit
from mechlab.circuits.circuits import CircuitError as CircuitError
from mechlab.circuits.circuits import Edge as Edge
from mechlab.circuits.circuits import overlap as overlap
from mechlab.circuits.circuits import roc as roc
from mechlab.circuits.criteria import completeness as completeness
from mechlab.circuits.criteria import direct_contributions as direct_contributions
from mechlab.circuits.criteria import faithfulness as faithfulness
from mechlab.circuits.criteria import greedy_gap as greedy_gap
from mechlab.circuits.criteria import minimality as minimality
from mechlab.circuits.ioi.prompts import IOIPrompts as IOIPrompts
from mechlab.circuits.ioi.prompts import ioi_prompts as ioi_prompts
from mechlab.circuits.ioi.roles import find_roles as find_roles
from mechlab.circuits.knockouts import Knockouts as Knockouts
from mechlab.circuits.paths import path_patching as path_patching
from mechlab.circuits.pruning import prune as prune
from mechlab.discovery.ablation import ablate_together as ablate_together
from mechlab.discovery.ablation import ablation_effects as ablation_effects
from mechlab.discovery.ablation import ablation_hooks as ablation_hooks
from mechlab.discovery.ablation import direction_hooks as direction_hooks
from mechlab.discovery.attention import copying_scores as copying_scores
from mechlab.discovery.attention import head_scores as head_scores
from mechlab.discovery.attention import in_context_learning_score as in_context_learning_score
from mechlab.discovery.attention import matching_scores as matching_scores
from mechlab.discovery.attention import repeated_tokens as repeated_tokens
from mechlab.discovery.ccs import contrast_consistent_search as contrast_consistent_search

# ... how can there be more features than dimensions, can the mix be undone
from mechlab.discovery.features import Activity as Activity
from mechlab.discovery.features import feature_activity as feature_activity
from mechlab.discovery.features import feature_hooks as feature_hooks
from mechlab.discovery.features import feature_page as feature_page
from mechlab.discovery.lens import lens_quality as lens_quality
from mechlab.discovery.lens import lens_table as lens_table
from mechlab.discovery.lens import logit_lens as logit_lens
from mechlab.discovery.probing import control_labels as control_labels
from mechlab.discovery.probing import probe_layers as probe_layers
from mechlab.discovery.probing import r_squared as r_squared
from mechlab.discovery.probing import residual_streams as residual_streams
from mechlab.discovery.sae import SparseAutoencoder as SparseAutoencoder
from mechlab.discovery.sae import train_sae as train_sae
from mechlab.discovery.sae_evaluation import splice as splice
from mechlab.discovery.sae_evaluation import splice_hooks as splice_hooks
from mechlab.discovery.sae_evaluation import token_activations as token_activations
from mechlab.discovery.superposition import feature_dimensionality as feature_dimensionality
from mechlab.discovery.superposition import plot_directions as plot_directions
from mechlab.discovery.superposition import train_toy_models as train_toy_models
from mechlab.discovery.tuned_lens import TunedLens as TunedLens
from mechlab.intervention.patching import activation_patching as activation_patching
from mechlab.intervention.rome import Fact as Fact
from mechlab.intervention.rome import edit_fact as edit_fact
from mechlab.intervention.rome import edit_scores as edit_scores
from mechlab.intervention.rome import key_covariance as key_covariance
from mechlab.intervention.rome import load_covariance as load_covariance
from mechlab.intervention.steering import Monitor as Monitor
from mechlab.intervention.steering import SteeringVectors as SteeringVectors
from mechlab.intervention.steering import contrast_vectors as contrast_vectors
from mechlab.intervention.steering import steering_sweep as steering_sweep
from mechlab.intervention.tracing import causal_tracing as causal_tracing
from mechlab.intervention.tracing import subject_positions as subject_positions
from mechlab.intervention.weights import load_adapter as load_adapter
from mechlab.intervention.weights import orthogonalize as orthogonalize
from mechlab.intervention.weights import save_model as save_model
from mechlab.intervention.weights import write_hooks as write_hooks

# loading: the model
from mechlab.loading import models as models
from mechlab.loading.checkpoints import ModelError as ModelError
from mechlab.loading.models import load as load
from mechlab.loading.models import random_weights as random_weights
from mechlab.loading.models import tiny as tiny

# prompts, metrics, results
from mechlab.metrics import kl_divergence as kl_divergence
from mechlab.metrics import log_prob as log_prob
from mechlab.metrics import logit_difference as logit_difference
from mechlab.metrics import probability as probability
from mechlab.metrics import recovered as recovered

# pictures: results as figures, as things to touch, and as code to read
from mechlab.pictures import graph as graph
from mechlab.pictures import plots as plots
from mechlab.pictures import widgets as widgets
from mechlab.pictures.graph import circuit_explorer as circuit_explorer
from mechlab.pictures.graph import circuit_picture as circuit_picture
from mechlab.pictures.patterns import attention_view as attention_view
from mechlab.pictures.plots import Picture as Picture
from mechlab.pictures.source import show_source as show_source
from mechlab.prompts import PromptError as PromptError
from mechlab.prompts import PromptPair as PromptPair
from mechlab.prompts import prompt_pair as prompt_pair
from mechlab.prompts import single_token as single_token
from mechlab.results import Scores as Scores
from mechlab.results import token_labels as token_labels

# runs: what there is to observe, how to change it without leaks and silent misses, and a run that is kept
from mechlab.runs import caching as caching
from mechlab.runs import forward as forward
from mechlab.runs import hooks as hooks
from mechlab.runs.caching import cache_bytes as cache_bytes
from mechlab.runs.caching import hook_map as hook_map
from mechlab.runs.caching import only as only
from mechlab.runs.engines import run_of as run_of
from mechlab.runs.hooks import HookError as HookError
from mechlab.runs.hooks import intervene as intervene
from mechlab.runs.hooks import replace_head as replace_head
from mechlab.runs.hooks import replace_with as replace_with
from mechlab.runs.sweeps import sweep as sweep
from mechlab.statistics import wilson as wilson
from mechlab.text import own_text as own_text
