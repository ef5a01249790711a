"""Where the time goes before the first training step and the first image: imports, tracing, compiling (cold, and from
the cache), one step; sampling with decoding.

    python benchmarks/startup.py --config=configs/celeba_ldm4.py --batch=1 --steps=50
"""

import subprocess
import sys
import tempfile
from pathlib import Path

if __name__ == "__main__":  # the root, instead of this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import common, work


def main(argv: list[str] | None = None) -> list[common.Row]:
    p = common.parser(__doc__, repeats=1)
    p.add_argument("--steps", type=int, default=50, help="DDIM steps of the first image, default 50")
    args, config = common.load(p, argv)
    env, rows = common.environment(), []
    imports = "import ldm_jax.pipeline, ldm_jax.training.loop"
    rows.append({"part": "imports", "seconds": _python(imports)})
    rows.append({"part": "python alone", "seconds": _python("")})
    seconds, model = common.timed(lambda: work.make_model(config))
    rows.append({"part": "made-up weights", "seconds": seconds})
    size = args.batch[0]
    with tempfile.TemporaryDirectory() as cache:
        rows += measure("training step", [work.train(model, size)], Path(cache) / "train")
        if model.is_ldm:
            programs = [work.sample(model, size, args.steps), work.decode(model, size)]
            rows += measure(f"image of {args.steps} steps", programs, Path(cache) / "sample")
    print(common.table(rows))
    common.save(args, "startup", rows, env, config.dtype)
    return rows


def measure(name: str, programs: list[work.Program], cache: Path) -> list[common.Row]:
    """Compiles programs that run one after the other twice, into an empty cache, then from it; calls them twice."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    rows, before = [], jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(cache))
    try:
        for how in ("cold", "from the cache"):
            compilation_cache.reset_cache()
            jax.clear_caches()
            compiled = [program.compile() for program in programs]
            rows.append({"part": f"{name}: trace, {how}", "seconds": sum(c.trace_s for c in compiled)})
            rows.append({"part": f"{name}: compile, {how}", "seconds": sum(c.compile_s for c in compiled)})
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
        compilation_cache.reset_cache()
    for which in ("first", "second"):
        seconds = common.timed(lambda: [run() for run in compiled])[0]
        rows.append({"part": f"{which} {name}", "seconds": seconds})
    return rows


def _python(code: str) -> float:
    return common.timed(lambda: subprocess.run([sys.executable, "-c", code], cwd=common.ROOT, check=True))[0]


if __name__ == "__main__":
    common.run(main)
