"""Support for `generate`, for the causal language model and the encoder-decoder."""

from typing import Any, cast

from transformers.generation import GenerationMixin

from .compat_mega import takes_either_name
from .validation_mega import check_generated_length


class MegaGenerationMixin(GenerationMixin):
    """transformers' `GenerationMixin`, for decoders whose cache stores the padding."""

    generate = takes_either_name(GenerationMixin.generate)
    # `generate` passes the tokenizer of its stop strings to every step
    prepare_inputs_for_generation = takes_either_name(
        GenerationMixin.prepare_inputs_for_generation, unread=("tokenizer", "assistant_tokenizer")
    )

    def _prepare_cache_for_generation(
        self, generation_config, model_kwargs, generation_mode, batch_size, max_cache_length
    ):
        """As in `GenerationMixin`; first refuses lengths beyond the positions of a `"simple"` bias."""
        decoder = cast(Any, self).config.get_text_config(decoder=True)
        check_generated_length(decoder, generation_config, max_cache_length)
        return super()._prepare_cache_for_generation(  # type: ignore[misc]
            generation_config, model_kwargs, generation_mode, batch_size, max_cache_length
        )

    @staticmethod
    def create_masks_for_generate(config, inputs_embeds, attention_mask, *args, **kwargs):
        """For a static cache, the new tokens' part of the mask, since the cache stores the rest."""
        return None if attention_mask is None else attention_mask[:, -inputs_embeds.shape[1] :]
