"""A student's folder into files of other formats, each compared with it before it is there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from distill.export.origin import read_origin
from distill.export.select import Found
from distill.files import sync, writing
from distill.formats.about import (
    DYNAMIC,
    About,
    about_path,
    check_format,
    describe,
    digest,
    file_name,
)
from distill.formats.calibration import calibration_images
from distill.formats.encoder import load_exported
from distill.formats.extras import quiet, require
from distill.formats.probe import QuantizationProbe
from distill.formats.verify import LARGEST_ERROR, compare, largest_error, sizes_to_compare
from students import UserError, load_student


class FormatWriter:
    """Writes FOLDER/FORMAT/FILE and its JSON for one student.

    Args:
        found: the student, and its run if any.
        target: where the formats' folders go (default: the student's folder).
        calibration: a folder of images for int8-static (default: the run's data).
        probe: whether int8 files are probed (default: if the student's run was validated).
        say: told in a line what is going on.

    Raises:
        UserError: if the folder holds no student.
    """

    def __init__(
        self,
        found: Found,
        *,
        target: Path | None = None,
        calibration: str | None = None,
        probe: bool | None = None,
        say: Callable[[str], None] = lambda line: None,
    ):
        self.found, self.calibration, self.say = found, calibration, say
        self.target = found.folder if target is None else target
        self.student = load_student(found.folder).eval().requires_grad_(False)
        if probe is None:
            probe = found.recipe is not None and found.recipe.validate is not None
        self._probe = QuantizationProbe(found, self.student, say=say) if probe else None
        self._sizes = read_origin(found.folder, found.recipe).image_sizes
        self._float_onnx: Path | None = None

    def write(self, form: str, quantize: str | None = None, size: int | None = None) -> Path:
        """One file, compared with the student, probed if it is quantised; returns its path.

        Args:
            form: a name of FORMATS.
            quantize: a name of QUANTIZATIONS, or None for float32.
            size: of a format of one size, and that at which others are compared (default: the
                student's own).

        Raises:
            UserError: if there is no such format, the size is no multiple of the stride, a library
                is missing, there are no calibration images, or the file is not what the student
                is; it is then not there.
        """
        check_format(form, quantize)
        size = self.check_size(size)
        name = file_name(form, quantize, size)
        folder = self.target / form
        self.say(f"{folder / name}: writing")
        with writing(folder), _beside(folder, name) as made:
            about = describe(self.student, form, quantize, size)
            about["weights"] = digest(self.found.folder)
            with quiet():
                about |= self._produce(made, form, quantize, size)
            about["bytes"] = made.stat().st_size
            about_path(made).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
            self._judge(made, about, size)
            about_path(made).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        if form == "onnx" and quantize is None:
            self._float_onnx = folder / name
        return folder / name

    def check_size(self, size: int | None) -> int:
        """The size, or the student's own for None.

        Raises:
            UserError: if it is no multiple of the stride.
        """
        size, stride = self.student.size if size is None else size, self.student.stride
        if size < stride or size % stride:
            below = max(size // stride, 1) * stride
            raise UserError(
                f"--size {size} is no multiple of {self.student.arch}'s stride {stride}: take "
                + (f"{below} or {below + stride}" if size > stride else f"{below}")
            )
        return size

    def _produce(self, path: Path, form: str, quantize: str | None, size: int) -> About:
        """Write the file; what is known of its quantization."""
        images, told = None, None
        if quantize == "int8-static":
            images, told = calibration_images(self.found, size, self.calibration)
        if form == "torch-export":
            from distill.formats.torch_export import write_torch_export

            method = write_torch_export(path, self.student, quantize)
        elif form == "executorch":
            from distill.formats.executorch_format import write_executorch

            method = write_executorch(path, self.student, size, quantize, images)
        else:
            from distill.formats.onnx_format import quantize_onnx, write_onnx

            if quantize is None:
                write_onnx(path, self.student)
                return {}
            source = self._float_onnx
            if source is None:
                source = path.with_name("float.onnx")  # thrown away with its folder
                write_onnx(source, self.student)
            method = quantize_onnx(source, path, quantize, images)
        if quantize is None:
            return {}
        about: About = {"method": method}
        if images is not None:
            about["calibration"] = {"images": len(images), "size": size, "source": told}
        return about

    def _judge(self, path: Path, about: About, size: int) -> None:
        """Compare and probe the file; add `verification` and `probes`.

        Raises:
            UserError: if a float file is not within LARGEST_ERROR, or any gives no numbers.
        """
        encoder = load_exported(path)
        others = self._sizes if DYNAMIC[about["format"]] else None
        sizes = sizes_to_compare(self.student, size, others)
        about["verification"] = compare(encoder, self.student, sizes)
        error = largest_error(about["verification"])
        limit = LARGEST_ERROR if about["quantization"] is None else float("inf")
        if error > limit or error == float("inf"):
            raise UserError(
                f"{path.name} is not what {self.found.folder} is: features differ by {error:.2g}, "
                f"and {LARGEST_ERROR:g} is the most for float32; it was not written"
                if limit < float("inf")
                else f"{path.name} gives features that are not finite numbers, or of another "
                "shape; it was not written"
            )
        if about["quantization"] is None:
            return
        about["probes"] = None
        if self._probe is not None:
            self.say(f"{path.name}: probes before and after")
            about["probes"] = self._probe(encoder, size)


def export_formats(
    found: Found,
    formats: Sequence[str],
    quantize: Sequence[str] = (),
    *,
    sizes: Sequence[int] = (),
    calibration: str | None = None,
    probe: bool | None = None,
    target: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> list[Path]:
    """Files of a student in each format, in float32 and in each quantization, each compared with
    it; nothing is written if any of the names is wrong or a library is missing.

    Args:
        found: the student, as `distill.export.select.find_student` finds it.
        formats: names of FORMATS.
        quantize: names of QUANTIZATIONS.
        sizes: for formats of one size, a file each (default: the student's own).
        calibration, probe, target, say: see FormatWriter.

    Raises:
        UserError: as `FormatWriter` and its `write`.
    """
    kinds: list[str | None] = [None, *dict.fromkeys(quantize)]
    formats = list(dict.fromkeys(formats))
    for form in formats:
        for kind in kinds:
            check_format(form, kind)
    for form in formats:
        if form != "torch-export":
            require(form, f"the format {form}")
        elif len(kinds) > 1:
            require("int8", "torch-export in int8")
    writer = FormatWriter(found, target=target, calibration=calibration, probe=probe, say=say)
    for size in sizes:
        writer.check_size(size)
    return [
        writer.write(form, kind, size)
        for form in formats
        for kind in kinds
        for size in ([None] if DYNAMIC[form] or not sizes else list(dict.fromkeys(sizes)))
    ]


@contextmanager
def _beside(folder: Path, name: str) -> Iterator[Path]:
    """A path of this name in a new folder, from where it and its JSON are moved to `folder`; if the
    block fails, `folder` is as it was."""
    existed = folder.exists()
    beside = folder / f".{name}.new"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        yield beside / name
        # The JSON says that the file is whole: it goes first and comes last.
        about_path(folder / name).unlink(missing_ok=True)
        for made in (beside / name, about_path(beside / name)):
            sync(made)
            made.replace(folder / made.name)
        sync(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        if not existed and not any(folder.iterdir()):
            folder.rmdir()
