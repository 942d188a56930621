"""The rules that ARCHITECTURE.md states about the whole tree."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from omegaconf import DictConfig

import pluribus
from pluribus import composition, hookspecs
from pluribus import config as conf
from pluribus.plugins import KINDS, discover
from pluribus.server.config import ServerConfig

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"
PLUGIN_PACKAGES = sorted(path.parent for path in ROOT.glob("plugins/*/*/__init__.py"))
HOOKS = {
    name: tuple(inspect.signature(spec).parameters)
    for name, spec in vars(hookspecs).items()
    if hasattr(spec, "pluribus_spec")
}
ROOT_CONFIGS = {
    "serve": (),
    "generate": ("prompt=hello",),
    "bench": (),
    "convert": ("to=folder",),
    "verify": (),
    "plan": (),
}
CHOICES = sorted(
    f"{path.parent.relative_to(CONF).as_posix()}={path.stem}" for path in CONF.glob("*/**/*.yaml")
)


def imported_packages(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield every file below ``folder`` with each top-level package that it names in an import."""
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from ((path, alias.name.partition(".")[0]) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{path}: relative import"
                yield path, (node.module or "").partition(".")[0]


def test_the_framework_imports_no_plugin() -> None:
    imports = list(imported_packages(ROOT / "framework"))
    assert imports
    assert not [(path, name) for path, name in imports if name.startswith("pluribus_")]


@pytest.mark.parametrize("package", PLUGIN_PACKAGES, ids=lambda package: package.name)
def test_a_plugin_imports_no_other_plugin(package: Path) -> None:
    imports = list(imported_packages(package))
    assert imports
    others = {name for _, name in imports if name.startswith("pluribus_")}
    assert others <= {package.name}


def test_only_kernels_import_triton() -> None:
    files = {
        path.relative_to(ROOT)
        for folder in ("framework", "plugins")
        for path, name in imported_packages(ROOT / folder)
        if name == "triton"
    }
    assert files
    assert {path.parent.name for path in files} == {"kernels"}


def test_what_runs_on_a_cpu_needs_no_triton() -> None:
    code = (
        "import sys\n"
        "sys.modules['triton'] = None\n"
        "import pluribus.parallel.rank, pluribus.worker, pluribus.ops\n"
        "import pluribus_opt.decoder, pluribus_caches.kv.paged_store\n"
        "import pluribus_caches.kv.contiguous_store"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "module",
    ["pluribus.engine.process", "pluribus.parallel.rank", "pluribus.server.workers.process"],
)
def test_whoever_is_given_a_configuration_needs_no_hydra(module: str) -> None:
    code = f"import sys; sys.modules['hydra'] = None; import {module}"
    subprocess.run([sys.executable, "-c", code], check=True)


def run_without_torch(code: str) -> None:
    """Run ``code`` in a fresh Python and fail if torch was loaded."""
    check = "import sys; assert 'torch' not in sys.modules, 'torch was imported'"
    command = [sys.executable, "-c", f"{code}\n{check}"]
    subprocess.run(command, check=True, cwd=Path(__file__).parent)


@pytest.mark.parametrize(
    "module",
    [
        "pluribus",
        "pluribus.cli",
        "pluribus.composition",
        "pluribus.config",
        "pluribus.hookspecs",
        "pluribus.plan.command",
        "pluribus.plugins",
        "pluribus.assembly",
        "pluribus.runtime",
        "pluribus.server.config",
        *(package.name for package in PLUGIN_PACKAGES),
    ],
)
def test_importing_loads_no_torch(module: str) -> None:
    run_without_torch(f"import {module}")


def test_looking_up_every_plugin_loads_no_torch() -> None:
    run_without_torch(
        "from pluribus.plugins import discover\n"
        "plugins = discover()\n"
        "plugins.check()\n"
        "assert plugins.offers"
    )


def test_building_every_choice_loads_no_torch() -> None:
    run_without_torch(
        "import test_architecture as here\n"
        "for choice in here.CHOICES: here.check_sections(here.composition.load('serve', [choice]))"
    )


def check_sections(config: DictConfig) -> None:
    """Check every section against the dataclass of the plugin it names."""
    plugins = discover()
    for kind in KINDS:
        cls = plugins.find(kind, conf.choice(config, kind.section))
        conf.section(config, kind.section, cls.Config)
    conf.section(config, "server", ServerConfig)


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_composes_and_builds(choice: str) -> None:
    check_sections(composition.load("serve", [choice]))


@pytest.mark.parametrize("name", sorted(path.stem for path in CONF.glob("*.yaml")))
def test_every_menu_composes_and_builds(name: str) -> None:
    check_sections(composition.load(name, ROOT_CONFIGS[name]))


def test_every_plugin_has_a_choice_that_selects_it() -> None:
    configs = [composition.load("serve", [choice]) for choice in CHOICES]
    selected = {
        (kind.name, conf.choice(config, kind.section)) for config in configs for kind in KINDS
    }
    ours = {
        key for key, offer in discover().offers.items() if offer.source.distribution == "pluribus"
    }
    assert ours <= selected


def test_no_configuration_names_code() -> None:
    files = list(CONF.rglob("*.yaml"))
    assert files
    assert not [path for path in files if "_target_" in path.read_text()]


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_is_documented_with_its_arguments(hook: str) -> None:
    documentation = (ROOT / "docs" / "plugins.md").read_text()
    assert f"### `{hook}({', '.join(HOOKS[hook])})`" in documentation


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_has_a_test(hook: str) -> None:
    others = [path for path in Path(__file__).parent.rglob("test_*.py") if path != Path(__file__)]
    assert any(hook in path.read_text() for path in others)


def test_everything_exported_is_there() -> None:
    assert sorted(pluribus.__all__) == pluribus.__all__
    assert not [name for name in pluribus.__all__ if not hasattr(pluribus, name)]
