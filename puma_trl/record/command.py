"""`puma-trl push`: its command line, which is read before the libraries that a push needs."""

from ..entry import Parser


def main(argv: list[str] | None = None) -> None:
    """Pushes the model that the command line names."""
    parser = Parser(prog="puma-trl", description="Pushes a trained model to the Hub.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("push", help="push a folder that a run has written")
    command.add_argument("folder", help="output folder of a run")
    command.add_argument("--repo_id", help="repository (default: the recipe's hub_model_id, or the folder's name)")
    command.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    args = parser.parse_args(argv)
    from .hub import push  # takes seconds to import

    print(f"Pushed to {push(args.folder, args.repo_id, args.private)}.")
