"""THE AGENT BESIDE THE USER'S CODE: fetch -> environment -> run -> ship its words -> report its end.

A process of its own, a client of the server by its attempt's token; imports the lowest floor only. An engine starts it:
`python -m taxiway.replica FOLDER`. A run on a person's own terminal needs no server: `python -m taxiway.replica.local`.
"""
