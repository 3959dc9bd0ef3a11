"""Runs under an interpreter with transformers 4.40.2: what it computes with exported folders.

    python old_reader.py CASES.json

CASES.json lists folders; each holds `inputs.safetensors` and gets `outputs.safetensors` and `report.json`. Needs
nothing of this repository.
"""

import json
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file


@torch.no_grad()
def read(folder):
    architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
    model, loading = getattr(transformers, architecture).from_pretrained(folder, output_loading_info=True)
    model.eval()
    inputs = load_file(folder / "inputs.safetensors")
    report = {name: sorted(map(str, found)) for name, found in loading.items()}
    options = {} if architecture != "EncoderDecoderModel" and not model.config.is_decoder else {"use_cache": False}
    outputs = {name: x.contiguous() for name, x in model(**inputs, **options).items() if torch.is_tensor(x)}
    # with chunks it cannot
    if model.can_generate() and not getattr(model.config, "decoder", model.config).use_chunking:
        prompt = {"input_ids": inputs["input_ids"][:1]}
        outputs["generated"] = model.generate(**prompt, max_new_tokens=6, do_sample=False)
    save_file(outputs, folder / "outputs.safetensors")
    if (folder / "tokenizer_config.json").exists():
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        ids = tokenizer("The captain of the <mask> gave an order.")["input_ids"]
        report["tokens"], report["decoded"] = ids, tokenizer.decode(ids, skip_special_tokens=True)
        report["mask_token_id"] = tokenizer.mask_token_id
    (folder / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    if transformers.__version__ != "4.40.2":
        sys.exit(f"transformers is {transformers.__version__}, but must be 4.40.2")
    for name in json.loads(Path(sys.argv[1]).read_text()):
        read(Path(name))
