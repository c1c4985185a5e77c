"""`ccp-train`: starts the trainer if what it needs is installed."""

from __future__ import annotations

from ccp_fast.cli.start import start


def main() -> None:
    """Run the command line."""
    start("ccp-train", "ccp_fast.cli.train_command", "train")


if __name__ == "__main__":
    main()
