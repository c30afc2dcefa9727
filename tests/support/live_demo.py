"""The demo page, served on loopback from this process."""

from contextlib import contextmanager

from spaces_app.app import create_demo, launch_options


@contextmanager
def live(*, mcp: bool = False, **options):
    """The page's address, while the block runs."""
    demo = create_demo(**options)
    try:
        launch = {"server_name": "127.0.0.1", "prevent_thread_lock": True, "quiet": True, **launch_options(mcp=mcp)}
        _, url, _ = demo.launch(**launch)
        yield url
    finally:
        demo.close(verbose=False)
