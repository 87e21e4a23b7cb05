"""The pages' only script: values under the pointer, steps chosen by dragging, and the filters of rollouts."""

SCRIPT = """
for (const svg of document.querySelectorAll("svg[data-chart]")) {
  const curves = JSON.parse(svg.dataset.chart), guide = svg.querySelector(".guide"), tip = svg.parentNode.lastChild;
  const inner = svg.querySelector("svg"), band = svg.querySelector(".band"), ends = svg.querySelectorAll(".step");
  const left = Number(guide.dataset.left), width = Number(guide.dataset.width), pad = left - inner.viewBox.baseVal.x;
  const words = [...ends].map((end) => end.textContent);
  // The steps in sight: from `first` on, `share` of the chart's width, in the units of the drawing.
  let first = left, share = 1, from = null;
  const at = (event) => {
    const box = svg.getBoundingClientRect(), x = (event.clientX - box.left) * svg.viewBox.baseVal.width / box.width;
    return Math.min(Math.max(x, left), left + width);
  };
  const inside = (x) => first + (x - left) * share;
  const hide = () => { tip.hidden = true; guide.setAttribute("visibility", "hidden"); };
  const look = (start, part) => {
    [first, share] = [start, part];
    const box = [start - pad * part, 0, (width + 2 * pad) * part, svg.viewBox.baseVal.height];
    inner.setAttribute("viewBox", box.join(" "));
    for (const dot of inner.querySelectorAll("ellipse")) dot.setAttribute("rx", dot.ry.baseVal.value * part);
    const seen = curves.flatMap((curve) => curve.steps.filter((_, k) =>
      curve.x[k] >= start - 0.1 && curve.x[k] <= start + width * part + 0.1)).sort((a, b) => a - b);
    const said = part === 1 ? words : ["step " + seen[0], seen[seen.length - 1] + ", double-click: all steps"];
    ends.forEach((end, k) => { end.textContent = said[k]; });
    hide();
  };
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("pointerdown", (event) => {
    if (event.pointerType === "touch") return; // a finger that moves reads values
    from = at(event);
    svg.setPointerCapture(event.pointerId);
  });
  svg.addEventListener("pointercancel", () => { from = null; band.setAttribute("width", 0); });
  svg.addEventListener("pointerup", (event) => {
    if (from === null) return;
    const [low, high] = [from, at(event)].sort((a, b) => a - b), [start, end] = [inside(low), inside(high)];
    from = null;
    band.setAttribute("width", 0);
    const seen = new Set(curves.flatMap((curve) => curve.steps.filter((_, k) =>
      curve.x[k] >= start && curve.x[k] <= end)));
    if (high - low > 8 && seen.size > 1) look(start, (end - start) / width);
  });
  svg.addEventListener("dblclick", () => look(left, 1));
  svg.addEventListener("pointermove", (event) => {
    const place = at(event);
    if (from !== null) {
      band.setAttribute("x", Math.min(from, place));
      band.setAttribute("width", Math.abs(place - from));
    }
    let best = null;
    for (const curve of curves) curve.x.forEach((x, k) => {
      if (best === null || Math.abs(x - inside(place)) < Math.abs(best.x - inside(place))) {
        best = { x: x, step: curve.steps[k] };
      }
    });
    const lines = ["step " + best.step];
    for (const curve of curves) {
      const k = curve.steps.indexOf(best.step);
      if (k >= 0) lines.push(curve.label + "  " + curve.text[k]);
    }
    tip.textContent = lines.join("\\n");
    tip.hidden = false;
    const shown = left + (best.x - first) / share, box = svg.getBoundingClientRect();
    const pixels = shown * box.width / svg.viewBox.baseVal.width;
    tip.style.left = pixels < box.width / 2 ? pixels + 10 + "px" : "auto";
    tip.style.right = pixels < box.width / 2 ? "auto" : box.width - pixels + 10 + "px";
    guide.setAttribute("x1", shown);
    guide.setAttribute("x2", shown);
    guide.setAttribute("visibility", "visible");
  });
}
const bar = document.querySelector(".filters");
if (bar) {
  const place = document.querySelector(".rollouts"), cards = [...place.children];
  const chosen = (name) => bar.querySelector("[name=" + name + "]").value;
  const by = (name, sign) => (a, b) => sign * (Number(a.dataset[name]) - Number(b.dataset[name]));
  const orders = { newest: by("step", -1), oldest: by("step", 1), gained: by("gain", -1), lost: by("gain", 1),
    best: by("score", -1), worst: by("score", 1) };
  const show = () => {
    const words = chosen("text").toLowerCase().split(/\\s+/);
    let count = 0;
    for (const card of cards) {
      const fits = words.every((word) => card.dataset.text.includes(word)) &&
        ["tag", "outcome", "phase"].every((name) => !chosen(name) || card.dataset[name] === chosen(name));
      card.hidden = !fits;
      count += fits;
    }
    place.append(...[...cards].sort(orders[chosen("order")]));
    bar.querySelector("output").textContent = count + " of " + cards.length + " shown";
  };
  bar.addEventListener("input", show);
  show();
}
"""
