"""How figures look, and how they are saved: the same bytes for the same data, on any machine with this matplotlib.

Colours are Paul Tol's "muted" and Okabe and Ito's schemes, and viridis for ordered values; all are told apart with the
common colour-vision deficiencies. matplotlib is imported inside functions, because it loads slowly, and without pyplot,
because that keeps a global list of figures.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from moesim.errors import DataError
from moesim.files import check_place, whole_file

if TYPE_CHECKING:  # see above
    from matplotlib.figure import Figure

FORMATS = (".png", ".svg")
"""Suffixes of figures."""

TEXT, SUBTLE, GRID = "#1a1a1a", "#5f5f5f", "#dcdcdc"
PROCESSORS, NETWORK, IDLE = ("#0072B2", "#009E73"), "#E69F00", "#e4e4e4"
"""What a device does: first and second processor, network, nothing."""
OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""For series without an order (Okabe and Ito, 2008); the yellow, hard to see on white, is left out."""
LINES = ("-", "--", "-.", ":")
PREFILL = "#D55E00"
"""Prefill, beside decode in the ordered colours of `ordered_colours`."""

_STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # ships with matplotlib
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.edgecolor": SUBTLE,
    "axes.labelcolor": TEXT,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "text.color": TEXT,
    "xtick.color": SUBTLE,
    "ytick.color": SUBTLE,
    "xtick.labelcolor": TEXT,
    "ytick.labelcolor": TEXT,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.title_fontsize": 8.5,
    "figure.dpi": 100,
    "savefig.dpi": 150,
    "savefig.facecolor": "white",
    "svg.hashsalt": "moesim",  # ids of clip paths and markers would be random
    "svg.fonttype": "path",  # the same everywhere, whatever fonts the viewer has
}
_LIGHT = 0.5  # luma from which on text is dark
_ROUNDS_UP = 0.9995  # 999.6 ms is written as 1 s


class Kind(NamedTuple):
    """A group of operators that figures show as one."""

    label: str
    colour: str
    marker: str
    operators: tuple[str, ...]


KINDS = (
    Kind(
        "attention projections",
        "#88CCEE",
        "s",
        ("qkv", "mla_down", "q_up", "kv_up", "attention_out", "delta_in", "mamba_in", "mamba_select", "mamba_step"),
    ),
    Kind("MLA products per head", "#44AA99", "h", ("query_absorb", "value_expand")),
    Kind("attention", "#332288", "o", ("attention",)),
    Kind(
        "sparse-attention index",
        "#6699CC",
        "H",
        ("index_query", "index_key", "index_weights", "index_scores", "index_top_k"),
    ),
    Kind(
        "linear attention and state space",
        "#5D3A9B",
        "8",
        ("convolution", "delta_gates", "delta_rule", "selective_scan"),
    ),
    Kind("router", "#DDCC77", "v", ("router", "top_k")),
    Kind("routed experts", "#CC6677", "D", ("experts",)),
    Kind(
        "shared experts",
        "#AA4499",
        "P",
        ("shared_up", "shared_activation", "shared_down", "shared_gate", "shared_scale"),
    ),
    Kind("dense FFN", "#882255", "X", ("ffn_up", "ffn_activation", "ffn_down")),
    Kind("LM head", "#117733", "^", ("lm_head",)),
    Kind(
        "norms and other elementwise",
        "#BBBBBB",
        "<",
        (
            "embedding",
            "position_embedding",
            "attention_norm",
            "attention_gate",
            "delta_norm",
            "mamba_norm",
            "qk_norm",
            "rope",
            "ffn_norm",
            "output_norm",
            "sampling",
        ),
    ),
    Kind("token dispatch and combine", "#E69F00", ">", ("dispatch", "combine")),
    Kind("other collectives", "#999933", "d", ("all_reduce", "all_gather", "reduce_scatter", "logits_gather")),
    Kind("host", "#5f5f5f", "*", ("host",)),
)
"""What operators are grouped into, in the order in which figures stack and list them."""
OTHER = Kind("other operators", "#A67C52", "p", ())

_KIND_OF = {operator: kind for kind in KINDS for operator in kind.operators}


def kind_of(operator: str) -> Kind:
    """The group of an operator, `OTHER` if it is in none."""
    return _KIND_OF.get(operator, OTHER)


@contextmanager
def styled() -> Iterator[None]:
    """Matplotlib settings of moesim's figures, whatever the user's are; the user's come back afterwards."""
    import matplotlib.style

    with matplotlib.style.context(["default", _STYLE]):
        yield


def new_figure(width_in: float, height_in: float) -> "Figure":
    """An empty figure, to be filled inside `styled`."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width_in, height_in), layout="constrained")


def ordered_colours(count: int) -> list[str]:
    """`count` colours from light to dark."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    lightest, darkest = 0.78, 0.0  # beyond it viridis is too light for a white page
    steps = [lightest + (darkest - lightest) * index / max(1, count - 1) for index in range(count)]
    return [to_hex(colormaps["viridis"](step)) for step in steps]


def series_line(index: int) -> dict[str, Any]:
    """Colour and dashes of series number `index`."""
    return {"color": OKABE_ITO[index % len(OKABE_ITO)], "linestyle": LINES[index // len(OKABE_ITO) % len(LINES)]}


def text_colour_on(colour: str) -> str:
    """Black or white, whichever is read more easily on `colour`."""
    from matplotlib.colors import to_rgb

    red, green, blue = to_rgb(colour)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue  # ITU-R BT.601
    return TEXT if luma > _LIGHT else "white"


def duration_text(seconds: float) -> str:
    """`seconds` with three digits in the unit that suits them."""
    factor, unit = next((pair for pair in ((1.0, "s"), (1e-3, "ms")) if seconds >= pair[0] * _ROUNDS_UP), (1e-6, "µs"))
    return f"{seconds / factor:.3g} {unit}"


def plain(text: str) -> str:
    """`text` from outside, such as a name, without what matplotlib would take for a formula or could not draw."""
    return "".join(letter if letter.isprintable() else "?" for letter in text).replace("$", r"\$")


def shortened(text: str, length: int) -> str:
    """`text` with its middle left out beyond `length` characters."""
    if len(text) <= length:
        return text
    head = (length - 1) // 2
    return f"{text[:head]}…{text[len(text) - (length - 1 - head) :]}"


def in_two_lines(text: str, length: int) -> str:
    """`text` with a line break at a space where it is longer than `length`, and each line shortened to that."""
    space = text.rfind(" ", 0, length + 1) if len(text) > length else -1
    lines = [text] if space < 0 else [text[:space], text[space + 1 :]]
    return "\n".join(plain(shortened(line, length)) for line in lines)


def distinct_labels(paths: Sequence[Path]) -> list[str]:
    """The fewest trailing parts of each path that tell all of them apart."""
    depth = 1
    parts = [path.resolve().parts[1:] for path in paths]  # without the root
    while depth < max(map(len, parts)) and len({part[-depth:] for part in parts}) < len(set(parts)):
        depth += 1
    return ["/".join(part[-depth:]) for part in parts]


def check_output(path: str | Path) -> Path:
    """`path` as a place where a figure may be written, before any work is done.

    Raises:
        DataError: a suffix that is not in `FORMATS`, a folder, or a folder that is missing or may not be written to.
    """
    target = Path(path)
    if target.suffix.lower() not in FORMATS:
        raise DataError(str(path), f"a figure must end in {' or '.join(FORMATS)}", target.suffix or "no suffix")
    return check_place(target)


def save(figure: "Figure", path: str | Path) -> Path:
    """Write `figure` to `path`, whole or not at all; the suffix decides the format.

    Raises:
        DataError: as `check_output`, or the file system refuses.
    """
    target = check_output(path)
    with whole_file(target) as unfinished:
        _draw(figure, unfinished, target.suffix.lower())
    return target


def _draw(figure: "Figure", path: Path, suffix: str) -> None:
    metadata = {".svg": {"Date": None}, ".png": {"Software": None}}  # the same figure gives the same bytes
    with styled(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # a name in a script that the font lacks shows boxes
        figure.savefig(path, format=suffix[1:], metadata=metadata[suffix])
