"use strict";
function sortBy(button) {
  const head = button.closest("th"), table = head.closest("table"), body = table.tBodies[0];
  const column = head.cellIndex, numeric = head.classList.contains("number");
  const before = head.getAttribute("aria-sort");
  // numbers start with the largest, words with A
  const rising = before ? before === "descending" : !numeric;
  const value = row => {
    const cell = row.cells[column];
    return numeric ? (cell.dataset.value === undefined ? null : Number(cell.dataset.value)) : cell.textContent.trim();
  };
  const compare = (a, b) => {
    const x = value(a), y = value(b);
    if (x === null || y === null) return (x === null) - (y === null);  // what is missing stays last
    const order = numeric ? x - y : x.localeCompare(y, "en", { numeric: true });
    return rising ? order : -order;
  };
  const rows = Array.from(body.rows).sort(compare);
  for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", rising ? "ascending" : "descending");
  body.append(...rows);
}
for (const button of document.querySelectorAll("table.sortable thead button"))
  button.addEventListener("click", () => sortBy(button));
