"""Where truth is kept: rows.

`tables` draws them, `database` reads and writes them, `migrations/` (Alembic) brings an older home up to date. Imports
only errors and settings. One call: `db.write(lambda tx: tx.execute(...))` returns once the rows are on the disk.
"""
