// Drawing: one canvas, and on it only what is in view.

const canvas = document.getElementById("diagram");
const context = canvas.getContext("2d");
const overview = document.getElementById("overview");
const overviewContext = overview.getContext("2d");

const FONT = "12px system-ui, sans-serif";
const MARKS_MAX = 2500; // with more in view they become bars, one for two pixels
const ARROWS_MAX = 1500;
const ARROWS_BOLD_MAX = 200;
const LABELS_MAX = 400;

const state = { cone: null, hovered: -1, hits: [], hit: -1 };

let colours = {};
function readColours() {
  const style = getComputedStyle(document.documentElement);
  const names = ["paper", "ink", "faint", "line", "read", "write", "update", "restore", "apply", "undo", "bad"];
  colours = Object.fromEntries(
    [...names, "past", "future", "down", "fault", "sync", "hand"].map((name) => [
      name,
      style.getPropertyValue(`--${name}`).trim(),
    ]),
  );
  colours.locks = ["lock-0", "lock-1", "lock-2", "lock-3", "lock-4"].map((n) => style.getPropertyValue(`--${n}`).trim());
}

const lockNumbers = new Map([...new Set(run.holds.map((hold) => hold.lock))].sort().map((lock, i) => [lock, i]));
const fencedArrows = [...run.arrows.keys()].filter((item) => run.arrows[item].kind === "fenced");
const verbColours = () => VERBS.map((verb) => colours[verb]);

function fitCanvas(element, drawing) {
  const { clientWidth: width, clientHeight: height } = element;
  const ratio = window.devicePixelRatio || 1;
  if (element.width !== Math.round(width * ratio) || element.height !== Math.round(height * ratio)) {
    element.width = Math.round(width * ratio);
    element.height = Math.round(height * ratio);
  }
  drawing.setTransform(ratio, 0, 0, ratio, 0, 0);
  drawing.clearRect(0, 0, width, height);
  return { width, height };
}

function drawDiagram() {
  const size = fitCanvas(canvas, context);
  view.measure(size.width, size.height);
  context.font = FONT;
  context.lineWidth = 1;
  context.setLineDash([]);
  const seen = inView();
  context.save();
  context.beginPath();
  context.rect(view.gutter, TOP, view.width, view.height);
  context.clip();
  drawLanes();
  drawSpans();
  drawGrants();
  drawHolds(seen);
  drawArrows(seen);
  if (seen.isDense) drawBars(seen);
  else drawMarks(seen);
  drawLabels(seen);
  drawNotes(seen);
  context.restore();
  drawRuler(seen);
  drawNames();
}

/** The marks in view, lane by lane as ranges of its own marks, and how many they are. */
function inView() {
  const xs = view.axis.x;
  const [low, high] = [view.left - 10 / view.scale, view.right + 10 / view.scale];
  const lanes = [];
  let total = 0;
  marksOfLane.forEach((own, lane) => {
    const y = view.yOf(lane);
    if (!own.length || y < TOP - view.lane || y > view.height + view.lane) return;
    const from = firstIndex(own.length, (i) => xs[own[i]] >= low);
    const to = firstIndex(own.length, (i) => xs[own[i]] > high);
    total += to - from;
    if (to > from) lanes.push({ lane, own, from, to, y });
  });
  const room = (lanes.length * (view.width - view.gutter)) / total;
  return { lanes, total, isDense: total > MARKS_MAX, isRoomy: room > 14, labels: [] };
}

// From the back to the front

function drawLanes() {
  context.strokeStyle = colours.line;
  context.beginPath();
  run.lanes.forEach((_, lane) => {
    const y = Math.round(view.yOf(lane)) + 0.5;
    context.moveTo(view.gutter, y);
    context.lineTo(view.width, y);
  });
  context.stroke();
  if (state.cone) drawLitLanes();
}

/** The way along the lanes: up to the last event before the chosen one, and from the first one after it. */
function drawLitLanes() {
  const { x } = view.axis;
  context.lineWidth = 2;
  marksOfLane.forEach((own, lane) => {
    const y = Math.round(view.yOf(lane)) + 0.5;
    const related = (wanted) => (mark) => [wanted, "itself"].includes(relation(state.cone, mark));
    const line = (from, to, colour) => {
      if (from === undefined || to === undefined) return;
      context.strokeStyle = colour;
      context.beginPath();
      context.moveTo(Math.max(view.gutter, view.xOf(x[from])), y);
      context.lineTo(Math.min(view.width, view.xOf(x[to])), y);
      context.stroke();
    };
    line(own.find(related("past")), own.findLast(related("past")), colours.past);
    line(own.find(related("future")), own.findLast(related("future")), colours.future);
  });
  context.lineWidth = 1;
}

function drawSpans() {
  const axis = view.axis;
  const faults = [];
  const half = view.lane / 2;
  for (const item of touching(axis.spans, view.left, view.right)) {
    const span = run.spans[item];
    const y = view.yOf(span.lane);
    const x = Math.max(view.gutter - 2, view.xOf(axis.spans.from[item]));
    const width = Math.max(3, Math.min(view.width + 2, view.xOf(axis.spans.to[item])) - x);
    if (span.kind === "fault") {
      context.strokeStyle = colours.fault;
      context.setLineDash([3, 3]);
      context.strokeRect(x, y - half + 2, width, view.lane - 4);
      context.setLineDash([]);
      const gap = gapBehind(item) * view.scale;
      const room = Math.min(260, width + gap - 10);
      if (view.lane > 40) faults.push([span.text, x + 4, y - half + 14, Math.max(width - 6, room)]);
      continue;
    }
    context.fillStyle = colours.paper;
    context.fillRect(x, y - 1, width, 3);
    hatch(x, y - Math.min(half - 1, 9), width, Math.min(view.lane - 2, 18), span.kind === "down" ? 6 : 14);
  }
  for (const [text, x, y, room] of faults) label(text, x, y, room, colours.fault);
}

/** How far it is from a fault's end to the next one's begin in its lane. */
function gapBehind(item) {
  const { spans } = view.axis;
  const begins = run.spans.flatMap((span, i) =>
    span.kind === "fault" && span.lane === run.spans[item].lane && spans.from[i] > spans.from[item] ? [spans.from[i]] : [],
  );
  return Math.min(Infinity, ...begins) - spans.to[item];
}

/** Slanted lines over a rectangle: the closer they stand, the less is there. */
function hatch(x, y, width, height, gap) {
  context.save();
  context.beginPath();
  context.rect(x, y, width, height);
  context.clip();
  context.strokeStyle = colours.down;
  context.beginPath();
  for (let at = Math.max(x, view.gutter) - height - ((x | 0) % gap); at < Math.min(x + width, view.width); at += gap) {
    context.moveTo(at, y + height);
    context.lineTo(at + height, y);
  }
  context.stroke();
  context.restore();
}

function label(text, x, y, room, colour) {
  if (room < 24) return;
  context.fillStyle = colour;
  let shown = visible(text);
  if (context.measureText(shown).width > room) {
    const letters = Math.max(1, Math.floor((room / context.measureText(shown).width) * shown.length) - 1);
    shown = `${shown.slice(0, letters)}…`;
  }
  context.fillText(shown, x, y);
}

function rowHeight() {
  return Math.max(1, Math.min(20, (view.lane * 0.7) / Math.max(1, lockNumbers.size)));
}

function rowTop() {
  return view.yOf(LOCKD) - (lockNumbers.size * rowHeight()) / 2;
}

/** The row of a lock in lockd's lane. */
function rowAt(y) {
  return Math.floor((y - rowTop()) / rowHeight());
}

/** In lockd's lane: who has which lock, a row for each lock. */
function drawGrants() {
  const axis = view.axis;
  const height = rowHeight();
  const last = new Map();
  const narrow = height * 0.85;
  context.font = "10px system-ui, sans-serif";
  let labels = 0;
  for (const item of touching(axis.served, view.left, view.right)) {
    const hold = run.holds[item];
    const row = lockNumbers.get(hold.lock);
    const x = Math.max(view.gutter - 2, view.xOf(axis.served.from[item]));
    const width = Math.max(1, Math.min(view.width + 2, view.xOf(axis.served.to[item])) - x);
    if (width < 3) {
      if (last.get(row) === x >> 1) continue;
      last.set(row, x >> 1);
    }
    const y = rowTop() + row * height;
    context.fillStyle = colours.locks[row % colours.locks.length];
    context.globalAlpha = hold.mode === "shared" ? 0.3 : 0.7;
    context.fillRect(x, y, Math.max(1, width - 0.5), narrow);
    context.globalAlpha = 1;
    if (narrow >= 10 && width > 30 && labels++ < LABELS_MAX) {
      label(`${hold.token} ${run.lanes[hold.lane]}`, x + 3, y + narrow - 3, width - 4, colours.ink);
    }
  }
  context.font = FONT;
}

function drawHolds({ isDense, labels }) {
  const axis = view.axis;
  const thickness = Math.max(2, Math.min(13, view.lane * 0.24));
  const lastPixel = new Map();
  for (const item of touching(axis.holds, view.left, view.right)) {
    const hold = run.holds[item];
    const y = view.yOf(hold.lane) + Math.min(view.lane * 0.2, 9);
    if (y < TOP - 20 || y > view.height + 20) continue;
    const x = Math.max(view.gutter - 2, view.xOf(axis.holds.from[item]));
    const width = Math.max(1.5, Math.min(view.width + 2, view.xOf(axis.holds.to[item])) - x);
    if (isDense && width < 3) {
      if (lastPixel.get(hold.lane) === x >> 1) continue;
      lastPixel.set(hold.lane, x >> 1);
    }
    const colour = colours.locks[lockNumbers.get(hold.lock) % colours.locks.length];
    const asked = Math.max(view.gutter - 2, view.xOf(axis.waits.from[item]));
    context.fillStyle = colour;
    if (x - asked > 1) {
      context.globalAlpha = 0.55;
      context.fillRect(asked, y + thickness / 2 - 1, x - asked, 1.5);
    }
    context.globalAlpha = hold.mode === "shared" ? 0.3 : 0.75;
    context.fillRect(x, y, width, thickness);
    context.globalAlpha = 1;
    if (hold.mode === "shared" && width > 3) {
      context.strokeStyle = colour;
      context.strokeRect(x + 0.5, y + 0.5, width - 1, thickness - 1);
    }
    if (hold.over === "expiry") {
      context.fillStyle = colours.bad;
      context.fillRect(x + width - 2, y - 2, 2.5, thickness + 4);
    }
    if (thickness >= 10 && width > 22 && labels.length < LABELS_MAX) {
      labels.push([hold.token, x + 3, y + thickness - 3, width - 4, colour]);
    }
  }
}

/** The tokens of the holds: over the arrows, on a ground of their own. */
function drawLabels({ labels }) {
  context.font = "10px system-ui, sans-serif";
  for (const [text, x, y, room, colour] of labels) {
    const width = Math.min(room, context.measureText(text).width);
    context.fillStyle = colours.paper;
    context.fillRect(x - 1, y - 8, width + 2, 10);
    context.fillStyle = colour;
    context.globalAlpha = 0.45;
    context.fillRect(x - 1, y - 8, width + 2, 10);
    context.globalAlpha = 1;
    label(text, x, y, room, colours.ink);
  }
  context.font = FONT;
}

function drawArrows(seen) {
  const axis = view.axis;
  const all = seen.isDense ? [] : touching(axis.arrows, view.left, view.right);
  const hidden = seen.isDense || all.length > ARROWS_MAX;
  seen.hidesArrows = hidden;
  const groups = new Map();
  for (const item of hidden ? fencedArrows : all) {
    const arrow = run.arrows[item];
    const key = `${arrow.kind}${litBy(arrow)}`;
    if (!groups.has(key)) groups.set(key, []);
    groups.get(key).push(item);
  }
  for (const [key, group] of [...groups].sort()) {
    const [kind, lit] = key.split(" ");
    const litColour = lit === "past" ? colours.past : colours.future;
    const plain = { sync: colours.sync, "hand-off": colours.hand, fenced: colours.bad, late: colours.sync };
    context.strokeStyle = lit ? litColour : plain[kind];
    context.fillStyle = context.strokeStyle;
    context.lineWidth = (lit && group.length < ARROWS_BOLD_MAX) || kind === "fenced" ? 1.5 : 1;
    context.globalAlpha = state.cone && !lit && kind !== "fenced" ? 0.35 : 1;
    context.setLineDash(kind === "hand-off" ? [4, 4] : []);
    context.beginPath();
    const heads = new Path2D();
    for (const item of group) arrowPath(heads, axis, item);
    context.stroke();
    context.setLineDash([]);
    context.fill(heads);
    context.lineWidth = 1;
    context.globalAlpha = 1;
  }
  for (const kind of ["late", "fenced"]) {
    for (const item of groups.get(kind) ?? []) {
      const y = view.yOf(run.arrows[item].target);
      if (kind === "late") cross(view.xOf(axis.arrows.to[item]), y, 3, colours.faint);
      else cross(view.xOf(axis.arrows.to[item]), y, 6, colours.bad);
    }
  }
}

function arrowPath(heads, axis, item) {
  const arrow = run.arrows[item];
  const shift = arrow.kind === "hand-off" ? Math.min(view.lane * 0.2, 9) + 3 : 0;
  const [x, y] = [view.xOf(axis.arrows.from[item]), view.yOf(arrow.source) + shift];
  const [endX, endY] = [view.xOf(axis.arrows.to[item]), view.yOf(arrow.target) + shift];
  const length = Math.hypot(endX - x, endY - y) || 1;
  const [dx, dy] = [(endX - x) / length, (endY - y) / length];
  const stop = arrow.kind === "sync" ? 5 : 1;
  const [tipX, tipY] = [endX - dx * stop, endY - dy * stop];
  context.moveTo(x + dx * stop, y + dy * stop);
  context.lineTo(tipX, tipY);
  heads.moveTo(tipX, tipY);
  heads.lineTo(tipX - dx * 6 - dy * 2.6, tipY - dy * 6 + dx * 2.6);
  heads.lineTo(tipX - dx * 6 + dy * 2.6, tipY - dy * 6 - dx * 2.6);
  heads.closePath();
}

/** Whether a message belongs to what led to the chosen mark, or to what it led to. */
function litBy(arrow) {
  if (!state.cone || arrow.from < 0 || arrow.to < 0) return "";
  const [from, to] = [relation(state.cone, arrow.from), relation(state.cone, arrow.to)];
  if (to === "past" || to === "itself") return " past";
  return from === "future" || from === "itself" ? " future" : "";
}

function drawMarks(seen) {
  const xs = view.axis.x;
  const fills = verbColours();
  const radius = Math.max(2.5, Math.min(5.5, view.lane * 0.2));
  const paths = new Map();
  const pathOf = (key) => paths.get(key) ?? paths.set(key, new Path2D()).get(key);
  for (const { own, from, to, y } of seen.lanes) {
    for (let i = from; i < to; i++) {
      const mark = own[i];
      const x = view.xOf(xs[mark]);
      const verb = marks.verb[mark];
      const how = state.cone ? relation(state.cone, mark) : "plain";
      shape(pathOf(`${verb} ${how}`), verb, x, y, radius);
      if (struck.has(mark)) strike(pathOf("strike"), x, y, radius);
      if (fenced.has(mark)) shape(pathOf("fenced"), verb, x, y, radius);
      if (seen.isRoomy && (how === "past" || how === "future")) halo(pathOf(how), how, x, y, radius);
    }
  }
  // Marks before what stands on them.
  const keys = [...paths.keys()].sort((a, b) => a.includes(" ") - b.includes(" ") || b.localeCompare(a)).reverse();
  for (const key of keys) {
    const [name, how] = key.split(" ");
    const path = paths.get(key);
    context.globalAlpha = how === "concurrent" ? 0.3 : 1;
    if (how === undefined) {
      context.strokeStyle = colours[name] ?? colours.bad;
      context.lineWidth = 1.8;
      if (name === "fenced") {
        context.fillStyle = colours.bad;
        context.fill(path);
      }
      context.setLineDash(name === "future" ? [3, 2] : []);
      context.stroke(path);
      context.setLineDash([]);
    } else {
      const verb = Number(name);
      context.fillStyle = verb === READ ? colours.paper : fills[verb];
      context.strokeStyle = fills[verb];
      context.lineWidth = verb === UNDO ? 2 : 1.6;
      if (verb !== UNDO) context.fill(path);
      context.stroke(path);
    }
  }
  context.globalAlpha = 1;
  context.lineWidth = 1;
  drawRings(radius);
}

/** Marks too many to be told apart: of each lane a bar for two pixels, high where there is an op. */
function drawBars(seen) {
  const xs = view.axis.x;
  const fills = verbColours();
  const heights = [Math.min(view.lane * 0.35, 7), Math.min(view.lane * 0.7, 16)];
  const { gutter, left, scale } = view;
  for (const { own, from, to, y } of seen.lanes) {
    const last = [-1, -1];
    for (let i = from; i < to; i++) {
      const mark = own[i];
      const verb = marks.verb[mark];
      const isOp = verb < APPLY ? 1 : 0;
      const x = 2 * Math.round((gutter + (xs[mark] - left) * scale) / 2);
      if (x === last[isOp]) continue;
      last[isOp] = x;
      const how = state.cone ? relation(state.cone, mark) : "plain";
      context.globalAlpha = how === "concurrent" ? 0.3 : 1;
      context.fillStyle = how === "past" || how === "future" ? colours[how] : fills[verb];
      context.fillRect(x, y - heights[isOp] / 2, isOp ? 2 : 1, heights[isOp]);
    }
  }
  context.globalAlpha = 1;
  drawRings(4);
}

function drawRings(size) {
  const radius = Math.min(size, view.lane / 2);
  ringed(state.hits.length < 5000 ? state.hits : [], colours.fault, radius + 5);
  if (state.cone) ringed([state.cone.mark], colours.ink, radius + 4);
  if (state.hovered >= 0) ringed([state.hovered], colours.ink, radius + 3);
}

/** A mark by its kind: told apart by shape as well as by colour. */
function shape(path, verb, x, y, radius) {
  switch (verb) {
    case READ:
      path.moveTo(x + radius - 0.5, y);
      path.arc(x, y, radius - 0.5, 0, 2 * Math.PI);
      break;
    case WRITE:
      path.rect(x - radius + 0.5, y - radius + 0.5, 2 * radius - 1, 2 * radius - 1);
      break;
    case UPDATE:
      path.moveTo(x, y - radius - 1);
      path.lineTo(x + radius + 0.5, y + radius - 0.5);
      path.lineTo(x - radius - 0.5, y + radius - 0.5);
      path.closePath();
      break;
    case RESTORE:
      path.moveTo(x, y - radius - 1.5);
      path.lineTo(x + radius + 1, y);
      path.lineTo(x, y + radius + 1.5);
      path.lineTo(x - radius - 1, y);
      path.closePath();
      break;
    case APPLY:
      path.moveTo(x + radius * 0.45, y);
      path.arc(x, y, radius * 0.45, 0, 2 * Math.PI);
      break;
    case UNDO:
      path.moveTo(x - radius + 1, y - radius + 1);
      path.lineTo(x + radius - 1, y + radius - 1);
      path.moveTo(x + radius - 1, y - radius + 1);
      path.lineTo(x - radius + 1, y + radius - 1);
      break;
  }
}

function strike(path, x, y, radius) {
  path.moveTo(x - radius - 4, y);
  path.lineTo(x + radius + 4, y);
}

/** What lights a mark: before it a line at its left, after it one at its right, so that it is seen without colour. */
function halo(path, how, x, y, radius) {
  const around = radius + 3;
  const [from, to] = how === "past" ? [0.5 * Math.PI, 1.5 * Math.PI] : [-0.5 * Math.PI, 0.5 * Math.PI];
  path.moveTo(x + around * Math.cos(from), y + around * Math.sin(from));
  path.arc(x, y, around, from, to);
}

function ringed(which, colour, radius) {
  context.strokeStyle = colour;
  context.lineWidth = 2;
  context.beginPath();
  for (const mark of which) {
    const x = view.xOf(view.axis.x[mark]);
    if (x < view.gutter - 20 || x > view.width + 20) continue;
    const y = view.yOf(marks.lane[mark]);
    context.moveTo(x + radius, y);
    context.arc(x, y, radius, 0, 2 * Math.PI);
  }
  context.stroke();
  context.lineWidth = 1;
}

function cross(x, y, radius, colour) {
  context.strokeStyle = colour;
  context.lineWidth = 2.4;
  context.beginPath();
  context.moveTo(x - radius, y - radius);
  context.lineTo(x + radius, y + radius);
  context.moveTo(x + radius, y - radius);
  context.lineTo(x - radius, y + radius);
  context.stroke();
  context.lineWidth = 1;
}

const SIGNS = { start: "▶", end: "■", over: "✖", lost: "✖", fenced: "✖", undone: "↶", open: "▷", closed: "◁" };

/** Notes that tell of more than everyday life, over their lane. */
function drawNotes(seen) {
  const { axis } = view;
  const up = Math.min(view.lane * 0.32, 20);
  if (view.lane < 22) return;
  context.textAlign = "center";
  const taken = new Map();
  for (let i = 0; i < run.notes.length; i++) {
    const note = run.notes[i];
    const sign = SIGNS[note.kind];
    const x = view.xOf(axis.notes[i]);
    if (!sign || x < view.gutter || x > view.width) continue;
    if (x - (taken.get(note.lane) ?? -99) < (seen.isDense ? 12 : 7)) continue;
    taken.set(note.lane, x);
    context.fillStyle = sign === "✖" ? colours.bad : colours.faint;
    context.fillText(sign, x, view.yOf(note.lane) - up);
  }
  context.textAlign = "left";
}

// The frame

function drawRuler(seen) {
  context.fillStyle = colours.paper;
  context.fillRect(0, 0, view.width, TOP);
  context.strokeStyle = colours.line;
  context.beginPath();
  context.moveTo(0, TOP - 0.5);
  context.lineTo(view.width, TOP - 0.5);
  context.stroke();
  context.fillStyle = colours.faint;
  context.textAlign = "center";
  const step = niceStep(90 / view.scale, view.axisName === "logical");
  for (let value = Math.ceil(view.left / step) * step; value < view.right; value += step) {
    const x = view.xOf(value);
    if (x < view.gutter + 20) continue;
    context.fillText(unitText(value, step), x, 16);
    context.fillRect(x, TOP - 5, 1, 4);
  }
  if (seen.hidesArrows) {
    const hint = "zoom in to see the messages";
    const width = context.measureText(hint).width + 16;
    context.fillStyle = colours.paper;
    context.fillRect(view.width - width, 0, width, TOP - 1);
    context.fillStyle = colours.faint;
    context.textAlign = "right";
    context.fillText(hint, view.width - 8, 16);
  }
  context.textAlign = "left";
}

function niceStep(least, whole) {
  const power = 10 ** Math.floor(Math.log10(least));
  const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= least);
  return whole ? Math.max(1, Math.round(step)) : step;
}

function unitText(value, step) {
  if (view.axisName === "logical") return String(Math.round(value));
  const digits = (unit) => Math.max(0, Math.min(6, Math.ceil(-Math.log10(step / unit) - 1e-9)));
  if (Math.abs(view.right) >= 1000) return `${(value / 1000).toFixed(digits(1000))} s`;
  return `${value.toFixed(digits(1))} ms`;
}

function drawNames() {
  context.fillStyle = colours.paper;
  context.fillRect(0, 0, view.gutter, view.height);
  const size = Math.max(9, Math.min(13, view.lane - 2));
  context.font = `600 ${size}px system-ui, sans-serif`;
  run.lanes.forEach((name, lane) => {
    const y = view.yOf(lane);
    if (y < TOP + 2 || y > view.height + 10) return;
    label(name, 8, y + size / 3, view.gutter - 12, lane === LOCKD ? colours.faint : colours.ink);
  });
  context.font = FONT;
  context.fillStyle = colours.paper;
  context.fillRect(0, 0, view.gutter, TOP);
  context.fillStyle = colours.faint;
  // What the seconds count from.
  context.fillText(view.axisName === "logical" ? "steps" : timeText(0).slice(11, 19), 8, 16);
  context.fillStyle = colours.line;
  context.fillRect(view.gutter - 1, 0, 1, view.height);
}

// The whole run, small

const GOODBYE = "it said goodbye";

let overviewPicture = null;

function drawOverview() {
  const { width, height } = fitCanvas(overview, overviewContext);
  const key = [width, height, view.axisName, document.documentElement.dataset.theme, state.hits.length].join();
  if (overviewPicture?.key !== key) overviewPicture = { key, image: paintOverview(width, height) };
  overviewContext.drawImage(overviewPicture.image, 0, 0, width, height);
  const { low, high } = view.axis;
  const from = Math.max(0, ((view.left - low) / (high - low)) * width);
  const to = Math.min(width, ((view.right - low) / (high - low)) * width);
  overviewContext.fillStyle = colours.ink;
  overviewContext.globalAlpha = 0.12;
  overviewContext.fillRect(from, 0, Math.max(4, to - from), height);
  overviewContext.globalAlpha = 1;
  overviewContext.strokeStyle = colours.ink;
  overviewContext.strokeRect(from + 0.5, 0.5, Math.max(4, to - from) - 1, height - 1);
}

function paintOverview(width, height) {
  const image = document.createElement("canvas");
  const ratio = window.devicePixelRatio || 1;
  image.width = Math.max(1, width * ratio);
  image.height = Math.max(1, height * ratio);
  const paint = image.getContext("2d");
  paint.scale(ratio, ratio);
  const { low, high, x, spans } = view.axis;
  const at = (value) => ((value - low) / (high - low)) * width;
  const lane = height / run.lanes.length;
  const fills = verbColours();
  marksOfLane.forEach((own, number) => {
    const last = [-1, -1];
    for (const mark of own) {
      const isOp = marks.verb[mark] < APPLY ? 1 : 0;
      const pixel = Math.round(at(x[mark]));
      // Where there is an op, it is what is seen of a pixel.
      if (pixel === last[isOp] || (!isOp && pixel === last[1])) continue;
      last[isOp] = pixel;
      paint.fillStyle = fills[marks.verb[mark]];
      paint.fillRect(pixel, number * lane, 1, Math.max(1, lane - 1));
    }
  });
  run.spans.forEach((span, i) => {
    if (span.kind === "fault") return;
    paint.fillStyle = span.text === GOODBYE ? colours.line : colours.bad;
    paint.fillRect(at(spans.from[i]), span.lane * lane, Math.max(2, at(spans.to[i]) - at(spans.from[i])), Math.max(1, lane - 1));
  });
  paint.fillStyle = colours.fault;
  for (const mark of state.hits) paint.fillRect(at(x[mark]) - 0.5, 0, 1.5, height);
  return image;
}
