"""The runner's side of a worker process."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from .cases import Subject
from .peers import REPOSITORY

# Threads of an OpenMP runtime wait for more work in a loop, unless told to sleep; a waiting worker uses no processor.
SLEEP_WHEN_IDLE = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}


class WorkerError(RuntimeError):
    """A worker reported an error, or died."""


class Worker:
    """A process that holds one subject. It computes only while a method of this class waits for its answer.

    It runs the benchmarks of this tree; `mega_transformers` comes from the tree `package`. `variables` are added to
    its environment.
    """

    def __init__(
        self, python: Path, threads: int, package: Path = REPOSITORY, variables: Mapping[str, str] | None = None
    ):
        self._source = (package / "src").resolve()
        environment = {
            **os.environ,
            **SLEEP_WHEN_IDLE,
            "OMP_NUM_THREADS": str(threads),
            "PYTHONPATH": os.pathsep.join(filter(None, (str(self._source), os.environ.get("PYTHONPATH")))),
            "TORCHINDUCTOR_COMPILE_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            **(variables or {}),
        }
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - open as long as the process lives
        self._process = subprocess.Popen(
            [str(python), "-m", "benchmarks.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            cwd=REPOSITORY,
            env=environment,
        )

    def load(self, subject: Subject, seed: int, threads: int, weights: Path | None) -> dict[str, Any]:
        """Build the subject; gives its number of parameters and the versions in the worker's interpreter.

        Raises:
            WorkerError: if the package comes from elsewhere, or anything fails.
        """
        facts = self._ask(
            "load",
            peer=subject.peer,
            workload=subject.workload.to_dict(),
            seed=seed,
            threads=threads,
            weights=str(weights) if weights else None,
        )
        if facts["package"] and not Path(facts["package"]).resolve().is_relative_to(self._source):
            raise WorkerError(f"mega_transformers comes from {facts['package']}, not from {self._source}")
        return facts

    def save(self, path: Path) -> None:
        """Write the weights as safetensors."""
        self._ask("save", path=str(path))

    def check(self, path: Path) -> None:
        """Write outputs, loss and gradients of one evaluation as safetensors."""
        self._ask("check", path=str(path))

    def memory(self) -> tuple[int, str]:
        """Bytes of one step above the loaded model, of decoding those of the cache; and how they were measured."""
        answer = self._ask("memory")
        return answer["bytes"], answer["method"]

    def time(self) -> tuple[float, float]:
        """Wall and processor time of a step, or of one of the like parts it is made of, in seconds."""
        answer = self._ask("time")
        return answer["seconds"], answer["cpu_seconds"]

    def device_time(self) -> tuple[float, float]:
        """The same by the device's clock; the first answer is a warm-up."""
        answer = self._ask("device_time")
        return answer["seconds"], answer["cpu_seconds"]

    def work(self) -> tuple[float | None, float | None]:
        """Operations and bytes that a step, or a part, cannot do without; None where that is unknown."""
        answer = self._ask("work")
        return answer["operations"], answer["bytes"]

    def roofline(self, device: str) -> dict[str, Any]:
        """The card, and the rates it copies and multiplies at."""
        return self._ask("roofline", device=device)

    def unload(self) -> None:
        """Drop the subject and return the device's memory."""
        self._ask("unload")

    def calls(self) -> int:
        """Calls of aten functions in a step, or in one of the like parts it is made of."""
        return self._ask("calls")["calls"]

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):  # what was not read by a process that died
                    stream.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, operation: str, **arguments: Any) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"operation": operation, **arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self._process.wait()
            killed = " (killed: most likely out of memory)" if code == -9 else ""
            raise WorkerError(f"The worker ended with {code}{killed} during {operation}. {self._last_words()}")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def _last_words(self) -> str:
        self._log.seek(0)
        return " ".join(self._log.read().splitlines()[-3:])
