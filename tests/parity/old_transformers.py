"""Runs under an interpreter with transformers 4.40.2: makes its checkpoints, or computes ours there.

    python old_transformers.py make CASES.json FOLDER     random models of 4.40.2, saved with inputs and outputs
    python old_transformers.py run CASES.json FOLDER      outputs of checkpoints that mega_transformers saved

Needs nothing of this repository. `parity_cases.py` writes the cases and describes the files.
"""

import json
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file


def make_inputs(config, case, length, generator):
    """Ids with padding on the right of two rows, and token types where the model has them."""
    shape = (3, 2, length) if case["cls"] == "MegaForMultipleChoice" else (3, length)
    inputs = {"input_ids": torch.randint(3, config.vocab_size, shape, generator=generator)}
    mask = torch.ones(shape, dtype=torch.int64)
    mask[1, ..., length - 2 :] = 0
    mask[2, ..., length - 5 :] = 0
    inputs["attention_mask"] = mask
    if config.add_token_type_embeddings:
        inputs["token_type_ids"] = torch.randint(0, config.type_vocab_size, shape, generator=generator)
    return inputs


@torch.no_grad()
def compute(model, inputs):
    """All outputs of a forward pass, lists as `name.index`."""
    kwargs = {"use_cache": False} if model.config.is_decoder else {}
    outputs = model(**inputs, output_hidden_states=True, output_attentions=True, return_dict=True, **kwargs)
    result = {}
    for name, value in outputs.items():
        for index, tensor in enumerate(value if isinstance(value, tuple) else [value]):
            key = f"{name}.{index}" if isinstance(value, tuple) else name
            result[key] = tensor.contiguous()
    return result


def randomise(model, generator):
    """Moves every parameter and running statistic away from its trivial initial value."""
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer += 0.3 * torch.randn(buffer.shape, generator=generator)
        elif name.endswith("running_var"):
            buffer += torch.rand(buffer.shape, generator=generator)


def make(case, folder):
    generator = torch.Generator().manual_seed(case["seed"])
    torch.manual_seed(case["seed"])
    config = transformers.MegaConfig(**case["config"])
    model = getattr(transformers, case["cls"])(config).eval()
    randomise(model, generator)
    shards = {"max_shard_size": "30KB"} if case["format"] == "sharded" else {}
    model.save_pretrained(folder, safe_serialization=case["format"] != "bin", **shards)
    path = folder / "config.json"
    fields = json.loads(path.read_text())
    fields.update(case["add_fields"])
    path.write_text(json.dumps({key: value for key, value in fields.items() if key not in case["drop_fields"]}))
    for length in case["lengths"]:
        inputs = make_inputs(config, case, length, generator)
        save_file({f"input.{key}": tensor for key, tensor in inputs.items()}, folder / f"input_{length}.safetensors")
        save_file(compute(model, inputs), folder / f"output_{length}.safetensors")


def run(case, folder):
    cls = getattr(transformers, case["cls"])
    model, info = cls.from_pretrained(folder, output_loading_info=True)
    (folder / "loading_info.json").write_text(json.dumps(info))
    for length in case["lengths"]:
        tensors = load_file(folder / f"input_{length}.safetensors")
        inputs = {key.removeprefix("input."): tensor for key, tensor in tensors.items()}
        save_file(compute(model.eval(), inputs), folder / f"output_{length}.safetensors")


if __name__ == "__main__":
    if transformers.__version__ != "4.40.2":
        sys.exit(f"transformers is {transformers.__version__}, but must be 4.40.2")
    task = {"make": make, "run": run}[sys.argv[1]]
    for case in json.loads(Path(sys.argv[2]).read_text()):
        task(case, Path(sys.argv[3]) / case["name"])
