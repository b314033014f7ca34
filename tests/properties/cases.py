"""``@cases(n)``: how many inputs a property is tried on, always the same ones; all are counted."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings

TRIED: Counter[str] = Counter()
"""Inputs on which a property was tried to its end; properties that were not run have 0."""

WANTED = 2000
"""Least number over the whole folder."""

Property = TypeVar("Property", bound=Callable[..., Any])


def cases(number: int) -> Callable[[Property], Property]:
    """Try a property on ``number`` generated inputs. Stands above ``@given``."""

    def decorate(test: Property) -> Property:
        name = f"{test.__module__}.{test.__name__}"
        TRIED[name] = 0
        inner = test.hypothesis.inner_test  # type: ignore[attr-defined]

        @functools.wraps(inner)
        def counted(*args: Any, **kwargs: Any) -> None:
            inner(*args, **kwargs)
            TRIED[name] += 1

        test.hypothesis.inner_test = counted  # type: ignore[attr-defined]
        return settings(
            max_examples=number,
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
        )(test)

    return decorate
