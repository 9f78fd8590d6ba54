"""What a user should hear once before a run, with its reason, and a configuration suggested for a dataset"""
