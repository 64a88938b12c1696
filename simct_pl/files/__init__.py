"""What several rooms write and read: whole files or none, and nobody else's.

| file | in → out |
|---|---|
| parquet | rows, or plain values → Parquet or JSON that appears when it is complete; rows and objects back |
| settings | a folder and what its results depend on → settings.json, or an error that names what differs |
| fingerprint | a prompt file → its size and hash; WatchedFile: an error when it changes under a run |
| lock | a folder → the right to write it, which one process has at a time |
"""
