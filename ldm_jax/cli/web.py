"""A page to play with models, and to watch runs that are training.

    python web.py --workdir=runs/text
    python web.py --workdir=runs/text --workdir=runs/inpaint --port=8000
    python web.py --run=runs/text

Prints its address, which only this machine can open, unless --host says otherwise. Visitors wait for each other: one
request is answered at a time. Needs Gradio: pip install 'ldm_jax[web]'.
"""

import argparse
import os
import socket
from collections.abc import Sequence

from ldm_jax import process
from ldm_jax.cli import options
from ldm_jax.errors import Missing, UsageError


def parser() -> options.Parser:
    p = options.Parser(__doc__)
    add = p.add_argument
    add(
        "--workdir",
        action="append",
        default=[],
        help="run directory or name of a model to play with; may be given again",
    )
    add("--run", action="append", default=[], help="run directory of a training to watch; may be given again")
    add("--host", default="127.0.0.1", help="address to serve (default 127.0.0.1: this machine; 0.0.0.0: all can come)")
    add("--port", type=int, default=7860, help="default 7860")
    add("--checkpoint", type=int, help="step of the checkpoint (default: the newest)")
    add("--no-ema", action="store_true", help="use the raw instead of the averaged parameters")
    add("--classes", help="file with the names of the classes, one a line (default: those of the data, where known)")
    add("--keep", type=int, default=1, help="models in memory at a time (default 1)")
    add("--max-pixels", type=int, default=2**20, help="of an image, at most (default 1048576, as 1024x1024)")
    add("--every", type=float, default=5.0, help="--run: seconds until it is read again (default 5)")
    return p


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Exits with 2 for options that do not exist, or do not fit together."""
    found = parser()
    args = found.parse_args(argv)
    found.make_local(args, "workdir", "run", "classes")
    if not args.workdir and not args.run:
        found.error("give --workdir=RUN, a model to play with, or --run=RUN, a training to watch")
    for name in ("keep", "max_pixels", "every"):
        if getattr(args, name) <= 0:
            found.error(f"--{name.replace('_', '-')}={getattr(args, name):g} must be above 0")
    if not 0 < args.port < 2**16:
        found.error(f"--port={args.port} is not in 1..65535")
    return args


def run(args: argparse.Namespace) -> None:
    """Serves the page until it is stopped. Missing without Gradio, or without a run."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported
    try:
        import gradio  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise Missing(f"the page needs Gradio ({error}): pip install 'ldm_jax[web]', in a checkout: make web") from None
    from ldm_jax.web import server, watch
    from ldm_jax.web.models import Models

    for name in args.run:
        watch.check(name)
    models = Models(args.workdir, args.checkpoint, not args.no_ema, args.keep, args.classes, args.max_pixels)
    _check_free(args.host, args.port)
    process.setup()
    app = server.application(models, args.run, args.every, args.host)
    if args.host not in server.LOOPBACK:
        print(f"--host={args.host}: everybody who reaches this machine can use the page")
    print(server.url(args.host, args.port), flush=True)
    uvicorn.run(app, host=args.host, port=args.port, log_level="warning")


def _check_free(host: str, port: int) -> None:
    """UsageError where the address cannot be served."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind((host, port))
    except OSError as error:
        raise UsageError(f"--host={host} --port={port} cannot be served ({error}): give another --port") from None


def main(argv: Sequence[str] | None = None) -> None:
    process.restart_with_hugepages()
    args = parse(argv)
    with options.mistakes("web.py"):
        run(args)
