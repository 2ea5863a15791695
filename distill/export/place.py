"""Where an exported student lies, as the programs that load it call the place."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """A folder, by its name in the current directory, or a repository USER/NAME of the Hub at a
    revision (default: main)."""

    name: str
    hub: bool = False
    revision: str | None = None

    @property
    def timm(self) -> str:
        """What `timm.create_model` takes."""
        if not self.hub:
            return f"local-dir:./{self.name}"
        return f"hf-hub:{self.name}" + (f"@{self.revision}" if self.revision else "")

    @property
    def transformers(self) -> str:
        """The first arguments of a `from_pretrained`, as Python."""
        if not self.hub:
            return quoted("./" + self.name)
        return quoted(self.name) + self._revision

    @property
    def folder(self) -> str:
        """A line of Python that sets `folder` to where the files lie on this machine."""
        if not self.hub:
            return f"folder = {quoted('./' + self.name)}"
        return (
            "from huggingface_hub import snapshot_download\n\n"
            f"folder = snapshot_download({quoted(self.name)}{self._revision})"
        )

    @property
    def _revision(self) -> str:
        return f", revision={quoted(self.revision)}" if self.revision else ""


def quoted(text: str) -> str:
    """The text as a Python string in double quotes."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
