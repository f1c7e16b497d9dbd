// One neuron: the sets it is in, and the questions on which it contributed most and least to the right answer.
let cameFrom = null;

function setsOf(key) {
  return rows.filter((row) => keyOf(row) === key);
}

function membership(key) {
  const body = setsOf(key).map((row) =>
    make(
      "tr",
      {},
      make("th", { scope: "row" }, row.set),
      make("td", { class: "number" }, `${counted(row.rank)} of ${counted(data.sets[row.number].size)}`),
      make("td", { class: "number" }, scoreText(row.score)),
    ),
  );
  const head = ["Set", "Rank", "Score"].map((name, i) => make("th", { scope: "col", class: i ? "number" : "" }, name));
  const table = make(
    "table",
    { class: "narrow" },
    make("caption", {}, make("span", {}, "Sets that the neuron is in")),
    make("thead", {}, make("tr", {}, ...head)),
    make("tbody", {}, ...body),
  );
  return make("div", { class: "scroll", role: "region", tabindex: "0", "aria-label": "Sets of the neuron" }, table);
}

function sample([question, score, probability]) {
  const [id, group, answer, prompt] = data.questions[question];
  const facts = [
    ["score", scoreText(score)],
    ["P", probability === null ? "\u2013" : probability.toFixed(3)],
    ["gold", answer],
  ];
  return make(
    "li",
    { class: "sample" },
    make(
      "p",
      { class: "sample-head" },
      make("strong", {}, group),
      ...facts.map(([name, value]) => make("span", {}, make("span", { class: "muted" }, `${name} `), value)),
      make("span", { class: "muted id" }, id),
    ),
    make("p", { class: "prompt" }, prompt),
  );
}

function block(title, samples) {
  return make("section", {}, make("h4", {}, title), make("ol", { class: "samples" }, ...samples.map(sample)));
}

function showNeuron(key) {
  const own = setsOf(key);
  if (!own.length) return false;
  const [layer, site, column] = key.split("/");
  const title = make("h3", { id: "neuron-title", tabindex: "-1" }, `Neuron ${column} of ${site}, layer ${layer}`);
  const close = make("button", { type: "button" }, "Back to the table");
  close.addEventListener("click", () => (cameFrom?.isConnected ? cameFrom : byId("search")).focus());
  const share = own.find((row) => row.share !== null)?.share ?? null;
  const parts = [make("div", { class: "head-row" }, title, close)];
  if (share !== null) parts.push(make("p", {}, `Its score is positive on ${shareText(share)} of the samples.`));
  parts.push(membership(key));
  if (key in data.samples) {
    const [top, bottom] = data.samples[key];
    parts.push(make("div", { class: "two" }, block("Highest scores", top), block("Lowest scores", bottom)));
  } else if (Object.keys(data.samples).length) {
    parts.push(make("p", { class: "missing" }, "The page holds no samples of this neuron."));
  }
  byId("neuron").replaceChildren(...parts);
  byId("neuron").hidden = false;
  if (byId("samples-hint")) byId("samples-hint").hidden = true;
  title.focus({ preventScroll: true });
  byId("samples").scrollIntoView();
  return true;
}

function openNeuron(key, button) {
  cameFrom = button;
  if (location.hash === `#neuron=${key}`) showNeuron(key);
  else location.hash = `neuron=${key}`; // the address leads back here, and the hash's change shows it
}

function followAddress() {
  const key = /^#neuron=(.+)$/.exec(location.hash)?.[1];
  if (key) showNeuron(key);
}

addEventListener("hashchange", followAddress);
followAddress();
