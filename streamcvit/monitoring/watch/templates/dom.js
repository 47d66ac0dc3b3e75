// Elements from plain values. Text is only ever text: no name that data holds can become markup.
const SVG = "http://www.w3.org/2000/svg";
const fill = (node, attrs, kids) => {
  for (const [name, value] of Object.entries(attrs || {})) {
    if (value === null || value === undefined || (value === false && !name.startsWith("aria-"))) continue;
    if (name === "vars") for (const [key, one] of Object.entries(value)) node.style.setProperty(key, one);
    else node.setAttribute(name, value === true && !name.startsWith("aria-") ? "" : String(value));
  }
  for (const kid of kids.flat(Infinity)) if (kid !== null && kid !== undefined && kid !== false && kid !== "") node.append(kid);
  return node;
};
const h = (tag, attrs, ...kids) => fill(document.createElement(tag), attrs, kids);
const s = (tag, attrs, ...kids) => fill(document.createElementNS(SVG, tag), attrs, kids);

// Make `old` look like `fresh` and change only what differs: focus, scroll and selection stay where they are.
const morph = (old, fresh) => {
  if (old.nodeType !== 1) { if (old.data !== fresh.data) old.data = fresh.data; return; }
  for (const { name } of [...old.attributes]) if (!fresh.hasAttribute(name)) old.removeAttribute(name);
  for (const { name, value } of fresh.attributes) {
    if (old.getAttribute(name) === value) continue;
    if (name === "style") old.style.cssText = value; else old.setAttribute(name, value); // the policy allows no style in markup
  }
  if (old.hasAttribute("data-plot")) return; // drawn for its own width
  morphKids(old, [...fresh.childNodes]);
};
const morphKids = (parent, fresh) => {
  const keyed = new Map();
  for (const kid of parent.childNodes) if (kid.dataset && kid.dataset.key) keyed.set(kid.dataset.key, kid);
  let at = parent.firstChild;
  for (const want of fresh.filter(Boolean)) {
    const key = want.dataset && want.dataset.key;
    let have = key ? keyed.get(key) : at;
    if (have && !key && have.dataset && have.dataset.key) have = null;
    if (have && have.nodeName === want.nodeName) {
      if (have !== at) parent.insertBefore(have, at); else at = at.nextSibling;
      morph(have, want);
    } else {
      parent.insertBefore(want, at);
    }
  }
  while (at) { const next = at.nextSibling; at.remove(); at = next; }
};

// Numbers for people: a true minus sign, a dash where there is none.
const known = (x) => x !== null && x !== undefined;
const num = (x, digits = 1) => known(x) ? x.toFixed(digits).replace("-", "−") : "–";
const signed = (x, digits = 1) => !known(x) ? "–" : Math.abs(x) < 0.05 ? "0" : (x > 0 ? "+" : "") + num(x, digits);
const count = (x) => known(x) ? String(Math.round(x)).replace(/\B(?=(\d{3})+$)/g, "\u202f") : "–";
const plural = (n, one, more) => `${count(n)} ${n === 1 ? one : more || one + "s"}`;
const range = (low, high) => known(low) && known(high) ? `${num(low)} to ${num(high)}` : "";
const percent = (x) => known(x) ? `${Math.round(100 * x)} %` : "–";
const clock = (seconds) => new Date(1000 * seconds).toTimeString().slice(0, 8);
const span = (seconds) => {
  const all = Math.max(0, Math.round(seconds));
  if (all < 90) return `${all} s`;
  if (all < 5400) return `${Math.round(all / 60)} min`;
  return all < 172800 ? `${Math.floor(all / 3600)} h ${Math.round((all % 3600) / 60)} min` : `${Math.round(all / 86400)} days`;
};
