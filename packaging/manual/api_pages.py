"""Pages of the manual made of the OpenAPI documents, which have every call, type and code."""

import html
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

_METHODS = ("get", "post", "put", "patch", "delete")


def api_page(program: str, document: Mapping[str, Any]) -> str:
    """The page about the calls of `program`, in Markdown."""
    info, schemas = document["info"], document["components"]["schemas"]
    lines = [
        f"# API of the {program}",
        "",
        f"{info['description']} The same in OpenAPI: [{program}.json]({program}.json), and "
        "`GET /openapi.json` of a running one.",
        "",
        f"*Administrators*: {document['components']['securitySchemes']['administrator']['description']}",
        "",
    ]
    for heading, calls in _by_subject(document["paths"]).items():
        lines += [f"## {heading}", ""]
        for path, method, operation in calls:
            lines += [f"### {method.upper()} {path}", "", *_call(operation), ""]
    lines += ["## Types", ""]
    for name, schema in sorted(schemas.items()):
        lines += [f"### {name}", "", *_type(schema), ""]
    return "\n".join(lines)


def _by_subject(paths: Mapping[str, Any]) -> dict[str, list[tuple[str, str, Any]]]:
    """Calls by the first word of their path behind the version; those without a version come last."""
    found: dict[str, list[tuple[str, str, Any]]] = {}
    for path, methods in paths.items():
        words = path.strip("/").split("/")
        subject = f"/{words[1]}" if len(words) > 1 else "Versions, health, description"
        found.setdefault(subject, []).extend(
            (path, method, methods[method]) for method in _METHODS if method in methods
        )
    return dict(sorted(found.items(), key=lambda entry: (not entry[0].startswith("/"), entry[0])))


def _whom(security: Sequence[Mapping[str, object]]) -> str:
    names = [f"{name}s" for ways in security for name in ways]
    return f"For {' and '.join(names)}." if names else "For anyone."


def _call(operation: Mapping[str, Any]) -> Iterator[str]:
    yield f"{operation['summary']} {_whom(operation['security'])}"
    if operation["parameters"]:
        yield from ("", "| parameter | where | |", "|---|---|---|")
        for field in operation["parameters"]:
            need = "needed" if field["required"] else "optional"
            about = [field.get("description", ""), _pattern(field["schema"])]
            yield f"| `{field['name']}` | {field['in']}, {need} | {' '.join(filter(None, about))} |"
    if "requestBody" in operation:
        (content,) = operation["requestBody"]["content"].values()
        schema = content["schema"]
        yield from ("", f"Body: {_name(schema)}.")
    refusals: dict[str, list[str]] = {}
    for code, response in operation["responses"].items():
        if code.startswith(("2", "307")):
            yield from ("", f"Answered with {code}: {_answer(response)}.")
        else:
            refusals.setdefault(_answer(response), []).append(code)
    yield ""
    yield "Or with " + "; ".join(f"{', '.join(codes)}: {what}" for what, codes in refusals.items()) + "."


def _answer(response: Mapping[str, Any]) -> str:
    if "content" not in response:
        return "no body"
    media_type, content = next(iter(response["content"].items()))
    schema = content["schema"]
    if media_type == "text/event-stream":
        return f"server-sent events, the data of each of which is {_name(schema)}"
    results = schema.get("properties", {}).get("results")
    if results is None:
        return _name(schema)
    is_empty = results.get("$ref", "").endswith("/Nothing")
    return "`results` is empty" if is_empty else f"`results` is {_name(results)}"


def _type(schema: Mapping[str, Any]) -> Iterator[str]:
    if "description" in schema:
        yield from (_escaped(" ".join(schema["description"].split())), "")
    fields = schema.get("properties")
    if not fields:
        yield "No members." if schema.get("type") == "object" else _name(schema)
        return
    needed = frozenset(schema.get("required", ()))
    yield from ("| member | type | |", "|---|---|---|")
    for name, field in fields.items():
        yield f"| `{name}` | {_name(field)} | {'needed' if name in needed else _default(field)} |"


def _default(field: Mapping[str, Any]) -> str:
    if field.get("default") in (None, "", [], {}):
        return "optional"
    return f"optional, <code>{_escaped(str(field['default']))}</code>"


def _name(schema: Mapping[str, Any]) -> str:
    """What a value is, in words, with links to types."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(_unique(_name(one) for one in schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    kind = schema.get("type", "anything")
    if isinstance(kind, list):
        return " or ".join(kind)
    if kind == "array":
        return f"list of {_name(schema['items'])}" if schema.get("items") else "list"
    members = schema.get("additionalProperties")
    if kind == "object" and isinstance(members, Mapping) and members:
        return f"object, each member {_name(members)}"
    return str(kind)


def _pattern(schema: Mapping[str, Any]) -> str:
    return f"<code>{_escaped(schema['pattern'])}</code>" if "pattern" in schema else ""


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _escaped(text: str) -> str:
    """As it reads in a cell of a table: nothing of it is markup."""
    for character in "\\`*_{}[]|$":
        text = text.replace(character, f"&#{ord(character)};")
    return html.escape(text, quote=False).replace("&amp;#", "&#")
