// The plan of the arena: steps to the right, offsets upwards.

function memory(main) {
  const plan = data.memory;
  if (plan.arena_bytes === undefined) {
    main.append(element("p", {}, `Offsets are made at the first call, when ${plan.symbols.join(", ")} are known. Give --input-shape to see them.`));
  } else {
    const over = plan.lower_bound ? ` (\u00d7${(plan.arena_bytes / plan.lower_bound).toFixed(2)})` : "";
    main.append(
      element("div.bar", {}, element("span", {}, `arena ${bytes(plan.arena_bytes)}, lower bound ${bytes(plan.lower_bound)}${over}, eager ${bytes(plan.eager_peak)}`),
        element("span.soft", {}, "Each block is one piece of memory: as wide as it lives, as high as it is large. The line is what is alive.")),
      planDrawing(plan));
  }
  const kinds = unique(plan.slots.map((slot) => slot.role));
  main.append(element("h3", {}, `Slots (${plan.slots.length}: ${kinds.map((kind) => `${plan.slots.filter((s) => s.role === kind).length} ${kind}`).join(", ")})`),
    table(["slot", "role", "type", "bytes#", "offset#", "steps#", "in place of"], plan.slots.map((slot) => ({
      href: links.slot(slot.name),
      cells: [slot.name, slot.role, `${slot.dtype}[${slot.shape.join(", ")}]`, typeof slot.bytes === "number" ? slot.bytes.toLocaleString("en") : slot.bytes,
        slot.offset === null ? "" : slot.offset.toLocaleString("en"), slot.first_step === null ? "" : `${slot.first_step}\u2013${slot.last_step}`, slot.in_place_of || ""],
      sort: [slot.name, slot.role, slot.dtype, slot.bytes, slot.offset ?? -1, slot.first_step ?? -1, slot.in_place_of || ""],
    }))));
}

function planDrawing(plan) {
  const width = 1000, height = 420, left = 64, bottom = 26, top = 8;
  const steps = Math.max(1, plan.steps), arena = Math.max(1, plan.arena_bytes, ...(plan.live_bytes || []));
  const x = (step) => left + ((width - left - 8) * step) / steps;
  const y = (offset) => height - bottom - ((height - bottom - top) * offset) / arena;
  const svg = drawing("svg", { class: "plan", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "Memory plan; the table below says the same" });
  for (let k = 0; k <= 4; k += 1) {
    const offset = (arena * k) / 4, step = Math.round((steps * k) / 4);
    svg.append(drawing("line", { x1: left, x2: width - 8, y1: y(offset), y2: y(offset), stroke: "var(--line)" }),
      drawing("text", { x: left - 6, y: y(offset) + 4, "text-anchor": "end" }, bytes(offset)),
      drawing("text", { x: x(step), y: height - 8, "text-anchor": k === 4 ? "end" : "middle" }, k === 0 ? "step 0" : String(step)));
  }
  plan.slots.forEach((slot, number) => {
    if (slot.offset === null || slot.first_step === null || typeof slot.bytes !== "number") return;
    const at = x(slot.first_step), wide = Math.max(1.5, x(slot.last_step + 1) - at), high = Math.max(1, y(slot.offset) - y(slot.offset + slot.bytes));
    const block = drawing("rect", {
      class: "slot", "data-name": slot.name, x: at, y: y(slot.offset + slot.bytes), width: wide, height: high,
      fill: `hsl(${(number * 137.5) % 360} 55% var(--slot-light))`,
    });
    const says = `${slot.name}: ${slot.dtype}[${slot.shape.join(", ")}], ${bytes(slot.bytes)}, steps ${slot.first_step} to ${slot.last_step}`;
    block.append(drawing("title", {}, says + (slot.in_place_of ? `, in place of ${slot.in_place_of}` : "")));
    block.addEventListener("click", () => { location.hash = links.slot(slot.name); });
    svg.append(block);
    if (wide > 7 * slot.name.length && high > 13) {
      svg.append(drawing("text", { class: "inside", x: at + 4, y: y(slot.offset + slot.bytes) + 12 }, slot.name));
    }
  });
  const live = plan.live_bytes || [];
  if (live.length) {
    svg.append(drawing("path", { class: "live", d: live.map((amount, step) => `${step ? "L" : "M"}${x(step)} ${y(amount)}H${x(step + 1)}`).join("") }));
  }
  if (plan.lower_bound) svg.append(drawing("line", { class: "bound", x1: left, x2: width - 8, y1: y(plan.lower_bound), y2: y(plan.lower_bound) },
    drawing("title", {}, `lower bound ${bytes(plan.lower_bound)}: no plan can be smaller`)));
  return svg;
}

function slotDetail(name) {
  const slot = slotByName.get(name);
  if (!slot) return null;
  const readers = data.steps.filter((step) => step.reads.includes(name)).map((step) => step.number);
  const writers = data.steps.filter((step) => step.writes.includes(name)).map((step) => step.number);
  const stage = data.stages[lastStage];
  return [
    heading(name, slot.role),
    definitions([
      ["type", `${slot.dtype}[${slot.shape.join(", ")}] strides [${slot.strides.join(", ")}]`],
      ["bytes", typeof slot.bytes === "number" ? `${slot.bytes.toLocaleString("en")} (${bytes(slot.bytes)})` : slot.bytes],
      slot.offset !== null && ["offset", slot.offset.toLocaleString("en")],
      slot.first_step !== null && ["alive", `from step ${slot.first_step} to ${slot.last_step}`],
      slot.in_place_of && ["in place of", slotLink(slot.in_place_of)],
      stage.byName.has(name) && ["value", nodeLink(lastStage, name)],
      ["written by", chips(writers.map(stepLink))],
      ["read by", chips(readers.map(stepLink))],
    ]),
  ];
}
