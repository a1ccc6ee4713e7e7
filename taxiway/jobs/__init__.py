"""THE WORK: the life of a job (`states`), its rows (`queue`), what a training must be (`training`), and who moves it (`worker`).

Imports compute, iam, storage and what lies below. One call: `queue.create(db, job, now=...)`.
"""
