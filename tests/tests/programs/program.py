import os
import random
import subprocess
import sys
import threading
import time

lock = threading.Lock()
order = []


def work(number):
    for _ in range(5):
        with lock:
            order.append((number, time.monotonic_ns()))
        time.sleep(random.random() / 1000)


print(time.time(), time.monotonic(), os.getpid(), os.urandom(8).hex())
print([random.random() for _ in range(3)], hash("text"), id(order))
threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
for number, when in order:
    print(number, when)
for n in range(5):
    out = subprocess.run(
        [sys.executable, "-c", f"import os, time; print({n}, os.getpid(), time.time_ns())"],
        capture_output=True, text=True, check=True)
    print(out.stdout.strip())
piped = subprocess.Popen(["sort", "-r"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
print(piped.communicate(b"a\nc\nb\n")[0], sorted(os.listdir("."))[:1])
print("done")
