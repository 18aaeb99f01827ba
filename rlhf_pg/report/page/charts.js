// Zoom: drag over a chart, or use the keyboard. Charts with the same horizontal axis move together.
const zooms = new Map(); // axis label -> [low, high] in its unit
const BOX = 1000; // width and height in which paths are drawn

function ticks(low, high, about) {
  const span = (high - low) / about;
  const power = 10 ** Math.floor(Math.log10(span));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= span * 0.999) ?? 10 * power;
  const places = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) places.push(i * step);
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  return places.map((v) => [v, digits > 5 ? v.toExponential(1) : v.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits })]);
}

function shownHeights(svg, left, width) {
  // The lowest and highest place of the lines between two places, [0, BOX] where there are none or areas.
  if (svg.querySelector(".area")) return [0, BOX];
  let top = Infinity, bottom = -Infinity;
  const add = (y) => ([top, bottom] = [Math.min(top, y), Math.max(bottom, y)]);
  for (const path of svg.querySelectorAll("path:not(.grid)")) {
    let before = null;
    for (const [, command, ...place] of path.getAttribute("d").matchAll(/([ML])(-?[\d.]+) (-?[\d.]+)/g)) {
      const [x, y] = place.map(Number);
      if (x >= left && x <= left + width) add(y);
      for (const edge of [left, left + width]) { // where a line enters or leaves
        if (command === "L" && before[0] < edge && x > edge) add(before[1] + ((edge - before[0]) / (x - before[0])) * (y - before[1]));
      }
      before = [x, y];
    }
  }
  if (top > bottom) return [0, BOX];
  const pad = Math.max((bottom - top) * 0.06, 5);
  return [Math.max(top - pad, 0), Math.min(bottom + pad, BOX)];
}

function label(plot, kind, style, place, text) {
  const span = document.createElement("span");
  span.className = `${kind} made`;
  span.style[style] = `${place}%`;
  span.textContent = text;
  plot.append(span);
}

function drawZoom(figure) {
  if (figure.dataset.x0 === figure.dataset.x1) return; // a single point
  const plot = figure.querySelector(".plot"), svg = plot.querySelector("svg"), grid = svg.querySelector(".grid");
  const zoom = zooms.get(figure.dataset.axis);
  figure.classList.toggle("zoomed", !!zoom);
  plot.querySelectorAll(".made").forEach((span) => span.remove());
  grid.dataset.whole ??= grid.getAttribute("d");
  figure.querySelector(".reset")?.remove();
  if (!zoom) {
    svg.setAttribute("viewBox", `0 0 ${BOX} ${BOX}`);
    grid.setAttribute("d", grid.dataset.whole);
    return;
  }
  const [x0, x1, y0, y1] = ["x0", "x1", "y0", "y1"].map((name) => +figure.dataset[name]);
  const left = ((zoom[0] - x0) / (x1 - x0)) * BOX, width = ((zoom[1] - zoom[0]) / (x1 - x0)) * BOX;
  const [top, bottom] = shownHeights(svg, left, width);
  svg.setAttribute("viewBox", `${left} ${top} ${width} ${bottom - top}`);
  for (const [x, text] of ticks(zoom[0], zoom[1], 5)) label(plot, "x", "left", ((x - zoom[0]) / (zoom[1] - zoom[0])) * 100, text);
  const value = (place) => y1 - (place / BOX) * (y1 - y0);
  let lines = "";
  for (const [y, text] of ticks(value(bottom), value(top), 5)) {
    const place = ((y1 - y) / (y1 - y0)) * BOX;
    lines += `M${left} ${place}h${width}`;
    label(plot, "y", "top", ((place - top) / (bottom - top)) * 100, text + figure.dataset.unit);
  }
  grid.setAttribute("d", lines);
  const reset = document.createElement("button");
  reset.className = "reset";
  reset.textContent = "Show all";
  reset.addEventListener("click", () => (zoomTo(figure, null), svg.focus()));
  figure.querySelector("figcaption").append(reset);
}

function zoomTo(figure, range) {
  const axis = figure.dataset.axis, x0 = +figure.dataset.x0, x1 = +figure.dataset.x1;
  if (range) {
    const width = Math.max(range[1] - range[0], (x1 - x0) / 1e4);
    const low = Math.min(Math.max(range[0], x0), x1 - Math.min(width, x1 - x0));
    range = width < x1 - x0 ? [low, low + width] : null;
  }
  if (range) zooms.set(axis, range);
  else zooms.delete(axis);
  for (const other of document.querySelectorAll("figure[data-axis]")) if (other.dataset.axis === axis) drawZoom(other);
}

function zoomByKey(event) {
  const figure = event.currentTarget.closest("figure"), all = [+figure.dataset.x0, +figure.dataset.x1];
  const [low, high] = zooms.get(figure.dataset.axis) ?? all, span = high - low;
  const ranges = {
    "+": [low + span / 4, high - span / 4], "-": [low - span / 2, high + span / 2], Escape: all,
    ArrowLeft: [low - span / 4, high - span / 4], ArrowRight: [low + span / 4, high + span / 4],
  };
  const range = ranges[event.key === "=" ? "+" : event.key === "0" ? "Escape" : event.key];
  if (!range || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  zoomTo(figure, range);
}

function brush(event) {
  if (event.button !== 0) return;
  const svg = event.currentTarget, figure = svg.closest("figure"), plot = svg.parentElement, box = svg.getBoundingClientRect();
  const [low, high] = zooms.get(figure.dataset.axis) ?? [+figure.dataset.x0, +figure.dataset.x1];
  const share = (at) => Math.min(Math.max((at.clientX - box.left) / box.width, 0), 1);
  const from = share(event), area = document.createElement("div");
  area.className = "brush";
  plot.append(area);
  svg.setPointerCapture(event.pointerId);
  const ends = (at) => [Math.min(from, share(at)), Math.max(from, share(at))];
  const end = new AbortController();
  svg.addEventListener("pointermove", (at) => {
    const [a, b] = ends(at);
    area.style.left = `${a * 100}%`;
    area.style.width = `${(b - a) * 100}%`;
  }, { signal: end.signal });
  for (const name of ["pointerup", "pointercancel"]) {
    svg.addEventListener(name, (at) => {
      const [a, b] = ends(at);
      end.abort();
      area.remove();
      if (name === "pointerup" && (b - a) * box.width > 8) zoomTo(figure, [low + a * (high - low), low + b * (high - low)]);
    }, { signal: end.signal });
  }
}

function startCharts() {
  for (const figure of document.querySelectorAll("figure[data-axis]")) {
    const svg = figure.querySelector("svg");
    if (figure.dataset.x0 === figure.dataset.x1 || svg.tabIndex === 0) continue;
    svg.tabIndex = 0;
    svg.setAttribute("aria-description", "Plus and minus zoom, arrow keys move, Escape shows all.");
    svg.addEventListener("keydown", zoomByKey);
    svg.addEventListener("pointerdown", brush);
    svg.addEventListener("dblclick", () => zoomTo(figure, null));
    drawZoom(figure);
  }
}
