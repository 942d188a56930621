"""Run a fake service as ``pluribus serve`` would: python -m server.fake_server JSON."""

from __future__ import annotations

import json
import sys

from pluribus.logs import configure_logging
from pluribus.server.config import ServerConfig
from pluribus.server.run import run_server
from pluribus.supervisor import State
from server.fakes import FakeService


def main() -> int:
    """Serve as ``sys.argv`` says; return the exit code."""
    settings = json.loads(sys.argv[1])
    config = ServerConfig(port=0, shutdown_timeout=settings.get("shutdown_timeout", 30))
    configure_logging("json", "info")
    service = FakeService(
        seconds=settings.get("seconds", 0), outcome=State(settings.get("outcome", "ready"))
    )
    return run_server(service, config)


if __name__ == "__main__":
    sys.exit(main())
