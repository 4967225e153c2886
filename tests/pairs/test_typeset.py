"""Printing problems: wrapping, formulas, fonts, legibility, and ink that stays inside."""

import random

import numpy as np
import pytest
from PIL import Image, ImageDraw

from puma_trl.errors import DataError
from puma_trl.pairs.build import compose, fonts, latex
from puma_trl.pairs.build.diagrams import MAX_HEIGHT
from puma_trl.pairs.build.pieces import draw_pieces
from puma_trl.pairs.build.typeset import DoesNotFit, Typesetter, clean, wrap


BOOK = fonts.FontBook()
PLAIN = compose.Style("DejaVu Sans", 18, 24, 1.4, diagram_first=True, turn=0.0, noise=0)
WORDS = "find the length of a side when $x^2 + y^2 = 5$ and angle is 30 degrees, AB = 12 cm;".split(" ")
WORDS += ["or", "$\\frac{3}{4}$", "of", "it?"]


def ink(image):
    """Returns where a picture has ink."""
    return np.asarray(image.convert("L")) < 128


def lines_of(text, width=400, typeface="DejaVu Sans", size=18):
    typesetter = Typesetter(BOOK, typeface)
    return wrap(typesetter.words(clean(text), size, width), typeface, size, width)


def texts(lines):
    return ["".join(box.text for _, box in line.boxes) for line in lines]


@pytest.mark.parametrize("width", [60, 120, 333])
def test_lines_stay_within_the_column(width):
    text = "Supercalifragilisticexpialidocious words and short ones 1234567890123456789012345678901234567890"
    lines = lines_of(text, width)
    assert "".join(texts(lines)) == text.replace(" ", "")
    for line in lines:
        assert all(position >= 0 and position + box.width <= width for position, box in line.boxes)


def test_a_full_stop_stays_with_its_formula():
    for width in range(60, 300, 7):
        for line in texts(lines_of("It is so that we know $x^2$. Then $y$, too.", width)):
            assert not line.startswith((".", ","))


def formulas_of(text):
    return [part.text for part in latex.split_paragraph(text) if part.node is not None]


def test_prices_are_no_formulas():
    assert formulas_of("It costs $5 and $10.") == []
    assert formulas_of("so $a=1$ or \\(b\\) or $$c$$") == ["a=1", "b", "c"]


PRICES = [
    "An apple costs $5 and a pear costs $3. What is the total cost ($)?",
    "A ticket costs US$7. Ann buys 3 tickets for adults. What does she pay in US$?",
    "It costs $3. How much is $n$ of it?",
    "Pay $5. Total (in US$)?",
]


@pytest.mark.parametrize("text", PRICES)
def test_sentences_between_prices_are_no_formulas(text):
    assert formulas_of(text) == (["n"] if "$n$" in text else [])
    assert "".join(texts(lines_of(text))).replace("n", "") == text.replace("$n$", "").replace(" ", "").replace("n", "")


@pytest.mark.parametrize(
    "source",
    [
        "x \\text{ is in the set}",
        "ABCD",
        "\\angle A + \\angle B",
        "\\angle ABC = \\angle DEF",
        "\\frac{\\text{the whole distance}}{t}",
        "{\\rm the area} = ab",
        "a. b",
        "\\sin x \\cos y",
        "5 \\text{ cm} AB",
        "n! = n (n-1)!",
    ],
)
def test_words_in_formulas(source):
    before, formula, behind = latex.split_paragraph(f"So ${source}$ is")
    assert (before.text, formula.text, behind.text) == ("So ", source, " is") and formula.node is not None


@pytest.mark.parametrize("source", ["\\nosuchcommand{x}", "\\begin{nosuch} 1 \\end{nosuch}", "x^", "\\sqrt{2"])
def test_other_latex_stands_as_text(source):
    typesetter = Typesetter(BOOK, "DejaVu Sans")
    (line,) = wrap(typesetter.words(f"See ${source}$ here", 18, 900), "DejaVu Sans", 18, 900)
    ((found, reason),) = typesetter.failures
    assert found == f"${source}$" and reason
    assert source.replace(" ", "") in "".join(texts([line]))
    (first, see), (second, _), *_ = line.boxes
    assert second - first > see.width  # a space


def test_a_wide_formula_does_not_fit():
    with pytest.raises(DoesNotFit, match="too wide"):
        lines_of("$\\sqrt{" + "x+" * 60 + "x}$", 100)


def signs(lines):
    return ["".join(piece.text for _, box in line.boxes for piece in box.pieces) for line in lines]


def test_a_wide_formula_breaks_before_operators():
    source = "x^2+" * 20 + "x=-5"
    lines = signs(lines_of(f"So ${source}$.", 150))
    assert "".join(lines) == f"So{source.replace('^', '').replace('-', '−')}." and len(lines) > 3
    assert all(line.startswith(("+", "=")) for line in lines[1:])


@pytest.mark.parametrize("text", ["So $$\nx^2\n$$ is", "So \\[\n x^2 \n\\] is", "So $x\n= 2$ is"])
def test_formulas_over_several_lines(text):
    typesetter = Typesetter(BOOK, "DejaVu Sans")
    typesetter.words(clean(text), 18, 400)
    assert (typesetter.formulas, typesetter.failures) == (1, [])


@pytest.mark.parametrize("name", ["align", "align*", "eqnarray"])
def test_environments_outside_of_dollars(name):
    rows = "  2x + y &= 5, \\\\[2pt]\n x &= \\tfrac12 \\nonumber\\\\\n"
    text = f"Solve\n\\begin{{{name}}}\n{rows}\\end{{{name}}}\nfor $x$."
    typesetter = Typesetter(BOOK, "DejaVu Sans")
    lines = wrap(typesetter.words(clean(text), 18, 400), "DejaVu Sans", 18, 400)
    assert (typesetter.formulas, typesetter.failures) == (2, [])
    assert signs(lines) == ["Solve", "2x+y=5,x=12", "forx."]
    assert lines[1].boxes[0][0] > 50  # in the middle
    equals = [piece for piece in lines[1].boxes[0][1].pieces if piece.text == "="]
    assert equals[0].x == equals[1].x and equals[0].y < equals[1].y


def test_environments_that_cannot_be_drawn_are_counted():
    typesetter = Typesetter(BOOK, "DejaVu Sans")
    typesetter.words(clean("See \\begin{align} x &= \\nosuch \\\\ y &= 1 \\end{align} here"), 18, 900)
    ((source, reason),) = typesetter.failures
    assert source.startswith("\\begin{align}") and reason == "unknown command \\nosuch"


def test_emphasis_is_printed_as_its_content():
    text = "\\textbf{Find \\emph{all} $\\textbf{A}_{x^{2}}$} of \\textit{n}."
    assert clean(text) == "Find all $\\textbf{A}_{x^{2}}$ of n."


def test_a_price_does_not_reach_into_the_next_paragraph():
    assert clean("Pay $x\n\nor y$ now.") == "Pay $x\n\nor y$ now."


UNSEEN = [
    "\u200b",
    "\u2800",
    "\u3164",
    "\u115f\u1160",
    "\uffa0",
    "\u034f",
    "\ufe0f",
    "\u2060\U000e0041",
    "\u2028\u00a0",
]


@pytest.mark.parametrize("text", UNSEEN)
@pytest.mark.parametrize("has_fonts", [True, False])
def test_text_that_cannot_be_seen(monkeypatch, text, has_fonts):
    """Whether or not some font has a blank for it."""
    if not has_fonts:
        monkeypatch.setattr(fonts, "packaged_fonts", tuple)
        monkeypatch.setattr(fonts, "system_fonts", tuple)
    with pytest.raises(DataError, match="empty text"):
        composed(text, PLAIN)
    seen = "Find AB." if clean(text) == "" else "Find A B."
    assert composed(f"Find A{text}B.", PLAIN).tobytes() == composed(seen, PLAIN).tobytes()


def test_invisible_characters_and_other_scripts():
    assert clean("a\u200bb\u00a0c\te\u0301") == "ab c \u00e9"
    with pytest.raises(DataError, match="unsupported script"):
        clean("\u05d0")


def test_a_character_without_font_is_named():
    with pytest.raises(DataError, match=r"missing glyph: no font has .*U\+10FFFF"):
        lines_of("x \U0010ffff")


@pytest.mark.parametrize("character", ["题", "か", "각"])
def test_the_font_of_the_extra_comes_before_those_of_the_system(monkeypatch, tmp_path, character):
    (packaged,) = fonts.packaged_fonts()
    system = tmp_path / "A.ttc"
    system.symlink_to(packaged)
    fonts._find_fonts.cache_clear()
    monkeypatch.setattr(fonts, "system_fonts", lambda: (str(system),))
    assert BOOK.choose("STIX", character) == {character: packaged}
    monkeypatch.setattr(fonts, "packaged_fonts", tuple)
    assert BOOK.choose("STIX", character) == {character: str(system)}
    fonts._find_fonts.cache_clear()
    monkeypatch.setattr(fonts, "system_fonts", tuple)
    with pytest.raises(DataError, match=rf"no font has '{character}' .*Korean: `pip install puma_trl\[cjk\]`"):
        BOOK.choose("STIX", character)


def test_chinese_breaks_between_characters_but_not_before_a_full_stop():
    text = "一个三角形的两个角分别是三十度和六十度。求第三个角。"
    lines = texts(lines_of(text, 120))
    assert "".join(lines) == text and len(lines) > 3
    assert not any(line.startswith("。") for line in lines)


def composed(text, style, diagram=None, seed=0):
    return compose.compose(text, diagram, style, BOOK, seed).image


def test_no_ink_touches_the_border():
    diagram = Image.new("RGB", (300, 200), "black")
    for seed in range(60):
        rng = random.Random(seed)
        style = compose.draw_style(rng)
        text = " ".join(rng.choices(WORDS, k=rng.randint(3, 120)))
        image = composed(text, style, rng.choice((None, diagram)), seed)
        dark = np.asarray(image.convert("L")) < 250
        border = compose.BORDER
        assert dark.any()
        assert not (dark[:border].any() or dark[-border:].any() or dark[:, :border].any() or dark[:, -border:].any())


def test_every_style_is_legible():
    for seed in range(40):
        style = compose.draw_style(random.Random(seed))
        path = str(fonts.SHIPPED / fonts.TYPEFACES[style.typeface])
        assert fonts.digit_height(path, style.size) >= compose.MIN_DIGIT_HEIGHT


def heights(source, typeface):
    """Measures each connected ink of at least a quarter, from left to right, at the smallest size of the typeface."""
    path = str(fonts.SHIPPED / fonts.TYPEFACES[typeface])
    (line,) = lines_of(f"${source}$", 400, typeface, fonts.smallest_size(path, compose.MIN_DIGIT_HEIGHT))
    ((_, box),) = line.boxes
    left = {(x, y) for y, x in np.argwhere(np.asarray(draw_pieces(box.pieces)[0]) >= 64).tolist()}
    found = []
    while left:
        glyph, edge = set(), [min(left)]
        while edge:
            x, y = edge.pop()
            near = {(x + dx, y + dy) for dx in (-1, 0, 1) for dy in (-1, 0, 1)} & left
            left -= near
            glyph |= near
            edge += near
        rows = [y for _, y in glyph]
        found.append(max(rows) - min(rows) + 1)
    return found


TYPEFACE = pytest.mark.parametrize("typeface", fonts.TYPEFACES)


@TYPEFACE
@pytest.mark.parametrize(
    ("source", "full", "small"),
    [
        ("x^2", 0, 1),
        ("\\frac{1}{2}", 2, 0),
        ("\\frac{2^2}{3}", 2, 1),
        ("\\tfrac{1}{\\frac{2}{3}}", 3, 0),
        ("1^{\\frac{2}{3}}", 1, 2),
        ("1^{2^3}", 1, 2),
    ],
)
def test_digits_of_formulas_are_legible(typeface, source, full, small):
    """Digits of full size are at least 10 pixels high, those of exponents 7."""
    parts = heights(source, typeface)
    letters = 1 if "x" in source else 0  # which come first
    digits = sorted(height for height in parts[letters:] if height > 2)  # but for the bar of a fraction
    assert len(digits) == full + small
    assert all(height >= 7 for height in digits[:small]) and all(height >= 10 for height in digits[small:])
    assert all(height <= 11 for height in digits)


@TYPEFACE
def test_the_index_of_a_root_is_legible(typeface):
    assert min(height for height in heights("\\sqrt[3]{2}", typeface) if height > 2) >= 7


@TYPEFACE
@pytest.mark.parametrize(
    "source", ["|x|", "\\left|x\\right|", "\\lvert x\\rvert", "\\left\\lvert x \\right\\rvert", "\\left\\|x\\right\\|"]
)
def test_bars_are_higher_than_letters(typeface, source):
    left, *_, right = heights(source, typeface)
    assert left >= 10 and right >= 10


def test_bars_grow_with_fractions():
    assert all(height > 25 for height in heights("\\left| \\frac{1}{2} \\right|", "STIX")[::4])


def test_the_canvas_grows_and_has_a_limit():
    short, long = (composed("word " * count, PLAIN) for count in (10, 300))
    assert short.width == long.width == 512 and short.height < long.height
    wide = composed("$\\sqrt{" + "x+" * 20 + "x}$", PLAIN)
    assert wide.width > 512
    with pytest.raises(DoesNotFit, match="text too long"):
        composed("word " * 6000, PLAIN)


def test_large_diagrams():
    assert composed("See.", PLAIN, Image.new("RGB", (600, 100), "black")).width == 768
    huge = composed("See.", PLAIN, Image.new("RGB", (3000, 3000), "black"))
    assert huge.width == 1024 and huge.height <= MAX_HEIGHT


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_the_diagram_keeps_its_pixels(mode):
    rng = np.random.default_rng(0)
    diagram = Image.fromarray(rng.integers(0, 256, (200, 300, 3), dtype=np.uint8)).convert(mode).convert("RGB")
    image = composed("See the picture.", PLAIN, diagram)
    left = (512 - 300) // 2
    assert image.mode == mode
    assert np.array_equal(np.asarray(image.convert("RGB"))[24:224, left : left + 300], np.asarray(diagram))


def reread(image, text, style):
    """Reads a line by matching each character's glyph, cut from nothing but the font, where the line must have it."""
    font = fonts.load(str(fonts.SHIPPED / fonts.TYPEFACES[style.typeface]), style.size)
    glyphs = {}
    for character in "0123456789ABCDEFGHKMNPRST":
        mask = Image.new("L", (round(font.getlength(character)), 2 * style.size))
        ImageDraw.Draw(mask).text((0, round(1.5 * style.size)), character, fill=255, font=font, anchor="ls")
        glyphs[character] = np.asarray(mask, dtype=float) / 255
    page = 1 - np.asarray(image.convert("L"), dtype=float) / 255
    rows = np.flatnonzero(page.max(1) > 0.5)
    found, x = "", style.margin
    for expected in text:
        best = {}
        for character, glyph in glyphs.items():
            for top in range(rows[0] - style.size, rows[0] + 2):
                for shift in (-1, 0, 1):
                    window = page[max(top, 0) : max(top, 0) + glyph.shape[0], x + shift : x + shift + glyph.shape[1]]
                    if window.shape == glyph.shape:
                        best[character] = min(best.get(character, np.inf), float(((window - glyph) ** 2).mean()))
        found += min(best, key=best.get)
        x += round(font.getlength(expected))
    return found


@pytest.mark.parametrize("typeface", fonts.TYPEFACES)
@pytest.mark.parametrize("noise", [0, 6])
def test_what_is_printed_can_be_read(typeface, noise):
    """Without OCR: each glyph of the line is closer to its own character than to any other, at the smallest size."""
    path = str(fonts.SHIPPED / fonts.TYPEFACES[typeface])
    size = fonts.smallest_size(path, compose.MIN_DIGIT_HEIGHT)
    style = compose.Style(typeface, size, 24, 1.4, diagram_first=True, turn=0.0, noise=noise)
    for text in ("3947", "A0B8", "61T25"):
        assert reread(composed(text, style), text, style) == text
