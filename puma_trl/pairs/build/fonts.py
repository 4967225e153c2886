"""Fonts that typeset problems: those of matplotlib and of the extra `cjk`, and for other scripts the system's."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from matplotlib import font_manager, get_data_path
from matplotlib.ft2font import FT2Font
from PIL import ImageFont

from ...errors import DataError


SHIPPED = Path(get_data_path()) / "fonts" / "ttf"

# name → file that matplotlib ships
TYPEFACES = {
    "DejaVu Sans": "DejaVuSans.ttf",
    "DejaVu Serif": "DejaVuSerif.ttf",
    "DejaVu Sans Mono": "DejaVuSansMono.ttf",
    "STIX": "STIXGeneral.ttf",
}
# typeface → the files of its letters in formulas, upright, italic and bold
FACES = {
    "DejaVu Sans": {"rm": "DejaVuSans.ttf", "it": "DejaVuSans-Oblique.ttf", "bf": "DejaVuSans-Bold.ttf"},
    "DejaVu Serif": {"rm": "DejaVuSerif.ttf", "it": "DejaVuSerif-Italic.ttf", "bf": "DejaVuSerif-Bold.ttf"},
    "STIX": {"rm": "STIXGeneral.ttf", "it": "STIXGeneralItalic.ttf", "bf": "STIXGeneralBol.ttf"},
}
FACES["DejaVu Sans Mono"] = FACES["DejaVu Sans"]
# for symbols that the chosen typeface lacks
SYMBOLS = tuple(str(SHIPPED / name) for name in ("DejaVuSans.ttf", "STIXGeneral.ttf"))


@lru_cache(maxsize=1024)
def load(path: str, size: int) -> ImageFont.FreeTypeFont:
    """Loads a font file at a size in pixels, laid out character by character, which is the same on every machine."""
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)


@lru_cache(maxsize=4096)
def coverage(path: str) -> frozenset[int]:
    """Returns the code points that a font file has glyphs for; none if FreeType cannot read it."""
    try:
        return frozenset(FT2Font(path).get_charmap())
    except RuntimeError:  # bitmap fonts and broken files, which systems have too
        return frozenset()


def digit_height(path: str, size: int) -> int:
    """Returns the height in pixels of the digits of a font at a size."""
    _, top, _, bottom = load(path, size).getbbox("0", anchor="ls")
    return round(bottom - top)


@lru_cache(maxsize=64)
def smallest_size(path: str, height: int) -> int:
    """Returns the smallest size at which digits are at least `height` pixels high."""
    size = height
    while digit_height(path, size) < height:
        size += 1
    return size


@lru_cache(maxsize=64)
def face_path(typeface: str, face: str) -> str:
    """Returns the font file of a face of a typeface, in formulas."""
    return str(SHIPPED / FACES[typeface][face])


@lru_cache(maxsize=1)
def packaged_fonts() -> tuple[str, ...]:
    """Returns the font file that the extra `cjk` brings, the same on every machine; none if it is not installed."""
    try:
        from noto_cjk_sans_otc import FONT_PATH
    except ImportError:
        return ()
    return (str(FONT_PATH),)


@lru_cache(maxsize=1)
def system_fonts() -> tuple[str, ...]:
    """Returns the font files of the system, regular ones first, in an order that does not depend on where they are."""
    paths = [Path(path) for path in font_manager.findSystemFonts() if "LastResort" not in path]  # has dummies for all
    return tuple(str(path) for path in sorted(paths, key=lambda path: ("Regular" not in path.name, path.name, path)))


@dataclass(frozen=True)
class FontBook:
    """
    Chooses a font for every character.

    Args:
        extra (`tuple[str, ...]`, *optional*):
            Font files of the user, which come before those of the extra `cjk` and of the system.
    """

    extra: tuple[str, ...] = ()

    def __post_init__(self):
        for path in self.extra:
            if not coverage(path):
                raise DataError(f"'{path}' cannot be read as a font. Name a TrueType or OpenType file.")

    def choose(self, typeface: str, characters: Iterable[str]) -> dict[str, str]:
        """
        Returns character → font file.

        What the typeface lacks comes from one other font if a single one has it all, so that a text looks even.

        Args:
            typeface (`str`):
                Key of `TYPEFACES`.
            characters (`Iterable[str]`):
                The characters of a text; white space is left out.

        Raises:
            DataError: if no font has one of the characters.
        """
        wanted = sorted({character for character in characters if not character.isspace()})
        primary = str(SHIPPED / TYPEFACES[typeface])
        chosen = {character: primary for character in wanted if ord(character) in coverage(primary)}
        missing = tuple(character for character in wanted if character not in chosen)
        return chosen | _find_fonts(missing, (*SYMBOLS, *self.extra, *packaged_fonts())) if missing else chosen

    def runs(self, typeface: str, text: str, face: str) -> list[tuple[str, str]]:
        """
        Splits text of a formula into runs of one font file each: of the face if it has the characters, else of the
        upright face, else of another font.

        Args:
            typeface (`str`):
                Key of `TYPEFACES`.
            text (`str`):
                The characters.
            face (`str`):
                `"rm"`, `"it"` or `"bf"`.

        Raises:
            DataError: if no font has one of the characters.
        """
        wanted, upright = face_path(typeface, face), face_path(typeface, "rm")
        runs: list[tuple[str, str]] = []
        for character in text:
            path = next((path for path in (wanted, upright) if ord(character) in coverage(path)), None)
            path = path or _find_font(character, (*SYMBOLS, *self.extra, *packaged_fonts()))
            if runs and runs[-1][1] == path:
                runs[-1] = (runs[-1][0] + character, path)
            else:
                runs.append((character, path))
        return runs


@lru_cache(maxsize=65536)
def _find_fonts(characters: Sequence[str], first: tuple[str, ...]) -> dict[str, str]:
    points = {ord(character) for character in characters}
    for path in (*first, *system_fonts()):
        if points <= coverage(path):
            return dict.fromkeys(characters, path)
    return {character: _find_font(character, first) for character in characters}


@lru_cache(maxsize=65536)
def _find_font(character: str, first: tuple[str, ...]) -> str:
    for path in (*first, *system_fonts()):
        if ord(character) in coverage(path):
            return path
    raise DataError(
        f"missing glyph: no font has '{character}' (U+{ord(character):04X}); install one that does (for Chinese, "
        "Japanese and Korean: `pip install puma_trl[cjk]`), or name a font file with `--font`"
    )
