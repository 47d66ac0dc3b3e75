"use strict";
(() => {
  const root = document.documentElement;
  root.classList.add("js");

  // Hover and focus texts: plain text only, so nothing that data holds can become markup.
  const tip = document.getElementById("tip");
  const show = (owner, x, y) => {
    tip.replaceChildren();
    owner.dataset.tip.split("\n").forEach((line, i) => {
      const parts = line.split("\t");
      const row = document.createElement(i === 0 ? "strong" : "div");
      if (i > 0 && parts.length === 3) {
        if (parts[0]) {
          const key = document.createElement("i");
          key.className = parts[0];
          row.append(key);
        }
        for (const text of parts.slice(1)) {
          const cell = document.createElement("span");
          cell.textContent = text;
          row.append(cell);
        }
      } else {
        row.textContent = line;
      }
      tip.append(row);
    });
    tip.hidden = false;
    const box = tip.getBoundingClientRect();
    tip.style.left = Math.max(6, Math.min(x + 14, innerWidth - box.width - 8)) + "px";
    tip.style.top = (y + box.height + 24 > innerHeight ? y - box.height - 12 : y + 16) + "px";
  };
  const hide = () => { tip.hidden = true; };
  document.addEventListener("pointermove", (event) => {
    const owner = event.target.closest ? event.target.closest("[data-tip]") : null;
    if (owner && owner.dataset.tip) show(owner, event.clientX, event.clientY); else hide();
  });
  document.addEventListener("scroll", hide, { passive: true, capture: true });
  document.addEventListener("pointerleave", hide);

  for (const chip of document.querySelectorAll(".chip")) {
    chip.addEventListener("click", () => {
      const off = root.classList.toggle("off" + chip.dataset.run);
      chip.setAttribute("aria-pressed", String(!off));
    });
  }

  for (const tabs of document.querySelectorAll(".tabs")) {
    const buttons = [...tabs.querySelectorAll("[role=tab]")];
    const choose = (button) => {
      for (const other of buttons) {
        const chosen = other === button;
        other.setAttribute("aria-selected", String(chosen));
        other.tabIndex = chosen ? 0 : -1;
        document.getElementById(other.getAttribute("aria-controls")).hidden = !chosen;
      }
    };
    buttons.forEach((button, i) => {
      button.addEventListener("click", () => choose(button));
      button.addEventListener("keydown", (event) => {
        const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
        if (step) {
          const next = buttons[(i + step + buttons.length) % buttons.length];
          choose(next);
          next.focus();
        }
      });
    });
    choose(buttons.find((button) => button.getAttribute("aria-selected") === "true") || buttons[0]);
  }

  // On paper everything is open.
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    for (const details of opened) details.open = true;
  });
  addEventListener("afterprint", () => {
    for (const details of opened) details.open = false;
  });

  for (const button of document.querySelectorAll("button.copy")) {
    button.addEventListener("click", async () => {
      const text = button.parentElement.querySelector("pre").textContent;
      try {
        await navigator.clipboard.writeText(text);
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(button.parentElement.querySelector("pre"));
        button.textContent = "Selected: press Ctrl+C";
      }
    });
  }
})();
