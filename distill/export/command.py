"""`distill export`: a finished student into a folder of its own, or to the Hub."""

from __future__ import annotations

import argparse
from pathlib import Path

DESCRIPTION = (
    "Copy a finished student into a folder that timm, transformers and a file of torch alone load "
    "without this project, or publish it on the Hugging Face Hub, with a card that says what it "
    "is, how good, how to load it and what it is not good for."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `distill export`."""
    parser.add_argument(
        "student",
        metavar="RUN[/STAGE/STUDENT]",
        help="a student's folder, or that of a run which has one finished student",
    )
    target = parser.add_mutually_exclusive_group()
    target.add_argument("--to", metavar="FOLDER", help="copy the complete folder there")
    target.add_argument("--push", metavar="USER/NAME", help="publish it on the Hub, in one commit")
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="--to: replace a folder that is not empty and no exported student",
    )
    parser.add_argument("--private", action="store_true", help="--push: of a repository made now")
    parser.add_argument(
        "--revision", metavar="NAME", help="--push: a branch, made if it is not there"
    )
    parser.add_argument("--message", metavar="TEXT", help="--push: of the commit")
    parser.add_argument(
        "--dry-run", action="store_true", help="list what would be written or sent, with sizes"
    )


def export_command(arguments: argparse.Namespace) -> None:
    """What `distill export` does; prints what it wrote or sent.

    Raises:
        UserError: if there is no such student, an option is of no use with the others, the folder
            may not be replaced, or the Hub refuses.
    """
    from distill.cache.account import shown_bytes
    from distill.export.contents import check_target, complete, copy, size
    from distill.export.hub import check_name, push
    from distill.export.origin import read_origin
    from distill.export.place import Place
    from distill.export.select import find_student
    from distill.formats.about import unfit_files
    from distill.lineage import warnings
    from students import UserError

    if not (arguments.to or arguments.push):
        raise UserError("say where to: --to FOLDER or --push USER/NAME")
    hub_only = ("private", "revision", "message")
    unused = hub_only if arguments.to else ("overwrite",)
    for name in unused:
        if getattr(arguments, name):
            raise UserError(f"--{name} goes with --{'push' if arguments.to else 'to'} alone")
    found = find_student(arguments.student)
    origin = read_origin(found.folder, found.recipe)
    if arguments.to:
        target = Path(arguments.to).expanduser()
        check_target(target, found, arguments.overwrite)
        place = Place(target.resolve().name)
    else:
        check_name(arguments.push, arguments.revision)
        place = Place(arguments.push, hub=True, revision=arguments.revision)
    files = complete(found, place)
    for line in warnings(origin.teachers):
        print(f"licence of {origin.stage}/{origin.name}: {line}")
    for file, reason in unfit_files(found.folder).items():
        print(f"left out: {file.relative_to(found.folder)} ({reason}); export it again")
    total = shown_bytes(sum(map(size, files.values())))
    where = arguments.to or arguments.push
    if arguments.dry_run:
        for name, content in files.items():
            print(f"{shown_bytes(size(content)):>8}  {name}")
        print(f"{len(files)} files of {total} would go to {where}")
    elif arguments.to:
        copy(files, target)
        print(f"{where}: {len(files)} files of {total}")
    else:
        message = arguments.message or f"{origin.run}: {origin.stage}/{origin.name}"
        pushed = push(
            files,
            arguments.push,
            private=arguments.private,
            revision=arguments.revision,
            message=message,
        )
        print(f"{pushed.url}: {len(files)} files of {total}, commit {pushed.commit}")
