"""Writes a folder for the model hub from any model's folder, which is not changed."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from ..convert.conversion import TARGET
from ..convert.reading import read_json
from ..convert.transformers_folder import CONFIG, GENERATION, WEIGHTS
from ..convert.writing import new_folder
from . import hub, hub_card, metadata, standalone
from .errors import PublishError
from .folder import Folder, Stage, check_places, listed, open_folder, save_tokenizer, stored_weights, write_weights

README, RESULTS = "README.md", "results.json"
CODE = "modelling code"
# files that are copied; others are left out: training checkpoints, logs, possibly private files
KEPT = {
    GENERATION: "generation settings",
    RESULTS: "scores",
    "training_log.json": "training log",
    "preprocessor_config.json": "input settings",
    "modules.json": "for sentence-transformers",
    "sentence_bert_config.json": "for sentence-transformers",
    "config_sentence_transformers.json": "for sentence-transformers",
    "1_Pooling/config.json": "for sentence-transformers",
    "LICENSE": "licence",
    "LICENSE.md": "licence",
    "LICENSE.txt": "licence",
    "NOTICE": "licence",
}
TOKENIZER_FILES = ("vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json")
PICTURE = re.compile(r"!\[[^\]]*\]\(([\w.-]+\.(?:png|jpe?g|svg|gif))\)")


@dataclass
class PublishReport:
    """Result of publishing.

    Args:
        folder: Folder that was written.
        architecture: Name of the model's class.
        files: Name within the folder -> size in bytes, and what the file is.
        left_out: What was not taken over from the source.
        added: Fields that the card's front matter lacked.
        notes: What else a user should know.
        url: Address on the hub; None if nothing was uploaded.
    """

    folder: Path
    architecture: str
    files: dict[str, tuple[int, str]]
    left_out: list[str]
    added: list[str]
    notes: list[str] = field(default_factory=list)
    url: str | None = None


def publish_folder(
    source: Path | str,
    output: Path | str,
    *,
    repo_id: str | None = None,
    push: bool = False,
    private: bool = False,
    with_code: bool = False,
    license: str | None = None,
    language: str | None = None,
    base_model: str | None = None,
    force: bool = False,
    stage: Stage = lambda _: None,
) -> PublishReport:
    """Writes a folder for the model hub, and uploads it if asked.

    Args:
        source: Folder of a model that this package loads. It is not changed.
        output: Folder to write, which must not exist yet.
        repo_id: Id on the hub, for the card and for uploading.
        push: Whether to upload.
        private: Whether the repository is private.
        with_code: Whether to add the modelling code, for people without this package.
        license: Id of the model's licence, if its card does not name one.
        language: Code of the language of its texts ("en"), if its card does not name one.
        base_model: Id of the model that it was trained from, if its card does not name one.
        force: Whether to replace an existing model.
        stage: Called with a description of what is being done.

    Returns:
        The result.

    Raises:
        PublishError: a ConversionError, for a folder that is damaged or cannot be published, before anything is
            written; and if uploading fails, after it is.
    """
    source, output = Path(source), Path(output)
    _check_ids(license, language, base_model)
    if push:
        hub.check_access(repo_id)
    elif private:
        raise PublishError("--private needs --push; give both, or neither")
    check_places(source, output, force)
    folder = open_folder(source, stage)
    _check_decided(folder)
    code: dict[str, str] = {}
    classes: dict[str, str] = {}
    if with_code:
        classes, code = standalone.auto_map(folder.model.config), standalone.modules_of(folder.model.config)
    facts = _facts(folder, repo_id, license, language, base_model, with_code)
    readme, added = hub_card.complete(_read(source / README), facts)
    kept = {name: what for name, what in KEPT.items() if (source / name).is_file()}
    kept |= {name: "picture" for name in PICTURE.findall(readme) if (source / name).is_file()}
    with new_folder(output) as partial:
        stage("Writing the folder")
        _write_config(folder, partial, classes)
        write_weights(stored_weights(folder), partial)
        for where, tokenizer in folder.tokenizers.items():
            save_tokenizer(tokenizer, partial / where)
        for name in kept:
            (partial / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source / name, partial / name)
        for name, text in code.items():
            (partial / name).write_text(text, encoding="utf-8")
        (partial / README).write_text(readme, encoding="utf-8")
    report = PublishReport(
        folder=output,
        architecture=folder.architecture,
        files=listed(output, {**kept, **dict.fromkeys(code, CODE), README: "model card"}),
        left_out=_left_out(source, output, kept),
        added=added,
        notes=_notes(folder, readme, facts.task),
    )
    if push:
        assert repo_id is not None
        stage(f"Uploading to {repo_id}")
        report.url = hub.push(output, repo_id, private)
    return report


def _check_ids(license_id: str | None, language: str | None, base_model: str | None) -> None:
    """Raises PublishError for an invalid licence id, model id or language code."""
    if language is not None and not metadata.LANGUAGE.fullmatch(language):
        raise PublishError(f"--language {language!r} is not a language code; give one such as en, fr or multilingual")
    if license_id is not None and not metadata.LICENSE_ID.fullmatch(license_id):
        raise PublishError(f"--license {license_id!r} is not a licence id; give one such as apache-2.0, mit or other")
    if base_model is not None and not metadata.HUB_ID.fullmatch(base_model):
        raise PublishError(f"--base-model {base_model!r} is not the id of a model; give NAME/MODEL")


def _check_decided(folder: Folder) -> None:
    """Refuses a model whose numbers depend on the program that loads it."""
    config = folder.model.config
    for side in (config, getattr(config, "encoder", config), getattr(config, "decoder", config)):
        undecided = getattr(side, "normalization_type", None) == "rmsnorm" and side.legacy_unnormalized_rmsnorm is None
        if undecided and str(folder.raw.get("transformers_version", "")).startswith("4."):
            raise PublishError(
                f"{folder.path / CONFIG}: normalization_type='rmsnorm' of transformers 4 did not normalise, and the "
                "folder does not say how the model was trained; set legacy_unnormalized_rmsnorm to true if it was "
                "trained with transformers 4, else to false"
            )


def _facts(
    folder: Folder,
    repo_id: str | None,
    license_id: str | None,
    language: str | None,
    base_model: str | None,
    with_code: bool,
) -> hub_card.Facts:
    name = folder.path.resolve().name if repo_id is None else repo_id.rpartition("/")[2]
    # transformers 4 wrote the name that a model was loaded from
    known = str(folder.raw.get("_name_or_path") or "")
    is_id = metadata.HUB_ID.fullmatch(known) is not None and not known.startswith(".") and not Path(known).exists()
    results = read_json(folder.path / RESULTS) if (folder.path / RESULTS).is_file() else {}
    scores = results.get("scores")
    return hub_card.Facts(
        name=name,
        location=repo_id or f"path/to/{name}",
        architecture=folder.architecture,
        mask_token=getattr(folder.tokenizer, "mask_token", None),
        has_tokenizer=folder.tokenizer is not None,
        standalone=with_code,
        license=license_id,
        language=language,
        base_model=base_model or (known if is_id else None),
        scores=scores if isinstance(scores, dict) else None,
    )


def _read(path: Path) -> str | None:
    if not path.is_file():
        return None
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise PublishError(f"{path} is not valid UTF-8: {error.reason} at byte {error.start}") from error


def _write_config(folder: Folder, partial: Path, classes: dict[str, str]) -> None:
    """config.json with the same meaning, and with or without the classes beside the model."""
    # read again, since the loaded model's configuration names the precision of loading
    type(folder.model.config).from_pretrained(folder.path).save_pretrained(partial)
    written = read_json(partial / CONFIG)
    written.pop("auto_map", None)
    if classes:
        written["auto_map"] = classes
    (partial / CONFIG).write_text(json.dumps(written, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _left_out(source: Path, output: Path, kept: dict[str, str]) -> list[str]:
    """Files and folders of the source without a counterpart."""
    there = {path.name for path in output.iterdir()} | {name.partition("/")[0] for name in kept}
    there |= {CONFIG, README, TARGET, *WEIGHTS, *TOKENIZER_FILES}
    shards = re.compile(r"(model|pytorch_model)-\d+-of-\d+\.(safetensors|bin)")
    names = (path.name + "/" * path.is_dir() for path in source.iterdir())
    return sorted(name for name in names if name.rstrip("/") not in there and not shards.fullmatch(name))


def _notes(folder: Folder, readme: str, task: str) -> list[str]:
    reads_tokens = getattr(folder.model.config, "input_type", "tokens") == "tokens"
    notes = metadata.remarks(hub_card.front_matter(readme), task, reads_tokens)
    if folder.tokenizer is None and reads_tokens:
        notes.append("the folder has no tokenizer, so users must supply token ids")
    return notes
