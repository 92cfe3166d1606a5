"""A picture of a page of `dive report`, for README: `make screenshot`.

    python tools/screenshot_page.py PAGE.html PICTURE.png [--width 1440] [--height 900] [--hash ...]

Wants Chromium and its driver (Debian: chromium, chromium-driver) and selenium. The picture has 256
colours, which keeps it small.
"""

import argparse
import io
import shutil
from pathlib import Path

from PIL import Image


def screenshot(
    page: Path, width: int, height: int, fragment: str = "", dark: bool = False
) -> bytes:
    """The PNG of the page in a window of this size; fragment: its state, after the #."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        raise SystemExit("no Chromium here: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in ("--headless=new", "--no-sandbox", "--hide-scrollbars"):
        options.add_argument(argument)
    running = webdriver.Chrome(options=options, service=Service(executable_path=driver))
    try:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        running.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        running.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        running.get(page.resolve().as_uri() + (f"#{fragment}" if fragment else ""))
        return running.get_screenshot_as_png()
    finally:
        running.quit()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--width", type=int, default=1440)
    parser.add_argument("--height", type=int, default=900)
    parser.add_argument("--hash", default="", help="state of the page, after the #")
    parser.add_argument("--dark", action="store_true")
    given = parser.parse_args()
    png = screenshot(given.page, given.width, given.height, given.hash, given.dark)
    shown = Image.open(io.BytesIO(png)).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    shown.save(given.picture, optimize=True)
    print(f"{given.picture}: {given.picture.stat().st_size / 1e3:.0f} KB")


if __name__ == "__main__":
    main()
