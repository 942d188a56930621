"""How a network is split over ranks, and where they run: what ships with the framework."""

from __future__ import annotations

from collections.abc import Mapping

from pluribus.hookspecs import hookimpl
from pluribus.interfaces import Launcher, Parallelism


@hookimpl
def register_parallelisms() -> Mapping[str, type[Parallelism]]:
    from pluribus.parallel.hybrid import HybridParallelism
    from pluribus.parallel.pipeline import PipelineParallelism
    from pluribus.parallel.single import SingleRank
    from pluribus.parallel.tensor import TensorParallelism

    return {
        "single": SingleRank,
        "tensor": TensorParallelism,
        "pipeline": PipelineParallelism,
        "hybrid": HybridParallelism,
    }


@hookimpl
def register_launchers() -> Mapping[str, type[Launcher]]:
    from pluribus.parallel.local import LocalLauncher
    from pluribus.parallel.ray_launcher import RayLauncher
    from pluribus.parallel.torchrun import TorchrunLauncher

    return {"local": LocalLauncher, "ray": RayLauncher, "torchrun": TorchrunLauncher}
