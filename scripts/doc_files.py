"Write files as users have them, from the built-in section, so that the examples of the documentation can read their own."
import json
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import tifffile
from PIL import Image
from scipy.sparse import csr_matrix
from scipy.spatial import cKDTree

from stand.core import Section


def _picture(section: Section) -> Image.Image: return Image.fromarray(section.slide.read(0, 0, section.slide.width, section.slide.height))


def _counts_h5(path: Path, counts: csr_matrix, barcodes: list[str], genes: list[str]) -> None:
    "Write counts (barcodes, genes) as 10x does."
    by_gene = counts.T.tocsc().astype(np.int32)
    with h5py.File(path, "w") as file:
        for name in ("data", "indices", "indptr"): file[f"matrix/{name}"] = getattr(by_gene, name)
        file["matrix/shape"], file["matrix/barcodes"] = np.array(by_gene.shape, np.int32), np.array(barcodes, "S")
        for key, values in dict(id=genes, name=genes, feature_type=["Gene Expression"] * len(genes)).items():
            file[f"matrix/features/{key}"] = np.array(list(values), "S")


def space_ranger(section: Section, folder: str, image: str) -> None:
    "Write a Visium section as Space Ranger 2 would, and its full-resolution image beside the folder."
    spatial = Path(folder) / "spatial"
    spatial.mkdir(parents=True)
    spots, xy = section.spots, np.asarray(section.spots.obsm["spatial"])
    barcodes = [f"{name}-1" for name in spots.obs_names]
    _counts_h5(Path(folder) / "filtered_feature_bc_matrix.h5", spots.X, barcodes, spots.var_names)
    pd.DataFrame(dict(barcode=barcodes, in_tissue=1, array_row=spots.obs["array_row"].to_numpy(), array_col=spots.obs["array_col"].to_numpy(),
                      pxl_row_in_fullres=xy[:, 1], pxl_col_in_fullres=xy[:, 0])).to_csv(spatial / "tissue_positions.csv", index=False)  # fmt: skip
    factors = dict(spot_diameter_fullres=section.spot_diameter_um / section.mpp, tissue_hires_scalef=0.5, tissue_lowres_scalef=0.1, fiducial_diameter_fullres=200.0)
    (spatial / "scalefactors_json.json").write_text(json.dumps(factors))
    small = _picture(section)
    small.save(image)
    small.resize((small.width // 2, small.height // 2)).save(spatial / "tissue_hires_image.png")


def visium_hd(section: Section, folder: str, image: str, bin_um: int = 8) -> None:
    "Write files as Space Ranger 4 does for Visium HD: bins of one size, with counts of the nearest spots, outlines of nuclei, and a BigTIFF."
    bins, step = Path(folder) / "binned_outputs" / f"square_{bin_um:03d}um", bin_um / section.mpp
    (bins / "spatial").mkdir(parents=True)
    rows, columns = (places.ravel() for places in np.mgrid[:int(section.slide.height / step), :int(section.slide.width / step)])
    x, y = (columns + 0.5) * step, (rows + 0.5) * step
    nearest = cKDTree(section.spots.obsm["spatial"]).query(np.c_[x, y])[1]
    barcodes = [f"s_{bin_um:03d}um_{row:05d}_{column:05d}-1" for row, column in zip(rows, columns)]
    _counts_h5(bins / "filtered_feature_bc_matrix.h5", section.spots.X[nearest], barcodes, section.spots.var_names)
    pd.DataFrame(dict(barcode=barcodes, in_tissue=1, array_row=rows, array_col=columns, pxl_row_in_fullres=y,
                      pxl_col_in_fullres=x)).to_parquet(bins / "spatial" / "tissue_positions.parquet")  # fmt: skip
    factors = dict(spot_diameter_fullres=step, bin_size_um=float(bin_um), microns_per_pixel=section.mpp)
    (bins / "spatial" / "scalefactors_json.json").write_text(json.dumps(factors))
    outlines = section.nuclei[["geometry"]].set_index(np.arange(1, len(section.nuclei) + 1)).rename_axis("cell_id").reset_index()
    (cells := Path(folder) / "segmented_outputs").mkdir()
    (cells / "nucleus_segmentations.geojson").write_text(outlines.to_json())
    tifffile.imwrite(image, np.asarray(_picture(section)), bigtiff=True, tile=(256, 256), photometric="rgb")


def st_tables(section: Section, stem: str) -> None:
    "Write the two tables of a first-generation array and an image: files to read, with counts of the section's spots on an array that it never had."
    x, y = (places.ravel() for places in np.mgrid[:8, :8])
    counts = section.spots.X.toarray().astype(int)[np.arange(64) % section.spots.n_obs]
    pd.DataFrame(counts, [f"{a}x{b}" for a, b in zip(x, y)], section.spots.var_names).to_csv(f"{stem}.tsv.gz", sep="\t")
    pd.DataFrame(dict(x=x, y=y, pixel_x=100 * x + 80, pixel_y=100 * y + 80, selected=1)).to_csv(f"{stem}_selection.tsv", sep="\t", index=False)
    _picture(section).save(f"{stem}.png")
