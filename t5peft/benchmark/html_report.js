"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const axisText = Object.fromEntries(data.axes.map((axis) => [axis.name, axis.text]));
const MORE_IS_BETTER = ["score", "tokens_per_second"];
const dark = matchMedia("(prefers-color-scheme: dark)");
const labels = [...new Set(data.charts.flatMap((task) =>
  [task.rows, task.curves ?? [], task.sweep ?? [], task.sensitivity ?? []].flat().map((row) => row.label)))];
const LINES = 8; // a plot with more of them cannot be read
const SHAPES = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left"];
const COLORS = ["#4c78a8", "#f58518", "#54a24b", "#e45756", "#9a6bb5", "#2aa198", "#d6729b", "#a0785a", "#7f8c2f", "#6b7c8c"];
const value = (id, otherwise) => document.getElementById(id)?.value ?? otherwise;
const boxes = [...document.querySelectorAll("input[name=method]")];
const chosen = () => new Set(boxes.filter((box) => box.checked).map((box) => box.value));

// --- tables

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

// --- charts

function config() {
  const ink = dark.matches ? "#e4e4e4" : "#24292f", line = dark.matches ? "#4a4f55" : "#d8dbe0";
  return {
    background: "transparent", font: "system-ui, sans-serif", view: { stroke: line },
    axis: { labelColor: ink, titleColor: ink, gridColor: line, domainColor: line, tickColor: line, gridOpacity: 0.6,
      labelFontSize: 11, titleFontSize: 12, titleFontWeight: 500, labelOverlap: true },
    text: { color: ink },
  };
}
const identity = {
  color: { field: "label", type: "nominal", legend: null, scale: { domain: labels, range: labels.map((_, i) => COLORS[i % COLORS.length]) } },
  shape: { field: "label", type: "nominal", legend: null, scale: { domain: labels, range: labels.map((_, i) => SHAPES[i % SHAPES.length]) } },
};
// Names at the points of one layer, which keep out of each other's way; a name without room is left out, and hovering shows it.
const names = (layer, ...lines) => (spec) => ({
  ...spec,
  marks: [...spec.marks, {
    type: "text", interactive: false, from: { data: `layer_${layer}_marks` }, zindex: 2,
    encode: { enter: { text: { field: "datum.label" }, fontSize: { value: 11 }, fill: { value: config().text.color } } },
    transform: [{ type: "label", size: { signal: "[width, height]" }, padding: 0, avoidBaseMark: true, avoidMarks: lines,
      anchor: ["right", "left", "top", "bottom", "top-right", "bottom-right", "top-left", "bottom-left"],
      offset: [6, 6, 4, 4, 3, 3, 3, 3] }],
  }],
});

function quantity(field, title, rows) {
  const found = rows.map((row) => row[field]);
  const least = Math.min(...found), most = Math.max(...found);
  const log = field !== "score" && field !== "y" && least > 0 && most / least > 4;
  const bytes = field.endsWith("_bytes");
  return {
    field, type: "quantitative", title: log ? `${title} (log)` : title,
    scale: log ? { type: "log", nice: false, padding: 24 } : { zero: false, padding: 16 },
    axis: { tickCount: 5, labelExpr: (bytes && most >= 1000) || field === "trainable" ? `format(datum.value, '~s')` : "datum.label" },
  };
}

// The methods that no other one beats on both axes.
function front(rows, x, y) {
  const cost = (field) => (row) => (MORE_IS_BETTER.includes(field) ? -row[field] : row[field]);
  const [left, up] = [cost(x), cost(y)];
  return rows.filter((row) => !rows.some((other) =>
    left(other) <= left(row) && up(other) <= up(row) && (left(other) < left(row) || up(other) < up(row))));
}

function scatter(task) {
  const x = value("x"), y = value("y"), methods = chosen();
  const has = (row, name) => row[name] !== null && row[name] !== undefined;
  const rows = task.rows.filter((row) => methods.has(row.method) && has(row, x) && has(row, y));
  if (!rows.length) return null;
  const title = (name) => task.titles[name] ?? axisText[name];
  const text = (name) => ({ field: name, type: "quantitative", title: title(name), format: ".4~s" });
  const encoding = { x: quantity(x, title(x), rows), y: quantity(y, title(y), rows) };
  const repeated = rows.filter((row) => row.low !== undefined);
  const bars = (repeated.length ? ["x", "y"] : []).filter((axis) => encoding[axis].field === "score").map((axis) => ({
    data: { values: repeated }, mark: { type: "rule", opacity: 0.45 },
    encoding: { ...encoding, color: identity.color, [axis]: { ...encoding[axis], field: "low" }, [`${axis}2`]: { field: "high" } },
  }));
  // The strongest baseline is a line: it has a score, and costs nothing.
  const scored = ["x", "y"].find((axis) => encoding[axis].field === "score");
  const baseline = scored && task.baseline ? [{
    data: { values: [task.baseline] }, mark: { type: "rule", strokeDash: [2, 3], color: config().text.color, opacity: 0.7 },
    encoding: { [scored]: encoding[scored], tooltip: [{ field: "label", type: "nominal", title: "baseline" },
      { field: "score", type: "quantitative", format: ".1f" }] },
  }, {
    data: { values: [task.baseline] }, mark: { type: "text", align: "right", baseline: "bottom", dx: -3, dy: -2, opacity: 0.8, color: config().text.color },
    encoding: { [scored]: encoding[scored], [scored === "y" ? "x" : "y"]: { value: scored === "y" ? "width" : 12 },
      text: { value: `${task.baseline.label}, no training` } },
  }] : [];
  const layer = [
    { data: { values: front(rows, x, y) }, mark: { type: "line", strokeDash: [4, 4], opacity: 0.4, color: config().text.color },
      encoding: { ...encoding, order: { field: x, type: "quantitative" } } },
    ...bars,
    ...baseline,
    { mark: { type: "point", filled: true, size: 90, opacity: 1 },
      encoding: { ...encoding, ...identity, tooltip: [
        { field: "label", type: "nominal", title: "method" }, { field: "shown", type: "nominal", title: "mean ± deviation (seeds)" },
        { field: "against full", type: "nominal" }, ...[x, y].filter((name) => name !== "score").map(text),
        { field: "command", type: "nominal" }] } },
  ];
  return [{ height: 340, data: { values: rows }, layer }, names(layer.length - 1, "layer_0_marks", ...(baseline.length ? [`layer_${layer.length - 2}_marks`] : []))];
}

function series(task, kind) {
  const methods = chosen();
  const best = task.rows.filter((row) => methods.has(row.method)).sort((a, b) => b.score - a.score).map((row) => row.label);
  const shown = new Set(["full", ...best.filter((label) => label !== "full").slice(0, LINES - 1)]);
  const rows = task[kind].filter((row) => methods.has(row.method) && (kind === "sensitivity" || shown.has(row.label)));
  if (!rows.length) return null;
  const options = [...new Set(rows.map((row) => row.option))].join(" or ");
  const across = { curves: "optimizer steps", sweep: "learning rate", sensitivity: options }[kind];
  const split = kind === "sensitivity" ? "test" : "validation";
  const least = Math.min(...rows.map((row) => row.x)), most = Math.max(...rows.map((row) => row.x));
  const log = kind !== "curves" && least > 0;
  const room = log ? most * (most / least) ** 0.45 : most + 0.45 * (most - least); // for the names at the ends
  const last = new Map(rows.map((row) => [row.label, row]));
  const encoding = {
    x: { field: "x", type: "quantitative", title: log ? `${across} (log)` : across,
      scale: { type: log ? "log" : "linear", domain: [least, room], nice: false, padding: 8 },
      axis: { grid: !log, values: log ? undefined : { expr: `[${[...new Set(rows.map((row) => row.x))]}]` },
        labelExpr: `format(datum.value, '${kind === "curves" ? ",d" : ".3~r"}')` } },
    y: quantity("y", `${split} ${task.metric}`, rows),
  };
  const layer = [
    { mark: { type: "line", opacity: 0.8 }, encoding: { ...encoding, color: identity.color } },
    { mark: { type: "point", filled: true, size: 36, opacity: 1 }, encoding: { ...encoding, ...identity, tooltip: [
      { field: "label", type: "nominal", title: "method" }, { field: "x", type: "quantitative", title: across, format: ".4~r" },
      { field: "y", type: "quantitative", title: `${split} ${task.metric}`, format: ".1f" }] } },
    { data: { values: [...last.values()] }, mark: { type: "point", opacity: 0 }, encoding },
  ];
  return [{ height: 260, data: { values: rows }, layer }, names(2)];
}

function draw(element) {
  const task = data.charts[element.closest(".charts").dataset.number], kind = element.dataset.kind;
  const made = kind === "rows" ? scatter(task) : series(task, kind);
  clear(element);
  element.closest("figure").hidden = made === null && kind !== "rows";
  if (made === null) { element.textContent = "No finished run of these methods has both figures."; return; }
  const [spec, patch] = made;
  widths.set(element, element.clientWidth);
  vegaEmbed(element, { width: element.clientWidth, autosize: { type: "fit-x", contains: "padding" }, ...spec },
    { mode: "vega-lite", actions: false, renderer: "svg", config: config(), patch, tooltip: { theme: dark.matches ? "dark" : "light" } })
    .then((view) => { clear(element, false); views.set(element, view); element.querySelectorAll(".mark-symbol path").forEach(byKeyboard); });
}

// A point that has the focus shows what hovering shows.
function byKeyboard(point) {
  const at = (kind) => () => {
    const place = point.getBoundingClientRect();
    point.dispatchEvent(new PointerEvent(kind, { bubbles: true, clientX: place.left + place.width / 2, clientY: place.top + place.height / 2 }));
  };
  point.setAttribute("tabindex", "0");
  point.addEventListener("focus", at("pointermove"));
  point.addEventListener("blur", at("pointerout"));
}

function clear(element, empty = true) {
  views.get(element)?.finalize();
  views.delete(element);
  if (empty) element.textContent = "";
}

const charts = [...document.querySelectorAll(".chart")];
const drawn = new Set();
const views = new Map();
const widths = new Map();
// A suite may have a hundred charts: each one is drawn when it is about to be seen, or printed.
const watch = new IntersectionObserver((entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => show(entry.target)),
  { rootMargin: "600px" });
function show(element) {
  watch.unobserve(element);
  drawn.add(element);
  draw(element);
}
charts.forEach((element) => watch.observe(element));
addEventListener("beforeprint", () => charts.filter((element) => !drawn.has(element)).forEach(show));
dark.addEventListener("change", redraw);
const resized = new ResizeObserver((entries) => entries.forEach(({ target }) => {
  if (views.has(target) && target.clientWidth && target.clientWidth !== widths.get(target)) draw(target);
}));
charts.forEach((element) => resized.observe(element));

// A chart of a hidden task has no width: it is drawn when it is seen again.
function redraw() {
  for (const element of drawn) {
    if (element.closest("section").hidden) { clear(element); drawn.delete(element); watch.observe(element); } else draw(element);
  }
}

// --- what is shown

function update() {
  const task = value("task", ""), backbone = value("backbone", ""), methods = chosen();
  document.querySelectorAll("section[data-backbone]").forEach((section) => {
    section.hidden = (task !== "" && section.dataset.task !== task) || (backbone !== "" && section.dataset.backbone !== backbone);
  });
  document.querySelectorAll("tr[data-method]").forEach((row) => { row.hidden = !methods.has(row.dataset.method); });
  redraw();
}
document.querySelectorAll("select, input[name=method]").forEach((control) => control.addEventListener("change", update));
for (const [id, checked] of [["none", false], ["every", true]]) {
  document.getElementById(id).addEventListener("click", () => { boxes.forEach((box) => { box.checked = checked; }); update(); });
}
