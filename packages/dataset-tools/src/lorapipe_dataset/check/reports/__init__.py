"""What a person, a program or a browser is shown."""
