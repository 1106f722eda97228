"""Time and memory of `plot_gene`, to the finished PNG: `python scripts/bench_plot.py --data DIR`.

Draws (1) section C4 of Andersson et al. (2021), Zenodo 3957257: 92 megapixels, JPEG without a pyramid, nuclei found by `segment_nuclei`;
(2) the same with a window at full resolution; (3) 300,000 made-up nuclei as disks and (4) as outlines of 16 corners on a slide of 400 megapixels
made of mirrored copies of C4's middle (tiled TIFF), with a window. Each in a process of its own, after all imports. Printed are seconds of one processor (the
clock says the same on a machine with nothing else to do), the peak memory of the whole process (Python and torch included), how much of it the
plot added, and what the image would take if it were loaded. Exit status 1 if a bar is not met: 3 s for C4, 10 s for 300,000 nuclei, and never
as much memory added as the image would take, but for (2): a JPEG cannot be read in parts, so that for a window all of it is decoded.
"""
import argparse
import io
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import shapely
from anndata import AnnData
from bench_nuclei import write_large
from geopandas import GeoDataFrame, read_parquet

BARS = {"C4": 3, "window": 3, "disks": 10, "outlines": 10}  # seconds
MPP = 0.686


def segment(source: Path, target: Path) -> None:
    "Find the nuclei of C4 and write them."
    import stand
    stand.segment_nuclei(stand.Section(slide=stand.open_slide(source, mpp=MPP)), progress=False).nuclei.to_parquet(target)


def made_up(slide, outlines: bool, n: int = 300_000) -> GeoDataFrame:
    "Scatter nuclei of 40 µm² over a slide."
    centre = np.random.default_rng(0).uniform(0, (slide.width, slide.height), (n, 2))
    angle = 2 * np.pi * np.arange(16) / 16
    corner = np.sqrt(40 / np.pi) / MPP * np.column_stack([np.cos(angle), np.sin(angle)])
    shapes = shapely.polygons(centre[:, None] + corner) if outlines else shapely.points(centre)
    return GeoDataFrame(dict(area_um2=40.0, x=centre[:, 0], y=centre[:, 1]), geometry=shapes, index=np.arange(n).astype(str))


def measured(name: str, path: Path, nuclei: Path) -> dict:
    "Draw in this process."
    import stand
    matplotlib.use("Agg")
    slide = stand.open_slide(path, mpp=MPP)
    table = read_parquet(nuclei) if name in ("C4", "window") else made_up(slide, name == "outlines")
    section = stand.Section(slide=slide, nuclei=table, name=name)
    cells = AnnData(np.hypot(table["x"], table["y"]).to_numpy(np.float32)[:, None], table[["area_um2"]], pd.DataFrame(index=["A"]))
    cells.obsm["spatial"] = table[["x", "y"]].to_numpy()
    draw = stand.plot_gene  # imports what it needs
    before, begin, busy = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter(), time.process_time()
    draw(cells, "A", section, zoom=None if name == "C4" else "auto", outlines=name != "disks").figure.savefig(io.BytesIO(), dpi=100)
    seconds, busy, peak = time.perf_counter() - begin, time.process_time() - busy, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return dict(n=len(cells), megapixels=slide.width * slide.height / 1e6, seconds=seconds, busy=busy, gigabytes=peak / 2**20, added=(peak - before) / 2**10)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=Path, required=True, help="folder with her2st/C4.jpg")
    p.add_argument("--one", nargs=3, help=argparse.SUPPRESS)  # of the processes that this one starts: what, slide, nuclei
    args = p.parse_args()
    source, failed = args.data / "her2st" / "C4.jpg", False
    if args.one and args.one[0] == "segment": return segment(Path(args.one[1]), Path(args.one[2]))
    if args.one: return print(json.dumps(measured(args.one[0], *map(Path, args.one[1:]))))
    with tempfile.TemporaryDirectory() as folder:
        nuclei, large = Path(folder) / "nuclei.parquet", Path(folder) / "large.tif"
        write_large(source, large)
        for name, path in (("segment", source), ("C4", source), ("window", source), ("disks", large), ("outlines", large)):
            out = subprocess.run([sys.executable, __file__, "--data", args.data, "--one", name, path, nuclei], capture_output=True, text=True)
            if out.returncode: sys.exit(out.stderr)
            if name == "segment": continue
            r = json.loads(out.stdout.splitlines()[-1])
            late, image = r["busy"] > BARS[name], 3 * r["megapixels"]
            failed |= late or (name != "window" and r["added"] > image)
            print(f"{name:9s} {r['n']:7,} nuclei, {r['megapixels']:4.0f} megapixels: {r['busy']:4.1f} s of processor time (bar {BARS[name]}){' LATE' * late}, {r['seconds']:.1f} s on the clock, "
                  f"peak {r['gigabytes']:.2f} GB, of which the plot {r['added']:4.0f} MB; the image would be {image:,.0f} MB", flush=True)
    sys.exit(failed)


if __name__ == "__main__": main()
