// Boxes, holes and maps drawn with the mouse. The page asks ldmDrawn(id) for what was drawn:
// JSON of boxes [{"box": [x0, y0, x1, y1] in 0..1, "class": k}], or a PNG as a data URL.
(() => {
  const states = new WeakMap(); // of a canvas: its boxes, and what undo brings back
  const KEPT = 20; // steps of undo
  let active = null; // {canvas, x, y}: the mouse button is down

  const widget = (canvas) => canvas.closest(".ldm-draw");
  const state = (canvas) => {
    if (!states.has(canvas)) states.set(canvas, { boxes: [], before: [] });
    return states.get(canvas);
  };
  const pen = (canvas) => canvas.getContext("2d", { willReadFrequently: true });
  const chosen = (canvas) => widget(canvas).querySelector("select")?.selectedOptions[0];

  function place(canvas, event) {
    const frame = canvas.getBoundingClientRect();
    const within = (n) => Math.min(Math.max(n, 0), 1);
    return [within((event.clientX - frame.left) / frame.width), within((event.clientY - frame.top) / frame.height)];
  }

  // --- boxes

  const box = (a, b) => [Math.min(a[0], b[0]), Math.min(a[1], b[1]), Math.max(a[0], b[0]), Math.max(a[1], b[1])];
  const round = (n) => Math.round(n * 1e4) / 1e4;

  function redraw(canvas, extra) {
    const brush = pen(canvas);
    brush.clearRect(0, 0, canvas.width, canvas.height);
    brush.lineWidth = 2;
    brush.font = "14px sans-serif";
    for (const one of [...state(canvas).boxes, ...(extra ? [extra] : [])]) {
      const [x0, y0, x1, y1] = one.box;
      const [left, top] = [x0 * canvas.width, y0 * canvas.height];
      brush.strokeStyle = brush.fillStyle = one.colour;
      brush.strokeRect(left, top, (x1 - x0) * canvas.width, (y1 - y0) * canvas.height);
      brush.fillText(one.name, left + 4, top + 16);
    }
  }

  function boxTo(canvas, point, last) {
    const option = chosen(canvas);
    const found = box([active.x, active.y], point);
    const one = { box: found, class: Number(option.value), colour: option.dataset.colour, name: option.text };
    if (last && found[2] - found[0] > 0.01 && found[3] - found[1] > 0.01) state(canvas).boxes.push(one);
    redraw(canvas, last ? null : one);
  }

  // --- painting, without soft edges: a map has no colours between classes

  function dab(canvas, x, y) {
    const brush = pen(canvas);
    const size = Number(widget(canvas).querySelector("input[type=range]").value);
    const [left, top] = [Math.round(x - size / 2), Math.round(y - size / 2)];
    brush.clearRect(left, top, size, size);
    brush.fillStyle = chosen(canvas)?.dataset.colour ?? "rgba(255, 0, 128, 0.7)";
    brush.fillRect(left, top, size, size);
  }

  function paintTo(canvas, point) {
    const [x0, y0] = [active.x * canvas.width, active.y * canvas.height];
    const [x1, y1] = [point[0] * canvas.width, point[1] * canvas.height];
    const steps = Math.max(1, Math.ceil(Math.hypot(x1 - x0, y1 - y0)));
    for (let i = 0; i <= steps; i++) dab(canvas, x0 + ((x1 - x0) * i) / steps, y0 + ((y1 - y0) * i) / steps);
    [active.x, active.y] = point;
  }

  function remember(canvas) {
    const before = state(canvas).before;
    before.push(pen(canvas).getImageData(0, 0, canvas.width, canvas.height));
    if (before.length > KEPT) before.shift();
  }

  // --- events, for canvases that come and go

  document.addEventListener("pointerdown", (event) => {
    const canvas = event.target.closest?.(".ldm-draw canvas");
    if (!canvas || widget(canvas).dataset.mode === "show") return;
    event.preventDefault();
    const [x, y] = place(canvas, event);
    active = { canvas, x, y };
    if (widget(canvas).dataset.mode !== "boxes") {
      remember(canvas);
      paintTo(canvas, [x, y]);
    }
  });
  document.addEventListener("pointermove", (event) => {
    if (!active) return;
    const { canvas } = active;
    if (widget(canvas).dataset.mode === "boxes") boxTo(canvas, place(canvas, event), false);
    else paintTo(canvas, place(canvas, event));
  });
  for (const name of ["pointerup", "pointercancel"])
    document.addEventListener(name, (event) => {
      if (!active) return;
      const { canvas } = active;
      if (widget(canvas).dataset.mode === "boxes") boxTo(canvas, place(canvas, event), name === "pointerup");
      active = null;
    });
  document.addEventListener("click", (event) => {
    const button = event.target.closest?.(".ldm-draw button");
    if (!button) return;
    const canvas = button.closest(".ldm-draw").querySelector("canvas");
    const { boxes, before } = state(canvas);
    if (widget(canvas).dataset.mode === "boxes") {
      button.dataset.do === "undo" ? boxes.pop() : boxes.splice(0);
      redraw(canvas);
    } else if (button.dataset.do === "undo") {
      if (before.length) pen(canvas).putImageData(before.pop(), 0, 0);
    } else {
      remember(canvas);
      pen(canvas).clearRect(0, 0, canvas.width, canvas.height);
    }
  });

  window.ldmDrawn = (id) => {
    const canvas = document.querySelector(`#${id} canvas`);
    if (!canvas) return "";
    if (widget(canvas).dataset.mode !== "boxes") return canvas.toDataURL("image/png");
    return JSON.stringify(state(canvas).boxes.map((one) => ({ box: one.box.map(round), class: one.class })));
  };
})();
