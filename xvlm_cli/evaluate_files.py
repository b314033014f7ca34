"""Where ``xvlm evaluate`` writes predictions, and whether it can."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from xvlm_cli import output as outputs
from xvlm_cli.evaluate_plan import Asked, Request
from xvlm_cli.output import Output
from xvlm_core.errors import OutputError

if TYPE_CHECKING:
    from xvlm_core.inference.checkpoints import FoundModel


@dataclass(frozen=True)
class PredictionFiles:
    """Where the predictions of each split go.

    Attributes:
        paths: by split; empty: nowhere.
        else_in: folder that serves if the first cannot be written; None: there is no other.
    """

    paths: dict[str, Path]
    else_in: Path | None = None

    def elsewhere(self) -> PredictionFiles:
        """The same names in the other folder."""
        assert self.else_in is not None
        moved = {split: self.else_in / path.name for split, path in self.paths.items()}
        return dataclasses.replace(self, paths=moved, else_in=None)

    def tried(self, out: Output) -> PredictionFiles:
        """Those of the places that can be written; nothing is written yet.

        Raises:
            OutputError: neither can.
        """
        try:
            for path in self.paths.values():
                outputs.require_writable(path)
        except OutputError as error:
            if self.else_in is None:
                raise
            out.note(f"predictions go to {self.else_in}/: {error.what} ({error.where})")
            return self.elsewhere().tried(out)
        return self


FOLDER = "evaluations"


def prediction_files(
    request: Request, found: Asked, model: FoundModel | None, out: Output
) -> PredictionFiles:
    """Where predictions are written: as typed, else beside the model that made them, else here.

    Args:
        request: what was typed.
        found: what it comes to.
        model: that answers; None: not looked for yet, only what was typed is looked at.
        out: is told of a place that will not do.

    Raises:
        OutputError: what was named is there already, or cannot be written; or one file is named
            for several splits.
    """
    if request.no_files or request.predictions is not None:
        return PredictionFiles({})
    names = {split: found.file_name(split, request.limit) for split in found.all_splits}
    if request.output is None:
        if model is None:
            return PredictionFiles({})
        root, here = _folder_of(model), Path(FOLDER)
        if root is None:
            paths = {split: here / name for split, name in names.items()}
            return PredictionFiles(paths).tried(out)
        paths = {split: root / FOLDER / name for split, name in names.items()}
        return PredictionFiles(paths, here).tried(out)
    output = request.output
    if len(names) > 1:
        if output.suffix == ".jsonl" or output.is_file():
            raise OutputError(
                f"{output} is one file, and {len(names)} splits are asked for: " + ", ".join(names),
                try_=f"-o {output.with_suffix('')}  (a folder)",
            )
        paths = {split: output / name for split, name in names.items()}
    else:
        is_folder = output.is_dir()
        paths = {split: output / name if is_folder else output for split, name in names.items()}
    there = [path for path in paths.values() if path.exists()]
    if there and not request.overwrite:
        raise OutputError(f"{there[0]} exists", try_="another -o, or --overwrite")
    return PredictionFiles(paths).tried(out)


def _folder_of(model: FoundModel) -> Path | None:
    """The run or the folder of a model that is the user's own; None: it is not."""
    from xvlm_core.weights import hub

    if model.builtin or hub.place_of_cached(model.folder) is not None:
        return None
    for folder in (model.folder, *list(model.folder.parents)[:2]):
        if (folder / "run.json").is_file():
            return folder
    return model.folder
