"""The command `build`: Kabuki files, or demonstrations of others, to an RLDS dataset."""

from __future__ import annotations

import argparse
import os

from kabuki_rlds.cli import source_options
from kabuki_rlds.cli.terminal import Commands, Parser, import_tensorflow
from kabuki_rlds.data.units import format_bytes
from kabuki_rlds.errors import printable
from kabuki_rlds.files.paths import local_path
from kabuki_rlds.formats.locate import locate


def add(commands: Commands, common: Parser) -> None:
    """Adds the command, with all that it takes."""
    command = commands.add_parser(
        "build",
        parents=[common],
        help="HDF5 files to an RLDS dataset",
        description="Builds an RLDS dataset, which TFDS and all RLDS readers read, from Kabuki HDF5 files, or straight "
        "from anything else that convert takes. The dataset gets the features that the files came from, or else ones "
        "derived from their arrays.",
        epilog="Example: kabuki-rlds build train=a.hdf5 val=b.hdf5 --out ~/tensorflow_datasets --name reach",
    )
    command.add_argument(
        "files",
        metavar="FILE",
        nargs="+",
        help="a Kabuki file, or any other source of convert, or SPLIT=FILE; without SPLIT it is train, or what the "
        "recipe says; several of one split are stitched in this order",
    )
    command.add_argument("--out", metavar="DIR", help="where the dataset goes: DIR/NAME/VERSION")
    command.add_argument(
        "--name",
        metavar="NAME[/CONFIG]",
        help="name of the dataset (default: what the first file says, or else is called)",
    )
    source_options.add_reading_options(command)
    command.add_argument(
        "--file-format",
        choices=["tfrecord", "array_record"],
        default="tfrecord",
        help="format of the shards (default: tfrecord)",
    )
    command.add_argument(
        "--encode",
        choices=["png", "jpeg"],
        help="how images that are stored as arrays are encoded; jpeg is lossy (default: as their original files, or "
        "png if these are not known)",
    )
    command.add_argument("--images", choices=["png", "jpeg"], help=argparse.SUPPRESS)
    source_options.add_writing_options(command, "the dataset")
    command.set_defaults(run=run, fail=command.error)


def run(arguments: argparse.Namespace) -> int:
    """Runs it, and returns the exit code."""
    if arguments.out is None and arguments.data_dir is None:
        arguments.fail("the following arguments are required: --out")
    # Without --out, --data-dir is where the dataset goes (deprecated).
    data_dir = None if arguments.out is None else arguments.data_dir
    files: dict[str, list[str]] = {}
    named = False
    for text in arguments.files:
        split, equals, file = text.partition("=")
        # A name with a = in it may be that of a file.
        if not equals or os.path.lexists(local_path(text)):
            split, file = "train", text
        else:
            named = True
        locate(file, data_dir)
        files.setdefault(split, []).append(file)
    import_tensorflow()
    from kabuki_rlds.commands.build import build

    result = build(
        files if named else files["train"],
        arguments.out,
        name=arguments.name,
        file_format=arguments.file_format,
        encode=arguments.encode,
        images=arguments.images,
        **source_options.reading_arguments(arguments),
        **source_options.writing_arguments(arguments),
    )
    if not arguments.quiet:
        splits = ", ".join(f"{split} {episodes:,}" for split, episodes in result.splits.items())
        path = printable(str(result.path))
        size = format_bytes(result.num_bytes)
        for split, last_rows in result.last_rows.items():
            print(f"{split}: last rows: {last_rows}")
        print(f"{path}: {result.num_steps:,} steps in {result.num_episodes:,} episodes ({splits}), {size}")
    return 0
