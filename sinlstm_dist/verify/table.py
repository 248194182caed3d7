"""Show a verification on the screen: the speed of collectives, the verdicts, the conclusion."""

from sinlstm_dist.screen.console import show_table, show_text
from sinlstm_dist.verify.collectives import as_text
from sinlstm_dist.verify.verification import Verdict, Verification

SHOWN = 5  # problems per claim; the JSON file has all
COLOURS = {"PASS": "green", "FAIL": "bold red", "SKIP": "dim"}


def show(verification: Verification) -> None:
    """Print the tables and the conclusion."""
    verdicts = verification.verdicts
    figures = [as_text(row) for verdict in verdicts for row in verdict.figures]
    if figures:
        show_table(figures, numbers=figures[0])
        show_text("\n")
    show_table([_row(verdict) for verdict in verdicts], colours=COLOURS, wrap=True)
    seconds = verification.seconds
    failed = [verdict.claim for verdict in verdicts if verdict.result == "FAIL"]
    what = f"{', '.join(failed)} failed" if failed else "it was stopped"
    if verification.passed:
        show_text(f"\nverified in {seconds:.0f} s: these processes train correctly\n")
    else:
        show_text(f"\nNOT verified, in {seconds:.0f} s: {what}\n")


def _row(verdict: Verdict) -> dict[str, str]:
    lines = list(verdict.problems[:SHOWN]) or [verdict.measured]
    if len(verdict.problems) > SHOWN:
        lines.append(f"and {len(verdict.problems) - SHOWN} more")
    if verdict.look_at:
        lines.append(f"look at: {verdict.look_at}")
    name = verdict.claim.replace(" and ", "\nand ")  # a narrow column leaves room for the others
    return {"claim": name, "": verdict.result, "measured": "\n".join(lines)}
