"""Draw the figures of the README from a real section: `python scripts/make_figures.py --section-dir her2st`.

The section is one of Andersson et al. (2021) Nat Commun 12:6012, Zenodo 3957257. Also prints the numbers that captions
should be based on.
"""
import argparse
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd

warnings.filterwarnings("ignore", category=FutureWarning)  # of torch, while it is imported
warnings.filterwarnings("ignore", message="Maximum number of iterations")  # of the starting programs
matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import Circle, Ellipse, FancyArrowPatch, FancyBboxPatch, Polygon, Rectangle
from PIL import Image
from scipy.spatial import cKDTree

import stand
from stand.bags import choose_genes
from stand.core import data_dir
from stand.learner import gene_pearson
from stand.plot import plot_gene

SHOWN = ["ERBB2", "CD4"]
BESIDE = ["CD74", "CD52", "COL1A1", "EPCAM"]  # macrophages and B cells, lymphocytes, fibroblasts, epithelium
EPOCHS, RATE = 30, 3e-3


def prepared(folder: Path, name: str) -> stand.Section:
    "Read a section, find its nuclei and encode them."
    files = [folder / f"{name}{ending}" for ending in (".tsv.gz", "_selection.tsv", ".jpg")]
    section = stand.read_st(*files, spot_diameter_um=100, spot_pitch_um=200)
    return stand.encode_nuclei(stand.segment_nuclei(section, progress=False), progress=False)


def trained(section: stand.Section, genes: list[str], ensemble: int, valid_pct: float = 0.15):
    "Train on one section."
    dls = stand.STDataLoaders.from_sections([section], genes=genes, valid_pct=valid_pct, seed=0)
    learn = stand.stand_learner(dls, ensemble=ensemble)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(EPOCHS, RATE)
    return learn


def held_out(section: stand.Section, genes: list[str], folds: int = 5) -> tuple[np.ndarray, np.ndarray]:
    "Predict every spot by a model that never saw it: predicted and measured proportions, each (n_spots, n_genes)."
    fold = np.random.default_rng(0).permutation(section.spots.n_obs) % folds
    predicted = np.full((section.spots.n_obs, len(genes)), np.nan)
    for k in range(folds):
        learn = trained(replace(section, spots=section.spots[fold != k].copy()), genes, ensemble=1, valid_pct=0.1)
        spots = stand.predict_spots(learn, replace(section, spots=section.spots[fold == k].copy()))
        predicted[section.spots.obs_names.get_indexer(spots.obs_names)] = spots.layers["proportion"]
    counts = section.spots[:, genes].X
    counts = counts.toarray() if hasattr(counts, "toarray") else counts
    known = np.isfinite(predicted[:, 0])
    return predicted[known], (counts / counts.sum(1, keepdims=True))[known]


def morphology_groups(section: stand.Section) -> pd.Series:
    "Sort nuclei by looks, not by type: shape, size, and whether small ones stand among many small ones."
    nuclei, xy_um = section.nuclei, section.nuclei[["x", "y"]].to_numpy() * section.mpp
    low, high = nuclei["area_um2"].quantile([1 / 3, 2 / 3])
    small, elongated = (nuclei["area_um2"] < low).to_numpy(), nuclei["eccentricity"] > 0.87  # twice as long as wide
    company = cKDTree(xy_um[small]).query_ball_point(xy_um, 30, return_length=True)  # small nuclei within 30 µm
    crowd = small & (company >= np.quantile(company, 0.95))
    kinds = ["small, in crowds of small ones", "elongated", "small, other", "middle-sized"]
    kind = np.select([crowd, elongated, small, nuclei["area_um2"] < high], kinds, "large")
    return pd.Series(kind, nuclei.index.astype(str), name="nuclei")


def report(section: stand.Section, cells, genes: list[str], folds: int) -> None:
    "Print what captions should be based on."
    counts = section.spots[:, SHOWN + BESIDE].X
    counts = counts.toarray() if hasattr(counts, "toarray") else counts
    table = pd.DataFrame(dict(counts=counts.sum(0).astype(int), share_of_spots=(counts > 0).mean(0)), SHOWN + BESIDE)
    if folds > 1:
        predicted, measured = held_out(section, genes, folds)
        r, top = gene_pearson(predicted, measured), np.argsort(-measured.mean(0))[:250]
        table["held_out_pearson"] = [r[genes.index(gene)] for gene in table.index]
        print(f"\n{folds}-fold held-out spots, {len(measured)} of one section; proportions")
        print(f"mean Pearson of the 250 most abundant genes {r[top].mean():.3f}")
    print(table.round(3))

    values = pd.DataFrame(cells[:, SHOWN + BESIDE].X, cells.obs_names, SHOWN + BESIDE)
    group = morphology_groups(section).loc[cells.obs_names]
    means = values.groupby(group).mean()
    print("\nexpected counts per nucleus, by looks")
    print(means.assign(RNA=cells.obs["size"].groupby(group).mean(), n=group.value_counts()).round(4).to_string())
    thirds = ["smallest third", "middle third", "largest third"]
    third = pd.qcut(section.nuclei["area_um2"].set_axis(cells.obs_names), 3, labels=thirds)
    print("\nexpected counts per nucleus, by area")
    print(values.groupby(third, observed=True).mean().round(4).to_string())


# The diagram of the model

BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"  # Okabe & Ito 2008, for every eye
PURPLE, GREY = "#5B4B8A", "#444444"


def words(ax, x, y, text, size=12.5, **kwargs):
    ax.text(x, y, text, ha="center", va="center", fontsize=size, **kwargs)


def arrow(ax, start, end, color=GREY, width=1.6):
    style = dict(arrowstyle="-|>", mutation_scale=16, linewidth=width, color=color, shrinkA=0, shrinkB=0)
    ax.add_patch(FancyArrowPatch(start, end, **style))


def draw_image(ax, x, y, side, rng):
    "A patch of tissue with a spot and the nuclei under it."
    round_box = "round,pad=0,rounding_size=1"
    ax.add_patch(FancyBboxPatch((x, y), side, side, boxstyle=round_box, facecolor="#F6DDE8", edgecolor=GREY))
    centre, radius = np.array([x + side / 2, y + side / 2]), 0.36 * side
    places = np.mgrid[:5, :5].reshape(2, -1).T + 0.5 + 0.28 * rng.uniform(-1, 1, (25, 2))
    for xy in np.array([x, y]) + places * side / 5:
        alpha = 1 if np.hypot(*(xy - centre)) < radius else 0.45  # under the spot or not
        size, angle = rng.uniform(1.7, 2.7, 2), rng.uniform(0, 180)
        ax.add_patch(Ellipse(xy, *size, angle=angle, facecolor=PURPLE, edgecolor="white", linewidth=0.5, alpha=alpha))
    ax.add_patch(Circle(centre, radius, facecolor="none", edgecolor=ORANGE, linewidth=2.2, linestyle=(0, (4, 2))))


def draw_network(ax, x, y, width, left, right, text, color):
    "A trapezium: `left` and `right` are its heights."
    corners = [(x, y - left / 2), (x + width, y - right / 2), (x + width, y + right / 2), (x, y + left / 2)]
    ax.add_patch(Polygon(corners, facecolor=color, edgecolor="none", joinstyle="round"))
    words(ax, x + width / 2, y, text, 13, color="white", weight="bold", linespacing=1.25)


def draw_grid(ax, x, y, values, cell, cmap):
    "A matrix as coloured cells, (x, y) its lower left corner."
    rows = len(values)
    for (i, j), v in np.ndenumerate(values):
        corner, color = (x + j * cell, y + (rows - 1 - i) * cell), plt.get_cmap(cmap)(v)
        ax.add_patch(Rectangle(corner, cell, cell, facecolor=color, edgecolor="white", linewidth=0.8))


def diagram(path: Path) -> None:
    "Draw the model: from the image to the spots' counts, and back."
    rng = np.random.default_rng(3)
    fig = plt.figure(figsize=(16, 5.4))
    ax = fig.add_axes([0, 0, 1, 1])
    ax.set(xlim=(0, 160), ylim=(4, 58), aspect="equal")
    ax.axis("off")
    mid, top, below = 37, 54.5, 20.5

    draw_image(ax, 3, mid - 11, 22, rng)
    words(ax, 14, top, "H&E image", 15, weight="bold")
    words(ax, 14, below, "nuclei c,\nspot s (dashed)")
    arrow(ax, (26, mid), (30.5, mid))
    draw_network(ax, 31, mid, 15, 20, 10, "ST-Image-\nEncoder", BLUE)
    words(ax, 38.5, below, "each nucleus in\nits surroundings")
    arrow(ax, (46.5, mid), (51, mid))
    for k, shade in enumerate(rng.uniform(0.25, 0.9, 5)):
        color = plt.get_cmap("Greens")(shade)
        ax.add_patch(Circle((53.5, mid + 5.2 - 2.6 * k), 1.15, facecolor=color, edgecolor=GREY, linewidth=0.8))
    words(ax, 53.5, top, "latent z", 15, weight="bold")
    words(ax, 53.5, below, "z ~ N(m, v)")
    arrow(ax, (56, mid), (60.5, mid))
    draw_network(ax, 61, mid, 15, 10, 20, "ST-Genomic-\nDecoder", GREEN)
    words(ax, 68.5, below, "program use π,\nRNA content t")
    arrow(ax, (76.5, mid), (81, mid))

    use, programs = rng.dirichlet([0.5] * 3, 5), rng.dirichlet([0.5] * 7, 3)
    cell = 2.1
    draw_grid(ax, 82, mid - 2.5 * cell, use, cell, "Greens")
    words(ax, 82 + 1.5 * cell, mid + 2.5 * cell + 1.6, "t · π", 12)
    words(ax, 82 + 3 * cell + 1.3, mid, "×", 14)
    draw_grid(ax, 82 + 3 * cell + 2.6, mid - 1.5 * cell, programs / programs.max(), cell, "Greys")
    words(ax, 82 + 6.5 * cell + 2.6, mid + 1.5 * cell + 1.6, "programs B", 12)
    words(ax, 82 + 10 * cell + 3.9, mid, "=", 14)
    rates = use @ programs
    draw_grid(ax, 82 + 10 * cell + 5.2, mid - 2.5 * cell, rates / rates.max(), cell, "viridis")
    right = 82 + 17 * cell + 5.2
    words(ax, right - 3.5 * cell, mid + 2.5 * cell + 1.6, "λ: nuclei × genes", 12)
    words(ax, (82 + right) / 2, top, "expression of every nucleus", 15, weight="bold")
    words(ax, (82 + right) / 2, below, "λ = t · (π B)")

    node = right + 8.5
    arrow(ax, (right + 0.8, mid), (node - 2.7, mid))
    ax.add_patch(Circle((node, mid), 2.5, facecolor="white", edgecolor=ORANGE, linewidth=2))
    words(ax, node, mid - 0.1, "Σ", 15)
    words(ax, node, top - 7, "nuclei under\nthe spot,\nby overlap a", 12)
    arrow(ax, (node + 2.7, mid), (node + 6.7, mid))
    for k, count in enumerate([7, 2, 11, 4, 1, 14, 5]):
        ax.add_patch(Rectangle((node + 8 + 2.1 * k, mid - 8), 1.6, count, facecolor=ORANGE, edgecolor="none"))
    start, end = node + 7.3, node + 8 + 2.1 * 7
    ax.plot([start, end], [mid - 8, mid - 8], color=GREY, linewidth=1)
    words(ax, (start + end) / 2, top, "spot counts", 15, weight="bold")
    words(ax, (start + end) / 2, below, "y ~ negative\nbinomial")

    low, gene, count = 14.5, right - 3.5 * cell, (start + end) / 2
    ax.plot([count, count, gene], [below - 2.6, low, low], color=RED, linewidth=2.6, solid_joinstyle="round")
    arrow(ax, (gene, low - 0.13), (gene, mid - 2.5 * cell - 1), RED, 2.6)
    words(ax, 122, low - 5, "deconvolution: a spot's measured counts are shared out to its nuclei\n"
          "by Bayes' rule, with the image as prior", 13, color=RED)
    words(ax, 40, low - 5, "prediction: from the image to what a spot should measure;\n"
          "trained on spots alone, no single-cell reference", 13, color=GREY)
    fig.savefig(path, dpi=110)
    plt.close(fig)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--section-dir", type=Path, help="folder with SECTION.jpg, SECTION.tsv.gz and "
                        "SECTION_selection.tsv; by default her2st in the data folder")
    parser.add_argument("--section", default="C4")
    parser.add_argument("--out", type=Path, default=Path("figures"))
    parser.add_argument("--folds", type=int, default=5, help="folds for the held-out correlations; 0 for none")
    parser.add_argument("--diagram-only", action="store_true", help="draw stand.png only; needs no data")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    diagram(args.out / "stand.png")
    if args.diagram_only: return
    folder = args.section_dir or (data_dir() and data_dir() / "her2st")
    if folder is None: sys.exit("no folder of real sections; give --section-dir, or --diagram-only")

    section = prepared(folder, args.section)
    print(section)
    chosen = choose_genes([section], [np.arange(section.spots.n_obs)])
    genes = chosen + [gene for gene in SHOWN + BESIDE if gene not in chosen]  # rare ones too, as they are asked for
    cells = stand.deconvolve(trained(section, genes, ensemble=3), section, genes=SHOWN + BESIDE)
    for gene in SHOWN:
        ax = plot_gene(cells, gene, section, zoom="auto", size=8)
        ax.figure.savefig(args.out / f"screenshot_{gene.lower()}.png", dpi=200)
        plt.close(ax.figure)
    for path in sorted(args.out.glob("*.png")):
        print(f"{path}: {path.stat().st_size / 1e6:.2f} MB, {Image.open(path).width} x {Image.open(path).height} px")
    report(section, cells, genes, args.folds)


if __name__ == "__main__":
    main()
