"""The command line."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import NoReturn

from kabuki_rlds import KabukiError, __version__, compare, convert, inspect, validate
from kabuki_rlds.convention import FILLABLE
from kabuki_rlds.formats.detect import locate
from kabuki_rlds.inspect import to_text
from kabuki_rlds.sizes import human_bytes

_PROG = "kabuki-rlds"


class _Terminated(BaseException):
    """SIGTERM: like Ctrl-C, it must undo what is half done."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Says what is wrong with the call in one line."""
        print(f"{_PROG}: error: {message}; see {self.prog} --help", file=sys.stderr)
        sys.exit(2)


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        return f"{_PROG}: {level}{record.getMessage()}"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Returns:
      0 done, 1 it failed. Wrong usage exits with 2.
    """
    arguments = _parser().parse_args(argv)
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter())
    log = logging.getLogger("kabuki_rlds")
    log.handlers, log.propagate = [handler], False
    log.setLevel(logging.WARNING if getattr(arguments, "quiet", False) else logging.INFO)
    previous = signal.signal(signal.SIGTERM, _terminate)
    try:
        result: int = arguments.run(arguments)
        sys.stdout.flush()
        return result
    except KabukiError as e:
        return _failed(str(e), arguments)
    except (KeyboardInterrupt, _Terminated):
        writes = arguments.run in (_convert, _build)
        return _failed("interrupted" + ("; nothing was written" if writes else ""), arguments)
    except BrokenPipeError:
        # The reader of our output, `head` perhaps, has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as e:
        return _failed(f"{e.filename or 'the system'}: {e.strerror or e}", arguments)
    except Exception as e:
        lines = str(e).strip().splitlines()
        what = f"{type(e).__name__}: {lines[0]}" if lines else type(e).__name__
        return _failed(f"{what}; this is a fault of the tool, --debug shows where", arguments)
    finally:
        signal.signal(signal.SIGTERM, previous)


def _failed(message: str, arguments: argparse.Namespace) -> int:
    if arguments.debug:
        traceback.print_exc()
    print(f"{_PROG}: error: {message}", file=sys.stderr)
    return 1


def _terminate(number: int, frame: FrameType | None) -> None:
    raise _Terminated


def _parser() -> argparse.ArgumentParser:
    common = _Parser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show a traceback with an error")
    parser = _Parser(
        prog=_PROG,
        description="Offline-RL datasets between RLDS and HDF5, in the Kabuki format.",
        epilog=f"{_PROG} COMMAND --help tells more of a command.",
    )
    parser.add_argument("--version", action="version", version=f"{_PROG} {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)

    command = commands.add_parser(
        "convert",
        parents=[common],
        help="datasets to one Kabuki HDF5 file",
        description="Converts one or more datasets into one Kabuki HDF5 file. It appears whole, or not at all.",
        epilog="Example: kabuki-rlds convert ~/tensorflow_datasets/hopper/1.0.0 hopper.hdf5 --split 'train[:10%]'",
    )
    command.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="folder of a TFDS dataset (…/1.0.0), a TFDS name (d4rl_mujoco_hopper/v2-medium), or a Kabuki file; "
        "several are stitched in this order",
    )
    command.add_argument("dest", metavar="DEST.hdf5", help="the file to write")
    command.add_argument("--split", help="split of the TFDS datasets, like train[:10%%] or train+test (default: train)")
    command.add_argument(
        "--data-dir", metavar="DIR", help="where TFDS names are looked up (default: ~/tensorflow_datasets)"
    )
    command.add_argument(
        "--images",
        choices=["arrays", "encoded"],
        default="arrays",
        help="store images as arrays of pixels, or keep the bytes of the image files (default: arrays)",
    )
    command.add_argument(
        "--compression",
        choices=["gzip", "lzf", "none"],
        default="gzip",
        help="gzip is read by any HDF5 library, lzf by h5py alone (default: gzip)",
    )
    command.add_argument(
        "--fill",
        metavar="FIELD=VALUE",
        action="append",
        type=_fill,
        default=[],
        help="a constant for a required field that a source lacks, like reward=0",
    )
    command.add_argument(
        "--conform",
        action="store_true",
        help="change discounts and flags that break the rules on how episodes end; without it they are kept",
    )
    command.add_argument("--overwrite", action="store_true", help="replace DEST.hdf5 if it is there")
    command.add_argument("--quiet", action="store_true", help="print warnings and errors only")
    command.set_defaults(run=_convert)

    command = commands.add_parser(
        "build",
        parents=[common],
        help="Kabuki files to an RLDS dataset",
        description="Builds an RLDS dataset, which TFDS and all RLDS readers read, from Kabuki HDF5 files. The dataset "
        "gets the features that the files came from, or else ones derived from their arrays.",
    )
    command.add_argument(
        "files",
        metavar="FILE",
        nargs="+",
        help="a Kabuki HDF5 file, or SPLIT=FILE; without SPLIT it is train; "
        "several of one split are stitched in this order",
    )
    command.add_argument("--data-dir", metavar="DIR", required=True, help="where the dataset goes: DIR/NAME/VERSION")
    command.add_argument(
        "--name",
        metavar="NAME[/CONFIG]",
        help="name of the dataset (default: what the first file says, or else is called)",
    )
    command.add_argument(
        "--file-format",
        choices=["tfrecord", "array_record"],
        default="tfrecord",
        help="format of the shards (default: tfrecord)",
    )
    command.add_argument(
        "--images",
        choices=["png", "jpeg"],
        default="png",
        help="how images that are stored as arrays are encoded; jpeg is lossy (default: png)",
    )
    command.add_argument("--overwrite", action="store_true", help="replace the dataset if it is there")
    command.add_argument("--quiet", action="store_true", help="print warnings and errors only")
    command.set_defaults(run=_build)

    command = commands.add_parser(
        "validate",
        parents=[common],
        help="check a file against each rule of the format",
        description="Checks a file against each rule of the Kabuki format, and reads every row of every field. "
        "Exits with 0 if it is valid, else with 1 and each broken rule: which field, which rows. --against compares "
        "it with what it came from, bit by bit, and exits with 1 where an episode is lost, added or changed.",
        epilog="Example: kabuki-rlds validate hopper.hdf5 --against ~/tensorflow_datasets/hopper/1.0.0",
    )
    command.add_argument("file", metavar="FILE", help="a Kabuki HDF5 file")
    command.add_argument(
        "--against",
        metavar="SOURCE",
        nargs="+",
        help="the datasets that the file was converted from, in their order, as convert takes them",
    )
    command.add_argument("--split", help="with --against: the split that was converted (default: train)")
    command.add_argument("--data-dir", metavar="DIR", help="with --against: where TFDS names are looked up")
    command.set_defaults(run=_validate)

    command = commands.add_parser(
        "inspect",
        parents=[common],
        help="what is in a file",
        description="Prints the fields, episodes, lengths, returns and endings of a file, its size and its sources.",
    )
    command.add_argument("file", metavar="FILE", help="a Kabuki HDF5 file")
    command.add_argument("--json", action="store_true", help="print one JSON object")
    command.set_defaults(run=_inspect)

    command = commands.add_parser(
        "demo",
        parents=[common],
        help="record a real environment, convert, validate, inspect, and read it back",
        description="Records about 20,000 steps of Gymnasium's MuJoCo Hopper with EnvLogger as an RLDS dataset, "
        "converts it to HDF5, validates and inspects the file, and reads it with plain h5py.",
    )
    command.add_argument(
        "dir", metavar="DIR", nargs="?", default="kabuki-demo", help="folder to make (default: kabuki-demo)"
    )
    command.set_defaults(run=_demo)
    return parser


def _fill(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    if name not in FILLABLE:
        raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(FILLABLE)}")
    try:
        return name, float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{value!r} is no number") from None


def _convert(arguments: argparse.Namespace) -> int:
    with_tensorflow = any(locate(source, arguments.data_dir).is_dir() for source in arguments.sources)
    if with_tensorflow and (arguments.overwrite or not os.path.lexists(os.path.expanduser(arguments.dest))):
        with _no_chatter():
            import tensorflow_datasets  # noqa: F401
    result = convert(
        arguments.sources,
        arguments.dest,
        split=arguments.split,
        data_dir=arguments.data_dir,
        images=arguments.images,
        compression=arguments.compression,
        fill=dict(arguments.fill),
        conform=arguments.conform,
        overwrite=arguments.overwrite,
        progress=sys.stderr.isatty() and not arguments.quiet,
    )
    for violation in result.warnings:
        remedy = "" if violation.rule == 2 else ", --conform changes it"
        print(f"{_PROG}: warning: the source breaks {violation}; kept as it is{remedy}", file=sys.stderr)
    if not arguments.quiet:
        for field, how in result.derived.items():
            print(f"{field}: not in the source, {how}")
        for field, count in result.changed.items():
            print(f"{field}: {count:,} rows changed to conform")
        print(f"{result.path}: {result.steps:,} steps in {result.episodes:,} episodes, {human_bytes(result.num_bytes)}")
    return 0


def _build(arguments: argparse.Namespace) -> int:
    files: dict[str, list[str]] = {}
    for text in arguments.files:
        split, equals, file = text.partition("=")
        # A file whose name has a = in it is no split.
        if not equals or os.path.lexists(os.path.expanduser(text)):
            split, file = "train", text
        locate(file)
        files.setdefault(split, []).append(file)
    with _no_chatter():
        import tensorflow_datasets  # noqa: F401

        from kabuki_rlds.build import build
    result = build(
        files,
        arguments.data_dir,
        name=arguments.name,
        file_format=arguments.file_format,
        images=arguments.images,
        overwrite=arguments.overwrite,
        progress=sys.stderr.isatty() and not arguments.quiet,
    )
    if not arguments.quiet:
        splits = ", ".join(f"{split} {episodes:,}" for split, episodes in result.splits.items())
        print(
            f"{result.path}: {result.steps:,} steps in {result.episodes:,} episodes ({splits}), "
            f"{human_bytes(result.num_bytes)}"
        )
    return 0


def _validate(arguments: argparse.Namespace) -> int:
    violations = validate(arguments.file, progress=sys.stderr.isatty())
    for violation in violations:
        print(f"{arguments.file}: {violation}")
    if not violations:
        print(f"{arguments.file}: valid")
    if not arguments.against:
        return 1 if violations else 0
    if any(locate(source, arguments.data_dir).is_dir() for source in arguments.against):
        with _no_chatter():
            import tensorflow_datasets  # noqa: F401
    differences = compare(arguments.file, arguments.against, split=arguments.split, data_dir=arguments.data_dir)
    for difference in differences:
        print(f"{arguments.file}: differs from its source: {difference}")
    if not differences:
        print(f"{arguments.file}: holds what its source holds")
    return 1 if violations or differences else 0


def _inspect(arguments: argparse.Namespace) -> int:
    summary = inspect(arguments.file)
    print(summary.to_json() if arguments.json else to_text(summary))
    return 0


def _demo(arguments: argparse.Namespace) -> int:
    with _no_chatter():
        from kabuki_rlds import demo
    demo.run(arguments.dir)
    return 0


@contextlib.contextmanager
def _no_chatter() -> Iterator[None]:
    """Keeps what TensorFlow prints when it is imported off the terminal, errors excepted."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # Some of it comes from C++ before any log level counts, so the file descriptor is turned away.
    sys.stderr.flush()
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        import tensorflow as tf

        tf.get_logger().setLevel(logging.ERROR)
        logging.getLogger("absl").setLevel(logging.ERROR)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


if __name__ == "__main__":
    sys.exit(main())
