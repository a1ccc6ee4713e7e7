"""What runs inside the user's environment, beside a model.

These files are started by path with the interpreter of a model's own runtime (``python .../runners/serve.py``), so they
use the standard library only, keep to Python 3.6 syntax and import nothing of taxiway. ``serve.py`` owns the socket;
one file for each framework knows how a model of that kind is loaded and asked.
"""
