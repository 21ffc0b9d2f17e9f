"""A table that knows whose its entries are: a tenant's keys begin with the same bytes."""

from typing import Generic

import msgspec
from cachetools import Cache, LRUCache

from ..pin import TENANT_BYTES
from .base import ValueT


class Entry(msgspec.Struct, Generic[ValueT], gc=False):
    """A value, when it lapses, on the timer, and its place in the list of keys."""

    value: ValueT
    expires: float
    place: int = 0


class OwnedEntry(Entry[ValueT], Generic[ValueT], gc=False):
    """One that knows its neighbours among those of its tenant, by their keys: so nothing refers to itself."""

    older: bytes | None = None
    newer: bytes | None = None


class _Tenant(msgspec.Struct, gc=False):
    count: int = 0
    oldest: bytes | None = None
    newest: bytes | None = None


class TenantLRU(LRUCache[bytes, Entry[ValueT]], Generic[ValueT]):
    """An LRU table of `OwnedEntry`: it knows the least recently used one of each tenant, however many there are."""

    def __init__(self, max_entries: int) -> None:
        super().__init__(max_entries)
        self._tenants: dict[bytes, _Tenant] = {}

    def surplus(self, key: bytes, most: int) -> bytes | None:
        """Return which key has to go so that the tenant of *key*, which is new, has *most* entries; None: none."""
        tenant = self._tenants.get(key[:TENANT_BYTES])
        return None if tenant is None or tenant.count < most else tenant.oldest

    def __getitem__(self, key: bytes) -> Entry[ValueT]:
        LRUCache.__getitem__(self, key)
        entry, tenant = self._peek(key), self._tenants[key[:TENANT_BYTES]]
        if tenant.newest != key:
            self._unlink(tenant, entry)
            self._link(tenant, key, entry)
        return entry

    def __setitem__(self, key: bytes, entry: Entry[ValueT]) -> None:
        if key in self:
            del self[key]
        super().__setitem__(key, entry)
        tenant = self._tenants.setdefault(key[:TENANT_BYTES], _Tenant())
        tenant.count += 1
        self._link(tenant, key, self._peek(key))

    def __delitem__(self, key: bytes) -> None:
        entry = self._peek(key)
        super().__delitem__(key)
        tenant = self._tenants[key[:TENANT_BYTES]]
        self._unlink(tenant, entry)
        tenant.count -= 1
        if not tenant.count:
            del self._tenants[key[:TENANT_BYTES]]

    def clear(self) -> None:
        super().clear()
        self._tenants.clear()

    def _peek(self, key: bytes) -> OwnedEntry[ValueT]:
        entry = Cache.__getitem__(self, key)
        assert isinstance(entry, OwnedEntry)
        return entry

    def _link(self, tenant: _Tenant, key: bytes, entry: OwnedEntry[ValueT]) -> None:
        entry.older, entry.newer = tenant.newest, None
        if tenant.newest is None:
            tenant.oldest = key
        else:
            self._peek(tenant.newest).newer = key
        tenant.newest = key

    def _unlink(self, tenant: _Tenant, entry: OwnedEntry[ValueT]) -> None:
        if entry.older is None:
            tenant.oldest = entry.newer
        else:
            self._peek(entry.older).newer = entry.newer
        if entry.newer is None:
            tenant.newest = entry.older
        else:
            self._peek(entry.newer).older = entry.older
