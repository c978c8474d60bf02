"""From words to what they mean: which words belong to which option, what they stand for, and help.

``words`` tells apart what was typed; ``kinds`` reads names with their options, and ``choosing`` finds the classes that
were named, whose signatures give the options
(``option``, with values read by ``mtl_benchmarks.components.reading``); ``training_words`` adds those of the protocol;
``request`` puts them together for every command that trains, and ``run_words`` makes a plan of runs of them.
``command`` is what all commands are, ``help_text`` how help is set, ``completion`` what a shell is told.
"""

from mtl_benchmarks.command_line.kinds import parse_choice
from mtl_benchmarks.command_line.request import parse_seeds
from mtl_benchmarks.command_line.run_words import Plan, parse_run

__all__ = ["Plan", "parse_choice", "parse_run", "parse_seeds"]
