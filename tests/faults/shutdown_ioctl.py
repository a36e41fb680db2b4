#!/usr/bin/env python3
"""Why power cuts are not made with ext4's shutdown ioctl: a sync under way may return success and be lost.

Needs root. Without postern: one thread appends blocks and notes each fdatasync that returned success,
another grows a file beside it, then the ioctl (without journal flush), unmount, mount, compare.

    tests/faults/shutdown_ioctl.py [ROUNDS]
"""
import fcntl, os, random, struct, subprocess, sys, tempfile, threading, time

SHUTDOWN, WITHOUT_JOURNAL_FLUSH = 0x8004587D, struct.pack("I", 2)
BLOCK, BLOCKS = 8192, 8000
rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 60


def run(*line):
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL)


def mark(round_, number):
    return struct.pack("<QQ", round_ + 1, number + 1)


def cut(mount, round_):
    """One round until the ioctl: the syncs that returned success, with the time, and when the ioctl began."""
    journal = os.open(f"{mount}/journal", os.O_CREAT | os.O_RDWR | os.O_TRUNC)
    os.posix_fallocate(journal, 0, BLOCK * BLOCKS)
    os.fsync(journal)
    folder = os.open(mount, os.O_RDONLY)
    os.fsync(folder)
    beside = os.open(f"{mount}/beside", os.O_CREAT | os.O_RDWR | os.O_TRUNC)
    synced, over = [], threading.Event()

    def until_over(step):
        try:
            for number in range(BLOCKS):
                if over.is_set():
                    return
                step(number)
        except OSError:
            pass

    def append(number):
        os.pwrite(journal, mark(round_, number) * (BLOCK // 16), number * BLOCK)
        os.fdatasync(journal)
        synced.append((number, time.monotonic()))

    def grow(_):
        os.write(beside, b"z" * 5000)
        os.fsync(beside)

    threads = [threading.Thread(target=until_over, args=(step,)) for step in (append, grow)]
    for thread in threads:
        thread.start()
    time.sleep(0.05 + random.random() * 0.2)
    began = time.monotonic()
    fcntl.ioctl(folder, SHUTDOWN, WITHOUT_JOURNAL_FLUSH)
    time.sleep(0.05)
    over.set()
    for thread in threads:
        thread.join()
    for descriptor in (journal, folder, beside):
        os.close(descriptor)
    return synced, began


with tempfile.TemporaryDirectory() as work:
    image, mount = f"{work}/image", f"{work}/mount"
    os.mkdir(mount)
    run("truncate", "-s", "512M", image)
    run("mkfs.ext4", "-q", "-F", "-m", "0", image)
    all_synced = later = lost = lost_later = 0
    for round_ in range(rounds):
        run("mount", "-o", "loop", image, mount)
        try:
            synced, began = cut(mount, round_)
        finally:
            run("umount", mount)
        run("mount", "-o", "loop", image, mount)
        with open(f"{mount}/journal", "rb") as file:
            data = file.read()
        run("umount", mount)
        for number, at in synced:
            is_lost = data[number * BLOCK : number * BLOCK + 16] != mark(round_, number)
            all_synced, later = all_synced + 1, later + (at >= began)
            lost, lost_later = lost + is_lost, lost_later + (is_lost and at >= began)
    print(f"{rounds} ioctls: {all_synced} syncs returned success, {lost} of them lost;")
    print(f"{later} of them returned after the ioctl began, {lost_later} of these lost")
