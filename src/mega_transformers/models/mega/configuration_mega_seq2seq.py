"""Configuration of an encoder-decoder of two Megas."""

from typing import Any, cast

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .configuration_mega import MegaConfig, raising_value_errors


@raising_value_errors
@strict
class MegaSeq2SeqConfig(PreTrainedConfig):
    r"""Configuration of an encoder-decoder of two Megas, as the authors' translation model (`mega` in their code).

    Args:
        encoder: Configuration of the encoder, a `MegaConfig` or its fields. It is made bidirectional.
        decoder: Configuration of the decoder, with sizes of its own. It is made causal, with cross-attention to the
            width of the encoder. If its `cross_attention_max_positions` is None, it becomes the greater
            `max_positions` of the two sides.
        share_embeddings: Whether encoder and decoder have the same word embeddings, which needs equal vocabularies and
            widths.
        tie_word_embeddings: Whether the output projection is the decoder's word embeddings.
        pad_token_id, bos_token_id, eos_token_id: Ids of the special tokens, also of both sides.
        decoder_start_token_id: First token of the decoder's input. The authors' code starts with the end of a
            sentence.
        is_encoder_decoder: Always True; transformers reads it.

    Raises:
        InvalidMegaConfigError: a ValueError, on construction, for fields that contradict each other.

    Example:
        `MegaSeq2SeqConfig(encoder={"hidden_size": 128}, decoder={"hidden_size": 128, "num_hidden_layers": 2})`
    """

    model_type = "mega_seq2seq"
    keys_to_ignore_at_inference = ["cache", "past_key_values"]  # noqa: RUF012
    sub_configs = {"encoder": MegaConfig, "decoder": MegaConfig}  # noqa: RUF012

    encoder: MegaConfig | dict[str, Any] | None = None
    decoder: MegaConfig | dict[str, Any] | None = None
    is_encoder_decoder: bool = True
    share_embeddings: bool = True
    tie_word_embeddings: bool = True
    pad_token_id: int | None = 1
    bos_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 2
    decoder_start_token_id: int | None = 2

    def __post_init__(self, **kwargs):
        ids = {name: getattr(self, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
        encoder, decoder = self._fields("encoder"), self._fields("decoder")
        encoder |= {**ids, "bidirectional": True, "is_decoder": False, "add_cross_attention": False}
        decoder |= {**ids, "bidirectional": False, "is_decoder": True, "add_cross_attention": True}
        self.encoder = MegaConfig(**encoder)
        if decoder.get("cross_attention_max_positions") is None:
            reach = MegaConfig(**decoder).max_positions
            decoder["cross_attention_max_positions"] = max(self.encoder.max_positions, reach)
        self.decoder = MegaConfig(**{**decoder, "cross_attention_hidden_size": self.encoder.hidden_size})
        super().__post_init__(**kwargs)

    def _fields(self, name: str) -> dict[str, Any]:
        """The user's value for encoder or decoder."""
        given = getattr(self, name)
        if given is None:
            return {}
        fields = given.to_dict() if isinstance(given, MegaConfig) else dict(given)
        return {key: value for key, value in fields.items() if key not in ("model_type", "transformers_version")}

    @property
    def vocab_size(self) -> int:
        """Size of the decoder's vocabulary, and so of the logits. Setting it also sets that of shared embeddings."""
        return cast(MegaConfig, self.decoder).vocab_size

    @vocab_size.setter
    def vocab_size(self, value: int) -> None:
        for side in (self.encoder, self.decoder) if self.share_embeddings else (self.decoder,):
            cast(MegaConfig, side).vocab_size = value

    def validate_architecture(self):
        """Refuses shared and tied embeddings of different shapes, and inputs of values or adaptive cutoffs.

        Raises:
            ValueError: names the fields, their values and what would be right.
        """
        super().validate_architecture()
        encoder, decoder = cast(MegaConfig, self.encoder), cast(MegaConfig, self.decoder)
        for name, side in (("encoder", encoder), ("decoder", decoder)):
            if side.input_type != "tokens" or side.adaptive_cutoffs is not None:
                raise ValueError(
                    f"{name}: input_type={side.input_type!r} and adaptive_cutoffs={side.adaptive_cutoffs}, but an "
                    "encoder-decoder needs 'tokens' and None"
                )
        if self.tie_word_embeddings:
            decoder.check_tied_width()
        if not self.share_embeddings:
            return
        shapes = [(side.vocab_size, side.embedding_size or side.hidden_size) for side in (encoder, decoder)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"share_embeddings=True needs token embeddings of the same shape, but the encoder's are {shapes[0]} "
                "and the "
                f"decoder's {shapes[1]} (vocab_size, embedding_size or hidden_size); make them equal, or set "
                "share_embeddings=False"
            )
