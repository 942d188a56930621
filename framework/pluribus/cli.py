"""The command line: ``pluribus VERB [overrides]``. Everything after the verb is Hydra's."""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any, NoReturn

from pluribus.errors import PluribusError
from pluribus.plugins import Plugins, discover

USAGE = """\
usage: pluribus VERB [group=choice ...] [key=value ...]

  serve      put a model behind HTTP, on http://127.0.0.1:8020 unless server.port says otherwise
  generate   print one answer: pluribus generate prompt='Once upon a time' max_tokens=64
  plugins    list what is installed, from where, and how it is chosen; --json for programs

`pluribus VERB --help` lists the choices and settings, `--cfg job` prints the configuration.
"""


def main() -> NoReturn:
    """Run the verb in ``sys.argv`` and exit with its code."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in {"-h", "--help", "help"}:
        print(USAGE, end="")
        sys.exit(0 if arguments else 2)
    verb, *rest = arguments
    if verb in {"-V", "--version", "version"}:
        print(f"pluribus {version('pluribus')}")
        sys.exit(0)
    if verb not in VERBS:
        close = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        _fail(f"no verb is called {verb!r}{hint}\n\n{USAGE}", code=2)
    try:
        sys.exit(VERBS[verb](rest))
    except PluribusError as error:
        _fail(str(error))


def serve(arguments: Sequence[str]) -> int:
    """Serve a model over HTTP until told to stop; return the exit code."""

    def task(config: Any, plugins: Plugins) -> int:
        from pluribus import config as conf
        from pluribus import runtime
        from pluribus.server.config import ServerConfig

        server_config = conf.section(config, "server", ServerConfig)
        parts = runtime.assemble(config, plugins)
        # Only now what takes long to import: a wrong setting has been answered already.
        from pluribus.server.run import serve as serve_http

        return serve_http(parts, plugins, server_config)

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
    plugins = discover()
    if "--json" in arguments:
        print(json.dumps({"plugins": plugins.describe(), "problems": plugins.problems}, indent=2))
    else:
        _print_table(plugins.describe())
        for problem in plugins.problems:
            print(f"problem: {problem}", file=sys.stderr)
    return 1 if plugins.problems else 0


VERBS: dict[str, Callable[[Sequence[str]], int]] = {
    "serve": serve,
    "generate": generate,
    "plugins": list_plugins,
}


def _with_config(name: str, task: Callable[[Any, Plugins], int], arguments: Sequence[str]) -> int:
    """Let Hydra make the configuration ``name`` of the arguments and hand it to ``task``."""
    import hydra

    from pluribus import config as conf

    plugins = discover()
    plugins.check()
    conf.add_search_paths(plugins.search_paths())
    plugins.check()
    composed: list[Any] = []

    def keep(config: Any) -> None:
        composed.append(config)

    sys.argv = [f"pluribus {name}", *arguments]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # its errors come to us instead of being printed
    try:
        hydra.main(version_base="1.3", config_path=conf.config_dir(), config_name=name)(keep)()
    except conf.COMPOSE_ERRORS as error:
        _fail(conf.explain(error))
    # Nothing was composed where --help, --cfg or the like was answered.
    return task(composed[0], plugins) if composed else 0


def _print_table(rows: Sequence[dict[str, str]]) -> None:
    columns = ("kind", "name", "selected_by", "class", "distribution", "version")
    table = [[column.replace("_", " ") for column in columns]]
    table += [[row[column] for column in columns] for row in rows]
    widths = [max(len(row[index]) for row in table) for index in range(len(columns))]
    for row in table:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )


def _fail(message: str, code: int = 1) -> NoReturn:
    print(f"pluribus: {message}", file=sys.stderr)
    sys.exit(code)
