"""THE WHERE: attempts (a replica's committed start, reports and end), where they run (`local`), what they say (`logs`).

An engine starts, polls and stops a replica; the replica does everything else over HTTP. Imports the database and the
lowest floor. One call: `local.start(attempt, token)`.
"""
