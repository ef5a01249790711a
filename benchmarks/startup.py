"""Where the time goes before the first training step: imports, tracing, compiling (cold, and from the cache), one step.

    python benchmarks/startup.py --config=configs/celeba_ldm4.py --batch=1
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
    args, config = common.load(p, argv)
    env, rows = common.environment(), []
    imports = "from ldm_jax import runs; from ldm_jax.training import loop"
    rows.append({"part": "imports", "seconds": _python(imports)})
    rows.append({"part": "python alone", "seconds": _python("")})
    seconds, model = common.timed(lambda: work.make_model(config))
    rows.append({"part": "made-up weights", "seconds": seconds})
    size = args.batch[0]
    with tempfile.TemporaryDirectory() as cache:
        rows += measure(work.train(model, size), Path(cache))
    print(common.table(rows))
    common.save(args, "startup", rows, env, config.dtype)
    return rows


def measure(program: work.Program, cache: Path) -> list[common.Row]:
    """Compiles twice: into an empty cache, then from it."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    rows, before = [], jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(cache))
    try:
        for name in ("cold", "from the cache"):
            compilation_cache.reset_cache()
            jax.clear_caches()
            compiled = program.compile()
            rows.append({"part": f"trace, {name}", "seconds": compiled.trace_s})
            rows.append({"part": f"compile, {name}", "seconds": compiled.compile_s})
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
        compilation_cache.reset_cache()
    rows.append({"part": "first step", "seconds": common.timed(compiled)[0]})
    rows.append({"part": "second step", "seconds": common.timed(compiled)[0]})
    return rows


def _python(code: str) -> float:
    return common.timed(lambda: subprocess.run([sys.executable, "-c", code], cwd=common.ROOT, check=True))[0]


if __name__ == "__main__":
    common.run(main)
