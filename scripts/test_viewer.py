"""Test the viewer in a real browser: `python scripts/test_viewer.py`.

Headless Chromium opens an exported page and a JupyterLab session, searches a gene, zooms, points at nuclei and draws around some. Pixels are compared with
the slide and with outlines drawn here, selections with what shapely finds. Then 200,000 nuclei are timed. Needs playwright (in the dev requirements) and a Chromium or Chrome:
`$STAND_CHROMIUM`, or one on the path, or one that `playwright install chromium` has fetched. Without them it fails; with `--if-present` it is skipped.
The last line says how many checks passed, failed and were skipped. `--figure` draws figures/viewer.png, `--keep DIR` keeps the screenshots.
"""
import argparse
import csv
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import shapely
from anndata import AnnData
from geopandas import GeoDataFrame
from PIL import Image
from skimage.draw import polygon

import stand
from stand.prediction import expression
from stand.outline import label_polygons
from stand.slide import Slide

ROOT = Path(__file__).resolve().parent.parent
ARGS = ["--headless", "--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--disable-gpu-compositing", "--disable-quic",
        "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--force-color-profile=srgb"]
BARS = dict(first=3.0, frame=0.050, gene=0.300)  # seconds, on two idle cores; much slower machines than that are not judged
MUCH = 4  # times the bar: a failure, not a slow machine


# ---- what is shown

def example(size_px: int = 1024):
    "Make the built-in section with its true nuclei, 3 genes in X and all genes in programs."
    section, truth = stand.datasets.simulated(0, size_px=size_px, return_truth=True)
    outline, label = label_polygons(truth.uns["labels"])
    true = truth[label - 1]
    kind, rate = pd.get_dummies(true.obs["type"]).to_numpy(float), true.layers["rate"]
    size = rate.sum(1, keepdims=True)
    programs = np.maximum(np.linalg.lstsq(kind * size, rate, rcond=None)[0].T, 1e-6).astype(np.float32)
    shown = ["ERBB2", "CD3E", "COL1A1"]
    at = true.var_names.get_indexer(shown)
    obs = pd.DataFrame(dict(area_um2=shapely.area(outline) * section.mpp**2, type=pd.Categorical(true.obs["type"])), index=true.obs_names)
    cells = AnnData(rate[:, at].astype(np.float32), obs, pd.DataFrame(index=shown))
    cells.obsm.update(spatial=shapely.get_coordinates(shapely.centroid(outline)), X_programs=(kind * size).astype(np.float32))
    cells.varm.update(programs=programs[at], phi=np.full((3, 1), 2.0, np.float32))
    cells.uns["stand"] = dict(members=1, genes=np.asarray(true.var_names, dtype=str), programs=programs)
    return cells, replace(section, nuclei=GeoDataFrame(obs[["area_um2"]], geometry=outline), name="<i>built-in</i> & \"true\"")


class Repeated:
    "A picture put side by side n by n times, without taking more memory."
    def __init__(self, image, n): self.image, self.n, self.shape = image, n, (image.shape[0] * n, image.shape[1] * n, 3)
    def __getitem__(self, key): return self.image[np.ix_(*(np.arange(*k.indices(size)) % one for k, size, one in zip(key, self.shape, self.image.shape)))]


def large(n: int = 200_000):
    "Put the built-in section side by side until there are n nuclei."
    cells, section = example()
    k = math.ceil(math.sqrt(n / len(cells)))
    levels = [section.slide.read(0, 0, 1024, 1024)]
    while len(levels[-1]) > 64: levels.append(np.asarray(Image.fromarray(levels[-1]).reduce(2)))
    moves = 1024 * np.stack(np.meshgrid(np.arange(k), np.arange(k)), -1).reshape(-1, 2)
    one = np.asarray(section.nuclei.geometry.values)
    outline = np.concatenate([shapely.transform(one, lambda xy: xy + move) for move in moves])[:n]
    row = np.tile(np.arange(len(cells)), k * k)[:n]
    many = AnnData(np.asarray(cells.X)[row], cells.obs.iloc[row].set_axis([f"n{i}" for i in range(n)]), cells.var)
    many.obsm.update(spatial=shapely.get_coordinates(shapely.centroid(outline)), X_programs=cells.obsm["X_programs"][row])
    many.varm.update({key: np.asarray(v) for key, v in cells.varm.items()})
    many.uns["stand"] = cells.uns["stand"]
    slide = Slide([Repeated(level, k) for level in levels], mpp=section.mpp, name="large")
    return many, replace(section, spots=None, slide=slide, nuclei=GeoDataFrame(many.obs[["area_um2"]], geometry=outline), name="large")


# ---- a viewer in a browser

class Shown:
    "A viewer in a page of the browser."

    def __init__(self, page, keep: Path): self.page, self.keep, self.n = page, keep, 0

    def js(self, code: str, value=None):
        return self.page.evaluate(f"value => {{ const v = document.querySelector('.stand-host').standViewer; {code} }}", value)

    def wait(self, seconds: float = 60) -> None:
        "Wait until all that is wanted is drawn."
        until = time.time() + seconds
        while not self.page.evaluate("!!document.querySelector('.stand-host')?.standViewer?.idle"):
            if time.time() > until: raise AssertionError(f"not drawn after {seconds} s: {self.page.inner_text('body')[-300:]!r}")
            time.sleep(0.02)

    def settle(self) -> None:
        time.sleep(0.25)  # what was done reaches the viewer, and what it does then is seen
        self.wait()

    def look(self, x_um: float, y_um: float, width_um: float) -> None:
        self.js("v.state.set('view_um', value); v.look(value);", [x_um, y_um, width_um])
        self.settle()

    def set(self, **settings) -> None:
        self.js("for (const [k, x] of Object.entries(value)) v.state.set(k, x); v.changed();", settings)
        self.settle()

    def view(self) -> tuple[np.ndarray, float]:
        "Left and top (full-resolution pixels), and screen pixels to one of them."
        left, top, width = self.js("return v.view()")
        return np.array([left, top]) / self.js("return v.um"), self.box()["width"] / (width / self.js("return v.um"))

    def box(self) -> dict: return self.page.locator(".stand-stage").bounding_box()

    def shot(self, name: str = "") -> np.ndarray:  # (h, w, 3), int
        "Take a picture of the tissue; with a name, also of the whole page, to look at."
        if name: self.page.screenshot(path=self.keep / f"{name}.png")
        self.page.mouse.move(2, 2)
        return np.asarray(Image.open(BytesIO(self.page.screenshot(clip=self.box()))).convert("RGB")).astype(int)

    def bare(self, on: bool) -> None:
        "Hide the marks above the tissue, or show them again."
        self.js("for (const m of [v.scaleMark, v.bars]) m.style.visibility = value ? 'hidden' : '';", on)

    def screen(self, xy) -> np.ndarray:
        "Where a place on the slide is on the page."
        corner, scale = self.view()
        return (np.asarray(xy) - corner) * scale + [self.box()["x"], self.box()["y"]]

    def search(self, text: str) -> None:
        self.page.locator(".stand-search").click()
        self.page.keyboard.press("Control+A")
        self.page.keyboard.type(text)
        self.page.keyboard.press("Enter")

    def lasso(self, ring: np.ndarray) -> None:
        "Draw around a polygon of places on the page."
        self.page.keyboard.down("Shift")
        ring = np.asarray(ring, dtype=float).tolist()
        self.page.mouse.move(*ring[0])
        self.page.mouse.down()
        for point in ring[1:]: self.page.mouse.move(*point)
        self.page.mouse.up()
        self.page.keyboard.up("Shift")
        self.settle()

    def status(self) -> str: return self.page.inner_text(".stand-status")


def circle(shown: Shown, share: float) -> np.ndarray:
    "A ring of places on the page around the middle of the tissue."
    box, turn = shown.box(), np.linspace(0, 2 * np.pi, 60)
    return np.stack([box["x"] + box["width"] / 2 + share * box["width"] / 2 * np.cos(turn), box["y"] + box["height"] / 2 + share * box["height"] / 2 * np.sin(turn)], -1)


def best_shift(found: np.ndarray, wanted: np.ndarray, reach: int = 3) -> tuple[int, int]:  # x, y
    "Find the shift of a picture that brings it closest to another."
    inner = (slice(reach, -reach),) * 2
    shifts = [(x, y) for x in range(-reach, reach + 1) for y in range(-reach, reach + 1)]
    return min(shifts, key=lambda s: np.abs(np.roll(found, (-s[1], -s[0]), (0, 1))[inner].astype(float) - wanted[inner]).mean())


def aligned(shown: Shown, cells, section, dpr: float, what: str, least: float) -> str:
    "Compare tissue and nuclei on the screen with the slide and with outlines drawn here."
    corner, scale = shown.view()
    shown.bare(True)
    shown.set(alpha=0, dim=0)
    tissue = shown.shot()
    high, wide = tissue.shape[:2]
    scale = scale * dpr  # screen shots have device pixels
    wanted = section.slide.read_scaled(*corner, wide / scale, high / scale, scale)
    wanted = np.asarray(Image.fromarray(wanted).resize((wide, high))).astype(int)
    away, shift = np.abs(tissue - wanted).mean(), best_shift(tissue, wanted)
    mirrored = [np.abs(tissue[:, ::-1] - wanted).mean(), np.abs(tissue[::-1] - wanted).mean()]
    assert shift == (0, 0) and away < 8 and away < 0.7 * min(mirrored), f"{what}: the H&E is shifted by {shift} px or differs: {away:.1f}, mirrored {mirrored}"
    shown.set(alpha=1, dim=1)
    found = shown.shot().min(-1) < 215
    shown.set(alpha=0.9, dim=0.4)
    shown.bare(False)
    outline, least_px = np.zeros((high, wide), bool), 1.6 * dpr
    for shape in section.nuclei.geometry.values:
        at = (shapely.get_coordinates(shape.exterior) - corner) * scale
        if (at.max(0) < 0).any() or (at.min(0) > (wide, high)).any(): continue
        if np.ptp(at, axis=0).max() < least_px: at = at.mean(0) + least_px / 2 * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
        outline[polygon(*(at - 0.5).T[::-1], outline.shape)] = True  # pixels whose middle lies inside
    iou, moved = (found & outline).sum() / (found | outline).sum(), best_shift(found.astype(float), outline.astype(float))
    assert outline.mean() > 0.01 and moved == (0, 0) and iou > least, f"{what}: nuclei are shifted by {moved} px or overlap by {iou:.2f} only, wanted {least}"
    return f"{what} ({scale:.2g} px a px of the slide): H&E differs by {away:.1f} of 255, nuclei overlap by {iou:.2f}"


def colour_at(shown: Shown, cells, section, values: np.ndarray, what: str) -> str:
    "Compare the colours of large nuclei with the colour map."
    import matplotlib
    shown.bare(True)
    shown.set(alpha=1, dim=1)
    picture, box = shown.shot(), shown.box()
    shown.set(alpha=0.9, dim=0.4)
    shown.bare(False)
    low, high = np.percentile(values, (1, 99))
    scale, seen = picture.shape[1] / box["width"], 0
    for row in np.argsort(-section.nuclei.geometry.area.to_numpy())[:400]:
        middle = section.nuclei.geometry.values[row].representative_point()
        x, y = ((shown.screen([middle.x, middle.y]) - [box["x"], box["y"]]) * scale).astype(int)
        if not (3 < x < picture.shape[1] - 3 and 3 < y < picture.shape[0] - 3): continue
        colour = np.array(matplotlib.colormaps["viridis"](np.clip((values[row] - low) / (high - low), 0, 1))[:3]) * 255
        near = [np.abs(picture[y, x] - (255 + share * (colour - 255))).max() for share in (0.65, 1)]  # filled, or seen from afar
        assert min(near) < 9, f"{what}: nucleus {row} has the colour {picture[y, x]}, wanted {colour.round()}"
        seen += 1
        if seen == 25: break
    assert seen > 8, f"{what}: {seen} nuclei in sight"
    return f"{what}: {seen} nuclei have the colours of their values"


def card(shown: Shown, cells, section, row: int) -> dict[str, str]:
    "Point at a nucleus and read its card."
    middle = section.nuclei.geometry.values[row].representative_point()
    shown.page.mouse.move(*(shown.screen([middle.x, middle.y]) + 0.5))
    time.sleep(0.6)
    texts = shown.page.locator(".stand-card > div").all()
    return {t.locator("span").inner_text(): t.locator("b").inner_text() for t in texts}


def circled(shown: Shown, cells, ring: np.ndarray) -> np.ndarray:
    "Rows of the nuclei whose centres lie in a ring on the page, by shapely."
    corner, scale = shown.view()
    lasso = shapely.make_valid(shapely.Polygon((ring - [shown.box()["x"], shown.box()["y"]]) / scale + corner))
    return np.flatnonzero(shapely.contains_xy(lasso, cells.obsm["spatial"]))


def middle_rows(shown: Shown, cells, n: int) -> np.ndarray:
    "Rows of nuclei near the middle of what is shown."
    corner, scale = shown.view()
    box = shown.box()
    return np.argsort(np.hypot(*(cells.obsm["spatial"] - corner - np.array([box["width"], box["height"]]) / 2 / scale).T))[:n]


# ---- checks; each yields what it saw

def check_parts(context):
    page = context.new_page()
    script = (ROOT / "stand" / "static" / "viewer.js").read_text(encoding="utf-8")
    page.add_script_tag(type="module", content=script + "\nglobalThis.parts = {triangulate, within, nearest, matches};")
    rng = np.random.default_rng(0)
    for n in (3, 4, 9, 30, 80):
        turn, radius = np.sort(rng.uniform(0, 2 * np.pi, n)), rng.uniform(20, 100, n)  # stars, most of them far from convex
        corners = np.stack([radius * np.cos(turn), radius * np.sin(turn)], -1).round(3)
        if not (shape := shapely.Polygon(corners)).is_valid: continue
        for ring in (corners, corners[::-1]):
            index = np.array(page.evaluate("p => { const out = []; parts.triangulate(p, 0, p.length / 2, out); return out; }", ring.ravel().tolist())).reshape(-1, 3)
            triangles = shapely.polygons(ring[index])
            assert math.isclose(shapely.area(triangles).sum(), shape.area, rel_tol=1e-6) and shapely.union_all(triangles).symmetric_difference(shape).area < 1e-3 * shape.area
        points = rng.uniform(-100, 100, (300, 2))
        inside = page.evaluate("([q, p]) => q.map(([x, y]) => parts.within(x, y, p, 0, p.length / 2))", [points.tolist(), corners.ravel().tolist()])
        assert (np.array(inside) == shapely.contains_xy(shape, points)).all()
    yield "triangles cover polygons exactly, and points are found inside of them as shapely finds them"
    names = ["ERBB2", "ERBB3", "CD4", "CD40", "ACTB", "TCD4"]
    found = page.evaluate("names => [parts.nearest('erbb22', names, 1), parts.matches('cd4', names)]", names)
    assert found == [["ERBB2"], ["CD4", "CD40", "TCD4"]], found
    yield "names are found by their beginning, then by what they hold; a wrong one by the fewest letters changed"
    page.close()


def check_page(context, work: Path, keep: Path):
    cells, section = example()
    path = stand.export_html(cells, section, work / "page.html", ["ERBB2", "EPCAM"], overwrite=True)
    page, told = context.new_page(), []
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on("console", lambda message: told.append(message.text) if message.type in ("error", "warning") and "GPU stall" not in message.text else None)
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    started = time.time()
    page.goto(path.as_uri())
    shown = Shown(page, keep)
    shown.wait()
    yield f"page of {path.stat().st_size / 1e6:.1f} MB opens in {time.time() - started:.1f} s"
    assert page.title() == section.name and page.locator(".stand-title b").inner_text() == section.name, "the name of the section is not shown as it is"
    yield "a name with < & \" is shown as it is"
    shown.shot("page-whole")
    yield aligned(shown, cells, section, 1, "whole section", 0.85)
    yield colour_at(shown, cells, section, cells[:, "ERBB2"].X.ravel(), "ERBB2")
    box = shown.box()
    shown.look(-0.9 * section.slide.width * section.mpp, -0.3 * section.slide.width * section.mpp, 2.6 * section.slide.width * section.mpp)
    shown.shot("page-far")
    yield aligned(shown, cells, section, 1, "from afar, as disks", 0.6)
    yield colour_at(shown, cells, section, cells[:, "ERBB2"].X.ravel(), "ERBB2 from afar")
    page.get_by_text("Fit", exact=True).click()
    shown.settle()
    place = np.array([box["x"] + 0.4 * box["width"], box["y"] + 0.6 * box["height"]])
    before = (place - shown.screen([0, 0])) / shown.view()[1]
    page.mouse.move(*place)
    for _ in range(4): page.mouse.wheel(0, -200)
    shown.settle()
    after = (place - shown.screen([0, 0])) / shown.view()[1]
    assert np.abs(after - before).max() < 1.5, f"the place under the pointer moved from {before} to {after} as the wheel zoomed"
    yield f"the wheel zooms to {shown.view()[1]:.1f}x and keeps the place under the pointer"
    yield aligned(shown, cells, section, 1, "after the wheel", 0.88)
    start = shown.view()[0]
    page.mouse.move(*place)
    page.mouse.down()
    page.mouse.move(*(place + [60, -40]), steps=5)
    page.mouse.up()
    shown.settle()
    moved = (start - shown.view()[0]) * shown.view()[1]
    assert np.abs(moved - [60, -40]).max() < 1, f"dragged by (60, -40), moved by {moved}"
    yield "dragging moves the tissue with the pointer"
    row = middle_rows(shown, cells, 1)[0]
    told_of = card(shown, cells, section, row)
    assert told_of["nucleus"] == cells.obs_names[row] and told_of["type"] == cells.obs["type"].iloc[row], told_of
    assert math.isclose(float(told_of["ERBB2, expected counts per nucleus"]), cells.X[row, 0], rel_tol=0.01, abs_tol=0.01), told_of
    lo, hi = (bound[0, 0] for bound in stand.credible_interval(cells[[row]], "ERBB2"))
    assert told_of["captured counts, 90%"] == f"{lo:.0f} to {hi:.0f}", told_of
    page.screenshot(path=keep / "page-card.png")
    yield f"the card of {told_of['nucleus']} tells its value, interval and type"
    page.get_by_text("Fit", exact=True).click()
    shown.search("epcam")
    shown.settle()
    yield colour_at(shown, cells, section, expression(cells, "EPCAM")["EPCAM"].to_numpy(), "EPCAM, found as epcam")
    shown.search("ERBB22")
    assert "did you mean ERBB2" in shown.status(), shown.status()
    shown.search("type")
    shown.settle()
    shown.shot("page-types")
    yield "an unknown gene is told with the nearest names; types have a legend"
    ring = circle(shown, 0.5)
    wanted = circled(shown, cells, ring)
    shown.lasso(ring)
    got = np.array(shown.js("return Array.from(v.picked)"))
    assert len(wanted) > 5 and set(got) == set(wanted), f"the lasso has {len(got)} nuclei, wanted {len(wanted)}"
    shown.shot("page-lasso")
    with page.expect_download() as download: page.get_by_text("CSV", exact=True).click()
    download.value.save_as(work / "selection.csv")
    rows = list(csv.DictReader((work / "selection.csv").open(encoding="utf-8")))
    assert [r["nucleus"] for r in rows] == list(cells.obs_names[wanted]) and [r["type"] for r in rows] == list(cells.obs["type"].iloc[wanted])
    yield f"the lasso selects the {len(got)} nuclei that shapely finds in it, and CSV saves them"
    shown.lasso(np.array([[box["x"] + 3, box["y"] + 3], [box["x"] + 8, box["y"] + 3], [box["x"] + 8, box["y"] + 8], [box["x"] + 3, box["y"] + 8], [box["x"] + 3, box["y"] + 3]]))
    assert "no nucleus selected" in shown.status() and len(shown.js("return Array.from(v.picked)")) == 0, shown.status()
    yield "an empty lasso is told"
    shown.search("ERBB2")
    shown.settle()
    with page.expect_download() as download: page.get_by_text("PNG", exact=True).click()
    download.value.save_as(keep / "saved.png")
    saved = np.asarray(Image.open(keep / "saved.png").convert("RGB")).astype(int)
    shown.settle()
    page.mouse.move(2, 2)
    assert np.abs(saved - shown.shot()).mean() < 1 and download.value.suggested_filename.endswith("_ERBB2.png")
    yield "PNG saves what is on the screen"
    page.select_option("[aria-label=Spots]", "measured")
    shown.set(alpha=0)
    page.get_by_text("Fit", exact=True).click()
    shown.settle()
    picture, counts = shown.shot("page-spots"), section.spots[:, "ERBB2"].X.toarray().ravel()
    import matplotlib
    for spot in np.argsort(counts)[[0, len(counts) // 2, -1]]:
        x, y = (shown.screen(section.spots.obsm["spatial"][spot]) - [box["x"], box["y"]]).astype(int)
        colour = np.array(matplotlib.colormaps["viridis"]((counts[spot] - counts.min()) / np.ptp(counts))[:3]) * 255
        assert np.abs(picture[y, x] - colour).max() < 45, f"spot {spot} has the colour {picture[y, x]}, wanted about {colour}"
    shown.set(alpha=0.9)
    page.select_option("[aria-label=Spots]", "off")
    yield "spots have the colours of their measured counts"
    page.locator("[aria-label='upper limit, percentile']").fill("60")
    shown.settle()
    low, high = shown.js("return v.limits()")
    assert np.allclose([low, high], np.percentile(cells.X[:, 0], (1, 60)), rtol=2e-3), (low, high)
    page.locator("[aria-label='upper limit, value']").fill("7.5")
    page.keyboard.press("Enter")
    assert shown.js("return v.limits()")[1] == 7.5
    shown.set(vmin=None, vmax=None, limits=[1, 99])
    yield "limits follow the slider, and a value that is typed"
    shown.js("v.root.style.display = 'none'; v.state.set('view_um', value); v.look(value);", [60, 60, 120])
    time.sleep(0.5)  # longer than it takes to tell Python of a view
    assert shown.js("return v.state.get('view_um')") == [60, 60, 120]
    shown.js("v.root.style.display = '';")
    shown.settle()
    assert np.allclose(shown.js("return v.view()"), [60, 60, 120], atol=0.5), shown.js("return v.view()")
    shown.js("v.fit();")
    shown.settle()
    yield "a view that is set while the viewer is hidden is there when it is seen again"
    shown.js("const lose = v.gl.getExtension('WEBGL_lose_context'); lose.loseContext(); setTimeout(() => lose.restoreContext(), 200);")
    time.sleep(1)
    shown.settle()
    yield aligned(shown, cells, section, 1, "after the graphics card forgot everything", 0.85)
    page.set_viewport_size(dict(width=700, height=900))
    shown.settle()
    yield aligned(shown, cells, section, 1, "after the window was resized", 0.8)
    page.set_viewport_size(dict(width=430, height=800))
    shown.settle()
    shown.shot("page-narrow")
    assert not told, told
    assert all(url.startswith(("file:", "blob:", "data:")) for url in asked), asked
    yield "no error on the console, and nothing was fetched"
    page.close()


def check_dense_screen(context, work: Path, keep: Path):
    cells, section = example()
    page = context.new_page()
    page.goto((work / "page.html").as_uri())
    shown = Shown(page, keep)
    shown.wait()
    shown.shot("page-dense")
    yield aligned(shown, cells, section, 2, "two device pixels to a CSS pixel", 0.88)
    x, y = cells.obsm["spatial"][len(cells) // 2] * section.mpp
    shown.look(x - 15, y - 12, 30)
    shown.shot("page-dense-close")
    yield aligned(shown, cells, section, 2, "a single nucleus", 0.93)
    page.close()


class Lab:
    "A server of its own, in an empty folder: JupyterLab, or Notebook 7."

    def __init__(self, folder: Path, app: str = "JupyterLab"):
        config = folder / "config"
        (config / "labconfig").mkdir(parents=True)
        (config / "labconfig" / "page_config.json").write_text(json.dumps(dict(disabledExtensions={"@jupyterlab/apputils-extension:announcements": True})))
        self.folder, self.app, self.token = folder, app, "browser-test"
        env = os.environ | dict(JUPYTER_CONFIG_DIR=str(config), JUPYTERLAB_SETTINGS_DIR=str(folder / "settings"), JUPYTERLAB_WORKSPACES_DIR=str(folder / "spaces"),
                                JUPYTER_RUNTIME_DIR=str(folder / "runtime"), PYTHONPATH=os.pathsep.join([str(ROOT), str(ROOT / "scripts"), os.environ.get("PYTHONPATH", "")]), PYTHONWARNINGS="ignore")
        flags = ["--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1", "--ServerApp.port=0", f"--IdentityProvider.token={self.token}", f"--ServerApp.root_dir={folder}", "--ServerApp.terminals_enabled=False"]
        self.log = (folder / "lab.log").open("w")
        self.server = subprocess.Popen([sys.executable, "-m", "jupyterlab" if app == "JupyterLab" else "notebook", *flags], cwd=folder, env=env, stdout=self.log, stderr=subprocess.STDOUT)

    def url(self) -> str:
        until = time.time() + 90
        while time.time() < until:
            for path in (self.folder / "runtime").glob("jpserver-*.json"):
                try: return json.loads(path.read_text())["url"]
                except (ValueError, KeyError): pass  # half-written
            if self.server.poll() is not None: break
            time.sleep(0.2)
        raise AssertionError(f"{self.app} did not start: {(self.folder / 'lab.log').read_text()[-1500:]}")

    def page(self, name: str) -> str: return f"{self.url()}{'lab/tree' if self.app == 'JupyterLab' else 'notebooks'}/{name}?token={self.token}&reset"

    def close(self) -> None:
        self.server.terminate()
        try: self.server.wait(15)
        except subprocess.TimeoutExpired: self.server.kill()
        self.log.close()


def notebook(path: Path, *cells: str) -> None:
    "Write a notebook."
    import nbformat
    from nbformat.v4 import new_code_cell, new_notebook
    nbformat.write(new_notebook(cells=[new_code_cell(c) for c in cells], metadata=dict(kernelspec=dict(name="python3", display_name="Python 3", language="python"))), path)


class Book:
    "A notebook that is open."

    def __init__(self, page, lab: Lab, name: str):
        self.page = page
        page.goto(lab.page(name))
        page.locator(".jp-Notebook .jp-Cell").first.wait_for(timeout=90_000)
        page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").first.wait_for(timeout=90_000)

    def run(self, i: int, seconds: float = 60) -> str:
        "Run a cell and return the text it printed."
        cell = self.page.locator(".jp-Notebook .jp-Cell").nth(i)
        cell.locator(".cm-content").first.click()
        self.page.keyboard.press("Shift+Enter")
        until, again = time.time() + seconds, time.time() + 10
        while not (text := cell.locator(".jp-InputPrompt").first.inner_text()).strip("[]: ").isdigit():
            if "*" not in text and time.time() > again:  # the notebook was not ready for keys
                cell.locator(".cm-content").first.click()
                self.page.keyboard.press("Shift+Enter")
                again = time.time() + 10
            if time.time() > until: raise AssertionError(f"cell {i} ran for more than {seconds} s ({text})")
            time.sleep(0.02)
        time.sleep(0.15)
        return "\n".join(cell.locator(".jp-OutputArea-output pre").all_inner_texts())


def check_lab(context, lab: Lab, keep: Path):
    cells, section = example()
    notebook(lab.folder / "look.ipynb", "import stand, numpy as np\nfrom test_viewer import example\ncells, section = example()",
             "viewer = stand.view(cells, section, 'ERBB2')\nviewer", "print(viewer.selected.tolist(), viewer.selection.shape, viewer.gene, viewer.view_um)",
             "viewer.gene = 'EPCAM'; viewer.cmap = 'magma'; viewer.view_um = (100, 120, 80)", "viewer.selected = np.arange(40, 60); viewer.fit()",
             "try: viewer.gene = 'ERBB22'\nexcept stand.StandError as error: print(error)", "viewer.selected = []\ntry: viewer.selection\nexcept stand.StandError as error: print(error)",
             "viewer.cmap = 'viridis'; viewer.spots = 'measured'; viewer")
    page, asked = context.new_page(), []
    page.on("request", lambda request: asked.append(request.url))
    url, app, short = lab.url(), lab.app, lab.app.split()[0].lower().removeprefix("jupyter")  # "lab" or "notebook", in names of screenshots
    book = Book(page, lab, "look.ipynb")
    book.run(0)
    started = time.time()
    book.run(1)
    shown = Shown(page, keep)
    shown.wait()
    yield f"{app}: {len(cells)} nuclei {time.time() - started:.1f} s after Shift+Enter"
    page.locator(".stand-viewer").scroll_into_view_if_needed()
    shown.shot(f"{short}-whole")
    yield f"{app}: " + aligned(shown, cells, section, 1, "whole section", 0.85)
    yield f"{app}: " + colour_at(shown, cells, section, cells[:, "ERBB2"].X.ravel(), "ERBB2")
    started = time.time()
    shown.search("CD3E")
    shown.settle()
    yield f"{app}: " + colour_at(shown, cells, section, cells[:, "CD3E"].X.ravel(), "CD3E, searched")
    box = shown.box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    for _ in range(2): page.mouse.wheel(0, -200)
    shown.settle()
    yield f"{app}: " + aligned(shown, cells, section, 1, "after the wheel", 0.88)
    row = middle_rows(shown, cells, 1)[0]
    told_of = card(shown, cells, section, row)
    lo, hi = (bound[0, 0] for bound in stand.credible_interval(cells[[row]], "CD3E"))
    assert told_of["nucleus"] == cells.obs_names[row] and told_of["captured counts, 90%"] == f"{lo:.0f} to {hi:.0f}", told_of
    page.screenshot(path=keep / f"{short}-card.png")
    yield f"{app}: the card comes from Python, interval too"
    ring = circle(shown, 0.6)
    wanted = circled(shown, cells, ring)
    shown.lasso(ring)
    shown.shot(f"{short}-lasso")
    printed = book.run(2)
    assert len(wanted) > 3 and printed.startswith(f"{wanted.tolist()} ({len(wanted)}, 3) CD3E ["), f"{printed!r}, wanted {list(wanted)}"
    yield f"{app}: the lasso returns {len(wanted)} nuclei to Python as an AnnData, and Python knows gene and view"
    book.run(3)
    page.locator(".stand-viewer").scroll_into_view_if_needed()
    shown.settle()
    assert np.allclose(shown.js("return v.view()"), [100, 120, 80], atol=0.5) and shown.js("return v.shown.name") == "EPCAM"
    shown.shot(f"{short}-set")
    yield f"{app}: gene, colours and view set in Python are shown"
    book.run(4)
    shown.settle()
    assert shown.js("return Array.from(v.picked)") == list(range(40, 60))
    assert "did you mean ERBB2" in book.run(5) and "no nucleus is selected" in book.run(6)
    yield f"{app}: a selection set in Python is shown; an unknown gene and an empty selection are told"
    book.run(7)
    time.sleep(1.5)
    assert page.locator(".stand-viewer").count() == 2
    page.locator(".stand-viewer").nth(1).scroll_into_view_if_needed()
    time.sleep(1)
    page.screenshot(path=keep / f"{short}-two.png")
    yield f"{app}: the same viewer can be shown twice"
    assert all(u.startswith((url, url.replace("http", "ws"), "data:", "blob:")) for u in asked), [u for u in asked if not u.startswith(url)][:5]
    yield f"{app}: nothing was fetched but from the server itself"
    page.close()


PAN = """const gl = v.gl, one = new Uint8Array(4), times = []; let last = performance.now();
for (let i = 0; i < value; i++) {
  await new Promise(next => requestAnimationFrame(next));
  const {x, y, scale} = v.goal;
  v.move({x: x + (i < value / 2 ? 5 : -5) / scale, y, scale});
  cancelAnimationFrame(v.frame); v.paint(performance.now());
  gl.readPixels(0, 0, 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, one);  // waits until it is drawn
  times.push(performance.now() - last); last = performance.now();
}
return times;"""


def check_speed(context, lab: Lab, keep: Path):
    notebook(lab.folder / "large.ipynb", "import stand\nfrom test_viewer import large\ncells, section = large()", "viewer = stand.view(cells, section, 'ERBB2')\nviewer")
    page = context.new_page()
    book = Book(page, lab, "large.ipynb")
    book.run(0, 300)
    cell = page.locator(".jp-Notebook .jp-Cell").nth(1)
    cell.locator(".cm-content").first.click()
    started = time.time()
    page.keyboard.press("Shift+Enter")
    shown = Shown(page, keep)
    shown.wait()
    yield judged("first paint", time.time() - started, BARS["first"], f"from Shift+Enter on view(), {shown.js('return v.meta.n'):,} nuclei")
    page.locator(".stand-viewer").scroll_into_view_if_needed()
    shown.shot("large-whole")
    for width, what in ((None, "all nuclei in sight"), (1500, "1.5 mm wide"), (300, "0.3 mm wide, outlines")):
        if width: shown.look(2000, 2000, width)
        shown.js(f"return (async () => {{ {PAN} }})()", 20)
        shown.wait()  # what the first pass asked for
        times = np.array(shown.js(f"return (async () => {{ {PAN} }})()", 80)) / 1000
        shown.settle()
        yield judged(f"frame while panning, {what}", float(np.median(times)), BARS["frame"], f"median of 80, 95 % within {1000 * np.percentile(times, 95):.0f} ms, drawn {shown.js('return v.grains')}x coarser while moving")
        shown.shot(f"large-{width or 'pan'}")
    page.get_by_text("Fit", exact=True).click()
    shown.settle()
    times = [shown.js("return (async () => { const t = performance.now(); v.state.set('gene', value); while (v.shown.name !== value || v.asked || v.frame) await new Promise(r => setTimeout(r, 2)); return performance.now() - t; })()", gene) / 1000
             for gene in ("EPCAM", "CD3E", "COL1A1", "CD68", "ERBB2")]
    yield judged("gene switch", float(np.median(times)), BARS["gene"], f"median of {len(times)}, longest {1000 * max(times):.0f} ms")
    page.close()


def judged(what: str, seconds: float, bar: float, more: str) -> str:
    "Compare with a bar: slower is told, much slower is a failure."
    text = f"{what}: {seconds:.2f} s" if bar >= 1 else f"{what}: {1000 * seconds:.0f} ms"
    wanted = f"{bar:g} s" if bar >= 1 else f"{1000 * bar:.0f} ms"
    assert seconds < MUCH * bar, f"{text}, wanted less than {wanted} ({more})"
    return f"{text} ({more})" + ("" if seconds < bar else f"; WARNING: wanted less than {wanted} on two idle cores, load is {os.getloadavg()[0]:.1f}")


def draw_figure(browser, work: Path) -> None:
    "Draw figures/viewer.png: the built-in section, trained and deconvolved as in the tutorial."
    section = replace(stand.datasets.simulated(seed=0), name="built-in section")
    section = stand.encode_nuclei(stand.segment_nuclei(section, progress=False), progress=False)
    learn = stand.stand_learner(stand.STDataLoaders.from_sections([section], valid_pct=0.15, seed=0), n_programs=16)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(30, 3e-3)
    cells = stand.deconvolve(learn, section)
    path = stand.export_html(cells, section, work / "figure.html", ["ERBB2", "EPCAM", "COL1A1"], limits=(1, 95), overwrite=True)
    page = browser.new_page(viewport=dict(width=940, height=520))
    page.goto(path.as_uri())
    shown = Shown(page, work)
    shown.wait()
    shown.look(576, 311, 190)  # tumour beside lymphocytes
    row = middle_rows(shown, cells, 1)[0]
    card(shown, cells, section, row)
    picture = Image.open(BytesIO(page.screenshot())).convert("RGB")
    picture.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(ROOT / "figures" / "viewer.png", optimize=True)
    page.close()
    print(f"wrote figures/viewer.png, {(ROOT / 'figures' / 'viewer.png').stat().st_size / 1e3:.0f} kB")


# ---- running them

def find_chromium(playwright) -> str | None:
    "Find a browser that can be driven."
    named = os.environ.get("STAND_CHROMIUM")
    if named: return shutil.which(named)
    found = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")]
    return next((path for path in (*found, playwright.chromium.executable_path) if path and Path(path).is_file()), None)


def run(name: str, checks, count: Counter, context, keep: Path) -> None:
    "Run some checks, print and count them; what the browser showed when one failed is kept."
    try:
        for seen in checks:
            count["passed"] += 1
            print(f"passed   {seen}", flush=True)
    except Exception:
        count["failed"] += 1
        for i, page in enumerate(context.pages): page.screenshot(path=keep / f"failed-{name}-{i}.png")
        print(f"FAILED   {name} after {count['passed']} passed:\n    " + "\n    ".join(traceback.format_exc().strip().splitlines()[-12:]), flush=True)


def finish(count: Counter) -> int:
    print(f"{count['passed']} passed, {count['failed']} failed, {count['skipped']} skipped", flush=True)
    return int(count["failed"] > 0 or not count["passed"] + count["skipped"])


def main(args) -> int:
    count = Counter(passed=0, failed=0, skipped=0)
    missing, chromium = "", None
    try:
        from playwright.sync_api import sync_playwright
        with sync_playwright() as playwright: chromium = find_chromium(playwright)
        if chromium is None: missing = "no Chromium or Chrome was found: install one, name it in STAND_CHROMIUM, or run `playwright install chromium`"
    except ImportError: missing = "playwright is not installed: pip install playwright"
    if missing:
        print(f"{'skipped ' if args.if_present else 'FAILED  '} viewer in a browser: {missing}")
        count["skipped" if args.if_present else "failed"] += 1
        return finish(count)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        work, keep = Path(folder), args.keep or Path(folder) / "shots"
        keep.mkdir(parents=True, exist_ok=True)
        browser = playwright.chromium.launch(executable_path=chromium, args=ARGS)
        print(f"Chromium {browser.version}, {os.cpu_count()} cores")
        if args.figure: draw_figure(browser, work)
        else:
            context, dense = browser.new_context(viewport=dict(width=1280, height=800)), browser.new_context(viewport=dict(width=900, height=600), device_scale_factor=2)
            if "page" in args.parts: run("parts", check_parts(context), count, context, keep)
            if "page" in args.parts: run("page", check_page(context, work, keep), count, context, keep)
            if "page" in args.parts: run("dense screen", check_dense_screen(dense, work, keep), count, dense, keep)
            for app, part in {"JupyterLab": "lab", "Notebook 7": "notebook"}.items():
                if not {part, "speed" if part == "lab" else part} & set(args.parts): continue
                (work / part).mkdir()
                lab = Lab(work / part, app)
                try:
                    if part in args.parts: run(app, check_lab(context, lab, keep), count, context, keep)
                    if part == "lab" and "speed" in args.parts: run("speed", check_speed(context, lab, keep), count, context, keep)
                finally: lab.close()
        browser.close()
    return 0 if args.figure else finish(count)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", default=["page", "lab", "notebook", "speed"], help="page, lab, notebook, speed; by default all")
    parser.add_argument("--if-present", action="store_true", help="skip, rather than fail, without playwright or a browser")
    parser.add_argument("--figure", action="store_true", help="draw figures/viewer.png instead")
    parser.add_argument("--keep", type=Path, help="folder for screenshots")
    sys.exit(main(parser.parse_args()))
