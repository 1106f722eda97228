"Write files as users have them, from the built-in section, so that the examples of the documentation can read their own."
import json
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from PIL import Image

from stand.core import Section


def _picture(section: Section, path: Path) -> None: Image.fromarray(section.slide.read(0, 0, section.slide.width, section.slide.height)).save(path)


def space_ranger(section: Section, folder: str, image: str) -> None:
    "Write a Visium section as Space Ranger 2 would, and its full-resolution image beside the folder."
    spatial = Path(folder) / "spatial"
    spatial.mkdir(parents=True)
    spots, xy = section.spots, np.asarray(section.spots.obsm["spatial"])
    counts, barcodes = spots.X.T.tocsc().astype(np.int32), np.array([f"{name}-1" for name in spots.obs_names], "S")
    with h5py.File(Path(folder) / "filtered_feature_bc_matrix.h5", "w") as file:
        for name in ("data", "indices", "indptr"): file[f"matrix/{name}"] = getattr(counts, name)
        file["matrix/shape"], file["matrix/barcodes"] = np.array(counts.shape, np.int32), barcodes
        for key, values in dict(id=spots.var_names, name=spots.var_names, feature_type=["Gene Expression"] * spots.n_vars).items():
            file[f"matrix/features/{key}"] = np.array(list(values), "S")
    pd.DataFrame(dict(barcode=barcodes.astype(str), in_tissue=1, array_row=spots.obs["array_row"].to_numpy(), array_col=spots.obs["array_col"].to_numpy(),
                      pxl_row_in_fullres=xy[:, 1], pxl_col_in_fullres=xy[:, 0])).to_csv(spatial / "tissue_positions.csv", index=False)  # fmt: skip
    factors = dict(spot_diameter_fullres=section.spot_diameter_um / section.mpp, tissue_hires_scalef=0.5, tissue_lowres_scalef=0.1, fiducial_diameter_fullres=200.0)
    (spatial / "scalefactors_json.json").write_text(json.dumps(factors))
    _picture(section, Path(image))
    small = Image.open(image)
    small.resize((small.width // 2, small.height // 2)).save(spatial / "tissue_hires_image.png")


def st_tables(section: Section, stem: str) -> None:
    "Write the two tables of a first-generation array and an image: files to read, with counts of the section's spots on an array that it never had."
    x, y = (places.ravel() for places in np.mgrid[:8, :8])
    counts = section.spots.X.toarray().astype(int)[np.arange(64) % section.spots.n_obs]
    pd.DataFrame(counts, [f"{a}x{b}" for a, b in zip(x, y)], section.spots.var_names).to_csv(f"{stem}.tsv.gz", sep="\t")
    pd.DataFrame(dict(x=x, y=y, pixel_x=100 * x + 80, pixel_y=100 * y + 80, selected=1)).to_csv(f"{stem}_selection.tsv", sep="\t", index=False)
    _picture(section, Path(f"{stem}.png"))
