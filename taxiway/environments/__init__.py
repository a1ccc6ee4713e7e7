"""ENVIRONMENTS: a runtime and a person's packages -> an interpreter that has both.

Built by uv, cached by hash, shared by all homes; nothing here knows a row.

    choice = runtimes.resolve("2.21", "3.11")                # what is offered, and a Python of this machine
    runtimes.build(choice, say=print)                        # once a machine: TensorFlow and its friends
    python = layers.ensure(choice, [Path("trainer.tar.gz")])  # once a package: a layer over the runtime

In the cache folder (TAXIWAY_CACHE):

    runtimes/2.21-py3.11-<hash>/   a virtual environment that holds the runtime's lock, exactly
    runtimes/gsutil-py3.11-<hash>/  the same for a program that jobs find on their PATH
    environments/<hash>/           a layer: the person's packages, what else they require, and a .pth to the runtime
    uv/                            uv's own cache, on the same disk so that files are linked and not copied

Such a folder is whole when it holds `complete.json`, which is written last; without it the folder is what somebody who
died left behind, and is built anew. Who uses one holds a lock beside it (`.NAME.used`, whose time says when that
began), and `inventory.prune` removes what nobody holds nor has used lately.
"""
