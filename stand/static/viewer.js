// The viewer of stand: H&E tiles, nuclei and spots drawn by WebGL 2; marks, controls and the card of a nucleus above them.
// One module for the notebook's widget and for the exported page. Each gives `mount` a source, which answers questions with
// [content, buffers], and a state, which both sides read and set. Coordinates are full-resolution pixels, y downwards.

const WIDE = 2048;  // values lie in a texture, so many in a row
const NONE = -1e38;  // below: no value
const POLYGON_PX = 5;  // diameter on the screen from which on a nucleus has its outline, CSS pixels
const KEPT_TILES = 192, KEPT_CORNERS = 3e6;  // of the H&E (1 MB each) and of outlines, in memory
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

const COLOUR = `
uniform highp sampler2D values; uniform sampler2D flags, table;
uniform vec2 limits; uniform float opacity, chosen; uniform int classes;
vec4 colour(uint row) {
  ivec2 at = ivec2(row % ${WIDE}u, row / ${WIDE}u);
  float v = texelFetch(values, at, 0).r;
  float a = opacity * (chosen > 0.0 && texelFetch(flags, at, 0).r == 0.0 ? 0.12 : 1.0);
  if (v < ${NONE.toExponential()}) return vec4(vec3(0.62), 0.5) * a;
  int k = classes > 0 ? int(v) : int(clamp((v - limits.x) / (limits.y - limits.x), 0.0, 1.0) * 255.0 + 0.5);
  return vec4(texelFetch(table, ivec2(k, 0), 0).rgb * a, a);
}`;
const HEAD = "#version 300 es\nprecision highp float; precision highp int;\n";
const PLAIN = HEAD + "in vec4 shade; out vec4 pixel; void main() { pixel = shade; }";
const SHADERS = {
  tile: [HEAD + `uniform vec4 place; in vec2 corner; out vec2 at;
    void main() { at = corner; gl_Position = vec4(place.xy + corner * place.zw, 0, 1); }`,
  HEAD + `uniform sampler2D picture; uniform float dim; in vec2 at; out vec4 pixel;
    void main() { pixel = vec4(mix(texture(picture, at).rgb, vec3(1), dim), 1); }`],
  point: [HEAD + COLOUR + `uniform vec2 centre, stretch; uniform float size, least; in vec2 xy; in float diameter; in uint row; flat out vec4 shade; flat out float wide;
    void main() { gl_Position = vec4((xy - centre) * stretch, 0, 1); wide = max(diameter * size, least); gl_PointSize = wide; shade = colour(row); }`,
  HEAD + `flat in vec4 shade; flat in float wide; out vec4 pixel;
    void main() { vec2 d = 2.0 * gl_PointCoord - 1.0; if (wide > 2.5 && dot(d, d) > 1.0) discard; pixel = shade; }`],
  outline: [HEAD + COLOUR + `uniform vec2 origin, stretch; uniform float unit; in vec2 corner; in uint row; flat out vec4 shade;
    void main() { gl_Position = vec4((origin + corner * unit) * stretch, 0, 1); shade = colour(row); }`,
  PLAIN.replace("in vec4", "flat in vec4")],
  spot: [HEAD + `uniform sampler2D table; uniform vec2 centre, stretch, limits; uniform float radius, filled, opacity; in vec2 corner, xy; in float value; out vec2 at; flat out vec4 shade;
    void main() {
      at = corner; gl_Position = vec4((xy + corner * radius - centre) * stretch, 0, 1);
      int k = int(clamp((value - limits.x) / (limits.y - limits.x), 0.0, 1.0) * 255.0 + 0.5);
      shade = value < ${NONE.toExponential()} ? vec4(0) : vec4(texelFetch(table, ivec2(k, 0), 0).rgb, 1) * filled * opacity;
    }`,
  HEAD + `uniform float rim; in vec2 at; flat in vec4 shade; out vec4 pixel;
    void main() { float r = length(at); if (r > 1.0) discard; pixel = r > 1.0 - rim ? vec4(0, 0, 0, 0.7) : shade; }`],
};

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

// Make an array of vertices: attributes are [name, how many, type, stride, offset, whole numbers?, divisor].
function vertices(gl, program, data, attributes, indices) {
  const array = gl.createVertexArray(), buffers = [];
  const upload = (target, content) => { const b = gl.createBuffer(); buffers.push(b); gl.bindBuffer(target, b); gl.bufferData(target, content, gl.STATIC_DRAW); };
  gl.bindVertexArray(array);
  data.forEach((content, i) => {
    upload(gl.ARRAY_BUFFER, content);
    for (const [name, n, type, stride, offset, whole, divisor] of attributes[i]) {
      const at = gl.getAttribLocation(program.made, name);
      if (at < 0) continue;
      gl.enableVertexAttribArray(at);
      if (whole) gl.vertexAttribIPointer(at, n, type, stride, offset); else gl.vertexAttribPointer(at, n, type, false, stride, offset);
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
    Object.assign(this, {el, source, state, tiles: new Map(), outlines: new Map(), asked: 0, corners: 0, frame: 0, clock: 0, gone: false, lasso: null, mode: "pan", hover: -1, hoverSpot: -1});
    this.glass = h("canvas", {className: "stand-glass"});
    this.marks = h("canvas", {className: "stand-marks", tabIndex: 0, "aria-label": "H&E with nuclei: drag to move, wheel to zoom, shift and drag to select"});
    this.card = h("div", {className: "stand-card", hidden: true});
    this.stage = h("div", {className: "stand-stage"}, this.glass, this.marks, this.card);
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
      if (!this.gl.isContextLost()) this.uploadNuclei();
      this.draw();
    });
    await Promise.all([nuclei, this.colour(this.state.get("gene"))]);
    const follow = (names, then) => names.split(" ").forEach(name => this.state.on(name, then));
    follow("gene", () => this.colour(this.state.get("gene")));
    follow("cmap limits vmin vmax alpha dim", () => this.changed());
    follow("spots", () => { this.changed(); this.loadSpots(); });
    follow("view_um", () => this.look(this.state.get("view_um")));
    this.source.onSelect?.(rows => this.choose(rows, false));
    this.source.onFit?.(() => this.fit());
    this.changed();
    this.loadSpots();
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
    this.goal = this.bounded(goal);
    if (!smoothly || !this.camera) this.camera = {...this.goal};
    this.draw();
    clearTimeout(this.later);
    this.later = setTimeout(() => {
      const view = this.view(), told = this.state.get("view_um");
      if (!this.gone && !alike(view, told)) this.state.set("view_um", this.sent = view);
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

  resized() { if (this.camera) this.move(this.goal); }

  // ---- WebGL

  glContext() {
    const gl = this.gl = this.glass.getContext("webgl2", {alpha: false, antialias: true, depth: false, powerPreference: "high-performance"});
    if (!gl) throw new Error("this browser does not offer WebGL 2; use a current Chrome, Edge, Firefox or Safari, with hardware acceleration if it can");
    this.build();
    this.glass.addEventListener("webglcontextlost", event => event.preventDefault());
    this.glass.addEventListener("webglcontextrestored", () => { if (!this.gone) { this.build(); this.draw(); } });
  }

  build() {  // all that lives on the graphics card, also after it was lost
    const gl = this.gl;
    this.tiles.clear(); this.outlines.clear(); this.corners = 0; this.points = this.rings = null;
    this.programs = Object.fromEntries(Object.entries(SHADERS).map(([name, pair]) => [name, program(gl, pair)]));
    gl.enable(gl.BLEND); gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA); gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
    this.unit = vertices(gl, this.programs.tile, [new Float32Array([0, 0, 1, 0, 0, 1, 1, 1])], [[["corner", 2, gl.FLOAT, 8, 0]]]);
    for (const name of ["table", "spotTable", "valueMap", "flagMap"]) this[name] = texture(gl, gl.NEAREST);
    this.uploadValues(); this.uploadFlags(); this.tableShown = null;
    if (this.xy) this.uploadNuclei();
    if (this.spots) this.uploadSpots();
  }

  fill(made, inner, format, type, data) {  // a texture with a value for each nucleus
    const gl = this.gl, high = Math.max(1, Math.ceil(data.length / WIDE)), padded = new data.constructor(high * WIDE);
    padded.set(data);
    gl.bindTexture(gl.TEXTURE_2D, made);
    gl.texImage2D(gl.TEXTURE_2D, 0, inner, WIDE, high, 0, format, type, padded);
  }
  uploadValues() { const gl = this.gl; this.fill(this.valueMap, gl.R32F, gl.RED, gl.FLOAT, this.values); }
  uploadFlags() { const gl = this.gl; this.fill(this.flagMap, gl.R8, gl.RED, gl.UNSIGNED_BYTE, this.flags); }

  uploadNuclei() {
    const gl = this.gl, {order} = this.blocks, packed = new ArrayBuffer(16 * order.length), f = new Float32Array(packed), u = new Uint32Array(packed);
    order.forEach((row, k) => { f[4 * k] = this.xy[2 * row]; f[4 * k + 1] = this.xy[2 * row + 1]; f[4 * k + 2] = this.diameter[row]; u[4 * k + 3] = row; });
    this.points = vertices(gl, this.programs.point, [packed], [[["xy", 2, gl.FLOAT, 16, 0], ["diameter", 1, gl.FLOAT, 16, 8], ["row", 1, gl.UNSIGNED_INT, 16, 12, true]]]);
  }

  uploadSpots() {
    const gl = this.gl;
    this.rings?.free();
    this.rings = vertices(gl, this.programs.spot, [new Float32Array([-1, -1, 1, -1, -1, 1, 1, 1]), this.spots.xy, this.spots.values],
      [[["corner", 2, gl.FLOAT, 8, 0]], [["xy", 2, gl.FLOAT, 8, 0, false, 1]], [["value", 1, gl.FLOAT, 4, 0, false, 1]]]);
  }

  // ---- what has to be fetched: nearest to the middle first, few at a time, so that nothing stale is waited for

  request(kept, key, question, most, arrive) {
    if (kept.has(key) || this.busy(kept) >= most) return;
    const context = this.programs;
    kept.set(key, {waiting: true});
    this.asked++;
    this.source.ask(question).then(answer => arrive(answer, key)).then(
      item => { if (this.programs === context && !this.gone) kept.set(key, {...item, used: this.ticks}); },
      error => { kept.set(key, {failed: true}); if (!this.gone) this.fail(error); },
    ).finally(() => { this.asked--; this.draw(); });
  }
  busy(kept) { let n = 0; for (const item of kept.values()) if (item.waiting) n++; return n; }

  forget(kept, most, weight) {  // least recently drawn first
    let total = 0;
    for (const item of kept.values()) total += weight(item);
    if (total <= most) return;
    for (const [key, item] of [...kept].filter(([, i]) => !i.waiting && !i.keep).sort((a, b) => (a[1].used ?? 0) - (b[1].used ?? 0))) {
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
    gl.uniform1i(tile.at.picture, 0); gl.uniform1f(tile.at.dim, this.state.get("dim"));
    gl.activeTexture(gl.TEXTURE0);
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
    const far = ([, c, r, step]) => Math.hypot((c + 0.5) * step - this.camera.x, (r + 0.5) * step - this.camera.y);
    const arrive = async ([, [jpeg]]) => {
      const picture = await createImageBitmap(new Blob([jpeg], {type: "image/jpeg"}));
      const made = texture(gl, gl.LINEAR);
      gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGB, gl.RGB, gl.UNSIGNED_BYTE, picture);
      picture.close();
      return {texture: made, keep: false};
    };
    for (const t of [...of(levels - 1), ...here.sort((a, b) => far(a) - far(b))]) {
      const [level, column, row] = t;
      this.request(this.tiles, `${level}/${column}/${row}`, {kind: "tile", level, column, row}, 4, arrive);
    }
    this.forget(this.tiles, KEPT_TILES, i => i.texture ? 1 : 0);
    return whole;
  }

  colouring({made, at}, opacity) {
    const {gl} = this, colours = this.shown;
    gl.useProgram(made);
    [[this.valueMap, at.values], [this.flagMap, at.flags], [this.table, at.table]].forEach(([map, place], i) => {
      gl.activeTexture(gl.TEXTURE0 + i); gl.bindTexture(gl.TEXTURE_2D, map); gl.uniform1i(place, i);
    });
    const [low, high] = this.limits();
    gl.uniform2f(at.limits, low, high);
    gl.uniform1f(at.opacity, opacity); gl.uniform1f(at.chosen, this.chosen ? 1 : 0); gl.uniform1i(at.classes, colours?.names ? colours.names.length : 0);
    gl.uniform2f(at.stretch, ...this.stretch);
  }

  drawNuclei(region, dpr) {
    const {gl, blocks, meta, camera: {x, y, scale}, programs: {point, outline}} = this, opacity = this.state.get("alpha");
    if (!this.points || !this.shown || opacity <= 0) return !!this.points;
    const close = meta.outlined && meta.diameter * scale >= POLYGON_PX, ready = [], rest = [], missing = [];
    for (const [a, b] of blocks.lines(region)) {
      if (!close) { rest.push([blocks.start[a], blocks.start[b + 1]]); continue; }
      for (let k = a; k <= b; k++) {
        if (blocks.start[k] === blocks.start[k + 1]) continue;
        const found = this.outlines.get(k);
        if (found?.mesh) { found.used = this.ticks; ready.push(found); } else { rest.push([blocks.start[k], blocks.start[k + 1]]); if (!found?.failed) missing.push(k); }
      }
    }
    if (rest.length) {
      this.colouring(point, close ? 0.65 * opacity : opacity);
      gl.uniform2f(point.at.centre, x, y); gl.uniform1f(point.at.size, scale * dpr); gl.uniform1f(point.at.least, 1.6 * dpr);
      gl.bindVertexArray(this.points.array);
      for (const [a, b] of joined(rest)) gl.drawArrays(gl.POINTS, a, b - a);
    }
    for (const [mode, strength] of ready.length ? [[gl.TRIANGLES, 0.65 * opacity], [gl.LINES, Math.sqrt(opacity)]] : []) {
      this.colouring(outline, strength);
      for (const {mesh, left, top, unit, triangles, lines} of ready) {
        gl.uniform2f(outline.at.origin, left - x, top - y); gl.uniform1f(outline.at.unit, unit);
        gl.bindVertexArray(mesh.array);
        if (mode === gl.TRIANGLES) gl.drawElements(mode, triangles, gl.UNSIGNED_INT, 0); else gl.drawElements(mode, lines, gl.UNSIGNED_INT, 4 * triangles);
      }
    }
    const middle = k => Math.hypot(blocks.left + (k % blocks.columns + 0.5) * blocks.side - x, blocks.top + (Math.floor(k / blocks.columns) + 0.5) * blocks.side - y);
    missing.sort((a, b) => middle(a) - middle(b)).forEach(block => this.request(this.outlines, block, {kind: "outlines", block}, 3, answer => this.mesh(answer)));
    this.forget(this.outlines, KEPT_CORNERS, i => i.rows?.length ?? 0);
    return !missing.length;
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
    const mesh = vertices(gl, this.programs.outline, [packed], [[["corner", 2, gl.UNSIGNED_SHORT, 8, 0], ["row", 1, gl.UNSIGNED_INT, 8, 4, true]]], Uint32Array.from(index.concat(rims)));
    return {mesh, left, top, unit, rows, sizes, first, p, triangles: index.length, lines: rims.length};
  }

  drawSpots(dpr) {
    const mode = this.state.get("spots"), {gl, programs: {spot: {made, at}}} = this;
    if (mode === "off" || !this.rings) return;
    const filled = mode === "measured" && this.measured, radius = this.meta.spots.diameter / 2;
    gl.useProgram(made);
    gl.activeTexture(gl.TEXTURE0); gl.bindTexture(gl.TEXTURE_2D, this.spotTable); gl.uniform1i(at.table, 0);
    gl.uniform2f(at.centre, this.camera.x, this.camera.y); gl.uniform2f(at.stretch, ...this.stretch);
    gl.uniform2f(at.limits, ...(filled ? [this.measured.low, this.measured.high] : [0, 1]));
    gl.uniform1f(at.radius, radius); gl.uniform1f(at.filled, filled ? 1 : 0); gl.uniform1f(at.opacity, 0.85);
    gl.uniform1f(at.rim, clamp(1.5 / (radius * this.camera.scale), 0, 0.5));
    gl.bindVertexArray(this.rings.array);
    gl.drawArraysInstanced(gl.TRIANGLE_STRIP, 0, 4, this.meta.spots.n);
  }

  // ---- a frame

  draw() { if (!this.frame && this.camera && !this.gone) this.frame = requestAnimationFrame(now => this.paint(now)); }

  paint(now = performance.now()) {
    this.frame = 0;
    const dpr = window.devicePixelRatio || 1, {gl, width, height} = this, wide = Math.max(1, Math.round(width * dpr)), high = Math.max(1, Math.round(height * dpr));
    if (gl.isContextLost() || !width) return;
    const moving = this.step(now);
    this.ticks = (this.ticks ?? 0) + 1;
    for (const canvas of [this.glass, this.marks]) if (canvas.width !== wide || canvas.height !== high) Object.assign(canvas, {width: wide, height: high});
    gl.viewport(0, 0, wide, high);
    gl.clearColor(1, 1, 1, 1); gl.clear(gl.COLOR_BUFFER_BIT);
    this.stretch = [2 * this.camera.scale / width, -2 * this.camera.scale / height];
    this.tabulate();
    const region = this.region(), tissue = this.drawTiles(region, dpr);
    this.drawSpots(dpr);
    const nuclei = this.drawNuclei(region, dpr);
    this.drawMarks(dpr);
    this.arrived = tissue && nuclei && !moving;
    if (moving) this.draw();
  }

  tabulate() {  // colours on the graphics card: of the colour map or of the classes
    const {gl} = this, key = `${this.state.get("cmap")}/${this.shown?.name}/${!!this.shown?.names}`;
    if (key === this.tableShown) return;
    this.tableShown = key;
    const map = this.tables[this.state.get("cmap")];
    for (const [made, rgb] of [[this.table, this.shown?.names ? this.shown.colours : map], [this.spotTable, map]]) {
      const row = new Uint8Array(768);
      row.set(rgb.subarray(0, 768));
      gl.bindTexture(gl.TEXTURE_2D, made);
      gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGB8, 256, 1, 0, gl.RGB, gl.UNSIGNED_BYTE, row);
    }
  }

  drawMarks(dpr) {
    const c = this.marks.getContext("2d");
    c.setTransform(dpr, 0, 0, dpr, 0, 0);
    c.clearRect(0, 0, this.width, this.height);
    this.drawHover(c);
    if (this.lasso?.length > 2) {
      c.beginPath();
      for (let i = 0; i < this.lasso.length; i += 2) c.lineTo(...this.toScreen(this.lasso[i], this.lasso[i + 1]));
      c.closePath();
      for (const [style, dash] of [["#fff", []], ["#000", [5, 4]]]) { c.strokeStyle = style; c.lineWidth = 1.5; c.setLineDash(dash); c.stroke(); }
      c.setLineDash([]);
    }
    this.drawScale(c);
    let bottom = this.height - 10;
    if (this.shown?.names) bottom = this.drawLegend(c, bottom);
    else if (this.shown) bottom = this.drawBar(c, bottom, this.shown, this.limits());
    if (this.state.get("spots") === "measured" && this.measured) this.drawBar(c, bottom - 8, this.measured, [this.measured.low, this.measured.high]);
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

  drawScale(c) {
    const wanted = 0.2 * this.width / this.camera.scale * this.um, power = 10 ** Math.floor(Math.log10(wanted));
    const length = [1, 2, 5, 10].map(k => k * power).reduce((a, b) => Math.abs(Math.log(b / wanted)) < Math.abs(Math.log(a / wanted)) ? b : a);
    const px = length / this.um * this.camera.scale, text = length >= 1000 ? `${length / 1000} mm` : `${Number(length.toPrecision(2))} µm`;
    paper(c, 10, this.height - 38, px + 16, 28);
    c.fillStyle = "#000"; c.textAlign = "center"; c.fillText(text, 18 + px / 2, this.height - 20);
    c.fillRect(18, this.height - 15, px, 2.5);
  }

  drawBar(c, bottom, {label, min, max}, [low, high]) {
    c.font = FONT;
    const wide = clamp(c.measureText(label).width + 20, 200, this.width - 20), x = this.width - 10 - wide, y = bottom - 52, inner = wide - 44;
    paper(c, x, y, wide, 52);
    c.fillStyle = "#000"; c.textAlign = "center"; c.fillText(label, x + wide / 2, y + 14, wide - 8);
    const map = this.tables[this.state.get("cmap")], shade = i => `rgb(${map[3 * i]},${map[3 * i + 1]},${map[3 * i + 2]})`, run = c.createLinearGradient(x + 22, 0, x + 22 + inner, 0);
    for (let i = 0; i < 256; i += 5) run.addColorStop(i / 255, shade(i));
    c.fillStyle = run; c.fillRect(x + 22, y + 20, inner, 12);
    const end = (cut, from, to, i) => { if (cut) { c.fillStyle = shade(i); c.beginPath(); c.moveTo(from, y + 20); c.lineTo(to, y + 26); c.lineTo(from, y + 32); c.fill(); } };
    end(min < low, x + 22, x + 15, 0); end(max > high, x + 22 + inner, x + 29 + inner, 255);  // values beyond, as in the figures
    c.fillStyle = "#000";
    for (const v of ticks(low, high)) {
      const at = x + 22 + (v - low) / (high - low) * inner;
      c.fillRect(at - 0.5, y + 32, 1, 3); c.fillText(digits(v), at, y + 46);
    }
    return y;
  }

  drawLegend(c, bottom) {
    const {label, names, colours} = this.shown, most = Math.max(1, Math.floor((this.height - 90) / 17)), rows = names.slice(0, names.length > most ? most - 1 : most);
    c.font = FONT;
    const lines = [label, ...rows, ...(rows.length < names.length ? [`and ${names.length - rows.length} more`] : [])];
    const wide = clamp(Math.max(...lines.map(t => c.measureText(t).width)) + 36, 90, this.width - 20), high = 17 * lines.length + 10, x = this.width - 10 - wide, y = bottom - high;
    paper(c, x, y, wide, high);
    c.textAlign = "left";
    lines.forEach((text, i) => {
      if (i && i <= rows.length) { c.fillStyle = `rgb(${colours.subarray(3 * i - 3, 3 * i).join()})`; c.fillRect(x + 8, y + 17 * i + 7, 12, 12); }
      c.fillStyle = "#000"; c.fillText(text, x + (i ? 26 : 8), y + 17 * i + 17, wide - 30);
    });
    return y;
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
      this.uploadValues();
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
      this.uploadSpots();
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
    if (!this.points || this.state.get("alpha") <= 0) return -1;
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
      this.draw();
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

  leave() { clearTimeout(this.asking); if (this.hover >= 0 || this.hoverSpot >= 0) { this.hover = this.hoverSpot = -1; this.draw(); } this.card.hidden = true; }

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
    if (!this.gl.isContextLost()) this.uploadFlags();
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
    const {marks} = this, on = (target, kinds, act, more = {}) => kinds.split(" ").forEach(kind => target.addEventListener(kind, act, {signal: this.stop.signal, ...more}));
    const place = event => { const box = marks.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
    const fingers = new Map();
    let last = null;
    on(marks, "wheel", event => {
      event.preventDefault();
      const lines = event.deltaMode === 1 ? 30 : event.deltaMode === 2 ? 300 : 1;
      this.zoom(2 ** (-clamp(event.deltaY * lines, -300, 300) / (event.ctrlKey ? 60 : 240)), place(event));
    }, {passive: false});
    on(marks, "pointerdown", event => {
      if (event.button) return;
      marks.focus({preventScroll: true});
      try { marks.setPointerCapture(event.pointerId); } catch { /* a pointer that is gone already */ }
      fingers.set(event.pointerId, place(event));
      last = place(event);
      if (fingers.size === 1 && (this.mode === "lasso" || event.shiftKey)) { this.lasso = this.toSlide(...last); this.drawing = {add: this.mode === "lasso" && event.shiftKey}; this.leave(); }
      else this.drawing = null;
    });
    on(marks, "pointermove", event => {
      const now = place(event);
      if (!fingers.has(event.pointerId)) { if (this.shown) this.point(...now); return; }
      this.leave();
      if (this.drawing) {
        const [x, y] = this.toSlide(...now), n = this.lasso.length;
        if (Math.hypot(x - this.lasso[n - 2], y - this.lasso[n - 1]) * this.camera.scale >= 2) { this.lasso.push(x, y); this.draw(); }
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
    on(marks, "pointerup pointercancel", event => {
      fingers.delete(event.pointerId);
      if (!this.drawing) return;
      const {add} = this.drawing;
      this.drawing = null;
      if (event.type === "pointerup") this.release(add);
    });
    on(marks, "pointerleave", () => this.leave());
    on(marks, "dblclick", event => this.zoom(event.altKey ? 0.5 : 2, place(event)));
    on(marks, "keydown", event => {
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
      box.onchange = () => {
        const v = box.value === "" ? null : Number(box.value);
        state.set(key, Number.isFinite(v) ? v : null); this.changed();
      };
      (this.follow ??= []).push(() => {
        range.value = state.get("limits")[end];
        range.title = `${state.get("limits")[end]}th percentile`;
        if (document.activeElement !== box) box.value = this.shown?.quantiles ? Number(this.limits()[end].toPrecision(3)) : "";
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
    this.follow?.forEach(act => act());
    this.limitBox.hidden = !!this.shown?.names;
    this.mapBox.hidden = this.limitBox.hidden && !this.measured;
    this.lassoButton.classList.toggle("stand-on", this.mode === "lasso");
    this.marks.style.cursor = this.mode === "lasso" ? "crosshair" : "grab";
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
    this.paint();
    const both = h("canvas", {width: this.glass.width, height: this.glass.height}), c = both.getContext("2d");
    c.drawImage(this.glass, 0, 0); c.drawImage(this.marks, 0, 0);
    both.toBlob(blob => this.save(blob, `${this.meta.name}_${this.shown?.name ?? "tissue"}.png`), "image/png");
  }

  async csv() { this.save(new Blob([await this.source.csv(this.picked, this)], {type: "text/csv"}), `${this.meta.name}_selection.csv`); }
}

function paper(c, x, y, width, height) { c.font = FONT; c.fillStyle = "rgba(255,255,255,0.8)"; c.beginPath(); c.roundRect(x, y, width, height, 4); c.fill(); }

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
