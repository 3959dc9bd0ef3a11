"""transformers' own model tests, taken from the source distribution of the version that is installed.

They are in no wheel, so `fetch` downloads the source distribution once into `.cache/` of this repository.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
import types
from importlib.metadata import version
from pathlib import Path

PACKAGE = "transformers_tests"
"""Name under which the tests are imported: theirs, `tests`, would clash with our own folder."""

CACHE = Path(__file__).parents[2] / ".cache"

# Values for `ConfigTester`: any fields of every configuration, at other values than their defaults.
CONFIG_FIELDS = {
    "return_dict": False,
    "output_hidden_states": True,
    "output_attentions": True,
    "dtype": "float16",
    "chunk_size_feed_forward": 5,
    "architectures": ["MegaModel"],
    "id2label": {0: "no", 1: "maybe", 2: "yes"},
    "label2id": {"no": 0, "maybe": 1, "yes": 2},
    "problem_type": "regression",
}

# What the tests import but the source distribution lacks.
STAND_INS: dict[str, dict[str, object]] = {
    "exporters.test_export": {"ExportTesterMixin": type("ExportTesterMixin", (), {})},
    "generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
    "utils.test_configuration_utils": {"config_common_kwargs": CONFIG_FIELDS},
}


class UnavailableError(RuntimeError):
    """The source distribution is neither in the cache nor can it be downloaded."""


def download(release: str, folder: Path) -> Path:
    """Has pip download the source distribution of transformers `release` into `folder`; returns the archive."""
    print(f"Downloading the source distribution of transformers {release} for its model tests (once)", flush=True)
    requirement = f"transformers=={release}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--no-binary", "transformers", "--dest", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True)
    archives = list(folder.glob("transformers-*.tar.gz"))
    if done.returncode or not archives:
        reason = (done.stderr.strip() or done.stdout.strip() or "pip wrote no archive").splitlines()[-1]
        raise UnavailableError(
            f"transformers' model tests come with the source distribution of transformers {release}, which is not in "
            f"{CACHE} and could not be downloaded: {reason}\nConnect to the network, or put "
            f"transformers-{release}.tar.gz into that folder."
        )
    return archives[0]


def fetch() -> Path:
    """Returns the folder that holds the package `transformers_tests`, downloading and unpacking where need be.

    Raises:
        UnavailableError: without network, if nothing is cached.
    """
    release = version("transformers")
    unpacked = CACHE / f"transformers-{release}-tests"
    if unpacked.is_dir():
        return unpacked
    CACHE.mkdir(exist_ok=True)
    archive = CACHE / f"transformers-{release}.tar.gz"
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        if not archive.is_file():
            download(release, Path(scratch)).rename(archive)
        package = Path(scratch, "unpacked", PACKAGE)
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        with tarfile.open(archive) as tar:
            for member in tar:
                folder, _, name = member.name.rpartition("/")
                content = tar.extractfile(member) if folder.endswith(f"-{release}/tests") else None
                if content is not None and name.endswith(".py"):
                    (package / name).write_bytes(content.read())
        package.parent.rename(unpacked)
    return unpacked


def make_importable() -> None:
    """Makes `import transformers_tests.test_modeling_common` and the like work."""
    folder = str(fetch())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    for name, contents in STAND_INS.items():
        module = types.ModuleType(f"{PACKAGE}.{name}")
        module.__dict__.update(contents)
        sys.modules[module.__name__] = module
