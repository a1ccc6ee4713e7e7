"""Google's wire: the ML v1 REST API, Cloud Storage's JSON API, OAuth tokens, Logging, discovery.

Each module ends in a list of routes: (method, path, permission, function). A function takes a `Call`, returns a value
or raises; only `server` and `wire` know status codes and JSON.
"""
