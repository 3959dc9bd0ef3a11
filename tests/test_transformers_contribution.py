"""What contrib/transformers makes of the sources: valid by transformers' style, and equal to this package's models."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "contrib/transformers"
MODEL = Path("src/transformers/models/mega")
# the tables of transformers that Mega goes into, as they are there
TABLES = {
    "models/__init__.py": "if TYPE_CHECKING:\n    from .mbart import *\n    from .megatron_bert import *\n",
    "models/auto/auto_mappings.py": (
        'CONFIG_MAPPING_NAMES = OrderedDict(\n    [\n        ("mbart", "MBartConfig"),\n'
        '        ("megatron-bert", "MegatronBertConfig"),\n    ]\n)\n'
    ),
}
MODEL_TABLE = '{name} = OrderedDict(\n    [\n        # Models\n        ("zamba", "Zamba"),\n    ]\n)\n'


def run(script: Path, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")])
    return subprocess.run(
        [sys.executable, str(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": paths, **environment},
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("contribution")
    done = run(FOLDER / "build.py", target)
    assert done.returncode == 0, done.stderr
    return target


def test_all_files_are_there_and_valid(built):
    found = {str(path.relative_to(built)) for path in built.rglob("*") if path.is_file()}
    names = ("__init__", "configuration_mega", "convert_mega_to_hf", "modeling_mega")
    tests = {"tests/models/mega/__init__.py", "tests/models/mega/test_modeling_mega.py"}
    assert found == {f"{MODEL}/{name}.py" for name in names} | tests | {"docs/source/en/model_doc/mega.md"}
    for path in built.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        compile(text, str(path), "exec")
        assert "mega_transformers" not in text and "{{" not in text, path
    assert len((built / MODEL / "modeling_mega.py").read_text(encoding="utf-8").splitlines()) < 2500


def test_transformers_style(built):
    settings = ["--no-cache", "--config", str(FOLDER / "style.toml"), str(built)]
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run([sys.executable, "-m", "ruff", *command, *settings], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


@pytest.fixture(scope="module")
def conversions(tmp_path_factory) -> Path:
    """Checkpoints of the authors' code and of transformers 4, and what this package makes of them."""
    sys.path.insert(0, str(ROOT / "tests/convert"))
    try:
        import samples
    finally:
        sys.path.remove(str(ROOT / "tests/convert"))
    import mega_transformers
    from mega_transformers.convert import convert_checkpoint

    cases = tmp_path_factory.mktemp("conversions")
    for name in ("lm_prenorm_tied_chunk4", "lra_text_mp_layernorm", "rotary"):
        (cases / name).mkdir()
        source = cases / name / "source"
        if name == "rotary":
            samples.save_language_model(source, rel_pos_bias="rotary", normalize_embedding=True, decoder_input_dim=6)
        else:
            samples.save_sample(name, source)
        convert_checkpoint(source, cases / name / "converted", verify=False)
    folder = next(each for each in samples.FOLDERS if "rmsnorm" in each)
    (cases / folder).mkdir()
    shutil.copytree(samples.TRANSFORMERS / folder, cases / folder / "source")
    source = cases / folder / "source"
    architecture = json.loads((source / "config.json").read_text())["architectures"][0]
    getattr(mega_transformers, architecture).from_pretrained(source).save_pretrained(cases / folder / "converted")
    return cases


def test_equal_to_this_package(built, conversions):
    done = run(FOLDER / "compare.py", built, conversions, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stdout + done.stderr


def test_registered_once_in_a_clone(tmp_path):
    sys.path.insert(0, str(FOLDER))
    try:
        import registrations
    finally:
        sys.path.remove(str(FOLDER))
    from mega_transformers.registration import MODEL_NAMES

    root = tmp_path / "src/transformers"
    (root / "models/auto").mkdir(parents=True)
    names = ["MegaModel", "MegaForMaskedLM"]
    assert registrations.registered(tmp_path, names) == {}  # not a clone
    for name, text in TABLES.items():
        (root / name).write_text(text)
    contents = tmp_path / registrations.CONTENTS
    contents.parent.mkdir(parents=True)
    contents.write_text("      - local: model_doc/megatron-bert\n        title: MegatronBERT\n")
    tables = "".join(MODEL_TABLE.format(name=table) for table, _ in MODEL_NAMES.values())
    (root / "models/auto/modeling_auto.py").write_text(tables)
    changed = registrations.registered(tmp_path, names)
    assert [path.name for path in changed] == ["__init__.py", "auto_mappings.py", "modeling_auto.py", "_toctree.yml"]
    for path, text in changed.items():
        (tmp_path / path).write_text(text)
    assert contents.read_text().startswith(
        "      - local: model_doc/mega\n        title: MEGA\n      - local: model_doc/mega"
    )
    text = "".join(changed.values())
    assert "mbart import *\n    from .mega import *\n    from .megatron_bert" in text
    assert '("mega", "MegaConfig"),\n        ("megatron-bert"' in text
    assert text.count('("mega", "MegaModel")') == 2 and text.count('("mega", "MegaForMaskedLM")') == 2
    assert 'Classification")' not in text and "MegaForCausalLM" not in text
    assert registrations.registered(tmp_path, names) == {}
    (root / "models/auto/auto_mappings.py").write_text("CONFIG_MAPPING_NAMES = {}\n")
    with pytest.raises(registrations.UnknownTableError, match="CONFIG_MAPPING_NAMES"):
        registrations.registered(tmp_path, names)
    (root / "models/__init__.py").unlink()
    done = run(FOLDER / "build.py", tmp_path)
    assert done.returncode == 1 and "it has no src/transformers/models/__init__.py" in done.stderr
    assert not (root / "models/mega").exists()


def test_outdated_rules_are_named():
    sys.path.insert(0, str(FOLDER))
    try:
        from simplify import Rules, simplified
    finally:
        sys.path.remove(str(FOLDER))
    rules = Rules(
        rewrites={"is_open(__)": "False", "gone(__)": "1"},
        facts={"f": {"packed": "None", "missing": "None"}},
        dropped=("check",),
        members=("A.b",),
    )
    text = '''\
def f(x, packed=None, *, keep=True):
    """Doc.

    Args:
        x, packed: What is given.
        keep: Whether.
    """
    check(x)
    if x:
        check(x)
        packed = packed or x
    if packed is not None:
        y = packed(x)  # never
    elif is_open(x) or keep:
        # why
        y = x
    else:
        y = None
    return y
'''
    expected = '''\
def f(x, *, keep=True):
    """Doc.

    Args:
        x: What is given.
        keep: Whether.
    """
    if keep:
        # why
        y = x
    else:
        y = None
    return y
'''
    assert simplified(text, rules) == expected
    assert rules.unused() == ["A.b", "f: missing", "gone(__)"]


@pytest.mark.parametrize(("content", "words"), [("x", "is a file"), (None, "required")])
def test_bad_arguments(tmp_path, content, words):
    arguments = []
    if content is not None:
        (tmp_path / "file").write_text(content)
        arguments = [tmp_path / "file"]
    done = run(FOLDER / "build.py", *arguments)
    assert done.returncode == 2 and words in done.stderr
