"""The configuration: one frozen schema, read from recipes and the command line, and refused where it cannot work. A
new key comes into `sections`, with a docstring that `--help` prints. It imports `common` and the modes of
`common.labels`."""
