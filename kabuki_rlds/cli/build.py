"""The command `build`: converts Kabuki files, or other sources, to an RLDS dataset."""

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
    """Adds the command `build` and its arguments to the parser."""
    command = commands.add_parser(
        "build",
        parents=[common],
        help="convert HDF5 files to an RLDS dataset",
        description="Builds an RLDS dataset from Kabuki HDF5 files or from any other source of convert. TFDS and all "
        "RLDS readers can read the dataset. Its features are those of the original RLDS dataset. If the files do not "
        "come from RLDS, the features are derived from their arrays.",
        epilog="Example: kabuki-rlds build train=a.hdf5 val=b.hdf5 --out ~/tensorflow_datasets --name reach",
    )
    command.add_argument(
        "files",
        metavar="FILE",
        nargs="+",
        help="a Kabuki file or any other source of convert, or SPLIT=FILE; the default of SPLIT is train, or the "
        "splits of the recipe; several files of one split are concatenated in this order",
    )
    command.add_argument("--out", metavar="DIR", help="write the dataset to DIR/NAME/VERSION")
    command.add_argument(
        "--name",
        metavar="NAME[/CONFIG]",
        help="name of the dataset (default: the dataset name stored in the first file, or else its file name)",
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
        help="image format for images that are stored as arrays; jpeg is lossy (default: the format of the original "
        "image files, or png if it is unknown)",
    )
    command.add_argument("--images", choices=["png", "jpeg"], help=argparse.SUPPRESS)
    source_options.add_writing_options(command, "the dataset")
    command.set_defaults(run=run, fail=command.error)


def run(arguments: argparse.Namespace) -> int:
    """Runs the command and returns the exit code."""
    if arguments.out is None and arguments.data_dir is None:
        arguments.fail("the following arguments are required: --out")
    # Deprecated: without --out, the dataset is written to --data-dir.
    data_dir = None if arguments.out is None else arguments.data_dir
    files: dict[str, list[str]] = {}
    named = False
    for text in arguments.files:
        split, equals, file = text.partition("=")
        # A file name may contain =.
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
