"""LaTeX as public problem files have it: what is drawn, and what is told instead of being drawn."""

import pytest

from puma_trl.pairs.build import compose, fonts
from puma_trl.pairs.build.layout import Setter
from puma_trl.pairs.build.parser import parse_formula
from puma_trl.pairs.build.pieces import draw_pieces
from puma_trl.pairs.build.tree import CannotDraw

from .pieces import list_pieces


BOOK = fonts.FontBook()
PLAIN = compose.Style("STIX", 20, 24, 1.4, diagram_first=True, turn=0.0, noise=0)


def drawn(text, style=PLAIN):
    """Returns the signs of a question in the order of reading: by line, from left to right."""
    pieces, failures = list_pieces(text, style, BOOK)
    assert failures == ()
    return "".join(piece.text for piece in pieces)


def laid(source, size=20):
    return Setter(BOOK, "STIX", size).lay(parse_formula(source))


def places(source):
    """Returns sign → its place; of a sign that comes twice, the last."""
    return {piece.text: (piece.x, piece.y) for piece in laid(source).pieces}


@pytest.mark.parametrize(
    ("text", "signs"),
    [
        ("Choices:\nA:\\frac{3}{5}\nB:2√{3}\nC:16πcm^{2}", "Choices:A:35B:2√3C:16πcm2"),
        ("So \\angle ABC = 90^{\\circ}.", "So∠ABC=90°."),
        ("$ x $ is \\sqrt{2}-1", "xis√2−1"),
        ("x^10 and a_12 and x^(n+1), 2^-3", "x10anda12andx(n+1),2−3"),
        ("{\\rm cm}^2 of \\triangle ABC", "cm2of△ABC"),
        ("\\left\\{\\begin{array}{l}x=1\\\\y=2\\end{array}\\right. holds", "{x=1y=2holds"),
        ("A=\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}", "A=(1234)"),
        ("H<sub>2</sub>O &lt; 3<br>or so", "H2O<3orso"),
        ("Is \\textbf{AB} \\textless{} **CD**?", "IsAB<CD?"),
        ("\\uline{~~~~} cm", "cm"),
        ("see {1, 2, 3} and file_name for 50\\%", "see{1,2,3}andfile_namefor50%"),
        ("3~5天", "3~5天"),
        ("So\\nIn $x \\nRightarrow y$", "SoInx⇏y"),
        ("What?\\n<next> \\section*{ACROSS} 1", "What?<next>ACROSS1"),
        ("the $ xy$-plane and $l . P$ is", "thexy-planeandl.Pis"),
        ("\\begin{tabular}{|c|}\\hlineList A \\\\\\hline\\end{tabular}", "ListA"),
    ],
)
def test_latex_without_dollars(text, signs):
    assert drawn(text) == signs


@pytest.mark.parametrize(
    ("text", "signs"),
    [
        ("值为 ($\\qquad$)\\\\", "值为()"),
        ("值为 \\underline{\\qquad}。", "值为。"),
        ("of ($\\hspace{2cm}$) cm", "of()cm"),
        ("is \\rule{1cm}{0.15mm}.", "is."),
    ],
)
def test_blanks_are_blanks(text, signs):
    assert drawn(text) == signs


def test_a_blank_in_brackets_keeps_its_room():
    brackets = [piece for piece in list_pieces("of ($\\hspace{2cm}$) cm", PLAIN, BOOK)[0] if piece.text in "()"]
    assert brackets[1].x - brackets[0].x > 60


def test_two_dollars_are_inline_unless_alone():
    style = PLAIN
    assert len({piece.y for piece in list_pieces("用$$0$$、$$1$$组成", style, BOOK)[0]}) == 1
    pieces = list_pieces("Solve\n$$x=1$$\nnow", style, BOOK)[0]
    alone = next(piece for piece in pieces if piece.text == "x")
    assert len({piece.y for piece in pieces}) == 3 and alone.x > 150


@pytest.mark.parametrize(
    ("source", "signs"),
    [
        ("\\textless\\textgreater\\textbar{}\\textdollar", "<>|$"),
        ("\\square\\Box\\allowbreak\\phantom{x}\\textcircled{1}", "□□①"),
        ("\\frac{\\sqrt{2}}2", "√22"),
        ("\\frac{4}\\pi", "4π"),
        ("\\left {x\\right }", "{x}"),
        ("\\overarc{AB}", "AB⌢"),
        ("\\overset{\\frown}{AB}", "AB⌢"),
        ("\\not\\parallel\\not=", "∦≠"),
        ("\\text{若}x>0，\\text{且 }y<0", "若x>0，且y<0"),
        ("S_{甲}", "S甲"),
        ("\\begin{cases}x+y=1\\\\x-y=2\\end{cases}", "{x+y=1x−y=2"),
        ("\\begin{aligned}a&=b\\\\&=c\\end{aligned}", "a=b=c"),
        ("\\begin{vmatrix}1&2\\\\3&4\\end{vmatrix}", "|1234|"),
        ("\\begin{array}{c|c}a&b\\\\\\hline 1&2\\end{array}", "ab12"),
        ("\\overrightarrow{AB}\\cdot\\vec a", "AB→·a→"),
        ("\\mathbb{R}\\in\\operatorname{lcm}(a)", "ℝ∈lcm(a)"),
        ("f'(x)+\\sqrt[3]{x}", "f′(x)+√x3"),
        ("f^{\\prime\\prime}(x)=f^\\prime+y_1'", "f′′(x)=f′+y′1"),
        ("\\binom{n}{k}\\pmod 5", "(nk)(mod5)"),
        ("1{,}000\\,\\text{cm}^2", "1,000cm2"),
        ("\\left|\\dfrac{x}{y}\\right|\\|v\\|", "|xy|‖v‖"),
        ("\\widehat{AB}\\hskip 1em x_1'^2", "AB^x′21"),
        ("\\textbf\\alpha\\text\\beta", "αβ"),
        ("\\raisebox{2pt}{x}\\textsuperscript{2}", "x2"),
        ("90^\\circ+20^{\\circ}C", "90°+20°C"),
    ],
)
def test_commands_of_public_files(source, signs):
    assert "".join(piece.text for piece in laid(source).pieces).replace(" ", "") == signs
    assert draw_pieces(laid(source).pieces)[0].getbbox()


@pytest.mark.parametrize("prime", ["'", "^\\prime", "^{\\prime}"])
def test_primes_are_as_large_however_they_are_written_and_clear_of_the_letter(prime):
    letter, mark = (piece for piece in laid(f"f{prime}").pieces if piece.text.strip())
    assert mark.size == letter.size
    mask, left, _ = draw_pieces((letter,))
    assert mark.x >= left + mask.width - 1 - letter.x


@pytest.mark.parametrize(
    ("text", "signs"),
    [
        ("\\textbf{(A)}\\ 3 \\qquad \\textbf{(B)}\\ 4", "(A)3(B)4"),
        ("It is 1\\,000\\% of x\\;y", "Itis1000%ofxy"),
        ("(2+3)\\quad=5", "(2+3)=5"),
        ("Is `x^2` 4? ``No''", "Isx24?``No''"),
        ("x^2=____, $m=__$, \\frac{1}{2}___", "x2=____,m=__,12___"),
        ("It is \\frac{1}{2}\\\n$y$ \\\nnow", "Itis12ynow"),
        ("Pay $5 + $x^2$ now", "Pay$5+x2now"),
    ],
)
def test_what_stands_before_a_blank_is_drawn(text, signs):
    assert drawn(text) == signs


def test_tables_of_text_have_their_lines():
    table = "\\begin{tabular}{|l|c|}\\hline Day & Price (\\$) \\\\ \\hline Mon & $x^2$ \\\\ \\hline\\end{tabular}"
    assert drawn(f"See\n{table}") == "SeeDayPrice($)Monx2"
    rules = [piece for piece in laid(table).pieces if piece.strokes]
    assert len(rules) == 3 + 3 * 2  # three across, and three beside each of two rows


@pytest.mark.parametrize(
    ("text", "signs"),
    [
        ("See\n| Day | Cost |\n|---|---:|\n| Mon | $3 |\n| Tue | $x^2$ & 50% |\nnow", "SeeDayCostMon$3Tuex2&50%now"),
        ("Teams\nYear | Number\n2010 | 39\n2011 | 46\nFind it.", "TeamsYearNumber201039201146Findit."),
        ("A. x | y\nB. y | x", "A.x|yB.y|x"),
        ("Is |x| < 3\nor |y| < 2?", "Is|x|<3or|y|<2?"),
    ],
)
def test_tables_of_markdown_and_of_bars(text, signs):
    assert drawn(text) == signs


def test_cells_stand_in_rows_and_columns():
    at = places("\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}")
    assert at["1"][1] == at["2"][1] < at["3"][1] == at["4"][1]
    assert at["1"][0] == at["3"][0] < at["2"][0] == at["4"][0]
    wide = places("\\begin{tabular}{cc}\\multicolumn{2}{c}{A}\\\\1&2\\end{tabular}")
    assert wide["1"][0] < wide["A"][0] < wide["2"][0]
    high = places("\\begin{tabular}{cc}\\multirow{2}{*}{A}&1\\\\&2\\end{tabular}")
    assert high["1"][1] < high["A"][1] < high["2"][1]


@pytest.mark.parametrize(
    ("source", "above", "below"),
    [
        ("\\frac{1}{2}", "1", "2"),
        ("x^2", "2", "x"),
        ("x_2", "x", "2"),
        ("\\lim_{n}", "lim", "n"),
        ("\\overset{a}{b}", "a", "b"),
    ],
)
def test_parts_stand_above_and_below(source, above, below):
    at = places(source)
    assert at[above][1] < at[below][1]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("\\nosuch{x}", "unknown command \\nosuch"),
        ("\\sqrt{2", "'}' is missing"),
        ("x^", "an argument is missing"),
        ("x}", "'}' without its counterpart"),
        ("\\begin{nosuch}x\\end{nosuch}", "environment nosuch"),
        ("\\begin{cases}x", "without \\end"),
        ("\\left(x", "\\left without \\right"),
        ("{" * 2000 + "}" * 2000, "too many levels"),
    ],
)
def test_what_is_not_known_says_why(source, reason):
    with pytest.raises(CannotDraw) as refused:
        parse_formula(source)
    assert reason in str(refused.value)


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("The cost is $x and more", "a dollar"),
        ("Let {x be", "a brace"),
        ("See \\foo{bar} now", "\\foo"),
        ("See \\frac{1 now", "missing"),
    ],
)
def test_source_in_running_text_is_found(text, source):
    _, ((found, reason),) = list_pieces(text, PLAIN, BOOK)
    assert source in found + reason


PRICES = [
    "It costs $5.",
    "from $ 5 to $ 8",
    "in US$?",
    "Total ($)",
    "a $2-per-hour fee",
    "价格是$5，数量是3，共$15。",
    "$.50 each",
]


@pytest.mark.parametrize("text", PRICES)
def test_prices_are_no_source(text):
    assert drawn(text) == text.replace(" ", "")
