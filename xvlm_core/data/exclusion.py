"""Pictures that must not be in a store: those of the validation and test splits of other tasks.

A list is given as a file or as a prepared store, and a picture is found in it by its id, its file
name, any other name of the photograph (``sources.identity``), or by what it looks like.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Exclusions:
    """Names to leave out, and where they came from.

    Attributes:
        names: identities ("coco:391895"), bare ids and file names.
        looks: perceptual hashes (``data.looks``).
        sources: what was given, for the manifest.
    """

    names: frozenset[str] = frozenset()
    looks: tuple[int, ...] = ()
    sources: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.names or self.looks)

    def name_of(
        self, id: str, paths: Iterable[str], same_as: Sequence[str], identity: str
    ) -> str | None:
        """The name by which a picture is excluded, or None.

        Args:
            id: of the record.
            paths: of its pictures.
            same_as: names of the photograph.
            identity: prefix of the source's own ids.
        """
        if not self.names:
            return None
        names = [*same_as, id, f"{identity}:{id}"]
        for path in paths:
            names += [path, path.rsplit("/", 1)[-1]]
        return next((name for name in names if name in self.names), None)

    def twin_of(self, looks: int) -> str | None:
        """The perceptual hash of an excluded picture that looks like this one, or None."""
        return f"{looks:016x}" if looks in self.looks else None


NOTHING = Exclusions()


def load_exclusions(lists: Sequence[str], like: Sequence[str] = ()) -> Exclusions:
    """Read what was given with ``--exclude``."""
    return Exclusions()
