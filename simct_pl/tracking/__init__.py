"""What a run logs: metrics, settings, texts and pictures in; MLflow out, whatever happens to the server or the run.

    RunLogger ─► Journal (lines of a file in the run's folder) ─► Uploader (a thread) ─► MLflow

| file | in → out |
|---|---|
| logger | RunLogger: Lightning's logger; what is logged → the journal, and a thread that sends it on |
| journal | records → lines, and a receipt of how many the tracker has: nothing lost, nothing sent twice |
| upload | a journal → MLflow, in order |
| artifacts | texts, tables and pictures → whichever logger takes them |
| run_info | the recipe, package versions, the project's commit |
"""
