"""Serves the page from one address. Nothing of it comes from another host."""

import re
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from ldm_jax.web import page
from ldm_jax.web.models import Models

UPLOAD = "20mb"  # of a file, at most
# What a browser may load: this page's own parts alone.
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'; base-uri 'self'"
# Tags of Gradio's page that name other hosts: fonts, and a script for pages within pages.
OTHERS = re.compile(
    rb"<link\b[^>]*\bhref=[\"']?(?:https?:)?//[^>]*>|<script\b[^>]*\bsrc=[\"']?(?:https?:)?//[^>]*></script>"
)
Message = dict[str, Any]


class Local:
    """An ASGI application around another: its pages name no other hosts, and browsers are told to load nothing of
    any."""

    def __init__(self, app: Callable):
        self.app = app

    async def __call__(self, scope: Message, receive: Callable, send: Callable[[Message], Awaitable[None]]) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        start: Message | None = None
        body = b""

        async def tell(message: Message) -> None:
            nonlocal start, body
            if message["type"] == "http.response.start":
                headers = [*message["headers"], (b"content-security-policy", POLICY.encode())]
                message = message | {"headers": headers}
                if any(k.lower() == b"content-type" and v.startswith(b"text/html") for k, v in headers):
                    start = message
                    return
            if start is None:
                return await send(message)
            body += message.get("body", b"")
            if not message.get("more_body"):
                whole = OTHERS.sub(b"", body)
                headers = [(k, v) for k, v in start["headers"] if k.lower() != b"content-length"]
                await send(start | {"headers": [*headers, (b"content-length", str(len(whole)).encode())]})
                await send({"type": "http.response.body", "body": whole})

        # Without "accept-encoding" the page comes as it is, and can be read.
        headers = [(k, v) for k, v in scope["headers"] if k.lower() != b"accept-encoding"]
        await self.app(scope | {"headers": headers}, receive, tell)


def application(models: Models, watched: Sequence[str], every: float) -> Local:
    """The page as an ASGI application."""
    import fastapi
    import gradio as gr

    folders = [str((Path(run) / "pictures").absolute()) for run in watched]
    app = gr.mount_gradio_app(
        fastapi.FastAPI(docs_url=None, redoc_url=None), page.build(models, watched, every), path="/",
        allowed_paths=folders, max_file_size=UPLOAD, show_error=False, theme=page.theme(), css=page.CSS,
        head=page.HEAD, footer_links=[], run_history=False, ssr_mode=False,
    )  # fmt: skip
    return Local(app)
