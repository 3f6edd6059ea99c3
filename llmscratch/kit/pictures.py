"""The look of the course's pictures: one style, and a palette for colour-blind readers and grey printers."""

import matplotlib.pyplot as plt
from matplotlib.colors import LinearSegmentedColormap

# Okabe and Ito's palette (2008), ordered so that neighbours differ in lightness too.
BLUE, ORANGE, GREEN, PURPLE, SKY, YELLOW, RED, INK = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#F0E442", "#D55E00", "#222222",
)  # fmt: skip
PALETTE = [BLUE, ORANGE, GREEN, SKY, RED, INK, PURPLE, YELLOW]
GREY = "#8a8a8a"
# From one class to the other, through white: for decision regions and signed values.
DIVERGING = LinearSegmentedColormap.from_list("llmscratch_diverging", [BLUE, "#f7f7f7", ORANGE])
SEQUENTIAL = "cividis"


def use_style() -> None:
    """Give every figure drawn from here on the course's look."""
    plt.rcParams.update({
        "figure.figsize": (7.0, 3.6), "figure.dpi": 100, "savefig.dpi": 100, "figure.constrained_layout.use": True,
        "axes.prop_cycle": plt.cycler(color=PALETTE), "axes.spines.top": False, "axes.spines.right": False,
        "axes.grid": True, "grid.color": "#e6e6e6", "grid.linewidth": 0.8, "axes.axisbelow": True,
        "axes.titlesize": 11, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.labelsize": 10,
        "font.size": 10, "legend.frameon": False, "legend.fontsize": 9, "lines.linewidth": 2.0,
        "image.cmap": SEQUENTIAL,
    })  # fmt: skip


def show(alt: str) -> None:
    """Show the current figure as PNG with `alt` as its text for readers who cannot see it, and close it."""
    from IPython.display import display

    if not alt.strip():
        raise ValueError("the picture has no alternative text: say in a sentence what it shows")
    figure = plt.gcf()
    display(figure, metadata={"image/png": {"alt": alt}})
    plt.close(figure)
