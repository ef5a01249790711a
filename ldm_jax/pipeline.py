"""A trained model, ready to use: it samples, encodes, decodes and inverts.

    import ldm_jax
    pipe = ldm_jax.load("runs/text")
    images = pipe.sample(prompt="a red star", num=4, steps=50, guidance=5, seed=0)
    images.grid().save("stars.png")

sample.py and scripts/check_quickstart.py use it. The pictures during training come from the same programs.py.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.stages import Compiled
from ml_collections import ConfigDict

from ldm_jax import build, images, process, provenance, request, rundir
from ldm_jax.conditions.base import Asked
from ldm_jax.diffusion import starts
from ldm_jax.diffusion.timetable import Timetable, make_timetable
from ldm_jax.editing import InPatches
from ldm_jax.errors import Missing, RequestError
from ldm_jax.files import local
from ldm_jax.generate import DiffusionModel, image_keys
from ldm_jax.images import Images, to_uint8
from ldm_jax.ldm import LDM, LatentSpace
from ldm_jax.models.lpips import LPIPS
from ldm_jax.programs import Method, Programs, default_mesh
from ldm_jax.request import SampleRequest

Tree = Any
AUTOGUIDE_SCALE = 2.0  # about what Karras et al. (2024) found best for ImageNet


@dataclass(frozen=True)
class Progress:
    """How far a request is: `step` of `steps` are done for the images first .. first + number - 1 of `total`."""

    step: int
    steps: int
    first: int
    number: int
    total: int

    @property
    def done(self) -> float:
        """Images that are done, those of this batch by their steps."""
        return self.first + self.number * self.step / self.steps


OnProgress = Callable[[Progress], None]
OnPreview = Callable[[Progress, Images], None]


def load(
    path: str | Path, *, checkpoint: int | None = None, averaged: bool = True, mesh: Mesh | None = None
) -> "Pipeline":
    """The model of a run directory, of a folder that `Pipeline.save` wrote, or a model of the package by its name.

    checkpoint: the step (default: the newest). averaged: the averaged parameters where there are any, not the raw ones.
    mesh: devices that share a batch (default: all). Missing says what is not there. The model of a first-stage run
    encodes, decodes and reconstructs.
    """
    process.faster_cpu()  # as the scripts, so that images are the same; without effect once JAX has computed
    config = rundir.config_of(path)
    if config.task not in ("ldm", "first_stage"):
        raise Missing(
            f"{path} holds a run of task {config.task!r}, which makes no images: give it as classifier= to the "
            "diffusion model that it guides"
        )
    params, frozen, step = rundir.model_of(config, path, checkpoint, averaged)
    kind = "averaged" if averaged and config.get("ema", {}).get("decay", 0.0) else "raw"
    weights = "exported" if rundir.is_exported(path) else kind
    return Pipeline(config, params, frozen, path, step, weights, mesh or default_mesh())


class Pipeline:
    """A model and its compiled programs. `config`: its recipe; `params`, `frozen`: its parameters, on the devices of
    `mesh`; `path`, `step`, `weights`: where they come from. A first stage has no `params`.

    `compiled`: how many programs there are. One request after another uses the same ones, whatever its seed, prompt,
    label, scales, eta, strength and number of steps; another size, batch size or sampler adds one.
    """

    def __init__(
        self, config: ConfigDict, params: Tree, frozen: Tree, path: str | Path = "", step: int | None = None,
        weights: str = "raw", mesh: Mesh | None = None,
    ):  # fmt: skip
        self.config, self.path, self.step, self.weights = config, path, step, weights
        self.mesh = mesh or default_mesh()
        self.params, self.frozen = self._place(params), self._place(frozen)
        self._programs: dict[Any, Programs] = {}
        self._classifiers: dict[str, tuple] = {}
        self._weaker: dict[Any, tuple] = {}
        self._lpips: dict[tuple[str, str], tuple[LPIPS, Tree]] = {}

    def update(self, params: Tree, frozen: Tree, step: int | None = None, weights: str = "raw") -> None:
        """Other parameters of the same shapes, such as those of a later step: nothing is compiled again. Those from
        before leave the devices first."""
        self.clear()
        self.params, self.frozen, self.step, self.weights = self._place(params), self._place(frozen), step, weights

    def clear(self) -> None:
        """Gives the memory of the parameters back. Nothing can be asked before the next `update`."""
        self.params = self.frozen = None

    def __repr__(self) -> str:
        return f"<ldm_jax pipeline of {self.path}: {self.what}>"

    @property
    def what(self) -> str:
        """What the model is, in a few words."""
        if self.model is None:
            return f"a first stage ({self.config.first_stage.kind})"
        return f"a diffusion model of kind {self.config.conditioner.kind!r}"

    @cached_property
    def model(self) -> LDM | None:
        """The networks, without parameters; None for a first stage."""
        return build.ldm(self.config) if self.config.task == "ldm" else None

    @property
    def compiled(self) -> int:
        """Number of programs compiled so far."""
        return sum(programs.compiled for programs in self._programs.values())

    @property
    def compile_seconds(self) -> float:
        return sum(programs.compile_seconds for programs in self._programs.values())

    def programs(self, patch: tuple[int, int] | None = None) -> Programs:
        """The programs of the whole model, or of the model in patches: (patch, stride) in pixels."""
        if patch not in self._programs:
            model: DiffusionModel = self.model or LatentSpace(build.first_stage(self.config))
            model = self._in_patches(model, patch)
            precision = self.config.get("matmul_precision", "default")
            precision = None if precision == "default" else precision
            self._programs[patch] = Programs(model, self.mesh, precision=precision)
        return self._programs[patch]

    def _in_patches(self, model: DiffusionModel, patch: tuple[int, int] | None) -> DiffusionModel:
        if not patch:
            return model
        f = build.frame(self.config).f
        return InPatches(model, (patch[0] // f,) * 2, (patch[1] // f,) * 2, f)

    # --- sampling

    def sample(
        self, wanted: SampleRequest | None = None, *, on_progress: OnProgress | None = None,
        on_preview: OnPreview | None = None, preview_every: int = 10, **options,
    ) -> Images:  # fmt: skip
        """Images for a `SampleRequest`, or for its options: `sample(prompt="a red star", num=4, steps=50)`.

        on_progress is called after every step. on_preview, after every `preview_every` steps, gets the images that the
        model expects at that step. RequestError says what is wrong with a request, and the remedy.
        """
        wanted = self.request(wanted, **options)
        stream = self.stream(wanted, on_progress=on_progress, on_preview=on_preview, preview_every=preview_every)
        made = list(stream)
        return Images([image for _, image in made], [name for name, _ in made], self.texts(wanted))

    def stream(
        self, wanted: SampleRequest | None = None, *, on_progress: OnProgress | None = None,
        on_preview: OnPreview | None = None, preview_every: int = 10, **options,
    ) -> Iterator[tuple[str, np.ndarray]]:  # fmt: skip
        """As `sample`, but (name, uint8 [H,W,C]) one by one, as soon as their batch is made."""
        wanted = self.request(wanted, **options)
        asked = self.resolve(wanted)
        return self._stream(wanted, asked, on_progress, on_preview, preview_every)

    def compile(self, wanted: SampleRequest) -> list[Compiled]:
        """All programs until now, those of the request among them. Not of one that begins with pictures or noise. The
        parameters may be shapes."""
        programs, timetable, asked = self.programs(self._patch(wanted)), self._timetable(wanted), self.resolve(wanted)
        number = programs.batch_size(min(wanted.batch, len(asked)))
        for one in {r.size: r for r in asked}.values():
            batch, method = _stacked([one] * number), self._method(wanted, one.size, timetable)
            programs.compile_sample(self.params, self.frozen, batch, number, method)
        return self._compiled()

    def compile_reconstruction(self, number: int, batch: int = 16) -> list[Compiled]:
        """The same, with those of `reconstruct` for so many pictures of config.data.image_size."""
        programs, d = self.programs(), self.config.data
        number = programs.batch_size(min(batch, number))
        image = jax.ShapeDtypeStruct((number, d.image_size, d.image_size, d.channels), np.float32)
        programs.compile_reconstruction(self.frozen, image)
        return self._compiled()

    def _compiled(self) -> list[Compiled]:
        return [program for programs in self._programs.values() for program in programs.programs]

    def request(self, wanted: SampleRequest | None = None, **options) -> SampleRequest:
        """The given SampleRequest, or one made of options."""
        if wanted is not None and options:
            raise RequestError(f"{next(iter(options))}: give a SampleRequest or options, not both")
        return wanted if wanted is not None else request.make(options)

    def resolve(self, wanted: SampleRequest) -> list[Asked]:
        """One `Asked` an image. RequestError where this model cannot answer."""
        if self.model is None:
            raise RequestError(
                f"{self.path} holds a first stage, which has no prior to sample from; it can encode, decode and "
                "reconstruct"
            )
        return request.resolve(wanted, self.config, self.path or "this", self.tokenizer)

    @property
    def tokenizer(self) -> Path | None:
        return rundir.tokenizer_of(self.path) if self.path else None

    def texts(self, wanted: SampleRequest) -> dict[str, Any]:
        """The text entries of a request's PNGs: `settings`, and under "ldm_jax" the JSON that `read_settings` reads."""
        return self.settings(wanted) | {provenance.KEY: json.dumps(self.record(wanted))}

    def record(self, wanted: SampleRequest) -> dict[str, Any]:
        """The request, the command and the model, as JSON has them (provenance.py)."""
        return provenance.record(wanted, self.origin)

    @property
    def origin(self) -> provenance.Model:
        raw = self.weights == "raw" and bool(self.config.get("ema", {}).get("decay", 0.0))
        return provenance.Model(str(self.path), self.step, raw)

    def settings(self, wanted: SampleRequest) -> dict[str, Any]:
        """What is needed to make the images of a request again, for people to read: text entries of their PNGs."""
        source = f"{self.path} step {self.step}" if self.step is not None else str(self.path)
        timetable = self._timetable(wanted)
        said = dict(
            seed=wanted.seed, sampler=wanted.sampler, steps=wanted.steps_of(self.config), eta=wanted.eta,
            spacing=wanted.spacing_of(self.config), guidance=_numbers(wanted.guidance),
            guidance_rescale=wanted.guidance_rescale, checkpoint=source, weights=self.weights,
            init=_named(wanted.init), strength=None if wanted.init is None else wanted.share,
            invert=wanted.invert or None, guide=_named(wanted.guide),
            interpolate=wanted.interpolate and " to ".join(_named(end) for end in wanted.interpolate),
            first=wanted.first or None, patch=wanted.patch, stride=self._patch(wanted) and self._patch(wanted)[1],
        )  # fmt: skip
        if wanted.guide is not None:
            said |= dict(guide_distance=wanted.guide_distance or "l2", guide_scale=_or(wanted.guide_scale, 1.0))
        if wanted.guidance_interval is not None:
            said |= dict(guidance_interval=" to ".join(f"{end:g}" for end in wanted.guidance_interval))
        if wanted.autoguide is not None:
            said |= dict(autoguide=f"{wanted.autoguide} step {self._weaker_model(wanted)[2]}")
            said |= dict(autoguide_scale=_or(wanted.autoguide_scale, AUTOGUIDE_SCALE))
        if wanted.classifier is not None:
            step = self._classifier(wanted)[2]
            said |= dict(classifier=f"{wanted.classifier} step {step}")
            said |= dict(classifier_scale=_or(wanted.classifier_scale, 1.0))
        said |= {} if len(timetable.t) == said["steps"] else {"steps_run": len(timetable.t)}
        return {name: value for name, value in said.items() if value is not None}

    def helpers(self, wanted: SampleRequest) -> list[Tree]:
        """The parameters of the other models that a request uses: of its classifier, and of its weaker model."""
        return [found[1] for found in (self._classifier(wanted), self._weaker_model(wanted)) if found is not None]

    def _stream(self, wanted, asked, on_progress, on_preview, preview_every) -> Iterator[tuple[str, np.ndarray]]:
        programs, timetable = self.programs(self._patch(wanted)), self._timetable(wanted)
        asked = self._with_starts(wanted, programs, timetable, asked)
        full, first = programs.batch_size(min(wanted.batch, len(asked))), 0
        while first < len(asked):
            size, last = asked[first].size, first + 1
            while last < len(asked) and last - first < full and asked[last].size == size:
                last += 1
            indices = list(range(first, last)) + [first] * (full - (last - first))  # a full batch: one program
            batch = _stacked([asked[i] for i in indices])
            report = self._reporter(on_progress, on_preview, preview_every, asked, first, last)
            method = self._method(wanted, size, timetable)
            numbers = np.array(indices, np.int32) + wanted.first
            z = programs.sample(self.params, self.frozen, batch, wanted.seed, numbers, method, report)
            made = to_uint8(programs.decode(self.frozen, z)[: last - first])
            yield from ((asked[i].name, asked[i].finish(image)) for i, image in zip(range(first, last), made))
            first = last

    def _reporter(self, on_progress, on_preview, every, asked, first, last):
        """The on_step of Programs.sample, or None where there is nothing to call."""
        if on_progress is None and on_preview is None:
            return None

        def report(step: int, steps: int, estimate: Callable[[], np.ndarray]) -> None:
            progress = Progress(step, steps, first, last - first, len(asked))
            if on_progress is not None:
                on_progress(progress)
            if on_preview is not None and step % every == 0 and step < steps:
                made = to_uint8(estimate()[: last - first])
                shown = [asked[i].finish(image) for i, image in zip(range(first, last), made)]
                on_preview(progress, Images(shown, [asked[i].name for i in range(first, last)]))

        return report

    def _timetable(self, wanted: SampleRequest) -> Timetable:
        try:
            spacing = wanted.spacing_of(self.config)
            whole = make_timetable(self.model.schedule, wanted.steps_of(self.config), spacing)
        except ValueError as error:
            raise RequestError(f"steps={wanted.steps_of(self.config)}: {error}") from None
        return starts.shortened(whole, wanted.share)

    def _patch(self, wanted: SampleRequest) -> tuple[int, int] | None:
        return (wanted.patch, wanted.stride or wanted.patch // 2) if wanted.patch else None

    def _method(self, wanted: SampleRequest, size: tuple[int, int], timetable: Timetable) -> Method:
        weaker = self._weaker_model(wanted)
        return Method(
            build.latent_shape(self.config, size), timetable, wanted.sampler, self._distance(wanted),
            self._classifier(wanted), wanted.eta, _numbers(wanted.guidance), wanted.guidance_rescale,
            _or(wanted.guide_scale, 1.0), _or(wanted.classifier_scale, 1.0), weaker and weaker[:2],
            _or(wanted.autoguide_scale, AUTOGUIDE_SCALE), wanted.guidance_interval,
        )  # fmt: skip

    def _distance(self, wanted: SampleRequest) -> tuple[LPIPS, Tree] | None:
        """LPIPS and its parameters, where the request compares by it."""
        net, folder = request.DISTANCES[wanted.guide_distance or "l2"], str(wanted.lpips_weights)
        if net is None:
            return None
        if (net, folder) not in self._lpips:
            found = rundir.lpips_params(net, folder, "or compare pixels: guide_distance=l2")
            self._lpips[net, folder] = LPIPS(net), self._place(found)
        return self._lpips[net, folder]

    def _classifier(self, wanted: SampleRequest) -> tuple | None:
        run = None if wanted.classifier is None else str(wanted.classifier)
        if run is None:
            return None
        if run not in self._classifiers:
            model, params, step = rundir.classifier(run, self.config, self.frozen, self.path)
            self._classifiers[run] = model, self._place(params), step
        return self._classifiers[run]

    def _weaker_model(self, wanted: SampleRequest) -> tuple | None:
        """(model, {"params", "frozen"}, step) of `autoguide`. The same object for the same model: programs know it."""
        if wanted.autoguide is None:
            return None
        run, patch = (str(wanted.autoguide), wanted.autoguide_checkpoint), self._patch(wanted)
        if run not in self._weaker:
            model, trees, step = rundir.weaker_model(*run, self.config, self.frozen, self.path)
            self._weaker[run] = model, self._place(trees), step
        if (run, patch) not in self._weaker:
            model, *rest = self._weaker[run]
            self._weaker[run, patch] = self._in_patches(model, patch), *rest
        return self._weaker[run, patch]

    def _with_starts(self, wanted, programs: Programs, timetable: Timetable, asked: list[Asked]) -> list[Asked]:
        """With a latent in place of "pictures": "z" [h,w,c], to which noise is added, or "z_T", to begin from."""
        if wanted.init is None and wanted.interpolate is None:
            return asked
        made = []
        for _, group in groupby(asked, key=id):  # the images of one condition
            same = list(group)
            pictures = same[0].fields.get("pictures")
            fields = {name: value for name, value in same[0].fields.items() if name != "pictures"}
            if pictures is None:
                shape = build.latent_shape(self.config, same[0].size)
                keys = (image_keys(seed, np.zeros(1, np.int32)) for seed in wanted.seeds)
                ends = [np.asarray(starts.start_noise(key, shape)[0]) for key in keys]
            elif wanted.invert or wanted.interpolate:
                condition = [replace(same[0], fields=fields)] * len(pictures)
                ends = self._inverted(programs, condition, pictures, timetable)
            else:
                ends = self._in_batches(lambda x: programs.encode(self.frozen, x), pictures, len(pictures))
            if wanted.interpolate:
                latents = np.asarray(starts.slerp(*map(np.asarray, ends), np.linspace(0, 1, len(same))))
            else:
                latents = [np.asarray(ends[0])] * len(same)
            name = "z_T" if wanted.invert or wanted.interpolate else "z"
            made += [replace(r, fields=fields | {name: z}) for r, z in zip(same, latents)]
        return made

    def _inverted(self, programs: Programs, asked: list[Asked], pictures: np.ndarray, timetable: Timetable):
        """z_T [N,h,w,c] of pictures [N,H,W,C] in [-1,1], under the condition of each."""

        def invert(rows: np.ndarray) -> np.ndarray:
            batch = _stacked([asked[i] for i in rows])
            return programs.invert(self.params, self.frozen, batch, pictures[rows], timetable)

        return self._in_batches(invert, np.arange(len(pictures)), len(pictures))

    # --- encoding, decoding, inversion

    def encode(self, pictures: Any, batch: int = 16) -> np.ndarray:
        """Scaled latents [N,h,w,c] float32 of pictures (paths, PIL images, uint8 arrays, or float32 arrays [N,H,W,C] in
        [-1,1]); of a posterior its mode. Their sides must divide by the first stage's f."""
        image, programs = self._images_of("images", pictures), self.programs()
        return self._in_batches(lambda x: programs.encode(self.frozen, x), image, batch)

    def decode(self, z: np.ndarray, batch: int = 16) -> Images:
        """Images of scaled latents [N,h,w,c]."""
        z, programs = np.asarray(z, np.float32), self.programs()
        channels = build.latent_shape(self.config)[2]
        if z.ndim != 4 or z.shape[-1] != channels:
            raise RequestError(f"z is {z.shape}; the first stage decodes [N,h,w,{channels}]")
        return Images(to_uint8(self._in_batches(lambda x: programs.decode(self.frozen, x), z, batch)))

    def reconstruct(self, pictures: Any, batch: int = 16) -> Images:
        """What the first stage makes of pictures: decode(encode(pictures))."""
        return self.decode(self.encode(pictures, batch), batch)

    def invert(self, pictures: Any, steps: int | None = None, spacing: str | None = None, **condition) -> np.ndarray:
        """Noise [N,h,w,c] from which `sample(noise=..., steps=...)` with ddim makes the pictures' reconstructions again
        (editing.invert_image), under one condition: `invert("a.png", prompt="a red star")`."""
        wanted = self.request(init=pictures, invert=True, steps=steps, spacing=spacing, **condition)
        asked, timetable = self.resolve(wanted), self._timetable(wanted)
        made = self._with_starts(wanted, self.programs(self._patch(wanted)), timetable, asked)
        return np.stack([r.fields["z_T"] for r in made])

    def _images_of(self, option: str, pictures: Any) -> np.ndarray:
        """float32 [N,H,W,C] in [-1,1]."""
        if isinstance(pictures, Images):
            pictures = pictures.array
        if isinstance(pictures, np.ndarray | jax.Array) and np.issubdtype(pictures.dtype, np.floating):
            found = np.asarray(pictures, np.float32)
            found = found[None] if found.ndim == 3 else found
            if found.ndim != 4 or not np.abs(found).max(initial=0.0) <= 1.0001:
                raise RequestError(f"{option}: float arrays are [N,H,W,C] in [-1,1]; this one is {found.shape}")
        else:
            channels = self.config.data.channels
            made = [images.to_float(p.pixels(option, channels)) for p in images.pictures(option, pictures)]
            if len({image.shape for image in made}) > 1:
                sizes = sorted({image.shape for image in made})
                raise RequestError(f"{option}: pictures of one size are needed, these are {sizes}")
            found = np.stack(made)
        try:
            build.latent_shape(self.config, found.shape[1:3])
        except ValueError as error:
            raise RequestError(f"{option}: {error}") from None
        return found

    def _in_batches(self, fn: Callable[[np.ndarray], np.ndarray], rows: np.ndarray, batch: int) -> np.ndarray:
        """fn over rows [N,...], `batch` at a time, the last one filled up so that nothing is compiled again."""
        batch, made = self.programs().batch_size(min(batch, len(rows))), []
        for first in range(0, len(rows), batch):
            part = rows[first : first + batch]
            filled = np.concatenate([part, np.repeat(part[:1], batch - len(part), axis=0)])
            made.append(np.asarray(fn(filled))[: len(part)])
        return np.concatenate(made)

    # --- keeping

    def save(self, folder: str | Path, dtype: str = "float32") -> Path:
        """Writes the model alone into a folder that `load` reads: config.json, model.safetensors, tokenizer/.

        dtype: "float32", or "float16" or "bfloat16" for half the size. The folder must not hold another model.
        """
        folder = local(folder, "folder")
        if (folder / "config.json").exists():
            raise RequestError(f"folder={folder} holds a model already; give another one")
        params, frozen = jax.device_get((self.params, self.frozen))
        rundir.write_exported(folder, self.config, params, frozen, dtype, self.tokenizer)
        return folder

    def _place(self, values: Tree) -> Tree:
        """A copy on every device; of shapes, their shapes there."""
        everywhere = NamedSharding(self.mesh, PartitionSpec())
        if any(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(values)):
            return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), values)
        if any(isinstance(x, jax.Array) and not x.is_fully_addressable for x in jax.tree.leaves(values)):
            return jax.jit(lambda x: x, out_shardings=everywhere)(values)  # of several hosts
        return jax.tree.map(
            lambda x: jax.make_array_from_callback(np.shape(x), everywhere, lambda index: np.asarray(x)[index]), values
        )


def _stacked(asked: list[Asked]) -> dict[str, np.ndarray]:
    """Fields [B,...] of a batch."""
    rows = [r.fields for r in asked]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def _named(given: Any) -> str | None:
    """A picture or seed as text for the settings."""
    if given is None or isinstance(given, str | Path | int):
        return None if given is None else str(given)
    return type(given).__name__


def _numbers(given: Any) -> Any:
    """Several numbers as a tuple; one number as it is."""
    return tuple(float(x) for x in given) if np.ndim(given) else given


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value
