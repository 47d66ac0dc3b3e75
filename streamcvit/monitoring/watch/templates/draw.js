// Lines and heat. Sparklines stretch to their cell; their dots are round caps that do not stretch with them.
const line = (points) => {
  let path = "", pen = false;
  for (const [x, y] of points) {
    if (!known(y)) { pen = false; continue; }
    path += `${pen ? "L" : "M"}${x.toFixed(2)} ${y.toFixed(2)}`;
    pen = true;
  }
  return path;
};
const dot = (x, y, name) => s("path", { class: `dot ${name}`, d: `M${x.toFixed(2)} ${y.toFixed(2)}h0` });

// A task's score over the stream: line, best (ring), newest (dot), probes since, and below when it was trained.
const spark = (m, row, wide = 200, high = 40) => {
  const { score, cols, plan, chunks } = m, mine = score[row.i] || [];
  const x = (place) => 4 + (wide - 8) * (chunks > 1 ? place / chunks : 0.5), y = (v) => 4 + (high - 12) * (1 - v / 100);
  const at = cols.map((c) => x(c + 1));
  const parts = [s("path", { class: "rule", d: `M0 ${y(0)}H${wide}` })];
  plan[row.i].forEach((share, k) => {
    if (share > 0) parts.push(s("path", { class: "trained", d: `M${at[k].toFixed(2)} ${high - 1}v${-(2 + 3 * share).toFixed(2)}` }));
  });
  parts.push(s("path", { class: "line", d: line(mine.map((v, k) => [at[k], known(v) ? y(v) : null])) }));
  if (known(row.now)) {
    const probes = (m.probes[row.task] || []).filter(([place]) => place > row.chunk + 1);
    if (probes.length) {
      parts.push(s("path", { class: "line probe", d: line([[x(row.chunk + 1), y(row.now)], ...probes.map((p) => [x(p[0]), y(p[1])])]) }));
      const [place, value, low, up] = probes[probes.length - 1];
      if (known(low) && known(up)) parts.push(s("path", { class: "whisker", d: `M${x(place)} ${y(low)}V${y(up)}` }));
      parts.push(dot(x(place), y(value), "probe"));
    }
    if (row.at !== row.chunk && row.lost > 0) parts.push(dot(x(row.at + 1), y(row.best), "best"), dot(x(row.at + 1), y(row.best), "hole"));
    parts.push(dot(x(row.chunk + 1), y(row.now), "now"));
  }
  return s("svg", { class: "spark", viewBox: `0 0 ${wide} ${high}`, preserveAspectRatio: "none", "aria-hidden": "true" }, parts);
};

const ticks = (low, high, n = 4) => {
  if (!(high > low)) high = low + 1;
  const rough = (high - low) / n, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((k) => k * power).find((k) => k >= rough * 0.999);
  const found = [];
  for (let v = Math.floor(low / step + 1e-9) * step; v < high + step * 0.999; v += step) found.push(+v.toFixed(10));
  return found;
};

// Curves over the stream, drawn for a width in pixels. series: {name, points [[place in chunks, value]], hue, mark, bold, dash, band}.
const chart = (wide, { series, chunks, low = 0, top = null, digits = 0, high = 190, unit = "", label = "" }) => {
  const values = series.flatMap((one) => one.points.map((p) => p[1]).filter(known));
  if (!values.length) return h("p", { class: "none" }, "Nothing yet.");
  const marks = ticks(low === null ? Math.min(...values) : low, top === null ? Math.max(...values) : top);
  const [bottom, ceil] = [marks[0], marks[marks.length - 1]];
  const named = series.length > 1, left = 38, most = wide > 480 ? 18 : 12, right = named && wide > 360 ? 16 + Math.ceil(6.6 * Math.min(most, Math.max(...series.map((one) => one.name.length)))) : 14, above = 10, below = 26;
  const x = (place) => left + (wide - left - right) * (chunks > 0 ? place / chunks : 0.5);
  const y = (v) => above + (high - above - below) * (1 - (v - bottom) / (ceil - bottom));
  const parts = marks.map((v) => [
    s("path", { class: "grid", d: `M${left} ${y(v)}H${wide - right}` }),
    s("text", { x: left - 6, y: y(v) + 4, "text-anchor": "end" }, num(v, Math.max(digits, v % 1 ? 1 : 0))),
  ]);
  const every = Math.max(1, Math.ceil(chunks / Math.max(2, Math.floor((wide - left - right) / 36))));
  for (let c = every; c <= chunks; c += every) parts.push(s("text", { x: x(c), y: high - 8, "text-anchor": "middle" }, c));
  parts.push(s("text", { x: left - 6, y: high - 8, "text-anchor": "end" }, "chunk"));
  const ends = [];
  for (const one of series) {
    const group = s("g", { class: `series${one.bold ? " bold" : ""}${one.dash ? " dash" : ""}`, vars: { "--c": one.hue } });
    if (one.band) group.append(...one.band.filter((b) => known(b[1]) && known(b[2])).map(([p, lo, up]) => s("path", { class: "whisker", d: `M${x(p)} ${y(Math.max(bottom, lo))}V${y(Math.min(ceil, up))}` })));
    group.append(s("path", { class: "curve", d: line(one.points.map(([p, v]) => [x(p), known(v) ? y(v) : null])) }));
    if (one.dots) group.append(...one.points.filter((p) => known(p[1])).map(([p, v]) => shape(one.mark, x(p), y(v))));
    const last = [...one.points].reverse().find((p) => known(p[1]));
    if (last) { group.append(shape(one.mark, x(last[0]), y(last[1]))); ends.push({ one, x: x(last[0]), y: y(last[1]), v: last[1] }); }
    parts.push(group);
  }
  if (named && wide > 360) {
    ends.sort((a, b) => a.y - b.y);
    let free = above;
    for (const end of ends) {
      const place = Math.max(end.y, free);
      free = place + 14;
      const text = end.one.name.length > most ? end.one.name.slice(0, most - 1) + "…" : end.one.name;
      parts.push(s("text", { class: `end${end.one.bold ? " bold" : ""}`, x: wide - right + 8, y: place + 4, vars: { "--c": end.one.hue } }, text));
    }
  }
  const said = `${label}: ` + ends.map((end) => `${end.one.name} ${num(end.v, 1)}${unit}`).join(", ");
  return s("svg", { class: "chart", width: wide, height: high, viewBox: `0 0 ${wide} ${high}`, role: "img", "aria-label": said }, parts);
};
const shape = (mark, x, y) => {
  const kinds = [
    () => s("circle", { class: "mark", cx: x, cy: y, r: 3.2 }),
    () => s("rect", { class: "mark", x: x - 2.9, y: y - 2.9, width: 5.8, height: 5.8 }),
    () => s("path", { class: "mark", d: `M${x} ${y - 3.9}L${x + 3.7} ${y + 2.7}H${x - 3.7}Z` }),
    () => s("path", { class: "mark", d: `M${x} ${y - 4.2}L${x + 3.6} ${y} ${x} ${y + 4.2} ${x - 3.6} ${y}Z` }),
  ];
  return kinds[(mark || 0) % 4]();
};
