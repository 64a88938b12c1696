"""`python -m simct_pl upload-metrics RUN_FOLDER`: sends what the tracking server has not received of a run."""

from __future__ import annotations

import argparse
from contextlib import closing

from simct_pl.commands.output import report, user_path
from simct_pl.errors import MissingFileError, TrackingError


def main(argv: list[str]) -> int:
    """Send every journal of a run's folder.

    Raises:
        MissingFileError: if the folder has none. TrackingError: if the server does not answer; nothing is lost.
    """
    parser = argparse.ArgumentParser(
        prog="python -m simct_pl upload-metrics",
        description="Send metrics and artifacts that were logged while the tracking server could not be reached. "
        "Do this when the run is over; what the server has is not sent again.",
    )
    parser.add_argument("run_folder", type=user_path, help="such as runs/quickstart")
    options = parser.parse_args(argv)
    paths = sorted((options.run_folder / "tracking").glob("*.jsonl"))
    if not paths:
        raise MissingFileError(f"{options.run_folder}/tracking has no journal; expected the folder of a run.")
    from simct_pl.tracking.journal import Journal  # here, so that --help needs no torch
    from simct_pl.tracking.upload import Uploader

    for path in paths:
        with closing(Journal(path)) as journal:
            num_pending, uploader = len(journal.pending()), Uploader(journal)
            error = uploader.send() if num_pending else None
            for complaint in uploader.complaints:
                report(complaint)
            if error is not None:
                raise TrackingError(
                    f"{journal.destination.tracking_uri} does not answer: {error}. {len(journal.pending())} records "
                    f"wait in {path}; try again later."
                )
        report(f"{path}: sent {num_pending - uploader.num_refused}, refused {uploader.num_refused}")
    return 0
