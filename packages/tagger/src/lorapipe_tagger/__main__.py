"""``python -m lorapipe_tagger`` is ``lora-tag``."""

from __future__ import annotations

from lorapipe_engine.command.process.libraries import leave_current_folder

if __name__ == "__main__":
    # Before anything else is imported: Python has put the current folder first.
    leave_current_folder()
    from lorapipe_tagger.cli import main

    main()
