"""How good a model is, or a set of pictures: numbers, their record, and pictures to look at.

    judge = Judge(["efficientnet_lite0"], reference=data_of(pipe.config, "runs/ldm"))
    report = judge.report(Samples(pipe, num=5000, steps=50))
    report.metrics["FD-efficientnet_lite0"]

A diffusion model is judged by its `Samples`, a first stage by its `Reconstructions` of a data set, anything else by
its pictures (evaluation/picture_sets.py).
"""

import json
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from shutil import rmtree
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ldm_jax import build, files, hosts, request, rundir, tree
from ldm_jax.data.transforms import resize
from ldm_jax.diffusion.timetable import make_timetable
from ldm_jax.errors import ConfigError, UsageError
from ldm_jax.evaluation import features, kept, metrics, statistics_file, weights
from ldm_jax.evaluation.picture_sets import DataPictures, FolderPictures, NpzPictures, PictureSet, three_channels
from ldm_jax.evaluation.pixels import mean_of_finite, std_of_finite
from ldm_jax.images import grid, to_float
from ldm_jax.ldm import scaling_of, unscaled
from ldm_jax.models.lpips import LPIPS
from ldm_jax.pipeline import Pipeline, Progress
from ldm_jax.training import setup

LPIPS_NETS = ("vgg16", "alex")
SHOWN = 64  # pictures in a grid
NEIGHBOURS = 5
Tree = Any
BINS = 10  # of hole sizes
BEST = "best.json"  # in WORKDIR/best: of which step it is, and its number
NOT_MEASURED = ("weights", "batch", "raw", "best")  # options of config.metrics that do not change a number
LARGER_IS_BETTER = ("IS", "precision", "recall", "density", "coverage", "PSNR", "SSIM", "codes used", "perplexity")
PAIRED = ("superres", "inpaint")  # conditions of which a sample is meant to be one picture
Say = Callable[[str], None]


def data_of(
    config: ConfigDict, run: str | Path, train: bool = True, count: int | None = None, examples: bool = False,
    choose: str = "even",
) -> DataPictures:  # fmt: skip
    """The training or validation pictures of a run, as its training saw them, but cropped at the centre.

    examples: with the fields of its condition. choose: which ones, as of DataPictures. Raises Missing where the data
    are not there.
    """
    if examples:
        transform = setup.transform(config, False, rundir.tokenizer_of(run))
        source = setup.source(config, train)
    else:
        transform, source = setup.image_transform(config, False), setup.source(config, train)
    name = f"{'training' if train else 'validation'} pictures of {run}"
    return DataPictures(source, transform, name, min(count or len(source), len(source)), choose)


def pictures_of(path: str | Path, count: int | None = None) -> PictureSet:
    """The pictures of a folder, or of an .npz."""
    return NpzPictures(path, count) if str(path).endswith(".npz") else FolderPictures(path, count)


class Samples:
    """Samples of a diffusion model as a set of pictures: made when they are asked for, the same at every time.

    Conditions: of a class model, or with a classifier, `labels` ("uniform": all classes in turn, "random", or one a
    picture); of others those of the pictures of `data`, in turn. options: of a SampleRequest, such as steps, sampler,
    eta, guidance, seed.
    """

    def __init__(
        self,
        pipe: Pipeline,
        num: int,
        data: DataPictures | None = None,
        labels: str | Sequence[int] = "uniform",
        **options,
    ):
        self.pipe, self.num, self.data, self.options = pipe, num, data, options
        self.kind = pipe.config.conditioner.kind
        self.labels = self._labels(labels)
        if self.kind not in ("none", "class") and data is None:
            raise UsageError(f"{pipe.path} is a model of kind {self.kind!r}: it needs the conditions of a data set")
        self.name = str(pipe.path)
        self.settings = dict(pipe.settings(self._request(0, 1)), pictures=num)
        self.settings.pop("first", None)
        if data is not None:
            self.settings["conditions"] = data.settings
        if self.labels is not None:
            self.settings["labels"] = labels if isinstance(labels, str) else "given"
        of_labels = kept.digest(self.labels.tobytes()) if self.labels is not None else ""
        self.identity = f"{self.settings} {tree.digest((pipe.params, pipe.frozen))} {of_labels}"

    def _labels(self, labels: str | Sequence[int]) -> np.ndarray | None:
        """The class of each, [num] int32, of a class model and of one that a classifier guides."""
        classifier, config = self.options.get("classifier"), self.pipe.config
        if self.kind == "class":
            classes = config.conditioner.n_classes
        elif self.kind == "none" and classifier is not None:
            classes = rundir.classifier_config(classifier, config, self.pipe.path).classifier.n_classes
        else:
            return None
        if isinstance(labels, str):
            if labels not in ("uniform", "random"):
                raise UsageError(f"labels={labels!r} is neither uniform, random nor a list of numbers")
            random = np.random.default_rng(self.options.get("seed", 0)).integers(0, classes, self.num)
            return np.asarray(random if labels == "random" else np.arange(self.num) % classes, np.int32)
        found = np.asarray(labels, np.int32)
        if len(found) != self.num or found.min() < 0 or found.max() >= classes:
            raise UsageError(f"labels must be {self.num} numbers in 0..{classes - 1}")
        return found

    def __len__(self) -> int:
        return self.num

    @property
    def has_truth(self) -> bool:
        """Whether a sample is meant to be one picture: super-resolution and inpainting."""
        return self.kind in PAIRED

    def truth(self, first: int, last: int) -> list[np.ndarray]:
        return self.data.part(first, last)

    @cached_property
    def groups(self) -> dict[str, np.ndarray]:
        """{name: numbers} of parts that are also measured alone. Of inpainting: by the share of the picture that its
        hole covers, in bins of 10 % (LaMa's)."""
        if self.kind != "inpaint":
            return {}
        holes = [float((example["mask"] > 0.5).mean()) for example in self.data.examples(0, self.num)]
        bins = np.minimum((np.asarray(holes) * BINS).astype(int), BINS - 1)
        return {f"hole {100 * b // BINS}-{100 * (b + 1) // BINS} %": np.flatnonzero(bins == b) for b in np.unique(bins)}

    def _request(self, first: int, last: int):
        condition: dict[str, Any] = {"num": last - first}
        if self.labels is not None:
            condition = {"label": self.labels[first:last].tolist()}
        elif self.kind != "none":
            condition = {"fields": _stacked(self.data.examples(first, last))}
        return self.pipe.request(first=first, **condition, **self.options)

    def part(self, first: int, last: int) -> list[np.ndarray]:
        """Of inpainting, what is known is pasted back, as the paper does."""
        wanted = self._request(first, last)
        with kept.line_of(self, "made", first) as line:

            def show(now: Progress) -> None:
                line.show(first + now.done, f"step {now.step}/{now.steps}")

            tell = show if line.live and jax.process_count() == 1 else None  # all hosts do the same
            made = [three_channels(image) for image in self.pipe.sample(wanted, on_progress=tell)]
        if self.kind != "inpaint":
            return made
        holes = np.asarray(wanted.fields["mask"]) > 0.5
        truth = self.truth(first, last)
        return [np.where(hole, image, known) for hole, image, known in zip(holes, made, truth)]


class Reconstructions:
    """What a first stage makes of the pictures of `data`."""

    has_truth = reconstructs = True

    def __init__(self, pipe: Pipeline, data: DataPictures, batch: int = 16):
        self.pipe, self.data, self.batch = pipe, data, batch
        self.name = str(pipe.path)
        self.settings = dict(checkpoint=f"{pipe.path} step {pipe.step}", reconstructions_of=data.settings)
        self.identity = f"{data.identity} {tree.digest((pipe.params, pipe.frozen))}"

    def __len__(self) -> int:
        return len(self.data)

    def truth(self, first: int, last: int) -> list[np.ndarray]:
        return self.data.part(first, last)

    def _images(self, first: int, last: int) -> np.ndarray:
        return np.stack([example["image"] for example in self.data.examples(first, last)])

    def part(self, first: int, last: int) -> list[np.ndarray]:
        return [three_channels(image) for image in self.pipe.reconstruct(self._images(first, last), self.batch)]

    @cached_property
    def facts(self) -> dict[str, float]:
        """Numbers of the latents: how many to a pixel; of a codebook bits a pixel, use and perplexity."""
        config = self.pipe.config
        h, w, c = build.latent_shape(config)
        pixels = config.data.image_size**2
        found = {"latents/pixel": h * w * c / pixels}
        if config.first_stage.kind != "vq":
            return found
        network, variables = build.first_stage(config), self.pipe.frozen["first_stage"]
        quantise = jax.jit(lambda z: network.apply(variables, z, method=lambda module, z: module.quantize(z)[2]))
        counts, scaling = np.zeros(config.first_stage.n_embed), jax.device_get(scaling_of(self.pipe.frozen))
        for first in range(0, len(self.data), kept.PART):
            z = self.pipe.encode(self._images(first, min(first + kept.PART, len(self.data))), self.batch)
            for row in z:
                counts += np.bincount(np.asarray(quantise(unscaled(scaling, row[None]))).ravel(), minlength=len(counts))
        share = counts[counts > 0] / counts.sum()
        entropy = float(-(share * np.log(share)).sum())
        return found | {
            "bits/pixel": float(np.log2(len(counts))) * h * w / pixels,
            "codes used": float((counts > 0).mean()),
            "perplexity": float(np.exp(entropy)),
        }


class InMemory:
    """A set of pictures that is made at once and held in memory: `images`. Otherwise it is the set itself."""

    def __init__(self, pictures: PictureSet, check: Callable[[], None] = lambda: None):
        """check: called before each part is made; what it raises stops the work."""
        self._pictures, self.images = pictures, []
        for first in range(0, len(pictures), kept.PART):
            check()
            self.images += pictures.part(first, min(first + kept.PART, len(pictures)))

    def __getattr__(self, name: str):
        return getattr(self._pictures, name)

    def __len__(self) -> int:
        return len(self.images)

    def part(self, first: int, last: int) -> list[np.ndarray]:
        return self.images[first:last]


def _stacked(examples: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


@dataclass(frozen=True)
class Report:
    """metrics: {name: number}; settings: what was compared and how; pictures: {name: uint8 [H,W,3]}."""

    name: str
    metrics: dict[str, float]
    settings: dict[str, Any]
    pictures: dict[str, np.ndarray] = field(default_factory=dict)


class Judge:
    """Compares sets of pictures with a reference, by the features of `networks`; its own features are computed once.

    reference: a set of pictures, or None: only pairs are compared. statistics: the path of an .npz of published
    statistics, whose Frechet distances then count in place of those to the reference. weights_folder: of the networks
    and of LPIPS (VGG16 and AlexNet where their weights are there). cache: folder of features, so that what was
    interrupted goes on. most_neighbours: pictures a set for precision and recall.
    """

    def __init__(
        self, networks: Sequence[str], reference: PictureSet | None, statistics: str | Path | None = None,
        weights_folder: str | Path = weights.FOLDER, cache: str | Path = kept.FOLDER, batch: int = 64,
        say: Say = print, most_neighbours: int = metrics.MOST_NEIGHBOURS,
    ):  # fmt: skip
        self.most_neighbours = most_neighbours
        self.extractors = [features.load(name, weights_folder, batch=batch) for name in networks]
        self.weights_folder, self.cache, self.say = Path(weights_folder), cache, say
        self.statistics = statistics and statistics_file.read_statistics(statistics)
        self.reference = reference
        self._reference_features: dict[str, metrics.Features] = {}

    def against(self, reference: PictureSet) -> "Judge":
        """A judge with the same networks and settings, and another reference."""
        other = copy(self)
        other.reference, other.statistics, other._reference_features = reference, None, {}
        return other

    def _features(self, pictures: PictureSet, extractor: features.Extractor) -> metrics.Features:
        """Kept in files, but for pictures that come only once."""
        taps = metrics.taps_of(extractor.network)
        if isinstance(pictures, InMemory):
            return extractor(pictures.images, taps)
        return kept.features_of(pictures, extractor, taps, self.cache, self.say)

    def made_once(self, pictures: PictureSet) -> PictureSet:
        """The set; one that is made is made only once, whoever asks for its pictures."""
        if isinstance(pictures, Samples | Reconstructions):
            return kept.KeptPictures(pictures, self.cache, self.say)
        return pictures

    def report(self, pictures: PictureSet) -> Report:
        """All numbers of a set, and its pictures."""
        pictures = self.made_once(pictures)
        numbers, shown = dict(getattr(pictures, "facts", {})), {}
        for extractor in self.extractors:
            network, ours = extractor.network, self._features(pictures, extractor)
            if self.reference is not None:
                if network.name not in self._reference_features:
                    self._reference_features[network.name] = self._features(self.reference, extractor)
                theirs = self._reference_features[network.name]
                numbers |= metrics.of_sets(network, ours, theirs, self.most_neighbours)
                shown |= self._neighbours(pictures, ours[network.tap], theirs[network.tap])
            if self.statistics is not None:
                numbers |= metrics.of_statistics(network, ours, self.statistics)
            if groups := getattr(pictures, "groups", {}):
                truth = self._features(pictures.data, extractor)
                for name, picked in groups.items():
                    if len(picked) > 1:
                        part = ({tap: rows[picked] for tap, rows in taps.items()} for taps in (ours, truth))
                        numbers |= {f"{k}, {name}": v for k, v in metrics.distance(network, *part).items()}
        if getattr(pictures, "reconstructs", False):
            numbers = {"r" + name if _is_distance(name) else name: value for name, value in numbers.items()}
        if getattr(pictures, "has_truth", False):
            found, pairs = self._pairs(pictures)
            numbers, shown = numbers | found, shown | pairs
        shown["random"] = grid(_same_size(pictures.part(0, min(SHOWN, len(pictures)))))
        if groups := getattr(pictures, "groups", {}):
            numbers |= {f"pictures, {name}": float(len(picked)) for name, picked in groups.items()}
        settings = dict(pictures=pictures.settings, networks={e.network.name: e.resize.name for e in self.extractors})
        if self.reference is not None:
            settings |= dict(reference=self.reference.settings, most_neighbours=self.most_neighbours)
        if self.statistics is not None:
            settings["statistics"] = str(self.statistics.path)
        return Report(pictures.name, numbers, settings, shown)

    def _neighbours(self, pictures: PictureSet, ours: np.ndarray, theirs: np.ndarray) -> dict[str, np.ndarray]:
        """Rows of a picture and the most similar ones of the reference: for the first pictures, for those that are
        nearest to a picture of the reference (copies would be here), and for those that are farthest from all."""
        numbers, distances = metrics.nearest(ours, theirs, NEIGHBOURS)
        order, rows = np.argsort(distances[:, 0]), min(8, len(ours))
        chosen = {"nearest": np.arange(rows), "most_similar": order[:rows], "least_similar": order[::-1][:rows]}
        return {name: self._strips(pictures, picked, numbers[picked]) for name, picked in chosen.items()}

    def _strips(self, pictures: PictureSet, picked: np.ndarray, neighbours: np.ndarray) -> np.ndarray:
        rows = []
        for i, row in zip(picked, neighbours):
            rows += pictures.part(int(i), int(i) + 1)
            rows += [self.reference.part(int(j), int(j) + 1)[0] for j in row]
        return grid(_same_size(rows), columns=1 + neighbours.shape[1])

    def _pairs(self, pictures: kept.KeptPictures) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """PSNR, SSIM and LPIPS against the true pictures; pairs to look at: true, made."""
        nets = {
            net: self._lpips(net) for net in LPIPS_NETS if (self.weights_folder / f"lpips_{net}.safetensors").exists()
        }
        values: dict[str, list[np.ndarray]] = {}
        with kept.line_of(pictures, "pairs compared") as line:
            for first in range(0, len(pictures), kept.PART):
                last = min(first + kept.PART, len(pictures))
                made, truth = pictures.part(first, last), pictures.truth(first, last)
                found = metrics.of_pairs(made, truth)
                found |= {f"LPIPS-{net}": compare(made, truth) for net, compare in nets.items()}
                for name, array in found.items():
                    values.setdefault(name, []).append(array)
                line.show(last)
                if not line.live:
                    self.say(f"{pictures.name}: {last} of {len(pictures)} pairs compared")
        joined = {name: np.concatenate(parts) for name, parts in values.items()}
        order = np.argsort(joined["PSNR"])
        some = {"pairs": np.arange(min(16, len(pictures))), "worst_pairs": order[:8], "best_pairs": order[::-1][:8]}
        shown = {name: self._pair_strips(pictures, picked) for name, picked in some.items()}
        numbers = {name: mean_of_finite(array) for name, array in joined.items()}
        numbers |= {f"{name}_std": std_of_finite(array) for name, array in joined.items()}
        for group, picked in pictures.groups.items() if hasattr(pictures, "groups") else ():
            numbers |= {f"{name}, {group}": mean_of_finite(array[picked]) for name, array in joined.items()}
        return numbers, shown

    def _pair_strips(self, pictures, picked: np.ndarray) -> np.ndarray:
        rows = []
        for i in map(int, picked):
            rows += pictures.truth(i, i + 1) + pictures.part(i, i + 1)
        return grid(_same_size(rows), columns=8 if len(picked) > 8 else 4)

    def _lpips(self, net: str) -> Callable[[list[np.ndarray], list[np.ndarray]], np.ndarray]:
        params = rundir.lpips_params(net, self.weights_folder, "")
        distance = jax.jit(lambda a, b: LPIPS(net).apply({"params": params}, a, b))

        def compare(made: list[np.ndarray], truth: list[np.ndarray]) -> np.ndarray:
            return np.concatenate(
                [np.asarray(distance(to_float(a)[None], to_float(b)[None])) for a, b in zip(made, truth)]
            )

        return compare


class TrainingMetrics:
    """Numbers of a model while it is trained, by config.metrics; the best model is kept in WORKDIR/best.

    Samples of a diffusion model are compared with training pictures, whose features are computed once; a first stage's
    reconstructions with the validation pictures that they are of. Raises Missing for weights that are not there,
    UsageError for options that do not fit.
    """

    def __init__(self, config: ConfigDict, workdir: str | Path, mesh: Mesh | None = None, say: Say = print):
        m = config.metrics
        if config.task not in ("ldm", "first_stage"):
            raise ConfigError(f"config.every.metrics={config.every.metrics}: a {config.task} makes no pictures; set 0")
        if m.samples < 2:
            raise ConfigError(f"config.metrics.samples={m.samples} must be 2 at least")
        self.config, self.workdir, self.mesh, self.say = config, files.at(workdir), mesh, say
        self._pipe: Pipeline | None = None
        data = None
        if config.task == "first_stage" or config.conditioner.kind not in ("none", "class"):
            data = data_of(config, workdir, train=False, count=m.samples, examples=True)
        self._data = data
        reference = data
        if config.task == "ldm":
            reference = data_of(config, workdir, train=True, count=m.reference or None)
        networks = [name for name in m.networks.split(",") if name]
        self._check_best(networks)
        if config.task == "ldm":
            self._check_request()
        self._judge = Judge(networks, reference, weights_folder=m.weights, batch=m.batch, say=say)

    def __call__(
        self, step: int, weights: dict[str, tuple[Tree, Tree]], check: Callable[[], None] = lambda: None
    ) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """(numbers, pictures) of each {name: (params, frozen)}, as a Pipeline takes them, the one that counts first.

        The others' numbers have their name in front, and are there with config.metrics.raw only. check: called between
        parts of the work; what it raises stops it.
        """
        numbers, shown = {}, {}
        for i, (name, (params, frozen)) in enumerate(weights.items()):
            if i and not self.config.metrics.raw:
                break
            report = self._judge.report(InMemory(self._pictures(params, frozen, step, name), check))
            before = f"{name}_" if i else ""
            numbers |= {before + key: value for key, value in report.metrics.items()}
            if not i:
                shown = report.pictures
                self._keep_best(step, numbers)
        self._pipe.clear()
        return numbers, shown

    def _pictures(self, params: Tree, frozen: Tree, step: int, name: str) -> PictureSet:
        m = self.config.metrics
        if self._pipe is None:
            self._pipe = Pipeline(self.config, params, frozen, self.workdir, step, name, self.mesh)
        else:
            self._pipe.update(params, frozen, step, name)
        if self.config.task == "first_stage":
            return Reconstructions(self._pipe, self._data, m.batch)
        paired = self.config.conditioner.kind in PAIRED
        return Samples(self._pipe, len(self._data) if paired else m.samples, self._data, **self._options())

    def _check_request(self) -> None:
        """RequestError, at the start, where this model cannot be sampled as config.metrics says."""
        condition: dict[str, Any] = {"num": 1}
        if self._data is not None:
            condition = {"fields": _stacked(self._data.examples(0, 1))}
        elif self.config.conditioner.kind == "class":
            condition = {"label": [0]}
        wanted = request.make(condition | self._options())
        request.resolve(wanted, self.config, self.workdir, rundir.tokenizer_of(self.workdir))
        schedule = build.ldm(self.config).schedule
        try:
            make_timetable(schedule, wanted.steps_of(self.config), wanted.record.spacing)
        except ValueError as error:
            raise ConfigError(f"config.metrics.steps={wanted.steps}: {error}") from None

    def _options(self) -> dict[str, Any]:
        """Of the request for samples."""
        m, s = self.config.metrics, self.config.sample
        guidance = {} if m.guidance == 1.0 else {"guidance": m.guidance}
        return dict(steps=m.steps or s.steps, batch=m.batch, seed=s.seed) | guidance

    def _check_best(self, networks: Sequence[str]) -> None:
        """ConfigError, at the start, where config.metrics.best is no metric that there will be."""
        name, first_stage = self.config.metrics.best, self.config.task == "first_stage"
        if name and not files.is_local(self.workdir):
            raise ConfigError(f"config.metrics.best={name!r}: the best model is not kept in a bucket ({self.workdir})")
        known = [found for network in networks for found in metrics.names(features.networks.find(network))]
        if first_stage:
            known = ["r" + found if _is_distance(found) else found for found in known]
            known += ["PSNR", "SSIM", *(f"LPIPS-{net}" for net in LPIPS_NETS), "codes used", "perplexity"]
        if name and name not in known:
            raise ConfigError(f"config.metrics.best={name!r} is not one of the metrics: {', '.join(known)}")

    def _keep_best(self, step: int, numbers: dict[str, float]) -> None:
        """Writes the model into WORKDIR/best where its number is better than that of the one there. The first host
        decides."""
        name = self.config.metrics.best
        if not name:
            return
        if name not in numbers:
            raise ConfigError(f"config.metrics.best={name!r} was not measured; there are: {', '.join(numbers)}")
        record = {"metric": name, "value": numbers[name], "step": step, "measured": self._measured()}
        if hosts.decided(lambda: self._replace_best(record)):
            where = self.workdir / "best"
            self.say(f"step {step}: {name} {numbers[name]:.4g} is the best so far; this model is in {where}")

    def _measured(self) -> dict[str, Any]:
        """The options that numbers must have in common to be compared."""
        return {name: value for name, value in self.config.metrics.items() if name not in NOT_MEASURED}

    def _replace_best(self, record: dict[str, Any]) -> bool:
        """Whether the model is better than the one in WORKDIR/best, which it then replaces. One that was measured in
        another way does not count. A kill loses neither: what has no name yet gets it at the next call."""
        folder, new, old = (self.workdir / name for name in ("best", "best.new", "best.old"))

        def rename() -> None:
            if folder.exists():
                folder.rename(old)
            new.rename(folder)
            rmtree(old, ignore_errors=True)

        rmtree(old, ignore_errors=True)
        if (new / BEST).exists():
            rename()
        sign = 1 if record["metric"].startswith(LARGER_IS_BETTER) else -1
        if not np.isfinite(record["value"]):
            return False
        if (folder / BEST).exists():
            before = json.loads((folder / BEST).read_text())
            same = all(before.get(key) == record[key] for key in ("metric", "measured"))
            if same and sign * before["value"] >= sign * record["value"]:
                return False
        rmtree(new, ignore_errors=True)
        with files.writing(new):
            self._pipe.save(new)
            files.write(new / BEST, json.dumps(record) + "\n")
            rename()
        return True


def _is_distance(name: str) -> bool:
    return name in ("FID", "sFID") or name.startswith("FD-")


def _same_size(pictures: list[np.ndarray]) -> np.ndarray:
    """[N,H,W,3]; those of other sizes than the first are resized, for a grid."""
    size = pictures[0].shape[:2]
    return np.stack([image if image.shape[:2] == size else resize(image, size) for image in pictures])
