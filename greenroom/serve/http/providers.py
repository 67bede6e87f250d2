"""Routes of providers, their accounts, and budgets."""

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter
from starlette.responses import JSONResponse, Response

from ...domain.api_key import Scope
from ...domain.budget import BudgetState
from ...domain.budget_scopes import RUNTIME, tenant_scope
from .caller import Admin, Reader
from .openapi import problems
from .records import BudgetList, ProviderList, StatsRecord
from .service import TheService

router = APIRouter(prefix="/v1", tags=["runtime"], responses=problems())


@router.get("/providers", response_model=ProviderList)
async def list_providers(key: Reader, service: TheService) -> Response:
    """The providers that runs may name, without their options, and how their accounts are."""
    found = await service.runtime.aproviders()
    accounts = await service.runtime.aaccounts()
    items = [
        {
            "name": name,
            "kind": declared.kind,
            "account": asdict(accounts[name]) if name in accounts else None,
        }
        for name, declared in sorted(found.items())
    ]
    return JSONResponse({"items": items})


@router.get("/budgets", response_model=BudgetList)
async def list_budgets(key: Reader, service: TheService) -> Response:
    """What the runtime and the tenant may use, and have used. Those of the runtime only for keys with the scope admin:
    they tell of other tenants."""
    found = await service.runtime.abudgets()
    visible = [tenant_scope(key.tenant), *([RUNTIME] if key.allows(Scope.ADMIN) else [])]
    return JSONResponse({"items": [_budget(scope, found[scope]) for scope in visible if scope in found]})


def _budget(scope: str, state: BudgetState) -> dict[str, Any]:
    limits = {name: value for name, value in asdict(state.options).items() if value is not None}
    spent = {
        "cost_usd": state.spent_usd,
        "reserved_usd": state.reserved_usd,
        "total_tokens": state.spent_tokens,
        "reserved_tokens": state.reserved_tokens,
    }
    return {"scope": scope, "limits": limits, "spent": spent}


@router.get("/stats", response_model=StatsRecord)
async def show_stats(key: Admin, service: TheService) -> Response:
    """How much there is, over all tenants."""
    stats = await service.runtime.astats()
    return JSONResponse({name: getattr(stats, name) for name in StatsRecord.model_fields})
