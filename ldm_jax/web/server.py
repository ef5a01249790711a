"""Serves the page from one address. Nothing of it comes from another host. Gradio is imported by `application`."""

import re
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from ldm_jax.web.models import Models

UPLOAD = "20mb"  # of a file, at most
# What a browser may load: this page's own parts alone.
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'; base-uri 'self'"
# Tags of Gradio's page that name other hosts: fonts, and a script for pages within pages.
OTHERS = re.compile(
    rb"<link\b[^>]*\bhref=[\"']?(?:https?:)?//[^>]*>|<script\b[^>]*\bsrc=[\"']?(?:https?:)?//[^>]*></script>"
)
LOOPBACK = ("127.0.0.1", "localhost", "::1")
# Names of this machine that a request may have come to, with any port. A page of another host whose name was made to
# point here, "DNS rebinding", has another one.
OWN = re.compile(rb"(?:localhost|127\.0\.0\.1|\[::1\])(?::\d+)?", re.IGNORECASE)
REFUSED = b"This page is served to its own machine: its address is http://localhost:PORT or http://127.0.0.1:PORT.\n"
Message = dict[str, Any]


class Local:
    """An ASGI application around another: its pages name no other hosts, and browsers are told to load nothing of
    any. own: requests whose Host is another name than that of this machine are refused (403)."""

    def __init__(self, app: Callable, own: bool = False):
        self.app, self.own = app, own

    async def __call__(self, scope: Message, receive: Callable, send: Callable[[Message], Awaitable[None]]) -> None:
        if self.own and scope["type"] in ("http", "websocket") and not _is_own(scope):
            return await _refuse(scope, send)
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


def _is_own(scope: Message) -> bool:
    hosts = [value for name, value in scope["headers"] if name.lower() == b"host"]
    return bool(hosts) and all(OWN.fullmatch(host) for host in hosts)


async def _refuse(scope: Message, send: Callable[[Message], Awaitable[None]]) -> None:
    if scope["type"] == "websocket":
        return await send({"type": "websocket.close", "code": 1008})
    headers = [(b"content-type", b"text/plain"), (b"content-length", str(len(REFUSED)).encode())]
    await send({"type": "http.response.start", "status": 403, "headers": headers})
    await send({"type": "http.response.body", "body": REFUSED})


def url(host: str, port: int) -> str:
    """The address for a browser; brackets around a host of IPv6."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def application(models: Models, watched: Sequence[str], every: float, host: str = LOOPBACK[0]) -> Local:
    """The page as an ASGI application. host: where it is served."""
    import fastapi
    import gradio as gr

    from ldm_jax.web import page

    folders = [str((Path(run) / "pictures").absolute()) for run in watched]
    app = gr.mount_gradio_app(
        fastapi.FastAPI(docs_url=None, redoc_url=None), page.build(models, watched, every), path="/",
        allowed_paths=folders, max_file_size=UPLOAD, show_error=False, theme=page.theme(), css=page.CSS,
        head=page.HEAD, footer_links=[], run_history=False, ssr_mode=False,
    )  # fmt: skip
    return Local(app, own=host in LOOPBACK)
