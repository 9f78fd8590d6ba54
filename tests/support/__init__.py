"""What tests of several packages share: small models, killed runs, a browser."""
