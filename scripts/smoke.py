"""A short job with the installed package: built-in section, nuclei, features, model, deconvolution, save and load.

`.ci/run` runs it in an environment made by a plain `pip install` of the wheel, which has other versions of fastai and
fastcore than the environment of the tests.
"""
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

import stand

started = time.time()
print(*(f"{name} {version(name)}" for name in ("stand", "fastai", "fastcore", "torch", "numpy", "pandas", "anndata", "scanpy")), sep=", ")
if "--installed" in sys.argv: assert "site-packages" in stand.__file__, f"{stand.__file__} is not the installed package"

section = stand.datasets.simulated(seed=0, size_px=700)
section = stand.segment_nuclei(section, progress=False)
section = stand.encode_nuclei(section, progress=False)
print(section)
dls = stand.STDataLoaders.from_sections([section], valid_pct=0.2, seed=0)
learn = stand.stand_learner(dls, n_programs=4)
with learn.no_bar(): learn.fit_one_cycle(2, 3e-3)
cells = stand.deconvolve(learn, section)

under = cells.obs["spot"].cat.codes.to_numpy()
sums = np.zeros((section.spots.n_obs, cells.n_vars))
np.add.at(sums, under[under >= 0], cells.layers["counts"].toarray()[under >= 0])
measured = section.spots[:, cells.var_names].X.toarray()
has_nuclei = np.bincount(under[under >= 0], minlength=len(sums)) > 0
assert np.allclose(sums[has_nuclei], measured[has_nuclei], rtol=1e-3, atol=1e-2), "the nuclei's parts do not add up to the measured counts"
lo, hi = stand.credible_interval(cells, ["ERBB2"])
assert (lo <= hi).all() and np.isfinite(cells.X).all()

with tempfile.TemporaryDirectory() as folder:
    learn.save_model(Path(folder) / "model")
    again = stand.deconvolve(stand.load_model(Path(folder) / "model"), section)
    cells.write_h5ad(Path(folder) / "cells.h5ad")
    page = stand.export_html(cells, section, Path(folder) / "page.html", ["ERBB2"]).read_text()
assert np.allclose(again.X, cells.X, rtol=1e-4, atol=1e-6), "a saved and loaded model predicts something else"
assert "webgl2" in page and "webgl2" in stand.view(cells, section, "ERBB2")._esm, "the viewer's browser side is not in the package"
picture = stand.plot_gene(cells, "ERBB2", section).figure
picture.canvas.draw()
print(f"{cells.n_obs} nuclei x {cells.n_vars} genes in {time.time() - started:.0f} s")
