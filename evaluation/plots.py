"""Figures as inline SVG that follows the page's text colour, so they read in light and in dark mode."""

import io
import re

import matplotlib
import numpy as np
import scipy  # its parts load when they are used

from evaluation.error_rates import det_curve, equal_error_rate, fnmr_at_fmr
from evaluation.identity import cumulative_match
from evaluation.image_sets import REAL, REFERENCE
from utils.text_tables import visible

# After Okabe and Ito's colours for the colour-blind, the blue lighter to show on black.
COLOURS = ("#3d8fd1", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9")
GREYS = {REAL: "#8a8f98", REFERENCE: "#b9bdc4"}
STYLE = {
    "svg.fonttype": "none",
    "font.size": 8,
    "axes.titlesize": 8.5,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "legend.frameon": False,
    "axes.prop_cycle": matplotlib.cycler(color=COLOURS),
    "figure.constrained_layout.use": True,
}
# Inches. In points that is a phone's width, so texts are read there as they are; a page shows two abreast.
WIDTH = 5.0
BINS = 100
MAX_CURVE_POINTS = 200


def draw(function, size, salt, title):
    """The SVG text of a figure that `function(figure)` draws; `title` is what a screen reader says.

    The backend is used directly, so no global matplotlib state is touched and no display is needed.
    """
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE | {"svg.hashsalt": salt}):
        figure = Figure(figsize=size)
        FigureCanvasSVG(figure)
        function(figure)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None})
    return inline(stream.getvalue(), title, salt)


def inline(svg, title, salt):
    """An SVG file as an inline element: no prologue, no metadata, own ids, black as the text colour."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"(?<=[:\" ])(#000000|black)(?=[;\"])", "currentColor", svg)
    svg = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{salt}-", svg)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r'\1 width="100%"', svg, count=1)
    # matplotlib writes texts without a fill; they would stay black on a dark page.
    spoken = visible(title).replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    return svg.replace("<svg", f'<svg role="img" aria-label="{spoken}" fill="currentColor"', 1)


def label(text):
    """A name that matplotlib shows as it is: as no formula, no escape sequence, and in the legend."""
    text = visible(text).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def method_colours(names):
    """{name: colour}: greys for the photos; a method keeps its own in all plots of the same methods."""
    methods = [name for name in names if name not in GREYS]
    own = GREYS | {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(methods)}
    return {name: own[name] for name in names}


def score_histograms(scores, salt):
    """Genuine and impostor score histograms (100 bins) with the EER threshold, one panel per method.

    Args:
        scores: {method: (genuine, impostor)}, each a ScoreSample.
    """

    def panels(figure):
        axes = figure.subplots(len(scores), 1, sharex=True, squeeze=False)[:, 0]
        both = [sample for pair in scores.values() for sample in pair]
        low, high = min(s.values[0] for s in both), max(s.values[-1] for s in both)
        margin = 0.5 if low == high else 0.0
        edges = np.linspace(low - margin, high + margin, BINS + 1)
        for axis, (method, (genuine, impostor)) in zip(axes, scores.items(), strict=True):
            for sample, kind, colour in ((impostor, "impostor", 1), (genuine, "genuine", 0)):
                share = np.histogram(sample.values, edges)[0] / sample.total
                axis.stairs(share, edges, fill=True, alpha=0.55, color=COLOURS[colour], label=kind)
            eer, threshold = equal_error_rate(genuine, impostor)
            axis.axvline(threshold, color=COLOURS[4], linestyle="--", linewidth=1)
            axis.set_title(f"{label(method)}: EER {100 * eer:.2f} % at {threshold:.3f}", loc="left")
            axis.set_ylabel("share")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=2)
        axes[-1].set_xlabel("cosine similarity (dashed: EER threshold)")

    size = WIDTH, 0.9 + 1.25 * len(scores)
    return draw(panels, size, salt, "histograms of genuine and impostor scores")


def det_curves(scores, salt):
    """Detection error trade-off of every method on logarithmic axes; scores as in the histograms.

    Dots mark FMR100 and FMR1000.
    """

    def panel(figure):
        axis = figure.subplots()
        colours = method_colours(scores)
        for method, (genuine, impostor) in scores.items():
            fmr, fnmr = det_curve(genuine, impostor, MAX_CURVE_POINTS)
            floor = 0.5 / genuine.total  # a logarithm has no place for zero errors
            line = {"label": label(method), "color": colours[method]}
            axis.step(fmr, np.maximum(fnmr, floor), where="post", **line)
            rates = [d for d in (100, 1000) if impostor.total >= d]
            heights = [max(fnmr_at_fmr(genuine, impostor, d), floor) for d in rates]
            axis.plot([1 / d for d in rates], heights, "o", markersize=3.5, color=colours[method])
        axis.set(xscale="log", yscale="log", xlabel="FMR", ylabel="FNMR")
        axis.grid(alpha=0.25, which="both", linewidth=0.5)
        axis.legend(loc="lower left")

    return draw(panel, (WIDTH, 3.4), salt, "detection error trade-off curves")


def match_curves(ranks, salt):
    """Cumulative match characteristic: share of searches that find the person up to each rank.

    Args:
        ranks: {method: (M,) int, from 1}.
    """

    def panel(figure):
        axis, colours = figure.subplots(), method_colours(ranks)
        last = max(2, *(of.max() for of in ranks.values()))
        for method, of in ranks.items():
            line = {"label": label(method), "color": colours[method]}
            axis.step(np.arange(1, last + 1), 100 * cumulative_match(of, last), where="post", **line)
        axis.set(xlabel="rank", ylabel="found (%)", xlim=(1, last))
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.legend(loc="lower right")

    return draw(panel, (WIDTH, 2.4), salt, "cumulative match characteristic")


def densities(groups, titles, salt, unit):
    """Kernel density plots, one panel per title: {method: (N, len(titles)) values}."""

    def panels(figure):
        axes, colours = figure.subplots(1, len(titles), squeeze=False)[0], method_colours(groups)
        for k, (axis, title) in enumerate(zip(axes, titles, strict=True)):
            columns = {name: np.asarray(rows, float)[:, k] for name, rows in groups.items() if len(rows)}
            low, high = min(c.min() for c in columns.values()), max(c.max() for c in columns.values())
            margin = 0.1 * (high - low) or 1.0
            grid = np.linspace(low - margin, high + margin, MAX_CURVE_POINTS)
            for name, column in columns.items():
                # A density needs two different values; a single one is shown as a line.
                line = {"label": label(name), "color": colours[name]}
                if len(column) > 1 and np.ptp(column) > 0:
                    axis.plot(grid, scipy.stats.gaussian_kde(column)(grid), **line)
                else:
                    axis.axvline(column[0], linestyle=":", **line)
            axis.set(xlabel=label(f"{title} {unit}".strip()), yticks=[])
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)

    return draw(panels, (WIDTH, 2.4), salt, f"densities of {', '.join(titles)}")


def histograms(groups, label, salt, width=0.02):
    """Histograms in bins of one width as outlines in one panel: {method: (N,) or (N, 1) values}."""

    def panel(figure):
        axis, colours = figure.subplots(), method_colours(groups)
        values = {name: np.ravel(rows) for name, rows in groups.items()}
        low, high = min(v.min() for v in values.values()), max(v.max() for v in values.values())
        step = max(width, (high - low) / MAX_CURVE_POINTS)  # a far outlier must not make a million bins
        edges = step * np.arange(np.floor(low / step), np.floor(high / step) + 2)
        for name, one in values.items():
            share = np.histogram(one, edges)[0] / len(one)
            axis.stairs(share, edges, label=name, color=colours[name])
        axis.set(xlabel=f"{label} (bins of {step:.3g})", ylabel="share")
        figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=3)

    return draw(panel, (WIDTH, 2.8), salt, f"histograms of {label}")


def dots(per_identity, salt, quantity):
    """One dot per identity and method, with the mean: {method: {identity: value}} of a quantity."""

    def panel(figure):
        axis, colours = figure.subplots(), method_colours(per_identity).values()
        for place, (values, colour) in enumerate(zip(per_identity.values(), colours, strict=True)):
            numbers = np.array(list(values.values()), float)
            jitter = np.linspace(-0.18, 0.18, len(numbers)) if len(numbers) > 1 else np.zeros(len(numbers))
            axis.scatter(numbers, place + jitter, s=10, alpha=0.6, color=colour)
            axis.vlines(numbers.mean(), place - 0.32, place + 0.32, color=colour)
        axis.set(
            yticks=range(len(per_identity)), yticklabels=map(label, per_identity), xlabel=label(quantity)
        )
        axis.invert_yaxis()

    return draw(panel, (WIDTH, 0.9 + 0.45 * len(per_identity)), salt, quantity)
