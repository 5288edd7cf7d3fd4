// The document of `explorer/data.py`, and what is looked up in it.

const data = JSON.parse(document.getElementById("data").textContent);
const NAME = 0, OP = 1, TYPE = 2, INPUTS = 3, ATTRIBUTES = 4, LOCATION = 5, KIND = 6;
const lastStage = data.stages.length - 1;

for (const stage of data.stages) {
  stage.byName = new Map(stage.nodes.map((node) => [node[NAME], node]));
  stage.readers = new Map();
  for (const node of stage.nodes) {
    for (const name of new Set(node[INPUTS])) {
      if (!stage.readers.has(name)) stage.readers.set(name, []);
      stage.readers.get(name).push(node[NAME]);
    }
  }
}

// name of a node of the optimized graph -> numbers of the steps that compute it
const stepsOf = new Map();
for (const step of data.steps) {
  for (const name of step.ops) {
    if (!stepsOf.has(name)) stepsOf.set(name, []);
    stepsOf.get(name).push(step.number);
  }
}

const slotByName = new Map(data.memory.slots.map((slot) => [slot.name, slot]));

// lines of the model in the order of the captured graph: where, and the names of the nodes at each stage
const sources = [];
const sourceByPlace = new Map();
data.stages.forEach((stage, number) => {
  for (const node of stage.nodes) {
    const place = node[LOCATION];
    if (!place) continue;
    let source = sourceByPlace.get(place);
    if (!source) {
      source = { place, index: sources.length, stages: new Map() };
      sourceByPlace.set(place, source);
      sources.push(source);
    }
    if (!source.stages.has(number)) source.stages.set(number, []);
    source.stages.get(number).push(node[NAME]);
  }
});

function stageTitle(number) {
  return number === 0 ? "0 as captured" : `${number} after ${data.stages[number].name}`;
}

function unique(items) {
  return [...new Set(items)];
}

function stepsOfSource(source) {
  return unique((source.stages.get(lastStage) || []).flatMap((name) => stepsOf.get(name) || []));
}

function bytes(count) {
  if (typeof count !== "number") return String(count ?? "");
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (count >= 1024 && unit < units.length - 1) { count /= 1024; unit += 1; }
  return `${unit === 0 ? count : count.toFixed(1)} ${units[unit]}`;
}

// -- links -----------------------------------------------------------------------------------------------------------------

const links = {
  node: (stage, name) => `#/graph/${stage}/${encodeURIComponent(name)}`,
  stage: (stage) => `#/graph/${stage}`,
  step: (number) => `#/steps/${number}`,
  kernel: (number) => `#/kernels/${number}`,
  source: (index) => `#/sources/${index}`,
  slot: (name) => `#/memory/${encodeURIComponent(name)}`,
};

// -- elements --------------------------------------------------------------------------------------------------------------

// element("a.row", {href}, child, ...): children are elements or texts, never markup
function element(spec, attributes = {}, ...children) {
  const [tag, ...classes] = spec.split(".");
  const made = document.createElement(tag);
  if (classes.length) made.className = classes.join(" ");
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(key, value);
    else if (value !== undefined && value !== null && value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

function drawing(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function link(href, text, title) {
  return element("a", { href, title }, text);
}

function chips(items, most = 60) {
  const shown = items.slice(0, most);
  const box = element("div.chips", {}, shown);
  if (items.length > most) {
    box.append(element("button", { type: "button", click: () => box.replaceChildren(...items) }, `${items.length - most} more`));
  }
  return box;
}

function definitions(pairs) {
  return element("dl", {}, pairs.filter(Boolean).flatMap(([key, value]) => [element("dt", {}, key), element("dd", {}, value)]));
}

function nodeLink(stage, name) {
  const node = data.stages[stage].byName.get(name);
  return link(links.node(stage, name), `%${name}`, node ? `${node[OP]} : ${node[TYPE]}` : "");
}

function stepLink(number) {
  const step = data.steps[number];
  return link(links.step(number), `${number} ${step.name}`, `${step.kind} step ${number}`);
}

function kernelLink(number) {
  return link(links.kernel(number), data.kernels[number].name);
}

function sourceLink(place) {
  const source = sourceByPlace.get(place);
  return source ? link(links.source(source.index), place) : place;
}

function slotLink(name) {
  const slot = slotByName.get(name);
  return link(links.slot(name), name, slot ? `${slot.role}, ${bytes(slot.bytes)}` : "");
}
