// What the page knows of the run. No drawing, no DOM but the one element that holds the data.

const run = JSON.parse(document.getElementById("run").textContent);
const LOCKD = 0;
const [READ, WRITE, UPDATE, RESTORE, APPLY, UNDO] = [0, 1, 2, 3, 4, 5];
const VERBS = ["read", "write", "update", "restore", "apply", "undo"];

const marks = run.marks;
const markCount = marks.lane.length;
const hostCount = run.hosts.length;
const struck = new Set(run.struck);
const fenced = new Set(run.arrows.filter((arrow) => arrow.kind === "fenced").map((arrow) => arrow.from));

// One row of clock components per mark, in the order of marks, which respects happens-before.
const clocks = new Int32Array(markCount * hostCount);
const marksOfHost = run.hosts.map(() => []);
const marksOfLane = run.lanes.map(() => []);
for (let mark = 0; mark < markCount; mark++) {
  const host = marks.host[mark];
  const row = mark * hostCount;
  const before = marksOfHost[host].at(-1);
  if (before !== undefined) clocks.copyWithin(row, before * hostCount, (before + 1) * hostCount);
  const changed = marks.changed[mark];
  for (let i = 0; i < changed.length; i += 2) clocks[row + changed[i]] = changed[i + 1];
  clocks[row + host] = marks.count[mark];
  marksOfHost[host].push(mark);
  marksOfLane[marks.lane[mark]].push(mark);
}

/** The first index from 0 to `length` for which `holds` is true; once true it stays so. */
function firstIndex(length, holds) {
  let low = 0;
  let high = length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (holds(middle)) high = middle;
    else low = middle + 1;
  }
  return low;
}

/** What led to a mark and what it led to, as two counts per host: lit are those up to the one and from the other. */
function coneOf(mark) {
  const host = marks.host[mark];
  const count = marks.count[mark];
  const past = clocks.subarray(mark * hostCount, (mark + 1) * hostCount);
  const future = marksOfHost.map((own) => {
    const first = firstIndex(own.length, (i) => clocks[own[i] * hostCount + host] >= count);
    return first < own.length ? marks.count[own[first]] : Infinity;
  });
  return { mark, past, future };
}

/** How a mark stands to that of a cone: "itself", "past", "future" or "concurrent". */
function relation(cone, mark) {
  if (mark === cone.mark) return "itself";
  const host = marks.host[mark];
  if (marks.count[mark] <= cone.past[host]) return "past";
  return marks.count[mark] >= cone.future[host] ? "future" : "concurrent";
}

function clockText(mark) {
  const parts = [];
  for (let host = 0; host < hostCount; host++) {
    const count = clocks[mark * hostCount + host];
    if (count) parts.push([run.hosts[host], count]);
  }
  parts.sort((a, b) => (a[0] < b[0] ? -1 : 1));
  return `{${parts.map(([host, count]) => `${JSON.stringify(host)}:${count}`).join(",")}}`;
}

function timeText(us) {
  const whole = run.origin + us;
  const seconds = Math.floor(whole / 1e6);
  return `${new Date(seconds * 1000).toISOString().slice(0, 19)}.${String(whole - seconds * 1e6).padStart(6, "0")}Z`;
}

/** A mark's line, as it stands in its event log. */
function lineOf(mark) {
  return `${timeText(marks.time[mark])} ${run.hosts[marks.host[mark]]} ${clockText(mark)} ${marks.text[mark]}`;
}

const PAIR = / ([a-z_]+)=("(?:[^"\\]|\\.)*"|[^\s"\\=]+)/g;

/** The values of a mark's line by their keys. */
function valuesOf(mark) {
  const values = {};
  for (const [, key, value] of marks.text[mark].matchAll(PAIR)) {
    values[key] = value.startsWith('"') ? JSON.parse(value) : value;
  }
  return values;
}

/** A text that can be looked at: nothing in it is invisible, or turns what follows around. */
function visible(text) {
  return text.replace(/[\p{Cc}\p{Cf}\p{Co}\p{Cn}\p{Zl}\p{Zp}]/gu, (found) =>
    found === "\n" ? found : `\\u{${found.codePointAt(0).toString(16)}}`,
  );
}

/** The marks whose line has this: an op id, a token, or else a text in any case. */
function search(query) {
  const wanted = query.trim();
  if (!wanted) return [];
  const literal = wanted.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
  const key = /^\S+:\d+$/.test(wanted) ? "id" : /^\d+\.\d+$/.test(wanted) ? "token" : null;
  const exact = key ? having(new RegExp(` ${key}=${literal}(?= |$)`)) : [];
  return exact.length ? exact : having(new RegExp(literal, "iu"));
}

function having(pattern) {
  const found = [];
  marks.text.forEach((text, mark) => {
    if (pattern.test(text) || (text.includes("\\") && pattern.test(text.replace(/\\(["\\])/g, "$1")))) found.push(mark);
  });
  return found;
}

// Files. Every op replaces the end of a file: it keeps the first `offset` bytes and puts its own behind them.

const encoder = new TextEncoder();

function bytesOf(inserted) {
  if (typeof inserted === "string") return encoder.encode(inserted);
  return Uint8Array.from(atob(inserted.base64), (character) => character.charCodeAt(0));
}

/** The bytes of a file at a version, and of the version before, by doing its ops from the first. */
function contentsAt(file, seq) {
  const ops = run.histories[file].ops;
  let length = 0;
  let most = 0;
  for (let i = 0; i < seq; i++) {
    length = ops[i].offset + ops[i].size;
    most = Math.max(most, length);
  }
  const content = new Uint8Array(most);
  let before = new Uint8Array(0);
  length = 0;
  for (let i = 0; i < seq; i++) {
    if (i === seq - 1) before = content.slice(0, length);
    const inserted = bytesOf(ops[i].inserted);
    content.set(inserted, ops[i].offset);
    length = ops[i].offset + inserted.length;
  }
  return { before, after: content.slice(0, length) };
}

const CONTEXT_LINES = 3;

/** The lines that a version changed, each with "-", "+" or " " in front, and a few that stand around them. */
function diffOf(before, after) {
  const decoder = new TextDecoder();
  const old = linesOf(decoder.decode(before));
  const now = linesOf(decoder.decode(after));
  let same = 0;
  while (same < old.length && same < now.length && old[same] === now[same]) same++;
  let tail = 0;
  while (
    tail < old.length - same &&
    tail < now.length - same &&
    old[old.length - 1 - tail] === now[now.length - 1 - tail]
  ) {
    tail++;
  }
  const lines = [];
  const add = (sign, texts) => texts.forEach((text) => lines.push([sign, text]));
  const from = Math.max(0, same - CONTEXT_LINES);
  if (same < old.length || same < now.length) {
    lines.push(["@", `line ${from + 1}`]);
    add(" ", now.slice(from, same));
    add("-", old.slice(same, old.length - tail));
    add("+", now.slice(same, now.length - tail));
    add(" ", now.slice(now.length - tail, now.length - tail + CONTEXT_LINES));
  }
  return lines;
}

function linesOf(text) {
  const lines = text.split("\n");
  if (lines.at(-1) === "") lines.pop();
  return lines;
}
