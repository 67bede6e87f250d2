"""A program that speaks the Agent Client Protocol, and in a prompt does what the prompt says: a list of steps in JSON.

    {"say": TEXT}          a piece of a message            {"update": {...}}    a session/update of any kind
    {"call": ID}           a tool call that has begun       {"done": ID}         ... and has ended
    {"ask": ID}            asks for permission, and says what was answered
    {"line": TEXT}         writes that, as it is            {"settings": true}   says mode, model and prompts so far
    {"deaf": true}         takes no notice of anything any more
    {"hold": true}         waits for session/cancel         {"fail": {...}}      answers with that error
    {"exit": STATUS}       ends                             {"answer": {...}}      answers with that result
    {"later": TEXT}        says that for ever when answered  {"request": {...}}     asks that, and says what came back

It is started with its abilities as JSON in an argument.
"""

import itertools
import json
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

ABILITIES: dict[str, Any] = json.loads(sys.argv[1])
OPTIONS = [
    {"optionId": "for-ever", "kind": "allow_always", "name": "Always"},
    {"optionId": "fine", "kind": "allow_once", "name": "Yes"},
    {"optionId": "no", "kind": "reject_once", "name": "No"},
]

numbers = itertools.count(1)
sessions: dict[str, dict[str, Any]] = {}
later: list[tuple[str, str]] = []


def write(message: dict[str, Any]) -> None:
    write_line(json.dumps({"jsonrpc": "2.0", **message}))


def write_line(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def read() -> dict[str, Any]:
    line = sys.stdin.readline()
    if not line:
        sys.exit(0)
    return json.loads(line)


def update(session_id: str, said: dict[str, Any]) -> None:
    write({"method": "session/update", "params": {"sessionId": session_id, "update": said}})


def say(session_id: str, text: str) -> None:
    update(session_id, {"sessionUpdate": "agent_message_chunk", "content": {"type": "text", "text": text}})


def settings(session: dict[str, Any]) -> dict[str, Any]:
    modes = [{"id": mode, "name": mode} for mode in ABILITIES.get("modes", [])]
    models: dict[str, Any] = {
        "id": "model",
        "category": "model",
        "type": "select",
        "currentValue": session["model"],
        "options": [],
    }
    answer: dict[str, Any] = {"modes": {"availableModes": modes, "currentModeId": session["mode"]}} if modes else {}
    options: list[dict[str, Any]] = [*([models] if "models" in ABILITIES else []), *ABILITIES.get("options", [])]
    return answer | ({"configOptions": options} if options else {})


def ask(session_id: str, call_id: str) -> bool:
    """Ask, and say what was answered; False if the prompt was cancelled meanwhile."""
    number = f"ask-{next(numbers)}"
    call = {"toolCallId": call_id, "title": "Shell", "kind": "execute", "rawInput": {"command": "ls"}}
    params = {"sessionId": session_id, "toolCall": call, "options": OPTIONS}
    write({"id": number, "method": "session/request_permission", "params": params})
    is_cancelled = False
    while (message := read()).get("id") != number:
        is_cancelled = is_cancelled or message.get("method") == "session/cancel"
    say(session_id, json.dumps(message["result"]["outcome"]))
    return not is_cancelled


def request(session_id: str, params: dict[str, Any]) -> None:
    number = f"request-{next(numbers)}"
    write({"id": number, "method": "session/request_permission", "params": {"sessionId": session_id, **params}})
    while (message := read()).get("id") != number:
        pass
    say(session_id, json.dumps(message))


def hold(session_id: str) -> str:
    while read().get("method") != "session/cancel":
        pass
    return "cancelled"


def tool_call(session_id: str, call_id: str, status: str) -> None:
    kind = "tool_call" if status == "in_progress" else "tool_call_update"
    call = {"toolCallId": call_id, "title": "Shell", "kind": "execute", "status": status, "rawInput": {"command": "ls"}}
    update(session_id, {"sessionUpdate": kind, **call})


def deaf(session_id: str) -> None:
    while True:
        time.sleep(60)


STEPS: dict[str, Callable[[str, Any], object]] = {
    "say": say,
    "update": update,
    "call": lambda session_id, call_id: tool_call(session_id, call_id, "in_progress"),
    "done": lambda session_id, call_id: tool_call(session_id, call_id, "completed"),
    "line": lambda session_id, text: write_line(text),
    "settings": lambda session_id, _: say(session_id, json.dumps(sessions[session_id])),
    "deaf": lambda session_id, _: deaf(session_id),
    "exit": lambda session_id, status: sys.exit(status),
    "later": lambda session_id, text: later.append((session_id, text)),
    "request": request,
}


def prompt(session_id: str, steps: list[dict[str, Any]]) -> dict[str, Any]:
    """The answer to it: a result, or an error."""
    sessions[session_id]["prompts"] += 1
    for step in steps:
        ((kind, value),) = step.items()
        if kind == "fail":
            return {"error": value}
        if kind == "answer":
            return {"result": value}
        if kind == "hold" or (kind == "ask" and not ask(session_id, value)):
            return {"result": {"stopReason": hold(session_id) if kind == "hold" else "cancelled"}}
        if kind in STEPS:
            STEPS[kind](session_id, value)
    return {"result": {"stopReason": "end_turn", "usage": {"inputTokens": 3, "outputTokens": 2, "totalTokens": 5}}}


def begin(params: dict[str, Any]) -> dict[str, Any]:
    if ABILITIES.get("wants_key") and not Path("logged-in").exists():
        return {"error": {"code": -32000, "message": "Authentication required"}}
    session_id = params.get("sessionId") or str(uuid.uuid4())
    if "sessionId" in params and session_id != "known":
        return {"error": {"code": -32002, "message": "Resource not found"}}
    sessions[session_id] = {"mode": ABILITIES.get("initial"), "model": "small", "prompts": 0}
    sessions[session_id] |= {"mcp": params["mcpServers"], "meta": params.get("_meta")}
    if "sessionId" in params:
        say(session_id, "This was said long ago.")
    return {"result": {"sessionId": session_id, **settings(sessions[session_id])}}


def initialize(params: dict[str, Any]) -> dict[str, Any]:
    methods = [{"id": "key", "name": "Key", "type": "env_var", "vars": [{"name": "AGENT_KEY"}]}]
    capabilities = {"loadSession": ABILITIES.get("loads", True), "mcpCapabilities": {"http": True}}
    version = ABILITIES.get("version", params["protocolVersion"])
    return {
        "result": {
            "protocolVersion": version,
            "agentInfo": {"name": ABILITIES.get("name", "steps"), "version": "1"},
            "agentCapabilities": capabilities,
            "authMethods": methods if ABILITIES.get("wants_key") else [],
        }
    }


def authenticate(params: dict[str, Any]) -> dict[str, Any]:
    Path("logged-in").touch()
    return {"result": {}}


def set_mode(params: dict[str, Any]) -> dict[str, Any]:
    sessions[params["sessionId"]]["mode"] = params["modeId"]
    return {"result": {}}


def set_config_option(params: dict[str, Any]) -> dict[str, Any]:
    sessions[params["sessionId"]][params["configId"]] = params["value"]
    if params["configId"] == "mood":
        sessions[params["sessionId"]]["mode"] = params["value"]
    return {"result": {}}


METHODS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "initialize": initialize,
    "authenticate": authenticate,
    "session/new": begin,
    "session/load": begin,
    "session/set_mode": set_mode,
    "session/set_config_option": set_config_option,
    "session/prompt": lambda params: prompt(params["sessionId"], json.loads(params["prompt"][0]["text"])),
}


def main() -> None:
    while True:
        message = read()
        if message.get("method") in METHODS:
            write({"id": message["id"], **METHODS[message["method"]](message["params"])})
            while later:
                say(*later[0])
                time.sleep(0.05)


if __name__ == "__main__":
    main()
