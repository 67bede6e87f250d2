"""What requests carry."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from .input_schemas import RUN_INPUT, RUN_OPTIONS

Text = Annotated[str, Field(min_length=1, max_length=200)]
Mapping = dict[str, Any]
RunOptions = Annotated[Mapping, WithJsonSchema(RUN_OPTIONS)]


class Body(BaseModel):
    """Unknown fields are refused."""

    model_config = ConfigDict(extra="forbid")


class SessionCreate(Body):
    """The arguments of `open_session` that make sense from afar. The tenant is the key's."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"agent_id": "reviewer", "context": {"system_prompt": "You are terse."}}]},
    )

    agent_id: Text = "agent"
    provider: Text | None = None
    """A provider or a router; none: the runtime's default."""
    context: Mapping = Field(default_factory=dict)
    metadata: Mapping = Field(default_factory=dict)
    tags: list[Text] = Field(default_factory=list[str], max_length=100)
    parent_session_id: Text | None = None
    tools: list[Annotated[str, Field(pattern=r"^[\w.]+:\w+$", max_length=200)]] = Field(default_factory=list[str])
    """`package.module:function` each."""
    max_concurrent_runs: Annotated[int, Field(ge=1, le=1_000)] = 1
    max_queued_runs: Annotated[int, Field(ge=0, le=100_000)] = 100
    run_defaults: RunOptions = Field(default_factory=dict)
    budget: Mapping | None = None


class RunCreate(Body):
    """One run."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"input": "Hello!", "options": {"deadline_s": 60}}]}
    )

    input: Annotated[str | Mapping, WithJsonSchema(RUN_INPUT)]
    options: RunOptions = Field(default_factory=dict)


class Steering(Body):
    """A message for a run that is under way."""

    message: Annotated[str, Field(pattern=r"\S")]


class Reason(Body):
    """Why something is done."""

    reason: Text | None = None


class DecisionOnCall(Body):
    """What is to become of a tool call that waits."""

    decision: Annotated[str, Field(pattern="^(approve|deny)$")]
    reason: Text | None = None
