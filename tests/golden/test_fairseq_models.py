"""The authors' language model, classifiers and models of raw input, and the parts that only these have.

Where the authors' training loss leaves words out (see `without_second_words`), so does the loss that is compared.
"""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from golden_io import (
    GRADIENT_TOLERANCE,
    Case,
    assert_close,
    assert_gradients,
    assert_outputs,
    config_of,
    fairseq_files,
    hf_name,
    load_parameters,
    read_fairseq,
)
from torch import nn

from mega_transformers import (
    MegaConfig,
    MegaForAudioClassification,
    MegaForCausalLM,
    MegaForSequenceClassification,
    MegaForSequencePairClassification,
    MegaPreTrainedModel,
)
from mega_transformers.layers import MegaAdaptiveEmbedding, MegaAdaptiveSoftmax
from mega_transformers.models.mega.inputs_mega import MegaValueEmbeddings
from mega_transformers.models.mega.modeling_mega_classification import mean_of_real_tokens

PAD = 1
OUTER_NAMES = {
    "embed_tokens.embed.": "mega.embedding_layer.word_embeddings.",
    "embed_tokens.embeddings.": "mega.embedding_layer.word_embeddings.embeddings.",
    "final_norm.": "mega.final_norm.",
    "adaptive_softmax.": "lm_head.",
    "classifier.": "classifier.blocks.",
    "sentence_projection_layer.": "classifier.out_proj.",
}


def our_name(name: str) -> str | None:
    """The authors' name of a parameter or buffer -> ours, None for what has no place."""
    name = name.removeprefix("param.").removeprefix("encoder.encoder.").removeprefix("decoder.")
    if name.endswith(("version", "_float_tensor")):
        return None
    for theirs, ours in OUTER_NAMES.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    if name.startswith("layers."):
        layers, index, inner = name.split(".", 2)
        return f"mega.{layers}.{index}.{hf_name(inner)}"
    return {
        "embed_tokens.weight": "mega.embedding_layer.word_embeddings.weight",
        "output_projection.weight": "lm_head.weight",
    }[name]


def value_name(name: str) -> str | None:
    """`our_name` for a model of values."""
    _, found, leaf = name.partition("embed_tokens.")
    return f"mega.embedding_layer.value_embeddings.{leaf}" if found else our_name(name)


def load(model: MegaPreTrainedModel, case: Case, name_of=our_name) -> MegaPreTrainedModel:
    """Fills the model with all of the authors' parameters, and leaves none as it was but zero biases of the head."""
    own, state = model.state_dict(), {}
    for name, tensor in case.param.items():
        ours = name_of(name)
        if ours is not None:
            if tensor.shape != own[ours].shape:  # with chunks they hold 2 * chunk_size - 1 biases
                tensor = torch.cat([tensor, tensor.new_full((own[ours].numel() - tensor.numel(),), float("nan"))])
            state[ours] = tensor
    info = model.load_state_dict(state, strict=False)
    assert not info.unexpected_keys
    assert info.missing_keys in ([], ["lm_head.bias"])
    return model.eval()


def assert_all_gradients(model: MegaPreTrainedModel, case: Case, name_of=our_name) -> None:
    """Compares the gradients of all parameters, but for biases of the head that the authors do not have."""
    every = dict(model.named_parameters(remove_duplicate=False))
    left = {id(parameter) for name, parameter in every.items() if name != "lm_head.bias"}
    for name, reference in case.grad.items():
        ours = name_of(name)
        grad = every[ours].grad
        if grad.shape != reference.shape:
            assert not grad[reference.numel() :].any(), f"gradient of {ours} beyond the chunk"
            grad = grad[: reference.numel()]
        assert_close(grad, reference, GRADIENT_TOLERANCE, f"gradient of {ours}")
        left.discard(id(every[ours]))
    assert not left


def without_second_words(log_probs: torch.Tensor, target: torch.Tensor, cutoffs: list[int]) -> torch.Tensor:
    """What the authors' adaptive loss lacks of the summed cross entropy.

    It ignores the padding's number, 1, relative to clusters: the second word of every tail counts
    in the choice of the tail, but not within it.
    """
    missing = log_probs.new_zeros(())
    borders = [*cutoffs, log_probs.shape[-1]]
    for start, end in pairwise(borders):
        rows = log_probs[target == start + PAD]
        missing = missing - (rows[:, start + PAD] - torch.logsumexp(rows[:, start:end], dim=-1)).sum()
    return missing


# -- parts


def adaptive_config(case: Case) -> MegaConfig:
    tied = case.meta["tie"] == "tied"
    return MegaConfig(
        vocab_size=case.meta["vocab"],
        hidden_size=case.meta["dim"],
        pad_token_id=case.meta["padding_idx"],
        adaptive_cutoffs=case.meta["cutoff"],
        adaptive_input=True,
        adaptive_input_factor=case.meta["factor"],
        adaptive_softmax=True,
        adaptive_softmax_factor=case.meta["factor"],
        tie_adaptive_weights=tied,
    )


@pytest.mark.parametrize("name", fairseq_files("adaptive_*"))
def test_adaptive_input_and_softmax(name, device):
    case = read_fairseq(name, device)
    config = adaptive_config(case)
    parts = nn.ModuleDict(
        {"embed_tokens": MegaAdaptiveEmbedding(config), "adaptive_softmax": MegaAdaptiveSoftmax(config)}
    )
    for own, of_input in parts["adaptive_softmax"].tied_weights().items():
        owner, leaf = own.rsplit(".", 1)
        setattr(parts["adaptive_softmax"].get_submodule(owner), leaf, parts["embed_tokens"].get_parameter(of_input))
    kept = {key: value for key, value in case.param.items() if not key.endswith(("version", "_float_tensor"))}
    parts.load_state_dict(kept, strict=True)
    parts.to(device)

    embedded = parts["embed_tokens"](case.input["ids"])
    assert_outputs(embedded, case.output["embed_btd"], "embeddings")
    hidden = case.input["hidden_btd"].clone().requires_grad_()
    log_probs = parts["adaptive_softmax"](hidden)
    assert_outputs(log_probs, case.output["log_prob_full"], "log-probabilities")
    target = case.input["target"]
    labels = target.masked_fill(target == PAD, -100)
    loss = parts["adaptive_softmax"].loss(hidden.flatten(0, 1), labels.flatten())
    assert_outputs(loss, F.nll_loss(log_probs.flatten(0, 1), labels.flatten(), reduction="sum").detach(), "loss")
    missing = without_second_words(log_probs, target, config.adaptive_cutoffs)
    assert missing > 1
    assert_outputs(loss - missing, case.output["loss_sum"].squeeze(), "the authors' loss")

    (loss - missing + 0.1 * embedded.square().sum()).backward()
    parameters = dict(parts.named_parameters(remove_duplicate=False))
    for key, reference in case.grad.items():
        grad = hidden.grad if key == "input.hidden_btd" else parameters[key.removeprefix("param.")].grad
        assert_close(grad, reference, GRADIENT_TOLERANCE, f"gradient of {key}")


def test_value_embeddings(device):
    case = read_fairseq("real_number_embedding", device)
    module = MegaValueEmbeddings(case.meta["embedding_dim"]).to(device)
    load_parameters(module, case.param)
    x = case.input["x"].clone().requires_grad_()
    output = module(x)
    assert_outputs(output, case.output["y_btd"], "y")
    weights = case.input["loss_weight"].transpose(0, 1)  # batch first in the file, as y is
    (output * weights).sum().backward()
    assert_gradients(module, case, {"x": x})


# -- language models


def language_model(case: Case, device: str, attn_implementation: str = "sdpa", **changes) -> MegaForCausalLM:
    arguments = case.meta["args"]
    fields = {
        "vocab_size": case.meta["vocab"],
        "num_hidden_layers": arguments["decoder_layers"],
        "pad_token_id": case.meta["padding_idx"],
        "scale_embeddings": not arguments["no_scale_embedding"],
        "final_norm": arguments["normalize_before"],
        "final_norm_affine": not arguments["no_affine_final_norm"],
        "add_lm_hidden_dense_layer": False,
        "tie_word_embeddings": arguments["share_decoder_input_output_embed"],
    }
    if arguments["adaptive_input"]:
        assert arguments["adaptive_input_cutoff"] == arguments["adaptive_softmax_cutoff"]
        fields |= {
            "adaptive_cutoffs": [int(cutoff) for cutoff in arguments["adaptive_softmax_cutoff"].split(",")],
            "adaptive_input": True,
            "adaptive_softmax": True,
            "adaptive_input_factor": arguments["adaptive_input_factor"],
            "adaptive_softmax_factor": arguments["adaptive_softmax_factor"],
            "tie_adaptive_weights": arguments["tie_adaptive_weights"],
            "tie_adaptive_projections": arguments["tie_adaptive_proj"],
        }
    config = MegaConfig(**{**config_of(arguments, causal=True).to_dict(), **fields, **changes})
    return load(MegaForCausalLM._from_config(config, attn_implementation=attn_implementation), case).to(device)


LANGUAGE_MODELS = fairseq_files("lm_*")


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_language_model(name, device, attn_implementation):
    case = read_fairseq(name, device)
    model = language_model(case, device, attn_implementation)
    ids = case.input["ids"]
    real = ids != PAD
    outputs = model(ids, attention_mask=real, output_hidden_states=True, use_cache=False)
    features = model.mega(ids, attention_mask=real, use_cache=False).last_hidden_state
    assert_outputs(features[real], case.output["features_btd"][real], "features")
    whole = model.mega(case.input["ids_nopad"], use_cache=False).last_hidden_state
    assert_outputs(whole, case.output["features_nopad_btd"], "features without padding")
    states = [state for key, state in sorted(case.output.items()) if key.startswith("inner_state_")]
    for index, state in enumerate(states[: model.config.num_hidden_layers]):
        assert_outputs(outputs.hidden_states[index][real], state[:, : ids.shape[1]][real], f"hidden state {index}")
    reference = case.output["log_probs_full" if model.config.adaptive_softmax else "logits"]
    assert_outputs(outputs.logits[real], reference[real], "logits")


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_language_model_loss_and_gradients(name, device, training):
    case = read_fairseq(name, device)
    model = language_model(case, device).train(training)
    ids, target = case.input["ids"], case.input["target"]
    real = ids != PAD
    # targets belong to the ids' own positions; here the label of a position is what the one before it predicts
    longer = {"input_ids": F.pad(ids, (0, 1), value=5), "attention_mask": torch.cat([real, real[:, -1:]], dim=1)}
    labels = F.pad(target.masked_fill(target == PAD, -100), (1, 0), value=-100)
    outputs = model(**longer, labels=labels, num_items_in_batch=1)
    loss = outputs.loss
    if model.config.adaptive_softmax:
        assert (outputs.logits is None) == training
        log_probs = model(ids, attention_mask=real, use_cache=False).logits
        loss = loss - without_second_words(log_probs, target, model.config.adaptive_cutoffs)
    assert_outputs(loss, case.output["loss_sum"].squeeze(), "summed loss")
    loss.backward()
    assert_all_gradients(model, case)


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
@pytest.mark.parametrize("pieces", [1, 4, 8, 12, 3])
def test_language_model_in_pieces(name, pieces, device):
    """What the authors give with a state, where they do not truncate; and what we truncate as without one."""
    case = read_fairseq(name, device)
    keys = {1: "features_step_btd", 3: "features_blocks4_btd"}
    key = keys.get(pieces, f"features_blocks{pieces}_btd")
    for changes in ({"truncation": None}, {}):
        model = language_model(case, device, **changes).mega
        for ids_key, expected in (("ids_nopad", key), ("ids", "features_blocks8_padded_btd")):
            ids, cache, features = case.input[ids_key], None, []
            real = ids != PAD
            with torch.no_grad():
                for start in range(0, ids.shape[1], pieces):
                    outputs = model(
                        ids[:, start : start + pieces],
                        attention_mask=real[:, : start + pieces],
                        cache=cache,
                        use_cache=True,
                    )
                    cache = outputs.cache
                    features.append(outputs.last_hidden_state)
                got = torch.cat(features, dim=1)[real]
                if changes:
                    assert_outputs(got, case.output[expected][real], expected)
                else:
                    whole = model(ids, attention_mask=real, use_cache=False).last_hidden_state[real]
                    assert_outputs(got, whole, f"{ids_key} in pieces of {pieces}")


# -- classifiers


def classifier(case: Case, device: str, model_class: type[MegaPreTrainedModel], attn_implementation: str):
    arguments = case.meta["args"]
    raw = case.meta["kind"] == "sc_raw" or arguments["input_type"] == "image"
    assert arguments["sen_rep_type"] == "mp" and arguments["classifier_layers"] == 1
    fields = {
        "num_hidden_layers": arguments["encoder_layers"],
        "num_labels": arguments["sentence_class_num"],
        "final_norm": arguments["encoder_normalize_before"],
        "normalize_before_mega": arguments["encoder_normalize_before"],
        "normalize_before_ffn": arguments["encoder_normalize_before"],
        "classifier_pooling": "mean",
        "classifier_head": "blocks",
        "classifier_hidden_sizes": [arguments["classifier_out_dim"]],
        "classifier_activation": arguments["classifier_activation_fn"],
        "input_type": "values" if raw else "tokens",
    }
    if not raw:
        fields |= {"vocab_size": case.meta["vocab"], "pad_token_id": case.meta["padding_idx"]}
    config = MegaConfig(**{**config_of(arguments).to_dict(), **fields})
    model = model_class._from_config(config, attn_implementation=attn_implementation)
    return load(model, case, value_name if raw else our_name).to(device)


def real_tokens(lengths: torch.Tensor, columns: int) -> torch.Tensor:
    return torch.arange(columns, device=lengths.device) < lengths[:, None]


CLASSIFIERS = {
    "lra_image_batchnorm": MegaForSequenceClassification,
    "lra_text_mp_layernorm": MegaForSequenceClassification,
    "speech_commands_raw": MegaForAudioClassification,
}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifier(name, device, attn_implementation):
    case = read_fairseq(name, device)
    model = classifier(case, device, CLASSIFIERS[name], attn_implementation)
    sequences = case.input["src_tokens"]
    real = real_tokens(case.input["src_lengths"], sequences.shape[1])
    raw = model.config.input_type == "values"
    inputs = {"input_values" if raw else "input_ids": sequences, "attention_mask": real}
    outputs = model(**inputs, labels=case.input["target"], num_items_in_batch=1, output_hidden_states=True)
    states = [state for key, state in sorted(case.output.items()) if key.startswith("inner_state_")]
    assert len(states) == model.config.num_hidden_layers + 1
    for index, state in enumerate(states[:-1]):
        assert_outputs(outputs.hidden_states[index][real], state[real], f"hidden state {index}")
    pooled = mean_of_real_tokens(model.mega(**inputs).last_hidden_state, real)
    assert_outputs(pooled, case.output["sentence_rep"], "mean over real tokens")
    assert_outputs(outputs.logits, case.output["logits"], "logits")
    assert_outputs(outputs.loss, case.output["loss_sum"].squeeze(), "summed loss")
    outputs.loss.backward()
    assert_all_gradients(model, case, value_name if raw else our_name)
    if bool(real.all()):
        inputs.pop("attention_mask")
        assert_outputs(model(**inputs).logits, case.output["logits"], "logits without a mask")


def test_classifier_of_pairs(device, attn_implementation):
    case = read_fairseq("lra_retrieval", device)
    model = classifier(case, device, MegaForSequencePairClassification, attn_implementation)
    first, second = case.input["src_tokens"], case.input["src_tokens1"]
    real = real_tokens(case.input["src_lengths"], first.shape[1])
    outputs = model(
        first,
        attention_mask=real,
        pair_input_ids=second,
        pair_attention_mask=real_tokens(case.input["src_lengths1"], second.shape[1]),
        labels=case.input["target"],
        num_items_in_batch=1,
        output_hidden_states=True,
    )
    for index in range(model.config.num_hidden_layers):
        state = case.output[f"inner_state_{index}"]
        assert_outputs(outputs.hidden_states[index][real], state[real], f"hidden state {index}")
    pooled = mean_of_real_tokens(model.mega(first, attention_mask=real).last_hidden_state, real)
    assert_outputs(pooled, case.output["sentence_rep"], "mean over real tokens")
    assert_outputs(outputs.logits, case.output["logits"], "logits")
    assert_outputs(outputs.loss, case.output["loss_sum"].squeeze(), "summed loss")
    outputs.loss.backward()
    assert_all_gradients(model, case)
