"""`mega run`: runs another command that can then load Mega models."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import typer

from .runtime import UserError

SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}
AT_START = Path(__file__).parents[1] / "at_start"


def run(context: typer.Context) -> None:
    """Run another command so that it can load Mega models.

    Commands such as transformers, lm_eval, trl, accelerate and python do not import this package, so they do not know
    its model types. `mega run` imports it at the start of every Python process of such a command.
    """
    if not context.args:
        raise UserError("a command is missing; give one, for example: mega run transformers serve")
    name, *arguments = context.args
    found = shutil.which(name, path=os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")]))
    if found is None:
        raise UserError(
            f"there is no command {name!r}, in this environment or elsewhere; install the package that provides it"
        )
    path = os.pathsep.join(filter(None, (str(AT_START), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path}
    if os.name == "posix":  # replaces this process, so that signals reach the command
        os.execve(found, [found, *arguments], environment)
    raise typer.Exit(subprocess.run([found, *arguments], env=environment).returncode)
