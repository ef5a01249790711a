"""How each kind of a case of evaluation is computed by this code: {output: value} in the original's layout."""

import json
import re
from collections.abc import Callable
from functools import lru_cache

import jax
import numpy as np

from ldm_jax.evaluation import pixels
from ldm_jax.evaluation.features import Extractor
from ldm_jax.evaluation.frechet import Frechet, Gaussian, frechet_distance
from ldm_jax.evaluation.inception_score import inception_score, inception_score_adm
from ldm_jax.evaluation.kernel_distance import kernel_distance
from ldm_jax.evaluation.networks import NETWORKS
from ldm_jax.evaluation.precision_recall import precision_recall
from ldm_jax.evaluation.resize import RESIZES
from ldm_jax.evaluation.rounding import ROUNDINGS
from ldm_jax.evaluation.statistics_file import read_statistics
from ldm_jax.models.lpips import LPIPS, from_torchvision, lpips_params
from tests.eval_goldens.judge import HERE, Case, judge, load

BATCH = 8
Outputs = dict[str, np.ndarray]


class UnsupportedError(Exception):
    """A case that this code has no way to run."""


def run(case: Case) -> Outputs:
    """Raises UnsupportedError for a kind that is not known."""
    kind = case.meta["kind"]
    if kind not in KINDS:
        raise UnsupportedError(f"no runner for a case of kind {kind!r}")
    return KINDS[kind](case)


def wrong(name: str) -> list[str]:
    """The lines of the outputs of a case of tests/eval_goldens/cases that do not agree."""
    case = load(HERE / "cases" / f"{name}.json")
    return [line for line, verdict in judge(case, run(case)) if verdict != "pass"]


def names(kind: str) -> list[str]:
    """The cases of a kind in tests/eval_goldens/cases."""
    paths = sorted((HERE / "cases").glob("*.json"))
    return [path.stem for path in paths if json.loads(path.read_text())["kind"] == kind]


_known: dict[str, Case] = {}  # what `_extractor` makes extractors of, by its key


@lru_cache(maxsize=1)
def _extractor(key: str, resize: str | None) -> Extractor:
    case = _known[key]
    network = NETWORKS[case.meta["weights"]["model"]]
    return Extractor(network, network.params(case.state()), resize, batch=BATCH)


def extractor(case: Case, resize: str | None = None) -> Extractor:
    """Of the case's weights; the last one is kept, since its programs take long to compile."""
    if case.meta["weights"]["model"] not in NETWORKS:
        raise UnsupportedError(f"no network {case.meta['weights']['model']}")
    key = json.dumps([case.meta["weights"], str(case.manifests)])
    _known[key] = case
    return _extractor(key, resize)


def resized(case: Case, name: str) -> np.ndarray:
    size = case.options["height"], case.options["width"]
    return np.asarray(RESIZES[name](case.inputs["images"], size))


def inception_resize(case: Case) -> Outputs:
    image = resized(case, "tf1_bilinear")[0]
    return {"rows": image[case.options["rows"]], "mean_of_each_row": image.astype(np.float64).mean((1, 2))}


def clean_fid_resize(case: Case) -> Outputs:
    return {"rows": resized(case, "clean_fid")[0][case.options["rows"]]}


def inception_features(case: Case) -> Outputs:
    network = NETWORKS["inception"]
    found = extractor(case)(case.inputs["images"], case.wants(*network.taps))
    if "spatial" in found:
        found["spatial"] = found["spatial"][: case.meta["outputs"]["spatial"]["shape"][0]]
    return found


def kid(first: np.ndarray, second: np.ndarray, options: dict) -> Outputs:
    if options.get("estimator", "unbiased") != "unbiased":
        raise UnsupportedError(f"no KID by the estimator {options['estimator']}")
    names = ("subsets", "subset_size", "seed", "degree", "gamma", "coef0")
    found = kernel_distance(first, second, **{name: options[name] for name in names if name in options})
    return {"kid_mean": found.mean, "kid_std": found.std}


def frechet_of(first: np.ndarray, second: np.ndarray) -> Frechet:
    flat = [Gaussian.of_features(features.reshape(len(features), -1)) for features in (first, second)]
    return frechet_distance(*flat)


def pipeline(case: Case) -> Outputs:
    extract, options = extractor(case), case.options
    taps = ("64", "192", "768", "2048", "spatial", "logits_unbiased")
    generated, real = (extract(case.inputs[name], taps) for name in ("generated", "reference"))
    found = {f"fid_{tap}": frechet_of(generated[tap], real[tap]).distance for tap in taps[:4]}
    found["sfid"] = frechet_of(generated["spatial"], real["spatial"]).distance
    found |= kid(generated["2048"], real["2048"], options["kid"])
    isc = options["isc"]
    score = inception_score(generated["logits_unbiased"], isc["splits"], isc["seed"] if isc["shuffle"] else None)
    found |= {"isc_mean": score.mean, "isc_std": score.std}
    found["isc_adm"] = inception_score_adm(generated["logits_unbiased"])
    balls = precision_recall(generated["2048"], real["2048"], options["prc"]["k"])
    found |= {"precision": balls.precision, "recall": balls.recall}
    columns = generated["2048"].astype(np.float64)
    return found | {"mu_2048_generated": columns.mean(0), "variance_2048_generated": columns.var(0, ddof=1)}


def frechet(case: Case) -> Outputs:
    found = frechet_of(case.inputs["features_1"], case.inputs["features_2"])
    return found._asdict() | {"fid": found.distance}


def kid_case(case: Case) -> Outputs:
    return kid(case.inputs["features_1"], case.inputs["features_2"], case.options)


def isc(case: Case) -> Outputs:
    logits, options = case.inputs["logits"], case.options
    shuffled = inception_score(logits, options["splits"], options["seed"])
    plain = inception_score(logits, options["splits"], None)
    found = {"mean": shuffled.mean, "std": shuffled.std, "mean_unshuffled": plain.mean, "std_unshuffled": plain.std}
    if options.get("adm_split_size"):
        found["adm_mean"] = inception_score_adm(logits, options["adm_split_size"])
    return found


def prc(case: Case) -> Outputs:
    found = precision_recall(case.inputs["features_1"], case.inputs["features_2"], case.options["k"])
    names = ("precision", "recall", "f_score", "radii_real", "radii_generated")
    return {name: getattr(found, name) for name in names}


def lpips(case: Case) -> Outputs:
    net = {"vgg": "vgg16"}.get(case.options["net"], case.options["net"])
    model = LPIPS(net)
    params = lpips_params(from_torchvision(case.state(), case.heads()), net)

    def run(result: str, which: slice) -> np.ndarray:
        images, others = (case.inputs[name][which] for name in ("images", "others"))
        with jax.default_matmul_precision("highest"):
            return np.asarray(jax.jit(model.apply, static_argnums=3)({"params": params}, images, others, result))

    layers = run("layers", slice(None))
    found = {"distance": layers.sum(-1), "layers": layers}
    if case.wants("distance"):
        found["distance"] = run("distance", slice(None))
    if case.wants("spatial_last_pair"):
        found["spatial_last_pair"] = run("map", slice(-1, None))[0]
    return found


def pixel_metrics(case: Case) -> Outputs:
    images, others, options = case.inputs["images"], case.inputs["others"], case.options
    width, window = options["data_range"], {"gaussian_weights": False} | options.get("ssim", {})
    window |= {name: options[name] for name in ("K1", "K2") if name in options}
    each = pixels.psnr(images, others, width)
    found = {
        "psnr": each,
        "mse": pixels.mse(images, others),
        "ssim": pixels.ssim(images, others, width, **window),
        "psnr_of_mean_mse": pixels.psnr_of_mean(images, others, width),
        "psnr_mean_of_finite": pixels.mean_of_finite(each),
    }
    if case.wants("ssim_map_last_image"):
        found["ssim_map_last_image"] = pixels.ssim_map(images[-1:], others[-1:], width, **window)[0]
    return found


def dinov2_features(case: Case) -> Outputs:
    extract = extractor(case, case.options["resize"])
    found = {"features": extract(case.inputs["images"])["class_token"]}
    if case.wants("prepared"):
        size = (case.options["size"],) * 2
        image = extract.network.normalise(np.asarray(extract.resize(case.inputs["images"][:1], size)))[0]
        rows = re.search(r"rows ([\d, ]+)", case.meta["outputs"]["prepared"]["note"])
        found["prepared"] = np.asarray(image)[[int(row) for row in rows[1].split(",")]]
    return found


def dinov2_network(case: Case) -> Outputs:
    network = NETWORKS[case.meta["weights"]["model"]]
    params = network.params(case.state())
    x = network.normalise(case.inputs["images"].astype(np.float32))
    found = jax.jit(
        lambda params, x: network.module.apply(params, x, taps=("class_token", "patch_tokens", "first_tokens"))
    )(params, x)
    return found | {"tokens_before_the_first_block": found["first_tokens"]}


def dinov2_frechet(case: Case) -> Outputs:
    extract = extractor(case, case.options["resize"])
    first, second = (extract(case.inputs[name])["class_token"] for name in ("features_1", "features_2"))
    return {"frechet_distance": frechet_of(first, second).distance, "mean_1": first.astype(np.float64).mean(0)}


def npz(case: Case) -> Outputs:
    file = read_statistics(case.folder / case.options["file"])
    if "weights" in case.meta:
        if not np.array_equal(file.pictures(), case.inputs["images"]):
            raise ValueError("the file's images are not the recorded ones")
        return extractor(case)(file.pictures(), case.wants(*NETWORKS["inception"].taps))
    found = {"fid": frechet_distance(Gaussian.of_features(case.inputs["features"]), file.gaussian()).distance}
    if case.wants("sfid"):
        ours = Gaussian.of_features(case.inputs["spatial_features"])
        found["sfid"] = frechet_distance(ours, file.gaussian(spatial=True)).distance
    return found


def to_uint8(case: Case) -> Outputs:
    return {name: rounding(case.inputs["samples"]) for name, rounding in ROUNDINGS.items()}


KINDS: dict[str, Callable[[Case], Outputs]] = {
    "inception_resize": inception_resize,
    "clean_fid_resize": clean_fid_resize,
    "inception_features": inception_features,
    "pipeline": pipeline,
    "frechet": frechet,
    "kid": kid_case,
    "isc": isc,
    "prc": prc,
    "lpips": lpips,
    "pixels": pixel_metrics,
    "dinov2_features": dinov2_features,
    "dinov2_network": dinov2_network,
    "dinov2_frechet": dinov2_frechet,
    "npz": npz,
    "to_uint8": to_uint8,
}
