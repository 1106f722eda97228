"""Feed the readers files that were damaged or forged: `python scripts/fuzz_readers.py --minutes 10`.

Every public reader gets a small valid input, changed in ways that hypothesis draws: bytes, numbers and words in text, nodes of JSON, items
of HDF5, columns of Parquet, tags of TIFF, headers of safetensors, names in archives. A reader may accept it or raise `StandError`. Findings
are: any other exception, more than 20 s, more than 1 GB, the end of the process, an unpickled object, a started program or connection,
and a file touched outside of the input's own folder. Inputs that did so are kept (`--keep FOLDER`); the exit status is 1 if there are any.

A batch of inputs runs in a process of its own with a limit on its address space, watched by this one, which kills it if it hangs.
"""
import argparse
import contextlib
import gzip
import io
import json
import logging
import multiprocessing
import os
import re
import resource
import shutil
import struct
import sys
import tarfile
import tempfile
import time
import traceback
import warnings
import zipfile
from collections import Counter
from pathlib import Path

sys.dont_write_bytecode = True
os.environ |= dict(MPLCONFIGDIR=tempfile.gettempdir(), OMP_NUM_THREADS="1")

import geopandas
import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
import spatialdata
import tifffile
import zarr
from anndata import AnnData
from hypothesis import HealthCheck, Phase, given, reject, seed, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.sparse import csr_matrix

import stand
from stand import archive, encoder
from stand.cells import xenium_alignment
from stand.model import StandModel
from stand.trained import ModelInfo, TrainedModel

# --- valid inputs, each a folder with the file that is to be changed -------------------------------------------------------------------------

rng = np.random.default_rng(0)


def grid() -> tuple[pd.DataFrame, pd.DataFrame]:
    "Counts and places of a small Visium section."
    row, column = (v.ravel() for v in np.mgrid[:6, :8])
    row, column = (v[(row + column) % 2 == 0] for v in (row, column))
    names = [f"AAAC{i:04d}-1" for i in range(len(row))]
    counts = pd.DataFrame(np.random.default_rng(0).poisson(2, (len(row), 4)), names, ["ERBB2", "CD4", "EPCAM", "KRT19"])
    return counts, pd.DataFrame(dict(barcode=names, in_tissue=1, array_row=row, array_col=column,
                                     pxl_row_in_fullres=60 + 100 * 3**0.5 * row, pxl_col_in_fullres=80 + 100 * column))


def table_of() -> AnnData:
    counts, places = grid()
    adata = AnnData(csr_matrix(counts.to_numpy(np.float32)), places.set_index("barcode").rename_axis(None), pd.DataFrame(index=counts.columns))
    adata.obsm["spatial"] = places[["pxl_col_in_fullres", "pxl_row_in_fullres"]].to_numpy()
    adata.obs["kind"] = pd.Categorical(["a", "b"] * (len(adata) // 2))
    adata.uns["spatial"] = {"A": dict(images=dict(hires=np.zeros((20, 20, 3), np.uint8)), scalefactors=dict(spot_diameter_fullres=110.0, tissue_hires_scalef=0.02))}
    return adata


def write_10x(path: Path) -> None:
    counts, _ = grid()
    X = csr_matrix(counts.to_numpy())
    with h5py.File(path, "w") as file:
        for key, values in dict(data=X.data, indices=X.indices, indptr=X.indptr, shape=np.array(X.shape[::-1]), barcodes=np.array(counts.index, "S")).items():
            file[f"matrix/{key}"] = values
        for key, values in dict(id=counts.columns, name=counts.columns, feature_type=["Gene Expression"] * 4).items():
            file[f"matrix/features/{key}"] = np.array(values, "S")


def write_visium(folder: Path) -> None:
    (folder / "spatial").mkdir(parents=True)
    write_10x(folder / "filtered_feature_bc_matrix.h5")
    grid()[1].to_csv(folder / "spatial/tissue_positions.csv", index=False)
    (folder / "spatial/scalefactors_json.json").write_text(json.dumps(dict(spot_diameter_fullres=110.0, tissue_hires_scalef=0.1)))
    Image.fromarray(np.zeros((90, 90, 3), np.uint8)).save(folder / "spatial/tissue_hires_image.png")


def write_mtx(folder: Path) -> None:
    write_visium(folder)
    (folder / "filtered_feature_bc_matrix.h5").unlink()
    (matrix := folder / "filtered_feature_bc_matrix").mkdir()
    counts, _ = grid()
    X = csr_matrix(counts.T.to_numpy()).tocoo()
    body = "".join(f"{r + 1} {c + 1} {v}\n" for r, c, v in zip(X.row, X.col, X.data))
    (matrix / "matrix.mtx").write_text(f"%%MatrixMarket matrix coordinate integer general\n{X.shape[0]} {X.shape[1]} {X.nnz}\n{body}")
    (matrix / "barcodes.tsv").write_text("\n".join(counts.index) + "\n")
    (matrix / "features.tsv").write_text("".join(f"{g}\t{g}\tGene Expression\n" for g in counts))


def write_hd(folder: Path) -> None:
    (folder / "spatial").mkdir(parents=True)
    n = 6
    row, column = (v.ravel() for v in np.mgrid[:n, :n])
    names = [f"s_016um_{r:05d}_{c:05d}-1" for r, c in zip(row, column)]
    X = csr_matrix(np.random.default_rng(0).poisson(2, (n * n, 3)))
    with h5py.File(folder / "filtered_feature_bc_matrix.h5", "w") as file:
        for key, values in dict(data=X.data, indices=X.indices, indptr=X.indptr, shape=np.array(X.shape[::-1]), barcodes=np.array(names, "S")).items():
            file[f"matrix/{key}"] = values
        for key, values in dict(id=["A", "B", "C"], name=["A", "B", "C"], feature_type=["Gene Expression"] * 3).items():
            file[f"matrix/features/{key}"] = np.array(values, "S")
    pd.DataFrame(dict(barcode=names, in_tissue=1, array_row=row, array_col=column, pxl_row_in_fullres=(row + 0.5) * 32.0,
                      pxl_col_in_fullres=(column + 0.5) * 32.0)).to_parquet(folder / "spatial/tissue_positions.parquet")
    factors = dict(spot_diameter_fullres=32.0, bin_size_um=16.0, microns_per_pixel=0.5, tissue_hires_scalef=0.5)
    (folder / "spatial/scalefactors_json.json").write_text(json.dumps(factors))


def write_st(folder: Path) -> None:
    y, x = (v.ravel() for v in np.mgrid[1:6, 1:7])
    table = pd.DataFrame(np.random.default_rng(0).poisson(2, (30, 3)), [f"{a}x{b}" for a, b in zip(x, y)], ["ERBB2", "CD4", "EPCAM"])
    table.to_csv(folder / "C4.tsv", sep="\t")
    pd.DataFrame(dict(x=x, y=y, pixel_x=100.0 * x, pixel_y=100.0 * y, selected=1)).to_csv(folder / "C4_selection.tsv", sep="\t", index=False)


def write_hest(folder: Path) -> None:
    for name in ("st", "metadata"): (folder / name).mkdir()
    table_of().write_h5ad(folder / "st/T1.h5ad")
    (folder / "metadata/T1.json").write_text(json.dumps(dict(pixel_size_um_estimated=0.5, st_technology="Visium", spot_diameter=None)))


def cell_table() -> pd.DataFrame:
    counts, places = grid()
    return counts.assign(x_centroid=places.pxl_col_in_fullres.to_numpy() / 2, y_centroid=places.pxl_row_in_fullres.to_numpy() / 2)


def write_xenium(folder: Path) -> None:
    write_10x(folder / "cell_feature_matrix.h5")
    cell_table()[["x_centroid", "y_centroid"]].reset_index(names="cell_id").to_parquet(folder / "cells.parquet")
    (folder / "experiment.xenium").write_text('{"pixel_size": 0.2125}')


def write_sdata(folder: Path) -> None:
    from spatialdata.models import Image2DModel, ShapesModel, TableModel

    adata = table_of()
    adata.obs = adata.obs.assign(region=pd.Categorical(["V1"] * adata.n_obs), spot_id=np.arange(adata.n_obs))
    circles = geopandas.GeoDataFrame(dict(radius=np.full(adata.n_obs, 55.0)), geometry=shapely.points(adata.obsm["spatial"]))
    image = Image2DModel.parse(np.full((3, 1000, 1000), 200, np.uint8), dims=("c", "y", "x"))
    table = TableModel.parse(adata, region="V1", region_key="region", instance_key="spot_id")
    spatialdata.SpatialData(images=dict(scan=image), shapes=dict(V1=ShapesModel.parse(circles)), tables=dict(table=table)).write(folder / "s.zarr")


def boxes() -> list:
    return [[[10 * i, 10], [10 * i + 8, 10], [10 * i + 8, 18], [10 * i, 18], [10 * i, 10]] for i in range(6)]


def write_geojson(path: Path) -> None:
    features = [dict(type="Feature", id=str(i), geometry=dict(type="Polygon", coordinates=[box]),
                     properties=dict(objectType="cell", name=f"c{i}", classification=dict(name="Tumor", color=[200, 0, 0]),
                                     measurements={"area": 64.0}, metadata={"a": "b"}))
                for i, box in enumerate(boxes())]
    features[0] |= dict(nucleusGeometry=dict(type="MultiPolygon", coordinates=[[boxes()[0]]]))
    features[1]["properties"]["childObjects"] = [features[2]]
    path.write_text(json.dumps(dict(type="FeatureCollection", features=features)))


def write_hovernet(path: Path) -> None:
    nuclei = {str(i): dict(contour=box, type=1, type_prob=0.9, centroid=[1, 2], bbox=[[1, 2], [3, 4]]) for i, box in enumerate(boxes())}
    path.write_text(json.dumps(dict(mag=40, nuc=nuclei, type_map={"tumour": 1})))


def labels() -> np.ndarray:
    picture = np.zeros((80, 80), np.uint16)
    for i in range(5): picture[10:20, 15 * i:15 * i + 9] = i + 1
    return picture


def ramp() -> np.ndarray:
    y, x = np.mgrid[:120, :160]
    return np.dstack([x + 60, y + 60, (x + y) // 2 + 40]).astype(np.uint8)


def write_model(folder: Path) -> None:
    about = dict(n_features=6, n_genes=4, n_sections=1, n_programs=2, n_components=3, n_hidden=4, n_latent=2)
    info = ModelInfo(["A", "B", "C", "D"], ["s"], "given", 40.0, about)
    TrainedModel([StandModel(**about)], info).save(folder / "model")


def write_encoder(folder: Path) -> None:
    encoder.load_encoder(raw=True).save(folder / "encoder")


def write_archive(path: Path) -> None:
    (inner := path.parent / "inner" / "spatial").mkdir(parents=True)
    for name in ("a.csv", "b.json"): (inner / name).write_text("1,2\n" * 20)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as file:
            for name in ("a.csv", "b.json"): file.write(inner / name, f"spatial/{name}")
    else:
        with tarfile.open(path, "w") as file: file.add(inner, "spatial")
    shutil.rmtree(inner.parent)


def touch(slide) -> None:
    "Use a slide as the next step would."
    slide.thumbnail(50), slide.read(10, 10, 60, 60), slide.read(0, 0, 40, 40, mpp=None if slide.mpp is None else slide.mpp * 3)


def picture(name: str, **how):
    return lambda folder: tifffile.imwrite(folder / name, ramp(), photometric="rgb", **how)


def pyramid(folder: Path) -> None:
    about = "Aperio Image Library v11.2.1\r\n160x120 [0,0 160x120] (64x64) JPEG/RGB Q=95|AppMag = 40|MPP = 0.2528"
    with tifffile.TiffWriter(folder / "a.svs") as file:
        for step in (1, 2): file.write(np.ascontiguousarray(ramp()[::step, ::step]), tile=(64, 64), photometric="rgb", compression="jpeg", description=about, metadata=None)


def ome_zarr(folder: Path) -> None:
    group = zarr.open_group(folder / "a.zarr", mode="w", zarr_format=3)
    group.create_array("0", data=np.moveaxis(ramp(), -1, 0).copy(), chunks=(3, 64, 64))
    scale = [dict(type="scale", scale=[1, 0.25, 0.25])]
    axes = [dict(name="c", type="channel"), *(dict(name=a, type="space", unit="micrometer") for a in "yx")]
    group.attrs["ome"] = dict(version="0.5", multiscales=[dict(axes=axes, datasets=[dict(path="0", coordinateTransformations=scale)])])


def saved(name: str, ending: str):
    "Write the simplest forms of a file."
    def write(folder: Path) -> None:
        path = folder / name
        if ending == "h5ad": table_of().write_h5ad(path)
        elif ending == "zarr": table_of().write_zarr(path)
        elif ending == "cells": cell_table().to_csv(path)
        elif ending == "vertices": pd.DataFrame([(i, *xy) for i, box in enumerate(boxes()) for xy in box], columns=["cell_id", "vertex_x", "vertex_y"]).to_csv(path, index=False)
        elif ending == "alignment": path.write_text("0.9,0.1,30\n-0.1,0.9,20\n0,0,1\n")
        elif ending == "wkt": pd.DataFrame(dict(id=range(6), geometry=[shapely.Polygon(b).wkt for b in boxes()])).to_csv(path, index=False)
        elif ending == "shapes": geopandas.GeoDataFrame(dict(name=list("abcdef")), geometry=[shapely.Polygon(b) for b in boxes()]).to_parquet(path)
        elif ending == "gpkg": geopandas.GeoDataFrame(dict(name=list("abcdef")), geometry=[shapely.Polygon(b) for b in boxes()]).to_file(path)
        elif ending == "parquet": cell_table().to_parquet(path)
        elif ending == "npy": np.save(path, labels())
        elif ending == "labels.tif": tifffile.imwrite(path, labels(), compression="zlib", tile=(32, 32))
        elif ending == "labels.png": Image.fromarray(labels()).save(path)
        else: Image.fromarray(ramp()).save(path)
    return write


# name: (write a valid input into a folder, the file to change, read it)
TARGETS = {
    "h5ad": (saved("a.h5ad", "h5ad"), "a.h5ad", lambda f: stand.read_section(f / "a.h5ad")),
    "HEST h5ad": (write_hest, "st/T1.h5ad", lambda f: stand.read_hest(f / "st/T1.h5ad")),
    "HEST json": (write_hest, "metadata/T1.json", lambda f: stand.read_hest(f / "st/T1.h5ad")),
    "10x h5": (write_visium, "filtered_feature_bc_matrix.h5", stand.read_visium),
    "positions csv": (write_visium, "spatial/tissue_positions.csv", stand.read_visium),
    "scalefactors json": (write_visium, "spatial/scalefactors_json.json", stand.read_visium),
    "hires png": (write_visium, "spatial/tissue_hires_image.png", stand.read_visium),
    "mtx": (write_mtx, "filtered_feature_bc_matrix/matrix.mtx", stand.read_visium),
    "features tsv": (write_mtx, "filtered_feature_bc_matrix/features.tsv", stand.read_visium),
    "HD parquet": (lambda f: write_hd(f / "square_016um"), "square_016um/spatial/tissue_positions.parquet", lambda f: stand.read_visium_hd(f / "square_016um")),
    "HD json": (lambda f: write_hd(f / "square_016um"), "square_016um/spatial/scalefactors_json.json", lambda f: stand.read_visium_hd(f / "square_016um")),
    "ST counts": (write_st, "C4.tsv", lambda f: stand.read_section(f / "C4.tsv")),
    "ST selection": (write_st, "C4_selection.tsv", lambda f: stand.read_section(f / "C4.tsv")),
    "Xenium parquet": (write_xenium, "cells.parquet", stand.read_xenium),
    "Xenium json": (write_xenium, "experiment.xenium", stand.read_xenium),
    "Xenium h5": (write_xenium, "cell_feature_matrix.h5", stand.read_xenium),
    "Xenium alignment": (saved("a.csv", "alignment"), "a.csv", lambda f: xenium_alignment(f / "a.csv")),
    "cells csv": (saved("cells.csv", "cells"), "cells.csv", lambda f: stand.read_section(f / "cells.csv", mpp=0.5)),
    "cells parquet": (saved("cells.parquet", "parquet"), "cells.parquet", lambda f: stand.read_section(f / "cells.parquet", mpp=0.5)),
    "AnnData zarr": (saved("a.zarr", "zarr"), "a.zarr", lambda f: stand.read_section(f / "a.zarr")),
    "SpatialData zarr": (write_sdata, "s.zarr", lambda f: stand.read_section(f / "s.zarr")),
    "geojson": (lambda f: write_geojson(f / "n.geojson"), "n.geojson", lambda f: stand.from_geojson(f / "n.geojson")),
    "HoVer-Net json": (lambda f: write_hovernet(f / "n.json"), "n.json", lambda f: stand.read_nuclei(f / "n.json")),
    "vertices csv": (saved("n.csv", "vertices"), "n.csv", lambda f: stand.read_nuclei(f / "n.csv", mpp=0.5)),
    "WKT csv": (saved("n.csv", "wkt"), "n.csv", lambda f: stand.read_nuclei(f / "n.csv")),
    "GeoParquet": (saved("n.parquet", "shapes"), "n.parquet", lambda f: stand.read_nuclei(f / "n.parquet")),
    "GeoPackage": (saved("n.gpkg", "gpkg"), "n.gpkg", lambda f: stand.read_nuclei(f / "n.gpkg")),
    "labels npy": (saved("n.npy", "npy"), "n.npy", lambda f: stand.read_nuclei(f / "n.npy")),
    "labels tiff": (saved("n.tif", "labels.tif"), "n.tif", lambda f: stand.read_nuclei(f / "n.tif")),
    "labels png": (saved("n.png", "labels.png"), "n.png", lambda f: stand.read_nuclei(f / "n.png")),
    "tiff": (picture("a.tif", compression="lzw", rowsperstrip=7, resolution=(40000, 40000), resolutionunit="CENTIMETER"), "a.tif", lambda f: touch(stand.open_slide(f / "a.tif"))),
    "OME-TIFF": (picture("a.ome.tif", compression="zlib", tile=(64, 64), metadata=dict(axes="YXS", PhysicalSizeX=0.25, PhysicalSizeXUnit="µm")), "a.ome.tif",
                 lambda f: touch(stand.open_slide(f / "a.ome.tif"))),
    "svs": (pyramid, "a.svs", lambda f: touch(stand.open_slide(f / "a.svs"))),
    "jpeg": (saved("a.jpg", "jpg"), "a.jpg", lambda f: touch(stand.open_slide(f / "a.jpg"))),
    "png": (saved("a.png", "png"), "a.png", lambda f: touch(stand.open_slide(f / "a.png"))),
    "OME-Zarr": (ome_zarr, "a.zarr", lambda f: touch(stand.open_slide(f / "a.zarr"))),
    "model json": (write_model, "model/model.json", lambda f: stand.load_model(f / "model")),
    "model safetensors": (write_model, "model/model.safetensors", lambda f: stand.load_model(f / "model")),
    "encoder json": (write_encoder, "encoder/model.json", lambda f: stand.load_encoder(f / "encoder")),
    "tar": (lambda f: write_archive(f / "a.tar"), "a.tar", lambda f: archive.unpack(f / "a.tar", f / "out", "spatial", progress=False)),
    "zip": (lambda f: write_archive(f / "a.zip"), "a.zip", lambda f: archive.unpack(f / "a.zip", f / "out", "spatial", progress=False)),
}

# --- changes: each takes hypothesis' draw function and the bytes of a file, and gives other bytes --------------------------------------------

NASTY = ["", "NaN", "inf", "-inf", "-1", "0", "1e400", "1e308", "-1e308", "9" * 400, "2147483648", "9223372036854775808", "0x10", "1_0", "1,5", "\0", "é", "\ud800",
         "'", '"', "\t", "\n", "true", "null", "None", "[]", "{}", "[" * 3000, '{"a":' * 3000, "a" * 20_000, "../../x", "/etc/passwd", "nan nan", "=1+1", "1e-320", "٣"]
NUMBERS = [0, 1, 2, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63, 2**64 - 1]
VALUES = st.recursive(st.one_of(st.none(), st.booleans(), st.integers(), st.sampled_from([n for n in NUMBERS] + [-n for n in NUMBERS] + [10**400]),
                                st.floats(), st.text(max_size=8), st.sampled_from(NASTY[:30])),
                      lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=5), inner, max_size=3)), max_leaves=8)


def change_bytes(draw, data: bytes) -> bytes:
    data = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        at, n = draw(st.integers(0, max(len(data) - 1, 0))), draw(st.sampled_from([1, 1, 1, 2, 4, 8, 64, 512]))
        kind = draw(st.integers(0, 6))
        if kind == 0 and len(data): data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == 1: data[at:at + n] = draw(st.binary(min_size=1, max_size=8))
        elif kind == 2: del data[at:at + n]
        elif kind == 3: data[at:at] = data[max(0, at - n):at]
        elif kind == 4: del data[at:]
        elif kind == 5: data[at:at + n] = bytes([draw(st.sampled_from([0, 255]))]) * n
        else:
            form = draw(st.sampled_from(["<H", ">H", "<I", ">I", "<Q", ">Q"]))
            number = struct.pack(form, draw(st.sampled_from(NUMBERS)) % 2 ** (8 * struct.calcsize(form)))
            data[at:at + len(number)] = number
    return bytes(data)


def change_words(draw, data: bytes) -> bytes:
    text = data.decode("utf-8", "surrogateescape")
    for _ in range(draw(st.integers(1, 3))):
        words = list(re.finditer(r"[^\s,:\[\]{}\t]+", text))
        if not words: return data
        word = words[draw(st.integers(0, len(words) - 1))]
        text = text[:word.start()] + draw(st.sampled_from(NASTY)) + text[word.end():]
    return text.encode("utf-8", "surrogatepass")


def change_lines(draw, data: bytes) -> bytes:
    lines = data.split(b"\n")
    at, kind = draw(st.integers(0, len(lines) - 1)), draw(st.integers(0, 5))
    if kind == 0: del lines[at]
    elif kind == 1: lines.insert(at, lines[draw(st.integers(0, len(lines) - 1))])
    elif kind == 2: lines = lines[:1] + lines[1:][:: draw(st.sampled_from([-1, 2]))]
    elif kind == 3: lines = [re.sub(rb"[,\t]", draw(st.sampled_from([b";", b" ", b",,", b"\t", b"|"])), line) for line in lines]
    elif kind == 4: lines = [line + draw(st.sampled_from([b",1", b"\t1", b"\r", b" "])) for line in lines]
    else: lines = lines[:1] + lines[1:] * draw(st.sampled_from([2, 50]))
    return b"\n".join(lines)


def nodes(tree, path=()):
    yield path
    if isinstance(tree, (dict, list)):
        for key in (tree if isinstance(tree, dict) else range(len(tree))): yield from nodes(tree[key], (*path, key))


def change_tree(draw, tree):
    paths = list(nodes(tree))
    for _ in range(draw(st.integers(1, 3))):
        path = paths[draw(st.integers(0, len(paths) - 1))]
        if not path: return draw(VALUES)
        place = tree
        try:
            for key in path[:-1]: place = place[key]
            kind = draw(st.integers(0, 3))
            if kind == 0: del place[path[-1]]
            elif kind == 1 and isinstance(place, dict): place[draw(st.one_of(st.text(max_size=4), st.sampled_from(["features", "nuc", "cells", "type"])))] = place.pop(path[-1])
            else: place[path[-1]] = draw(VALUES)
        except (KeyError, IndexError, TypeError): continue  # an earlier change took the place away
    return tree


def change_json(draw, data: bytes) -> bytes:
    return json.dumps(change_tree(draw, json.loads(data))).encode("utf-8", "surrogatepass")


def change_safetensors(draw, data: bytes) -> bytes:
    n = struct.unpack("<Q", data[:8])[0]
    header = json.dumps(change_tree(draw, json.loads(data[8:8 + n]))).encode("utf-8", "surrogatepass")
    size = draw(st.sampled_from([len(header)] * 6 + NUMBERS)) % 2**64
    return struct.pack("<Q", size) + header + data[8 + n:]


def change_h5(draw, data: bytes) -> bytes:
    buffer = io.BytesIO(data)
    with h5py.File(buffer, "a") as file:
        items = []
        file.visit(items.append)
        for _ in range(draw(st.integers(1, 2))):
            name, kind = items[draw(st.integers(0, len(items) - 1))], draw(st.integers(0, 9))
            if name not in file: continue
            item, attributes = file[name], dict(file[name].attrs)
            if kind == 0: del file[name]
            elif kind == 1 and attributes: item.attrs[draw(st.sampled_from(sorted(attributes)))] = draw(st.sampled_from(["", "csr_matrix", "array", "dataframe", "categorical", "dict", "null", "0.9.9", -1, 10**12, [1, 2]]))
            elif kind == 2 and attributes: del item.attrs[draw(st.sampled_from(sorted(attributes)))]
            elif kind == 3: del file[name]; file[name] = draw(st.sampled_from([h5py.SoftLink("/"), h5py.SoftLink("/nowhere"), h5py.ExternalLink("/etc/passwd", "/"), h5py.SoftLink(f"/{name}")]))
            elif kind == 4: del file[name]; file.create_group(name)
            else:
                del file[name]
                shape = draw(st.sampled_from([(), (0,), (1,), (3,), (24,), (25,), (4, 4), (2, 2, 2)]))
                dtype = draw(st.sampled_from(["i1", "u2", "i4", "i8", "u8", "f2", "f4", "f8", "S4", "O", "?"]))
                fill = draw(st.sampled_from([0, 1, -1, 2**31, 2**62, np.nan, np.inf, 1e300]))
                if kind == 9: file.create_dataset(name, (10**draw(st.integers(3, 14)),), "f8", chunks=True)
                elif dtype == "O": file.create_dataset(name, data=np.full(shape, draw(st.sampled_from(NASTY[:26])).replace("\0", ""), dtype=object), dtype=h5py.string_dtype())
                elif dtype == "S4": file[name] = np.full(shape, b"ab")
                else:
                    with np.errstate(all="ignore"): file[name] = np.full(shape, fill).astype(dtype)
                for key, value in attributes.items(): file[name].attrs[key] = value
    return buffer.getvalue()


def change_parquet(draw, data: bytes) -> bytes:
    table = pq.read_table(io.BytesIO(data))
    at, kind = draw(st.integers(0, table.num_columns - 1)), draw(st.integers(0, 5))
    name = table.column_names[at]
    if kind == 0: table = table.drop_columns([name])
    elif kind == 1: table = table.rename_columns([draw(st.text(max_size=5)) if i == at else c for i, c in enumerate(table.column_names)])
    elif kind == 2: table = table.slice(0, draw(st.integers(0, 3)))
    elif kind == 3: table = pa.concat_tables([table] * draw(st.integers(2, 4)))
    else:
        n = table.num_rows
        values = draw(st.sampled_from([[None] * n, ["a"] * n, [b"\xff\0"] * n, [float("nan")] * n, [float("inf")] * n, [-1] * n, [2**62] * n, [[1, 2]] * n, [{"a": 1}] * n, [True] * n]))
        table = table.set_column(at, name, pa.array(values))
    if draw(st.booleans()): table = table.replace_schema_metadata(None)
    elif table.schema.metadata: table = table.replace_schema_metadata({k: change_words(draw, v) for k, v in table.schema.metadata.items()})
    pq.write_table(table, sink := io.BytesIO())
    return sink.getvalue()


def change_tiff(draw, data: bytes) -> bytes:
    data = bytearray(data)
    with tifffile.TiffFile(io.BytesIO(bytes(data))) as file:
        tags = [(tag.offset, tag.valueoffset, tag.valuebytecount) for page in file.pages for tag in page.tags]
    for _ in range(draw(st.integers(1, 3))):
        offset, where, size = tags[draw(st.integers(0, len(tags) - 1))]
        part, form = draw(st.sampled_from([(offset, "<H"), (offset + 2, "<H"), (offset + 4, "<I"), (offset + 8, "<I"), (where, "<H"), (where, "<I")]))
        number = struct.pack(form, draw(st.sampled_from(NUMBERS + [3, 4, 7, 8, 259, 34892])) % 2 ** (8 * struct.calcsize(form)))
        data[part:part + len(number)] = number
    return bytes(data)


def change_archive(draw, data: bytes) -> bytes:
    name = draw(st.sampled_from(["../x", "/tmp/stand-escaped", "spatial/../../x", "spatial", "spatial/a.csv", "spatial/" + "d/" * 200 + "x", "spatial/a\nb", "C:\\x", "spatial/" + "n" * 300, "spatial/a.csv/b"]))
    sink = io.BytesIO(data)
    if data[:2] == b"PK":
        with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(sink, "a") as file:
            member = zipfile.ZipInfo(name)
            member.external_attr = draw(st.sampled_from([0, 0o120777 << 16, 0o010777 << 16, 0o040777 << 16]))
            file.writestr(member, b"/etc/passwd")
    else:
        with tarfile.open(fileobj=sink, mode="a") as file:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = draw(st.sampled_from([tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE])), "../../x"
            member.size = draw(st.sampled_from([0, 5, 2**40])) if member.isreg() else 0
            file.addfile(member, io.BytesIO(b"12345") if member.size == 5 else None)
    return sink.getvalue()


TEXT = [change_words, change_words, change_lines, change_bytes]
CHANGES = {".h5ad": [change_h5, change_h5, change_bytes], ".h5": [change_h5, change_h5, change_bytes], ".csv": TEXT, ".tsv": TEXT, ".mtx": TEXT,
           ".json": [change_json, change_json, *TEXT], ".geojson": [change_json, change_json, *TEXT], ".xenium": [change_json, *TEXT],
           ".parquet": [change_parquet, change_bytes], ".tif": [change_tiff, change_tiff, change_bytes], ".svs": [change_tiff, change_tiff, change_bytes],
           ".safetensors": [change_safetensors, change_bytes], ".tar": [change_archive, change_bytes], ".zip": [change_archive, change_bytes]}


@st.composite
def changed(draw, files: dict[str, bytes]) -> tuple[str, bytes]:  # which file, and what is in it
    "Draw a change of one of the files."
    name = draw(st.sampled_from(sorted(files)))
    data, ways = files[name], CHANGES.get(Path(name).suffix, [change_bytes])
    packed = data[:2] == b"\x1f\x8b"
    try: changed = draw(st.sampled_from(ways))(draw, gzip.decompress(data) if packed else data)
    except Exception: reject()  # h5py, pyarrow or tifffile refused to make this change
    return name, gzip.compress(changed) if packed else changed


# --- one batch, in a process of its own ------------------------------------------------------------------------------------------------------

SECONDS, MEGABYTES = 20, 1000


class Watch:
    "Notes what the interpreter is asked to do besides reading, through an audit hook."

    def __init__(self): self.folder, self.seen = None, []

    def __call__(self, event: str, arguments: tuple) -> None:
        if self.folder is None: return
        if event == "pickle.find_class" and any(frame.f_code.co_filename.endswith("dask/tokenize.py") for frame, _ in traceback.walk_stack(None)): return  # pickles its own
        if event in ("pickle.find_class", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "socket.connect"): self.seen.append(f"{event}{arguments!r:.200}")
        elif event == "open" and isinstance(arguments[0], (str, bytes)) and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT): self._path(event, arguments[0])
        elif event in ("os.mkdir", "os.remove", "os.rmdir", "os.rename", "os.link", "os.symlink", "os.truncate", "os.chmod", "shutil.rmtree"):
            if event in ("os.remove", "os.rmdir", "os.mkdir") and arguments[-1] != -1: return  # relative to an open folder, as rmtree does, which was looked at
            self._path(event, arguments[0])

    def _path(self, event: str, path) -> None:
        path = os.path.realpath(os.fsdecode(path))
        if not path.startswith(self.folder) and path != os.devnull: self.seen.append(f"{event} {path}")


def fault(error: BaseException | None, watch: Watch, memory: int, seconds: float) -> str | None:
    "Say what was wrong with how a reader took an input; None if nothing."
    chain, link = [], error
    while link is not None: chain.append(link); link = link.__cause__ or link.__context__
    if watch.seen: return f"touched: {watch.seen[0]}"
    if any(isinstance(e, MemoryError) for e in chain): return f"asked for too much memory: {str(error)[:150]}"
    if error is not None and not isinstance(error, stand.StandError):
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f"{os.sep}stand{os.sep}" in f.filename] or traceback.extract_tb(error.__traceback__)
        return f"{type(error).__name__} from {Path(frames[-1].filename).name}:{frames[-1].name}: {str(error)[:120]}"
    if memory > MEGABYTES: return f"took {memory} MB"
    return f"took {seconds:.0f} s" if seconds > SECONDS / 2 else None


def batch(name: str, number: int, n: int, folder: Path, pipe) -> None:
    "Read n changed inputs of a target, and report on each."
    warnings.simplefilter("ignore")
    logging.disable()
    os.dup2(os.open(folder / "said.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)  # decoders in C complain there
    _, file, read = TARGETS[name]
    home, watch = folder / "valid", Watch()
    whole = home / file
    files = {str(p.relative_to(home)): p.read_bytes() for p in (sorted(whole.rglob("*")) if whole.is_dir() else [whole]) if p.is_file()}
    here = folder / "changed"
    shutil.rmtree(here, ignore_errors=True), shutil.copytree(home, here)
    read(here)  # imports happen now
    shutil.rmtree(here), shutil.copytree(home, here)
    sys.addaudithook(watch)
    in_use = int(re.search(r"VmSize:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (in_use + 6 * 2**30,) * 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**28,) * 2)

    @seed(number)
    @settings(max_examples=n, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(changed(files))
    def run(change: tuple[str, bytes]) -> None:
        where, data = change
        (here / where).write_bytes(data)
        watch.seen.clear()
        pipe.send(("began", where, hash(data)))
        error, began, before = None, time.monotonic(), peak()
        watch.folder = os.path.realpath(here)
        try:
            with contextlib.redirect_stdout(io.StringIO()): read(here)
        except Exception as caught: error = caught
        watch.folder = None
        wrong = fault(error, watch, peak() - before, time.monotonic() - began)
        pipe.send(("ended", "accepted" if error is None else "refused", wrong))
        del error
        (here / where).write_bytes(files[where])
        if set(os.listdir(here)) != set(os.listdir(home)): shutil.rmtree(here), shutil.copytree(home, here)

    run()
    pipe.send(("done",))


def peak() -> int:  # MB
    "Peak memory of this process so far."
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def keep(folder: Path | None, changed: Path, where: str, words: str, count: int) -> None:
    "Keep an input with what was wrong."
    if folder is None or not (changed / where).exists(): return
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(changed / where, folder / f"{count:03d}-{Path(where).name}")
    with open(folder / "findings.txt", "a") as file: file.write(f"{count:03d} {words}\n")


def watched(name: str, number: int, n: int, folder: Path, kept: Path | None, found: Counter, told: Counter) -> None:
    "Run a batch, and kill it if it hangs."
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=batch, args=(name, number, n, folder, theirs), daemon=True)
    process.start(), theirs.close()
    where = ""

    def note(wrong: str) -> None:
        words = f"{name}: {wrong}"
        if not found[key := re.sub(r"\d+", "#", words)[:160]]: keep(kept, folder / "changed", where, words, len(found)), print(f"  FOUND {words}", flush=True)
        found[key] += 1

    while True:
        try:
            if not ours.poll(SECONDS if where else 120): note(f"hung for {SECONDS} s"); process.kill(); break
            said = ours.recv()
        except EOFError:
            process.join()
            if not where: raise SystemExit(f"{name}: the valid input was not read (exit {process.exitcode})")
            last = ((folder / "said.txt").read_text(errors="replace").strip().splitlines() or [""])[-1]
            note(f"the process ended ({process.exitcode}) {last[:200]}")
            break
        if said[0] == "done": break
        if said[0] == "began": where = said[1]
        else:
            told[said[1]] += 1
            if said[2]: note(said[2])
    process.kill(), process.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10, help="of the whole campaign (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the first batch (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=60, help="inputs in a process (default: %(default)s)")
    parser.add_argument("--keep", type=Path, help="folder for the inputs that were taken wrongly")
    parser.add_argument("--only", nargs="+", default=list(TARGETS), help="targets (default: all)")
    args = parser.parse_args()
    began, found, told, number = time.monotonic(), Counter(), {name: Counter() for name in args.only}, args.seed
    with tempfile.TemporaryDirectory() as root:
        def prepare() -> None:  # in a process too: a fork should not inherit threads
            warnings.simplefilter("ignore"), logging.disable()
            for name in args.only:
                folder = Path(root) / re.sub(r"\W", "_", name) / "valid"
                folder.mkdir(parents=True)
                TARGETS[name][0](folder)
        process = multiprocessing.get_context("fork").Process(target=prepare)
        process.start(), process.join()
        if process.exitcode: sys.exit("the valid inputs could not be written")
        while time.monotonic() - began < 60 * args.minutes:
            for name in args.only:
                watched(name, number, args.batch, Path(root) / re.sub(r"\W", "_", name), args.keep, found, told[name])
                if time.monotonic() - began > 60 * args.minutes: break
            number += 1
    for name, counts in told.items(): print(f"{name:20} {sum(counts.values()):7,} inputs, {counts['accepted']:6,} accepted, {counts['refused']:6,} refused")
    n, minutes = sum(sum(counts.values()) for counts in told.values()), (time.monotonic() - began) / 60
    print(f"{n:,} inputs in {minutes:.1f} minutes (seeds {args.seed} to {number - 1}): {len(found)} kinds of findings, {sum(found.values())} times")
    for words, times in found.most_common(): print(f"  {times} x {words}")
    sys.exit(bool(found))


if __name__ == "__main__": main()
