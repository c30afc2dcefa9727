"""What programs and assistants get of the page: the documents' client, and the endpoint as a tool."""

import asyncio
import json
import re
from importlib import util
from pathlib import Path

import pytest
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client
from support.live_demo import live

from hswq_runtime.errors import HSWQError
from spaces_app.app import main

pytestmark = pytest.mark.usefixtures("shared_home")
PAGE = Path(__file__).parents[2] / "docs/spaces.md"
CALL = {"prompt": "a star", "steps": 1, "size": 64, "variants": ["original", "V2"]}


@pytest.fixture(scope="module")
def url(home):
    with live(mcp=True) as address:
        yield address


def of_the_tool(url: str, ask):
    """What `ask` makes of a session with the page's tool server."""

    async def session():
        async with (
            streamable_http_client(f"{url}gradio_api/mcp/") as (read, write, _),
            ClientSession(read, write) as client,
        ):
            await client.initialize()
            return await ask(client)

    return asyncio.run(session())


def test_the_documents_client_runs(url, capsys):
    (snippet,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert snippet.count("http://127.0.0.1:7860") == 1
    exec(snippet.replace("http://127.0.0.1:7860", url), {})
    assert re.search(r"\[\('original', 1.0\), \('V2', 0\.\d+\)\]", capsys.readouterr().out)


def test_the_tool_says_what_it_does_and_what_each_argument_is(url):
    (tool,) = of_the_tool(url, lambda client: client.list_tools()).tools
    assert tool.name == "compare" and tool.description.startswith("Make one picture by each variant")
    assert "SSIM (1 is equal)" in tool.description
    schema = tool.inputSchema
    assert schema["required"] == ["prompt"] and set(CALL) < set(schema["properties"])
    assert {name: entry.get("description", "")[-1:] for name, entry in schema["properties"].items()} == dict.fromkeys(
        schema["properties"], "."
    )
    types = {name: json.dumps(entry) for name, entry in schema["properties"].items()}
    assert "string" in types["prompt"] and "integer" in types["steps"] and "array" in types["variants"]


def test_the_tool_answers_with_figures_and_without_pictures_if_they_are_not_wanted(url):
    answer = of_the_tool(url, lambda client: client.call_tool("compare", {**CALL, "pictures": False}))
    (content,) = answer.content
    assert not answer.isError and "'label': 'V2'" in content.text and "data:image" not in content.text


def test_the_tool_refuses_what_the_page_refuses(url):
    answer = of_the_tool(url, lambda client: client.call_tool("compare", {**CALL, "model": "/etc"}))
    assert answer.isError and "only the models in its list" in answer.content[0].text


@pytest.mark.parametrize(("options", "variables"), [({"mcp": True}, {}), ({}, {"GRADIO_MCP_SERVER": "true"})])
def test_without_the_package_it_says_what_to_install(monkeypatch, options, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("spaces_app.app.find_spec", lambda name: None if name == "mcp" else util.find_spec(name))
    with pytest.raises(HSWQError, match=r"pip install 'hswq-hub\[demo,mcp\]'"):
        main(**options)
