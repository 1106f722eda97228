// The viewer of stand: H&E tiles, outlines of nuclei and spots drawn by WebGL 2; marks, controls and the card of a nucleus above them.
// One module for the notebook's widget and for the exported page. Each gives `mount` a source, which answers questions with
// [content, buffers], and a state, which both sides read and set. Coordinates are full-resolution pixels, y downwards.

const WIDE = 2048;  // colours of nuclei lie in a texture, so many in a row
const NONE = -1e38;  // below: no value
const POLYGON_PX = 7, RIM_PX = 11;  // diameter on the screen from which on a nucleus has its outline, and a rim, CSS pixels
const KEPT_TILES = 192, KEPT_CORNERS = 3e6;  // of the H&E (1 MB each) and of outlines, in memory
const SLOW_MS = 40, REST_MS = 140;  // frames slower than this are drawn coarser while the picture moves; it rests after so long
const MOST_UM_PX = 80;  // CSS pixels to the µm at the closest
const FONT = "12px system-ui, sans-serif";

const clamp = (v, low, high) => Math.min(high, Math.max(low, v));
const digits = v => v === null || Number.isNaN(v) ? "none" : v === 0 ? "0" : Number(v.toPrecision(3)).toLocaleString("en", {maximumSignificantDigits: 3});
const name_of = message => String(message?.message ?? message);

function h(tag, props = {}, ...children) {  // texts only ever become text nodes, whatever they hold
  const node = Object.assign(document.createElement(tag), props);
  for (const [key, value] of Object.entries(props)) if (key.includes("-") || key === "role") node.setAttribute(key, value);
  node.append(...children);
  return node;
}

// ---- shaders

const HEAD = "#version 300 es\nprecision highp float; precision highp int;\n";
const SHADERS = {
  tile: [HEAD + `uniform vec4 place; in vec2 corner; out vec2 at;
    void main() { at = corner; gl_Position = vec4(place.xy + corner * place.zw, 0, 1); }`,
  HEAD + `uniform sampler2D picture; uniform float dim, opacity; in vec2 at; out vec4 pixel;
    void main() { vec4 found = texture(picture, at); pixel = vec4(mix(found.rgb, vec3(1), dim), found.a) * opacity; }`],
  outline: [HEAD + `uniform sampler2D colours; uniform vec2 origin, stretch; uniform float unit, opacity; in vec2 corner; in uint row; flat out vec4 shade;
    void main() {
      gl_Position = vec4((origin + corner * unit) * stretch, 0, 1);
      shade = texelFetch(colours, ivec2(row % ${WIDE}u, row / ${WIDE}u), 0) * opacity;
    }`,
  HEAD + "flat in vec4 shade; out vec4 pixel; void main() { pixel = shade; }"],
  spot: [HEAD + `uniform vec2 centre, stretch; uniform float radius; in vec2 corner, xy; in vec4 fill; out vec2 at; flat out vec4 shade;
    void main() { at = corner; shade = fill; gl_Position = vec4((xy + corner * radius - centre) * stretch, 0, 1); }`,
  HEAD + `uniform float rim; in vec2 at; flat in vec4 shade; out vec4 pixel;
    void main() { float r = length(at); if (r > 1.0) discard; pixel = r > 1.0 - rim ? vec4(0, 0, 0, 0.7) : shade; }`],
};

// Is WebGL computed on the processor? Then smoothing edges costs more than it is worth.
function bySoftware() {
  const gl = document.createElement("canvas").getContext("webgl2"), info = gl?.getExtension("WEBGL_debug_renderer_info");
  const name = info ? gl.getParameter(info.UNMASKED_RENDERER_WEBGL) : "";
  gl?.getExtension("WEBGL_lose_context")?.loseContext();
  return /swiftshader|llvmpipe|software|basic render/i.test(name);
}

function program(gl, [vertex, fragment]) {
  const made = gl.createProgram();
  for (const [kind, text] of [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, fragment]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, text); gl.compileShader(shader); gl.attachShader(made, shader);
    if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS) && !gl.isContextLost()) throw new Error(gl.getShaderInfoLog(shader));
  }
  gl.linkProgram(made);
  if (!gl.getProgramParameter(made, gl.LINK_STATUS) && !gl.isContextLost()) throw new Error(gl.getProgramInfoLog(made));
  const at = {};
  for (let i = 0; i < gl.getProgramParameter(made, gl.ACTIVE_UNIFORMS); i++) {
    const {name} = gl.getActiveUniform(made, i);
    at[name] = gl.getUniformLocation(made, name);
  }
  return {made, at};
}

// Make an array of vertices: attributes are [name, how many, type, stride, offset, {whole numbers?, divisor, scaled to 1?}].
function vertices(gl, program, data, attributes, indices) {
  const array = gl.createVertexArray(), buffers = [];
  const upload = (target, content) => { const b = gl.createBuffer(); buffers.push(b); gl.bindBuffer(target, b); gl.bufferData(target, content, gl.STATIC_DRAW); };
  gl.bindVertexArray(array);
  data.forEach((content, i) => {
    upload(gl.ARRAY_BUFFER, content);
    for (const [name, n, type, stride, offset, {whole, divisor, scaled} = {}] of attributes[i]) {
      const at = gl.getAttribLocation(program.made, name);
      if (at < 0) continue;
      gl.enableVertexAttribArray(at);
      if (whole) gl.vertexAttribIPointer(at, n, type, stride, offset); else gl.vertexAttribPointer(at, n, type, !!scaled, stride, offset);
      if (divisor) gl.vertexAttribDivisor(at, divisor);
    }
  });
  if (indices) upload(gl.ELEMENT_ARRAY_BUFFER, indices);
  gl.bindVertexArray(null);
  return {array, free() { gl.deleteVertexArray(array); buffers.forEach(b => gl.deleteBuffer(b)); }};
}

function texture(gl, filter) {
  const made = gl.createTexture();
  gl.bindTexture(gl.TEXTURE_2D, made);
  for (const side of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(gl.TEXTURE_2D, side, filter);
  for (const side of [gl.TEXTURE_WRAP_S, gl.TEXTURE_WRAP_T]) gl.texParameteri(gl.TEXTURE_2D, side, gl.CLAMP_TO_EDGE);
  return made;
}

// ---- outlines

// Cut a polygon of n corners into triangles by its ears; what is left of one that crosses itself becomes a fan.
export function triangulate(p, first, n, out) {
  const at = Array.from({length: n}, (_, i) => first + i);
  const cross = (a, b, c) => (p[2 * b] - p[2 * a]) * (p[2 * c + 1] - p[2 * a + 1]) - (p[2 * b + 1] - p[2 * a + 1]) * (p[2 * c] - p[2 * a]);
  let area = 0;
  for (let i = 1; i < n - 1; i++) area += cross(first, first + i, first + i + 1);
  const turn = Math.sign(area), same = (a, b) => p[2 * a] === p[2 * b] && p[2 * a + 1] === p[2 * b + 1];
  for (let i = 0, tried = 0; at.length > 3 && tried < at.length; ) {
    const m = at.length, a = at[(i + m - 1) % m], b = at[i % m], c = at[(i + 1) % m], bend = turn * cross(a, b, c);
    const inside = q => q !== a && q !== b && q !== c && !same(q, a) && !same(q, b) && !same(q, c)
      && turn * cross(a, b, q) >= 0 && turn * cross(b, c, q) >= 0 && turn * cross(c, a, q) >= 0;
    if (bend === 0 || (bend > 0 && !at.some(inside))) {
      if (bend) out.push(a, b, c);
      at.splice(i % m, 1); tried = 0; i %= Math.max(1, at.length);
    } else { i = (i + 1) % m; tried++; }
  }
  for (let k = 1; k < at.length - 1; k++) out.push(at[0], at[k], at[k + 1]);
}

export function within(x, y, p, first, n) {  // is a point in a polygon: even-odd rule
  let inside = false;
  for (let i = 0, j = n - 1; i < n; j = i++) {
    const xi = p[2 * (first + i)], yi = p[2 * (first + i) + 1], xj = p[2 * (first + j)], yj = p[2 * (first + j) + 1];
    if (yi > y !== yj > y && x < (xj - xi) * (y - yi) / (yj - yi) + xi) inside = !inside;
  }
  return inside;
}

// Nuclei by squares of the slide: what is looked for, drawn or asked for together.
class Blocks {
  constructor({left, top, side, columns, rows, reach}, xy) {
    Object.assign(this, {left, top, side, columns, rows, reach, xy});
    const n = xy.length / 2, block = new Uint32Array(n);
    this.start = new Uint32Array(columns * rows + 1);
    for (let i = 0; i < n; i++) this.start[(block[i] = this.at(xy[2 * i], xy[2 * i + 1])) + 1]++;
    for (let b = 0; b < columns * rows; b++) this.start[b + 1] += this.start[b];
    const next = this.start.slice();
    this.order = new Uint32Array(n);
    for (let i = 0; i < n; i++) this.order[next[block[i]]++] = i;
  }
  column(x) { return clamp(Math.floor((x - this.left) / this.side), 0, this.columns - 1); }
  row(y) { return clamp(Math.floor((y - this.top) / this.side), 0, this.rows - 1); }
  at(x, y) { return this.row(y) * this.columns + this.column(x); }
  *lines([x0, y0, x1, y1], reach = this.reach) {  // [first, last block] of each line of blocks in a region
    const a = this.column(x0 - reach), b = this.column(x1 + reach);
    for (let r = this.row(y0 - reach), end = this.row(y1 + reach); r <= end; r++) yield [r * this.columns + a, r * this.columns + b];
  }
  *around(region, reach) { for (const [a, b] of this.lines(region, reach)) for (let k = this.start[a]; k < this.start[b + 1]; k++) yield this.order[k]; }
}

// ---- names

function distance(a, b) {  // of Levenshtein
  let row = Array.from({length: b.length + 1}, (_, i) => i);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) next[j] = Math.min(row[j] + 1, next[j - 1] + 1, row[j - 1] + (a[i - 1] !== b[j - 1]));
    row = next;
  }
  return row[b.length];
}

export function nearest(text, names, n = 4) {
  const low = text.toLowerCase();
  return names.map(name => [distance(low, name.toLowerCase()), name]).sort((a, b) => a[0] - b[0] || (a[1] < b[1] ? -1 : 1)).slice(0, n).map(([, name]) => name);
}

export function matches(text, names, n = 12) {  // those that begin with the text, then those that hold it
  const low = text.toLowerCase(), begin = [], hold = [];
  for (const name of names) {
    const at = name.toLowerCase().indexOf(low);
    if (at === 0) begin.push(name); else if (at > 0) hold.push(name);
  }
  return [...begin.sort((a, b) => a.length - b.length), ...hold].slice(0, n);
}

// ---- the viewer

class Viewer {
  constructor(el, source, state) {
    Object.assign(this, {el, source, state, tiles: new Map(), outlines: new Map(), asked: 0, frame: 0, clock: 0, gone: false, lasso: null, mode: "pan", grains: 1, pace: 0, moved: 0, painted: 0, hover: -1, hoverSpot: -1});
    this.glass = h("canvas", {className: "stand-glass"});
    this.marks = h("canvas", {className: "stand-marks", hidden: true});
    this.scaleMark = h("canvas", {className: "stand-scale"});
    this.bars = h("canvas", {className: "stand-bars"});
    this.card = h("div", {className: "stand-card", hidden: true});
    this.stage = h("div", {className: "stand-stage", tabIndex: 0, "aria-label": "H&E with nuclei: drag to move, wheel to zoom, shift and drag to select"}, this.glass, this.marks, this.scaleMark, this.bars, this.card);
    this.panel = h("div", {className: "stand-panel"});
    this.status = h("div", {className: "stand-status", role: "status"}, "waiting for Python ...");
    this.panel.append(this.status);
    this.root = h("div", {className: "stand-viewer"}, this.stage, this.panel);
    this.root.style.height = source.height;
    el.classList.add("stand-host");
    el.append(this.root);
  }

  async start() {
    const [meta, [tables]] = await this.source.ask({kind: "meta"});
    if (this.gone) return;
    this.meta = meta;
    this.tables = Object.fromEntries(meta.cmaps.map((name, i) => [name, tables.subarray(768 * i, 768 * (i + 1))]));
    this.values = new Float32Array(meta.n).fill(2 * NONE);
    this.flags = new Uint8Array(meta.n);
    this.names = [...meta.columns, ...meta.genes];
    this.say("");
    this.controls();
    this.glContext();
    this.listen();
    await new Promise(sized => {
      this.watch = new ResizeObserver(() => { if (this.stage.clientWidth) { sized(); this.resized(); } });
      this.watch.observe(this.stage);
    });
    this.look(this.state.get("view_um"));
    const nuclei = this.source.ask({kind: "nuclei"}).then(([, [xy, diameter]]) => {
      this.xy = floats(xy); this.diameter = floats(diameter);
      this.blocks = new Blocks(this.meta.blocks, this.xy);
      this.inOrder = new Float32Array(3 * this.meta.n);
      this.blocks.order.forEach((row, k) => this.inOrder.set([this.xy[2 * row], this.xy[2 * row + 1], this.diameter[row]], 3 * k));
      this.recolour();
      this.draw();
    });
    const follow = (names, then) => names.split(" ").forEach(name => this.state.on(name, then));
    follow("gene", () => this.colour(this.state.get("gene")));
    follow("cmap limits vmin vmax alpha dim", () => this.changed());
    follow("spots", () => { this.changed(); this.loadSpots(); });
    follow("view_um", () => this.look(this.state.get("view_um")));
    this.source.onSelect?.(rows => this.choose(rows, false));
    this.source.onFit?.(() => this.fit());
    await Promise.all([nuclei, this.colour(this.state.get("gene"))]);
  }

  close() {
    this.gone = true;
    this.watch?.disconnect();
    this.stop?.abort();
    cancelAnimationFrame(this.frame);
    this.gl?.getExtension("WEBGL_lose_context")?.loseContext();
    this.root.remove();
  }

  say(text, trouble = false) { this.status.textContent = text; this.status.classList.toggle("stand-trouble", trouble); }
  fail(error) { this.say(name_of(error), true); }

  get idle() { return !this.asked && !this.frame && this.arrived === true; }  // all that is wanted here is drawn

  // ---- camera: centre (slide pixels) and CSS pixels to the slide pixel; `goal` is where it moves to

  get width() { return this.stage.clientWidth; }
  get height() { return this.stage.clientHeight; }
  get um() { return this.meta.mpp; }

  fitted([x, y, width, height]) { return {x: x + width / 2, y: y + height / 2, scale: Math.min(this.width / width, this.height / height)}; }

  bounded({x, y, scale}) {
    const {width, height, mpp} = this.meta, least = Math.min(this.width / width, this.height / height) / 2;
    return {x: clamp(x, 0, width), y: clamp(y, 0, height), scale: clamp(scale, least, Math.max(MOST_UM_PX * mpp, least))};
  }

  move(goal, smoothly = false) {
    if (!this.width) { this.unseen = true; return; }  // hidden, or taken off the page: to be looked at when it has a size again
    this.goal = this.bounded(goal);
    if (!smoothly || !this.camera) this.camera = {...this.goal};
    this.moved = performance.now();
    this.draw();
    clearTimeout(this.later);
    this.later = setTimeout(() => {
      const view = this.view(), told = this.state.get("view_um");
      if (!this.gone && this.width && !alike(view, told)) this.state.set("view_um", this.sent = view);
    }, 150);
  }

  view() { const {x, y, scale} = this.goal; return [x - this.width / 2 / scale, y - this.height / 2 / scale, this.width / scale].map(v => Number((v * this.um).toFixed(3))); }

  look(view) {  // at left, top, width in µm; nothing: all nuclei
    if (alike(view, this.sent)) return;
    if (!view?.length) return this.move(this.fitted(this.meta.frame), !!this.camera);
    const [left, top, width] = view.map(v => v / this.um), scale = this.width / width;
    this.move({x: left + width / 2, y: top + this.height / 2 / scale, scale}, !!this.camera);
  }

  fit() { this.move(this.fitted(this.meta.frame), true); }

  zoom(factor, [px, py] = [this.width / 2, this.height / 2], smoothly = true) {
    const {x, y, scale} = this.goal, next = this.bounded({x, y, scale: scale * factor}).scale, shift = 1 / scale - 1 / next;
    this.move({x: x + (px - this.width / 2) * shift, y: y + (py - this.height / 2) * shift, scale: next}, smoothly);
  }

  toSlide(px, py) { const {x, y, scale} = this.camera; return [x + (px - this.width / 2) / scale, y + (py - this.height / 2) / scale]; }
  toScreen(x, y) { const c = this.camera; return [(x - c.x) * c.scale + this.width / 2, (y - c.y) * c.scale + this.height / 2]; }
  region() { return [...this.toSlide(0, 0), ...this.toSlide(this.width, this.height)]; }

  step(now) {  // x, y and 1 / scale move alike, so that the place under the pointer stays there
    const {camera: c, goal: g} = this, k = 1 - Math.exp(-Math.min(now - this.clock, 50) / 45);
    this.clock = now;
    const near = Math.abs(Math.log(g.scale / c.scale)) < 1e-3 && Math.hypot(g.x - c.x, g.y - c.y) * c.scale < 0.3;
    if (near) this.camera = {...g};
    else {
      const zoomed = 1 / c.scale + k * (1 / g.scale - 1 / c.scale);
      this.camera = {x: c.x + k * (g.x - c.x), y: c.y + k * (g.y - c.y), scale: 1 / zoomed};
    }
    return !near;
  }

  resized() {
    if (!this.unseen) { if (this.camera) this.move(this.goal); return; }
    this.unseen = false;
    this.sent = null;
    this.look(this.state.get("view_um"));
  }

  // ---- WebGL

  glContext() {
    const gl = this.gl = this.glass.getContext("webgl2", {alpha: false, antialias: !bySoftware(), depth: false, powerPreference: "high-performance"});
    if (!gl) throw new Error("this browser does not offer WebGL 2; use a current Chrome, Edge, Firefox or Safari, with hardware acceleration if it can");
    this.build();
    this.glass.addEventListener("webglcontextlost", event => event.preventDefault());
    this.glass.addEventListener("webglcontextrestored", () => { if (!this.gone) { this.build(); this.draw(); } });
  }

  build() {  // all that lives on the graphics card, also after it was lost
    const gl = this.gl;
    this.tiles.clear(); this.outlines.clear(); this.rings = null;
    this.programs = Object.fromEntries(Object.entries(SHADERS).map(([name, pair]) => [name, program(gl, pair)]));
    gl.enable(gl.BLEND); gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA); gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
    this.unit = vertices(gl, this.programs.tile, [new Float32Array([0, 0, 1, 0, 0, 1, 1, 1])], [[["corner", 2, gl.FLOAT, 8, 0]]]);
    this.colourMap = texture(gl, gl.NEAREST); this.layer = texture(gl, gl.NEAREST); this.layerSize = "";
    this.recolour();
  }

  recolour() {  // of every nucleus and spot, premultiplied RGBA, also on the graphics card
    const {shown, values, flags, gl} = this, {n, cmaps} = this.meta, [low, high] = this.limits();
    if (!shown || !cmaps.includes(this.state.get("cmap"))) return;
    const map = this.tables[this.state.get("cmap")], table = packed(shown.names ? shown.colours : map, 1), faint = packed(shown.names ? shown.colours : map, 0.12);
    const slope = 255 / (high - low), none = packed([158, 158, 158], 0.6)[0], noneFaint = packed([158, 158, 158], 0.08)[0];
    const rows = Math.max(1, Math.ceil(n / WIDE)), colours = this.colours ??= new Uint32Array(rows * WIDE);
    for (let i = 0; i < n; i++) {
      const v = values[i], dull = this.chosen > 0 && !flags[i];
      if (v < NONE) { colours[i] = dull ? noneFaint : none; continue; }
      const k = shown.names ? v : v <= low ? 0 : v >= high ? 255 : Math.round((v - low) * slope);
      colours[i] = dull ? faint[k] : table[k];
    }
    if (!gl || gl.isContextLost()) return;
    gl.bindTexture(gl.TEXTURE_2D, this.colourMap);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA8, WIDE, rows, 0, gl.RGBA, gl.UNSIGNED_BYTE, new Uint8Array(colours.buffer));
    if (this.spots) this.uploadSpots(map);
  }

  uploadSpots(map) {
    const {gl, spots, measured} = this, fill = new Uint32Array(spots.names.length);
    if (measured && this.state.get("spots") === "measured") {
      const table = packed(map, 0.85);
      for (let i = 0; i < fill.length; i++) if (spots.values[i] >= NONE) fill[i] = table[clamp(Math.round(255 * (spots.values[i] - measured.low) / (measured.high - measured.low)), 0, 255)];
    }
    this.rings?.free();
    this.rings = vertices(gl, this.programs.spot, [new Float32Array([-1, -1, 1, -1, -1, 1, 1, 1]), spots.xy, fill],
      [[["corner", 2, gl.FLOAT, 8, 0]], [["xy", 2, gl.FLOAT, 8, 0, {divisor: 1}]], [["fill", 4, gl.UNSIGNED_BYTE, 4, 0, {divisor: 1, scaled: true}]]]);
  }

  // ---- what has to be fetched: nearest to the middle first, few at a time, so that nothing stale is waited for

  request(kept, key, question, most, arrive) {
    if (kept.has(key) || this.waiting(kept) >= most) return;
    const context = this.programs;
    kept.set(key, {waiting: true});
    this.asked++;
    this.source.ask(question).then(answer => arrive(answer, key)).then(
      item => { if (this.programs === context && !this.gone) kept.set(key, {...item, used: this.ticks}); },
      error => { kept.set(key, {failed: true}); if (!this.gone) this.fail(error); },
    ).finally(() => { this.asked--; this.draw(); });
  }
  waiting(kept) { let n = 0; for (const item of kept.values()) if (item.waiting) n++; return n; }

  forget(kept, most, weight) {  // least recently drawn first
    let total = 0;
    for (const item of kept.values()) total += weight(item);
    if (total <= most) return;
    for (const [key, item] of [...kept].filter(([, i]) => !i.waiting).sort((a, b) => (a[1].used ?? 0) - (b[1].used ?? 0))) {
      if (total <= most || item.used === this.ticks) return;
      total -= weight(item);
      if (item.texture) this.gl.deleteTexture(item.texture);
      item.mesh?.free();
      kept.delete(key);
    }
  }

  drawTiles([x0, y0, x1, y1], dpr) {
    const {meta, gl, programs: {tile}} = this, {side, levels, width, height} = meta.tiles;
    if (!levels) return true;
    const wanted = clamp(Math.round(Math.log2(1 / (this.camera.scale * dpr))), meta.tiles.finest ?? 0, levels - 1);
    gl.useProgram(tile.made); gl.bindVertexArray(this.unit.array);
    gl.uniform1i(tile.at.picture, 0); gl.uniform1f(tile.at.dim, this.state.get("dim")); gl.uniform1f(tile.at.opacity, 1);
    gl.activeTexture(gl.TEXTURE0);
    gl.disable(gl.BLEND);
    const of = level => {
      const step = side * 2 ** level, found = [];
      for (let r = Math.max(0, Math.floor(y0 / step)); r * step < Math.min(y1, height); r++)
        for (let c = Math.max(0, Math.floor(x0 / step)); c * step < Math.min(x1, width); c++) found.push([level, c, r, step]);
      return found;
    };
    const here = of(wanted), item = ([l, c, r]) => this.tiles.get(`${l}/${c}/${r}`);
    const whole = here.every(t => item(t)?.texture || item(t)?.failed);
    for (let level = whole ? wanted : levels - 1; level >= wanted; level--) for (const t of level === wanted ? here : of(level)) {
      const found = item(t), [, c, r, step] = t;
      if (!found?.texture) continue;
      found.used = this.ticks;
      const right = Math.min((c + 1) * step, width), bottom = Math.min((r + 1) * step, height);
      const [sx, sy] = this.stretch, {x, y} = this.camera;
      gl.uniform4f(tile.at.place, (c * step - x) * sx, (r * step - y) * sy, (right - c * step) * sx, (bottom - r * step) * sy);
      gl.bindTexture(gl.TEXTURE_2D, found.texture);
      gl.drawArrays(gl.TRIANGLE_STRIP, 0, 4);
    }
    gl.enable(gl.BLEND);
    const far = ([, c, r, step]) => Math.hypot((c + 0.5) * step - this.camera.x, (r + 0.5) * step - this.camera.y);
    const arrive = async ([, [jpeg]]) => {
      const picture = await createImageBitmap(new Blob([jpeg], {type: "image/jpeg"}));
      const made = texture(gl, gl.LINEAR);
      gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGB, gl.RGB, gl.UNSIGNED_BYTE, picture);
      picture.close();
      return {texture: made};
    };
    for (const t of [...of(levels - 1), ...here.sort((a, b) => far(a) - far(b))]) {
      const [level, column, row] = t;
      this.request(this.tiles, `${level}/${column}/${row}`, {kind: "tile", level, column, row}, 4, arrive);
    }
    this.forget(this.tiles, KEPT_TILES, i => i.texture ? 1 : 0);
    return whole;
  }

  drawNuclei(region, dpr) {
    const {gl, blocks, meta, camera: {x, y, scale}, programs: {outline}} = this, opacity = this.state.get("alpha");
    if (!blocks || !this.shown || opacity <= 0) return !!blocks;
    const wide = meta.diameter * scale, close = meta.outlined && wide >= POLYGON_PX, ready = [], rest = [], missing = [];
    for (const [a, b] of blocks.lines(region)) {
      if (!close) { rest.push([blocks.start[a], blocks.start[b + 1]]); continue; }
      for (let k = a; k <= b; k++) {
        if (blocks.start[k] === blocks.start[k + 1]) continue;
        const found = this.outlines.get(k);
        if (found?.mesh) { found.used = this.ticks; ready.push(found); } else { rest.push([blocks.start[k], blocks.start[k + 1]]); if (!found?.failed) missing.push(k); }
      }
    }
    if (rest.length) this.drawDisks(rest, close ? 0.65 * opacity : opacity, dpr);
    gl.useProgram(outline.made);
    gl.activeTexture(gl.TEXTURE0); gl.bindTexture(gl.TEXTURE_2D, this.colourMap); gl.uniform1i(outline.at.colours, 0);
    gl.uniform2f(outline.at.stretch, ...this.stretch);
    for (const rim of ready.length ? wide >= RIM_PX && !this.coarse ? [false, true] : [false] : []) {
      gl.uniform1f(outline.at.opacity, rim ? Math.sqrt(opacity) : wide >= RIM_PX ? 0.65 * opacity : opacity);
      for (const {mesh, left, top, unit, triangles, lines} of ready) {
        gl.uniform2f(outline.at.origin, left - x, top - y); gl.uniform1f(outline.at.unit, unit);
        gl.bindVertexArray(mesh.array);
        if (rim) gl.drawElements(gl.LINES, lines, gl.UNSIGNED_INT, 4 * triangles); else gl.drawElements(gl.TRIANGLES, triangles, gl.UNSIGNED_INT, 0);
      }
    }
    const middle = k => Math.hypot(blocks.left + (k % blocks.columns + 0.5) * blocks.side - x, blocks.top + (Math.floor(k / blocks.columns) + 0.5) * blocks.side - y);
    missing.sort((a, b) => middle(a) - middle(b)).forEach(block => this.request(this.outlines, block, {kind: "outlines", block}, 3, answer => this.mesh(answer)));
    this.forget(this.outlines, KEPT_CORNERS, i => i.rows?.length ?? 0);
    return !missing.length;
  }

  // Small disks, painted here: for so many, this is faster than the points of a graphics card, and far faster without one.
  drawDisks(ranges, opacity, dpr) {
    const {gl, glass: {width: w, height: t}, blocks: {order}, inOrder, colours, camera: {x, y, scale}, programs: {tile}} = this, zoom = scale * dpr, least = Math.max(1, Math.round(1.6 * dpr));
    if (this.canvas?.length !== w * t) this.canvas = new Uint32Array(w * t);
    const {canvas} = this;
    canvas.fill(0);
    for (const [from, to] of ranges) for (let k = from; k < to; k++) {
      const d = Math.max(least, Math.round(inOrder[3 * k + 2] * zoom)), left = Math.round((inOrder[3 * k] - x) * zoom + (w - d) / 2), top = Math.round((inOrder[3 * k + 1] - y) * zoom + (t - d) / 2);
      if (left <= -d || top <= -d || left >= w || top >= t) continue;
      const colour = colours[order[k]], low = Math.max(0, -top), end = Math.min(d, t - top);
      for (let j = low; j < end; j++) {
        let a = left, b = left + d;
        if (d > 3) { const half = Math.sqrt(j * (d - 1 - j) + d / 2); a = Math.round(left + d / 2 - half); b = Math.round(left + d / 2 + half); }
        for (let i = (top + j) * w + Math.max(0, a), last = (top + j) * w + Math.min(w, b); i < last; i++) canvas[i] = colour;
      }
    }
    gl.useProgram(tile.made); gl.bindVertexArray(this.unit.array);
    gl.activeTexture(gl.TEXTURE0); gl.bindTexture(gl.TEXTURE_2D, this.layer);
    const bytes = new Uint8Array(canvas.buffer);
    if (this.layerSize === `${w}/${t}`) gl.texSubImage2D(gl.TEXTURE_2D, 0, 0, 0, w, t, gl.RGBA, gl.UNSIGNED_BYTE, bytes);
    else gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA8, w, t, 0, gl.RGBA, gl.UNSIGNED_BYTE, bytes);
    this.layerSize = `${w}/${t}`;
    gl.uniform1i(tile.at.picture, 0); gl.uniform1f(tile.at.dim, 0); gl.uniform1f(tile.at.opacity, opacity);
    gl.uniform4f(tile.at.place, -1, 1, 2, -2);
    gl.drawArrays(gl.TRIANGLE_STRIP, 0, 4);
  }

  mesh([{left, top, unit}, buffers]) {  // of the outlines of a block
    const {gl} = this, rows = ints(buffers[0]), sizes = shorts(buffers[1]), p = shorts(buffers[2]), n = p.length / 2;
    const packed = new ArrayBuffer(8 * n), s = new Uint16Array(packed), u = new Uint32Array(packed), index = [], rims = [], first = new Uint32Array(rows.length);
    for (let i = 0, at = 0; i < rows.length; at += sizes[i++]) {
      first[i] = at;
      triangulate(p, at, sizes[i], index);
      for (let k = 0; k < sizes[i]; k++) {
        s[4 * (at + k)] = p[2 * (at + k)]; s[4 * (at + k) + 1] = p[2 * (at + k) + 1]; u[2 * (at + k) + 1] = rows[i];
        rims.push(at + k, at + (k + 1) % sizes[i]);
      }
    }
    const mesh = vertices(gl, this.programs.outline, [packed], [[["corner", 2, gl.UNSIGNED_SHORT, 8, 0], ["row", 1, gl.UNSIGNED_INT, 8, 4, {whole: true}]]], Uint32Array.from(index.concat(rims)));
    return {mesh, left, top, unit, rows, sizes, first, p, triangles: index.length, lines: rims.length};
  }

  drawSpots() {
    const {gl, programs: {spot: {made, at}}} = this, radius = (this.meta.spots?.diameter ?? 0) / 2;
    if (this.state.get("spots") === "off" || !this.rings) return;
    gl.useProgram(made);
    gl.uniform2f(at.centre, this.camera.x, this.camera.y); gl.uniform2f(at.stretch, ...this.stretch);
    gl.uniform1f(at.radius, radius); gl.uniform1f(at.rim, clamp(1.5 / (radius * this.camera.scale), 0, 0.5));
    gl.bindVertexArray(this.rings.array);
    gl.drawArraysInstanced(gl.TRIANGLE_STRIP, 0, 4, this.meta.spots.n);
  }

  // ---- a frame

  draw() { this.stale = true; this.mark(); }
  mark() { if (!this.frame && this.camera && !this.gone) this.frame = requestAnimationFrame(now => this.paint(now)); }

  paint(now = performance.now(), still = false) {
    this.frame = 0;
    const dpr = window.devicePixelRatio || 1;
    if (this.gl.isContextLost() || !this.width) return;
    const moving = this.step(now);
    if (this.stale || moving) this.paintTissue(now, still ? dpr : dpr / this.grain(now, moving, dpr));
    this.drawMarks(dpr);
    this.arrived = this.whole && !moving && !this.coarse;
    if (moving) this.draw();
    else if (this.coarse) { clearTimeout(this.resting); this.resting = setTimeout(() => this.draw(), REST_MS); }
  }

  // How many times coarser to draw: 1 at rest, and while moving as much as it takes for frames to follow each other fast enough.
  grain(now, moving, dpr) {
    const busy = moving || performance.now() - this.moved < REST_MS, took = now - this.painted;
    if (busy && this.busy && took < 1000) this.pace = this.pace ? 0.6 * this.pace + 0.4 * took : took;
    if (busy && !this.busy && now - (this.slowed ?? 0) > 10000) { this.grains = 1; this.pace = 0; }  // perhaps it was slow for another reason
    if (this.pace > SLOW_MS && this.grains < 2 * dpr) { this.grains++; this.pace = 0; this.slowed = now; }
    this.busy = busy; this.painted = now; this.coarse = busy && this.grains > 1;
    return this.coarse ? this.grains : 1;
  }

  paintTissue(now, dpr) {
    const {gl, width, height} = this, wide = Math.max(1, Math.round(width * dpr)), high = Math.max(1, Math.round(height * dpr));
    this.stale = false;
    this.ticks = (this.ticks ?? 0) + 1;
    if (this.glass.width !== wide || this.glass.height !== high) Object.assign(this.glass, {width: wide, height: high});
    gl.viewport(0, 0, wide, high);
    gl.clearColor(1, 1, 1, 1); gl.clear(gl.COLOR_BUFFER_BIT);
    this.stretch = [2 * this.camera.scale / width, -2 * this.camera.scale / height];
    const region = this.region(), tissue = this.drawTiles(region, dpr);
    this.drawSpots();
    this.whole = this.drawNuclei(region, dpr) && tissue;
  }

  drawMarks(dpr) {  // what lies above the tissue; each has a canvas no larger than it is, as the browser blends all of it at every frame
    const lasso = this.lasso?.length > 4, marked = lasso || this.hover >= 0 || this.hoverSpot >= 0;
    this.marks.hidden = !marked;
    if (marked) sketch(this.marks, this.width, this.height, dpr, null, c => {
      this.drawHover(c);
      if (!lasso) return;
      c.beginPath();
      for (let i = 0; i < this.lasso.length; i += 2) c.lineTo(...this.toScreen(this.lasso[i], this.lasso[i + 1]));
      c.closePath();
      for (const [style, dash] of [["#fff", []], ["#000", [5, 4]]]) { c.strokeStyle = style; c.lineWidth = 1.5; c.setLineDash(dash); c.stroke(); }
    });
    const wanted = 0.2 * this.width / this.camera.scale * this.um, power = 10 ** Math.floor(Math.log10(wanted));
    const length = [1, 2, 5, 10].map(k => k * power).reduce((a, b) => Math.abs(Math.log(b / wanted)) < Math.abs(Math.log(a / wanted)) ? b : a);
    const px = length / this.um * this.camera.scale, text = length >= 1000 ? `${length / 1000} mm` : `${Number(length.toPrecision(2))} µm`;
    sketch(this.scaleMark, px + 16, 28, dpr, `${px}/${text}`, c => {
      paper(c, 0, 0, px + 16, 28);
      c.fillStyle = "#000"; c.textAlign = "center"; c.fillText(text, 8 + px / 2, 18); c.fillRect(8, 23, px, 2.5);
    });
    const {shown, measured, state} = this, boxes = [], most = [this.width - 20, this.height - 60], map = this.tables[state.get("cmap")];
    if (state.get("spots") === "measured" && measured) boxes.push(colourBar(measured, [measured.low, measured.high], map, most[0]));
    if (shown) boxes.push(shown.names ? legend(shown, ...most) : colourBar(shown, this.limits(), map, most[0]));
    const wide = Math.max(1, ...boxes.map(b => b.wide)), high = boxes.reduce((sum, b) => sum + b.high + 8, 0);
    sketch(this.bars, wide, Math.max(1, high - 8), dpr, JSON.stringify([state.get("cmap"), this.limits(), most, measured, shown?.name, state.get("spots")]), c => {
      let y = 0;
      for (const box of boxes) { c.save(); c.translate(wide - box.wide, y); box.draw(c); c.restore(); y += box.high + 8; }
    });
  }

  drawHover(c) {
    if (this.hover >= 0) {
      const x = this.xy[2 * this.hover], y = this.xy[2 * this.hover + 1], ring = this.ring(this.hover);
      c.beginPath();
      if (ring) for (let k = 0; k < ring.n; k++) c.lineTo(...this.toScreen(ring.left + ring.unit * ring.p[2 * (ring.first + k)], ring.top + ring.unit * ring.p[2 * (ring.first + k) + 1]));
      else c.arc(...this.toScreen(x, y), Math.max(4, this.diameter[this.hover] / 2 * this.camera.scale), 0, 7);
    } else if (this.hoverSpot >= 0) {
      c.beginPath();
      c.arc(...this.toScreen(this.spots.xy[2 * this.hoverSpot], this.spots.xy[2 * this.hoverSpot + 1]), this.meta.spots.diameter / 2 * this.camera.scale, 0, 7);
    } else return;
    c.closePath();
    for (const [style, width] of [["#fff", 4], ["#000", 2]]) { c.strokeStyle = style; c.lineWidth = width; c.stroke(); }
  }

  // ---- values and colours

  async colour(name) {
    const turn = this.turn = (this.turn ?? 0) + 1;
    this.asked++;
    try {
      const [content, buffers] = await this.source.ask({kind: "values", name});
      if (turn !== this.turn || this.gone) return;
      this.values = numbers(content, buffers[0]);
      this.shown = {...content, name, colours: content.names ? buffers[1] : null};
      this.search.value = name;
      this.say(content.note ?? "");
      this.measured = null;
      this.changed();
      await this.loadSpots();
    } catch (error) { if (turn === this.turn) { this.fail(error); this.search.value = this.shown?.name ?? ""; } } finally { this.asked--; this.draw(); }
  }

  limits() {
    const {shown, state} = this, [low, high] = state.get("limits");
    if (!shown?.quantiles) return [0, 1];
    const at = p => { const k = Math.min(199, Math.floor(2 * p)); return shown.quantiles[k] + (2 * p - k) * (shown.quantiles[k + 1] - shown.quantiles[k]); };
    let ends = [at(low), at(high)];
    if (ends[0] === ends[1]) ends = [shown.min, shown.max];  // nearly all alike
    ends = [state.get("vmin") ?? ends[0], state.get("vmax") ?? ends[1]];
    return ends[1] > ends[0] ? ends : [ends[0], ends[0] + (Math.abs(ends[0]) || 1)];
  }

  async loadSpots() {
    if (this.unmeasured) this.say(this.unmeasured = "");
    if (!this.meta.spots || this.state.get("spots") === "off" || !this.shown) return;
    try {
      if (!this.spots) {
        const [{names}, [xy]] = await this.source.ask({kind: "spots"});
        this.spots = {names, xy: floats(xy), values: new Float32Array(names.length)};
      }
      const {name} = this.shown, measured = this.shown.spots ? await this.source.ask({kind: "measured", name}) : null;
      if (this.gone || name !== this.shown.name) return;
      this.measured = measured && measured[0];
      if (measured) this.spots.values = numbers(measured[0], measured[1][0]);
      this.changed();
      if (!measured && this.state.get("spots") === "measured") this.say(this.unmeasured = `${name} was not measured in the spots: outlines only`);
    } catch (error) { this.fail(error); }
    this.draw();
  }

  // ---- picking and selecting

  ring(row) {  // of the outline of a nucleus, if it is here
    const found = this.outlines.get(this.blocks.at(this.xy[2 * row], this.xy[2 * row + 1]));
    if (!found?.rows) return null;
    const i = found.rows.indexOf(row);
    return i < 0 ? null : {...found, first: found.first[i], n: found.sizes[i]};
  }

  pick(px, py) {
    if (!this.blocks || this.state.get("alpha") <= 0) return -1;
    const [x, y] = this.toSlide(px, py), near = 3 / this.camera.scale;
    let best = -1, least = Infinity;
    for (const row of this.blocks.around([x - near, y - near, x + near, y + near])) {
      const away = Math.hypot(this.xy[2 * row] - x, this.xy[2 * row + 1] - y);
      if (away >= least || away > 2 * this.blocks.reach + near) continue;
      const ring = this.ring(row);
      const hit = ring ? within((x - ring.left) / ring.unit, (y - ring.top) / ring.unit, ring.p, ring.first, ring.n) : away <= Math.max(this.diameter[row] / 2, near);
      if (hit) { best = row; least = away; }
    }
    return best;
  }

  pickSpot(px, py) {
    if (!this.rings || this.state.get("spots") === "off") return -1;
    const [x, y] = this.toSlide(px, py), {xy} = this.spots;
    for (let i = 0; i < xy.length / 2; i++) if (Math.hypot(xy[2 * i] - x, xy[2 * i + 1] - y) <= this.meta.spots.diameter / 2) return i;
    return -1;
  }

  async point(px, py) {
    const row = this.pick(px, py), spot = row < 0 ? this.pickSpot(px, py) : -1;
    if (row !== this.hover || spot !== this.hoverSpot) {
      this.hover = row; this.hoverSpot = spot;
      this.mark();
      clearTimeout(this.asking);
      if (row < 0 && spot < 0) { this.card.hidden = true; return; }
      if (row >= 0) {
        const {label, names} = this.shown, v = this.values[row];
        this.fillCard([[label, v < NONE ? "none" : names ? names[v] : v]]);
        this.asking = setTimeout(async () => {
          try { const lines = await this.source.card(row, this.shown.name, this); if (row === this.hover && !this.gone) { this.fillCard(lines); this.placeCard(); } } catch (error) { this.fail(error); }
        }, 40);
      } else {
        const value = this.measured ? [[this.measured.label, this.spots.values[spot]]] : [];
        this.fillCard([["spot", this.spots.names[spot]], ...value]);
      }
    }
    this.at = [px, py];
    this.placeCard();
  }

  fillCard(lines) {
    this.card.replaceChildren(...lines.map(([key, value]) => h("div", {}, h("span", {}, key), h("b", {}, typeof value === "number" ? digits(value) : String(value)))));
    this.card.hidden = false;
  }

  placeCard() {
    const {offsetWidth: w, offsetHeight: t} = this.card, [x, y] = this.at;
    this.card.style.left = `${x + 16 + w > this.width ? Math.max(0, x - 12 - w) : x + 16}px`;
    this.card.style.top = `${clamp(y + 14 + t > this.height ? y - 10 - t : y + 14, 0, Math.max(0, this.height - t))}px`;
  }

  leave() { clearTimeout(this.asking); if (this.hover >= 0 || this.hoverSpot >= 0) { this.hover = this.hoverSpot = -1; this.mark(); } this.card.hidden = true; }

  circled(lasso) {  // rows of the nuclei whose centres lie in it
    const xs = lasso.filter((_, i) => i % 2 === 0), ys = lasso.filter((_, i) => i % 2), box = [xs, ys].map(v => [Math.min(...v), Math.max(...v)]), rows = [];
    for (const row of this.blocks.around([box[0][0], box[1][0], box[0][1], box[1][1]], 0)) {
      const x = this.xy[2 * row], y = this.xy[2 * row + 1];
      if (x >= box[0][0] && x <= box[0][1] && y >= box[1][0] && y <= box[1][1] && within(x, y, lasso, 0, lasso.length / 2)) rows.push(row);
    }
    return rows;
  }

  choose(rows, tell = true, add = false) {
    if (!add) this.flags.fill(0);
    for (const row of rows) this.flags[row] = 255;
    const all = [];
    this.flags.forEach((flag, row) => { if (flag) all.push(row); });
    this.chosen = all.length;
    this.picked = Uint32Array.from(all);
    if (!this.chosen) this.lasso = null;
    if (tell) this.source.select(this.picked);
    this.changed();
  }

  release(add) {  // the lasso is closed
    const rows = this.lasso.length > 6 && this.blocks ? this.circled(this.lasso) : [];
    if (!rows.length && !add) this.lasso = null;
    this.choose(rows, true, add);
    this.say(rows.length ? `${this.chosen.toLocaleString("en")} nuclei selected` : "no nucleus selected: none has its centre in the lasso; draw around some", !rows.length);
  }

  // ---- hands

  listen() {
    this.stop = new AbortController();
    const {stage} = this, on = (target, kinds, act, more = {}) => kinds.split(" ").forEach(kind => target.addEventListener(kind, act, {signal: this.stop.signal, ...more}));
    const place = event => { const box = stage.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
    const fingers = new Map();
    let last = null;
    on(stage, "wheel", event => {
      event.preventDefault();
      const lines = event.deltaMode === 1 ? 30 : event.deltaMode === 2 ? 300 : 1;
      this.zoom(2 ** (-clamp(event.deltaY * lines, -300, 300) / (event.ctrlKey ? 60 : 240)), place(event));
    }, {passive: false});
    on(stage, "pointerdown", event => {
      if (event.button) return;
      stage.focus({preventScroll: true});
      try { stage.setPointerCapture(event.pointerId); } catch { /* a pointer that is gone already */ }
      fingers.set(event.pointerId, place(event));
      last = place(event);
      if (fingers.size === 1 && (this.mode === "lasso" || event.shiftKey)) { this.lasso = this.toSlide(...last); this.drawing = {add: this.mode === "lasso" && event.shiftKey}; this.leave(); }
      else this.drawing = null;
    });
    on(stage, "pointermove", event => {
      const now = place(event);
      if (!fingers.has(event.pointerId)) { if (this.shown) this.point(...now); return; }
      this.leave();
      if (this.drawing) {
        const [x, y] = this.toSlide(...now), n = this.lasso.length;
        if (Math.hypot(x - this.lasso[n - 2], y - this.lasso[n - 1]) * this.camera.scale >= 2) { this.lasso.push(x, y); this.mark(); }
        return;
      }
      const before = [...fingers.values()];
      fingers.set(event.pointerId, now);
      const after = [...fingers.values()], centre = list => list.reduce((a, b) => [a[0] + b[0] / list.length, a[1] + b[1] / list.length], [0, 0]), [a, b] = [centre(before), centre(after)];
      const {x, y, scale} = this.goal;
      this.move({x: x - (b[0] - a[0]) / scale, y: y - (b[1] - a[1]) / scale, scale});
      const spread = list => Math.hypot(list[0][0] - list[1][0], list[0][1] - list[1][1]);
      if (after.length === 2) this.zoom(spread(after) / Math.max(1, spread(before)), b, false);
    });
    on(stage, "pointerup pointercancel", event => {
      fingers.delete(event.pointerId);
      if (!this.drawing) return;
      const {add} = this.drawing;
      this.drawing = null;
      if (event.type === "pointerup") this.release(add);
    });
    on(stage, "pointerleave", () => this.leave());
    on(stage, "dblclick", event => this.zoom(event.altKey ? 0.5 : 2, place(event)));
    on(stage, "keydown", event => {
      const {x, y, scale} = this.goal, pan = 80 / scale;
      const acts = {
        ArrowLeft: () => this.move({x: x - pan, y, scale}, true), ArrowRight: () => this.move({x: x + pan, y, scale}, true),
        ArrowUp: () => this.move({x, y: y - pan, scale}, true), ArrowDown: () => this.move({x, y: y + pan, scale}, true),
        "+": () => this.zoom(1.5), "=": () => this.zoom(1.5), "-": () => this.zoom(1 / 1.5), 0: () => this.fit(), Escape: () => { this.choose([]); this.say(""); },
      };
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      if (acts[event.key]) acts[event.key]();
      if (acts[event.key]) event.preventDefault();
      event.stopPropagation();  // a notebook has its own meaning for keys
    });
    on(window, "resize", () => this.draw());
  }

  // ---- controls

  controls() {
    const {meta, state} = this;
    this.search = h("input", {type: "text", className: "stand-search", placeholder: "gene or column", autocomplete: "off", spellcheck: false, "aria-label": "gene or column that colours the nuclei"});
    this.found = h("div", {className: "stand-found", hidden: true, role: "listbox"});
    const slider = (name, label, max = 1) => {
      const input = h("input", {type: "range", min: 0, max, step: max / 100, "aria-label": label});
      input.oninput = () => { state.set(name, Number(input.value)); this.changed(); };
      (this.follow ??= []).push(() => { if (document.activeElement !== input || Number(input.value) !== state.get(name)) input.value = state.get(name); });
      return h("label", {}, h("span", {}, label), input);
    };
    const select = (name, label, options) => {
      const input = h("select", {"aria-label": label}, ...options.map(value => h("option", {value}, value)));
      input.onchange = () => { state.set(name, input.value); this.changed(); if (name === "spots") this.loadSpots(); };
      (this.follow ??= []).push(() => { input.value = state.get(name); });
      return h("label", {}, h("span", {}, label), input);
    };
    const ends = [0, 1].map(end => {
      const label = ["lower limit", "upper limit"][end], key = ["vmin", "vmax"][end];
      const range = h("input", {type: "range", min: 0, max: 100, step: 0.5, "aria-label": `${label}, percentile`}), box = h("input", {type: "number", step: "any", "aria-label": `${label}, value`, title: "type a value to fix it for all genes; empty it to use the percentile"});
      range.oninput = () => {
        const both = [...state.get("limits")];
        both[end] = end ? Math.max(Number(range.value), both[0] + 0.5) : Math.min(Number(range.value), both[1] - 0.5);
        range.value = both[end];
        state.set("limits", both); state.set(key, null); this.changed();
      };
      box.oninput = () => { box.typing = true; };
      box.onchange = () => {
        box.typing = false;
        const v = box.value === "" ? null : Number(box.value);
        state.set(key, Number.isFinite(v) ? v : null); this.changed();
      };
      (this.follow ??= []).push(() => {
        range.value = state.get("limits")[end];
        range.title = `${state.get("limits")[end]}th percentile`;
        if (!box.typing) box.value = this.shown?.quantiles ? Number(this.limits()[end].toPrecision(3)) : "";
        box.classList.toggle("stand-fixed", state.get(key) !== null && state.get(key) !== undefined);
      });
      return h("div", {className: "stand-limit"}, h("span", {}, ["from", "to"][end]), range, box);
    });
    const button = (text, title, act) => h("button", {type: "button", title, onclick: act}, text);
    this.lassoButton = button("Lasso", "draw around nuclei to select them (also shift + drag); shift adds", () => { this.mode = this.mode === "lasso" ? "pan" : "lasso"; this.changed(); });
    this.clearButton = button("Clear", "select nothing", () => { this.choose([]); this.say(""); });
    this.csvButton = button("CSV", "save the selected nuclei as a table", () => this.csv());
    this.limitBox = h("div", {className: "stand-limits"}, ...ends);
    this.mapBox = select("cmap", "Colours", meta.cmaps);
    const spots = select("spots", "Spots", ["off", "outlines", "measured"]);
    this.panel.replaceChildren(
      h("div", {className: "stand-title"}, h("b", {}, meta.name), h("span", {}, `${meta.n.toLocaleString("en")} nuclei`)),
      h("div", {className: "stand-searching"}, this.search, this.found),
      this.mapBox, this.limitBox,
      slider("alpha", "Nuclei"), ...(meta.tiles.levels ? [slider("dim", "Fade H&E")] : []), ...(meta.spots ? [spots] : []),
      h("div", {className: "stand-buttons"}, this.lassoButton, this.clearButton, ...(this.source.page ? [this.csvButton] : []), button("Fit", "show all nuclei (0)", () => this.fit()),
        button("+", "closer (+)", () => this.zoom(1.6)), button("−", "farther (-)", () => this.zoom(1 / 1.6)), button("PNG", "save the picture", () => this.png())),
      this.status,
    );
    this.searching();
  }

  searching() {
    const {search, found} = this;
    let lit = -1;
    const show = () => {
      const text = search.value.trim(), names = text && text !== this.shown?.name ? matches(text, this.names) : this.names.slice(0, 12);
      lit = -1;
      found.replaceChildren(...names.map(name => h("div", {role: "option", onpointerdown: event => { event.preventDefault(); take(name); }}, name)));
      found.hidden = !names.length;
    };
    const take = name => {
      const exact = this.names.includes(name) ? name : this.names.find(n => n.toLowerCase() === name.toLowerCase());
      found.hidden = true;
      if (!exact) return this.say(`${name || "nothing"} is not known; did you mean ${nearest(name, this.names).join(", ")}?`, true);
      search.value = exact;
      if (exact === this.shown?.name) return this.say("");
      this.state.set("gene", exact);
      if (!this.state.echoes) this.colour(exact);
    };
    search.onfocus = () => { search.select(); show(); };
    search.oninput = show;
    search.onblur = () => { found.hidden = true; };
    search.onkeydown = event => {
      event.stopPropagation();
      const rows = [...found.children];
      if (event.key === "ArrowDown" || event.key === "ArrowUp") {
        event.preventDefault();
        lit = clamp(lit + (event.key === "ArrowDown" ? 1 : -1), 0, rows.length - 1);
        rows.forEach((row, i) => row.classList.toggle("stand-lit", i === lit));
      } else if (event.key === "Enter") take(lit >= 0 && !found.hidden ? rows[lit].textContent : search.value.trim());
      else if (event.key === "Escape") { search.value = this.shown?.name ?? ""; search.blur(); }
    };
  }

  changed() {  // of the state: show it in the controls and on the tissue
    this.recolour();
    this.follow?.forEach(act => act());
    this.limitBox.hidden = !!this.shown?.names;
    this.mapBox.hidden = this.limitBox.hidden && !this.measured;
    this.lassoButton.classList.toggle("stand-on", this.mode === "lasso");
    this.stage.style.cursor = this.mode === "lasso" ? "crosshair" : "grab";
    this.clearButton.disabled = this.csvButton.disabled = !this.chosen;
    this.draw();
  }

  // ---- files

  save(blob, name) {
    const link = h("a", {href: URL.createObjectURL(blob), download: name.replace(/[^\w.+-]+/g, "_"), hidden: true});
    this.root.append(link);
    link.click();
    setTimeout(() => { link.remove(); URL.revokeObjectURL(link.href); }, 10000);
  }

  png() {
    this.leave();
    this.stale = true; this.paint(performance.now(), true);
    const both = h("canvas", {width: this.glass.width, height: this.glass.height}), c = both.getContext("2d"), dpr = window.devicePixelRatio || 1;
    for (const part of [this.glass, this.marks, this.scaleMark, this.bars]) if (!part.hidden) c.drawImage(part, Math.round(part.offsetLeft * dpr), Math.round(part.offsetTop * dpr));
    both.toBlob(blob => this.save(blob, `${this.meta.name}_${this.shown?.name ?? "tissue"}.png`), "image/png");
  }

  async csv() { this.save(new Blob([await this.source.csv(this.picked, this)], {type: "text/csv"}), `${this.meta.name}_selection.csv`); }
}

// Draw a mark on a canvas of its own, unless it shows the same already.
function sketch(canvas, width, height, dpr, key, draw) {
  key = key && `${key}/${dpr}`;
  if (key && canvas.shows === key) return;
  canvas.shows = key;
  const wide = Math.ceil(width * dpr), high = Math.ceil(height * dpr), c = canvas.getContext("2d");
  if (canvas.width !== wide || canvas.height !== high) Object.assign(canvas, {width: wide, height: high});
  Object.assign(canvas.style, {width: `${wide / dpr}px`, height: `${high / dpr}px`});
  c.setTransform(dpr, 0, 0, dpr, 0, 0);
  c.clearRect(0, 0, width + 1, height + 1);
  draw(c);
}

function paper(c, x, y, width, height) { c.font = FONT; c.fillStyle = "rgba(255,255,255,0.8)"; c.beginPath(); c.roundRect(x, y, width, height, 4); c.fill(); }
const measure = document.createElement("canvas").getContext("2d");
const breadth = text => { measure.font = FONT; return measure.measureText(text).width; };

function colourBar({label, min, max}, [low, high], map, most) {
  const wide = clamp(breadth(label) + 20, 200, most), inner = wide - 44, shade = i => `rgb(${map[3 * i]},${map[3 * i + 1]},${map[3 * i + 2]})`;
  return {wide, high: 52, draw(c) {
    paper(c, 0, 0, wide, 52);
    c.fillStyle = "#000"; c.textAlign = "center"; c.fillText(label, wide / 2, 14, wide - 8);
    const run = c.createLinearGradient(22, 0, 22 + inner, 0);
    for (let i = 0; i < 256; i += 5) run.addColorStop(i / 255, shade(i));
    c.fillStyle = run; c.fillRect(22, 20, inner, 12);
    const end = (cut, from, to, i) => { if (cut) { c.fillStyle = shade(i); c.beginPath(); c.moveTo(from, 20); c.lineTo(to, 26); c.lineTo(from, 32); c.fill(); } };
    end(min < low, 22, 15, 0); end(max > high, 22 + inner, 29 + inner, 255);  // values beyond, as in the figures
    c.fillStyle = "#000";
    for (const v of ticks(low, high)) {
      const at = 22 + (v - low) / (high - low) * inner;
      c.fillRect(at - 0.5, 32, 1, 3); c.fillText(digits(v), at, 46);
    }
  }};
}

function legend({label, names, colours}, most, tallest) {
  const lines = Math.max(1, Math.floor(tallest / 17) - 2), rows = names.slice(0, names.length > lines ? lines - 1 : lines);
  const texts = [label, ...rows, ...(rows.length < names.length ? [`and ${names.length - rows.length} more`] : [])];
  const wide = clamp(Math.max(...texts.map(breadth)) + 36, 90, most), high = 17 * texts.length + 10;
  return {wide, high, draw(c) {
    paper(c, 0, 0, wide, high);
    c.textAlign = "left";
    texts.forEach((text, i) => {
      if (i && i <= rows.length) { c.fillStyle = `rgb(${colours.subarray(3 * i - 3, 3 * i).join()})`; c.fillRect(8, 17 * i + 7, 12, 12); }
      c.fillStyle = "#000"; c.fillText(text, i ? 26 : 8, 17 * i + 17, wide - 30);
    });
  }};
}

function packed(rgb, alpha) {  // colours (n, 3) as premultiplied RGBA in one number each
  const bytes = new Uint8Array(rgb.length / 3 * 4);
  for (let i = 0; i < rgb.length / 3; i++) { for (let j = 0; j < 3; j++) bytes[4 * i + j] = Math.round(rgb[3 * i + j] * alpha); bytes[4 * i + 3] = Math.round(255 * alpha); }
  return new Uint32Array(bytes.buffer);
}

function ticks(low, high) {  // round values, up to five
  const rough = (high - low) / 4, power = 10 ** Math.floor(Math.log10(rough)), step = [1, 2, 2.5, 5, 10].map(k => k * power).find(k => k >= rough * 0.999), found = [];
  for (let k = Math.ceil(low / step - 1e-6); k * step <= high + 1e-6 * step; k++) found.push(Number((k * step).toPrecision(12)));
  return found;
}

function joined(ranges) {  // those that touch become one
  const all = [];
  for (const [a, b] of ranges) if (all.length && all.at(-1)[1] === a) all.at(-1)[1] = b; else if (b > a) all.push([a, b]);
  return all;
}

const alike = (a, b) => !!a && !!b && a.length === b.length && a.every((v, i) => Math.abs(v - b[i]) < 1e-3);
const copied = bytes => bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength);
const floats = bytes => new Float32Array(copied(bytes));
const ints = bytes => new Uint32Array(copied(bytes));
const shorts = bytes => new Uint16Array(copied(bytes));

function numbers({steps}, bytes) {  // float32, or 16 bits in equal steps from `steps[0]` on with 65535 for none
  return steps ? Float32Array.from(shorts(bytes), v => v === 65535 ? 2 * NONE : steps[0] + v * steps[1]) : floats(bytes);
}

export async function mount(el, source, state) {
  const viewer = el.standViewer = new Viewer(el, source, state);
  try { await viewer.start(); } catch (error) { viewer.fail(error); }
  return viewer;
}

// ---- in a notebook: questions and answers over the widget's own channel

function render({model, el}) {
  const open = new Map(), me = Math.random().toString(36).slice(2);
  let count = 0;
  const source = {
    height: `${model.get("height")}px`,
    ask: question => new Promise((done, failed) => { open.set(++count, {done, failed}); model.send({...question, id: count, view: me}); }),
    card: (row, name) => source.ask({kind: "card", row, name}).then(([{lines}]) => lines),
    select: rows => model.send({kind: "select"}, undefined, [rows.buffer]),
    onSelect: act => { source.selecting = act; if (model.get("n_selected")) source.ask({kind: "selected"}).then(([, [rows]]) => act(ints(rows))); },
    onFit: act => { source.fitting = act; },
  };
  const receive = (content, buffers) => {
    const bytes = (buffers ?? []).map(b => b instanceof ArrayBuffer ? new Uint8Array(b) : new Uint8Array(b.buffer, b.byteOffset, b.byteLength));
    if (content.kind === "selected") source.selecting?.(ints(bytes[0]));
    else if (content.kind === "fit") source.fitting?.();
    else if (content.view === me && open.has(content.id)) {
      const {done, failed} = open.get(content.id);
      open.delete(content.id);
      if (content.error) failed(content.error); else done([content.content, bytes]);
    }
  };
  const heard = [], state = {
    echoes: true,  // a change made here is told to those who follow the state
    get: name => model.get(name),
    set: (name, value) => { model.set(name, value); clearTimeout(state.later); state.later = setTimeout(() => model.save_changes(), 30); },
    on: (name, act) => { heard.push([`change:${name}`, act]); model.on(`change:${name}`, act); },
  };
  model.on("msg:custom", receive);
  const slow = setInterval(() => { const v = el.standViewer; if (v?.meta && open.size && v.status.textContent === "") v.say("waiting for Python ..."); else if (!open.size && v?.status.textContent === "waiting for Python ...") v.say(""); }, 1500);
  let viewer;
  mount(el, source, state).then(made => { viewer = made; });
  return () => {
    clearInterval(slow);
    model.off("msg:custom", receive);
    heard.forEach(([kind, act]) => model.off(kind, act));
    el.standViewer?.close();
  };
}

export default {render};

// ---- in a page: the answers to all questions lie in it

async function unpack(node) {  // base64 of gzip of: length of the head (uint32), head (JSON), buffers
  const packed = Uint8Array.from(atob(node.textContent.trim()), c => c.charCodeAt(0));
  const bytes = new Uint8Array(await new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer());
  const length = new DataView(bytes.buffer).getUint32(0, true), {content, sizes} = JSON.parse(new TextDecoder().decode(bytes.subarray(4, 4 + length)));
  let at = 4 + length;
  return [content, sizes.map(size => bytes.subarray(at, at += size))];
}

export async function page(el) {
  const [keys] = await unpack(document.getElementById("stand-keys"));
  const place = new Map(keys.map((key, i) => [key, i]));
  const has = key => place.has(key), answer = key => has(key) ? unpack(document.getElementById(`stand-${place.get(key)}`)) : Promise.reject(`this page does not hold ${key}`);
  const keep = new Map(), once = key => { if (!keep.has(key)) keep.set(key, answer(key)); return keep.get(key); };
  const [settings] = await once("state");
  const fact = ({label, names, steps}, bytes, row) => {
    const v = numbers({steps}, bytes.subarray(...(steps ? [2 * row, 2 * row + 2] : [4 * row, 4 * row + 4])))[0];
    return v < NONE ? null : [label, names ? names[v] : v];
  };
  const source = {
    page: true, height: "100%",
    ask: ({kind, ...rest}) => answer([kind, ...Object.values(rest)].join("/")),
    async card(row, name, viewer) {
      const [{columns, names}, buffers] = await once("facts"), {label, names: classes} = viewer.shown, v = viewer.values[row];
      const bounds = has(`interval/${name}`) ? await once(`interval/${name}`) : null;
      const range = bounds ? [[bounds[0].label, `${shorts(bounds[1][0].subarray(2 * row, 2 * row + 2))[0]} to ${shorts(bounds[1][1].subarray(2 * row, 2 * row + 2))[0]}`]] : [];
      return [["nucleus", names[row]], [label, v < NONE ? "none" : classes ? classes[v] : v], ...range, ...columns.map((c, i) => fact(c, buffers[i], row)).filter(f => f && f[0] !== label)];
    },
    async csv(rows, viewer) {
      const [{columns, names}, buffers] = await once("facts"), quote = v => `"${String(v).replaceAll('"', '""')}"`;
      const head = ["nucleus", "x_um", "y_um", viewer.shown.label, ...columns.map(c => c.label).filter(l => l !== viewer.shown.label)];
      const lines = Array.from(rows, row => {
        const v = viewer.values[row], um = viewer.um, others = columns.filter(c => c.label !== viewer.shown.label).map(c => fact(c, buffers[columns.indexOf(c)], row)?.[1] ?? "");
        return [names[row], (viewer.xy[2 * row] * um).toFixed(2), (viewer.xy[2 * row + 1] * um).toFixed(2), v < NONE ? "" : viewer.shown.names ? viewer.shown.names[v] : v, ...others].map(quote).join();
      });
      return [head.map(quote).join(), ...lines].join("\n") + "\n";
    },
    select() {},
  };
  const state = {get: name => settings[name], set: (name, value) => { settings[name] = value; }, on() {}};
  return mount(el, source, state);
}
