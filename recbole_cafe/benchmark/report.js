"use strict";
// Tables: a click on a heading sorts, a second turns it round, a third gives back the order of the file.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], given = [...body.rows];
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => heading.firstElementChild.addEventListener("click", () => {
    const numeric = heading.dataset.numeric !== undefined;
    const orders = numeric ? ["descending", "ascending", "none"] : ["ascending", "descending", "none"];
    const now = orders[(orders.indexOf(heading.getAttribute("aria-sort")) + 1) % 3];
    for (const other of headings) other.setAttribute("aria-sort", other === heading ? now : "none");
    const sign = now === "ascending" ? 1 : -1;
    const value = row => row.cells[column].dataset.value;
    const rows = now === "none" ? given : [...given].sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === "" || y === "") return (x === "") - (y === "");  // what is missing stands last, either way
      return sign * (numeric ? x - y : x.localeCompare(y, undefined, { numeric: true }));
    });
    body.append(...rows);
  }));
}
// Figures: what a mark says when it is pointed at or reached with the keyboard.
const tip = document.createElement("div");
tip.className = "tip";
tip.hidden = true;
tip.setAttribute("role", "tooltip");
document.body.append(tip);
for (const mark of document.querySelectorAll("[data-tip]")) {
  mark.querySelector("title").remove();  // or the browser shows a second one
  const show = () => {
    tip.textContent = mark.dataset.tip;
    tip.hidden = false;
    const at = mark.getBoundingClientRect(), own = tip.getBoundingClientRect();
    const above = at.top - own.height - 8;
    tip.style.left = `${Math.max(4, Math.min(at.left + at.width / 2 - own.width / 2, innerWidth - own.width - 4))}px`;
    tip.style.top = `${above > 4 ? above : at.bottom + 8}px`;
  };
  const hide = () => { tip.hidden = true; };
  mark.addEventListener("pointerenter", show);
  mark.addEventListener("focus", show);
  mark.addEventListener("pointerleave", hide);
  mark.addEventListener("blur", hide);
}
addEventListener("keydown", event => { if (event.key === "Escape") tip.hidden = true; });
// Legends: a click on a name hides its lines.
for (const key of document.querySelectorAll(".key")) {
  key.addEventListener("click", () => {
    const shown = key.getAttribute("aria-pressed") !== "true";
    key.setAttribute("aria-pressed", shown);
    for (const line of key.closest("figure").querySelectorAll(`g[data-key="${key.dataset.key}"]`))
      line.toggleAttribute("hidden", !shown);
  });
}
