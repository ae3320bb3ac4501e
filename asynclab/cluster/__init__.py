"""One run on many machines: nodes that host sessions, a server between them, and who starts and watches both (Ray).

Importing this imports no Ray; the extra ``cluster`` installs it.
"""
