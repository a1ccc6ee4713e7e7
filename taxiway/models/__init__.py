"""THE RESULT: models, versions and operations (`registry`), their copies, and the servers that answer (`deployments`).

Imports compute, iam, storage and what lies below. One call: `await deployments.predict(version, body)`.
"""
