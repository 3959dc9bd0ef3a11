"""Whether transformers knows the model it was built into: Auto classes, pipelines, generation; run by check.py."""

from __future__ import annotations

import tempfile

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    MegaConfig,
    PreTrainedTokenizerFast,
    pipeline,
)

TEXT = "the captain of the ship gave an order"
WORDS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *sorted(set(TEXT.split()))]
SIZES = {"vocab_size": len(WORDS), "hidden_size": 8, "num_hidden_layers": 2, "intermediate_size": 12}
CAUSAL = {"is_decoder": True, "bidirectional": False}
TASKS = {
    "feature-extraction": (AutoModel, {}, TEXT),
    "fill-mask": (AutoModelForMaskedLM, {}, "the captain of the <mask> gave an order"),
    "text-classification": (AutoModelForSequenceClassification, {}, TEXT),
    "token-classification": (AutoModelForTokenClassification, {}, TEXT),
    "text-generation": (AutoModelForCausalLM, CAUSAL, TEXT),
}


def main() -> None:
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token="<mask>", **special)
    for auto in (AutoModelForMultipleChoice, AutoModelForQuestionAnswering):
        assert type(auto.from_config(MegaConfig(**SIZES))).__module__ == "transformers.models.mega.modeling_mega"
    for task, (auto, fields, text) in TASKS.items():
        with tempfile.TemporaryDirectory() as folder:
            auto.from_config(MegaConfig(**SIZES, **fields)).save_pretrained(folder)
            wrapped.save_pretrained(folder)
            assert type(AutoConfig.from_pretrained(folder)) is MegaConfig
            assert len(AutoTokenizer.from_pretrained(folder)) == len(WORDS)
            model = auto.from_pretrained(folder, dtype=torch.bfloat16)
            assert all(x.dtype == torch.float32 for name, x in model.named_parameters() if ".ema_gate." in name)
            result = pipeline(task, model=folder)(text)
            print(f"{task}: {type(model).__name__}, {str(result)[:60]}")


if __name__ == "__main__":
    main()
