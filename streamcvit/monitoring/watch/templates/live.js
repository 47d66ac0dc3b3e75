// The state, what the server says of it, and drawing it again.
const root = document.documentElement, $ = (id) => document.getElementById(id);
const state = { run: null, now: null, alerts: [], methods: {} };
const ui = { method: "", sort: "worst", task: "", cell: "", theme: "auto", all: false, held: false };
const link = { open: false, lost: 0, heard: Date.now(), last: root.dataset.last };
const ended = () => !link.open && state.run && !alive();

const take = (parts) => {
  for (const [name, value] of Object.entries(parts)) {
    if (!name.startsWith("m/")) state[name] = value;
    else if (value === null) delete state.methods[name.slice(2)];
    else state.methods[name.slice(2)] = value;
  }
};

let drawn = "";
const render = () => {
  const { name, m, row } = look();
  const there = document.activeElement, cell = there && there.dataset.cell;
  morphKids($("head"), head());
  const main = $("main"), wide = main.clientWidth - 2 * parseFloat(getComputedStyle(main).paddingLeft);
  if (m && row) {
    const both = wide >= 1040, room = (both ? wide - 16 - forgettingWidth(m, wide) : wide) - 2 * (wide < 560 ? 14 : 20);
    main.style.setProperty("--left", both ? `${forgettingWidth(m, wide)}px` : "100%");
    const side = (key, ...cards) => h("div", { class: "side", "data-key": key }, cards);
    morphKids(main, [tiles(), side("left", forgetting(), average(), events()), side("right", matrix(room), prequential(), experts(), drift())]);
    for (const plot of main.querySelectorAll("[data-plot]")) {
      const svg = plots[plot.dataset.plot](Math.max(240, plot.clientWidth), plot.dataset.name);
      morphKids(plot, [svg]);
    }
    const scroll = main.querySelector(".matrix .scroll"), seen = `${name} ${row.chunk}`;
    if (scroll && scroll.scrollWidth > scroll.clientWidth && drawn !== seen) scroll.scrollLeft = newestLeft(scroll, m, row);
    drawn = seen;
    const first = main.querySelector(".matrix [data-cell]");
    if (first && !main.querySelector(".matrix [data-cell][tabindex='0']")) first.tabIndex = 0;
    if (cell && document.activeElement !== there) toCell(...cell.split("."));
  } else if (state.run) morphKids(main, [state.run.methods.length ? null : waiting()].filter(Boolean));
  morphKids($("foot"), foot());
  titled(row, m);
};
const forgettingWidth = (m, wide) => Math.round(Math.max(440, Math.min(wide * 0.5, wide - 16 - (168 + 26 * m.cols.length))));
const newestLeft = (scroll, m, row) => scroll.scrollWidth * Math.max(0, (m.cols.findIndex((c) => c >= row.chunk - 1) + 2) / (m.cols.length + 4)) - scroll.clientWidth * 0.72;
const waiting = () => h("p", { class: "none", "data-key": "waiting" }, alive() ? "Waiting for the first chunk." : "This folder holds nothing that was learned.");

let said = "";
const titled = (row, m) => {
  if (!state.run) return;
  const now = row && state.now && state.now.methods[row.name], share = now && row.total ? `${Math.floor((100 * now.position) / row.total)} % ` : "";
  document.title = `${alive() ? share : state.run.state === "finished" ? "✓ " : "■ "}${state.run.name}`;
  const worst = m && m.lost.find((r) => r.sure), scored = m ? m.ap.filter(known).length : 0;
  const text = scored ? `${row.name}: ${scored} chunks scored, average ${num(m.ap.filter(known).pop())}${worst ? `, ${worst.task} has lost ${num(worst.lost)} points` : ""}` : "";
  if (text !== said) $("said").textContent = said = text;
};

// The browser connects again by itself when a connection breaks, and is helped where it gives up: after an answer that is
// none, or when nothing was heard for a while (a machine that slept).
let source = null, again = 0;
const connect = () => {
  clearTimeout(again);
  if (source) source.close();
  source = new EventSource(`events?after=${encodeURIComponent(link.last)}`);
  source.onopen = () => { link.open = true; link.lost = 0; link.heard = Date.now(); edition(); render(); };
  source.onmessage = (event) => {
    link.heard = Date.now();
    link.last = event.lastEventId;
    take(JSON.parse(event.data));
    if (!ui.held) render();
  };
  source.addEventListener("beat", () => { link.heard = Date.now(); });
  source.onerror = () => {
    if (link.open) { link.open = false; link.lost = Date.now() / 1000; render(); }
    if (source.readyState === EventSource.CLOSED) again = setTimeout(connect, ended() ? 10000 : 2000);
  };
};
setInterval(() => { if (link.open && Date.now() - link.heard > 16000) { link.open = false; link.lost = Date.now() / 1000; render(); connect(); } }, 4000);
// A server of another version has another page: it is loaded once the connection is there again.
let first = true;
const edition = () => {
  if (first) { first = false; return; }
  fetch("edition").then((answer) => answer.text()).then((text) => { if (text && text !== root.dataset.edition) location.reload(); }, () => {});
};

recall();
listen();
take(JSON.parse($("state").textContent));
render();
connect();
