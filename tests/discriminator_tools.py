"""The original's discriminator weights, made up by name, as our variables."""

from tests.golden.weights import make_weight


def variables(manifest: dict, prefix: str) -> dict:
    """{"params", "batch_stats"} of NLayerDiscriminator with the weights `prefix` + key of a golden."""
    names = {"weight": "kernel", "bias": "bias", "running_mean": "mean", "running_var": "var"}
    params, stats = {}, {}
    for key, shape in manifest.items():
        layer, kind = key.replace("main.", "main_").split(".")
        if kind not in names:
            continue
        value = make_weight(prefix + key, shape)
        if kind.startswith("running"):
            stats.setdefault(layer, {})[names[kind]] = value
        elif kind == "weight" and value.ndim == 1:
            params.setdefault(layer, {})["scale"] = value
        else:
            value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value
            params.setdefault(layer, {})[names[kind]] = value
    return {"params": params, "batch_stats": stats}
