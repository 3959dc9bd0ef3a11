"""What someone without this package does with published folders: loads them with the code that is in them.

    python plain_user.py WORK.json [--block]

WORK.json names folders, each with `inputs.safetensors`, and an id of the hub that is in the cache. Every folder gets
`outputs.safetensors`, and WORK.json's folder `plain.json`. With --block the package cannot be imported even if it is
installed.
"""

import json
import sys
from pathlib import Path


class Blocker:
    """Makes the package look as if it were not installed."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "mega_transformers":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


if "--block" in sys.argv:
    sys.meta_path.insert(0, Blocker())

import torch  # noqa: E402
import transformers  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers.dynamic_module_utils import get_class_from_dynamic_module  # noqa: E402

TRUSTED = {"trust_remote_code": True}


def load(folder):
    """The model, by the Auto class for its architecture."""
    config = json.loads((folder / "config.json").read_text())
    architecture = config["architectures"][0]
    autos = [auto for auto, where in config["auto_map"].items() if where.endswith(f".{architecture}")]
    if not autos:
        return get_class_from_dynamic_module(f"modeling_mega_pairs.{architecture}", folder).from_pretrained(folder)
    assert type(transformers.AutoConfig.from_pretrained(folder, **TRUSTED)).__module__.startswith(
        "transformers_modules."
    )
    return getattr(transformers, autos[0]).from_pretrained(folder, **TRUSTED)


@torch.no_grad()
def use(model, folder):
    inputs = load_file(folder / "inputs.safetensors")
    found = {name: x.contiguous() for name, x in model(**inputs).items() if torch.is_tensor(x)}
    if model.can_generate():
        # the memory of another copy of the same code must not be in the way
        prompt = {"input_ids": inputs["input_ids"][:1], "max_new_tokens": 5, "do_sample": False}
        found["greedy"] = model.generate(**prompt)
        found["beams"] = model.generate(**prompt, num_beams=2)
        found["static"] = model.generate(**prompt, cache_implementation="static", disable_compile=True)
    save_file(found, folder / "outputs.safetensors")


def main(listing):
    work = json.loads(listing.read_text())
    folders = [Path(name) for name in work["folders"]]
    models = [load(folder) for folder in folders]
    for model, folder in zip(models, folders):
        use(model, folder)
    report = {"modules": [type(model).__module__ for model in models], "ours": "mega_transformers" in sys.modules}
    fill = transformers.pipeline("fill-mask", model=work["masked"], device="cpu", **TRUSTED)
    report["filled"] = [each["token"] for each in fill(work["text"])]
    write = transformers.pipeline("text-generation", model=work["causal"], device="cpu", **TRUSTED)
    report["written"] = write("The ship", max_new_tokens=5, do_sample=False)[0]["generated_text"]
    from_hub = transformers.AutoModelForCausalLM.from_pretrained(work["hub_id"], **TRUSTED)
    report["from_hub"] = type(from_hub).__module__
    # trained further, saved, and loaded again: the code goes along, also for other heads
    again = listing.parent / "again"
    fill.model.save_pretrained(again)
    report["again"] = torch.equal(
        transformers.AutoModelForMaskedLM.from_pretrained(again, **TRUSTED).mlm_head.weight, fill.model.mlm_head.weight
    )
    head = transformers.AutoModelForTokenClassification.from_pretrained(again, **TRUSTED)
    report["other_head"] = type(head).__name__
    (listing.parent / "plain.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
