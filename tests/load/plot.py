"""Line and bar charts as SVG, enough for docs/benchmarks; no library needed."""
from html import escape

COLOURS = ["#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#9c6b4e", "#a463f2"]
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 360, 70, 20, 60, 50


def _ticks(most):
    """About five round numbers from 0 to at least `most`."""
    if most <= 0:
        return [0, 1]
    step = 10.0 ** len(str(int(most))) / 1000 if most >= 1 else 0.01
    while most / step > 6:
        for factor in (2, 2.5, 2):
            if most / step > 6:
                step *= factor
    ticks = [0.0]
    while ticks[-1] < most:
        ticks.append(ticks[-1] + step)
    return ticks


def _number(value):
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.2g}"


def _frame(title, y_label, ticks, names):
    def y(value):
        return HEIGHT - BOTTOM - value / ticks[-1] * (HEIGHT - TOP - BOTTOM)
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
           f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
           f'<text x="{LEFT}" y="20" font-size="15">{escape(title)}</text>',
           f'<text x="{LEFT}" y="{TOP - 8}" fill="#555">{escape(y_label)}</text>']
    for tick in ticks:
        out.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" stroke="#ddd"/>')
        out.append(f'<text x="{LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{_number(tick)}</text>')
    x = WIDTH - RIGHT
    for index in range(len(names) - 1, -1, -1):
        x -= 8 * len(names[index]) + 24
        out.append(f'<rect x="{x}" y="27" width="12" height="12" fill="{COLOURS[index % len(COLOURS)]}"/>')
        out.append(f'<text x="{x + 16}" y="37">{escape(names[index])}</text>')
    return out, y


def bars(path, title, y_label, groups, series):
    """`series`: {name: [a value or None for each group]}."""
    values = [value for row in series.values() for value in row if value is not None]
    out, y = _frame(title, y_label, _ticks(max(values, default=1)), list(series))
    room = (WIDTH - LEFT - RIGHT) / len(groups)
    width = room * 0.8 / len(series)
    for at, group in enumerate(groups):
        left = LEFT + at * room + room * 0.1
        out.append(f'<text x="{LEFT + (at + 0.5) * room:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{escape(group)}</text>')
        for index, row in enumerate(series.values()):
            if row[at] is None:
                continue
            x, top = left + index * width, y(row[at])
            out.append(f'<rect x="{x:.1f}" y="{top:.1f}" width="{width:.1f}" height="{HEIGHT - BOTTOM - top:.1f}" fill="{COLOURS[index % len(COLOURS)]}"/>')
            out.append(f'<text x="{x + width / 2:.1f}" y="{top - 3:.1f}" text-anchor="middle" font-size="9">{_number(row[at])}</text>')
    _write(path, out)


def lines(path, title, y_label, x_label, series, marks=()):
    """`series`: {name: [(x, y), ...]}; `marks`: [(x, text)] drawn as upright lines."""
    points = [point for row in series.values() for point in row]
    out, y = _frame(title, y_label, _ticks(max((point[1] for point in points), default=1)), list(series))
    first, last = min((point[0] for point in points), default=0), max((point[0] for point in points), default=1)

    def x(value):
        return LEFT + (value - first) / ((last - first) or 1) * (WIDTH - LEFT - RIGHT)
    for at, text in marks:
        out.append(f'<line x1="{x(at):.1f}" x2="{x(at):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" stroke="#bbb" stroke-dasharray="3"/>')
        out.append(f'<text x="{x(at) + 2:.1f}" y="{TOP + 10}" font-size="9" fill="#777">{escape(text)}</text>')
    for tick in _ticks(last - first):
        if first + tick <= last:
            out.append(f'<text x="{x(first + tick):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{_number(first + tick)}</text>')
    out.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 12}" text-anchor="middle" fill="#555">{escape(x_label)}</text>')
    for index, row in enumerate(series.values()):
        path_points = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in row)
        out.append(f'<polyline points="{path_points}" fill="none" stroke="{COLOURS[index % len(COLOURS)]}" stroke-width="2"/>')
    _write(path, out)


def _write(path, out):
    with open(path, "w") as file:
        file.write("\n".join(out + ["</svg>", ""]))
