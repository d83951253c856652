"""A partition of a pool. `Partition` puts the parts together; each part has one subject and knows the ledger."""
