"""Examples of every command, which `mega COMMAND --help` shows at its end."""

from __future__ import annotations

EXAMPLES = {
    "fill-mask": (
        'mega fill-mask "The <mask> of the ship gave an order."',
        "mega fill-mask --top-k 3 --json - < texts.txt",
    ),
    "generate": (
        'mega generate "The ship" --max-new-tokens 100',
        'mega generate "The ship" --temperature 0.7 --top-p 0.9 --seed 1',
        'mega generate "The ship" --num-beams 4 --json',
    ),
    "text2text": (
        "mega text2text moving average",
        "mega text2text average --num-beams 5 --num-return-sequences 3",
    ),
    "embed": (
        'mega embed "The ship sailed." "The vessel left the port."',
        "mega embed --file sentences.txt --lines --output vectors.npz",
        'mega embed --file sentences.txt --lines --query "a ship at sea"',
    ),
    "classify": (
        'mega classify --model runs/classify-smoke/model "A text."',
        "mega classify --model path/to/model --file rows.csv --column body --json",
    ),
    "perplexity": (
        "mega perplexity book.txt",
        "mega perplexity book.txt --mode sliding --window 512 --stride 256",
    ),
    "explain": (
        'mega explain "The <mask> of the ship gave an order."',
        'mega explain "The <mask> sailed." --target ship --html report.html',
    ),
    "train": (
        "mega train mlm-smoke",
        "mega train mlm-smoke --set training.max_steps=100 --dry-run",
        "torchrun --nproc-per-node 2 -m mega_transformers train mlm-smoke",
    ),
    "evaluate": (
        "mega evaluate runs/mlm-smoke/model --recipe mlm-smoke",
        "mega evaluate mega-prose-5m --data book.txt --json scores.json",
    ),
    "convert": (
        "mega convert checkpoint_best.pt converted --dictionary dict.txt",
        "mega convert path/to/old-model converted --dtype float16",
    ),
    "publish": (
        "mega publish runs/mlm-smoke/model --license mit --language en",
        "mega publish path/to/model --repo-id NAME/MODEL --push --private",
    ),
    "demo": (
        "mega demo",
        "mega demo --model runs/mlm-smoke/model --port 8000",
    ),
    "inspect": (
        "mega inspect mega-prose-5m",
        'mega inspect path/to/model --text "The ship sailed." --no-timing',
    ),
    "export-onnx": (
        "mega export-onnx mega-g2p-1m onnx-g2p",
        "mega export-onnx path/to/model out --int8 --text-file text.txt",
    ),
    "bench": (
        "mega bench --list",
        "mega bench --quick",
        "mega bench --against ../other-clone",
    ),
    "doctor": (
        "mega doctor",
        "mega doctor --device cpu --json",
    ),
    "run": (
        "mega run transformers serve",
        "mega run lm_eval --model hf --model_args pretrained=path/to/model",
    ),
}


def epilog(command: str) -> str:
    """The examples of a command, as typer shows them after its options: an empty line is a line end there."""
    return "\n\n".join(("Examples:", *EXAMPLES[command]))
