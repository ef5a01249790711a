"""Takes the pictures of docs/web.md: uses the page in a real Chromium, as a visitor would.

    python scripts/web_pictures.py --class=pretrained/shapes_class --inpaint=runs/inpaint --watch=runs/text

Writes a picture for each model that is given. Needs `pip install 'ldm_jax[web]' playwright` and Chromium
(apt-get install chromium); CHROMIUM names another one. tests/web/test_page.py uses the same steps.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldm_jax.cli.options import Parser
from ldm_jax.data import shapes

ROOT = Path(__file__).resolve().parents[1]
PROMPT = "a large red circle on a plain grey background"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
MINUTES = 10  # until images are there, at most: two programs are compiled
WAIT = MINUTES * 60_000
SIZE = {"width": 1180, "height": 900}


def chromium() -> str:
    """The browser's path. FileNotFoundError says how to get one."""
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if not found:
        raise FileNotFoundError("Chromium is needed: apt-get install chromium, or set CHROMIUM to its path")
    return found


@contextmanager
def served(*options: str, folder: Path | None = None) -> Iterator[str]:
    """Starts web.py with these options, in a folder; its address."""
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        port = trial.getsockname()[1]
    process = subprocess.Popen([sys.executable, str(ROOT / "web.py"), f"--port={port}", *options], cwd=folder)
    try:
        for _ in range(600):
            if process.poll() is not None:
                raise RuntimeError(f"web.py ended with code {process.returncode}")
            with socket.socket() as trial:
                if trial.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


@contextmanager
def visitor(url: str) -> Iterator["Visitor"]:
    """A browser that has the page open."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        try:
            yield Visitor(browser.new_page(viewport=SIZE, accept_downloads=True), url)
        finally:
            browser.close()


class Visitor:
    """One page in the browser. hosts: all that it asked something of; problems: what its console said."""

    def __init__(self, page, url: str):
        self.page, self.hosts, self.problems = page, set(), []
        page.set_default_timeout(180_000)
        page.on("request", lambda request: self.hosts.add(urlsplit(request.url).netloc))
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.goto(url)
        page.get_by_role("tab").first.wait_for()

    def choose(self, run: str) -> None:
        """Opens the tab of a run."""
        self.page.get_by_role("tab", name=run, exact=True).click()

    def set(self, label: str, value: float) -> None:
        """Types a number into the visible input of this label."""
        found = self.page.get_by_label(label).locator("visible=true")
        found.first.fill(str(value))
        found.first.press("Tab")

    def prompt(self, text: str) -> None:
        self.page.get_by_label("Prompt").locator("visible=true").fill(text)

    def upload(self, path: Path) -> None:
        """Gives a file to the visible upload."""
        self.page.locator(".ldm-upload:visible input[type=file]").set_input_files(str(path))

    def drag(self, *points: tuple[float, float]) -> None:
        """Draws on the visible field from point to point, (x, y) in 0..1 of it."""
        canvas = self.page.locator(".ldm-draw canvas:visible")
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        at = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
        mouse = self.page.mouse
        mouse.move(*at[0])
        mouse.down()
        for x, y in at[1:]:
            mouse.move(x, y, steps=5)
        mouse.up()

    def press(self) -> None:
        self.page.locator(".ldm-make:visible").click()

    def made(self) -> str:
        """Waits for the images of the visible tab; what the page then says."""
        status = self.page.locator(".ldm-status:visible").last
        status.get_by_text("images, ").wait_for(timeout=WAIT)
        self.page.locator(".ldm-images:visible img").first.wait_for()
        return status.inner_text()

    def told(self) -> str:
        """Waits for a message of the page; closes it."""
        message = self.page.get_by_test_id("toast-body").first
        message.wait_for()
        text = message.inner_text()
        self.page.get_by_test_id("toast-close").first.click()
        message.wait_for(state="hidden")
        return text

    def save(self, path: Path, colours: int = 256) -> Path:
        """What is visible as a small PNG."""
        self.page.evaluate("window.scrollTo(0, 0)")
        self.page.screenshot(path=str(path))
        with Image.open(path) as image:
            small = image.convert("RGB").quantize(colours, dither=Image.Dither.NONE)
        small.save(path, optimize=True)
        return path


def picture(path: Path, size: int = 64, number: int = 3) -> Path:
    """One of the built-in scenes, to be filled."""
    Image.fromarray(shapes.draw(0, 2**40 + number, size, True)["image"]).save(path)
    return path


def give(visiting: Visitor, path: Path) -> None:
    """Uploads a picture, and waits until the page shows it."""
    visiting.upload(path)
    visiting.page.locator(".ldm-draw canvas:visible").wait_for()


def paint_hole(visiting: Visitor) -> None:
    """In the middle of the picture."""
    visiting.drag((0.35, 0.45), (0.65, 0.45), (0.65, 0.6), (0.35, 0.6))


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--class", dest="of_class", help="a class model of the built-in shapes: web_class.png")
    parser.add_argument("--text", help="a text model of them: web_text.png")
    parser.add_argument("--inpaint", help="an inpainting model of them: web_inpaint.png")
    parser.add_argument("--watch", help="run directory of a training: web_training.png")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, default=4.0, help="of class and text (default 4)")
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    args = parser.parse_args()
    models = [run for run in (args.of_class, args.text, args.inpaint) if run]
    options = [f"--workdir={run}" for run in models] + ([f"--run={args.watch}"] if args.watch else [])
    if not options:
        parser.error("give at least one of --class, --text, --inpaint and --watch")
    with TemporaryDirectory() as folder, served(*options) as url, visitor(url) as visiting:
        for run, name in ((args.of_class, "class"), (args.text, "text"), (args.inpaint, "inpaint")):
            if not run:
                continue
            visiting.choose(Path(run).name)
            if name == "text":
                visiting.prompt(PROMPT)
            if name == "inpaint":
                give(visiting, picture(Path(folder) / "picture.png"))
                paint_hole(visiting)
            else:
                visiting.set("Guidance", args.guidance)
            visiting.set("Steps", args.steps)
            visiting.press()
            print(visiting.made())
            print(visiting.save(args.out / f"web_{name}.png"))
        if args.watch:
            visiting.choose(f"{Path(args.watch).name}, training")
            visiting.page.locator("svg[aria-label]:visible").first.wait_for()
            visiting.page.locator(".ldm-pictures:visible img").first.wait_for()
            print(visiting.save(args.out / "web_training.png"))


if __name__ == "__main__":
    main()
