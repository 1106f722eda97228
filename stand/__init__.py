"""ST-AnD: the gene expression of every nucleus in an H&E image, learned from spatial transcriptomics.

Public names are loaded when first used, so that `import stand` is quick.
"""
__version__ = "0.1.0"

import warnings as _warnings
from importlib import import_module as _import_module

_MODULE_OF = {
    "Section": "core", "StandError": "core",
    "Slide": "slide", "open_slide": "slide",
    "read_st": "io", "read_visium": "spaceranger", "read_visium_hd": "spaceranger", "read_section": "read",
    "read_spatialdata": "sdata", "read_xenium": "cells", "read_cells": "cells", "read_hest": "formats", "section_from_anndata": "formats",
    "from_geojson": "annotations", "read_nuclei": "foreign",
    "segment_image": "segmenters", "segment_nuclei": "nuclei", "spot_overlaps": "overlap",
    "encode_nuclei": "encoder", "load_encoder": "encoder", "pretrain_encoder": "pretrain", "add_context": "context", "encode_like": "context",
    "load_model": "trained", "STDataLoaders": "bags", "stand_learner": "learner", "finetune_learner": "finetune",
    "Resume": "resume",
    "adapt_programs": "adaptation", "predict_nuclei": "prediction", "deconvolve": "deconvolution", "predict_spots": "prediction",
    "expression": "prediction", "credible_interval": "uncertainty", "count_sd": "uncertainty", "sample_counts": "uncertainty",
    "type_profiles": "reference", "top_genes": "programs", "call_types": "programs",
    "write_cells": "export", "to_table": "export", "to_geojson": "export", "to_spatialdata": "bundle",
    "plot_gene": "plot", "plot_genes": "plot", "plot_nuclei": "plot", "plot_spots": "plot", "plot_spot_fit": "plot",
    "plot_uncertainty": "maps", "plot_programs": "maps", "plot_types": "maps", "plot_spot": "maps", "plot_prediction": "maps",
    "plot_training": "charts", "plot_calibration": "charts", "plot_pit": "charts", "plot_predictability": "charts",
    "view": "viewer", "export_html": "page", "run": "job", "run_cohort": "cohort", "benchmark": "benchmarks",
}
_MODULES = {"core", "slide", "io", "datasets", "nuclei", "encoder", "likelihood", "decoder", "model", "trained", "bags", "learner", "prediction", "adaptation", "deconvolution", "uncertainty", "programs",
            "simulate", "pseudospots", "metrics", "splits", "baselines", "canvas", "plot", "maps", "charts", "viewer", "evaluate", "contest", "ablation", "benchmarks", "cli"}

__all__ = sorted({*_MODULE_OF, *_MODULES} - {"cli", "core"})


def _module(name: str):
    "Import a module of this package, without what torch has to say to fastai."
    with _warnings.catch_warnings():
        _warnings.filterwarnings("ignore", "`torch.jit", FutureWarning)  # nothing that a user can act on
        return _import_module(f".{name}", __name__)


def __getattr__(name: str):
    "Import the module that holds a public name when it is first asked for."
    if name in _MODULES: return _module(name)
    if name in _MODULE_OF: return getattr(_module(_MODULE_OF[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__(): return [*globals(), *__all__]
