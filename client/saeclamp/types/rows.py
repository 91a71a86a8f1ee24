"""Answers that have rows: they can be iterated over, and turned into a pandas DataFrame."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pydantic import BaseModel

from saeclamp._exceptions import MissingPackageError

if TYPE_CHECKING:
    import pandas

RowT = TypeVar("RowT", bound=BaseModel, covariant=True)


if TYPE_CHECKING:

    class _TabularOnlyForTypes(Generic[RowT]):
        pass

else:

    class _TabularOnlyForTypes:
        """Generic for type checkers alone: pydantic wants `Generic` behind BaseModel, whose iterator would then win."""

        def __class_getitem__(cls, row: type) -> type:
            return cls


class Tabular(_TabularOnlyForTypes[RowT]):
    """An answer with rows."""

    def _rows(self) -> Sequence[RowT]:
        raise NotImplementedError

    def _records(self) -> list[dict[str, Any]]:
        """Return the rows as columns have them, before objects within them are laid flat."""
        return [row.model_dump() for row in self._rows()]

    def __iter__(self) -> Iterator[RowT]:
        return iter(self._rows())

    def to_dataframe(self) -> pandas.DataFrame:
        """
        Make a pandas DataFrame, a line a row.

        Fields of objects within a row are columns of their own, such as `label.text`. Raises `MissingPackageError`.
        """
        try:
            import pandas  # here, because it is not among what the package needs
        except ImportError as exc:
            raise MissingPackageError("A DataFrame needs pandas, which is not installed: pip install pandas.") from exc
        records = [_flat(record) for record in self._records()]
        columns = dict.fromkeys(name for record in records for name in record)
        # an object that is there in some rows and null in others has its columns of those where it is there
        split = {name for name in columns if any(other.startswith(f"{name}.") for other in columns)}
        return pandas.DataFrame(records, columns=[name for name in columns if name not in split])


class Listing(Tabular[RowT]):
    """An answer whose rows are its field `data`."""

    if TYPE_CHECKING:

        @property
        def data(self) -> Sequence[RowT]: ...

    def _rows(self) -> Sequence[RowT]:
        return self.data


def _flat(record: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in record.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{path}{name}.")
        else:
            flat[f"{path}{name}"] = value
    return flat
