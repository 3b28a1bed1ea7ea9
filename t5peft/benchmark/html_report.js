"use strict";
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => sort(table, heads, column)));
}
// Numbers by number with the missing ones last, text by text; the first click puts the highest number first.
function sort(table, heads, column) {
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const numeric = rows.some((row) => row.cells[column]?.dataset.value !== undefined);
  const first = numeric ? "descending" : "ascending";
  const other = numeric ? "ascending" : "descending";
  const order = heads[column].getAttribute("aria-sort") === first ? other : first;
  const sign = order === "ascending" ? 1 : -1;
  const key = (row) => row.cells[column]?.dataset.value;
  rows.sort((a, b) => {
    if (!numeric) return sign * a.cells[column].textContent.localeCompare(b.cells[column].textContent);
    if (key(a) === undefined || key(b) === undefined) return (key(a) === undefined) - (key(b) === undefined);
    return sign * (Number(key(a)) - Number(key(b)));
  });
  heads.forEach((head) => head.removeAttribute("aria-sort"));
  heads[column].setAttribute("aria-sort", order);
  body.append(...rows);
}
