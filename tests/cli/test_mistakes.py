"""Mistakes of any kind are one sentence, told before any work; and what is shown can be read on a narrow terminal."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
from transformers import AutoTokenizer
from typer.testing import CliRunner, Result

from mega_transformers import MegaConfig, MegaForSequenceClassification
from mega_transformers.assets import bundled_model
from mega_transformers.cli import app, loading
from mega_transformers.cli.runtime import UserError, guarded
from mega_transformers.cli.tables import print_scores

SAMPLE = str(Path(__file__).parents[2] / "recipes" / "sample" / "test.txt")


def mega(*arguments: object, **env: str) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "200", **env})


def error_of(result: Result) -> str:
    assert result.exit_code in (1, 2), result.output
    assert "Traceback" not in result.output
    return " ".join(result.stderr.replace("│", " ").split())


PROBE = """
import sys
sys.argv = ["mega", *{arguments!r}]
from mega_launcher import main
try:
    main()
finally:
    print("torch:", "torch" in sys.modules, file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fill-mask", "a mask"], "no mask in 'a mask': write <mask> in place"),
        (["text2text", "a", "--num-beams", "2", "--num-return-sequences", "3"], "--num-return-sequences 3"),
        (["fill-mask", "a <mask>", "--dtype", "int8"], "--dtype int8: expected auto"),
        (["generate", "a", "--device", "gpu"], "--device gpu: expected auto"),
        (["generate", "a", "--num-beams", "1000000"], "--num-beams"),
        (["generate", "a", "--max-new-tokens", "100000000000000000000"], "--max-new-tokens"),
        (["text2text", "a", "--num-beams", "1000000"], "--num-beams"),
        (["text2text", "--file", SAMPLE + "x"], "cannot read"),
        (["fill-mask", "a <mask>", "-m", "mega-prose-5"], "did you mean mega-prose-5m?"),
        (["perplexity", SAMPLE, "--json", "/nowhere/x.json"], "--json /nowhere/x.json: there is no folder /nowhere"),
        (["perplexity", SAMPLE, "--json", "."], "--json .: this is a folder"),
        (["perplexity", SAMPLE, "--json", os.devnull], "this is not a regular file"),
        (["perplexity", SAMPLE, "--mode", "slide"], "mode='slide' is unknown"),
        (["perplexity", SAMPLE, "--clean", "soap"], "--clean soap is unknown"),
        (["explain", "a mask"], "no mask in 'a mask': write <mask> in place"),
        (["explain", "a <mask>", "--html", "/nowhere/x.html"], "--html /nowhere/x.html: there is no folder /nowhere"),
        (["embed", "a", "--pooling", "cls"], "--pooling cls: expected mean, first, last or max"),
        (["embed", "a", "--output", "/nowhere/x.npz"], "--output /nowhere/x.npz: there is no folder /nowhere"),
        (["classify", "--file", SAMPLE + "x", "-m", "mega-prose-5m"], "cannot read"),
        (["evaluate", "mega-prose-5m", "--data", SAMPLE, "--json", "/nowhere/x"], "there is no folder /nowhere"),
        (["evaluate", "mega-prose-5m", "--data", "none"], "there is no file none"),
        (["evaluate", "mega-prose-5m", "--data", SAMPLE, "--probability", "2"], "less than 1; got 2.0"),
        (["evaluate", "mega-prose-5m", "--data", SAMPLE, "--num-beams", "1000000"], "--num-beams"),
        (["evaluate", "mega-prose-5", "--data", SAMPLE], "MODEL mega-prose-5: there is no such folder"),
        (
            ["train", "mlm-smoke", "--set", "masking.probability=-1"],
            "masking.probability: Input should be greater than 0",
        ),
        (["train", "mlm-smoke", "--output-dir", SAMPLE], f"--output-dir {SAMPLE}: this is a file"),
        (["train", "mlm-smoke", "--output-dir", SAMPLE + "/run"], f"{SAMPLE} is a file; name another folder"),
        (["train", "mlm-smoke", "--export", SAMPLE], f"--export {SAMPLE}: this is a file"),
        (["train", "mlm-smok"], "did you mean mlm-smoke"),
        (["convert", "none.pt", "out"], "SOURCE none.pt: there is no file or folder"),
        (["convert", SAMPLE, SAMPLE], f"OUTPUT {SAMPLE}: this is a file"),
        (["publish", "mega-prose-5m", SAMPLE], f"OUTPUT {SAMPLE}: this is a file"),
        (["publish", "nothing"], "FOLDER nothing: there is no such folder or bundled model"),
        (["doctor", "--device", "gpu"], "--device gpu: expected auto"),
    ],
)
def test_arguments_are_checked_before_pytorch_is_imported(arguments: list[str], message: str) -> None:
    """In a process of its own, where nothing has imported it."""
    result = subprocess.run(
        [sys.executable, "-c", PROBE.format(arguments=arguments)],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "COLUMNS": "300"},
    )
    assert result.returncode in (1, 2)
    assert "torch: False" in result.stderr and "Traceback" not in result.stderr
    assert message in " ".join(result.stderr.replace("│", " ").split())


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert "cannot write to" in error_of(mega("perplexity", SAMPLE, "--json", tmp_path / "x.json"))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (UserError("wrong"), "Error: wrong"),
        (OSError(errno.ENOSPC, "No space left on device", "out.json"), "Error: out.json: No space left on device"),
        (torch.OutOfMemoryError("CUDA out of memory"), "Error: there is not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "Error: there is not enough memory"),
        (MemoryError(), "Error: there is not enough memory"),
    ],
)
def test_errors_that_a_user_can_mend_are_sentences(error: Exception, message: str, capsys) -> None:
    def command() -> None:
        raise error

    with pytest.raises(typer.Exit) as end:
        guarded(command)()
    assert end.value.exit_code == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("error", [RuntimeError("a defect"), OSError("a defect"), ValueError("a defect")])
def test_defects_keep_their_traceback(error: Exception) -> None:
    def command() -> None:
        raise error

    with pytest.raises(type(error), match="a defect"):
        guarded(command)()


@pytest.mark.parametrize(
    ("command", "model", "remedy"),
    [
        ("fill-mask", "mega-prose-clm-3m", "(MegaForCausalLM) and cannot fill masks; use it with mega generate"),
        ("fill-mask", "mega-g2p-1m", "use it with mega text2text"),
        ("generate", "mega-prose-5m", "use it with mega fill-mask"),
        ("generate", "mega-g2p-1m", "use it with mega text2text"),
        ("text2text", "mega-prose-5m", "use it with mega fill-mask"),
        ("text2text", "mega-prose-clm-3m", "use it with mega generate"),
        ("perplexity", "mega-prose-5m", "or mega evaluate"),
        ("evaluate", "mega-prose-clm-3m", "or mega perplexity"),
    ],
)
def test_a_model_with_another_head_names_its_command(command: str, model: str, remedy: str) -> None:
    arguments = {
        "fill-mask": ["a <mask>", "-m", model],
        "perplexity": [SAMPLE, "-m", model],
        "evaluate": [model, "--data", SAMPLE],
    }.get(command, ["a", "-m", model])
    assert remedy in error_of(mega(command, *arguments))


def test_a_model_that_no_command_runs(tiny_checkpoint: Path, tmp_path: Path) -> None:
    MegaForSequenceClassification(MegaConfig.from_pretrained(tiny_checkpoint)).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_checkpoint).save_pretrained(tmp_path)
    message = error_of(mega("fill-mask", "a <mask>", "-m", tmp_path))
    assert "is a text classifier (MegaForSequenceClassification) and cannot fill masks" in message
    assert "use it with mega classify" in message


def test_evaluate_knows_bundled_models_and_asks_no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(loading, "_hub_answers", lambda *_: pytest.fail("asked the hub"))
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("connected"))
    for model in ("mega-prose-5m", bundled_model()):
        result = mega("evaluate", model, "--data", SAMPLE, "--sequence-length", 32, "--device", "cpu")
        assert result.exit_code == 0, result.output


def test_help_says_defaults() -> None:
    for command in typer.main.get_command(app).commands.values():  # type: ignore[attr-defined]
        for parameter in command.params:
            text = getattr(parameter, "help", None) or ""
            assert "for none" not in text and "or none:" not in text, (command.name, parameter.name)
            optional = parameter.default is None and not parameter.required and not parameter.multiple
            if parameter.param_type_name == "option" and optional and parameter.name != "help":
                assert "default" in text.lower(), (command.name, parameter.name)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    """What the script that `--show-completion` prints asks for, when the tab key is pressed."""

    def completed(words: str) -> str:
        env = {**os.environ, "_MEGA_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_ARGS": words}
        env |= {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" ")), "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
        code = "import sys; sys.argv = ['mega']; from mega_launcher import main; main()"
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env).stdout

    assert "fill-mask" in completed("mega fi")
    assert "mega-prose-5m" in completed("mega fill-mask --model mega-p")
    assert "bfloat16" in completed("mega generate --dtype b")
    assert "mlm-smoke" in completed("mega train mlm")


def test_tables_fit_50_columns() -> None:
    for arguments in (["fill-mask", "The <mask> of the United States gave a speech."], ["perplexity", SAMPLE]):
        result = mega(*arguments, COLUMNS="50")
        assert result.exit_code == 0, result.output
        assert max(map(len, result.stdout.splitlines())) <= 50
        assert "…" not in result.stdout and len(result.stdout.splitlines()) < 20


def test_scores_are_rows_where_columns_would_be_cut(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    columns = {"tokens": ("tokens", ","), "word_perplexity": ("word perplexity", ".2f"), "a": ("characters", ".1f")}
    scores = {"model": {"tokens": 12345.0, "word_perplexity": 5.5, "a": 1.0}}
    for width in (80, 30):
        monkeypatch.setenv("COLUMNS", str(width))
        print_scores("of a text", scores, columns)
        shown = capsys.readouterr().out
        assert "12,345.0" in shown and "5.50" in shown and "characters" in shown
        assert ("word perplexity" in shown) == (width == 30) or width == 80
        assert max(map(len, shown.splitlines())) <= width


@pytest.mark.parametrize(("columns", "width"), [(60, 8), (96, 12), (400, 40)])
def test_a_full_bar_is_a_probability_of_1(monkeypatch: pytest.MonkeyPatch, columns: int, width: int) -> None:
    from mega_transformers.cli import fill_mask

    scores = {"a": 1.0, "b": 0.5, "c": 0.0001, "d": 0.0}
    candidates = [{"token_str": token, "score": score} for token, score in scores.items()]
    monkeypatch.setattr(fill_mask, "candidates_of", lambda *_: [candidates])
    shown = mega("fill-mask", "The <mask>.", COLUMNS=str(columns)).stdout
    rows = [line for line in shown.splitlines() if line.split() and line.split()[0].isdigit()]
    assert [row.count("█") for row in rows] == [width, width // 2, 0, 0]
    assert ["▏" in row for row in rows] == [False, False, True, False]
    assert [row.split()[2] for row in rows] == ["100.0%", "50.0%", "<0.1%", "0.0%"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["fill-mask", "The <mask>."],
        ["generate", "The", "--max-new-tokens", "1", "--json"],
        ["text2text", "the"],
        ["perplexity", SAMPLE],
    ],
)
def test_tokenising_shows_that_it_goes_on(arguments: list[str]) -> None:
    """A megabyte of text takes seconds."""
    assert "Tokenising" in mega(*arguments, FORCE_COLOR="1").stderr
    assert "Tokenising" not in mega(*arguments).stderr


def test_fill_mask_imports_no_library_that_it_does_not_use() -> None:
    code = (
        PROBE.format(arguments=["fill-mask", "The <mask> sank."])
        .replace('"torch:", "torch" in', '"unused:", {"datasets", "pandas", "matplotlib", "sklearn"} &')
        .replace("sys.modules, file", "set(sys.modules), file")
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert result.returncode == 0, result.stderr
    assert "unused: set()" in result.stderr
