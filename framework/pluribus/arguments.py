"""What may come after a verb: Hydra's grammar, less what would leave files behind."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from pluribus.errors import ConfigError

ALLOWED = ("hydra.searchpath",)
ALLOWED_IN_SWEEPS = (*ALLOWED, "hydra.sweeper", "hydra/sweeper")


def asks_for_sweep(verb: str, arguments: Sequence[str]) -> bool:
    """Return whether several configurations are asked for, as ``-m`` does.

    Raises:
        ConfigError: Hydra is asked for something else that Pluribus does not do.
        SystemExit: a flag is none; the usage has been printed.
    """
    parser = get_args_parser()
    parser.prog = f"pluribus {verb}"
    flags = parser.parse_args(list(arguments))
    if flags.experimental_rerun is not None:
        raise ConfigError("--experimental-rerun: Pluribus keeps no runs to run again")
    for override in flags.overrides:
        _check_override(override, ALLOWED_IN_SWEEPS if flags.multirun else ALLOWED)
    return bool(flags.multirun)


def _check_override(override: str, allowed: Sequence[str]) -> None:
    with contextlib.suppress(HydraException):  # Hydra says itself what it cannot read
        key = OverridesParser.create().parse_override(override).key_or_group
        if key.startswith(("hydra.", "hydra/")) and not key.startswith(tuple(allowed)):
            raise ConfigError(
                f"{key}: Pluribus leaves no files behind and stays in its folder, so of Hydra's "
                f"own settings only these can be changed: {', '.join(allowed)}"
            )
