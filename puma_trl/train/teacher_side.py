"""What reads the text-rich side with `teacher: model`, made ready before data and weights are read."""

from collections.abc import Callable

from transformers import ProcessorMixin

from ..config import PumaKLConfig
from ..data.opening import Opening
from ..data.render import end_of_answer
from ..errors import ConfigError, ModelError
from ..models.attention import check_padding_free
from ..models.teacher_model import TeacherSide, load_teacher_side, teacher_attention
from ..models.tokenizers import get_tokenizer


def prepare_teacher(
    args: PumaKLConfig,
    processor: ProcessorMixin,
    attention: str | dict[str, str] | None,
    collator: Callable | None = None,
) -> TeacherSide | None:
    """
    Returns what reads the text-rich side with `teacher: model`, compared with the model that trains.

    Raises:
        ConfigError: if the collator knows of no teacher.
        ModelError: if there is no such model, or its tokens are others (see [`load_teacher_side`]), or its answers end
            otherwise, or open a thought and the other's do not.
    """
    if args.teacher != "model":
        return None
    if collator is not None and getattr(collator, "teacher", None) is None:
        raise ConfigError(
            "`data_collator` has no `teacher`, so the text-rich side would be written for the model that trains, and "
            "not for `teacher: model`. Leave it out."
        )
    teacher = load_teacher_side(args, processor)
    ends = [end_of_answer(each) for each in (processor, teacher.processor)]
    ids = [
        get_tokenizer(each)(end, add_special_tokens=False)["input_ids"]
        for each, end in zip((processor, teacher.processor), ends, strict=True)
    ]
    if ids[0] != ids[1]:
        raise ModelError(
            f"An answer of the model that trains ends with {ends[0]!r}, one of the teacher "
            f"`{args.teacher_model_name_or_path}` with {ends[1]!r}, so the teacher would never teach where to stop. "
            "Give the teacher's folder a chat_template.jinja that closes an answer like the student's."
        )
    thoughts = [Opening(each).thought for each in (processor, teacher.processor)]
    if thoughts[0] != thoughts[1]:
        words = ["no thought" if thought is None else f"a thought ({thought})" for thought in thoughts]
        raise ModelError(
            f"The chat template of the model that trains opens {words[0]} before an answer, that of the teacher "
            f"`{args.teacher_model_name_or_path}` {words[1]}, so answers would not be the same behind both. Give the "
            "teacher's folder a chat_template.jinja that opens answers like the student's."
        )
    if args.padding_free:
        check_padding_free(teacher.config, teacher_attention(args, attention))
    return teacher
