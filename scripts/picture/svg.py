"""A picture that stands still: an SVG in logical time, for a slide or a page of paper."""

from pathlib import Path
from typing import Final
from xml.sax.saxutils import escape

from common.printing import printable
from common.tokens import format_token
from scripts.picture.model import Arrow, Hold, Mark, Picture, Span

MARKS_MAX: Final = 2000

_STEP: Final = 26.0
_LANE: Final = 64.0
_LANE_OF_MANY: Final = 24.0
_MANY: Final = 16
_MARGIN: Final = 16.0
_RADIUS: Final = 5.0
_LETTER: Final = 7.5
_LOCKS: Final = ("#8da2b5", "#cfa56a", "#9bb38a", "#c796b4", "#7db3ba")
_COLOURS: Final = {
    "read": "#1f6fc4",
    "write": "#1a7f4b",
    "update": "#b35900",
    "restore": "#8250df",
    "apply": "#6b7682",
    "undo": "#57606a",
}
_BAD: Final = "#cf222e"


def as_svg(picture: Picture) -> str:
    """Return the SVG. It is good for at most MARKS_MAX marks; beyond that it is too wide to look at."""
    return _Sheet(picture).text()


class _Sheet:
    """One SVG in the making."""

    def __init__(self, picture: Picture) -> None:
        self._picture = picture
        self._lane = _LANE if len(picture.lanes) <= _MANY else _LANE_OF_MANY
        self._left = 2 * _MARGIN + _LETTER * max(len(name) for name in picture.lanes)
        depths = [mark.at.depth for mark in picture.marks]
        self._first, self._last = min(depths, default=0) - 1, max(depths, default=0) + 1.5
        self._locks = {lock: place for place, lock in enumerate(sorted({hold.lock for hold in picture.holds}))}

    def text(self) -> str:
        picture = self._picture
        legend, legend_end = self._legend()
        width = max(self._x(self._last), legend_end) + _MARGIN
        height = self._top() + self._lane * len(picture.lanes) + _MARGIN
        fenced = {arrow.source_mark for arrow in picture.arrows if arrow.kind == "fenced"}
        size = f'viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}"'
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size}>',
            f"<title>{_escape(picture.title)}</title>",
            Path(__file__).with_name("svg.txt").read_text("utf-8"),
            '<rect width="100%" height="100%" fill="#fff"/>',
            *legend,
            *[self._line(lane, name) for lane, name in enumerate(picture.lanes)],
            *[self._span(span) for span in picture.spans],
            *[part for hold in picture.holds for part in self._hold(hold)],
            *[self._arrow(arrow) for arrow in picture.arrows],
            *[self._token(hold) for hold in picture.holds],
            *[self._mark(mark, number in fenced) for number, mark in enumerate(picture.marks)],
            "</svg>\n",
        ]
        return "\n".join(parts)

    def _x(self, depth: float) -> float:
        return self._left + (max(self._first, min(self._last, depth)) - self._first) * _STEP

    def _y(self, lane: int) -> float:
        return self._top() + (lane + 0.5) * self._lane

    def _top(self) -> float:
        return 3 * _MARGIN

    def _legend(self) -> tuple[list[str], float]:
        """Return what tells the signs, and where that ends."""
        parts = [f'<text x="{_MARGIN}" y="20" class="name">{_escape(self._picture.title)}</text>']
        x = _MARGIN + 6
        used = {mark.event.verb for mark in self._picture.marks}
        for verb in [verb for verb in _COLOURS if verb in used]:
            parts += [_shape(verb, x, 36, _COLOURS[verb]), f'<text x="{x + 11}" y="40">{verb}</text>']
            x += 26 + _LETTER * len(verb)
        for lock, place in self._locks.items():
            parts.append(_rect(x, 32, 18, 8, f'fill="{_LOCKS[place % len(_LOCKS)]}"'))
            parts.append(f'<text x="{x + 23}" y="40">{_escape(lock)}</text>')
            x += 40 + _LETTER * len(lock)
        return parts, x

    def _line(self, lane: int, name: str) -> str:
        y = self._y(lane)
        return (
            f'<text x="{_MARGIN}" y="{y + 4}" class="name">{_escape(name)}</text>'
            f'<path class="lane" d="M{self._left} {y}H{self._x(self._last):.1f}"/>'
        )

    def _span(self, span: Span) -> str:
        x, y = self._x(span.begin.depth), self._y(span.lane)
        width = max(3.0, self._x(span.end.depth) - x)
        title = f"{self._picture.lanes[span.lane]}: {span.text}"
        if span.kind == "fault":
            frame = 'fill="none" stroke="#9a3fb5" stroke-dasharray="3 3"'
            return _rect(x, y - self._lane / 2 + 3, width, self._lane - 6, frame, title)
        hatched = _rect(x, y - 8, width, 16, f'fill="url(#{span.kind})"', title)
        return _rect(x, y - 8, width, 16, 'fill="#fff"') + hatched

    def _hold(self, hold: Hold) -> list[str]:
        """Draw a hold in its own lane, and who has the lock in lockd's."""
        place = self._locks[hold.lock]
        colour = _LOCKS[place % len(_LOCKS)]
        opacity = 0.3 if hold.mode == "shared" else 0.75
        x, end = self._x(hold.begin.depth), self._x(hold.end.depth)
        y, height = self._bar(hold)
        token, name = format_token(hold.token), self._picture.lanes[hold.lane]
        title = f"{name} has {hold.lock} {hold.mode} under {token}, after {hold.waited_us / 1000:.3f} ms"
        asked = self._x(hold.asked.depth)
        served = self._x(hold.served[0])
        row = min(14.0, self._lane * 0.7 / len(self._locks))
        row_y = self._y(0) - len(self._locks) * row / 2 + place * row
        look = f'fill="{colour}" fill-opacity="{opacity}"'
        parts = [
            _rect(asked, y + height / 2 - 0.75, x - asked, 1.5, f'fill="{colour}" opacity="0.6"'),
            _rect(x, y, end - x, height, f'{look} stroke="{colour}"', title),
            _rect(served, row_y, self._x(hold.served[1]) - served, row * 0.85, look, title),
        ]
        if hold.over == "expiry":
            parts.append(_rect(end - 2, y - 2, 3, height + 4, f'fill="{_BAD}"'))
        return parts

    def _bar(self, hold: Hold) -> tuple[float, float]:
        """Return where a hold's bar begins from above, and its height."""
        below = 9 if self._lane == _LANE else 4
        return self._y(hold.lane) + below, min(12.0, self._lane * 0.22)

    def _token(self, hold: Hold) -> str:
        """Write a hold's token on its bar, if there is room: over the arrows, on a ground of its own."""
        y, height = self._bar(hold)
        x, token = self._x(hold.begin.depth), format_token(hold.token)
        if height < 10 or self._x(hold.end.depth) - x <= len(token) * 6:
            return ""
        ground = _rect(x + 2, y + 1.5, len(token) * 5.6 + 2, height - 3, 'fill="#fff" fill-opacity="0.85"')
        return f'{ground}<text x="{x + 3:.1f}" y="{y + height - 2.5:.1f}" class="small">{token}</text>'

    def _arrow(self, arrow: Arrow) -> str:
        drop = 14.0 if arrow.kind == "hand-off" and self._lane == _LANE else 0.0
        x, y = self._x(arrow.begin.depth), self._y(arrow.source) + drop
        end_x, end_y = self._x(arrow.end.depth), self._y(arrow.target) + drop
        length = ((end_x - x) ** 2 + (end_y - y) ** 2) ** 0.5 or 1.0
        gap = _RADIUS / length if arrow.kind == "sync" else 0.0
        dx, dy = (end_x - x) * gap, (end_y - y) * gap
        return (
            f'<path class="{arrow.kind}" fill="none" d="M{x + dx:.1f} {y + dy:.1f}L{end_x - dx:.1f} {end_y - dy:.1f}"/>'
        )

    def _mark(self, mark: Mark, fenced: bool) -> str:
        x, y, verb = self._x(mark.at.depth), self._y(mark.lane), mark.event.verb
        shape = _shape(verb, x, y, _BAD if fenced else _COLOURS[verb])
        strike = f'<path d="M{x - 9:.1f} {y}h18" stroke="{_BAD}" stroke-width="1.8"/>' if mark.struck else ""
        return f"<g><title>{_escape(f'{mark.event.host}: {mark.text}')}</title>{shape}{strike}</g>"


def _rect(x: float, y: float, width: float, height: float, look: str, title: str = "") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" width="{max(1.0, width):.1f}" height="{height:.1f}"'
    return f"<rect {place} {look}><title>{_escape(title)}</title></rect>" if title else f"<rect {place} {look}/>"


def _shape(verb: str, x: float, y: float, colour: str) -> str:
    """Draw a mark by its kind: told apart by shape as well as by colour."""
    r = _RADIUS
    match verb:
        case "read":
            return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r - 0.5}" fill="#fff" stroke="{colour}" stroke-width="1.6"/>'
        case "apply":
            return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r * 0.5}" fill="{colour}"/>'
        case "undo":
            path = f"M{x - r + 1:.1f} {y - r + 1:.1f}l{2 * r - 2} {2 * r - 2}m0 {2 - 2 * r}l{2 - 2 * r} {2 * r - 2}"
            return f'<path d="{path}" stroke="{colour}" stroke-width="2"/>'
        case "write":
            path = f"M{x - r:.1f} {y - r:.1f}h{2 * r}v{2 * r}h{-2 * r}z"
        case "update":
            path = f"M{x:.1f} {y - r - 1:.1f}l{r + 0.5} {2 * r + 0.5}h{-2 * r - 1}z"
        case _:
            path = f"M{x:.1f} {y - r - 1:.1f}l{r + 1} {r + 1}l{-r - 1} {r + 1}l{-r - 1} {-r - 1}z"
    return f'<path d="{path}" fill="{colour}"/>'


def _escape(text: str) -> str:
    """Return a text as XML shows it; what cannot be seen, and what XML cannot hold, is written out."""
    return escape(printable(text))
