"""What runs inside the user's environment, beside a model.

These files are started by path with the interpreter of a model's own runtime (``python .../runners/serve.py``), so they
use the standard library only, keep to Python 3.6 syntax and import nothing of taxiway. ``serve.py`` owns the socket;
``<framework>_model.py`` knows how a model of that kind is loaded and asked. It finds what it shares with others here as
``taxiway_runners.<file>``, the name that serve.py gives this folder. ``tensorflow1/`` is for a trainer's PYTHONPATH,
and ``sources.py`` looks at a package before it runs.
"""
