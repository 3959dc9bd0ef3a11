"""`mega generate`: the text of transformers' `generate`, however it is asked for, and a message for every mistake."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForPreTraining,
    CompileConfig,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    pipeline,
    set_seed,
)
from typer.testing import CliRunner, Result

from mega_transformers import MegaConfig, MegaForCausalLM, MegaModel
from mega_transformers.cli import app, generator

SHORT = "The ship"
LONG = "A whale swam under the ship; nobody had seen the whale before. The captain"
PROMPTS = [SHORT, LONG, "It is a truth"]


def mega(*arguments: object, stdin: str | None = None) -> Result:
    """On the CPU, whose numbers the tests know."""
    command = ["generate", "--device", "cpu", *map(str, arguments)]
    return CliRunner().invoke(app, command, input=stdin, env={"COLUMNS": "200"})


def stdout(result: Result) -> str:
    assert result.exit_code == 0, result.stderr
    return result.stdout


def answers(result: Result) -> list[dict]:
    return [json.loads(line) for line in stdout(result).splitlines()]


def refused(result: Result, *parts: str, code: int = 1) -> None:
    assert result.exit_code == code
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    message = " ".join(result.stderr.replace("│", " ").split())
    for part in parts:
        assert part in message


def plain(folder: Path, prompt: str, new: int = 20, **arguments: Any) -> tuple[str, int]:
    """What `generate` gives for a prompt: the text after it and its number of tokens."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(prompt, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=new, **{"do_sample": False, "top_k": 0, **arguments})
    made = output[0, inputs["input_ids"].shape[1] :]
    return tokenizer.decode(made, skip_special_tokens=True), len(made)


@pytest.fixture
def variant(tiny_causal_checkpoint: Path, tmp_path: Path) -> Any:
    """Makes a causal checkpoint with other fields in its configuration."""

    def make(**fields: Any) -> Path:
        folder = tmp_path / "variant"
        torch.manual_seed(0)
        MegaForCausalLM(MegaConfig.from_pretrained(tiny_causal_checkpoint, **fields)).save_pretrained(folder)
        AutoTokenizer.from_pretrained(tiny_causal_checkpoint).save_pretrained(folder)
        return folder

    return make


@pytest.mark.parametrize("prompt", [SHORT, LONG])
@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        (["--greedy"], {}),
        (["--num-beams", 3], {"num_beams": 3}),
        (["--greedy", "--prompt-lookup", 4], {}),
        (["--greedy", "--repetition-penalty", 1.3], {"repetition_penalty": 1.3}),
        ([], {"do_sample": True, "temperature": 0.8, "top_p": 0.95}),
        (
            ["--temperature", 1.5, "--top-k", 9, "--top-p", 1],
            {"do_sample": True, "temperature": 1.5, "top_k": 9, "top_p": 1.0},
        ),
        (["--sample", "--num-beams", 2, "--top-p", 1], {"do_sample": True, "num_beams": 2, "temperature": 0.8}),
    ],
    ids=["greedy", "beams", "lookup", "penalty", "default", "sampling", "sampled beams"],
)
def test_text_is_that_of_generate(
    tiny_causal_checkpoint: Path, prompt: str, options: list[object], arguments: dict[str, Any]
) -> None:
    set_seed(5)
    text, count = plain(tiny_causal_checkpoint, prompt, **arguments)
    common = ["-m", tiny_causal_checkpoint, "-n", 20, "--seed", 5, *options]
    (answer,) = answers(mega(prompt, *common, "--json"))
    assert (answer["prompt"], answer["text"], answer["tokens"]) == (prompt, text, count)
    assert answer["tokens_per_second"] == pytest.approx(count / answer["seconds"], rel=1e-2)
    shown = mega(prompt, *common)
    assert stdout(shown) == f"{prompt}{text}\n"
    assert shown.stderr == ""


@pytest.mark.parametrize("prompt", PROMPTS)
def test_text_is_that_of_the_pipeline(tiny_causal_checkpoint: Path, prompt: str) -> None:
    write = pipeline("text-generation", model=str(tiny_causal_checkpoint), device="cpu")
    expected = write(prompt, max_new_tokens=20, do_sample=False)[0]["generated_text"]
    assert stdout(mega(prompt, "-m", tiny_causal_checkpoint, "-n", 20, "--greedy")) == expected + "\n"


@pytest.mark.parametrize("seed", range(4))
def test_streamed_text_is_the_text(tiny_causal_checkpoint: Path, seed: int) -> None:
    """Also of a random model's bytes that are no UTF-8."""
    common = ["-m", tiny_causal_checkpoint, "-n", 80, "--seed", seed, "--temperature", 2]
    streamed = stdout(mega(*PROMPTS, *common, "--stream"))
    assert streamed == stdout(mega(*PROMPTS, *common, "--no-stream"))
    assert streamed == "\n".join(f"{a['prompt']}{a['text']}\n" for a in answers(mega(*PROMPTS, *common, "--json")))


def pieces(tokenizer: Any, prompt: list[int], new: list[int]) -> list[str]:
    found: list[str] = []
    stream = generator.TextStream(tokenizer, found.append)
    stream.put(torch.tensor([prompt]))
    for token in new:
        stream.put(torch.tensor([token]))
    stream.end()
    assert "".join(found) == generator.text_after(tokenizer, prompt, new)
    return found


def test_pieces_are_tokens_and_whole_characters(tiny_causal_checkpoint: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_causal_checkpoint)
    ids = tokenizer(f"{LONG} 鯨 €\n gave", add_special_tokens=False)["input_ids"]
    found = pieces(tokenizer, tokenizer(SHORT)["input_ids"], [*ids, tokenizer.eos_token_id])
    assert "".join(found) == f"{LONG} 鯨 €\n gave"
    assert {"鯨", "€"} <= set(found)
    assert len(found) == len(ids) - 4  # two characters of three bytes, without a token of their own


def test_spaces_that_a_tokenizer_strips_at_the_start(tmp_path: Path) -> None:
    """As those of SentencePiece models do."""
    words = ["<unk>", "▁the", "▁ship", "s", "▁sank"]
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    assert tokenizer.decode([2, 3]) == "ships"
    assert pieces(tokenizer, [1], [2, 3, 4] * 20) == [" ship", "s", " sank"] * 20


@pytest.mark.parametrize("batch_size", [2, 3, 8])
def test_batches_give_what_one_by_one_gives(tiny_causal_checkpoint: Path, batch_size: int) -> None:
    def texts(*options: object) -> list[tuple[str, str, int]]:
        result = mega("-m", tiny_causal_checkpoint, "-n", 30, "--json", *options, stdin="\n".join(PROMPTS * 2))
        return [(answer["prompt"], answer["text"], answer["tokens"]) for answer in answers(result)]

    for mode in (["--greedy"], ["--num-beams", 2]):
        assert texts(*mode, "--batch-size", batch_size) == texts(*mode)
    shown = [
        stdout(mega(*PROMPTS, "-m", tiny_causal_checkpoint, "--greedy", "--batch-size", n)) for n in (1, batch_size)
    ]
    assert shown[0] == shown[1]


def test_captured_steps_give_the_same_text(tiny_causal_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, where transformers compiles when told to, and eagerly."""
    expected = answers(mega(*PROMPTS, "--greedy", "--json", "-n", 20, "--model", tiny_causal_checkpoint))
    given, arguments = [], generator.captured_decoding

    def captured(model: Any, length: int) -> dict[str, Any]:
        how = CompileConfig(backend="eager", mode=None, fullgraph=True)
        how._compile_all_devices = True
        given.append(arguments(model, length))
        return given[-1] | {"compile_config": how}

    monkeypatch.setattr(generator, "captured_decoding", captured)
    monkeypatch.setattr(generator, "capture_obstacle", lambda model: None)
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    result = mega(*PROMPTS, "--greedy", "--json", "-n", 20, "--model", tiny_causal_checkpoint)
    assert [answer["text"] for answer in answers(result)] == [answer["text"] for answer in expected]
    assert "--no-capture starts at once" in result.stderr
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert [options["cache"].layers[0].max_cache_len for options in given] == [256] * len(PROMPTS)
    assert all(options["compile_config"].mode == "reduce-overhead" for options in given)
    given.clear()
    for option in (["--no-capture"], ["--num-beams", 2], ["--prompt-lookup", 3]):
        assert stdout(mega(SHORT, "--greedy", *option, "-n", 3, "--model", tiny_causal_checkpoint)) and not given


def test_what_cannot_be_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    refused(mega(SHORT, "--capture"), "--capture: is for a CUDA device, and the model runs on cpu; leave it out")
    for option in ("--num-beams", "--prompt-lookup"):
        refused(mega(SHORT, "--greedy", "--capture", option, 2), "--capture", f"together with {option}", code=2)

    class OnGPU(MegaForCausalLM):
        device = torch.device("cuda")

        def __init__(self) -> None:
            pass

    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: False)
    assert "mega-transformers[gpu]" in str(generator.capture_obstacle(OnGPU()))
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: True)
    assert generator.capture_obstacle(OnGPU()) is None
    monkeypatch.setattr(OnGPU, "_can_compile_fullgraph", False)
    assert "does not compile a decoding step of OnGPU" in str(generator.capture_obstacle(OnGPU()))


def test_a_text_ends_where_the_model_ends_it(tiny_causal_checkpoint: Path, variant: Any) -> None:
    """In a batch the other goes on."""
    ids = AutoTokenizer.from_pretrained(tiny_causal_checkpoint)(SHORT, return_tensors="pt")["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(tiny_causal_checkpoint)
    made = model.generate(ids, max_new_tokens=20, do_sample=False)[0, ids.shape[1] :].tolist()
    folder = variant(eos_token_id=made[6])
    end = made.index(made[6]) + 1
    first, second = answers(mega(SHORT, LONG, "-m", folder, "--greedy", "--batch-size", 2, "--json", "-n", 20))
    assert first["tokens"] == end
    assert first["text"] == AutoTokenizer.from_pretrained(folder).decode(made[:end])
    (alone,) = answers(mega(LONG, "-m", folder, "--greedy", "--json", "-n", 20))
    assert second["text"] == alone["text"]


def test_stdin_is_one_prompt_per_line(tiny_causal_checkpoint: Path) -> None:
    common = ["-m", tiny_causal_checkpoint, "-n", 5, "--greedy"]
    given = stdout(mega(SHORT, LONG, *common))
    for arguments in ([], ["-"]):
        assert stdout(mega(*arguments, *common, stdin=f"{SHORT}\n\n  {LONG}  \n")) == given
    assert stdout(mega(SHORT, "-", *common, stdin=f"{LONG}\n")) == given


def test_stdin_as_one_prompt(tiny_causal_checkpoint: Path) -> None:
    common = ["-m", tiny_causal_checkpoint, "-n", 5, "--greedy", "--json"]
    text = f"{SHORT}\n\n  {LONG}"
    assert [a["prompt"] for a in answers(mega("--whole", *common, stdin=text + "\n"))] == [text]
    assert [a["prompt"] for a in answers(mega(SHORT, "-", "--whole", *common, stdin=text))] == [SHORT, text]


def test_stats_go_to_stderr(tiny_causal_checkpoint: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_causal_checkpoint)
    read = sum(len(tokenizer(prompt)["input_ids"]) for prompt in PROMPTS)
    common = ["-m", tiny_causal_checkpoint, "-n", 10, "--greedy"]
    for options in ([], ["--batch-size", 3], ["--num-beams", 2]):
        result = mega(*PROMPTS, *common, *options, "--stats")
        assert stdout(result) == stdout(mega(*PROMPTS, *common, *options))
        assert f"prefill {read} tokens in" in result.stderr
        assert "decode 27 tokens in" in result.stderr
        assert result.stderr.count("tokens/s)") == 2
    assert "decode 0 tokens in" in mega(SHORT, "-m", tiny_causal_checkpoint, "-n", 1, "--stats").stderr


def test_a_tokenizers_closing_token_is_dropped(
    tiny_causal_checkpoint: Path, tiny_tokenizer_folder: Path, tmp_path: Path
) -> None:
    MegaForCausalLM.from_pretrained(tiny_causal_checkpoint).save_pretrained(tmp_path)
    closing = AutoTokenizer.from_pretrained(tiny_tokenizer_folder, config=MegaConfig())
    closing.save_pretrained(tmp_path)
    ids = closing(SHORT)["input_ids"]
    assert ids[-1] == closing.sep_token_id
    output = MegaForCausalLM.from_pretrained(tmp_path).generate(
        torch.tensor([ids[:-1]]), max_new_tokens=10, do_sample=False
    )
    (answer,) = answers(mega(SHORT, "-m", tmp_path, "-n", 10, "--greedy", "--json"))
    assert answer["text"] == closing.decode(output[0, len(ids) - 1 :], skip_special_tokens=True)


@pytest.fixture
def gpt2(tiny_causal_checkpoint: Path, tmp_path: Path) -> Path:
    tokenizer = AutoTokenizer.from_pretrained(tiny_causal_checkpoint)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=40, initializer_range=0.5
    )
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    return tmp_path / "gpt2"


def test_another_architecture(gpt2: Path) -> None:
    expected = [plain(gpt2, prompt, new=10)[0] for prompt in PROMPTS]
    for options in ([], ["--batch-size", 3], ["--prompt-lookup", 2]):
        result = mega(*PROMPTS, "-m", gpt2, "-n", 10, "--greedy", "--json", *options)
        assert [answer["text"] for answer in answers(result)] == expected


def test_texts_longer_than_the_model_takes(gpt2: Path, variant: Any) -> None:
    read = len(AutoTokenizer.from_pretrained(gpt2)(SHORT)["input_ids"])
    room = 40 - read + 1
    stdout(mega(SHORT, "-m", gpt2, "-n", room))
    refused(mega(SHORT, "-m", gpt2, "-n", room + 1), f"--max-new-tokens {room + 1}", "at most 40", f"to {room}")
    refused(mega(SHORT, LONG * 5, "-m", gpt2, "-n", 1), "at most 40", "; shorten the prompt")
    simple = variant(use_chunking=False, chunk_size=-1, relative_positional_bias="simple", max_positions=32)
    refused(mega(SHORT, "-m", simple, "-n", 60), "--max-new-tokens 60", "at most 32")
    rotary = variant(use_chunking=False, chunk_size=-1, max_positions=32)
    assert "max_positions=32" in mega(SHORT, "-m", rotary, "-n", 60).stderr


INTERRUPTS = pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")


@INTERRUPTS
@pytest.mark.parametrize("options", [[], ["--json"], ["--json", "--batch-size", "2"], ["--num-beams", "2"]])
def test_interrupt_keeps_what_is_there(
    tiny_causal_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    steps: list[int] = []
    watch = generator.Watch.__call__

    def interrupt(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = watch(self, *args, **kwargs)
        steps.append(len(steps))
        if len(steps) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return result

    monkeypatch.setattr(generator.Watch, "__call__", interrupt)
    before = signal.getsignal(signal.SIGINT)
    result = mega(SHORT, SHORT, LONG, "-m", tiny_causal_checkpoint, "-n", 50, "--greedy", *options)
    assert signal.getsignal(signal.SIGINT) is before
    assert result.exit_code == 130
    assert result.stderr == ""
    assert len(steps) == 5
    beams = {"num_beams": 2} if "--num-beams" in options else {}
    expected, _ = plain(tiny_causal_checkpoint, SHORT, new=5, **beams)
    if "--json" in options:
        found = [json.loads(line) for line in result.stdout.splitlines()]
        rows = 2 if "--batch-size" in options else 1
        assert [(answer["text"], answer["tokens"]) for answer in found] == [(expected, 5)] * rows
    else:
        assert result.stdout == f"{SHORT}{expected}\n"


@INTERRUPTS
def test_interrupt_before_the_first_token(tiny_causal_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = MegaModel.forward

    def interrupted(self: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("cache") is not None:
            os.kill(os.getpid(), signal.SIGINT)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(MegaModel, "forward", interrupted)
    result = mega(SHORT, LONG, "-m", tiny_causal_checkpoint)
    assert (result.exit_code, result.stdout, result.stderr) == (130, f"{SHORT}\n", "")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--max-new-tokens", 0], ["--max-new-tokens"]),
        (["--max-new-tokens", -3], ["--max-new-tokens"]),
        (["--temperature", 0], ["--temperature", "0 must be above 0", "--greedy"]),
        (["--temperature", -1], ["--temperature", "-1 must be above 0"]),
        (["--temperature", "nan"], ["--temperature", "nan must be above 0"]),
        (["--top-p", 0], ["--top-p", "0 must be above 0 and at most 1"]),
        (["--top-p", 1.5], ["--top-p", "1.5 must be"]),
        (["--top-k", -1], ["--top-k"]),
        (["--repetition-penalty", 0], ["--repetition-penalty", "0 must be above 0"]),
        (["--seed", -1], ["--seed"]),
        (["--greedy", "--temperature", 0.5], ["--temperature", "0.5 is for sampling", "--sample"]),
        (["--greedy", "--top-k", 5], ["--top-k", "5 is for sampling"]),
        (["--num-beams", 2, "--top-p", 0.5], ["--top-p", "0.5 is for sampling"]),
        (["--num-beams", 0], ["--num-beams"]),
        (["--num-beams", 2, "--stream"], ["--stream", "--num-beams 2", "leave out one of the two"]),
        (["--batch-size", 2, "--stream"], ["--stream", "--batch-size 2"]),
        (["--json", "--stream"], ["--stream", "--json"]),
        (["--prompt-lookup", 0], ["--prompt-lookup"]),
        (["--prompt-lookup", 3, "--num-beams", 2], ["--prompt-lookup", "3 works on one text", "--num-beams 2"]),
        (["--prompt-lookup", 3, "--batch-size", 2], ["--prompt-lookup", "3 works on one text", "--batch-size 2"]),
        (["--whole"], ["--whole", "is about stdin"]),
        ([""], ["PROMPT", "'' is empty"]),
        ([" \n"], ["PROMPT", "is empty"]),
        (["-", "-"], ["can be given only once"]),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else None,
)
def test_usage_mistakes(arguments: list[object], parts: list[str]) -> None:
    """Found before the model is looked for."""
    refused(mega(SHORT, "-m", "/nowhere", *arguments), *parts, code=2)


def test_no_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    refused(mega(stdin="\n \n"), "stdin holds no text", "one prompt per line")
    refused(mega("--whole", stdin="\n \n"), "stdin holds no text")
    refused(mega("\udcff"), "not valid UTF-8")

    class Terminal:
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal())
    from mega_transformers.cli import generate

    with pytest.raises(Exception, match='mega generate "The ship"'):
        generate.generate([])


def test_models_that_cannot_be_used(
    tiny_checkpoint: Path, tiny_causal_checkpoint: Path, tmp_path: Path, variant: Any
) -> None:
    refused(mega(SHORT, "-m", tmp_path / "nowhere"), "there is no such folder")
    refused(mega(SHORT, "-m", tiny_checkpoint), "masked language model (MegaForMaskedLM)", "mega fill-mask")
    refused(mega(SHORT, "-m", "mega-prose-5m"), "mega-prose-5m is a masked language model", "mega fill-mask")
    tokenizer = AutoTokenizer.from_pretrained(tiny_causal_checkpoint)
    bert = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        initializer_range=0.5,  # predictions that change with later words
    )
    others = {
        "t5": T5ForConditionalGeneration(T5Config(vocab_size=len(tokenizer), d_model=8, d_ff=8, num_layers=1)),
        "bert": BertForPreTraining(bert),
        "headless": MegaModel(MegaConfig.from_pretrained(tiny_causal_checkpoint)),
    }
    for name, model in others.items():
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    refused(mega(SHORT, "-m", tmp_path / "t5"), "sequence-to-sequence model", "use it with mega text2text")
    refused(mega(SHORT, "-m", tmp_path / "bert"), "cannot continue texts", "sees the tokens that it predicts")
    refused(mega(SHORT, "-m", tmp_path / "headless"), "cannot continue texts", "lacks")
    refused(mega(SHORT, "-m", variant(vocab_size=100)), "do not belong together", "100")
