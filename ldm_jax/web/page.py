"""The page itself: a tab for each model, and one for each run that is training."""

import html
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from ldm_jax import provenance
from ldm_jax.errors import UsageError
from ldm_jax.images import Images
from ldm_jax.pipeline import Progress
from ldm_jax.web import drawing, watch
from ldm_jax.web.form import NO_CLASS, NUMBERS, PAINTED, Form, files_of
from ldm_jax.web.models import Made, Models

WAITING = 64  # requests in the queue, at most
HOUR = 3600  # seconds that files and pictures of a visitor are kept
SYSTEM = ("ui-sans-serif", "system-ui", "sans-serif")
HEAD = f"<script>{drawing.SCRIPT.read_text(encoding='utf-8')}</script>"
CSS = drawing.CSS


def theme() -> gr.themes.Base:
    """Fonts of the visitor's own machine."""
    return gr.themes.Default(font=SYSTEM, font_mono=("ui-monospace", "monospace"))


def build(models: Models, watched: Sequence[str], every: float) -> gr.Blocks:
    """watched: run directories; every: seconds until what they show is read again."""
    names = watch.names_of([*models.forms, *watched])
    with gr.Blocks(title="ldm_jax", analytics_enabled=False, delete_cache=(HOUR, HOUR)) as blocks:
        gr.Markdown("## ldm_jax")
        with gr.Tabs():
            for number, (run, form) in enumerate(models.forms.items()):
                with gr.Tab(names[run]):
                    _model_tab(models, run, form, f"draw-{number}")
            for run in watched:
                with gr.Tab(f"{names[run]}, training"):
                    _watch_tab(blocks, run, every)
    return blocks.queue(max_size=WAITING)


def told(error: UsageError) -> gr.Error:
    """The error as a message on the page; the server's log gets no traceback."""
    return gr.Error(html.escape(str(error)), duration=30, print_exception=False)


# --- a model


def _model_tab(models: Models, run: str, form: Form, name: str) -> None:
    inputs: dict[str, gr.components.Component] = {}
    with gr.Row():
        with gr.Column():
            for option in form.options:
                inputs |= _input(form, option, f"{name}-{option}")
            inputs |= _how(form)
            with gr.Row():
                press = gr.Button("Make", variant="primary", elem_classes="ldm-make")
                stop = gr.Button("Stop")
        with gr.Column():
            status = gr.Markdown(elem_classes="ldm-status")
            gallery = gr.Gallery(label="Images", object_fit="contain", height=420, elem_classes="ldm-images")
            code = dict(interactive=False, wrap_lines=True)
            command = gr.Code(label="The same by a command", language="shell", elem_classes="ldm-command", **code)
            lines = gr.Code(label="The same in Python", language="python", elem_classes="ldm-python", **code)
            files = gr.Files(label="Files: PNG with their settings inside", interactive=False)
    names = list(inputs)

    def make(*values: Any) -> Iterator[dict]:
        folder = Path(tempfile.mkdtemp(prefix="ldm_jax_web_"))
        try:
            wanted = form.request(dict(zip(names, values)))
            models.check(run, wanted)
            yield {status: "waiting, or reading the model: the first images take longest"}
            for event in models.sample(run, wanted):
                if isinstance(event, Progress):
                    done = f"images {event.first + 1} to {event.first + event.number} of {event.total}"
                    yield {status: f"step {event.step} of {event.steps}, {done}"}
                elif isinstance(event, Images):
                    yield {gallery: event.pil()}
                elif isinstance(event, Made):
                    paths = event.images.save(folder)
                    yield {
                        status: f"{len(paths)} images, {_of(event.model)}",
                        gallery: [(str(path), label) for path, label in zip(paths, event.images.names)],
                        files: [str(path) for path in (*paths, *files_of(wanted, folder))],
                        command: provenance.command(wanted, event.model),
                        lines: provenance.python(wanted, event.model),
                    }
        except UsageError as error:
            raise told(error) from None
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    outputs = [status, gallery, files, command, lines]
    drawn = {names.index(option): f"{name}-{option}" for option in form.options if option in PAINTED}
    settings = dict(inputs=list(inputs.values()), outputs=outputs, js=_with_drawings(len(names), drawn))
    settings |= dict(concurrency_limit=1, concurrency_id="model", show_progress="hidden", api_visibility="private")
    made = press.click(make, **settings)
    cancelled = [made]
    if "prompt" in inputs:
        cancelled.append(inputs["prompt"].submit(make, **settings))
    stop.click(lambda: "stopped", outputs=status, cancels=cancelled, api_visibility="private", queue=False)


def _of(model: provenance.Model) -> str:
    name = Path(model.path).absolute().name
    return name if model.step is None else f"{name} step {model.step}"


def _with_drawings(number: int, drawn: dict[int, str]) -> str | None:
    """JavaScript that puts the drawings in the places of their inputs, before these are sent."""
    if not drawn:
        return None
    puts = " ".join(f"a[{place}] = window.ldmDrawn('{name}');" for place, name in drawn.items())
    return f"(...all) => {{ const a = all.slice(0, {number}); {puts} return a; }}"


def _input(form: Form, option: str, name: str) -> dict[str, gr.components.Component]:
    """{key of `Form.request`: component} of an option of the conditions."""
    if option == "prompt":
        return {"prompt": gr.Textbox(label="Prompt", placeholder="what the picture shows", lines=1)}
    if option == "label":
        choices = [(text, k) for k, text in enumerate(form.classes["label"])]
        return {"label": gr.Dropdown(choices, label="Class", value=0)}
    if option == "layout":
        gr.HTML(drawing.boxes(name, form.size, form.classes["layout"]), label="Boxes")
        return {"layout": gr.Textbox(visible=False)}
    if option == "segmentation":
        gr.HTML(drawing.plan(name, form.size, form.classes["segmentation"]), label="Map")
        choices = [("no class", NO_CLASS), *((text, k) for k, text in enumerate(form.classes["segmentation"]))]
        rest = gr.Dropdown(choices, label="Class of what is not painted", value=0)
        return {"segmentation": gr.Textbox(visible=False), "rest": rest}
    if option == "image":
        return {"image": _picture(form, name.replace("-image", "-mask") if "mask" in form.options else name)}
    if option == "mask":
        return {"mask": gr.Textbox(visible=False)}
    if option == "feather":
        return {"feather": gr.Slider(0, 32, value=0, step=1, label="Feather: pixels to blend over inside the hole")}
    return {option: gr.File(label=f"{option}: {form.helps[option]}")}


def _picture(form: Form, name: str) -> gr.State:
    """A picture that is uploaded, and shown to be looked at or painted over."""
    painted = "mask" in form.options
    height, width = form.picture_size
    upload = gr.File(
        label="Picture to fill" if painted else "Picture to enlarge", height=110, elem_classes="ldm-upload"
    )
    cut = gr.Checkbox(True, label=f"Make it {width}x{height} pixels, as trained, and cut what is outside")
    field, picture = gr.HTML(), gr.State(None, time_to_live=HOUR)

    def show(path: str | None, is_cut: bool):
        if not path:
            return None, ""
        try:
            pixels = form.picture(path, is_cut)
        except UsageError as error:
            raise told(error) from None
        return pixels, (drawing.hole if painted else drawing.shown)(name, pixels)

    for event in (upload.change, cut.change):
        event(show, [upload, cut], [picture, field], show_progress="hidden", api_visibility="private")
    return picture


def _how(form: Form) -> dict[str, gr.components.Component]:
    """Inputs of every model."""
    with gr.Row():
        num = gr.Radio(list(NUMBERS), value=4, label="Images")
        seed = gr.Number(0, precision=0, label="Seed", minimum=0, maximum=2**31 - 1)
        other = gr.Button("Another seed", size="sm")
    other.click(lambda: secrets.randbelow(2**31), outputs=seed, api_visibility="private", queue=False)
    with gr.Row():
        steps = gr.Slider(1, form.timesteps, value=form.steps, step=1, label="Steps")
        sampler = gr.Dropdown(list(form.samplers), value=form.samplers[0], label="Sampler")
    found = dict(num=num, seed=seed, steps=steps, sampler=sampler)
    with gr.Row():
        found["eta"] = gr.Slider(0, 1, value=form.eta, step=0.05, label="eta: noise of ddim")
        if form.guidance:
            found["guidance"] = gr.Slider(0, 20, value=3, step=0.5, label="Guidance (1: without)")
    return found


# --- a run that is training


def _watch_tab(blocks: gr.Blocks, run: str, every: float) -> None:
    far, curves = gr.Markdown(elem_classes="ldm-far"), gr.HTML()
    gallery = gr.Gallery(label="Newest pictures", columns=2, object_fit="contain", elem_classes="ldm-pictures")
    shown = gr.State(None)
    refresh = _refresh(run)
    settings = dict(inputs=shown, outputs=[far, curves, gallery, shown], show_progress="hidden")
    settings |= dict(concurrency_limit=None, api_visibility="private")
    blocks.load(refresh, **settings)
    gr.Timer(every).tick(refresh, **settings)


def _refresh(run: str) -> Callable:
    def refresh(shown: list[str] | None):
        lines, pictures = watch.read(run), watch.pictures(run)
        names = [str(path) for path, _ in pictures]
        newest = gr.skip() if names == shown else [(str(path), caption) for path, caption in pictures]
        return watch.told(run, lines), watch.drawn(watch.curves(lines)), newest, names

    return refresh
