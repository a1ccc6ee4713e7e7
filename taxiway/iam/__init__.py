"""THE WHO: projects, users, service accounts and their keys, tokens and their scopes, policies.

`policies.may(...)` is pure: members, a permission and bindings go in, a yes or no comes out. Imports the database and
the lowest floor. One call: `policies.need(db, who, "storage.objects.get", bucket="rides")`.
"""
