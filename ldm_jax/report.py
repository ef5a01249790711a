"""How good a model is, or a set of pictures: numbers, their record, and pictures to look at.

    judge = Judge(["efficientnet_lite0"], reference=data_of(pipe.config, "runs/ldm"))
    report = judge.report(Samples(pipe, num=5000, steps=50))
    report.metrics["FD-efficientnet_lite0"]

A diffusion model is judged by its `Samples`, a first stage by its `Reconstructions` of a data set, anything else by
its pictures (evaluation/picture_sets.py).
"""

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.stages import Compiled
from ml_collections import ConfigDict

from ldm_jax import build, rundir, tree
from ldm_jax.errors import UsageError
from ldm_jax.evaluation import features, kept, metrics, statistics_file, strips, weights
from ldm_jax.evaluation.picture_sets import DataPictures, FolderPictures, NpzPictures, PictureSet, three_channels
from ldm_jax.evaluation.pixels import mean_of_finite, std_of_finite
from ldm_jax.images import to_float
from ldm_jax.ldm import scaling_of, unscaled
from ldm_jax.models.lpips import LPIPS, NETS
from ldm_jax.pipeline import Pipeline, Progress
from ldm_jax.training import setup

Tree = Any
BINS = 10  # of hole sizes
PAIRED = ("superres", "inpaint")  # conditions of which a sample is meant to be one picture
Say = Callable[[str], None]


def data_of(
    config: ConfigDict, run: str | Path, train: bool = True, count: int | None = None, examples: bool = False,
    choose: str = "even", replaced: Say | None = None,
) -> DataPictures:  # fmt: skip
    """The training or validation pictures of a run, as its training saw them, but cropped at the centre.

    examples: with the fields of its condition. choose, replaced: as of DataPictures. Raises Missing where the data are
    not there.
    """
    if examples:
        transform = setup.transform(config, False, rundir.tokenizer_of(run))
        source = setup.source(config, train)
    else:
        transform, source = setup.image_transform(config, False), setup.source(config, train)
    name = f"{'training' if train else 'validation'} pictures of {run}"
    return DataPictures(source, transform, name, min(count or len(source), len(source)), choose, replaced)


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
        wanted = self._request(0, 1)
        self.settings = dict(pipe.settings(wanted), pictures=num)
        self.settings.pop("first", None)
        if data is not None:
            self.settings["conditions"] = data.settings
        if self.labels is not None:
            self.settings["labels"] = labels if isinstance(labels, str) else "given"
        of_labels = kept.digest(self.labels.tobytes()) if self.labels is not None else ""
        self.identity = f"{self.settings} {tree.digest((pipe.params, pipe.frozen))} {of_labels}"
        if data is not None:
            self.identity += f" {data.identity_with_conditions}"
        self.identity += "".join(f" {tree.digest(params)}" for params in pipe.helpers(wanted))
        self.settings["size"] = _size_of(pipe.config)

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
            condition = {"fields": stacked(self.data.examples(first, last))}
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
        self.settings = dict(checkpoint=f"{pipe.path} step {pipe.step}", reconstructions_of=data.settings,
                             pictures=len(data), size=_size_of(pipe.config))  # fmt: skip
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


def stacked(examples: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.stack([example[name] for example in examples]) for name in examples[0]}


@dataclass(frozen=True)
class Report:
    """metrics: {name: number}; settings: what was compared and how; pictures: {name: uint8 [H,W,3]}; reference: what it
    was compared with, in a few words."""

    name: str
    metrics: dict[str, float]
    settings: dict[str, Any]
    pictures: dict[str, np.ndarray] = field(default_factory=dict)
    reference: str = ""


class Judge:
    """Compares sets of pictures with a reference, by the features of `networks`; its own features are computed once.

    reference: a set of pictures, or None: only pairs are compared. statistics: the path of an .npz of published
    statistics, whose Frechet distances then count in place of those to the reference, for networks that give as many
    numbers; without a reference the others raise UsageError. weights_folder: of the networks and of LPIPS
    (`lpips_nets`). cache: folder of features, so that what was interrupted goes on. most_neighbours: pictures a set for
    precision and recall.
    """

    def __init__(
        self, networks: Sequence[str], reference: PictureSet | None, statistics: str | Path | None = None,
        weights_folder: str | Path = weights.FOLDER, cache: str | Path = kept.FOLDER, batch: int = 64,
        say: Say = print, most_neighbours: int = metrics.MOST_NEIGHBOURS,
    ):  # fmt: skip
        self.most_neighbours = most_neighbours
        self.weights_folder, self.cache, self.say = Path(weights_folder), cache, say
        self.statistics = statistics and statistics_file.read_statistics(statistics)
        self.reference = reference
        for name in networks if reference is None and self.statistics else ():
            metrics.check_statistics(features.networks.find(name), self.statistics)
        self.extractors = [features.load(name, weights_folder, batch=batch) for name in networks]
        self._reference_features: dict[str, metrics.Features] = {}

    def against(self, reference: PictureSet) -> "Judge":
        """A judge with the same networks and settings, and another reference."""
        other = copy(self)
        other.reference, other.statistics, other._reference_features = reference, None, {}
        return other

    def _features(self, pictures: PictureSet, extractor: features.Extractor) -> metrics.Features:
        """Kept in files, but for pictures that come only once."""
        taps = metrics.taps_of(extractor.network)
        if isinstance(pictures, kept.InMemory):
            return extractor(pictures.images, taps)
        return kept.features_of(pictures, extractor, taps, self.cache, self.say)

    def made_once(self, pictures: PictureSet) -> PictureSet:
        """The set; one that is made is made only once, whoever asks for its pictures."""
        if isinstance(pictures, Samples | Reconstructions):
            return kept.KeptPictures(pictures, self.cache, self.say)
        return pictures

    @property
    def held(self) -> int:
        """Bytes of each device that the feature networks take."""
        return sum(extractor.held for extractor in self.extractors)

    @property
    def taken(self) -> int:
        """Bytes of each device that pictures take while `report` works."""
        return max((extractor.taken for extractor in self.extractors), default=0)

    def compile(self) -> list[Compiled]:
        """The programs of the feature networks; `report` needs no others of them."""
        return [extractor.compile(metrics.taps_of(extractor.network)) for extractor in self.extractors]

    def report(self, pictures: PictureSet) -> Report:
        """All numbers of a set, and its pictures."""
        pictures = self.made_once(pictures)
        self._compare_sizes(pictures)
        numbers, shown = dict(getattr(pictures, "facts", {})), {}
        for extractor in self.extractors:
            network, ours = extractor.network, self._features(pictures, extractor)
            if self.reference is not None:
                if network.name not in self._reference_features:
                    self._reference_features[network.name] = self._features(self.reference, extractor)
                theirs = self._reference_features[network.name]
                numbers |= metrics.of_sets(network, ours, theirs, self.most_neighbours)
                both = ours[network.tap], theirs[network.tap]
                shown |= strips.neighbours(pictures, self.reference, *both, self.most_neighbours)
            if network.name in self._of_statistics:
                numbers |= metrics.of_statistics(network, ours, self.statistics)
            if groups := getattr(pictures, "groups", {}):
                truth = self._features(pictures.data, extractor)
                for name, picked in groups.items():
                    if len(picked) > 1:
                        part = ({tap: rows[picked % len(rows)] for tap, rows in taps.items()} for taps in (ours, truth))
                        numbers |= {f"{k}, {name}": v for k, v in metrics.distance(network, *part).items()}
        if getattr(pictures, "reconstructs", False):
            numbers = {"r" + name if is_distance(name) else name: value for name, value in numbers.items()}
        if getattr(pictures, "has_truth", False):
            found, pairs = self._pairs(pictures)
            numbers, shown = numbers | found, shown | pairs
        shown["random"] = strips.first(pictures)
        if groups := getattr(pictures, "groups", {}):
            numbers |= {f"pictures, {name}": float(len(picked)) for name, picked in groups.items()}
        settings = dict(
            pictures=pictures.settings, networks={e.network.name: e.resize.name for e in self.extractors},
            weights={e.network.name: e.digest for e in self.extractors}, rules=metrics.RULES,
        )  # fmt: skip
        if self.reference is not None:
            settings |= dict(reference=self.reference.settings, most_neighbours=self.most_neighbours)
        if self.statistics is not None:
            settings |= dict(statistics=str(self.statistics.path), statistics_of=self._of_statistics)
        return Report(pictures.name, numbers, settings, shown, self._compared_with())

    def _compare_sizes(self, pictures: PictureSet) -> None:
        """Says where the two sets have pictures of other sizes."""
        ours, theirs = (getattr(some, "settings", {}).get("size") for some in (pictures, self.reference))
        if ours and theirs and ours != theirs:
            self.say(
                f"note: {pictures.name} has pictures of {ours}, {self.reference.name} of {theirs} (height x width): "
                "numbers also measure how they were resized"
            )

    def _compared_with(self) -> str:
        names = [] if self.reference is None else [f"{self.reference.name} ({len(self.reference)} pictures)"]
        if self._of_statistics:
            names.append(f"the statistics in {self.statistics.path} ({', '.join(self._of_statistics)})")
        return " and ".join(names) or "its pairs alone"

    @property
    def _of_statistics(self) -> list[str]:
        """The networks whose Frechet distances are to the statistics."""
        width = 0 if self.statistics is None else len(self.statistics.gaussian().mean)
        return [extractor.network.name for extractor in self.extractors if extractor.network.width == width]

    def _pairs(self, pictures: kept.KeptPictures) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """PSNR, SSIM and LPIPS against the true pictures; pairs to look at: true, made."""
        side = min(pictures.truth(0, 1)[0].shape[:2])
        nets = {net: self._lpips(net) for net in lpips_nets(self.weights_folder, side)}
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
        numbers = {name: mean_of_finite(array) for name, array in joined.items()}
        numbers |= {f"{name}_std": std_of_finite(array) for name, array in joined.items()}
        for group, picked in pictures.groups.items() if hasattr(pictures, "groups") else ():
            numbers |= {f"{name}, {group}": mean_of_finite(array[picked]) for name, array in joined.items()}
        return numbers, strips.pairs(pictures, joined["PSNR"])

    def _lpips(self, net: str) -> Callable[[list[np.ndarray], list[np.ndarray]], np.ndarray]:
        params = rundir.lpips_params(net, self.weights_folder, "")
        distance = jax.jit(lambda a, b: LPIPS(net).apply({"params": params}, a, b))

        def compare(made: list[np.ndarray], truth: list[np.ndarray]) -> np.ndarray:
            return np.concatenate(
                [np.asarray(distance(to_float(a)[None], to_float(b)[None])) for a, b in zip(made, truth)]
            )

        return compare


def _size_of(config: ConfigDict) -> str:
    return f"{config.data.image_size}x{config.data.image_size}"


def lpips_nets(folder: str | Path, side: int) -> list[str]:
    """The networks of LPIPS whose weights are in the folder, and which take pictures with so many pixels a side."""
    there = [net for net in NETS if (Path(folder) / f"lpips_{net}.safetensors").exists()]
    return [net for net in there if side >= NETS[net][2]]


def is_distance(name: str) -> bool:
    return name in ("FID", "sFID") or name.startswith("FD-")
