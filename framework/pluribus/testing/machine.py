"""Running hypothesis's state machines."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import hypothesis
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test


def run_machine(make: Callable[[], RuleBasedStateMachine], settings: hypothesis.settings) -> None:
    """Run a state machine, made anew for each example, as one test."""
    # Any function that returns a machine will do, though the annotation asks for a class.
    factory = cast("type[RuleBasedStateMachine]", make)
    run_state_machine_as_test(factory, settings=settings)
