"""``python -m lorapipe_engine`` is ``lora-train``: what launchers of several processes want to be given."""

from lorapipe_engine.command.process.libraries import leave_current_folder

if __name__ == "__main__":
    # Before anything else is imported: Python has put the current folder first.
    leave_current_folder()
    from lorapipe_engine.cli import train_main

    train_main()
