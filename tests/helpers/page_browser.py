"""A page in headless Chromium: what tests press, read and look for.

Chromium and chromedriver are those of the system; nothing is downloaded, and no name of a host is
looked up.
"""

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HOSTS = "MAP * ~NOTFOUND"


def missing() -> str | None:
    """What to install before the page can be looked at, or None."""
    try:
        import selenium  # noqa: F401
    except ImportError:
        return "the page in a browser needs selenium: pip install 'dive-mrg[test]'"
    for program in ("chromium", "chromedriver"):
        if not shutil.which(program):
            return f"the page in a browser needs {program}: apt install chromium chromium-driver"
    return None


@contextmanager
def browser(profile: Path) -> Iterator["Browser"]:
    """A browser with a profile of its own, closed in the end."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    flags = [
        "--headless=new", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-breakpad", "--hide-scrollbars",
        f"--host-resolver-rules={HOSTS}", f"--user-data-dir={profile}",
    ]  # fmt: skip
    if os.geteuid() == 0:
        flags.append("--no-sandbox")  # Chromium has none for root
    for flag in flags:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, Service(executable_path=shutil.which("chromedriver")))
    try:
        yield Browser(driver)
    finally:
        driver.quit()


class Browser:
    """Opens pages from the disk, and asks them."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, path: Path, address: str = "", *, width: int = 1280, height: int = 900) -> None:
        """A fresh load of a page; earlier logs are dropped."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.driver.get("about:blank")
        self.driver.get_log("browser")
        self.driver.get_log("performance")
        self.driver.get(path.as_uri() + address)
        self.settle()

    def scheme(self, name: str) -> None:
        """The light or dark colours that the system asks for."""
        features = [{"name": "prefers-color-scheme", "value": name}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def ask(self, expression: str, *arguments: Any) -> Any:
        """The value of an expression; `arguments` is what it gets."""
        return self.driver.execute_script(f"return {expression}", *arguments)

    def settle(self) -> None:
        """Until three frames have been drawn."""
        self.driver.execute_async_script(
            "const done = arguments[0], frame = requestAnimationFrame;"
            "frame(() => frame(() => frame(done)))"
        )

    def until(self, expression: str, wanted: Any, seconds: float = 30) -> None:
        """Waits for what the browser does in its own time, as the reading of an image."""
        end = time.monotonic() + seconds
        while (got := self.ask(expression)) != wanted:
            assert time.monotonic() < end, f"{expression} is {got!r}, want {wanted!r}"
            time.sleep(0.05)

    @contextmanager
    def work(self) -> Iterator[list[float]]:
        """The page's processor time in seconds, in a list that is filled in the end.

        Of its thread, and not by the clock: other work on the machine does not count.
        """
        self.driver.execute_cdp_cmd("Performance.enable", {"timeDomain": "threadTicks"})
        before, spent = self._tasks(), []
        try:
            yield spent
            spent.append(self._tasks() - before)
        finally:
            self.driver.execute_cdp_cmd("Performance.disable", {})

    def _tasks(self) -> float:
        metrics = self.driver.execute_cdp_cmd("Performance.getMetrics", {})["metrics"]
        return next(one["value"] for one in metrics if one["name"] == "TaskDuration")

    def press(self, *keys: str) -> None:
        from selenium.webdriver import ActionChains

        ActionChains(self.driver).send_keys(*keys).perform()
        self.settle()

    def click(self, selector: str) -> None:
        self.driver.find_element("css selector", selector).click()
        self.settle()

    def choose(self, selector: str, value: str) -> None:
        """An option of a select."""
        self.ask(
            "(([node, value]) => { node.value = value; node.dispatchEvent(new Event('change')) })"
            "([document.querySelector(arguments[0]), arguments[1]])",
            selector,
            value,
        )
        self.settle()

    def text(self, selector: str) -> str:
        return self.ask("document.querySelector(arguments[0])?.textContent ?? ''", selector)

    def texts(self, selector: str) -> list[str]:
        script = "[...document.querySelectorAll(arguments[0])].map((one) => one.textContent)"
        return self.ask(script, selector)

    def count(self, selector: str) -> int:
        return self.ask("document.querySelectorAll(arguments[0]).length", selector)

    def address(self) -> str:
        """What is behind the #, once the page has written it."""
        self.ask("new Promise((done) => setTimeout(done, 150))")
        return self.ask("location.hash")

    def complaints(self) -> list[str]:
        """What the console has said since the page was opened."""
        return [one["message"] for one in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """The addresses that were asked for since the page was opened, embedded data left out."""
        found = []
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                found.append(message["params"]["request"]["url"])
        return [one for one in found if not one.startswith(("data:", "about:"))]
