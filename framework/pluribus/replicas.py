"""Several engines of one configuration, and what each of them is told."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import OmegaConf

from pluribus.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaConfig:
    """The settings of the ``parallel`` section that every kind has.

    Attributes:
        replicas: engines behind the one front, each with all of the model.
        replica: which of them an engine is, counted from 0. The front says it, not the user.
    """

    replicas: int = 1
    replica: int = 0

    def __post_init__(self) -> None:
        if self.replicas < 1:
            raise ConfigError(f"parallel.replicas must be at least 1, got {self.replicas}")
        if not 0 <= self.replica < self.replicas:
            raise ConfigError(
                f"parallel.replica must be from 0 to {self.replicas - 1}, got {self.replica}"
            )


ALONE = ReplicaConfig()


def engine_configs(config: str, num_replicas: int) -> list[str]:
    """Return the configuration, in YAML, of each replica's engine."""
    configs = []
    for replica in range(num_replicas):
        own = OmegaConf.create(config)
        OmegaConf.update(own, "parallel.replica", replica)
        configs.append(OmegaConf.to_yaml(own))
    return configs
