"""The layout of the released DiT weights (facebookresearch/DiT): one network with its classes, and no first stage.

    unet/...                        the same names, mechanically (names.py): blocks.3.attn.qkv.weight
    conditioner/embedding           y_embedder.embedding_table.weight, its last row the null class
    no leaf of ours                 pos_embed [1,N,width]: fixed, computed here (models/dit.py); compared on reading

Facts about the names: facebookresearch/DiT, models.py.
"""

from collections.abc import Mapping

import numpy as np
from ml_collections import ConfigDict

from ldm_jax import tree
from ldm_jax.convert import names
from ldm_jax.errors import UsageError
from ldm_jax.models.dit import positions

LABELS, POSITIONS = "y_embedder.embedding_table.weight", "pos_embed"
PARTS = ("unet", "conditioner")


def chosen(config: ConfigDict) -> bool:
    """Whether the model of a configuration has a DiT, whose files are of this layout."""
    return config.task == "ldm" and config.network.kind == "dit"


def check(config: ConfigDict) -> None:
    """Raises UsageError for a model that has parameters without a name in this layout."""
    c = config.conditioner
    if c.kind != "class" or config.dit.context != "adaln" or c.dim != config.dit.width:
        raise UsageError(
            "files of DiT hold a network and its classes alone: they need config.conditioner.kind='class' (not "
            f"{c.kind!r}), config.dit.context='adaln' (not {config.dit.context!r}) and config.conditioner.dim="
            f"{config.dit.width}, the network's width (not {c.get('dim')}). Any model can be exported with "
            "ldm_jax.load(RUN).save(FOLDER)"
        )
    if config.diffusion.learn_logvar:
        raise UsageError("files of DiT have no place for config.diffusion.learn_logvar=True")


def key_of(path: str) -> str:
    """The released models' key of a leaf "unet/..." or "conditioner/..."."""
    part, _, rest = path.partition("/")
    return names.torch_key(rest) if part == "unet" else LABELS


def parts_of(weights: Mapping[str, tree.Tree]) -> tree.Tree:
    """Those parts of a weights tree that this layout has."""
    return {name: weights[name] for name in PARTS}


def table(config: ConfigDict, latent_size: int) -> np.ndarray:
    """pos_embed [1,N,width] float32 for latents of this height and width."""
    side = latent_size // config.dit.patch_size
    return positions(side, side, config.dit.width)[None]


def split(
    state: Mapping[str, np.ndarray], template: tree.Tree, expected: np.ndarray
) -> tuple[tree.Tree, dict[str, np.ndarray]]:
    """(the weights tree of `template` filled from a state dict, {pos_embed}).

    expected: pos_embed as it must be. Raises UsageError where it is another one, and as names.from_torch.
    """
    filled = names.from_torch({key: a for key, a in state.items() if key != POSITIONS}, template, key_of)
    found = state.get(POSITIONS)
    if found is None:
        return filled, {}
    if found.shape != expected.shape:
        raise UsageError(
            f"the file's {POSITIONS} has the shape {found.shape}, this model's {expected.shape}: it is for latents of "
            "another size. Give the size of its images with --config.data.image_size"
        )
    if not np.allclose(found.astype(np.float32), expected, atol=1e-2):
        raise UsageError(f"the file's {POSITIONS} are not DiT's sines and cosines, which are computed here")
    return filled, {POSITIONS: found}
