"""Configuration of Mega models: the fields and defaults of transformers 4.40.2, validated, plus a few additions."""

import difflib
import functools
from itertools import pairwise

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassError
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.utils import logging

logger = logging.get_logger(__name__)

NORMALIZATION_TYPES = ("layernorm", "scalenorm", "rmsnorm", "batchnorm", "syncbatchnorm")
ATTENTION_ACTIVATIONS = ("softmax", "laplace", "relu2")
RELATIVE_POSITIONAL_BIASES = ("rotary", "simple")
CLASSIFIER_POOLINGS = ("cls", "mean")
CLASSIFIER_HEADS = ("tanh", "blocks")
INPUT_TYPES = ("tokens", "values")


class InvalidMegaConfigError(StrictDataclassError, ValueError):
    """A field has a wrong type or value, or fields contradict each other."""


def raising_value_errors(cls):
    """Makes the class raise `InvalidMegaConfigError` with the message of the failed check."""
    init = cls.__init__

    @functools.wraps(init)
    def __init__(self, *args, **kwargs):  # noqa: N807
        try:
            init(self, *args, **kwargs)
        except StrictDataclassClassValidationError as error:
            raise InvalidMegaConfigError(str(error.__cause__ or error)) from error
        except StrictDataclassError as error:
            raise InvalidMegaConfigError(str(error)) from error

    cls.__init__ = __init__
    return cls


@raising_value_errors
@strict
class MegaConfig(PreTrainedConfig):
    r"""Configuration of a Mega model (arXiv 2209.10655). Defaults are those of transformers 4.40.2.

    Args:
        vocab_size: Number of entries of the vocabulary.
        hidden_size: Width `d` of the hidden states, and number of channels of the EMA.
        num_hidden_layers: Number of blocks.
        intermediate_size: Width `h` of the values and their gate in attention.
        ema_projection_size: Number `N` of EMA states per channel.
        bidirectional: Whether the EMA runs in both directions. Must be False for a decoder.
        shared_representation_size: Width `z` of queries and keys. Must be even with rotary bias.
        use_chunking: Whether attention is limited to chunks of `chunk_size` tokens, so that its cost is linear in the
            length.
        chunk_size: Tokens per chunk, at least 1 with `use_chunking`; -1 otherwise. With a `"simple"` bias a positive
            `chunk_size` is also the number of positions that the bias serves, with or without `use_chunking`.
        truncation: Number of lags after which the EMA's kernel is cut off; None keeps all.
        normalize_before_mega: Whether the attention sub-layer is pre-norm (True) or post-norm.
        normalization_type: `"layernorm"`, `"scalenorm"`, `"rmsnorm"`, `"batchnorm"` or `"syncbatchnorm"`.
        norm_affine: Whether the norms have learned scales.
        activation: Activation of values, candidates and feed-forward; any name of `transformers.activations.ACT2FN`.
        attention_activation: `"softmax"`, `"laplace"` or `"relu2"`.
        dropout_prob: Dropout of the EMA's output, the candidate states and the feed-forward output.
        hidden_dropout_prob: Dropout of the values.
        attention_probs_dropout_prob: Dropout of the attention weights.
        use_feature_dropout: Whether `dropout_prob`, `hidden_dropout_prob` and `nffn_activation_dropout_prob` drop
            whole features of a sequence instead of single numbers.
        use_normalized_ffn: Whether blocks have a feed-forward sub-layer.
        nffn_hidden_size: Width of the feed-forward sub-layer.
        normalize_before_ffn: Whether the feed-forward sub-layer is pre-norm (True) or post-norm.
        nffn_activation_dropout_prob: Dropout inside the feed-forward sub-layer.
        max_positions: Number of positions that a `"simple"` bias serves. A rotary bias serves any number.
        add_token_type_embeddings: Whether token types are embedded.
        type_vocab_size: Number of token types.
        initializer_range: Standard deviation of the initial linear weights, embeddings, query/key scales and biases.
        ema_delta_alpha_range: Standard deviation of the initial `damping_factor` and `decay_factor`.
        ema_beta_range: Standard deviation of the initial `ema_expansion_matrix` around +1, -1, +1, ...
        ema_gamma_omega_range: Standard deviation of the initial `kernel_projection_matrix` and `residual_weight`.
        pad_token_id, bos_token_id, eos_token_id: Ids of the special tokens.
        relative_positional_bias: `"rotary"` or `"simple"`.
        classifier_dropout: Dropout of the classification heads; None means `hidden_dropout_prob`.
        use_cache: Whether a decoder returns its cache for the next step.
        add_lm_hidden_dense_layer: Whether the language model head has a tanh layer before the output projection.
        tie_word_embeddings: Whether input and output embeddings share one matrix. Always False with an adaptive input
            or softmax, which have several; see `tie_adaptive_weights`.
        is_decoder: Whether the model is causal.
        add_cross_attention: Whether the blocks of a decoder attend to an encoder.
        num_attention_heads: Always 1: Mega has one head. Kept for tools that read it.
        classifier_pooling: Addition to 4.40.2. What sequence classification reads: `"cls"`, the first real token (as
            in 4.40.2), or the last one in a decoder; `"mean"`, the mean over real tokens.
        sparse_prediction: Addition to 4.40.2. Whether a masked language model that is given labels computes logits at
            the labelled positions only, shape `(labelled tokens, vocab_size)`. Same loss, less time and memory.
        legacy_unnormalized_rmsnorm: Addition to 4.40.2, whose rmsnorm scaled its input without normalising it. True
            reproduces that, for models trained with it. None means False, and warns about a checkpoint of 4.x.
        scale_embeddings: Addition to 4.40.2 from the authors' code. Whether embeddings are multiplied by
            sqrt(hidden_size).
        embedding_size: Addition from the authors' code. Width of the word embeddings; None for `hidden_size`. If it
            differs from `hidden_size`, a projection without bias follows.
        normalize_embeddings: Addition from the authors' code. Whether a norm follows the embeddings.
        embedding_dropout_prob: Addition from the authors' code. Dropout of the embeddings.
        final_norm: Addition from the authors' code, whose pre-norm models have it. Whether a norm follows the last
            block.
        final_norm_affine: Addition from the authors' code. Whether that norm has learned scales.
        cross_attention_max_positions: Addition from the authors' code. Number of source and target positions that the
            `"simple"` bias of cross-attention serves, with or without chunks; None for `max_positions`. A decoder
            that transformers 4.x saved with a positive `chunk_size` keeps the rule of 4.40.2, which served
            `chunk_size` positions.
        cross_attention_hidden_size: Addition to 4.40.2. Width of the encoder's hidden states; None for `hidden_size`.
        cross_attention_counts_padding: Addition to 4.40.2. Whether positions in cross-attention are columns of the
            batch, as in 4.40.2 and the authors' code, where padding on the left of a source shifts its positions.
            False counts them from the first real token, so that padding changes nothing. None means True for a decoder
            that transformers 4.x saved, and False otherwise.
        adaptive_cutoffs: Addition from the authors' code, like the fields that follow. Ids at which the clusters of an
            adaptive input or softmax begin, ascending; the first cluster begins at 0. None without either.
        adaptive_input: Whether rarer words have narrower embeddings, which projections widen to `hidden_size`. Cluster
            number i is `embedding_size` (or `hidden_size`) // `adaptive_input_factor`**i wide.
        adaptive_input_factor: How much narrower each cluster of the input is than the one before.
        adaptive_softmax: Whether a causal language model predicts words in clusters. Its logits are then
            log-probabilities. Cluster number i is `hidden_size` // `adaptive_softmax_factor`**i wide.
        adaptive_softmax_factor: How much narrower each cluster of the softmax is than the one before.
        adaptive_softmax_dropout_prob: Dropout of the input of an adaptive softmax, and between the two matrices of its
            tail clusters.
        tie_adaptive_weights: Whether adaptive input and softmax share the weights of the words.
        tie_adaptive_projections: Whether they also share the projections of all clusters but the first.
        input_type: What a model reads: `"tokens"` (ids), or `"values"` (real numbers such as pixels or samples).
        classifier_head: `"tanh"`, the two layers of 4.40.2, or `"blocks"`: a linear layer, dropout and
            `classifier_activation` for each of `classifier_hidden_sizes`, then a projection without bias.
        classifier_hidden_sizes: Widths of the blocks; an empty list for no block, None for one of `hidden_size`.
        classifier_activation: Activation of the blocks; any name of `transformers.activations.ACT2FN`.
        recompute_activations: Addition to 4.40.2. Whether training recomputes gates and activations in the backward
            pass, which saves about a third of the memory and costs little time. None does so on a CPU for large
            tensors. Gradient checkpointing recomputes whole blocks instead.

    Raises:
        InvalidMegaConfigError: a ValueError, on construction, for fields of a wrong type or value and for fields that
            contradict each other. The message says what would work.

    Example:
        `MegaConfig(hidden_size=256, use_chunking=True, chunk_size=128)` is an encoder with attention in chunks, and
        `MegaConfig(is_decoder=True, bidirectional=False)` a causal model.
    """

    model_type = "mega"
    keys_to_ignore_at_inference = ["cache", "past_key_values"]  # noqa: RUF012
    attribute_map = {"max_position_embeddings": "max_positions"}  # noqa: RUF012

    vocab_size: int = 30522
    hidden_size: int = 128
    num_hidden_layers: int = 4
    intermediate_size: int = 256
    ema_projection_size: int = 16
    bidirectional: bool = True
    shared_representation_size: int = 64
    use_chunking: bool = False
    chunk_size: int = -1
    truncation: int | None = None
    normalize_before_mega: bool = True
    normalization_type: str = "scalenorm"
    norm_affine: bool = True
    activation: str = "silu"
    attention_activation: str = "softmax"
    dropout_prob: float | int = 0.1
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    use_feature_dropout: bool = False
    use_normalized_ffn: bool = True
    nffn_hidden_size: int = 256
    normalize_before_ffn: bool = True
    nffn_activation_dropout_prob: float | int = 0.1
    max_positions: int = 2048
    add_token_type_embeddings: bool = False
    type_vocab_size: int = 2
    initializer_range: float | int = 0.02
    ema_delta_alpha_range: float | int = 0.2
    ema_beta_range: float | int = 0.02
    ema_gamma_omega_range: float | int = 1.0
    pad_token_id: int | None = 1
    bos_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 2
    relative_positional_bias: str = "rotary"
    classifier_dropout: float | int | None = None
    use_cache: bool = True
    add_lm_hidden_dense_layer: bool = True
    tie_word_embeddings: bool = True
    is_decoder: bool = False
    add_cross_attention: bool = False
    num_attention_heads: int = 1
    classifier_pooling: str = "cls"
    sparse_prediction: bool = False
    legacy_unnormalized_rmsnorm: bool | None = None
    scale_embeddings: bool = False
    embedding_size: int | None = None
    normalize_embeddings: bool = False
    embedding_dropout_prob: float | int = 0.0
    final_norm: bool = False
    final_norm_affine: bool = True
    cross_attention_hidden_size: int | None = None
    cross_attention_max_positions: int | None = None
    cross_attention_counts_padding: bool | None = None
    adaptive_cutoffs: list[int] | None = None
    adaptive_input: bool = False
    adaptive_input_factor: float | int = 4
    adaptive_softmax: bool = False
    adaptive_softmax_factor: float | int = 4
    adaptive_softmax_dropout_prob: float | int = 0.0
    tie_adaptive_weights: bool = False
    tie_adaptive_projections: bool = False
    input_type: str = "tokens"
    classifier_head: str = "tanh"
    classifier_hidden_sizes: list[int] | None = None
    classifier_activation: str = "gelu"
    recompute_activations: bool | None = None

    def __post_init__(self, **kwargs):
        # 4.x wrote no version into a configuration inside another, but all fields of its base class, these among them
        from_4 = (self.transformers_version or "").startswith("4.") or "tf_legacy_loss" in kwargs
        if from_4 and self.add_cross_attention and self.cross_attention_counts_padding is None:
            self.cross_attention_counts_padding = True
        if from_4 and self.add_cross_attention and self.chunk_size > 0 and self.cross_attention_max_positions is None:
            self.cross_attention_max_positions = self.chunk_size
        if self.adaptive_input or self.adaptive_softmax:
            self.tie_word_embeddings = False
        # transformers also keeps keywords that are not fields
        for name in kwargs:
            for close in difflib.get_close_matches(name, MegaConfig.__annotations__, n=1, cutoff=0.85):
                logger.warning(f"MegaConfig has no field {name}, so this value has no effect; did you mean {close}?")
        super().__post_init__(**kwargs)

    def positions_of_simple_bias(self, cross_attention: bool = False) -> int:
        """The number of positions that a `"simple"` bias serves, in self-attention or in cross-attention."""
        if cross_attention:
            return self.cross_attention_max_positions or self.max_positions
        return self.chunk_size if self.chunk_size > 0 else self.max_positions

    def check_tied_width(self) -> None:
        """Raises ValueError if the width of the token embeddings does not allow them as output projection."""
        if self.embedding_size not in (None, self.hidden_size):
            raise ValueError(
                f"tie_word_embeddings=True needs embedding_size={self.embedding_size} to be "
                f"hidden_size={self.hidden_size}, or None; set tie_word_embeddings=False"
            )

    def adaptive_clusters(self, width: int, factor: float) -> list[tuple[int, int]]:
        """Size and width of every cluster of the vocabulary, each `factor` times narrower than the one before."""
        borders = [0, *(self.adaptive_cutoffs or [])]
        if borders[-1] < self.vocab_size:
            borders.append(self.vocab_size)
        return [(end - start, int(width // factor**cluster)) for cluster, (start, end) in enumerate(pairwise(borders))]

    @property
    def layer_types(self) -> list[str]:
        """The layer types from which transformers' caches make a layer of `cache_mega` for every block."""
        return ["mega"] * self.num_hidden_layers

    def validate_layer_type(self):
        """Nothing to check: `layer_types` is not a field."""

    def validate_architecture(self):
        """Refuses fields that are unknown, out of range or contradict each other.

        Raises:
            ValueError: names the field, its value and what would be right.
        """
        super().validate_architecture()
        for name, known in (
            ("normalization_type", NORMALIZATION_TYPES),
            ("attention_activation", ATTENTION_ACTIVATIONS),
            ("relative_positional_bias", RELATIVE_POSITIONAL_BIASES),
            ("classifier_pooling", CLASSIFIER_POOLINGS),
            ("classifier_head", CLASSIFIER_HEADS),
            ("input_type", INPUT_TYPES),
            ("activation", ACT2FN.keys()),
            ("classifier_activation", ACT2FN.keys()),
        ):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is unknown; the known values are {', '.join(sorted(known))}"
                )
        for name in (
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "intermediate_size",
            "ema_projection_size",
            "shared_representation_size",
            "nffn_hidden_size",
            "max_positions",
            "type_vocab_size",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        for name in ("embedding_size", "cross_attention_hidden_size", "cross_attention_max_positions"):
            size = getattr(self, name)
            if size is not None and size < 1:
                raise ValueError(f"{name}={size} must be at least 1, or None")
        for name in (
            "embedding_dropout_prob",
            "dropout_prob",
            "hidden_dropout_prob",
            "attention_probs_dropout_prob",
            "nffn_activation_dropout_prob",
            "classifier_dropout",
            "adaptive_softmax_dropout_prob",
        ):
            probability = getattr(self, name)
            if probability is not None and not 0 <= probability < 1:
                raise ValueError(f"{name}={probability} must be at least 0 and below 1")
        if self.use_chunking and self.chunk_size < 1:
            raise ValueError(
                f"chunk_size={self.chunk_size} must be at least 1 with use_chunking=True; "
                "give a chunk_size, or use_chunking=False"
            )
        if self.truncation is not None and self.truncation < 1:
            raise ValueError(f"truncation={self.truncation} must be at least 1; None keeps every lag of the EMA")
        if self.is_decoder and self.bidirectional:
            raise ValueError("is_decoder=True needs bidirectional=False: an EMA in both directions sees the future")
        if self.add_cross_attention and not self.is_decoder:
            raise ValueError("add_cross_attention=True needs is_decoder=True: only decoders attend to an encoder")
        if self.relative_positional_bias == "rotary" and self.shared_representation_size % 2:
            raise ValueError(
                f"shared_representation_size={self.shared_representation_size} must be even with "
                "relative_positional_bias='rotary', which rotates pairs; make it even or use 'simple'"
            )
        if self.relative_positional_bias == "simple" and self.chunk_size > self.max_positions:
            raise ValueError(
                f"chunk_size={self.chunk_size} must be at most max_positions={self.max_positions} with "
                "relative_positional_bias='simple', which holds a number per position"
            )
        if self.classifier_hidden_sizes is not None and min(self.classifier_hidden_sizes, default=1) < 1:
            raise ValueError(
                f"classifier_hidden_sizes={self.classifier_hidden_sizes} must be a list of widths of at least 1, or "
                "None"
            )
        if self.input_type == "values":
            self._validate_values()
        self._validate_adaptive()

    def _validate_values(self) -> None:
        """Refuses fields for tokens in a model that reads real numbers."""
        for name in ("embedding_size", "adaptive_cutoffs"):
            if getattr(self, name) is not None:
                raise ValueError(f"{name}={getattr(self, name)} needs input_type='tokens': values are not tokens")
        if self.add_token_type_embeddings:
            raise ValueError("add_token_type_embeddings=True needs input_type='tokens': values have no token types")

    def _validate_adaptive(self) -> None:
        """Refuses invalid cutoffs, and fields of adaptive input and softmax that contradict each other."""
        cutoffs = self.adaptive_cutoffs
        if not self.adaptive_input and not self.adaptive_softmax:
            for name in ("adaptive_cutoffs", "tie_adaptive_weights", "tie_adaptive_projections"):
                if getattr(self, name):
                    raise ValueError(
                        f"{name}={getattr(self, name)} needs adaptive_input=True or adaptive_softmax=True; "
                        "set them, or leave it out"
                    )
            return
        if not cutoffs:
            raise ValueError(
                f"adaptive_cutoffs={cutoffs} must be the ids at which clusters of the vocabulary begin, with "
                "adaptive_input=True or adaptive_softmax=True"
            )
        ascending = all(low < high for low, high in pairwise([0, *cutoffs]))
        if not ascending or cutoffs[0] >= self.vocab_size or cutoffs[-1] > self.vocab_size:
            raise ValueError(
                f"adaptive_cutoffs={cutoffs} must be ascending, above 0 and below vocab_size={self.vocab_size}"
            )
        for name, used, width in (
            ("adaptive_input_factor", self.adaptive_input, self.embedding_size or self.hidden_size),
            ("adaptive_softmax_factor", self.adaptive_softmax, self.hidden_size),
        ):
            factor = getattr(self, name)
            if not used:
                continue
            if factor < 1:
                raise ValueError(f"{name}={factor} must be at least 1")
            clusters = self.adaptive_clusters(width, factor)
            if clusters[-1][1] < 1:
                raise ValueError(
                    f"{name}={factor} leaves no width to the last of {len(clusters)} clusters: {width} // {factor}**"
                    f"{len(clusters) - 1} is 0; lower it, or give fewer adaptive_cutoffs"
                )
        if self.tie_adaptive_projections and not self.tie_adaptive_weights:
            raise ValueError("tie_adaptive_projections=True needs tie_adaptive_weights=True")
        if self.tie_adaptive_weights:
            if not (self.adaptive_input and self.adaptive_softmax):
                raise ValueError("tie_adaptive_weights=True needs adaptive_input=True and adaptive_softmax=True")
            if self.adaptive_input_factor != self.adaptive_softmax_factor:
                raise ValueError(
                    f"tie_adaptive_weights=True needs equal factors, but adaptive_input_factor="
                    f"{self.adaptive_input_factor} and adaptive_softmax_factor={self.adaptive_softmax_factor}"
                )
