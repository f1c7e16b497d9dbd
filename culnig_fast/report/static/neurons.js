// The table of neurons: one row a neuron and set, filtered, sorted, and drawn a page at a time.
const PAGE_ROWS = 50;
const COLUMNS = [
  { key: "set", name: "Set", first: 1 },
  { key: "rank", name: "Rank", first: 1, number: true },
  { key: "layer", name: "Layer", first: 1, number: true },
  { key: "site", name: "Site", first: 1 },
  { key: "column", name: "Neuron", first: 1, number: true },
  { key: "score", name: "Score", first: -1, number: true },
  { key: "share", name: "Positive share", first: -1, number: true },
  { key: "countries", name: "Country", first: 1 },
];
const keyOf = (row) => `${row.layer}/${row.site}/${row.column}`;

function allRows() {
  const countries = new Map();
  const rows = [];
  data.sets.forEach((set, number) => {
    set.rows.forEach(([module, layer, column, score, share], rank) => {
      const row = { number, set: set.title, rank: rank + 1, layer, site: data.modules[module], column, score, share };
      rows.push(row);
      if (set.country !== null) {
        if (!countries.has(keyOf(row))) countries.set(keyOf(row), []);
        countries.get(keyOf(row)).push(set.country);
      }
    });
  });
  for (const row of rows) {
    row.inCountries = countries.get(keyOf(row)) ?? [];
    row.countries = row.inCountries.join(", ");
    row.text = `${row.set} layer ${row.site} ${row.countries}`.toLowerCase();
  }
  return rows;
}

const rows = allRows();
const shared = rows.some((row) => row.share !== null);
const columns = COLUMNS.filter((c) => (c.key !== "share" || shared) && (c.key !== "countries" || byId("choose-country")));
const state = { sort: null, direction: 1, page: 0 };
let found = [];

// Every word must occur; a number is a layer's or a neuron's own, not a part of one.
function matches(row, words) {
  return words.every((word) => {
    if (/^\d+$/.test(word)) return row.layer === Number(word) || row.column === Number(word);
    return row.text.includes(word);
  });
}

function compare(a, b) {
  if (a === b) return 0;
  if (a === null || a === "") return Infinity;
  if (b === null || b === "") return -Infinity;
  if (typeof a === "number") return a - b;
  return a < b ? -1 : 1;
}

function order(a, b) {
  const result = compare(a[state.sort], b[state.sort]);
  return Number.isFinite(result) ? state.direction * result : Math.sign(result); // what is missing comes last
}

function update() {
  const [set, layer, site, country] = ["set", "layer", "site", "country"].map((n) => byId(`choose-${n}`)?.value ?? "");
  const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  found = rows.filter(
    (row) =>
      (set === "" || row.number === Number(set)) &&
      (layer === "" || row.layer === Number(layer)) &&
      (site === "" || row.site === site) &&
      (country === "" || row.inCountries.includes(country)) &&
      matches(row, words),
  );
  if (state.sort !== null) found.sort(order);
  state.page = 0;
  draw();
}

function cellOf(row, column) {
  const numeric = { class: column.number ? "number" : "" };
  if (column.key === "score") return make("td", numeric, scoreText(row.score));
  if (column.key === "share") return make("td", numeric, shareText(row.share));
  if (column.key === "site") return make("td", {}, make("code", {}, row.site));
  if (column.key !== "column") return make("td", numeric, String(row[column.key]));
  const known = keyOf(row) in data.samples;
  const label = `Neuron ${row.column} of ${row.site}, layer ${row.layer}: ${known ? "samples" : "sets"}`;
  const button = make("button", { type: "button", class: "link", "aria-label": label }, String(row.column));
  button.addEventListener("click", () => openNeuron(keyOf(row), button));
  return make("th", { scope: "row", class: "number" }, button);
}

function draw() {
  const pages = Math.max(1, Math.ceil(found.length / PAGE_ROWS));
  const start = state.page * PAGE_ROWS;
  const shown = found.slice(start, start + PAGE_ROWS);
  byId("neuron-rows").replaceChildren(...shown.map((row) => make("tr", {}, ...columns.map((c) => cellOf(row, c)))));
  const span = found.length ? `${counted(start + 1)}\u2013${counted(start + shown.length)} of ` : "";
  byId("found").textContent = found.length ? `Rows ${span}${counted(found.length)}` : "No neuron matches.";
  byId("page-number").textContent = `Page ${counted(state.page + 1)} of ${counted(pages)}`;
  byId("previous").disabled = state.page === 0;
  byId("next").disabled = state.page === pages - 1;
  for (const heading of byId("neuron-head").children) {
    const active = heading.dataset.key === state.sort;
    heading.setAttribute("aria-sort", active ? (state.direction > 0 ? "ascending" : "descending") : "none");
  }
}

function sortBy(column) {
  state.direction = state.sort === column.key ? -state.direction : column.first;
  state.sort = column.key;
  update();
}

function saveRows() {
  const quoted = (value) => (/[",\n\r]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value);
  const lines = found.map((row) => columns.map((c) => quoted(String(row[c.key] ?? ""))).join(","));
  saveText("neurons.csv", [columns.map((c) => c.key).join(","), ...lines, ""].join("\n"));
}

function fill(id, first, values) {
  byId(id)?.append(make("option", { value: "" }, first), ...values.map(([value, text]) => make("option", { value }, text)));
}

function startNeurons() {
  const unique = (key) => [...new Set(rows.map((row) => row[key]))];
  fill("choose-set", "all sets", data.sets.map((set, i) => [i, `${set.title} (${counted(set.size)})`]));
  fill("choose-layer", "all layers", unique("layer").sort((a, b) => a - b).map((n) => [n, String(n)]));
  fill("choose-site", "all sites", data.modules.filter((n) => unique("site").includes(n)).map((n) => [n, n]));
  fill("choose-country", "any", data.sets.filter((s) => s.country !== null).map((s) => [s.country, s.country]));
  const general = data.sets.findIndex((set) => set.name === "general");
  byId("choose-set").value = general >= 0 ? String(general) : "";
  for (const column of columns) {
    const button = make("button", { type: "button", class: "sort" }, column.name);
    button.addEventListener("click", () => sortBy(column));
    const look = { scope: "col", "data-key": column.key, "aria-sort": "none", class: column.number ? "number" : "" };
    byId("neuron-head").append(make("th", look, button));
  }
  for (const name of ["set", "layer", "site", "country"]) byId(`choose-${name}`)?.addEventListener("change", update);
  byId("search").addEventListener("input", update);
  const turn = (pages) => {
    state.page += pages;
    draw();
  };
  byId("previous").addEventListener("click", () => turn(-1));
  byId("next").addEventListener("click", () => turn(1));
  byId("save-rows").addEventListener("click", saveRows);
  byId("neuron-browser").hidden = false;
  update();
}

if (byId("neuron-browser")) startNeurons();
