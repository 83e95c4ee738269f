"""Answers and labels as text: what a completion says, whether that is right, which classes a question offers, and
which labels could be taken for one another. All of it is pure: it imports `common` only, reads no file and draws no
number."""
