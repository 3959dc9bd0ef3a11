"""`mega demo`: a page in the browser."""

from __future__ import annotations

import errno
import socket
from importlib.util import find_spec
from typing import Annotated

import typer

from ..assets import BUNDLED_MODELS
from .device import AUTO, DeviceOption, DTypeOption, check_names
from .loading import bundled_names
from .runtime import UserError, print_note, spinner

PORT = 7860
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def demo(
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            help="A bundled model, a folder, or an id of the Hugging Face hub. Can be repeated. Default: all bundled "
            "models.",
            autocompletion=bundled_names,
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 accepts other machines.")] = LOOPBACK[0],
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = PORT,
    device: DeviceOption = AUTO,
    dtype: DTypeOption = AUTO,
    open_browser: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in a browser.")] = False,
) -> None:
    """Try the models on a page in the browser: fill masks, write, convert, classify, read a long text.

    The page shows one tab for each kind of model, and needs no internet connection. Ctrl-C stops it.
    """
    check_names(device, dtype)
    for package in ("gradio", "matplotlib"):
        if find_spec(package) is None:
            raise UserError(f"the page needs the package {package}: pip install 'mega-transformers[demo]'")
    listener = listen(host, port)
    from ..demo.models import load_models

    served = load_models(model or list(BUNDLED_MODELS), device, dtype)
    with spinner("Making the page"):
        from ..demo.app import make_app, serve

        app = make_app(served)
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    if host not in LOOPBACK:
        print_note(f"anyone who can reach this machine at {host} can use the page")
    typer.echo(f"The page is at {address} (Ctrl-C stops it)")
    if open_browser:
        import webbrowser

        webbrowser.open(address)
    serve(app, listener)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        UserError: if the address cannot be used; the message names the option and what would be right.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise UserError(f"--host {host}: there is no such address ({error.strerror}); leave out --host") from None
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            other = port + 1 if port < 65535 else PORT
            message = f"--port {port} is in use, perhaps by another mega demo; stop that, or give --port {other}"
        elif error.errno == errno.EACCES:
            message = f"--port {port}: this user may not listen on it; give a port above 1023"
        else:
            message = f"--host {host}: cannot listen there ({error.strerror}); leave out --host"
        raise UserError(message) from None
    return listener
