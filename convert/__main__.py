"""`python -m convert`: weights and training states between PyTorch and Paddle, inspected and verified."""
import argparse
import dataclasses
import json
import sys
from pathlib import Path

import ppssl  # noqa: F401 - prepares the process before Paddle is imported
from convert.contents import Contents, read
from convert.conversion import official_weights, to_paddle, to_torch, write_paddle, write_torch
from convert.formats import Refused
from convert.inspect import inspect, nonfinite, tensors_in
from convert.progress import Progress
from convert.recognise import BY_ORDER, Network
from convert.report import inspection_lines, report_lines
from ppssl.errors import BadRequest


class Parser(argparse.ArgumentParser):
    """argparse that says what is wrong in one line, as every other refusal here."""

    def error(self, message: str):
        raise Refused(f"command line: {message}; see python -m convert --help")


WRITING = {
    "to-paddle": "a PyTorch file for Paddle: -o X.pdparams, X.safetensors, or else a checkpoint that --resume continues",
    "to-torch": "a Paddle file or run for the authors' PyTorch code: -o X.pth or X.safetensors",
    "fold-tec": "TEC's token MLP folded into the class token, for any plain ViT in PyTorch: -o X.pth or X.safetensors",
}


def parser() -> Parser:
    top = Parser(prog="python -m convert", description=__doc__.split("`: ")[1],
                 epilog="Exit codes: 0 done, 1 the verification failed, 2 refused (one line says why and the fix).")
    commands = top.add_subparsers(dest="command", required=True, parser_class=Parser)
    for name, help in WRITING.items():
        command = commands.add_parser(name, help=help, description=help)
        command.add_argument("file", type=Path)
        command.add_argument("-o", "--output", type=Path, required=True, help="file to write")
        command.add_argument("--overwrite", action="store_true", help="replace the output if it exists")
    look = commands.add_parser("inspect", help="what a file holds, and the next command")
    look.add_argument("file", type=Path)
    check = commands.add_parser("verify", help="run the network in both frameworks and compare every stage")
    check.add_argument("file", type=Path)
    check.add_argument("converted", type=Path, nargs="?", help="the converted file (default: converted in memory)")
    check.add_argument("--image", type=Path, help="picture to run on (default: random numbers)")
    check.add_argument("--picture", type=Path, help="write the reconstructions of both frameworks side by side (PNG)")
    for command in commands.choices.values():
        command.add_argument("--model", help="registered model that the file has to be (default: recognised)")
    for command in (look, check):
        command.add_argument("--json", action="store_true", help="print JSON instead of text")
    return top


def convert(args: argparse.Namespace) -> int:
    """to-paddle and to-torch."""
    refuse_same_file(args.file, args.output)
    found = read(args.file, args.model)
    network = found.main.network if found.recipe is None or args.model else None
    if network and network.naming is BY_ORDER:
        prove_order(network, args)
    notes = write(found, args)
    for note in (*notes, *warnings(found)):
        print(f"note: {note}", file=sys.stderr)
    held = f"{network.title}, {len(network.official)} tensors" if network else "the file it was converted from"
    print(f"{args.output}: {held}, {args.output.stat().st_size / 1e6:,.1f} MB")
    print(f"check it with: python -m convert verify {args.file} {args.output}")
    return 0


def prove_order(network: Network, args: argparse.Namespace) -> None:
    """Print a mapping that rests on order alone, and run the network in both frameworks. Raises Refused where they differ."""
    from convert.verify import verify

    print("matched by order, with shapes checked:")
    print("\n".join(f"  {theirs} -> {ours or 'carried along'}" for theirs, ours in network.keys.items()))
    report, _ = verify(args.file, None, args.model, None)
    if not report.passed:
        raise Refused(f"{args.file}: matched by order, and {report.first_difference} differs between the frameworks: nothing was written")
    print("both frameworks compute the same with it")


def write(found: Contents, args: argparse.Namespace) -> tuple[str, ...]:
    """Write the output; returns what the user should know."""
    if args.command == "to-paddle":
        converted = to_paddle(found)
        progress = Progress(sum(t.nbytes for t in converted.tensors.values()), found.loaded)
        write_paddle(args.output, converted, args.overwrite, progress)
        return converted.notes
    tree, notes = to_torch(found)
    progress = Progress(sum(t.nbytes for _, t in tensors_in(tree)), found.loaded)
    return notes + write_torch(args.output, tree, args.overwrite, progress)


def fold(args: argparse.Namespace) -> int:
    """fold-tec: an encoder that a plain ViT loads, whatever of TEC the file holds and in whichever framework."""
    from ppssl.models.tec import fold_token_mlp

    refuse_same_file(args.file, args.output)
    found = read(args.file, args.model)
    weights = fold_token_mlp(official_weights(found.main))
    write_torch(args.output, weights, args.overwrite, Progress(sum(t.nbytes for t in weights.values()), found.loaded))
    print(f"{args.output}: encoder of a plain ViT, {len(weights)} tensors, {args.output.stat().st_size / 1e6:,.1f} MB")
    print(f"check it with: python -m convert verify {args.output}")
    return 0


def warnings(found: Contents) -> list[str]:
    bad = nonfinite(dict(tensors_in(found.tree)), found)
    if not bad:
        return []
    return [f"{sum(bad.values())} numbers are NaN or infinite, the first in {next(iter(bad))}: this run had diverged"]


def refuse_same_file(first: Path, second: Path) -> None:
    if second.exists() and first.exists() and first.samefile(second):
        raise Refused(f"{second} is the input itself; choose another -o")


def show(args: argparse.Namespace) -> int:
    """inspect."""
    found = inspect(read(args.file, args.model))
    print(json.dumps(dataclasses.asdict(found), indent=2) if args.json else "\n".join(inspection_lines(found)))
    return 0


def check(args: argparse.Namespace) -> int:
    """verify: 0 where the frameworks agree, else 1."""
    from convert.verify import verify

    report, run = verify(args.file, args.converted, args.model, args.image)
    if args.json:
        verdict = {"passed": report.passed, "first_difference": report.first_difference}
        print(json.dumps(dataclasses.asdict(report) | verdict, indent=2))
    else:
        print("\n".join(report_lines(report)))
    if args.picture:
        from convert.picture import write_picture

        write_picture(args.picture, read(args.file, args.model), run)
    return 0 if report.passed else 1


COMMANDS = {"to-paddle": convert, "to-torch": convert, "fold-tec": fold, "inspect": show, "verify": check}


def main(argv: list[str] | None = None) -> int:
    try:
        args = parser().parse_args(argv)
        return COMMANDS[args.command](args)
    except (Refused, BadRequest) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted; nothing was written", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
