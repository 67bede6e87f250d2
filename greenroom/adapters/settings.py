"""The configuration of a runtime: greenroom.toml in the working directory, then the environment, then arguments."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError as PydanticError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from ..domain.errors import ValidationError
from ..domain.provider import ProviderDeclaration
from ..domain.run_input import MAX_INPUT_BYTES
from .providers.registry import declaration

MEMORY_DATA_DIR = ":memory:"
CONFIG_FILE = "greenroom.toml"


class Limits(BaseModel):
    """Bounds on what callers may send."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_input_bytes: int = Field(default=MAX_INPUT_BYTES, ge=1)
    """Largest input of one run, in bytes."""


class Settings(BaseSettings):
    """What a runtime is started with. Secrets are given as names of environment variables or files, never here."""

    model_config = SettingsConfigDict(
        env_prefix="GREENROOM_",
        env_nested_delimiter="__",
        toml_file=CONFIG_FILE,
        extra="forbid",
        frozen=True,
    )

    data_dir: str = "./.greenroom"
    """Where everything is kept; ':memory:' for throw-away use."""
    ray_address: str | None = None
    """Address of a Ray cluster to use; None: the one that this process is connected to, else a new local one."""
    providers: dict[str, dict[str, Any]] = Field(default_factory=dict[str, dict[str, Any]])
    default_provider: str = "scripted"
    limits: Limits = Field(default_factory=Limits)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    @property
    def is_memory(self) -> bool:
        return self.data_dir == MEMORY_DATA_DIR

    def declarations(self) -> dict[str, ProviderDeclaration]:
        """The declared providers, checked."""
        return {name: declaration(name, declared) for name, declared in self.providers.items()}


def load_settings(config: Mapping[str, Any] | Settings | None, overrides: Mapping[str, Any]) -> Settings:
    """The settings from all sources. ValidationError names the key, and the nearest right one if it is unknown."""
    if isinstance(config, Settings):
        config = config.model_dump(exclude_unset=True)
    given = {**(config or {}), **overrides}
    if isinstance(given.get("data_dir"), Path):
        given["data_dir"] = str(given["data_dir"])
    try:
        return Settings(**given)
    except PydanticError as exc:
        raise _refusal(exc) from None
    except ValueError as exc:  # the TOML file or an environment variable that cannot be read
        raise ValidationError(f"The configuration cannot be read: {exc}.", details={"field": CONFIG_FILE}) from exc


def _refusal(exc: PydanticError) -> ValidationError:
    first = exc.errors(include_url=False, include_input=False)[0]
    path = [str(part) for part in first["loc"]]
    where = ".".join(path)
    if first["type"] == "extra_forbidden":
        known = Limits.model_fields if len(path) > 1 else Settings.model_fields
        near = difflib.get_close_matches(path[-1], known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are: {', '.join(sorted(known))}."
        return ValidationError(f"{where} is not known; {hint}", details={"field": where, "nearest": near})
    return ValidationError(f"{where}: {first['msg']}.", details={"field": where})
