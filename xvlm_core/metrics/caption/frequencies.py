"""In how many pictures' references an n-gram occurs. Imports no torch."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from xvlm_core.errors import DataError
from xvlm_core.metrics.caption.ngrams import ORDER, Counted, Ngram, Tokens, count

_FORMAT = "xvlm caption document frequencies"
_VERSION = 1


@dataclass(frozen=True)
class DocumentFrequencies:
    """The document frequencies that CIDEr weighs n-grams with, frozen.

    What occurs for one picture alone is not held: it weighs the same as what never occurs.

    Attributes:
        documents: pictures whose references were counted.
        pictures_with: of an n-gram, the number of them that have it; at least 2.
    """

    documents: int
    pictures_with: Mapping[Ngram, int]

    @classmethod
    def of(cls, references: Iterable[Sequence[Tokens | Counted]]) -> DocumentFrequencies:
        """Count them.

        Args:
            references: the references of each picture.
        """
        found: Counter[Ngram] = Counter()
        documents = 0
        for own in references:
            documents += 1
            found.update(set().union(*(times for text in own for times in count(text).ngrams)))
        return cls(documents, {ngram: n for ngram, n in found.items() if n > 1})

    def weight(self, ngram: Ngram) -> float:
        """Inverse document frequency: log of all pictures over those that have it."""
        return math.log(self.documents) - math.log(self.pictures_with.get(ngram, 1))

    def weights(self) -> list[float]:
        """Inverse document frequency of what n pictures have: log of all over those. From n = 1.

        The first entry, for none, is that of 1, as for what one picture has.
        """
        every = math.log(self.documents) if self.documents else 0.0
        highest = max(self.pictures_with.values(), default=1)
        return [every - math.log(max(1, n)) for n in range(highest + 1)]

    def save(self, path: Path) -> None:
        """Write as JSON, at once or not at all.

        Raises:
            OSError: as of any writing.
        """
        content = {
            "format": _FORMAT,
            "version": _VERSION,
            "documents": self.documents,
            "pictures_with": {
                " ".join(ngram): n for ngram, n in sorted(self.pictures_with.items())
            },
        }
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        try:
            partial.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path) -> DocumentFrequencies:
        """Read what ``save`` wrote.

        Raises:
            DataError: missing, damaged, or something else.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise _refused("no document frequencies there", path) from None
        except (OSError, ValueError, RecursionError) as error:
            raise _refused(f"document frequencies cannot be read: {error}", path) from error
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise _refused("not a file of document frequencies", path)
        if content.get("version") != _VERSION:
            raise _refused(f"unknown version of the file: {content.get('version')!r}", path)
        documents, table = content.get("documents"), content.get("pictures_with")
        if type(documents) is not int or documents < 1 or not isinstance(table, dict):
            raise _refused("the number of pictures or the table is missing", path)
        pictures_with: dict[Ngram, int] = {}
        for words, n in table.items():
            ngram = tuple(words.split())
            if type(n) is not int or not 1 <= n <= documents or not 1 <= len(ngram) <= ORDER:
                raise _refused(f"impossible frequency {n!r} of {words!r}", path)
            pictures_with[ngram] = n
        return cls(documents, pictures_with)


def _refused(what: str, path: Path) -> DataError:
    return DataError(what, where=str(path), try_="make them again from the training references")
