"""Writes the table of libraries in docs/compatibility.md: `make test-ecosystem ARGS=--write-table`."""

import platform
import re
from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

DOCUMENT = Path(__file__).parents[2] / "docs" / "compatibility.md"
PLACE = re.compile(r"(<!-- libraries: begin -->\n).*?(<!-- libraries: end -->)", re.DOTALL)
LIBRARIES = {
    "test_captum": ("captum",),
    "test_commands": ("lm_eval", "fastapi"),
    "test_compile_and_export": ("torch",),
    "test_modules": ("torch",),
    "test_names": ("transformers", "peft"),
    "test_peft": ("peft",),
    "test_quantisation": ("torchao", "bitsandbytes", "compressed-tensors"),
    "test_sentence_transformers": ("sentence-transformers",),
    "test_sharding": ("torch",),
    "test_transforms": ("torch",),
    "test_trl": ("trl",),
}
"""A file of tests -> the packages that it is about, in the order of their names."""


def pytest_addoption(parser):
    parser.addoption("--write-table", action="store_true", help="write what passed into docs/compatibility.md")


def pytest_terminal_summary(terminalreporter, config):
    if not config.getoption("--write-table"):
        return
    counts: dict[str, Counter] = {}
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            name = Path(report.nodeid.split("::")[0]).stem
            counts.setdefault(name, Counter())[outcome] += 1
    lines = ["| Tests | Libraries | Passed | Failed | Skipped |", "|---|---|---|---|---|"]
    for name, found in sorted(counts.items()):
        if name in LIBRARIES:
            versions = ", ".join(f"{package} {installed(package)}" for package in LIBRARIES[name])
            failed = found["failed"] + found["error"]
            lines.append(f"| {name} | {versions} | {found['passed']} | {failed} | {found['skipped']} |")
    here = f"Python {platform.python_version()}, torch {version('torch')}, transformers {version('transformers')}"
    table = "\n".join(["", *lines, "", f"With {here}, on {platform.machine()}.", ""])
    document = DOCUMENT.read_text()
    assert PLACE.search(document), f"{DOCUMENT} has no place for the table"
    DOCUMENT.write_text(PLACE.sub(lambda match: match[1] + table + "\n" + match[2], document))
    terminalreporter.write_line(f"Wrote the table in {DOCUMENT}")


def installed(package):
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed)"
