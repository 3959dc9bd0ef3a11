"""Commands of other packages that `mega run` makes know Mega."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.import_utils import is_serve_available

import mega_transformers  # noqa: F401

BUNDLED = Path(__file__).parents[2] / "src" / "mega_transformers" / "assets" / "mega-prose-clm-3m"
MEGA = [sys.executable, "-m", "mega_transformers", "run"]


def test_every_python_process_knows_mega():
    code = "import transformers; print(type(transformers.AutoConfig.for_model('mega')).__name__)"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}], check=True)"
    done = subprocess.run([*MEGA, "python", "-c", child], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "MegaConfig"


def test_a_sitecustomize_of_the_user_runs_too(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("print('mine')")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([*MEGA, "python", "-c", ""], capture_output=True, text=True, env=environment)
    assert done.stdout.split().count("mine") >= 2  # of `mega` itself, and of what it runs


def test_exit_codes_and_unknown_commands():
    assert subprocess.run([*MEGA, "python", "-c", "raise SystemExit(7)"]).returncode == 7
    unknown = subprocess.run([*MEGA, "no-such-command"], capture_output=True, text=True)
    assert unknown.returncode == 1 and "no command 'no-such-command'" in unknown.stderr
    nothing = subprocess.run(MEGA, capture_output=True, text=True)
    assert nothing.returncode == 1 and "a command is missing" in nothing.stderr


def test_stop_strings():
    model, tokenizer = (auto.from_pretrained(BUNDLED) for auto in (AutoModelForCausalLM, AutoTokenizer))
    prompt = tokenizer("The president of the", return_tensors="pt")
    ids = model.generate(**prompt, max_new_tokens=30, do_sample=False)[0]
    text = tokenizer.decode(ids[prompt["input_ids"].shape[1] :])
    stop = text[5:9]
    ids = model.generate(**prompt, max_new_tokens=30, do_sample=False, stop_strings=[stop], tokenizer=tokenizer)[0]
    shorter = tokenizer.decode(ids[prompt["input_ids"].shape[1] :])
    assert text.startswith(shorter) and stop in shorter and len(shorter) < len(text)


def test_transformers_serve():
    if not is_serve_available():
        pytest.skip("needs transformers[serving]")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [*MEGA, "transformers", "serve", str(BUNDLED), "--port", str(port), "--device", "cpu"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def ask(path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/{path}", data, headers={"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    try:
        for _ in range(120):
            try:
                ask("health")
                break
            except OSError:
                assert server.poll() is None, "the server ended"
                time.sleep(1)
        body = {"model": str(BUNDLED), "prompt": "The president of the", "max_tokens": 8, "temperature": 0}
        served = ask("v1/completions", body)["choices"][0]["text"]
    finally:
        server.terminate()
        server.wait(timeout=60)
    model, tokenizer = (auto.from_pretrained(BUNDLED) for auto in (AutoModelForCausalLM, AutoTokenizer))
    prompt = tokenizer(body["prompt"], return_tensors="pt")
    ids = model.generate(**prompt, max_new_tokens=8, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert served.strip() == tokenizer.decode(ids, skip_special_tokens=True).strip()


def test_lm_eval():
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    # otherwise it puts one start of a text before the tokenizer's own where it judges whole texts
    harness = HFLM(pretrained=str(BUNDLED), device="cpu", batch_size=2, dtype="float32", add_bos_token=False)
    assert harness.backend == "causal"
    model, tokenizer = (auto.from_pretrained(BUNDLED) for auto in (AutoModelForCausalLM, AutoTokenizer))

    def log_likelihood(context, continuation):
        start = tokenizer(context, add_special_tokens=False)["input_ids"] or [harness.prefix_token_id]
        ids = tokenizer(context + continuation, add_special_tokens=False)["input_ids"]
        given = torch.tensor([ids if context else start + ids])
        with torch.no_grad():
            words = model(input_ids=given).logits.log_softmax(-1)[0, :-1]
        chosen = words.gather(1, given[0, 1:].unsqueeze(1)).squeeze(1)
        return chosen[len(start) - 1 :].sum().item()

    def instance(kind, *arguments):
        return Instance(kind, doc={}, arguments=arguments, idx=0)

    pairs = [("The president of the", " United States"), ("He was born in the city", " of London and died")]
    found = harness.loglikelihood([instance("loglikelihood", *pair) for pair in pairs], disable_tqdm=True)
    assert [score for score, _ in found] == pytest.approx([log_likelihood(*pair) for pair in pairs], abs=1e-3)
    text = "The war ended in the spring of that year ."
    (rolling,) = harness.loglikelihood_rolling([instance("loglikelihood_rolling", text)], disable_tqdm=True)
    assert rolling == pytest.approx(log_likelihood("", text), abs=1e-3)
