"""What rows hold, seen by content: names of columns, what kind of file some bytes are, digests of pictures and rows,
copies of a picture among the rows of several splits. It imports `common` and its labels, and of `common.data` what
reads rows."""
