"""What is given in place of stored features that are too old, or that the store could not be asked for."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from features.spec import Stored
from features.views import StoredFeaturesError, View

WORDS = ("null", "median", "refuse")


@dataclass(frozen=True)
class Substitutes:
    """fill: float32 [F], by feature, NaN for null. refuses: for each view, whether an event that needs it is refused."""

    fill: npt.NDArray[np.float32]
    refuses: tuple[bool, ...]


def substitutes(stored: Stored, views: Sequence[View], medians: Mapping[str, float] | None) -> Substitutes:
    """What a pipeline's Stored says, for the views of its service. medians: of the training data, by full feature name;
    None: they are not known yet, and NaN until then.

    Raises StoredFeaturesError for a name that is neither a feature nor a view, for a word that it does not know, and for a
    median that the model does not have.
    """
    names = [name for view in views for name in view.names]
    for name in stored.stale:
        if name not in names and name not in [view.name for view in views]:
            raise StoredFeaturesError(f"Stored {stored.service}: stale: expected a feature or a view of {names}, got {name}")
    fill, refuses = [], []
    for view in views:
        said = [stored.stale.get(name, stored.stale.get(view.name, stored.otherwise)) for name in view.names]
        refuses.append("refuse" in said)
        fill += [_value(stored.service, name, value, medians) for name, value in zip(view.names, said, strict=True)]
    return Substitutes(np.array(fill, np.float32), tuple(refuses))


def _value(service: str, name: str, said: object, medians: Mapping[str, float] | None) -> float:
    if said == "median":
        if medians is None:
            return math.nan
        if name not in medians:
            raise StoredFeaturesError(f"Stored {service}: the model has no median of {name}: train it anew with headrace train")
        return medians[name]
    if said in ("null", "refuse"):
        return math.nan
    if isinstance(said, bool) or not isinstance(said, int | float):
        raise StoredFeaturesError(f"Stored {service}: {name}: expected a number or one of {', '.join(WORDS)}, got {said!r}")
    return float(said)
