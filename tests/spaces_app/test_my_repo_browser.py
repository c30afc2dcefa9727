"""From a link to a published repo in Chromium: signing in, two visitors at once, a refusal, a job that fails.
`make test-browser` runs these."""

import pytest
from screenshots import DESKTOP, PHONE
from support.visitors_hub import VisitorsHub, demo_repo

from spaces_app.my_repo.app import create_page, launch_options
from spaces_app.my_repo.login import COOKIE, Login

pytestmark = pytest.mark.browser
PATIENCE = 120_000  # milliseconds: CI may be slow
LINK = "studio/planet"
QUICK = [
    *("--recipe", "hswq", "--no-noise-floor", "--samples", "1", "--steps", "1"),
    *("--pairs", "2", "--picture-steps", "1"),
]
OF_THE_SPACE = "hf_token_of_the_space_0123456789"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The Hub with one model, and a Space whose owner has a token of his own."""
    with VisitorsHub(tmp_path / "jobs", "ada", "bea") as server:
        server.repos[LINK] = demo_repo()
        server.hurry = QUICK
        server.adopt(monkeypatch, tmp_path / "hf")
        monkeypatch.setenv("HF_TOKEN", OF_THE_SPACE)
        monkeypatch.setattr("spaces_app.my_repo.page._SECONDS", 1)
        yield server
        assert not [seen for seen in server.seen if OF_THE_SPACE in str(seen.headers)]


@pytest.fixture
def door(hub):
    return Login.of(hub.for_the_space())


@pytest.fixture
def url(door):
    page = create_page(door, package="hswq-hub==9.9")
    _, address, _ = page.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, **launch_options(door))
    yield address
    page.close(verbose=False)


@pytest.fixture
def visitor(browser, url):
    """Opens the page as somebody with a browser of his own; none may have met an error in the page's code."""
    contexts, errors = [], []

    def come(size=DESKTOP):
        context = browser.new_context(viewport=size)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(url)
        page.wait_for_selector("#sign-in")
        return page

    yield come
    for context in contexts:
        context.close()
    assert errors == []


def sign_in(page, name: str):
    page.click("#sign-in")
    page.click(f"#as-{name}")
    page.wait_for_selector(f"#account >> text=Signed in as {name}")


def look(page, link: str = LINK):
    page.fill("#link textarea, #link input", link)
    page.click("#look")
    page.wait_for_selector("#facts dl")


def start(page):
    page.wait_for_selector("#most")
    page.click("#start")
    page.wait_for_selector("#progress .job")


def text(page, selector: str) -> str:
    return " ".join(page.inner_text(selector).split())


def refused(page) -> str:
    """What is said when a job is started and may not be."""
    page.wait_for_selector("#most")
    page.click("#start")
    page.wait_for_selector("#said .error")
    return text(page, "#said")


def test_from_a_link_to_a_published_repo(hub, visitor, capfd):
    page = visitor()
    sign_in(page, "ada")
    look(page)
    facts = text(page, "#facts")
    assert "Z-Image, 5." in facts and "apache-2.0" in facts and "studio/planet on Hugging Face" in facts
    page.wait_for_selector("#most")
    assert "$5.40 at most" in text(page, "#price") and "by estimate" in text(page, "#price")
    page.click("#start")
    page.wait_for_selector("#published")
    assert page.get_attribute("#published", "href") == f"{hub.url}/ada/planet-HSWQ"
    assert "Its 2 quantized files match the record there, by SHA-256" in text(page, "#progress")
    assert "README.md" in hub.repos["ada/planet-HSWQ"].files and not hub.repos["ada/planet-HSWQ"].private
    (job,) = hub.jobs.values()
    (token,) = hub.given
    assert job.spec["secrets"] == {"HF_TOKEN": token}
    shown = {key: value for key, value in job.spec.items() if key != "secrets"}
    out, err = capfd.readouterr()
    for place in (shown, job.lines, page.content(), page.context.cookies(), out, err):
        assert token not in str(place) and OF_THE_SPACE not in str(place)
    for path in hub.folder.parent.rglob("*"):
        assert not path.is_file() or token.encode() not in path.read_bytes(), path


def test_two_visitors_at_once_do_not_meet(hub, visitor):
    ada, bea = visitor(), visitor(PHONE)
    sign_in(ada, "ada")
    sign_in(bea, "bea")
    for page in (ada, bea):
        look(page)
    assert [page.input_value("#repo textarea, #repo input") for page in (ada, bea)] == [
        "ada/planet-HSWQ",
        "bea/planet-HSWQ",
    ]
    hub.hurry = ["--no-such-option", "--device", "cpu"]  # whoever's job it is, it ends at once
    for page in (ada, bea):
        start(page)
    owners = {job.namespace: job.spec["secrets"]["HF_TOKEN"] for job in hub.jobs.values()}
    assert {name: hub.given[token] for name, token in owners.items()} == {"ada": "ada", "bea": "bea"}
    seen = {
        seen.headers.get("Authorization", "").removeprefix("Bearer ")
        for seen in hub.seen
        if "/api/jobs/bea" in seen.path
    }
    assert {hub.given[token] for token in seen} == {"bea"}


def test_a_job_that_fails_says_how(hub, visitor):
    hub.hurry = ["--no-such-option"]
    page = visitor()
    sign_in(page, "ada")
    look(page)
    start(page)
    page.wait_for_selector(".job[data-stage=ERROR]")
    said = text(page, "#progress")
    assert "ended as error: exit code 2" in said and "No such option" in said and "nothing more is billed" in said


@pytest.mark.parametrize(
    ("answer", "said"),
    [((402, "Pre-paid credit balance is insufficient"), "credit"), ((403, "Missing scope: jobs"), "may not")],
    ids=["no credit", "no scope"],
)
def test_a_refusal_is_a_sentence(hub, visitor, answer, said):
    hub.refuse = answer
    page = visitor()
    sign_in(page, "ada")
    look(page)
    assert said in refused(page) and not hub.jobs


def test_a_sign_in_that_ends_too_soon_costs_nothing(hub, visitor):
    hub.lifetime = 3600
    page = visitor()
    sign_in(page, "ada")
    look(page)
    assert "sign-in ends in" in refused(page) and not hub.jobs


def test_an_expired_token_asks_for_another_sign_in(hub, visitor):
    page = visitor()
    sign_in(page, "ada")
    look(page)
    page.wait_for_selector("#most")
    hub.accounts.clear()
    page.click("#start")
    page.wait_for_selector("#sign-in")
    assert "sign in again" in text(page, "#said") and not hub.jobs


def test_one_repo_is_made_by_one_job_at_a_time(hub, visitor):
    page = visitor()
    sign_in(page, "ada")
    look(page)
    start(page)
    page.click("#look")
    assert "under way already" in refused(page) and len(hub.jobs) == 1


def test_a_civitai_token_is_kept_beside_the_other_and_nowhere_else(hub, visitor, url, door):
    token = "civitai-of-ada-0123456789"
    page = visitor()
    sign_in(page, "ada")
    look(page)
    page.click("#civitai summary")
    page.fill("#civitai input[type=password]", "has blanks")
    page.click("#civitai button")
    page.wait_for_selector("#said .error")
    page.click("#civitai summary")
    page.fill("#civitai input[type=password]", token)
    page.click("#civitai button")
    page.wait_for_selector("#civitai-kept")
    page.wait_for_selector("#start")  # the link was not lost
    (known,) = door._visitors.values()
    assert known.tokens.civitai == token
    assert token not in page.content() and token not in str(page.context.cookies()) and token not in page.url
    assert not [seen for seen in hub.seen if token in str(seen)]
    page.click("#sign-out")
    page.wait_for_selector("#sign-in")
    assert not door._visitors


def test_who_says_no_stays_outside_and_keeps_his_link(hub, visitor):
    page = visitor()
    look(page)
    assert "Sign in to start a job" in text(page, "#said") and not page.is_visible("#start")
    page.click("#sign-in")
    assert page.inner_text("#scopes") == "openid profile contribute-repos jobs"
    page.click("#deny")
    page.wait_for_selector("#said .error")
    assert page.input_value("#link textarea, #link input") == LINK
    sign_in(page, "ada")
    page.wait_for_selector("#start")  # the link was looked at by itself


def test_signing_out_forgets(hub, visitor):
    page = visitor()
    sign_in(page, "ada")
    number = next(cookie for cookie in page.context.cookies() if cookie["name"] == COOKIE)
    assert number["httpOnly"] and number["sameSite"] == "Lax"
    page.click("#sign-out")
    page.wait_for_selector("#sign-in")
    page.context.add_cookies([number])
    page.reload()
    page.wait_for_selector("#sign-in")


def test_a_job_can_be_stopped(hub, visitor):
    page = visitor()
    sign_in(page, "ada")
    look(page)
    start(page)
    page.click("#stop")
    page.wait_for_selector(".job[data-stage=CANCELED]")
    assert not page.is_visible("#stop") and page.is_enabled("#start")
    (job,) = hub.jobs.values()
    assert hub.processes[job.id].wait(10) != 0


def test_a_running_job_is_found_again(hub, visitor):
    page = visitor()
    sign_in(page, "ada")
    look(page)
    start(page)
    page.reload()
    page.wait_for_selector("#jobs")
    page.click("#jobs input")
    page.get_by_role("option", name="ada/planet-HSWQ").first.click()
    page.wait_for_selector("#progress .job")
