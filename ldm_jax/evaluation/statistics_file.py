"""Statistics of a data set in an .npz, in the layouts in use.

pytorch-fid, EDM:  mu [D], sigma [D,D]
ADM:               arr_0 uint8 [N,H,W,3], and mu, sigma, mu_s [2023], sigma_s of it, or arr_0 alone
"""

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from ldm_jax.errors import Missing, UsageError
from ldm_jax.evaluation.frechet import Gaussian

PAIRS = {"mu": "sigma", "mu_s": "sigma_s"}


@dataclass(frozen=True)
class StatisticsFile:
    """What a file holds; None for what it lacks. mu_s and sigma_s are those of sFID."""

    path: Path
    mu: Float[np.ndarray, " D"] | None = None
    sigma: Float[np.ndarray, "D D"] | None = None
    mu_s: Float[np.ndarray, " S"] | None = None
    sigma_s: Float[np.ndarray, "S S"] | None = None
    images: UInt8[np.ndarray, "N H W 3"] | None = None

    def gaussian(self, spatial: bool = False) -> Gaussian:
        """Of FID, or of sFID. Raises Missing where the file has none."""
        mean, covariance = (self.mu_s, self.sigma_s) if spatial else (self.mu, self.sigma)
        if mean is None or covariance is None:
            names = "mu_s and sigma_s (of sFID)" if spatial else "mu and sigma"
            raise Missing(f"{self.path} holds no {names}; it has {', '.join(self.holds) or 'nothing'}")
        return Gaussian.of_moments(mean, covariance)

    def pictures(self) -> UInt8[np.ndarray, "N H W 3"]:
        """The images, which Inception score, precision and recall need. Raises Missing where the file has none."""
        if self.images is None:
            raise Missing(
                f"{self.path} holds no images (arr_0), only {', '.join(self.holds)}: precision, recall, KID and "
                "features of other networks cannot be had from it"
            )
        return self.images

    @property
    def holds(self) -> tuple[str, ...]:
        return tuple(name for name in ("mu", "sigma", "mu_s", "sigma_s", "images") if getattr(self, name) is not None)


def read_statistics(path: str | Path) -> StatisticsFile:
    """Raises Missing where there is no file, UsageError where it is none of these."""
    path = Path(path)
    if not path.is_file():
        raise Missing(f"{path} does not exist")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ("mu", "sigma", "mu_s", "sigma_s", "arr_0") if name in file.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, AttributeError, TypeError) as error:
        raise UsageError(f"{path} cannot be read as an .npz of statistics: {error}") from error
    for mean, covariance in PAIRS.items():
        if (mean in arrays) != (covariance in arrays):
            raise UsageError(f"{path} holds only one of {mean} and {covariance}")
        if mean in arrays and arrays[covariance].shape != arrays[mean].shape * 2:
            raise UsageError(
                f"{path}: {mean} {arrays[mean].shape} and {covariance} {arrays[covariance].shape} do not fit"
            )
    images = arrays.pop("arr_0", None)
    if images is not None and (images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3):
        raise UsageError(f"{path}: arr_0 must be uint8 [N,H,W,3], not {images.dtype} {images.shape}")
    if images is None and "mu" not in arrays:
        raise UsageError(f"{path} holds neither mu and sigma nor images (arr_0)")
    return StatisticsFile(path, images=images, **arrays)


def write_statistics(
    path: str | Path,
    mu: Float[np.ndarray, " D"],
    sigma: Float[np.ndarray, "D D"],
    mu_s: Float[np.ndarray, " S"] | None = None,
    sigma_s: Float[np.ndarray, "S S"] | None = None,
    images: UInt8[np.ndarray, "N H W 3"] | None = None,
) -> None:
    """mu and sigma alone make pytorch-fid's layout, all make ADM's. The file appears only when it is complete."""
    arrays = {"mu": mu, "sigma": sigma, "mu_s": mu_s, "sigma_s": sigma_s, "arr_0": images}
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            np.savez(file, **{name: array for name, array in arrays.items() if array is not None})
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
