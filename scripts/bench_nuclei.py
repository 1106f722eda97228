"""Time and memory of finding nuclei: `python scripts/bench_nuclei.py --data DIR [--method watershed]`.

Segments section C4 of Andersson et al. (2021), Zenodo 3957257 (92 megapixels, JPEG), and a slide of 400 megapixels made of
mirrored copies of its middle (tiled TIFF), each in a process of its own, and prints seconds, megapixels a second and peak memory
(everything, Python and torch included). The same copy of 4 megapixels is segmented by `classical` as the baseline of the machine.
"""
import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import tifffile


def write_large(source: Path, target: Path, copies: int = 8, side: int = 2560, tissue: int | None = None) -> None:
    "Write copies x copies mirrored copies of the middle of a slide, beyond tissue x tissue of them glass, as a tiled TIFF with one level of a quarter below."
    import stand
    slide = stand.open_slide(source, mpp=0.686)
    piece = slide.read(slide.width // 2 - side // 2, slide.height // 2 - side // 2, side, side)
    glass, has_tissue = np.full_like(piece, 242), lambda i, j: tissue is None or max(i, j) < tissue
    row = lambda i: np.hstack([piece[::(-1) ** i, ::(-1) ** j] if has_tissue(i, j) else glass for j in range(copies)])
    small = lambda rows: rows.reshape(len(rows) // 4, 4, -1, 4, 3).mean((1, 3)).astype(np.uint8)
    tiles = (rows[y:y + 512, x:x + 512] for rows in map(row, range(copies)) for y in range(0, side, 512) for x in range(0, side * copies, 512))
    options = dict(tile=(512, 512), photometric="rgb", metadata=None, compression="zlib", resolution=(1e4 / 0.686,) * 2, resolutionunit="CENTIMETER")
    with tifffile.TiffWriter(target, bigtiff=True) as file:
        file.write(tiles, shape=(side * copies, side * copies, 3), dtype=np.uint8, subifds=1, **options)
        options["resolution"] = (1e4 / 0.686 / 4,) * 2
        file.write(np.vstack([small(row(i)) for i in range(copies)]), subfiletype=1, **options)


def measured(path: Path, method: str) -> dict:
    "Segment a slide in this process."
    import stand
    slide = stand.open_slide(path, mpp=0.686)
    begin = time.perf_counter()
    nuclei = stand.segment_nuclei(stand.Section(slide=slide, mpp=0.686), method, progress=False).nuclei
    return dict(nuclei=len(nuclei), megapixels=slide.width * slide.height / 1e6, seconds=time.perf_counter() - begin,
                gigabytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=Path, required=True, help="folder with her2st/C4.jpg")
    p.add_argument("--method", default="watershed")
    p.add_argument("--one", type=Path, help=argparse.SUPPRESS)  # of the processes that this one starts
    args = p.parse_args()
    if args.one: return print(json.dumps(measured(args.one, args.method)))
    source = args.data / "her2st" / "C4.jpg"
    with tempfile.TemporaryDirectory() as folder:
        small, large = Path(folder) / "small.tif", Path(folder) / "large.tif"
        write_large(source, small, copies=1, side=2048)
        write_large(source, large)
        for name, path, method in (("baseline", small, "classical"), ("same", small, args.method), ("C4", source, args.method), ("large", large, args.method)):
            out = subprocess.run([sys.executable, __file__, "--data", args.data, "--one", path, "--method", method], capture_output=True, text=True)
            if out.returncode: sys.exit(out.stderr)
            r = json.loads(out.stdout.splitlines()[-1])
            print(f"{name:9s} {method:10s} {r['megapixels']:5.0f} megapixels, {r['nuclei']:8,} nuclei, {r['seconds']:6.1f} s, "
                  f"{r['megapixels'] / r['seconds']:4.1f} megapixels/s, {r['gigabytes']:.2f} GB", flush=True)


if __name__ == "__main__": main()
