/** What the server is, holds and does now. */
import { text } from "../api.js";
import { html, useEffect, useSignal } from "../h.js";
import { number, percent, shortHash, siteInWords } from "../format.js";
import { models, saes, variants, vectors } from "../server.js";
import { Term } from "../components/term.js";

const EVERY_MS = 2000;
const COUNTERS = /** @type {const} */ ({
  running: "vllm:num_requests_running",
  waiting: "vllm:num_requests_waiting",
  tokens: "vllm:generation_tokens_total",
  cache: "vllm:kv_cache_usage_perc",
  queued: "saeclamp_requests_waiting",
  features: "saeclamp_features_in_use",
  failures: "saeclamp_failures_total",
  firings: "saeclamp_rule_firings_total",
  started: "saeclamp_start_time_seconds",
});
const REFUSED = /^saeclamp_refusals_total\{code="([^"]+)"\} (\S+)$/gm;
const BUILD = /^saeclamp_build_info\{([^}]*)\}/m;
const CODES = /** @type {Record<string, string>} */ ({
  invalid_request: "malformed",
  invalid_steering: "steering malformed or contradictory",
  unknown_sae: "no such SAE",
  unknown_feature: "no such feature",
  feature_out_of_range: "index outside the SAE",
  dose_too_large: "dose too large",
  unknown_vector: "no such vector",
  model_not_found: "no such model or variant",
  variant_changed: "variant made for other weights",
  body_too_large: "body too large",
  invalid_api_key: "no key, or a wrong one",
  invalid_vector: "unusable vector",
  steering_busy: "busy, to be tried again",
  server_stopping: "about to stop",
  steering_not_applied: "not applied",
});

/** @param {string} metrics @returns {Record<string, string>} */
function versionsIn(metrics) {
  const labels = BUILD.exec(metrics)?.[1] ?? "";
  return Object.fromEntries([...labels.matchAll(/(\w+)="([^"]*)"/g)].map(([, name, value]) => [name, value]));
}

/** @param {number} seconds */
function durationInWords(seconds) {
  const [days, hours, minutes] = [seconds / 86400, seconds / 3600, seconds / 60].map(Math.floor);
  if (days > 0) return `${days} d ${hours % 24} h`;
  return hours > 0 ? `${hours} h ${minutes % 60} min` : minutes > 0 ? `${minutes} min` : `${Math.floor(seconds)} s`;
}

/** Add up a metric over its labels. @param {string} metrics @param {string} name */
function total(metrics, name) {
  const lines = metrics.split("\n").filter((line) => line.startsWith(`${name}{`) || line.startsWith(`${name} `));
  return lines.length ? lines.reduce((sum, line) => sum + Number(line.slice(line.lastIndexOf(" "))), 0) : null;
}

export function Server() {
  const now = useSignal(/** @type {Record<string, number | null>} */ ({}));
  const refused = useSignal(/** @type {[string, number][]} */ ([]));
  const rate = useSignal(/** @type {number | null} */ (null));
  const versions = useSignal(/** @type {Record<string, string>} */ ({}));
  useEffect(() => {
    let last = /** @type {{tokens: number, at: number} | null} */ (null);
    const look = async () => {
      const metrics = await text("metrics").catch(() => null);
      if (metrics === null) return;
      now.value = Object.fromEntries(Object.entries(COUNTERS).map(([key, name]) => [key, total(metrics, name)]));
      versions.value = versionsIn(metrics);
      refused.value = [...metrics.matchAll(REFUSED)].map(([, code, count]) => [code, Number(count)]);
      const at = performance.now();
      const tokens = now.value.tokens ?? 0;
      if (last) rate.value = Math.max(0, (1000 * (tokens - last.tokens)) / (at - last.at));
      last = { tokens, at };
    };
    look();
    const timer = setInterval(look, EVERY_MS);
    return () => clearInterval(timer);
  }, []);
  const model = models.value[0];
  const { version, ...others } = versions.value;
  const software = [
    `saeclamp ${version ?? "of an unknown version"}`,
    ...Object.entries(others).map(([name, value]) => `${name} ${value}`),
  ];
  const { data, sites, max_vectors } = vectors.value;
  const uploaded = sites.length
    ? `${data.length} uploaded; each site holds ${max_vectors}: ${sites.map(siteInWords).join(", ")}.`
    : "This server takes none.";
  return html`<div class="stack">
    <h2>Now</h2>
    <dl class="figures">
      ${[
        ["requests in flight", number(now.value.running)],
        ["waiting for the engine", number(now.value.waiting)],
        ["waiting for features", number(now.value.queued)],
        ["tokens a second", number(rate.value)],
        ["KV cache in use", percent(now.value.cache)],
        ["features in use", number(now.value.features)],
        ["failed after being accepted", number(now.value.failures)],
        ["rules that held", number(now.value.firings ?? 0)],
      ].map(
        ([name, value]) =>
          html`<div>
            <dt>${name}</dt>
            <dd>${value}</dd>
          </div>`,
      )}
    </dl>
    <h2>Model</h2>
    <p>
      ${model?.id}, up to ${model?.max_model_len} tokens. Also answers to
      ${variants.value.length === 1 ? "one variant" : `${variants.value.length} variants`}.
    </p>
    <p class="quiet">
      ${software.join(", ")}${now.value.started ? `; answers for ${durationInWords(Date.now() / 1000 - now.value.started)}` : ""}.
    </p>
    <h2>SAEs</h2>
    <div class="two">${saes.value.map((sae) => html`<${SAE} sae=${sae} />`)}</div>
    <h2>Vectors</h2>
    <p>${uploaded}</p>
    <h2>What it refuses</h2>
    <ul>
      <li>A request whose steering cannot be applied as asked: no answer, rather than an unsteered one.</li>
      <li>
        Edits longer than its largest dose, features and SAEs that it has not, and misspelt fields, with what was meant.
      </li>
      <li>More than it has room for: then it says after how long to try again.</li>
    </ul>
    ${
      refused.value.length > 0 &&
      html`<p class="quiet">
        Refused since it started, previews of this page among them:
        ${refused.value.map(([code, count]) => `${CODES[code] ?? code} ${count}`).join(", ")}.
      </p>`
    }
  </div>`;
}

/** @param {{sae: any}} props */
function SAE({ sae }) {
  const fit = sae.fit ?? {};
  const [reads, writes] = [sae.reads, sae.writes].map((sites) => sites.map(siteInWords).join(", "));
  const about = `${sae.d_sae} features (${sae.architecture} ${sae.kind}), read ${reads}${reads === writes ? "" : `, written ${writes}`}`;
  return html`<section class="card stack">
    <h3>${sae.name}</h3>
    <p>${about}.</p>
    <dl class="cost">
      <div>
        <dt><${Term} name="explained variance here" /></dt>
        <dd>${percent(fit.explained_variance)}</dd>
      </div>
      <div>
        <dt>active at a token</dt>
        <dd>${number(fit.l0)}</dd>
      </div>
      <div>
        <dt>stream's length</dt>
        <dd>${number(sae.resid_norm)}</dd>
      </div>
      <div>
        <dt>sha256</dt>
        <dd class="mono" title=${sae.sha256}>${shortHash(sae.sha256)}</dd>
      </div>
    </dl>
    ${fit.problem && html`<p class="bad-text">${fit.problem}</p>`}
    ${sae.labels && html`<p class="quiet">Labelled on ${sae.labels.num_tokens.toLocaleString()} tokens, ${sae.labels.date}.</p>`}
    ${sae.approximation && html`<p class="quiet">Approximation: ${sae.approximation}</p>`}
  </section>`;
}
