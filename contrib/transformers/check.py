"""Runs transformers' own checks on the files that build.py writes, inside transformers' source distribution.

    python contrib/transformers/check.py [--sdist PATH] [--keep PATH] [PYTEST ARGUMENT ...]

The source distribution of the release that is installed is downloaded once into .cache/ of this repository. Mega is
built and registered in a copy of it; then ruff checks it with transformers' settings, and transformers' model tests
run on it. Takes about five minutes of one processor.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
SUITE = HERE.parents[1] / "tests/transformers_suite"
sys.path[:0] = [str(HERE), str(SUITE)]

import upstream_tests  # noqa: E402
from build import build  # noqa: E402

TESTS = "tests/models/mega"
# what tests/ of the repository has and the source distribution lacks
CONFTEST = """
import sys
import types

sys.path.append({suite!r})
import upstream_tests

for name, contents in upstream_tests.STAND_INS.items():
    module = types.ModuleType("tests." + name)
    module.__dict__.update(contents)
    sys.modules[module.__name__] = module
"""


def unpacked(release: str) -> Path:
    """The folder of the source distribution, which is downloaded if needed.

    Raises:
        upstream_tests.UnavailableError: without network, if nothing is cached.
    """
    cache = upstream_tests.CACHE
    folder = cache / f"transformers-{release}"
    if folder.is_dir():
        return folder
    cache.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        archive = cache / f"transformers-{release}.tar.gz"
        if not archive.is_file():
            upstream_tests.download(release, Path(scratch)).rename(archive)
        with tarfile.open(archive) as tar:
            tar.extractall(scratch, filter="data")
        Path(scratch, f"transformers-{release}").rename(folder)
    return folder


def overlay(source: Path, tree: Path) -> list[Path]:
    """Copies a source distribution to `tree`, and builds Mega in it; returns the files that build.py wrote."""
    shutil.copytree(source, tree, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    written = build(tree)
    for folder in ("tests", "tests/models", "tests/generation", "tests/exporters", "tests/utils"):
        (tree / folder).mkdir(exist_ok=True)
        (tree / folder / "__init__.py").touch()
    (tree / "tests/utils/tiny_model_summary.json").write_text("{}", encoding="utf-8")
    (tree / "conftest.py").write_text(CONFTEST.format(suite=str(SUITE)), encoding="utf-8")
    return written


def style(tree: Path, written: Sequence[Path]) -> bool:
    """Whether ruff accepts the files, with the settings of the source distribution."""
    files = [str(path) for path in written if path.suffix == ".py"]
    done = [
        subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--no-cache", "--config", str(tree / "pyproject.toml"), *files]
        ).returncode
        for command in (["check"], ["format", "--check"])
    ]
    return not any(done)


def documented(tree: Path) -> bool:
    """Whether `auto_docstring`, which prints what it misses, prints nothing."""
    code = "import transformers.models.mega.modeling_mega"
    done = subprocess.run([sys.executable, "-c", code], env=_environment(tree), capture_output=True, text=True)
    print((done.stdout + done.stderr).strip() or "auto_docstring: nothing is missing")
    return done.returncode == 0 and not done.stdout.strip()


def usable(tree: Path) -> bool:
    """Whether Auto classes and pipelines find the model."""
    return subprocess.run([sys.executable, str(HERE / "usable.py")], env=_environment(tree)).returncode == 0


def tested(tree: Path, arguments: Sequence[str]) -> bool:
    """Whether transformers' model tests pass."""
    start = time.monotonic()
    command = [sys.executable, "-m", "pytest", TESTS, "-q", "-rs", "-p", "no:cacheprovider"]
    command += ["-o", "addopts=", "-o", "log_cli=0", "-W", "ignore::pytest.PytestUnknownMarkWarning"]
    done = subprocess.run(
        [*command, "-W", "ignore::pytest.PytestConfigWarning", *arguments], cwd=tree, env=_environment(tree)
    )
    print(f"{(time.monotonic() - start) / 60:.1f} minutes")
    return done.returncode == 0


def _environment(tree: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(tree / "src"), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sdist", type=Path, help="An unpacked source distribution. Default: it is downloaded.")
    parser.add_argument("--keep", type=Path, help="The folder to keep the tree in. Default: it is removed.")
    options, rest = parser.parse_known_args()
    if options.sdist is not None and not (options.sdist / "src/transformers").is_dir():
        parser.error(f"--sdist {options.sdist} is not an unpacked source distribution: it has no src/transformers")
    if options.keep is not None and options.keep.exists() and any(options.keep.iterdir()):
        parser.error(f"--keep {options.keep} is not empty")
    try:
        source = options.sdist or unpacked(version("transformers"))
    except upstream_tests.UnavailableError as error:
        parser.exit(1, f"{error}\n")
    with tempfile.TemporaryDirectory() as scratch:
        tree = options.keep or Path(scratch, "transformers")
        written = overlay(source, tree)
        for path in written:
            print(f"{len(re.findall(chr(10), path.read_text(encoding='utf-8'))):6} lines  {path.relative_to(tree)}")
        passed = [style(tree, written), documented(tree), usable(tree), tested(tree, rest)]
    if not all(passed):
        parser.exit(1, "something failed\n")


if __name__ == "__main__":
    main()
