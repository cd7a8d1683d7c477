"""What is typed: one file a command."""

from ivlens.cli.app import main as main
