"""`python -m ppssl.bench step|loader|ranks|ema|convert|recompute|growth|scaling`: figures for people, and last a JSON line for machines."""
import argparse
import json
import os
import sys

from ppssl.bench import convert, ema, growth, loader, ranks, recompute, scaling, step
from ppssl.command import refusing
from ppssl.errors import BadRequest

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


class Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise BadRequest(f"command line: {message}; see python -m ppssl.bench --help")


def parser() -> Parser:
    top = Parser(prog="python -m ppssl.bench", description="Benchmarks: warm-up, then rounds in which both sides take turns; medians.")
    commands = top.add_subparsers(dest="command", required=True, parser_class=Parser)
    timed = commands.add_parser("step", help="training step of a method")
    timed.add_argument("--model", default="mae_vit_base_patch16", help=f"'all' or one of {', '.join(step.RECIPES)}")
    timed.add_argument("--batch_size", type=int, default=4)
    timed.add_argument("--threads", type=int, default=CORES)
    timed.add_argument("--against", choices=["torch"], help="also time the same step in PyTorch")
    read = commands.add_parser("loader", help="images per second and core, decoded, cropped and resized")
    read.add_argument("--num_workers", type=int, default=0, help="0 loads in the process itself: one core")
    read.add_argument("--images", type=int, default=256, help="500x375 JPEGs of a pass")
    several = commands.add_parser("ranks", help="two ranks of one thread against one, on CPU")
    several.add_argument("--config", default="mae/demo_pretrain", help="recipe of the runs")
    average = commands.add_parser("ema", help="one update of a teacher's weights")
    average.add_argument("--model", default="bootmae_base")
    converted = commands.add_parser("convert", help="the converter against copying the file twice")
    converted.add_argument("--model", default="mae_vit_base_patch16")
    memory = commands.add_parser("recompute", help="peak memory of a step with and without --recompute")
    memory.add_argument("--model", default="mae_vit_base_patch16")
    memory.add_argument("--batch_size", type=int, default=16)
    grown = commands.add_parser("growth", help="how cost grows with batch, image size, workers, parameters; drawn as a PNG")
    grown.add_argument("-o", "--output", default="growth.png")
    commands.add_parser("scaling", help="a model of what GPU nodes would do with each recipe")
    for command in commands.choices.values():
        command.add_argument("--repeats", type=int, default=7, help="rounds that count")
    return top


def measure(args: argparse.Namespace) -> list[dict]:
    if args.command == "step":
        os.environ["MKL_NUM_THREADS"] = str(args.threads)
        models = step.METHODS if args.model == "all" else [args.model]
        return [step.run(m, args.batch_size, args.threads, args.repeats, args.against == "torch") for m in models]
    if args.command == "loader":
        return loader.run(args.images, args.num_workers, args.repeats)
    if args.command == "ranks":
        return ranks.run(args.config, args.repeats)
    if args.command == "ema":
        return ema.run(args.model, args.repeats)
    if args.command == "convert":
        return convert.run(args.repeats, args.model)
    if args.command == "recompute":
        return recompute.run(args.model, args.batch_size, args.repeats)
    return growth.run(args.repeats, args.output) if args.command == "growth" else scaling.run()


@refusing()
def main() -> int:
    rows = measure(parser().parse_args())
    for row in rows:
        print(row["case"])
        print("\n".join(f"  {name:<20} {value}" for name, value in row.items() if name != "case"))
    print(json.dumps(rows if len(rows) > 1 else rows[0]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
