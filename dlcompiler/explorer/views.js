// One function a view: it fills <main>. One function a kind of thing: it fills <aside>.

const ROW = 22, LANE = 12;

function heading(text, sub) {
  return element("h2", {}, element("button.close", { type: "button", title: "Close (Esc)", click: closeDetail }, "\u2715"), text,
    sub ? element("small.soft", {}, ` ${sub}`) : null);
}

// -- overview --------------------------------------------------------------------------------------------------------------

function overview(main) {
  const report = data.report;
  const library = Object.values(report.library).reduce((sum, count) => sum + count, 0);
  const host = report.aten.reduce((sum, each) => sum + each.count, 0);
  const card = (value, text) => element("div.card", {}, element("b", {}, String(value)), element("span", {}, text));
  const peak = report.planned_peak === null ? "at call" : bytes(report.planned_peak);
  main.append(
    element("div.cards", {},
      card(report.nodes_captured, `nodes captured, ${data.stages[lastStage].nodes.filter((n) => n[KIND] !== "source").length} after all passes`),
      card(`${report.native} / ${library} / ${host}`, "nodes native / library calls / ATen calls"),
      card(`${report.kernels} (${report.distinct})`, "launches of our kernels (distinct kernels)"),
      card(peak, `planned peak; lower bound ${bytes(report.lower_bound)}, eager ${bytes(report.eager_peak)}`),
      card(`${(report.seconds.total || 0).toFixed(2)} s`, `to compile: ${Object.entries(report.seconds)
        .filter(([key]) => key !== "total").map(([key, value]) => `${key} ${value.toFixed(2)}`).join(", ")}`)),
    element("div.mono", {}, ...[...data.inputs, ...data.outputs].map((line) => element("div", {}, line))),
    element("h3", {}, "Graph after each pass"),
    table(["stage", "nodes without constants#", "what it did (ops with constants)"], data.stages.map((stage, number) => ({
      href: links.stage(number),
      cells: [stage.name, stage.nodes.filter((n) => n[KIND] !== "source").length, stage.event],
    }))),
    element("h3", {}, "Steps that are not ours"),
    report.aten.length || library
      ? table(["operator", "count#", "why"], [
        ...Object.entries(report.library).map(([name, count]) => ({ cells: [name, count, "library, in planned memory"] })),
        ...report.aten.map((each) => ({ cells: [each.name, each.count, each.reason] }))])
      : element("p", {}, "None: every step is a kernel of ours."),
    element("h3", {}, `Why not fused (${report.refusals.length + report.refusals_omitted})`),
    element("div.mono", {}, ...report.refusals.slice(0, 200).map((line) => element("div", {}, line))),
    element("h3", {}, "Report"),
    element("pre", { tabindex: 0 }, data.report_text));
}

// header texts ending in # are of columns of numbers
function table(header, rows) {
  const body = element("tbody");
  const fill = (ordered) => body.replaceChildren(...ordered.map((row) => element(row.href ? "tr.link" : "tr",
    { click: row.href ? (event) => { if (event.target.tagName !== "A") location.hash = row.href; } : undefined, "data-href": row.href },
    row.cells.map((cell, k) => element(header[k].endsWith("#") ? "td.number" : "td", {},
      k === 0 && row.href ? link(row.href, String(cell)) : cell instanceof Node ? cell : String(cell ?? ""))))));
  let direction = 1;
  const sorted = (k) => {
    direction = -direction;
    const value = (row) => (row.sort ? row.sort[k] : row.cells[k]);
    fill([...rows].sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      return direction * (typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y)));
    }));
  };
  fill(rows);
  return element("table", {}, element("thead", {}, element("tr", {}, header.map((text, k) =>
    element(text.endsWith("#") ? "th.number" : "th", { scope: "col" },
      element("button", { type: "button", title: "Sort", click: () => sorted(k) }, text.replace("#", "")))))), body);
}

// -- graph -----------------------------------------------------------------------------------------------------------------

let constantsShown = false;

function graph(main, [stageText]) {
  const number = stageText === undefined ? lastStage : Math.min(Math.max(0, Number(stageText) || 0), lastStage);
  const stage = data.stages[number];
  const choose = element("select", { id: "stage", "aria-label": "Graph after", change: (e) => { location.hash = links.stage(e.target.value); } },
    data.stages.map((each, k) => element("option", { value: k, selected: k === number }, stageTitle(k))));
  const nodes = stage.nodes.filter((node) => constantsShown || node[OP] !== "constant");
  main.append(
    element("div.bar", {}, choose,
      element("button", { type: "button", disabled: number === 0, click: () => { location.hash = links.stage(number - 1); } }, "\u2190 before"),
      element("button", { type: "button", disabled: number === lastStage, click: () => { location.hash = links.stage(number + 1); } }, "after \u2192"),
      element("button", { type: "button", "aria-pressed": String(constantsShown), click: () => { constantsShown = !constantsShown; show(); } }, "constants"),
      element("span.legend", {}, ...[["compute", "--native"], ["view", "--view"], ["input", "--source"]].map(([text, color]) =>
        element("span", {}, element("i", { style: `background:var(${color})` }), text))),
      element("span.soft", {}, `${nodes.length} nodes`),
      element("div.event", {}, stage.event || "")),
    graphRows(nodes, number));
}

// Each value has a lane from the node that makes it to its last reader, as branches in a history of commits.
function lanes(nodes, names) {
  const rowOf = new Map(nodes.map((node, row) => [names(node).name, row]));
  const last = new Map();
  nodes.forEach((node, row) => { for (const input of names(node).reads) if (rowOf.has(input)) last.set(input, row); });
  const taken = [];
  const laneOf = new Map();
  nodes.forEach((node, row) => {
    for (let k = 0; k < taken.length; k += 1) if (taken[k] !== null && taken[k] <= row) taken[k] = null;
    const own = names(node);
    const dying = own.reads.find((name) => last.get(name) === row && laneOf.has(name) && taken[laneOf.get(name)] === null);
    let lane = dying === undefined ? taken.indexOf(null) : laneOf.get(dying);
    if (lane < 0) lane = taken.length;
    taken[lane] = last.has(own.name) ? last.get(own.name) : row;
    laneOf.set(own.name, lane);
  });
  return { rowOf, last, laneOf, count: taken.length };
}

function laneDrawing(items, names, kindOf) {
  const { rowOf, last, laneOf, count } = lanes(items, names);
  const shown = Math.min(count, 16);
  const x = (lane) => 8 + LANE * Math.min(lane, shown);
  const y = (row) => ROW * row + ROW / 2;
  const paths = [], dots = [];
  items.forEach((item, row) => {
    const own = names(item);
    const at = x(laneOf.get(own.name));
    for (const name of new Set(own.reads)) {
      if (!rowOf.has(name)) continue;
      const from = x(laneOf.get(name)), start = y(rowOf.get(name)), bend = y(row) - ROW * 0.8;
      paths.push(drawing("path", {
        class: "lane", "data-from": name, "data-to": own.name,
        d: from === at ? `M${from} ${start}V${y(row)}` : `M${from} ${start}V${Math.max(start, bend)}C${from} ${y(row)} ${at} ${bend} ${at} ${y(row)}`,
      }));
    }
    dots.push(drawing("circle", { class: `dot ${kindOf(item)}`, cx: at, cy: y(row), r: 4 }));
  });
  const width = 8 + LANE * (shown + 1);
  return { width, svg: drawing("svg", { width, height: ROW * items.length, "aria-hidden": "true" }, ...paths, ...dots) };
}

function graphRows(nodes, number) {
  const { width, svg } = laneDrawing(nodes, (node) => ({ name: node[NAME], reads: node[INPUTS] }), (node) => node[KIND]);
  const stage = data.stages[number];
  const outputs = new Set(stage.outputs);
  return element("div.rows", { role: "list" }, svg, nodes.map((node) => {
    const constants = node[INPUTS].filter((name) => (stage.byName.get(name) || [])[OP] === "constant").length;
    const shown = node[INPUTS].filter((name) => (stage.byName.get(name) || [])[OP] !== "constant").map((name) => `%${name}`);
    if (constants) shown.push(constants === 1 ? "1 constant" : `${constants} constants`);
    return element("a.row", {
      role: "listitem", href: links.node(number, node[NAME]), style: `padding-left:${width}px`, "data-name": node[NAME],
      mouseenter: () => light(svg, node[NAME]), mouseleave: () => light(svg, chosenName()),
    },
    element(`span.op.${node[KIND]}`, {}, node[OP]), element("span", {}, `%${node[NAME]}`),
    element("span.soft", {}, node[KIND] === "source" ? "" : `(${shown.join(", ")})`), element("span", {}, node[TYPE]),
    outputs.has(node[NAME]) ? element("span.native", {}, "output") : null,
    element("span.end", { title: node[LOCATION] }, node[LOCATION]));
  }));
}

function light(svg, name) {
  for (const path of svg.querySelectorAll(".on")) path.classList.remove("on");
  if (!name) return;
  for (const path of svg.querySelectorAll("path")) {
    if (path.dataset.from === name || path.dataset.to === name) path.classList.add("on");
  }
}

function nodeDetail(stageText, name) {
  const number = Number(stageText), stage = data.stages[number];
  const node = stage && stage.byName.get(name);
  if (!node) return null;
  const steps = number === lastStage ? stepsOf.get(name) || [] : [];
  const elsewhere = data.stages.map((each, k) => [each, k]).filter(([each, k]) => k !== number && each.byName.has(name));
  const readers = stage.readers.get(name) || [];
  const source = sourceByPlace.get(node[LOCATION]);
  const later = source && number !== lastStage ? stepsOfSource(source) : [];
  const kernels = unique([...steps, ...later].map((each) => data.steps[each].kernel).filter((k) => k !== null));
  return [
    heading(`%${name}`, `${node[OP]}, in the graph ${stageTitle(number).replace(/^\d+ /, "")}`),
    definitions([
      ["type", node[TYPE]],
      node[ATTRIBUTES] && [node[OP] === "constant" ? "value" : "attributes", element("span.mono", {}, node[ATTRIBUTES])],
      node[LOCATION] && ["source", sourceLink(node[LOCATION])],
      steps.length && ["computed by", chips(steps.map(stepLink))],
      number === lastStage && !steps.length && node[KIND] !== "source" && ["computed by", "its readers: it is part of their indices or kernels"],
      later.length && ["became", chips(later.map(stepLink))],
      kernels.length && ["kernel", chips(kernels.map(kernelLink))],
    ]),
    element("h3", {}, `Reads (${node[INPUTS].length})`), chips(node[INPUTS].map((each) => nodeLink(number, each))),
    element("h3", {}, `Read by (${readers.length})`), chips(readers.map((each) => nodeLink(number, each))),
    elsewhere.length ? element("h3", {}, "The same name in other stages") : null,
    elsewhere.length ? chips(elsewhere.map(([, k]) => link(links.node(k, name), stageTitle(k)))) : null,
  ];
}

// -- steps and kernels -----------------------------------------------------------------------------------------------------

function steps(main) {
  const writer = new Map();
  const items = data.steps.map((step) => {
    const reads = unique(step.reads.map((slot) => writer.get(slot)).filter((each) => each !== undefined));
    for (const slot of step.writes) writer.set(slot, String(step.number));
    return { step, name: String(step.number), reads };
  });
  const { width, svg } = laneDrawing(items, (item) => item, (item) => (item.step.kind === "native" ? "compute" : "source"));
  const live = data.memory.live_bytes || [];
  main.append(
    element("div.bar", {}, element("span.soft", {}, `${data.steps.length} steps in the order they run; lines are the memory one writes and another reads`)),
    element("div.rows", { role: "list" }, svg, items.map(({ step, name }) => element("a.row", {
      role: "listitem", href: links.step(step.number), style: `padding-left:${width}px`, "data-name": name,
      mouseenter: () => light(svg, name), mouseleave: () => light(svg, chosenName()),
    },
    element("span.soft", {}, String(step.number).padStart(3)), element(`span.op.${step.kind}`, {}, step.kind),
    element("span", {}, step.name), element("span.soft", {}, `${step.ops.length} op${step.ops.length === 1 ? "" : "s"}`),
    element("span.end", {}, live.length ? `${bytes(live[step.number])} live` : "")))));
}

function stepDetail(text) {
  const step = data.steps[Number(text)];
  if (!step) return null;
  const stage = data.stages[lastStage];
  const places = unique(step.ops.map((name) => (stage.byName.get(name) || [])[LOCATION]).filter(Boolean));
  return [
    heading(`Step ${step.number}`, step.kind),
    definitions([
      ["runs", step.kernel === null ? step.name : kernelLink(step.kernel)],
      step.reason && ["why not ours", step.reason],
      ["reads", chips(step.reads.map(slotLink))],
      ["writes", chips(step.writes.map(slotLink))],
      ["ops", chips(step.ops.filter((name) => stage.byName.has(name)).map((name) => nodeLink(lastStage, name)))],
      ["source", chips(places.map(sourceLink))],
    ]),
    ...(step.kernel === null ? [] : kernelCode(data.kernels[step.kernel])),
  ];
}

function kernels(main) {
  if (!data.kernels.length) main.append(element("p", {}, "No kernels: the program runs nothing of its own."));
  else main.append(table(["#", "kernel", "launches#", "ops#", "lines#", "first source line"], data.kernels.map((kernel, k) => ({
    href: links.kernel(k),
    cells: [k, kernelLink(k), kernel.steps.length, kernel.ops.length, mainFile(kernel)[1].split("\n").length, firstPlace(kernel)],
    sort: [k, kernel.name, kernel.steps.length, kernel.ops.length, mainFile(kernel)[1].split("\n").length, firstPlace(kernel)],
  }))));
}

function firstPlace(kernel) {
  const stage = data.stages[lastStage];
  return kernel.ops.map((name) => (stage.byName.get(name) || [])[LOCATION]).find(Boolean) || "";
}

function mainFile(kernel) {
  const entries = Object.entries(kernel.files);
  return entries.find(([name]) => /\.(py|mlir)$/.test(name) && !name.includes("llvm")) || entries[0];
}

function kernelDetail(text) {
  const kernel = data.kernels[Number(text)];
  if (!kernel) return null;
  const stage = data.stages[lastStage];
  const places = unique(kernel.ops.map((name) => (stage.byName.get(name) || [])[LOCATION]).filter(Boolean));
  return [
    heading(kernel.name, `kernel ${text}`),
    definitions([
      ["launched by", chips(kernel.steps.map(stepLink), 12)],
      ["ops", chips(kernel.ops.filter((name) => stage.byName.has(name)).map((name) => nodeLink(lastStage, name)), 24)],
      ["source", chips(places.map(sourceLink), 12)],
    ]),
    ...kernelCode(kernel),
  ];
}

let codeShown = "kernel.txt", codeSought = null;

function kernelCode(kernel) {
  const names = Object.keys(kernel.files);
  const code = element("pre", { tabindex: 0, "aria-label": "Code" });
  const choose = (name) => {
    codeShown = name;
    showText(code, kernel.files[name], codeSought);
    for (const button of bar.children) if (button.dataset.name) button.setAttribute("aria-pressed", String(button.dataset.name === name));
  };
  const copy = element("button", { type: "button", title: "Copy this text", click: () => navigator.clipboard && navigator.clipboard.writeText(code.textContent) }, "copy");
  const labels = { "kernel.txt": "Kernel IR", "schedule.txt": "schedule", "kernel.mlir": "MLIR", "kernel.llvm.mlir": "LLVM", "kernel.py": "Triton" };
  const bar = element("div.bar", { style: "margin:14px 0 0" }, names.map((name) =>
    element("button", { type: "button", "data-name": name, click: () => choose(name) }, labels[name] || name.replace("kernel.", ""))), copy);
  choose(names.includes(codeShown) ? codeShown : names[0]);
  return [bar, code];
}

// a text, scrolled to the first place of `sought` in it, which is marked
function showText(pre, text, sought) {
  const at = sought ? text.toLowerCase().indexOf(sought) : -1;
  if (at < 0) { pre.textContent = text; return; }
  const found = element("mark", {}, text.slice(at, at + sought.length));
  pre.replaceChildren(text.slice(0, at), found, text.slice(at + sought.length));
  requestAnimationFrame(() => found.scrollIntoView({ block: "center" }));
}

// -- lines of the model ----------------------------------------------------------------------------------------------------

function sourceLines(main) {
  if (!sources.length) { main.append(element("p", {}, "This model says nothing of where its ops come from.")); return; }
  main.append(table(["line or node of the model", "captured as", "steps#", "run by"], sources.map((source) => {
    const numbers = stepsOfSource(source);
    const first = [...source.stages.keys()][0];
    const ops = unique(source.stages.get(first).map((name) => data.stages[first].byName.get(name)[OP])).join(", ");
    const by = unique(numbers.map((number) => data.steps[number].name)).join(", ");
    return { href: links.source(source.index), cells: [source.place, ops, numbers.length, by || "nothing: folded, or part of others"] };
  })));
}

function sourceDetail(text) {
  const source = sources[Number(text)];
  if (!source) return null;
  const numbers = stepsOfSource(source);
  const kernels = unique(numbers.map((number) => data.steps[number].kernel).filter((k) => k !== null));
  return [
    heading(source.place),
    definitions([
      kernels.length && ["kernels", chips(kernels.map(kernelLink))],
      ["steps", numbers.length ? chips(numbers.map(stepLink)) : "none: its values are computed while compiling, or inside other ops' kernels"],
    ]),
    ...runsOfStages(source).flatMap(({ first, last, names }) => [
      element("h3", {}, first === last ? `Graph ${stageTitle(first)}` : `Graphs ${stageTitle(first)} to ${stageTitle(last)}`),
      chips(names.map((name) => nodeLink(last, name)))]),
  ];
}

// stages one after the other in which a line is the same nodes are one entry
function runsOfStages(source) {
  const runs = [];
  for (const [number, names] of source.stages) {
    const before = runs.at(-1);
    if (before && before.last === number - 1 && before.names.join() === names.join()) before.last = number;
    else runs.push({ first: number, last: number, names });
  }
  return runs;
}
