"""Takes the pictures of docs/tensorboard.md.

    python tests/screenshots.py outputs/sweeps/<time> docs/images

The first argument is a sweep; the pictures of a single run are of its run 0.
"""

import sys
import time
from io import BytesIO
from pathlib import Path

import pytest
from browser import chromium
from pages import ELEMENTS, page, tensorboard
from PIL import Image

WIDTH = 1280  # pixels
CLICK = """
const labels = arguments[0];
function visit(node) {
  if (['PAPER-CHECKBOX', 'PAPER-TAB'].includes(node.tagName) && labels.includes(node.textContent.trim())) node.click();
  if (node.shadowRoot) visit(node.shadowRoot);
  node.childNodes.forEach(visit);
}
visit(document.querySelector(arguments[1]));
"""


def click(browser, name, *labels):
    browser.execute_script(CLICK, labels, ELEMENTS[name])


def save(browser, path, wait=5.0):
    time.sleep(wait)  # lines are drawn after the words are there
    picture = Image.open(BytesIO(browser.get_screenshot_as_png())).convert("RGB")
    if picture.width > WIDTH:
        picture = picture.resize((WIDTH, round(picture.height * WIDTH / picture.width)), Image.Resampling.LANCZOS)
    picture.quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


def main(sweep, out):
    with tensorboard(sweep / "0") as address, chromium(size=(WIDTH, 1350)) as browser:
        page(browser, address, "custom_scalars", "mean return by frames of all sessions", "loss/policy")
        click(browser, "custom_scalars", "Ignore outliers in chart scaling")
        save(browser, out / "tensorboard_custom_scalars.png")
    with tensorboard(sweep / "0") as address, chromium(size=(WIDTH, 900)) as browser:
        page(browser, address, "text&tagFilter=run", "run/text_summary", "revision")
        save(browser, out / "tensorboard_text.png", wait=2.0)
    with tensorboard(sweep) as address, chromium(size=(1720, 760)) as browser:
        page(
            browser,
            address,
            "hparams",
            "summary/mean_return",
            *(f"{run.parent.name}/" for run in sweep.glob("*/run.json")),
        )
        click(browser, "hparams", "algo.agent", "algo.agent.entropy_coef", "algo.agent.entropy_schedule")
        save(browser, out / "tensorboard_hparams.png", wait=2.0)
        browser.set_window_size(1720, 1160)
        click(browser, "hparams", "PARALLEL COORDINATES VIEW")
        save(browser, out / "tensorboard_parallel.png")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
    except pytest.skip.Exception as skipped:
        sys.exit(str(skipped))
