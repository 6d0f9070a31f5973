// The page around the diagram: what a person does to it, and what is told of what they point at.

const byId = (id) => document.getElementById(id);
const panel = byId("panel");
const tip = byId("tip");
const query = byId("query");
const NOTE_REACH = 9;

// Frames

let frameAsked = false;
function draw() {
  if (frameAsked) return;
  frameAsked = true;
  requestAnimationFrame(() => {
    frameAsked = false;
    drawDiagram();
    drawOverview();
  });
}

// Selecting

function select(mark) {
  state.cone = mark < 0 ? null : coneOf(mark);
  document.body.classList.toggle("selected", mark >= 0);
  if (mark >= 0) {
    view.reveal(mark);
    tellOf(mark);
  } else {
    panel.hidden = true;
    byId("status").textContent = "";
  }
  resize();
}

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = visible(text);
  if (className) made.className = className;
  return made;
}

function tellOf(mark) {
  const values = valuesOf(mark);
  const verb = VERBS[marks.verb[mark]];
  const counts = { past: 0, future: 0, concurrent: 0, itself: 0 };
  for (let other = 0; other < markCount; other++) counts[relation(state.cone, other)]++;
  const body = byId("told");
  body.replaceChildren();
  const title = element("h2", `${verb} ${values.file}@${values.seq}`);
  if (fenced.has(mark)) title.append(" ", element("span", "fenced", "bad"));
  if (struck.has(mark)) title.append(" ", element("span", "undone later", "bad"));
  body.append(title);
  body.append(element("p", `${run.lanes[marks.lane[mark]]}, its event ${marks.count[mark]}, under token ${values.token}`));
  const lit = element("p", undefined, "counts");
  lit.append(
    element("span", `${counts.past} before`, "past"),
    " ",
    element("span", `${counts.future} after`, "future"),
    " ",
    element("span", `${counts.concurrent} concurrent`),
  );
  body.append(lit);
  if (values.text !== undefined) body.append(element("blockquote", values.text));
  body.append(stepsFrom(mark), ...versionOf(mark, values));
  body.append(element("h3", "Its line"), element("pre", lineOf(mark)));
  panel.hidden = false;
  panel.scrollTop = 0;
  byId("status").textContent = `${verb} of ${values.file} by ${run.lanes[marks.lane[mark]]}: ${counts.past} events before it, ${counts.future} after it, ${counts.concurrent} concurrent`;
}

/** Buttons to the events next to this one. */
function stepsFrom(mark) {
  const steps = element("p", undefined, "steps");
  const to = (text, target) => {
    if (target === undefined || target < 0) return;
    const button = element("button", text);
    button.type = "button";
    button.addEventListener("click", () => select(target));
    steps.append(button, " ");
  };
  const own = marksOfLane[marks.lane[mark]];
  const at = own.indexOf(mark);
  to("← in its lane", own[at - 1]);
  to("in its lane →", own[at + 1]);
  const arrow = run.arrows.find((one) => one.kind === "sync" && one.to === mark);
  if (arrow) to(`the op at ${run.lanes[arrow.source]}`, arrow.from);
  return steps;
}

/** What the file held at a version, and what the op changed. */
function versionOf(mark, values) {
  const history = Object.hasOwn(run.histories, values.file) ? run.histories[values.file] : null;
  const seq = Number(values.seq);
  const about = (text) => [element("p", text, "faint")];
  if (seq === 0) return about("Version 0 is the empty file.");
  if (!history) return about(`No journal here has ${values.file}.`);
  if (!history.ops) return about(`${values.file} is too large for this page: client show '${values.file}@${seq}' --data DIR`);
  if (history.ops[seq - 1]?.hash !== values.hash) return about("This version is not in the history: it was undone.");
  const { before, after } = contentsAt(values.file, seq);
  const parts = [];
  if (marks.verb[mark] !== READ) {
    parts.push(element("h3", `What ${values.file}@${seq} changed`));
    const lines = diffOf(before, after);
    if (!lines.length) parts.push(element("p", "Nothing: an update of an empty file.", "faint"));
    const box = element("pre", undefined, "diff");
    for (const [sign, text] of lines.slice(0, 400)) {
      box.append(element("span", `${sign} ${text}\n`, { "-": "minus", "+": "plus", "@": "faint" }[sign]));
    }
    if (lines.length) parts.push(box);
  }
  const shown = new TextDecoder().decode(after.subarray(0, 200000));
  parts.push(element("h3", `${values.file}@${seq}, ${after.length} bytes`));
  parts.push(element("pre", shown + (after.length > 200000 ? "\n…" : ""), "content"));
  return parts;
}

// Pointing

function tipAt(x, y) {
  const mark = markNear(x, y);
  if (mark !== state.hovered) {
    state.hovered = mark;
    draw();
  }
  const text = mark >= 0 ? lineOf(mark) : (noteNear(x, y) ?? holdAt(x, y) ?? spanAt(x, y));
  canvas.style.cursor = mark >= 0 ? "pointer" : "";
  tip.hidden = !text;
  if (!text) return;
  tip.textContent = visible(text.length > 700 ? `${text.slice(0, 700)}…` : text);
  const room = canvas.parentElement.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(x + 14, room.width - tip.offsetWidth - 4))}px`;
  tip.style.top = `${y + 18 + tip.offsetHeight > room.height ? Math.max(2, y - tip.offsetHeight - 12) : y + 18}px`;
}

function noteNear(x, y) {
  const lane = view.laneAt(y);
  if (lane < 0 || y > view.yOf(lane) - 5) return null;
  const near = run.notes.flatMap((note, i) => {
    const distance = Math.abs(view.xOf(view.axis.notes[i]) - x);
    return note.lane === lane && distance <= NOTE_REACH ? [[distance, note]] : [];
  });
  near.sort((a, b) => a[0] - b[0]);
  return near.length ? near.slice(0, 6).map(([, note]) => `${timeText(note.at[0])} ${note.text}`).join("\n") : null;
}

function holdAt(x, y) {
  const lane = view.laneAt(y);
  const value = view.valueAt(x);
  const stretches = lane === LOCKD ? [view.axis.served] : [view.axis.holds, view.axis.waits];
  for (const stretch of stretches) {
    for (const item of touching(stretch, value - 2 / view.scale, value + 2 / view.scale)) {
      const hold = run.holds[item];
      if (lane === LOCKD ? rowAt(y) !== lockNumbers.get(hold.lock) : hold.lane !== lane || y < view.yOf(lane)) continue;
      const held = ((hold.end[0] - hold.begin[0]) / 1000).toFixed(3);
      const ends = { release: "released", expiry: "lost: its lock expired", open: "no line tells of its end" };
      return `${run.lanes[lane]} waited ${(hold.waited / 1000).toFixed(3)} ms for ${hold.lock}, and held it ${hold.mode} under ${hold.token} for ${held} ms; ${ends[hold.over]}`;
    }
  }
  return null;
}

function spanAt(x, y) {
  const lane = view.laneAt(y);
  const value = view.valueAt(x);
  for (const item of touching(view.axis.spans, value, value)) {
    const span = run.spans[item];
    if (span.lane !== lane) continue;
    const what = { down: "not running", apart: "without a session", fault: "on purpose" }[span.kind];
    return `${run.lanes[lane]}, ${what} for ${((span.end[0] - span.begin[0]) / 1e6).toFixed(3)} s: ${span.text}`;
  }
  return null;
}

const fingers = new Map();
let pinch = 0;
let moved = 0;
canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  fingers.set(event.pointerId, [event.offsetX, event.offsetY]);
  moved = fingers.size > 1 ? 99 : 0;
  tip.hidden = true;
});
canvas.addEventListener("pointermove", (event) => {
  const before = fingers.get(event.pointerId);
  if (!before) {
    if (event.pointerType === "mouse") tipAt(event.offsetX, event.offsetY);
    return;
  }
  const now = [event.offsetX, event.offsetY];
  const [dx, dy] = [now[0] - before[0], now[1] - before[1]];
  moved += Math.abs(dx) + Math.abs(dy);
  fingers.set(event.pointerId, now);
  if (fingers.size === 2) {
    const [a, b] = [...fingers.values()];
    const apart = Math.hypot(a[0] - b[0], a[1] - b[1]);
    if (pinch) view.zoom(apart / pinch, (a[0] + b[0]) / 2);
    pinch = apart;
  }
  if (moved > 4) view.pan(dx / fingers.size, dy / fingers.size);
  draw();
});
function lift(event) {
  if (!fingers.delete(event.pointerId)) return;
  pinch = 0;
  if (event.type === "pointerup" && moved <= 4) {
    const reach = event.pointerType === "mouse" ? 12 : 22;
    select(markNear(event.offsetX, event.offsetY, reach));
    if (event.pointerType !== "mouse" && !state.cone) tipAt(event.offsetX, event.offsetY);
  }
}
canvas.addEventListener("pointerup", lift);
canvas.addEventListener("pointercancel", lift);
canvas.addEventListener("pointerleave", () => {
  tip.hidden = true;
  state.hovered = -1;
  draw();
});
canvas.addEventListener(
  "wheel",
  (event) => {
    event.preventDefault();
    const unit = event.deltaMode === 1 ? 30 : 1;
    if (event.shiftKey) view.pan(-(event.deltaY || event.deltaX) * unit, 0);
    else {
      if (Math.abs(event.deltaX) > Math.abs(event.deltaY)) view.pan(-event.deltaX * unit, 0);
      else view.zoom(Math.exp(-event.deltaY * unit * 0.002), event.offsetX);
    }
    tip.hidden = true;
    draw();
  },
  { passive: false },
);

function aim(event) {
  const { low, high } = view.axis;
  view.show(low + (event.offsetX / overview.clientWidth) * (high - low));
  draw();
}
overview.addEventListener("pointerdown", (event) => {
  overview.setPointerCapture(event.pointerId);
  aim(event);
});
overview.addEventListener("pointermove", (event) => event.buttons && aim(event));

// Commands

function setAxis(name) {
  if (name === view.axisName) return;
  const before = { left: view.left, scale: view.scale };
  const isUntouched = view.left === came.left && view.scale === came.scale;
  const middle = state.cone ? state.cone.mark : markAt(view.valueAt(centre()));
  const wanted = Math.max(2, inView().total);
  view.axisName = name;
  for (const button of document.querySelectorAll("[data-axis]")) {
    button.setAttribute("aria-pressed", String(button.dataset.axis === name));
  }
  if (isUntouched) Object.assign(view, came.before); // so that there and back is nowhere
  else if (middle >= 0) {
    const [from, to] = around(view.axis, view.axis.x[middle], wanted);
    view.show((from + to) / 2, (to - from) * 1.1);
  }
  view.keep();
  came = { left: view.left, scale: view.scale, before };
  draw();
}

/** Where the last switch of the axis led, and from where. */
let came = {};

/** The mark whose place is nearest to a value of the axis. */
function markAt(value) {
  let best = -1;
  let nearest = Infinity;
  for (let mark = 0; mark < markCount; mark++) {
    const distance = Math.abs(view.axis.x[mark] - value);
    if (distance < nearest) [best, nearest] = [mark, distance];
  }
  return best;
}

function setTheme(name) {
  document.documentElement.dataset.theme = name;
  recolour();
}

function recolour() {
  readColours();
  paintLegend();
  overviewPicture = null;
  draw();
}

function find() {
  state.hits = search(query.value);
  state.hit = -1;
  overviewPicture = null;
  if (state.hits.length) nextHit(1);
  tellHits();
  draw();
}

function nextHit(step) {
  if (!state.hits.length) return;
  state.hit = state.hit < 0 ? (step > 0 ? 0 : state.hits.length - 1) : (state.hit + step + state.hits.length) % state.hits.length;
  tellHits();
  select(state.hits[state.hit]);
}

function tellHits() {
  const none = query.value.trim() ? "none" : "";
  byId("hits").textContent = state.hits.length ? `${state.hit + 1} of ${state.hits.length}` : none;
}

function step(by) {
  if (!state.cone) return select(markAt(view.left));
  const own = marksOfLane[marks.lane[state.cone.mark]];
  const next = own[own.indexOf(state.cone.mark) + by];
  return next === undefined ? undefined : select(next);
}

/** Hand what is in view to the person, as a PNG. */
function savePicture() {
  drawDiagram(); // on a background of its own
  context.save();
  context.globalCompositeOperation = "destination-over";
  context.fillStyle = colours.paper;
  context.fillRect(0, 0, view.width, view.height);
  context.restore();
  const link = document.createElement("a");
  link.href = canvas.toDataURL("image/png");
  link.download = `${run.title.replace(/[^\w.-]+/g, "-")}.png`;
  link.click();
}

const help = byId("help");
const centre = () => view.gutter + (view.width - view.gutter) / 2;
const commands = {
  "zoom-in": () => view.zoom(1.5, centre()),
  "zoom-out": () => view.zoom(1 / 1.5, centre()),
  fit: () => view.fit(),
  theme: () => setTheme(isDark() ? "light" : "dark"),
  help: () => help.showModal(),
  save: savePicture,
  close: () => select(-1),
  "hit-back": () => nextHit(-1),
  "hit-on": () => nextHit(1),
};
for (const button of document.querySelectorAll("[data-do]")) {
  button.addEventListener("click", () => {
    commands[button.dataset.do]();
    draw();
  });
}
for (const button of document.querySelectorAll("[data-axis]")) {
  button.addEventListener("click", () => setAxis(button.dataset.axis));
}

const keys = {
  ArrowLeft: () => view.pan(80, 0),
  ArrowRight: () => view.pan(-80, 0),
  ArrowUp: () => view.pan(0, 40),
  ArrowDown: () => view.pan(0, -40),
  PageUp: () => view.pan(view.width - view.gutter, 0),
  PageDown: () => view.pan(view.gutter - view.width, 0),
  Home: () => view.show(view.axis.low),
  End: () => view.show(view.axis.high),
  "+": commands["zoom-in"],
  "=": commands["zoom-in"],
  "-": commands["zoom-out"],
  0: commands.fit,
  j: () => step(1),
  k: () => step(-1),
  n: () => nextHit(1),
  N: () => nextHit(-1),
  t: () => setAxis(view.axisName === "network" ? "logical" : "network"),
  d: commands.theme,
  s: commands.save,
  "?": commands.help,
  Escape: () => select(-1),
};
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || help.open) return;
  if (event.target === query) {
    if (event.key !== "Enter" && event.key !== "Escape") return;
    event.preventDefault(); // Escape would clear the field
    clearTimeout(waiting);
    if (event.key === "Enter") find();
    query.blur();
    return;
  }
  if (panel.contains(event.target) && /^(Arrow|Page|Home|End)/.test(event.key)) return;
  if (event.key === "/") {
    event.preventDefault();
    query.focus();
    query.select();
  } else if (Object.hasOwn(keys, event.key)) {
    event.preventDefault();
    keys[event.key]();
    draw();
  }
});
let waiting = 0;
query.addEventListener("input", () => {
  clearTimeout(waiting);
  waiting = setTimeout(find, 150);
});

// Begin

const dark = window.matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (document.documentElement.dataset.theme ?? (dark.matches ? "dark" : "light")) === "dark";
dark.addEventListener("change", recolour);

function resize() {
  view.measure(canvas.clientWidth, canvas.clientHeight);
  view.keep();
  if (state.cone) view.reveal(state.cone.mark);
  draw();
}
new ResizeObserver(resize).observe(canvas);

function legend() {
  const place = byId("marks");
  VERBS.forEach((verb, i) => {
    if (!marks.verb.includes(i)) return;
    const item = element("span", undefined, "key");
    const sample = document.createElement("canvas");
    [sample.width, sample.height] = [32, 32];
    sample.className = "sample";
    sample.dataset.verb = String(i);
    item.append(sample, verb);
    place.append(item);
  });
  for (const [lock, number] of [...lockNumbers].slice(0, 5)) {
    const item = element("span", undefined, "key");
    const bar = element("span", undefined, `bar lock-${number % 5}`);
    item.append(bar, visible(lock));
    place.append(item);
  }
  if (lockNumbers.size > 5) place.append(element("span", `and ${lockNumbers.size - 5} more locks`, "faint"));
}

function paintLegend() {
  for (const sample of document.querySelectorAll(".sample")) {
    const paint = sample.getContext("2d");
    const verb = Number(sample.dataset.verb);
    const path = new Path2D();
    shape(path, verb, 8, 8, 5);
    paint.setTransform(2, 0, 0, 2, 0, 0);
    paint.clearRect(0, 0, 16, 16);
    paint.fillStyle = verb === READ ? colours.paper : colours[VERBS[verb]];
    paint.strokeStyle = colours[VERBS[verb]];
    paint.lineWidth = 1.6;
    if (verb !== UNDO) paint.fill(path);
    paint.stroke(path);
  }
}

legend();
recolour();
context.font = `600 13px system-ui, sans-serif`;
longestName = Math.max(...run.lanes.map((name) => context.measureText(visible(name)).width));
view.measure(canvas.clientWidth, canvas.clientHeight);
view.fit();
const FIRST_MARKS = Math.max(20, Math.round(view.width / 14), 4 * run.lanes.length);
if (markCount > 2 * FIRST_MARKS) {
  const eventful = run.arrows.find((arrow) => arrow.kind === "fenced") ?? run.spans.find((span) => span.kind !== "apart");
  const about = eventful ? eventful.begin[0] / 1000 : view.axis.first;
  const [from, to] = around(view.axis, about, FIRST_MARKS);
  view.show(eventful ? about : from + (to - from) / 2, (to - from) * 1.1);
} else {
  view.show((view.axis.first + view.axis.last) / 2, (view.axis.last - view.axis.first) * 1.06);
}
const missing = Object.entries(run.missing);
if (missing.length) {
  const told = missing.map(([host, count]) => `${count} of ${host}`).join(", ");
  byId("missing").textContent = visible(`Events that no log here has, and that are not drawn: ${told}`);
  byId("missing").hidden = false;
}
drawDiagram();
drawOverview();

/** For whoever examines the page by program. */
window.timeline = {
  run,
  view,
  select,
  search,
  lit: () => {
    const found = { past: [], future: [], itself: [], concurrent: [] };
    if (state.cone) for (let mark = 0; mark < markCount; mark++) found[relation(state.cone, mark)].push(mark);
    return found;
  },
  lineOf,
  placeOf: (mark) => [view.xOf(view.axis.x[mark]), view.yOf(marks.lane[mark])],
  draw: () => {
    drawDiagram();
    drawOverview();
  },
};
