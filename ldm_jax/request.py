"""What can be asked of a model, and what is wrong with a request.

`SampleRequest` says everything that `Pipeline.sample` and sample.py can be asked for. `resolve` turns it into one
`Asked` an image: the fields of a batch, the size, and what is done with the image in the end.
"""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from ldm_jax import build, conditions, images, rundir
from ldm_jax.conditions import class_label
from ldm_jax.conditions.base import Asked
from ldm_jax.data.layout import LayoutCoder
from ldm_jax.data.transforms import covering, crop, resize
from ldm_jax.diffusion import patches
from ldm_jax.diffusion.samplers import Sampler, get_sampler, names_for
from ldm_jax.diffusion.timetable import SPACINGS
from ldm_jax.errors import RequestError

# guide_distance: the backbone of LPIPS, whose weights `lpips_weights` holds.
DISTANCES = {"l2": None, "lpips": "vgg16", "lpips_alex": "alex"}


@dataclass(frozen=True, eq=False)
class SampleRequest:
    """Everything that a diffusion model can be asked for. None = not asked for, or the default that is named.

    How many and how:
      num: images for each condition (default 16 without one, 8 to interpolate, else 1)
      seed: 0..2147483647; image i depends on (seed, i) and its condition alone
      first: the number i of the first image (default 0), to make a long series in parts
      steps: sampling steps (default 50; ddpm: all training steps)
      sampler: ddim (default), ddpm, plms, euler, euler_ancestral, heun, dpm_solver_pp_2m, dpm_solver_pp_2m_sde,
        unipc_2, unipc_3, or any registered one
      eta: of ddim, 0 (deterministic) .. 1 (as noisy as ddpm)
      spacing: which training steps are visited (default: what suits the sampler; diffusion/timetable.py)
      batch: images at a time; changes memory and speed, not the images
      size: (height, width) in pixels, other than trained with (default: as trained; of pictures: theirs)
    Conditions, of which the model takes those that it was trained with (pictures: paths, PIL images, uint8 arrays):
      label: a class, or several; prompt: a text, or several; prompts: a file with one text a line
      layout: [{"box": [x0,y0,x1,y1] in 0..1, "class": 3}, ...] or a JSON file; segmentation: a map of classes
      image: a picture to enlarge or to fill; mask: white where it is to be filled; feather: pixels to blend over
      vectors: [k,dim] numbers, or a .npy file
      conditions: {option: value} of kinds of condition that are not listed here
      fields: the fields of a batch as training has them, arrays [N,...], in place of all of these: image i has row i
    Guidance:
      guidance: scale of classifier-free guidance (default: without; 1 gives the same); of several conditions, trained
        with config.conditioner.drop_each, also a scale for each, in the order of their kinds' names
      guidance_rescale: 0 (off) .. 1, against over-saturated images at large scales (Lin et al. 2023, section 3.4)
      guidance_interval: (low, high): guidance or autoguide at low < sigma <= high alone, sigma = noise / signal, about
        0.04 .. 84 of the paper's schedule; inf is allowed (default: at all noise levels)
      autoguide: run directory of a weaker model of the same latents and conditions: guides away from it (Karras et al.
        2024); autoguide_scale (2; 1 = off); autoguide_checkpoint: its step (default: the newest)
      classifier: run directory of a classifier of this model's latents, guides to `label`; classifier_scale (1)
      guide: a picture that the image, made as small, is to match; guide_scale (1): inverse variance of its pixels in
        -1..1; guide_distance: l2 (default), lpips, lpips_alex, with their weights in the folder lpips_weights
    Where to start:
      init: a picture to begin from, noised; strength: share of the steps to run, above 0 (keep all) .. 1 (default 0.6)
      invert: begin from the picture's own noise by DDIM inversion (strength: default 1)
      interpolate: two seeds or two pictures: `num` images from the one to the other
      noise: latents z_T [N,h,w,c] to begin from, such as `Pipeline.invert` gives
    Large images:
      patch: networks see squares of so many pixels, blended; stride: from one square to the next (default patch / 2)
    """

    num: int | None = None
    seed: int = 0
    first: int = 0
    steps: int | None = None
    sampler: str = "ddim"
    eta: float = 0.0
    spacing: str | None = None
    batch: int = 16
    size: tuple[int, int] | None = None
    label: int | Sequence[int] | None = None
    prompt: str | Sequence[str] | None = None
    prompts: str | Path | None = None
    layout: Any = None
    segmentation: Any = None
    image: Any = None
    mask: Any = None
    feather: float | None = None
    vectors: Any = None
    conditions: Mapping[str, Any] = field(default_factory=dict)
    fields: Mapping[str, np.ndarray] | None = None
    guidance: float | Sequence[float] | None = None
    guidance_rescale: float | None = None
    guidance_interval: tuple[float, float] | None = None
    autoguide: str | Path | None = None
    autoguide_scale: float | None = None
    autoguide_checkpoint: int | None = None
    classifier: str | Path | None = None
    classifier_scale: float | None = None
    guide: Any = None
    guide_scale: float | None = None
    guide_distance: str | None = None
    lpips_weights: str | Path = "weights"
    init: Any = None
    strength: float | None = None
    invert: bool = False
    interpolate: tuple[Any, Any] | None = None
    noise: np.ndarray | None = None
    patch: int | None = None
    stride: int | None = None

    def __post_init__(self):
        """Refuses what no model can answer. RequestError."""
        for name in ("num", "steps", "batch", "patch", "stride"):
            value = getattr(self, name)
            if value is not None and not (_is_int(value) and value > 0):
                raise RequestError(f"{name}={value!r} must be a whole number above 0")
        _check_seed("seed", self.seed)
        _check_seed("first", self.first)
        self._check_numbers()
        self._check_belongs_together()

    def _check_numbers(self) -> None:
        record = get_sampler_of(self)
        if self.spacing is not None and self.spacing not in SPACINGS:
            raise RequestError(f"spacing={self.spacing!r} is not one of {', '.join(SPACINGS)}")
        names = ("eta", "guidance", "guidance_rescale", "autoguide_scale", "classifier_scale", "guide_scale",
                 "strength", "feather")  # fmt: skip
        for name in names:
            value = getattr(self, name)
            several = value if name == "guidance" and np.ndim(value) else (value,)
            finite = len(several) and all(isinstance(x, int | float | np.number) and np.isfinite(x) for x in several)
            if value is not None and not finite:
                raise RequestError(f"{name}={value!r} must be a finite number")
        if self.eta and not record.takes_eta:
            raise RequestError(f"eta={self.eta:g} has no meaning for sampler={self.sampler}; it belongs to ddim")
        if not 0 <= self.eta <= 1:
            raise RequestError(f"eta={self.eta:g} must lie between 0 and 1")
        if self.guidance_rescale is not None and not 0 <= self.guidance_rescale <= 1:
            raise RequestError(f"guidance_rescale={self.guidance_rescale:g} must lie between 0 and 1")
        if self.guidance_interval is not None:
            self._check_interval()
        if self.strength is not None and not 0 < self.strength <= 1:
            raise RequestError(f"strength={self.strength:g} must lie above 0 and at most at 1")
        size = self.size
        if size is not None and not (len(size) == 2 and all(_is_int(n) and n > 0 for n in size)):
            raise RequestError(f"size={size!r} is not (height, width) in pixels")
        if self.guide_distance is not None and self.guide_distance not in DISTANCES:
            raise RequestError(f"guide_distance={self.guide_distance!r} is not one of {', '.join(DISTANCES)}")

    def _check_interval(self) -> None:
        try:
            low, high = (float(end) for end in self.guidance_interval)
        except (TypeError, ValueError):
            low = high = 0.0
        if not 0 <= low < high:
            raise RequestError(
                f"guidance_interval={self.guidance_interval!r} is not (low, high) with 0 <= low < high, two values of "
                "sigma = noise / signal"
            )
        object.__setattr__(self, "guidance_interval", (low, high))  # of a JSON file infinity is the text "inf"

    def _check_belongs_together(self) -> None:
        needs = {
            "strength": "init", "invert": "init", "guide_scale": "guide", "guide_distance": "guide",
            "classifier_scale": "classifier", "stride": "patch", "guidance_rescale": "guidance",
            "autoguide_scale": "autoguide", "autoguide_checkpoint": "autoguide",
        }  # fmt: skip
        for name, other in needs.items():
            if getattr(self, name) and getattr(self, other) is None:
                raise RequestError(f"{name} belongs to {other}, which is not given")
        if self.guidance_interval is not None and self.guidance is None and self.autoguide is None:
            raise RequestError("guidance_interval belongs to guidance or autoguide, none of which is given")
        if self.guidance is not None and self.autoguide is not None:
            raise RequestError("guidance and autoguide are two models to guide away from; give one")
        starts = [name for name in ("init", "interpolate", "noise") if getattr(self, name) is not None]
        if len(starts) > 1:
            raise RequestError(f"{starts[0]} and {starts[1]} are two ways to start; give one")
        if (self.invert or self.interpolate) and (self.eta or (self.record.draws_noise and not self.record.takes_eta)):
            option = "invert" if self.invert else "interpolate"
            raise RequestError(f"{option} needs a sampler that draws no noise: not {self.sampler}, and without eta")
        if self.interpolate is not None:
            if len(self.interpolate) != 2:
                raise RequestError(f"interpolate={self.interpolate!r}: give two seeds or two pictures")
            for seed in self.seeds:
                _check_seed("interpolate", seed)
            if self.num == 1:
                raise RequestError("num=1: interpolate makes at least 2 images")
        if self.stride and self.stride > self.patch:
            raise RequestError(f"stride={self.stride} leaves gaps between squares of patch={self.patch}")
        if self.classifier is not None and self.label is None:
            raise RequestError("classifier needs label, the class to guide to")

    @property
    def record(self) -> Sampler:
        return get_sampler_of(self)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The two seeds of `interpolate`, or () where it names pictures or is not given."""
        ends = self.interpolate or ()
        return tuple(int(end) for end in ends) if all(_is_int(end) for end in ends) else ()

    @property
    def share(self) -> float:
        """The share of the steps to run: `strength` or its default."""
        if self.init is None:
            return 1.0
        return self.strength if self.strength is not None else 1.0 if self.invert else 0.6

    def steps_of(self, config: ConfigDict) -> int:
        """How many steps were asked for, or the default."""
        timesteps = config.diffusion.timesteps
        if self.steps is not None and self.steps > timesteps:
            raise RequestError(f"steps={self.steps}: the model knows {timesteps} noise levels; ask for 1..{timesteps}")
        return self.steps or (timesteps if self.sampler == "ddpm" else min(50, timesteps))

    def spacing_of(self, config: ConfigDict) -> str:
        """The timetable's spacing: as asked for, or what suits the model and the sampler."""
        if self.spacing is not None:
            return self.spacing
        return build.schedule(config).spacing or self.record.spacing

    def asked(self) -> dict[str, Any]:
        """{option: value} of the conditions that are asked for."""
        known = [name for name in conditions.all_options() if hasattr(self, name)]
        given = {name: getattr(self, name) for name in known if getattr(self, name) is not None}
        return given | dict(self.conditions)


def make(options: Mapping[str, Any]) -> SampleRequest:
    """A request made of keyword options, also of those of kinds of condition that SampleRequest does not list.
    RequestError for an unknown option, with the nearest known one."""
    names = [f.name for f in dataclasses.fields(SampleRequest)]
    further = set(conditions.all_options()) - set(names)
    for name in options:
        if name not in names and name not in further:
            near = difflib.get_close_matches(name, [*names, *further], 1)
            hint = f"; did you mean {near[0]}?" if near else f"; there are: {', '.join(names)}"
            raise RequestError(f"{name}={options[name]!r} is not an option{hint}")
    own = {name: value for name, value in options.items() if name in names}
    other = {name: value for name, value in options.items() if name not in names}
    return SampleRequest(**own | {"conditions": dict(own.get("conditions", {})) | other})


def get_sampler_of(request: SampleRequest) -> Sampler:
    try:
        return get_sampler(request.sampler)
    except ValueError as error:
        raise RequestError(str(error)) from None


def resolve(request: SampleRequest, config: ConfigDict, run: str | Path, tokenizer: Path | None) -> list[Asked]:
    """One Asked an image, in order, of a diffusion model's `config`; `run`: its name in messages.

    RequestError for conditions that this model does not take, or lacks, and for sizes that do not fit.
    """
    condition = conditions.condition_of(config)
    _check_sampler(request, config, run)
    _check_conditions(request, condition, config, run)
    frame = _frame(request, config)
    multiple = frame.f * frame.divisor
    if any(n % frame.divisor for n in frame.latent):
        raise RequestError(f"size={_text(request.size)}: this model takes multiples of {multiple}")
    if request.patch and (request.patch % multiple or _stride(request) % frame.f):
        raise RequestError(
            f"patch={request.patch}, stride={_stride(request)}: this model takes patches that are multiples of "
            f"{multiple} and strides that are multiples of {frame.f}"
        )
    if request.fields is not None:
        made = _of_fields(request, condition, frame)
    else:
        asked = {name: value for name, value in request.asked().items() if name in _names(condition)}
        made = condition.requests(asked, frame, tokenizer)
    if request.size and made[0].size not in (None, tuple(request.size)):
        of = made[0].name or "the picture"
        raise RequestError(f"size={_text(request.size)} means nothing here: it is that of {of}")
    made = _with_pictures(request, config.data.channels, multiple, made)
    size = tuple(request.size or (config.data.image_size,) * 2)
    made = [dataclasses.replace(r, size=r.size or size) for r in made]
    if request.patch and (coder := _crop_coder(condition)):
        made = _with_crops(request, coder, frame.f, made)
    if request.classifier is not None:
        made = _with_classes(request, config, run, made)
    if request.guide is not None:
        made = _with_guide(request, config.data.channels, made)
    default = 8 if request.interpolate else 16 if _free(request, condition) else 1
    repeated = [r for r in made for _ in range(request.num or default)]
    return _with_noise(request, config, repeated) if request.noise is not None else repeated


def _check_sampler(request: SampleRequest, config: ConfigDict, run: str | Path) -> None:
    if build.schedule(config).pure_noise and not request.record.from_pure_noise:
        others = ", ".join(names_for(pure_noise=True))
        raise RequestError(
            f"sampler={request.sampler} cannot begin in pure noise, as the model in {run} does (flow matching, or zero "
            f"terminal SNR); these can: {others}"
        )
    if request.autoguide is not None:
        rundir.weaker_config(request.autoguide, config, run)


def _free(request: SampleRequest, condition: conditions.Condition) -> bool:
    """Whether there is neither a condition nor anything else that an image depends on, except its seed."""
    given = (request.classifier, request.init, request.noise, request.fields)
    return not condition.groups() and all(x is None for x in given)


def _names(condition: conditions.Condition) -> list[str]:
    return [option.name for group in (*condition.groups(), condition.extras()) for option in group]


def _check_conditions(request: SampleRequest, condition, config: ConfigDict, run: str | Path) -> None:
    groups = [[option.name for option in group] for group in condition.groups()]
    takes = [" or ".join(group) for group in groups]
    of = f"{run} is a model of kind {condition.kind!r}, which takes {' and '.join(takes) or 'no condition'}"
    given = list(request.asked())
    if request.fields is not None and given:
        raise RequestError(f"{given[0]} and fields are two ways to say the condition; give one")
    taken = _names(condition)
    wrong = [name for name in given if name not in taken and not (name == "label" and request.classifier is not None)]
    if wrong:
        raise RequestError(f"{wrong[0]} means nothing here: {of}")
    missing = [text for text, group in zip(takes, groups) if not set(group) & set(given)]
    if missing and request.fields is None:
        raise RequestError(f"{missing[0]} is missing: {of}")
    scales = " ".join(f"{x:g}" for x in np.ravel(request.guidance)) if request.guidance is not None else ""
    if scales and not config.conditioner.drop_prob:
        raise RequestError(
            f"guidance={scales} needs a model that also learnt without its condition, and {run} was "
            "trained with config.conditioner.drop_prob=0. Leave guidance out, or train with drop_prob=0.1"
        )
    number, parts = np.size(request.guidance), list(condition.parts())
    if np.ndim(request.guidance) and (number != len(parts) or not config.conditioner.get("drop_each", 0.0)):
        raise RequestError(
            f"guidance={scales} has a scale for each of {number} conditions: that needs a model of so many which also "
            f"learnt without each alone (config.conditioner.drop_each=0.05). {run} has {', '.join(parts)} and "
            f"drop_each={config.conditioner.get('drop_each', 0.0)}"
        )


def _frame(request: SampleRequest, config: ConfigDict):
    try:
        return build.frame(config, request.size and tuple(request.size))
    except ValueError as error:
        raise RequestError(f"size={_text(request.size)}: {error}") from None


def _of_fields(request: SampleRequest, condition: conditions.Condition, frame) -> list[Asked]:
    """Row i of the fields as the condition of image i."""
    shapes = condition.shapes(frame)
    missing = sorted(shapes.keys() - request.fields.keys())
    if missing:
        raise RequestError(f"fields: {', '.join(missing)} is missing; the model reads {', '.join(sorted(shapes))}")
    rows = {name: np.asarray(request.fields[name]) for name in shapes}
    lengths = {len(array) for array in rows.values()}
    if len(lengths) > 1 or any(array.shape[1:] != shapes[name][0] for name, array in rows.items()):
        found = {name: array.shape for name, array in rows.items()}
        raise RequestError(f"fields: {found}, but each image needs { ({name: s[0] for name, s in shapes.items()}) }")
    number = lengths.pop() if lengths else request.num or 16
    if not rows:
        return [Asked("")]
    return [Asked("", {name: array[i].astype(shapes[name][1]) for name, array in rows.items()}) for i in range(number)]


def _with_pictures(request: SampleRequest, channels: int, multiple: int, made: list[Asked]) -> list[Asked]:
    """Every condition with every picture of init, or with the two of interpolate: field "pictures" [1|2,H,W,C]."""
    if request.init is not None:
        groups = [[p] for p in _start_pictures("init", request.init, channels, multiple, request.size)]
    elif request.interpolate is not None and not request.seeds:
        ends = (_start_pictures("interpolate", end, channels, multiple, request.size) for end in request.interpolate)
        groups = [[_one("interpolate", found) for found in ends]]
    else:
        return made
    joined = []
    for asked in made:
        for group in groups:
            sizes = {p.size for p in group} | ({asked.size} - {None})
            if len(sizes) > 1:
                found = " and ".join(sorted(f"{h}x{w}" for h, w in sizes))
                raise RequestError(f"pictures to start from and conditions of one size are needed, these are {found}")
            name = " ".join(n for n in (asked.name, *(p.name for p in group)) if n)
            pictures = {"pictures": np.stack([p.fields["picture"] for p in group])}
            finish = asked.finish if asked.size else group[0].finish
            new = dict(name=name, fields=asked.fields | pictures, size=group[0].size, finish=finish)
            joined.append(dataclasses.replace(asked, **new))
    return joined


def _start_pictures(
    option: str, given: Any, channels: int, multiple: int = 1, size: tuple[int, int] | None = None
) -> list[Asked]:
    """Pictures to start from: {"picture": [H,W,channels] in [-1,1]}.

    With `size` (H, W) they are resized to cover it and cut to it, at the centre; else they keep their own.
    """
    made = []
    for picture in images.pictures(option, given):
        image = picture.pixels(option, channels)
        if size:
            image = resize(image, covering(image.shape[:2], size))
            top, left = ((n - m) // 2 for n, m in zip(image.shape, size))
            image = crop(image, top, left, size)
        padded = images.pad(image, multiple)
        fields = {"picture": images.to_float(padded)}
        made.append(Asked(picture.name, fields, padded.shape[:2], images.cut_to(image.shape[:2])))
    return made


def _one(option: str, found: list[Asked]) -> Asked:
    if len(found) != 1:
        raise RequestError(f"{option} holds {len(found)} pictures, one is needed")
    return found[0]


def _stride(request: SampleRequest) -> int:
    return request.stride or request.patch // 2


def _crop_coder(condition: conditions.Condition) -> LayoutCoder | None:
    """The coder of a layout model whose tokens end with the corners of the crop; None for other models."""
    layout = condition.parts().get("layout")
    return layout.coder if layout is not None and layout.section.crop_tokens else None


def _with_crops(request: SampleRequest, coder: LayoutCoder, f: int, made: list[Asked]) -> list[Asked]:
    """Every layout with the field "crop_tokens" [P,2]: which part of the image each of the patches is."""

    def crops(size: tuple[int, int]) -> np.ndarray:
        latent = tuple(n // f for n in size)
        boxes = patches.boxes(latent, (request.patch // f,) * 2, (_stride(request) // f,) * 2)
        return np.array([coder.corners(tuple(box)) for box in boxes], np.int32)

    return [dataclasses.replace(r, fields=r.fields | {"crop_tokens": crops(r.size)}) for r in made]


def _with_classes(request: SampleRequest, config: ConfigDict, run: str | Path, made: list[Asked]) -> list[Asked]:
    """Every condition with the field "label" [] for the classifier. RequestError for a size that it does not take."""
    theirs = rundir.classifier_config(request.classifier, config, run)
    seen = build.latent_shape(theirs)[:2]
    for h, w in {r.size for r in made}:
        size = build.latent_shape(config, (h, w))[:2]
        if theirs.classifier.pool == "attention" and size != seen:
            trained = theirs.data.image_size
            raise RequestError(
                f"classifier={request.classifier} sees images of {trained}x{trained} pixels alone, not of {h}x{w}"
            )
    classes = class_label.requests(request.label, theirs.classifier.n_classes)
    if "label" in made[0].fields:
        return made
    joined = [(r, c, " ".join(filter(None, (r.name, c.name)))) for r in made for c in classes]
    return [dataclasses.replace(r, name=name, fields=r.fields | c.fields) for r, c, name in joined]


def _with_guide(request: SampleRequest, channels: int, made: list[Asked]) -> list[Asked]:
    """Every condition with the field "guide" [h,w,C], the picture of `guide`."""
    guide = _one("guide", _start_pictures("guide", request.guide, channels))
    height, width = guide.size
    for h, w in {r.size for r in made}:
        if h * width != w * height or height > h:
            raise RequestError(
                f"guide is {height}x{width}, the image {h}x{w}: the guide must have its proportions and be no larger "
                "(size says how large the image is)"
            )
    return [dataclasses.replace(r, fields=r.fields | {"guide": guide.fields["picture"]}) for r in made]


def _with_noise(request: SampleRequest, config: ConfigDict, made: list[Asked]) -> list[Asked]:
    """Image i begins with row i of `noise`: field "z_T" [h,w,c]."""
    noise, shape = np.asarray(request.noise, np.float32), build.latent_shape(config, made[0].size)
    if noise.shape[1:] != shape or (len(noise) != len(made) and len(made) != 1):
        raise RequestError(f"noise is {noise.shape}; {len(made)} images of this size need [{len(made)},*{shape}]")
    made = made * len(noise) if len(made) == 1 else made
    return [dataclasses.replace(r, fields=r.fields | {"z_T": z}) for r, z in zip(made, noise)]


def _is_int(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _check_seed(option: str, value: Any) -> None:
    if not _is_int(value):
        raise RequestError(f"{option}={value!r} is not a whole number")
    if not 0 <= value < 2**31:
        raise RequestError(f"{option}={value} is not in 0..2147483647")


def _text(size: tuple[int, int] | None) -> str:
    return "x".join(map(str, size)) if size else "as trained"
