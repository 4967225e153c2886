"""`puma-trl convert`, `assemble` and `merge`: their command lines, which are read before the libraries behind them."""

import sys
from argparse import Namespace
from pathlib import Path

from ..entry import Parser


# Names of what can be assembled, in `assemble.py`
ALIGNERS = ("gated_mlp", "mlp")


def main(argv: list[str] | None = None) -> None:
    """Runs the command that is named first."""
    name, *argv = sys.argv[1:] if argv is None else argv
    add_arguments, run, description = COMMANDS[name]
    parser = Parser(prog=f"puma-trl {name}", description=description)
    add_arguments(parser)
    run(parser.parse_args(argv))


def _add_push(parser: Parser) -> None:
    parser.add_argument("--push_to_hub", action="store_true", help="upload the result to the Hub")
    parser.add_argument("--hub_model_id", help="repository to push to (default: the name of the destination)")
    parser.add_argument("--hub_private_repo", action="store_true", default=None, help="make a new repository private")


def _push(args: Namespace) -> None:
    if args.push_to_hub:
        from ..record.hub import push_saved

        push_saved(args.destination, args.hub_model_id, args.hub_private_repo)


def _add_convert(parser: Parser) -> None:
    parser.add_argument("source", help="checkpoint folder, or id of a model on the Hub")
    parser.add_argument("destination", help="folder to write")
    parser.add_argument("--weights_only", action="store_true", help="leave out processor and tokenizer")
    parser.add_argument("--allow_pickle", action="store_true", help="read pytorch_model.bin, if you trust its source")
    _add_push(parser)


def _convert(args: Namespace) -> None:
    from .convert import convert_checkpoint  # takes seconds to import, as do the others

    config = convert_checkpoint(
        args.source, args.destination, weights_only=args.weights_only, allow_pickle=args.allow_pickle
    )
    print(f"{config.architectures[0]} ({config.dtype}) is in {args.destination}.")
    _push(args)


def _add_assemble(parser: Parser) -> None:
    parser.add_argument("--language_model", required=True, help="folder or Hub id of a text language model")
    parser.add_argument("--vision_tower", required=True, help="folder or Hub id of a SigLIP or CLIP model")
    parser.add_argument("--aligner", required=True, choices=ALIGNERS, help="gated_mlp: Math-PUMA_Qwen2VL; mlp: LLaVA")
    parser.add_argument("--seed", type=int, default=0, help="seed of the aligner")
    parser.add_argument("--chat_template", type=Path, help="file of a template that writes <|image|> for an image")
    parser.add_argument("--trust_remote_code", action="store_true", help="run code that comes with the models")
    parser.add_argument("destination", help="folder to write")


def _assemble(args: Namespace) -> None:
    from .assemble import assemble, describe_assembled

    model = assemble(
        args.language_model,
        args.vision_tower,
        args.aligner,
        args.destination,
        seed=args.seed,
        chat_template=args.chat_template.read_text(encoding="utf-8") if args.chat_template else None,
        trust_remote_code=args.trust_remote_code,
    )
    print(describe_assembled(model, args.destination, args.chat_template or args.language_model))


def _add_merge(parser: Parser) -> None:
    parser.add_argument("adapter", help="folder of the adapters, or their id on the Hub")
    parser.add_argument("destination", help="folder to write")
    _add_push(parser)
    parser.add_argument("--trust_remote_code", action="store_true", help="run code that comes with the base model")


def _merge(args: Namespace) -> None:
    from .merge import merge_adapter

    model = merge_adapter(args.adapter, args.destination, trust_remote_code=args.trust_remote_code)
    print(f"{type(model).__name__} ({model.dtype}) is in {args.destination}.")
    _push(args)


# Name → what adds its options, what runs it, and what it does
COMMANDS = {
    "convert": (_add_convert, _convert, "Converts an original Math-PUMA checkpoint to a native one."),
    "assemble": (_add_assemble, _assemble, "Joins a text model and a vision tower by a fresh aligner."),
    "merge": (_add_merge, _merge, "Merges adapters into their base model."),
}
