"""What is between Gradio's application and a browser, without Gradio: hosts, headers, tags that are removed."""

import asyncio
import itertools

import pytest

from ldm_jax.web import server

PAGE = (
    b"<html><head><link rel='preconnect' href='https://fonts.test'><link rel=stylesheet href=\"//fonts.test/a.css\" />"
    b"<link rel='stylesheet' href='./own.css'><script src='https://cdn.test/frames.js' async></script>"
    b"<script src='/own.js'></script></head><body><a href='https://a.test'>a</a></body></html>"
)
KEPT = (
    b"<html><head><link rel='stylesheet' href='./own.css'><script src='/own.js'></script></head>"
    b"<body><a href='https://a.test'>a</a></body></html>"
)


class Fake:
    """An application that answers with these parts; `scopes`: what it was asked."""

    def __init__(self, kind, *parts):
        self.kind, self.parts, self.scopes = kind, parts, []

    async def __call__(self, scope, receive, send):
        self.scopes.append(scope)
        if scope["type"] == "http":
            length = str(sum(map(len, self.parts))).encode()
            headers = [(b"content-type", self.kind), (b"content-length", length)]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            for i, part in enumerate(self.parts):
                await send({"type": "http.response.body", "body": part, "more_body": i < len(self.parts) - 1})


def asked(app, host=b"localhost:7860", own=True, kind="http"):
    """The messages that a browser gets."""
    headers = [(b"accept-encoding", b"gzip"), (b"Host", host)] if host is not None else []
    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(server.Local(app, own)({"type": kind, "headers": headers}, None, send))
    return sent


@pytest.mark.parametrize("cuts", [(), (40, 60), (130,)])
def test_a_page_names_no_other_hosts(cuts):
    """Whole, or in parts that end within a tag."""
    ends = [0, *cuts, len(PAGE)]
    app = Fake(b"text/html; charset=utf-8", *(PAGE[a:b] for a, b in itertools.pairwise(ends)))
    start, body = asked(app)
    headers = start["headers"]
    assert body["body"] == KEPT and not body.get("more_body")
    assert [v for k, v in headers if k == b"content-length"] == [str(len(KEPT)).encode()]
    assert dict(headers)[b"content-security-policy"].startswith(b"default-src 'self' ")
    assert b"http:" not in server.POLICY.encode() and b"*" not in server.POLICY.encode()
    assert [k for k, _ in app.scopes[0]["headers"]] == [b"Host"]


def test_what_is_no_page_comes_as_it_is():
    start, *parts = asked(Fake(b"text/event-stream", b"data: <link href='https://a.test'>", b"more"))
    assert [part["body"] for part in parts] == [b"data: <link href='https://a.test'>", b"more"]
    assert dict(start["headers"])[b"content-length"] == b"38" and b"content-security-policy" in dict(start["headers"])


@pytest.mark.parametrize("host", [b"localhost", b"LOCALHOST:80", b"127.0.0.1:7860", b"[::1]:7860", b"[::1]"])
def test_names_of_this_machine_are_answered(host):
    assert asked(Fake(b"text/plain", b"x"), host)[0]["status"] == 200


@pytest.mark.parametrize(
    "host", [b"evil.test:7860", b"localhost.evil.test", b"127.0.0.1.evil.test", b"evil.test#localhost", b"", None]
)
def test_other_names_that_point_here_are_refused(host):
    for kind, sent in (("http", "http.response.start"), ("websocket", "websocket.close")):
        app = Fake(b"text/plain", b"x")
        start, *rest = asked(app, host, kind=kind)
        assert start["type"] == sent and not app.scopes
        if rest:
            assert start["status"] == 403 and b"localhost" in rest[0]["body"]
            assert dict(start["headers"])[b"content-length"] == str(len(rest[0]["body"])).encode()
        asked(app, host, own=False, kind=kind)
        assert len(app.scopes) == 1  # served to others: any name


def test_what_is_no_request_goes_on():
    app = Fake(b"text/plain")
    assert asked(app, None, kind="lifespan") == [] and len(app.scopes) == 1


def test_the_address_for_a_browser():
    assert server.url("127.0.0.1", 7860) == "http://127.0.0.1:7860" and server.url("::1", 80) == "http://[::1]:80"
