"""What several processes of a run write and read: files in a folder or in a bucket, each reported by its writer. It
imports the top of `common` only."""
