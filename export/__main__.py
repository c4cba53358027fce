"""`python -m export --bundle B --to openvino --precision int8 --data D --out O`."""

from export.command import ExportSettings, main
from segcore.command import run_command

if __name__ == "__main__":
    run_command(main, ExportSettings, "python -m export")
