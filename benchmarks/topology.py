"""Devices that are not there, to compile for: TPUs through libtpu, NVIDIA GPUs through JAX's CUDA plugin.

    pip install libtpu                                                   # v4:2x2x1, v5p:1x1x1, v6e:1x1 ...
    pip install jax-cuda12-plugin jax-cuda12-pjrt nvidia-cuda-nvcc-cu12  # a100, h100, h200; of jax's own version
    JAX_PLATFORMS=cpu python benchmarks/memory.py --topology=h200 ...

For a GPU some of JAX's questions to the hardware are answered here (jax.experimental.topologies knows no public way
yet, jax-ml/jax#23971). Nothing is tried out on the device, so kernels and algorithms are chosen by XLA's rules alone.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib import util
from pathlib import Path
from unittest import mock

import jax
from jax.experimental import topologies

from ldm_jax.models import kernels

# What XLA asks of a GPU: multiprocessors, their floating-point units, shared memory (bytes: a multiprocessor, a block),
# L2 cache, memory, bandwidth, clock (GHz), compute capability. From NVIDIA's data sheets and CUDA's device properties.
GPUS = {
    "a100": (108, 64, 167936, 166912, 41943040, 85100068864, 2039 * 10**9, 1.41, 8),
    "h100": (132, 128, 233472, 232448, 52428800, 85100068864, 3352 * 10**9, 1.98, 9),
    "h200": (132, 128, 233472, 232448, 52428800, 151397597184, 4800 * 10**9, 1.98, 9),
}
CUDNN = 9, 10  # the version assumed
_TARGET = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_block: 49152 core_count: {} fpus_per_core: {}
  shared_memory_per_core: {} shared_memory_per_block_optin: {}
  l2_cache_size: {} device_memory_size: {} memory_bandwidth: {}
  clock_rate_ghz: {} cuda_compute_capability {{ major: {} }}
}}
platform_name: "CUDA" device_description_str: "{}"
dnn_version_info {{ major: {} minor: {} }}
runtime_version {{ major: 12 minor: 9 patch: 0 }}
"""


@contextmanager
def device(name: str) -> Iterator[jax.Device]:
    """The device to compile for; what is traced and compiled within uses its formulations, not this machine's.

    Raises SystemExit without the package that knows it.
    """
    answers = _answers(GPUS[name][-1]) if name in GPUS else nullcontext()
    with kernels.use("gpu" if name in GPUS else "tpu"), answers:
        yield _find(name)


def _find(name: str) -> jax.Device:
    try:
        return _gpu(name) if name in GPUS else topologies.get_topology_desc(name, "tpu").devices[0]
    except Exception as error:  # whatever the plugin raises, the remedy is the same
        packages = "jax-cuda12-plugin jax-cuda12-pjrt nvidia-cuda-nvcc-cu12" if name in GPUS else "libtpu"
        remedy = f"It needs `pip install {packages}` and JAX_PLATFORMS=cpu; GPUs: {', '.join(GPUS)}."
        raise SystemExit(f"--topology={name}: {error}\n\n{remedy}") from error


def _gpu(name: str) -> jax.Device:
    toolkit = util.find_spec("nvidia") and util.find_spec("nvidia.cuda_nvcc")  # XLA looks for ptxas on the PATH
    if toolkit and toolkit.submodule_search_locations:
        folder = Path(next(iter(toolkit.submodule_search_locations)), "bin")
        os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ['PATH']}"
    target = _TARGET.format(*GPUS[name], f"NVIDIA {name.upper()}", *CUDNN)
    return topologies.get_topology_desc("", "cuda", target_config=target, topology="1x1x1").devices[0]


@contextmanager
def _answers(capability: int) -> Iterator[None]:
    """What JAX asks of a GPU when it traces and compiles for one; heads are fused where cuDNN takes them."""
    from jax._src import xla_bridge
    from jax._src.cudnn import fused_attention_stablehlo as fused

    canonical = xla_bridge.canonicalize_platform
    widest = 256 if capability >= 9 else 128

    def works(head_dim: int, dtype: str) -> bool:
        return head_dim <= widest and head_dim % 8 == 0

    with (
        mock.patch.object(xla_bridge, "canonicalize_platform", lambda p: "cuda" if p == "gpu" else canonical(p)),
        mock.patch.object(fused, "check_cudnn_version", lambda: CUDNN[0] * 10000 + CUDNN[1] * 100),
        mock.patch.object(fused, "check_compute_capability", lambda at_least: capability >= float(at_least)),
        mock.patch.object(fused, "is_cuda_compute_capability_equal", lambda exactly: capability == float(exactly)),
        mock.patch.object(kernels.gpu, "works", works),
    ):
        yield
