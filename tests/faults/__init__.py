"""Faults: each is made to happen, gated on progress, with a witness that it struck and that it was healed.

`README.md` beside this page says which test covers which fault, on modelled and on real parts.
"""
