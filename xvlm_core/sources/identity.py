"""Names by which a photograph is found again in another data set.

COCO, Visual Genome, Flickr30K, SBU and the tasks on them share photographs under different names.
Two pictures are the same if they have one of these names in common: ``coco:391895`` (COCO id),
``flickr:4127484314`` (photo id of Flickr), ``vg:2343`` (Visual Genome id), ``url:host/path``.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

_PHOTO = re.compile(r"([0-9]{4,20})_[0-9a-f]+(?:_\w)?(?:\.\w+)?$")
_NUMBER = re.compile(r"[0-9]{1,20}")
_FLICKR = ("flickr.com", "staticflickr.com")


def flickr_photo(url: object) -> str | None:
    """The photo id of a Flickr address: the number before the first ``_`` of its last part."""
    if not isinstance(url, str):
        return None
    try:
        parts = urlsplit(url.strip())
        host = (parts.hostname or "").lower()
    except ValueError:
        return None
    if not any(host == name or host.endswith(f".{name}") for name in _FLICKR):
        return None
    match = _PHOTO.match(parts.path.rsplit("/", 1)[-1])
    return match[1] if match else None


def same_as(
    *, coco: object = None, flickr: object = None, vg: object = None, url: object = None
) -> tuple[str, ...]:
    """Every name of a photograph that is known; what is None or malformed is left out.

    Args:
        coco: COCO id.
        flickr: Flickr photo id.
        vg: Visual Genome id.
        url: where the picture came from: an address of Flickr gives its photo id too.
    """
    names = []
    for prefix, id in (("coco", coco), ("flickr", flickr), ("vg", vg)):
        if isinstance(id, bool) or id is None:
            continue
        try:
            number = str(id).strip()
        except ValueError:  # an integer of thousands of digits
            continue
        if _NUMBER.fullmatch(number):
            names.append(f"{prefix}:{int(number)}")
    if isinstance(url, str) and url.strip():
        photo = flickr_photo(url)
        if photo is not None:
            names.append(f"flickr:{int(photo)}")
        place = re.sub(r"^[a-z]+://", "", url.strip(), flags=re.IGNORECASE)
        place = place.split("?", 1)[0].split("#", 1)[0]
        if place and _is_unicode(place):
            names.append(f"url:{place}")
    return tuple(dict.fromkeys(names))


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # a lone surrogate: such a name cannot be stored
        return False
    return True


_COCO_FILE = re.compile(r"(?:^|[/_])(\d{12})\.\w+$", re.ASCII)
_FLICKR_FILE = re.compile(r"(?:^|/)flickr30k[-_]images/(\d{4,})\.\w+$", re.ASCII)


def coco_in(path: str) -> int | None:
    """The COCO id in the name of a picture (``COCO_train2014_000000581857.jpg``), if it has one."""
    match = _COCO_FILE.search(path)
    return int(match[1]) if match else None


def names_in(path: str) -> tuple[str, ...]:
    """Names of the photograph that its path gives away.

    ``val2014/COCO_val2014_000000391895.jpg``, ``000000391895.jpg`` and
    ``flickr30k-images/4127484314.jpg`` do.
    """
    flickr = _FLICKR_FILE.search(path)
    return same_as(coco=coco_in(path), flickr=flickr[1] if flickr else None)
