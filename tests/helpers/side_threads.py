"""Threads whose outcome is asked for."""

import threading


def in_thread(run, name=None, start=True):
    """A thread whose outcome, or error, `.result()` gives."""
    box = {}

    def work():
        try:
            box["value"] = run()
        except BaseException as error:
            box["error"] = error

    thread = threading.Thread(target=work, name=name)

    def result():
        thread.join(300)
        assert not thread.is_alive()
        if "error" in box:
            raise box["error"]
        return box["value"]

    thread.result = result
    if start:
        thread.start()
    return thread
