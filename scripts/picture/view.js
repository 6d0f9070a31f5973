// What of the run is in view, and where on the canvas it stands. No drawing.

const TOP = 26; // the ruler
const LANE_MIN = 9.5;
const LANE_MAX = 120;
const NARROW = 640;

const axes = {
  network: axisOf((at) => at[0] / 1000), // milliseconds
  logical: axisOf((at) => at[1]),
};

/** The places of everything on one axis. `at` takes [microseconds, logical time]. */
function axisOf(at) {
  const x = new Float64Array(markCount);
  for (let mark = 0; mark < markCount; mark++) x[mark] = at([marks.time[mark], marks.depth[mark]]);
  const pairs = (items, begin, end) => stretches(items.map((item) => [at(item[begin]), at(item[end])]));
  let [first, last] = [Infinity, -Infinity];
  for (const value of x) {
    first = Math.min(first, value);
    last = Math.max(last, value);
  }
  const axis = {
    x,
    holds: pairs(run.holds, "begin", "end"),
    waits: pairs(run.holds, "asked", "begin"),
    served: stretches(run.holds.map(({ served }) => [at(served.begin), at(served.end)])),
    arrows: pairs(run.arrows, "begin", "end"),
    spans: pairs(run.spans, "begin", "end"),
    notes: run.notes.map((note) => at(note.at)),
  };
  let [low, high] = [Infinity, -Infinity];
  for (const value of [...x, ...axis.holds.from, ...axis.holds.to, ...axis.notes]) {
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  if (!(low < high)) [low, high] = low === high ? [low - 1, high + 1] : [0, 1];
  if (!(first < last)) [first, last] = [low, high];
  return { ...axis, low, high, first, last };
}

/** Stretches that can be asked for those that touch a range: sorted by their begin, with the farthest end so far. */
function stretches(pairs) {
  const order = Uint32Array.from(pairs.keys()).sort((a, b) => pairs[a][0] - pairs[b][0]);
  const farthest = new Float64Array(pairs.length);
  let most = -Infinity;
  order.forEach((item, i) => {
    most = Math.max(most, pairs[item][1]);
    farthest[i] = most;
  });
  return { order, farthest, from: Float64Array.from(pairs, (p) => p[0]), to: Float64Array.from(pairs, (p) => p[1]) };
}

/** The items of `stretches` that touch the range from `low` to `high`, in the order in which they begin. */
function touching({ order, farthest, from, to }, low, high) {
  const found = [];
  for (let i = firstIndex(order.length, (k) => farthest[k] >= low); i < order.length; i++) {
    const item = order[i];
    if (from[item] > high) break;
    if (to[item] >= low) found.push(item);
  }
  return found;
}

const view = {
  axisName: "network",
  left: 0, // what stands at the left edge of the plot, in units of the axis
  scale: 1, // pixels per unit
  scroll: 0, // pixels by which the lanes are scrolled down
  width: 0,
  height: 0,
  gutter: 0, // the width of the lanes' names
  lane: LANE_MIN, // the height of a lane

  get axis() {
    return axes[this.axisName];
  },
  measure(width, height) {
    this.width = width;
    this.height = height;
    this.gutter = Math.min(width < NARROW ? 74 : 120, 14 + longestName);
    this.lane = Math.max(LANE_MIN, Math.min(LANE_MAX, (height - TOP - 8) / run.lanes.length));
  },
  get right() {
    return this.left + (this.width - this.gutter) / this.scale;
  },
  xOf(value) {
    return this.gutter + (value - this.left) * this.scale;
  },
  valueAt(x) {
    return this.left + (x - this.gutter) / this.scale;
  },
  yOf(lane) {
    return TOP + (lane + 0.5) * this.lane - this.scroll;
  },
  laneAt(y) {
    const lane = Math.floor((y - TOP + this.scroll) / this.lane);
    return lane >= 0 && lane < run.lanes.length ? lane : -1;
  },
  /** Keep the view on the run. */
  keep() {
    const { low, high } = this.axis;
    const plot = this.width - this.gutter;
    const margin = 24;
    const least = (plot - 2 * margin) / (high - low);
    const most = this.axisName === "network" ? 20000 : 240; // pixels per millisecond, per step
    this.scale = Math.max(least, Math.min(most, this.scale));
    const slack = margin / this.scale;
    const last = Math.max(low - slack, high + slack - plot / this.scale);
    this.left = Math.max(low - slack, Math.min(last, this.left));
    const tallest = run.lanes.length * this.lane + TOP + 8 - this.height;
    this.scroll = Math.max(0, Math.min(tallest, this.scroll));
  },
  /** Show the whole run. */
  fit() {
    this.scale = 0;
    this.left = -Infinity;
    this.keep();
  },
  zoom(factor, x) {
    const value = this.valueAt(x);
    this.scale *= factor;
    this.keep();
    this.left = value - (x - this.gutter) / this.scale;
    this.keep();
  },
  pan(dx, dy) {
    this.left -= dx / this.scale;
    this.scroll -= dy;
    this.keep();
  },
  /** Show about this many marks around a place, so that they can be told apart. */
  show(value, span) {
    if (span) this.scale = (this.width - this.gutter) / span;
    this.keep();
    this.left = value - (this.width - this.gutter) / 2 / this.scale;
    this.keep();
  },
  /** Bring a mark into view. */
  reveal(mark) {
    const x = this.xOf(this.axis.x[mark]);
    if (x < this.gutter + 30 || x > this.width - 30) this.show(this.axis.x[mark]);
    const y = this.yOf(marks.lane[mark]);
    if (y < TOP + this.lane || y > this.height - this.lane) {
      this.scroll += y - this.height / 2;
      this.keep();
    }
  },
};

let longestName = 90;

/** From where to where so many marks stand around a place. */
function around(axis, value, wanted) {
  const sorted = axis.sorted ?? (axis.sorted = Float64Array.from(axis.x).sort());
  if (sorted.length <= wanted) return [axis.first, axis.last];
  const at = firstIndex(sorted.length, (i) => sorted[i] >= value);
  const first = Math.max(0, Math.min(sorted.length - wanted, at - (wanted >> 1)));
  return [sorted[first], sorted[first + wanted - 1]];
}

/** The mark nearest to a point of the canvas, within reach; -1 if there is none. */
function markNear(x, y, reach = 12) {
  const lane = view.laneAt(y);
  if (lane < 0) return -1;
  const own = marksOfLane[lane];
  const xs = view.axis.x;
  const after = firstIndex(own.length, (i) => xs[own[i]] >= view.valueAt(x));
  let best = -1;
  let nearest = reach;
  for (const i of [after - 1, after]) {
    if (own[i] === undefined) continue;
    const distance = Math.abs(view.xOf(xs[own[i]]) - x);
    if (distance <= nearest) [best, nearest] = [own[i], distance];
  }
  return best;
}
