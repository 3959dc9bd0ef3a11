"""Tables, the picture, and their way into the documentation."""

import pytest
from fakes import empty_report, run
from rich.console import Console

from benchmarks.cases import CASES, OLD
from benchmarks.report import BEGIN, END, markdown, publish, size, terminal

NAMES = ("train-8192-chunk512", "infer-scaling", "decode-2048-full", "decode-scaling")


@pytest.fixture
def report():
    whole = empty_report()
    for name in NAMES:
        part, _, _ = run(CASES[name])
        whole.cases += part.cases
        whole.versions |= part.versions
    return whole


def shown(report, width=80):
    console = Console(width=width)
    with console.capture() as capture:
        console.print(terminal(report))
    return capture.get()


def test_terminal_table_fits_eighty_columns(report):
    text = shown(report)
    assert max(map(len, text.splitlines())) <= 80
    for expected in ("train-8192-chunk512", OLD, "5.00x", "≥ 4x", "yes", "cores", "4096"):
        assert expected in text


def test_markdown_rows_have_every_column(report):
    lines = markdown(report).splitlines()
    table = [line for line in lines[: lines.index("")] if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table[2:]]
    rows = {(name.strip("`"), against): outcome for name, against, *outcome in cells}
    outcome = rows["train-8192-chunk512", OLD]
    assert outcome[:5] == ["2.00 s", "10.00 s", "5.00x", "≥ 4x", "yes"]
    assert outcome[5:8] == ["7.00 s", "15.00 s", "2.14x"]
    assert outcome[8:] == ["0.0 MiB", "0.0 MiB", "0.22", "≤ 0.35", "yes"]
    assert "with uncommitted changes" in markdown(report)
    assert "Not in this run: `train-2048-full`" in markdown(report)


def test_tokens_a_second_and_what_memory_is(report):
    for text in (markdown(report), shown(report, width=200)):
        assert f"Tokens a second of processor time in decode-2048-full: ours 0, {OLD} 0" in text
        assert text.count("sum of 2 threads / wall time / peak memory in MiB") == 1
        assert text.count("sum of 2 threads / wall time / memory of the cache in MiB") == 1
        assert "Mega, this repository, causal: 0.00M parameters" in text


def test_calls_of_a_step_and_the_step_over_its_matrix_products(report):
    report.cases += run(CASES["train-2048-full-dropout"])[0].cases
    for text in (markdown(report), shown(report, width=200)):
        assert f"Calls of aten functions a token in decode-2048-full: ours 70, {OLD} 30" in text
        assert "Training step / its matrix products in train-2048-full-dropout: 1.00" in text
        assert text.count("Calls of aten") == len(CASES["decode-2048-full"].against)


def test_the_processor_and_its_time_are_named(report):
    report.machine |= {"cpu": "Some CPU", "vendor": "Vendor", "family": "6", "flags": ["amx", "avx2"]}
    report.stolen = 0.123
    for text in (markdown(report), shown(report, width=300)):
        assert "Machine: Some CPU (Vendor, family 6, amx, avx2)" in text
        assert "stolen by the host: 12.3% of the time cores had work" in text
        assert "processor time, sum of 2 threads" in text
    report.threads, report.stolen = 1, None
    report.machine |= {"vendor": None, "family": None, "flags": []}
    text = markdown(report)
    assert "processor time, one thread" in text and "Machine: Some CPU, " in text and "stolen" not in text


def test_small_and_large_sizes():
    assert [size(value) for value in (None, 0, 2**19, 10 * 2**20)] == ["-", "0 MiB", "0.5 MiB", "10 MiB"]


def test_a_refusal_shows_no_number():
    report, _, _ = run(CASES["train-2048-full"], wrong=1.0)
    row = next(line for line in markdown(report).splitlines() if line.startswith("| `train-2048-full`"))
    assert "refused: no speed-up of a wrong result" in row and "x |" not in row
    text = shown(report)
    assert "refused" in text and "No ratio for train-2048-full" in text


def test_publish_replaces_what_is_between_the_markers(report, tmp_path):
    pytest.importorskip("matplotlib")
    document = tmp_path / "performance.md"
    document.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    written = publish(report, document)
    once = document.read_text()
    publish(report, document)
    assert document.read_text() == once
    assert once.startswith("before\n") and once.endswith("\nafter\n") and "old" not in once and "5.00x" in once
    assert sorted(path.name for path in tmp_path.iterdir()) == ["performance.md", "performance.png"]
    assert set(written) == set(tmp_path.iterdir())
    assert (tmp_path / "performance.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("text", ["", f"{BEGIN}\n", f"{END}\n{BEGIN}\n", f"{BEGIN}\n{END}\n{BEGIN}\n{END}\n"])
def test_publish_needs_its_markers(report, tmp_path, text):
    document = tmp_path / "performance.md"
    document.write_text(text)
    with pytest.raises(ValueError, match=r"performance\.md needs the lines"):
        publish(report, document)
    assert document.read_text() == text and len(list(tmp_path.iterdir())) == 1


def test_a_quick_run_is_not_published(report, tmp_path):
    report.quick = True
    with pytest.raises(ValueError, match="quick"):
        publish(report, tmp_path / "performance.md")


def test_a_run_against_another_tree_is_not_published(report, tmp_path):
    report.before = {"revision": "b" * 40, "dirty": False}
    assert "revision: aaaaaaaaaaaa with uncommitted changes; before: bbbbbbbbbbbb" in markdown(report)
    with pytest.raises(ValueError, match="another tree"):
        publish(report, tmp_path / "performance.md")


def test_the_repository_document_has_its_markers():
    from benchmarks.report import DOCUMENT

    text = DOCUMENT.read_text()
    assert text.count(BEGIN) == text.count(END) == 1 and text.index(BEGIN) < text.index(END)
