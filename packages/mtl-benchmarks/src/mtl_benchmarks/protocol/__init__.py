"""How a network is trained, as data: optimiser, schedule, length, what is reported; the protocols of the papers."""
