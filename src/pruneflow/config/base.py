"""What all configurations have in common, and how values of them are written."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any, Self

from pydantic import BaseModel, ConfigDict

from pruneflow.errors import InputError

NEWEST = "newest"  # of base_run, in place of an id


def short_model(model: str) -> str:
    """A model's name without where it comes from, as runs and files can be called."""
    name = model.removeprefix("hf:").rstrip("/").rpartition("/")[2]
    return re.sub(r"[^\w.\-]+", "-", name)[:100]


def workload_name(model: str, dataset: str, seed: int) -> str:
    """Model, data set and seed, as runs are called after them."""
    return f"{short_model(model)}-{short_model(dataset)}-s{seed}"


def reads_texts(model: str) -> bool:
    """Whether a model's name means an encoder of texts."""
    return model == "bert" or model.startswith("hf:")


def as_text(value: object) -> str:
    """A value as it is written on the command line."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


class Config(BaseModel):
    """The configuration of a stage. The text below a field, or its description, is its help."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )
    _given: frozenset[str] = frozenset()

    def model_post_init(self, given: Any) -> None:
        """Keep the names that `resolve` has from the caller."""
        self._given = frozenset(given or ())

    @property
    def given(self) -> frozenset[str]:
        """Names of the parameters that the caller gave, rather than the preset."""
        return self._given

    def resolved(self, **values: object) -> Self:
        """A copy in which what was left to the machine is settled."""
        return self.model_copy(update=values)

    def _refuse(self, names: Collection[str], reason: str) -> None:
        """Refuse the first of these parameters that was given."""
        for name in sorted(self.given.intersection(names)):
            raise InputError(f"{name}={as_text(getattr(self, name))} {reason}")
