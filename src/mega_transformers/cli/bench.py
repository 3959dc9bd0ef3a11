"""`mega bench`: speed and memory against transformers 4.40.2, ModernBERT, RoBERTa, GPT-2, Mamba-2 and GLA."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer


def bench(
    cases: Annotated[
        list[str] | None,
        typer.Argument(help="Cases to run, by name or pattern ('gpu-train-*'). Default: all cases of the device."),
    ] = None,
    list_cases: Annotated[bool, typer.Option("--list", help="List cases and peers without running them.")] = False,
    repeats: Annotated[int, typer.Option(min=1, help="Timed steps of each peer; peers take turns.")] = 8,
    memory_repeats: Annotated[
        int, typer.Option(min=1, help="Number of processes for each peer, which share the repeats.")
    ] = 4,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick", help="Quick trial: inputs 16 times shorter (on a GPU 64 times, with small models), 2 repeats."
        ),
    ] = False,
    device: Annotated[
        str,
        typer.Option(
            help="Device to measure: cpu or cuda. Each has its own cases; named cases of cuda also run on the CPU, as "
            "a trial."
        ),
    ] = "cpu",
    budget: Annotated[
        float | None,
        typer.Option(min=0, help="On a GPU, start no further case after this number of seconds. Default: no limit."),
    ] = None,
    threads: Annotated[
        int,
        typer.Option(min=1, help="Threads of each worker; processor time is the sum over threads."),
    ] = 1,
    against: Annotated[
        Path | None,
        typer.Option(
            help="Another clone of this repository: compare only with its package (src/mega_transformers), as the "
            "peer `before`. Default: none.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights and inputs.")] = 0,
    output: Annotated[
        Path | None, typer.Option(help="JSON file to write. Default: benchmarks/results/<date>-<machine>.json.")
    ] = None,
    peer_python: Annotated[
        list[str] | None,
        typer.Option(
            envvar="MEGA_BENCH_PEER_PYTHON",
            help="PEER=/path/to/python: an existing interpreter for a peer. Default: an environment under .venvs.",
        ),
    ] = None,
    publish: Annotated[
        bool, typer.Option("--publish", help="Write tables and picture into docs/performance.md at the end.")
    ] = False,
    source: Annotated[
        Path | None,
        typer.Option("--from", help="Show (and publish) this result file instead of running cases. Default: none."),
    ] = None,
) -> None:
    """Measure processor time and peak memory against other models, and show the median ratios.

    Processor time, unlike wall time, is not affected much by other work on a shared machine; both are shown.
    With --device cuda: the GPU's time, beside the least that the card could need at the rates measured on it.
    The benchmarks are not part of the installed package: run this command in a clone of the repository.
    """
    from rich.console import Console

    console = Console()
    try:
        _load_benchmarks()
        from benchmarks import report as rendering
        from benchmarks.results import Report

        if list_cases:
            _show_registry(console)
            return
        if against is not None and not (against / "src" / "mega_transformers").is_dir():
            raise ValueError(f"--against {against}: no src/mega_transformers there; name a clone of this repository.")
        if against is not None and publish:
            raise ValueError("--against and --publish exclude each other: the page holds the other peers.")
        if quick and publish:
            raise ValueError(
                "--quick and --publish exclude each other: a quick run's numbers are not worth publishing."
            )
        if source is not None:
            if cases or against or device != "cpu":
                raise ValueError("--from shows a finished run; leave out the cases, --against and --device.")
            report = Report.load(source)
        else:
            report = _run(
                console,
                cases,
                repeats=min(repeats, 2) if quick else repeats,
                memory_repeats=1 if quick else memory_repeats,
                quick=quick,
                device=device,
                budget=budget,
                threads=threads,
                against=against,
                seed=seed,
                output=output,
                peer_python=peer_python or [],
            )
        console.print(rendering.terminal(report))
        if publish:
            for path in rendering.publish(report):
                console.print(f"Wrote {path}")
    except (ValueError, RuntimeError) as error:
        Console(stderr=True).print(f"Error: {error}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(2) from error


def _load_benchmarks() -> None:
    """Make the repository's `benchmarks` package importable; it is not part of the wheel."""
    for root in (Path(__file__).resolve().parents[3], Path.cwd()):
        if (root / "benchmarks" / "runner.py").is_file():
            if str(root) not in sys.path:
                sys.path.insert(0, str(root))
            importlib.import_module("benchmarks.runner")
            return
    raise RuntimeError(
        "The benchmarks are not part of the installed package. Clone the repository and run `mega bench` in it."
    )


def _run(
    console: Any,
    names: list[str] | None,
    *,
    repeats: int,
    memory_repeats: int,
    quick: bool,
    device: str,
    budget: float | None,
    threads: int,
    against: Path | None,
    seed: int,
    output: Path | None,
    peer_python: list[str],
) -> Any:
    from benchmarks import results
    from benchmarks.cases import BEFORE, Subject, before_after
    from benchmarks.client import Worker
    from benchmarks.peers import PEERS, REPOSITORY, interpreter, parse_pythons
    from benchmarks.runner import Settings, run_case

    from .outputs import check_output_file

    chosen, for_gpu = _choose(names, device)
    if for_gpu and against is not None:
        raise ValueError("--against compares on a CPU; leave it or --device and the cases for a GPU out.")
    if budget is not None and not for_gpu:
        raise ValueError("--budget is for the cases for a GPU; name fewer cases, or give --device cuda.")
    if against is not None:
        chosen, left_out = before_after(chosen)
        if left_out:
            console.print(f"Left out, since ops are not a public interface: {', '.join(left_out)}")
    pythons = parse_pythons(peer_python)
    if output is not None:
        if output.suffix != ".json":
            raise ValueError(f"--output {output}: expected a file name that ends in .json.")
        check_output_file("--output", output)
    cores = results.available_cores()
    if threads > cores:
        raise ValueError(f"--threads {threads}: this machine has {cores} cores for this process.")
    report = results.Report(
        date=results.now(),
        command=_command(sys.argv[1:]),
        seed=seed,
        threads=threads,
        repeats=repeats,
        memory_repeats=memory_repeats,
        quick=quick,
        machine=results.machine(),
        git=results.git_state(),
        before=results.git_state(against) if against else None,
        device=device,
    )
    if for_gpu:
        return _run_for_gpu(console, chosen, report, output, pythons, budget)
    path = output or results.default_path(report)
    console.print(f"{len(chosen)} cases on {threads} of {cores} cores ({report.machine['cpu']}); results in {path}")

    needed = {subject.peer for case in chosen for group in case.groups for subject in group}
    with console.status("") as status:
        for peer in PEERS.values():
            if peer.name in needed:
                pythons[peer.name] = interpreter(peer, pythons, lambda text: status.update(text[: console.width - 4]))

    def start(subject: Subject) -> Worker:
        return Worker(pythons[subject.peer], threads, against if against and subject.peer == BEFORE else REPOSITORY)

    ticks = results.processor_ticks()
    settings = Settings(repeats, memory_repeats, seed, threads, quick, start)
    with _Progress(console, len(chosen)) as progress:
        for case in chosen:
            report.cases.append(run_case(case, settings, progress, report))
            report.stolen = results.stolen_share(ticks, results.processor_ticks())
            report.save(path)
    console.print(f"Wrote {path}")
    return report


def _choose(names: list[str] | None, device: str) -> tuple[list[Any], bool]:
    """The cases to run, and whether they are for a GPU."""
    from benchmarks.cases import CASES, select
    from benchmarks.gpu_cases import GPU_CASES

    if device not in ("cpu", "cuda"):
        raise ValueError(f"--device {device}: expected cpu or cuda.")
    if not names:
        return list((GPU_CASES if device == "cuda" else CASES).values()), device == "cuda"
    chosen = select(names, CASES | GPU_CASES)
    for_gpu = [case.name in GPU_CASES for case in chosen]
    if device == "cuda" and not all(for_gpu):
        name = chosen[for_gpu.index(False)].name
        raise ValueError(f"{name} is measured on a CPU; for --device cuda there are: {', '.join(GPU_CASES)}.")
    if any(for_gpu) and not all(for_gpu):
        raise ValueError("Cases for a CPU and for a GPU are measured in different ways; run them apart.")
    return chosen, any(for_gpu)


def _run_for_gpu(
    console: Any, cases: list[Any], report: Any, output: Path | None, pythons: dict[str, Path], budget: float | None
) -> Any:
    from benchmarks import results
    from benchmarks.cases import OURS
    from benchmarks.client import Worker, WorkerError
    from benchmarks.device_run import Workers, run_cases, variables
    from benchmarks.peers import PEERS, absence

    from .device import resolve_device

    if report.device == "cuda":
        resolve_device("cuda")

    def start(peer: str) -> Worker:
        python = pythons.get(peer, Path(sys.executable))
        return Worker(python, report.threads, variables=variables(peer, results.available_cores()))

    needed = {subject.peer for case in cases for group in case.groups for subject in group}
    absent = {name: why for name in needed if (why := absence(PEERS[name], pythons))}
    with Workers(start, absent) as workers:
        try:
            with console.status("measuring what the card reaches"):
                report.roofline = workers.of(OURS).roofline(report.device)
        except WorkerError as error:
            raise RuntimeError(str(error)) from error
        path = output or results.default_path(report)
        console.print(f"{len(cases)} cases on {report.roofline['device']['name']}; results in {path}")
        with _Progress(console, len(cases)) as progress:
            run_cases(cases, workers, report, progress, lambda: report.save(path), budget)
    console.print(f"Wrote {path}")
    return report


def _command(arguments: list[str]) -> str:
    """The command line for the record; of absolute paths, which are this machine's own, the last part only."""
    return " ".join(["mega", *(re.sub(r"/(?:[^/=]+/)+", "…/", argument) for argument in arguments)])


class _Progress:
    """Two bars: cases, and the steps of the case at hand."""

    def __init__(self, console: Any, cases: int):
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
        )
        self._cases = self._progress.add_task("cases", total=cases, completed=-1)
        self._steps = self._progress.add_task("", total=None)

    def __enter__(self) -> _Progress:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def case(self, case: Any, steps: int) -> None:
        """A case begins that has this many steps; without a terminal that is a line of its own."""
        if not self._progress.console.is_terminal:
            self._progress.console.print(case.name)
        self._progress.update(self._cases, advance=1, description=case.name)
        self._progress.reset(self._steps, total=steps, completed=-1)

    def step(self, what: str) -> None:
        """Starts the next step."""
        self._progress.update(self._steps, advance=1, description=what)


def _show_registry(console: Any) -> None:
    from rich.table import Column, Table

    from benchmarks.cases import CASES, Comparison
    from benchmarks.gpu_cases import GPU_CASES
    from benchmarks.peers import PEERS

    table = Table(*(Column(name, overflow="fold") for name in ("case", "device", "against and targets", "what")))
    for case in (*CASES.values(), *GPU_CASES.values()):
        device = "cuda" if case.name in GPU_CASES else "cpu"
        if isinstance(case, Comparison):
            against = [f"{peer}{_bounds(target.speed, target.memory)}" for peer, target in case.against.items()]
            table.add_row(case.name, device, "\n".join(against), case.title)
        else:
            growth = f": last/first ≤ {case.growth:g}x" if case.growth else ""
            memory = f", memory ≤ {case.memory_growth:g}x" if case.memory_growth else ""
            table.add_row(case.name, device, f"itself{growth}{memory}", case.title)
    console.print(table)
    peers = Table(*(Column(name, overflow="fold") for name in ("peer", "what", "runs in")))
    for peer in PEERS.values():
        place = f".venvs/{peer.name} ({', '.join(peer.requirements)})" if peer.requirements else "this interpreter"
        peers.add_row(peer.name, peer.title, place)
    console.print(peers)


def _bounds(speed: float | None, memory: float | None) -> str:
    bounds = []
    if speed is not None:
        bounds.append(f"speed ≥ {speed:g}x")
    if memory is not None:
        bounds.append(f"memory ≤ {memory:g}")
    return ": " + ", ".join(bounds) if bounds else ""
