"""The lab: many fits that differ in what a study asks about, run side by side (sweep) and compared (report)."""
