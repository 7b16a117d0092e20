"""Which labels meet the filters that were asked, kept up to date with every change of a document.

A filter that is new reads all documents, or fewer: what it demands by equality is looked up in indexes of those fields.
These are made the first time that a field is asked for, which reads all documents once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from toondb.vector.metrics import Labels

from .documents import metadata_of
from .field_index import FieldIndex, hashes_of
from .given import Filter
from .label_set import LabelSet, common

__all__ = ["Documents", "KnownFilters", "Met", "Owner"]

_MOST_FILTERS = 16
_MOST_FIELDS = 8
_FEW = 4
"""Documents are read one by one for a filter when they are fewer than one in so many."""
_PAIRS_PER_LABEL = 8
_PAIRS_AT_LEAST = 4096
_PAIR_SIZE = 16


class Owner(Protocol):
    """The document that a label belongs to."""

    @property
    def id(self) -> str:
        """Its id."""

    @property
    def labels(self) -> range:
        """All of its labels."""


class Documents(Protocol):
    """Where documents are read: only those that the labels are of, each with its value."""

    def all(self) -> Iterable[tuple[Owner, bytes]]:
        """All of them."""

    def some(self, ids: Iterable[str]) -> Iterable[tuple[Owner, bytes]]:
        """Those of some ids."""


class Met(NamedTuple):
    """What a document meets: filters, and hashes in fields."""

    filters: list[LabelSet]
    fields: dict[str, list[int]]


class _Pairs(NamedTuple):
    """New pairs of a field."""

    hashes: list[int]
    labels: list[int]

    def add(self, hashes: Sequence[int], labels: Iterable[int]) -> None:
        """Add each hash with each label."""
        for label in labels:
            self.hashes.extend(hashes)
            self.labels.extend([label] * len(hashes))


class KnownFilters:
    """The filters and fields of one cache. Used as that is: searches side by side, changes one at a time."""

    def __init__(self) -> None:
        self._filters: OrderedDict[bytes, tuple[Filter, LabelSet]] = OrderedDict()
        # None: a field that has too many values.
        self._fields: OrderedDict[str, FieldIndex | None] = OrderedDict()

    def __contains__(self, filter: Filter) -> bool:
        """Whether the labels of a filter are known."""
        return filter.key in self._filters

    @property
    def size(self) -> int:
        """About how many bytes of memory the fields take."""
        return _PAIR_SIZE * sum(len(index) for index in list(self._fields.values()) if index is not None)

    def labels(self, filter: Filter) -> Labels | None:
        """The labels that meet a filter; None = nobody knows. Searches may call it side by side."""
        found = self._filters.get(filter.key)
        if found is None:
            return None
        self._filters.move_to_end(filter.key)
        return found[1].array()

    # Changes

    def met_by(self, value: bytes) -> Met:
        """What the document in a value meets."""
        # Lists: searches move the ones that they use to the end meanwhile.
        filters, fields = list(self._filters.values()), self._in_use()
        if not filters and not fields:
            return Met([], {})
        metadata = metadata_of(value)
        return Met(
            [matching for filter, matching in filters if filter.matches(metadata)],
            {name: hashes_of(metadata.get(name)) for name, _ in fields},
        )

    def add(self, documents: Collection[tuple[Met, range]], living: int) -> None:
        """Note what the documents of new labels meet; ``living`` is how many labels there are."""
        for met, labels in documents:
            for matching in met.filters:
                matching.add(labels)
        for name, index in self._in_use():
            pairs = _Pairs([], [])
            for met, labels in documents:
                pairs.add(met.fields.get(name, ()), labels)
            index.add(*pairs)
            if len(index) > _most_pairs(living):
                del self._fields[name]  # it is made anew when it is asked for

    def remove(self, labels: range) -> None:
        """Note that labels are gone."""
        for _, matching in self._filters.values():
            matching.remove(labels)

    def keep(self, filter: Filter, labels: LabelSet) -> None:
        """Remember the labels of a filter."""
        self._filters[filter.key] = (filter, labels)
        while len(self._filters) > _MOST_FILTERS:
            self._filters.popitem(last=False)

    # Finding them

    def find(self, filter: Filter, owners: Mapping[int, Owner], documents: Documents) -> LabelSet:
        """The labels that meet a new filter.

        Args:
            filter: The filter.
            owners: Of all living labels.
            documents: Where these are read.
        """
        self._learn([name for name in filter.required.fields if name not in self._fields], len(owners), documents)
        candidates = self._candidates(filter)
        if candidates is None:
            return LabelSet(_meeting(filter, documents.all()))
        living: list[int] = [label for label in candidates.tolist() if label in owners]
        if filter.required.alone:
            return LabelSet(living)
        if len(living) * _FEW > len(owners):
            return LabelSet(_meeting(filter, documents.all()))
        return LabelSet(_meeting(filter, documents.some({owners[label].id: None for label in living})))

    def _learn(self, names: list[str], living: int, documents: Documents) -> None:
        """Read what all documents have in some fields."""
        del names[_MOST_FIELDS:]
        if not names:
            return
        most = _most_pairs(living)
        pairs = {name: _Pairs([], []) for name in names}
        for owner, value in documents.all():
            metadata = metadata_of(value)
            for name, those in pairs.items():
                if len(those.labels) <= most:
                    those.add(hashes_of(metadata.get(name)), owner.labels)
        for name, those in pairs.items():
            self._fields[name] = index = FieldIndex() if len(those.labels) <= most else None
            if index is not None:
                index.add(*those)
        while len(self._fields) > _MOST_FIELDS:
            self._fields.popitem(last=False)

    def _candidates(self, filter: Filter) -> Labels | None:
        """The labels that have what a filter demands by equality, some of them gone; None = any label may."""
        candidates: Labels | None = None
        for name, wanted in filter.required.fields.items():
            index = self._fields.get(name)
            if index is not None:
                self._fields.move_to_end(name)
                candidates = common(candidates, index.labels(wanted))
        return candidates

    def _in_use(self) -> list[tuple[str, FieldIndex]]:
        return [(name, index) for name, index in self._fields.items() if index is not None]


def _meeting(filter: Filter, documents: Iterable[tuple[Owner, bytes]]) -> Iterator[int]:
    for owner, value in documents:
        if filter.matches(metadata_of(value)):
            yield from owner.labels


def _most_pairs(living: int) -> int:
    """More pairs than this are of long lists, or of what is gone."""
    return max(_PAIRS_AT_LEAST, _PAIRS_PER_LABEL * living)
