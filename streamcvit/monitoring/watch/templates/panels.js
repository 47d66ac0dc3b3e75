// What stands on the page, from the state alone.
const STATES = { starting: "Starting", running: "Running", paused: "Paused", stopped: "Stopped", failed: "Failed", finished: "Finished" };
const HUES = 7;
const look = () => {
  const names = state.run ? state.run.methods.map((m) => m.name) : [];
  let name = names.includes(ui.method) ? ui.method : names.includes(root.dataset.chosen) ? root.dataset.chosen : "";
  if (!name) {
    const under = state.run ? state.run.methods : [];
    name = ((["paused", "learning", "following", "scoring"].map((state) => under.find((m) => m.state === state)).find(Boolean) || [...under].reverse().find((m) => m.kind === "" && m.state === "finished") || under[0] || {}).name) || "";
  }
  const row = state.run && state.run.methods.find((m) => m.name === name);
  return { name, row, m: state.methods[name], now: (state.now && state.now.methods[name]) || {} };
};
const hue = (name) => {
  let used = 0;
  for (const one of state.run.methods) {
    const plain = one.kind === "";
    if (one.name === name) return one.kind === "untrained" ? "var(--untrained)" : one.kind === "bound" ? "var(--bound)" : `var(--hue${used % HUES})`;
    used += plain;
  }
  return "var(--ink)";
};
const mean = (values) => values.length ? values.reduce((a, b) => a + b, 0) / values.length : null;
const flat = (name) => state.methods[name] && !state.methods[name].chunks ? mean(Object.values(state.methods[name].zero).filter(known)) : null;
const markOf = (name) => Math.max(0, state.run.methods.findIndex((m) => m.name === name));
const alive = () => state.run && ["starting", "running", "paused"].includes(state.run.state);

const head = () => {
  const { run } = state, { name, row, m, now } = look();
  if (!run) return [h("div", { class: "top" }, h("h1", null, document.title), connection())];
  const pill = h("span", { class: `pill ${run.state}` }, h("i", { "aria-hidden": "true" }), STATES[run.state] || run.state);
  const links = h("nav", { class: "links", "aria-label": "More" },
    run.report && !ended() ? h("a", { href: "report.html", "data-act": "report" }, "Report") : null,
    h("button", { type: "button", "data-act": "theme", "aria-label": `Colours: ${ui.theme}` }, { auto: "◐", light: "☀", dark: "☾" }[ui.theme]),
    h("button", { type: "button", "data-act": "help", "aria-label": "Keys and what is shown" }, "?"));
  return [
    h("div", { class: "top" }, h("h1", null, run.name, pill), connection(), links),
    run.why ? h("p", { class: `why ${run.state}` }, run.why) : null,
    run.go_on ? h("p", { class: "why" }, "Go on: ", h("code", null, run.go_on)) : null,
    run.methods.length ? tabs(name) : null,
    row ? where(row, m, now) : h("p", { class: "none" }, run.state === "starting" ? "Making the stream ready. Scores appear here by themselves." : "Nothing has been learned here."),
  ];
};
const connection = () => {
  const live = link.open, since = link.lost ? clock(link.lost) : "";
  const text = ui.held ? "held still, p goes on" : live ? (alive() ? "live" : "up to date") : ended() ? "server gone, last state" : since ? `no connection since ${since}, trying again` : "connecting";
  return h("span", { class: `link ${live && !ui.held ? "on" : "off"}`, id: "link" }, h("i", { "aria-hidden": "true" }), text);
};
const tabs = (name) => h("div", { class: "tabs", role: "tablist", "aria-label": "Methods" }, state.run.methods.map((one, i) => {
  const now = (state.now && state.now.methods[one.name]) || {}, done = one.total ? Math.min(1, (now.position || 0) / one.total) : one.state === "finished" ? 1 : 0;
  return h("button", { type: "button", role: "tab", id: `tab-${i}`, "aria-selected": one.name === name, tabindex: one.name === name ? 0 : -1, "data-act": "method", "data-name": one.name, "data-key": one.name, vars: { "--c": hue(one.name), "--done": `${(100 * done).toFixed(1)}%` } },
    s("svg", { class: "key", viewBox: "0 0 12 12", "aria-hidden": "true" }, shape(i, 6, 6)), h("span", { class: "name" }, one.name),
    h("span", { class: "ap" }, known(one.ap) ? num(one.ap) : known(flat(one.name)) ? num(flat(one.name)) : one.state === "waiting" ? "waits" : "…"), h("span", { class: "done", "aria-hidden": "true" }));
}));
const where = (row, m, now) => {
  const position = now.position || 0, facts = [];
  if (row.total) {
    const chunk = row.state === "finished" || position >= row.total ? row.chunks : Math.min(row.chunk + 1, row.chunks);
    facts.push([`Chunk ${chunk}`, `of ${row.chunks}`], [`${Math.floor((100 * position) / row.total)} %`, `${count(position)} of ${count(row.total)} samples`]);
  } else facts.push(["Learns nothing", "scored once"]);
  if (known(now.rate) && alive()) facts.push([count(now.rate), "samples/s"]);
  if (alive() && state.now.left) facts.push([`≈ ${span(state.now.left)}`, "of learning left"]);
  if (!alive() || row.state !== "learning") facts.push([{ scoring: "Scoring", following: "Following", waiting: "Waiting", paused: "Paused", finished: "Done", learning: "" }[row.state], ""]);
  if (row.skipped) facts.push([String(row.skipped), row.skipped === 1 ? "step skipped" : "steps skipped"]);
  const ends = m && m.ends.length ? m.ends : row.total ? [row.total] : [];
  const bar = h("div", { class: "stream", role: "progressbar", "aria-label": "Stream", "aria-valuemin": 0, "aria-valuemax": row.total || 1, "aria-valuenow": row.total ? position : 1 },
    ends.map((end, k) => {
      const first = k ? ends[k - 1] : 0, share = Math.max(0, Math.min(1, (position - first) / Math.max(1, end - first)));
      const scored = now.lag && k < now.lag.scored;
      return h("i", { class: share >= 1 ? (scored ? "scored" : "learned") : share > 0 ? "under" : "", "data-tip": `chunk ${k + 1}: ${scored ? "learned and scored" : share >= 1 ? "learned, being scored" : share > 0 ? `${percent(share)} learned` : "to come"}`, vars: { "flex-grow": Math.max(1, end - first), "--share": `${(100 * share).toFixed(1)}%` } });
    }));
  return h("div", { class: "where", "data-key": "where" }, bar, h("p", { class: "facts" }, facts.filter((f) => f[0]).map(([big, small]) => h("span", null, h("b", null, big), small ? ` ${small}` : ""))));
};

const tile = (key, title, big, small, extra, level = "") => h("div", { class: `tile ${level}`, "data-key": key }, h("h2", null, title), h("p", { class: "big" }, big), h("p", { class: "small" }, small), extra);
const tiles = () => {
  const { m, now } = look(), worst = now.worst, curve = m.ap.filter(known), step = curve.length > 1 ? curve[curve.length - 1] - curve[curve.length - 2] : null;
  const ap = m.metrics.ap || [curve.length ? curve[curve.length - 1] : null], lost = worst && worst.lost > 0 ? m.lost[0] : null, lag = now.lag || {};
  const zero = Object.values(m.zero).filter(known), firing = state.alerts.filter((a) => a.firing && (!a.method || a.method === m.name));
  const first = curve.length ? null : mean(zero);
  return h("section", { class: "tiles", "aria-label": "At a glance", "data-key": "tiles" },
    tile("ap", "Average performance", known(first) ? num(first) : num(ap[0]), known(first) ? "before any learning" : [ap[2] > ap[1] ? range(ap[1], ap[2]) : "points", !known(step) ? "" : Math.abs(step) < 0.05 ? ", unchanged by the newest chunk" : h("span", { class: step < 0 ? "down" : "up" }, ` ${step < 0 ? "▼" : "▲"} ${signed(step)} by the newest chunk`)]),
    tile("worst", "Most forgotten", lost ? `−${num(lost.lost)}` : curve.length > 1 ? "nothing" : "–", lost ? [h("b", null, lost.task), known(lost.low) ? ` ${range(lost.low, lost.high)}${lost.sure ? ", for sure" : ", may be chance"}` : ""] : curve.length > 1 ? "every task stands at its best" : "tells after two chunks", null, lost && lost.sure ? "bad" : ""),
    tile("loss", "Loss before learning", num(now.loss, 3), m.loss.length && known(m.loss[m.loss.length - 1][2]) ? `nats; ${percent(m.loss[m.loss.length - 1][2])} right before learning` : "nats, on the newest samples"),
    tile("lag", "Scores behind the learner", lag.chunks ? plural(lag.chunks, "chunk") : known(lag.steps) && lag.steps ? plural(lag.steps, "step") : known(lag.steps) ? "none" : "–", known(lag.steps) ? `${lag.chunks && lag.steps ? `${plural(lag.steps, "step")}; ` : ""}${lag.scored} of ${m.chunks} chunks scored` : "no score yet", timeBar(m.waits), lag.chunks > 2 ? "warn" : ""),
    tile("alerts", "Alerts", firing.length ? String(firing.length) : "none", firing.length ? firing[0].summary || firing[0].name : state.alerts.length ? "none fires now" : "nothing to tell", null, firing.some((a) => a.severity === "critical") ? "bad" : firing.length ? "warn" : ""));
};
const timeBar = (waits) => {
  const names = { learn: "learning", ingest: "waiting for batches", evaluate: "waiting for evaluation", commit: "committing" };
  const all = Object.values(waits).reduce((a, b) => a + b, 0);
  if (!all) return null;
  const tip = "the newest chunk: " + Object.entries(names).filter(([k]) => waits[k]).map(([k, text]) => `${percent(waits[k] / all)} ${text}`).join(", ");
  return h("div", { class: "time", "data-tip": tip, role: "img", "aria-label": tip }, Object.keys(names).map((k) => h("i", { class: k, vars: { "flex-grow": waits[k] || 0 } })));
};

const card = (key, title, note, ...kids) => h("section", { class: `card ${key}`, id: key, "data-key": key, "aria-labelledby": `${key}-title` }, h("header", null, h("h2", { id: `${key}-title` }, title), note ? h("p", { class: "note" }, note) : null), kids);
const ordered = (m) => ui.sort === "worst" ? m.lost : [...m.lost].sort((a, b) => a.i - b.i);

const forgetting = () => {
  const { m } = look(), rows = ordered(m), most = Math.max(20, ...rows.map((r) => Math.abs(r.lost || 0)), ...rows.map((r) => r.sure && r.high || 0));
  const sort = h("button", { type: "button", class: "sort", "data-act": "sort", "aria-pressed": ui.sort === "worst" }, ui.sort === "worst" ? "Worst first" : "Stream order");
  const list = rows.map((r) => {
    const change = known(r.lost) ? -r.lost : null, open = ui.task === r.task, fell = known(r.lost) && r.lost > 0.05;
    const head = h("button", { type: "button", class: "row", "data-act": "task", "data-name": r.task, "aria-expanded": open },
      h("span", { class: "task" }, r.task),
      spark(m, r),
      whisker(r, most),
      h("span", { class: `change ${r.sure ? "sure" : fell ? "maybe" : change > 0.05 ? "up" : known(r.low) ? "" : "new"}` }, known(r.low) || change ? signed(change) : known(change) ? "new" : ""),
      h("span", { class: "pts" }, known(r.now) ? (fell ? [num(r.best, 0), h("span", { class: "arrow", "aria-label": "to" }, "→"), h("b", null, num(r.now, 0))] : ["at ", h("b", null, num(r.now, 0))]) : "to come"));
    return h("li", { "data-key": r.task, class: r.sure ? "sure" : "" }, head, open ? detail(m, r) : null);
  });
  return card("forgetting", "Forgetting", "Score over the stream; its best, its newest, and what lies between with its 95 % interval. Ticks below: chunks that trained it.",
    h("div", { class: "tools" }, sort), h("ol", { class: "lost" }, list));
};
const whisker = (r, most) => {
  const x = (v) => Math.max(0, Math.min(100, 100 * (v / most)));
  if (!known(r.lost) || r.lost <= 0.05) return h("span", { class: "meter" });
  const tip = `${r.task}: ${num(r.lost)} points below its best${known(r.low) ? `, 95 % interval ${range(r.low, r.high)}` : ""}`;
  return h("span", { class: `meter ${r.sure ? "sure" : ""}`, "data-tip": tip, vars: { "--lost": `${x(r.lost)}%`, "--low": `${x(r.low || 0)}%`, "--high": `${x(r.high || 0)}%` } }, h("i"), known(r.low) ? h("u") : null);
};
const detail = (m, r) => h("div", { class: "detail" },
  h("div", { "data-plot": "task", "data-name": r.task }),
  h("p", { class: "small" }, known(r.now) ? [
    `Newest ${num(r.now)} after chunk ${r.chunk + 1}`, r.at !== r.chunk ? `; best earlier ${num(r.best)} after chunk ${r.at + 1}` : "",
    known(r.low) ? `; between them ${num(r.lost)} points, 95 % interval ${range(r.low, r.high)}` : "",
    known(m.zero[r.task]) ? `; ${num(m.zero[r.task])} before any learning` : "",
    r.probe ? `; probe ${num(r.probe[0])}${known(r.probe[1]) ? ` (${range(r.probe[1], r.probe[2])})` : ""}` : "", "."] : "Not scored yet."));

const matrix = (wide) => {
  const { m, row } = look(), rows = ordered(m), n = m.cols.length, names = Math.min(wide < 560 ? 92 : 128, 12 + 7.4 * Math.max(4, ...m.tasks.map((t) => t.length)));
  const each = (wide - names - 8) / Math.max(1, n), narrow = each < 25, scroll = narrow && n <= 30, text = !narrow || scroll;
  const best = (i) => { const of = m.score[i].filter(known); return of.length ? Math.max(...of) : null; };
  const cell = (r, k) => {
    const v = m.score[r.i][k], share = m.plan[r.i][k], seen = m.plan[r.i].findIndex((p) => p > 0), waiting = seen >= 0 && k >= seen && m.cols[k] < row.chunk;
    const top = best(r.i), after = `${r.task} after chunk ${m.cols[k] + 1}`;
    const tip = known(v) ? `${after}: ${num(v)}${known(m.low[r.i][k]) ? ` (${range(m.low[r.i][k], m.high[r.i][k])})` : ", just in"}${top > v + 0.05 ? `; best ${num(top)}` : ""}${share > 0 ? `; ${percent(share)} of this chunk` : ""}` : `${after}: ${seen < 0 || k < seen ? "not seen yet" : waiting ? "being scored" : "to come"}${share > 0 ? `; ${percent(share)} of this chunk` : ""}`;
    const kind = [known(v) ? "heat" : waiting ? "soon" : "void", share > 0 ? "trained" : "", m.fresh[r.i][k] ? "fresh" : ""].filter(Boolean).join(" ");
    return h("td", { class: kind, tabindex: -1, "data-cell": `${r.i}.${k}`, "data-tip": tip, "aria-label": tip, vars: known(v) ? { "--p": Math.round(v) } : {} }, text && known(v) ? num(v, 0) : "");
  };
  const grid = h("table", { class: `matrix${text ? "" : " dense"}`, role: "grid", "aria-label": "Scores by task and chunk", vars: { "--name": `${names}px`, "--cell": scroll ? "26px" : `${Math.max(7, Math.min(44, each)).toFixed(2)}px` } },
    h("thead", null, h("tr", null, h("th", { scope: "col" }, h("span", null, "chunk")), m.cols.map((c, k) => h("th", { scope: "col", class: c === row.chunk && alive() ? "current" : "" }, text || k % Math.ceil(n / 12) === 0 ? c + 1 : "")))),
    h("tbody", null, rows.map((r) => h("tr", { "data-key": r.task }, h("th", { scope: "row", title: r.task }, r.task), m.cols.map((_, k) => cell(r, k)))),
      h("tr", { class: "sum", "data-key": "\nap" }, h("th", { scope: "row" }, "AP"), m.ap.map((v) => h("td", { class: known(v) ? "" : "void" }, known(v) && text ? num(v, 0) : "")))));
  return card("matrix", "Score matrix", "Points on each task's test set after each chunk. A bar below: the chunk trained this task.",
    n ? h("div", { class: "scroll", "data-newest": row.chunk, tabindex: -1 }, grid) : h("p", { class: "none" }, "This method learns nothing: it is scored once.", zeros(m)),
    n ? h("p", { class: "ramp", "aria-hidden": "true" }, "0", h("i"), "100", h("span", null, h("em", { class: "tr" }), "trained"), h("span", null, h("em", { class: "so" }), "being scored")) : null);
};
const zeros = (m) => Object.entries(m.zero).map(([task, v]) => h("span", { class: "chip" }, `${task} ${num(v, 0)}`));

const average = () => card("average", "Average over the stream", state.run.methods.length > 1 ? "Mean score of the tasks seen so far, every method; the one shown is bold." : "Mean score of the tasks seen so far.", h("div", { "data-plot": "ap" }));
const prequential = () => {
  const { m, now } = look();
  if (!m.chunks) return null;
  return card("loss", "Before learning", "Each batch is scored before it is learned: loss in nats, and below the share of samples that were right.", h("div", { "data-plot": "loss" }), h("div", { "data-plot": "right" }));
};
const experts = () => {
  const { m } = look(), banks = Object.entries(m.experts);
  if (!banks.length) return null;
  return card("experts", "Experts", "Share of the routes of each expert by chunk. One bright row alone: the bank has collapsed.", banks.map(([bank, one]) => {
    const top = Math.max(...one.share.flat(), 0.01), newest = one.share[one.share.length - 1], used = newest.map((_, e) => e).filter((e) => one.share.some((r) => r[e] >= 0.005));
    return h("div", { class: "bank", "data-key": bank }, h("h3", null, bank, h("span", null, `${one.used} of ${newest.length} in the newest chunk; evenness ${known(one.evenness) ? num(one.evenness, 2) : "–"}`)),
      h("table", { class: "routes", "aria-label": `Routes of the ${bank} bank` }, h("tbody", null, used.map((e) => h("tr", { "data-key": String(e) }, h("th", { scope: "row" }, e),
        one.share.map((r, k) => h("td", { "data-tip": `${bank} expert ${e}, chunk ${one.chunks[k] + 1}: ${percent(r[e])}`, vars: { "--p": Math.round(100 * r[e] / top) } })), h("td", { class: "tail" }, percent(newest[e])))))));
  }));
};
const drift = () => {
  const { m } = look();
  if (!Object.keys(m.drift).length) return null;
  return card("drift", "Drift", "How far routes and experts have moved from where they were when each task was last learned.", h("div", { "data-plot": "drift" }));
};
const SIGNS = { bad: "✕", warn: "▲", good: "✓", "": "·", critical: "✕", warning: "▲" };
const events = () => {
  const { m } = look(), lines = [...m.events].reverse().slice(0, ui.all ? 60 : 12);
  const fired = state.alerts.filter((a) => !a.method || a.method === m.name);
  const one = (at, level, text, what, key) => h("li", { class: level, "data-key": key }, h("i", { "aria-hidden": "true" }, SIGNS[level] || "·"), h("time", null, known(at) ? stamp(at) : ""), h("span", null, what ? h("b", null, what, " ") : null, text));
  return card("events", "Events and alerts", null,
    fired.length ? h("ul", { class: "told alerts" }, fired.map((a, k) => one(a.at, a.firing ? (a.severity === "critical" ? "bad" : "warn") : "good", a.firing ? a.summary : `${a.summary} (over)`, a.name.replace(/^Streamcvit/, ""), `a${k}${a.name}`))) : null,
    m.problems.length ? h("ul", { class: "told" }, m.problems.map((p, k) => one(null, "bad", p, "", `p${k}`))) : null,
    h("ul", { class: "told" }, lines.map((e, k) => one(e.at, e.level, e.text, "", `${e.at}${e.text}${k}`))),
    m.events.length > 12 ? h("button", { type: "button", class: "more", "data-act": "all" }, ui.all ? "Fewer" : `All ${m.events.length}`) : null);
};
const stamp = (at) => { const day = new Date(1000 * at), today = new Date(); return (day.toDateString() === today.toDateString() ? "" : `${day.getFullYear()}-${String(day.getMonth() + 1).padStart(2, "0")}-${String(day.getDate()).padStart(2, "0")} `) + clock(at); };

// Charts are drawn for the width that their place has.
const plots = {
  ap: (wide) => {
    const chosen = look().name, all = state.run.methods.map((one) => ({ one, m: state.methods[one.name] })).filter(({ m }) => m);
    const chunks = Math.max(1, ...all.map(({ m }) => m.chunks));
    const series = all.map(({ one, m }) => {
      const once = m.chunks <= 1 && chunks > 1, values = m.ap.filter(known), zero = Object.values(m.zero).filter(known);
      const level = values.length ? values[values.length - 1] : mean(zero);
      const points = once || !m.chunks ? (known(level) ? [[0, level], [chunks, level]] : []) : m.cols.map((c, k) => [c + 1, m.ap[k]]);
      return { name: one.name, points, hue: hue(one.name), mark: markOf(one.name), bold: one.name === chosen, dash: one.kind !== "" };
    }).filter((one) => one.points.some((p) => known(p[1]))).sort((a, b) => a.bold - b.bold);
    return chart(wide, { series, chunks, top: 100, label: "Average performance", unit: " points" });
  },
  task: (wide, name) => {
    const { m, name: method } = look(), i = m.tasks.indexOf(name), points = m.cols.map((c, k) => [c + 1, m.score[i][k]]);
    const series = [{ name: "score", points, hue: hue(method), mark: 0, bold: true, dots: true, band: m.cols.map((c, k) => [c + 1, m.low[i][k], m.high[i][k]]) }];
    const probes = m.probes[name] || [];
    if (probes.length) series.push({ name: "probes", points: probes.map((p) => [p[0], p[1]]), hue: "var(--probe)", mark: 3, dash: true });
    return chart(wide, { series, chunks: Math.max(1, m.chunks), top: 100, high: 150, label: name, unit: " points" });
  },
  loss: (wide) => curve(wide, 1, { digits: 1, high: 160, label: "Loss before learning", unit: " nats" }),
  right: (wide) => curve(wide, 2, { top: 100, high: 110, label: "Right before learning", unit: " %" }, 100),
  drift: (wide) => {
    const { m } = look(), series = [];
    Object.entries(m.drift).forEach(([bank, of], b) => Object.entries(of).forEach(([what, rows], k) => series.push({ name: `${bank} ${what}`, points: rows.map(([c, v]) => [c + 1, v]), hue: `var(--hue${(2 * b + k) % HUES})`, mark: 2 * b + k, dash: k > 0, bold: true, dots: rows.length < 40 })));
    return chart(wide, { series, chunks: Math.max(1, m.chunks), high: 170, digits: 1, label: "Drift" });
  },
};
const curve = (wide, column, more, times = 1) => {
  const { m, name, now } = look(), points = m.loss.map((p) => [p[0], known(p[column]) ? times * p[column] : null]);
  if (column === 1 && now.tail && m.ends.length) for (const [at, loss] of now.tail) {
    const k = m.ends.findIndex((end) => at <= end), first = k > 0 ? m.ends[k - 1] : 0;
    if (k >= 0) points.push([k + (at - first) / Math.max(1, m.ends[k] - first), loss]);
  }
  return chart(wide, { series: [{ name, points, hue: hue(name), mark: markOf(name), bold: true }], chunks: Math.max(1, m.chunks), ...more });
};

const foot = () => state.run ? [h("span", null, state.run.folder), h("span", null, "? lists the keys")] : [];
const help = () => {
  const keys = [["1 – 9", "a method"], ["[  ]", "the method before, the next one"], ["j  k", "down and up the tasks"], ["Enter", "open or close a task"], ["s", "worst first, or the stream's order"], ["m", "into the score matrix; arrows move in it"], ["e", "events"], ["p", "hold still, go on"], ["t", "colours: as the system, light, dark"], ["r", "the report, once the run has ended"], ["?", "this"], ["Esc", "close"]];
  const words = [["Forgetting", "Best earlier score of a task less its newest, in points of 100. The interval takes the two scores as independent, which is wider than the report's. “For sure”: it lies above 0."], ["Average performance", "Mean score of the tasks that the stream has shown, after a chunk."], ["Probes", "Scores on a few test samples between chunks; they never enter the matrix."], ["Before learning", "The stream's own samples, scored before the learner learns them, once."], ["Scores behind", "Chunks learned and not scored yet, and optimizer steps since the newest score."]];
  return [h("h2", { id: "help-title" }, "Keys"), h("dl", { class: "keys" }, keys.map(([key, what]) => [h("dt", null, h("kbd", null, key)), h("dd", null, what)])), h("h2", null, "Words"), h("dl", null, words.map(([word, what]) => [h("dt", null, word), h("dd", null, what)])), h("button", { type: "button", "data-act": "close" }, "Close")];
};
