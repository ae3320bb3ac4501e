"""Train.

Example: ``python train.py algo=a3c env=pong distributed=synced distributed.max_session=16``
"""

from asynclab.main import main

if __name__ == "__main__":
    main()
