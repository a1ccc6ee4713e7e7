"""Taxiway: a self-hosted Cloud ML Engine, from a package to a prediction.

`storage` keeps the bytes and `iam` says who; `jobs` decides what runs, `compute` runs it, `models` keeps what came of
it and answers with it; `api` and `cli` are windows on the same house. Start it: `taxiway up`.
"""
