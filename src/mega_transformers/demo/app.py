"""The page as a web application."""

from __future__ import annotations

import asyncio
import logging
import os
import socket

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before gradio is imported

import gradio as gr
import uvicorn
from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .. import __version__
from .markup import shown
from .models import Served
from .style import CSS, FONTS, MONOSPACED
from .tabs import TABS

VISITORS = 5  # visitors served at the same time
WAITING = 100
MAX_FILE_SIZE = "4mb"
KEPT = 3600  # seconds to keep an uploaded file
# the browser contacts no other machine, even if gradio or a visitor's text asks it to
POLICY = {
    "Content-Security-Policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' "
    "'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'self'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
HEAD = """
<h1>Mega reads long texts in linear time</h1>
<p>In <a href="https://arxiv.org/abs/2209.10655" target="_blank" rel="noreferrer">Mega</a>, a moving average carries
information through the whole text, and gated attention covers one chunk at a time. Twice the text takes twice the
time, not four times.</p> <p class="quiet">{models}. mega-transformers {version}; what you type stays on the machine
that serves this page.</p>
"""


def make_page(served: list[Served]) -> gr.Blocks:
    """The page, with a tab for each kind of model."""
    names = "Models: " + ", ".join(shown(model.name) for model in served)
    with gr.Blocks(title="Mega", analytics_enabled=False, delete_cache=(KEPT, KEPT)) as page:
        gr.HTML(HEAD.format(models=names, version=__version__), elem_classes="head")
        with gr.Tabs():
            for title, kinds, tab in TABS:
                models = {model.name: model for kind in kinds for model in served if model.kind == kind}
                if models:
                    with gr.Tab(title):
                        tab(models)
    return page.queue(max_size=WAITING, default_concurrency_limit=VISITORS)


class KeptHere:
    """Adds `POLICY` to every response of an application."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""

        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(POLICY)
            await send(message)

        await self.app(scope, receive, send_with_policy)


def make_app(served: list[Served]) -> FastAPI:
    """The web application of the page, with `POLICY` and without gradio's extras."""
    app = FastAPI(openapi_url=None)
    app.add_middleware(KeptHere)
    theme = gr.themes.Base(primary_hue="teal", neutral_hue="slate", font=FONTS, font_mono=MONOSPACED).set(
        button_primary_background_fill="*primary_700", button_primary_background_fill_hover="*primary_800"
    )
    return gr.mount_gradio_app(
        app,
        make_page(served),
        path="/",
        footer_links=[],
        run_history=False,
        show_error=False,
        max_file_size=MAX_FILE_SIZE,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=theme,
        css=CSS,
    )


def serve(app: FastAPI, listener: socket.socket) -> None:
    """Serves the page on a socket until Ctrl-C."""
    config = uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1)
    logging.getLogger("uvicorn.error").addFilter(_is_fault)
    uvicorn.Server(config).run(sockets=[listener])


def _is_fault(record: logging.LogRecord) -> bool:
    """Whether to show a message of the server; hides those about connections that Ctrl-C cuts."""
    cut = record.exc_info is not None and isinstance(record.exc_info[1], asyncio.CancelledError)
    return not cut and "graceful shutdown exceeded" not in record.msg
