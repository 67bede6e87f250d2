"""The names of the scopes of budgets and policies, the widest first."""

RUNTIME = "runtime"
SESSION = "session"


def tenant_scope(tenant: str) -> str:
    """Of all runs of a tenant."""
    return f"tenant:{tenant}"


def project_scope(project: str) -> str:
    """Of all runs of a project."""
    return f"project:{project}"


def scopes_of(tenant: str | None, project: str | None) -> tuple[str, ...]:
    """Those that the runs of a session with this tenant and project are in."""
    named = ((tenant, tenant_scope), (project, project_scope))
    return (RUNTIME, *(scope(name) for name, scope in named if name))
