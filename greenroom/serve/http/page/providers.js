// The provider accounts and the budgets of the tenant, asked for while they are looked at.

import { asText, bytes, count, duration, money, words } from "./format.js";
import { Icon } from "./icons.js";
import { html, useEffect, useState } from "./preact.js";

const EVERY_MS = 3_000;
const REFUSALS = [401, 403, 404]; // the key may not ask, or there is no such thing

const SHOWN = new Set(["provider", "state", "failures", "under_way", "waiting", "retry_in_s", "wait_reason"]);

const BREAKER = {
  closed: ["good", "closed"],
  half_open: ["warn", "half open"],
  open: ["bad", "open"],
};

export function ProvidersView({ tenant }) {
  const providers = usePolled(tenant, "providers");
  const budgets = usePolled(tenant, "budgets");
  const stats = usePolled(tenant, "stats");
  return html`<main class="page" tabindex="-1">
    <header class="page-head">
      <h1>Providers</h1>
      <p>The accounts that runs are sent to: whether they may be asked, and who waits.</p>
    </header>
    <${Stats} stats=${stats} />
    ${!providers && html`<p class="empty">Loading…</p>`}
    ${providers?.items.length === 0 && html`<p class="empty">No provider is declared.</p>`}
    <ul
      class="cards"
      aria-label="Providers"
    >
      ${providers?.items.map((one) => html`<${Provider} key=${one.name} provider=${one} />`)}
    </ul>
    ${
      budgets?.items?.length > 0 &&
      html`<header class="page-head"><h2>Budgets</h2></header>
        <ul
          class="cards"
          aria-label="Budgets"
        >
          ${budgets.items.map((one) => html`<${Budget} key=${one.scope} budget=${one} />`)}
        </ul>`
    }
  </main>`;
}

/** The newest answer; null before the first, and where the key may not ask or there is nothing to ask. */
function usePolled(tenant, name) {
  const [answer, setAnswer] = useState(null);
  useEffect(() => {
    let timer = null;
    let isOver = false;
    const ask = async () => {
      if (tenant.refused.has(name)) return;
      try {
        if (!document.hidden) setAnswer(await tenant.api.get(name));
      } catch (problem) {
        if (REFUSALS.includes(problem.status)) tenant.refused.add(name);
      }
      if (!isOver) timer = setTimeout(ask, EVERY_MS);
    };
    ask();
    return () => {
      isOver = true;
      clearTimeout(timer);
    };
  }, [tenant, name]);
  return answer;
}

function Provider({ provider }) {
  const { account } = provider;
  const [tone, text] = account ? (BREAKER[account.state] ?? ["", words(account.state)]) : ["", "not asked yet"];
  return html`<li class="card" data-testid="provider" data-provider=${provider.name}>
    <header>
      <h2>${provider.name}</h2>
      <code class="note">${provider.kind}</code>
      <span class="spring"></span>
      <span class="badge" data-tone=${tone} title="Circuit breaker">${account ? `breaker ${text}` : text}</span>
    </header>
    ${
      account
        ? html`<${Account}
          account=${account}
        />`
        : html`<p class="note">No run has gone there since the service began.</p>`
    }
  </li>`;
}

function Account({ account }) {
  const cooldown = account.retry_in_s > 0 ? duration(account.retry_in_s * 1000) : null;
  return html`<div class="sums">
      <div><b>${count(account.under_way)}</b><span>under way</span></div>
      <div><b>${count(account.waiting)}</b><span>waiting</span></div>
      <div title="Failures, one after the other, up to now">
        <b data-tone=${account.failures ? "bad" : ""}>${count(account.failures)}</b>
        <span>${account.failures === 1 ? "failure" : "failures"}</span>
      </div>
    </div>
    ${
      (account.wait_reason || cooldown) &&
      html`<p class="wait">
        <${Icon} name="clock" />
        ${account.wait_reason ? words(account.wait_reason) : "cooling down"}${cooldown && `, again in ${cooldown}`}
      </p>`
    }
    <${Others} account=${account} />`;
}

/** What else the service tells of the account, such as its limits of a minute. */
function Others({ account }) {
  const entries = Object.entries(account).filter(([name, value]) => value !== null && !SHOWN.has(name));
  if (!entries.length) return null;
  return html`<dl>
    ${entries.map(([name, value]) => html`<dt key=${name}>${words(name)}</dt><dd>${asText(value)}</dd>`)}
  </dl>`;
}

function Budget({ budget }) {
  const spent = budget.spent ?? {};
  const limits = budget.limits ?? {};
  const { max_cost_usd: usd, max_total_tokens: tokens } = limits;
  const spentUsd = spent.cost_usd ?? 0;
  const spentTokens = spent.total_tokens ?? 0;
  const reserved = [
    spent.reserved_usd > 0 && money(spent.reserved_usd),
    spent.reserved_tokens > 0 && `${count(spent.reserved_tokens)} tokens`,
  ].filter(Boolean);
  return html`<li class="card" data-testid="budget" data-scope=${budget.scope}>
    <header>
      <h3>${budget.scope}</h3>
      <span class="spring"></span>
      ${limits.on_violation && html`<span class="badge">then ${words(limits.on_violation)}</span>`}
    </header>
    ${
      usd != null &&
      html`<${Meter}
        used=${spentUsd}
        limit=${usd}
        label=${`Money of ${budget.scope}`}
        text=${`${money(spentUsd)} of ${money(usd)}`}
      />`
    }
    ${
      tokens != null &&
      html`<${Meter}
        used=${spentTokens}
        limit=${tokens}
        label=${`Tokens of ${budget.scope}`}
        text=${`${count(spentTokens)} of ${count(tokens)} tokens`}
      />`
    }
    ${reserved.length > 0 && html`<p class="note">${reserved.join(", ")} set aside for runs under way</p>`}
  </li>`;
}

function Meter({ used, limit, label, text }) {
  const share = limit > 0 ? Math.min(1, Math.max(0, used / limit)) : 1;
  const tone = share >= 1 ? "bad" : share > 0.8 ? "warn" : "good";
  return html`<div class="meter">
    <div
      class="meter-track"
      role="meter"
      aria-label=${label}
      aria-valuemin="0"
      aria-valuemax="100"
      aria-valuenow=${Math.round(share * 100)}
      aria-valuetext=${text}
    >
      <div class="meter-fill" data-tone=${tone} style=${{ width: `${share * 100}%` }}></div>
    </div>
    <span>${text}</span>
  </div>`;
}

/** Of the whole runtime; only keys of administrators get any. */
function Stats({ stats }) {
  if (!stats) return null;
  const shown = Object.entries(stats).filter(([, value]) => typeof value === "number");
  const textOf = (name, value) => (name === "bytes" ? bytes(value) : count(value));
  return html`<div class="sums wide" role="group" aria-label="The whole runtime">
    ${shown.map(
      ([name, value]) => html`<div key=${name}><b>${textOf(name, value)}</b><span>${words(name)}</span></div>`,
    )}
  </div>`;
}
