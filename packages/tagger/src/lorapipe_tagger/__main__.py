"""``python -m lorapipe_tagger`` is ``lora-tag``."""

from __future__ import annotations

from lorapipe_tagger.cli import main

if __name__ == "__main__":
    main()
