"""Registers Mega with transformers' Auto classes without importing a model, PyTorch or transformers itself.

The Auto classes look up models in two kinds of tables. `register` fills the public kind but needs the classes, and
importing them takes seconds. transformers' own models are in the other kind, tables of names such as
`MODEL_FOR_MASKED_LM_MAPPING_NAMES`, whose classes are imported when one is needed. Mega's names go there too. Others
also read these tables: Trainer's label smoothing (does a model shift its labels?), the checks of pipelines, model
cards, `transformers serve` and lm-eval (causal, or sequence to sequence?). TRL looks for a checkpoint's class in the
namespace `transformers`, so the classes go there as well.

The tables are private to transformers, and only this module depends on them. With untested releases, or tables that
look different, Mega is registered by the public `register`, which only takes longer.

The tables are in two modules of transformers, whose import takes 0.3 s. If they are not imported yet, a finder at the
start of `sys.meta_path` waits for them, for the module that makes the namespace anew, and for a module of PEFT whose
tables list the modules that adapters adapt by default.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any

from .releases import NEWEST_TESTED, OLDEST_TESTED

PACKAGE = "mega_transformers"
CONFIGURATIONS = "transformers.models.auto.configuration_auto"
MODELS = "transformers.models.auto.modeling_auto"
PROCESSING = "transformers.processing_utils"
"""Runs transformers' `__init__` again, which makes a new namespace."""
ADAPTERS = "peft.utils.constants"

CONFIGURATION_NAMES = {"mega": "MegaConfig", "mega_seq2seq": "MegaSeq2SeqConfig"}
"""Model type -> name of its configuration, which this package exports."""

MODEL_NAMES = {
    "AutoModel": ("MODEL_MAPPING_NAMES", {"mega": "MegaModel", "mega_seq2seq": "MegaSeq2SeqModel"}),
    "AutoModelForAudioClassification": (
        "MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES",
        {"mega": "MegaForAudioClassification"},
    ),
    "AutoModelForCausalLM": ("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", {"mega": "MegaForCausalLM"}),
    "AutoModelForMaskedLM": ("MODEL_FOR_MASKED_LM_MAPPING_NAMES", {"mega": "MegaForMaskedLM"}),
    "AutoModelForMultipleChoice": ("MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES", {"mega": "MegaForMultipleChoice"}),
    "AutoModelForPreTraining": (
        "MODEL_FOR_PRETRAINING_MAPPING_NAMES",
        {"mega": "MegaForMaskedLM", "mega_seq2seq": "MegaForConditionalGeneration"},
    ),
    "AutoModelForQuestionAnswering": (
        "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES",
        {"mega": "MegaForQuestionAnswering"},
    ),
    "AutoModelForSeq2SeqLM": (
        "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
        {"mega_seq2seq": "MegaForConditionalGeneration"},
    ),
    "AutoModelForSequenceClassification": (
        "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
        {"mega": "MegaForSequenceClassification"},
    ),
    "AutoModelForTextEncoding": ("MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES", {"mega": "MegaModel"}),
    "AutoModelForTokenClassification": (
        "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
        {"mega": "MegaForTokenClassification"},
    ),
}
"""Auto class -> the table of names behind it, and Mega's entries: model type -> class that this package exports."""

ADAPTED = {
    "TARGET": ["v_proj", "mx_proj", "h_proj", "q_proj", "k_proj"],
    "IA3_TARGET": ["v_proj", "mx_proj", "k_proj", "fc2"],
    "IA3_FEEDFORWARD": ["fc2"],
    "LNTUNING_TARGET": ["norm.norm", "final_norm.norm"],
    "BEFT_TARGET": ["v_proj"],
}
"""Kind of adapter -> the modules that PEFT adapts by default; the first entry is for kinds that are not listed."""


def register() -> None:
    """Registers Mega with the Auto classes and PEFT, now or as soon as they are imported."""
    names = [CONFIGURATIONS, MODELS, PROCESSING, ADAPTERS]
    if not _is_known_release():
        _register_configurations(importlib.import_module(CONFIGURATIONS))
        _register_models(importlib.import_module(MODELS))
        names = [ADAPTERS]
    if not any(isinstance(finder, _AutoModulesFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AutoModulesFinder(names))
    for name in names:
        if name in sys.modules:
            add_to(importlib.import_module(name))  # waits for another thread that is importing it


def add_to(module: ModuleType) -> None:
    """Adds Mega's names to one of the modules; its classes, by `register`, if transformers' tables look different."""
    if module.__name__ == ADAPTERS:
        _add_adapted_modules(module)
        return
    lazily, publicly = {
        CONFIGURATIONS: (_add_configuration_names, _register_configurations),
        MODELS: (_add_model_names, _register_models),
        PROCESSING: (_add_to_namespace, lambda module: None),
    }[module.__name__]
    try:
        lazily(module)
    except (AttributeError, KeyError, TypeError):
        publicly(module)


def _is_known_release() -> bool:
    """Whether the tables of the installed transformers are known: patch releases do not change them."""
    from packaging.version import Version

    try:
        installed = version("transformers")
    except PackageNotFoundError:
        return False
    oldest, found, newest = (Version(name).release[:2] for name in (OLDEST_TESTED, installed, NEWEST_TESTED))
    return oldest <= found <= newest


def _add_configuration_names(module: Any) -> None:
    names, mapping = module.CONFIG_MAPPING_NAMES, module.CONFIG_MAPPING
    if mapping._mapping is not names:
        raise TypeError("CONFIG_MAPPING does not read CONFIG_MAPPING_NAMES")
    _serve_classes()
    names.update(CONFIGURATION_NAMES)
    _add_to_namespace(module)


def _add_model_names(module: Any) -> None:
    for auto_class, (table, ours) in MODEL_NAMES.items():
        names, mapping = getattr(module, table), getattr(module, auto_class)._model_mapping
        if mapping._model_mapping is not names:
            raise TypeError(f"{auto_class} does not read {table}")
        # made together with the mapping, perhaps before it had our names
        mapping._reverse_config_mapping.update({name: type for type, name in CONFIGURATION_NAMES.items()})
        names.update(ours)


def _add_adapted_modules(module: ModuleType) -> None:
    """Adds `ADAPTED` to PEFT's tables: one for each kind of adapter, `TRANSFORMERS_MODELS_TO_..._MODULES_MAPPING`."""
    for name, table in vars(module).items():
        if name.startswith("TRANSFORMERS_MODELS_TO_") and name.endswith("_MODULES_MAPPING"):
            kind = name.removeprefix("TRANSFORMERS_MODELS_TO_").removesuffix("_MODULES_MAPPING")
            for model_type in CONFIGURATION_NAMES:
                table.setdefault(model_type, ADAPTED.get(kind, ADAPTED["TARGET"]))


def _add_to_namespace(module: Any) -> None:
    """Makes the classes attributes of `transformers`, imported when first used."""
    places: Any = sys.modules["transformers"]._class_to_module  # type: ignore[attr-defined]
    for ours in (CONFIGURATION_NAMES, *(names for _, names in MODEL_NAMES.values())):
        places.update({name: f"models.{model_type}" for model_type, name in ours.items()})


def _serve_classes() -> None:
    """Puts the classes where all tables look for those of a model type: `transformers.models.<model type>`."""
    for model_type in CONFIGURATION_NAMES:
        name = f"transformers.models.{model_type}"
        module: Any = ModuleType(name, f"The classes of {PACKAGE}, for transformers' Auto classes.")
        module.__getattr__ = _class_named
        sys.modules[name] = module


def _class_named(name: str) -> Any:
    package = sys.modules[PACKAGE]
    if name not in package.__all__:
        raise AttributeError(f"{PACKAGE} has no class {name!r}", name=name)
    return getattr(package, name)


def _register_configurations(module: Any) -> None:
    for model_type, name in CONFIGURATION_NAMES.items():
        module.AutoConfig.register(model_type, getattr(sys.modules[PACKAGE], name), exist_ok=True)


def _register_models(module: Any) -> None:
    package = sys.modules[PACKAGE]
    for auto_class, (_, ours) in MODEL_NAMES.items():
        for model_type, name in ours.items():
            configuration = getattr(package, CONFIGURATION_NAMES[model_type])
            getattr(module, auto_class).register(configuration, getattr(package, name), exist_ok=True)
            setattr(sys.modules["transformers"], name, getattr(package, name))


class _AutoModulesFinder(MetaPathFinder):
    """Finds modules of these names as usual, and calls `add_to` after they have run."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec that the other finders give, with a loader that calls `add_to`; None for other modules."""
        if fullname not in self.names:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        specs = (finder.find_spec(fullname, path, target) for finder in others)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_add(module: ModuleType) -> None:
                run(module)
                if module.__name__ in self.names:  # a zip file has one loader for all its modules
                    add_to(module)

            spec.loader.exec_module = run_and_add  # type: ignore[method-assign]
        return spec
