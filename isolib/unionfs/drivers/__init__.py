"""The storage drivers of a store, behind one contract."""
