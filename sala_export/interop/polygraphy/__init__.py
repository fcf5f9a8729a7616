"""Polygraphy's tools on this project's graphs and engines.

`polygraphy run GRAPH --sala` runs a graph on the CPU: Polygraphy finds the option by the entry point of pyproject.toml
(`run_arguments.py`). Scripts for its other tools are written by `sala-export polygraphy-script`. In a program of your
own, import the loaders from the modules here: `session.py`, `network.py`, `step_data.py`.
"""
