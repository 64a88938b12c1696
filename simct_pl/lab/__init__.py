"""The lab: many fits that differ in what a study asks about. A sweep file in; trained cells, and a report on them out.

Sweep: `sweep_file` makes cells of the file, `pool` runs each in a process of its own, `tracked` ties their runs to one
parent in MLflow. Report: `store` finds the sweep again, `histories` reads what its runs logged, `results` says which
run stands for which cell; `metric` and `compare` say what the seeds say, `tables`, `pictures` and `diagnostics` show
it, `page` puts it on one HTML page.
"""
