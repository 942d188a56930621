"""A front in a process of its own: has requests answered by an engine, which then may end.

python benchmarks/front.py FD        requests, as JSON, on standard input
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pluribus.bench.workloads import Request
from pluribus.engine.channel import Channel
from pluribus.engine.loop import EngineChannel
from pluribus.engine.messages import FromEngine, FromFront, Stepped, Stop, Submit
from pluribus.generation import SamplingParams


@contextmanager
def asking(requests: Sequence[Request]) -> Iterator[EngineChannel]:
    """Yield the channel to a front that asks for ``requests`` and then has the engine stop."""
    ours, theirs = socket.socketpair()
    command = [sys.executable, __file__, str(theirs.fileno())]
    with (
        ours,
        subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[theirs.fileno()]) as process,
    ):
        theirs.close()
        assert process.stdin is not None
        with process.stdin as pipe:
            pipe.write(json.dumps([(each.prompt, each.num_tokens) for each in requests]).encode())
        yield Channel(ours, FromFront)


def main() -> None:
    """Submit all requests, take in every step, and stop the engine after the last token."""
    requests = json.load(sys.stdin)
    channel: Channel[FromFront, FromEngine] = Channel(
        socket.socket(fileno=int(sys.argv[1])), FromEngine
    )
    for id_, (prompt, num_tokens) in enumerate(requests):
        params = SamplingParams(max_tokens=num_tokens, temperature=0, seed=id_, ignore_eos=True)
        channel.send(Submit(id_, tuple(prompt), params, "", 1.0, ""))
    num_left = len(requests)
    while num_left:
        for message in channel.receive(block=True):
            assert isinstance(message, Stepped), f"the engine says {message}"
            num_left -= sum(output.finish_reason is not None for output in message.outputs)
    channel.send(Stop())


if __name__ == "__main__":
    main()
