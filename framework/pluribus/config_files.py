"""Which YAML files there are to choose from: ours, and those that plugins bring."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path


def config_dir() -> str:
    """Return ``conf/``: inside the package in a wheel, at the repository root in a checkout."""
    packaged = Path(__file__).parent / "conf"
    return str(packaged if packaged.is_dir() else Path(__file__).parents[2] / "conf")


def config_files(folder: str) -> frozenset[str]:
    """Return the YAML files in a folder, such as ``batcher/bucket.yaml``.

    Args:
        folder: as Hydra takes it: ``pkg://package.conf`` or ``file:///path``.

    Raises:
        ValueError: there is no such folder.
        ImportError: there is no such package.
    """
    scheme, _, where = folder.partition("://")
    if scheme not in {"pkg", "file"}:
        raise ValueError("a folder is given as pkg://package.conf or file:///path")
    root: Traversable = resources.files(where) if scheme == "pkg" else Path(where)
    if not root.is_dir():
        raise ValueError("there is no such folder")
    return frozenset(_files(root))


def config_groups(folder: str) -> frozenset[str]:
    """Return the groups that a folder has choices for, such as ``cache/kv``."""
    return frozenset(group for file in config_files(folder) if (group := file.rpartition("/")[0]))


def _files(folder: Traversable, prefix: str = "") -> Iterator[str]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _files(entry, f"{prefix}{entry.name}/")
        elif entry.name.endswith(".yaml"):
            yield prefix + entry.name
