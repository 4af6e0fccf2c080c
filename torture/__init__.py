"""Faults on purpose: kills, full disks, flipped bits and hostile files, and whether anything is lost or silently wrong.

    python -m torture --seed 1 --minutes 20
    python -m torture --only "kill -9 in fetch" --seed 1 --try 7     repeats one try

Every try is made from its seed alone, on a shop of 39 products that a server on 127.0.0.1 holds.
"""
