"""Numbers of a model while it is trained; the best model is kept."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from shutil import rmtree
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jax.stages import Compiled
from ml_collections import ConfigDict

from ldm_jax import build, files, hosts, report, request, rundir
from ldm_jax.diffusion.timetable import make_timetable
from ldm_jax.errors import ConfigError
from ldm_jax.evaluation import features, kept, metrics
from ldm_jax.evaluation.picture_sets import PictureSet
from ldm_jax.pipeline import Pipeline

Tree = Any
BEST = "best.json"  # in WORKDIR/best: of which step it is, and its number
NOT_MEASURED = ("weights", "batch", "raw", "best")  # options of config.metrics that do not change a number
LARGER_IS_BETTER = ("IS", "precision", "recall", "density", "coverage", "PSNR", "SSIM", "codes used", "perplexity")


class TrainingMetrics:
    """Numbers of a model while it is trained, by config.metrics; the best model is kept in WORKDIR/best.

    Samples of a diffusion model are compared with training pictures, whose features are computed once; a first stage's
    reconstructions with the validation pictures that they are of. Where one of these files cannot be read, the next one
    takes its place, as in training, and `say` gets a line. Raises Missing for weights that are not there,
    UsageError for options that do not fit.
    """

    def __init__(self, config: ConfigDict, workdir: str | Path, mesh: Mesh | None = None, say: report.Say = print):
        m = config.metrics
        if config.task not in ("ldm", "first_stage"):
            raise ConfigError(f"config.every.metrics={config.every.metrics}: a {config.task} makes no pictures; set 0")
        if m.samples < 2:
            raise ConfigError(f"config.metrics.samples={m.samples} must be 2 at least")
        self.config, self.workdir, self.mesh, self.say = config, files.at(workdir), mesh, say
        self._pipe: Pipeline | None = None
        data = None
        if config.task == "first_stage" or config.conditioner.kind not in ("none", "class"):
            data = report.data_of(config, workdir, train=False, count=m.samples, examples=True, replaced=say)
        self._data = data
        reference = data
        if config.task == "ldm":
            reference = report.data_of(config, workdir, train=True, count=m.reference or None, replaced=say)
        networks = [name for name in m.networks.split(",") if name]
        self._check_best(networks, self._count, len(reference))
        if config.task == "ldm":
            self._check_request()
        self._judge = report.Judge(networks, reference, weights_folder=m.weights, batch=m.batch, say=say)

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
            found = self._judge.report(kept.InMemory(self._pictures(params, frozen, step, name), check))
            before = f"{name}_" if i else ""
            numbers |= {before + key: value for key, value in found.metrics.items()}
            if not i:
                shown = found.pictures
                self._keep_best(step, numbers)
        self._pipe.clear()
        return numbers, shown

    def compile(self, weights: dict[str, tuple[Tree, Tree]]) -> list[Compiled]:
        """The programs that make the pictures, and those of the feature networks. weights: as of a call; shapes do."""
        m, (name, (params, frozen)) = self.config.metrics, next(iter(weights.items()))
        self._take(params, frozen, None, name)
        programs = []
        for number in sorted({min(self._count, kept.PART), self._count % kept.PART} - {0}):  # of pictures in a part
            if self.config.task == "first_stage":
                programs = self._pipe.compile_reconstruction(number, m.batch)
            else:
                programs = self._pipe.compile(self._request(number))
        self._pipe.clear()
        return programs + self._judge.compile()

    @property
    def held(self) -> int:
        """Bytes of each device that are taken from now on, also between calls."""
        return self._judge.held

    def taken(self, weights: dict[str, tuple[Tree, Tree]]) -> int:
        """Bytes of each device that a call takes beside what its programs plan: a whole copy of one of `weights`, and
        pictures for the feature networks. weights: as of a call; shapes do."""
        copied = jax.tree.leaves(next(iter(weights.values())))
        return sum(x.size * x.dtype.itemsize for x in copied) + self._judge.taken

    def _pictures(self, params: Tree, frozen: Tree, step: int, name: str) -> PictureSet:
        self._take(params, frozen, step, name)
        if self.config.task == "first_stage":
            return report.Reconstructions(self._pipe, self._data, self.config.metrics.batch)
        return report.Samples(self._pipe, self._count, self._data, **self._options())

    def _take(self, params: Tree, frozen: Tree, step: int | None, name: str) -> None:
        if self._pipe is None:
            self._pipe = Pipeline(self.config, params, frozen, self.workdir, step, name, self.mesh)
        else:
            self._pipe.update(params, frozen, step, name)

    @property
    def _count(self) -> int:
        """How many pictures are made."""
        return len(self._data) if self._paired else self.config.metrics.samples

    @property
    def _paired(self) -> bool:
        """Whether each picture that is made is meant to be one of `data`."""
        return self.config.task == "first_stage" or self.config.conditioner.kind in report.PAIRED

    def _check_request(self) -> None:
        """RequestError, at the start, where this model cannot be sampled as config.metrics says."""
        wanted = self._request(1)
        request.resolve(wanted, self.config, self.workdir, rundir.tokenizer_of(self.workdir))
        schedule = build.ldm(self.config).schedule
        try:
            make_timetable(schedule, wanted.steps_of(self.config), wanted.record.spacing)
        except ValueError as error:
            raise ConfigError(f"config.metrics.steps={wanted.steps}: {error}") from None

    def _request(self, number: int) -> request.SampleRequest:
        """For so many samples, under the condition of the first one."""
        condition: dict[str, Any] = {"num": number}
        if self._data is not None:
            condition = {"fields": report.stacked(self._data.examples(0, 1) * number)}
        elif self.config.conditioner.kind == "class":
            condition = {"label": [0] * number}
        return request.make(condition | self._options())

    def _options(self) -> dict[str, Any]:
        """Of the request for samples."""
        m, s = self.config.metrics, self.config.sample
        guidance = {} if m.guidance == 1.0 else {"guidance": m.guidance}
        return dict(steps=m.steps or s.steps, batch=m.batch, seed=s.seed) | guidance

    def _check_best(self, networks: Sequence[str], count: int, reference: int) -> None:
        """ConfigError, at the start, where config.metrics.best is no metric that there will be, of so many pictures
        against so many."""
        name, side = self.config.metrics.best, self.config.data.image_size
        if name and not files.is_local(self.workdir):
            raise ConfigError(f"config.metrics.best={name!r}: the best model is not kept in a bucket ({self.workdir})")
        sets = [metrics.names(features.networks.find(network), count, reference) for network in networks]
        known = [found for some in sets for found in some]
        if self.config.task == "first_stage":
            known = ["r" + found if report.is_distance(found) else found for found in known]
            known += ["codes used", "perplexity"] if self.config.first_stage.kind == "vq" else []
        if self._paired:
            known += ["PSNR", "SSIM"] if side >= metrics.SSIM_WINDOW else ["PSNR"]
            known += [f"LPIPS-{net}" for net in report.lpips_nets(self.config.metrics.weights, side)]
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
