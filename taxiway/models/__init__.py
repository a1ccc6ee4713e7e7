"""THE RESULT: models, versions and operations (`registry`), and the servers that answer for them (`deployments`, `frames`).

Imports compute, iam, storage and what lies below. One call: `await deployments.predict(version, body)`.
"""
