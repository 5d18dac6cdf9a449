"""What a batcher is made of, below :mod:`headrace.batcher`.

``functions`` tells what a function is, ``batch`` is what it is given, ``threads``, ``tasks`` and ``steps``
run it, ``running`` starts and ends it all, ``doors`` lets submits in, ``figures`` are its counts, and
``engine`` serves it.
"""
