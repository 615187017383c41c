"""What runs loops: one plainly (``reference``), many in lockstep (``lanes``)."""
