"""Whether problems stand in other data too: in evaluation data, or in a benchmark."""

from collections.abc import Iterable, Iterator

import numpy as np

from .content import MIN_GRAMS, PICTURE_BITS, Side, bits_apart


SAME_QUESTION = "same question"
NEAR_QUESTION = "nearly the same question"
SAME_PICTURE = "same picture"
NEAR_PICTURE = "nearly the same picture"
SAME_PROBLEM = "same problem"

# Share of the shorter question's word 8-grams that the longer one has too.
NEAR_SHARE = 0.8
# An 8-gram of more items than these is a template's, and leads to none of them.
COMMON = 50
# Two pictures are nearly the same up to this many of 256 bits.
NEAR_BITS = 10
# Stands for the distance of pictures with equal pixels.
EQUAL = -1


class Reference:
    """
    Sides of problems, to be found again among the sides of other data.

    It keeps about 1 kB of a side, so it is meant for evaluation data and benchmarks; the data that is compared with it
    may be of any size.
    """

    def __init__(self, sides: Iterable[tuple[str, Side]]):
        self.names, self.sides = [], []
        for name, side in sides:
            self.names.append(name)
            self.sides.append(side)
        self._texts = _Lookup((side.text, item) for item, side in enumerate(self.sides) if side.text)
        self._ties = _Lookup((side.tie, item) for item, side in enumerate(self.sides) if side.tie)
        self._grams = _Lookup((gram, item) for item, side in enumerate(self.sides) for gram in side.grams.tolist())
        pictures = [(picture, item) for item, side in enumerate(self.sides) for picture in side.pictures]
        self._pixels = _Lookup((picture.pixels, item) for picture, item in pictures)
        seen = [(picture.look, item) for picture, item in pictures if picture.look is not None]
        self._looks = np.array([look for look, _ in seen], dtype=np.uint64).reshape(-1, PICTURE_BITS // 64)
        self._look_items = np.array([item for _, item in seen], dtype=np.int64)

    def find(self, side: Side) -> Iterator[tuple[str, str]]:
        """
        Finds a side among those of the reference.

        Two questions are the same when their normalised words are, and nearly the same when the longer one has 80 % of
        the shorter one's word 8-grams (at least 5) and all of its numbers. Where words do not tell problems apart, the
        pictures must agree too, so that "Find x." is never found by its words alone: equal questions of fewer than 12
        words or 2 numbers, both with pictures, are the same if the pixels are, and nearly the same if the pictures are
        (and the final answers, where both are known); other short questions are never nearly the same without a
        picture that is. Two pictures are nearly the same when their perceptual hashes differ in at most 10 of 256
        bits, which pictures that were scaled or compressed again seldom exceed; those with other margins do. Two rows
        whose data gives their problems one number, as the levels of modality have, are the same problem.

        Yields:
            Kind of match and details; the questions first, and a picture only where no question was found with it.
        """
        equal, same, pictures = self._match(side)
        shares = {} if same else self._near_questions(side, pictures) | {item: 1 for item in equal if item in pictures}
        for item in same[:1]:
            answers = ", with the same answer" if side.answer and side.answer == self.sides[item].answer else ""
            yield SAME_QUESTION, f"{self.names[item]}{answers}{_more(same)}"
        for item in sorted(shares, key=shares.get, reverse=True)[:1]:
            detail = (
                f"{shares[item]:.0%} of its word 8-grams"
                if item not in equal
                else "with a picture that looks the same"
            )
            yield NEAR_QUESTION, f"{self.names[item]}, {detail}{_more(shares)}"
        if pictures and not same and not shares:
            item = min(pictures, key=pictures.get)
            kind = SAME_PICTURE if pictures[item] == EQUAL else NEAR_PICTURE
            bits = "" if pictures[item] == EQUAL else f", {pictures[item]} of {PICTURE_BITS} bits differ"
            yield kind, f"{self.names[item]}{bits}{_more(pictures)}"
        tied = list(dict.fromkeys(self.names[item] for item in self._tied(side)))
        if tied and not same:
            yield SAME_PROBLEM, f"{tied[0]}{_more(tied)}"

    def related(self, side: Side) -> set[int]:
        """
        Returns all items that are the same as a side, or nearly, by their questions or their pictures, and the first
        one of its problem.
        """
        _, same, pictures = self._match(side)
        return {*same, *self._near_questions(side, pictures), *pictures, *self._tied(side)[:1]}

    def _tied(self, side: Side) -> list[int]:
        return self._ties.get(side.tie) if side.tie else []

    def _match(self, side: Side) -> tuple[list[int], list[int], dict[int, int]]:
        """Returns items with equal words, those with the same question, and those with near pictures."""
        equal = self._texts.get(side.text) if side.text else []
        pictures = self._near_pictures(side)
        same = [
            item
            for item in equal
            if not (side.pictures and self.sides[item].pictures) or side.says_all or pictures.get(item) == EQUAL
        ]
        return equal, same, pictures

    def _near_pictures(self, side: Side) -> dict[int, int]:
        """Returns item → bits that differ, `EQUAL` for equal pixels."""
        near = {}
        for picture in side.pictures:
            if picture.look is not None and len(self._looks):
                # few hashes agree in their first 64 bits, so the others need not be looked at
                first = np.bitwise_count(self._looks[:, 0] ^ picture.look[0])
                rows = np.flatnonzero(first <= NEAR_BITS)
                bits = bits_apart(self._looks[rows], picture.look)
                for row, distance in zip(rows[bits <= NEAR_BITS], bits[bits <= NEAR_BITS], strict=True):
                    item = int(self._look_items[row])
                    if not self._is_sibling(side, self.sides[item]):
                        near[item] = min(near.get(item, PICTURE_BITS), int(distance))
            near |= dict.fromkeys(self._pixels.get(picture.pixels), EQUAL)
        return near

    @staticmethod
    def _is_sibling(side: Side, other: Side) -> bool:
        """Whether two problems are of one template with other numbers: figures alike, equal words, other answers."""
        return side.text == other.text and bool(side.answer and other.answer) and side.answer != other.answer

    def _near_questions(self, side: Side, pictures: dict[int, int]) -> dict[int, float]:
        """Returns item → share of the shorter question's 8-grams that the longer one has."""
        shares = {}
        if len(side.grams) < MIN_GRAMS:
            return shares
        for item in self._grams.get_rare(side.grams):
            other = self.sides[item]
            shorter, longer = sorted((side, other), key=lambda one: len(one.grams))
            if len(shorter.grams) < MIN_GRAMS or not shorter.numbers <= longer.numbers:
                continue
            if not shorter.says_all and item not in pictures:
                continue
            share = len(np.intersect1d(side.grams, other.grams, assume_unique=True)) / len(shorter.grams)
            if share >= NEAR_SHARE:
                shares[item] = share
        return shares


def _more(items: Iterable[int]) -> str:
    others = len(list(items)) - 1
    return f" (and {others:,} more)" if others else ""


class _Lookup:
    """Digest → items, in two sorted arrays."""

    def __init__(self, pairs: Iterable[tuple[int, int]]):
        flat = np.fromiter((value for pair in pairs for value in pair), dtype=np.uint64).reshape(-1, 2)
        flat = flat[np.argsort(flat[:, 0], kind="stable")]
        self.digests, self.items = np.ascontiguousarray(flat[:, 0]), flat[:, 1].astype(np.int32)

    def get(self, digest: int) -> list[int]:
        """Returns the items of a digest."""
        start, end = (np.searchsorted(self.digests, np.uint64(digest), side=side) for side in ("left", "right"))
        return self.items[start:end].tolist()

    def get_rare(self, digests: np.ndarray) -> set[int]:
        """Returns the items that have one of the digests, without looking at digests that many items have."""
        starts = np.searchsorted(self.digests, digests, side="left")
        ends = np.searchsorted(self.digests, digests, side="right")
        rare = (ends > starts) & (ends - starts <= COMMON)
        found = (self.items[start:end] for start, end in zip(starts[rare], ends[rare], strict=True))
        return set(np.concatenate([*found, self.items[:0]]).tolist())
