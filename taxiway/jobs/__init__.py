"""THE WORK: a job's life (`states`), its rows (`queue`), what a training must be (`training`), what it may ask for
(`machines`), what is looked at before it is queued (`preflight`), who moves it (`worker`); studies and their trials
(`studies`), and who chooses what these try (`suggestions`, `search`).

Imports compute, iam, storage and what lies below. One call: `queue.create(db, job, now=...)`.
"""
