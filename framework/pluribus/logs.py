"""One pipeline for every log record: ours, uvicorn's, any library's.

Records of a request carry its id. Prompts, answers and local variables are never logged.
"""

from __future__ import annotations

import logging
import logging.config
import sys
from collections.abc import Sequence

import structlog
from structlog.typing import Processor

from pluribus.terminal import is_terminal

_SHARED: Sequence[Processor] = (
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_logger_name,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.stdlib.ExtraAdder(),
    structlog.stdlib.PositionalArgumentsFormatter(),
)


def configure_logging(log_format: str, level: str) -> None:
    """Log to standard error, from ``level`` up.

    Args:
        log_format: ``console``, ``json``, or ``auto``: console on a terminal, else json.
        level: ``debug``, ``info``, ``warning``, ``error`` or ``critical``.
    """
    is_json = log_format == "json" or (log_format == "auto" and not is_terminal(sys.stderr))
    formatter = {
        "()": structlog.stdlib.ProcessorFormatter,
        "foreign_pre_chain": _SHARED,
        "processors": [
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            *(_json() if is_json else _console()),
        ],
    }
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"structured": formatter},
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "structured"}},
            "root": {"handlers": ["stderr"], "level": level.upper()},
        }
    )
    logging.captureWarnings(True)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_SHARED,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
    )


# Both leave local variables out of tracebacks, against structlog's defaults: they hold prompts.


def _json() -> list[Processor]:
    tracebacks = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    return [
        structlog.processors.ExceptionRenderer(tracebacks),
        structlog.processors.JSONRenderer(),
    ]


def _console() -> list[Processor]:
    return [
        structlog.dev.ConsoleRenderer(
            colors=is_terminal(sys.stderr), exception_formatter=structlog.dev.plain_traceback
        )
    ]
