#!/usr/bin/env bash
# What a GPU says of this repository: whether it is right, and how fast, in under six minutes. docs/gpu.md explains it.
#
#   bash benchmarks/gpu.sh OUT_FOLDER
#
# OUT_FOLDER gets environment.txt, tests.txt, results.json (brought up to date after every case), bench.txt and table.txt.
# The exit status says whether the tests passed. PYTHON is the interpreter (default: python3), LIMIT the seconds for
# everything (default: 340), CASES what to measure (default: all). DEVICE=cpu QUICK=1 tries the script without a GPU.
set -uo pipefail

if [ $# -ne 1 ]; then
  echo "usage: bash benchmarks/gpu.sh OUT_FOLDER" >&2
  exit 2
fi
mkdir -p "$1" || exit 2
OUT=$(cd "$1" && pwd)
cd "$(dirname "$0")/.." || exit 2

PYTHON=${PYTHON:-python3} DEVICE=${DEVICE:-cuda} LIMIT=${LIMIT:-340}
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
if [ "$DEVICE" = cuda ] && ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
  echo "PyTorch of $PYTHON finds no CUDA device; run this where there is one, or try it with DEVICE=cpu QUICK=1." >&2
  exit 1
fi

"$PYTHON" - "$DEVICE" <<'END' 2>&1 | tee "$OUT/environment.txt"
import importlib.metadata, platform, subprocess, sys

import torch

def version(name):
    try:
        return f"{name} {importlib.metadata.version(name)}"
    except importlib.metadata.PackageNotFoundError:
        return f"no {name}"

card = "CPU"
if sys.argv[1] == "cuda":
    card = torch.cuda.get_device_name()
    try:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        card += ", driver " + subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        pass
names = "torch", "transformers", "triton", "flash-attn", "flash-linear-attention", "mamba-ssm"
print(f"{card}; CUDA {torch.version.cuda}; Python {platform.python_version()}; " + ", ".join(map(version, names)))
END

TESTS=(tests/gpu)
if [ "$DEVICE" = cuda ]; then
  [ -d tests/kernels ] && TESTS+=(tests/kernels)
  TESTS+=(tests/models/test_generation.py)
  ONLY="gpu or kernels or offloaded or another_device"
else
  ONLY="gpu"
fi
MEGA_TEST_DEVICE=$DEVICE timeout "$((LIMIT / 2))" "$PYTHON" -m pytest "${TESTS[@]}" -k "$ONLY" -q -p no:cacheprovider \
  2>&1 | tee "$OUT/tests.txt"
PASSED=${PIPESTATUS[0]}
[ "$PASSED" = 0 ] && echo "Correctness: passed." || echo "Correctness: FAILED (pytest ended with $PASSED)."

# a case takes up to a minute, so that none begins in the last
OPTIONS=(--device "$DEVICE" --repeats 5 --budget "$((LIMIT > SECONDS + 60 ? LIMIT - SECONDS - 60 : 0))" --output "$OUT/results.json")
CASES=${CASES:-gpu-*}
if [ -n "${QUICK:-}" ]; then
  OPTIONS+=(--quick)
  [ "$CASES" = "gpu-*" ] && CASES="gpu-train-8x2048 gpu-attention-forward gpu-ema-op gpu-decode-1x1k"
fi
set -f # patterns of cases, not of files
rm -f "$OUT/results.json"
# shellcheck disable=SC2086 # CASES are words
timeout "$((LIMIT > SECONDS + 15 ? LIMIT - SECONDS + 15 : 30))" "$PYTHON" -m mega_transformers bench $CASES "${OPTIONS[@]}" \
  2>&1 | tee "$OUT/bench.txt"
MEASURED=${PIPESTATUS[0]}
if [ -f "$OUT/results.json" ]; then
  "$PYTHON" -m mega_transformers bench --from "$OUT/results.json" >"$OUT/table.txt" 2>&1
  [ "$MEASURED" = 0 ] || cat "$OUT/table.txt"
fi
[ "$MEASURED" = 0 ] || echo "The measurements ended early, with $MEASURED; the table shows what there was by then."
echo "$SECONDS seconds; everything is in $1"
exit "$PASSED"
