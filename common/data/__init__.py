"""From wherever the data lies to checked examples, and from those to an endless stream of batches."""
