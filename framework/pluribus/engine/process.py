"""The engine as a process of its own: ``python -m pluribus.engine.process FD``.

Its whole configuration comes as the first message on the socket that it inherits.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import signal
import socket
import sys

from omegaconf import DictConfig, OmegaConf

from pluribus import assembly, runtime
from pluribus import config as conf
from pluribus.engine.channel import Channel, ChannelClosed
from pluribus.engine.core import EngineCore
from pluribus.engine.loop import EngineChannel, run_engine
from pluribus.engine.messages import PROTOCOL_VERSION, Died, FromFront, Start
from pluribus.errors import EngineError
from pluribus.interfaces import Progress
from pluribus.logs import configure_logging
from pluribus.plan.cuda_driver import wake_driver
from pluribus.plugins import discover
from pluribus.server.config import ServerConfig

PR_SET_PDEATHSIG = 1
SPINS = "3000"
"""Turns that a thread of torch's waits for the others before it gives its core away.

libgomp's own 300,000 take a millisecond or more at each of a step's many barriers where any other
program keeps the thread that is waited for from its core: answers then take ten times as long. So
few cost the bundled model's step for a single row 4 % where there is none, and others nothing.
"""


def main() -> None:
    """Serve the front at the other end of the socket whose number is in ``sys.argv``."""
    die_with_the_parent()
    preload()
    channel: EngineChannel = Channel(socket.socket(fileno=int(sys.argv[1])), FromFront)
    try:
        [start] = channel.receive(block=True)
    except ChannelClosed:
        return
    if not isinstance(start, Start) or start.protocol != PROTOCOL_VERSION:
        raise EngineError(f"expected Start of protocol {PROTOCOL_VERSION}, got {start!r}")

    def fail(reason: str) -> None:
        # The engine's thread may be waiting for a rank that is gone: it is not asked.
        with contextlib.suppress(ChannelClosed):
            channel.send(Died(reason, is_final=False))
        os._exit(1)

    def start_core(progress: Progress) -> EngineCore:
        config = OmegaConf.create(start.config)
        assert isinstance(config, DictConfig)
        server = conf.section(config, "server", ServerConfig)
        configure_logging(server.log_format, server.log_level)
        plugins = discover()
        return runtime.start(assembly.assemble(config, plugins), plugins, progress, fail)

    run_engine(channel, start_core)


def preload() -> None:
    """Import what takes long, before whoever has started this process knows what it is to run."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    gc.disable()  # modules are no garbage: looking for some among them takes a sixth of all this
    if wake_driver():
        from pluribus.kernels.preparing import prepare

        prepare()
    import torch

    if torch.cuda.is_available():
        import pluribus.cuda.worker  # noqa: F401
    gc.freeze()  # nor will they be any later, while steps wait
    gc.enable()


def die_with_the_parent(parent: int | None = None) -> None:
    """Leave signals to whoever started this process, and do not outlive it.

    Args:
        parent: its process id, where no socket leads to it that would say that it had ended
            before this was called.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    signal_at_the_end_of_the_parent(signal.SIGKILL)
    if parent is not None and os.getppid() != parent:
        sys.exit(f"process {parent}, which started this one, has ended")


def signal_at_the_end_of_the_parent(number: signal.Signals) -> None:
    """Have the system send this process a signal when whoever started it ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)


if __name__ == "__main__":
    main()
