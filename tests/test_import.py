"""What `import mega_transformers` imports: nothing heavy beyond torch and what transformers' Auto classes need."""

from __future__ import annotations

import subprocess
import sys

OPTIONAL = [
    "accelerate",
    "datasets",
    "matplotlib",
    "pandas",
    "rich",
    "scipy",
    "sentence_transformers",
    "sklearn",
    "torch._dynamo",
    "torch._inductor",
    "triton",
    "typer",
    "yaml",
]

# What a user of Auto classes imports anyway.
BASELINE = """
import torch
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoTokenizer, PreTrainedModel, RobertaTokenizer
import transformers.modeling_outputs, transformers.masking_utils, transformers.modeling_layers
"""


def imported(code: str) -> set[str]:
    """The modules in `sys.modules` after `code`, in a process of its own."""
    script = f"{code}\nimport sys\nprint('\\n'.join(sys.modules))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(result.stdout.split())


def test_import_adds_only_the_package_itself() -> None:
    before = imported(BASELINE)
    added = imported(BASELINE + "import mega_transformers") - before
    ours = {name for name in added if name.split(".")[0] == "mega_transformers"}
    assert "mega_transformers.models.mega.modeling_mega" in ours
    assert len(added - ours) <= 20, sorted(added - ours)
    heavy = {name for name in added for optional in OPTIONAL if name == optional or name.startswith(f"{optional}.")}
    assert not heavy
    for part in ("cli", "training", "convert", "publish"):
        assert f"mega_transformers.{part}" not in ours
