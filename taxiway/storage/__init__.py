"""The bytes: buckets, objects, their listings and versions, resumable uploads, and the blobs that they point to.

An object is one row that points to an immutable blob. A write lands in a fresh blob, is flushed to the disk and
verified, and becomes visible by one transaction; whatever a crash leaves behind is a blob without a row, and `sweep`
removes it at the next start. `upkeep` does what lifecycle rules ask for, and removes what has had its time. Rooms below
may import `db`, `names`, `errors` and `iam`; nothing here knows HTTP.

    blobs = Blobs(settings.blobs)
    objects.get(db, "rides", "2018/train.csv")
"""
