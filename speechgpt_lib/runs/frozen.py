"""Imported last by a process that others are forked from: what it has imported stays shared.

Python's collector writes into every object that it visits, and a page that is written to is copied:
some 100 MB in each process.  Frozen objects it leaves alone.
"""

import gc

gc.collect()
gc.freeze()
