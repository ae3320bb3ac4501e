"""TensorBoard as its users see it: the server, and what its pages hold."""

import json
import re
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager

# the pages are made of web components: what they show is in trees that innerText does not reach
SHOWN = """
function shown(node) {
  if (node.nodeType === Node.TEXT_NODE) return node.textContent;
  if (node.nodeType === Node.ELEMENT_NODE) {
    if (['STYLE', 'SCRIPT', 'TEMPLATE'].includes(node.tagName) || getComputedStyle(node).display === 'none') return '';
  }
  const inner = node.shadowRoot ? shown(node.shadowRoot) : '';
  return inner + ' ' + Array.from(node.childNodes, shown).join(' ');
}
const page = document.querySelector(arguments[0]);
return page === null ? '' : shown(page).replace(/\\s+/g, ' ');
"""
ELEMENTS = {
    "scalars": "tf-scalar-dashboard",
    "custom_scalars": "tf-custom-scalar-dashboard",
    "text": "tf-text-dashboard",
    "hparams": "tf-hparams-dashboard",
}


@contextmanager
def tensorboard(logdir, *arguments, timeout=120):
    """Yield the address of a TensorBoard that has read all runs in a folder."""
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", logdir, "--host", "127.0.0.1", "--port", "0"]
    with subprocess.Popen(
        [*command, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            address = next(found for line in server.stderr if (found := re.search(r"http://[\d.:]+", line)))[0]
            expected = {str(path.parent.relative_to(logdir)) for path in logdir.rglob("events.out.tfevents.*")}
            wait(lambda: set(get(f"{address}/data/runs")) == expected, timeout)
            yield address
        finally:
            server.terminate()


def get(address):
    """Return what the server answers."""
    with urllib.request.urlopen(address, timeout=60) as reply:
        return json.load(reply)


def wait(condition, timeout=60):
    """Return what a condition becomes; assert that it becomes true in time."""
    end = time.monotonic() + timeout
    while not (result := condition()):
        assert time.monotonic() < end, "the condition has not become true"
        time.sleep(0.2)
    return result


def page(browser, address, name, *words, timeout=60):
    """Open a page and return what it shows when all the words are on it."""
    text, end = "", time.monotonic() + timeout
    browser.get("about:blank")  # another fragment of the same address would not load the page
    browser.get(f"{address}/?darkMode=false#{name}")
    while missing := [word for word in words if word not in text]:
        assert time.monotonic() < end, f"{missing} not on the page {name}: {text}"
        time.sleep(0.2)
        text = browser.execute_script(SHOWN, ELEMENTS[name.partition("&")[0]])
    return text
