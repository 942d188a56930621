"""From a configuration to a plan, and to the plans that some overrides would make of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from omegaconf import DictConfig, OmegaConf

from pluribus import assembly
from pluribus import config as conf
from pluribus.errors import ConfigError
from pluribus.interfaces import Blueprint
from pluribus.plan.change import Change, changes_that_fit, split_overrides
from pluribus.plan.devices import Site, named_device, named_site, site_here
from pluribus.plan.fit import Plan, make_plan
from pluribus.plan.outline import Outline
from pluribus.plugins import PARALLELISM, Plugins
from pluribus.units import parse_bytes

SECTIONS = ("parallel", "batcher", "cache", "device", "dtype", "plan")
"""Of the configuration: what a plan depends on besides the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanConfig:
    """The ``plan`` section.

    Attributes:
        device: the name of a device; None for what is here.
        count: of them; None for as many as all replicas have ranks, or as are here.
        disk: bytes that are read in a second, such as ``2GB``.
    """

    device: str | None = None
    count: int | None = None
    disk: str = "2GB"

    def __post_init__(self) -> None:
        parse_bytes(self.disk, "plan.disk")
        if self.count is not None and self.count < 1:
            raise ConfigError(f"plan.count must be null or at least 1, got {self.count}")
        if self.count is not None and self.device is None:
            raise ConfigError(
                f"plan.count={self.count} is of devices that plan.device names, such as "
                "plan.device=h100-80g; it is null for what is here"
            )

    @property
    def disk_speed(self) -> int:
        """Bytes a second."""
        return parse_bytes(self.disk, "plan.disk")


class Planner:
    """Plans a configuration.

    Args:
        config: whole, as ``pluribus serve`` or ``plan`` composes it.
        plugins: none of them broken.
        blueprint: of its model.

    Attributes:
        spread: overrides taken for granted, since devices would be idle without.
    """

    def __init__(self, config: DictConfig, plugins: Plugins, blueprint: Blueprint) -> None:
        self._plugins = plugins
        self._blueprint = blueprint
        self._here: Site | None = None
        self.spread = _spread(config, blueprint.spec.num_heads)
        self._config = OmegaConf.masked_copy(config, [key for key in SECTIONS if key in config])

    def plan(self, overrides: Sequence[str] = ()) -> Plan:
        """Return the plan with some overrides on top.

        Raises:
            ConfigError: a setting is wrong, or two parts do not fit together.
        """
        config = _with(self._config, overrides)
        if not any(override.startswith("parallel=") for override in overrides):
            config = _with(config, _spread(config, self._blueprint.spec.num_heads))
        outline = assembly.outline(config, self._plugins, self._blueprint)
        return make_plan(outline, self._site(config, outline))

    def changes(self, plan: Plan) -> Sequence[Change]:
        """Return what would make a plan fit, the smallest change first."""
        return changes_that_fit(plan, self.plan)

    def _site(self, config: DictConfig, outline: Outline) -> Site:
        settings = _settings(config)
        device = assembly.one_of(config, "device", assembly.DEVICES)
        if settings.device is None:
            # Once: what is free changes, and plans are compared.
            self._here = self._here or site_here(device)
            return self._here
        named = named_device(settings.device)
        if device not in ("auto", named.type):
            raise ConfigError(
                f"device={device} contradicts plan.device={named.name}: leave device at auto"
            )
        is_host = named.type == "cpu"
        count = settings.count or (1 if is_host else outline.num_ranks)
        return named_site(named.name, count)


def _settings(config: DictConfig) -> PlanConfig:
    """Return the ``plan`` section; what is served has none."""
    return conf.section(config, "plan", PlanConfig) if "plan" in config else PlanConfig()


def _spread(config: DictConfig, num_heads: int) -> tuple[str, ...]:
    """Return the overrides that use several devices, all if heads are enough, unless others do."""
    per_replica = (_settings(config).count or 1) // conf.replicas(config).replicas
    size = min(per_replica, num_heads)
    is_split = conf.choice(config, PARALLELISM.section) != "single"
    return () if size <= 1 or is_split else split_overrides(size)


def _with(config: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """Return the configuration with overrides of the kinds that ``changes_that_fit`` makes."""
    changed = config.copy()
    OmegaConf.set_struct(changed, False)
    for override in overrides:
        key, _, value = override.partition("=")
        if key == "parallel":
            changed.parallel = {"name": value, **asdict(conf.replicas(changed))}
        else:
            OmegaConf.update(changed, key, int(value) if value.isdecimal() else value)
    return changed
