#!/usr/bin/env python3
"""Opens a page in headless Chromium and waits until it shows every expected text.

    browser.py --page URL --expect TEXT [--expect TEXT...] [--ready TEXT] [--timeout SECONDS]

Prints the line `ready` as soon as the page shows the text of --ready; then, when the page shows all expected texts,
prints the page's text and exits with 0. After the timeout, prints the page's text and console to stderr and exits with 1.
Requires Debian's package chromium-headless-shell or chromium.
"""

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

FLAGS = [
    "--headless",
    "--remote-debugging-pipe",  # any local user could connect to a port
    "--no-sandbox",  # the sandbox does not start under root or in most containers
    "--disable-dev-shm-usage",  # /dev/shm is small in containers
    "--disable-gpu",
    # Disables all network requests other than those of the page.
    "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-quic",
    "--disable-breakpad",
]
ENDINGS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Failure(Exception):
    """A failure of Chromium or of the page."""


class Browser:
    """Chromium with one page, controlled through a pipe with the DevTools protocol."""

    def __init__(self, home, deadline):
        self.home, self.deadline, self.console, self.unread, self.last_id, self.session = home, deadline, [], b"", 0, None
        program = shutil.which("chromium-headless-shell") or shutil.which("chromium")
        if not program:
            raise Failure("no Chromium: apt-get install --no-install-recommends chromium-headless-shell")
        # Chromium reads commands from descriptor 3 and answers on 4. Both are reserved first, so that the pipe gets
        # others.
        for number in (3, 4):
            os.dup2(1, number)
        self.pipe, its_end = socket.socketpair()
        for number in (3, 4):
            os.dup2(its_end.fileno(), number)
        with open(f"{home}/log", "wb") as log:
            self.process = subprocess.Popen(
                [program, *FLAGS, f"--user-data-dir={home}/profile", "about:blank"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(3, 4), start_new_session=True,
                env={**os.environ, **dict.fromkeys(("HOME", "TMPDIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"), home)})
        # If these stayed open here, the pipe would not report the end of Chromium.
        its_end.close()
        os.closerange(3, 5)

    def kill(self):
        os.killpg(self.process.pid, signal.SIGKILL)  # all of its processes; wait() below reaps the first one
        self.process.wait()

    def receive(self):
        while b"\0" not in self.unread:
            self.pipe.settimeout(max(self.deadline - time.monotonic(), 0.001))
            try:
                part = self.pipe.recv(1 << 16)
            except TimeoutError:
                raise Failure("timed out") from None
            except ConnectionResetError:
                part = b""
            if not part:
                with open(f"{self.home}/log", errors="replace") as log:
                    raise Failure(f"Chromium ended:\n{log.read()[-4000:]}")
            self.unread += part
        message, _, self.unread = self.unread.partition(b"\0")
        return json.loads(message)

    def call(self, method, **params):
        self.last_id += 1
        command = {"id": self.last_id, "method": method, "params": params}
        if self.session:
            command["sessionId"] = self.session
        try:
            self.pipe.sendall(json.dumps(command).encode() + b"\0")
        except BrokenPipeError:
            pass  # receive reports the cause
        while (message := self.receive()).get("id") != self.last_id:
            self.note(message.get("method"), message.get("params"))
        return message.get("result") or {}

    def note(self, event, params):
        # Keeps the texts only: the rest contains the page's address, whose fragment may be a secret.
        if event == "Log.entryAdded":
            self.console.append(params["entry"]["text"])
        elif event == "Runtime.consoleAPICalled":
            self.console.append(" ".join(str(each.get("value", each.get("description"))) for each in params["args"]))
        elif event == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.console.append(details.get("exception", {}).get("description") or details["text"])

    def open(self, page):
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Runtime.enable")
        self.call("Log.enable")
        error = self.call("Page.navigate", url=page).get("errorText")
        if error:
            raise Failure(f"{page.partition('#')[0]}: {error}")

    def text(self):
        # Empty during a navigation, when there is no document to evaluate in.
        found = self.call("Runtime.evaluate", expression="document.body?.innerText", returnByValue=True)
        return found.get("result", {}).get("value") or ""


def watch(options, home):
    browser, text, ready = None, "", options.ready is None
    try:
        browser = Browser(home, time.monotonic() + options.timeout)
        browser.open(options.page)
        while True:
            text = browser.text()
            if not ready and options.ready in text:
                ready = True
                print("ready", flush=True)
            if ready and all(expected in text for expected in options.expect):
                print(text, flush=True)
                return 0
            time.sleep(0.05)
    except Failure as failure:
        missing = [expected for expected in options.expect if expected not in text]
        console = "\n".join(browser.console) if browser else ""
        print(f"browser.py: {failure}\nmissing: {missing}\nthe page:\n{text}\nthe console:\n{console}", file=sys.stderr)
        return 1
    finally:
        for ending in ENDINGS:
            signal.signal(ending, signal.SIG_IGN)
        if browser:
            browser.kill()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", required=True)
    parser.add_argument("--expect", required=True, action="append")
    parser.add_argument("--ready")
    parser.add_argument("--timeout", type=float, default=60)
    options = parser.parse_args()
    # Raises SystemExit, so that Chromium is killed and its profile removed in any case.
    for ending in ENDINGS:
        signal.signal(ending, lambda number, _: sys.exit(128 + number))
    # A killed Chromium may still be writing for a moment.
    with tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True) as home:
        return watch(options, home)


sys.exit(main())
