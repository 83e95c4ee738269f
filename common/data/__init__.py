"""From wherever pictures lie to prompts, in four steps: a `table` of columns, a checked `row`, the `stream` of a
run's order, the `feed` that stays a step ahead. A data format is one loader in `formats`, and one line in `places`. It
imports the rest of `common`."""
