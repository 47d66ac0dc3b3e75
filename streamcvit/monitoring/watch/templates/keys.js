// What keys and pointers do. Everything that a pointer can do, a key can do.
const keep = () => { try { sessionStorage.setItem("streamcvit", JSON.stringify({ method: ui.method, sort: ui.sort, task: ui.task })); localStorage.setItem("streamcvit.theme", ui.theme); } catch { /* a browser that keeps nothing */ } };
const recall = () => {
  try {
    Object.assign(ui, JSON.parse(sessionStorage.getItem("streamcvit") || "{}"));
    ui.theme = localStorage.getItem("streamcvit.theme") || "auto";
  } catch { /* the same */ }
  root.dataset.theme = ui.theme;
};
const change = (more) => { Object.assign(ui, more); root.dataset.theme = ui.theme; keep(); render(); };
const acts = {
  method: (name) => change({ method: name, task: "" }),
  sort: () => change({ sort: ui.sort === "worst" ? "stream" : "worst" }),
  task: (name) => change({ task: ui.task === name ? "" : name }),
  theme: () => change({ theme: { auto: "light", light: "dark", dark: "auto" }[ui.theme] || "auto" }),
  all: () => change({ all: !ui.all }),
  help: () => { const box = $("help"); morphKids(box, help()); if (!box.open) box.showModal(); },
  close: () => $("help").close(),
};
const nextMethod = (by) => {
  const names = state.run.methods.map((m) => m.name), at = names.indexOf(look().name);
  if (names.length) acts.method(names[(at + by + names.length) % names.length]);
};
const nextTask = (by) => {
  const rows = [...document.querySelectorAll(".lost .row")], at = rows.indexOf(document.activeElement);
  const row = rows[at < 0 ? (by > 0 ? 0 : rows.length - 1) : Math.max(0, Math.min(rows.length - 1, at + by))];
  if (row) row.focus();
};
const toCell = (i, k) => {
  const cell = document.querySelector(`.matrix [data-cell="${i}.${k}"]`);
  if (!cell) return;
  ui.cell = cell.dataset.cell;
  cell.focus();
  cell.scrollIntoView({ block: "nearest", inline: "nearest" });
};
const intoMatrix = () => {
  const { m, row } = look();
  if (!m || !m.cols.length) return;
  const newest = Math.max(0, m.cols.findIndex((c) => c >= row.chunk - 1));
  const [i, k] = ui.cell ? ui.cell.split(".").map(Number) : [ordered(m)[0].i, newest];
  toCell(Math.min(i, m.tasks.length - 1), Math.min(k, m.cols.length - 1));
};
const moveCell = (down, right) => {
  const { m } = look(), order = ordered(m).map((r) => r.i), [i, k] = document.activeElement.dataset.cell.split(".").map(Number);
  toCell(order[Math.max(0, Math.min(order.length - 1, order.indexOf(i) + down))], Math.max(0, Math.min(m.cols.length - 1, k + right)));
};
const ARROWS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1], Home: [0, -1e6], End: [0, 1e6] };
const onKey = (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || $("help").open) return;
  const here = document.activeElement, key = event.key, done = () => event.preventDefault();
  if (here && here.dataset.cell && ARROWS[key]) { moveCell(...ARROWS[key]); return done(); }
  if (here && here.getAttribute("role") === "tab" && (key === "ArrowLeft" || key === "ArrowRight")) {
    nextMethod(key === "ArrowLeft" ? -1 : 1);
    const tab = document.querySelector('[role=tab][aria-selected="true"]');
    if (tab) tab.focus();
    return done();
  }
  if (key >= "1" && key <= "9") { const one = state.run && state.run.methods[+key - 1]; if (one) acts.method(one.name); return done(); }
  if (key === "Escape") { tipOff(); if (ui.task) change({ task: "" }); return; }
  const act = {
    "?": acts.help, t: acts.theme, s: acts.sort, p: () => { ui.held = !ui.held; render(); }, "[": () => nextMethod(-1), "]": () => nextMethod(1),
    j: () => nextTask(1), k: () => nextTask(-1), m: intoMatrix, e: () => { const at = $("events"); if (at) { at.tabIndex = -1; at.focus(); at.scrollIntoView({ block: "start" }); } },
    r: () => { const to = document.querySelector('[data-act="report"]'); if (to) to.click(); },
  }[key];
  if (act && state.run) { act(); done(); }
};

// What lies under the pointer, or has the focus, said in words.
const tipOn = (owner, x, y) => {
  const tip = $("tip");
  tip.textContent = owner.dataset.tip;
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  tip.style.left = Math.max(6, Math.min(x + 14, innerWidth - box.width - 8)) + "px";
  tip.style.top = Math.max(6, y + box.height + 24 > innerHeight ? y - box.height - 12 : y + 16) + "px";
};
const tipOff = () => { $("tip").hidden = true; };
const listen = () => {
  document.addEventListener("click", (event) => {
    const owner = event.target.closest("[data-act]");
    if (owner && acts[owner.dataset.act]) acts[owner.dataset.act](owner.dataset.name);
    else if (event.target.closest("[data-cell]")) toCell(...event.target.closest("[data-cell]").dataset.cell.split("."));
  });
  document.addEventListener("keydown", onKey);
  document.addEventListener("pointermove", (event) => {
    const owner = event.target.closest && event.target.closest("[data-tip]");
    if (owner) tipOn(owner, event.clientX, event.clientY); else if (!document.activeElement.dataset.cell) tipOff();
  }, { passive: true });
  document.addEventListener("focusin", (event) => {
    if (!event.target.dataset || !event.target.dataset.tip) return tipOff();
    const box = event.target.getBoundingClientRect();
    tipOn(event.target, box.right, box.bottom);
  });
  document.addEventListener("scroll", tipOff, { passive: true, capture: true });
  document.addEventListener("pointerleave", tipOff);
  let wait = 0, wide = innerWidth;
  addEventListener("resize", () => { if (innerWidth === wide) return; wide = innerWidth; clearTimeout(wait); wait = setTimeout(render, 80); });
};
