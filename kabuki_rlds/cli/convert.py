"""The command `convert`: converts datasets to one Kabuki HDF5 file."""

from __future__ import annotations

import argparse
import os
import sys

from kabuki_rlds.cli import source_options
from kabuki_rlds.cli.terminal import PROG, Commands, Parser, import_tensorflow
from kabuki_rlds.commands.convert import convert
from kabuki_rlds.data.schema import LEFT_OUT
from kabuki_rlds.data.units import format_bytes
from kabuki_rlds.errors import printable
from kabuki_rlds.files.paths import local_path


def add(commands: Commands, common: Parser) -> None:
    """Adds the command `convert` and its arguments to the parser."""
    command = commands.add_parser(
        "convert",
        parents=[common],
        help="convert datasets to one Kabuki HDF5 file",
        description="Converts one or more datasets into one Kabuki HDF5 file. If the conversion fails, no partial file "
        "is left.",
        epilog="Example: kabuki-rlds convert ~/tensorflow_datasets/hopper/1.0.0 hopper.hdf5 --split 'train[:10%]'",
    )
    command.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="folder of a TFDS dataset (…/1.0.0), a TFDS name (d4rl_mujoco_hopper/v2-medium), an EnvLogger log or "
        "a folder of logs, a Kabuki file, or demonstrations in the layout of D4RL, Minari, robomimic, LIBERO, "
        "robosuite or ALOHA (a file, a folder, 'data/*.hdf5'); several sources are concatenated in this order",
    )
    command.add_argument("dest", metavar="DEST.hdf5", help="the file to write")
    source_options.add_reading_options(command)
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
        help="any HDF5 library can read gzip; only h5py can read lzf (default: gzip)",
    )
    command.add_argument(
        "--conform",
        action="store_true",
        help="correct discounts and flags that break the rules on episode ends; without this option they are kept, "
        "with a warning",
    )
    command.add_argument(
        "--resume",
        action="store_true",
        help="save finished parts in DEST.hdf5.parts during the conversion, and reuse the parts that an interrupted "
        "call with the same sources and options left there; the resulting file is the same",
    )
    source_options.add_writing_options(command, "DEST.hdf5")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command and returns the exit code."""
    with_tensorflow = source_options.rlds_among(arguments.sources, arguments.data_dir)
    if with_tensorflow and (arguments.overwrite or not os.path.lexists(local_path(arguments.dest))):
        import_tensorflow()
    result = convert(
        arguments.sources,
        arguments.dest,
        images=arguments.images,
        compression=arguments.compression,
        conform=arguments.conform,
        resume=arguments.resume,
        **source_options.reading_arguments(arguments),
        **source_options.writing_arguments(arguments),
    )
    for violation in result.warnings:
        remedy = "" if violation.rule == 2 else ", --conform changes it"
        print(printable(f"{PROG}: warning: the source breaks {violation}; kept as it is{remedy}"), file=sys.stderr)
    lost = sum(loss.count for loss in result.skipped)
    if lost:
        what = "1 episode was" if lost == 1 else f"{lost:,} episodes were"
        print(f"{PROG}: warning: {what} left out (empty or damaged); inspect names them", file=sys.stderr)
    if not arguments.quiet:
        for field, how in result.derived.items():
            print(printable(f"{field}: {how}" if LEFT_OUT in how else f"{field}: not in the source, {how}"))
        for field, count in result.changed.items():
            print(f"{field}: {count:,} rows changed to conform")
        print(f"last rows: {result.last_rows}")
        path, size = printable(str(result.path)), format_bytes(result.num_bytes)
        print(f"{path}: {result.num_steps:,} steps in {result.num_episodes:,} episodes, {size}")
    return 0
