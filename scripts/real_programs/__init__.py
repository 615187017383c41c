"""Ordinary PyTorch programs, ten to a thousand times the size of the training tasks, and who trains them.

A program's own module (``convnet``, ``residual_mlp``, ``transformer``, ``names``, ``series``) knows nothing of
Loopwright: data, model and loss, as anybody would write them. ``program`` lists them, ``rivals`` says who makes the
updates, ``trial`` trains one program once, ``standing`` makes tables and a figure of all that was trained.
"""
