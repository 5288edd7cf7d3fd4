// What is shown is the address: #/view/thing. Going back goes back.

const VIEWS = [
  ["overview", "Overview", overview, null],
  ["graph", "Graph", graph, (parts) => (parts.length > 1 ? nodeDetail(...parts) : null)],
  ["steps", "Steps", steps, ([number]) => stepDetail(number)],
  ["kernels", "Kernels", kernels, ([number]) => kernelDetail(number)],
  ["sources", "Model lines", sourceLines, ([index]) => sourceDetail(index)],
  ["memory", "Memory", memory, ([name]) => slotDetail(name)],
];

const main = document.getElementById("main"), detail = document.getElementById("detail");
const search = document.getElementById("search"), results = document.getElementById("results");
let shown = "";

function route() {
  const [name, ...parts] = location.hash.replace(/^#\/?/, "").split("/").map(decodeURIComponent);
  const view = VIEWS.find(([id]) => id === name) || VIEWS[0];
  return { view, parts };
}

// name of the row that is chosen, if the view has rows
function chosenName() {
  const { view, parts } = route();
  return view[0] === "graph" ? parts[1] : parts[0];
}

function show() {
  const { view, parts } = route();
  const what = view[0] === "graph" ? `graph/${parts[0] ?? lastStage}/${constantsShown}` : view[0];
  if (what !== shown) {
    main.replaceChildren();
    view[2](main, parts);
    main.scrollTop = 0;
    shown = what;
    for (const tab of document.querySelectorAll("#tabs a")) {
      if (tab.dataset.view === view[0]) tab.setAttribute("aria-current", "page");
      else tab.removeAttribute("aria-current");
    }
  }
  const content = view[3] && parts.length ? view[3](parts) : null;
  detail.replaceChildren(...(content || []).filter((part) => part !== null));
  detail.scrollTop = 0;
  mark();
}

function mark() {
  for (const old of document.querySelectorAll(".chosen, .slot.on")) old.classList.remove("chosen", "on");
  const name = chosenName();
  if (name === undefined) return;
  const row = main.querySelector(`.row[data-name="${CSS.escape(name)}"]`)
    || [...main.querySelectorAll("tr[data-href]")].find((each) => each.dataset.href === location.hash);
  const block = main.querySelector(`.slot[data-name="${CSS.escape(name)}"]`);
  if (block) block.classList.add("on");
  if (row) {
    row.classList.add("chosen");
    // a row that was jumped to stands among its neighbours; the next one, by a key, only just comes into view
    const { top, bottom } = row.getBoundingClientRect(), frame = main.getBoundingClientRect();
    const far = top > frame.bottom + 3 * ROW || bottom < frame.top - 3 * ROW;
    // a block of the memory's picture is the place itself, and stays in view
    if (!block) row.scrollIntoView({ block: far ? "center" : "nearest" });
    main.scrollLeft = 0;
  }
  const svg = main.querySelector(".rows > svg");
  if (svg) light(svg, name);
}

function closeDetail() {
  const { view, parts } = route();
  location.hash = view[0] === "graph" ? links.stage(parts[0] ?? lastStage) : `#/${view[0]}`;
}

// -- search ----------------------------------------------------------------------------------------------------------------

const index = [
  ...data.kernels.map((kernel, k) => ["kernel", kernel.name, `${kernel.steps.length} launches`, links.kernel(k)]),
  ...data.stages[lastStage].nodes.map((node) => ["op", `%${node[NAME]}`, `${node[OP]} : ${node[TYPE]}  ${node[LOCATION]}`, links.node(lastStage, node[NAME])]),
  ...sources.map((source) => ["line", source.place, "", links.source(source.index)]),
  ...data.steps.map((step) => ["step", String(step.number), step.name, links.step(step.number)]),
  ...data.memory.slots.map((slot) => ["slot", slot.name, `${slot.role}, ${bytes(slot.bytes)}`, links.slot(slot.name)]),
  ...(lastStage > 0 ? data.stages[0].nodes.filter((node) => !data.stages[lastStage].byName.has(node[NAME]))
    .map((node) => ["captured", `%${node[NAME]}`, `${node[OP]} : ${node[TYPE]}  ${node[LOCATION]}`, links.node(0, node[NAME])]) : []),
  ...data.kernels.flatMap((kernel, k) => Object.entries(kernel.files).map(([name, text]) => ["code", kernel.name, name, links.kernel(k), text])),
].map(([kind, name, more, href, text]) => ({ kind, name, more, href, key: (text ?? `${name} ${more}`).toLowerCase(), code: text !== undefined }));

let found = [], at = -1;

function find() {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  at = -1;
  if (!words.length) { found = []; results.hidden = true; search.setAttribute("aria-expanded", "false"); return; }
  const rank = (entry) => (entry.code ? 3 : entry.name.toLowerCase().replace(/^%/, "").startsWith(words[0]) ? 0 : entry.name.toLowerCase().includes(words[0]) ? 1 : 2);
  const all = index.filter((entry) => words.every((word) => entry.key.includes(word)));
  found = all.map((entry) => [rank(entry), entry]).sort((a, b) => a[0] - b[0]).map(([, entry]) => entry).slice(0, 60);
  results.replaceChildren(...found.map((entry, k) => element("li", { role: "option", id: `result-${k}`, "aria-selected": "false", mousedown: (event) => { event.preventDefault(); open(k); } },
    element("span.kind", {}, entry.kind), element("span", {}, entry.name), element("span.more", {}, entry.code ? `in ${entry.more}` : entry.more))),
    ...(all.length > found.length ? [element("li.none", {}, `and ${all.length - found.length} more: type more of the name`)] : []),
    ...(all.length ? [] : [element("li.none", {}, "nothing found")]));
  results.hidden = false;
  search.setAttribute("aria-expanded", "true");
  if (found.length) point(0);
}

function point(k) {
  at = (k + found.length) % found.length;
  [...results.children].forEach((item, number) => item.setAttribute("aria-selected", String(number === at)));
  search.setAttribute("aria-activedescendant", `result-${at}`);
  results.children[at].scrollIntoView({ block: "nearest" });
}

function open(k) {
  const entry = found[k];
  results.hidden = true;
  search.setAttribute("aria-expanded", "false");
  search.blur();
  if (entry.code) codeShown = entry.more;
  codeSought = entry.code ? search.value.toLowerCase().split(/\s+/).filter(Boolean)[0] : null;
  if (location.hash === entry.href) show();
  else location.hash = entry.href;
}

search.addEventListener("input", find);
search.addEventListener("focus", find);
search.addEventListener("blur", () => { results.hidden = true; search.setAttribute("aria-expanded", "false"); });
search.addEventListener("keydown", (event) => {
  if (event.key === "ArrowDown" && found.length) { point(at + 1); event.preventDefault(); }
  else if (event.key === "ArrowUp" && found.length) { point(at - 1); event.preventDefault(); }
  else if (event.key === "Enter" && at >= 0) open(at);
  else if (event.key === "Escape") { search.value = ""; search.blur(); }
});

// -- keys ------------------------------------------------------------------------------------------------------------------

function step(direction) {
  const rows = [...main.querySelectorAll(".row, tr[data-href]")];
  if (!rows.length) return;
  const now = rows.findIndex((row) => row.classList.contains("chosen"));
  const row = rows[Math.min(rows.length - 1, Math.max(0, now + direction))];
  location.hash = row.dataset.href || row.getAttribute("href");
}

document.addEventListener("keydown", (event) => {
  if (event.target.closest("input, select, dialog") || event.ctrlKey || event.metaKey || event.altKey) return;
  const { view, parts } = route();
  const stage = view[0] === "graph" ? Number(parts[0] ?? lastStage) : null;
  if (event.key === "/") { search.focus(); search.select(); event.preventDefault(); }
  else if (event.key === "j") step(1);
  else if (event.key === "k") step(-1);
  else if (event.key === "?") document.getElementById("keys").showModal();
  else if (event.key === "Escape") closeDetail();
  else if (event.key === "[" && stage > 0) location.hash = links.stage(stage - 1);
  else if (event.key === "]" && stage !== null && stage < lastStage) location.hash = links.stage(stage + 1);
  else if (/^[1-6]$/.test(event.key)) location.hash = `#/${VIEWS[Number(event.key) - 1][0]}`;
});

// -- light and dark --------------------------------------------------------------------------------------------------------

const dark = window.matchMedia("(prefers-color-scheme: dark)");
let theme = null;

function paint() {
  document.documentElement.dataset.theme = theme ?? (dark.matches ? "dark" : "light");
}

document.getElementById("theme").addEventListener("click", () => {
  theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  paint();
});
document.getElementById("help").addEventListener("click", () => document.getElementById("keys").showModal());
dark.addEventListener("change", paint);
paint();

document.getElementById("title").append(data.title, element("small", {}, ` on ${data.target}`));
document.getElementById("tabs").append(...VIEWS.map(([id, title]) => element("a", { href: `#/${id}`, "data-view": id }, title)));
window.addEventListener("hashchange", show);
show();
