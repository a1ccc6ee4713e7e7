"""The command line: `taxiway ...`, with gcloud's and gsutil's spellings.

A client of the server like any other: everything goes over HTTP with a token. It imports `errors`, `names` and
`address` from the rest of the house; `host.py`, whose commands need the machine that the server runs on, also imports
`settings` and `environments` and starts the server, and `local.py` does here what a server would do.

    taxiway jobs submit training fares_1 --module-name trainer.task --package-path trainer \\
        --staging-bucket gs://rides --job-dir gs://rides/fares_1 --stream-logs -- --train_steps 1000
"""
