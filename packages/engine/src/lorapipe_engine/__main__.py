"""``python -m lorapipe_engine`` is ``lora-train``: what launchers of several processes want to be given."""

from lorapipe_engine.cli import train_main

if __name__ == "__main__":
    train_main()
