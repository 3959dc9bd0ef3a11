"""What `import mega_transformers` imports: nothing heavy; and how the Auto classes know Mega nevertheless."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    TOKENIZER_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    GPT2Config,
)
from transformers.models.auto import auto_factory, configuration_auto, modeling_auto

import mega_transformers
from mega_transformers import registration

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
EVERYTHING = "import mega_transformers\nfor name in mega_transformers.__all__: getattr(mega_transformers, name)\n"


def imported(code: str) -> set[str]:
    """The modules in `sys.modules` after `code`, in a process of its own."""
    return set(run(f"{code}\nimport sys\nprint('\\n'.join(sys.modules))").split())


def run(code: str, *arguments: object) -> str:
    """What `code` prints, in a process of its own."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def ours(names: set[str]) -> set[str]:
    return {name for name in names if name.split(".")[0] == "mega_transformers"}


def test_import_imports_no_model_and_nothing_of_others() -> None:
    before = imported("")
    added = imported("import mega_transformers") - before
    assert ours(added) == {
        "mega_transformers",
        "mega_transformers._version",
        "mega_transformers.registration",
        "mega_transformers.releases",
    }
    assert not {"torch", "transformers", "numpy"} & added
    assert not imported("import torch, transformers, mega_transformers") & {
        "transformers.modeling_utils",
        "transformers.models",
    }


def test_all_classes_add_only_the_package_itself() -> None:
    before = imported(BASELINE)
    added = imported(BASELINE + EVERYTHING) - before
    assert "mega_transformers.models.mega.modeling_mega" in added
    assert len(added - ours(added)) <= 20, sorted(added - ours(added))
    heavy = {name for name in added for optional in OPTIONAL if name == optional or name.startswith(f"{optional}.")}
    assert not heavy
    for part in ("cli", "training", "convert", "publish"):
        assert f"mega_transformers.{part}" not in added


def test_every_name_resolves_to_the_class_of_that_name() -> None:
    for name in mega_transformers.__all__:
        assert name in dir(mega_transformers)
        if name != "__version__":
            each = getattr(mega_transformers, name)
            assert each.__name__ == name
            assert each.__module__.startswith("mega_transformers.models.mega.")
            assert pickle.loads(pickle.dumps(each)) is each
    assert mega_transformers.models.mega and mega_transformers.layers and mega_transformers.ops
    with pytest.raises(AttributeError, match="'mega_transformers' has no attribute 'MegaForNothing'"):
        _ = mega_transformers.MegaForNothing
    with pytest.raises(ImportError, match="MegaForNothing"):
        from mega_transformers import MegaForNothing  # noqa: F401


USE = """
import sys
from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer, DynamicCache, pipeline
config = AutoConfig.from_pretrained(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
assert type(tokenizer).__name__ == "RobertaTokenizer"
assert type(config) in AutoModelForMaskedLM._model_mapping
model = AutoModelForMaskedLM.from_pretrained(sys.argv[1])
assert type(AutoModelForMaskedLM.from_config(config)) is type(model)
assert type(pipeline("fill-mask", model=sys.argv[1]).model) is type(model)
from mega_transformers import MegaConfig, MegaForMaskedLM
assert type(config) is MegaConfig and type(model) is MegaForMaskedLM
"""


@pytest.mark.parametrize(
    "first",
    [
        "import mega_transformers",
        "from transformers import AutoConfig\nimport mega_transformers",
        "from transformers import AutoModel\nimport mega_transformers",
        "from transformers import pipeline, AutoTokenizer, PreTrainedModel, Trainer\nimport mega_transformers",
        "from mega_transformers.models.mega.modeling_mega import MegaModel",
        "from mega_transformers.models.mega.configuration_mega import MegaConfig",
    ],
)
def test_auto_classes_know_mega_whatever_is_imported_first(first: str, tiny_checkpoint: Path) -> None:
    run(f"{first}\n{USE}", tiny_checkpoint)


@pytest.mark.parametrize(
    "code",
    [
        "from mega_transformers import MegaConfig",
        "from mega_transformers.models.mega.configuration_mega import MegaConfig",
        "import mega_transformers, transformers as t; MegaConfig = type(t.AutoConfig.for_model('mega'))",
    ],
)
def test_a_configuration_is_enough_for_a_cache(code: str) -> None:
    """transformers finds the layers of a cache by a name that the module of the layers registers."""
    use = "from transformers import DynamicCache; print(type(DynamicCache(config=MegaConfig()).layers[0]).__name__)"
    assert run(f"{code}\n{use}").strip() == "MegaCacheLayer"


def test_configuration_alone_imports_no_model() -> None:
    code = "import mega_transformers\nfrom transformers import AutoConfig\nAutoConfig.for_model('mega')"
    assert "mega_transformers.models.mega.modeling_mega" not in imported(code)


def test_names_are_where_transformers_looks_them_up() -> None:
    """Trainer's label smoothing shifts the labels of a causal language model that it finds by its class's name."""
    for auto_class, (table, names) in registration.MODEL_NAMES.items():
        assert names.items() <= getattr(modeling_auto, table).items()
        mapping = getattr(modeling_auto, auto_class)._model_mapping
        for model_type, name in names.items():
            config = type(AutoConfig.for_model(model_type))
            assert mapping[config] is getattr(mega_transformers, name)
    assert AutoModelForCausalLM._model_mapping[GPT2Config].__name__ == "GPT2LMHeadModel"
    assert mega_transformers.MegaConfig not in AutoModelForSeq2SeqLM._model_mapping


def test_whole_mappings_can_be_listed_and_pickled() -> None:
    assert mega_transformers.MegaForCausalLM in MODEL_FOR_CAUSAL_LM_MAPPING.values()
    assert mega_transformers.MegaConfig in MODEL_FOR_CAUSAL_LM_MAPPING.keys()  # noqa: SIM118  (as transformers does)
    assert mega_transformers.MegaConfig in dict(TOKENIZER_MAPPING.items())
    if hasattr(auto_factory._LazyAutoMapping, "_from_pickle"):  # before 5.24 a mapping cannot be pickled
        mapping = pickle.loads(pickle.dumps(MODEL_FOR_CAUSAL_LM_MAPPING))
        assert mapping[mega_transformers.MegaConfig] is mega_transformers.MegaForCausalLM


def test_the_stand_in_holds_classes_only() -> None:
    code = """
import mega_transformers, transformers.models.auto.configuration_auto
import transformers.models.mega as stand_in
assert stand_in.MegaModel is mega_transformers.MegaModel
assert not hasattr(stand_in, "registration")
try:
    import transformers.models.mega.modeling_mega
except ModuleNotFoundError:
    print("one copy")
"""
    assert run(code).strip() == "one copy"


def test_modules_are_found_again_after_transformers_forgets_them(tiny_checkpoint: Path) -> None:
    """`clear_import_cache` is transformers' own, for its developers."""
    code = """
import sys, mega_transformers
from transformers import AutoConfig
for name in [name for name in sys.modules if name.startswith("transformers.models")]:
    del sys.modules[name]
from transformers.models.auto import AutoConfig as again
assert again is not AutoConfig and type(again.for_model("mega")) is mega_transformers.MegaConfig
assert sum(type(finder).__name__ == "_AutoModulesFinder" for finder in sys.meta_path) == 1
"""
    run(code, tiny_checkpoint)


@pytest.mark.parametrize("release", ["5.99.0", "6.0.0.dev0"])
def test_unknown_releases_get_the_public_register(release: str, tiny_checkpoint: Path) -> None:
    code = f"""
import importlib.metadata
version = importlib.metadata.version
importlib.metadata.version = lambda name: "{release}" if name == "transformers" else version(name)
import mega_transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES
assert "mega" not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
"""
    run(code + USE, tiny_checkpoint)


def test_known_releases() -> None:
    assert registration._is_known_release()


def test_tables_that_are_not_read_count_as_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    registered: list[str] = []
    monkeypatch.setattr(registration, "_register_configurations", lambda module: registered.append("configurations"))
    monkeypatch.setattr(registration, "_register_models", lambda module: registered.append("models"))
    mapping = SimpleNamespace(_mapping={})
    registration.add_to(
        SimpleNamespace(  # type: ignore[arg-type]
            __name__=configuration_auto.__name__, CONFIG_MAPPING_NAMES={}, CONFIG_MAPPING=mapping
        )
    )
    auto_class = SimpleNamespace(_model_mapping=SimpleNamespace(_model_mapping={}))
    registration.add_to(
        SimpleNamespace(__name__=modeling_auto.__name__, MODEL_MAPPING_NAMES={}, AutoModel=auto_class)  # type: ignore[arg-type]
    )
    assert registered == ["configurations", "models"]


def test_models_still_load_by_every_auto_class(tiny_checkpoint: Path) -> None:
    model = AutoModelForMaskedLM.from_pretrained(tiny_checkpoint)
    assert type(model) is mega_transformers.MegaForMaskedLM
