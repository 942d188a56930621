"""The command line: ``pluribus VERB [overrides]``. Everything after the verb is Hydra's."""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from pluribus.errors import PluribusError
from pluribus.terminal import (
    INTERRUPTED,
    end_on_interrupt,
    end_on_terminate,
    end_with_reader,
    open_standard_streams,
)

if TYPE_CHECKING:
    from pluribus.plugins import Plugins

USAGE = """\
usage: pluribus VERB [group=choice ...] [key=value ...]

  serve      put a model behind HTTP, on http://127.0.0.1:8020 unless server.port says otherwise
  generate   print one answer: pluribus generate prompt='Once upon a time' max_tokens=64
  plan       say what a model takes and whether it fits: plan model=opt-30b plan.device=h100-80g
  bench      measure latency and throughput; -m batcher.max_batch_size=16,64 tries each
  convert    write a checkpoint of any layout as safetensors: convert model.checkpoint=A to=B
  verify     read a checkpoint through and report what is wrong with it; format=json for programs
  plugins    list what is installed, from where, and how it is chosen; --json for programs

`pluribus VERB --help` lists the choices and settings, `--cfg job` prints the configuration.
"""


def main() -> NoReturn:
    """Run the verb in ``sys.argv`` and exit with its code."""
    open_standard_streams()
    end_on_interrupt()
    with end_with_reader():
        try:
            code = _run(sys.argv[1:])
        except PluribusError as error:
            _fail(str(error))
        except KeyboardInterrupt:
            code = INTERRUPTED
    end_on_interrupt()  # event loops put Python's own handler back
    sys.exit(code)


def _run(arguments: Sequence[str]) -> int:
    if not arguments or arguments[0] in {"-h", "--help", "help"}:
        print(USAGE, end="")
        return 0 if arguments else 2
    verb, *rest = arguments
    if verb in {"-V", "--version", "version"} or "--version" in rest:
        from importlib.metadata import version

        print(f"pluribus {version('pluribus')}")
        return 0
    if verb not in VERBS:
        close = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        _fail(f"no verb is called {verb!r}{hint}\n\n{USAGE}", code=2)
    return VERBS[verb](rest)


def serve(arguments: Sequence[str]) -> int:
    """Serve a model over HTTP until told to stop; return the exit code.

    The engine's process is started before what only this one needs: nothing takes as long as it.
    """
    from pluribus.engine.spare import SpareProcess

    def task(config: Any, plugins: Plugins) -> int:
        from pluribus import assembly
        from pluribus import config as conf
        from pluribus.logs import configure_logging
        from pluribus.plan.command import check
        from pluribus.server.config import ServerConfig

        server_config = conf.section(config, "server", ServerConfig)
        parts = assembly.assemble(config, plugins)
        if parts.launcher.is_local:
            check(config, plugins, parts.model.blueprint, arguments)

        def service() -> int:
            # Only now what takes long to import: a wrong setting has been answered already.
            from pluribus.server.run import serve as serve_http

            return serve_http(parts, plugins, server_config, spare)

        configure_logging(server_config.log_format, server_config.log_level)
        if not parts.launcher.is_first:
            spare.end()
        return parts.launcher.run(service)

    # Until the server listens to signals itself, there is nothing to finish.
    end_on_terminate()
    with SpareProcess() as spare:
        return _with_config("serve", task, arguments)


def generate(arguments: Sequence[str]) -> int:
    """Print one answer."""
    prompts = [argument for argument in arguments if argument.startswith("prompt=")]

    def task(config: Any, plugins: Plugins) -> int:
        from pluribus.offline import print_answer

        if len(prompts) != 1:
            _fail("generate takes one prompt: pluribus generate prompt='Once upon a time'")
        return print_answer(config, plugins, _text(prompts[0]))

    return _with_config("generate", task, [a for a in arguments if a not in prompts])


def plan(arguments: Sequence[str]) -> int:
    """Print what a configuration takes; the exit code is 1 when it does not fit."""

    def task(config: Any, plugins: Plugins) -> int:
        from pluribus.plan.command import run

        return run(config, plugins, arguments)

    return _with_config("plan", task, arguments)


def bench(arguments: Sequence[str]) -> int:
    """Measure how fast the engine is; with -m, once for each combination of settings."""

    def task(config: Any, plugins: Plugins) -> int:
        from pluribus.bench.command import run

        return run(config, plugins)

    from pluribus.arguments import asks_for_sweep

    if not asks_for_sweep("bench", arguments):
        return _with_config("bench", task, arguments)
    _plugins()
    with tempfile.TemporaryDirectory() as folder:  # Hydra cannot sweep without one
        jobs = _compose("bench", [*arguments, f"hydra.sweep.dir={folder}"])
    return max((_bench_apart(overrides) for _, overrides in jobs), default=0)


def _bench_apart(overrides: Sequence[str]) -> int:
    """Measure in a process of its own, which leaves nothing in memory for the next."""
    command = [sys.executable, "-c", "from pluribus.cli import main; main()", "bench", *overrides]
    print(f"pluribus bench {shlex.join(overrides)}", file=sys.stderr)
    return subprocess.run(command, check=False).returncode  # noqa: S603 - it is ourselves


def convert(arguments: Sequence[str]) -> int:
    """Write a checkpoint as sharded safetensors."""

    def task(config: Any, plugins: Plugins) -> int:
        from pluribus import checkpoints

        return checkpoints.convert(config, plugins)

    return _with_config("convert", task, arguments)


def verify(arguments: Sequence[str]) -> int:
    """Report on a checkpoint; the exit code is 1 when something is wrong with it."""

    def task(config: Any, plugins: Plugins) -> int:
        from pluribus import checkpoints

        return checkpoints.verify(config, plugins)

    return _with_config("verify", task, arguments)


def _text(override: str) -> str:
    """Return the value as it was typed: a prompt may hold commas and braces, Hydra's grammar.

    A value in Hydra's own quotes is unquoted, for those who put them out of habit.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    text = override.partition("=")[2]
    if text.startswith(("'", '"')):
        with contextlib.suppress(HydraException):
            unquoted = OverridesParser.create().parse_override(override).value()
            return unquoted if isinstance(unquoted, str) else text
    return text


def list_plugins(arguments: Sequence[str]) -> int:
    """Print what is installed; the exit code is 1 when a plugin is broken."""
    if unknown := [argument for argument in arguments if argument != "--json"]:
        _fail(f"pluribus plugins takes --json and nothing else, got {' '.join(unknown)}", code=2)
    from pluribus.plugins import discover

    plugins = discover()
    choices, installed = plugins.describe(), plugins.describe_sources()
    if "--json" in arguments:
        listing = {"plugins": choices, "installed": installed, "problems": plugins.problems}
        print(json.dumps(listing, indent=2))
    else:
        _print_table(choices, ("kind", "name", "selected_by", "class", "distribution", "version"))
        print()
        _print_table(installed, ("plugin", "distribution", "version", "hooks"))
        for problem in plugins.problems:
            print(f"problem: {problem}", file=sys.stderr)
    return 1 if plugins.problems else 0


VERBS: dict[str, Callable[[Sequence[str]], int]] = {
    "serve": serve,
    "generate": generate,
    "plan": plan,
    "bench": bench,
    "convert": convert,
    "verify": verify,
    "plugins": list_plugins,
}


def _with_config(name: str, task: Callable[[Any, Plugins], int], arguments: Sequence[str]) -> int:
    """Let Hydra make the configuration ``name`` of the arguments and hand it to ``task``."""
    from pluribus.arguments import asks_for_sweep

    if asks_for_sweep(name, arguments):
        _fail(f"{name} runs one configuration, so -m is not for it; pluribus bench takes it")
    plugins = _plugins()
    jobs = _compose(name, arguments)
    # Nothing was composed where --help, --cfg or the like was answered.
    return task(jobs[0][0], plugins) if jobs else 0


def _plugins() -> Plugins:
    """Return the plugins, none broken, and let Hydra see what they bring."""
    from pluribus import composition
    from pluribus.plugins import discover

    plugins = discover()
    plugins.check()
    composition.add_search_paths(plugins.search_paths)
    return plugins


def _compose(name: str, arguments: Sequence[str]) -> list[tuple[Any, Sequence[str]]]:
    """Return each configuration that Hydra makes of the arguments, and its overrides."""
    import hydra
    from hydra.core.hydra_config import HydraConfig

    from pluribus import composition
    from pluribus.config_files import config_dir

    jobs: list[tuple[Any, Sequence[str]]] = []

    def keep(config: Any) -> None:
        jobs.append((config, list(HydraConfig.get().overrides.task)))

    composition.check_folder()
    sys.argv = [f"pluribus {name}", *arguments]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # its errors come to us instead of being printed
    try:
        hydra.main(version_base="1.3", config_path=config_dir(), config_name=name)(keep)()
    except composition.COMPOSE_ERRORS as error:
        _fail(composition.explain(error))
    for config, _ in jobs:
        composition.check_keys(config, name)
    return jobs


def _print_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    table = [[column.replace("_", " ") for column in columns]]
    table += [[_cell(row[column]) for column in columns] for row in rows]
    widths = [max(len(row[index]) for row in table) for index in range(len(columns))]
    for row in table:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )


def _cell(value: str | Sequence[str]) -> str:
    return value if isinstance(value, str) else " ".join(value)


def _fail(message: str, code: int = 1) -> NoReturn:
    print(f"pluribus: {message}", file=sys.stderr)
    sys.exit(code)
