"""A run's page of the real Prefect UI in a real headless Chromium: the form that resumes it."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select, WebDriverWait

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
    "--disable-dev-shm-usage", "--window-size=1400,1600",
)  # fmt: skip
SECONDS_MAX = 60


class Page:
    """One run's page, its form opened by `open_form`."""

    def __init__(self, driver: webdriver.Chrome, url: str) -> None:
        self._driver = driver
        self._wait = WebDriverWait(
            driver, SECONDS_MAX, ignored_exceptions=[StaleElementReferenceException]
        )
        driver.get(url)

    def open_form(self) -> str:
        """Press Resume; return the evidence that the form shows, once its fields are there."""
        self._button("Resume").click()
        self._wait.until(lambda _: len(self._modal().find_elements(By.TAG_NAME, "textarea")) == 3)
        # It fades in: until then only what the selection offers counts as visible text.
        self._wait.until(lambda _: "Release " in self._modal().text)
        return self._modal().text

    def fill(self, **fields: str) -> None:
        """Fill fields by their labels, in lower case."""
        for label in self._modal().find_elements(By.CSS_SELECTOR, ".schema-form-property"):
            heading = label.find_element(By.CSS_SELECTOR, ".schema-form-property__label").text
            given = fields.get(heading.split()[0].lower())
            if given is None:
                continue
            if boxes := label.find_elements(By.TAG_NAME, "textarea"):
                boxes[0].send_keys(given)
            else:
                Select(label.find_element(By.TAG_NAME, "select")).select_by_value(given)

    def links(self) -> dict[str, str]:
        """The form's links: text to address."""
        found = self._modal().find_elements(By.TAG_NAME, "a")
        return {one.text: str(one.get_attribute("href")) for one in found}

    @property
    def text(self) -> str:
        return self._driver.find_element(By.TAG_NAME, "body").text

    def submit(self) -> None:
        self._button("Submit", self._modal()).click()

    def wait_closed(self) -> None:
        self._wait.until(lambda driver: not driver.find_elements(By.CLASS_NAME, "p-modal"))

    def wait_text(self, *texts: str) -> str:
        """Wait until the page shows any of the texts; return which."""

        def shown(driver: Any) -> str | None:
            page = driver.find_element(By.TAG_NAME, "body").text
            return next((text for text in texts if text in page), None)

        return str(self._wait.until(shown))

    def _modal(self) -> WebElement:
        return self._driver.find_element(By.CLASS_NAME, "p-modal")

    def _button(self, text: str, within: WebElement | None = None) -> WebElement:
        def find(driver: Any) -> WebElement | None:
            buttons = (within or driver).find_elements(By.TAG_NAME, "button")
            return next((one for one in buttons if one.text.strip() == text), None)

        found = self._wait.until(find)
        assert found is not None
        return found


@contextmanager
def open_browser() -> Iterator[webdriver.Chrome]:
    """Debian's Chromium, without a window; it reaches loopback only."""
    options = webdriver.ChromeOptions()
    for flag in FLAGS:
        options.add_argument(flag)
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
    options.binary_location = str(shutil.which("chromium"))
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()
