"""`mega doctor`: checks that this installation computes the right numbers on every device."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .device import AUTO, available_devices, check_names, resolve_device
from .runtime import load_libraries, stderr_console

if TYPE_CHECKING:
    from rich.table import Table

    from ..doctor import Finding


def doctor(
    device: Annotated[
        str,
        typer.Option(
            help="Device to check: auto, cpu, cuda, cuda:N or mps. auto checks every device found. Default: auto. "
            "Example: --device cpu"
        ),
    ] = AUTO,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of tables, for a bug report.")
    ] = False,
) -> None:
    """Check that Mega computes the right numbers with the installed versions on every device found.

    The checks compare small random models with their definition: cached and uncached decoding, generation, padding,
    packing, gradients, half precision. They take less than half a minute per device. The exit code is 1 if a check
    fails.
    """
    check_names(device)
    load_libraries()
    import torch

    from ..doctor import surroundings

    devices = [torch.device(name) for name in available_devices()] if device == AUTO else [resolve_device(device)]
    around = surroundings(devices)
    if not as_json:
        _print(_surroundings_table(around))
    findings = list(_with_progress(devices))
    if as_json:
        checks = [{**asdict(finding), "passed": finding.passed} for finding in findings]
        typer.echo(json.dumps({**around, "passed": all(each.passed for each in findings), "checks": checks}, indent=2))
    else:
        _print(_findings_table(findings))
        _print_verdict(findings)
    if not all(finding.passed for finding in findings):
        raise typer.Exit(1)


def _with_progress(devices: list[Any]) -> Iterator[Finding]:
    """The findings, with a progress bar on stderr if that is a terminal."""
    from rich.progress import Progress

    from ..doctor import examine, number_of_checks

    console = stderr_console()
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("Checking", total=len(devices) * number_of_checks())
        for device in devices:
            for finding in examine(device):
                progress.update(task, advance=1, description=f"Checking {finding.device}")
                yield finding


def _print(table: Table) -> None:
    from rich.console import Console

    Console(highlight=False).print(table)


def _surroundings_table(around: dict[str, Any]) -> Table:
    from rich.table import Column, Table

    oldest, newest = around["transformers_tested"]
    libraries = [f"{name} {version}" for name, version in around["libraries"].items() if version]
    missing = [name for name, version in around["libraries"].items() if not version]
    rows = {
        "mega-transformers": around["mega-transformers"],
        "transformers": f"{around['transformers']} (tested: {oldest} to {newest})",
        "torch": f"{around['torch']}, {around['threads']} threads",
        "python": f"{around['python']} on {around['system']}",
        "devices": "; ".join(f"{name}: {what}" for name, what in around["devices"].items()),
        "libraries": ", ".join(libraries) + (f" (not installed: {', '.join(missing)})" if missing else ""),
    }
    table = Table("", Column("", overflow="fold"), box=None, show_header=False, pad_edge=False)
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _findings_table(findings: list[Finding]) -> Table:
    from rich import box
    from rich.table import Column, Table
    from rich.text import Text

    table = Table(
        Column("device", no_wrap=True),
        Column("check", ratio=1),
        Column("deviation", justify="right", no_wrap=True),
        Column("limit", justify="right", no_wrap=True),
        "",
        box=box.SIMPLE_HEAD,
    )
    for finding in findings:
        mark = Text("✓", style="green") if finding.passed else Text("✗", style="bold red")
        shown = "failed" if finding.deviation is None else f"{finding.deviation:.1e}"
        table.add_row(finding.device, finding.check, shown, f"{finding.limit:.0e}", mark)
        if finding.error:
            table.add_row("", Text(finding.error, style="red"), "", "", "")
    return table


def _print_verdict(findings: list[Finding]) -> None:
    failed = [finding for finding in findings if not finding.passed]
    seconds = sum(finding.seconds for finding in findings)
    if failed:
        typer.secho(
            f"{len(failed)} of {len(findings)} checks failed ({seconds:.1f} s). Please report this with the output of "
            "mega doctor --json.",
            fg=typer.colors.RED,
        )
    else:
        typer.echo(f"All {len(findings)} checks passed ({seconds:.1f} s).")
