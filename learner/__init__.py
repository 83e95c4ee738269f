"""The learning half. At its top stand the entry points, each a page that opens parts and reads like a table of
contents, `objective` with the losses as pure functions, and `text`. Everything else is in a room of its own; the
entry points alone may import all of them."""
