"""The benchmark: run records, suites as data, the report, and the memory planner."""
