"""The configuration of a runtime: greenroom.toml in the working directory, then the environment, then arguments."""

import difflib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError as PydanticError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from ..domain.budget_options import BudgetOptions
from ..domain.budget_scopes import RUNTIME, project_scope, tenant_scope
from ..domain.errors import ValidationError
from ..domain.placement import SessionLimits
from ..domain.policy import parse_policy, preflight
from ..domain.provider import ProviderDeclaration
from ..domain.routing import RouterOptions
from ..domain.run_input import MAX_INPUT_BYTES
from ..domain.sharding import MAX_SHARDS
from ..domain.slots import SlotLimits
from .data_dir import MEMORY_DATA_DIR
from .http_settings import HttpGrant, HttpSettings
from .option_parsing import parse_options
from .providers.registry import BUILT_IN_DECLARATIONS, declaration
from .store_options import MEBIBYTE, StoreOptions

_STORE = StoreOptions()

AtLeastOne = Annotated[int, Field(ge=1)]

CONFIG_FILE = "greenroom.toml"


class ScopeLimits(BaseModel):
    """What holds for all runs of a tenant, or of a project."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    policy: dict[str, Any] | None = None
    """A policy that each of its runs has, beside its own."""
    budget: BudgetOptions | None = None
    """What all of them may use together."""


class Limits(BaseModel):
    """Bounds on what callers may send."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_input_bytes: int = Field(default=MAX_INPUT_BYTES, ge=1)
    """Largest input of one run, in bytes."""
    running_runs_per_provider: dict[str, AtLeastOne] = Field(default_factory=dict[str, AtLeastOne])
    """Runs under way at once on a provider, by its name."""
    running_runs_per_tenant: int | None = Field(default=None, ge=1)
    """Runs under way at once for each tenant."""
    live_sessions_per_provider: dict[str, AtLeastOne] = Field(default_factory=dict[str, AtLeastOne])
    """Sessions on servers at once whose default provider this is, by its name; others wait in line."""
    live_sessions_per_tenant: int | None = Field(default=None, ge=1)
    """Sessions on servers at once of each tenant; others wait in line."""
    budget: BudgetOptions | None = None
    """What all runs of the runtime may use together."""
    tenants: dict[str, ScopeLimits] = Field(default_factory=dict[str, ScopeLimits])
    """By the `tenant` in the metadata of a session."""
    projects: dict[str, ScopeLimits] = Field(default_factory=dict[str, ScopeLimits])
    """By the `project` in the metadata of a session."""

    def scopes(self) -> dict[str, ScopeLimits]:
        """All of them, by the names of scopes."""
        return {
            RUNTIME: ScopeLimits(budget=self.budget),
            **{tenant_scope(name): limits for name, limits in self.tenants.items()},
            **{project_scope(name): limits for name, limits in self.projects.items()},
        }


class RetentionSettings(BaseModel):
    """Which sessions are deleted by themselves."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ended_after_s: float = Field(gt=0)
    """Sessions that ended longer ago than this are deleted, with all traces."""
    statuses: tuple[Literal["completed", "failed", "cancelled"], ...] = ("completed", "failed", "cancelled")
    """Of those, the ones that ended in one of these."""


class EventStoreSettings(BaseModel):
    """The event store. Sizes in bytes, times in seconds; the meaning of each is in StoreOptions."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shards: int | None = Field(default=None, ge=1, le=MAX_SHARDS)
    """How many stores share the sessions; None: as many as the data_dir has, else one. Changing it moves sessions."""
    min_free_bytes: int = Field(default=_STORE.min_free_bytes, ge=0)
    reserve_bytes: int = Field(default=_STORE.reserve_bytes, ge=0)
    max_memory_bytes: int = Field(default=_STORE.max_memory_bytes, ge=64 * MEBIBYTE)
    spill_bytes: int = Field(default=_STORE.spill_bytes, ge=1024)
    max_artifact_bytes: int = Field(default=_STORE.max_artifact_bytes, ge=1)
    prune_streamed_after_s: float | None = Field(default=None, ge=0)
    idempotency_keys_s: float = Field(default=_STORE.idempotency_keys_s, gt=0)
    query_timeout_s: float = Field(default=_STORE.query_timeout_s, gt=0)
    retention: RetentionSettings | None = None

    def options(self) -> StoreOptions:
        """What each store is opened with."""
        return StoreOptions(**self.model_dump(exclude={"shards", "retention"}))


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
    routers: dict[str, dict[str, Any]] = Field(default_factory=dict[str, dict[str, Any]])
    """Routers by name: `providers` (in the order of preference), `strategy`, `weights`, `max_attempts`, `sticky_ttl_s`,
    `all_open`. Their names are used where providers' are."""
    warm_pool: int = Field(default=1, ge=0)
    """Session servers that are kept started for sessions to come."""
    idle_after_s: float = Field(default=60.0, gt=0)
    """A session with nothing to do leaves its server after this long; the next call brings it back."""
    max_live_actors: int | None = Field(default=None, ge=1)
    """Session servers at once, those kept warm among them; None: as many as Ray has memory for."""
    max_live_sessions: int | None = Field(default=None, ge=1)
    """Sessions on servers at once; others wait in line until one has nothing to do."""
    max_running_runs: int | None = Field(default=None, ge=1)
    """Runs under way at once over all sessions; others wait in line, by priority."""
    sessions_per_actor: int = Field(default=1, ge=1)
    """How many sessions share a server, of those whose providers start no processes."""
    lease_s: float = Field(default=10.0, ge=0.5)
    """A server that does not answer for this long is taken for dead, and its sessions go on elsewhere."""
    approval_expires_s: float = Field(default=3600.0, gt=0)
    """A tool call that waits for a person is denied after this long."""
    placement_labels: dict[str, str] = Field(default_factory=dict[str, str])
    """Labels that a node must have for session servers, in Ray's words: {"region": "in(eu, us)"}."""
    limits: Limits = Field(default_factory=Limits)
    http: HttpSettings = Field(default_factory=HttpSettings)
    event_store: EventStoreSettings = Field(default_factory=EventStoreSettings)

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

    @model_validator(mode="after")
    def _pool_fits(self) -> Self:
        if self.max_live_actors is not None and self.warm_pool > self.max_live_actors:
            raise ValueError(f"warm_pool is {self.warm_pool}, and max_live_actors {self.max_live_actors} counts it")
        return self

    def slot_limits(self) -> SlotLimits:
        """How many runs may be under way at once."""
        return SlotLimits(
            total=self.max_running_runs,
            per_provider=self.limits.running_runs_per_provider,
            per_tenant=self.limits.running_runs_per_tenant,
            budgets={name: limits.budget for name, limits in self.limits.scopes().items() if limits.budget is not None},
        )

    def scope_policies(self) -> dict[str, dict[str, Any]]:
        """The policies of tenants and projects by the names of scopes, checked."""
        policies = {name: one.policy for name, one in self.limits.scopes().items() if one.policy is not None}
        for name, policy in policies.items():
            kind, _, scope = name.partition(":")
            preflight([parse_policy(policy, field=f"limits.{kind}s.{scope}.policy")])
        return policies

    def session_limits(self) -> SessionLimits:
        """How many sessions may be on servers at once."""
        return SessionLimits(
            total=self.max_live_sessions,
            per_provider=self.limits.live_sessions_per_provider,
            per_tenant=self.limits.live_sessions_per_tenant,
        )

    @property
    def is_memory(self) -> bool:
        return self.data_dir == MEMORY_DATA_DIR

    def declarations(self) -> dict[str, ProviderDeclaration]:
        """The declared providers, checked."""
        return {name: declaration(name, declared) for name, declared in self.providers.items()}

    def router_options(self) -> dict[str, RouterOptions]:
        """The declared routers, checked."""
        known = {*BUILT_IN_DECLARATIONS, *self.providers}
        return {name: _router(name, declared, known) for name, declared in self.routers.items()}


def _router(name: str, declared: Mapping[str, Any], known: Collection[str]) -> RouterOptions:
    field = f"routers.{name}"
    if name in known:
        raise ValidationError(
            f"{field}: there is a provider of this name; give the router another.", details={"field": field}
        )
    try:
        router = parse_options(RouterOptions, declared, field=field)
    except ValidationError as exc:
        at_fault = str(exc.details.get("field"))
        if at_fault.startswith(field):
            raise
        raise ValidationError(f"{field}.{exc.message}", details={"field": f"{field}.{at_fault}"}) from None
    for provider in router.providers:
        if provider not in known:
            near = difflib.get_close_matches(provider, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"declared are: {', '.join(sorted(known))}."
            raise ValidationError(
                f"{field}.providers: {provider!r} is not declared; {hint}", details={"field": f"{field}.providers"}
            )
    return router


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


def _fields_at(path: Sequence[str]) -> Collection[str]:
    """The names that are known there."""
    model: type[BaseModel] = Settings
    for name in path:
        candidates = (Limits, ScopeLimits, HttpSettings, HttpGrant, EventStoreSettings, RetentionSettings)
        annotation = str(model.model_fields[name].annotation) if name in model.model_fields else ""
        model = next((candidate for candidate in candidates if candidate.__name__ in annotation), model)
    return model.model_fields


def _refusal(exc: PydanticError) -> ValidationError:
    first = exc.errors(include_url=False, include_input=False)[0]
    path = [str(part) for part in first["loc"]]
    where = ".".join(path)
    if first["type"] == "extra_forbidden":
        known = _fields_at(path[:-1])
        near = difflib.get_close_matches(path[-1], known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are: {', '.join(sorted(known))}."
        return ValidationError(f"{where} is not known; {hint}", details={"field": where, "nearest": near})
    return ValidationError(f"{where}: {first['msg']}.", details={"field": where})
