"""What `check` finds: the level, the meaning and the remedy of each kind."""

from ...data.checks import MISMATCH
from ...data.policy import REMEDIES
from ...data.turns import NO_ANSWER
from . import leakage, missing, overlap
from .content import TIES, word_ties
from .report import ERROR, NOTE, WARNING
from .scan import BLANK_PICTURE, CUT_PICTURE, LONG_SIDE, MAX_LENGTH, NO_PICTURE, WITHOUT_ANSWER


EVAL, BENCHMARK = "eval data", "benchmark"
NOT_A_PAIR = "not a pair"
DUPLICATE_ROW = "duplicate row"
DUPLICATE_PICTURE = "duplicate picture"
CONTRADICTION = "contradicting answers"
NOT_COMPARED = "not compared"

REFUSED = "Training refuses the row."
# Kind → level, meaning, remedy. Any other kind is a row that training refuses.
FINDING_KINDS = {
    NO_ANSWER: (ERROR, REFUSED, "Give one, or set `--on_policy_share` as in training, where the model writes it."),
    WITHOUT_ANSWER: (NOTE, "The model writes the answer itself, in on-policy micro-batches.", "Nothing."),
    MISMATCH: (ERROR, "The two sides must have one answer.", REMEDIES[MISMATCH]),
    NOT_A_PAIR: (ERROR, "Other rows of the file are pairs.", "Give `instruction_2` and `output_2`, or another file."),
    leakage.IDENTICAL: (
        ERROR,
        "Both sides have the same prompt and pictures, so there is nothing to align.",
        "Take the words that the picture shows out of `instruction_2`.",
    ),
    leakage.IN_VISION_RICH: (
        ERROR,
        "The prompt says what the picture should be read for.",
        "Take the answer out of `instruction_2`.",
    ),
    leakage.IN_TEXT_RICH: (
        WARNING,
        "The question gives its answer away, so the teacher only copies.",
        "Take the answer out of `instruction`, unless it is a proof.",
    ),
    leakage.NUMBER_IN_PROMPT: (
        NOTE,
        "The answer equals something given in the question, which happens by chance.",
        "Look at the examples.",
    ),
    NO_PICTURE: (WARNING, "The vision-rich side has no picture.", "Give `image_url_2`."),
    LONG_SIDE: (
        WARNING,
        f"Training refuses sides of more than `max_length` tokens, by default {MAX_LENGTH}.",
        "Name the limit that you train with, `--max_length`, or set `max_pixels` of the processor.",
    ),
    missing.SHOWS_SOURCE: (
        WARNING,
        "The picture shows the source of a formula, as `build --source keep` leaves it.",
        "Repair the question and build again, or leave the row out.",
    ),
    missing.NO_OPTIONS: (
        WARNING,
        "The answer is a letter, and the text-rich question has no options.",
        "Build with `--choices_column`, or write the options into the question.",
    ),
    missing.NO_FIGURE: (
        WARNING,
        "The text-rich question speaks of a figure, and its side has no picture.",
        "Give the picture (`image_url`), unless the words say what it shows.",
    ),
    BLANK_PICTURE: (WARNING, "The picture shows nothing.", "Draw it again, or leave the row out."),
    CUT_PICTURE: (
        WARNING,
        "The model's processor cuts pixels off, so the model does not see the whole picture.",
        "Set `do_center_crop: false` in its file, with `crop_size` as `size`, or pad the pictures to squares.",
    ),
    DUPLICATE_ROW: (WARNING, "The same row twice: texts and pictures.", "Leave one out."),
    CONTRADICTION: (
        WARNING,
        "The same prompt with the same pictures has another final answer.",
        "Find out which is right.",
    ),
    DUPLICATE_PICTURE: (NOTE, "The same pixels as in another row.", "Nothing, if questions share pictures."),
    NOT_COMPARED: (WARNING, "These rows could not be read, and the data was not compared with them.", "Repair them."),
    overlap.SAME_QUESTION: (ERROR, "The question stands in the {where} too.", "Leave the row out."),
    overlap.NEAR_QUESTION: (WARNING, "The {where} has nearly the same problem.", "Compare the two."),
    overlap.SAME_PROBLEM: (
        WARNING,
        f"The {{where}} has a row whose problem has the same number ({word_ties(TIES)}).",
        "Split with `pairs split`, which keeps them together, or leave the row out.",
    ),
    overlap.SAME_PICTURE: (WARNING, "The {where} has the picture too, with another question.", "Compare the two."),
    overlap.NEAR_PICTURE: (
        WARNING,
        "The {where} has a picture that looks the same (at most "
        + f"{overlap.NEAR_BITS} of 256 bits differ), with another question.",
        "Compare the two.",
    ),
}
